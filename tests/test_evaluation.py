"""Evaluation: numbers equal a direct computation and lm-eval's own; what is asked is checked; a finished step is read."""

from __future__ import annotations

import itertools
import json
import math
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from local_tasks import BENCHMARKS, LOCAL, local_task
from sklearn.metrics import roc_auc_score
from tiny_llama import write_model

from trait_kit.engine.files import TraitError
from trait_kit.evaluation import ads, comparison, metrics, suites
from trait_kit.evaluation.outcomes import evaluate_arms, evaluate_model
from trait_kit.evaluation.scoring_model import PackedLM, load_model, quiet
from trait_kit.evaluation.suites import worked_examples
from trait_kit.figures.tables import verdict
from trait_kit.params import EvaluationParams, load
from trait_kit.tasks import Task, every_test_question, load_problems, load_task, load_tasks, prompt

ROOT = Path(__file__).parent.parent
TEXTS = [
    "A triangle has three sides. The angles of a triangle add up to 180 degrees.",
    "The river flows through the old town, past the castle — and into the sea.",
    "Naïve façade: Ümlauts and 数学 are several bytes a character.",
]
_ABOUT = {"about": "", "metrics": ["exact_match"], "source": "x", "splits": {"test": "x.jsonl"}}
_ABOUT["fields"] = {"question": "{q}", "answer": "{a}"}
TASKS = {
    "sums": Task(name="sums", kind="number", **_ABOUT),
    "more": Task(name="more", kind="number", **_ABOUT),
    "products/hard": Task(name="p", kind="choice", **_ABOUT),
}
DOCUMENTS = {"general": [TEXTS[1], TEXTS[2], TEXTS[1] * 40], "in_domain": [TEXTS[0]]}


def tiny_model(folder: Path, seed: int = 0) -> Path:
    """Far from uniform, so that a wrong position or mask changes every number."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    write_model(folder)
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(folder, max_position_embeddings=512, initializer_range=0.3)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def problems() -> pd.DataFrame:
    rows = []
    for task, (a, b) in itertools.product(("sums", "products/hard"), ((3, 4), (12, 5), (7, 30))):
        value = a + b if task == "sums" else a * b
        rows.append(
            {
                "id": f"{task[0]}{a}",
                "task": task,
                "question": f"Tom has {a} apples and {b} pears ({task}). How many?",
                "answer": str(value),
                "solution": f"We combine {a} and {b}.\nThe answer is {value}." if a != 7 else None,
                "choices": [str(value + 1), str(value), str(value + 10), f"{value}0"],
                "entity": None,
                "topic": "arithmetic",
                "split": "test",
            }
        )
    rows.append({**rows[0], "id": "open", "question": "Name it.", "answer": "the sum", "choices": None})
    return pd.DataFrame(rows, dtype=object)


def params(**changes) -> EvaluationParams:
    fields = {"in_domain": "d", "web": "w", "tasks": ["sums"], "base_model": "m"}
    fields = {name: value for name, value in fields.items() if name in EvaluationParams.model_fields}
    fields |= {"test_items_per_task": 20, "batch_size": 2, "precision": "float32"}
    return EvaluationParams(**{**fields, **changes})


def evaluated(
    model_dir,
    problems,
    out_dir,
    documents=DOCUMENTS,
    arm="base",
    report=print,
    examples=None,
    files=TASKS,
    **more,
):
    """Outcomes of the model on the problems; further arguments are parameters."""
    chosen = params(**more)
    units = suites.build(problems, documents, chosen, out_dir / "lm_eval", examples, files)
    return evaluate_model(model_dir, arm, 3, units, chosen, out_dir / "answers", report)


def _log_probability(model, tokenizer, context: list[int], text: str) -> float:
    """The reference: one plain forward pass of transformers, nothing packed, nothing shared (windows for long texts)."""
    import torch

    target = tokenizer(text)["input_ids"]
    total = 0.0
    for start in range(0, len(target), 512):
        part = target[start : start + 512]
        before = context if start == 0 else target[start - (513 - len(part)) : start]
        logits = model(torch.tensor([before + part[:-1]])).logits[0].double().log_softmax(-1)
        total += sum(float(logits[len(before) - 1 + place, token]) for place, token in enumerate(part))
    return total


@pytest.fixture(scope="module")
def reference(model_dir):
    """(log probability of a text after context tokens, tokenizer)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    return lambda context, text: _log_probability(model, tokenizer, context, text), tokenizer


@pytest.fixture(scope="module")
def finished(model_dir, problems, tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("finished")
    return folder, evaluated(model_dir, problems, folder)


@pytest.fixture(scope="module")
def outcomes(finished) -> pd.DataFrame:
    return finished[1]


def test_one_outcome_an_item_and_metric(outcomes, problems):
    counts = outcomes.groupby(["task", "metric"]).size().to_dict()
    assert counts == {
        ("sums", "bits_per_byte"): 3,  # one problem has no solution: it does not enter an average of solutions
        ("sums", "bits_per_number_token"): 3,
        ("sums", "answer_bits_per_byte"): 4,
        ("sums", "choice_accuracy"): 3,  # one problem has no choices
        ("products/hard", "bits_per_byte"): 2,
        ("products/hard", "bits_per_number_token"): 2,
        ("products/hard", "answer_bits_per_byte"): 3,
        ("products/hard", "choice_accuracy"): 3,
        ("held_out/general", "bits_per_byte"): 3,
        ("held_out/in_domain", "bits_per_byte"): 1,
    }
    assert set(outcomes["arm"]) == {"base"} and set(outcomes["seed"]) == {3}
    assert list(outcomes.loc[outcomes["metric"] == "choice_accuracy", "item_id"]) == list(problems["id"][:6])
    assert (outcomes["cluster"] == outcomes["item_id"]).all()  # no template, no entity: each item is its own


def test_bits_equal_a_direct_forward_pass(outcomes, problems, reference):
    log_probability, tokenizer = reference
    found = outcomes.set_index(["metric", "item_id"])["value"]
    for row in problems.to_dict("records"):
        before, solution = prompt(row["question"]), row["solution"] if isinstance(row["solution"], str) else ""
        if solution:
            nats = log_probability(tokenizer(before)["input_ids"], f" {solution}")
            wanted = -nats / math.log(2) / len(f" {solution}".encode())
            assert found["bits_per_byte", row["id"]] == pytest.approx(wanted, abs=1e-4)
        end = row["answer"] + "."
        announced = f" {solution.removesuffix(end)}".rstrip() if solution.endswith(end) else ""
        nats = log_probability(tokenizer(before + announced)["input_ids"], f" {row['answer']}")
        wanted = -nats / math.log(2) / len(f" {row['answer']}")
        assert found["answer_bits_per_byte", row["id"]] == pytest.approx(wanted, abs=1e-4)
    for name, texts in DOCUMENTS.items():
        values = outcomes.loc[outcomes["task"] == f"held_out/{name}", "value"]
        for text, value in zip(texts, values, strict=True):
            nats = log_probability([tokenizer.eos_token_id], text)
            assert value == pytest.approx(-nats / math.log(2) / len(text.encode()), abs=1e-4)


def test_bits_per_number_token_count_the_tokens_with_digits_alone(outcomes, problems, reference):
    log_probability, tokenizer = reference
    found = outcomes[outcomes["metric"] == "bits_per_number_token"].set_index("item_id")["value"]
    assert len(found) == 5
    for row in problems[problems["solution"].notna()].to_dict("records"):
        context, target = tokenizer(prompt(row["question"]))["input_ids"], f" {row['solution']}"
        digits = [place for place, letter in enumerate(target) if letter.isdigit()]  # every byte is a token
        nats = sum(log_probability(context + tokenizer(target[:at])["input_ids"], target[at]) for at in digits)
        assert found[row["id"]] == pytest.approx(-nats / math.log(2) / len(digits), abs=1e-4)


@pytest.mark.parametrize(
    "target", [" 3 + 14 = $17. In é12 The answer is 1,234.", "7 it is", " none at all", " x: 0.5²"]
)
@pytest.mark.parametrize("packs", [True, False])
def test_one_request_gives_what_cuts_at_each_number_give(model_dir, target, packs):
    """log p(number | what is before it) = log p(text to its end) - log p(text to its begin), by lm-eval's own model."""
    from lm_eval.models.huggingface import HFLM

    ours, before = load_model(model_dir, batch_size=2, precision="float32"), "Question: 12?\nAnswer:"
    with quiet():
        theirs = HFLM(ours.model, tokenizer=ours.tokenizer, logits_cache=False)
    tokens = ours.tok_encode(before + target)
    begin = len(ours.tok_encode(before))
    numbers = [place for place in range(begin, len(tokens)) if ours.tokenizer.decode(tokens[place]).isdigit()]
    cuts = [
        (("", str(end)), tokens[:begin], tokens[begin:end]) for place in numbers for end in (place, place + 1)
    ]
    to = [nats for nats, _ in theirs._loglikelihood_tokens([cut for cut in cuts if cut[2]], disable_tqdm=True)]
    to = [0.0] * (len(cuts) - len(to)) + to  # a number comes first
    ours.packs = packs
    found = ours.score(before, target)
    assert (
        found.numbers == len(numbers) == sum(letter in "0123456789" for letter in target)
    )  # every byte is a token
    assert found.number_nats == pytest.approx(sum(to[1::2]) - sum(to[::2]), abs=1e-4)


def test_other_words_cost_no_bits_a_number_token():
    """Bits per byte punish another wording of the same reasoning; the numbers cost the same."""
    doc = {"metric": "bits_per_byte", "target": "so 3 + 4"}
    plain, wordy = (
        [nats, False, -3.0, 2] for nats in (-5.0, -14.0)
    )  # nine nats of words before the first number
    found, wordier = (metrics.bits_results(doc, [answer]) for answer in (plain, wordy))
    assert found["bits_per_number_token"] == wordier["bits_per_number_token"] == (-3.0, 2)
    assert wordier["bits_per_byte"] == (-14.0, 8)
    assert set(metrics.bits_results(doc, [[-1.0, False, 0.0, 0]])) == {"bits_per_byte"}  # no numbers
    assert set(metrics.bits_results(doc, [(-1.0, False)])) == {"bits_per_byte"}  # another model of lm-eval's


def test_the_preferred_choice_has_the_highest_likelihood_per_byte_after_the_reasoning(
    outcomes, problems, reference
):
    log_probability, tokenizer = reference
    found = outcomes[outcomes["metric"] == "choice_accuracy"].set_index("item_id")
    preferred = []
    for row in problems[problems["choices"].notna()].to_dict("records"):
        reasoning = row["solution"].removesuffix(f" {row['answer']}.") if isinstance(row["solution"], str) else ""
        context = tokenizer(f"{prompt(row['question'])} {reasoning}".rstrip())["input_ids"]
        scores = [log_probability(context, f" {choice}") / len(choice.encode()) for choice in row["choices"]]
        preferred.append(row["choices"][int(np.argmax(scores))])
        assert found.loc[row["id"], "prediction"] == preferred[-1]
        assert found.loc[row["id"], "value"] == float(preferred[-1] == row["answer"])
    assert len(set(preferred)) > 1


def test_the_written_tasks_give_the_same_under_lm_evals_own_model(finished, model_dir):
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder, outcomes = finished
    manager = TaskManager(include_defaults=False, include_path=str(folder / "lm_eval"))
    names = manager.all_tasks
    assert len(names) == 6 and "sums_bits" in names and "sums_choices" in names
    model = HFLM(
        str(model_dir), device="cpu", batch_size=4, logits_cache=False
    )  # it mistakes a part for a choice
    results = evaluate(model, manager.load(names), bootstrap_iters=0)
    ours = outcomes.set_index(["task", "metric", "item_id"])["value"].drop(
        "bits_per_number_token", level="metric"
    )
    theirs = [sample for values in results["samples"].values() for sample in values]
    assert len(ours) == len(theirs)
    for sample in theirs:
        (metric,) = sample["metrics"]
        value = sample[metric] if metric == "choice_accuracy" else metrics.bits_per_byte(*sample[metric])
        (found,) = ours.xs((metric, sample["doc"]["id"]), level=("metric", "item_id"))
        assert found == pytest.approx(value, abs=1e-4)


def test_after_worked_examples_likelihoods_are_those_of_lm_evals_own_model(model_dir, monkeypatch):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    shots = "".join(f"Question: Tom has {n} apples. How many?\nAnswer: {n}.\n\n" for n in range(6))
    asked = [
        (f"{shots}Question: {n}{' pears' * n}?\nAnswer:", f" {text}")
        for n in range(5)
        for text in ("7", "the sum", "30")
    ]
    asked.append((shots * 3 + "Question?\nAnswer:", " cut on the left"))
    requests = [Instance("loglikelihood", {}, pair, place) for place, pair in enumerate(asked)]
    ours = load_model(model_dir, batch_size=4, precision="float32")
    read = []
    monkeypatch.setattr(ours, "_read", lambda tokens: read.append(len(tokens)) or PackedLM._read(ours, tokens))
    with quiet():
        wanted = HFLM(ours.model, tokenizer=ours.tokenizer, batch_size=1).loglikelihood(requests)
        for part in (slice(15), slice(16)):
            found = ours.loglikelihood(requests[part])
            assert [answer.nats for answer in found] == pytest.approx(
                [value for value, _ in wanted[part]], abs=1e-3
            )
            assert [answer.greedy for answer in found] == [greedy for _, greedy in wanted[part]]
    assert read and read[0] > 100  # the examples were read once, for all


def test_a_model_that_ignores_the_packing_mask_is_scored_the_ordinary_way(model_dir):
    from transformers import AutoTokenizer, LlamaForCausalLM

    class Deaf(LlamaForCausalLM):
        def forward(self, input_ids=None, attention_mask=None, position_ids=None, logits_to_keep=0, **more):
            return super().forward(input_ids, logits_to_keep=logits_to_keep, **more)

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    requests = [(("", str(n)), [5, 6, 7], [8, 9, n]) for n in range(10, 16)] + [(("", "x"), [5, 6], [9])]
    requests += [(("", "divided otherwise"), [5, 6, 7, 8, 9], [12]), (("", "a part"), [5, 6, 7], [8])]
    lms = [
        PackedLM(kind.from_pretrained(model_dir), tokenizer=tokenizer, batch_size=2)
        for kind in (LlamaForCausalLM, Deaf)
    ]
    assert [lm.packs for lm in lms] == [True, False]
    packed, ordinary = (lm._loglikelihood_tokens(requests, disable_tqdm=True) for lm in lms)
    assert [answer.nats for answer in packed] == pytest.approx([answer.nats for answer in ordinary], abs=1e-4)
    assert [answer[1:] for answer in packed] == [pytest.approx(answer[1:], abs=1e-4) for answer in ordinary]


def test_attention_windows_are_kept(tmp_path):
    """A mask of one's own knows of no window: what is longer is scored the ordinary way."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    write_model(tmp_path)
    sizes = {
        "vocab_size": 257,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "eos_token_id": 256,
    }
    heads = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": None,
    }
    model = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=8, initializer_range=0.3))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ours = PackedLM(model, tokenizer=tokenizer, batch_size=2)
    requests = [(("", str(n)), list(range(40)), [8, 9, n]) for n in range(10, 13)]
    theirs = HFLM(model, tokenizer=tokenizer, batch_size=1)._loglikelihood_tokens(requests, disable_tqdm=True)
    found = ours._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [answer.nats for answer in found] == pytest.approx([value for value, _ in theirs], abs=1e-4)


def test_no_connection_is_opened_and_nothing_is_printed(model_dir, problems, tmp_path, monkeypatch, capfd):
    def refuse(*_arguments, **_more):
        raise AssertionError("evaluation opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert len(evaluated(model_dir, problems, tmp_path, report=lambda _line: None)) == 27
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""


def test_generated_answers_are_marked(model_dir, problems, tmp_path):
    settings = {"generate_items": 2, "max_new_tokens": 12, "few_shot": 1}
    shots = problems.assign(question=problems["question"] + " (worked)", split="train")
    found = evaluated(model_dir, problems, tmp_path, {}, examples=shots, **settings)
    marked = found[found["metric"] == "exact_match"]
    assert len(marked) == 4 and marked["value"].isin([0.0, 1.0]).all()
    assert len(found[found["metric"] == "exact_match_strict"]) == 4
    assert not marked["prediction"].str.contains("Question:").any() and marked["prediction"].str.len().max() > 0
    item = json.loads((tmp_path / "lm_eval" / "items" / "sums_generation.jsonl").read_text().splitlines()[0])[
        "context"
    ]
    assert item.count("Question:") == 2 and "The answer is 7.\n\nQuestion: Tom has 3" in item
    (letters,) = (tmp_path / "lm_eval" / "items").glob("products*_generation.jsonl")
    asked = json.loads(letters.read_text().splitlines()[0])["context"]
    assert asked.count("\n(A) 13\n(B) 12\n(C) 22\n(D) 120\nAnswer:") == 2
    assert "Answer: We combine 3 and 4.\nThe answer is (B).\n\nQuestion:" in asked


def test_a_written_task_marks_texts_under_lm_eval_alone(model_dir, problems, tmp_path):
    from lm_eval.tasks import TaskManager

    chosen = params(generate_items=1)
    newer = {"products/hard": TASKS["products/hard"].model_copy(update={"version": 3})}
    units = suites.build(problems[3:6], {}, chosen, tmp_path, None, newer)
    (name,) = (
        task.config.task for unit in units for template, task in unit.lm_eval.items() if template == "generation"
    )
    task = TaskManager(include_defaults=False, include_path=str(tmp_path)).load([name])["tasks"][name]
    (doc,) = task.test_docs()
    marks = [task.process_results(doc, [text]) for text in ("The answer is (B).", "A", "12")]
    assert [(found["exact_match"], found["exact_match_strict"]) for found in marks] == [(1, 1), (0, 0), (1, 0)]
    assert task.VERSION == 3 and {unit.version for unit in units} == {3}


def test_bfloat16_is_near_float32(model_dir, problems, outcomes, tmp_path):
    rough = evaluated(model_dir, problems, tmp_path / "rough", precision="bfloat16")
    difference = (rough["value"] - outcomes["value"])[outcomes["metric"] == "bits_per_byte"].abs()
    assert 0 < difference.max() < 0.15


@pytest.mark.parametrize("choices", [["7"], ["7", ""]])
def test_choices_that_are_none_are_named(problems, tmp_path, choices):
    rows = problems.to_dict("records")
    rows[0]["choices"] = choices
    with pytest.raises(TraitError, match="Problem s3 of task sums: its choices must be two or more, none empty"):
        suites.build(pd.DataFrame(rows, dtype=object), {}, params(), tmp_path, None, TASKS)


def test_other_bad_input_is_named(model_dir, problems, tmp_path):
    with pytest.raises(TraitError, match="both empty"):
        evaluated(model_dir, problems.iloc[:0], tmp_path, {})
    with pytest.raises(TraitError, match="few_shot is 2, but task sums has 0"):
        evaluated(model_dir, problems, tmp_path, {}, few_shot=2, examples=problems.iloc[:0])
    with pytest.raises(TraitError, match="no model folder"):
        evaluate_model(tmp_path / "missing", "base", 0, [], params(), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TraitError, match="empty holds no weights as safetensors"):
        evaluate_model(tmp_path / "empty", "base", 0, [], params(), tmp_path)


def test_a_diverged_model_is_an_error_not_a_nan(model_dir, problems, tmp_path):
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(model_dir)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    model.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(tmp_path / "nan")
    for _ in range(2):  # also from what was kept
        with pytest.raises(TraitError, match=r"arm 'broken'.*diverged"):
            evaluated(tmp_path / "nan", problems, tmp_path / "run", arm="broken")


def _task_file(folder: Path, name: str, kind: str, splits: dict[str, list[dict] | None], **more) -> str:
    for split, rows in splits.items():
        if rows is not None:
            (folder / f"{name}_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {column: f"{{{column}}}" for column in next(rows[0] for rows in splits.values() if rows)}
    raw = {
        "name": name,
        "about": name,
        "kind": kind,
        "metrics": ["exact_match"],
        "source": str(folder),
        "fields": fields,
    }
    raw["splits"] = {
        split: f"{name}_{split}.jsonl" if rows is not None else None for split, rows in splits.items()
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**raw, **more}))
    return str(folder / f"{name}.yaml")


def _sum_rows(start: int, n: int) -> list[dict]:
    question = "Ada has {} red pens in one box and {} blue pens in another box. How many pens has Ada?"
    return [
        {"question": question.format(a, 2 * a), "answer": str(3 * a), "solution": f"{a} + {2 * a} = {3 * a}"}
        for a in range(start, start + n)
    ]


def test_worked_examples_come_from_train_and_never_from_a_test(tmp_path):
    leaked = {**_sum_rows(500, 1)[0]}
    sums = _task_file(
        tmp_path, "sums", "number", {"train": [*_sum_rows(0, 40), leaked], "test": _sum_rows(100, 5)}
    )
    asked = [
        {"question": leaked["question"], "answer": "1500", "choices": ["1500", "7"]},
        {"question": "Pick three.", "answer": "3", "choices": ["3", "4", "5"]},
    ]
    picks = _task_file(tmp_path, "picks", "choice", {"train": None, "test": asked}, examples_from="sums")
    alone = _task_file(tmp_path, "alone", "number", {"train": None, "test": _sum_rows(300, 2)})
    drawn = {"tasks": [sums, picks, alone], "few_shot": {"sums": 3, "picks": 3}, "test_items_per_task": 100}
    found = worked_examples(params(**drawn, seed=1))
    assert found.groupby("task").size().to_dict() == {"sums": 3, "picks": 3}
    assert not set(found["question"]) & set(every_test_question([sums, picks, alone], 100))
    pd.testing.assert_frame_equal(found, worked_examples(params(**drawn, seed=1)))
    assert not found["question"].equals(worked_examples(params(**drawn, seed=2))["question"])
    everything = worked_examples(params(tasks=[sums, picks], few_shot=60))
    assert leaked["question"] not in set(everything["question"])
    assert (
        worked_examples(params(tasks=[alone], few_shot=1)) is None
    )  # then its prompts cannot be written: few_shot is 1


def test_questions_of_one_pattern_lend_worked_examples_where_there_are_no_others(tmp_path, capsys):
    def asked(*amounts: int) -> list[dict[str, str]]:
        pattern = "The loan of contract {} is lent for one year at five percent; "
        pattern += "what is the interest in euros for that year?"
        return [
            {"question": pattern.format(n), "answer": str(n * 5), "solution": f"{n} * 5 = {n * 5}."}
            for n in amounts
        ]

    other = {"question": "How many legs have two spiders?", "answer": "16", "solution": "2 * 8 = 16."}
    train = [*asked(*range(1, 30), 77), other]
    loans = _task_file(tmp_path, "loans", "number", {"train": train, "test": asked(77, 78, 79)})
    found = worked_examples(params(tasks=[loans], few_shot=40))
    assert found["question"].iloc[0] == other["question"] and len(found) == 30
    assert asked(77)[0]["question"] not in set(found["question"])
    assert "loans: worked examples follow one pattern with test questions" in capsys.readouterr().out
    worked_examples(params(tasks=[loans], few_shot=1))
    assert "one pattern" not in capsys.readouterr().out


def test_tasks_without_solutions_show_questions_and_answers(tmp_path):
    rows = [
        {"question": f"Name colour {n} of the long list of paints.", "answer": f"blue {n}"} for n in range(30)
    ]
    names = _task_file(tmp_path, "names", "text", {"train": rows[:20], "test": rows[20:]})
    found = worked_examples(params(tasks=[names], few_shot=2))
    assert len(found) == 2 and found["solution"].isna().all()


def test_the_worked_examples_stand_before_every_question_of_every_demo_task(tmp_path):
    """base's too: prompts do not depend on the arm. The zero-shot prompts alone are without them."""
    for domain in ("demo", "demo_ads"):
        names = load(ROOT / "params" / f"{domain}.yaml").evaluation.tasks
        chosen, tasks = params(tasks=names, few_shot=2, test_items_per_task=3), load_tasks(names)
        problems, shots = load_problems(names, "test", 3), worked_examples(chosen)
        units = suites.build(problems, {}, chosen, tmp_path / domain, shots, tasks)
        assert {unit.task for unit in units} == set(names)
        tested = set(problems["question"])
        for path in (tmp_path / domain / "items").glob("*.jsonl"):
            for item in map(json.loads, path.read_text().splitlines()):
                shown = item["context"].split("Question: ")[1:]
                assert len(shown) == (1 if path.stem.endswith("zero_shot_bits") else 3)
                assert not tested & {text.partition("\nAnswer:")[0] for text in shown[:-1]}
        solved = [unit for unit in units if "zero_shot_bits" in unit.lm_eval]
        assert bool(solved) == (domain == "demo")


def test_form_overlap_is_the_share_of_masked_runs_that_train_texts_hold():
    def table(*texts: str) -> pd.DataFrame:
        rows = [
            {"task": "t", "question": text, "answer": "1", "solution": "It is 3 and 4. The answer is 7."}
            for text in texts
        ]
        return pd.DataFrame(rows)

    train = table("Tom has 3 red pens in 1 box.")
    same = suites.form_overlap(table("Tom has 12,000 red pens in 9 box."), train)
    assert same.to_dict("records") == [{"task": "t", "items": 1, "overlap": 1.0}]
    other = suites.form_overlap(table("Where does the great river end its long way?"), train)["overlap"].item()
    assert 0.2 < other < 0.8  # the solution is the same, the question is not
    assert suites.form_overlap(train, train.iloc[:0])["overlap"].item() == 0


@pytest.mark.slow
@pytest.mark.skipif(not LOCAL.exists(), reason="TRAIT_KIT_TEST_DATA names no folder of public data")
def test_worked_examples_of_the_benchmarks(tmp_path):
    names = [local_task(tmp_path, shipped) for shipped in BENCHMARKS]
    found = worked_examples(params(tasks=names, few_shot=8, test_items_per_task=5_000))
    assert found.groupby("task").size().to_dict() == dict.fromkeys(BENCHMARKS, 8)
    sources = {task: row["id"].partition("/")[0] for task, row in found.groupby("task").first().iterrows()}
    assert sources == {task: load_task(task).examples_from or task for task in BENCHMARKS}
    assert not set(found["question"]) & set(every_test_question(names, 5_000))
    assert found["solution"].str.contains(r"The answer is [^\n]+\.$").all()


def test_ads_are_marked_and_relevance_is_ranked(model_dir, tmp_path):
    names = ["title_generation", "ad_generation", "query_ad_relevance"]
    problems = load_problems(names, "test", 6)
    wanted = {"tasks": names, "generate_items": 2, "max_new_tokens": 8, "test_items_per_task": 6}
    tasks = load_tasks(names)
    found = evaluated(model_dir, problems, tmp_path, documents={}, files=tasks, **wanted)
    counts = found.groupby(["task", "metric"]).size().unstack(fill_value=0)
    texts = ["title_generation", "ad_generation"]
    assert (counts.loc[texts, [*ads.METRICS, "exact_match"]] == 2).all(axis=None)
    assert (counts.loc["query_ad_relevance", ["relevance_score", "choice_accuracy"]] == 6).all()
    assert counts.loc["query_ad_relevance", list(ads.METRICS)].sum() == 0
    rows = problems.set_index("id")
    for row in found[found["metric"] == "chrf"].to_dict("records"):
        item = rows.loc[row["item_id"]]
        marks = ads.marks(row["prediction"], item["answer"], tasks[row["task"]].limits)
        assert row["value"] == marks["chrf"]
    table = comparison.arm_table(found).set_index(["task", "metric"])["mean"]
    scores = found[found["metric"] == "relevance_score"]
    assert ((scores["value"] > 0) == (scores["prediction"] == "relevant")).all()
    assert table["query_ad_relevance", "auc"] == pytest.approx(
        roc_auc_score(scores["gold"] == "relevant", scores["value"])
    )
    assert "relevance_score" not in table.index.get_level_values("metric")


class _Step:
    """What the stage needs of a step (runs.Step)."""

    def __init__(self, folder: Path, params: EvaluationParams, models: dict[str, str]) -> None:
        self.folder, self.params, self.models, self.done = folder, params, models, False

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    def summary(self, _name: str) -> dict:
        return {"models": self.models, "seed": 7}


def test_the_stage_asks_every_arm_and_reads_a_finished_step(model_dir, tmp_path, monkeypatch):
    sums = _task_file(tmp_path, "sums", "number", {"train": _sum_rows(0, 30), "test": _sum_rows(100, 31)})
    documents = tmp_path / "documents.jsonl"
    documents.write_text(
        "".join(json.dumps({"text": f"{text} Number {n} of them."}) + "\n" for n in range(40) for text in TEXTS)
    )
    chosen = params(
        tasks=[sums], few_shot=1, in_domain=str(documents), web=str(documents), base_model=str(model_dir),
        general_documents=3, in_domain_documents=2, test_items_per_task=31, batch_size=8,
    )  # fmt: skip
    tiny_model(tmp_path / "04_train_two_stages" / "trait", seed=1)
    step = _Step(tmp_path, chosen, {"trait": "trait"})
    made = evaluate_arms(step)
    assert set(made.outcomes["seed"]) == {7}  # of the training
    assert set(made.outcomes["arm"]) == {"base", "trait"}
    assert made.metric == "bits_per_number_token" and {"bits_per_byte", "bits_per_byte_zero_shot"} <= set(
        made.tests["metric"]
    )
    assert set(made.tests["task"]) == {"macro average", "sums", "held_out/general", "held_out/in_domain"}
    summary = made.summary()
    said = verdict(made.tests, chosen.main_metric, "trait")
    assert "Is trait better than base" in said["question"] and "1 training seed" in said["headline"]
    assert (
        said["control_arm"] == "base" and len(said["forgetting"]) == 1
    )  # in-domain text is not what is forgotten
    assert made.form.set_index("task").loc["sums", "overlap"] == 1  # every sum is of one template
    assert summary["how_asked"]["few_shot"] == 1 and summary["how_asked"]["the version of sums"] == 1
    step.done = True
    monkeypatch.setattr("trait_kit.evaluation.outcomes.load_model", None)  # nothing is asked again
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    read = evaluate_arms(step)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    pd.testing.assert_frame_equal(read.outcomes, made.outcomes)
    pd.testing.assert_frame_equal(read.tests, made.tests, check_dtype=False)
    assert read.summary() == summary
