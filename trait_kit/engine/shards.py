"""Runs a function once for each shard: in this process, in local processes, on a Ray cluster, or under Slurm.

The engines are datatrove's executors; what runs on them is one pipeline step that gives each rank its share of the shards.
Resume does not depend on them: a shard's own file says whether it is done, so any engine can finish what another began.

The executor runs in a child process of its own session. That keeps its logs and its environment out of a notebook, and lets
this process notice what the executor cannot: a local worker that was killed (by the kernel, for memory, say) would leave it
waiting for ever; here it ends the job with a message. If this process dies, so do the child and all its workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import psutil
import pyarrow.parquet as pq

from trait_kit.engine.files import TraitError, read_json, write_json
from trait_kit.engine.web import SKIPPED

Work = Callable[[Path, int], None]  # (job file, shard number): does one shard
_POLL_SECONDS, _ENDING_SECONDS = 0.5, 5.0
_LEFTOVER_SECONDS = 6 * 3600


@dataclasses.dataclass(frozen=True)
class Place:
    """Where shards are worked on."""

    executor: Literal["local", "ray", "slurm"] = "local"
    workers: int = 1  # processes; a single local one is this process
    slurm_partition: str = ""
    slurm_time: str = "20:00:00"  # of one task
    memory_gb: int = 4  # asked for each worker on a cluster


def read_job(path: Path) -> dict[str, Any]:
    """A job file, read once for all shards of this process, and again when it has changed."""
    return _read_job(path, path.stat().st_mtime_ns, path.stat().st_ino)


@functools.lru_cache(maxsize=4)
def _read_job(path: Path, *_: int) -> dict[str, Any]:
    return read_json(path)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that a killed worker left; a younger one may still be somebody's work."""
    for path in folder.glob(".*.tmp-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                path.unlink()


class Progress:
    """What is done so far, read off the shards' own files, so it is the same whatever works on them."""

    def __init__(
        self,
        noun: str,
        shards: Sequence[Any],
        output: Callable[[int], Path],
        rejected: Callable[[int], Path],
        max_quarantined: float,
    ) -> None:
        self.noun, self.shards, self.max_quarantined = noun, {shard.number: shard for shard in shards}, max_quarantined
        self._output, self._rejected = output, rejected
        self._counted: dict[int, tuple[int, int]] = {}  # shard -> (documents, records lost)
        self._lost_by_file: dict[str, tuple[int, str]] = {}  # file -> (records lost, file: a reason)
        self._printed = self._started = time.monotonic()
        self._bytes_before = self._documents_before = 0

    def begin(self, missing: Sequence[int]) -> None:
        for number in set(self.shards) - set(missing):
            self._count(number)
        self._bytes_before = self._bytes()
        self._documents_before = sum(documents for documents, _ in self._counted.values())

    def look(self) -> None:
        """Count what is new; print a line every ten seconds; TraitError once too much is lost."""
        folder = self._output(0).parent
        present = set(os.listdir(folder)) if folder.exists() else set()  # one look, however many shards there are
        for number in set(self.shards) - set(self._counted):
            if self._output(number).name in present:
                self._count(number)
        self.refuse_lossy()
        if time.monotonic() - self._printed >= 10:
            self._printed = time.monotonic()
            print(self.line(), flush=True)

    @property
    def complete(self) -> bool:
        return len(self._counted) == len(self.shards)

    def line(self) -> str:
        seconds = time.monotonic() - self._started
        total, done = sum(shard.bytes for shard in self.shards.values()), self._bytes()
        speed = (done - self._bytes_before) / max(seconds, 1e-9)
        documents, lost = (sum(column) for column in zip((0, 0), *self._counted.values(), strict=True))
        left = f", {(total - done) / speed / 60:.1f} min left" if speed and total else ""
        return (
            f"{self.noun}: {len(self._counted):,} of {len(self.shards):,} shards, {documents:,} documents "
            f"({(documents - self._documents_before) / max(seconds, 1e-9):,.0f}/s), "
            f"{documents / max(documents + lost, 1):.2%} readable, {speed / 1e6:.1f} MB/s on disk{left}"
        )

    def refuse_lossy(self, final: bool = False) -> None:
        """TraitError when more records are lost than the limit allows, whatever is still to come."""
        documents, lost = (sum(column) for column in zip((0, 0), *self._counted.values(), strict=True))
        total = sum(shard.bytes for shard in self.shards.values())
        share_done = 1.0 if final else (self._bytes() / total if total else 0.0)
        if lost and share_done and lost > self.max_quarantined * (documents + lost) / share_done:
            raise TraitError(
                f"{lost:,} of {documents + lost:,} web documents are unreadable, more than max_quarantined "
                f"({self.max_quarantined:.2%}) allows; most of them: {self._worst[1]}. The rejected-*.parquet files name "
                "each with its reason; repair them, or raise max_quarantined."
            )
        if final and not documents:
            raise TraitError(f"There are no documents to score: the corpus is empty, or nothing is usable. {self._worst[1]}")

    def _bytes(self) -> int:
        return sum(self.shards[number].bytes for number in self._counted)

    def _count(self, number: int) -> None:
        try:
            documents = pq.read_metadata(self._output(number)).num_rows
            rejected = pq.read_table(self._rejected(number), columns=["source", "reason", "records"]).to_pylist()
        except (OSError, ValueError):
            return
        lost = [row for row in rejected if not row["reason"].startswith(SKIPPED)]
        self._counted[number] = (documents, sum(row["records"] for row in lost))
        for row in lost:
            before, _ = self._lost_by_file.get(row["source"], (0, ""))
            self._lost_by_file[row["source"]] = before + row["records"], f"{row['source']}: {row['reason']}"

    @property
    def _worst(self) -> tuple[int, str]:
        return max(self._lost_by_file.values(), default=(0, ""))


def run(work: Work, job: Path, numbers: Sequence[int], place: Place, progress: Progress) -> None:
    """Call `work(job, number)` for every number, at the place; TraitError if a shard fails or a worker dies."""
    progress.begin(numbers)
    if not numbers:
        return
    if place.executor == "local" and (place.workers == 1 or len(numbers) == 1):
        for number in numbers:
            work(job, number)
            progress.look()
        return
    folder = job.parent / "engine"
    shutil.rmtree(folder, ignore_errors=True)
    task = {"work": f"{work.__module__}:{work.__qualname__}", "job": str(job), "numbers": list(numbers)}
    write_json(folder / "task.json", {**task, **dataclasses.asdict(place)})
    command = [sys.executable, "-m", "trait_kit.engine.shards_child", str(folder), str(os.getpid())]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    environment.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # gives memory back: a worker takes 60 MB less
    with (folder / "driver.log").open("wb") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
    seen: set[int] = set()
    try:
        while child.poll() is None:
            time.sleep(_POLL_SECONDS)
            progress.look()
            if place.executor == "local" and _lost_a_worker(child, seen):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_ENDING_SECONDS)  # one that ends by itself ends its workers first
                progress.look()
                if child.poll() is not None or progress.complete:
                    break
                raise TraitError(
                    f"{progress.noun} stopped: a worker process was killed (out of memory?). Run the same command again: "
                    "finished shards are kept. Fewer workers need less memory."
                )
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    error = folder / "error.txt"
    while place.executor == "slurm" and not child.returncode and not progress.complete and not error.exists():
        waiting = _slurm_holds(folder)
        time.sleep(10 * _POLL_SECONDS)  # submitted: the cluster's nodes write the shards
        progress.look()
        if not waiting:
            break
    progress.look()
    if not progress.complete:
        reason = error.read_text(encoding="utf-8") if error.exists() else "not all shards were finished. Run it again."
        raise TraitError(f"{progress.noun} stopped: {reason} The log is {folder / 'driver.log'}.")


def _slurm_holds(folder: Path) -> bool:
    """Whether any task of the job still runs or waits; a task that was killed leaves no other trace."""
    job = (folder / "slurm_job").read_text(encoding="utf-8")
    found = subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True)
    unreachable = found.returncode and "Invalid job id" not in found.stderr
    return bool(unreachable or found.stdout.strip())


def _lost_a_worker(child: subprocess.Popen, seen: set[int]) -> bool:
    """Whether one of the executor's workers that were `seen` is gone; they live as long as it does.

    They are the children of its fork server, so grandchildren. A dead one's shards would be waited for in vain.
    """
    try:
        servers = psutil.Process(child.pid).children()
        workers = {worker.pid for server in servers for worker in server.children()}
    except psutil.NoSuchProcess:
        return False
    lost = not seen <= workers
    seen |= workers
    return lost
