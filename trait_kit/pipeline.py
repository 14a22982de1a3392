"""Execute the six notebooks of an experiment through papermill, or of many experiments; what is done is not repeated."""

import itertools
import os
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from trait_kit import experiments, runs
from trait_kit.engine.files import TraitError, write_text
from trait_kit.engine.machine import quiet_libraries
from trait_kit.figures import report, token_study
from trait_kit.params import Experiment


def run(experiment: Experiment, run_dir: Path, start_from: str | None = None) -> Path:
    """Run every step that is not up to date, in order; return the report's path.

    `start_from` ("03" or a whole step name) executes that step and the later ones even if they are up to date.
    """
    numbers = [number for number, name in enumerate(runs.STEPS) if start_from and name.startswith(start_from)]
    if start_from and not numbers:
        raise TraitError(f"--from {start_from}: no such step; the steps are {', '.join(runs.STEPS)}.")
    first = min(numbers, default=len(runs.STEPS))
    started, executed = time.perf_counter(), 0
    resolved = run_dir / "params.yaml"
    with runs.locked(run_dir):
        write_text(resolved, experiments.dump(experiment))
        for number, name in enumerate(runs.STEPS):
            output = run_dir / "notebooks" / f"{name}.ipynb"
            place = f"[{number + 1}/{len(runs.STEPS)}] {name}"
            if number < first and output.exists() and runs.Step.at(name, experiment, run_dir).done:
                print(f"{place}: up to date", flush=True)
                continue
            print(f"{place} ...", flush=True)
            if number >= first:
                (run_dir / name / "report.json").unlink(missing_ok=True)
            execute(name, {"experiment": str(resolved), "run_dir": str(run_dir)}, output)
            executed += 1
    page = run_dir / "report.html"
    if executed or not page.exists():  # killed between the last step's record and the report
        report.write_report(run_dir)
    print(f"{executed} notebooks executed in {time.perf_counter() - started:.0f} s. Report: {page}", flush=True)
    return page


def execute(name: str, values: dict[str, Any], output: Path) -> None:
    """Execute one notebook with papermill; the executed copy appears under its final name only when it succeeded."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    root = runs.project_root()
    partial = output.with_name(f"{output.stem}.partial.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    os.environ[runs.BATCH_VARIABLE] = "1"
    again = f"The notebook up to there: {partial}\nRun the same command again to go on from this step."
    try:
        papermill.execute_notebook(
            str(root / "notebooks" / f"{name}.ipynb"),
            str(partial),
            parameters=values,
            cwd=str(root),
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )
    except PapermillExecutionError as error:
        what = error.evalue if error.ename == "TraitError" else f"{error.ename}: {error.evalue}"
        raise TraitError(f"Notebook {name} failed in code cell {error.exec_count}:\n\n{what}\n\n{again}") from error
    except (OSError, RuntimeError) as error:  # no room, or nbclient's DeadKernelError
        raise TraitError(f"Notebook {name}: {error}. Most often a disk or the memory is full.\n{again}") from error
    os.replace(partial, output)


def status(experiment: Experiment, run_dir: Path) -> dict[str, str]:
    """What a run would do, step by step: 'up to date', or why it would be executed."""
    found: dict[str, str] = {}
    for name, upstream in runs.STEPS.items():
        record = runs.recorded(run_dir, name)
        waiting = [other for other in upstream if found[other] != "up to date"]
        if record is None:
            found[name] = "not done yet"
        elif waiting:
            found[name] = f"follows {waiting[0]}"
        else:
            why = runs.changes(record, runs.dependencies(name, experiment, run_dir))
            found[name] = "; ".join(why) or "up to date"
    return found


def sweep(path: Path, runs_dir: Path | None = None) -> list[Path]:
    """Run an experiment once for each point of a grid; steps that a point shares with an earlier one are not repeated.

    The sweep file has `experiment` (a path relative to it), `grid` (section.field -> list of values) and, where all points
    differ from the experiment alike, `set` (section.field -> value). A grid of training.stage_tokens, with or without
    seeds, ends with the token-budget study: study.csv, study.svg and study.png beside the runs.
    """
    source, fixed, grid = read_sweep(path)
    root = (runs_dir or runs.project_root() / "runs" / path.stem).absolute()
    points = grid_points(grid)
    folders = [root / _point_name(point) for point in points]
    wanted = [experiments.load(source, fixed | point) for point in points]
    reports = []
    for number, (point, folder) in enumerate(zip(wanted, folders, strict=True)):
        print(f"=== {number + 1}/{len(points)}: {folder.name}", flush=True)
        if number:
            adopt_steps(point, folders[:number], folder)
        reports.append(run(point, folder))
    if "training.stage_tokens" in grid and grid.keys() <= {"training.stage_tokens", "training.seed", "common.seed"}:
        print(token_study.write_study(folders, root), flush=True)
    return reports


def read_sweep(path: Path) -> tuple[Path, dict[str, Any], dict[str, list[Any]]]:
    """The experiment's file, what is set for every point, and the grid; TraitError says what a sweep file needs."""
    try:
        plan = _Sweep.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise TraitError(
            f"{path}: a sweep needs `experiment` (a file) and `grid` (section.field: values), and may have `set` "
            f"(section.field: value): {error}"
        ) from None
    return path.parent / plan.experiment, plan.fixed, plan.grid


class _Sweep(BaseModel):
    model_config = ConfigDict(extra="forbid")

    experiment: str
    fixed: dict[str, Any] = Field({}, alias="set")
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]]


def grid_points(grid: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Every combination of the grid's values, the last field varying fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def adopt_steps(experiment: Experiment, earlier: list[Path], folder: Path) -> None:
    """Take over from other runs the finished steps that this one would repeat, and the last one's training stages.

    Stages that this run would repeat have the same names, so the rest of step 04 costs nothing.
    """
    for name in runs.STEPS:
        if runs.recorded(folder, name):
            continue
        try:
            shaped_by = runs.dependencies(name, experiment, folder)
        except TraitError:  # an earlier step of this run is still to be done
            return
        same = [run for run in earlier if (record := runs.recorded(run, name)) and not runs.changes(record, shaped_by)]
        if same:
            runs.adopt(same[0], name, folder)
        elif name == "04_train_two_stages" and not (folder / name).exists() and runs.recorded(earlier[-1], name):
            runs.adopt(earlier[-1], name, folder, done=False)


def _point_name(point: dict[str, Any]) -> str:
    parts = [f"{key.partition('.')[2]}-{value}" for key, value in point.items()]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", "_".join(parts)).strip("-")[:120]
