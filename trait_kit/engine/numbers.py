r"""The one reader of printed numbers: '1,200', '−3/4', '1½', '$4.50', '25%', '2.5 million', '1e6', '36 °C', '42 (apples)'.

Values are exact fractions and every text is bounded, since texts come from language models. Numbers in words ('twelve') and
in the continental way ('1.234,50', '3,5') are read where a caller asks for it: '3,5' may as well be two numbers.
"""

import math
import re
import unicodedata
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import yaml

MAX_DIGITS = 40  # of a number; longer ones are none
ROUNDED_DECIMALS = 4  # a number printed with this many decimals or more may be rounded at its last
FLOAT_DECIMALS = 12  # what comes after is a computer's rounding

_WRITTEN = yaml.safe_load(Path(__file__).with_name("numbers.yaml").read_text(encoding="utf-8"))
_SCALES, _WORDS = _WRITTEN["scales"], _WRITTEN["words"] | _WRITTEN["scales"]
_RULES = {name: [(re.compile(pattern), to) for pattern, to in rules] for name, rules in _WRITTEN["rules"].items()}
_INTEGER = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_CHINESE = r"\u3000-\u9fff"  # runs on without blanks, so that a number stands beside its characters
_LETTER = rf"[^\W{_CHINESE}]"
NUMBER = re.compile(
    rf"(?P<sign>(?<![)\]}}%.])(?<!{_LETTER})[-+])?(?<![.,^/:])(?<!{_LETTER})(?<!\^\{{)(?:(?P<whole>\d+)\s(?P<top>\d+)/(?P<bottom>\d+)"
    rf"|(?P<over>{_INTEGER})\s?/\s?(?P<under>{_INTEGER})|(?P<decimal>(?:{_INTEGER}(?:\.\d+)?|\.\d+)(?:e[-+]?\d{{1,3}})?))"
    rf"(?:\s?(?P<percent>%|percent\b))?(?:\s?(?P<scale>{'|'.join(_SCALES)})(?!{_LETTER}))?"
    r"(?![\d^_({\[]|[.,:/]\d|\s?\\(?:sqrt|pi|frac|cdot|times|pm)\b|\s?[√π]|[a-eijnp-rtuw-z](?![A-Za-z])|\sand\sa\s)",
    re.IGNORECASE,
)
_WORD = "|".join(sorted(_WORDS, key=len, reverse=True))
_SPELT = re.compile(  # 'ein' by itself is an article
    rf"(?<!{_LETTER})(?!ein(?!und|hundert|tausend|s\b))(?:{_WORD})(?:(?:[\s-](?:and\s)?|und)?(?:{_WORD})){{0,8}}(?!{_LETTER})",
    re.IGNORECASE,
)
_CONTINENTAL = re.compile(
    r"(?<![A-Za-z\d.,])(?:\d{1,3}(?:\.\d{3})+,\d+|0,\d+|\d+,(?!\d{3}(?!\d))\d+|\d{1,3}(?:\.\d{3}){2,})(?![.,]?\d)"
)
_UNIT = re.compile(
    r"\s*\(?(?:(?![xyzntkab]\b)[^\W\d_](?:[^\W\d_]|\.)*(?:\s?\^\s?\{?[23]\}?)?(?:\s?/\s?|\s|\*|(?=\)?\s*$))){1,5}\)?\s*"
)
SIGNS = str.maketrans({"−": "-", "‐": "-", "‑": "-", "⁄": "/", "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/"})


class Number(NamedTuple):
    """A value as it was printed."""

    value: Fraction
    decimals: int
    percent: bool
    scale: int  # of '2 million'
    lowest: bool | None  # whether a fraction is in its lowest terms; None: it is no fraction

    def equals(self, gold: "Number") -> bool:
        """25% is 25 or 1/4 as the gold has it, 2 million is 2,000,000; what is rounded equals to its last digit.

        A fraction that can still be reduced does not answer a gold fraction that is: 12/8 is the question, 3/2 its
        answer.
        """
        if gold.lowest and self.lowest is False:
            return False
        rounded = [one.decimals for one in (self, gold) if one.decimals >= ROUNDED_DECIMALS]
        slack = Fraction(1, 2 * 10 ** min(*rounded, FLOAT_DECIMALS)) if rounded else 0
        return any(abs(own - other) <= slack for own in self._values(gold) for other in gold._values(self))

    def _values(self, other: "Number") -> set[Fraction]:
        values = {self.value * self.scale}
        return values | ({self.value / 100} if self.percent and not other.percent else set())


def read_number(match: re.Match[str]) -> Number | None:
    """The number of a match of NUMBER; None where it divides by zero or is too long to be anybody's."""
    parts = {name: value.replace(",", "") for name, value in match.groupdict().items() if value}
    if sum(character.isdigit() for character in match.group()) > MAX_DIGITS:
        return None
    bottom = int(parts.get("bottom") or parts.get("under") or 1)
    if bottom == 0:
        return None
    top = Fraction(parts.get("over") or parts.get("decimal") or parts["top"])
    value = int(parts.get("whole", 0)) + top / bottom
    lowest = math.gcd(int(top), bottom) == 1 if "decimal" not in parts else None
    decimals = len(parts.get("decimal", "").partition(".")[2])
    scale = _SCALES.get(parts.get("scale", "").lower(), 1)
    return Number(-value if parts.get("sign") == "-" else value, decimals, "percent" in parts, scale, lowest)


def quantity(text: str, unit: bool = True) -> Number | None:
    """The number of '42', '$42', '1 200'; with its unit, if one may be there: '42 apples', '12 cm^2'. None for '7:8'."""
    text = fractions(tidy(plain(text)))
    if re.fullmatch(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?", text):
        text = text.replace(" ", "")
    match = NUMBER.match(text)
    beside = text[match.end() :] if match else ""
    return read_number(match) if match and (not beside or (unit and _UNIT.fullmatch(beside))) else None


def in_figures(text: str) -> str:
    """'3,5' as 3.5, '1.234,50' as 1234.50; in a text without digits, 'twenty-one', 'einundzwanzig', '二十一' as 21."""
    if re.search(r"\d", text):
        return _CONTINENTAL.sub(lambda number: number[0].replace(".", "").replace(",", "."), text)
    return _SPELT.sub(lambda spelt: str(_spelt(spelt[0].lower())), text)


def without_dots(text: str) -> str:
    """'1.234' as 1234, which it is in German."""
    return re.sub(r"(?<![\d.,])(\d{1,3})\.(?=\d{3}(?!\d|[.,]\d))", r"\1", text)


def _spelt(words: str) -> int:
    """The value of number words; a greater one behind smaller ones multiplies them."""
    total = one = 0
    for word in re.findall(_WORD, words):
        value = _WORDS[word]
        if word not in _SCALES:
            one += value
        else:
            total, one = max(total + one, 1) * value if value > total else total + max(one, 1) * value, 0
    return total + one


def numbers(text: str) -> set[str]:
    """All numbers that stand in a text, unsigned, in one form: '1,200' and '1200.0' are both '1200'."""
    printed = re.findall(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?", text)
    return {re.sub(r"^0+(?=\d)|\.0*$|(\.\d*?)0+$", r"\1", number.replace(",", "")) for number in printed}


def plain(text: str) -> str:
    """Compatibility forms as plain characters (½ as ' 1/2', ² as '^{2}'), no control characters, one kind of minus."""
    if text.isascii() and text.replace("\n", " ").isprintable():
        return text
    text = unicodedata.normalize("NFKC", rewritten(text, _RULES["plain"])).translate(SIGNS)
    text = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", " ", text)
    return "".join(mark for mark in text if unicodedata.category(mark) not in ("Cf", "Cs"))


def tidy(text: str) -> str:
    r"""Without layout: no \left, thin spaces, \text, currency or degree signs."""
    return " ".join(rewritten(text, _RULES["tidy"]).split())


def fractions(text: str) -> str:
    r"""\frac{1}{2} and (1/2) of numbers as 1/2, 1\frac{1}{2} as 1 1/2."""
    return rewritten(text, _RULES["fractions"])


def rewritten(text: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str:
    """A text with what each pattern finds replaced, in their order."""
    for pattern, to in rules:
        text = pattern.sub(to, text)
    return text
