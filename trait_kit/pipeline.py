"""Execute the six notebooks of an experiment through papermill, skipping what is already done."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from trait_kit import params as parameters
from trait_kit import runs
from trait_kit.engine.files import TraitError, atomic_path, write_text
from trait_kit.figures.report import write_report


def run(experiment: parameters.Experiment, start_from: str | None = None) -> Path:
    """Run every step that is not up to date, in order; return the report's path.

    `start_from` ("03" or a whole step name) executes that step and the later ones even if they are up to date.
    """
    run_dir = Path(experiment.figures.run_dir).absolute()
    first = _step_index(start_from) if start_from else len(runs.STEPS)
    started, executed = time.perf_counter(), 0
    with runs.locked(run_dir):
        write_text(run_dir / "params.yaml", yaml.safe_dump(experiment.model_dump(), sort_keys=False, allow_unicode=True))
        for number, (name, spec) in enumerate(runs.STEPS.items()):
            section = getattr(experiment, spec.section)
            record = runs.recorded(run_dir, name)
            output = run_dir / "notebooks" / f"{name}.ipynb"
            wanted = number >= first or record is None or not output.exists()
            if not wanted and record["key"] == runs.step_key(name, section, run_dir):
                print(f"[{number + 1}/{len(runs.STEPS)}] {name}: up to date", flush=True)
                continue
            print(f"[{number + 1}/{len(runs.STEPS)}] {name} ...", flush=True)
            execute(name, section.model_dump(), output)
            executed += 1
    seconds = time.perf_counter() - started
    report = run_dir / "report.html"
    if not report.exists():  # killed between the last step's record and the report
        write_report(run_dir)
    print(f"{executed} of {len(runs.STEPS)} notebooks executed in {seconds:.0f} s. Report: {report}", flush=True)
    return report


def execute(name: str, values: dict[str, Any], output: Path) -> None:
    """Execute one notebook with papermill; the executed copy appears under its final name only when it succeeded."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    root = runs.project_root()
    partial = output.with_name(f"{output.stem}.partial.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    runs.quiet_libraries()
    os.environ[runs.BATCH_VARIABLE] = "1"
    try:
        papermill.execute_notebook(
            str(root / "notebooks" / f"{name}.ipynb"),
            str(partial),
            parameters=values,
            cwd=str(root),
            kernel_name="python3",
            progress_bar=False,
            stdout_file=_Indented(),
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )
    except PapermillExecutionError as error:
        what = error.evalue if error.ename == "TraitError" else f"{error.ename}: {error.evalue}"
        raise TraitError(
            f"Notebook {name} failed in code cell {error.exec_count}:\n\n{_excerpt(error.source)}\n\n{what}\n\n"
            f"The notebook up to there: {partial}\nRun the same command again to go on from this step."
        ) from error
    except OSError as error:
        raise TraitError(
            f"Notebook {name} could not be written to {partial}: {error}. Free some room and run again."
        ) from error
    except RuntimeError as error:  # nbclient's DeadKernelError
        raise TraitError(
            f"Notebook {name}: its kernel died ({error}), most often for lack of memory.\n"
            f"The notebook up to there: {partial}\nRun the same command again to go on from this step."
        ) from error
    os.replace(partial, output)


def sweep(path: Path, runs_dir: Path | None = None) -> list[Path]:
    """Run an experiment once for each point of a grid; steps that a point shares with an earlier one are not repeated.

    The sweep file has `experiment` (a path relative to it), `grid` (section.field -> list of values) and, where all points
    differ from the experiment alike, `set` (section.field -> value). A grid of training.stage_tokens, with or without
    seeds, ends with the token-budget study: study.csv, study.svg and study.png beside the runs.
    """
    experiment, fixed, grid = read_sweep(path)
    root = runs_dir or runs.project_root() / "runs" / path.stem
    points = grid_points(grid)
    folders = [root / _point_name(point) for point in points]
    pairs = zip(points, folders, strict=True)
    experiments = [parameters.load(experiment, as_overrides(fixed | point), str(folder)) for point, folder in pairs]
    reports = []
    for number, (point, folder) in enumerate(zip(experiments, folders, strict=True)):
        print(f"=== {number + 1}/{len(points)}: {folder.name}", flush=True)
        for done in folders[:number]:
            adopt_steps(point, done, folder)
            adopt_stages(done, folder)
        reports.append(run(point))
    if "training.stage_tokens" in grid and grid.keys() <= {"training.stage_tokens", "common.seed"}:
        write_study(folders, root)
    return reports


def read_sweep(path: Path) -> tuple[Path, dict[str, Any], dict[str, list[Any]]]:
    """The experiment's file, what is set for every point, and the grid; TraitError says what a sweep file needs."""
    try:
        plan = yaml.safe_load(path.read_text(encoding="utf-8"))
        experiment, fixed, grid = path.parent / plan["experiment"], plan.get("set") or {}, plan["grid"]
        if unknown := plan.keys() - {"experiment", "set", "grid"}:
            raise TypeError(f"unknown key '{min(unknown, key=str)}'")
        if not isinstance(fixed, dict) or not all(isinstance(values, list) and values for values in grid.values()):
            raise TypeError("`set` maps fields to values, and `grid` maps fields to lists of values")
    except (OSError, yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError, KeyError) as error:
        raise TraitError(
            f"{path}: a sweep needs `experiment` (a file) and `grid` (section.field: values), and may have `set` "
            f"(section.field: value): {error}"
        ) from None
    if both := fixed.keys() & grid.keys():
        raise TraitError(f"{path}: {min(both)} is in `set` and in `grid`. Leave it in one of them.")
    return experiment, fixed, grid


def write_study(run_dirs: list[Path], folder: Path) -> pd.DataFrame:
    """The token-budget study of finished runs, as study.csv, study.svg and study.png in `folder`."""
    from trait_kit.figures import budget, style

    table = budget.study(run_dirs)
    with atomic_path(folder / "study.csv") as temporary:
        table.to_csv(temporary, index=False)
    figure = style.save(budget.plot(table), folder, "study")
    print(f"{budget.verdict(table)}. Table: {folder / 'study.csv'}; figure: {figure}", flush=True)
    return table


def grid_points(grid: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Every combination of the grid's values, the last field varying fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def as_overrides(point: dict[str, Any]) -> list[str]:
    return [f"{field}={json.dumps(value)}" for field, value in point.items()]


def adopt_steps(experiment: parameters.Experiment, done: Path, folder: Path) -> None:
    """Copy (as hard links) the finished steps of another run that this run would repeat exactly."""
    for name, spec in runs.STEPS.items():
        record = runs.recorded(done, name)
        if record is None or runs.recorded(folder, name) is not None:
            continue
        try:
            key = runs.step_key(name, getattr(experiment, spec.section), folder)
        except TraitError:  # an earlier step of this run is still to be done
            return
        if key == record["key"]:
            with atomic_path(folder / name) as temporary:
                shutil.copytree(done / name, temporary, copy_function=os.link)
            (folder / "notebooks").mkdir(exist_ok=True)
            shutil.copy2(done / "notebooks" / f"{name}.ipynb", folder / "notebooks" / f"{name}.ipynb")


def adopt_stages(done: Path, folder: Path) -> None:
    """Copy (as hard links) another run's finished training stages: those that this run would repeat have the same names."""
    if runs.recorded(folder, "04_train_two_stages") is not None:
        return
    stages = Path("04_train_two_stages", "models", "stages")
    for report in sorted((done / stages).glob("[!.]*/stage.json")):
        name = report.parent.name
        if not (folder / stages / name).exists():
            with atomic_path(folder / stages / name) as temporary:
                shutil.copytree(report.parent, temporary, copy_function=os.link)


def _point_name(point: dict[str, Any]) -> str:
    parts = [f"{key.partition('.')[2]}-{value}" for key, value in point.items()]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", "_".join(parts)).strip("-")[:120]


def _step_index(text: str) -> int:
    for number, name in enumerate(runs.STEPS):
        if name.startswith(text):
            return number
    raise TraitError(f"--from {text}: no such step; the steps are {', '.join(runs.STEPS)}.")


def _excerpt(source: str, lines: int = 12) -> str:
    return "\n".join(f"    {line}" for line in source.strip().splitlines()[:lines])


class _Indented(io.TextIOBase):
    """Where papermill sends what the notebook prints, so that a batch run can be watched."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            print(f"      {line}", flush=True)
        return len(text)
