"""Does a text reach its gold answer, and is the arithmetic it prints right? Both for text that nobody can trust.

A teacher's answer is bounded before it is parsed, and only expressions from a short list of harmless forms reach
math-verify (which would try to compute 9**9**9). Everything here is a pure function that works in any thread.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

from trait_kit.passages.arithmetic import evaluate, plain_operators

MAX_ANSWER = 200  # characters of an answer that are compared
MAX_TEXT = 20_000  # characters of a paragraph that are read
_MARKER = re.compile(r"answer\s*(?:is\b|:|=)\s*:?\s*|####\s*|\\boxed(?=\{)", re.IGNORECASE)
_INTEGER = r"\d{1,30}"
_DECIMAL = rf"{_INTEGER}(?:\.\d{{1,30}})?|\.\d{{1,30}}"
_SIMPLE = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:(?P<whole>{_INTEGER})\s+(?P<top>{_INTEGER})/(?P<bottom>{_INTEGER})"
    rf"|(?P<over>{_INTEGER})\s*/\s*(?P<under>{_INTEGER})|(?P<decimal>{_DECIMAL}))\s*(?P<percent>%?)"
)
_COMMAND = re.compile(r"\\(?:sqrt|pi|cdot|times|div|left|right|pm|infty|leq?|geq?)(?![A-Za-z])|\\[{},;! ]")
_SCALE = "dozen|hundred|thousand|million|billion|percent|mod|and|or|plus|minus|times|over|half|squared|cubed|[inxyz]"
_UNIT = re.compile(  # '42 apples' answers 42, and so do '42 square feet' and '42 km/h'
    rf"(?<=[\d%])\s+\(?(?!(?:{_SCALE})\b)[A-Za-z]+(?:\^?\{{?[23]\}}?|[²³])?(?:[\s/][A-Za-z]+[²³]?){{0,3}}\)?$"
)
_BOLD = re.compile(r"(?<![\w)\]}])\*\*(?=\S)|(?<=\S)\*\*(?![\w(\\])")  # of Markdown; 2**3 is none
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*(?=\s)|,?(?=\s(?:because|since)\b)|,(?=\s(?:as|which)\b)")
# the values that a sentence names: formulas between dollars or \( \), fractions, numbers
_VALUE = re.compile(
    r"\$((?:[^$A-Za-z\\]|\\[A-Za-z]+|\\.|[A-Za-z](?![A-Za-z]))+)\$|\\[(\[](.+?)\\[)\]]"
    r"|([-+]?(?:\\[dt]?frac\{\d+\}\{\d+\}|(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?))"
)


def reaches(gold: str, paragraph: str, choices: Sequence[str] | None = None) -> tuple[bool, str]:
    """Whether what `paragraph` concludes is `gold`, and what it does conclude (for the message of a rejection).

    The conclusion is what follows the last 'answer is', '####' or \\boxed, to the end of its line or of a sentence in it;
    without one, the last sentence must hold the gold answer and no other choice, or end in its value. A fraction must be
    the same fraction: 6/4 does not answer 'simplify 12/8'.
    """
    found, marked = conclusion(paragraph)
    if not found:
        return False, ""
    readings = [found, *(found[: end.end()].rstrip(",") for end in _SENTENCE_END.finditer(found[:MAX_TEXT]))][:20]
    if is_mathematical(gold):
        if not marked:
            values = [next(filter(None, match.groups())) for match in _VALUE.finditer(found[-MAX_ANSWER:].replace("−", "-"))]
            found = values[-1].rpartition("=")[2].strip() if values else found
            readings = [found]
        return any(math_equal(gold, reading) for reading in readings[:2]), found
    gold_words, found_words = _in_words(gold), _in_words(found)
    if marked:
        return gold_words in map(_in_words, readings), found
    padded = f" {found_words} "
    others = [plain_words(choice) for choice in choices if choice is not None] if choices is not None else []
    wrong = [other for other in others if other and f" {other} " in padded and f" {other} " not in f" {gold_words} "]
    negated = re.search(rf"\b(?:not|never|isn t|aren t)\s+{re.escape(gold_words)}\b", found_words)
    return bool(gold_words) and f" {gold_words} " in padded and not wrong and not negated, found


def _in_words(answer: str) -> str:
    answer = re.sub(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}|\\[()\[\]]", r" \1 ", answer[:MAX_TEXT])
    return plain_words(re.sub(r"^\s*\$(.*)\$\.?$", r"\1", answer))


def conclusion(paragraph: str) -> tuple[str, bool]:
    """The part of a paragraph that states its answer, and whether a marker such as 'The answer is' announced it."""
    text = _BOLD.sub("", paragraph[-MAX_TEXT:]).strip()
    markers = list(_MARKER.finditer(text))
    if markers:
        marker = markers[-1]
        rest = text[marker.end() :]
        found = _braced(rest) if marker.group().startswith("\\boxed") else rest
        return found.strip().splitlines()[0].strip().strip('"“”').rstrip(".") if found.strip() else "", True
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "", False
    return re.split(r"(?<=[.!?])\s+|(?<=[.!?][$)\"”’'])\s+", lines[-1])[-1].rstrip("."), False


def is_mathematical(answer: str) -> bool:
    """Whether an answer is a number or a formula (then equivalence counts) rather than words (then the text counts)."""
    return simple_number(answer) is not None or bool(_harmless(answer) and re.search(r"[-\d+*/^=]|\\pi|\\sqrt", answer))


def math_equal(gold: str, found: str) -> bool:
    """Equivalence of two mathematical answers; False where either is too long or too dangerous to evaluate."""
    if len(gold) > MAX_ANSWER or len(found) > MAX_ANSWER:
        return False
    gold, found = _tidy(gold), _tidy(found)
    if gold == found:
        return True
    left, right = _simple(gold), _simple(found)
    if left is not None and right is not None:
        if "/" in gold:
            return _fraction_as_written(gold) == _fraction_as_written(found)
        return left[0] == right[0]  # a percent sign is a unit here: 20% and 20 are the same answer
    if not (_harmless(gold) and _harmless(found)):
        return False
    if left is not None and "/" in gold and sorted(re.findall(r"\d+", gold)) != sorted(re.findall(r"\d+", found)):
        return False
    from math_verify import parse, verify  # here, because sympy takes a second to import

    for module in ("parser", "grader"):  # it warns that its alarm is off, which _harmless makes up for
        logging.getLogger(f"math_verify.{module}").addFilter(_without_alarm)
    try:
        parsed = [parse(f"${text}$", parsing_timeout=None, raise_on_error=False) for text in (gold, found)]
        return bool(verify(*parsed, timeout_seconds=None, raise_on_error=False))
    except (ValueError, TypeError, ArithmeticError, AttributeError, RecursionError):
        return False


def _without_alarm(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Timeout is disabled")


def simple_number(text: str) -> Fraction | None:
    """The exact value of '1,200', '$4.50', '-3/4', '\\frac{3}{4}', '1 1/2' or '25%' (as 25); None for anything else."""
    if len(text) > MAX_ANSWER:
        return None
    simple = _simple(_tidy(text))
    return simple[0] if simple else None


def plain_words(text: str) -> str:
    """Lower case, no punctuation but a number's sign, one space: how two answers in words are compared."""
    text = unicodedata.normalize("NFKC", text[:MAX_TEXT]).casefold()
    return " ".join(re.sub(r"(?!(?<!\w)-\d)[^\w$€£%+]|_", " ", text).split())


def arithmetic_slips(text: str) -> list[str]:
    """Equations of numbers, as printed, whose two sides differ; what cannot be read with certainty is left alone.

    'x + 5 = 20' is an equation to solve, '5 apples * 3 = 15' has words in it: neither is judged. A decimal on the right
    may be rounded at its last digit.
    """
    text = _plain_arithmetic(text[:MAX_TEXT])
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


def _plain_arithmetic(text: str) -> str:
    text = re.sub(r"\d{31,}", "?", text).replace(",\\!", ",")  # the first: nobody's arithmetic, and slow to match
    text = re.sub(r"(?<!\\)\\[()\[\]]", " ", _BOLD.sub("", text)).replace("\\$", "$")
    text = re.sub(r"\\(?:left|right)(?=[()])", "", text)
    text = re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"(\1/\2)", text)
    text = re.sub(r"\\[dt]?frac\s*(\d)\s*(\d)", r"(\1/\2)", text)  # LaTeX reads \frac12 so
    text = re.sub(r"\\(?:times|cdot)(?![A-Za-z])", "*", text).replace("\\div", "/").replace("\\%", "%")
    text = plain_operators(text.replace("⋅", "*").replace("∙", "*"))
    text = re.sub(r"[$£€]", "", _SUM_WITH_UNITS.sub(_without_units, text))
    text = re.sub(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,])", lambda match: match.group().replace(",", ""), text)
    return re.sub(r"(\d+(?:\.\d+)?)%\s+of\s+(?=[\d(])", r"(\1/100)*", text)


_UNITS = r"(?:\s?/\s?[a-z]+|\s+[a-z]+(?:/[a-z]+)?){1,3}"
_TERM = r"[$£€]?\d[\d,]{0,30}(?:\.\d{1,30})?%?"
_SUM_WITH_UNITS = re.compile(  # bounded, as a long row of numbers would take minutes
    rf"(?<![\d.,]){_TERM}(?:{_UNITS})?(?:\s*[-+*/]\s*{_TERM}(?:{_UNITS})?){{1,8}}"
    r"(?=\s*=\s*([$£€]?)[\d,.]+\s?(?:square |cubic )?([a-z]*))"
)


def _without_units(match: re.Match[str]) -> str:
    """'3 boxes * 8 pens/box' as '3 * 8'; measures that convert (2 hours + 30 minutes) only where all is of one unit."""
    text = match.group()
    words = [word.removesuffix("s") for word in re.findall(r"[a-z]+", text)]
    if not words or _NO_UNITS.intersection(words):
        return text
    units = {" ".join(found.split()).removesuffix("s") for found in re.findall(_UNITS, text)}
    result = match[1] or match[2].removesuffix("s")
    strange = result and result not in [*words, *text]
    if _MEASURES.intersection([*words, result]) and (strange or (len(units) > 1 and re.search(r"[-+]", text))):
        return text
    return re.sub(_UNITS, "", text)


_GOES_ON = re.compile(  # after the right side: it is part of something longer
    r"!|\.?\s*\\overline|\s*(?:\.\.\.|…|\\[a-z]*dots|\\[,;: ]\s*R|\\(?:pi|sin|cos|tan|log|ln|sqrt)|R\s*\d|\+\s*[A-Za-z])"
)
_EXPRESSION = frozenset("0123456789.,+-*/()% \t")
_OPERATOR_WORDS = frozenset(
    ("of", "times", "plus", "minus", "by", "over", "mod", "modulo", "half", "twice", "double", "triple", "dozen", "squared")
)
_MEASURED = """
inch inche foot feet ft yard mile mm cm m km meter minute min hour second day week month year cent dollar $ £ € dime quarter
nickel pound ounce oz lb gram kilogram kg g liter litre ml gallon quart pint cup tablespoon teaspoon pair
"""
_MEASURES = frozenset(_MEASURED.split())
_NO_UNITS = _OPERATOR_WORDS | frozenset(
    ("and", "or", "so", "i", "are", "then", "x", "hundred", "thousand", "million", "percent")
)


def _left_side(text: str, end: int) -> tuple[str, bool]:
    start = end
    while start and text[start - 1] in _EXPRESSION and end - start < 200:
        start -= 1
    segment = re.split(r"[.,;](?=\s)", text[start:end])
    before = text[max(0, start - 20) : start] if len(segment) == 1 else ""
    side = segment[-1]
    open_brackets = [index for index, mark in enumerate(side) if mark == "("]
    while side.count("(") > side.count(")") and open_brackets:  # '(5 + 5 = 10)': the bracket is not part of the sum
        side, before = side[open_brackets[0] + 1 :], ""
        open_brackets = [index for index, mark in enumerate(side) if mark == "("]
    if side.count(")") > side.count("(") or not side.strip():
        return "", False
    if (
        before and not side[0].isspace() and not re.search(r"[\n=<>]$|[^\W\d]:$", before)
    ):  # part of something longer: 'f(2)', 'x3', '2^3'
        return "", False
    if re.search(r"(?:[#@&|~⊕⊗★∘]|\\(?!(?:Rightarrow|implies|quad|qquad|text|approx)\b)[A-Za-z#]+)\s*$", before):
        return "", False  # an operator of the problem's own: '6 \# 2'
    before = re.sub(r"\b(?:total|sum|cost|price|profit|amount) of\s*$", "", before)  # and not a third of
    word = (re.findall(r"\w+(?=\s*$)", before) or [""])[-1]
    if before.strip() and (word.lower() in _OPERATOR_WORDS or before.rstrip()[-1] in "^_\\}"):  # '\log_{9} 3'
        return "", False
    side = side.strip()
    if side[0] in "+*/%)" or side.startswith("- ") or (side[0] in "-(" and len(word) == 1):  # 'x - 3', 'f (3)'
        return "", False
    return side, before.rstrip().endswith("=")


def _right_side(text: str, start: int) -> tuple[str, str]:
    end = start
    while end < len(text) and text[end] in _EXPRESSION and end - start < 200:
        end += 1
    side = re.split(r"[.,](?=\s|$)", text[start:end])[0]
    if re.match(r"[a-z]{2}", text[start + len(side) :]):  # '= 0.333 (rounded)'
        side = re.sub(r"\s\($", "", side)
    rest = text[start + len(side) : start + len(side) + 40]
    depth = 0
    for index, mark in enumerate(side):
        depth += (mark == "(") - (mark == ")")
        if depth < 0:
            side, rest = side[:index], ""
            break
    if rest and not side.endswith((" ", "\t")) and (rest[0].isalpha() or rest[0] in "^_\\:"):  # '5x', '2^3', '3:30'
        return "", ""
    goes_on = re.search(r"[-+*/]\s*$", side) and re.match(r"\s*[A-Za-z\\$({]", rest)  # '= 30 + M', '= 5 * h'
    if goes_on or _GOES_ON.match(rest):
        return "", ""
    return side.strip().rstrip("+-*/( \t").strip(), rest


def _has_operator(side: str) -> bool:
    return bool(re.search(r"[\d)%]\s*[-+*/]", side))


def _agrees(value: Fraction, left: str, right: str, rest: str) -> bool:
    remainder = re.match(r"\s*,?\s*(?:with\s+)?(?:a\s+)?(?:remainder|rem\.?|r)\s*(?:of\s+)?(\d{1,30})\b", rest)
    division = re.fullmatch(r"(\d+)\s*/\s*(\d+)", left)
    if remainder and division and right.isdigit():
        return int(division[1]) == int(right) * int(division[2]) + int(remainder[1])
    first = re.match(r"-?\s*[\d.,]+%?", right)
    for candidate in {right, first.group() if first else right}:  # '= 7 - 3 of them': the result is the first number
        result = evaluate(candidate)
        if result is None:
            return True
        number = candidate.strip().rstrip("%")
        decimals = len(number.partition(".")[2]) if re.fullmatch(r"-?\s*\d*\.\d+", number) else 0
        slack = Fraction(1, 2 * 10**decimals) if decimals else Fraction(0)
        if abs(value - result) <= slack:
            return True
        if candidate.endswith("%") and abs(value - result * 100) <= slack:
            return True
    return False


def _tidy(answer: str) -> str:
    text = re.sub(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}", r" \1/\2", answer.replace("{,}", ",").replace(",\\!", ","))
    text = re.sub(r"\\[dt]?frac\s*(\d)\s*(\d)(?!\d)", r" \1/\2", text)
    text = re.sub(r"\\(?:text|mathrm)\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\\[()\[\]]|`|\^\s*\{?\\circ\}?|°", "", text)
    for printed, plain in (("\\$", ""), ("$", ""), ("\\%", "%"), ("−", "-")):
        text = text.replace(printed, plain)
    text = re.sub(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,])", lambda match: match.group().replace(",", ""), text)
    text = re.sub(r"\s+percent$", "%", re.sub(r"[£€]", "", text).strip(" *_").rstrip(".").strip())
    text = re.sub(r"^[A-Za-z]\s*=\s*", "", text)  # 'x = 5' answers 5
    return _UNIT.sub("", text)


def _simple(text: str) -> tuple[Fraction, bool] | None:
    match = _SIMPLE.fullmatch(text)
    if not match:
        return None
    parts = {name: value for name, value in match.groupdict().items() if value}
    bottom = int(parts.get("bottom") or parts.get("under") or 1)
    if bottom == 0:
        return None
    if "whole" in parts:
        value = int(parts["whole"]) + Fraction(int(parts["top"]), bottom)
    else:
        value = Fraction(int(parts["over"]), bottom) if "over" in parts else Fraction(parts["decimal"])
    return (-value if parts.get("sign") == "-" else value), bool(parts.get("percent"))


def _fraction_as_written(text: str) -> tuple[int, int] | str:
    match = re.fullmatch(r"([-+]?)\s*(\d+)\s*/\s*(\d+)", text)
    return (int(match[1] + match[2]), int(match[3])) if match else " ".join(text.split())


def _harmless(text: str) -> bool:
    """Short, only digits, single letters, known commands and small exponents: what a computer algebra system may see."""
    if len(text) > MAX_ANSWER or re.search(r"\d{31}", text):
        return False
    text = re.sub(r"\\[dt]?frac(?![A-Za-z])", "", text)
    text = _COMMAND.sub(" ", text).replace("$", "").replace("**", "^")
    powers = re.findall(r"\^\s*\{?\s*-?\s*(\w*)", text)
    if len(powers) > 3 or any(not re.fullmatch(r"1?\d|20|[a-z]", power) for power in powers):
        return False
    if re.search(r"[A-Za-z]{2}|\^[^^]{0,8}\^", text):  # a word, or a tower of powers
        return False
    return bool(re.fullmatch(r"[\d\s.,+\-*/^=<>(){}\[\]|A-Za-z%]*", text))


def _braced(text: str) -> str:
    depth = 0
    for index, mark in enumerate(text[: MAX_ANSWER * 2]):
        depth += (mark == "{") - (mark == "}")
        if depth == 0:
            return text[1:index]
    return ""
