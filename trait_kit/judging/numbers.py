"""The one reader of printed numbers, and of the sums that texts print with them, which may be wrong.

Numbers: '1,200', '−3/4', '1½', '$4.50', '25%', '2.5 million', '1e6', '36 °C', '42 (apples)', as exact fractions; in words
('twelve') and in the continental way ('1.234,50') where a caller asks for it, as '3,5' may be two numbers.

Sums: a model that is trained on '7 * 8 = 54' learns it. So every '=' between numbers is computed again where it can be
read with certainty: LaTeX, units ('20 balls * $14/ball = $280'), percentages, chains, rounding. The rest is left alone:
'x + 5 = 20' is an equation to solve, '7 / 2 = 3 remainder 1' has a word in it.
"""

import ast
import itertools
import math
import operator
import re
import unicodedata
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from trait_kit.engine.files import read_yaml

MAX_DIGITS = 40  # of a number; longer ones are none
ROUNDED_DECIMALS = 4  # a number printed with this many decimals or more may be rounded at its last
FLOAT_DECIMALS = 12  # what comes after is a computer's rounding

_WRITTEN = read_yaml(Path(__file__).with_name("numbers.yaml"))
_SCALES, _WORDS = _WRITTEN["scales"], _WRITTEN["words"] | _WRITTEN["scales"]
RULES = {name: [(re.compile(pattern), to) for pattern, to in rules] for name, rules in _WRITTEN["rules"].items()}
_PATTERNS = {"SCALES": "|".join(_SCALES), "WORDS": "|".join(sorted(_WORDS, key=len, reverse=True))}
for _name, _pattern in _WRITTEN["patterns"].items():  # made of those before it
    _PATTERNS[_name] = re.sub(r"[A-Z]{4,}", lambda part: _PATTERNS[part[0]], _pattern)
NUMBER, _SPELT, _CONTINENTAL, _UNIT, _FACTOR, _EQUATIONS, _SINGULAR, _AFTER = (
    re.compile(_PATTERNS[name])
    for name in ("number", "spelt", "continental", "unit", "factor", "equations", "singular", "after")
)
SIGNS = str.maketrans({"−": "-", "‐": "-", "‑": "-", "⁄": "/", "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/"})

# Sums. Long rows of numbers or brackets would take minutes.
MAX_TEXT = 20_000  # characters that are read
_BESIDE = _WRITTEN["beside_sums"]
_NO_UNITS = frozenset(f"{_BESIDE['operators']} {_BESIDE['no_units']}".split())
_CONVERTED = [frozenset(units.split()) for units in _BESIDE["converted"]]
_LONGER = re.compile("|".join(_BESIDE["before"]).replace("OPERATORS", _BESIDE["operators"].replace(" ", "|")))
_GOES_ON = re.compile("|".join(_BESIDE["after"]))
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


class Number(NamedTuple):
    """A value as it was printed."""

    value: Fraction  # of '2 million': 2,000,000
    decimals: int
    percent: bool
    lowest: bool | None  # whether a fraction is in its lowest terms; None: it is no fraction

    def equals(self, gold: "Number") -> bool:
        """25% is 25 or 1/4 as the gold has it; what is rounded equals to its last digit.

        A fraction that can be reduced does not answer a gold fraction that is: 12/8 is the question, 3/2 its answer.
        """
        if gold.lowest and self.lowest is False:
            return False
        rounded = [one.decimals for one in (self, gold) if one.decimals >= ROUNDED_DECIMALS]
        slack = Fraction(1, 2 * 10 ** min(*rounded, FLOAT_DECIMALS)) if rounded else 0
        return any(abs(own - other) <= slack for own in self._values(gold) for other in gold._values(self))

    def _values(self, other: "Number") -> set[Fraction]:
        return {self.value} | ({self.value / 100} if self.percent and not other.percent else set())


def read_number(match: re.Match[str]) -> Number | None:
    """The number of a match of NUMBER; None where it divides by zero or is too long."""
    parts = {name: value.replace(",", "") for name, value in match.groupdict().items() if value}
    if sum(character.isdigit() for character in match.group()) > MAX_DIGITS:
        return None
    bottom = int(parts.get("bottom") or parts.get("under") or 1)
    if bottom == 0:
        return None
    top = Fraction(parts.get("over") or parts.get("decimal") or parts["top"])
    value = (int(parts.get("whole", 0)) + top / bottom) * _SCALES.get(parts.get("scale", "").lower(), 1)
    lowest = math.gcd(int(top), bottom) == 1 if "decimal" not in parts else None
    decimals = len(parts.get("decimal", "").partition(".")[2])
    return Number(-value if parts.get("sign") == "-" else value, decimals, "percent" in parts, lowest)


def quantity(text: str, unit: bool = True) -> Number | None:
    """The number of '42', '$42', '1 200'; with `unit` also of '42 apples', '12 cm^2'. None for '7:8'."""
    text = tidy(plain(text), in_line=True)
    match = NUMBER.match(text)
    beside = text[match.end() :] if match else ""
    return read_number(match) if match and (not beside or (unit and _UNIT.fullmatch(beside))) else None


def in_figures(text: str) -> str:
    """'3,5' as 3.5, '1.234,50' as 1234.50; in a text without digits, 'twenty-one', 'zwölf', '二十一' in figures."""
    if re.search(r"\d", text):
        return _CONTINENTAL.sub(lambda number: number[0].replace(".", "").replace(",", "."), text)
    return rewritten(_SPELT.sub(_spelt, text), RULES["parts"])


def _spelt(found: re.Match[str]) -> str:
    """The value of number words; a greater one multiplies smaller ones before it; 一四 is 14."""
    total = one = 0
    for word in (words := re.findall(_PATTERNS["WORDS"], found[0].lower())):
        value = _WORDS[word]
        if word not in _SCALES:
            one = one * 10 + value if len(word) == 1 else one + value
        else:
            total, one = max(total + one, 1) * value if value > total else total + max(one, 1) * value, 0
    return str(total + one).zfill(0 if total else len(words))  # 零五 is 05


def numbers(text: str) -> set[str]:
    """All numbers of a text, unsigned, in one form: '1,200' and '1200.0' are both '1200'."""
    printed = re.findall(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?", text)
    return {re.sub(r"^0+(?=\d)|\.0*$|(\.\d*?)0+$", r"\1", number.replace(",", "")) for number in printed}


def plain(text: str) -> str:
    """Compatibility forms as plain characters (½ as ' 1/2', ² as '^{2}'), no control characters, one kind of minus."""
    if text.isascii() and text.replace("\n", " ").isprintable():
        return text
    text = unicodedata.normalize("NFKC", rewritten(text, RULES["plain"])).translate(SIGNS)
    text = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", " ", text)
    return "".join(mark for mark in text if unicodedata.category(mark) not in ("Cf", "Cs"))


def tidy(text: str, in_line: bool = False) -> str:
    r"""Without layout, currency or degree signs; `in_line`: \frac{1}{2}, (1/2) as 1/2."""
    text = " ".join(rewritten(text, RULES["tidy"]).split())
    return rewritten(text, RULES["in_line"]) if in_line else text


def rewritten(text: str, rules: Iterable[tuple[re.Pattern[str] | str, str]]) -> str:
    """A text with what each pattern finds replaced, in their order."""
    for pattern, to in rules:
        text = re.sub(pattern, to, text)
    return text


# Sums


def arithmetic_slips(text: str) -> list[str]:
    """Equations of numbers whose sides differ; a decimal on the right may be rounded, and all 1.200 may be 1200."""
    text = rewritten(text[:MAX_TEXT].translate(SIGNS), RULES["sums"])
    slips = []
    for match in _EQUATIONS.finditer(text):
        within, after = (set(_SINGULAR.findall(part)) for part in (match[0], _AFTER.match(text, match.end())[0]))
        if within & _NO_UNITS or any(len((within | after) & kind) > 1 for kind in _CONVERTED):
            continue
        sides = [re.sub(rf"{_PATTERNS['UNITS']}|[$£€]", "", side).strip() for side in match[0].split("=")]
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
    german = rewritten(text, RULES["german"])
    return slips if german == text else min(slips, arithmetic_slips(german), key=len)


def evaluate(expression: str) -> Fraction | None:
    """The exact value of printed numbers, mixed numbers, + - * / and brackets; None of anything else."""
    text = re.sub(r"(?<![\d.,/])(\d+) (\d+)/(\d+)", r"(\1+\2/\3)", expression)
    text = _FACTOR.sub(lambda match: f"({Fraction(match[1].replace(',', '')) / (100 if match[2] else 1)})", text)
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


def _agree(left: str, right: str) -> bool:
    """Whether two sides are equal, or cannot be read ('6 / 1/2')."""
    value, result = evaluate(left), evaluate(right)
    if value is None or result is None or re.search(r"/\s+\d+/\d", left):
        return True
    decimals = re.fullmatch(r"-?\d*\.(\d+)%?", right)
    slack = Fraction(1, 2 * 10 ** len(decimals[1])) if decimals else 0
    return any(abs(value - result * scale) <= slack for scale in ((1, 100) if right.endswith("%") else (1,)))
