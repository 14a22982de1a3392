"""In which processes a job runs: a child of the notebook, `accelerate launch` from it, or the processes of a launch."""

import os
import sys
from collections.abc import Callable
from datetime import timedelta

from trait_kit.engine import child
from trait_kit.training.plan import Job

# Environment of a worker, where the user has not set it. Measured with a 135M model on two cores: glibc gives large
# tensors back to the system and page-faults them in again each step, which costs a fifth.
WORKER_ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**26)}
HINT = " Finished stages and whole checkpoints are kept: run again to go on, with fewer rows_per_device if memory ran out."


def run(job: Job, on_line: Callable[[str], None]) -> None:
    """Tokenise, pack and train the stages of `job` in one child process, or with accelerate in one a GPU of this machine."""
    command = ["-m", "trait_kit.training.worker", str(job.work / "job.json")]
    if config := job.params.accelerate_config:
        import torch

        counts = ["--num_processes", str(max(1, torch.cuda.device_count()))]
        command = ["-m", "accelerate.commands.launch", "--config_file", config, *counts, *command]
    environment = {name: os.environ.get(name, value) for name, value in WORKER_ENVIRONMENT.items()}
    environment["TOKENIZERS_PARALLELISM"] = "true"  # a notebook turns it off for its own good; nothing forks here
    child.run([sys.executable, *command], "training", job.folder / "worker.log", environment, on_line, HINT)


def is_launched() -> bool:
    """Whether a launcher (accelerate, torchrun) has started this process as one of several, or as one on purpose."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))


def is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def sharding() -> str:
    """What the launcher really spreads over the processes, whatever a file of parameters says."""
    for name, kind in (("ACCELERATE_USE_FSDP", "fsdp"), ("ACCELERATE_USE_DEEPSPEED", "zero")):
        if os.environ.get(name) == "true":
            return kind
    return "ddp" if processes() > 1 else "none"


def use_cpu() -> bool:
    """Whether to tell accelerate that there are CPUs only: it would then leave sharding out, silently."""
    import torch

    return torch.accelerator.current_accelerator() is None and sharding() in ("none", "ddp")


def wait_for_all() -> None:
    """Hold every process of the launch until all are here; tokenising may take longer than the usual time limit."""
    if processes() == 1:
        return
    import torch
    from accelerate import PartialState

    PartialState(cpu=use_cpu())
    group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=2))
    torch.distributed.barrier(group)


def say(line: str) -> None:
    """A line for the user, from the first process only."""
    if is_first():
        child.tell(line)
