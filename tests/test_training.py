"""Training: packing without leaks, the schedule, the tree of stages, and runs that are killed and go on.

The runs are real: a tiny random Llama, real child processes, real SIGKILLs. About a minute on two cores.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from tiny_llama import BATCH, CONTEXT, HELD_OUT, ROOT, STAGE_STEPS, kill_worker_when, tiny_params, tiny_sources

from trait_kit.engine.files import TraitError
from trait_kit.engine.packing import IGNORED, pack
from trait_kit.training import sampling, schedule
from trait_kit.training.plan import plan_stages
from trait_kit.training.stages import TrainingResult, train_arms

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(model_dir: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="sdpa").eval()


def _documents(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, length).astype(np.int32) for length in lengths]


# Packing


def test_packing_loses_no_token_and_cuts_only_what_must_be_cut() -> None:
    documents = _documents([5, 9, 16, 3, 40, 7, 1, 12, 8, 2])
    packed = pack(documents, 16, eos=256)
    assert packed.input_ids.shape == (-(-103 // 16), 16)
    assert packed.n_tokens == 103
    assert packed.efficiency == 103 / packed.input_ids.size
    kept = Counter(packed.input_ids[packed.document >= 0].tolist())
    assert kept == Counter(np.concatenate(documents).tolist())
    assert (packed.input_ids[packed.document < 0] == 256).all()
    assert (packed.labels[packed.document < 0] == IGNORED).all()
    assert packed.n_cut <= 2  # the one of 40, and at most one more to fill the gaps
    whole = [index for index in range(len(documents)) if _pieces(packed, index) == 1]
    for index in whole:
        row, slots = _where(packed, index)
        assert (packed.input_ids[row, slots] == documents[index]).all()
        assert (packed.position_ids[row, slots] == np.arange(len(documents[index]))).all()
        assert packed.labels[row, slots[0]] == IGNORED
        assert (packed.labels[row, slots[1:]] == documents[index][1:]).all()


def test_packing_fills_rows_completely_when_the_tokens_allow_it() -> None:
    lengths = np.random.default_rng(1).integers(1, 60, 500)
    lengths[-1] += -lengths.sum() % 64
    packed = pack(_documents(lengths.tolist()), 64, eos=256)
    one_after_the_other = np.cumsum(lengths) // 64 != (np.cumsum(lengths) - lengths) // 64
    assert packed.efficiency == 1
    assert packed.n_cut < one_after_the_other.sum() / 4
    assert pack([], 64, eos=256).input_ids.shape == (0, 64)


def _pieces(packed, index: int) -> int:
    return int(((packed.document == index) & (packed.position_ids == 0)).sum())


def _where(packed, index: int) -> tuple[int, np.ndarray]:
    rows, slots = np.nonzero(packed.document == index)
    return rows[0], slots


def test_packed_loss_equals_the_loss_of_the_documents_one_by_one(model: torch.nn.Module) -> None:
    from trait_kit.training.held_out import token_losses

    documents = _documents([20, 11, 9, 13, 30, 5, 2, 5])
    packed = pack(documents, 32, eos=256)
    arrays = (packed.input_ids, packed.position_ids, packed.labels)
    with torch.no_grad():
        rows = [torch.from_numpy(array.astype(np.int64)) for array in arrays]
        together = token_losses(model, *rows)
        library = model(input_ids=rows[0], position_ids=rows[1], labels=rows[2], use_cache=False).loss
        alone = [torch.from_numpy(document.astype(np.int64))[None] for document in documents if len(document) > 1]
        expected = sum(model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1) for ids in alone)
    assert packed.n_cut == 0
    assert together.numel() == sum(len(document) - 1 for document in documents)
    assert together.sum().item() == pytest.approx(expected, rel=1e-5)
    assert together.mean().item() == pytest.approx(library.item(), rel=1e-5)


def test_a_changed_document_changes_no_other_documents_logits(model: torch.nn.Module) -> None:
    documents = _documents([12, 10, 10])
    packed = pack(documents, 32, eos=256)
    first = int(packed.document[0, 0])
    other = packed.input_ids.copy()
    other[packed.document == first] = 7
    positions = torch.from_numpy(packed.position_ids.astype(np.int64))
    rest = torch.from_numpy(packed.document[0] != first)

    def logits(ids: np.ndarray, **more: object) -> torch.Tensor:
        named = {"input_ids": torch.from_numpy(ids.astype(np.int64)), "position_ids": positions, "use_cache": False, **more}
        with torch.no_grad():
            return model(**named).logits[0]

    before, after = logits(packed.input_ids), logits(other)
    assert not torch.equal(before[~rest], after[~rest])
    assert torch.equal(before[rest], after[rest])
    for leak in ({"attention_mask": torch.ones_like(positions)}, {"use_cache": True}):  # each undoes the isolation
        assert not torch.allclose(logits(packed.input_ids, **leak)[rest], logits(other, **leak)[rest])


# Schedule


@pytest.mark.parametrize(
    ("total", "warmup", "decay"), [(200, 0.03, 0.10), (100, 0.07, 0.25), (6, 0.03, 0.10), (50, 0.0, 0.0)]
)
def test_schedule_equals_its_formula_at_every_step(total: int, warmup: float, decay: float) -> None:
    n_warmup, n_decay = int(np.ceil(round(warmup * total, 6))), int(np.ceil(round(decay * total, 6)))
    rising = [(step + 1) / (n_warmup + 1) for step in range(n_warmup)]
    falling = [np.exp(np.log(0.1) * (step + 1) / n_decay) for step in range(n_decay)]
    expected = rising + [1.0] * (total - n_warmup - n_decay) + falling
    assert [schedule.wsd_factor(step, total, warmup, decay) for step in range(total)] == pytest.approx(expected, rel=1e-12)
    assert schedule.wsd_factor(total, total, warmup, decay) == pytest.approx(0.1 if n_decay else 1.0)


def test_schedule_of_very_short_stages_reaches_its_maximum() -> None:
    for total in range(1, 8):
        factors = [schedule.wsd_factor(step, total, 0.5, 0.5) for step in range(total)]
        assert max(factors) == 1.0
        assert min(factors) > 0


# Sampling


def test_a_stream_goes_on_where_it_ended_and_repeats_only_when_it_has_run_out() -> None:
    documents = _documents([7, 3, 11, 5])
    total = 26
    first, second, longer, other = (
        _drawn(documents, *stretch) for stretch in ((0, 20, 3), (20, 20, 3), (0, 40, 3), (0, 40, 4))
    )
    assert sum(map(len, first)) == sum(map(len, second)) == 20
    both = np.concatenate([*first, *second])
    assert (both == np.concatenate(longer)).all()
    assert sorted(both[:total].tolist()) == sorted(np.concatenate(documents).tolist())
    assert (both == np.concatenate(other)).mean() < 0.9


def _drawn(documents: list[np.ndarray], start: int, tokens: int, seed: int) -> list[np.ndarray]:
    pieces = zip(*sampling.draw(np.array([len(document) for document in documents]), start, tokens, seed), strict=True)
    return [documents[index][first : first + length] for index, first, length in pieces]


def test_shares_are_equal_exact_and_go_on() -> None:
    parts = sampling.shares("passages+dsir+in_domain", 1000, Counter(dsir=50))
    assert [part.source for part in parts] == ["dsir", "in_domain", "passages"]
    assert sum(part.tokens for part in parts) == 1000
    assert {part.tokens for part in parts} <= {333, 334}
    assert [part.start for part in parts] == [50, 0, 0]


# Runs


@pytest.fixture(scope="module")
def reference(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingResult, Path]:
    out_dir = tmp_path_factory.mktemp("reference")
    return train_arms(tiny_params(model_dir), tiny_sources(), HELD_OUT, out_dir), out_dir


def _same(result: TrainingResult, expected: TrainingResult) -> bool:
    assert result.log.equals(expected.log)
    assert result.accounting.equals(expected.accounting)
    for arm, folder in expected.models.items():
        weights, wanted = load_file(result.models[arm] / "model.safetensors"), load_file(folder / "model.safetensors")
        assert weights.keys() == wanted.keys()
        assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    return True


def test_arms_share_their_first_stage_and_count_every_token(reference: tuple[TrainingResult, Path]) -> None:
    result, out_dir = reference
    assert len([path for path in (out_dir / "stages").iterdir() if path.is_dir()]) == 3
    assert not (out_dir / "work").exists()
    first = result.stages[result.stages["stage"] == 1]
    assert first["shared"].all()
    assert first["folder"].nunique() == 1
    assert result.stages["new"].all()

    tokens = BATCH * STAGE_STEPS
    assert (result.accounting.groupby(["arm", "stage"])["tokens"].sum() == tokens).all()
    accounting = result.accounting.set_index(["arm", "stage", "source"])
    assert accounting.loc[("trait", 1, "in_domain"), "tokens"] == tokens // 2
    assert accounting.loc[("trait", 2, "passages"), "tokens"] == tokens
    in_domain = sum(len(text.encode()) + 1 for text in tiny_sources()["in_domain"])
    assert accounting.loc[("selected", 2, "in_domain"), "epochs"] == pytest.approx(tokens / 2 / in_domain)

    for arm, log in result.log.groupby("arm"):
        losses = log[log["metric"] == "loss"]
        assert losses["tokens"].tolist() == [BATCH * (step + 1) for step in range(2 * STAGE_STEPS)]
        held_out = log[log["metric"] == "held_out/solutions"]
        assert held_out["tokens"].tolist() == [tokens * part // 2 for part in range(5)], arm
        rates = log[(log["metric"] == "learning_rate") & (log["stage"] == 2)]["value"].tolist()
        factors = [schedule.wsd_factor(step, STAGE_STEPS, 0.03, 0.1) for step in range(STAGE_STEPS)]
        assert rates == pytest.approx([1e-3 * factor for factor in factors])
    ends = result.log[result.log["metric"] == "held_out/solutions"].groupby("arm")["value"].last()
    starts = result.log[result.log["metric"] == "held_out/solutions"].groupby("arm")["value"].first()
    assert starts["trait"] == starts["selected"]
    assert ends["trait"] < ends["selected"] < starts["trait"]  # passages look like the held-out solutions


def test_logged_held_out_score_is_that_of_the_saved_model(reference: tuple[TrainingResult, Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result, _ = reference
    model = AutoModelForCausalLM.from_pretrained(result.models["trait"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(result.models["trait"])
    scores = []
    for prompt, target in (HELD_OUT["solutions"][index] for index in (0, 2, 5)):  # held_out_items = 3 of 6
        n_prompt, ids = len(tokenizer(prompt)["input_ids"]), torch.tensor([tokenizer(prompt + target)["input_ids"]])
        assert ids.shape[1] <= CONTEXT
        with torch.no_grad():
            logged = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[n_prompt - 1 :, 0]
        scores.append(-logged.sum().item() / np.log(2) / len(target.encode()))
    last = result.log[(result.log["arm"] == "trait") & (result.log["metric"] == "held_out/solutions")]["value"].iloc[-1]
    assert last == pytest.approx(np.mean(scores), rel=1e-4)


def test_running_again_trains_nothing(model_dir: Path, reference: tuple[TrainingResult, Path]) -> None:
    expected, out_dir = reference
    stamps = {path: path.stat().st_mtime_ns for path in out_dir.rglob("*") if path.is_file()}
    again = train_arms(tiny_params(model_dir), tiny_sources(), HELD_OUT, out_dir)
    assert not again.stages["new"].any()
    assert _same(again, expected)
    assert {path: path.stat().st_mtime_ns for path in out_dir.rglob("*") if path.is_file()} == stamps


def test_a_key_covers_what_shapes_a_stage_and_nothing_else(model_dir: Path) -> None:
    def names(sources: dict[str, list[str]] | None = None, **changes: object) -> dict[str, list[str]]:
        return plan_stages(tiny_params(model_dir, **changes), sources or tiny_sources(), "base", "held_out")[1]

    plain = names()
    assert names(checkpoint_tokens=512) == plain
    for changes in ({"learning_rate": 2e-3}, {"seed": 1}, {"precision": "bfloat16"}, {"stage_tokens": [256, 2048]}):
        assert not set(names(**changes)["trait"]) & set(plain["trait"])
    passages = names({**tiny_sources(), "passages": ["other text"]})
    assert passages["selected"] == plain["selected"]
    assert passages["trait"][0] == plain["trait"][0]
    assert passages["trait"][1] != plain["trait"][1]


@pytest.mark.parametrize("checkpoint_tokens", [0, 4 * BATCH])
def test_a_killed_worker_goes_on_to_the_identical_result(
    model_dir: Path, reference: tuple[TrainingResult, Path], tmp_path: Path, checkpoint_tokens: int
) -> None:
    params = tiny_params(model_dir, checkpoint_tokens=checkpoint_tokens)
    pattern = "work/2-*/checkpoint-*/complete.json" if checkpoint_tokens else "stages/1-*/stage.json"
    killer = threading.Thread(target=kill_worker_when, args=(tmp_path, pattern))
    killer.start()
    with pytest.raises(TraitError, match="signal 9"):
        train_arms(params, tiny_sources(), HELD_OUT, tmp_path)
    killer.join()
    result = train_arms(params, tiny_sources(), HELD_OUT, tmp_path)
    assert not result.stages.loc[result.stages["stage"] == 1, "new"].any()
    reports = [json.loads(path.read_text()) for path in (tmp_path / "stages").glob("2-*/stage.json")]
    assert any(report["resumed"] for report in reports) == bool(checkpoint_tokens)
    assert _same(result, reference[0])


def test_a_killed_driver_leaves_no_worker_and_the_run_goes_on(
    model_dir: Path, reference: tuple[TrainingResult, Path], tmp_path: Path
) -> None:
    params = tiny_params(model_dir, checkpoint_tokens=4 * BATCH)
    (tmp_path / "input.json").write_text(json.dumps([params.model_dump(), tiny_sources(), HELD_OUT, str(tmp_path / "out")]))
    code = (
        "import json, sys; from trait_kit.params import TrainingParams; from trait_kit.training.stages import train_arms; "
        "params, *rest = json.load(open(sys.argv[1])); train_arms(TrainingParams(**params), *rest)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "input.json")], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not any((tmp_path / "out").glob("work/1-*/checkpoint-*/complete.json")):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    workers = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert workers
    assert not psutil.wait_procs(workers, timeout=30)[1]
    assert _same(train_arms(params, tiny_sources(), HELD_OUT, tmp_path / "out"), reference[0])


# Errors


@pytest.mark.parametrize(
    ("changes", "sources", "message"),
    [
        ({}, {"passages": []}, "'passages' has no text"),
        ({}, {"passages": ["  "]}, "'passages' has no text"),
        ({}, {"passages": ["fine", None]}, "row 1 of the source 'passages' is NoneType"),
        ({}, {"passages": ["too short"]}, "'passages' has 10 tokens in 1 documents"),
        ({"context_length": 128, "rows_per_device": 1}, {}, r"context_length \(128\) is longer than .* \(64 tokens\)"),
        ({"accelerate_config": "no/such.yaml"}, {}, "no/such.yaml does not exist"),
    ],
)
def test_bad_input_stops_before_any_training(
    model_dir: Path, tmp_path: Path, changes: dict, sources: dict, message: str
) -> None:
    with pytest.raises(TraitError, match=message):
        train_arms(tiny_params(model_dir, **changes), {**tiny_sources(), **sources}, HELD_OUT, tmp_path)
    assert not list((tmp_path / "stages").iterdir())


def test_a_missing_source_and_an_empty_target_are_named(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(TraitError, match="'passages', but only in_domain"):
        train_arms(tiny_params(model_dir), {"in_domain": ["a text"], "random": ["another"]}, HELD_OUT, tmp_path)
    with pytest.raises(TraitError, match="'solutions' has an item without a target"):
        train_arms(tiny_params(model_dir), tiny_sources(), {"solutions": [("Question", "")]}, tmp_path)


def test_a_loss_that_is_not_a_number_stops_the_run(model_dir: Path, tmp_path: Path) -> None:
    params = tiny_params(
        model_dir, learning_rate=1e30, precision="bfloat16", arms={"raw": ["in_domain"]}, stage_tokens=[4 * BATCH]
    )
    with pytest.raises(TraitError, match=r"(loss|held_out/\w+) became (nan|inf) at step .* Lower learning_rate .*1.0e\+30"):
        train_arms(params, tiny_sources(), HELD_OUT, tmp_path)
    assert not any((tmp_path / "stages").glob("1-*"))


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flash_attention_sees_no_other_document(model_dir: Path) -> None:
    pytest.importorskip("flash_attn")
    from transformers import AutoModelForCausalLM

    named = {"dtype": torch.bfloat16, "attn_implementation": "flash_attention_2", "device_map": "cuda"}
    model = AutoModelForCausalLM.from_pretrained(model_dir, **named).eval()
    packed = pack(_documents([12, 10, 10, 32, 20, 12]), 32, eos=256)
    other = packed.input_ids.copy()
    other[packed.document == 0] = 7
    rows = [torch.from_numpy(array.astype(np.int64)).cuda().reshape(1, -1) for array in (packed.input_ids, other)]
    positions = torch.from_numpy(packed.position_ids.astype(np.int64)).cuda().reshape(1, -1)
    with torch.no_grad():
        before, after = (model(input_ids=ids, position_ids=positions, use_cache=False).logits[0] for ids in rows)
    rest = torch.from_numpy(packed.document.reshape(-1) != 0).cuda()
    assert torch.equal(before[rest], after[rest])
    assert not torch.equal(before[~rest], after[~rest])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("changes", [{"fused_loss": True}, {"compile_layers": True}, {"attention": "flash_attention_2"}])
def test_gpu_kernels_change_no_loss(model_dir: Path, tmp_path: Path, changes: dict) -> None:
    pytest.importorskip({"fused_loss": "liger_kernel", "attention": "flash_attn"}.get(next(iter(changes)), "torch"))
    common = {"precision": "bfloat16", "arms": {"trait": ["in_domain+random", "passages"]}}
    plain = train_arms(tiny_params(model_dir, **common, attention="sdpa"), tiny_sources(), HELD_OUT, tmp_path / "plain")
    faster = tiny_params(model_dir, **{**common, "attention": "sdpa", **changes})
    result = train_arms(faster, tiny_sources(), HELD_OUT, tmp_path / "faster")
    assert result.log["value"].tolist() == pytest.approx(plain.log["value"].tolist(), rel=1e-2)
