"""Is the arithmetic that a text prints right? The one checker: of passages, and of gold solutions that are trained on.

A model that is trained on '7 * 8 = 54' learns it. So every '=' between numbers is computed again with exact fractions, as
far as it can be read with certainty: LaTeX, units ('20 balls * $14/ball = $280'), percentages, chains, remainders, rounding.
What cannot be read is left alone: 'x + 5 = 20' is an equation to solve, '5 apples * 3 = 15 pears' has words in it.
"""

import ast
import operator
import re
from fractions import Fraction
from pathlib import Path

import yaml

from trait_kit.engine.numbers import SIGNS

MAX_TEXT = 20_000  # characters that are read
_WORDS = yaml.safe_load(Path(__file__).with_name("arithmetic_words.yaml").read_text(encoding="utf-8"))
_OPERATORS, _MEASURES = frozenset(_WORDS["operators"].split()), frozenset(_WORDS["measures"].split())
_NO_UNITS = _OPERATORS.union(_WORDS["no_units"].split())
_PLAIN = [(re.compile(pattern), plain) for pattern, plain in _WORDS["plain"]]
_UNITS = r"(?:\s?/\s?[a-z]+|\s+[a-z]+(?:/[a-z]+)?){1,3}"
_TERM = r"[$£€]?\d[\d,]{0,30}(?:\.\d{1,30})?%?"
_SUM_WITH_UNITS = re.compile(  # bounded, as a long row of numbers would take minutes
    rf"(?<![\d.,]){_TERM}(?:{_UNITS})?(?:\s*[-+*/]\s*{_TERM}(?:{_UNITS})?){{1,8}}"
    r"(?=\s*=\s*([$£€]?)[\d,.]+\s?(?:square |cubic )?([a-z]*))"
)
_GOES_ON = re.compile(  # after the right side: it is part of something longer
    r"!|\.?\s*\\overline|\s*(?:\.\.\.|…|\\[a-z]*dots|\\[,;: ]\s*R|\\(?:pi|sin|cos|tan|log|ln|sqrt)|R\s*\d|\+\s*[A-Za-z])"
)
_OWN_OPERATOR = re.compile(r"(?:[#@&|~⊕⊗★∘]|\\(?!(?:Rightarrow|implies|quad|qquad|text|approx)\b)[A-Za-z#]+)\s*$")
_EXPRESSION = "0123456789.,+-*/()% \t"
_NUMBER = re.compile(r"(\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(\s?%)?")
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def arithmetic_slips(text: str) -> list[str]:
    """Equations of numbers, as printed, whose two sides differ. A decimal on the right may be rounded at its last digit."""
    text = _plain(text[:MAX_TEXT])
    slips = []
    for match in re.finditer(r"(?<![<>!=:~≤≥])=(?!=)", text):
        left, chained = _left_side(text, match.start())
        right, rest = _right_side(text, match.end())
        computed = chained or _has_operator(left) or _has_operator(re.sub(r"\(\d+/\d+\)", "1", right))  # \frac is a value
        if not left or not right or not computed or re.search(r"/\s+\d+/\d", left):  # '6 / 1/2' may mean two things
            continue
        value = evaluate(left)
        if value is not None and not _agrees(value, left, right, rest):
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
    """Printed sums in one notation: plain operators, no LaTeX, currency, unit or thousands comma."""
    text = text.translate(SIGNS)
    for pattern, plain in _PLAIN:
        text = pattern.sub(plain, text)
    text = re.sub(r"(?<![\d.,/])\d{1,3}(?: \d{3})+(?![\d.,]| \d|(?<!000)/)", lambda match: match[0].replace(" ", ""), text)
    text = re.sub(r"[$£€]", "", _SUM_WITH_UNITS.sub(_without_units, text))
    text = re.sub(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,])", lambda match: match[0].replace(",", ""), text)
    return re.sub(r"(\d+(?:\.\d+)?)%\s+of\s+(?=[\d(])", r"(\1/100)*", text)


def _without_units(match: re.Match[str]) -> str:
    """'3 boxes * 8 pens/box' as '3 * 8'; measures that convert (2 hours + 30 minutes) only where all is of one unit."""
    text = match.group()
    words = [word.removesuffix("s") for word in re.findall(r"[a-z]+", text)]
    before = match.string[max(0, match.start() - 60) : match.start()]
    if not words or _NO_UNITS.intersection(words) or re.search(r"[-+*/]\s*(?:[a-z]+\s+){1,3}$", before):
        return text
    units = {" ".join(found.split()).removesuffix("s") for found in re.findall(_UNITS, text)}
    result = match[1] or match[2].removesuffix("s")
    strange = result and result not in [*words, *text]
    if _MEASURES.intersection([*words, result]) and (strange or (len(units) > 1 and re.search(r"[-+]", text))):
        return text
    return re.sub(_UNITS, "", text)


def _left_side(text: str, end: int) -> tuple[str, bool]:
    """What stands before the '=' at `end` ('' where it is part of something longer), and whether an '=' precedes it."""
    chunk = text[max(0, end - 200) : end]
    start = end - len(chunk) + len(chunk.rstrip(_EXPRESSION))
    segment = re.split(r"[.,;](?=\s)", text[start:end])
    side, before = segment[-1], text[max(0, start - 20) : start] if len(segment) == 1 else ""
    while side.count("(") > side.count(")"):  # '(5 + 5 = 10)': the bracket is not part of the sum
        side, before = side.partition("(")[2], ""
    if side.count(")") > side.count("(") or not side.strip():
        return "", False
    if before and not side[0].isspace() and not re.search(r"[\n=<>]$|[^\W\d]:$", before):  # 'f(2)', 'x3', '2^3'
        return "", False
    if _OWN_OPERATOR.search(before):  # of the problem: '6 \# 2'
        return "", False
    before = re.sub(r"\b(?:total|sum|cost|price|profit|amount) of\s*$", "", before).rstrip()  # and not a third of
    word = (re.findall(r"\w+$", before) or [""])[-1]
    side = side.strip()
    if before and (word.lower() in _OPERATORS or before[-1] in "^_\\}"):  # '\log_{9} 3'
        return "", False
    if side[0] in "+*/%)" or side.startswith("- ") or (side[0] in "-(" and len(word) == 1):  # 'x - 3', 'f (3)'
        return "", False
    return side, before.endswith("=")


def _right_side(text: str, start: int) -> tuple[str, str]:
    """What stands after the '=' that ends at `start` ('' where it goes on), and the text after that."""
    chunk = text[start : start + 200]
    side = re.split(r"[.,](?=\s|$)", chunk[: len(chunk) - len(chunk.lstrip(_EXPRESSION))])[0]
    if re.match(r"[a-z]{2}", text[start + len(side) :]):  # '= 0.333 (rounded)'
        side = re.sub(r"\s\($", "", side)
    rest = text[start + len(side) : start + len(side) + 40]
    closed = next((place for place in range(len(side)) if side[: place + 1].count(")") > side[: place + 1].count("(")), None)
    if closed is not None:
        side, rest = side[:closed], ""
    if rest and not side.endswith((" ", "\t")) and (rest[0].isalpha() or rest[0] in "^_\\:"):  # '5x', '2^3', '3:30'
        return "", ""
    goes_on = re.search(r"[-+*/]\s*$", side) and re.match(r"\s*[A-Za-z\\$({]", rest)  # '= 30 + M', '= 5 * h'
    if goes_on or _GOES_ON.match(rest):
        return "", ""
    return side.strip().rstrip("+-*/( \t"), rest


def _has_operator(side: str) -> bool:
    return bool(re.search(r"[\d)%]\s*[-+*/]", side))


def _agrees(value: Fraction, left: str, right: str, rest: str) -> bool:
    remainder = re.match(
        r"\s*,?\s*(?:with\s+)?(?:a\s+)?(?:remainder|rem\.?|r)\s*(?:of\s+)?(\d{1,30})\b", rest, re.IGNORECASE
    )
    division = re.fullmatch(r"(\d+)\s*/\s*(\d+)", left)
    if remainder and division and right.isdigit():
        return int(division[1]) == int(right) * int(division[2]) + int(remainder[1])
    first = re.match(r"-?\s*[\d.,]+%?", right)
    for candidate in {right, first.group() if first else right}:  # '= 7 - 3 of them': the result is the first number
        result = evaluate(candidate)
        if result is None:
            return True
        decimals = re.fullmatch(r"-?\s*\d*\.(\d+)%?", candidate.strip())
        slack = Fraction(1, 2 * 10 ** len(decimals[1])) if decimals else 0
        if min(abs(value - result), abs(value - 100 * result) if candidate.endswith("%") else 1) <= slack:
            return True
    return False
