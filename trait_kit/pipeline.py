"""Execute the six notebooks of experiments through papermill; what is done is not repeated."""

import contextlib
import itertools
import logging
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import psutil
import yaml
from pydantic import BaseModel, ConfigDict, Field

from trait_kit import params, runs
from trait_kit.engine import child
from trait_kit.engine.files import TraitError, digest, maker_of, read_yaml, write_text
from trait_kit.evaluation import across_runs, comparison
from trait_kit.figures import report, tables, token_study
from trait_kit.params import Experiment


def run(experiment: Experiment, run_dir: Path, start_from: str = "", dry_run: bool = False) -> Path | None:
    """Run steps that are not up to date, and all from `start_from` ("03") on, or say which; returns the report's path."""
    if start_from and not any(name.startswith(start_from) for name in runs.STEPS):
        raise TraitError(f"--from {start_from}: no such step; the steps are {', '.join(runs.STEPS)}.")
    again = [name for name in runs.STEPS if start_from and name >= start_from]
    if dry_run:
        states = runs.status(run_dir, experiment) | dict.fromkeys(again, runs.NOT_DONE)
        return print(*(f"{name:22} {state}" for name, state in states.items()), sep="\n")
    started, executed = time.perf_counter(), 0
    resolved, page = run_dir / "params.yaml", run_dir / "report.html"
    with locked(run_dir):
        write_text(resolved, params.dump(experiment))
        for name in again:
            (run_dir / name / "report.json").unlink(missing_ok=True)
        for number, name in enumerate(runs.STEPS, start=1):
            output = run_dir / "notebooks" / f"{name}.ipynb"
            place = f"[{number}/{len(runs.STEPS)}] {name}"
            if output.exists() and runs.Step(name, experiment, run_dir).done:
                print(f"{place}: {runs.UP_TO_DATE}", flush=True)
                continue
            print(f"{place} ...", flush=True)
            execute(name, {"experiment": str(resolved), "run_dir": str(run_dir)}, output)
            executed += 1
    if not page.exists():
        report.write_report(run_dir)
    took = time.perf_counter() - started
    print(f"{executed} notebooks executed in {took:.0f} s. Report: {os.path.relpath(page)}", flush=True)

    return page


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """One runner at a time in a run folder; the lock ends with the process."""
    try:
        with maker_of(run_dir / "run", wait=False):
            yield
    except BlockingIOError:
        raise TraitError(f"Another run is using {run_dir}. Wait, or give another --run-dir.") from None


def execute(name: str, values: dict[str, Any], output: Path) -> None:
    """Execute one notebook; the copy has its final name only when it succeeded."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    root = runs.project_root()
    partial = output.with_name(f"{output.stem}.partial.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it would print after Ctrl-C
    os.environ[runs.BATCH_VARIABLE] = "1"
    again = f"The notebook up to there: {partial}\nRun the same command again to go on."
    try:
        papermill.execute_notebook(
            str(root / "notebooks" / f"{name}.ipynb"),
            str(partial),
            parameters=values,
            cwd=str(root),
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # so would a kernel
        )
    except PapermillExecutionError as error:
        more = "" if error.ename == "TraitError" else f"\n\n{str(error)[-3_000:]}"
        where = f"Notebook {name} failed in code cell {error.exec_count}:\n{textwrap.indent(error.source.strip(), '    ')}"
        raise TraitError(f"{error.evalue}{more}\n\n{where}\n\n{again}") from error
    except (OSError, RuntimeError) as error:  # no room, or nbclient's DeadKernelError
        raise TraitError(
            f"Notebook {name}: {error}. Most often a disk or the memory is full.\n{again}"
        ) from error
    os.replace(partial, output)


def sweep(path: Path, runs_dir: Path | None = None, parallel: int = 1) -> list[Path]:
    """Run each point of a sweep's file; steps that points share are not repeated.

    The first point runs alone, then `parallel` at once, as far as the memory that it took allows. Ends with the arms
    compared, or where points differ in training.stage_tokens and seeds alone, with the token-budget study.
    """
    points = read_sweep(path)
    root = (runs_dir or runs.project_root() / "runs" / path.stem).absolute()
    folders = [root / _point_name(point) for point, _ in points]

    def run_point(number: int) -> None:
        folder, experiment = folders[number], points[number][1]
        # Python 3.11 parses in one thread
        with maker_of(root / "adopting"):
            adopt_steps(experiment, [other for other in folders if other != folder], folder)
        place = f"=== {number + 1}/{len(points)}: {folder.name}"
        print(f"{place} ...", flush=True)
        if number and parallel > 1:
            written = str(write_text(folder / "params.yaml", params.dump(experiment)))
            child.run([sys.executable, "-m", "trait_kit.cli", "run", written], folder.name, folder / "run.log")
        else:
            run(experiment, folder)
        page = report.write_report(*(one for one in folders if (one / "report.html").exists()))
        print(f"{place}: {runs.finished(folder, '05_evaluate')['summary']['headline']} {page}", flush=True)

    run_point(0)
    # a child, and its kernel
    peak = 1 + max(runs.finished(folders[0], name)["peak_memory_gb"] for name in runs.STEPS)
    room = min(parallel, int(psutil.virtual_memory().available / 2**30 / peak))
    rest = range(1, len(points))
    list(ThreadPoolExecutor(room).map(run_point, rest) if room > 1 else map(run_point, rest))
    varied = {key for point, _ in points for key in point}
    if "training.stage_tokens" in varied and varied <= {"training.stage_tokens", "training.seed", "common.seed"}:
        print(token_study.write_study(folders, root), flush=True)
    else:
        table, _ = compare(list(map(str, folders)), output=root / "comparison")
        print(table.written("txt"))
    return [folder / "report.html" for folder in folders]


def read_sweep(path: Path) -> list[tuple[dict[str, Any], Experiment]]:
    try:
        plan = _Sweep.model_validate(read_yaml(path))
        if not (plan.grid or plan.points):
            raise ValueError("it has neither grid nor points")
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise TraitError(
            f"{path}: a sweep needs `experiment` (a file) and `grid` (section.field: values) or `points` (a list of "
            f"section.field: value); `set` holds at all of them: {error}"
        ) from None
    combined = [dict(zip(plan.grid, values, strict=True)) for values in itertools.product(*plan.grid.values())]
    points = [listed | values for listed in plan.points or [{}] for values in combined]
    return [(point, params.load(path.parent / plan.experiment, plan.fixed | point)) for point in points]


class _Sweep(BaseModel):
    model_config = ConfigDict(extra="forbid")

    experiment: str  # relative to the sweep's file
    fixed: dict[str, Any] = Field({}, alias="set")  # at every point
    # every combination, the last field varying fastest
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    points: list[dict[str, Any]] = []  # each of these, at every combination of the grid


def compare(
    names: list[str], reference: str | None = None, output: Path | None = None, all_pairs: bool = False
) -> tuple:
    """Arms of finished runs tested over the items that they share: the table, and the tests behind it.

    `reference` None: the first run's. Into `output` both are written, with the items behind every number.
    """
    together = across_runs.gather(names)
    tests = comparison.compare_all(
        together.outcomes, None if all_pairs else reference or together.reference, together.main_metric
    )
    return tables.save_comparison(tests, together.outcomes, together.notes, output), tests


def adopt_steps(experiment: Experiment, others: list[Path], folder: Path) -> None:
    """Take over from other runs the finished steps that this one would repeat, else what it may go on from.

    Scores, answers of the teacher and stages of training have names by content, so what it would repeat is found.
    """
    for name in runs.STEPS:
        if runs.recorded(folder, name):
            continue
        try:
            shaped_by = runs.dependencies(name, experiment, folder)
        except TraitError:  # an earlier step of this run is still to be done
            return
        finished = {other: record for other in others if (record := runs.recorded(other, name))}
        same = [other for other, record in finished.items() if not runs.changes(record, shaped_by)]
        if same:
            runs.adopt(same[0], name, folder)
        elif finished and not (folder / name).exists():
            runs.adopt(list(finished)[-1], name, folder, done=False)


def _point_name(point: dict[str, Any]) -> str:
    name = "_".join(f"{key.partition('.')[2]}-{value}" for key, value in point.items())
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")
    return name if len(name) <= 100 else f"{name[:90]}-{digest(point)[:8]}"
