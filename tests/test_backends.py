"""lm-eval's own tasks beside the kit's, and relevance."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from test_evaluation import evaluated, tiny_model
from test_evaluation_resume import problems

from trait_kit.engine.files import TraitError
from trait_kit.evaluation import suites
from trait_kit.evaluation.scoring_model import quiet


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def _general_task(folder: Path, version: int = 1) -> str:
    rows = [
        {"q": f"{n} pears and {n} apples are", "a": [str(2 * n), str(n), "no fruit"], "right": n % 3}
        for n in range(9)
    ]
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


def test_every_arm_is_shown_the_same_examples(model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    file = Path(_general_task(tmp_path))
    config = yaml.safe_load(file.read_text()) | {"num_fewshot": 2, "fewshot_split": "test"}
    file.write_text(yaml.safe_dump(config | {"fewshot_config": {"sampler": "default"}}))
    lines: list[str] = []
    for _ in range(2):
        evaluated(model_dir, problems(n_items=1), tmp_path, {}, report=lines.append, general_tasks=[str(file)])
    asked = [line for line in lines if "fruit" in line]
    assert "26 asked" in asked[0] and "kept from before" in asked[1]


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
    assert ((scores["value"] >= 0) == (scores["prediction"] == "relevant")).all() and scores[
        "value"
    ].abs().min() > 0
