"""An evaluation that is killed goes on after the last slice that was kept, and ends with the same table."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_evaluation import _params, _tiny_model

from trait_kit.evaluation import harness
from trait_kit.evaluation.suites import evaluate_model
from trait_kit.tasks import Task

N_ITEMS, SLICE = 20, 4
TASKS = {
    name: Task(name=name, about="", kind="number", metrics=["exact_match"], source="demo:math/word_problems")
    for name in ("sums", "more")
}
# Kills itself without warning when it is about to ask the `limit`-th slice.
CHILD = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
import test_evaluation_resume as here
from trait_kit.evaluation import harness
limit, run = int(sys.argv[4]), harness.run
def counted(*arguments):
    global limit
    limit -= 1
    if limit < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return run(*arguments)
harness.run = counted
here.evaluated(Path(sys.argv[2]), Path(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return _tiny_model(tmp_path_factory.mktemp("model") / "tiny", seed=0)


def problems(tasks=("sums",), n_items: int = N_ITEMS) -> pd.DataFrame:
    rows = [
        {
            "id": f"{task}{number}",
            "task": task,
            "question": f"Tom has {number} apples and {number + 3} pears ({task}). How many?",
            "answer": str(2 * number + 3),
            "solution": f"{number} + {number + 3} = {2 * number + 3}. The answer is {2 * number + 3}.",
            "choices": [str(2 * number + 3), str(number)] if number % 2 else None,
            "split": "test",
        }
        for task in tasks
        for number in range(n_items)
    ]
    return pd.DataFrame(rows)


def evaluated(model_dir: Path, out_dir: Path, asked: pd.DataFrame | None = None, report=None, **changes) -> pd.DataFrame:
    fields = {"generate_items": N_ITEMS, "max_new_tokens": 6, **changes}
    documents = {"general": [f"The river {number} flows into the sea." for number in range(N_ITEMS)]}
    harness.CPU_SLICE_ITEMS = SLICE
    asked = problems() if asked is None else asked
    return evaluate_model(model_dir, "base", 0, asked, documents, _params(**fields), out_dir, report=report, tasks=TASKS)


@pytest.fixture
def slices(monkeypatch) -> list[int]:
    """How many items each slice asks for, counted where lm-eval is called."""
    monkeypatch.setattr(harness, "CPU_SLICE_ITEMS", SLICE)
    sizes, run = [], harness.run

    def counted(model, tasks, places):
        sizes.append(max(map(len, places.values())))
        return run(model, tasks, places)

    monkeypatch.setattr(harness, "run", counted)
    return sizes


def killed(model_dir: Path, out_dir: Path, slices: int) -> None:
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(model_dir), str(out_dir), str(slices)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert result.returncode == -signal.SIGKILL, result.stderr[-2_000:]


def test_a_killed_evaluation_goes_on_after_the_last_slice(model_dir, tmp_path, slices):
    undisturbed = evaluated(model_dir, tmp_path / "undisturbed")
    whole = list(slices)
    assert whole == [SLICE] * 15  # three units of 20 items
    killed(model_dir, tmp_path / "run", slices=7)
    slices.clear()
    lines: list[str] = []
    pd.testing.assert_frame_equal(evaluated(model_dir, tmp_path / "run", report=lines.append), undisturbed, check_exact=True)
    assert slices == [SLICE] * 8
    assert ["kept from before" in line for line in lines] == [True, False, False] and ", 12 asked" in lines[1]


@pytest.mark.slow
@pytest.mark.parametrize("slices_before", range(0, 15, 2))
def test_wherever_it_is_killed(model_dir, tmp_path, slices, slices_before):
    undisturbed = evaluated(model_dir, tmp_path / "undisturbed")
    killed(model_dir, tmp_path / "run", slices=slices_before)
    slices.clear()
    pd.testing.assert_frame_equal(evaluated(model_dir, tmp_path / "run"), undisturbed, check_exact=True)
    assert len(slices) == 15 - slices_before


def test_more_items_and_tasks_repeat_nothing(model_dir, tmp_path, slices):
    first = evaluated(model_dir, tmp_path, problems(n_items=12))
    slices.clear()
    more = evaluated(model_dir, tmp_path, problems(("sums", "more")))
    assert sum(slices) == 2 * 8 + 2 * N_ITEMS  # likelihood and generation of what is new; no document
    both = first.merge(more, on=["task", "item_id", "metric"])
    assert len(both) == len(first) and (both["value_x"] == both["value_y"]).all()
    slices.clear()
    fewer = evaluated(model_dir, tmp_path, problems(n_items=5))
    assert not slices and set(fewer.loc[fewer["task"] == "sums", "item_id"]) == {f"sums{number}" for number in range(5)}
    newer = {**TASKS, "sums": TASKS["sums"].model_copy(update={"version": 2})}
    evaluate_model(model_dir, "base", 0, problems(n_items=5), {}, _params(), tmp_path, tasks=newer)
    assert sum(slices) == 5
    slices.clear()
    evaluated(model_dir, tmp_path, problems(n_items=5), max_new_tokens=7)
    assert sum(slices) == 5  # generation alone depends on it


@pytest.mark.parametrize("damage", ["cut", "noise", "other table"])
def test_a_file_that_is_none_is_thrown_away(model_dir, tmp_path, slices, damage):
    before = evaluated(model_dir, tmp_path)
    (path,) = (tmp_path / "outcomes").glob("sums-generation-*")
    slices.clear()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "noise":
        path.write_bytes(b"\x00<html>\xff" * 1_000)
    else:
        pq.write_table(pa.table({"item": ["x"], "value": ["much"]}), path)
    lines: list[str] = []
    pd.testing.assert_frame_equal(evaluated(model_dir, tmp_path, report=lines.append), before, check_exact=True)
    assert sum(slices) == N_ITEMS and sum("removed" in line and path.name in line for line in lines) == 1
