"""Downstream problems for passages and evaluation: one table, whatever they come from.

A task is a small YAML file, of task_files/ or your own; docs/task_files.md has all keys. Splits never share a question: rows
of train that occur in validation or test are dropped and counted (MATH's share 10 problems). The first k problems of a split
do not depend on how many are asked for, so a larger run contains the smaller one.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from itertools import accumulate, islice
from pathlib import Path
from random import Random
from string import ascii_uppercase
from typing import Literal, get_args

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from trait_kit import demo
from trait_kit.engine.files import TraitError, content, read_yaml
from trait_kit.engine.questions import words_of
from trait_kit.fields import FORMS, FieldError, Row, Template, fill, one_line, read_rows, say, usable
from trait_kit.judging.answers import LANGUAGES, judge, language_of, readable, with_answer
from trait_kit.judging.numbers import arithmetic_slips
from trait_kit.reading.readers import hub_data
from trait_kit.reading.streams import format_of
from trait_kit.tables import SCHEMAS

TASKS_FOLDER = Path(__file__).with_name("task_files")
Split = Literal["train", "validation", "test"]
# auc, f1: of 'relevant' or 'irrelevant'; the last three: of written ads
Metric = Literal[
    "bits_per_byte", "choice_accuracy", "exact_match", "auc", "f1", "rouge_l", "chrf", "within_limit"
]
# Templates of columns
_FieldName = Literal["question", "answer", "solution", "choices", "entity", "topic", "template"]
# percent, among the splits that share one split of the source
_SHARES = {"train": 80, "validation": 10, "test": 10}
ADS_TASKS: dict[str, Row] = read_yaml(Path(__file__).with_name("catalogue.yaml"))
_PRODUCT_SHARES = {"train": 70, "validation": 10, "test": 20}  # percent of the products
_MOST_CHARACTERS = defaultdict(lambda: 300, description=2_000)  # of a field; longer ones are no ad
_RIVALS = 3  # wrong choices


class CatalogueFiles(BaseModel):
    """The `catalogue` of a task file: where the products are, and templates of columns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    products: str = Field(min_length=1)  # a file in one of FORMS
    id: Template
    title: Template
    description: Template
    category: Template | None = None
    query: Template | None = None  # a real query that the product answers


class Task(BaseModel):
    """One task file, or one of the seven tasks of a catalogue's; docs/task_files.md says what each key does."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    about: str  # one line for tables and prompts
    kind: Literal["number", "expression", "choice", "text"]  # how answers are compared
    metrics: list[Metric] = Field(min_length=1)
    limits: list[PositiveInt] = []
    source: str = ""  # demo:math/<task> | demo:ads/<task> | hf:owner/name[@config] | a file, or a folder
    splits: dict[Split, str | None] = {}
    language: Literal[tuple(LANGUAGES)] | None = None
    fields: dict[_FieldName, Template | None] = {}
    check_arithmetic: bool = False
    bad_rows: Literal["stop", "skip"] = "stop"
    version: int = Field(1, ge=1)
    examples_from: str | None = None
    catalogue: CatalogueFiles | None = None  # instead of source, splits and fields
    origin: str = ""  # the task file's path

    @property
    def generated(self) -> bool:
        """Whether the kit makes the problems, so that the first few of a split stand for it."""
        return self.source.startswith("demo:") or self.catalogue is not None

    @model_validator(mode="after")
    def _complete(self) -> "Task":
        if self.source.startswith("demo:"):
            if self.source[5:] not in demo.problems():
                raise ValueError(f"source: the demo has no such problems; known: {', '.join(demo.problems())}")
            return self
        self.source = self.catalogue.products if self.catalogue else self.source
        if not self.source:
            raise ValueError("source is missing: a file, a folder, or hf:owner/name")
        if format_of(self.source)[0] in FORMS:
            self.splits = self.splits or dict.fromkeys(get_args(Split), "all")
        elif self.catalogue:
            raise ValueError(f"products: rows are read from {', '.join(FORMS)}, not {self.source}")
        needed = ("question", "answer", *["choices"] * ("choice_accuracy" in self.metrics))
        if missing := [name for name in needed if not self.fields.get(name)]:
            raise ValueError(f"fields has no '{missing[0]}'")
        if not self.splits:
            raise ValueError("source is no file of rows, so 'splits' must be written down")
        return self


def task_names() -> list[str]:
    return sorted(path.stem for path in TASKS_FOLDER.glob("*.yaml"))


def load_tasks(names: list[str]) -> dict[str, Task]:
    """name -> task, in the order of `names`: shipped names, or paths of task files (.yaml or .yml); no name twice.

    The file of a catalogue stands for seven tasks; 'shop.yaml#title_generation' is one of them.
    """
    tasks: dict[str, Task] = {}
    for task in (task for name in names for task in _tasks_of(name)):
        if tasks.setdefault(task.name, task) is not task:
            raise TraitError(f"Two tasks have the name '{task.name}'; every task needs its own.")
    return tasks


def load_task(name_or_path: str) -> Task:
    """One task; of a catalogue, the first."""
    return _tasks_of(name_or_path)[0]


def _tasks_of(name_or_path: str) -> list[Task]:
    name, _, part = name_or_path.partition("#")
    own = name.endswith((".yaml", ".yml"))
    path = Path(name) if own else TASKS_FOLDER / f"{name}.yaml"
    if not path.is_file():
        where = f"{path.absolute()} does not exist" if own else f"shipped are {', '.join(task_names())}"
        raise TraitError(
            f"Unknown task '{name}': {where}. One of your own is named by its path, ending in .yaml."
        )
    try:
        raw = {"name": path.stem, **read_yaml(path), "origin": str(path)}
        if raw.get("catalogue") is None:
            return [Task(**raw)]
        if part and part not in ADS_TASKS:
            raise TraitError(f"{path} has no task '{part}'; it has {', '.join(ADS_TASKS)}.")
        names = [part] if part else ADS_TASKS
        return [Task(**{"bad_rows": "skip", **raw, **ADS_TASKS[name], "name": name}) for name in names]
    except (ValueError, yaml.YAMLError, TypeError) as error:
        raise TraitError(f"The task file {path} is not as it should be: {error}") from None


def load_problems(tasks: list[str], split: Split, per_task: int, seed: int = 0) -> pd.DataFrame:
    """Up to `per_task` problems of each task, a problems table (tables.SCHEMAS), in the order of `tasks`.

    What is skipped, or fewer than asked for, is said, and stands in `attrs["report"]` by task. A task without the split
    contributes nothing; TraitError where none has it.
    """
    rows: list[Row] = []
    report: dict[str, Row] = {}
    for task in load_tasks(tasks).values():
        skipped: Counter[str] = Counter()
        taken = list(islice(_problems(task, split, seed, skipped), per_task))
        report[task.name] = {"taken": len(taken), "skipped": dict(sorted(skipped.items()))}
        if skipped or (0 < len(taken) < per_task and not task.generated):
            lost = ", ".join(f"{count:,} ({reason})" for reason, count in skipped.most_common()) or "none"
            say(f"{task.name}: {len(taken):,} problems of {split}, {per_task:,} asked for; left out: {lost}")
        keys = [sha(f"{plain(row['question'])} {row['answer']}").hex()[:12] for row in taken]
        rows += [
            {"id": f"{task.name}/{key}", "task": task.name, **row} for key, row in zip(keys, taken, strict=True)
        ]
    if not rows:
        for task in load_tasks(tasks).values():  # names a bad row
            list(_problems(task.model_copy(update={"bad_rows": "stop"}), split, seed, Counter()))
        raise TraitError(
            f"None of the tasks {', '.join(tasks)} has problems in the split '{split}'. Add one that has."
        )
    frame = pd.DataFrame(rows, columns=SCHEMAS["problems"].names, dtype=object).assign(split=split)
    frame.attrs["report"] = report

    return frame


def every_test_question(tasks: list[str], per_generated_task: int, seed: int = 0) -> list[str]:
    """The questions of whole test splits, and the first `per_generated_task` of a task that the kit makes."""
    return [
        row["question"]
        for task in load_tasks(tasks).values()
        for row in islice(
            _problems(task, "test", seed, Counter()), per_generated_task if task.generated else None
        )
    ]


def texts_of_tests(tasks: list[str], per_task: int, seed: int = 0) -> pd.DataFrame:
    """What training text may not hold: question_task, question_id, part (question|gold), text.

    Golds are answers and solutions of a sentence or more: shorter ones stand in innocent text.
    """
    problems = load_problems(tasks, "test", per_task, seed).rename(
        columns={"task": "question_task", "id": "question_id"}
    )
    texts = problems.melt(
        ["question_task", "question_id"], ["question", "answer", "solution"], "part", "text"
    ).dropna()
    texts["part"] = texts["part"].where(texts["part"] == "question", "gold")
    long = texts["text"].map(lambda text: len(words_of(text))) >= 10
    return texts[(texts["part"] == "question") | long].reset_index(drop=True)


def fingerprint(name_or_path: str) -> list[str]:
    """What changes when a task does: the content of its file and of the files it reads (not the hub's rows)."""
    task = load_task(name_or_path)
    kind, _, rest = task.source.partition(":")
    read = {demo.DATA / f"{rest.partition('/')[0]}.jsonl.gz"} if kind == "demo" else set()
    if kind not in ("demo", "hf"):
        read = {_file(task, task.source, name) for name in task.splits.values() if name}
    lender = [task.examples_from] if "." in (task.examples_from or "") else []
    own = [content(path) for path in (Path(task.origin), *sorted(read))]
    return own + [one for name in lender for one in fingerprint(name)]


def _once(rows: Iterable[Row], name: str, skipped: Counter[str]) -> Iterator[Row]:
    """Each question, or title, once: two golds of one could not both be right."""
    seen: set[str] = set()
    for row in rows:
        if (key := plain(row[name])) in seen:
            skipped[f"{name} occurs before"] += 1
        else:
            seen.add(key)
            yield row


def plain(question: str) -> str:
    """A question as it is compared: in lower case, with single blanks and all signs."""
    return one_line(question.lower())


def sha(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def split_of(key: str, shares: dict[str, int]) -> str:
    """The split of a key, the same for every seed."""
    point = int.from_bytes(sha(key)[:8], "big") % sum(shares.values())
    return next(name for name, end in zip(shares, accumulate(shares.values()), strict=True) if point < end)


def prompt(question: str, choices: list[str] | None = None) -> str:
    """The one prompt, in whose words passages write problems too; choices are shown where a letter may be the answer."""
    shown = [f"\n({letter}) {choice}" for letter, choice in zip(ascii_uppercase, choices or [], strict=False)]
    return f"Question: {question}{''.join(shown)}\nAnswer:"


def _problems(task: Task, split: Split, seed: int, skipped: Counter[str]) -> Iterator[Row]:
    kind, _, rest = task.source.partition(":")
    if kind == "demo":
        rows = [row for row in demo.problems()[rest] if row["split"] == split]
        if seed:  # one order for all tasks, so that the first few of each are about the same places
            rows = sorted(rows, key=lambda row: sha(f"{seed} {split} {row['entity'] or row['question']}"))
    elif task.catalogue is not None:
        rows = _once(map(partial(_problem, task), _offers(task, split, seed, skipped)), "question", skipped)
    else:
        rows = _of_data_set(task, split, seed, skipped) if task.splits.get(split) else []
    return iter(rows)


def _of_data_set(task: Task, split: Split, seed: int, skipped: Counter[str]) -> list[Row]:
    name = task.splits[split]
    later = {"train": ("validation", "test"), "validation": ("test",), "test": ()}[split]
    others = {task.splits.get(ours) for ours in later} - {None, name}
    held_out = {plain(row["question"]) for other in others for row in _read(task, other, Counter())}
    shared = {ours: share for ours, share in _SHARES.items() if task.splits.get(ours) == name}
    kept, divided = [], Counter(dict.fromkeys(shared, 0))
    for row in _once(_read(task, name, skipped), "question", skipped):
        key = plain(row["question"])
        own = split_of(f"{task.name} {key}", shared)
        divided[own] += 1
        if own != split:
            continue
        if key in held_out:
            skipped["also in a later split"] += 1
        elif split != "test" and task.check_arithmetic and arithmetic_slips(row["solution"] or ""):
            skipped["printed arithmetic is wrong or rounded"] += 1
        else:
            kept.append(row)
    if len(shared) > 1:
        parts = ", ".join(f"{count:,} {ours}" for ours, count in divided.items())
        say(f"{task.name}: the questions of {task.source} ({name}) are divided into {parts}")

    return sorted(kept, key=lambda row: sha(f"{seed} {task.name} {split} {plain(row['question'])}"))


def _read(task: Task, name: str, skipped: Counter[str]) -> Iterator[Row]:
    of_hub = task.source.startswith("hf:")
    where = f"{task.source[3:]}#{name}" if of_hub else _file(task, task.source, name)
    rows = hub_data(where) if of_hub else read_rows(where)
    return usable(rows, partial(_problem, task), where, skipped if task.bad_rows == "skip" else None)


def _problem(task: Task, row: Row) -> Row:
    values = fill({name: task.fields.get(name) for name in get_args(_FieldName)}, row)
    question, answer, choices = values["question"] or "", values["answer"] or "", values["choices"] or []
    if not question:
        raise FieldError("question is empty")
    if choices and answer not in choices:
        raise FieldError(f"answer is not one of the choices: {answer[:60]!r}")
    by_letter = task.kind == "choice" and choices and answer  # '//' may be an option's text
    if not (by_letter or (readable(answer, task.kind) and judge(answer, answer, task.kind, choices)[0])):
        raise FieldError(f"answer is nothing that can be compared as {task.kind}: {answer[:60]!r}")
    if values["solution"] and "\n" not in answer:
        values["solution"] = with_answer(values["solution"], answer, task.language or language_of(question))
    return values


def _file(task: Task, name: str, inside: str = "") -> Path:
    """A path beside the task file, or else from here; of a folder, the file `inside`."""
    beside = Path(task.origin).parent / name
    path = beside if beside.exists() else Path(name)
    path = path / inside if path.is_dir() else path
    if not path.is_file():
        raise TraitError(
            f"{task.origin}: {path} does not exist (looked beside the task file and from {Path.cwd()})."
        )
    return path


# What a catalogue's tasks ask is in catalogue.yaml. Products whose titles begin alike (four words, numbers aside)
# are one family and share a split: nothing of a test product is seen in training.


@lru_cache(maxsize=2)
def _products(files: CatalogueFiles, path: Path, _content: str) -> tuple[dict[str, list[Row]], Counter[str]]:
    """(split -> its products; reason -> rows skipped), read once for all tasks and splits."""
    read = partial(_product, files)
    skipped: Counter[str] = Counter()
    found: dict[str, list[Row]] = defaultdict(list)
    for product in _once(usable(read_rows(path), read, path, skipped), "title", skipped):
        split = split_of(f"product {product['family']}", _PRODUCT_SHARES)
        if product["query"] and split_of(f"query {product['query'].lower()}", _PRODUCT_SHARES) != split:
            skipped["query belongs to another split than its product"] += 1  # the product stays, without it
            product["query"] = ""
        found[split].append(product)
    if not found:
        list(usable(read_rows(path), read, path))  # stops at the first row, with what is wrong with it
        raise TraitError(f"{path} has no rows. Name the file of the products.")
    return found, skipped


def _product(files: CatalogueFiles, row: Row) -> Row:
    """A product's fields, '' where the catalogue has none, its ad and its family."""
    product = fill(files.model_dump(exclude={"products"}), row)
    for name, text in product.items():
        if name in ("id", "title", "description") and not readable(text or "", "text"):
            raise FieldError(f"{name} is missing: {text!r}")
        if text and len(text) > _MOST_CHARACTERS[name]:
            raise FieldError(f"{name} is longer than {_MOST_CHARACTERS[name]:,} characters")
        product[name] = text or ""
    product["ad"] = f"{product['title']} | {product['description']}"
    product["family"] = " ".join(re.findall(r"[^\W\d]+", product["title"].lower())[:4])
    return product


def _offers(task: Task, split: str, seed: int, skipped: Counter[str]) -> Iterator[Row]:
    """The products of a split as rows for the task's templates, in an order that all seven share."""
    path = _file(task, task.source)
    products, lost = _products(task.catalogue, path, content(path))
    skipped.update(lost)
    chosen = sorted(products.get(split, []), key=lambda product: sha(f"{seed} {split} {product['id']}"))
    by_category: dict[str, list[Row]] = defaultdict(list)
    for product in sorted(chosen, key=lambda product: product["id"]):
        by_category[product["category"]].append(product)
    for product in chosen:
        rng = Random(f"{product['id']} {task.name}")
        pool = by_category[product["category"]]
        pool = pool if len(pool) > _RIVALS else chosen
        drawn = rng.sample(pool, min(len(pool), 5 * _RIVALS))
        near = [
            other for other in drawn if all(other[name] != product[name] for name in ("family", "description"))
        ]
        if len(near) < _RIVALS:
            skipped["too few products to make wrong choices of"] += 1
            continue
        fits = rng.random() < 0.5
        offers = rng.sample([product, *near[:_RIVALS]], 1 + _RIVALS)
        yield {**product, "fits": fits, "shown": product if fits else near[0], "other": near[0], "offers": offers}
