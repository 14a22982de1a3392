r"""Do two answers say the same? As text, as a number, or as mathematics; the second half of answers.py.

Numbers are compared by value (1,000 = 1000.0, 2/4 = 1/2, 25% = 1/4), expressions as they are written, without layout, and
only then by math-verify. Every step is bounded: text, digits, and the process that computes.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from trait_kit.evaluation.verifier import verifier

MAX_CHARACTERS = 4_000  # of a prediction that are looked at: its end, where the answer is
MAX_ANSWER = 400  # characters of one answer
MAX_DIGITS = 40  # of a number; longer ones equal nothing
ROUNDED_DECIMALS = 4  # a number printed with this many decimals or more may be rounded at its last

_WRAPPED = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+)\\\)|\\\[(.+)\\\]|\\(?:boxed|text|textbf|mathrm)\{([^{}]*)\}")
_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![A-Za-z])\.?|(?<!\\)\\[!,;:> ]|~")
TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s?\{([^{}]*)\}")
_DEGREES = re.compile(r"\^\s?\{?\s?\\circ\s?\}?|\\degree\b|°")
_CURRENCY = re.compile(r"\\?[$€£¥]|\b(?:rs|usd|eur)\b\s?\.?\s?(?=\.?\d)|\s(?:usd|dollars?)$", re.IGNORECASE)
_INTEGER = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)\]}}%.])[-+])?(?<![\w.,^/:])(?:(?P<whole>\d+)\s(?P<top>\d+)/(?P<bottom>\d+)"
    rf"|(?P<over>{_INTEGER})\s?/\s?(?P<under>{_INTEGER})|(?P<decimal>{_INTEGER}(?:\.\d+)?|\.\d+))"
    rf"(?:\s?(?P<percent>%|percent\b))?(?:\s(?P<scale>{'|'.join(_SCALES)})\b)?"
    r"(?![\d^_({\[]|[.,:/]\d|\s?\\(?:sqrt|pi|frac|cdot|times|pm)\b|\s?[√π]|[a-eijnp-rtuw-z](?![A-Za-z]))",
    re.IGNORECASE,
)
_UNIT = re.compile(r"\s*(?:(?![xyzntkab]\b)[A-Za-z][A-Za-z.]*(?:\s?\^\s?\{?[23]\}?)?(?:\s?/\s?|\s|\*|$)){1,5}\s*")
_UNIT_TEXT = re.compile(r"(?<=\S)\s*\\(?:text|mathrm|mbox)\{[^{}]*\}(?:\^\{?[23]\}?)?$")
_ALSO = re.compile(r"[\s$]+(?:or|and|\\text\{\s?(?:or|and)\s?\})[\s$]+(?:[a-z]\s?=)?")


def plain(text: str) -> str:
    """Compatibility forms as plain characters (½ as ' 1/2', ² as '^{2}'), no control characters, one kind of minus."""
    if text.isascii() and text.replace("\n", " ").isprintable():
        return text
    text = re.sub(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3})", ",", text)
    text = re.sub(r"[⁰¹²³⁴-⁹⁻]+", lambda run: f"^{{{unicodedata.normalize('NFKC', run.group())}}}", text)
    return "".join(map(_plain_character, text))[-MAX_CHARACTERS:]


def _plain_character(character: str) -> str:
    if " " <= character <= "~" or character == "\n":
        return character
    if (category := unicodedata.category(character)) in ("Cc", "Cf", "Cs"):
        return " " if category == "Cc" else ""
    if unicodedata.decomposition(character).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", character).replace("\u2044", "/")
    signs = {"\u2212": "-", "\u2010": "-", "\u2011": "-", "\u2044": "/", "×": "*", "·": "*", "⋅": "*", "÷": "/"}
    return signs.get(character) or unicodedata.normalize("NFKC", character)


def normalise_text(text: str) -> str:
    """Casefolded words and numbers with single spaces: what two spellings of one title or label share.

    Signs that change what is said are kept: '20% off', '$5', 'C++', '-5'.
    """
    text = unicodedata.normalize("NFKC", text.replace("\u2212", "-")).casefold().replace("’", "'").replace("&", " and ")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))|(?<=\w)'(?=\w)", "", text)
    return " ".join(re.findall(r"(?<!\w)-\d+(?:\.\d+)?|\d+\.\d+|[$€£%+]|(?<=\w)#|[^\W_]+", text))


def is_words(gold: str) -> bool:
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{3,}", gold)
    return len(words) >= 2 or (bool(words) and not any(character.isdigit() for character in gold) and "\\" not in gold)


def unwrap(text: str) -> str:
    """An answer without what surrounds it: dollars or brackets of a formula, Markdown, quotes, a box, the full stop."""
    before = None
    while text != before:
        before = text
        text = text.strip().strip('*_`"“”').rstrip(",;: ").removesuffix("\\").removesuffix(".").strip()
        if match := _WRAPPED.fullmatch(text):
            text = next(filter(None, match.groups()), "")
        for opening, closing in (("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):  # one half of a pair, at the end
            if text.endswith(closing) and text.count(closing) % 2 and opening not in text.removesuffix(closing):
                text = text.removesuffix(closing)
    return text


@dataclass(frozen=True)
class Number:
    value: Fraction
    decimals: int  # printed
    percent: bool
    scale: int

    def equals(self, gold: Number) -> bool:
        """25% is 25 or 1/4, 2 million is 2 or 2,000,000, as the gold has it; what is rounded equals to its last digit."""
        rounded = [one.decimals for one in (self, gold) if one.decimals >= ROUNDED_DECIMALS]
        slack = Fraction(1, 2 * 10 ** min(rounded)) if rounded else 0
        return any(abs(own - other) <= slack for own in self._values(gold) for other in gold._values(self))

    def _values(self, other: Number) -> set[Fraction]:
        values = {self.value * self.scale} | ({self.value} if other.scale == 1 else set())
        return values | ({self.value / 100} if self.percent and not other.percent else set())


def read_number(match: re.Match[str]) -> Number | None:
    parts = {name: value.replace(",", "") for name, value in match.groupdict().items() if value}
    bottom = int(parts.get("bottom") or parts.get("under") or 1) if len(match.group()) <= 2 * MAX_DIGITS else 0
    if bottom == 0 or sum(character.isdigit() for character in match.group()) > MAX_DIGITS:
        return None
    value = Fraction(parts.get("over") or parts.get("decimal") or 0) / bottom
    if "whole" in parts:
        value = int(parts["whole"]) + Fraction(int(parts["top"]), bottom)
    value = -value if parts.get("sign") == "-" else value
    decimals = len(parts.get("decimal", "").partition(".")[2])
    return Number(value, decimals, "percent" in parts, _SCALES.get(parts.get("scale", "").lower(), 1))


def only_number(text: str) -> Number | None:
    """The value of an answer that is one number, with its currency or percent sign."""
    text = fractions(tidy(text))
    if re.fullmatch(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?", text):
        text = text.replace(" ", "")
    match = NUMBER.fullmatch(text)
    return read_number(match) if match else None


def tidy(text: str) -> str:
    r"""Without layout: no \left, thin spaces, \text, currency or degree signs."""
    text = re.sub(r"(?<=\d)(?:,\\!\s?|\{,\}|\\,)(?=\d{3}(?!\d))", ",", text)
    text = _DEGREES.sub("", TEXT.sub(r" \1 ", _LAYOUT.sub(" ", text)))
    text = re.sub(r"\\[\[\]()]|(?<![\w)])\*\*|\*\*(?![\w(])", "", _CURRENCY.sub("", text)).replace("\\%", "%")
    text = re.sub(r"\\[dtc]?frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\frac\s?(\d)\s?(\d)(?!\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"^\s*(?:(?:negative|minus)\s+|-\s+)(?=[\d.])", "-", text, flags=re.IGNORECASE)
    return " ".join(text.split())


def fractions(text: str) -> str:
    r"""\frac{1}{2} of numbers as 1/2, 1\frac{1}{2} as 1 1/2."""
    text = re.sub(r"(?<=\d)\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r" \1/\2", text)
    return re.sub(r"\\frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"\1/\2", text)


def quantity(text: str) -> Number | None:
    """The number of '42', '42 apples', '12 cm^2'."""
    text = fractions(tidy(text))
    match = NUMBER.match(text)
    return read_number(match) if match and (match.end() == len(text) or _UNIT.fullmatch(text[match.end() :])) else None


def is_prose(text: str) -> bool:
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{3,}", re.sub(r"\\(?:begin|end)\{\w+\}", "", TEXT.sub("", text)))
    return any(word not in ("sin", "cos", "tan", "cot", "sec", "csc", "log", "sqrt", "frac", "inf", "exp") for word in words)


def alike(candidate: str, gold: str) -> bool:
    own, wanted = quantity(candidate), quantity(gold)
    if own is not None and wanted is not None:
        return own.equals(wanted)
    if compact(candidate) == compact(gold) != "":
        return True
    words = TEXT.sub(r"\1", gold)
    return is_words(words) and normalise_text(TEXT.sub(r"\1", candidate)) == normalise_text(words) != ""


def compact(text: str) -> str:
    text = re.sub(r"\\[cd]?times|\\cdot", "*", tidy(unwrap(text)))
    text = re.sub(r"^(?:[A-Za-z]|\\[a-z]+)(?:\([a-z]\))?\s?(?:=|\\in)\s?(?!.*=)", "", text)
    return re.sub(r"[\s{}]", "", re.sub(r"(?<=\d)\s+(?=\d)", "_", text.replace("**", "^"))).casefold()


def equivalent(candidate: str, gold: str) -> bool | None:
    """By math-verify; bases must agree where both are given, and a pair is no set: (1,2) is not 2,1."""
    candidate, gold = (tidy(_ALSO.sub(",", _UNIT_TEXT.sub("", unwrap(text)))) for text in (candidate, gold))
    candidate = candidate.replace("**", "^")
    bases = [re.findall(r"\d_\{?(\w+)", text) for text in (candidate, gold)]
    if len(candidate) > MAX_ANSWER or len(gold) > MAX_ANSWER or (all(bases) and bases[0] != bases[1]):
        return False
    if re.fullmatch(r"[(\[].*,.*[)\]]", gold) and not re.match(r"[(\[\\A-Za-z]", candidate):
        candidate = f"({candidate})"
    return verifier().equal(candidate, gold)
