"""Field templates of task files: how a row of a data set becomes a question, an answer, a solution, choices.

A template is text with references in braces: "{Body} {Question}", "{solution|boxed}", "{options|lettered|pick:correct}".
A reference names a column and may pass its value through extractors, left to right. A template that is one reference
and nothing else keeps the value's type, so that "{choices}" stays a list.

| extractor | does |
|---|---|
| one_line | single blanks instead of line breaks and runs of blanks |
| number | the value, which is one number and perhaps its unit, printed plainly: '43.0', '43 (apples)', '$43' give '43' |
| after_hashes | what follows the last '####' (GSM8K's final answer) |
| before_hashes | what precedes it, without the '<<48/2=24>>' calculator marks |
| after:TEXT, before:TEXT | what follows, or precedes, the first TEXT |
| boxed | the contents of the last \\boxed{...}, whatever braces it contains (MATH's final answer) |
| lettered | a list from 'a ) 12 , b ) 16', 'A) 12 B) 16' or 'A. 12 B. 16'; of a list, its items without a leading '(A)' |
| pick:COLUMN | of a list, the item that COLUMN names by letter ('b'), by index from 0 (2), or by a list of one index |
| equation | '( 290.0 / 2.0 )' as '290 / 2': no outer brackets, no '.0' |
| fill:COLUMN | 'number0', 'number1' ... replaced by the blank-separated numbers in COLUMN |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from trait_kit.engine.numbers import print_number, quantity

_REFERENCE = re.compile(r"\{([^{}|]+)((?:\|[^{}|]+)*)\}")


class FieldError(ValueError):
    """A template cannot be filled from this row; the caller adds the file and the row."""


def render(template: str, row: Mapping[str, Any]) -> Any:
    """Fill one template from one row; raises FieldError naming the column or extractor at fault."""
    whole = _REFERENCE.fullmatch(template.strip())
    if whole:
        return _resolve(whole, row)
    return re.sub(r"[ \t]+", " ", _REFERENCE.sub(lambda match: _text(_resolve(match, row)), template)).strip()


def check(template: str) -> None:
    """Raise FieldError for an unknown extractor, before any row is read."""
    for match in _REFERENCE.finditer(template):
        for step in match.group(2).split("|")[1:]:
            name = step.partition(":")[0].strip()
            if name not in EXTRACTORS:
                raise FieldError(f"'{template}' uses the extractor '{name}'; there are {', '.join(sorted(EXTRACTORS))}")


def _resolve(match: re.Match[str], row: Mapping[str, Any]) -> Any:
    column = match.group(1).strip()
    if column not in row:
        raise FieldError(f"there is no column '{column}' (columns: {', '.join(map(str, row))})")
    value = row[column]
    for step in match.group(2).split("|")[1:]:
        name, _, argument = step.partition(":")
        try:
            value = EXTRACTORS[name.strip()](value, row, argument.strip())
        except FieldError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise FieldError(f"the extractor '{step}' cannot read {str(row.get(column))[:80]!r} ({error})") from None
    return value


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _one_line(value: Any, row: Mapping[str, Any], argument: str) -> str:
    return " ".join(_text(value).split())


def _number(value: Any, row: Mapping[str, Any], argument: str) -> str:
    number = quantity(_text(value))
    if number is None:
        raise FieldError(f"{_text(value)[:80]!r} is not one number, or one number and its unit")
    exact = number.value * number.scale
    return print_number(exact) or str(exact)


def _after_hashes(value: Any, row: Mapping[str, Any], argument: str) -> str:
    _, hashes, after = _text(value).rpartition("####")
    if not hashes or not after.strip():
        raise FieldError(f"there is nothing after '####' in {_text(value)[:80]!r}")
    return after.strip().replace(",", "")


def _before_hashes(value: Any, row: Mapping[str, Any], argument: str) -> str:
    text = re.sub(r"<<[^<>]*>>", "", _text(value).rpartition("####")[0])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(line if line[-1] in ".!?:;," else f"{line}." for line in lines)


def _after(value: Any, row: Mapping[str, Any], argument: str) -> str:
    before, found, after = _text(value).partition(argument)
    if not found:
        raise FieldError(f"there is no '{argument}' in {before[:80]!r}")
    return after.strip()


def _before(value: Any, row: Mapping[str, Any], argument: str) -> str:
    before, found, _ = _text(value).partition(argument)
    if not found:
        raise FieldError(f"there is no '{argument}' in {before[:80]!r}")
    return before.strip()


def _boxed(value: Any, row: Mapping[str, Any], argument: str) -> str:
    text = _text(value)
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        raise FieldError(f"there is no \\boxed{{}} in {text[-80:]!r}")
    rest = text[start:].removeprefix("\\boxed").removeprefix("\\fbox").lstrip()
    if not rest.startswith("{"):
        return re.split(r"[\s$.,]", rest, maxsplit=1)[0]
    depth = 0
    for position, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:position].strip()
    raise FieldError(f"the braces of \\boxed{{}} do not close in {text[-80:]!r}")


def _lettered(value: Any, row: Mapping[str, Any], argument: str) -> list[str]:
    if not isinstance(value, str):
        return [re.sub(r"^\(?[A-Ea-e]\s?\)\s*", "", str(item)).strip() for item in value]
    text = value.strip().strip("[]'\"")
    starts = []
    for letter in "abcdefgh":  # letters in order, so that '(b)' inside option a is not taken for option b too early
        option = re.compile(rf"(?:^|[\s,'\"(])(?:[{letter}{letter.upper()}]\s?\)|{letter.upper()}\.)\s*")
        found = option.search(text, starts[-1][1] if starts else 0)
        if found is None:
            break
        starts.append(found.span())
    if len(starts) < 2:
        raise FieldError(f"there are no lettered options in {value[:80]!r}")
    ends = [begin for begin, _ in starts[1:]] + [len(text)]
    return [text[begin:end].strip(" ,'\"") for (_, begin), end in zip(starts, ends, strict=True)]


def _pick(value: Any, row: Mapping[str, Any], argument: str) -> Any:
    if argument not in row:
        raise FieldError(f"there is no column '{argument}' to pick by")
    key = row[argument]
    key = key[0] if isinstance(key, (list, tuple)) else key
    items = list(value)
    if isinstance(key, str) and re.fullmatch(r"[A-Ha-h]", key.strip()):
        index = ord(key.strip().lower()) - ord("a")
    else:
        index = int(key)
    if not 0 <= index < len(items):
        raise FieldError(f"column '{argument}' says {key!r}, but there are {len(items)} options")
    return items[index]


def _equation(value: Any, row: Mapping[str, Any], argument: str) -> str:
    text = re.sub(r"(\d)\.0+(?!\d)", r"\1", " ".join(_text(value).split()))
    text = re.sub(r"\(\s*", "(", re.sub(r"\s*\)", ")", text))
    inner = text[1:-1] if text.startswith("(") and text.endswith(")") else ""
    return inner if inner and "(" not in inner and ")" not in inner else text


def _fill(value: Any, row: Mapping[str, Any], argument: str) -> str:
    numbers = [re.sub(r"\.0$", "", number) for number in _text(row[argument]).split()]
    return re.sub(r"\bnumber(\d+)\b", lambda match: numbers[int(match.group(1))], _text(value))


EXTRACTORS: dict[str, Callable[[Any, Mapping[str, Any], str], Any]] = {
    "one_line": _one_line,
    "number": _number,
    "after_hashes": _after_hashes,
    "before_hashes": _before_hashes,
    "after": _after,
    "before": _before,
    "boxed": _boxed,
    "lettered": _lettered,
    "pick": _pick,
    "equation": _equation,
    "fill": _fill,
}
