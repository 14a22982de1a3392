"""A run folder: six steps, each recorded by what it depends on, so that a run can stop anywhere and go on.

A step depends on the parameters that it uses, its inputs by content, the steps that it reads, and its code: the import
closure of the functions that its notebook hands the step to. The record (`report.json`) is written last, so a step is done
exactly when its artefacts are there and nothing that shaped them has changed. A finished step is loaded, not made again;
where a parameter was edited by hand, the notebook works in a scratch run beside, with the earlier steps as hard links.
"""

import ast
import json
import os
import shutil
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trait_kit import params as parameters
from trait_kit.engine import machine
from trait_kit.engine.files import TraitError, atomic_path, content, digest, read_json, write_json, write_text

UP_TO_DATE, NOT_DONE = "up to date", "not done yet"
BATCH_VARIABLE = "TRAIT_KIT_BATCH"  # set where nobody watches: no live figures, and steps are redone in place
_STARTED = "started.json"  # since when a result is made; gone once it is finished
_INJECTED = "# Parameters"  # how papermill's cell begins
_WATCHING = ("trait_kit.runs", "trait_kit.params", "trait_kit.pipeline")

STEPS: dict[str, tuple[str, ...]] = {  # step -> the steps whose artefacts it reads
    "01_domain_classifier": (),
    "02_filter_web": ("01_domain_classifier",),
    "03_write_passages": (),
    "04_train_two_stages": ("02_filter_web", "03_write_passages"),
    "05_evaluate": ("04_train_two_stages",),
}
STEPS["06_figures"] = tuple(STEPS)
SECTION = dict(zip(STEPS, parameters.SECTIONS, strict=True))  # step -> its section of the experiment


@dataclass
class Step:
    """One step of one run, between `begin` and `finish`."""

    name: str
    experiment: parameters.Experiment
    run_dir: Path
    began: float = field(default_factory=time.time)  # less the seconds of executions that were killed before

    def __post_init__(self) -> None:
        self.run_dir = Path(self.run_dir).absolute()
        self.shaped_by = dependencies(self.name, self.experiment, self.run_dir)
        self.key = digest(self.shaped_by)
        self.params: Any = getattr(self.experiment, SECTION[self.name])
        self.folder = self.run_dir / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.done = (recorded(self.run_dir, self.name) or {}).get(
            "key"
        ) == self.key  # then nothing may be written

    def path(self, *parts: str) -> Path:
        """A path in this step's folder, or in an earlier step's: `path("02_filter_web", "scores")`."""
        return (self.run_dir if parts[0] in STEPS else self.folder).joinpath(*parts)

    def summary(self, name: str) -> dict[str, Any]:
        return finished(self.run_dir, name)["summary"]

    def figure(self, figure: Any, name: str) -> Any:
        """Keep a figure (SVG and PNG), and return it to be shown."""
        if figure is not None and not self.done:
            figure.save(self.folder / "figures", name)
        return figure

    def finish(self, **summary: Any) -> None:
        """Record the step as done, with the numbers that came out; nothing may be written to its folder after this."""
        if self.done:
            print(f"{self.name}: finished before, and left as it is")
            return
        pages = (self.run_dir / name for name in ("report.html", f"notebooks/{self.name}.ipynb"))
        for old in (self.folder / _STARTED, *pages):  # a kill leaves no old page
            old.unlink(missing_ok=True)
        record = {
            "step": self.name,
            "key": self.key,
            "seconds": round(time.time() - self.began, 1),  # of all executions that did work
            "peak_memory_gb": round(machine.peak_memory_gb(), 2),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "params": self.params.model_dump(),
            "shaped_by": self.shaped_by,
            # tables hold NaN for what is not there
            "summary": json.loads(
                json.dumps(summary, default=lambda number: number.item()), parse_constant=lambda _nan: None
            ),
        }
        write_json(self.folder / "report.json", record)
        print(f"{self.name} done in {record['seconds']} s, peak memory {record['peak_memory_gb']} GB")


def begin(name: str, namespace: dict[str, Any]) -> Step:
    """Validate a notebook's parameters, enter the project's root, check that earlier steps are there, say where we are.

    `namespace`: the notebook's `globals()`. Relative paths are relative to the project's root, wherever it was opened.
    """
    machine.quiet_libraries()
    os.chdir(project_root())
    given = _parameters(namespace)
    path, folder = given.pop("experiment"), given.pop("run_dir", None)
    overrides = {f"{SECTION[name]}.{key}": value for key, value in given.items() if value is not None}
    experiment = parameters.load(path, overrides)
    step = Step(name, experiment, _for_looking(name, experiment, parameters.run_folder(path, folder)))
    print(
        f"{name} | run folder {os.path.relpath(step.run_dir)} | key {step.key[:12]} | {machine.hardware_line()}"
    )
    if step.done:
        print("This step is finished, and nothing that shaped it has changed: its results are shown.")
        return step
    step.began = time.time() - _seconds_before(step)
    write_json(step.folder / _STARTED, {"key": step.key, "began": step.began})
    write_text(step.run_dir / "params.yaml", parameters.dump(experiment))
    write_json(step.run_dir / "provenance.json", machine.provenance())
    return step


def dependencies(name: str, experiment: parameters.Experiment, run_dir: Path) -> dict[str, Any]:
    """All that shapes a step's result; TraitError if a step that it reads is not finished."""
    upstream = {other: finished(run_dir, other)["key"] for other in STEPS[name]}
    own, shape = SECTION[name], {}
    for part in (own, *parameters.SECTIONS):  # 01 makes what the methods of 02 need
        shape = parameters.shape(getattr(experiment, part), own) | shape
    inputs = _inputs(parameters.SECTIONS[own], shape)
    return {"step": name, "params": shape, "inputs": inputs, "upstream": upstream, "code": _code(name)}


def recorded(run_dir: Path, name: str) -> dict[str, Any] | None:
    path = Path(run_dir) / name / "report.json"
    return read_json(path) if path.exists() else None


def finished(run_dir: Path, name: str) -> dict[str, Any]:
    if record := recorded(run_dir, name):
        return record
    raise TraitError(
        f"{run_dir / name} holds no finished result, or {run_dir} is not a run folder. Run {name} first."
    )


def status(run_dir: Path, experiment: parameters.Experiment | None = None) -> dict[str, str]:
    """For each step 'up to date', 'not done yet', or why it would be done again.

    Without an experiment only whether each record has read what is there now.
    """
    found: dict[str, str] = {}
    for name, upstream in STEPS.items():
        record = recorded(run_dir, name)
        waiting = [other for other in upstream if found[other] != UP_TO_DATE]
        if record is None or waiting:
            found[name] = f"follows {waiting[0]}" if record else NOT_DONE
            continue
        read = {other: finished(run_dir, other)["key"] for other in upstream}
        now = dependencies(name, experiment, run_dir) if experiment else {**record["shaped_by"], "upstream": read}
        found[name] = "; ".join(changes(record, now)) or UP_TO_DATE
    return found


def stale(run_dir: Path) -> dict[str, str]:
    """Finished steps that no longer fit what they read (step -> why)."""
    return {name: said for name, said in status(run_dir).items() if said not in (UP_TO_DATE, NOT_DONE)}


def changes(record: dict[str, Any], shaped_by: dict[str, Any]) -> list[str]:
    """Why a finished step would be done again, in words; empty where it would not."""
    before = record["shaped_by"]
    found = ["the code has changed"] if before["code"] != shaped_by["code"] else []
    for part in ("params", "inputs", "upstream"):
        for key in sorted({*before[part], *shaped_by[part]}):
            old, new = before[part].get(key), shaped_by[part].get(key)
            if old != new:
                found.append(f"{key}: {old} -> {new}" if part == "params" else f"{key} has changed")
    return found


def adopt(run_dir: Path, name: str, into: Path, *, done: bool = True) -> None:
    """Give another run a step of this one, or (not `done`) what it may go on from: the same without its record.

    Hard links, but of files that are changed in place: databases and the like.
    """

    def link(source: str, target: str) -> None:
        in_place = source.endswith((".sqlite", ".log", "-wal", "-shm", ".lock", ".json"))
        (shutil.copy2 if in_place else os.link)(source, target)

    with atomic_path(into / name) as temporary:
        shutil.copytree(run_dir / name, temporary, copy_function=link)
        if not done:
            (temporary / "report.json").unlink()
    notebook = Path("notebooks", f"{name}.ipynb")
    if done and (run_dir / notebook).exists():
        (into / "notebooks").mkdir(exist_ok=True)
        shutil.copy2(run_dir / notebook, into / notebook)


def project_root() -> Path:
    """The folder that holds notebooks/ and params/: the nearest one above, else this checkout."""
    for folder in [Path.cwd(), *Path.cwd().parents, Path(__file__).parents[1]]:
        if (folder / "notebooks" / "01_domain_classifier.ipynb").exists():
            return folder
    raise TraitError("No notebooks/ folder here or above. Run from a checkout of the project.")


def _for_looking(name: str, experiment: parameters.Experiment, run_dir: Path) -> Path:
    """The run folder itself, or a scratch run where work by hand would replace a finished step."""
    record = recorded(run_dir, name)
    redone = os.environ.get(BATCH_VARIABLE) or record is None or run_dir.suffix == ".scratch"
    why = [] if redone else changes(record, dependencies(name, experiment, run_dir))
    if not why:
        return run_dir
    scratch = run_dir.with_name(f"{run_dir.name}.scratch")
    for other in (other for other in STEPS if other < name):
        there, here = recorded(run_dir, other), recorded(scratch, other)
        if there and (here is None or here["key"] != there["key"]):
            adopt(run_dir, other, scratch)
    if not (scratch / name).exists():
        adopt(run_dir, name, scratch, done=False)
    print(f"{os.path.relpath(run_dir)} stays as it is: {why[0]}. Working in {os.path.relpath(scratch)}.")
    return scratch


def _parameters(namespace: dict[str, Any]) -> dict[str, Any]:
    """What the last parameters cell that ran assigns, and papermill's injected cell after it."""
    ran = namespace["In"][:-1]
    begins = [
        number
        for number, source in enumerate(ran)
        if "experiment = " in source and not source.startswith(_INJECTED)
    ]
    if not begins:
        raise TraitError("Run the first cell, which says `experiment = ...`, before this one.")
    cells = [ran[begins[-1]], *(source for source in ran[begins[-1] + 1 :] if source.startswith(_INJECTED))]
    assigned = [node for source in cells for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return {target.id: ast.literal_eval(node.value) for node in assigned for target in node.targets}


def _inputs(section: type[parameters.Common], shape: dict[str, Any]) -> dict[str, Any]:
    from trait_kit import models, tasks
    from trait_kit.selection import documents

    readers = {
        "documents": documents.fingerprint,
        "tasks": lambda names: [tasks.fingerprint(name) for name in names],
        "model": models.model_digest,
        "file": lambda path: content(path) if Path(path).is_file() else path,
        "files": lambda paths: [readers["file"](path) for path in paths],
    }
    kinds = {name: info.json_schema_extra["reads"] for name, info in section.model_fields.items()}
    return {name: readers[kinds[name]](value) for name, value in shape.items() if kinds.get(name) and value}


def _code(name: str) -> str:
    """Digest of what its notebook hands the step to, and of the cells that do so; what only shows counts in 06 alone."""
    cells = read_json(project_root() / "notebooks" / f"{name}.ipynb")["cells"]
    trees = [ast.parse("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    working = [tree for tree in trees if "step" in _names(tree)]
    used = set().union(*map(_names, working))
    shows = ("trait_kit.figures", "trait_kit.explore") * (name != "06_figures")
    called = {
        f"{node.module}.{alias.name}"
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.module.startswith(shows)
        for alias in node.names
        if (alias.asname or alias.name) in used
    }
    return digest([machine.code_digest(*sorted(called), without=_WATCHING), [ast.dump(tree) for tree in working]])


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _seconds_before(step: Step) -> float:
    """How long executions that were killed worked on this very result: each until it wrote its last file."""
    started = step.folder / _STARTED
    noted = read_json(started) if started.exists() else {}
    if noted.get("key") != step.key:
        return 0.0
    return max(path.stat().st_mtime for path in step.folder.rglob("*") if path.is_file()) - noted["began"]
