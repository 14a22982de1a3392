"""Field templates of task files: how a row of a data set becomes a question, an answer, a solution, choices.

A template is Jinja with single braces: "{Body} {Question}", "{solution|boxed}", "{options|lettered|pick(correct)}". A name
is a column (one that is no word: {row['its name']}), a filter is one of FILTERS or Jinja's own. A template that is one
reference and nothing else keeps the value's type, so that "{choices}" stays a list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.nativetypes import NativeEnvironment
from pydantic import AfterValidator

from trait_kit.engine.numbers import quantity

_FAULTS = (TemplateError, KeyError, IndexError, TypeError, ValueError, AttributeError)


class FieldError(ValueError):
    """A template cannot be filled from this row; the caller adds the file and the row."""


def render(template: str, row: Mapping[str, Any]) -> Any:
    """Fill one template from one row; raises FieldError naming the column or the filter at fault."""
    template = template.strip()
    if template[1:-1] in row and template[0] + template[-1] == "{}":  # the usual one, without Jinja's price
        return row[template[1:-1]]
    compiled, columns = _compile(template)
    for column in columns:
        if column not in row:
            raise FieldError(f"there is no column '{column}' (columns: {', '.join(map(str, row))})")
    try:
        parts = list(compiled.root_render_func(compiled.new_context({"row": row, **row})))
    except FieldError:
        raise
    except _FAULTS as error:
        raise FieldError(f"'{template}' cannot read {str(dict(row))[:160]} ({error})") from None
    if len(parts) == 1 and not isinstance(parts[0], str):
        return parts[0]
    return "".join(map(_text, parts)).strip()


def check(template: str) -> str:
    """The template itself; FieldError for what is none, before any row is read."""
    _compile(template.strip())
    return template


Template = Annotated[str, AfterValidator(check)]  # a pydantic field


@lru_cache(maxsize=512)
def _compile(template: str) -> tuple[Any, list[str]]:
    try:
        columns = sorted(meta.find_undeclared_variables(_TEMPLATES.parse(template)) - {"row"})
        return _TEMPLATES.from_string(template), columns
    except TemplateSyntaxError as error:
        raise FieldError(
            f"'{template}': {error.message} A filter's argument stands in brackets, {{query|after('Q: ')}} or "
            f"{{options|pick(correct)}}; known filters: {', '.join(sorted(FILTERS))}"
        ) from None


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def one_line(value: Any) -> str:
    """Single blanks instead of line breaks and runs of blanks."""
    return " ".join(_text(value).split())


def number(value: Any) -> str:
    """The value, which is one number and perhaps its unit, printed plainly: '43.0', '43 (apples)', '$43' give '43'."""
    found = quantity(_text(value))
    if found is None:
        raise FieldError(f"{_text(value)[:80]!r} is not one number, or one number and its unit")
    exact = found.value * found.scale
    return str(exact) if "/" in _text(value) else f"{Decimal(exact.numerator) / exact.denominator:f}"


def after_hashes(value: Any) -> str:
    """What follows the last '####': GSM8K's final answer."""
    _, hashes, after = _text(value).rpartition("####")
    if not hashes or not after.strip():
        raise FieldError(f"there is nothing after '####' in {_text(value)[:80]!r}")
    return after.strip().replace(",", "")


def before_hashes(value: Any) -> str:
    """What precedes it, without the '<<48/2=24>>' calculator marks."""
    text = re.sub(r"<<[^<>]*>>", "", _text(value).rpartition("####")[0])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(line if line[-1] in ".!?:;," else f"{line}." for line in lines)


def after(value: Any, text: str) -> str:
    """What follows the first `text`."""
    return _around(value, text)[2].strip()


def before(value: Any, text: str) -> str:
    """What precedes the first `text`."""
    return _around(value, text)[0].strip()


def _around(value: Any, text: str) -> tuple[str, str, str]:
    if text not in _text(value):
        raise FieldError(f"there is no '{text}' in {_text(value)[:80]!r}")
    return _text(value).partition(text)


def boxed(value: Any) -> str:
    r"""The contents of the last \boxed{...}, whatever braces it contains: MATH's final answer."""
    _, mark, rest = _text(value).replace("\\fbox", "\\boxed").rpartition("\\boxed")
    rest = rest.lstrip()
    if not mark:
        raise FieldError(f"there is no \\boxed{{}} in {_text(value)[-80:]!r}")
    if not rest.startswith("{"):
        return re.split(r"[\s$.,]", rest, maxsplit=1)[0]
    depth = 0
    for position, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:position].strip()
    raise FieldError(f"the braces of \\boxed{{}} do not close in {rest[-80:]!r}")


def lettered(value: Any) -> list[str]:
    """A list from 'a ) 12 , b ) 16', 'A) 12 B) 16' or 'A. 12 B. 16'; of a list, its items without a leading '(A)'."""
    if not isinstance(value, str):
        return [re.sub(r"^\(?[A-Ea-e]\s?\)\s*", "", str(item)).strip() for item in value]
    text = value.strip().strip("[]'\"")
    starts: list[tuple[int, int]] = []
    for letter in "abcdefgh":  # in order, so that '(b)' inside option a is not taken for option b too early
        option = re.compile(rf"(?:^|[\s,'\"(])(?:[{letter}{letter.upper()}]\s?\)|{letter.upper()}\.)\s*")
        found = option.search(text, starts[-1][1] if starts else 0)
        if found is None:
            break
        starts.append(found.span())
    if len(starts) < 2:
        raise FieldError(f"there are no lettered options in {value[:80]!r}")
    ends = [begin for begin, _ in starts[1:]] + [len(text)]
    return [text[begin:end].strip(" ,'\"") for (_, begin), end in zip(starts, ends, strict=True)]


def pick(value: Any, key: Any) -> Any:
    """Of a list, the item that `key` names by letter ('b'), by index from 0 (2), or by a list of one index."""
    key = key[0] if isinstance(key, list | tuple) else key
    letter = isinstance(key, str) and re.fullmatch(r"[A-Ha-h]", key.strip())
    index = "abcdefgh".index(key.strip().lower()) if letter else int(key)
    if not 0 <= index < len(value):
        raise FieldError(f"{key!r} is picked, but there are {len(value)} options")
    return value[index]


def equation(value: Any) -> str:
    """'( 290.0 / 2.0 )' as '290 / 2': no outer brackets, no '.0'."""
    text = re.sub(r"(\d)\.0+(?!\d)", r"\1", one_line(value))
    text = re.sub(r"\(\s*", "(", re.sub(r"\s*\)", ")", text))
    inner = text[1:-1] if text.startswith("(") and text.endswith(")") else ""
    return inner if inner and "(" not in inner and ")" not in inner else text


def fill(value: Any, numbers: Any) -> str:
    """'number0', 'number1' ... replaced by the blank-separated `numbers`."""
    found = [re.sub(r"\.0$", "", one) for one in _text(numbers).split()]
    return re.sub(r"\bnumber(\d+)\b", lambda match: found[int(match[1])], _text(value))


FILTERS: dict[str, Callable[..., Any]] = {
    filter.__name__: filter
    for filter in (one_line, number, after_hashes, before_hashes, after, before, boxed, lettered, pick, equation, fill)
}
_TEMPLATES = NativeEnvironment(variable_start_string="{", variable_end_string="}", undefined=StrictUndefined)
_TEMPLATES.globals.clear()
_TEMPLATES.filters.update(FILTERS)
