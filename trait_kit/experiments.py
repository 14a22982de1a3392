"""An experiment's file: read, overridden, checked against `params` before any time is spent, and written out again."""

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from trait_kit.engine.files import TraitError
from trait_kit.params import SECTIONS, Common, Experiment

# A knob of an earlier version -> what to do without it
REMOVED = yaml.safe_load(Path(__file__).with_name("removed_knobs.yaml").read_text(encoding="utf-8"))


def run_folder(path: Path | str, run_dir: Path | str | None = None) -> Path:
    """Where an experiment runs: `run_dir`, or runs/<name of its file>; a run's own params.yaml belongs to that run."""
    path = Path(path).absolute()
    own = path.parent if path.name == "params.yaml" else Path("runs", path.stem)
    return Path(run_dir or own).absolute()


def load(path: Path | str, overrides: dict[str, Any] | None = None) -> Experiment:
    """Read and validate an experiment file; `overrides` maps 'section.field' to a value."""
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise TraitError(f"{path} is no YAML file ({error}). The shipped experiments are in params/.") from None
    if not isinstance(raw, dict) or not all(isinstance(section, dict) for section in raw.values()):
        raise TraitError(f"{path}: expected the sections common, {', '.join(SECTIONS)}, each with fields and values.")
    for key, value in (overrides or {}).items():
        section, _, field = key.partition(".")
        raw[section] = {**raw.get(section, {}), field: value}
    return parse(raw, origin=str(path))


def read_overrides(texts: list[str] | None) -> dict[str, Any]:
    """The values of `--set section.field=value`; a value is YAML."""
    found = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not (equals and key.strip().partition(".")[2]):
            raise TraitError(f"--set {text}: write it as section.field=value, for instance training.learning_rate=1e-5.")
        found[key.strip()] = yaml.safe_load(value)
    return found


def parse(raw: dict[str, dict[str, Any]], origin: str) -> Experiment:
    """Validate an experiment (also turns the string '1e-4', which YAML 1.1 leaves a string, into 1e-4).

    Errors name the file, the section, the field and a near name.
    """
    common = raw.get("common", {})
    sections = {name: {**common, **raw.get(name, {})} for name in (*SECTIONS, *raw) if name != "common"}
    sections["training"].setdefault("items_seed", common.get("seed", 0))
    try:
        return Experiment(**sections)
    except ValidationError as error:
        told = dict.fromkeys(_message(item, common) for item in error.errors())
        raise TraitError(f"{origin}: {'; '.join(told)}") from None


def dump(experiment: Experiment) -> str:
    """The whole experiment as its file would say it, every default written out."""
    sections = experiment.model_dump()
    common = {field: sections["figures"][field] for field in Common.model_fields}
    own = {name: {k: v for k, v in values.items() if k not in common or v != common[k]} for name, values in sections.items()}
    return yaml.safe_dump({"common": common, **own}, sort_keys=False, allow_unicode=True)


def _message(item: Any, common: dict[str, Any]) -> str:
    """One of pydantic's findings in the words of the file."""
    section, *path = item["loc"] or ("",)
    field = ".".join(map(str, path))
    if item["type"] == "missing":
        return f"the field '{field}' is missing; add it to section {section} or to common"
    if item["type"] != "extra_forbidden":
        got = "" if item["type"] == "value_error" else f" (got {item['input']!r})"
        return ": ".join(filter(None, (section, field, item["msg"].removeprefix("Value error, ") + got)))
    if not field:
        return f"unknown section '{section}'{_near(section, SECTIONS)}"
    section, known = ("common", Common) if field in common else (section, SECTIONS[section])
    return f"section {section}: unknown field '{field}'{_near(field, known.model_fields)}"


def _near(name: str, known: Collection[str]) -> str:
    if name in REMOVED:
        return f"; it is gone, so take the line out: {REMOVED[name]}"
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(sorted(known))}."
