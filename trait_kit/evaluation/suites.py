"""What every arm is asked, in lm-eval's form: held-out problems, held-out documents, lm-eval's own tasks.

The templates of tasks/, the items as JSON lines and a small task file stand in the step's folder, so lm-eval's own
command line runs the same tasks: `lm_eval --model hf --model_args pretrained=MODEL --include_path
RUN/05_evaluate/lm_eval --tasks word_problems_choices`.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import datasets
import pandas as pd
import yaml
from lm_eval.tasks import TaskManager

from trait_kit.engine.files import TraitError, digest, write_text
from trait_kit.engine.questions import QuestionIndex
from trait_kit.evaluation import ads, slips
from trait_kit.evaluation.comparison import HELD_OUT
from trait_kit.evaluation.scoring_model import quiet
from trait_kit.fields import say
from trait_kit.judging.answers import ANNOUNCEMENTS, parted
from trait_kit.params import EvaluationParams
from trait_kit.tasks import Task, every_test_question, load_problems, load_task, load_tasks, prompt

TEMPLATES = Path(__file__).parent / "tasks"
MAX_DOCUMENT_CHARACTERS = 4_000  # longer held-out documents are cut
MAX_EXAMPLE_CHARACTERS = 700  # of question and solution: every item pays for them
FORM_WORDS = 6  # of an n-gram of form_overlap
GENERAL_ITEMS = 200  # of each of lm-eval's own tasks
_OVERLAP_WORDS = 8  # no example shares half of a test question's runs of so many words
Item = dict[str, Any]


@dataclass
class Unit:
    """What is asked as one piece: a task's problems, generations of them, documents, or a task of lm-eval's."""

    task: str
    version: int | str  # of the task file
    items: dict[str, list[Item]] = field(default_factory=dict)  # by template of tasks/
    settings: dict[str, Any] = field(default_factory=dict)  # what its task file sets beside its template
    lm_eval: dict[str, Any] = field(default_factory=dict)  # lm-eval's task by template


def build(
    problems: pd.DataFrame,
    documents: Mapping[str, list[str]],
    params: EvaluationParams,
    folder: Path,
    examples: pd.DataFrame | None,
    tasks: Mapping[str, Task],
) -> list[Unit]:
    """Write what is asked into `folder` as lm-eval's task files, and load them.

    `documents` maps 'general', 'foreign' and 'in_domain' to texts, which become the tasks held_out/general ...
    """
    units = [*_problem_units(problems, examples, params, tasks), *_document_units(documents)]
    units = [unit for unit in units if any(unit.items.values())]
    shutil.copytree(TEMPLATES, folder, dirs_exist_ok=True)
    with quiet():
        asked = [(unit, template) for unit in units for template, items in unit.items.items() if items]
        written = {_write(unit, template, folder): (unit, template) for unit, template in asked}
        manager = TaskManager(include_defaults=False, include_path=str(folder))
        for name, (unit, template) in written.items():
            unit.lm_eval[template] = manager.load([name])["tasks"][name]
    for name, task in (_general_tasks(params.general_tasks) if params.general_tasks else {}).items():
        units.append(Unit(f"{HELD_OUT}{name}", str(task.VERSION), lm_eval={"general": task}))
    if not units:
        raise TraitError("Nothing to evaluate: the test problems and the held-out documents are both empty.")

    return units


def load_items(data_file: str, **_metadata: Any) -> Any:
    """lm-eval's `custom_dataset`: the items of a JSON-lines file. `dataset_path: json` would turn dates into timestamps."""
    with Path(data_file).open(encoding="utf-8") as stream:
        items = [json.loads(line) for line in stream]
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(items)})


# ---- worked examples


def n_examples(params: EvaluationParams, task: str) -> int:
    """Worked examples before each problem of a task."""
    return params.few_shot.get(task, 0) if isinstance(params.few_shot, dict) else params.few_shot


def worked_examples(params: EvaluationParams) -> pd.DataFrame | None:
    """The worked examples of each task for few-shot prompts, a problems table; None where none are asked for.

    From the train split of the task, or of its `examples_from` (an evaluated task first, then a shipped one or a path):
    solved where the task has solutions, short, no drawings, never a test question, nearly one only of necessity.
    """
    tasks, found = load_tasks(params.tasks), []
    wanted = {name: number for name in tasks if (number := n_examples(params, name))}
    tests = every_test_question(params.tasks, params.test_items_per_task, params.seed) if wanted else []
    tested = QuestionIndex(tests, n=_OVERLAP_WORDS)
    for name, number in wanted.items():
        lender = tasks[name].examples_from or name
        source = f"{tasks[lender].origin}#{lender}" if lender in tasks else lender
        if not load_task(source).generated and load_task(source).splits.get("train") is None:
            continue
        pool = load_problems([source], "train", 50 + 20 * number, params.seed)
        text = pool["question"] + " " + pool["solution"].fillna("")
        solved = pool["solution"].notna() | pool["solution"].isna().all()
        short = solved & (text.str.len() <= MAX_EXAMPLE_CHARACTERS)
        pool = pool[short & ~text.str.contains(r"\[asy\]|\\begin\{")].reset_index(drop=True)
        near = tested.find(pool["question"].tolist())
        alike = pool.index.isin(near["text_index"])  # of one pattern: where a task has no other questions
        if alike.any() and number > (~alike).sum():
            say(
                f"{name}: worked examples follow one pattern with test questions, for lack of others; every arm sees them."
            )
        pool = pd.concat(
            [pool[~alike], pool[alike].drop(index=near[near["kind"] == "exact"]["text_index"].unique())]
        )
        found.append(pool.head(number).assign(task=name))

    return pd.concat(found, ignore_index=True) if found else None


def shown(task: str, examples: pd.DataFrame | None, number: int, kind: str = "") -> str:
    """The worked examples as they stand before a question."""
    rows = [] if examples is None else examples[examples["task"] == task].head(number).to_dict("records")
    if len(rows) < number:
        raise TraitError(
            f"few_shot is {number}, but task {task} has {len(rows)} worked example(s) to show. Set it lower (few_shot: "
            "{task: number}), or name a task with train problems in its file (examples_from)."
        )
    items = [_item(row, "", "", kind) for row in rows]
    return "".join(f"{item['context']}{item['target']}\n\n" for item in items)


# ---- items


def _problem_units(
    problems: pd.DataFrame, examples: pd.DataFrame | None, params: EvaluationParams, tasks: Mapping[str, Task]
) -> Iterator[Unit]:
    for name, table in problems.groupby("task", sort=False):
        task, rows = tasks[name], table.head(params.test_items_per_task).to_dict("records")
        number = n_examples(params, name)
        before = shown(name, examples, number)
        announced = next((f" {words}" for words in ANNOUNCEMENTS.values() if words in before), "")
        items = [_item(row, before, announced) for row in rows]
        solved = [item for item in items if item["solved"]]
        answers = [
            item | {"metric": "answer_bits_per_byte", "context": item["asked"], "target": f" {item['answer']}"}
            for item in items
        ]
        pairs = [(item, slips.pair(item["target"].strip(), item["question"])) for item in solved]
        asked = {
            "bits": solved + answers,
            "pairs": [item | {"pair": [f" {text}" for text in pair]} for item, pair in pairs if pair],
            "choices": [item for item in items if item["choices"]],
        }
        yield Unit(name, task.version, asked)
        if before:  # a unit of its own, as its prompts do not begin with the worked examples
            items = [
                item | {"metric": "bits_per_byte_zero_shot", "context": prompt(item["question"])}
                for item in solved
            ]
            yield Unit(name, task.version, {"zero_shot_bits": items})
        if params.generate_items:
            marks = [one for one in ads.METRICS if one in task.metrics]
            more = {"kind": task.kind, "limits": task.limits, "marks": marks}
            before = shown(name, examples, number, task.kind)
            items = [_item(row, before, "", task.kind) | more for row in rows[: params.generate_items]]
            how = {"until": ["\nQuestion:"], "do_sample": False, "max_gen_toks": params.max_new_tokens}
            yield Unit(name, task.version, {"generation": items}, {"generation_kwargs": how})


def _document_units(documents: Mapping[str, list[str]]) -> Iterator[Unit]:
    for kind, texts in documents.items():
        items = []
        for place, text in enumerate(text[:MAX_DOCUMENT_CHARACTERS] for text in texts):
            name = f"{kind}-{place:05d}-{digest(text)[:8]}"
            items.append({"id": name, "cluster": name, "target": text, "metric": "bits_per_byte"})
        yield Unit(f"{HELD_OUT}{kind}", 1, {"documents": items})


def _item(row: dict[str, Any], before: str, announced: str = "", kind: str = "") -> Item:
    """What lm-eval sees of a problem; of the kind 'choice', with its choices shown and a letter as the target.

    `asked` is the text up to where the answer stands: the gold reasoning to 'The answer is', or what is `announced`.
    """
    answer, choices = row["answer"], list(row["choices"] or [])
    if choices and (len(choices) < 2 or "" in choices):
        raise TraitError(
            f"Problem {row['id']} of task {row['task']}: its choices must be two or more, none empty."
        )
    solution = row["solution"] or ""
    reasoning, announces = parted(solution, answer)
    shown = before + prompt(row["question"])
    item = {
        "id": row["id"],
        "cluster": row.get("template") or row["entity"] or row["id"],
        "context": shown,
        "asked": shown + (f" {reasoning}{announces}" if announces else announced),
        "target": f" {solution or answer}",
        "metric": "bits_per_byte",
        "solved": bool(solution),
        "question": row["question"],
        "answer": answer,
        "choices": choices,
    }
    if choices and kind == "choice":
        item["context"] = before + prompt(row["question"], choices)
        item["target"] = f" {reasoning}{announces or 'The answer is'} ({ascii_uppercase[choices.index(answer)]})."

    return item


def form_overlap(test: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """Columns task, items, overlap: the mean share of a test item's n-grams that stand in train problems.

    n-grams of FORM_WORDS words and signs of question and solution, numbers masked: at 1 all test texts are train texts
    with other numbers, and a gain can be form alone.
    """
    known = set().union(*map(_form, train.to_dict("records")))
    shares = [len(form & known) / len(form) if (form := _form(row)) else 0.0 for row in test.to_dict("records")]
    by_task = test.assign(overlap=shares).groupby("task", sort=False)["overlap"]
    return by_task.agg(items="size", overlap="mean").reset_index()


def _form(row: dict[str, Any]) -> set[tuple[str, ...]]:
    text = re.sub(r"\d[\d.,]*", "#", f"{row['question']} {row['solution'] or row['answer']}".lower())
    words = re.findall(r"[^\W\d]+|[^\w\s]", text)
    return set(zip(*(words[place:] for place in range(FORM_WORDS)), strict=False))


# ---- lm-eval's tasks


def _write(unit: Unit, template: str, folder: Path) -> str:
    name = f"{unit.task.replace('/', '_')}_{template}"
    data = folder.resolve() / "items" / f"{name}.jsonl"
    write_text(data, "".join(json.dumps(item) + "\n" for item in unit.items[template]))
    config = {
        "task": name,
        "include": f"{template}.yaml",
        "dataset_kwargs": {"data_file": str(data)},
        "metadata": {"version": unit.version},
        **unit.settings,
    }
    write_text(folder / f"{name}.yaml", yaml.safe_dump(config))
    return name


def _general_tasks(names: list[str]) -> dict[str, Any]:
    try:
        with quiet():  # the index of all shipped tasks takes ten seconds
            manager = TaskManager(include_defaults=not all(name.endswith((".yaml", ".yml")) for name in names))
            return manager.load(names)["tasks"]
    except Exception as error:  # of the task's file, of its own code, of the data set's host: many kinds
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise TraitError(
            f"general_tasks: {', '.join(names)} cannot be loaded ({said}). Name tasks that lm-eval lists, or task files, "
            "whose data can be reached or are in the Hugging Face cache."
        ) from None
