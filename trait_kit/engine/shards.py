"""Runs a function once for each shard: in this process, in a pool of local ones, on a Ray cluster, or under Slurm.

A shard is the unit of work and of resume: its own file says whether it is done, so any place can finish what another
began. A killed worker breaks the pool, and workers end with their driver: nothing waits for ever.
"""

import functools
import importlib.util
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from trait_kit.engine.files import TraitError, made_folder, read_json, write_json, write_text

Work = Callable[[Path, int], None]  # (job file, shard number): does one shard
_POLL_SECONDS = 5.0


@dataclass(frozen=True)
class Place:
    executor: Literal["local", "ray", "slurm"] = "local"
    workers: int = 1  # processes; a single local one is this process
    slurm: dict[str, str] = field(default_factory=dict)  # partition, time, ...: arguments of datatrove's executor


def claim(folder: Path, kind: str, job: dict[str, Any], writes: dict[str, str], valid: Collection[str]) -> None:
    """Make a folder a job's: its manifest (job.json) lists what it `writes`, and so what a later one may remove.

    What is `valid` stays. TraitError where a file has such a name that no earlier job of this kind listed.
    """
    found, manifest = set(os.listdir(made_folder(folder))), folder / "job.json"
    earlier = read_json(manifest) if manifest.exists() else {}
    own = isinstance(earlier, dict) and "writes" in earlier and earlier.get("kind", kind) == kind
    listed = {"job.json", *earlier["writes"]} if own else set()
    if foreign := sorted(found.intersection(["job.json", *writes]) - listed):
        raise TraitError(
            f"{folder / foreign[0]} is there, but no job of this kind wrote it. Move it, or name another folder."
        )
    for stale in listed.difference(["job.json", *valid]):  # out of date or damaged: it would pass for progress
        (folder / stale).unlink(missing_ok=True)
    write_json(manifest, {**job, "kind": kind, "writes": writes})


def run(work: Work, job: Path, numbers: Sequence[int], place: Place) -> None:
    """Call `work(job, number)` for every number, at the place; TraitError if a shard fails or a worker dies.

    The files that the job file `writes` beside it say what is done.
    """
    writes = read_json(job)["writes"]
    if place.executor == "ray" and not importlib.util.find_spec("ray"):
        raise TraitError("Ray is not installed here: pip install 'trait-kit[ray]'.")
    if place.executor == "slurm" and not shutil.which("sbatch"):
        raise TraitError("sbatch is not installed here: run this on a machine of the Slurm cluster.")
    for left in job.parent.glob(".*.tmp-*"):  # of a killed worker; a younger one may still be somebody's work
        if left.name[1:].rpartition(".tmp-")[0] in writes and time.time() - left.stat().st_mtime > 6 * 3600:
            left.unlink(missing_ok=True)
    if place.executor != "local" and numbers:
        _on_cluster(work, job, numbers, place, set(writes))
        return
    here = (_do(work, job, each) for each in numbers)
    shards = _in_processes(work, job, numbers, place.workers) if min(place.workers, len(numbers)) > 1 else here
    began = said = time.monotonic()
    for done, _ in enumerate(shards, 1):
        if (now := time.monotonic()) - said >= 10:
            said = now
            share, minutes = done / len(numbers), (now - began) / 60
            print(f"{job.parent.name}: {share:.0%} done after {minutes:.1f} minutes", flush=True)


def _do(work: Work, job: Path, number: int) -> None:
    try:
        work(job, number)
    except TraitError:
        raise
    except Exception as error:
        raise TraitError(f"{job.parent.name}, shard {number}: {type(error).__name__}: {error}.") from error


def _in_processes(work: Work, job: Path, numbers: Sequence[int], workers: int) -> Iterator[None]:
    # a fork of this process would copy locks that its threads hold
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])  # imported once, for all workers and for later pools
    with ProcessPoolExecutor(min(workers, len(numbers)), context, initializer=_enter_worker) as pool:
        try:
            for future in as_completed([pool.submit(_do, work, job, number) for number in numbers]):
                yield future.result()
        except BrokenProcessPool:
            raise TraitError(
                f"{job.parent.name} stopped: a worker process was killed (out of memory?). Run the same command again: "
                "finished shards are kept. Fewer workers need less memory."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _enter_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's
    _be_lean()
    driver = multiprocessing.parent_process()
    threading.Thread(target=lambda: (driver.join(), os._exit(1)), daemon=True).start()


def _be_lean() -> None:
    os.environ.update(TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    pa.set_cpu_count(1)
    pa.set_memory_pool(pa.system_memory_pool())  # a worker takes 60 MB less


def _on_cluster(work: Work, job: Path, numbers: Sequence[int], place: Place, writes: set[str]) -> None:
    """By datatrove, which prints its own progress; why a shard failed comes in a file."""
    from datatrove.executor import RayPipelineExecutor, SlurmPipelineExecutor

    folder = Path(tempfile.mkdtemp(prefix="cluster-", dir=job.parent))
    error, workers = folder / "error.txt", min(place.workers, len(numbers))
    if place.executor == "ray":
        import ray

        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, ignore_reinit_error=True)
        kind, options = RayPipelineExecutor, {}
    else:
        path = f'export PATH="{Path(sys.executable).parent}:$PATH"'
        kind, options = SlurmPipelineExecutor, {"time": "20:00:00", "env_command": path, "job_name": "trait-kit"}
    executor = kind(
        pipeline=[functools.partial(_do_share, work, job, numbers, error)],
        tasks=min(
            len(numbers), 8 * workers
        ),  # shares: small enough to even out, large enough to pay for starting
        workers=workers,
        logging_dir=str(folder),
        **{"mem_per_cpu_gb": 4, **options, **place.slurm},
    )
    try:
        executor.run()
        reason = "not all shards were finished. Run it again."
    except Exception as failure:
        reason = f"{failure}."
    job_id = getattr(executor, "job_id", None)  # of Slurm, whose nodes write the shards
    while job_id and writes - {*os.listdir(job.parent)} and not error.exists() and _slurm_holds(job_id):
        time.sleep(_POLL_SECONDS)
    if writes - {*os.listdir(job.parent)}:
        reason = error.read_text(encoding="utf-8") if error.exists() else reason
        raise TraitError(f"{job.parent.name} stopped: {reason} The logs are in {folder}.")


def _slurm_holds(job: str) -> bool:
    """Whether any task of the job still runs or waits: one that was killed leaves no other trace."""
    found = subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True)
    return bool(found.stdout.strip() or (found.returncode and "Invalid job id" not in found.stderr))


def _do_share(work: Work, job: Path, numbers: Sequence[int], error: Path, _: Any, rank: int, ranks: int) -> None:
    _be_lean()
    for number in numbers[rank::ranks]:
        try:
            _do(work, job, number)
        except TraitError as failure:
            write_text(error, str(failure))
            raise
