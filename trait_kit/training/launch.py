"""In which processes a job runs: a child of the notebook, `accelerate launch` from it, or the processes of a launch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from trait_kit.engine import child
from trait_kit.engine.files import TraitError
from trait_kit.training.plan import Job

# Environment of a worker, where the user has not set it. Measured with a 135M model on two cores: glibc gives large
# tensors back to the system and page-faults them in again each step, which costs a fifth.
WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**26),
}


def run(job: Job, on_line: Callable[[str], None]) -> None:
    """Tokenise, pack and train the stages of `job`: in one child process, or with accelerate in one launch."""
    path, config = str(job.save()), job.params.accelerate_config
    worker = ["-m", "trait_kit.training.worker", path]
    if not config:
        _child(job, [sys.executable, *worker, "prepare", "train"], on_line)
        return
    _child(job, [sys.executable, *worker, "prepare"], on_line)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, *_processes_of(config)]
    _child(job, [*launcher, *worker, "train"], on_line)


def _child(job: Job, command: list[str], on_line: Callable[[str], None]) -> None:
    environment = {name: os.environ.get(name, value) for name, value in WORKER_ENVIRONMENT.items()}
    environment["TOKENIZERS_PARALLELISM"] = "true"  # a notebook turns it off for its own good; nothing forks here
    hint = " Finished stages are kept: run again to go on, with fewer rows_per_device or context_length if memory ran out."
    child.run(command, "training", job.folder / "worker.log", environment, on_line, hint)


def _processes_of(config: str) -> list[str]:
    """The number of processes, where accelerate's file leaves it open: one a device that is here."""
    if not Path(config).is_file():
        raise TraitError(
            f"training: accelerate_config {config} does not exist. Write one with `accelerate config --config_file "
            f"{config}`, or leave it empty to train in one process."
        )
    known = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    if "num_processes" in known:
        return []
    import torch

    return ["--num_processes", str(max(1, torch.cuda.device_count()) * known.get("num_machines", 1))]


def is_launched() -> bool:
    """Whether a launcher (accelerate, torchrun) has started this process as one of several, or as one on purpose."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))


def is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def sharding() -> str:
    """What the launcher really spreads over the processes, whatever a file of parameters says."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return f"fsdp{os.environ.get('FSDP_VERSION', '1')}"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '')}"
    return "ddp" if processes() > 1 else "none"


def wait_for_all(hours: float = 48) -> None:
    """Hold every process of the launch until all are here; tokenising may take longer than the usual time limit."""
    import torch
    from accelerate import PartialState

    if PartialState(cpu=not torch.cuda.is_available()).num_processes > 1:
        group: Any = torch.distributed.new_group(backend="gloo", timeout=timedelta(hours=hours))
        torch.distributed.barrier(group)


def say(line: str) -> None:
    """A line for the user, from the first process only."""
    if is_first():
        child.tell(line)
