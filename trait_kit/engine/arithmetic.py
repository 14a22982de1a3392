"""Is the arithmetic that a text prints right? The one checker: of passages, and of gold solutions that are trained on.

A model that is trained on '7 * 8 = 54' learns it. So every '=' between numbers is computed again with exact fractions,
as far as it can be read with certainty: LaTeX, units ('20 balls * $14/ball = $280'), percentages, chains, rounding.
What cannot be read is left alone: 'x + 5 = 20' is an equation to solve, '7 / 2 = 3 remainder 1' has a word in it.
"""

import ast
import itertools
import operator
import re
from fractions import Fraction
from pathlib import Path

import yaml

from trait_kit.engine.numbers import SIGNS, rewritten

MAX_TEXT = 20_000  # characters that are read
_WORDS = yaml.safe_load(Path(__file__).with_name("arithmetic_words.yaml").read_text(encoding="utf-8"))
_NO_UNITS = frozenset(f"{_WORDS['operators']} {_WORDS['no_units']}".split())
_CONVERTED = [frozenset(units.split()) for units in _WORDS["converted"]]
_PLAIN = [(re.compile(pattern), plain) for pattern, plain in _WORDS["plain"]]
_NUMBER = re.compile(r"(\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(\s?%)?")
# All is bounded, as a long row of numbers or brackets would take minutes.
_UNITS = r"(?: ?/ ?[a-z]+| +[a-z]{2,}(?:/[a-z]+)?){1,3}"
_PRINTED = r"-?[$£€]?(?:\d{1,30}(?:,\d{3}){0,9}(?:\.\d{1,30})?|\.\d{1,30})(?: ?%)?(?: \d{1,9}/\d{1,9})?\$?"
_TERM = rf"(?:\( ?){{0,5}}{_PRINTED}(?: ?\)){{0,5}}(?:{_UNITS}(?=[ \t]*(?:=|[-+*/][ \t]*[\d$£€(.])))?"
_SIDE = rf"{_TERM}(?:[ \t]*[-+*/][ \t]*{_TERM}){{0,20}}"
_EQUATIONS = re.compile(rf"{_SIDE}(?:[ \t]*=[ \t]*{_SIDE})+")
_LONGER = re.compile("|".join(_WORDS["before"]).replace("OPERATORS", _WORDS["operators"].replace(" ", "|")))
_UNIT = re.compile(r"[$£€]|[a-z]+?(?=s?\b)")
_AFTER = re.compile(r"[$ ]{0,2}(?:square |cubic )?[a-z]*")  # a unit
_GOES_ON = re.compile("|".join(_WORDS["after"]))
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def arithmetic_slips(text: str) -> list[str]:
    """Equations of numbers, as printed, whose two sides differ. A decimal on the right may be rounded at its last digit."""
    text = _plain(text[:MAX_TEXT])
    slips = []
    for match in _EQUATIONS.finditer(text):
        within, after = (set(_UNIT.findall(part)) for part in (match[0], _AFTER.match(text, match.end())[0]))
        if within & _NO_UNITS or any(len((within | after) & kind) > 1 for kind in _CONVERTED):
            continue
        sides = [re.sub(rf"{_UNITS}|[$£€]", "", side).strip() for side in match[0].split("=")]
        if sides[0].count("(") > sides[0].count(")"):  # '(5 + 5 = 10)': the bracket is not part of the sum
            sides[0] = sides[0].lstrip("( ")
        if sides[-1].count(")") > sides[-1].count("("):
            sides[-1] = sides[-1].rstrip(") ")
        if _LONGER.search(text[max(0, match.start() - 40) : match.start()]):
            del sides[0]
        if _GOES_ON.match(text[match.end() : match.end() + 40]):
            del sides[-1]
        for left, right in itertools.pairwise(sides):
            if not _agree(left, right) and (len(sides) > 2 or re.search(r"[\d)%]\s*[-+*/]", left + right)):
                slips.append(f"{left} = {right}")
    return slips


def evaluate(expression: str) -> Fraction | None:
    """The exact value of printed numbers, mixed numbers, + - * / and brackets; None where it is anything else."""
    text = re.sub(r"(?<![\d.,/])(\d+) (\d+)/(\d+)", r"(\1+\2/\3)", expression)
    text = _NUMBER.sub(lambda match: f"({Fraction(match[1].replace(',', '')) / (100 if match[2] else 1)})", text)
    try:
        return _value(ast.parse(text.strip(), mode="eval").body) if re.fullmatch(r"[\d+*/()\s-]*", text) else None
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int(value)):
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(op=sign, left=left, right=right) if type(sign) in _OPERATIONS:
            return _OPERATIONS[type(sign)](_value(left), _value(right))
    raise ValueError


def _plain(text: str) -> str:
    """Printed sums in one notation: plain operators, no LaTeX, no blank in a number."""
    text = rewritten(text.translate(SIGNS), _PLAIN)
    text = re.sub(r"(?<![\d.,/])\d{1,3}(?: \d{3})+(?![\d.,]| \d|(?<!000)/)", lambda match: match[0].replace(" ", ""), text)
    return re.sub(r"(\d+(?:\.\d+)?)%\s+of\s+(?=[\d($])", r"(\1/100)*", text)


def _agree(left: str, right: str) -> bool:
    """Whether two sides are equal, or cannot be read: '6 / 1/2' may mean two things."""
    value, result = evaluate(left), evaluate(right)
    if value is None or result is None or re.search(r"/\s+\d+/\d", left):
        return True
    decimals = re.fullmatch(r"-?\d*\.(\d+)%?", right)
    slack = Fraction(1, 2 * 10 ** len(decimals[1])) if decimals else 0
    return any(abs(value - result * scale) <= slack for scale in ((1, 100) if right.endswith("%") else (1,)))
