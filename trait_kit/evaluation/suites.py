"""What every arm is asked: the tasks' held-out problems, held-out documents, and lm-eval's own tasks, in lm-eval's form.

Every arm sees the same items in the same words, so arms can be compared item by item. The shipped files in tasks/ are
templates; a copy of them, the items as JSON lines and a small task file stand in the step's folder, so the same tasks also
run under lm-eval's own command line: `lm_eval --model hf --model_args pretrained=MODEL --include_path
RUN/05_evaluate/lm_eval --tasks word_problems_choices`.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from string import ascii_uppercase
from typing import Any

import pandas as pd
import yaml
from lm_eval.tasks import TaskManager

from trait_kit.engine.files import TraitError, digest, write_text
from trait_kit.evaluation import ads
from trait_kit.evaluation.comparison import HELD_OUT
from trait_kit.evaluation.scoring_model import quiet
from trait_kit.params import EvaluationParams
from trait_kit.tasks import Task, every_test_question, load_problems, load_task, load_tasks, prompt

TEMPLATES = Path(__file__).parent / "tasks"
MAX_DOCUMENT_CHARACTERS = 4_000  # longer held-out documents are cut: their cost is the same for every corpus
MAX_EXAMPLE_CHARACTERS = 700  # of a worked example, question and solution: every item pays for them
_EXAMPLE_CHOICES = 4  # shown with an example that is borrowed from a task without choices
_OVERLAP_WORDS = 8  # an example that shares half of a test question's runs of so many words is not used


@dataclass
class Unit:
    """What is asked as one piece: a task's problems, their generations, a set of documents, or a task of lm-eval's."""

    task: str
    kind: str  # likelihood | generation | documents | general
    version: int | str  # of the task file
    items: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by template
    settings: dict[str, Any] = field(default_factory=dict)  # of the written task file
    limit: int | None = None  # items that are asked, where they are lm-eval's
    lm_eval: dict[str, Any] = field(default_factory=dict)  # lm-eval's task by template


def build(
    problems: pd.DataFrame,
    documents: Mapping[str, list[str]],
    params: EvaluationParams,
    folder: Path | str,
    examples: pd.DataFrame | None = None,
    tasks: Mapping[str, Task] | None = None,
) -> list[Unit]:
    """Write what is asked into `folder` as lm-eval's task files, and load them.

    `documents` maps 'general' and 'in_domain' to texts; they become the tasks held_out/general and held_out/in_domain.
    `examples` (needed when params.few_shot > 0) are `worked_examples`, the same for every item of a task. `tasks` are the
    task files by name, read from params.tasks if not given.
    """
    tasks = load_tasks(params.tasks) if tasks is None else tasks
    units = [*_problem_units(problems, examples, params, tasks), *_document_units(documents, params)]
    names = [{template: _write(unit, template, Path(folder)) for template in unit.items} for unit in units]
    with quiet():
        manager = TaskManager(include_defaults=False, include_path=str(folder))
        loaded = manager.load([name for of_unit in names for name in of_unit.values()])["tasks"] if units else {}
    for unit, of_unit in zip(units, names, strict=True):
        unit.lm_eval = {template: loaded[name] for template, name in of_unit.items()}
    for name, task in _general_tasks(tuple(params.general_tasks)).items():
        of_task = {"limit": params.general_items, "lm_eval": {"general": task}}
        units.append(Unit(f"{HELD_OUT}{name}", "general", str(task.VERSION), **of_task))
    if not units:
        raise TraitError("Nothing to evaluate: the test problems and the held-out documents are both empty.")
    return units


def load_items(data_file: str, **_metadata: Any) -> Any:
    """lm-eval's `custom_dataset` of every task: the items of a JSON-lines file, kept in memory.

    Not `dataset_path: json`, whose reader turns a column of date-like answers into timestamps and writes to a cache.
    """
    import datasets

    with Path(data_file).open(encoding="utf-8") as stream:
        items = [json.loads(line) for line in stream]
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(items)})


# ---- worked examples


def worked_examples(names: list[str], n_examples: int, test_items_per_task: int, seed: int = 0) -> pd.DataFrame:
    """Up to `n_examples` worked examples of each task, for few-shot prompts: a problems table.

    From the train split of the task, or of the one that its file names in `examples_from` (an evaluated task of that name
    first, then a shipped one or a path). Always with a solution, short, without drawings or tables in code, and neither a
    test question of any evaluated task nor nearly one. The same for every arm; another seed draws others. A choice task that
    borrows from one without choices gets some made: the example's answer among those of other examples.
    """
    from trait_kit.engine.questions import QuestionIndex

    parts = [(name, list(load_tasks([name]).values())) for name in names]
    files = {task.name: name if len(tasks) == 1 else f"{name}#{task.name}" for name, tasks in parts for task in tasks}
    tested = QuestionIndex(every_test_question(names, test_items_per_task, seed), n=_OVERLAP_WORDS)
    found = []
    for task in (task for _, tasks in parts for task in tasks):
        source = files.get(task.examples_from or task.name, task.examples_from or "")
        if not load_task(source).generated and load_task(source).splits.get("train") is None:
            continue
        pool = load_problems([source], "train", 50 + 20 * n_examples, seed)
        pool = pool[[_is_short_example(row) for row in pool.to_dict("records")]].reset_index(drop=True)
        pool = pool.drop(index=tested.find(pool["question"].tolist())["text_index"].unique())
        if task.kind == "choice" and pool["choices"].isna().all():
            pool = _with_choices(pool)
        found.append(pool.head(n_examples).assign(task=task.name))
    if not found:
        raise TraitError(f"None of the tasks {', '.join(files)} has a train split or examples_from. Set few_shot: 0.")
    return pd.concat(found, ignore_index=True)


def _is_short_example(row: dict[str, Any]) -> bool:
    text = f"{row['question']} {row['solution']}"
    drawn = "[asy]" in text or "\\begin{" in text
    return isinstance(row["solution"], str) and len(text) <= MAX_EXAMPLE_CHARACTERS and not drawn


def _with_choices(pool: pd.DataFrame) -> pd.DataFrame:
    """Problems whose answers are whole numbers, each with answers of the next ones as wrong choices, in a drawn order."""
    pool = pool[pool["answer"].str.fullmatch(r"-?\d{1,9}")]
    answers = list(dict.fromkeys(pool["answer"]))
    if len(answers) < _EXAMPLE_CHOICES:
        return pool.head(0)
    places = map(answers.index, pool["answer"])
    choices = [[answers[(place + step) % len(answers)] for step in range(_EXAMPLE_CHOICES)] for place in places]
    for question, shown in zip(pool["question"], choices, strict=True):
        Random(f"choices {question}").shuffle(shown)
    return pool.assign(choices=choices)


# ---- items


def _problem_units(
    problems: pd.DataFrame, examples: pd.DataFrame | None, params: EvaluationParams, tasks: Mapping[str, Task]
) -> Iterator[Unit]:
    for name, table in problems.groupby("task", sort=False):
        table = table.head(params.test_items_per_task)
        if table["id"].duplicated().any():
            raise TraitError(f"Task {name}: two test problems have the same id. Ids must be unique within a task.")
        task, rows = tasks.get(name), table.to_dict("records")
        kind, version = (task.kind, task.version) if task else ("", 1)
        shots = _few_shot(str(name), table, examples, params.few_shot)
        if params.likelihood:
            items = [_item(row, _shown(shots)) for row in rows]
            by_template = {"solution_bits": items, "choices": [item for item in items if item["choices"]]}
            by_template = {template: asked for template, asked in by_template.items() if asked}
            yield Unit(str(name), "likelihood", version, by_template)
        if params.generate_items:
            marks = [metric for metric in ads.METRICS if task and metric in task.metrics]
            more = {"kind": kind, "marks": marks, "limits": list(task.limits) if task else []}
            items = [{**_item(row, _shown(shots, kind), kind), **more} for row in rows[: params.generate_items]]
            settings = {"until": ["\nQuestion:"], "do_sample": False, "max_gen_toks": params.max_new_tokens}
            yield Unit(str(name), "generation", version, {"generation": items}, {"generation_kwargs": settings})


def _document_units(documents: Mapping[str, list[str]], params: EvaluationParams) -> Iterator[Unit]:
    limits = {"general": params.general_documents, "in_domain": params.in_domain_documents}
    for name, texts in documents.items():
        texts = texts[: limits[name]]
        for place, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise TraitError(f"Held-out document {place} of '{name}' is empty or not text. Remove it.")
        cut = [text[:MAX_DOCUMENT_CHARACTERS] for text in texts]
        items = [{"id": f"{name}-{place:05d}-{digest(text)[:8]}", "text": text} for place, text in enumerate(cut)]
        if items and params.likelihood:
            yield Unit(f"{HELD_OUT}{name}", "documents", 1, {"document_bits": items})


def _item(row: dict[str, Any], prefix: str, kind: str = "") -> dict[str, Any]:
    """What lm-eval sees of a problem; of the kind 'choice', with its choices shown and a letter as the target."""
    where = f"Test problem {row.get('id')} of task {row.get('task')}"
    for name in ("question", "answer"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise TraitError(f"{where} has no {name}. Add it, or drop the problem.")
    if row.get("split") not in (None, "test"):
        raise TraitError(f"{where} is from the {row['split']} split, which may be trained on. Evaluate on the test split.")
    answer, entity = row["answer"], row.get("entity")
    solution = row["solution"] if isinstance(row.get("solution"), str) and row["solution"].strip() else answer
    item = {"id": str(row["id"]), "prompt": prefix + prompt(row["question"]), "target": f" {solution}", "answer": answer}
    item |= {"question": row["question"], "entity": entity if isinstance(entity, str) else "", "choices": []}
    if row.get("choices") is None or isinstance(row["choices"], float):  # pandas may hold a null as NaN
        return item
    choices = [str(choice) for choice in row["choices"]]
    if answer not in choices or not all(choice.strip() for choice in choices) or len(choices) < 2:
        raise TraitError(f"{where}: its choices must be two or more, none empty, and hold the answer {answer!r}.")
    item |= {"choices": choices, "gold": choices.index(answer)}
    if kind == "choice":
        reasoning = "" if solution == answer else solution.removesuffix(f"The answer is {answer.rstrip('.')}.")
        item["prompt"] = prefix + prompt(row["question"], choices)
        item["target"] = f" {reasoning}The answer is ({ascii_uppercase[item['gold']]})."
    return item


def _few_shot(task: str, tested: pd.DataFrame, examples: pd.DataFrame | None, n_examples: int) -> list[dict[str, Any]]:
    if n_examples == 0:
        return []
    pool = examples[examples["task"] == task] if examples is not None else tested.iloc[:0]
    pool = pool[~pool["question"].isin(set(tested["question"]))].head(n_examples)
    if len(pool) < n_examples:
        raise TraitError(
            f"few_shot is {n_examples}, but task {task} has {len(pool)} worked example(s) besides its test items."
        )
    return [{**row, "split": None} for row in pool.to_dict("records")]


def _shown(shots: list[dict[str, Any]], kind: str = "") -> str:
    """The worked examples as they stand before a question."""
    items = [_item(row, "", kind) for row in shots]
    return "".join(f"{item['prompt']}{item['target']}\n\n" for item in items)


# ---- lm-eval's tasks


def _write(unit: Unit, template: str, folder: Path) -> str:
    """Write the items and task file of one lm-eval task into `folder`; returns the task's name in lm-eval."""
    shutil.copytree(TEMPLATES, folder, dirs_exist_ok=True)
    plain = re.sub(r"\W", "_", unit.task)
    name = f"{plain if plain == unit.task else f'{plain}_{digest(unit.task)[:6]}'}_{template}"
    data = folder.resolve() / "items" / f"{name}.jsonl"
    write_text(data, "".join(json.dumps(item) + "\n" for item in unit.items[template]))
    config = {"task": name, "include": f"{template}.yaml", "dataset_kwargs": {"data_file": str(data)}}
    config |= {"metadata": {"version": unit.version}, **unit.settings}
    write_text(folder / f"{name}.yaml", yaml.safe_dump(config, sort_keys=False))
    return name


@functools.lru_cache(maxsize=4)
def _general_tasks(names: tuple[str, ...]) -> dict[str, Any]:
    """lm-eval's own tasks (of a group: its members) by name; their scores say what a model has forgotten."""
    if not names:
        return {}
    with quiet():  # the index of all shipped tasks takes ten seconds
        manager = TaskManager(include_defaults=not all(name.endswith((".yaml", ".yml")) for name in names))
    found: dict[str, Any] = {}
    for name in names:
        try:
            with quiet():
                loaded = manager.load([name])["tasks"]
        except Exception as error:  # of the task's file, of its own code, of the data set's host: many kinds
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise TraitError(
                f"general_tasks: {name} cannot be loaded ({said}). Name a task that lm-eval lists, or a task file. "
                "Its data come from the Hugging Face hub once: they must be reachable, or in its cache."
            ) from None
        if unsafe := [task for task, loaded_task in loaded.items() if getattr(loaded_task, "UNSAFE_CODE", False)]:
            raise TraitError(f"general_tasks: {unsafe[0]} runs code that the model writes. Leave it out.")
        found |= loaded
    return found
