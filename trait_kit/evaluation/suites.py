"""Evaluate one arm: its held-out problems and documents, one outcome an item and metric.

Four measures (DESIGN.md, section 5). Bits per byte of the gold solution given the question, the choice preferred by
likelihood, exact match of a generated answer where asked for (flexible and strict, see answers.py; the choices are then
shown with letters), and bits per byte of held-out documents: the general ones show what was forgotten, and so do lm-eval's
own tasks, by their own metric. Every arm sees the same items in the same words, so arms can be compared item by item.
Outcomes are kept by what shaped them (units.py): an evaluation that was killed goes on, more items or tasks repeat nothing,
and arms that share a model share its outcomes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd

from trait_kit import tables
from trait_kit.engine.files import TraitError, digest, sha256
from trait_kit.evaluation import ads
from trait_kit.evaluation.units import HELD_OUT, Unit, evaluate_unit, write_unit
from trait_kit.params import EvaluationParams
from trait_kit.tasks import Task, every_test_question, load_problems, load_task, prompt

MAX_DOCUMENT_CHARACTERS = 4_000  # longer held-out documents are cut: their cost is the same for every corpus

MAX_EXAMPLE_CHARACTERS = 700  # of a worked example, question and solution: every item pays for them
_EXAMPLE_CHOICES = 4  # shown with an example that is borrowed from a task without choices
_OVERLAP_WORDS = 8  # an example that shares half of a test question's runs of so many words is not used
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def evaluate_model(
    model_dir: Path | str,
    arm: str,
    seed: int,
    problems: pd.DataFrame,
    documents: dict[str, list[str]],
    params: EvaluationParams,
    out_dir: Path | str,
    few_shot_problems: pd.DataFrame | None = None,
    report: Callable[[str], None] | None = None,
    tasks: Mapping[str, Task] | None = None,
) -> pd.DataFrame:
    """Outcomes (tables.SCHEMAS['outcomes']) of one model on test problems and on held-out documents by name.

    `documents` maps 'general' and 'in_domain' to texts; they become the tasks held_out/general and held_out/in_domain.
    `few_shot_problems` (needed when params.few_shot > 0) are `worked_examples`, the same for every item of a task.
    A model id that is not a folder is taken from the Hugging Face hub. `report` gets one line a finished unit. `tasks`
    are the task files by name, read from params.tasks if not given.
    """
    from trait_kit.evaluation.backends import Backend
    from trait_kit.evaluation.general_tasks import general_units

    out_dir, report = Path(out_dir), report or (lambda _line: None)
    tasks = load_tasks(params.tasks) if tasks is None else tasks
    units = [*_problem_units(problems, few_shot_problems, params, tasks), *_document_units(documents, params)]
    units += general_units(params)
    if not units:
        raise TraitError("Nothing to evaluate: the test problems and the held-out documents are both empty.")
    folder = model_folder(model_dir)
    backend = Backend(params, folder, arm, model_digest(folder))
    found = []
    try:
        for unit in units:
            started = time.monotonic()
            rows, asked = evaluate_unit(unit, backend, out_dir, report)
            found += [{"task": unit.task, **row} for item in unit.items for row in rows[digest(item)]]
            how = f"{asked:,} asked in {time.monotonic() - started:.1f} s" if asked else "kept from before"
            report(f"{arm}: {unit.task} version {unit.version} ({unit.kind}), {len(unit.items):,} items, {how}")
    finally:
        backend.close()
    return tables.conform(pd.DataFrame(found).assign(arm=arm, seed=int(seed)), "outcomes").to_pandas()


def load_tasks(names: list[str]) -> dict[str, Task]:
    """The task files by the tasks' names: their versions belong into a run's record."""
    return {task.name: task for name in names for task in load_task(name).parts}


def worked_examples(names: list[str], n_examples: int, test_items_per_task: int, seed: int = 0) -> pd.DataFrame:
    """Up to `n_examples` worked examples of each task, for few-shot prompts: a problems table.

    From the train split of the task, or of the one that its file names in `examples_from` (an evaluated task of that name
    first, then a shipped one or a path). Always with a solution, short, without drawings or tables in code, and neither a
    test question of any evaluated task nor nearly one. The same for every arm; another seed draws others. A choice task that
    borrows from one without choices gets some made: the example's answer among those of other examples.
    """
    from trait_kit.engine.questions import TestQuestions

    parts = [(name, load_task(name).parts) for name in names]
    files = {task.name: name if len(tasks) == 1 else f"{name}#{task.name}" for name, tasks in parts for task in tasks}
    tested = TestQuestions(every_test_question(names, test_items_per_task, seed), n=_OVERLAP_WORDS)
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


def model_folder(model: Path | str) -> Path:
    """The folder itself, or the local snapshot of a hub id (downloaded once; safetensors only, never pickles)."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or str(model).startswith((".", "~")) or str(model).count("/") != 1:
        raise TraitError(f"The model folder {model} does not exist. Run the training step first, or name a hub model.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(model), allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"]))
    except Exception as error:  # the hub client raises a dozen kinds; the user needs one answer
        raise TraitError(f"The model {model} is neither a folder nor available from the hub: {error}") from error


def model_digest(folder: Path) -> str:
    """Digest of a model's weights, configuration and tokenizer files."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".model"))
    if not any(path.suffix == ".safetensors" for path in files):
        raise TraitError(f"{folder} holds no *.safetensors file. Name a folder that transformers' save_pretrained wrote.")
    return digest([[path.name, sha256(path)] for path in files])


def _problem_units(
    problems: pd.DataFrame, examples: pd.DataFrame | None, params: EvaluationParams, tasks: Mapping[str, Task]
) -> Iterator[Unit]:
    for name, rows in problems.groupby("task", sort=False):
        rows = rows.head(params.test_items_per_task)
        task = tasks.get(name)
        kind, version = (task.kind, task.version) if task else ("", 1)
        shots = _few_shot(str(name), rows, examples, params.few_shot)
        items = [_item(row, _shown(shots)) for row in rows.to_dict("records")]
        if len({item["id"] for item in items}) != len(items):
            raise TraitError(f"Task {name}: two test problems have the same id. Ids must be unique within a task.")
        if params.likelihood:
            yield Unit(str(name), "likelihood", items, {}, version)
        if params.generate_items:
            prefix, asked = _shown(shots, kind), rows.head(params.generate_items).to_dict("records")
            marks = [name for name in ads.METRICS if task and name in task.metrics]
            more = {"marks": marks, "limits": list(task.limits) if task else []}
            items = [{"kind": kind, "choices": [], **_item(row, prefix, kind), **_marked_by(row), **more} for row in asked]
            yield Unit(str(name), "generation", items, {"max_gen_toks": params.max_new_tokens}, version)


def _marked_by(row: dict[str, Any]) -> dict[str, Any]:
    """What marks of generated texts may look at besides the answer."""
    entity = row.get("entity")
    return {"question": row["question"], "entity": entity if isinstance(entity, str) else ""}


def _item(row: dict[str, Any], prefix: str, kind: str = "") -> dict[str, Any]:
    """What lm-eval sees of a problem; of the kind 'choice', with its choices shown and a letter as the target."""
    where = f"Test problem {row.get('id')} of task {row.get('task')}"
    for field in ("question", "answer"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise TraitError(f"{where} has no {field}. Add it, or drop the problem.")
    if row.get("split") not in (None, "test"):
        raise TraitError(f"{where} is from the {row['split']} split, which may be trained on. Evaluate on the test split.")
    solution = row["solution"] if isinstance(row.get("solution"), str) and row["solution"].strip() else row["answer"]
    item = {
        "id": str(row["id"]),
        "prompt": prefix + prompt(row["question"]),
        "target": f" {solution}",
        "answer": row["answer"],
    }
    if row.get("choices") is not None and not isinstance(row["choices"], float):  # pandas may hold a null as NaN
        choices = [str(choice) for choice in row["choices"]]
        if row["answer"] not in choices or not all(choice.strip() for choice in choices) or len(choices) < 2:
            raise TraitError(f"{where}: its choices must be two or more, none empty, and hold the answer {row['answer']!r}.")
        item |= {"choices": choices, "gold": choices.index(row["answer"])}
        if kind == "choice":
            reasoning = "" if solution == row["answer"] else solution
            reasoning = reasoning.removesuffix(f"The answer is {row['answer'].rstrip('.')}.")
            item["prompt"] = prefix + prompt(row["question"], choices)
            item["target"] = f" {reasoning}The answer is ({_LETTERS[item['gold']]})."
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


def _document_units(documents: dict[str, list[str]], params: EvaluationParams) -> Iterator[Unit]:
    limits = {"general": params.general_documents, "in_domain": params.in_domain_documents}
    for name, texts in documents.items():
        texts = list(texts)[: limits.get(name, len(texts))]
        for place, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise TraitError(f"Held-out document {place} of '{name}' is empty or not text. Remove it.")
        cut = [text[:MAX_DOCUMENT_CHARACTERS] for text in texts]
        items = [{"id": f"{name}-{place:05d}-{digest(text)[:8]}", "text": text} for place, text in enumerate(cut)]
        if items and params.likelihood:
            yield Unit(f"{HELD_OUT}{name}", "documents", items, {})


def write_lm_eval_tasks(params: EvaluationParams, folder: Path | str) -> list[str]:
    """The suite as lm-eval task files and items, without a model: their names, for `lm_eval --include_path FOLDER --tasks`.

    The same prompts, worked examples and marks as a run with these parameters has.
    """
    problems = load_problems(params.tasks, "test", params.test_items_per_task, params.seed)
    examples = None
    if params.few_shot:
        examples = worked_examples(params.tasks, params.few_shot, params.test_items_per_task, params.seed)
    units = _problem_units(problems, examples, params, load_tasks(params.tasks))
    return [name for unit in units for name, _items in write_unit(unit, Path(folder)).values()]
