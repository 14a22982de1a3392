"""The process that trains: `python -m trait_kit.training.worker job.json`, one of them or many.

One process trains all the stages of its job one after another. Each stage reads its start from disk
and sets its own seeds, so its result does not depend on the process it happens to run in; and each
result is renamed into place whole: stage.json, log.json, `model` where an arm ends, and `start`,
the float32 weights, for as long as another stage of the job begins there.
"""

import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from trait_kit.engine import child
from trait_kit.engine.files import TraitError, atomic_path, maker_of, write_json
from trait_kit.models import load_tokenizer
from trait_kit.training.launch import is_first, processes, say, wait_for_all
from trait_kit.training.plan import Job, Stage
from trait_kit.training.prepare import prepare


def main(path: Path | str) -> None:
    """Tokenise, pack and train the stages of a job; of several processes, the first one prepares and the others wait."""
    from transformers.utils import logging

    from trait_kit.training.schedule import STOP

    job = Job.model_validate_json(Path(path).read_text(encoding="utf-8"))
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = load_tokenizer(job.base)
    if is_first():
        job.settled_precision()  # before any device is filled
        prepare(job, tokenizer)
    wait_for_all()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: STOP.set())
    stages = []
    for planned in job.stages:
        known = {"arms": planned.arms, "ends_arm": planned.ends_arm}
        stages.append(Stage.load(job.work / planned.name).model_copy(update=known))
    for number, stage in enumerate(stages):
        train_stage(job, stage, tokenizer, sum(one.tokens for one in stages[number:]))
        if is_first():
            shutil.rmtree(job.work / stage.name, ignore_errors=True)
            later = {other.parent for other in stages[number + 1 :]}
            for start in job.stages_dir.glob("*/start"):  # half a gigabyte each for the demo's model
                if start.parent.name not in later:
                    shutil.rmtree(start)


def train_stage(job: Job, stage: Stage, tokenizer: Any, tokens_left: int) -> None:
    """Train one stage from its parent's weights and put model, log and report into place in one rename.

    Where memory runs out, it goes on from the last checkpoint with smaller micro-batches; the batch
    stays what it is. Among several processes the others wait for the one that failed, so there it
    ends instead.
    """
    from accelerate.utils import find_executable_batch_size

    from trait_kit.training.schedule import last_checkpoint
    from trait_kit.training.trainer import StageTrainer, log_rows

    began, folder = time.monotonic(), job.work / stage.name
    rows_a_step = stage.tokens_per_batch // job.params.context_length // processes()
    rows = job.params.rows_per_device or rows_a_step

    def fewer() -> int:
        nonlocal rows
        if rows == 1 or processes() > 1:
            raise TraitError(
                f"training: memory ran out with a micro-batch of {rows} row(s) of {job.params.context_length:,} tokens. "
                "Lower rows_per_device or context_length, set activation_checkpointing, or shard over more processes."
            )
        before, rows = rows, max(count for count in range(1, rows) if rows_a_step % count == 0)
        say(
            f"Memory ran out with {before} rows at once: {rows} at once and {rows_a_step // rows} times a step from now on. "
            f"The batch stays {stage.tokens_per_batch:,} tokens."
        )
        return rows

    def trained(rows: int) -> StageTrainer:
        trainer = StageTrainer(job, stage, tokenizer, rows, tokens_left)
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))
        return trainer

    trainer = find_executable_batch_size(trained, rows, fewer)()
    if (step := trainer.state.global_step) < stage.steps:
        raise TraitError(
            f"training: told to stop (SIGTERM) after step {step} of {stage.steps} of stage {stage.name}. "
            "A checkpoint is written: run the same command again to go on from that step."
        )
    target = job.stages_dir / stage.name if is_first() else folder / f"gathered-{os.getpid()}"
    with maker_of(target), atomic_path(target) as done:
        done.mkdir()
        trainer.save_whole(done)  # sharded weights are gathered by all processes
        tokenizer.save_pretrained(done / "model" if stage.ends_arm else done)
        write_json(done / "log.json", log_rows(trainer.state.log_history, stage))
        write_json(done / "stage.json", {**stage.model_dump(), **trainer.report(time.monotonic() - began)})
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    with child.reporting():
        main(sys.argv[1])
