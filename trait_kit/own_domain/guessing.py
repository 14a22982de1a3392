"""Which column of a data set is what: by its name, and by trying.

Columns are known by their names in some languages (scaffold.yaml). How an answer and its choices are read out of them is
tried on the first rows, by the functions that tasks are read with; the form that reads most rows is taken.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from trait_kit.answers import is_mathematical
from trait_kit.engine.files import TraitError
from trait_kit.engine.numbers import quantity
from trait_kit.engine.readers import hub_data
from trait_kit.fields import FORMS, FieldError, Row, fill, form_of, read_rows, usable

_KNOWN = yaml.safe_load(Path(__file__).with_name("scaffold.yaml").read_text(encoding="utf-8"))
_ROWS, _LABELS, _MOST = 500, 6, 0.9  # rows looked at; different answers that are labels; a share that is nearly all
_RELATES, _PRODUCT = ("topic", "entity", "template"), ("id", "title", "description", "category", "query")

Columns = dict[str, list[Any]]


def guess_task(source: str, place: str) -> tuple[str, dict[str, Any]]:
    """(template, its values) of the task file for a data file or a hub data set; `place`: what the file is to call it.

    TraitError where nothing is called like a question.
    """
    rows = _head(source)
    columns = _columns(rows)
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(source).name.partition(".")[0]).strip("_") or "questions"
    ours, product = roles_of(columns, ("question", "solution", "answer", "choices", *_RELATES)), roles_of(columns, _PRODUCT)
    if not {"question", "answer"} <= ours.keys() and {"title", "description"} <= product.keys():
        fields = {role: f"{{{_reference(column)}}}" for role, column in product.items()}
        said = f"a catalogue: {_named(product)}"
        values = {"name": stem, "source": place, "said": said, "fields": {"id": fields["title"], **fields}}
        return "catalogue.yaml.jinja", values
    if "answer" not in ours and "solution" in ours:
        ours["answer"] = ours.pop("solution")
    if not {"question", "answer"} <= ours.keys():
        raise TraitError(
            f"{source}: no column is called like a question, or none like an answer (columns: {', '.join(columns)}). Rename "
            "them to 'question' and 'answer', or name a task file of your own with --tasks."
        )
    fields = {"question": f"{{{_reference(ours['question'])}}}", **_answered(rows, columns, ours)}
    left = [name for name in columns if name not in ours.values() and _reference(name) not in fields.get("choices", "")]
    left = [name for name in left if name.casefold() not in _KNOWN["relates_nothing"]]
    if repeating := [name for name in left if _repeats(columns[name])]:
        ours.setdefault("topic", repeating[0])
    fields |= {role: f"{{{_reference(ours[role])}}}" for role in ("solution", *_RELATES) if role in ours}
    answers = [row["answer"] for row in _filled(fields, rows) if row["answer"]]
    kind, labels = _kind(answers, "choices" in fields)
    if labels:
        fields["choices"] = f"{{{labels!r}}}"
    said = f"{kind}: {_named(ours)}" + "; no worked solution, so the teacher works it out" * ("solution" not in ours)
    values = {"name": stem, "source": place, "said": said, "kind": kind, "metrics": _KNOWN["metrics"][kind]}
    return "task.yaml.jinja", values | {"fields": fields, "splits": _splits(source)}


def columns_of(path: str) -> Columns:
    """column -> values of the first rows of a file; none of a file without rows."""
    return _columns(_head(path)) if form_of(Path(path)) in FORMS else {}


def roles_of(columns: Columns, wanted: Iterable[str]) -> dict[str, str]:
    """role -> the column that is called so, or has a word of it in its name; each column for one role."""
    words = {name: re.findall(r"[^\W_]+", name.casefold()) for name in columns}
    ours: dict[str, str] = {}
    for fits in (lambda known, name: known == " ".join(words[name]), lambda known, name: known in words[name]):
        for role in (role for role in wanted if role not in ours):
            left = [name for name in columns if name not in ours.values()]
            if found := [name for known in _KNOWN["columns"][role] for name in left if fits(known, name)]:
                ours[role] = found[0]
    return ours


def _repeats(values: list[Any]) -> bool:
    """Whether a column's values are few, so that they may say what rows have in common."""
    return 2 < len({str(value) for value in values}) <= len(values) // 3


def _head(source: str) -> list[Row]:
    """The first rows that can be read."""
    rows = hub_data(source.removeprefix("hf:")) if source.startswith("hf:") else read_rows(Path(source).expanduser())
    return list(islice(usable(rows, dict, source, Counter()), _ROWS))


def _columns(rows: list[Row]) -> Columns:
    names = dict.fromkeys(name for row in rows for name in row if isinstance(name, str))
    found = {name: [row[name] for row in rows if row.get(name) not in (None, "")] for name in names}
    return {name: values for name, values in found.items() if values}


def _splits(source: str) -> dict[str, str]:
    """ours -> those of a hub data set, where what it lacks is made of its train split; none of a file."""
    if not source.startswith("hf:"):
        return {}
    from datasets import get_dataset_split_names

    name, _, config = source.removeprefix("hf:").partition("@")
    there = get_dataset_split_names(name, config or None)
    return {split: split if split in there else "train" for split in ("train", "validation", "test")}


def _named(ours: dict[str, str]) -> str:
    return ", ".join(f"{role} from {column!r}" for role, column in ours.items())


def _reference(column: str) -> str:
    """A column in a template: a word as it stands, anything else quoted, whatever signs it has."""
    plain = re.fullmatch(r"[A-Za-z]\w*", column, re.ASCII) and column.lower() not in _KNOWN["words_of_jinja"]
    return column if plain else f"row[{column!r}]"


def _answered(rows: list[Row], columns: Columns, ours: dict[str, str]) -> dict[str, str]:
    """The templates of answer and choices: of those in use, the first that reads most rows."""
    marks = {name: re.fullmatch(_KNOWN["option"], re.sub(r"[\W_]+", " ", name.casefold()).strip()) for name in columns}
    own = [_reference(name) for name in sorted(filter(marks.__getitem__, marks), key=lambda name: marks[name][1])]
    choices = [f"[{', '.join(own)}]|select|list"] if len(own) > 1 else []
    if name := ours.get("choices"):
        choices += [form.replace("OPTIONS", _reference(name)) for form in _KNOWN["choices"]]
    tried = [{"answer": form} for form in _KNOWN["answers"]]
    tried += [
        {"choices": some, "answer": form.replace("OPTIONS", f"({some})")} for some in choices for form in _KNOWN["picked"]
    ]
    forms = [
        {role: f"{{{form.replace('ANSWER', _reference(ours['answer']))}}}" for role, form in one.items()} for one in tried
    ]
    return max(forms, key=lambda form: sum(map(_is_read, _filled(form, rows))))


def _is_read(row: Row) -> float:
    """Better than an answer alone is one among choices."""
    chosen = "choices" not in row or (len(row["choices"] or []) > 1 and row["answer"] in row["choices"])
    return bool(row["answer"]) * chosen * (1.1 if "choices" in row else 1.0)


def _filled(fields: dict[str, str], rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        try:
            yield fill(fields, row)
        except FieldError:
            yield dict.fromkeys(fields)


def _kind(answers: list[str], chosen: bool) -> tuple[str, list[str]]:
    """How answers are compared, and the labels that they are, if there are but a few."""
    if chosen:
        return "choice", []
    if sum(quantity(answer) is not None for answer in answers) >= _MOST * len(answers):
        return "number", []
    if sum(map(is_mathematical, answers)) >= _MOST * len(answers):
        return "expression", []
    labels = sorted(set(answers))
    return ("choice", labels) if 2 <= len(labels) <= min(_LABELS, len(answers) // 10) else ("text", [])
