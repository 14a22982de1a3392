"""Fine-tuning on the tasks' train problems: its loss, its schedule, its data, and its place in the tree of stages.

The runs are real: a tiny random Llama in child processes.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_llama import BATCH, CONTEXT, kill_worker_when, planned, same, tiny_params, trained

from trait_kit.engine.files import TraitError
from trait_kit.engine.packing import IGNORED
from trait_kit.tasks import prompt
from trait_kit.training import prepare, stages
from trait_kit.training.held_out import token_losses
from trait_kit.training.plan import PROBLEMS, Job, Stage
from trait_kit.training.stages import TrainingResult, fine_tuning_pairs, held_out_sets
from trait_kit.training.tokens import Rows

EPOCHS, RATE = 24, 2e-3
# 10 to 14 tokens with the end token; two or three fill a row of 32
PAIRS = [(f"{a}+{a}?", f" {2 * a}" + "." * (a % 5)) for a in range(11, 21)]
ARMS = {"arms": {"trait": ["in_domain", "passages"]}, "stage_tokens": [2 * BATCH, 2 * BATCH]}
TUNED = {**ARMS, "fine_tune_epochs": EPOCHS, "fine_tune_learning_rate": RATE}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir)


def _model(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()


def _losses_by_hand(model: torch.nn.Module, pairs: list[tuple[str, str]]) -> torch.Tensor:
    """-log p of every byte of the targets and of the end token, each pair alone in float64."""
    found = []
    for given, target in pairs:
        ids = torch.tensor([[*_bytes(given), *_bytes(target), 256]])
        with torch.no_grad():
            scores = model(input_ids=ids).logits.double().log_softmax(-1)[0]
        found += [-scores[place - 1, ids[0, place]] for place in range(len(given.encode()), ids.shape[1])]
    return torch.stack(found)


def _bytes(text: str) -> list[int]:
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    return [letters.index(letter) for word, _ in words for letter in word]


def _prepared(tokenizer, folder: Path, pairs: list[tuple[str, str]] = PAIRS, **changes: object):
    """The rows as the trainer gets them, and the report."""
    params = tiny_params(Path("unused"), **{**TUNED, **changes})
    plan, chains = planned(params, folder, problems=pairs)
    stage: Stage = next(stage for stage in plan if stage.epochs)
    texts = {PROBLEMS: folder / f"{PROBLEMS}.parquet"}
    job = Job(params=params, base="", folder=folder, stages=plan, texts=texts, held_out={}, chains=chains)
    prepare._pack_problems(job, stage, tokenizer, job.work / stage.name)
    rows = Rows(job.work / stage.name, CONTEXT, tokenizer.eos_token_id)
    return {name: torch.stack([rows[place][name] for place in range(len(rows))]) for name in rows[0]}, stage


# Loss


def test_the_packed_masked_loss_equals_the_loss_of_the_targets_one_by_one(
    model_dir: Path, tokenizer, tmp_path: Path
) -> None:
    model = _model(model_dir)
    rows, _ = _prepared(tokenizer, tmp_path, fine_tune_epochs=1)
    with torch.no_grad():
        packed = token_losses(model, rows["input_ids"], rows["position_ids"], rows["labels"])
        library = model(
            input_ids=rows["input_ids"], position_ids=rows["position_ids"], labels=rows["labels"], use_cache=False
        )
    expected = _losses_by_hand(model, PAIRS)
    assert packed.dtype == torch.float32
    assert packed.sort().values.double().numpy() == pytest.approx(expected.sort().values.numpy(), rel=1e-5)
    assert library.loss.item() == pytest.approx(expected.mean().item(), rel=1e-5)


def test_prompt_and_target_are_the_tokens_that_evaluation_scores_and_long_ones_are_left_out(
    tokenizer, tmp_path
) -> None:
    """With a blank at the target's beginning, never the prompt's end; half of a problem is none."""
    pairs = [*PAIRS, ("Two words: ", "é."), ("p" * 40 + "ends:", " t"), ("q", " " + "s" * 40)]
    rows, report = _prepared(tokenizer, tmp_path, pairs, fine_tune_epochs=1)
    assert "Two words: é.<|end|>" in tokenizer.decode(rows["input_ids"].flatten())
    learnt = tokenizer.decode(rows["input_ids"][rows["labels"] != IGNORED])
    assert " é.<|end|>" in learnt and "words" not in learnt
    (row,) = report.accounting
    assert (row["too_long"], row["cut"], row["documents"]) == (2, 0, len(PAIRS) + 1)
    assert (
        row["available"]
        == row["tokens"]
        == sum(len(f"{given}{target}".encode()) + 1 for given, target in pairs[:-2])
    )


# Epochs and batches


@pytest.mark.parametrize("epochs", [1, 3])
def test_every_epoch_has_every_problem_once_and_batches_are_even(tokenizer, tmp_path: Path, epochs: int) -> None:
    rows, report = _prepared(tokenizer, tmp_path, fine_tune_epochs=epochs)
    seen, learnt = [], []
    for ids, positions, labels in zip(rows["input_ids"], rows["position_ids"], rows["labels"], strict=True):
        starts = [
            slot
            for slot in range(CONTEXT)
            if positions[slot] == 0 and slot + 1 < CONTEXT and positions[slot + 1] == 1
        ]
        for start in starts:
            end = start + 1
            while end < CONTEXT and positions[end] == end - start:
                end += 1
            seen.append(tokenizer.decode(ids[start:end]))
            learnt.append(tokenizer.decode(ids[start:end][labels[start:end] != IGNORED]))
    expected = [f"{given}{target}<|end|>" for given, target in PAIRS]
    assert Counter(seen) == Counter(expected * epochs)
    for first in range(0, len(seen), len(PAIRS)):
        assert sorted(seen[first : first + len(PAIRS)]) == sorted(expected)
    assert Counter(learnt) == Counter([f"{target}<|end|>" for _, target in PAIRS] * epochs)
    assert (rows["labels"] != IGNORED).sum() == sum(map(len, learnt)) - len(learnt) * (len("<|end|>") - 1)
    n_tokens = sum(len(given) + len(target) + 1 for given, target in PAIRS)
    read = {"tokens": n_tokens * epochs, "epochs": epochs, "available": n_tokens}
    read |= {"documents": len(PAIRS) * epochs, "share": 1.0, "cut": 0, "too_long": 0}
    assert report.accounting == [{"stage": 1, "source": "train_problems", **read}]
    assert report.tokens == report.steps * BATCH == rows["input_ids"].numel()
    assert report.padding == pytest.approx(1 - n_tokens * epochs / rows["input_ids"].numel())
    if epochs > 1:
        assert seen[: len(PAIRS)] != seen[len(PAIRS) : 2 * len(PAIRS)]


# Runs


@pytest.fixture(scope="module")
def plain(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingResult, Path]:
    out_dir = tmp_path_factory.mktemp("plain")
    return trained(tiny_params(model_dir, **ARMS), out_dir, problems=PAIRS), out_dir


@pytest.fixture(scope="module")
def tuned(model_dir: Path, plain: tuple[TrainingResult, Path]) -> TrainingResult:
    """Fine-tuning asked for after the arms have been trained."""
    return trained(tiny_params(model_dir, **TUNED), plain[1], problems=PAIRS)


def test_fine_tuned_models_stand_beside_the_others_and_what_is_trained_again_is_equal(
    plain: tuple[TrainingResult, Path], tuned: TrainingResult
) -> None:
    before, _ = plain
    assert list(tuned.models) == ["trait", "base_fine_tuned", "trait_fine_tuned"]
    assert tuned.models["trait"] == before.models["trait"]
    assert tuned.log[tuned.log["arm"] == "trait"].reset_index(drop=True).equals(before.log)
    assert tuned.accounting[tuned.accounting["arm"] == "trait"].equals(before.accounting)
    stages = tuned.stages.set_index(["arm", "stage"])
    assert stages["new"].to_dict() == {
        ("trait", 1): True, ("trait", 2): True, ("base_fine_tuned", 1): True,
        ("trait_fine_tuned", 1): True, ("trait_fine_tuned", 2): True, ("trait_fine_tuned", 3): True,
    }  # fmt: skip
    assert stages.loc[("trait_fine_tuned", 3), "mixture"] == "train_problems"
    ends = tuned.log[tuned.log["metric"] == "loss"].groupby("arm")["tokens"].max()
    last = int(stages.loc[("base_fine_tuned", 1), "tokens"])
    assert ends.to_dict() == {"trait": 4 * BATCH, "base_fine_tuned": last, "trait_fine_tuned": 4 * BATCH + last}


def test_what_is_logged_is_what_the_formulas_say(
    model_dir: Path, tokenizer, tuned: TrainingResult, tmp_path: Path
) -> None:
    """The first loss is the parent's on the targets of the first batch; the rates are warm-up and half a cosine."""
    rows, report = _prepared(tokenizer, tmp_path)
    text = tokenizer.decode(rows["input_ids"][: BATCH // CONTEXT].flatten())
    batch = [(given, target) for given, target in PAIRS if f"{given}{target}<|end|>" in text]
    assert 0 < len(batch) < len(PAIRS)
    for arm, parent in (("base_fine_tuned", model_dir), ("trait_fine_tuned", tuned.models["trait"])):
        log = tuned.log[(tuned.log["arm"] == arm)]
        log = log[log["stage"] == log["stage"].max()]
        losses, rates = (log[log["metric"] == metric]["value"].tolist() for metric in ("loss", "learning_rate"))
        assert losses[0] == pytest.approx(_losses_by_hand(_model(parent), batch).mean().item(), rel=1e-5)
        assert losses[-1] < losses[0]
        warmup = int(np.ceil(0.03 * report.steps))
        falling = [
            (1 + np.cos(np.pi * step / (report.steps - warmup))) / 2 for step in range(report.steps - warmup)
        ]
        factors = [step / warmup for step in range(warmup)] + falling
        assert rates == pytest.approx([RATE * factor for factor in factors])


def test_fine_tuning_changes_the_copy_only_and_its_answers_end(
    model_dir: Path, tokenizer, tuned: TrainingResult
) -> None:
    base = _losses_by_hand(_model(model_dir), PAIRS).mean()
    after = {arm: _losses_by_hand(_model(folder), PAIRS).mean() for arm, folder in tuned.models.items()}
    assert after["base_fine_tuned"] < base
    assert after["trait_fine_tuned"] < after["trait"]
    weights = [load_file(folder / "model.safetensors") for folder in tuned.models.values()]
    assert not any(torch.equal(weights[0][name], weights[2][name]) for name in weights[0] if "proj" in name)


def test_the_base_model_begins_with_its_own_held_out_scores(tuned: TrainingResult) -> None:
    scores = tuned.log[tuned.log["metric"] == "held_out/solutions"].groupby("arm")["value"].first()
    assert scores["base_fine_tuned"] == scores["trait"] == scores["trait_fine_tuned"]


@pytest.mark.slow  # what resumes is tested with the other stages
def test_a_killed_fine_tuning_goes_on_to_the_identical_result(
    model_dir: Path, tuned: TrainingResult, tmp_path: Path
) -> None:
    params = tiny_params(model_dir, **TUNED, checkpoint_minutes=1e-6)
    killer = kill_worker_when(tmp_path, "work/1-fine_tuned-*/checkpoint-*/complete.json")
    with pytest.raises(TraitError, match="signal 9"):
        trained(params, tmp_path, problems=PAIRS, child=True)
    killer.join()
    result = trained(params, tmp_path, problems=PAIRS)
    assert same(result, tuned)


# Keys


def test_a_key_covers_what_shapes_fine_tuning_and_zero_epochs_change_no_key(tmp_path: Path) -> None:
    def names(pairs: list[tuple[str, str]] = PAIRS, **changes: object) -> dict[str, list[str]]:
        params = tiny_params(Path("unused"), **{**TUNED, **changes})
        return planned(params, tmp_path, problems=pairs)[1]

    none, some = names(fine_tune_epochs=0), names()
    assert none == names([], fine_tune_epochs=0, fine_tune_learning_rate=1.0)
    assert none == {"trait": some["trait"]}
    assert some["trait_fine_tuned"][:2] == some["trait"]
    assert names(checkpoint_minutes=1.0) == some
    for changed in (
        names(PAIRS[1:]),
        names(fine_tune_epochs=2),
        names(fine_tune_learning_rate=1e-5),
        names(seed=1),
    ):
        assert changed["trait_fine_tuned"][-1] != some["trait_fine_tuned"][-1]
        assert changed["base_fine_tuned"] != some["base_fine_tuned"]
    slower = names(learning_rate=5e-4, decay_fraction=0.2)
    assert slower["base_fine_tuned"] == some["base_fine_tuned"]
    assert slower["trait_fine_tuned"][-1] != some["trait_fine_tuned"][-1]


def test_arms_may_not_have_the_names_that_fine_tuning_gives() -> None:
    arms = {"x_fine_tuned": ["in_domain", "passages"]}
    with pytest.raises(ValueError, match="'x_fine_tuned' is named like"):
        tiny_params(Path("unused"), **{**TUNED, "arms": arms})


# Problems


def _task(folder: Path, name: str, train: list[dict] | None, test: list[dict]) -> str:
    folder.mkdir(exist_ok=True)
    for split, rows in (("train", train), ("test", test)):
        (folder / f"{name}-{split}.jsonl").write_text("\n".join(map(json.dumps, rows or [])))
    splits = {"train": f"{name}-train.jsonl" if train else None, "validation": None, "test": f"{name}-test.jsonl"}
    fields = {"question": "{q}", "answer": "{a}", "solution": "{s}", "topic": "sums"}
    about = {"about": "sums", "kind": "number", "metrics": ["bits_per_byte"], "source": str(folder)}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**about, "splits": splits, "fields": fields}))
    return str(path)


def _sum(a: int, solution: bool = True) -> dict:
    question = f"A shepherd who has {a} white sheep on a hill buys {a} black ones at the market. "
    question += "How many sheep are there now?"
    return {"q": question, "a": str(2 * a), "s": f"{a} + {a} = {2 * a}" if solution else ""}


def test_no_test_question_of_any_task_is_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = [_sum(9), {"q": "Is seven a prime number?", "a": "1", "s": ""}]
    leaked = {"q": f"Last year: {test[0]['q'].upper()}", "a": "18", "s": "9 + 9 = 18"}
    inside = {"q": "Write a quiz.", "a": "1", "s": "Ask this: is seven a PRIME number?"}
    plain = [{"q": f"What is {a} times {a}?", "a": str(a * a), "s": f"{a} * {a} = {a * a}"} for a in range(30)]
    bare = {"q": "What is one and one?", "a": "2", "s": ""}
    one = _task(tmp_path / "one", "one", [*plain, bare, leaked, inside], [{"q": "Another?", "a": "3", "s": ""}])
    two = _task(tmp_path / "two", "two", None, test)
    params = tiny_params(Path("unused"), **TUNED, tasks=[one, two])
    pairs = fine_tuning_pairs(params)
    assert sorted(pairs) == sorted(
        [
            (prompt("What is one and one?"), " 2"),
            *((prompt(row["q"]), f" {row['s']}. The answer is {row['a']}.") for row in plain),
        ]
    )
    assert "31 train problems, 2 left out for a test question in them." in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(stages, "FINE_TUNING_PROBLEMS", 12)
        fewer = fine_tuning_pairs(params)
    assert 10 <= len(fewer) <= 12 and set(fewer) <= set(pairs)
    assert fine_tuning_pairs(params.model_copy(update={"fine_tune_epochs": 0})) == []
    with pytest.raises(TraitError, match=r"None of the tasks .* has problems in the split 'train'"):
        fine_tuning_pairs(params.model_copy(update={"tasks": [two]}))
    all_leaked = _task(tmp_path / "three", "three", [leaked, inside], [{"q": "Another?", "a": "3", "s": ""}])
    with pytest.raises(TraitError, match="All 2 train problems hold a test question"):
        fine_tuning_pairs(params.model_copy(update={"tasks": [all_leaked, two]}))


# Errors


def test_too_few_problems_for_a_batch_stop_before_any_training(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TraitError, match=r"the 2 train problems have 23 tokens and fill 1 row\(s\), less than one batch \(4 rows"
    ):
        trained(tiny_params(model_dir, **TUNED), tmp_path, problems=PAIRS[:2])
    assert not list(tmp_path.glob("stages/*"))


def test_validation_problems_without_a_solution_are_watched_by_their_answer(tmp_path: Path) -> None:
    rows = [_sum(a, solution=a % 2 == 0) for a in range(10, 20)]
    task = _task(tmp_path, "mixed", rows, [_sum(9)])
    raw = yaml.safe_load(Path(task).read_text())
    raw["splits"]["validation"] = "mixed-train.jsonl"
    Path(task).write_text(yaml.safe_dump(raw))
    params = tiny_params(Path("unused"), tasks=[task], held_out_items=100)
    targets = [target for _, target in held_out_sets(params)["held_out/solutions"]]
    assert targets
    assert all(target.startswith(" ") and target.strip()[0].isdigit() for target in targets)
