"""`trait-kit new`: from a user's own documents and questions to an experiment and task files that run.

What is guessed (columns, kind of answer, splits, sizes) is said in words and stands in the files, beside what to change or
raise. Sizes come of what there is, so that a first run takes tens of minutes on two cores. Guesses are tried, not believed:
a template is taken where it reads most rows, by the functions that the steps read with.
"""

import os
import re
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
import yaml

from trait_kit import runs
from trait_kit.answers import is_mathematical, reaches
from trait_kit.engine.files import TraitError, write_text
from trait_kit.engine.numbers import quantity
from trait_kit.engine.readers import hub_data
from trait_kit.engine.streams import find, is_url
from trait_kit.fields import FORMS, FieldError, Row, fill, one_line, read_rows, usable
from trait_kit.figures.verdict import MIN_ITEMS
from trait_kit.selection.documents import list_shards, load_documents, read_shard
from trait_kit.tasks import TASKS_FOLDER, load_problems

GENERAL = "demo:math/web"  # where no web is named: an encyclopedia
SPLITS = ("train", "validation", "test")
_KNOWN = yaml.safe_load(Path(__file__).with_name("scaffold.yaml").read_text(encoding="utf-8"))
_ROWS, _LABELS = 500, 6  # rows looked at; different answers that are labels
_PARAGRAPH, _ENLIGHTENMENT = 80, 180  # tokens that a teacher writes
_ROW = 128  # context lengths are multiples of it


class Guess(NamedTuple):
    """A task file to write."""

    name: str
    template: str  # of the file, in templates/
    values: dict[str, Any]  # for it
    said: str


def new(
    name: str,
    documents: str,
    tasks: list[str],
    folder: Path,
    web: str = "",
    base_model: str = "demo:smollm2-135m",
    teacher: str = "local",
) -> list[str]:
    """Write folder/name.yaml and the task files; what was found, guessed and written, a line each. Nothing is overwritten."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise TraitError(f"'{name}' is to be the name of a file: letters, digits, '.', '-' and '_'.")
    target = folder / f"{name}.yaml"
    spec, texts = look_at(documents)
    general, around = look_at(web or GENERAL, first=True)
    found = [f"{documents}: {_described(texts)}"]
    if web:
        found.append(f"{web}: {_described(around)} at its beginning")
    files: dict[Path, str] = {}
    named: list[str] = []
    for source in tasks:
        if source.endswith((".yaml", ".yml")) or (TASKS_FOLDER / f"{source}.yaml").exists():
            named.append(source)
            continue
        guess = guess_task(source)
        path = folder / f"{name}_{guess.name}.yaml"
        if path in files:
            raise TraitError(f"{source}: two of the tasks would be written to {path}. Rename one of the files.")
        text, problems = _tried(guess)
        counts = ", ".join(f"{len(problems[split]):,} {split}" for split in SPLITS)
        found += [guess.said, f"{path.name}: problems: {counts}"]
        files[path] = text
        named.append(str(path))
    with tempfile.TemporaryDirectory() as beside:
        for path, text in files.items():
            write_text(Path(beside, path.name), text)
        problems = _problems([str(Path(beside, Path(task).name)) if Path(task) in files else task for task in named])
    values = sizes(problems, texts, around, teacher) | {"documents": spec, "web": general, "web_is_ours": not web}
    found += values["found"]
    values |= {"tasks": [_place(task) if task.endswith("ml") else task for task in named], "base_model": base_model}
    values |= {"name": name, "path": target, "teacher": teacher, "found": found}
    files[target] = _rendered("experiment.yaml.jinja", values)
    for path in files:
        if path.exists():
            raise TraitError(f"{path} exists and is left as it is. Choose another name or --folder, or move it away.")
    for path, text in files.items():
        write_text(path, text)
    return [*found, *(f"Written: {path}" for path in files), f"Next: trait-kit check {target}; then trait-kit run {target}"]


# Documents


def look_at(spec: str, first: bool = False) -> tuple[str, list[str]]:
    """(spec with the names of its columns, the texts); `first`: only of the beginning of a corpus of any size."""

    def read(spec: str) -> list[str]:
        part = next(read_shard(list_shards(spec)[0])).documents if first else load_documents(spec)
        if not len(part):
            raise TraitError(f"{spec} has no usable document at its beginning.")
        return part["text"].to_pylist()

    spec = _place(spec)
    try:
        return spec, read(spec)
    except TraitError:
        named = spec if spec.endswith("}") or spec.startswith(("demo:", "hf:")) else _with_columns(spec)
        if named == spec:
            raise
        return named, read(named)


def _with_columns(spec: str) -> str:
    """The spec with the columns that hold its texts and ids, where they are called otherwise."""
    path = Path(find(spec)[0].name)
    if not any(suffix in FORMS for suffix in path.suffixes):
        return spec
    columns = _columns(_head(str(path)))
    roles = _roles(columns, ("text", "id")) or {}
    longest = max(columns, key=lambda name: sum(map(len, map(str, columns[name]))), default="")
    wanted = {"text": roles.get("text", longest), "id": roles.get("id", "")}
    names = ", ".join(f"{ours}={theirs}" for ours, theirs in wanted.items() if theirs and not re.search(r"[{},=\n]", theirs))
    return f"{spec} {{{names}}}" if "text=" in names else spec


def _described(texts: list[str]) -> str:
    return f"{len(texts):,} documents, about {_tokens(texts):,} tokens, {language(texts)}"


def language(texts: Iterable[str]) -> str:
    """The language of most words, or of the script of most letters: for comments, so nothing but a name depends on it."""
    text = " ".join(islice(texts, 200))[:200_000].casefold()
    scripts = Counter(unicodedata.name(mark, "").partition(" ")[0] for mark in text[:20_000] if mark.isalpha())
    script = next((name for name, _ in scripts.most_common(1)), "LATIN")
    words = Counter(re.findall(r"\w+", text))
    known = {name: sum(words[word] for word in some) / len(some) for name, some in _KNOWN["languages"].items()}
    likely = max(known, key=known.__getitem__) if any(known.values()) else "an unknown language"
    return likely if script == "LATIN" else _KNOWN["scripts"].get(script, f"in the script {script}")


def _tokens(texts: Iterable[str]) -> int:
    """About how many: four letters a token where a tokenizer knows them, more than one token a sign where not."""
    return sum(round(len(text) / 4 if text.isascii() else sum(0.25 if mark < "\u0250" else 1.4 for mark in text))
               for text in texts)  # fmt: skip


# Tasks


def guess_task(source: str) -> Guess:
    """The task file for a data file, a folder of them, or a hub data set; TraitError where no question can be found."""
    files, splits = _parts(source)
    rows = _head(files)
    columns = _columns(rows)
    roles = _roles(columns, ("id", "question", "solution", "answer", "choices", "topic", "entity"))
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(source.removeprefix("hf:").partition("@")[0]).name.partition(".")[0])
    name = stem.strip("_") or "questions"
    values: dict[str, Any] = {"name": name, "source": source if source.startswith("hf:") else _place(source)}
    products = _roles(columns, ("id", "title", "description", "category", "query"))
    if {"title", "description"} <= products.keys() and not {"question", "answer"} <= roles.keys():
        fields = {role: f"{{{_reference(column)}}}" for role, column in products.items()}
        said = f"{source}: a catalogue; {_named(products)}"
        values |= {"fields": {"id": fields["title"], **fields}, "columns": said}
        return Guess(name, "catalogue.yaml.jinja", values, said)
    if "answer" not in roles and "solution" in roles:
        roles["answer"] = roles.pop("solution")
    if not {"question", "answer"} <= roles.keys():
        known = ", ".join(sorted(columns)) or "none"
        raise TraitError(
            f"{source}: no column looks like a question, or none like an answer (columns: {known}). Rename them to "
            "'question' and 'answer', or write a task file (docs/own_domain.md) and name it with --tasks."
        )
    fields = {role: f"{{{_reference(roles[role])}}}" for role in ("question", "topic", "entity") if role in roles}
    fields |= _answered(rows, columns, roles)
    golds = [row for row in _filled(fields, rows) if row["answer"]]
    kind = _kind([row["answer"] for row in golds], "choices" in fields)
    labels = sorted({row["answer"] for row in golds})
    if kind == "text" and 2 <= len(labels) <= _LABELS and len(golds) >= 10 * len(labels):
        kind, fields["choices"] = "choice", f"{{{labels!r}}}"
    fields |= _solved(rows, roles, fields, kind)
    said = f"{source}: {kind}; {_named(roles)}"
    if not fields.get("solution"):
        said += "; no worked solution, so the teacher works it out"
    values |= {"fields": fields, "kind": kind, "metrics": _KNOWN["metrics"][kind], "splits": splits, "columns": said}
    values["about"] = f"{name}: questions of {one_line(Path(source).name)}."
    return Guess(name, "task.yaml.jinja", values, said)


def _tried(guess: Guess) -> tuple[str, dict[str, pd.DataFrame]]:
    """The text of the file, which skips rows where some cannot be read, and the problems that it gives."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{guess.name}.yaml")
        text = _rendered(guess.template, guess.values)
        try:
            write_text(path, text)
            return text, _problems([str(path)])
        except TraitError as error:
            why = f"rows that cannot be read are counted; the first: {str(error).partition(', row ')[2] or error}"
            text = _rendered(guess.template, guess.values | {"bad_rows": why[:300]})
            write_text(path, text)
            return text, _problems([str(path)])


def _problems(tasks: list[str]) -> dict[str, pd.DataFrame]:
    """All problems of each split; an empty table where a split has none."""
    found = {}
    for split in SPLITS:
        try:
            found[split] = load_problems(tasks, split, 10_000)
        except TraitError as error:
            if "has problems in the split" not in str(error):
                raise
            found[split] = pd.DataFrame(columns=["task", "question", "answer", "solution", "topic", "entity"])
    return found


def _parts(source: str) -> tuple[str, dict[str, str]]:
    """(what to look at, ours -> its splits) of a file, a folder with a file a split, or a hub data set."""
    path = Path(source).expanduser()
    if source.startswith("hf:"):
        from datasets import get_dataset_split_names

        name, _, config = source.removeprefix("hf:").partition("@")
        there = {split: split for split in get_dataset_split_names(name, config or None)}
    elif path.is_dir():
        there = {file.name: file.name for file in sorted(path.iterdir()) if any(form in FORMS for form in file.suffixes)}
    else:
        return source, dict.fromkeys(SPLITS, "all")
    like = {"train": r"train", "validation": r"val|dev", "test": r"test"}
    found = {ours: next((part for part in there if re.search(like[ours], part, re.IGNORECASE)), "") for ours in SPLITS}
    first = found["train"] or next(iter(there), "")
    splits = {ours: part or first for ours, part in found.items()}
    return f"{source}#{first}" if source.startswith("hf:") else str(path / first), splits


def _head(source: str) -> list[Row]:
    """The first rows that can be read."""
    rows = hub_data(source.removeprefix("hf:")) if source.startswith("hf:") else read_rows(Path(source).expanduser())
    return list(islice(usable(rows, dict, source, Counter()), _ROWS))


def _columns(rows: list[Row]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row if isinstance(name, str))
    return {name: [row[name] for row in rows if row.get(name) not in (None, "")] for name in names}


def _roles(columns: dict[str, list[Any]], wanted: Iterable[str]) -> dict[str, str]:
    """role -> the column that is called so: by the whole name, then by a word of it; each column once."""
    plain = {name: " ".join(re.findall(r"[^\W_]+", name.casefold())) for name in columns if columns[name]}
    roles: dict[str, str] = {}
    for whole in (True, False):
        for role in (role for role in wanted if role not in roles):
            left = [name for name in plain if name not in roles.values()]
            like = [name for known in _KNOWN["columns"][role] for name in left
                    if known == plain[name] or (not whole and known in plain[name].split())]  # fmt: skip
            if like:
                roles[role] = like[0]
    return roles


def _named(roles: dict[str, str]) -> str:
    return ", ".join(f"{role} from {column!r}" for role, column in roles.items() if role != "id")


def _reference(column: str) -> str:
    """A column in a template: a word as it stands, anything else quoted, whatever signs it has."""
    plain = re.fullmatch(r"[A-Za-z]\w*", column, re.ASCII) and column.lower() not in _KNOWN["words_of_jinja"]
    return column if plain else f"row[{column!r}]"


def _answered(rows: list[Row], columns: dict[str, list[Any]], roles: dict[str, str]) -> dict[str, str]:
    """The templates of answer and choices, of those in use the one that reads most rows."""
    answer = _reference(roles["answer"])
    lettered = [(match[1], name) for name in columns
                if (match := re.fullmatch(_KNOWN["option"], re.sub(r"\W*$", "", name.casefold().replace("_", " "))))]  # fmt: skip
    choices: list[str] = []
    if len(lettered) > 1:
        some = [_reference(name) for _, name in sorted(lettered)]
        choices.append(f"[{', '.join(some)}]|select|list")
    if "choices" in roles:
        name = _reference(roles["choices"])
        choices += [form.replace("OPTIONS", name) for form in _KNOWN["choices"]]
    tried = [{"answer": f"{{{form.replace('ANSWER', answer)}}}"} for form in _KNOWN["answers"]]
    tried += [{"choices": f"{{{options}}}", "answer": f"{{{form.replace('ANSWER', answer).replace('OPTIONS', options)}}}"}
              for options in choices for form in _KNOWN["picked"]]  # fmt: skip
    return max(tried, key=lambda fields: sum(_fits(fields, row) for row in rows))


def _fits(fields: dict[str, str], row: Row) -> float:
    """Whether a row can be read so; better where the answer is one of several choices."""
    found = next(_filled(fields, [row]))
    if not found["answer"]:
        return 0.0
    options = found.get("choices") or []
    return 1.1 * (len(options) > 1 and found["answer"] in options) if "choices" in fields else 1.0


def _filled(fields: dict[str, str], rows: Iterable[Row]) -> Iterable[Row]:
    for row in rows:
        try:
            yield fill(fields, row)
        except FieldError:
            yield dict.fromkeys(fields)


def _kind(answers: list[str], chosen: bool) -> str:
    if chosen:
        return "choice"
    for kind, is_one in (("number", quantity), ("expression", lambda answer: is_mathematical(answer) or None)):
        if sum(is_one(answer) is not None for answer in answers) >= 0.9 * len(answers) > 0:
            return kind
    return "text"


def _solved(rows: list[Row], roles: dict[str, str], fields: dict[str, str], kind: str) -> dict[str, str]:
    """The template of a worked solution that comes to the answer in most rows; none where no form does."""
    if "solution" not in roles:
        return {}
    name = _reference(roles["solution"])
    answer = fields["answer"][1:-1]
    for form in ("{NAME}", "{NAME} The answer is {ANSWER}.") if kind == "text" else ("{NAME}",):
        solution = {"solution": form.replace("NAME", name).replace("ANSWER", answer)}
        told = [row for row in _filled({**fields, **solution}, rows[:60]) if row["solution"] and row["answer"]]
        right = [reaches(row["answer"], row["solution"], row.get("choices") or (), row["question"])[0] for row in told]
        if kind != "text" or 2 * sum(right) > len(told):
            return solution
    return {}


# Sizes


def sizes(problems: dict[str, pd.DataFrame], texts: list[str], around: list[str], teacher: str) -> dict[str, Any]:
    """The values of an experiment of this size, for its template; `found` says what is missing."""
    train, tests = problems["train"], problems["test"]["task"].value_counts()
    if not len(train):
        raise TraitError("The tasks have no problems to train on, so no passages can be made of them. Add one that has.")
    n_tasks, solved = train["task"].nunique(), train["solution"].notna().mean()
    if teacher == "none" and not solved:
        raise TraitError(
            "teacher none only joins worked solutions, and these tasks have none: use --teacher local or openai."
        )
    asked = [_tokens([row.question, row.solution]) if isinstance(row.solution, str) else _tokens([row.question]) + _PARAGRAPH
             for row in train.itertuples()]  # fmt: skip
    long = float(pd.Series(asked).quantile(0.9))
    per_group = 3 if 3 * long + _ENLIGHTENMENT < 1_500 else 2
    context = min(2_048, max(512, -(-int(per_group * long + _ENLIGHTENMENT) // _ROW) * _ROW))
    used = train.groupby("task").head(60)
    grouping, share = max(
        ((column, _related(used, column)) for column in ("topic", "entity")), key=lambda pair: round(pair[1], 1)
    )
    grouping = grouping if share >= 0.5 else "embedding"
    items = int(min(tests.max(), max(12, -(-36 // len(tests))))) if len(tests) else 1
    found = []
    if (total := int(tests.clip(upper=items).sum())) < MIN_ITEMS:
        found.append(f"Too few test items for a verdict: {total} of {MIN_ITEMS}. Bring more questions.")
    if len(texts) < 40:
        found.append(
            f"Few documents ({len(texts)}): some 40 are needed to hold two out, and hundreds to learn a domain from."
        )
    numeric = all(quantity(answer) is not None for answer in train["answer"])
    return {
        "test_items": items,
        "test_counts": ", ".join(f"{count:,} {task}" for task, count in tests.items()) or "none",
        "verdict": MIN_ITEMS,
        "embeds": grouping == "embedding" or language(texts) != "English",
        "budget": max(1_000, min(16_000, _tokens(texts), _tokens(around) // 5) // 1_000 * 1_000),
        "grouping": grouping,
        "why_grouping": f"{share:.0%} of the problems share one"
        if share >= 0.5
        else "no topic or entity relates enough of them",
        "problems_per_task": int(used["task"].value_counts().max()),
        "per_group": per_group,
        "n_groups": max(2, min(24, 2 * len(used) // per_group)),
        "context": context,
        "why_teacher": f"{solved:.0%} of the problems have a worked solution; {_KNOWN['teachers'][teacher]}",
        "few_shot": min(2, len(train) // (2 * n_tasks)),
        "main_metric": "bits_per_number_token" if numeric else "answer_bits_per_byte",
        "foreign": "ad_generation" if numeric else "word_problems",
        "found": found,
    }


def _related(problems: pd.DataFrame, column: str) -> float:
    """The share of the problems whose topic or entity another task has too; of the only task, another problem."""
    tasks = problems.groupby(column)["task"].transform("nunique" if problems["task"].nunique() > 1 else "size")
    return float((tasks > 1).mean())


# Files


def _rendered(template: str, values: dict[str, Any]) -> str:
    """A template's text; what users called their columns, files and tasks stands in it as YAML or in a comment."""
    room = jinja2.Environment(loader=jinja2.PackageLoader("trait_kit"), trim_blocks=True, undefined=jinja2.StrictUndefined)
    room.filters |= {"yaml": _as_yaml, "said": _as_comment}
    return room.get_template(template).render({"bad_rows": "", **values, "fields": defaultdict(str, values.get("fields", {}))}) + "\n"


def _as_yaml(value: Any) -> str:
    """One line of YAML, whatever the value holds."""
    plain = not isinstance(value, str) or value.isprintable()
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**9,
                          default_style=None if plain else '"')  # fmt: skip
    return text.removesuffix("...\n").strip()


def _as_comment(value: object) -> str:
    return "".join(mark if mark.isprintable() else "?" for mark in one_line(value))


def _place(name: str) -> str:
    """A path or glob as the notebooks will find it, who run in the project's folder."""
    if is_url(name) or name.startswith(("demo:", "hf:")) or Path.cwd() == runs.project_root():
        return name
    return os.path.abspath(os.path.expanduser(name))
