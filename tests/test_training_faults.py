"""Training that is stopped, starved, or given what cannot be trained: nothing is lost, and the message says what to do.

The runs are real: a tiny random Llama, real child processes where they are killed, real signals, real limits.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from tiny_llama import (
    BATCH,
    CONTEXT,
    HELD_OUT,
    ROOT,
    STAGE_STEPS,
    driver,
    kill_worker_when,
    same,
    tiny_params,
    tiny_sources,
    trained,
    workers,
)

from trait_kit.engine.files import TraitError, write_json
from trait_kit.training import stages, worker
from trait_kit.training.trainer import _ALWAYS, last_checkpoint

ONE_ARM = {"arms": {"trait": ["in_domain+random", "passages"]}}
EACH_STEP = 1e-6  # minutes
PATIENCE = 180.0  # seconds until a process counts as hanging

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def undisturbed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> stages.TrainingResult:
    return trained(tiny_params(model_dir, **ONE_ARM), tmp_path_factory.mktemp("undisturbed"))


def _wait_for(folder: Path, pattern: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)


# Stopped


def test_sigterm_and_two_sigkills_in_a_row_lead_to_the_identical_result(
    model_dir: Path, undisturbed: stages.TrainingResult, tmp_path: Path
) -> None:
    """SIGTERM writes a checkpoint; a killed driver leaves no worker; a killed worker is said to be killed."""
    params = tiny_params(model_dir, **ONE_ARM, checkpoint_minutes=EACH_STEP)
    out = tmp_path / "out"
    told = driver(params, tmp_path)
    _wait_for(out, "work/1-*/checkpoint-2/complete.json", told)
    told.send_signal(signal.SIGTERM)
    output, _ = told.communicate(timeout=PATIENCE)
    assert told.returncode
    assert "told to stop (SIGTERM) after step" in output
    whole = [int(path.parent.name.rpartition("-")[2]) for path in out.glob("work/1-*/checkpoint-*/complete.json")]
    assert 1 <= len(whole) <= _ALWAYS["save_total_limit"]

    killed = driver(params, tmp_path)
    _wait_for(out, f"work/1-*/checkpoint-{max(whole) + 2}/complete.json", killed)
    family = psutil.Process(killed.pid).children(recursive=True)
    assert workers(killed.pid)
    killed.kill()
    killed.wait()
    assert not psutil.wait_procs(family, timeout=30)[1]

    killer = kill_worker_when(out, "work/2-*/checkpoint-3/complete.json")
    with pytest.raises(TraitError, match="signal 9"):
        trained(params, out, child=True)
    killer.join()
    result = trained(params, out, child=True)
    assert result.stages["new"].tolist() == [False, True]
    assert same(result, undisturbed)


@pytest.mark.slow
def test_ten_sigkills_at_random_moments_change_nothing(model_dir: Path, undisturbed, tmp_path: Path) -> None:
    params = tiny_params(model_dir, **ONE_ARM, checkpoint_minutes=EACH_STEP)
    for step in sorted(random.Random(4).sample(range(1, 2 * STAGE_STEPS), 10)):
        stage, within = (1, step) if step < STAGE_STEPS else (2, max(1, step - STAGE_STEPS))
        killer = kill_worker_when(
            tmp_path, f"work/{stage}-*/checkpoint-{within}*/*"
        )  # also while it is being written
        with pytest.raises(TraitError, match="signal 9"):
            trained(params, tmp_path, child=True)
        killer.join()
    assert same(trained(params, tmp_path, child=True), undisturbed)


def test_the_newest_whole_checkpoint_counts(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step, whole in ((11, False), (10, True), (9, True)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            write_json(tmp_path / f"checkpoint-{step}" / "complete.json", step)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


# Starved


def test_a_micro_batch_that_does_not_fit_is_halved_and_the_batch_stays(
    model_dir: Path, undisturbed: stages.TrainingResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The allocator's own error, at more than one row at once; rows_per_device 0 begins with the whole batch."""
    from trait_kit.training import trainer

    compute = trainer.StageTrainer.compute_loss

    def starving(self, model, inputs, *arguments, **named):
        if len(inputs["input_ids"]) > 1:
            torch.empty(2**59)
        return compute(self, model, inputs, *arguments, **named)

    monkeypatch.setattr(trainer.StageTrainer, "compute_loss", starving)
    result = trained(tiny_params(model_dir, **ONE_ARM, rows_per_device=0), tmp_path)
    assert (result.stages["micro_batch"] == 1).all()
    assert "with 4 rows at once: 2 at once and 2 times a step" in (said := capsys.readouterr().out)
    assert f"stays {BATCH:,} tokens" in said
    assert result.log["value"].tolist() == pytest.approx(undisturbed.log["value"].tolist(), rel=1e-4)


@pytest.mark.slow  # under a limit on memory even libraries fail in their own ways, on some machines
def test_out_of_memory_halves_the_micro_batch_for_real(model_dir: Path, tmp_path: Path) -> None:
    rows = 2_048
    batch = rows * CONTEXT  # at once, its activations take a gigabyte
    changes = {"arms": {"raw": ["in_domain+random+passages"]}, "stage_tokens": [batch], "tokens_per_batch": batch}
    sources = {name: texts * 40 for name, texts in tiny_sources().items()}
    code = (  # what a worker takes before it trains: its libraries, and compiling what packs
        "import psutil, trait_kit.training.trainer; from trait_kit.engine.packing import plan_rows; plan_rows([3, 4], 8); "
        "print(psutil.Process().memory_info().data)"
    )
    environment = {**os.environ, **worker.WORKER_ENVIRONMENT}
    used = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    limit = int(used.stdout) + 400 * 2**20
    starving = driver(
        tiny_params(model_dir, **changes, rows_per_device=rows, evaluations_per_stage=1), tmp_path, sources,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )  # fmt: skip
    output, _ = starving.communicate(timeout=2 * PATIENCE)
    assert starving.returncode == 0, output
    assert f"Memory ran out with {rows} rows at once: {rows // 2} at once and 2 times a step" in output
    assert json.loads(next((tmp_path / "out").glob("stages/1-*/stage.json")).read_text())["micro_batch"] < rows


@pytest.mark.slow
def test_a_disk_that_fills_up_while_training_costs_nothing_but_the_last_steps(
    model_dir: Path, undisturbed: stages.TrainingResult, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", disk], capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        params = tiny_params(model_dir, **ONE_ARM, checkpoint_minutes=EACH_STEP)
        full = threading.Thread(target=_fill_when, args=(disk, "work/2-*/checkpoint-3/complete.json"))
        full.start()
        with pytest.raises(TraitError, match="No space left on device"):
            trained(params, disk, child=True)
        full.join()
        (disk / "filler").unlink()
        assert same(trained(params, disk, child=True), undisturbed)
    finally:
        subprocess.run(["umount", disk], check=True)


def _fill_when(disk: Path, pattern: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(disk.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.002)
    with (disk / "filler").open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(b"x" * 4096)
        except OSError:
            return


# What cannot be trained


def test_a_batch_that_does_not_divide_over_the_processes_is_refused(model_dir: Path) -> None:
    with pytest.raises(
        ValueError, match=r"tokens_per_batch \(128\) must be a multiple of context_length x rows_per_device"
    ):
        tiny_params(model_dir, rows_per_device=3)
    with pytest.raises(ValueError, match="fine_tune_tokens_per_batch"):
        tiny_params(model_dir, fine_tune_tokens_per_batch=100)


def test_a_loss_that_is_not_a_number_stops_the_run(model_dir: Path, tmp_path: Path) -> None:
    params = tiny_params(
        model_dir, learning_rate=1e30, precision="bfloat16", arms={"raw": ["in_domain"]}, stage_tokens=[4 * BATCH]
    )
    with pytest.raises(TraitError, match=r"(loss|held_out/\w+) became (nan|inf) at step .* Lower its .*1.0e\+30"):
        trained(params, tmp_path)
    assert not any((tmp_path / "stages").glob("1-*"))


# Options that change how, not what


def test_recomputation_the_micro_batch_and_watching_change_no_loss(
    model_dir: Path, undisturbed: stages.TrainingResult, tmp_path: Path
) -> None:
    lengths: list[int] = []
    params = tiny_params(model_dir, **ONE_ARM, activation_checkpointing=True, rows_per_device=4)
    result = trained(params, tmp_path / "out", watch=lambda log: lengths.append(len(log)))
    assert result.log["value"].tolist() == pytest.approx(undisturbed.log["value"].tolist(), rel=1e-4)
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1] <= len(result.log)
    tokenised = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "tokens").glob("*/tokens")}
    assert len(tokenised) == 3
    changed = params.model_copy(update={"learning_rate": 2e-3})
    assert trained(changed, tmp_path / "out").stages["new"].all()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "tokens").glob("*/tokens")} == tokenised


# What is watched


def test_task_scores_are_the_share_of_right_choices_of_the_model_at_that_point(
    model_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    problems = [
        (f"{a}+{a}?\nAnswer:", f" {a}+{a}={2 * a}", " blue", f" {a}", " the list") for a in range(200, 212)
    ]
    held_out = {**HELD_OUT, "task/sums": problems}
    params = tiny_params(model_dir, **ONE_ARM, task_scores=True, held_out_items=12, learning_rate=3e-3)
    result = trained(params, tmp_path, held_out=held_out)
    scores = result.log[result.log["metric"] == "task/sums"]
    stage = BATCH * STAGE_STEPS
    assert scores["tokens"].tolist() == [0, stage // 2, stage, 3 * stage // 2, 2 * stage]
    tokenizer = AutoTokenizer.from_pretrained(result.models["trait"])
    model = AutoModelForCausalLM.from_pretrained(result.models["trait"], dtype=torch.float32)
    right = 0
    for prompt, *targets in problems:
        bits = []
        for target in targets:
            n_prompt, ids = (
                len(tokenizer(prompt)["input_ids"]),
                torch.tensor([tokenizer(prompt + target)["input_ids"]]),
            )
            with torch.no_grad():
                logged = (
                    model(input_ids=ids)
                    .logits.log_softmax(-1)[0, :-1]
                    .gather(1, ids[0, 1:, None])[n_prompt - 1 :, 0]
                )
            bits.append(-logged.sum().item() / len(target.encode()))
        right += bits.index(min(bits)) == 0
    assert scores["value"].iloc[-1] == pytest.approx(right / len(problems))
