"""`trait-kit new`: from a user's own documents and questions to an experiment and task files that run.

What is guessed stands in the files, beside what to change or raise. Sizes come of what there is, so that a first run takes
tens of minutes on two cores.
"""

import os
import re
import tempfile
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from trait_kit import runs
from trait_kit.engine.files import TraitError, write_text
from trait_kit.engine.numbers import quantity
from trait_kit.engine.streams import find, is_url
from trait_kit.fields import one_line
from trait_kit.figures.verdict import MIN_ITEMS
from trait_kit.guessing import Guess, columns_of, guess_task, roles_of
from trait_kit.selection.documents import list_shards, load_documents, read_shard
from trait_kit.tasks import load_problems

GENERAL = "demo:math/web"  # where no web is named: an encyclopedia
SPLITS = ("train", "validation", "test")
_BUDGET, _PROBLEMS = 16_000, 60  # tokens of a small selection; problems of a task, as the template says
_PARAGRAPH, _ENLIGHTENMENT = 80, 180  # tokens that a teacher writes
_ROW, _ROWS = 128, (512, 4_096)  # a context length is a multiple of the first, within the others


def new(name: str, documents: str, tasks: list[str], folder: Path, web: str, base_model: str, teacher: str) -> list[str]:
    """Write folder/name.yaml and the task files, over nothing that is there; what was found and guessed, a line each."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise TraitError(f"'{name}' becomes a file's name: write it with letters, digits, '.', '-' and '_'.")
    target = folder / f"{name}.yaml"
    spec, texts = look_at(documents)
    general, around = look_at(web or GENERAL, whole=False)
    found = [f"{documents}: {len(texts):,} documents, about {about_tokens(texts):,} tokens, {language(texts)}"]
    found += [f"{web}: {language(around)}"] * bool(web)
    files: dict[Path, str] = {}
    named, problems = [], []
    for source in tasks:
        if re.search(r"\.ya?ml(#|$)", source) or re.fullmatch(r"\w+", source):  # a task file, or a shipped task
            of_task = load_splits(source)
        else:
            guess = guess_task(source, _placed(source))
            path = folder / f"{name}_{guess.name}.yaml"
            files[path], of_task = _tried(guess)
            found.append(f"{source}: {guess.said}")
            source = str(path)
        named.append(_placed(source) if "." in source else source)
        problems.append(of_task)
    values = sizes({split: pd.concat([some[split] for some in problems]) for split in SPLITS}, texts, around)
    values |= {"name": name, "path": target, "found": found, "documents": spec, "web": general, "own_web": web}
    files[target] = rendered(
        "experiment.yaml.jinja", values | {"tasks": named, "base_model": base_model, "teacher": teacher}
    )
    if there := [str(path) for path in files if path.exists()]:
        raise TraitError(f"{there[0]} exists and is left as it is. Choose another name or --folder, or move it away.")
    for path, text in files.items():
        write_text(path, text)
    return [*found, *(f"Written: {path}" for path in files)]


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


def load_splits(task: str) -> dict[str, pd.DataFrame]:
    """Problems of each split, as many as sizes depend on; an empty table where a split has none."""
    found = {}
    for split in SPLITS:
        try:
            found[split] = load_problems([task], split, _PROBLEMS)
        except TraitError as error:
            if "has problems in the split" not in str(error):
                raise
            found[split] = pd.DataFrame(columns=["task", "question", "answer", "solution", "topic", "entity"])
    return found


def _tried(guess: Guess) -> tuple[str, dict[str, pd.DataFrame]]:
    """The text of the file, which skips rows where some cannot be read, and the problems that it gives."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_text(Path(folder, f"{guess.name}.yaml"), rendered(guess.template, guess.values))
        try:
            return path.read_text(encoding="utf-8"), load_splits(str(path))
        except TraitError as error:
            why = str(error).partition(", row ")[2]
            if not why:
                raise
            text = rendered(guess.template, guess.values | {"bad_rows": f"the first is row {why[:200]}"})
            return text, load_splits(str(write_text(path, text)))


def language(texts: list[str]) -> str:
    """The code of its language, or the script of most letters: to be shown, so nothing depends on it."""
    from resiliparse.parse.lang import detect_fast

    sample = " ".join(texts[:200])[:100_000]
    scripts = Counter(unicodedata.name(mark, "").partition(" ")[0] for mark in sample[:20_000] if mark.isalpha())
    known, script = detect_fast(sample)[0], next((name for name, _ in scripts.most_common(1)), "unknown")
    return f"language {known}" if known != "unknown" else f"script {script}"


def about_tokens(texts: list[str]) -> int:
    """Four Latin letters a token, and more than one token a sign of a script that few tokenizers know."""
    return round(sum(0.25 if mark < "\u0250" else 1.4 for text in texts for mark in text))


# Sizes


def sizes(problems: dict[str, pd.DataFrame], texts: list[str], around: list[str]) -> dict[str, Any]:
    """The values of an experiment of this size, for its template."""
    train, tests = problems["train"], problems["test"]["task"].value_counts()
    if train.empty or tests.empty:
        raise TraitError("The tasks have no problems to train on, or none to test with: bring more, or write their splits.")
    solution = train["solution"].fillna("x" * 4 * _PARAGRAPH)
    long = pd.Series([about_tokens(list(pair)) for pair in zip(train["question"], solution, strict=True)]).quantile(0.9)
    context = -(-int(3 * long + _ENLIGHTENMENT) // _ROW) * _ROW
    shares = {column: _related(train, column) for column in ("topic", "entity")}
    grouping = max(shares, key=shares.__getitem__)
    numeric = all(quantity(answer) for answer in train["answer"])
    return {
        "test_items": min(tests.max(), max(12, -(-36 // len(tests)))),
        "least": MIN_ITEMS,
        "budget": max(1, min(_BUDGET, about_tokens(texts), about_tokens(around) // 5) // 1_000) * 1_000,
        "grouping": grouping if shares[grouping] >= 0.5 else "embedding",
        "related": f"{shares[grouping]:.0%}",
        "n_groups": min(24, max(2, len(train) * 2 // 3)),
        "solved": f"{train['solution'].notna().mean():.0%}",
        "context": min(_ROWS[1], max(_ROWS[0], context)),
        "numeric": numeric,
    }


def _related(problems: pd.DataFrame, column: str) -> float:
    """The share of problems whose topic or entity another task has too; of the only task, another problem."""
    counted = "nunique" if problems["task"].nunique() > 1 else "size"
    return float((problems.groupby(column)["task"].transform(counted) > 1).mean())


# Files


def rendered(template: str, values: dict[str, Any]) -> str:
    """A template's text; what users called their columns, files and tasks stands in it as YAML or in a comment."""
    room = jinja2.Environment(loader=jinja2.PackageLoader("trait_kit"), trim_blocks=True)
    room.filters |= {"yaml": _as_yaml, "said": _as_comment}
    return room.get_template(template).render(defaultdict(str, values)) + "\n"


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
