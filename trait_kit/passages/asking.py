"""Ask a teacher from many processes or machines: each shard of the groups keeps its answers in a file of its own.

Only answers come back. Notebook 03 then writes the passages from them as if it had asked itself, so the checks, their order
and the bill do not depend on who asked; what a shard could not get, or has to be asked again, the notebook asks for.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from trait_kit import tables
from trait_kit.engine import shards as engine
from trait_kit.engine.endpoint import ask_all
from trait_kit.engine.files import digest, write_json
from trait_kit.engine.ledger import Ledger
from trait_kit.engine.local_server import serving
from trait_kit.params import PassageParams
from trait_kit.passages.drafts import Problem, Rejection, problem_rows
from trait_kit.passages.grouping import Group
from trait_kit.passages.teachers import make_teacher


def ask_in_shards(
    groups: Sequence[Group], problems: pd.DataFrame, params: PassageParams, ledger: Ledger, folder: Path
) -> None:
    """Put the answers for `groups` in `ledger`, asked for at the place that `params.executor` and `workers` name.

    A shard that was finished is not asked again, whatever finished it. Each has its part of what `max_cost_usd` leaves.
    """
    if params.teacher == "offline" or params.variant == "pairs" or (params.executor == "local" and params.workers == 1):
        return
    size = params.groups_per_shard
    shards = [groups[first : first + size] for first in range(0, len(groups), size)]
    asked = params.model_dump(include={"teacher_model", "teacher_max_tokens", "teacher_temperature", "prompt"})
    names = [digest([asked, [group.id for group in shard]])[:16] for shard in shards]
    missing = [number for number, name in enumerate(names) if not (folder / f"{name}.done").exists()]
    left = max(params.max_cost_usd - ledger.paid_usd, 1e-9) / max(1, len(missing)) if params.max_cost_usd else 0.0
    tables.write(folder / "problems.parquet", problems, "problems")
    job = {
        "params": {**params.model_dump(), "max_cost_usd": left},
        "names": names,
        "shards": [[dataclasses.asdict(group) for group in shard] for shard in shards],
    }
    write_json(folder / "job.json", job)
    place = engine.Place(params.executor, params.workers, params.slurm_partition, params.slurm_time)
    engine.run(ask_shard, folder / "job.json", missing, place, _Progress(folder, names))
    for name in names:
        if (folder / f"{name}.jsonl").exists():
            ledger.absorb(folder / f"{name}.jsonl")


def ask_shard(job_file: Path, number: int) -> None:
    """Ask for one shard's groups and keep the answers: what a worker does."""
    job, folder = engine.read_job(job_file), job_file.parent
    name, params = job["names"][number], PassageParams(**job["params"])
    groups = [Group(**{**fields, "problem_ids": tuple(fields["problem_ids"])}) for fields in job["shards"][number]]
    by_id = _problems(folder / "problems.parquet")
    ledger = Ledger.of(params, folder / f"{name}.jsonl")
    with serving(params, folder / name) as served:
        teacher = make_teacher(served)
        answers = ask_all(
            len(groups),
            lambda place: teacher.write(groups[place], [by_id[i] for i in groups[place].problem_ids], ledger),
            fault_of=lambda answer: answer.reason if isinstance(answer, Rejection) else "",
            give_up=lambda reason: Rejection(reason, teacher.name, ""),
            concurrency=teacher.concurrency,
        )
        for _ in answers:
            pass
    write_json(folder / f"{name}.done", ledger.bill())


@functools.lru_cache(maxsize=1)
def _problems(path: Path) -> dict[str, Problem]:
    return problem_rows(tables.read(path, "problems").to_pandas())


class _Progress:
    """What `engine.run` wants to know: which shards are done."""

    noun = "Asking the teacher"

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.done = [folder / f"{name}.done" for name in names]
        self.printed = time.monotonic()

    @property
    def complete(self) -> bool:
        return all(path.exists() for path in self.done)

    def begin(self, missing: Sequence[int]) -> None:
        """Nothing has to be counted before."""

    def look(self) -> None:
        if time.monotonic() - self.printed >= 10:
            self.printed = time.monotonic()
            print(f"{self.noun}: {sum(path.exists() for path in self.done):,} of {len(self.done):,} shards", flush=True)
