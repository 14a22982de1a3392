"""Rows of a data set, and what a task reads out of them.

A template is Jinja with single braces: "{Body} {Question}", "{solution|boxed}", "{options|lettered|pick(correct)}". A name
is a column (one that is no word: {row['its name']}), a filter is one of FILTERS or Jinja's own. A template that is one
reference and nothing else keeps the value's type, so that "{choices}" stays a list.
"""

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase
from typing import Annotated, Any, TypeVar

import pandas as pd
import pyarrow.parquet as pq
from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined
from jinja2.nativetypes import NativeEnvironment
from pydantic import AfterValidator

from trait_kit.answers import braced
from trait_kit.engine.files import TraitError
from trait_kit.engine.numbers import quantity

FORMS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
Row = dict[str, Any]
Read = TypeVar("Read")


class FieldError(ValueError):
    """Why a row cannot be used: the reason, and after ': ' what is the matter with this one."""


# Rows


def read_rows(path: Path) -> list[Any]:
    """The rows of a file in one of FORMS (also .gz), for `usable`; cells of a table stay text: '007' is no number."""
    form = next((suffix for suffix in reversed(path.suffixes) if suffix != ".gz"), "")
    if form not in FORMS:
        raise TraitError(f"{path}: rows are read from {', '.join(FORMS)}; all but the last may end in .gz.")
    try:
        if form == ".parquet":
            return pq.read_table(path).to_pylist()
        if form in (".csv", ".tsv"):
            divider = "\t" if form == ".tsv" else ","
            return pd.read_csv(path, sep=divider, dtype=str, keep_default_na=False).to_dict("records")
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return list(json.loads(data)) if form == ".json" else data.splitlines()
    except (OSError, EOFError, ValueError, TypeError, RecursionError, zlib.error) as error:
        raise TraitError(f"{path} cannot be read: {error}. Repair the file (text is UTF-8), or name another one.") from None


def usable(
    rows: Iterable[Any], read: Callable[[Row], Read], where: object, skipped: Counter[str] | None = None
) -> Iterator[Read]:
    """What `read` makes of each row or line of JSON; blank lines are none.

    One that it refuses is counted in `skipped` by reason; without that it stops with its place `where`, from 1.
    """
    for number, row in enumerate(rows, start=1):
        if isinstance(row, bytes) and not row.strip():
            continue
        try:
            found = read(_parsed(row))
        except FieldError as error:
            if skipped is None:
                raise TraitError(f"{where}, row {number}: {error}. Repair the row, or the template that reads it.") from None
            skipped[str(error).partition(": ")[0]] += 1
        else:
            yield found


def _parsed(row: Any) -> Row:
    try:
        row = json.loads(row) if isinstance(row, bytes) else row
    except (ValueError, RecursionError) as error:
        raise FieldError(f"not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise FieldError(f"no named fields: {str(row)[:60]!r}")
    return row


# Templates


def render(template: str, row: Mapping[str, Any]) -> Any:
    """Fill one template from one row; FieldError names the template, the row and the column or filter at fault."""
    compiled = _compiled(template)
    try:
        parts = list(compiled.root_render_func(compiled.new_context({"row": row, **row})))
        if len(parts) == 1 and not isinstance(parts[0], str | Undefined):
            return parts[0]
        return "".join(map(_text, parts)).strip()
    except (TemplateError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise FieldError(f"'{template}' cannot read {str(dict(row))[:160]} ({error})") from None


def fill(templates: Mapping[str, str | None], row: Row) -> Row:
    """Every template filled, as text in one line, `choices` as a list of such; None where there is nothing."""
    found: Row = {}
    for name, template in templates.items():
        try:
            value = render(template, row) if template else None
        except FieldError as error:
            raise FieldError(f"{name} cannot be read: {error}") from None
        if value is not None and isinstance(value, list | dict) != (name == "choices"):
            raise FieldError(f"{name} is {'no list' if name == 'choices' else 'not text'}: {str(value)[:60]}")
        found[name] = [one_line(item) for item in value] if isinstance(value, list) else one_line(value) or None
    return found


@lru_cache(maxsize=512)
def _compiled(template: str) -> Any:
    try:
        return _TEMPLATES.from_string(template.strip())
    except TemplateSyntaxError as error:
        raise FieldError(f"'{template}': {error.message} Known filters: {', '.join(sorted(FILTERS))}") from None


# A pydantic field, refused before any row is read
Template = Annotated[str, AfterValidator(lambda template: _compiled(template) and template)]


def _text(value: Any) -> str:
    return "" if value is None else str(value)


# Filters


def one_line(value: Any) -> str:
    """Single blanks instead of line breaks and runs of blanks."""
    return " ".join(_text(value).split())


def number(value: Any) -> str:
    """The value, which is one number and perhaps its unit, printed plainly: '43.0', '43 (apples)', '$43' give '43'."""
    text = _text(value)
    found = quantity(text)
    if found is None:
        raise FieldError(f"{text[:80]!r} is not one number, or one number and its unit")
    exact = found.value * found.scale
    return str(exact) if "/" in text else f"{Decimal(exact.numerator) / exact.denominator:f}"


def sentences(value: Any) -> str:
    """Each line as a sentence, without GSM8K's calculator marks '<<48/2=24>>'."""
    lines = [line.strip() for line in re.sub(r"<<[^<>]*>>", "", _text(value)).splitlines()]
    return " ".join(line if line[-1] in ".!?:;," else f"{line}." for line in lines if line)


def boxed(value: Any) -> str:
    r"""The contents of the last \boxed{...}, whatever braces it contains: MATH's final answer."""
    _, mark, rest = _text(value).replace("\\fbox", "\\boxed").rpartition("\\boxed")
    rest = rest.lstrip()
    if mark and not rest.startswith("{"):
        return re.split(r"[\s$.,]", rest, maxsplit=1)[0]
    if found := braced(rest):
        return found.strip()
    raise FieldError(f"there is no whole \\boxed{{}} in {_text(value)[-80:]!r}")


def lettered(value: Any) -> list[str]:
    """A list from 'a ) 12 , b ) 16', 'A) 12 B) 16' or 'A. 12 B. 16'; of a list, its items without a leading '(A)'."""
    if not isinstance(value, str):
        return [re.sub(r"^\(?[A-Ea-e]\s?\)\s*", "", str(item)).strip() for item in value]
    text = value.strip().strip("[]'\"")
    spans: list[tuple[int, int]] = []
    for mark in re.finditer(r"(?:^|[\s,'\"(])(?:([a-zA-Z])\s?\)|([A-Z])\.)\s*", text):
        if (mark[1] or mark[2]).lower() == ascii_lowercase[len(spans)]:  # '(b)' inside option a comes too early
            spans.append(mark.span())
    if len(spans) < 2:
        raise FieldError(f"there are no lettered options in {value[:80]!r}")
    return [text[end:start].strip(" ,'\"") for (_, end), (start, _) in pairwise([*spans, (len(text), 0)])]


def pick(value: Any, key: Any) -> Any:
    """Of a list, the item that `key` names by letter ('b'), by index from 0 (2), or by a list of one index."""
    name = str(key[0] if isinstance(key, list | tuple) else key).strip().lower()
    index = int(name) if name.isdigit() else list(ascii_lowercase).index(name)
    if index >= len(value):
        raise FieldError(f"{key!r} is picked, but there are {len(value)} options")
    return value[index]


FILTERS: dict[str, Callable[..., Any]] = {
    filter.__name__: filter for filter in (one_line, number, sentences, boxed, lettered, pick)
}
_TEMPLATES = NativeEnvironment(variable_start_string="{", variable_end_string="}", undefined=StrictUndefined)
_TEMPLATES.globals.clear()
_TEMPLATES.filters.update(FILTERS)
