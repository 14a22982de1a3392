"""The child process of `engine.run`: `python -m trait_kit.engine.shards_child FOLDER PARENT_PID`.

It reads task.json in the folder, runs its shards on one of datatrove's executors, and leaves a user's error in error.txt.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from trait_kit.engine.files import TraitError, read_json, write_text

_RANKS_PER_WORKER = 8  # shares of the shards: small enough to even out, large enough to pay for starting


class ShardStep(PipelineStep):
    """One rank's share of the shards: the step that every executor runs. A shard that is done is skipped by its own work."""

    name = "shards"
    type = "trait_kit"

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        task = read_json(Path(self.folder) / "task.json")
        module, _, name = task["work"].partition(":")
        work = getattr(importlib.import_module(module), name)
        try:
            for number in task["numbers"][rank::world_size]:
                work(Path(task["job"]), number)
                self.stat_update("shards")
        except Exception as error:
            message = str(error) if isinstance(error, TraitError) else f"shard {number}: {type(error).__name__}: {error}."
            write_text(Path(self.folder) / "error.txt", message)
            raise
        yield from ()


def main(folder: Path, parent: int) -> None:
    task = read_json(folder / "task.json")
    workers = min(task["workers"], len(task["numbers"]))
    ranks = min(len(task["numbers"]), workers * _RANKS_PER_WORKER)
    shared = dict(pipeline=[ShardStep(str(folder))], tasks=ranks, workers=workers, logging_dir=str(folder / "datatrove"))
    if task["executor"] == "slurm":
        executor = SlurmPipelineExecutor(
            **shared,
            time=task["slurm_time"],
            partition=task["slurm_partition"],
            mem_per_cpu_gb=task["memory_gb"],
            env_command=f'export PATH="{Path(sys.executable).parent}:$PATH"',
            job_name="trait-kit",
        )
        executor.run()
        write_text(folder / "slurm_job", str(executor.job_id))
        return
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if task["executor"] == "ray":
        import ray

        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False)
        RayPipelineExecutor(**shared, mem_per_cpu_gb=task["memory_gb"]).run()
    else:
        LocalPipelineExecutor(**shared).run()


def _end_with(parent: int) -> None:
    """End this process and its workers when the process that wanted the result is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    from trait_kit.engine import shards_child as engine_child

    engine_child.main(Path(sys.argv[1]), int(sys.argv[2]))
