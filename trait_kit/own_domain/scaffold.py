"""`trait-kit new`: from a user's own documents and questions to an experiment and task files that run.

What is guessed stands in the files, beside what to change. Sizes come of what there is: a first run takes tens of minutes
on two cores.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import yaml
from resiliparse.parse.lang import detect_fast

from trait_kit import runs
from trait_kit.engine.files import TraitError, read_yaml, write_text
from trait_kit.fields import FORMS, FieldError, Row, fill, one_line, read_rows, usable
from trait_kit.judging.answers import LANGUAGES, is_mathematical
from trait_kit.judging.numbers import quantity
from trait_kit.reading.readers import hub_data
from trait_kit.reading.streams import find, format_of, is_url
from trait_kit.selection.documents import list_shards, load_documents, read_shard
from trait_kit.tasks import load_problems

_BUDGET, _PROBLEMS, _TESTS = 16_000, 60, 36  # tokens of a small selection; problems of a task; in all
_PARAGRAPH = 80  # tokens that a teacher writes
_KNOWN = read_yaml(Path(__file__).with_name("scaffold.yaml"))
_HEAD, _LABELS, _MOST = 500, 6, 0.9  # rows looked at; answers that are labels; a share that is nearly all
_RELATES, _PRODUCT = ("topic", "entity", "template"), ("id", "title", "description", "category", "query")

Columns = dict[str, list[Any]]


def new(
    name: str, documents: str, tasks: list[str], folder: Path, web: str, base_model: str, teacher: str
) -> list[str]:
    """Write folder/name.yaml and the task files, over nothing that is there; what was found and guessed, by line."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise TraitError(f"'{name}' becomes a file's name: write it with letters, digits, '.', '-' and '_'.")
    spec, texts = look_at(documents)
    general, around = look_at(web or "demo:math/web", whole=False)
    found = [
        f"{text}: {len(some):,} documents, about {about_tokens(''.join(some)):,} tokens, language "
        + detect_fast(" ".join(some)[:100_000])[0]
        for text, some in ((documents, texts), (web, around))
        if text
    ]
    files, named = {}, []
    for source in tasks:
        # no task file, no shipped task
        if not (re.search(r"\.ya?ml(#|$)", source) or re.fullmatch(r"\w+", source)):
            template, values = guess_task(source, _placed(source))
            found.append(f"{source}: {values['said']}")
            source = str(folder / f"{name}_{values['name']}.yaml")
            files[source] = _rendered(template, values)
        named.append(_placed(source) if "." in source else source)
    target = str(folder / f"{name}.yaml")
    if there := [path for path in (*files, target) if Path(path).exists()]:
        raise TraitError(f"{there[0]} exists and is left as it is. Choose another name or --folder.")
    values = {"name": name, "path": target, "found": found, "documents": spec, "web": general}
    values |= {"tasks": named, "base_model": base_model, "teacher": teacher}
    try:
        for path, text in files.items():
            write_text(path, text)
        write_text(target, _rendered("experiment.yaml.jinja", values | sizes(named, texts, around)))
    except TraitError:
        for path in files:
            Path(path).unlink(missing_ok=True)
        raise
    return [*found, *(f"Written: {path}" for path in (*files, target))]


def look_at(spec: str, whole: bool = True) -> tuple[str, list[str]]:
    """(spec with the names of its columns, texts); not `whole`: those at the corpus's beginning."""
    spec = _placed(spec)
    try:
        part = load_documents(spec) if whole else next(read_shard(list_shards(spec)[0])).documents
        if len(part):
            return spec, part["text"].to_pylist()
        raise TraitError(f"{spec} has no usable document at its beginning.")
    except TraitError:
        if spec.endswith("}") or spec.startswith(("demo:", "hf:")):
            raise
        path = find(spec)[0].name
        columns = _columns(_head(path)) if format_of(path)[0] in FORMS else {}
        if not columns:
            raise
    longest = max(columns, key=lambda name: sum(len(str(value)) for value in columns[name]))
    return look_at(f"{spec} {{text={_roles(columns, ['text']).get('text', longest)}}}", whole)


def about_tokens(text: str) -> int:
    """Four Latin letters a token; more than a token for a sign of other scripts."""
    latin = len(text) if text.isascii() else sum(mark < "\u0250" for mark in text)
    return round(0.25 * latin + 1.4 * (len(text) - latin))


# Which column is what


def guess_task(source: str, place: str) -> tuple[str, dict[str, Any]]:
    """(template, its values) of the task file for a data file or hub data set, called `place` there."""
    rows = _head(source)
    columns = _columns(rows)
    marks = {str(name): re.fullmatch(_KNOWN["option"], str(name).casefold()) for row in rows for name in row}
    options = sorted(filter(marks.get, marks), key=lambda name: marks[name][1])
    named = {name: values for name, values in columns.items() if name not in options}
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(source).name.partition(".")[0]).strip("_") or "questions"
    values = {"name": stem, "source": place}
    ours = _roles(named, ("question", "solution", "answer", "choices", *_RELATES))
    product = _roles(named, _PRODUCT)
    if not {"question", "answer"} <= ours.keys() and {"title", "description"} <= product.keys():
        fields = {role: f"{{{_reference(column)}}}" for role, column in product.items()}
        values |= {"said": f"a catalogue: {_named(product)}"}
        return "catalogue.yaml.jinja", values | {"fields": {"id": fields["title"], **fields}}
    if "answer" not in ours and "solution" in ours and not options:
        ours["answer"] = ours.pop("solution")
    if not {"question", "answer"} <= ours.keys():
        raise TraitError(
            f"{source}: no column is called like {'an answer' if 'question' in ours else 'a question'} (columns: "
            f"{', '.join(columns)}). Rename one, or give --tasks a task file."
        )
    fields = {"question": f"{{{_reference(ours['question'])}}}", **_answered(rows, options, ours)}
    other = [
        name for name in named if name not in ours.values() and name.casefold() not in _KNOWN["relates_nothing"]
    ]
    if few := [name for name in other if 2 < len(set(map(str, named[name]))) <= len(named[name]) // 3]:
        ours.setdefault("topic", few[0])
    fields |= {role: f"{{{_reference(ours[role])}}}" for role in ("solution", *_RELATES) if role in ours}
    kind, labels = _kind([row["answer"] for row in _filled(fields, rows) if row["answer"]], "choices" in fields)
    if labels:
        fields["choices"] = f"{{{labels!r}}}"
    values |= {
        "said": f"{kind}: {_named(ours)}",
        "kind": kind,
        "metrics": _KNOWN["metrics"][kind],
        "language": detect_fast(" ".join(map(str, columns[ours["question"]])))[0],
        "known": LANGUAGES,
    }

    return "task.yaml.jinja", values | {"fields": fields, "splits": _splits(source)}


def _roles(columns: Columns, wanted: Iterable[str]) -> dict[str, str]:
    """role -> the column that is called so or has a word of it in its name, each for one role; an id never repeats."""
    words = {name: re.findall(r"[^\W_]+", name.casefold()) for name in columns}
    once = [name for name, values in columns.items() if len(set(map(str, values))) == len(values)]
    ids, ours = set(_KNOWN["columns"]["id"]), {}
    of_words = {name: ids.intersection(has) or has for name, has in words.items()}
    for fits in (lambda known, name: known == " ".join(words[name]), lambda known, name: known in of_words[name]):
        for role in (role for role in wanted if role not in ours):
            left = [name for name in (once if role == "id" else columns) if name not in ours.values()]
            if found := [name for known in _KNOWN["columns"][role] for name in left if fits(known, name)]:
                ours[role] = found[0]
    return ours


def _head(source: str) -> list[Row]:
    rows = hub_data(source[3:]) if source.startswith("hf:") else read_rows(Path(source).expanduser())
    return list(islice(usable(rows, dict, source, Counter()), _HEAD))


def _columns(rows: list[Row]) -> Columns:
    return {
        name: values
        for name in dict.fromkeys(name for row in rows for name in row if isinstance(name, str))
        if (values := [row[name] for row in rows if row.get(name) not in (None, "")])
    }


def _splits(source: str) -> dict[str, str]:
    """Of a hub data set, its train split for what it lacks; of a file none."""
    if not source.startswith("hf:"):
        return {}
    from datasets import get_dataset_split_names

    name, _, config = source[3:].partition("@")
    there = get_dataset_split_names(name, config or None)
    return {split: split if split in there else "train" for split in ("train", "validation", "test")}


def _named(ours: dict[str, str]) -> str:
    return ", ".join(f"{role} from {column!r}" for role, column in ours.items())


def _reference(column: str) -> str:
    """A column in a template: a word as it stands, anything else quoted."""
    plain = re.fullmatch(r"[A-Za-z]\w*", column, re.ASCII) and column.lower() not in _KNOWN["words_of_jinja"]
    return column if plain else f"row[{column!r}]"


def _answered(rows: list[Row], options: list[str], ours: dict[str, str]) -> dict[str, str]:
    """The templates of answer and choices: the first that reads most rows."""
    # empty ones too: a letter is a place
    choices = [f"[{', '.join(f'row.get({name!r})' for name in options)}]"]
    if name := ours.get("choices"):
        choices += [form.replace("OPTIONS", _reference(name)) for form in _KNOWN["choices"]]
    tried = [{"answer": form} for form in _KNOWN["answers"]]
    tried += [
        {"choices": of, "answer": form.replace("OPTIONS", f"({of})")}
        for place, of in enumerate(choices)
        for form in _KNOWN["picked"][:: 1 if place else -1]
    ]
    answer = _reference(ours["answer"])
    forms = [{role: f"{{{form.replace('ANSWER', answer)}}}" for role, form in one.items()} for one in tried]
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
    """How answers are compared, and the labels that they are, if these are few."""
    if chosen:
        return "choice", []
    for kind, fits in (("number", quantity), ("expression", is_mathematical)):
        if sum(bool(fits(answer)) for answer in answers) >= _MOST * len(answers):
            return kind, []
    labels = sorted(set(answers))
    return ("choice", labels) if 2 <= len(labels) <= min(_LABELS, len(answers) // 10) else ("text", [])


def sizes(tasks: list[str], texts: list[str], around: list[str]) -> dict[str, Any]:
    train, tests = load_problems(tasks, "train", _PROBLEMS), load_problems(tasks, "test", _TESTS)
    long = (train["question"] + train["solution"].fillna("x" * 4 * _PARAGRAPH)).map(about_tokens).quantile(0.9)
    # that share it with another task, or with a problem of a sole task
    counted = "nunique" if train["task"].nunique() > 1 else "size"
    shares = {name: (train.groupby(name)["task"].transform(counted) > 1).mean() for name in ("topic", "entity")}
    return {
        "test_items": min(tests["task"].value_counts().max(), max(12, -(-_TESTS // tests["task"].nunique()))),
        "budget": min(_BUDGET, about_tokens("".join(texts)), about_tokens("".join(around)) // 5),
        "grouping": max(shares, key=shares.__getitem__),
        "related": max(shares.values()),
        "problems": _PROBLEMS,
        "trained_on": len(train),
        "solved": train["solution"].notna().mean(),
        "long": long,
        "latin": about_tokens("".join(train["question"])) < train["question"].str.len().sum() / 2,
        "numeric": all(map(quantity, train["answer"])),
    }


# Files


def _rendered(template: str, values: dict[str, Any]) -> str:
    """Users' names of columns, files and tasks stand in it as YAML or in a comment."""
    room = jinja2.Environment(loader=jinja2.PackageLoader("trait_kit.own_domain", ""), trim_blocks=True)
    room.filters |= {
        "yaml": _as_yaml,
        "said": lambda value: "".join(mark if mark.isprintable() else "?" for mark in one_line(value)),
    }
    return room.get_template(template).render(values) + "\n"


def _as_yaml(value: Any) -> str:
    """In one line, whatever the value holds."""
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    layout = {"default_flow_style": True, "allow_unicode": True, "sort_keys": False, "width": 10**9}
    return yaml.safe_dump(value, default_style=style, **layout).removesuffix("...\n").strip()


def _placed(name: str) -> str:
    """As the notebooks, which run in the project's folder, find it."""
    as_it_is = is_url(name) or name.startswith(("demo:", "hf:")) or Path.cwd() == runs.project_root()
    return name if as_it_is else os.path.abspath(os.path.expanduser(name))
