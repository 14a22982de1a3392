"""Downstream problems for passages and evaluation: one table, whatever they come from.

A task is a small YAML file (data/tasks/*.yaml, or the user's own): where the problems come from, how the source's
columns become question, answer and solution, and which of its splits are which. Splits never share a question: a
problem's split follows from its content, and rows of train that occur in validation or test are dropped and counted
(common files leak: MATH's train and test share 10 problems). The first k problems of a split do not depend on how many
are asked for, so a larger run contains the smaller one.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from trait_kit import catalogue_problems, math_problems
from trait_kit.catalogue import Catalogue, CatalogueFiles, open_catalogue
from trait_kit.engine.files import TraitError, sha256
from trait_kit.fields import FieldError, check, render
from trait_kit.passages.arithmetic import check_arithmetic
from trait_kit.tables import SCHEMAS
from trait_kit.task_drafts import Draft, split_of
from trait_kit.task_rows import file_rows, hub_rows

TASKS_FOLDER = Path(__file__).with_name("task_files")
Split = Literal["train", "validation", "test"]
Metric = Literal[
    "bits_per_byte",
    "choice_accuracy",
    "exact_match",
    "rouge_l",  # this and the next five: of written ads
    "chrf",
    "within_limit",
    "keyword_coverage",
    "attribute_coverage",
    "faithful",
    "auc",  # this and the next: of the choice 'relevant' or 'irrelevant'
    "f1",
]
_SHARES = {"train": 80, "validation": 10, "test": 10}  # percent, among the splits that share one split of the source
_GENERATED = ("reasoning_gym", "travel_ads", "catalogue")


class Fields(BaseModel):
    """Templates over a row's columns; see trait_kit.fields for the extractors."""

    model_config = ConfigDict(extra="forbid")

    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    solution: str | None = None  # the worked reasoning, without 'The answer is ...', which is added
    choices: str | None = None
    entity: str | None = None
    topic: str | None = None

    @field_validator("*")
    @classmethod
    def _known_extractors(cls, template: str | None) -> str | None:
        if template is not None:
            check(template)
        return template


class Task(BaseModel):
    """One task file."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    about: str  # one line for tables and prompts
    kind: Literal["number", "expression", "choice", "text"]  # how answers are compared
    metrics: list[Metric] = Field(min_length=1)
    limits: list[PositiveInt] = Field(
        default_factory=list
    )  # most characters of the answer's parts 'a | b' (ads); empty: none
    # reasoning_gym:<generator> | travel_ads:<task> | catalogue[:<ads task>] | hf:owner/name[@config] | a file, or a folder
    source: str = Field(min_length=1)
    # ours -> the source's (a split of a hub data set, a file in the folder); null: the source has none to use.
    # Where two of ours name the same one, its rows are divided 80/10/10 by a digest of the question.
    splits: dict[Split, str | None] = Field(default_factory=dict)
    fields: Fields | None = None
    check_arithmetic: bool = False  # train and validation rows whose worked solution prints wrong arithmetic are dropped
    bad_rows: Literal["stop", "skip"] = "stop"  # rows that cannot be read: stop with an error, or skip and count
    version: int = Field(1, ge=1)  # raise when a change of this file changes scores: outcomes of other versions are not used
    examples_from: str | None = None  # the task whose train split gives few-shot prompts their examples; null: this one
    catalogue: CatalogueFiles | None = None  # your products, for the source 'catalogue': the seven ads tasks, or one of them
    origin: str = ""  # the task file's path, for messages

    @property
    def generated(self) -> bool:
        return self.source.partition(":")[0] in _GENERATED

    @property
    def parts(self) -> list[Task]:
        """The task itself; of a whole catalogue, its seven ads tasks."""
        if self.source != "catalogue":
            return [self]
        named = {name: {"name": name, "source": f"catalogue:{name}"} for name in catalogue_problems.TASKS}
        return [self.model_copy(update={**catalogue_problems.task_fields(name), **own}) for name, own in named.items()]

    @model_validator(mode="before")
    @classmethod
    def _catalogue_says_the_rest(cls, raw: dict[str, Any]) -> dict[str, Any]:
        if raw.get("catalogue") is None:
            return raw
        source = raw.get("source", "catalogue")
        return {**catalogue_problems.task_fields(str(source).partition(":")[2]), "source": source, **raw}

    @model_validator(mode="after")
    def _complete(self) -> Task:
        kind, _, name = self.source.partition(":")
        if (kind == "catalogue") != (self.catalogue is not None):
            raise ValueError("source: catalogue and the mapping 'catalogue' (products, id, title, ...) go together")
        if kind == "catalogue" and name and name not in catalogue_problems.TASKS:
            raise ValueError(f"source: no ads task '{name}'; known: {', '.join(catalogue_problems.TASKS)}")
        if kind == "reasoning_gym" and name not in math_problems.GENERATORS:
            raise ValueError(f"source: no worked solutions for '{name}'; known: {', '.join(math_problems.GENERATORS)}")
        if not self.generated and (self.fields is None or not self.splits):
            raise ValueError("source is a data set, so 'fields' (question, answer) and 'splits' must be written down")
        if "choice_accuracy" in self.metrics and self.fields is not None and self.fields.choices is None:
            raise ValueError("metrics has choice_accuracy, but fields has no 'choices'")
        return self


def task_names() -> list[str]:
    """The shipped tasks."""
    return sorted(path.stem for path in TASKS_FOLDER.glob("*.yaml"))


def load_task(name_or_path: str) -> Task:
    """A shipped task by name, or a task file of your own by path (anything that ends in .yaml or .yml).

    A file that describes a catalogue stands for seven tasks (`parts`); 'shop.yaml#title_generation' is one of them.
    """
    path_name, _, part = name_or_path.partition("#")
    own = path_name.endswith((".yaml", ".yml"))
    path = Path(path_name) if own else TASKS_FOLDER / f"{name_or_path}.yaml"
    if not path.is_file():
        if own:
            raise TraitError(f"The task file {path} does not exist (relative paths start at {Path.cwd()}).")
        near = difflib.get_close_matches(name_or_path, task_names(), n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Shipped: {', '.join(task_names())}."
        raise TraitError(f"Unknown task '{name_or_path}'. {hint} Your own task file is given by its path, ending in .yaml.")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TraitError(f"The task file {path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise TraitError(f"The task file {path} must map fields to values (name, about, kind, metrics, source, ...).")
    try:
        task = Task(**{"name": path.stem, **raw, "origin": str(path)})
    except ValidationError as error:
        item = error.errors()[0]
        field = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        raise TraitError(f"The task file {path}{f', field {field}' if field else ''}: {message}.") from None
    if not part:
        return task
    named = {one.name: one for one in task.parts}
    if part not in named:
        raise TraitError(f"{path} has no task '{part}'; it has {', '.join(named)}.")
    return named[part]


def load_problems(tasks: list[str], split: Split, per_task: int, seed: int = 0) -> pd.DataFrame:
    """Up to `per_task` problems of each task, as a problems table (tables.SCHEMAS), in the order of `tasks`.

    `attrs["report"]` has one entry a task: asked, taken, and what was skipped by reason; `attrs["skipped"]` is the
    total. A task whose file sets the split to null (a benchmark without training data) contributes nothing and says so
    in the report; if no task has the split, TraitError.
    """
    if split not in _SHARES:
        raise TraitError(f"Unknown split '{split}'; there are {', '.join(_SHARES)}.")
    rows: list[dict[str, Any]] = []
    report: dict[str, dict[str, Any]] = {}
    loaded = [part for name in tasks for part in load_task(name).parts]
    repeated = [name for name, count in Counter(task.name for task in loaded).items() if count > 1]
    if repeated:
        raise TraitError(f"Two tasks have the name '{repeated[0]}'; every task needs its own.")
    for task in loaded:
        skipped: Counter[str] = Counter()
        if not task.generated and task.splits.get(split) is None:
            report[task.name] = {"asked": per_task, "taken": 0, "skipped": {}, "note": f"the task file has no {split} split"}
            continue
        drafts = list(islice(_unique(task, split, seed, skipped), per_task))
        rows += [_row(task, split, draft) for draft in drafts]
        report[task.name] = {"asked": per_task, "taken": len(drafts), "skipped": dict(sorted(skipped.items()))}
    if not rows:
        raise TraitError(f"None of the tasks {', '.join(tasks)} has problems in the split '{split}'. Add one that has.")
    frame = pd.DataFrame(rows, columns=SCHEMAS["problems"].names)
    frame.attrs["report"] = report
    frame.attrs["skipped"] = sum(sum(entry["skipped"].values()) for entry in report.values())
    return frame


def every_test_question(tasks: list[str], per_generated_task: int, seed: int = 0) -> list[str]:
    """The questions of the tasks' whole test splits, and the first `per_generated_task` of a task that is generated."""
    questions = []
    for task in (part for name in tasks for part in load_task(name).parts):
        if task.generated or task.splits.get("test") is not None:
            drafts = _unique(task, "test", seed, Counter())
            questions += [draft.question for draft in islice(drafts, per_generated_task if task.generated else None)]
    return questions


def fingerprint(name_or_path: str) -> list[Any]:
    """What changes when a task does: its file, and the sizes and times of the files it reads (not the hub's rows)."""
    task = load_task(name_or_path)
    paths = _catalogue_paths(task)
    if not task.generated and not task.source.startswith("hf:"):
        paths = [_local_path(task, name) for name in sorted({name for name in task.splits.values() if name})]
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    return [sha256(task.origin), files]


def plain(question: str) -> str:
    """A question as it is compared: lower case, single blanks (signs are kept: they matter in mathematics)."""
    return " ".join(question.lower().split())


def _row(task: Task, split: str, draft: Draft) -> dict[str, Any]:
    name = hashlib.sha256(f"{plain(draft.question)} {draft.answer}".encode()).hexdigest()[:12]
    return {
        "id": f"{task.name}/{name}",
        "task": task.name,
        "question": draft.question,
        "answer": draft.answer,
        "solution": draft.solution or None,
        "choices": draft.choices or None,
        "entity": draft.entity,
        "topic": draft.topic or None,
        "split": split,
    }


def _unique(task: Task, split: Split, seed: int, skipped: Counter[str]) -> Iterator[Draft]:
    """The task's problems in this split, each question once; ends where the source does, or repeats itself."""
    kind, _, name = task.source.partition(":")
    if kind == "reasoning_gym":
        source = math_problems.draw(name, split, seed, skipped)
    elif kind == "travel_ads":
        from trait_kit import ads_problems

        if name not in ads_problems.TASKS:
            raise TraitError(f"{task.origin}, field source: no ads task '{name}'; known: {', '.join(ads_problems.TASKS)}.")
        source = ads_problems.draw(name, split, seed, skipped)
    elif task.catalogue is not None:
        source = catalogue_problems.draw(_open_catalogue(task), name, split, seed, skipped)
    else:
        source = _from_rows(task, split, seed, skipped)
    seen: set[str] = set()
    repeats = 0
    for draft in source:
        key = draft.key if kind == "reasoning_gym" else plain(draft.question)
        if key in seen:
            repeats += 1
            if repeats > 2_000:  # a generator that has run dry
                return
            continue
        seen.add(key)
        repeats = 0
        yield draft


def _from_rows(task: Task, split: Split, seed: int, skipped: Counter[str]) -> Iterator[Draft]:
    """A data set's rows in a shuffled order that depends on (task, split, seed, question) and not on the file's order."""
    held_out: set[str] = set()
    for later in ("test", "validation")[: {"train": 2, "validation": 1, "test": 0}[split]]:
        name = task.splits.get(later)  # type: ignore[call-overload]
        if name is not None and name != task.splits[split]:
            held_out |= {plain(draft.question) for draft in _read_split(task, name, Counter())}
    shared = {ours: _SHARES[ours] for ours in _SHARES if task.splits.get(ours) == task.splits[split]}  # type: ignore[call-overload]
    drafts = []
    for draft in _read_split(task, task.splits[split] or "", skipped):
        key = plain(draft.question)
        if split_of(f"{task.name} {key}", shared) != split:
            continue
        if key in held_out:
            skipped["also in a later split"] += 1
        elif split != "test" and task.check_arithmetic and check_arithmetic(draft.solution).wrong:
            skipped["printed arithmetic is wrong or rounded"] += 1
        else:
            order = hashlib.sha256(f"{seed} {task.name} {split} {key}".encode()).digest()
            drafts.append((order, draft))
    yield from (draft for _, draft in sorted(drafts, key=lambda pair: pair[0]))


def _read_split(task: Task, name: str, skipped: Counter[str]) -> list[Draft]:
    where, rows = _rows(task, name)
    drafts = []
    assert task.fields is not None
    for number, row in enumerate(rows, start=1):
        try:
            drafts.append(_read_row(task, row))
        except FieldError as error:
            if task.bad_rows == "stop":
                raise TraitError(
                    f"{where}, row {number}, {error}. Repair the row or the template in {task.origin}, "
                    "or set bad_rows: skip there."
                ) from None
            skipped["row cannot be read"] += 1
    return drafts


def _read_row(task: Task, row: dict[str, Any]) -> Draft:
    assert task.fields is not None
    values: dict[str, Any] = {}
    for field, template in task.fields.model_dump().items():
        try:
            value = render(template, row) if template else None
        except FieldError as error:
            raise FieldError(f"field {field}: {error}") from None
        if field == "choices":
            values[field] = [" ".join(str(item).split()) for item in value] if value is not None else []
            continue
        values[field] = " ".join(str(value).split()) if value is not None else ""
        if field in ("question", "answer") and not values[field]:
            raise FieldError(f"field {field}: it is empty or missing (template '{template}')")
    answer, choices, solution = values["answer"], values["choices"], values["solution"]
    if choices and answer not in choices:
        raise FieldError(f"field answer: {answer[:60]!r} is not one of the choices")
    if solution and task.kind != "text":
        last = "" if solution.rstrip("$) ").endswith((".", "!", "?")) else "."
        solution = f"{solution}{last} The answer is {answer.rstrip('.')}."
    key = plain(values["question"])
    return Draft(key, values["question"], answer, solution, choices, values["entity"] or None, values["topic"], "")


def _rows(task: Task, name: str) -> tuple[str, list[dict[str, Any]]]:
    """The rows of one split of a task's source, and what to call it in messages."""
    if task.source.startswith("hf:"):
        return f"{task.source} split {name}", hub_rows(task.source.removeprefix("hf:"), name, task.origin)
    path = _local_path(task, name)
    return str(path), file_rows(str(path), path.stat().st_mtime_ns)


def _local_path(task: Task, name: str) -> Path:
    """The file of one split: `source` itself, or the file `name` in the folder that `source` is."""
    base = _beside(task, task.source)
    path = base / name if base.is_dir() else base
    return _existing(path, f"{task.origin}, field source")


def _beside(task: Task, name: str) -> Path:
    """A path of a task file: relative to that file, or else to the working directory."""
    return next((path for path in (Path(task.origin).parent / name, Path(name)) if path.exists()), Path(name))


def _existing(path: Path, where: str) -> Path:
    if not path.is_file():
        raise TraitError(f"{where}: {path} does not exist (looked beside the task file and from {Path.cwd()}).")
    return path


def _catalogue_paths(task: Task) -> list[Path]:
    names = task.catalogue.paths() if task.catalogue else {}
    return [_existing(_beside(task, name), f"{task.origin}, field catalogue.{field}") for field, name in names.items()]


def _open_catalogue(task: Task) -> Catalogue:
    assert task.catalogue is not None
    found = _catalogue_paths(task)
    changes = dict(zip(task.catalogue.paths(), map(str, found), strict=True))
    return open_catalogue(task.catalogue.model_copy(update=changes), tuple(path.stat().st_mtime_ns for path in found))


def prompt(question: str, choices: list[str] | None = None) -> str:
    """The one prompt of the kit: passages write problems in the same words, so what is learnt can be used.

    Choices are shown where a letter may be the answer: in generation, not where the likelihood of each is compared.
    """
    shown = [f"\n({letter}) {choice}" for letter, choice in zip(ascii_uppercase, choices or [], strict=False)]
    return f"Question: {question}{''.join(shown)}\nAnswer:"
