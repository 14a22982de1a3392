"""The process that trains: a child of the notebook, `accelerate launch` from it, or the processes of a launch.

It trains the stages of its job one after another. Each reads its start from disk and sets its own seeds, so its result does
not depend on the process; and it is renamed into place whole: stage.json, log.json, `model` where an arm ends, and `start`,
the float32 weights, for as long as another stage begins there.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from trait_kit.engine import child
from trait_kit.engine.files import TraitError, atomic_path, maker_of, read_json, write_json
from trait_kit.models import load_tokenizer
from trait_kit.training.plan import Job, Stage, processes
from trait_kit.training.prepare import PACKED, prepare

# Where the user has not set it: glibc gives large tensors back and faults them in again each step,
# which costs a fifth (a 135M model on two cores).
WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**26),
}


def run(job: Job, on_line: Callable[[str], None]) -> None:
    """Train a job in a child process, or with accelerate in one a GPU; the first one of a launch takes part in that."""
    if processes() > 1:
        return take_part(job.work / "job.json")
    command = ["-m", "trait_kit.training.worker", str(job.work / "job.json")]
    if config := job.params.accelerate_config:
        import torch

        launch = ["-m", "accelerate.commands.launch", "--config_file", config]
        command = [*launch, "--num_processes", str(max(1, torch.cuda.device_count())), *command]
    environment = {name: os.environ.get(name, value) for name, value in WORKER_ENVIRONMENT.items()}
    environment["TOKENIZERS_PARALLELISM"] = "true"  # a notebook turns it off for its own good; nothing forks here
    hint = " What is finished is kept: run again to go on, with fewer rows_per_device if memory ran out."
    child.run([sys.executable, *command], "training", job.folder / "worker.log", environment, on_line, hint)


def is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def take_part(job: Path) -> None:
    """As one process of a launch, from when the first one has written the job."""
    wait_for_all()
    main(job)
    wait_for_all()


def wait_for_all() -> None:
    """Hold every process of a launch until all are here; tokenising may take longer than the usual limit."""
    if processes() == 1:
        return
    import torch
    from accelerate import PartialState

    from trait_kit.training.trainer import use_cpu

    PartialState(cpu=use_cpu())
    torch.distributed.barrier(torch.distributed.new_group(backend="gloo", timeout=timedelta(days=2)))


def main(path: Path | str) -> None:
    """Tokenise, pack and train the stages of a job; of several processes the first one prepares."""
    from transformers.utils import logging

    from trait_kit.training.trainer import STOP

    job = Job.model_validate_json(Path(path).read_text(encoding="utf-8"))
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = load_tokenizer(job.base)
    if is_first():
        job.settled_precision()  # before any device is filled
        prepare(job, tokenizer)
    wait_for_all()
    signal.signal(signal.SIGTERM, lambda *_: STOP.set())
    stages = [stage.model_copy(update=read_json(job.work / stage.name / PACKED)) for stage in job.stages]
    for number, stage in enumerate(stages):
        train_stage(job, stage, tokenizer, sum(one.tokens for one in stages[number:]))
        if is_first():
            shutil.rmtree(job.work / stage.name, ignore_errors=True)
            for start in job.stages_dir.glob("*/start"):  # half a gigabyte each for the demo's model
                if start.parent.name not in {later.parent for later in stages[number + 1 :]}:
                    shutil.rmtree(start)


def train_stage(job: Job, stage: Stage, tokenizer: Any, tokens_left: int) -> None:
    """Train one stage from its parent's weights and put model, log and report into place in one rename.

    Where memory runs out, it goes on from the last checkpoint with smaller micro-batches; not among several processes, where
    the others would wait for the one that failed.
    """
    from accelerate.utils import find_executable_batch_size

    from trait_kit.training.trainer import StageTrainer, last_checkpoint, log_rows

    began, folder = time.monotonic(), job.work / stage.name
    rows_a_step = stage.tokens_per_batch // job.params.context_length // processes()
    rows = job.params.rows_per_device or rows_a_step

    def fewer() -> int:
        nonlocal rows
        if rows == 1 or processes() > 1:
            raise TraitError(
                f"training: memory ran out with a micro-batch of {rows} row(s) of {job.params.context_length:,} tokens. "
                "Lower rows_per_device or context_length, set activation_checkpointing, or shard."
            )
        before, rows = rows, max(count for count in range(1, rows) if rows_a_step % count == 0)
        child.tell(
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
            "A checkpoint is written: run again to go on from it."
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
