"""Other ways to the same numbers: many texts at once, a server, vLLM's absence, and lm-eval's own tasks."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from completions_server import CompletionsServer
from test_evaluation import _params, _tiny_model
from test_evaluation_resume import TASKS, problems

from trait_kit.engine.files import TraitError
from trait_kit.evaluation import harness
from trait_kit.evaluation.suites import evaluate_model

KEY = "sk-evaluation-0123456789"
SHOTS = "".join(f"Question: Tom has {n} apples. How many?\nAnswer: {n}. The answer is {n}.\n\n" for n in range(6))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return _tiny_model(tmp_path_factory.mktemp("model") / "tiny", seed=0)


def _requests(prompts: list[str], **changes):
    from lm_eval.api.instance import Instance

    settings = {"until": ["\nQuestion:"], "do_sample": False, "max_gen_toks": 24, **changes}
    return [Instance("generate_until", {}, (prompt, dict(settings)), place) for place, prompt in enumerate(prompts)]


def _both(folder: Path, prompts: list[str], **changes) -> tuple[list[str], list[str]]:
    """Texts of HFLM, one prompt at a time, and of the kit."""
    from lm_eval.models.huggingface import HFLM

    ours = harness.load_model(folder, batch_size=4, precision="float32")
    assert ours.shares
    theirs = HFLM(ours.model, tokenizer=ours.tokenizer, batch_size=1)
    with harness.quiet():
        return theirs.generate_until(_requests(prompts, **changes)), ours.generate_until(_requests(prompts, **changes))


@pytest.mark.parametrize(
    ("prefix", "changes"),
    [("", {}), (SHOTS, {}), (SHOTS * 3, {"max_gen_toks": 60}), (SHOTS, {"until": ["e", "1"]}), (SHOTS, {"until": []})],
    ids=["no worked examples", "worked examples", "cut on the left", "ends early", "no stop"],
)
def test_texts_are_those_of_lm_evals_own_model(model_dir, prefix, changes):
    questions = [f"Question: {'Tom has ' * (n % 4)}{n} apples{' and pears' * n}. How many?\nAnswer:" for n in range(9)]
    theirs, ours = _both(model_dir, [prefix + question for question in [*questions, "数学"]], **changes)
    assert ours == theirs and len(set(ours)) > 5


def test_texts_of_the_demo_model_too():
    from trait_kit.models import resolve_model

    questions = [f"Question: Tom has {n} apples and {n + 1} pears. How many fruits?\nAnswer:" for n in (2, 30)]
    theirs, ours = _both(Path(resolve_model("demo:smollm2-135m")), [SHOTS + text for text in questions])
    assert ours == theirs and all(ours)


def test_little_memory_makes_more_batches_and_the_same_texts(model_dir, monkeypatch):
    from trait_kit.evaluation import generation

    prompts = [f"{SHOTS}Question: {n}{' pears' * n}?\nAnswer:" for n in range(7)]
    _, whole = _both(model_dir, prompts)
    monkeypatch.setattr(generation.SharedPrefix, "rows_in_memory", lambda *_: 2)
    monkeypatch.setattr(generation, "_SCORES", 1)
    assert _both(model_dir, prompts)[1] == whole


def test_likelihoods_after_shared_examples_are_those_of_lm_evals_own_model(model_dir):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    asked = [
        (f"{SHOTS}Question: {n}{' pears' * n}?\nAnswer:", f" {text}") for n in range(5) for text in ("7", "the sum", "30")
    ]
    requests = [Instance("loglikelihood", {}, pair, place) for place, pair in enumerate(asked)]
    ours = harness.load_model(model_dir, batch_size=4, precision="float32")
    theirs = HFLM(ours.model, tokenizer=ours.tokenizer, batch_size=1)
    with harness.quiet():
        found, wanted = ours.loglikelihood(requests), theirs.loglikelihood(requests)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]


@pytest.fixture(scope="module")
def server(model_dir):
    with CompletionsServer(model_dir) as server:
        yield server


@pytest.fixture
def ask(model_dir, server, monkeypatch, tmp_path):
    """Evaluate four problems and a document through the server, or with `backend` otherwise."""
    monkeypatch.setenv("EVALUATION_KEY", KEY)
    server.mode = "well"

    def call(folder: str = "run", arm: str = "base", **changes) -> pd.DataFrame:
        fields = {"backend": "endpoint", "endpoint_url": server.url, "endpoint_model": "tiny", "max_new_tokens": 6}
        fields |= {"endpoint_key_variable": "EVALUATION_KEY", "generate_items": 4, **changes}
        documents = {"general": ["The river flows into the sea, past the castle."]}
        asked = problems(n_items=4)
        return evaluate_model(model_dir, arm, 0, asked, documents, _params(**fields), tmp_path / folder, tasks=TASKS)

    return call


def test_an_endpoint_gives_the_scores_of_transformers(ask, server, tmp_path):
    ours, theirs = ask("ours", backend="transformers"), ask()
    assert (ours["metric"] == "choice_accuracy").sum() == 2 and (ours["metric"] == "exact_match").sum() == 4
    columns = ["task", "item_id", "metric", "prediction", "gold"]
    pd.testing.assert_frame_equal(theirs[columns], ours[columns])
    assert theirs["value"].tolist() == pytest.approx(ours["value"].tolist(), abs=1e-4)
    assert server.keys == {f"Bearer {KEY}"}
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in kept and str(server.server_port).encode() not in kept
    asked = server.asked
    pd.testing.assert_frame_equal(ask(endpoint_url="http://127.0.0.1:9/v1"), theirs)  # the address names no model
    assert server.asked == asked
    ask(endpoint_version=2)
    assert server.asked > asked
    with pytest.raises(TraitError, match="endpoint_model is tiny for every arm"):
        ask(arm="trait")
    assert set(ask(arm="trait", endpoint_model="tiny-{arm}")["arm"]) == {"trait"}


def test_an_endpoint_is_asked_from_a_notebook_too(ask):
    async def cell() -> pd.DataFrame:
        return ask()

    assert len(asyncio.run(cell())) == 15


def test_without_log_probabilities_texts_can_still_be_asked(ask, server):
    server.mode = "no log-probabilities"
    with pytest.raises(TraitError, match=r"no log-probabilities of the prompt's tokens.*likelihood: false"):
        ask()
    assert set(ask(likelihood=False)["metric"]) == {"exact_match", "exact_match_strict"}


@pytest.mark.parametrize("mode", ["hang", "garbage", "refuses"])
def test_a_bad_server_ends_in_one_error(ask, server, mode, capfd):
    server.mode = mode
    with pytest.raises(TraitError, match="The endpoint of tiny gave no usable answer") as error:
        ask(likelihood=False, endpoint_timeout=1)
    printed = "".join(capfd.readouterr())
    for said in (str(error.value), printed):
        assert KEY not in said and server.url not in said
    assert error.value.__cause__ is None and len(str(error.value)) < 700


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_says_how_to_install_it(ask):
    with pytest.raises(TraitError, match="python -m pip install vllm"):
        ask(backend="vllm")


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match="endpoint_url and endpoint_model"):
        _params(backend="endpoint")
    with pytest.raises(ValueError, match="generate_items must be above 0"):
        _params(likelihood=False)


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
        params = _params(general_tasks=names, general_items=items)
        return evaluate_model(
            model_dir, "base", 0, problems(n_items=1), {}, params, tmp_path, report=lines.append, tasks=TASKS
        )

    found = scores([file], 6, [])
    ours = found[found["task"] == "held_out/fruit"]
    assert len(ours) == 6 and set(ours["metric"]) == {"acc_norm"}
    with harness.quiet():
        tasks = TaskManager(include_defaults=False).load([file])
        theirs = evaluate(HFLM(str(model_dir), device="cpu"), tasks, limit=6, bootstrap_iters=0)
    assert ours["value"].tolist() == [sample["acc_norm"] for sample in theirs["samples"]["fruit"]]
    lines: list[str] = []
    more = scores([file], 9, lines)
    assert len(more) == len(found) + 3 and "9 items, 3 asked" in lines[-1]
    lines.clear()
    scores([_general_task(tmp_path, version=2)], 9, lines)
    assert "version 2" in lines[-1] and "9 asked" in lines[-1]


def test_a_general_task_that_cannot_be_had_is_named(model_dir, tmp_path):
    file = Path(_general_task(tmp_path))
    (tmp_path / "rows.json").unlink()
    for name in (str(file), str(tmp_path / "missing.yaml")):
        with pytest.raises(TraitError, match=f"general_tasks: {name} cannot be loaded"):
            evaluate_model(model_dir, "base", 0, problems(), {}, _params(general_tasks=[name]), tmp_path, tasks=TASKS)


def test_relevance_has_a_score_an_item(model_dir, tmp_path):
    asked = problems(n_items=3).assign(answer=["relevant", "irrelevant", "relevant"])
    asked["choices"] = [["relevant", "irrelevant"]] * 3
    found = evaluate_model(model_dir, "base", 0, asked, {}, _params(), tmp_path, tasks=TASKS)
    scores, chosen = (found[found["metric"] == metric] for metric in ("relevance_score", "choice_accuracy"))
    assert scores["gold"].tolist() == asked["answer"].tolist()
    assert scores["prediction"].tolist() == chosen["prediction"].tolist()
    assert ((scores["value"] >= 0) == (scores["prediction"] == "relevant")).all() and scores["value"].abs().min() > 0
