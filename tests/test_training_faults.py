"""Training that is stopped, starved, or given what cannot be trained: nothing is lost, and the message says what to do.

The runs are real: a tiny random Llama in child processes, real signals, real limits.
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
from safetensors.torch import load_file
from tiny_llama import BATCH, CONTEXT, HELD_OUT, ROOT, STAGE_STEPS, kill_worker_when, tiny_params, tiny_sources

from trait_kit.engine.files import TraitError
from trait_kit.params import TrainingParams
from trait_kit.training import launch, stages
from trait_kit.training.schedule import wsd_factor
from trait_kit.training.stages import TrainingResult, train_arms

ONE_ARM = {"arms": {"trait": ["in_domain+random", "passages"]}}
PATIENCE = 180.0  # seconds until a process counts as hanging


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def undisturbed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return train_arms(tiny_params(model_dir, **ONE_ARM), tiny_sources(), HELD_OUT, tmp_path_factory.mktemp("undisturbed"))


def _same(result: TrainingResult, expected: TrainingResult) -> bool:
    assert result.log.equals(expected.log)
    for arm, folder in expected.models.items():
        weights, wanted = load_file(result.models[arm] / "model.safetensors"), load_file(folder / "model.safetensors")
        assert weights.keys() == wanted.keys()
        assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    return True


def _driver(folder: Path, params: TrainingParams, sources: dict | None = None, **options: object) -> subprocess.Popen:
    """`train_arms` in a process of its own, which writes into folder/out."""
    values = [params.model_dump(), sources or tiny_sources(), HELD_OUT, str(folder / "out")]
    (folder / "input.json").write_text(json.dumps(values))
    code = (
        "import json, sys; from trait_kit.params import TrainingParams; from trait_kit.training.stages import train_arms; "
        "params, *rest = json.load(open(sys.argv[1])); train_arms(TrainingParams(**params), *rest)"
    )
    command = [sys.executable, "-c", code, str(folder / "input.json")]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def _wait_for(folder: Path, pattern: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)


# Stopped


def test_sigterm_writes_a_checkpoint_and_the_run_goes_on_to_the_identical_result(
    model_dir: Path, undisturbed: TrainingResult, tmp_path: Path
) -> None:
    params = tiny_params(model_dir, **ONE_ARM, checkpoint_tokens=BATCH, checkpoints_kept=3)
    driver = _driver(tmp_path, params)
    _wait_for(tmp_path / "out", "work/2-*/checkpoint-*/complete.json", driver)
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=PATIENCE)
    finished = list((tmp_path / "out" / "stages").glob("2-*/stage.json"))
    if not finished:  # it was not already past its last step
        assert driver.returncode
        assert "told to stop (SIGTERM) after step" in output
        kept = sorted((tmp_path / "out").glob("work/2-*/checkpoint-*/complete.json"))
        assert 1 <= len(kept) <= 3
    result = train_arms(params, tiny_sources(), HELD_OUT, tmp_path / "out")
    assert json.loads(next((tmp_path / "out" / "stages").glob("2-*/stage.json")).read_text())["resumed"] or finished
    assert _same(result, undisturbed)


@pytest.mark.slow
def test_ten_sigkills_at_random_moments_change_nothing(model_dir: Path, undisturbed: TrainingResult, tmp_path: Path) -> None:
    params = tiny_params(model_dir, **ONE_ARM, checkpoint_tokens=BATCH, checkpoints_kept=1)
    generator = random.Random(4)
    steps = sorted(generator.sample(range(1, 2 * STAGE_STEPS), 10))
    for step in steps:
        stage, within = (1, step) if step < STAGE_STEPS else (2, max(1, step - STAGE_STEPS))
        pattern = f"work/{stage}-*/checkpoint-{within}*/*"  # also while it is being written
        killer = threading.Thread(target=kill_worker_when, args=(tmp_path, pattern))
        killer.start()
        with pytest.raises(TraitError, match="signal 9"):
            train_arms(params, tiny_sources(), HELD_OUT, tmp_path)
        killer.join()
    assert _same(train_arms(params, tiny_sources(), HELD_OUT, tmp_path), undisturbed)


def test_checkpoints_by_the_minute_and_only_the_last_ones_kept(model_dir: Path, tmp_path: Path) -> None:
    params = tiny_params(
        model_dir, **{**ONE_ARM, "arms": {"raw": ["in_domain"]}, "stage_tokens": [64 * BATCH]},
        checkpoint_minutes=1e-5, checkpoints_kept=2,
    )  # fmt: skip
    driver = _driver(tmp_path, params)
    work = tmp_path / "out" / "work"
    _wait_for(work, "1-*/checkpoint-1?/complete.json", driver)
    [worker] = [
        child for child in psutil.Process(driver.pid).children() if "trait_kit.training.worker" in " ".join(child.cmdline())
    ]
    worker.suspend()
    whole = sorted(int(path.parent.name.rpartition("-")[2]) for path in work.glob("1-*/checkpoint-*/complete.json"))
    assert 2 <= len(whole) <= 3  # the oldest may be about to go
    assert whole == list(range(whole[0], whole[0] + len(whole)))
    worker.kill()
    driver.communicate(timeout=PATIENCE)


# Starved


def test_what_the_allocator_says_is_known_as_out_of_memory() -> None:
    from trait_kit.training.trainer import out_of_memory

    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**59)
    assert out_of_memory(refused.value)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_smaller_micro_batch_is_noted_and_taken_and_the_batch_stays(model_dir: Path, undisturbed, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from trait_kit.training.trainer import halve_micro_batch

    params = tiny_params(model_dir, **ONE_ARM, rows_per_device=4)
    work, chains = stages.prepare_job(params, tiny_sources(), HELD_OUT, tmp_path)
    for stage in work.job["stages"]:
        args = SimpleNamespace(per_device_train_batch_size=4, gradient_accumulation_steps=1, world_size=1)
        said = halve_micro_batch(SimpleNamespace(args=args, stage=stage), work.folder / stage["name"])
        assert "4 rows at once: 2 at once and 2 times a step" in said
        assert f"stays {BATCH:,} tokens" in said
    launch.train(work.job, params)
    result = stages.finish(params, work, chains)
    assert (result.stages["micro_batch"] == 2).all()
    assert result.log["value"].tolist() == pytest.approx(undisturbed.log["value"].tolist(), rel=1e-4)
    args = SimpleNamespace(per_device_train_batch_size=1, gradient_accumulation_steps=4, world_size=1)
    with pytest.raises(TraitError, match="micro-batch of one row"):
        halve_micro_batch(SimpleNamespace(args=args, job=work.job), tmp_path)


@pytest.mark.slow  # under a limit on memory even libraries fail in their own ways, on some machines
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(model_dir: Path, tmp_path: Path) -> None:
    rows = 2_048
    batch = rows * CONTEXT  # at once, its activations take a gigabyte
    changes = {"arms": {"raw": ["in_domain+random+passages"]}, "stage_tokens": [batch], "tokens_per_batch": batch}
    changes |= {"activation_checkpointing": "never", "evaluations_per_stage": 1}
    sources = {name: texts * 40 for name, texts in tiny_sources().items()}
    code = (  # what a worker takes before it trains: its libraries, and compiling what packs
        "import psutil, trait_kit.training.trainer; from trait_kit.engine.packing import plan_rows; plan_rows([3, 4], 8); "
        "print(psutil.Process().memory_info().data)"
    )
    environment = {**os.environ, **launch.WORKER_ENVIRONMENT}
    command = [sys.executable, "-c", code]
    used = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    limit = int(used.stdout) + 400 * 2**20
    driver = _driver(
        tmp_path, tiny_params(model_dir, **changes, rows_per_device=rows), sources,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )  # fmt: skip
    output, _ = driver.communicate(timeout=2 * PATIENCE)
    assert driver.returncode == 0, output
    assert f"Memory ran out with {rows} rows at once: {rows // 2} at once and 2 times a step" in output
    report = json.loads((_folder(tmp_path / "out") / "stage.json").read_text())
    assert report["micro_batch"] < rows
    small = train_arms(tiny_params(model_dir, **changes, rows_per_device=64), sources, HELD_OUT, tmp_path / "small")
    log = json.loads((_folder(tmp_path / "out") / "log.json").read_text())
    expected = small.log[small.log["metric"] == "loss"]["value"].tolist()
    assert [row["value"] for row in log if row["metric"] == "loss"] == pytest.approx(expected, rel=1e-5)


def _folder(out: Path) -> Path:
    return next((out / "stages").glob("1-*/stage.json")).parent


def test_a_disk_without_room_for_what_is_to_come_is_said_before_training(model_dir: Path, tmp_path: Path) -> None:
    params = tiny_params(model_dir, **ONE_ARM, checkpoint_tokens=BATCH, checkpoints_kept=10**9)
    with pytest.raises(TraitError, match=r"2 model\(s\) and the checkpoints take [\d,.]+ GB .* lower checkpoints_kept"):
        train_arms(params, tiny_sources(), HELD_OUT, tmp_path)
    assert not list((tmp_path / "stages").iterdir())


def test_a_disk_that_fills_up_while_training_costs_nothing_but_the_last_steps(
    model_dir: Path, undisturbed: TrainingResult, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        params = tiny_params(model_dir, **ONE_ARM, checkpoint_tokens=BATCH, checkpoints_kept=1)
        full = threading.Thread(target=_fill_when, args=(disk, "work/2-*/checkpoint-3/complete.json"))
        full.start()
        with pytest.raises(TraitError, match="no room on the disk"):
            train_arms(params, tiny_sources(), HELD_OUT, disk)
        full.join()
        (disk / "filler").unlink()
        assert _same(train_arms(params, tiny_sources(), HELD_OUT, disk), undisturbed)
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


def test_a_checkpoint_of_another_model_is_refused(model_dir: Path, tmp_path: Path) -> None:
    params = tiny_params(model_dir, **ONE_ARM, checkpoint_tokens=BATCH)
    killer = threading.Thread(target=kill_worker_when, args=(tmp_path, "work/1-*/checkpoint-*/complete.json"))
    killer.start()
    with pytest.raises(TraitError, match="signal 9"):
        train_arms(params, tiny_sources(), HELD_OUT, tmp_path)
    killer.join()
    for mark in tmp_path.glob("work/1-*/checkpoint-*/complete.json"):
        mark.write_text(json.dumps({**json.loads(mark.read_text()), "key": "another"}))
    with pytest.raises(TraitError, match="is a checkpoint of another model or stage"):
        train_arms(params, tiny_sources(), HELD_OUT, tmp_path)


def test_a_tokenizer_of_another_model_is_refused(model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(model_dir).save_pretrained(tmp_path / "mixed")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.add_tokens(["<another>"])
    tokenizer.save_pretrained(tmp_path / "mixed")
    with pytest.raises(TraitError, match="knows 258 tokens and its model only 257"):
        train_arms(tiny_params(tmp_path / "mixed", **ONE_ARM), tiny_sources(), HELD_OUT, tmp_path)


def test_a_batch_that_does_not_divide_over_the_processes_is_refused(model_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"tokens_per_batch \(128\) must be a multiple of context_length x rows_per_device"):
        tiny_params(model_dir, rows_per_device=3)
    with pytest.raises(ValueError, match="fine_tune_tokens_per_batch"):
        tiny_params(model_dir, fine_tune_tokens_per_batch=100)


def test_a_loss_that_jumps_and_stays_there_stops_the_run(model_dir: Path, tmp_path: Path) -> None:
    """Learn one text by heart, then meet another: the loss goes from near 0 to more than 5."""
    sources = {
        "in_domain": ["aaaaaaaaaaaaaaa" for _ in range(900)],
        "passages": [f"{'xyzw'[a % 4]} {a}" for a in range(900)],
    }
    params = tiny_params(
        model_dir, schedule="across_stages", arms={"trait": ["in_domain", "passages"]}, learning_rate=3e-2,
        stage_tokens=[40 * BATCH, 20 * BATCH],
    )  # fmt: skip
    with pytest.raises(
        TraitError, match=r"the loss rose from about 0\.\d+ to \d+\.\d+ and stayed there for 3 steps, at step 4\d"
    ):
        train_arms(params, sources, HELD_OUT, tmp_path / "watched")
    calm = params.model_copy(update={"max_loss_rise": 0.0})
    assert len(train_arms(calm, sources, HELD_OUT, tmp_path / "unwatched").stages) == 1


# Options that change how, not what


@pytest.mark.parametrize(
    "changes",
    [{"activation_checkpointing": "always"}, {"rows_per_device": 0}, {"rows_per_device": 4}],
    ids=lambda changes: "-".join(changes),
)
def test_recomputation_and_the_micro_batch_change_no_loss(
    model_dir: Path, undisturbed: TrainingResult, tmp_path: Path, changes: dict
) -> None:
    result = train_arms(tiny_params(model_dir, **ONE_ARM, **changes), tiny_sources(), HELD_OUT, tmp_path)
    assert result.log["value"].tolist() == pytest.approx(undisturbed.log["value"].tolist(), rel=1e-4)


@pytest.mark.slow
def test_compiled_layers_change_no_loss(model_dir: Path, undisturbed: TrainingResult, tmp_path: Path) -> None:
    result = train_arms(tiny_params(model_dir, **ONE_ARM, compile_layers=True), tiny_sources(), HELD_OUT, tmp_path)
    assert result.log["value"].tolist() == pytest.approx(undisturbed.log["value"].tolist(), rel=1e-4)


def test_adapters_are_merged_into_a_plain_model_and_the_next_stage_goes_on_from_it(model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    params = tiny_params(model_dir, **ONE_ARM, lora_rank=8, learning_rate=1e-2)
    result = train_arms(params, tiny_sources(), HELD_OUT, tmp_path)
    base = dict(AutoModelForCausalLM.from_pretrained(model_dir).named_parameters())
    tuned = dict(AutoModelForCausalLM.from_pretrained(result.models["trait"]).named_parameters())
    assert tuned.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert changed == {name for name in base if "_proj" in name}
    held_out = result.log[result.log["metric"] == "held_out/solutions"]["value"].tolist()
    assert held_out[-1] < held_out[len(held_out) // 2] < held_out[0]


def test_tensorboard_gets_the_loss(model_dir: Path, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = train_arms(tiny_params(model_dir, **ONE_ARM, report_to="tensorboard"), tiny_sources(), HELD_OUT, tmp_path)
    seen = []
    for path in sorted((tmp_path / "tensorboard").glob("events*")):
        reader = events.EventAccumulator(str(path))
        reader.Reload()
        seen += [event.value for event in reader.Scalars("train/loss")]
    assert seen == pytest.approx(result.log[result.log["metric"] == "loss"]["value"].tolist(), rel=1e-6)


def test_the_log_can_be_watched_while_it_is_written(model_dir: Path, tmp_path: Path) -> None:
    lengths = []
    params = tiny_params(model_dir, **ONE_ARM)
    result = train_arms(params, tiny_sources(), HELD_OUT, tmp_path, watch=lambda log: lengths.append(len(log)))
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1] <= len(result.log)


def test_a_file_of_texts_trains_like_the_texts(model_dir: Path, undisturbed: TrainingResult, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sources: dict = tiny_sources()
    for name in ("random", "passages"):
        pq.write_table(
            pa.table({"id": list(range(len(sources[name]))), "text": sources[name]}), tmp_path / f"{name}.parquet"
        )
        sources[name] = tmp_path / f"{name}.parquet"
    params = tiny_params(model_dir, **ONE_ARM)
    assert _same(train_arms(params, sources, HELD_OUT, tmp_path / "out"), undisturbed)
    tokenised = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "tokens").rglob("*.tokens")}
    assert len(tokenised) == 3
    changed = params.model_copy(update={"learning_rate": 2e-3})
    assert train_arms(changed, sources, HELD_OUT, tmp_path / "out").stages["new"].all()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "tokens").rglob("*.tokens")} == tokenised


# What is watched


def test_task_scores_are_the_share_of_right_choices_of_the_model_at_that_point(model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trait_kit.figures import curves

    problems = [(f"{a}+{a}?\nAnswer:", f" {a}+{a}={2 * a}", " blue", f" {a}", " the list") for a in range(200, 212)]
    held_out = {**HELD_OUT, "task/sums": problems}
    params = tiny_params(model_dir, **ONE_ARM, task_scores_per_stage=2, held_out_items=12, learning_rate=3e-3)
    result = train_arms(params, tiny_sources(), held_out, tmp_path)
    scores = result.log[result.log["metric"] == "task/sums"]
    stage = BATCH * STAGE_STEPS
    assert scores["tokens"].tolist() == [0, stage // 2, stage, 3 * stage // 2, 2 * stage]
    tokenizer = AutoTokenizer.from_pretrained(result.models["trait"])
    model = AutoModelForCausalLM.from_pretrained(result.models["trait"], dtype=torch.float32)
    right = 0
    for prompt, *targets in problems:
        bits = []
        for target in targets:
            n_prompt, ids = len(tokenizer(prompt)["input_ids"]), torch.tensor([tokenizer(prompt + target)["input_ids"]])
            with torch.no_grad():
                logged = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[n_prompt - 1 :, 0]
            bits.append(-logged.sum().item() / len(target.encode()))
        right += bits.index(min(bits)) == 0
    assert scores["value"].iloc[-1] == pytest.approx(right / len(problems))
    title = curves.plot_task_scores(result.log, ["trait"])._suptitle
    assert title is None or f"{right / len(problems):.0%}" in title.get_text()


def test_replayed_text_and_one_schedule_are_accounted_for_stage_by_stage(model_dir: Path, tmp_path: Path) -> None:
    changes = {"arms": {"trait": ["in_domain", "passages"]}, "replay": [0.0, 0.25], "schedule": "across_stages"}
    result = train_arms(tiny_params(model_dir, **changes), tiny_sources(), HELD_OUT, tmp_path)
    stage = BATCH * STAGE_STEPS
    tokens = result.accounting.set_index(["stage", "source"])["tokens"].to_dict()
    assert tokens == {(1, "in_domain"): stage, (2, "passages"): 3 * stage // 4, (2, "random"): stage // 4}
    rates = result.log[result.log["metric"] == "learning_rate"]["value"].tolist()
    factors = [wsd_factor(step, 2 * STAGE_STEPS, 0.03, 0.1) for step in range(2 * STAGE_STEPS)]
    assert rates == pytest.approx([1e-3 * factor for factor in factors])
    assert result.log.groupby("stage")["tokens"].max().to_dict() == {1: stage, 2: 2 * stage}
    mixed = train_arms(tiny_params(model_dir, **{**changes, "schedule": "one_stage"}), tiny_sources(), HELD_OUT, tmp_path)
    assert mixed.accounting.groupby("source")["tokens"].sum().to_dict() == {
        "in_domain": stage, "passages": 3 * stage // 4, "random": stage // 4,
    }  # fmt: skip
    assert set(mixed.log["stage"]) == {1}
