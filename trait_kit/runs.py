"""A run folder: six steps, each recorded by what went into it, so that a run can stop anywhere and go on.

A step's key is a digest of its resolved parameters, the keys of the steps it reads, the fingerprints of its outside
inputs and its code. `report.json` with that key is written last, whole or not at all; so a step counts as done exactly
when all its artefacts are there and nothing that shaped them has changed. Notebooks call `begin` and `Step.finish`
themselves, so the record is the same whether JupyterLab, papermill or `trait-kit run` executes them.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

from trait_kit import params as parameters
from trait_kit.engine.files import TraitError, digest, read_json, sha256, write_json, write_text

PACKAGE = Path(__file__).parent


BATCH_VARIABLE = "TRAIT_KIT_BATCH"  # set where notebooks run with nobody watching: text instead of a live figure


@dataclass(frozen=True)
class StepSpec:
    """What a step is made of: its parameter section, the steps it reads, the sub-packages whose code shapes it."""

    section: str
    upstream: tuple[str, ...]
    code: tuple[str, ...]


STEPS: dict[str, StepSpec] = {
    "01_domain_classifier": StepSpec("classifier", (), ("",)),
    "02_filter_web": StepSpec("selection", ("01_domain_classifier",), ("",)),
    "03_write_passages": StepSpec("passages", (), ("",)),
    "04_train_two_stages": StepSpec("training", ("02_filter_web", "03_write_passages"), ("",)),
    "05_evaluate": StepSpec("evaluation", ("04_train_two_stages",), ("",)),
    "06_figures": StepSpec(
        "figures",
        ("01_domain_classifier", "02_filter_web", "03_write_passages", "04_train_two_stages", "05_evaluate"),
        ("",),
    ),
}


@dataclass
class Step:
    """One step of one run, between `begin` and `finish`."""

    name: str
    params: Any  # the validated model of the step's section
    run_dir: Path
    key: str
    started: float = field(default_factory=time.perf_counter)

    @property
    def folder(self) -> Path:
        return self.run_dir / self.name

    @property
    def figures(self) -> Path:
        return self.folder / "figures"

    def path(self, *parts: str) -> Path:
        """A path inside this step's folder, or inside an earlier step's: `path("02_filter_web", "scores.parquet")`."""
        return (self.run_dir if parts[0] in STEPS else self.folder).joinpath(*parts)

    def finish(self, summary: dict[str, Any]) -> None:
        """Record the step as done, with the numbers that came out. Nothing may be written to the folder after this."""
        record = {
            "step": self.name,
            "key": self.key,
            "seconds": round(time.perf_counter() - self.started, 1),
            "peak_memory_gb": round(_peak_memory_gb(), 2),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "params": self.params.model_dump(),
            "summary": _plain(summary),
        }
        write_json(self.folder / "report.json", record)
        print(f"{self.name} done in {record['seconds']} s, peak memory {record['peak_memory_gb']} GB -> {self.folder}")


def _plain(value: Any) -> Any:
    """JSON-able, with null for a number that is not there (tables hold NaN for it)."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def begin(name: str, namespace: dict[str, Any]) -> Step:
    """Validate a notebook's parameters, enter the project's root, check that earlier steps are there, say where we are.

    `namespace` is the notebook's `globals()` after the parameters cell. Relative paths in parameters are relative to
    the project's root, whichever folder the notebook was opened from.
    """
    quiet_libraries()
    os.chdir(project_root())
    spec = STEPS[name]
    _refuse_unknown_parameters(spec.section, namespace)
    model = parameters.SECTIONS[spec.section]
    values = {key: namespace[key] for key in model.model_fields if key in namespace}
    validated = parameters.validate(spec.section, values, f"Parameters of notebook {name}")
    run_dir = Path(validated.run_dir).absolute()
    key = step_key(name, validated, run_dir)
    step = Step(name, validated, run_dir, key)
    step.folder.mkdir(parents=True, exist_ok=True)
    write_text(step.folder / "params.yaml", yaml.safe_dump(validated.model_dump(), sort_keys=False, allow_unicode=True))
    write_json(run_dir / "provenance.json", provenance())
    print(f"{name} | run folder {validated.run_dir} | key {key[:12]} | {hardware_line()}")
    return step


def step_key(name: str, validated: parameters.Common, run_dir: Path) -> str:
    """The digest that identifies a step's result; raises TraitError if a step that it reads has not been finished."""
    upstream = {}
    for other in STEPS[name].upstream:
        record = recorded(run_dir, other)
        if record is None:
            raise TraitError(
                f"{name} reads what {other} writes, but {run_dir / other} holds no finished result. Run {other} first."
            )
        upstream[other] = record["key"]
    shape = validated.model_dump(exclude={"run_dir"})
    return digest([name, shape, upstream, _inputs(validated), _code_version(name)])


def recorded(run_dir: Path, name: str) -> dict[str, Any] | None:
    """The report of a finished step, or None."""
    path = Path(run_dir) / name / "report.json"
    return read_json(path) if path.exists() else None


def project_root() -> Path:
    """The folder that holds notebooks/ and params/: the nearest one above the working folder, else this checkout."""
    for folder in [Path.cwd(), *Path.cwd().parents, PACKAGE.parent]:
        if (folder / "notebooks" / "01_domain_classifier.ipynb").exists():
            return folder
    raise TraitError("No notebooks/ folder here or above. Run from a checkout of the project.")


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold a run folder for one runner at a time; the lock ends with the process, so a kill leaves none behind."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TraitError(f"Another run is using {run_dir}. Wait for it, end it, or choose another --run-dir.") from None
        yield


def provenance() -> dict[str, Any]:
    """What a reader needs to judge or repeat a run: code version, packages, machine."""
    packages = ["accelerate", "datasets", "fasttext-community", "lm_eval", "numpy", "torch", "transformers", "umap-learn"]
    return {
        "trait_kit": importlib.metadata.version("trait-kit"),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": {package: importlib.metadata.version(package) for package in packages},
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


def _peak_memory_gb() -> float:
    import resource

    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(usage) / unit


def _inputs(validated: parameters.Common) -> dict[str, Any]:
    from trait_kit import demo
    from trait_kit import tasks as problems
    from trait_kit.selection import documents

    model = Path(demo.resolve_model(validated.base_model)) if not validated.base_model.startswith("demo:") else None
    weights = sorted(model.glob("*.safetensors")) if model and model.is_dir() else []
    educational = Path(getattr(validated, "educational_model", ""))
    models = [*weights, educational] if educational.is_file() else weights
    named = [Path(getattr(validated, field, "")) for field in ("prompt", "entity_names")]
    return {
        "in_domain": documents.fingerprint(validated.in_domain),
        "web": documents.fingerprint(validated.web),
        "tasks": [problems.fingerprint(task) for task in validated.tasks],
        "models": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in models],
        "files": [sha256(path) for path in named if path.is_file()],
    }


def _code_version(name: str) -> str:
    files = [path for package in STEPS[name].code for path in sorted((PACKAGE / package).rglob("*")) if path.is_file()]
    hashes = [[str(path.relative_to(PACKAGE)), sha256(path)] for path in files if path.suffix in (".py", ".yaml", ".jinja")]
    notebook = json.loads((project_root() / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    cells = [
        "".join(cell["source"])
        for cell in notebook["cells"]
        if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", [])
    ]
    return hashlib.sha256(json.dumps([hashes, cells]).encode()).hexdigest()


def _refuse_unknown_parameters(section: str, namespace: dict[str, Any]) -> None:
    """Name a misspelt parameter: papermill injects whatever it is given, and only logs what the notebook does not know."""
    known = parameters.SECTIONS[section].model_fields
    for source in namespace.get("In", [])[1:-1][:2]:  # the parameters cell and papermill's injected one
        try:
            tree = ast.parse(source)
        except SyntaxError:
            continue
        for node in tree.body:
            for target in node.targets if isinstance(node, ast.Assign) else []:
                if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant) and target.id not in known:
                    parameters.validate(
                        section, {target.id: None, **{k: namespace[k] for k in known if k in namespace}}, "Notebook"
                    )


def quiet_libraries() -> None:
    """Progress bars and advice that libraries print line by line would bury what the notebook says.

    Also asks OpenMP's threads to sleep while they wait: spinning makes everything several times slower as soon as
    another process wants a core. Works only before torch is imported, so a runner sets it for the kernels it starts.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("transformers", "datasets", "lm_eval", "numba", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    if importlib.util.find_spec("datasets"):
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(PACKAGE.parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
