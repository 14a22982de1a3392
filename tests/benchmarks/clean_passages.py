"""Clean passages as different writers would write them: the gold solutions in the layouts of language models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from random import Random

from trait_kit.engine.llm import clean
from trait_kit.passages.material import Problem
from trait_kit.tasks import ADS_TASKS as ADS

MATH = [
    "word_problems",
    "linear_equations",
    "greatest_common_divisor",
    "least_common_multiple",
    "fraction_simplification",
]
KINDS = {**dict.fromkeys(MATH, "math demo"), **dict.fromkeys(ADS, "travel ads"), "gsm8k": "GSM8K", "math": "MATH"}

# --- sums as they are printed

_PRINTED = r"(?:(?:\\?\$|£|€)?\d[\d,]*(?:\.\d+)?(?:\\?%)?|\\[dt]?frac\{\d+\}\{\d+\})"
_OPERATOR = r"\s*(?:[-+*/×÷·−]|\\times|\\cdot|\\div|(?<=\d )x(?= \d))\s*"
_UNIT = r"(?: [a-z]+){0,2}"
SUM = re.compile(rf"({_PRINTED}{_UNIT}(?:{_OPERATOR}{_PRINTED}{_UNIT})+)\s*=\s*({_PRINTED})")


def value(printed: str, default: Fraction | int | None = None) -> Fraction | int | None:
    """The value of a sum of printed numbers; units are words, per cent is a factor."""
    text = re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"(\1/\2)", printed)
    for old, new in (
        ("\\times", "*"),
        ("\\cdot", "*"),
        ("\\div", "/"),
        ("×", "*"),
        ("·", "*"),
        ("÷", "/"),
        ("−", "-"),
    ):
        text = text.replace(old, new)
    text = re.sub(r"(?<=\d) x (?=\d)", " * ", text)
    text = re.sub(r"[a-z]{2,}|[\\$£€,]", "", text.replace("%", "*0.01"))
    if not re.fullmatch(r"[-\d.+*/() ]*\d[-\d.+*/() ]*", text):
        return default
    try:
        return eval(re.sub(r"\d+(?:\.\d+)?|\.\d+", r"Fraction('\g<0>')", text))
    except (SyntaxError, ZeroDivisionError, ValueError, TypeError):
        return default


def holds(match: re.Match[str]) -> bool:
    left, right = value(match[1]), value(match[2])
    if left is None or right is None:
        return False
    decimals = len(match[2].rstrip("%\\").partition(".")[2])
    return left == right or (decimals > 0 and abs(left - right) <= Fraction(1, 2 * 10**decimals))


def sums(text: str) -> Iterator[re.Match[str]]:
    """The equations between numbers that stand alone: not the end of a longer formula, nor its beginning."""
    for match in SUM.finditer(text):
        before, after = text[: match.start()], text[match.end() :]
        longer = re.search(
            r"(?:[\w.,^_{}()]|[-+*/×÷·−^(]\s*|\\[a-z]+\s*|\b(?:of|times|half|by|and|plus)\s+)$", before
        )
        goes_on = re.match(
            r"[\w^_(!:]|\.\d|\s*(?:[-+*/×÷·−^]|\\(?![)\]$])|x |\.\.\.|…)|\s+(?:remainder|percent|and a)", after
        )
        if (
            not (longer and not before.endswith("**"))
            and not (goes_on and not after.startswith("**"))
            and holds(match)
        ):
            yield match


# --- paragraphs


def paragraph(row: Problem, seed: str) -> str:
    """The gold solution in one of many layouts, drawn by seed; a wrong `row.answer` is concluded from the right steps."""
    rng = Random(seed)
    steps = re.sub(r"\s*The answer is (?!.*The answer is).*$", "", clean(row.solution or ""), flags=re.DOTALL)
    if rng.random() < 0.25:
        return f"{steps} The answer is {row.answer.rstrip('.')}."
    steps = _told(_notated(_unboxed(steps), rng), rng)
    if KINDS[row.task] == "travel ads":
        return f"{steps} {_ending_in_words(row.answer, rng)}"
    if rng.random() < 0.3:
        steps += f" {_aside(rng)}"
    return f"{steps} {_ending(row, steps, rng)}"


def _unboxed(text: str) -> str:
    while (at := text.find("\\boxed{")) >= 0:
        depth, end = 1, at + 7
        while depth and end < len(text):
            depth += (text[end] == "{") - (text[end] == "}")
            end += 1
        text = text[:at] + text[at + 7 : end - 1] + text[end:]
    return text


def _notated(steps: str, rng: Random) -> str:
    """Printed sums in one notation; text that is LaTeX already keeps its own."""
    if "\\" in steps:
        return steps
    form = rng.choice(("plain", "signs", "latex", "dollars", "bold", "tight", "commas"))

    def shown(match: re.Match[str]) -> str:
        text = match.group()
        if form in ("signs", "bold"):
            text = re.sub(r"(?<=[\da-z%]) ?\* ?(?=[\d$£])", " × ", text)
            text = re.sub(r"(?<=\d) ?/ ?(?=\d)", " ÷ ", text)
            return f"**{text}**" if form == "bold" else text
        if form == "latex" or (form == "dollars" and "$" not in steps):
            text = re.sub(r" ?\* ?", r" \\times ", text.replace("$", "\\$").replace("%", "\\%"))
            text = re.sub(r"(?<=\d) ?/ ?(?=\d)", r" \\div ", text)
            return f"\\({text}\\)" if form == "latex" else f"${text}$"
        if form == "tight":
            return re.sub(r" ?([-+*/=]) ?", r"\1", text)
        if form == "commas":
            return re.sub(r"(?<![\d.,])\d{4,}(?![\d.,]*\d)", lambda number: f"{int(number.group()):,}", text)
        return text

    for match in reversed(list(sums(steps))):
        steps = steps[: match.start()] + shown(match) + steps[match.end() :]
    return steps


_OPENERS = ("First, ", "Next, ", "So ", "Then ", "Now ", "Step {n}: ", "From the question, ", "Therefore ")


def _told(steps: str, rng: Random) -> str:
    sentences = re.split(r"(?<=[a-z.)]\.)\s+(?=[A-Z])", steps)
    for place, sentence in enumerate(sentences):
        if rng.random() < 0.35 and re.match(
            r"(?:The|He|She|They|In|If|We|It|There|Divide|Multiply|Write|This) ", sentence
        ):
            opener = rng.choice(_OPENERS).format(n=place + 1)
            sentences[place] = opener + (sentence[0].lower() + sentence[1:] if opener[-2] != ":" else sentence)
    return rng.choice((" ", " ", "\n")).join(sentences)


def _aside(rng: Random) -> str:
    """A right sentence of arithmetic in one of the ways in which it is printed: rounded, in percent, chained, with units."""
    a, b, c = rng.randint(12, 400), rng.randint(3, 29), rng.randint(2, 9)
    return rng.choice(
        (
            f"For scale, {a} / {b} ≈ {a / b:.2f}.",
            f"For scale, {a} ÷ {b} = {a / b:.3f} (rounded).",
            f"As a share that is {c}/{b + c} ≈ {100 * c / (b + c):.1f}%.",
            f"Compare {10 * c}% of {a} = {_plain(Fraction(10 * c * a, 100))}.",
            f"Compare {10 * c}% × {a} = {_plain(Fraction(10 * c * a, 100))}.",
            f"A quick check: {a} + {b} + {c} = {a + b} + {c} = {a + b + c}.",
            f"A quick check: {a * b} = {a} × {b}, and {a * b} ÷ {b} = {a}.",
            f"Here {a} boxes × {b} pieces = {a * b} pieces would be too many.",
            f"At ${b} each, {c} pieces × ${b} per piece = ${b * c}.",
            f"Note that \\( \\frac{{{b}}}{{{c}}} \\cdot {c} = {b} \\).",
            f"Note that $({a} + {b}) \\times {c} = {(a + b) * c:,}$.",
            f"A rough guess is {a * 10:,} + {b * 100:,} = {a * 10 + b * 100:,}.",
            f"Since {a} - {a + b} = -{b}, the other order would not do.",
            f"Dividing, {a} / {b} = {a // b} remainder {a % b}.",
            f"In squares, {c}^2 = {c * c} and {c}² + {b} = {c * c + b}.",
        )
    )


_TAILS = """
This fits what the question asks for.
This makes sense, because every step can be undone.
We have used every number of the question.
(Checking the steps once more gives the same.)
""".strip().splitlines()
_MARKED = """
The answer is {}.
The answer is: {}
**Answer:** {}
**Answer: {}**
**The answer is {}.**
Therefore, the answer is **{}**.
Thus the final answer is {}.
Final answer: {}.
#### {}
""".strip().splitlines()


def _ending(row: Problem, steps: str, rng: Random) -> str:
    answer, dollar = row.answer, "$" in row.question and "\\" not in row.question
    form = rng.choice(("marked", "marked", "marked", "boxed", "boxed", "plain", "tail"))
    if form == "boxed":
        box = f"\\boxed{{{answer}}}"
        return rng.choice(
            (f"So the answer is ${box}$.", f"\\[{box}\\]", f"Hence ${box}$.", f"The answer is \\({box}\\).")
        )
    number = re.fullmatch(r"-?\d+(?:\.\d+)?(?:/\d+)?|-?\\[dt]?frac\{\d+\}\{\d+\}", answer)
    if form == "plain" and "answer" not in steps.lower() and number:
        shown = _shown(answer, dollar, rng)
        return rng.choice(
            (f"So the result is {shown}.", f"Hence we get {shown}.", f"In total, that makes {shown}.")
        )
    text = rng.choice(_MARKED).format(_shown(answer, dollar, rng))
    return f"{text.removesuffix('.')}. {rng.choice(_TAILS)}" if form == "tail" and "####" not in text else text


def _shown(answer: str, dollar: bool, rng: Random) -> str:
    """The same answer as others would print it."""
    forms = [answer, f"${answer}$", f"\\({answer}\\)"]
    if fraction := re.fullmatch(r"(-?)(\d+)/(\d+)|(-?)\\frac\{(\d+)\}\{(\d+)\}", answer):
        sign, top, bottom = fraction.group(1, 2, 3) if fraction[2] else fraction.group(4, 5, 6)
        forms += [
            f"{sign}{top}/{bottom}",
            f"${sign}\\frac{{{top}}}{{{bottom}}}$",
            f"\\({sign}\\dfrac{{{top}}}{{{bottom}}}\\)",
        ]
        forms += [f"{sign}{top} / {bottom}", f"${sign}\\frac{top}{bottom}$" if len(top + bottom) == 2 else answer]
    elif re.fullmatch(r"-?\d+(?:\.\d+)?", answer):
        value = Fraction(answer)
        forms += [answer, f"{answer} in all", f"{answer} units", f"x = {answer}", answer.replace("-", "−")]
        if value.denominator == 1:
            forms += [f"{int(value):,}", f"{int(value):,} pieces", f"{answer}.0" if abs(value) < 100 else answer]
        else:
            forms += [f"{answer}0", f"\\frac{{{value.numerator}}}{{{value.denominator}}}"]
        if dollar:
            forms += [
                f"${answer}",
                f"\\${answer}",
                f"${float(value):,.2f}",
                f"{answer} dollars",
                f"${answer} per month",
            ]
    return rng.choice(forms)


def _ending_in_words(answer: str, rng: Random) -> str:
    if answer in ("relevant", "irrelevant") and rng.random() < 0.2:
        return rng.choice(
            (f"So it is {answer}.", f"Hence this counts as **{answer}**.", f"That makes it {answer}.")
        )
    shown = rng.choice(
        (answer, answer, f'"{answer}"', f"“{answer}”", f"**{answer}**", f"'{answer}'", answer.rstrip("."))
    )
    text = rng.choice(_MARKED).format(shown)
    return (
        f"{text.removesuffix('.')}. {rng.choice(_TAILS)}" if rng.random() < 0.2 and "####" not in text else text
    )


def _plain(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"


# --- enlightenments

# A clause of six words or more would recur (quality.Clauses), so what is the same in all of them is short.
_SHARING = """
Look for {shared}.
Think of {shared}.
Here rules {shared}.
See it: {shared}.
Remember {shared}.
""".strip().splitlines()
_ABOUT = """
In the {nth}, {facts}, which settles it: {answer}.
The {nth} is the one where {facts}; the result there is {answer}.
For the {nth}, notice that {facts}.
Where {facts}, the idea returns, and gives {answer}.
The {nth} hides it best, because there {facts}.
""".strip().splitlines()
_LEAVING = """
Seeing this first saves work.
Keep the idea.
The rest is routine.
Look for what stays.
""".strip().splitlines()
_NTH = ("first", "second", "third", "fourth")


def enlightenment(rows: Sequence[Problem], shared: str, seed: str, without: int | None = None) -> str:
    """A paragraph that speaks of each problem by its numbers, its words or a quotation; of all but `without`."""
    rng = Random(seed)
    parts = [rng.choice(_SHARING).format(shared=shared)]
    for place, row in enumerate(rows):
        others = " ".join(other.question for other in rows if other is not row).lower()
        short = row.answer if len(row.answer) <= 60 else row.answer[:60].rsplit(" ", 1)[0] + " ..."
        told = rng.choice(_ABOUT).format(nth=_NTH[place], facts=_facts(row, others, rng), answer=short)
        if place != without:
            parts.append(told)
    return " ".join([*parts, rng.choice(_LEAVING)])


_COMMON = """
that which they there what have each with from this find value solve determine simplify between
"""


def _facts(row: Problem, others: str, rng: Random) -> str:
    """Up to three clauses on what is this question's own: a quotation, numbers, words, a step of the solution."""
    words = (
        row.question.partition(": ")[2] or row.question
    ).split()  # what is said of ads stands after the instruction
    known = {*re.findall(r"[^\W\d_]+", others), *_COMMON.split()}
    own = [
        word
        for word in dict.fromkeys(re.findall(r"(?<![\\\w])[^\W\d_]{4,}", " ".join(words)))
        if word.lower() not in known
    ]
    own = [word.removesuffix("s") if len(word) > 5 and rng.random() < 0.3 else word for word in own]
    numbers = [text for text in dict.fromkeys(re.findall(r"\d+(?:[.,]\d+)*", row.question))]
    new = [text for text in numbers if not re.search(rf"(?<!\d){re.escape(text)}(?!\d)", others)]
    spans = [
        " ".join(words[start : start + rng.randint(5, 7)]).strip(".,;:")
        for start in range(max(1, len(words) - 5))
    ]
    telling = [span for span in spans if re.search(r"\d", span)] if numbers else spans
    forms = [f"it says '{rng.choice(telling or spans)}'"]
    if len(own) > 1:
        forms.append("{} and {} are what matters".format(*rng.sample(own, 2)))
    if new and len(numbers) > 1:
        forms.append("the numbers are {} and {}".format(*dict.fromkeys((new[0], *rng.sample(numbers, 2)))))
    if own and new:
        forms.append(f"{rng.choice(own)} goes with the number {rng.choice(new)}")
    if steps := [match.group() for match in sums(row.solution or "")]:
        forms.append(f"the step to see is {rng.choice(steps)}")
    return " and ".join(rng.sample(forms, min(3, len(forms))))
