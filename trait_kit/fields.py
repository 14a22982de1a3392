"""Rows of a data set, and what a task reads out of them.

A template is Jinja with single braces: "{Body} {Question}", "{options|lettered|pick(correct)}". A name is a column (one
that is no word: {row['its name']}), a filter is one of FILTERS or Jinja's own. One reference alone keeps the value's type:
"{choices}" stays a list.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Annotated, Any, TypeVar

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined
from jinja2.nativetypes import NativeEnvironment
from pydantic import AfterValidator

from trait_kit.engine.files import TraitError
from trait_kit.judging.answers import braced
from trait_kit.judging.numbers import quantity
from trait_kit.reading.readers import Refused as FieldError
from trait_kit.reading.readers import records
from trait_kit.reading.streams import Damaged, format_of

FORMS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
# keep their lines and indentation: code is nothing without
_LAID_OUT = ("question", "answer", "solution", "choices")
Row = dict[str, Any]
Read = TypeVar("Read")


# Rows


def read_rows(path: Path) -> list[Any]:
    """The rows of a file, for `usable`; cells of a table stay text: '007' is no number."""
    if format_of(str(path))[0] not in FORMS:
        raise TraitError(
            f"{path}: rows are read from {', '.join(FORMS)}; all but the last may end in .gz or .zst."
        )
    try:
        return list(records(str(path)))
    except Damaged as damage:
        raise TraitError(f"{path} cannot be read: {damage}. Repair the file, or name another one.") from None


@cache
def say(line: str) -> None:
    """What a reader of the data is to know, said once."""
    print(line, flush=True)


def usable(
    rows: Iterable[Any], read: Callable[[Row], Read], where: object, skipped: Counter[str] | None = None
) -> Iterator[Read]:
    """What `read` makes of each row; what it refuses is counted in `skipped`, or without that stops with its place."""
    for number, row in enumerate(rows, start=1):
        if row is None:
            continue
        try:
            if not isinstance(row, dict):
                raise row if isinstance(row, FieldError) else FieldError(f"no named fields: {str(row)[:60]!r}")
            found = read(row)
        except FieldError as error:
            if skipped is None:
                raise TraitError(
                    f"{where}, row {number}: {error}. Repair the row, or the template that reads it."
                ) from None
            skipped[str(error).partition(": ")[0]] += 1
        else:
            yield found


# Templates


def render(template: str, row: Mapping[str, Any]) -> Any:
    """One template filled from one row; FieldError names the template, the row and what is at fault."""
    compiled = _compiled(template)
    try:
        parts = list(compiled.root_render_func(compiled.new_context({"row": row, **row})))
        if len(parts) == 1 and not isinstance(parts[0], str | Undefined):
            return parts[0]
        return laid_out("".join(map(_text, parts)))
    except (TemplateError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise FieldError(f"'{template}' cannot read {str(dict(row))[:160]} ({error})") from None


def fill(templates: Mapping[str, str | None], row: Row) -> Row:
    """Every template filled: as text, in one line where layout says nothing; `choices` as a list; None for nothing."""
    found: Row = {}
    for name, template in templates.items():
        tidy = laid_out if name in _LAID_OUT else one_line
        try:
            value = render(template, row) if template else None
            if name == "choices" and value is not None:
                value = [text for option in _options(value).values() if (text := tidy(option))]
        except FieldError as error:
            raise FieldError(f"{name} cannot be read: {error}") from None
        if name != "choices" and isinstance(value, list | dict):
            raise FieldError(f"{name} is not text: {str(value)[:60]}")
        found[name] = value if isinstance(value, list) else tidy(value) or None
    return found


def _options(value: Any) -> dict[str, Any]:
    """Choices by label: A, B, ... of a list; those of {'A': ...}, {'text': [...], 'label': [...]}, [{'text', 'label'}]."""
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {name: [item.get(name) for item in value] for name in ("text", "label")}
    if isinstance(value, list | tuple):
        value = dict(zip(ascii_uppercase + "?", value, strict=False))
    elif isinstance(value, dict) and {"text", "label"} <= value.keys():
        value = dict(zip(map(str, value["label"]), value["text"], strict=False))
    if not isinstance(value, dict) or "?" in value or any(isinstance(it, list | dict) for it in value.values()):
        raise FieldError(
            f"neither a list of up to 26 choices, nor choices by label, nor 'text' and 'label': {str(value)[:80]}"
        )
    return {str(label).strip().upper(): text for label, text in value.items()}


@lru_cache(maxsize=512)
def _compiled(template: str) -> Any:
    try:
        return _TEMPLATES.from_string(template.strip())
    except TemplateSyntaxError as error:
        raise FieldError(f"'{template}': {error.message} Known filters: {', '.join(sorted(FILTERS))}") from None


# refused before any row is read
Template = Annotated[str, AfterValidator(lambda template: _compiled(template) and template)]


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value)  # NaN: a number that is missing


# Filters


def laid_out(value: Any) -> str:
    text = "\n".join(line.rstrip() for line in _text(value).splitlines()).strip("\n")
    return text if "\n" in text else text.strip()


def one_line(value: Any) -> str:
    return " ".join(_text(value).split())


def number(value: Any) -> str:
    """One number without its unit: '43.0', '43 (apples)', '$43' give '43'."""
    text = _text(value)
    if not (found := quantity(text)):
        raise FieldError(f"{text[:80]!r} is not one number and perhaps its unit")
    value = found.value
    return f"{Decimal(value.numerator) / value.denominator:f}" if found.lowest is None else str(value)


def sentences(value: Any) -> str:
    """Each line as a sentence, without GSM8K's calculator marks '<<48/2=24>>'."""
    lines = [line.strip() for line in re.sub(r"<<[^<>]*>>", "", _text(value)).splitlines()]
    return " ".join(line if line[-1] in ".!?:;," else f"{line}." for line in lines if line)


def boxed(value: Any) -> str:
    r"""The contents of the last \boxed{...}, whatever braces it contains."""
    _, mark, rest = _text(value).replace("\\fbox", "\\boxed").rpartition("\\boxed")
    rest = rest.lstrip()
    if mark and not rest.startswith("{"):
        return re.split(r"[\s$.,]", rest, maxsplit=1)[0]
    if found := braced(rest):
        return found.strip()
    raise FieldError(f"there is no whole \\boxed{{}} in {_text(value)[-80:]!r}")


def lettered(value: Any) -> list[str]:
    """A list from 'a ) 12 , b ) 16' or 'A. 12 B. 16'; of a list, its items without a leading '(A)'."""
    if not isinstance(value, str):
        return [
            re.sub(rf"^\(?{mark}\s?\)\s*", "", str(item), flags=re.I).strip()
            for mark, item in _options(value).items()
        ]
    text = value.strip().strip("[]'\"")
    spans: list[tuple[int, int]] = []
    for mark in re.finditer(r"(?:^|[\s,'\"(])(?:([a-zA-Z])\s?\)|([A-Z])\.)\s*", text):
        if (mark[1] or mark[2]).lower() == ascii_lowercase[len(spans)]:  # '(b)' inside option a comes too early
            spans.append(mark.span())
    if len(spans) < 2:
        raise FieldError(f"there are no lettered options in {value[:80]!r}")
    return [text[end:start].strip(" ,'\"") for (_, end), (start, _) in pairwise([*spans, (len(text), 0)])]


def pick(value: Any, key: Any) -> Any:
    """Of choices, the one of that label ('b'), or of an index from 0 (2, [2])."""
    name = str(key[0] if isinstance(key, list | tuple) else key).strip().upper()
    options = _options(value)
    if name not in options and name.isdigit() and int(name) < len(options):
        name = list(options)[int(name)]
    if name not in options:
        raise FieldError(f"{key!r} is picked, but there are {', '.join(options)}")
    return options[name]


FILTERS: dict[str, Callable[..., Any]] = {
    filter.__name__: filter for filter in (one_line, number, sentences, boxed, lettered, pick)
}
_TEMPLATES = NativeEnvironment(variable_start_string="{", variable_end_string="}", undefined=StrictUndefined)
_TEMPLATES.globals.clear()
_TEMPLATES.filters.update(FILTERS)
