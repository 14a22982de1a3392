"""What a result was made with and on: code version, packages, cores, memory; and quiet for the libraries in between."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
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
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": {package: importlib.metadata.version(package) for package in _PACKAGES},
        "machine": hardware(),
    }


def hardware() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
    }


def hardware_line() -> str:
    machine = hardware()
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    return f"{machine['cpu_cores']} cores, {machine['memory_gb']} GB, {gpus} | Python {platform.python_version()}"


def peak_memory_gb() -> float:
    """Of this process or the largest of its ended children, in GiB."""
    import resource

    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(usage) / unit


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


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parents[2]), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
