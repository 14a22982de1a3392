"""Other ways to the same numbers: a server, and lm-eval's own tasks."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from llm_server import KEY, CompletionsServer
from test_evaluation import evaluated, params, tiny_model
from test_evaluation_resume import problems

from trait_kit.engine.files import TraitError
from trait_kit.evaluation import backends, suites
from trait_kit.evaluation.scoring_model import quiet


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def server(model_dir):
    with CompletionsServer(model_dir) as server:
        yield server


@pytest.fixture
def ask(model_dir, server, monkeypatch, tmp_path):
    """Evaluate four problems and a document through the server."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.mode = "well"

    def call(folder: str = "run", **changes) -> pd.DataFrame:
        fields = {"endpoint_url": server.url, "endpoint_model": "tiny", "max_new_tokens": 6, "generate_items": 4, **changes}
        documents = {"general": ["The river flows into the sea, past the castle."]}
        return evaluated(model_dir, problems(n_items=4), tmp_path / folder, documents, **fields)

    return call


def test_an_endpoint_gives_the_scores_of_transformers(ask, server, tmp_path):
    ours, theirs = ask("ours", endpoint_url="", endpoint_model=""), ask()
    assert (ours["metric"] == "choice_accuracy").sum() == 2 and (ours["metric"] == "exact_match").sum() == 4
    columns = ["task", "item_id", "metric", "prediction", "gold"]
    pd.testing.assert_frame_equal(theirs[columns], ours[columns])
    assert theirs["value"].tolist() == pytest.approx(ours["value"].tolist(), abs=1e-4)
    assert (ours["metric"] == "bits_per_number_token").sum() == 4
    assert server.keys == {f"Bearer {KEY}"}
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in kept and str(server.server_port).encode() not in kept
    asked = server.asked
    pd.testing.assert_frame_equal(ask(endpoint_url="http://127.0.0.1:9/v1"), theirs)  # the address names no model
    assert server.asked == asked
    ask(endpoint_model="tiny-2")
    assert server.asked > asked
    with pytest.raises(TraitError, match="endpoint_model is tiny for every arm"):
        ask(arm="trait")
    assert set(ask(arm="trait", endpoint_model="tiny-{arm}")["arm"]) == {"trait"}


def test_an_endpoint_is_asked_from_a_notebook_too(ask):
    async def cell() -> pd.DataFrame:
        return ask()

    assert len(asyncio.run(cell())) == 23


def test_a_server_without_log_probabilities_is_refused(ask, server):
    server.mode = "no log-probabilities"
    with pytest.raises(TraitError, match=r"no log-probabilities of the prompt.s tokens(?s:.*)vllm serve"):
        ask()


@pytest.mark.parametrize("mode", ["hang", "garbage", "refuses"])
def test_a_bad_server_ends_in_one_error(ask, server, mode, capfd, monkeypatch):
    monkeypatch.setattr(backends, "_TIMEOUT", 1)
    monkeypatch.setattr(backends, "_ATTEMPTS", 2)
    server.mode = mode
    with pytest.raises(TraitError, match="The endpoint of tiny gave no usable answer") as error:
        ask()
    printed = "".join(capfd.readouterr())
    for said in (str(error.value), printed):
        assert KEY not in said and server.url not in said
    assert error.value.__cause__ is None and len(str(error.value)) < 700


def test_half_an_endpoint_is_named():
    with pytest.raises(ValueError, match="endpoint_url and endpoint_model"):
        params(endpoint_model="tiny")


def _general_task(folder: Path, version: int = 1) -> str:
    rows = [{"q": f"{n} pears and {n} apples are", "a": [str(2 * n), str(n), "no fruit"], "right": n % 3} for n in range(9)]
    (folder / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": "fruit",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.json")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "a",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "metadata": {"version": version},
    }
    (folder / f"fruit{version}.yaml").write_text(yaml.safe_dump(config))
    return str(folder / f"fruit{version}.yaml")


def test_lm_evals_own_tasks_stand_with_forgetting(model_dir, tmp_path, monkeypatch):
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    file = _general_task(tmp_path)

    def scores(names: list[str], items: int, lines: list[str]) -> pd.DataFrame:
        monkeypatch.setattr(suites, "GENERAL_ITEMS", items)
        return evaluated(model_dir, problems(n_items=1), tmp_path, {}, report=lines.append, general_tasks=names)

    found = scores([file], 6, [])
    ours = found[found["task"] == "held_out/fruit"]
    assert len(ours) == 6 and set(ours["metric"]) == {"acc_norm"} and ours["item_id"].is_unique
    with quiet():
        tasks = TaskManager(include_defaults=False).load([file])
        theirs = evaluate(HFLM(str(model_dir), device="cpu"), tasks, limit=6, bootstrap_iters=0)
    assert ours["value"].tolist() == [sample["acc_norm"] for sample in theirs["samples"]["fruit"]]
    lines: list[str] = []
    more = scores([file], 9, lines)
    assert len(more) == len(found) + 3 and "9 items, 9 asked" in lines[-1]  # three choices of each new one
    lines.clear()
    scores([_general_task(tmp_path, version=2)], 9, lines)
    assert "version 2" in lines[-1] and "kept" in lines[-1]  # the same questions


def test_a_general_task_that_cannot_be_had_is_named(model_dir, tmp_path):
    file = Path(_general_task(tmp_path))
    (tmp_path / "rows.json").unlink()
    for name in (str(file), str(tmp_path / "missing.yaml")):
        with pytest.raises(TraitError, match=f"general_tasks: {name} cannot be loaded"):
            evaluated(model_dir, problems(), tmp_path, {}, general_tasks=[name])


def test_relevance_has_a_score_an_item(model_dir, tmp_path):
    asked = problems(n_items=3).assign(answer=["relevant", "irrelevant", "relevant"])
    asked["choices"] = [["relevant", "irrelevant"]] * 3
    found = evaluated(model_dir, asked, tmp_path, {})
    scores, chosen = (found[found["metric"] == metric] for metric in ("relevance_score", "choice_accuracy"))
    assert scores["gold"].tolist() == asked["answer"].tolist()
    assert scores["prediction"].tolist() == chosen["prediction"].tolist()
    assert ((scores["value"] >= 0) == (scores["prediction"] == "relevant")).all() and scores["value"].abs().min() > 0
