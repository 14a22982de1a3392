"""Downstream problems for passages and evaluation: one table, whatever they come from.

A task is a small YAML file (task_files/*.yaml, or the user's own): where the problems come from, how the source's columns
become question, answer and solution, and which of its splits are which. Splits never share a question: a problem's split
follows from its content, and rows of train that occur in validation or test are dropped and counted (common files leak:
MATH's train and test share 10 problems). The first k problems of a split do not depend on how many are asked for, so a
larger run contains the smaller one.
"""

from __future__ import annotations

import difflib
import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from trait_kit import demo
from trait_kit.catalogue import ADS_TASKS, CatalogueFiles, catalogue_rows, sha, split_of
from trait_kit.engine.arithmetic import arithmetic_slips
from trait_kit.engine.files import TraitError, content
from trait_kit.fields import FieldError, Template, render
from trait_kit.rows import Row, hub_rows, read_rows
from trait_kit.tables import SCHEMAS

TASKS_FOLDER = Path(__file__).with_name("task_files")
Split = Literal["train", "validation", "test"]
_OfAnswers = Literal["bits_per_byte", "choice_accuracy", "exact_match"]
_OfWrittenAds = Literal["rouge_l", "chrf", "within_limit", "keyword_coverage", "attribute_coverage"]
_OfRelevance = Literal["auc", "f1"]  # of the choice 'relevant' or 'irrelevant'
Metric = _OfAnswers | _OfWrittenAds | _OfRelevance
_SHARES = {"train": 80, "validation": 10, "test": 10}  # percent, among the splits that share one split of the source


class Fields(BaseModel):
    """Templates over a row's columns; see trait_kit.fields for the filters."""

    model_config = ConfigDict(extra="forbid")

    question: Template
    answer: Template
    solution: Template | None = None  # the worked reasoning, without 'The answer is ...', which is added
    choices: Template | None = None
    entity: Template | None = None
    topic: Template | None = None
    template: Template | None = None  # what the solution follows: problems of one template are no independent evidence


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
    # demo:math/<task> | demo:ads/<task> | catalogue[:<ads task>] | hf:owner/name[@config] | a file, or a folder
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
        """Whether the kit makes the problems (demo, catalogue), so that the first few of a split stand for it."""
        return self.source.startswith("demo:") or self.catalogue is not None

    @property
    def parts(self) -> list[Task]:
        """The task itself; of a whole catalogue, its seven ads tasks."""
        if self.source != "catalogue":
            return [self]
        common = self.model_dump(exclude={"name", "source", *ADS_TASKS["ad_generation"]})
        return [Task(**common, name=name, source=f"catalogue:{name}") for name in ADS_TASKS]

    @model_validator(mode="before")
    @classmethod
    def _catalogue_says_the_rest(cls, raw: dict[str, Any]) -> dict[str, Any]:
        if raw.get("catalogue") is None:
            return raw
        source = raw.get("source", "catalogue")
        name = str(source).partition(":")[2] or "ad_generation"
        return {**ADS_TASKS.get(name, {}), "source": source, "bad_rows": "skip", **raw}

    @model_validator(mode="after")
    def _complete(self) -> Task:
        kind, _, name = self.source.partition(":")
        if (kind == "catalogue") != (self.catalogue is not None):
            raise ValueError("source: catalogue and the mapping 'catalogue' (products, id, title, ...) go together")
        if kind == "catalogue" and name and name not in ADS_TASKS:
            raise ValueError(f"source: no ads task '{name}'; known: {', '.join(ADS_TASKS)}")
        if kind == "demo" and not _frozen(name):
            known = [f"{domain}/{task}" for domain in demo.DEMO_TRUTH for task in demo.problems(domain)]
            raise ValueError(f"source: the demo has no problems '{name}'; known: {', '.join(known)}")
        if kind in ("reasoning_gym", "travel_ads"):
            raise ValueError(f"source: '{kind}:' is gone, its problems are frozen: write demo:math/<task>")
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


def load_tasks(names: list[str]) -> dict[str, Task]:
    """The tasks that the files `names` stand for by name, in their order; each must have a name of its own."""
    tasks: dict[str, Task] = {}
    for task in (part for name in names for part in load_task(name).parts):
        if task.name in tasks:
            raise TraitError(f"Two tasks have the name '{task.name}'; every task needs its own.")
        tasks[task.name] = task
    return tasks


def load_problems(tasks: list[str], split: Split, per_task: int, seed: int = 0) -> pd.DataFrame:
    """Up to `per_task` problems of each task, as a problems table (tables.SCHEMAS), in the order of `tasks`.

    `attrs["report"]` has one entry a task: asked, taken, and what was skipped by reason; `attrs["skipped"]` is the
    total. A task whose file sets the split to null (a benchmark without training data) contributes nothing and says so
    in the report; if no task has the split, TraitError.
    """
    if split not in _SHARES:
        raise TraitError(f"Unknown split '{split}'; there are {', '.join(_SHARES)}.")
    rows: list[Row] = []
    report: dict[str, Row] = {}
    for task in load_tasks(tasks).values():
        if not task.generated and task.splits.get(split) is None:
            report[task.name] = {"asked": per_task, "taken": 0, "skipped": {}, "note": f"the task file has no {split} split"}
            continue
        skipped: Counter[str] = Counter()
        taken = list(islice(_unique(task, split, seed, skipped), per_task))
        rows += [{"id": _id(task, row), "task": task.name, **row, "split": split} for row in taken]
        report[task.name] = {"asked": per_task, "taken": len(taken), "skipped": dict(sorted(skipped.items()))}
    if not rows:
        raise TraitError(f"None of the tasks {', '.join(tasks)} has problems in the split '{split}'. Add one that has.")
    frame = pd.DataFrame(rows, columns=SCHEMAS["problems"].names)
    frame.attrs["report"] = report
    frame.attrs["skipped"] = sum(sum(entry["skipped"].values()) for entry in report.values())
    return frame


def every_test_question(tasks: list[str], per_generated_task: int, seed: int = 0) -> list[str]:
    """The questions of the tasks' whole test splits, and the first `per_generated_task` of a task that the kit makes."""
    questions = []
    for task in load_tasks(tasks).values():
        if task.generated or task.splits.get("test") is not None:
            rows = islice(_unique(task, "test", seed, Counter()), per_generated_task if task.generated else None)
            questions += [row["question"] for row in rows]
    return questions


def fingerprint(name_or_path: str) -> list[str]:
    """What changes when a task does: the content of its file and of the files it reads (not the hub's rows)."""
    task = load_task(name_or_path)
    kind, _, rest = task.source.partition(":")
    paths = [Path(task.origin)]
    if kind == "demo":
        paths.append(demo.DATA / f"{rest.partition('/')[0]}.jsonl.gz")
    elif task.catalogue is not None:
        paths.append(_products(task))
    elif kind != "hf":
        names = sorted({name for name in task.splits.values() if name})
        paths += [_file(task, "source", task.source, name) for name in names]
    return [content(path) for path in paths]


def prompt(question: str, choices: list[str] | None = None) -> str:
    """The one prompt of the kit: passages write problems in the same words, so what is learnt can be used.

    Choices are shown where a letter may be the answer: in generation, not where the likelihood of each is compared.
    """
    shown = [f"\n({letter}) {choice}" for letter, choice in zip(ascii_uppercase, choices or [], strict=False)]
    return f"Question: {question}{''.join(shown)}\nAnswer:"


def plain(question: str) -> str:
    """A question as it is compared: lower case, single blanks (signs are kept: they matter in mathematics)."""
    return " ".join(question.lower().split())


def _id(task: Task, row: Row) -> str:
    return f"{task.name}/{sha(plain(row['question']) + ' ' + row['answer']).hex()[:12]}"


def _unique(task: Task, split: Split, seed: int, skipped: Counter[str]) -> Iterator[Row]:
    """The task's problems in this split, each question once, in the order that the seed draws."""
    seen: set[str] = set()
    for row in _drawn(task, split, seed, skipped):
        key = plain(row["question"])
        if key not in seen:
            seen.add(key)
            yield row


def _drawn(task: Task, split: Split, seed: int, skipped: Counter[str]) -> Iterable[Row]:
    kind, _, rest = task.source.partition(":")
    if kind == "demo":
        rows = [row for row in _frozen(rest) if row["split"] == split]
        # another seed: in an order that all tasks of a place share, so that the first few of each are about the same ones
        return sorted(rows, key=lambda row: sha(f"{seed} {split} {row['entity'] or row['question']}")) if seed else rows
    if task.catalogue is not None:
        path = _products(task)
        files = task.catalogue.model_copy(update={"products": str(path)})
        return _read_rows(task, str(path), catalogue_rows(files, content(path), rest, split, seed, skipped), skipped)
    return _from_source(task, split, seed, skipped)


def _frozen(name: str) -> list[Row]:
    """The demo's problems 'math/word_problems'; none under another name."""
    domain, _, task = name.partition("/")
    return demo.problems(domain).get(task, []) if domain in demo.DEMO_TRUTH else []


def _from_source(task: Task, split: Split, seed: int, skipped: Counter[str]) -> list[Row]:
    """A data set's rows in an order that depends on (task, split, seed, question) and not on the file's order."""
    held_out: set[str] = set()
    for later in ("test", "validation")[: {"train": 2, "validation": 1, "test": 0}[split]]:
        name = task.splits.get(later)  # type: ignore[call-overload]
        if name is not None and name != task.splits[split]:
            held_out |= {plain(row["question"]) for row in _read_split(task, name, Counter())}
    shared = {ours: _SHARES[ours] for ours in _SHARES if task.splits.get(ours) == task.splits[split]}  # type: ignore[call-overload]
    kept = {}
    for row in _read_split(task, task.splits[split] or "", skipped):
        key = plain(row["question"])
        if split_of(f"{task.name} {key}", shared) != split:
            continue
        if key in held_out:
            skipped["also in a later split"] += 1
        elif split != "test" and task.check_arithmetic and _prints_wrong_arithmetic(row["solution"]):
            skipped["printed arithmetic is wrong or rounded"] += 1
        else:
            kept.setdefault(key, row)
    return [kept[key] for key in sorted(kept, key=lambda key: sha(f"{seed} {task.name} {split} {key}"))]


def _prints_wrong_arithmetic(solution: str | None) -> bool:
    return bool(arithmetic_slips(solution or ""))


def _read_split(task: Task, name: str, skipped: Counter[str]) -> Iterator[Row]:
    if task.source.startswith("hf:"):
        rows = hub_rows(task.source.removeprefix("hf:"), name, task.origin)
        return _read_rows(task, f"{task.source} split {name}", rows, skipped)
    path = _file(task, "source", task.source, name)
    return _read_rows(task, str(path), _file_rows(path, content(path)), skipped)


@functools.lru_cache(maxsize=8)
def _file_rows(path: Path, _digest: str) -> list[Row]:
    return read_rows(path)


def _read_rows(task: Task, where: str, rows: Iterable[Row], skipped: Counter[str]) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        try:
            yield _read_row(task, row)
        except FieldError as error:
            if task.bad_rows == "stop":
                advice = f"Repair the row or the template in {task.origin}, or set bad_rows: skip there."
                raise TraitError(f"{where}, row {number}, {error}. {advice}") from None
            skipped["row cannot be read"] += 1


def _read_row(task: Task, row: Row) -> Row:
    assert task.fields is not None
    values: Row = {}
    for field, template in task.fields.model_dump().items():
        try:
            value = render(template, row) if template else None
        except FieldError as error:
            raise FieldError(f"field {field}: {error}") from None
        if field == "choices":
            values[field] = [" ".join(str(item).split()) for item in value] if value is not None else None
        else:
            values[field] = " ".join(str(value).split()) or None if value is not None else None
        if field in ("question", "answer") and not values[field]:
            raise FieldError(f"field {field}: it is empty or missing (template '{template}')")
    answer, choices, solution = values["answer"], values["choices"], values["solution"]
    if choices and answer not in choices:
        raise FieldError(f"field answer: {answer[:60]!r} is not one of the choices")
    if solution and task.kind != "text":
        last = "" if solution.rstrip("$) ").endswith((".", "!", "?")) else "."
        values["solution"] = f"{solution}{last} The answer is {answer.rstrip('.')}."
    return values


def _file(task: Task, field: str, name: str, inside: str = "") -> Path:
    """A path of a task file: relative to that file, or else to the working directory; of a folder, the file `inside`."""
    path = next((path for path in (Path(task.origin).parent / name, Path(name)) if path.exists()), Path(name))
    path = path / inside if path.is_dir() else path
    if not path.is_file():
        where = f"{task.origin}, field {field}"
        raise TraitError(f"{where}: {path} does not exist (looked beside the task file and from {Path.cwd()}).")
    return path


def _products(task: Task) -> Path:
    return _file(task, "catalogue.products", task.catalogue.products if task.catalogue else "")
