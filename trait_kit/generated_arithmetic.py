"""Recompute the arithmetic that a worked solution prints.

A model that is trained on "7 * 8 = 54" learns it, so nothing is taught before every `a op b = c` in it was evaluated
again with exact fractions. Units inside an equation ("20 balls * $14/ball = $280"), percentages, chains
("12 - 4 = 2 * 4 = 8") and unknowns whose value is given ("8*x = 64" with x = 8) are read; an equation that cannot be
read is reported as such, and the strict callers treat it like a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?|\.\d+"
_TOKEN = re.compile(rf"(?P<number>{NUMBER})(?P<percent>\s?%)?|(?P<word>[A-Za-z][\w'-]*)|(?P<mark>[-+*/()=])|(?P<stop>\S|\n)")
_UNIT_OF = re.compile(r"(?<=[A-Za-z0-9])/(?=[A-Za-z])[A-Za-z]+")  # the "/ball" of "$14/ball", never a division
_MAX_UNIT_WORDS = 5
_JOINING = {
    "and",
    "so",
    "or",
    "because",
    "if",
    "then",
    "but",
    "which",
    "is",
    "are",
    "that",
    "thus",
    "means",
    "where",
    "when",
}


@dataclass
class ArithmeticReport:
    """What was found: equations that hold, that do not, and that could not be read (as printed)."""

    right: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    last_value: Fraction | None = None  # right side of the last equation that holds

    @property
    def clean(self) -> bool:
        return not self.wrong and not self.unread


def plain_operators(text: str) -> str:
    """Print operators in one way: '×', '÷', '−' and a lone 'x' between numbers become '*', '/', '-' and '*'."""
    text = text.replace("×", "*").replace("÷", "/").replace("−", "-").replace("·", "*")
    text = re.sub(r"(?<=\w)\s+–\s+(?=[\d$£€])", " - ", text)
    return re.sub(r"(?<=[\w%)])\s+x\s+(?=[\d.$£€(])|(?<=\d)x(?=\d)", " * ", text)


def check_arithmetic(text: str, unknowns: Mapping[str, Fraction | int] | None = None) -> ArithmeticReport:
    """Evaluate every '=' in `text`; a chain a = b = c counts as two equations.

    `unknowns` gives values to one-letter names, so that algebra is checked by substitution. Sides that end in a
    rounded decimal count as wrong: a solution should not print a value that is not equal.
    """
    report = ArithmeticReport()
    text = plain_operators(text)
    text = _UNIT_OF.sub("", re.sub(r"[$£€]", "", text))
    text = re.sub(r"(?<=\d)\((?=[\d.])", "*(", text)  # 4(17) multiplies
    text = re.sub(r"(?<=\d)(?=[A-Za-z]\b)", "*" if unknowns else " ", text)
    tokens = _tokens(text)
    equals = [index for index, (_, match) in enumerate(tokens) if match.group() == "="]
    values = dict(unknowns or {})
    for position in equals:
        left_atoms = _side(tokens, position, -1, values)
        left, right = _evaluate(left_atoms), _evaluate(_side(tokens, position, +1, values))
        shown = text[max(0, tokens[position][1].start() - 40) : tokens[position][1].end() + 20].replace("\n", " ")
        converts = (
            len(left_atoms) == 1 and tokens[position - 1][0] == "word" and tokens[position - 1][1].group() not in values
        )
        if left is None or right is None or (converts and left != right):  # "4.5 pounds = 72 ounces" is no arithmetic
            report.unread.append(shown)
        elif left == right:
            report.right.append(shown)
            report.last_value = right
        else:
            report.wrong.append(shown)
    return report


def evaluate(expression: str) -> Fraction | None:
    """The exact value of a printed expression of numbers, + - * / and brackets, or None where it is none."""
    tokens = _tokens(expression)
    if any(kind in ("word", "stop") for kind, _ in tokens):
        return None
    return _evaluate([_atom(kind, match, {}) for kind, match in tokens])


def as_number(text: object) -> Fraction | None:
    """A printed number ('1,200', '$4.50', '-3/4', '25%' as 25) as an exact fraction; None for anything else."""
    cleaned = re.sub(r"[\s,$£€%]", "", str(text)).rstrip(".")
    if not re.fullmatch(r"-?(\d+(\.\d+)?|\.\d+)(/\d+)?", cleaned):
        return None
    top, _, bottom = cleaned.partition("/")
    if not bottom:
        return Fraction(top)
    return Fraction(top) / int(bottom) if int(bottom) else None


def print_number(value: Fraction) -> str | None:
    """Print exactly: '12', '1687.5'; None where more than three decimals would be needed."""
    if value.denominator == 1:
        return str(value.numerator)
    for decimals in (1, 2, 3):
        if (value * 10**decimals).denominator == 1:
            return f"{float(value):.{decimals}f}"
    return None


def _tokens(text: str) -> list[tuple[str, re.Match[str]]]:
    return [("number" if match.lastgroup == "percent" else str(match.lastgroup), match) for match in _TOKEN.finditer(text)]


def _atom(kind: str, match: re.Match[str], unknowns: Mapping[str, Fraction | int]) -> Fraction | str | None:
    if kind == "number":
        value = Fraction(match.group("number").replace(",", ""))
        return value / 100 if match.group("percent") else value
    if kind == "word":
        return Fraction(unknowns[match.group()]) if match.group() in unknowns else None
    return match.group()


def _side(tokens: list, position: int, step: int, unknowns: Mapping[str, Fraction | int]) -> list[Fraction | str]:
    """The numbers and operators beside the '=' at `position`, to the left (step -1) or to the right (step +1).

    Unit words are dropped only between a number and the operator (or the '=') that follows it; any other word ends it,
    and a letter without a value makes it unreadable (an empty list).
    """
    atoms: list[Fraction | str] = []
    words = 0
    index = position + step
    while 0 <= index < len(tokens):
        kind, match = tokens[index]
        value = _atom(kind, match, unknowns)
        last = atoms[-1] if atoms else None
        if kind == "stop" or value == "=":
            break
        if value is None:  # a unit, or prose
            if len(match.group()) == 1 and match.group() not in "aAI" and not isinstance(last, Fraction):
                return []
            words += 1
            if match.group().lower() in _JOINING:
                break
            if words > _MAX_UNIT_WORDS or (step < 0 and isinstance(last, Fraction)):
                break
            if step > 0 and (not atoms or not _operator_follows(tokens, index)):
                break
        else:
            operand = isinstance(value, Fraction) or value == (")" if step < 0 else "(")
            if operand and (isinstance(last, Fraction) or last == ("(" if step < 0 else ")")):
                break
            if step > 0 and isinstance(value, str) and value in "*/+" and not atoms:
                return []
            atoms.append(value)
            words = 0
        index += step
    if step < 0:
        atoms.reverse()
        if atoms and atoms[0] in ("*", "/", "+", ")"):
            return []
    return atoms


def _operator_follows(tokens: list, index: int) -> bool:
    for kind, match in tokens[index + 1 : index + 1 + _MAX_UNIT_WORDS]:
        if kind == "mark":
            return match.group() in "+-*/"
        if kind != "word":
            return False
    return False


def _evaluate(atoms: list) -> Fraction | None:
    """Usual precedence by recursive descent over already read atoms."""
    position = 0

    def peek() -> Fraction | str | None:
        return atoms[position] if position < len(atoms) else None

    def factor() -> Fraction:
        nonlocal position
        atom = peek()
        position += 1
        if isinstance(atom, Fraction):
            return atom
        if atom == "-":
            return -factor()
        if atom == "(":
            inside = total()
            if peek() != ")":
                raise ValueError
            position += 1
            return inside
        raise ValueError

    def product() -> Fraction:
        nonlocal position
        value = factor()
        while peek() in ("*", "/"):
            operator = peek()
            position += 1
            value = value * factor() if operator == "*" else value / factor()
        return value

    def total() -> Fraction:
        nonlocal position
        value = product()
        while peek() in ("+", "-"):
            operator = peek()
            position += 1
            value = value + product() if operator == "+" else value - product()
        return value

    try:
        value = total()
    except (ValueError, ZeroDivisionError, RecursionError):
        return None
    return value if position == len(atoms) else None
