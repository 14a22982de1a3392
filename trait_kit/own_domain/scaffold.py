"""`trait-kit new`: from a user's own documents and questions to an experiment and task files that run.

What is guessed stands in the files, beside what to change or raise. Sizes come of what there is, so that a first run takes
tens of minutes on two cores.
"""

import os
import re
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from trait_kit import runs
from trait_kit.engine.files import TraitError, write_text
from trait_kit.engine.numbers import quantity
from trait_kit.engine.streams import find, is_url
from trait_kit.evaluation.comparison import MIN_ITEMS
from trait_kit.fields import one_line
from trait_kit.own_domain.guessing import columns_of, guess_task, roles_of
from trait_kit.selection.documents import list_shards, load_documents, read_shard
from trait_kit.tasks import load_problems

GENERAL = "demo:math/web"  # where no web is named: an encyclopedia
_BUDGET, _PROBLEMS, _TESTS = 16_000, 60, 36  # tokens of a small selection; problems of a task; in all
_PARAGRAPH, _ENLIGHTENMENT = 80, 180  # tokens that a teacher writes
_ROW, _ROWS = 128, (512, 4_096)  # a context length is a multiple of the first, within the others


def new(name: str, documents: str, tasks: list[str], folder: Path, web: str, base_model: str, teacher: str) -> list[str]:
    """Write folder/name.yaml and the task files, over nothing that is there; what was found and guessed, a line each."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise TraitError(f"'{name}' becomes a file's name: write it with letters, digits, '.', '-' and '_'.")
    spec, texts = look_at(documents)
    general, around = look_at(web or GENERAL, whole=False)
    found = [
        f"{text}: {len(some):,} documents, about {about_tokens(some):,} tokens, language {language(some)}"
        for text, some in ((documents, texts), (web, around))
        if text
    ]
    files, named = {}, []
    for source in tasks:
        if not (re.search(r"\.ya?ml(#|$)", source) or re.fullmatch(r"\w+", source)):  # no task file, no shipped task
            template, values = guess_task(source, _placed(source))
            found.append(f"{source}: {values['said']}")
            source = str(folder / f"{name}_{values['name']}.yaml")
            if source in files:
                raise TraitError(f"Two of the tasks would be written to {source}. Rename one of their files.")
            files[source] = _rendered(template, values)
        named.append(_placed(source) if "." in source else source)
    target = str(folder / f"{name}.yaml")
    if there := [path for path in (*files, target) if Path(path).exists()]:
        raise TraitError(f"{there[0]} exists and is left as it is. Choose another name or --folder, or move it away.")
    values = {"name": name, "path": target, "found": found, "documents": spec, "web": general, "own_web": web}
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


# What there is


def look_at(spec: str, whole: bool = True) -> tuple[str, list[str]]:
    """(spec with the names of its columns, texts); not `whole`: those at the beginning of a corpus of any size."""
    spec = _placed(spec)
    try:
        part = load_documents(spec) if whole else next(read_shard(list_shards(spec)[0])).documents
        if len(part):
            return spec, part["text"].to_pylist()
        raise TraitError(f"{spec} has no usable document at its beginning.")
    except TraitError:
        if spec.endswith("}") or spec.startswith(("demo:", "hf:")) or not (columns := columns_of(find(spec)[0].name)):
            raise
    longest = max(columns, key=lambda name: sum(len(str(value)) for value in columns[name]))
    names = {"text": longest, **roles_of(columns, ("text", "id"))}
    named = ", ".join(f"{ours}={theirs}" for ours, theirs in names.items())
    return look_at(f"{spec} {{{named}}}", whole)


def language(texts: list[str]) -> str:
    """Its code, for a reader: nothing depends on it."""
    from resiliparse.parse.lang import detect_fast

    return detect_fast(" ".join(texts[:200])[:100_000])[0]


def about_tokens(texts: list[str]) -> int:
    """Four Latin letters a token, and more than one token a sign of a script that few tokenizers know."""
    latin = sum(len(text) if text.isascii() else sum(mark < "\u0250" for mark in text) for text in texts)
    return round(0.25 * latin + 1.4 * (sum(map(len, texts)) - latin))


# Sizes


def sizes(tasks: list[str], texts: list[str], around: list[str]) -> dict[str, Any]:
    """The values of an experiment of this size, for its template."""
    train, tests = load_problems(tasks, "train", _PROBLEMS), load_problems(tasks, "test", _TESTS)
    solution = train["solution"].fillna("x" * 4 * _PARAGRAPH)
    long = pd.Series([about_tokens(list(pair)) for pair in zip(train["question"], solution, strict=True)]).quantile(0.9)
    context = -(-int(3 * long + _ENLIGHTENMENT) // _ROW) * _ROW
    shares = {column: _related(train, column) for column in ("topic", "entity")}
    grouping = max(shares, key=shares.__getitem__)
    most = tests["task"].value_counts().max()
    return {
        "test_items": min(most, max(12, -(-_TESTS // tests["task"].nunique()))),
        "least": MIN_ITEMS,
        "budget": max(1, min(_BUDGET, about_tokens(texts), about_tokens(around) // 5) // 1_000) * 1_000,
        "grouping": grouping if shares[grouping] >= 0.5 else "embedding",
        "related": f"{shares[grouping]:.0%}",
        "problems": _PROBLEMS,
        "n_groups": min(24, max(2, len(train) * 2 // 3)),
        "solved": f"{train['solution'].notna().mean():.0%}",
        "context": min(_ROWS[1], max(_ROWS[0], context)),
        "numeric": all(map(quantity, train["answer"])),
    }


def _related(problems: pd.DataFrame, column: str) -> float:
    """The share of problems whose topic or entity another task has too; of the only task, another problem."""
    counted = "nunique" if problems["task"].nunique() > 1 else "size"
    return float((problems.groupby(column)["task"].transform(counted) > 1).mean())


# Files


def _rendered(template: str, values: dict[str, Any]) -> str:
    """A template's text; what users called their columns, files and tasks stands in it as YAML or in a comment."""
    room = jinja2.Environment(loader=jinja2.PackageLoader("trait_kit.own_domain", ""), trim_blocks=True)
    room.filters |= {"yaml": _as_yaml, "said": _as_comment}
    return room.get_template(template).render(values) + "\n"


def _as_yaml(value: Any) -> str:
    """One line of YAML, whatever the value holds."""
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    layout = {"default_flow_style": True, "allow_unicode": True, "sort_keys": False, "width": 10**9}
    return yaml.safe_dump(value, default_style=style, **layout).removesuffix("...\n").strip()


def _as_comment(value: object) -> str:
    return "".join(mark if mark.isprintable() else "?" for mark in one_line(value))


def _placed(name: str) -> str:
    """A path or glob as the notebooks, which run in the project's folder, will find it."""
    if is_url(name) or name.startswith(("demo:", "hf:")) or Path.cwd() == runs.project_root():
        return name
    return os.path.abspath(os.path.expanduser(name))
