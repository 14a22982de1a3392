"""An evaluation that is killed goes on with the requests that were not kept, and ends with the same table."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from test_evaluation import evaluated, tiny_model

from trait_kit.engine import machine
from trait_kit.engine.files import TraitError
from trait_kit.evaluation import scoring_model

N_ITEMS = 20
DOCUMENTS = {"general": [f"The river {number} flows into the sea." for number in range(N_ITEMS)]}
# Kills itself without warning before its model's `limit`-th forward pass.
CHILD = """
import functools, os, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
import test_evaluation_resume as here
from transformers import LlamaForCausalLM
limit, forward = int(sys.argv[4]), LlamaForCausalLM.forward
@functools.wraps(forward)
def counted(*arguments, **more):
    global limit
    limit -= 1
    if limit < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(*arguments, **more)
LlamaForCausalLM.forward = counted
here.asked(Path(sys.argv[2]), Path(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def problems(tasks=("sums",), n_items: int = N_ITEMS) -> pd.DataFrame:
    rows = [
        {
            "id": f"{task}{number}",
            "task": task,
            "question": f"Tom has {number} apples and {number + 3} pears ({task}). How many?",
            "answer": str(2 * number + 3),
            "solution": f"{number} + {number + 3} = {2 * number + 3}. The answer is {2 * number + 3}.",
            "choices": [str(2 * number + 3), str(number)] if number % 2 else None,
            "entity": None,
            "split": "test",
        }
        for task in tasks
        for number in range(n_items)
    ]
    return pd.DataFrame(rows, dtype=object)


def asked(
    model_dir: Path, out_dir: Path, rows: pd.DataFrame | None = None, report=print, **changes
) -> pd.DataFrame:
    fields = {"generate_items": N_ITEMS, "max_new_tokens": 6, "documents": DOCUMENTS, **changes}
    return evaluated(model_dir, problems() if rows is None else rows, out_dir, report=report, **fields)


def kept(lines: list[str]) -> list[bool]:
    return ["kept from before" in line for line in lines]


def killed(model_dir: Path, out_dir: Path, passes: int) -> None:
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(model_dir), str(out_dir), str(passes)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert result.returncode == -signal.SIGKILL, result.stderr[-2_000:]


@pytest.mark.parametrize(
    "passes", [30, pytest.param(20, marks=pytest.mark.slow), pytest.param(75, marks=pytest.mark.slow)]
)
def test_a_killed_evaluation_goes_on(model_dir, tmp_path, passes):
    undisturbed = asked(model_dir, tmp_path / "undisturbed")
    killed(model_dir, tmp_path / "run", passes)
    lines: list[str] = []
    pd.testing.assert_frame_equal(
        asked(model_dir, tmp_path / "run", report=lines.append), undisturbed, check_exact=True
    )
    first = lines[0]
    assert "kept" in first or int(first.split(" asked")[0].split()[-1]) < 50  # of 50 likelihoods
    lines.clear()
    pd.testing.assert_frame_equal(
        asked(model_dir, tmp_path / "run", report=lines.append), undisturbed, check_exact=True
    )
    assert kept(lines) == [True] * 3


def test_only_what_is_new_is_asked(model_dir, tmp_path):
    first = asked(model_dir, tmp_path, problems(n_items=12))
    lines: list[str] = []
    more = asked(model_dir, tmp_path, problems(("sums", "more")), report=lines.append)
    numbers = [line.split(", ")[2].split(" asked")[0] for line in lines]
    assert numbers == [
        "20",
        "8",
        "50",
        "20",
        "kept from before",
    ]  # likelihoods: a solution, an answer, a wrong choice
    both = first.merge(more, on=["task", "item_id", "metric"])
    assert len(both) == len(first) and (both["value_x"] == both["value_y"]).all()
    lines.clear()
    same = asked(model_dir, tmp_path, problems(n_items=5), arm="same weights", batch_size=4, report=lines.append)
    assert kept(lines) == [True] * 3 and set(same["arm"]) == {"same weights"}
    assert same["value"].tolist() == first.loc[first["item_id"].isin(set(same["item_id"])), "value"].tolist()
    lines.clear()
    changed = problems(n_items=5)
    changed.loc[0, "question"] = "What is 0 + 3?"
    asked(model_dir, tmp_path, changed, report=lines.append, max_new_tokens=7)
    assert ["2 asked" in lines[0], "5 asked" in lines[1], *kept(lines[2:])] == [True] * 3
    lines.clear()
    asked(tiny_model(tmp_path / "other", seed=1), tmp_path, problems(n_items=5), arm="other", report=lines.append)
    assert kept(lines) == [False] * 3


def test_changed_scoring_code_asks_again_and_changed_marks_need_not(model_dir, tmp_path, monkeypatch):
    before = asked(model_dir, tmp_path)
    lines: list[str] = []
    monkeypatch.setattr("trait_kit.evaluation.metrics.judge", lambda *_: (True, True))
    marked = asked(model_dir, tmp_path, report=lines.append)
    assert kept(lines) == [True] * 3
    assert (marked.loc[marked["metric"] == "exact_match", "value"] == 1).all() and not marked.equals(before)
    sources = machine.content
    edited = Path(scoring_model.__file__)
    monkeypatch.setattr(machine, "content", lambda path: "edited" if path == edited else sources(path))
    lines.clear()
    asked(model_dir, tmp_path, report=lines.append)
    assert kept(lines) == [False] * 3


@pytest.mark.parametrize("keep", [-5_000, 0])
def test_a_torn_file_of_answers_is_named(model_dir, tmp_path, keep):
    before = asked(model_dir, tmp_path)
    (path,) = (tmp_path / "answers").glob("*.sqlite")
    path.write_bytes(path.read_bytes()[:keep] if keep else b"\x00<html>\xff" * 1_000)
    with pytest.raises(TraitError, match=f"{path.name} holds no answers that can be read"):
        asked(model_dir, tmp_path)
    path.unlink()
    pd.testing.assert_frame_equal(asked(model_dir, tmp_path), before, check_exact=True)
