"""The process that trains: `python -m trait_kit.training.worker job.json prepare train`, one of them or many.

One process trains all the stages of its job one after another: imports cost seconds, a stage of the demo costs a minute.
Each stage reads its start from disk and sets its own seeds, so its result does not depend on the process it happens to run
in; and each result is renamed into place whole: stage.json, log.json, `model` where an arm ends, and `start`, the float32
weights, where a stage begins. A start goes as soon as the stages that begin with it are made (keep_stages: never); it can
be made again, and is, where another experiment wants it.
"""

from __future__ import annotations

import gc
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from trait_kit.engine import child
from trait_kit.engine.files import TraitError, atomic_path, read_json, write_json
from trait_kit.training.launch import is_first, processes, say
from trait_kit.training.plan import Job, Stage


def main(arguments: list[str]) -> None:
    job, doing = Job.load(arguments[0]), arguments[1:]
    with child.reporting():
        try:
            if "prepare" in doing:
                prepare(job)
            if "train" in doing:
                train(job)
        except TraitError:
            raise
        except Exception as error:
            if message := _for_the_user(error, job):
                raise TraitError(message) from error
            raise


def prepare(job: Job) -> None:
    """Tokenise and pack every stage, and settle the precision, before any device is filled."""
    from trait_kit.training import prepare as preparing

    job.settled_precision()
    preparing.prepare(job, _tokenizer(job), say)


def train(job: Job) -> None:
    """Train the stages of `job`, which are prepared, in their order."""
    from trait_kit.training.checkpoints import STOP

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: STOP.set())
    for number, stage in enumerate(job.stages):
        job.stages[number] = replace(Stage.load(job.work / stage.name), arms=stage.arms, ends_arm=stage.ends_arm)
    tokenizer = _tokenizer(job)
    _check_room(job)
    for number, stage in enumerate(job.stages):
        train_stage(job, stage, tokenizer, sum(one.tokens for one in job.stages[number:]))
        if is_first():
            shutil.rmtree(job.work / stage.name, ignore_errors=True)
            _remove_starts(job, {later.parent for later in job.stages[number + 1 :]})


def train_stage(job: Job, stage: Stage, tokenizer: Any, tokens_left: int) -> None:
    """Train one stage from its parent's weights and put model, log and report into place in one rename.

    Where memory runs out, it goes on from the last checkpoint with smaller micro-batches; the batch stays what it is.
    """
    from accelerate.utils import find_executable_batch_size

    from trait_kit.training.checkpoints import last_checkpoint
    from trait_kit.training.trainer import build_trainer, log_rows

    began, work = time.monotonic(), job.work / stage.name
    checkpoint = None

    def trained(rows: int) -> Any:
        nonlocal checkpoint
        gc.collect()  # weights and optimizer state of the stage, or the attempt, before
        checkpoint = last_checkpoint(work, stage)
        trainer = build_trainer(job, stage, tokenizer, rows, tokens_left)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    rows, fewer = micro_batches(job, stage)
    trainer = find_executable_batch_size(trained, rows, fewer)()
    trainer.raise_if_stopped()
    target = job.stages_dir / stage.name
    with atomic_path(target if is_first() else work / "gathered") as folder:
        folder.mkdir()
        trainer.save_whole(folder)  # sharded weights are gathered by all processes
        tokenizer.save_pretrained(folder / "model" if stage.ends_arm else folder)
        write_json(folder / "log.json", log_rows(trainer.state.log_history, stage))
        seconds = time.monotonic() - began
        record = {**asdict(stage), **trainer.report(seconds), "resumed": checkpoint is not None}
        write_json(folder / "stage.json", record)
    trainer.accelerator.wait_for_everyone()


def micro_batches(job: Job, stage: Stage) -> tuple[int, Callable[[], int]]:
    """Rows at once to begin with, and the function that says how many to try when memory ran out.

    What did not fit is noted in the stage's folder, so that a run that goes on does not try it again. Among several
    processes the others wait for the one that failed, so all of them have to begin anew.
    """
    rows_a_step = stage.tokens_per_batch // job.params.context_length // processes()
    noted = job.work / stage.name / "micro_batch.json"
    rows = read_json(noted) if noted.exists() else job.params.rows_per_device or rows_a_step

    def fewer() -> int:
        nonlocal rows
        before, rows = rows, max((count for count in range(1, rows) if rows_a_step % count == 0), default=0)
        if not rows:
            raise TraitError(
                f"training: memory ran out with a micro-batch of one row of {job.params.context_length:,} tokens. Lower "
                "context_length, set activation_checkpointing, use lora_rank, or shard over more processes."
            )
        write_json(noted, rows)
        line = (
            f"Memory ran out with {before} rows at once: {rows} at once and {rows_a_step // rows} times a step from now on. "
            f"The batch stays {stage.tokens_per_batch:,} tokens."
        )
        if processes() > 1:
            raise TraitError(f"training: {line} Run the same command again.")
        say(line)
        return rows

    return rows, fewer


def _tokenizer(job: Job) -> Any:
    from transformers.utils import logging

    from trait_kit.models import load_tokenizer

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return load_tokenizer(job.base)


def _remove_starts(job: Job, needed: set[str | None]) -> None:
    for folder in [] if job.params.keep_stages else job.stages_dir.glob("*/start"):
        if folder.parent.name not in needed:
            shutil.rmtree(folder)


def _check_room(job: Job) -> None:
    """TraitError where the disk cannot hold the models and checkpoints to come."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        size = 4 * AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(job.base)).num_parameters()
    kept = 4 if job.params.precision == "float32" else 2
    starts = len({stage.parent for stage in job.stages} - {None}) if job.params.keep_stages else 1
    checkpoints = 3 * 3 * size * bool(job.params.checkpoint_tokens or job.params.checkpoint_minutes)  # with two moments
    needed = size * starts + checkpoints + size * kept // 4 * sum(stage.ends_arm for stage in job.stages)
    free = shutil.disk_usage(job.stages_dir).free
    if needed > free:
        raise TraitError(
            f"training: {len(job.stages)} stage(s) and their checkpoints take {needed / 1e9:,.1f} GB on the disk of "
            f"{job.stages_dir}, which has {free / 1e9:,.1f} GB left. Free some space, or train fewer arms."
        )


def _for_the_user(error: Exception, job: Job) -> str:
    """What to tell the user; nothing where it is a bug."""
    if isinstance(error, MemoryError):
        return "training: memory ran out while texts were read or packed. Free some, and run again."
    if "No space left" in str(error) or shutil.disk_usage(job.work).free < 2**20:
        return (
            f"training: no room on the disk of {job.work}. Free some space and run again: finished stages and whole "
            f"checkpoints are kept. ({type(error).__name__}: {error})"
        )
    return ""


if __name__ == "__main__":
    main(sys.argv[1:])
