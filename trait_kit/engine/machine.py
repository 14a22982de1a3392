"""What a result was made with and on: code version, packages, cores, memory, speed; and quiet libraries in between."""

import importlib.metadata
import logging
import os
import platform
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = ("accelerate", "datasets", "fasttext-community", "lm_eval", "numpy", "torch", "transformers", "umap-learn")


def provenance() -> dict[str, Any]:
    """What a reader needs to judge or repeat a run."""
    return {
        "trait_kit": importlib.metadata.version("trait-kit"),
        "git_commit": _git_commit(),
        "packages": {package: importlib.metadata.version(package) for package in _PACKAGES},
        "machine": hardware_line(),
    }


def hardware_line() -> str:
    import torch

    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count()
    memory = f"{psutil.virtual_memory().total / 2**30:.1f} GB"
    gpus = ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))) or "no GPU"
    return f"{cores} cores, {memory}, {gpus} | {platform.machine()} | Python {platform.python_version()}"


def matrix_rate(precision: str) -> float:
    """FLOP/s of one large square matrix product on the processor; under a second on two cores."""
    import torch
    from torch.utils.benchmark import Timer

    side = 1_024
    left, right = (torch.randn(side, side, dtype=getattr(torch, precision)) for _ in range(2))
    timer = Timer("left @ right", globals={"left": left, "right": right}, num_threads=torch.get_num_threads())
    return 2 * side**3 / timer.blocked_autorange(min_run_time=0.1).median


def peak_memory_gb() -> float:
    """Of this process or the largest of its ended children, in GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / unit


def quiet_libraries() -> None:
    """Progress bars and advice that libraries print line by line would bury what the notebook says.

    Also asks OpenMP's threads to sleep while they wait: spinning makes everything several times slower as soon as
    another process wants a core. Works only before torch is imported, so a runner sets it for the kernels it starts.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("transformers", "datasets", "lm_eval", "numba", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _git_commit() -> str | None:
    """The commit of this code, with -dirty where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parents[2]), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
