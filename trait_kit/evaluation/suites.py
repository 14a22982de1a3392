"""What every arm is asked: the tasks' held-out problems, held-out documents, and lm-eval's own tasks, in lm-eval's form.

Every arm sees the same items in the same words, so arms can be compared item by item. The shipped files in tasks/ are
templates; a copy of them, the items as JSON lines and a small task file stand in the step's folder, so the same tasks also
run under lm-eval's own command line: `lm_eval --model hf --model_args pretrained=MODEL --include_path
RUN/05_evaluate/lm_eval --tasks word_problems_choices`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import pandas as pd
import yaml
from lm_eval.tasks import TaskManager

from trait_kit.engine.files import TraitError, digest, write_text
from trait_kit.engine.questions import QuestionIndex
from trait_kit.evaluation import ads
from trait_kit.evaluation.comparison import HELD_OUT
from trait_kit.evaluation.scoring_model import quiet
from trait_kit.params import EvaluationParams
from trait_kit.tasks import Task, every_test_question, load_problems, load_task, load_tasks, prompt

TEMPLATES = Path(__file__).parent / "tasks"
MAX_DOCUMENT_CHARACTERS = 4_000  # longer held-out documents are cut: their cost is the same for every corpus
MAX_EXAMPLE_CHARACTERS = 700  # of a worked example, question and solution: every item pays for them
GENERAL_ITEMS = 200  # of each of lm-eval's own tasks
_OVERLAP_WORDS = 8  # an example that shares half of a test question's runs of so many words is not used


@dataclass
class Unit:
    """What is asked as one piece: a task's problems, their generations, a set of documents, or a task of lm-eval's."""

    task: str
    kind: str  # likelihood | generation | documents | general
    version: int | str  # of the task file
    lm_eval: dict[str, Any]  # lm-eval's task by template; before it is loaded, its name
    limit: int | None = None  # items that are asked, where they are lm-eval's


def build(
    problems: pd.DataFrame,
    documents: Mapping[str, list[str]],
    params: EvaluationParams,
    folder: Path | str,
    examples: pd.DataFrame | None,
    tasks: Mapping[str, Task],
) -> list[Unit]:
    """Write what is asked into `folder` as lm-eval's task files, and load them.

    `documents` maps 'general' and 'in_domain' to texts; they become the tasks held_out/general and held_out/in_domain.
    `examples` (needed when params.few_shot > 0) are `worked_examples`, the same for every item of a task. `tasks` are the
    task files by name.
    """
    folder = Path(folder)
    problems = problems.astype(object).where(problems.notna(), None)
    shutil.copytree(TEMPLATES, folder, dirs_exist_ok=True)
    units = [*_problem_units(problems, examples, params, tasks, folder), *_document_units(documents, params, folder)]
    with quiet():
        manager = TaskManager(include_defaults=False, include_path=str(folder))
        loaded = manager.load([name for unit in units for name in unit.lm_eval.values()])["tasks"] if units else {}
    for unit in units:
        unit.lm_eval = {template: loaded[name] for template, name in unit.lm_eval.items()}
    for name, task in _general_tasks(params.general_tasks).items():
        units.append(Unit(f"{HELD_OUT}{name}", "general", str(task.VERSION), {"general": task}, GENERAL_ITEMS))
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


def n_examples(params: EvaluationParams, task: str) -> int:
    """Worked examples before each problem of a task."""
    return params.few_shot.get(task, 0) if isinstance(params.few_shot, dict) else params.few_shot


def worked_examples(names: list[str], n_examples: int, test_items_per_task: int, seed: int = 0) -> pd.DataFrame:
    """Up to `n_examples` worked examples of each task, for few-shot prompts: a problems table.

    From the train split of the task, or of the one that its file names in `examples_from` (an evaluated task of that name
    first, then a shipped one or a path). Always with a solution, short, without drawings or tables in code, and neither a
    test question of any evaluated task nor nearly one. The same for every arm; another seed draws others. A choice task that
    borrows from one without choices gets some made: the example's answer among those of the next examples.
    """
    tasks = load_tasks(names)
    sources = {task.name: f"{task.origin}#{task.name}" for task in tasks.values()}
    tested = QuestionIndex(every_test_question(names, test_items_per_task, seed), n=_OVERLAP_WORDS)
    found = []
    for task in tasks.values():
        source = sources.get(task.examples_from or task.name, task.examples_from)
        if not load_task(source).generated and load_task(source).splits.get("train") is None:
            continue
        pool = load_problems([source], "train", 50 + 20 * n_examples, seed)
        text = pool["question"] + " " + pool["solution"].fillna("")
        short = pool["solution"].notna() & (text.str.len() <= MAX_EXAMPLE_CHARACTERS)
        pool = pool[short & ~text.str.contains(r"\[asy\]|\\begin\{")].reset_index(drop=True)
        pool = pool.drop(index=tested.find(pool["question"].tolist())["text_index"].unique())
        if task.kind == "choice" and pool["choices"].isna().all():
            pool = pool.drop_duplicates("answer")
            answers = [*pool["answer"], *pool["answer"][:3]]
            pool["choices"] = [sorted(set(answers[place : place + 4])) for place in range(len(pool))]
        found.append(pool.head(n_examples).assign(task=task.name))
    if not found:
        raise TraitError(f"None of the tasks {', '.join(tasks)} has a train split or examples_from. Set few_shot: 0.")
    return pd.concat(found, ignore_index=True)


# ---- items


def _problem_units(
    problems: pd.DataFrame,
    examples: pd.DataFrame | None,
    params: EvaluationParams,
    tasks: Mapping[str, Task],
    folder: Path,
) -> Iterator[Unit]:
    for name, table in problems.groupby("task", sort=False):
        task, rows = tasks[name], table.head(params.test_items_per_task).to_dict("records")
        before = _shown(name, examples, n_examples(params, name))
        items = [_item(row, before) for row in rows]
        asked = {"solution_bits": items, "choices": [item for item in items if item["choices"]]}
        written = {template: _write(name, task.version, template, part, folder) for template, part in asked.items() if part}
        yield Unit(name, "likelihood", task.version, written)
        if params.generate_items:
            marks = [metric for metric in ads.METRICS if metric in task.metrics]
            more = {"kind": task.kind, "marks": marks, "limits": task.limits}
            before = _shown(name, examples, n_examples(params, name), task.kind)
            items = [{**_item(row, before, task.kind), **more} for row in rows[: params.generate_items]]
            settings = {"until": ["\nQuestion:"], "do_sample": False, "max_gen_toks": params.max_new_tokens}
            written = _write(name, task.version, "generation", items, folder, generation_kwargs=settings)
            yield Unit(name, "generation", task.version, {"generation": written})


def _document_units(documents: Mapping[str, list[str]], params: EvaluationParams, folder: Path) -> Iterator[Unit]:
    limits = {"general": params.general_documents, "in_domain": params.in_domain_documents}
    for name, texts in documents.items():
        cut = [text[:MAX_DOCUMENT_CHARACTERS] for text in texts[: limits[name]]]
        items = [{"id": f"{name}-{place:05d}-{digest(text)[:8]}", "text": text} for place, text in enumerate(cut)]
        if items:
            written = _write(f"{HELD_OUT}{name}", 1, "document_bits", items, folder)
            yield Unit(f"{HELD_OUT}{name}", "documents", 1, {"document_bits": written})


def _item(row: dict[str, Any], before: str, kind: str = "") -> dict[str, Any]:
    """What lm-eval sees of a problem; of the kind 'choice', with its choices shown and a letter as the target."""
    answer, choices = row["answer"], list(row["choices"] or [])
    if choices and (len(choices) < 2 or "" in choices):
        raise TraitError(f"Problem {row['id']} of task {row['task']}: its choices must be two or more, none empty.")
    solution = row["solution"] or answer
    item = {
        "id": row["id"],
        "prompt": before + prompt(row["question"]),
        "target": f" {solution}",
        "question": row["question"],
        "answer": answer,
        "entity": row["entity"] or "",
        "choices": choices,
    }
    if choices:
        item["gold"] = choices.index(answer)
    if choices and kind == "choice":
        reasoning = "" if solution == answer else solution.removesuffix(f"The answer is {answer.rstrip('.')}.")
        item["prompt"] = before + prompt(row["question"], choices)
        item["target"] = f" {reasoning}The answer is ({ascii_uppercase[item['gold']]})."
    return item


def _shown(task: str, examples: pd.DataFrame | None, n_examples: int, kind: str = "") -> str:
    """The worked examples as they stand before a question."""
    if not n_examples:
        return ""
    pool = examples[examples["task"] == task].head(n_examples)
    if len(pool) < n_examples:
        raise TraitError(f"few_shot is {n_examples}, but task {task} has {len(pool)} worked example(s) to show.")
    items = [_item(row, "", kind) for row in pool.to_dict("records")]
    return "".join(f"{item['prompt']}{item['target']}\n\n" for item in items)


# ---- lm-eval's tasks


def _write(
    task: str, version: int, template: str, items: list[dict[str, Any]], folder: Path, **settings: dict[str, Any]
) -> str:
    """Write the items and task file of one lm-eval task into `folder`; returns the task's name in lm-eval."""
    name = f"{task.replace('/', '_')}_{template}"
    data = folder.resolve() / "items" / f"{name}.jsonl"
    write_text(data, "".join(json.dumps(item) + "\n" for item in items))
    config = {"task": name, "include": f"{template}.yaml", "dataset_kwargs": {"data_file": str(data)}}
    write_text(folder / f"{name}.yaml", yaml.safe_dump({**config, "metadata": {"version": version}, **settings}))
    return name


def _general_tasks(names: list[str]) -> dict[str, Any]:
    """lm-eval's own tasks (of a group: its members) by name; their scores say what a model has forgotten."""
    if not names:
        return {}
    try:
        with quiet():  # the index of all shipped tasks takes ten seconds
            manager = TaskManager(include_defaults=not all(name.endswith((".yaml", ".yml")) for name in names))
            return manager.load(names)["tasks"]
    except Exception as error:  # of the task's file, of its own code, of the data set's host: many kinds
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise TraitError(
            f"general_tasks: {', '.join(names)} cannot be loaded ({said}). Name tasks that lm-eval lists, or task files. "
            "Their data come from the Hugging Face hub once: they must be reachable, or in its cache."
        ) from None
