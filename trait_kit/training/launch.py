"""Training in other processes: a child of the notebook, `accelerate launch` from it, or the processes of a launch.

A child, so that the notebook keeps neither the memory nor the libraries of a training run. `trait-kit train` under
`accelerate launch` (one node or several) runs the same job in the processes that the launcher has started.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from trait_kit.engine.files import TraitError, write_json
from trait_kit.params import TrainingParams
from trait_kit.training.worker import RANK_VARIABLES, USER_MESSAGE

# Environment of a worker, where the user has not set it. Measured with a 135M model on two cores: threads that wait by
# spinning (the default) make a step 4 times slower as soon as anything else runs on the machine; and glibc gives large
# tensors back to the system and page-faults them in again each step, which costs a fifth.
WORKER_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**26),
}


def train(job: dict[str, Any], params: TrainingParams, watch: Callable[[], None] | None = None) -> None:
    """Tokenise, pack and train the stages of `job`: in one child process, or with accelerate in one launch a stage."""
    names = [stage["name"] for stage in job["stages"]]
    worker = ["-m", "trait_kit.training.worker"]
    if not params.accelerate_config:
        _child([sys.executable, *worker], {**job, "prepare": True, "train": names}, watch)
        return
    prepare(job)
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", params.accelerate_config]
    for name in names:
        smaller = Path(job["work"]) / name / "micro_batch.json"
        while True:
            before = smaller.read_bytes() if smaller.exists() else b""
            try:
                _child([*accelerate, *worker], {**job, "prepare": False, "train": [name]}, watch)
                break
            except TraitError:
                if not smaller.exists() or smaller.read_bytes() == before:  # else memory ran out: again with smaller parts
                    raise


def prepare(job: dict[str, Any]) -> None:
    """Tokenise and pack in a child process, before any device is asked for."""
    _child([sys.executable, "-m", "trait_kit.training.worker"], {**job, "prepare": True, "train": []}, None)


def is_launched() -> bool:
    """Whether a launcher (accelerate, torchrun) has started this process as one of several, or as one on purpose."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))


def is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def wait_for_all(hours: float = 48) -> None:
    """Hold every process of the launch until all are here; tokenising may take longer than the usual time limit."""
    import torch
    from accelerate import PartialState

    if PartialState(cpu=not torch.cuda.is_available()).num_processes > 1:
        group = torch.distributed.new_group(backend="gloo", timeout=timedelta(hours=hours))
        torch.distributed.barrier(group)


def _child(command: list[str], job: dict[str, Any], watch: Callable[[], None] | None) -> None:
    """Run a worker, pass its progress lines on, and turn its end into a TraitError where it failed.

    The worker watches its standard input, whose other end this process holds: it dies with us however we go. A SIGTERM
    for us is handed to it, so that it writes a checkpoint first.
    """
    work = Path(job["work"])
    path = write_json(work / "job.json", job)
    root = str(Path(__file__).resolve().parents[2])
    outside = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    environment = {**WORKER_ENVIRONMENT, **outside, "PYTHONUNBUFFERED": "1"}
    environment["TOKENIZERS_PARALLELISM"] = "true"  # a notebook turns it off for its own good; nothing forks here
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    last: collections.deque[str] = collections.deque(maxlen=40)
    message = ""
    process = subprocess.Popen(
        [*command, str(path), "--watch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", env=environment,
    )  # fmt: skip
    try:
        with (work / "worker.log").open("ab", buffering=0) as log, _handing_on(signal.SIGTERM, process):
            for line in process.stdout:
                with contextlib.suppress(OSError):  # a full disk must not keep the reason from the user
                    log.write(line.encode(errors="replace"))
                last.append(line)
                if line.startswith(USER_MESSAGE):
                    message = json.loads(line.removeprefix(USER_MESSAGE))
                elif line.startswith("> "):
                    print(line.removeprefix("> "), end="", flush=True)
                    if watch:
                        watch()
            code = process.wait()
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if message:
        raise TraitError(message)
    if code:
        reason = f"was ended by signal {-code}" if code < 0 else f"failed with exit status {code}"
        hint = " Most likely memory ran out: lower rows_per_device or context_length." if code == -9 else ""
        raise TraitError(
            f"training: the training process {reason}.{hint} Finished stages are kept: run again to go on. "
            f"Its last lines (all in {work / 'worker.log'}):\n{''.join(last)}"
        )


@contextlib.contextmanager
def _handing_on(number: signal.Signals, process: subprocess.Popen) -> Iterator[None]:
    """Hand a signal to `process` instead of dying of it; only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, lambda *_: process.send_signal(number))
    try:
        yield
    finally:
        signal.signal(number, before)
