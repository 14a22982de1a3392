r"""Which answer a text ends in, and whether it is the gold one: the one judge, of a model's answers and of a teacher's.

Flexible: the last answer that the text announces ('The answer is ...', 'Answer: ...', '#### ...', \boxed{...}), or else
the one it stops at. Strict: also in a sentence 'The answer is X.' of nothing but X, as worked examples show it. Units
are not compared ('42 km' answers 42), signs, digits and variables are ('2x' does not answer 2). A fraction is reduced
where the gold one is, and an expression of the question is no answer. Thinking and made-up turns are not read. Texts may
be hostile: lengths and digits are bounded, and a process that can be ended computes equivalence.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from string import ascii_uppercase
from types import SimpleNamespace

from trait_kit.engine.files import read_yaml
from trait_kit.judging.equivalence import equivalent
from trait_kit.judging.numbers import (
    NUMBER,
    RULES,
    Number,
    in_figures,
    plain,
    quantity,
    read_number,
    rewritten,
    tidy,
)

MAX_TEXT = 100_000  # characters of a text; what comes after is no answer any more
MAX_CHARACTERS = 4_000  # of these that are looked at: the end
MAX_ANSWER = 400  # characters of one answer
_RULES = read_yaml(Path(__file__).with_name("answers.yaml"))
LANGUAGES: dict[str, dict[str, str]] = _RULES.pop("languages")
# 'The answer is'
ANNOUNCEMENTS = {name: one["states"].partition("{}")[0].rstrip() for name, one in LANGUAGES.items()}
_SAID = SimpleNamespace(**{name: re.compile("|".join(alternatives)) for name, alternatives in _RULES.items()})
_FUNCTIONS = frozenset(("sin", "cos", "tan", "cot", "sec", "csc", "log", "sqrt", "frac", "inf", "exp"))


def judge(
    prediction: str, gold: str, kind: str = "", choices: Sequence[str] = (), question: str = ""
) -> tuple[bool, bool]:
    """(flexible, strict): whether `prediction` reaches the answer `gold`, and whether in the asked-for form.

    `kind` is a task's (number, expression, choice, text); without one, and for a choice without choices, it is read off
    the gold answer. Of `choices`, shown as '(A) ...', a letter, the text or both may be given.
    """
    gold = plain(str(gold)[:MAX_CHARACTERS]).strip()
    if not kind or (kind == "choice" and not choices):
        kind = "number" if quantity(gold, unit=False) else "expression" if is_mathematical(gold) else "text"
    text = plain(first_turn(prediction)[-MAX_CHARACTERS:])[-MAX_CHARACTERS:]
    if kind in ("number", "expression") and language_of(f"{question} {text}") == "de":
        gold, text = (rewritten(part, RULES["german"]) for part in (gold, text))
    if kind == "text":
        reader = _Words(gold)
        if reader.alone(text):
            return True, True
    else:
        reader = _Options(gold, choices) if kind == "choice" else _Value(gold, kind, question)
    text = _SAID.denied.sub("", text)  # 'The answer is not 8' names no answer
    verdict = next(
        (found for answer in _announced(text) if (found := reader.announced(answer)) is not None), None
    )
    flexible = bool(reader.unannounced(text) if verdict is None else verdict)

    return flexible, flexible and any(map(reader.whole, _asked_for(text)))


def reaches(gold: str, paragraph: str, choices: Sequence[str] = (), question: str = "") -> tuple[bool, str]:
    """Whether what a worked solution concludes is `gold` (flexibly), and what it concludes, for a message.

    A conclusion that nothing announces is the last sentence; it must hold a gold answer in words.
    """
    found, marked = conclusion(paragraph)
    kind = "expression" if is_mathematical(gold) else "text" if marked or not choices else "choice"
    right, _strict = judge(paragraph if marked else found, gold, kind, choices, question)
    held = kind == "text" and not marked and _Options(gold, [gold])._held(found) == 0
    return right or held or ("\n" in gold and re.sub(r"\s*\n", "\n", gold) in paragraph), found


def conclusion(text: str) -> tuple[str, bool]:
    """The part of a text that states its answer, and whether it is announced ('The answer is')."""
    text = first_turn(text)[-MAX_CHARACTERS:]
    if announced := next(_announced(text), ""):
        return unwrap(announced), True
    return re.split(r"(?<=[.!?])[$)\"”’]*\s+|(?<=[。！？])(?=.)", _lines(text)[-1])[-1].rstrip(".。"), False


def readable(gold: str, kind: str) -> bool:
    """Whether a gold answer can be reached: of kind number it must be a number."""
    said = bool(re.search(r"\w", gold)) and gold.lower() != "nan"
    return said if kind != "number" else quantity(in_figures(gold)) is not None


def language_of(text: str) -> str:
    """The first of LANGUAGES that a text shows; else the last one, English."""
    return next(name for name, one in LANGUAGES.items() if re.search(one["shown_by"], text, re.DOTALL))


def statement(answer: str, language: str) -> str:
    """The sentence that states an answer at the end of a worked solution: 'The answer is 7.'"""
    return LANGUAGES[language]["states"].format(answer.rstrip(".。"))


def with_answer(solution: str, answer: str, language: str) -> str:
    """A worked solution that ends in the statement of its answer, once."""
    end = statement(answer, language)
    bare = solution.rstrip(" .。")
    said = bare.removesuffix(end[:-1]).rstrip() if bare.endswith(end[:-1]) else solution
    closed = not said or said.rstrip("$) ").endswith((".", "!", "?", "。", "！", "？", "```"))
    blank = "\n" if "\n" in said else " " if end.isascii() or said.isascii() else ""
    return f"{said}{'' if closed else end[-1]}{blank}{end}"


def parted(solution: str, answer: str) -> tuple[str, str]:
    """A worked solution's reasoning, and what announces its answer ('The answer is'); of others, nothing."""
    for language, announcement in ANNOUNCEMENTS.items():
        if solution.endswith(end := statement(answer, language)):
            return solution.removesuffix(end), announcement
    return "", ""


def first_turn(text: str) -> str:
    """A prediction without its thinking, up to where it makes up another question or turn."""
    return _SAID.next_turn.split(_SAID.thought.split(str(text)[:MAX_TEXT])[-1], maxsplit=1)[0]


def is_mathematical(answer: str) -> bool:
    """Whether an answer is a number or a formula, which are compared by value."""
    formula = re.search(r"[-\d+*/^=\\]", answer) and not _SAID.as_written.fullmatch(answer)
    return quantity(answer) is not None or bool(formula and not is_words(answer))


def is_words(text: str) -> bool:
    """Whether it says something in words; the names of functions are none."""
    return not _FUNCTIONS.issuperset(re.findall(r"(?<![\\A-Za-z{])[A-Za-z]{3,}", text))


def plain_words(text: str) -> str:
    """Casefolded words (of Chinese, characters) and numbers with single spaces: what spellings of one label share.

    Signs that change what is said are kept: '20% off', '$5', 'C++', '-5'.
    """
    text = unicodedata.normalize("NFKC", text.replace("\u2212", "-")).casefold()
    text = rewritten(text, RULES["words"])
    return " ".join(re.findall(r"(?<!\w)-\d+(?:\.\d+)?|\d+\.\d+|[$€£%+]|(?<=\w)#|[㐀-鿿]|[^\W_㐀-鿿]+", text))


def unwrap(text: str) -> str:
    """An answer without dollars or brackets of a formula, Markdown, quotes, a box, the full stop."""
    for _ in range(4):  # they stand in one another
        text = text.strip().strip('*_`"“”').rstrip(",;: ").removesuffix("\\")
        text = text.removesuffix(".").removesuffix("。").strip()
        if match := _SAID.wrapped.fullmatch(text):
            text = next(filter(None, match.groups()), "")
    return text


# ---- announcements, and what stands in them


def _announced(text: str) -> Iterator[str]:
    """What follows the last announcements of an answer, the last first; what a box holds."""
    for mark in islice(reversed(list(_SAID.mark.finditer(text))), 8):
        rest = text[mark.end() : mark.end() + 2 * MAX_ANSWER]
        found = braced(rest.lstrip()) if mark.group().startswith("\\") else _lines(_SAID.opening.sub("", rest))[0]
        found = re.split(r"</answer>|\"\s?[,}]", found)[0]
        if found:
            yield found[:MAX_ANSWER]


def _asked_for(text: str) -> Iterator[str]:
    """Each X of 'The answer is X.', to any full stop in its line."""
    for sentence in islice(reversed(_SAID.asked.findall(text)), 4):
        for end in islice(re.finditer(r"\.(?=[\s*\"$)\\]|$)|。", sentence), 4):
            yield unwrap(sentence[: end.end()])


def braced(text: str) -> str:
    """What a text's first braces hold; '' where it does not begin with whole ones."""
    depth = 0
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[1:place]
    return ""


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if re.search(r"\w", line)] or [""]  # that say something


def _readings(answer: str) -> list[str]:
    """An announced answer whole, up to each end of a sentence or beginning of a reason, and its formula."""
    readings = [answer, *(answer[: end.start()] for end in islice(_SAID.reason.finditer(answer), 4))]
    formula = re.match(r"(?:\$\$?|\\\(|\\\[)?([^$]+?)(?:\$\$?|\\\)|\\\])(?!\s*(?:,|or\b|and\b|\$|\d))", answer)
    return list(dict.fromkeys(filter(None, map(unwrap, [*readings, formula[1] if formula else ""]))))


def _final(text: str) -> list[str]:
    """What a text without announcement stops at: last line, last formula, its right side, what something is."""
    line = _lines(text)[-1]
    formulas = re.findall(r"\$\$?([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", line)
    last = next(filter(None, formulas[-1])) if formulas else line
    return [unwrap(part) for part in (line, last, last.rpartition("=")[2], _SAID.being.split(last)[-1])]


# A reader a kind of answer: `announced` says whether an announced answer, with what follows it, is the gold one
# (None: it names none), `unannounced` whether a text without one ends in it, `whole` whether X is just that


class _Value:
    """A number by value (1,000 = 1000.0, 0.5 = 1/2), a formula as written, else by equivalence."""

    def __init__(self, gold: str, kind: str, question: str) -> None:
        self.gold, self.kind, self.question = gold, kind, compact(plain(question))
        self.wanted = quantity(in_figures(gold) if kind == "number" else gold)

    def announced(self, answer: str) -> bool | None:
        answer = in_figures(answer) if self.wanted else answer
        stated = tidy(_SAID.reason.split(answer, maxsplit=1)[0], in_line=True)
        if self._repeats(_SAID.sentence_end.split(answer, maxsplit=1)[0]):
            return False
        if self.wanted and (number := quantity(stated, unit=False)):
            return self._is_wanted(number)
        side = re.split(r"=|\\approx|≈|\bequals\b", stated)[-1]
        found = list(islice(NUMBER.finditer(side), 2)) if self.wanted else []
        between = side[found[0].end() : found[1].start()] if len(found) > 1 else ""
        if found and not (re.search(r"[\\^√]", side) or _SAID.operator.fullmatch(between)):
            return not _SAID.hedge.fullmatch(between) and self._is_wanted(read_number(found[0]))
        return self._formula(_readings(answer))

    def _formula(self, readings: list[str]) -> bool | None:
        if any(alike(reading, self.gold) for reading in readings):
            return True
        formulas = [reading for reading in readings if reading and not is_words(reading)]
        return self._same(formulas[-1]) if formulas else None

    def unannounced(self, text: str) -> bool:
        if not self.wanted:
            return bool(self._formula(_final(text)))
        text = in_figures(text)
        if number := quantity(unwrap(_lines(text)[0]), unit=False):
            return self._is_wanted(number)
        for line in reversed(_lines(text)):
            sides = tidy(line, in_line=True).split("=")
            if found := list(NUMBER.finditer(sides[-1])):
                return self._is_wanted(read_number(found[0 if len(sides) > 1 else -1]))
        return False

    def whole(self, answer: str) -> bool:
        if self.kind == "number":
            return not is_words(answer) and self._is_wanted(quantity(in_figures(answer), unit=False))
        return bool(answer) and (compact(answer) == compact(self.gold) or not is_words(answer))

    def _is_wanted(self, number: Number | None) -> bool:
        return bool(number and self.wanted and number.equals(self.wanted))

    def _repeats(self, answer: str) -> bool:
        """Whether it is an expression of the question, and not the gold answer as it stands."""
        written = compact(answer)
        computed = re.search(r".[-+*/^\\]|^\\", written) and written != compact(self.gold)
        return bool(computed) and written in self.question

    def _same(self, formula: str) -> bool:
        formula, gold = tidy(unwrap(formula)), tidy(unwrap(self.gold))
        formula = re.sub(r"(?<=\d)\s?x\s?(?=\d)", r" \\times ", formula.replace("**", "^"))
        bases = [re.findall(r"\d_\{?(\w+)", text) for text in (formula, gold)]
        other_base = all(bases) and bases[0] != bases[1]
        if self._repeats(formula) or other_base or max(len(formula), len(gold)) > MAX_ANSWER:
            return False
        return not _SAID.as_written.fullmatch(gold) and bool(equivalent(gold, formula))


def alike(candidate: str, gold: str) -> bool:
    """Whether two answers are the same number, the same as written, or in the same words."""
    own, wanted = quantity(candidate), quantity(gold)
    if own and wanted:
        return own.equals(wanted)
    as_written = compact(candidate) == compact(gold) != ""
    return as_written or (is_words(gold) and plain_words(candidate) == plain_words(gold))


def compact(text: str) -> str:
    """A formula without layout and blanks."""
    text = _SAID.joined.sub(",", re.sub(r"\\[cd]?times|\\cdot", "*", tidy(unwrap(text), in_line=True)))
    return re.sub(r"[\s{}]", "", re.sub(r"(?<=\d)\s+(?=\d)", "_", text.replace("**", "^"))).casefold()


class _Options:
    """One of several choices: by letter, by its text, or by both if they agree."""

    def __init__(self, gold: str, choices: Sequence[str]) -> None:
        self.gold, self.choices = gold, [plain(choice) for choice in choices]

    def announced(self, answer: str) -> bool | None:
        place = self._place(answer)
        named = place is not None or quantity(unwrap(answer), unit=False) is not None
        return self._is_gold(place) if named else None

    def unannounced(self, text: str) -> bool:
        return self._is_gold(self._place(_SAID.ruled_out.sub("", text)))

    def whole(self, answer: str) -> bool:
        letter = _SAID.letter.match(answer)
        rest = unwrap(answer[letter.end() :]) if letter else answer
        return not rest or self._stated(rest) is not None

    def _is_gold(self, place: int | None) -> bool:
        return place is not None and 0 <= place < len(self.choices) and self.choices[place] == self.gold

    def _place(self, text: str) -> int | None:
        """Which option a text names, -1 where it contradicts itself, by the surest of its signs."""
        last = _lines(text)[-1]
        stated = map(self._stated, [*_readings(last), *reversed(_final(text))])
        signs = [self._letter(unwrap(last)), *stated, self._mentioned(text), self._held(last)]
        return next((place for place in signs if place is not None), None)

    def _letter(self, answer: str) -> int | None:
        if not (letter := _SAID.letter.match(answer)):
            return None
        place = ascii_uppercase.index((letter["a"] or letter["b"]).upper())
        rest = self._stated(unwrap(answer[letter.end() :].lstrip("-–—: ")))
        return place if rest in (None, place) else -1

    def _stated(self, text: str) -> int | None:
        places = [place for place, choice in enumerate(self.choices) if alike(text, choice)]
        return places[0] if len(places) == 1 else None

    def _mentioned(self, text: str) -> int | None:
        letters = {first or second for first, second in _SAID.mention.findall(_SAID.not_letter.sub("", text))}
        return None if not letters else ascii_uppercase.index(letters.pop()) if len(letters) == 1 else -1

    def _held(self, text: str) -> int | None:
        words = f" {plain_words(text)} "
        held = {place: f" {plain_words(choice)} " for place, choice in enumerate(self.choices)}
        held = {place: option for place, option in held.items() if option.strip() and option in words}
        named = [
            place for place, option in held.items() if not any(map(_SAID.denial.search, words.split(option)[:-1]))
        ]
        return named[0] if len(named) == 1 else -1 if held else None


class _Words:
    """A text by its words, without case and punctuation; code and what has several lines as it is written."""

    def __init__(self, gold: str) -> None:
        self.gold, self.lines = gold, "\n" in gold
        self.written = self.lines or bool(re.search(r"[={}<>\[\]]|\w\(", gold))

    def alone(self, text: str) -> bool:
        """Whether a text is the answer and nothing else; of several lines, also behind its last announcement."""
        if self.lines:
            ends = [0, *(mark.end() for mark in _SAID.mark.finditer(text))]
            return any(self.whole(text[end:]) for end in ends[-4:] + ends[:1])
        return "\n" not in text.strip() and not text.lstrip().startswith("####") and self.whole(text)

    def announced(self, answer: str) -> bool | None:
        ends = [answer[: end.end()] for end in islice(_SAID.sentence_end.finditer(answer), 4)]
        return any(map(self.whole, (*_readings(answer), *ends)))

    def unannounced(self, text: str) -> bool:
        lines = _lines(text)
        return any(map(self.whole, (lines[0], lines[-1], re.sub(r"^[*_]*[A-Z][\w ]{0,30}:", "", lines[0]))))

    def whole(self, answer: str) -> bool:
        if not self.written:
            return plain_words(answer) == plain_words(self.gold) != ""
        blanks = r"^\s*```\w*\n|\n```\s*$|\s+$|\A\s+|\.?\s*\Z" if self.lines else r"\s|\.?\s*\Z"
        return re.sub(blanks, "", answer, flags=re.MULTILINE) == re.sub(blanks, "", self.gold, flags=re.MULTILINE)
