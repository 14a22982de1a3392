r"""Which answer a generated text ends in, and whether it is the gold one: flexibly, and in the asked-for form only.

Flexible: the last answer that the text announces ('The answer is ...', 'Answer: ...', '#### ...', \boxed{...}), or else
the one it stops at. Strict: in a sentence 'The answer is X.' that holds nothing but X, as worked examples show it (so
does lm-eval's gsm8k_cot); a strict match is a flexible one too. Units are not compared; signs, digits and variables are:
'42 km' answers 42, '2x' does not answer 2. A text is read up to the next 'Question:' that it makes up. Predictions come
from language models, so nothing here trusts them: bounded text, bounded digits, and symbolic equivalence in a process
that can be killed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice

from trait_kit.evaluation.equality import (
    MAX_ANSWER,
    MAX_CHARACTERS,
    NUMBER,
    TEXT,
    Number,
    alike,
    compact,
    equivalent,
    fractions,
    is_prose,
    is_words,
    normalise_text,
    only_number,
    plain,
    quantity,
    read_number,
    tidy,
    unwrap,
)

ENDS = ("\nQuestion:", "\nProblem:", "\nQ:", "<|endoftext|>", "<|im_end|>", "</s>")  # what follows is another text
_MARK = re.compile(
    r"\\(?:boxed|fbox)\s{0,3}(?=\{)|####"
    r"|\b(?:ans(?:wers?)?|(?:correct|right|best)\s(?:choice|option|letter))\b[*_]{0,2}\s{0,3}(?:[\w'$()]{1,30}\s{1,3}){0,10}?"
    r"(?:(?:is|are|was|equals|(?:must|should|would|will|to)\sbe)\b(?!n[’']t)[*_]{0,2}\s{0,3}:?|[:=])",
    re.IGNORECASE,
)
_ASKED = re.compile(r"\bthe answer is (?=([^\n]{1,400}))", re.IGNORECASE)
_DENIED = re.compile(
    r"\banswer\s(?:is\s(?:not|never)|isn[’']t|cannot\sbe)\b[^.,;!?\n]{0,80}", re.IGNORECASE
)  # 'The answer is not 8' names no answer
_REASON = re.compile(
    r"[.!?;](?=\s|$)|,?\s(?:because|since|as|so|which|where|when|if|after|given|not|but|for|by)\b|\s[-–—]\s(?=[A-Za-z])"
)
_OPENING = re.compile(r"^(?:\\[\[(]|\$\$|[\s*_`:>])+")
_HEDGE = re.compile(r"\s*(?:,|or|and|to|[-–—~:])\s*")
_OPERATOR = re.compile(r"\s*(?:[-+*/^x]|\\[a-z]+)[\s(]*")
_LETTER = re.compile(
    r"(?:(?:the\s)?(?:correct\s)?(?:option|choice|letter|answer)\s)?(?:[(\[]\s?(?P<a>[A-H])\s?[)\]][.:,]?"
    r"|(?P<b>[A-H])(?:\)[.:,]?|[.:](?=\s|$)|(?=\s*$)|(?=,?\s(?:because|since|is|as|which|-)\s)))\s*",
    re.IGNORECASE,
)
_RULED_OUT = re.compile(r"\(?\b[A-H]\)?\s(?:is|are)\s(?:wrong|incorrect|false|out|not)\b(?:\s(?:and|but)\b)?")
_MENTION = re.compile(r"(?<!\w)\(([A-H])\)(?!\w)|\b(?:[Oo]ption|[Cc]hoice)\s([A-H])\b")


def judge(prediction: str, gold: str, kind: str = "", choices: Sequence[str] = ()) -> tuple[bool, bool]:
    """(flexible, strict): whether the answer that `prediction` reaches is `gold`, and whether in the asked-for form.

    `kind` is a task's (number, expression, choice, text); without one it is read off the gold answer. Of `choices`, shown
    as '(A) ...', a letter, the text or both may be given. Any text gets a verdict in bounded time.
    """
    gold = plain(str(gold)[:MAX_CHARACTERS]).strip()
    kind = kind or ("text" if is_words(gold) else "number" if only_number(gold) else "expression")
    reader = (_Choices if choices and kind == "choice" else _READERS[kind])(gold, [plain(choice) for choice in choices])
    text = plain(_this_answer(prediction))
    if reader.bare(text):
        return True, True
    text = _DENIED.sub("", text)
    verdict = next((found for answer in _announced(text) if (found := reader.announced(answer)) is not None), None)
    flexible = bool(reader.unannounced(text) if verdict is None else verdict)
    return flexible, flexible and any(map(reader.whole, _asked_for(text)))


# ---- the text, its announcements, and what stands in them


def _this_answer(prediction: str) -> str:
    text = str(prediction)
    for mark in ENDS:
        text = text.partition(mark)[0]
    return text[-MAX_CHARACTERS:]


def _announced(text: str) -> Iterator[str]:
    """What follows the last announcements of an answer, the last first; what a box holds."""
    for mark in islice(reversed(list(_MARK.finditer(text))), 8):
        rest = text[mark.end() : mark.end() + 2 * MAX_ANSWER]
        found = _braced(rest.lstrip()) if mark.group().startswith("\\") else _first_line(_OPENING.sub("", rest))
        if found:
            yield found[:MAX_ANSWER]


def _asked_for(text: str) -> Iterator[str]:
    """Each X of 'The answer is X.', as far as any full stop in its line: the caller knows which is the right one."""
    for sentence in islice(reversed(_ASKED.findall(text)), 4):
        for end in islice(re.finditer(r"\.(?=[\s*\"$)\\]|$)", sentence), 4):
            yield unwrap(sentence[: end.end()])


def _braced(text: str) -> str:
    depth = 0
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[1:place]
    return ""


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if re.search(r"\w", line)), "")


def _readings(answer: str) -> list[str]:
    """An announced answer at its full length, up to each end of a sentence or beginning of a reason, and its formula."""
    readings = [answer, *(answer[: end.start()] for end in islice(_REASON.finditer(answer), 4))]
    formula = re.match(r"(?:\$\$?|\\\(|\\\[)?([^$]+?)(?:\$\$?|\\\)|\\\])(?!\s*(?:,|or\b|and\b|\$|\d))", answer)
    return list(dict.fromkeys(filter(None, map(unwrap, [*readings, formula[1] if formula else ""]))))


def _final(text: str) -> list[str]:
    """What a text without announcement stops at: its last line with mathematics, the last formula, its right side."""
    line = next((line for line in reversed(text.splitlines()) if re.search(r"[\d\\$]", line)), _last_line(text))
    formulas = re.findall(r"\$\$?([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", line)
    last = next(filter(None, formulas[-1])) if formulas else line
    return [unwrap(part) for part in (line, last, last.rpartition("=")[2])]


# ---- one reader a kind of task


class _Reader:
    """Compares answers with the gold one. None from `announced`: this announcement names no answer of the kind."""

    def __init__(self, gold: str, choices: list[str]) -> None:
        self.gold, self.choices = gold, choices

    def announced(self, answer: str) -> bool | None:
        """Whether an announced answer, with whatever else stands in its line, is the gold one."""
        raise NotImplementedError

    def unannounced(self, text: str) -> bool:
        """Whether a text that announces nothing ends in the gold answer."""
        raise NotImplementedError

    def whole(self, answer: str) -> bool:
        """Whether X of 'The answer is X.' is the gold answer and nothing else."""
        raise NotImplementedError

    def bare(self, text: str) -> bool:
        """Whether a text without that sentence is in the asked-for form all the same."""
        return False


class _Numbers(_Reader):
    """By value: 1,000 = 1000.0, 2/4 = 1/2. What still has to be computed goes to math-verify."""

    def __init__(self, gold: str, choices: list[str]) -> None:
        super().__init__(gold, choices)
        self.wanted = quantity(gold)

    def announced(self, answer: str) -> bool | None:
        stated = fractions(tidy(_REASON.split(answer, maxsplit=1)[0]))
        if (number := only_number(stated)) is not None:
            return self._is_wanted(number)
        for side in reversed(re.split(r"=|\\approx|≈|\bequals\b", stated)):
            numbers = list(islice(NUMBER.finditer(side), 2))
            if re.search(r"[\\^√]", side):
                break
            if not numbers:
                continue
            between = side[numbers[0].end() : numbers[1].start()] if len(numbers) > 1 else ""
            if _OPERATOR.fullmatch(between):
                break
            return not _HEDGE.fullmatch(between) and self._is_wanted(read_number(numbers[0]))
        return _Expressions(self.gold, []).announced(answer) if re.search(r"\d", stated) else None

    def unannounced(self, text: str) -> bool:
        if (first := only_number(unwrap(_first_line(text)))) is not None:
            return self._is_wanted(first)
        for line in reversed(text.splitlines()):
            sides = fractions(tidy(line)).split("=")
            numbers = list(NUMBER.finditer(sides[-1]))
            if numbers:
                return self._is_wanted(read_number(numbers[0 if len(sides) > 1 else -1]))
        return False

    def whole(self, answer: str) -> bool:
        return not is_prose(answer) and self._is_wanted(only_number(answer))

    def _is_wanted(self, number: Number | None) -> bool:
        return number is not None and self.wanted is not None and number.equals(self.wanted)


class _Expressions(_Reader):
    """As written, as a number, as words, or else by math-verify."""

    def announced(self, answer: str) -> bool | None:
        readings = _readings(answer)
        if any(alike(reading, self.gold) for reading in readings):
            return True
        formulas = [reading for reading in readings if not is_prose(reading)]
        shortest = min(readings, key=len, default="")  # 'correct, as 3 + 4 = 7' states nothing
        if formulas and re.search(r"[\d\\^+=]|\b[A-Za-z]\b", answer):
            verdicts = (equivalent(formula, self.gold) for formula in formulas[-2:])
            return bool(next((verdict for verdict in verdicts if verdict is not False), False))  # None: no second attempt
        return False if formulas or re.search(r"\d", shortest) else None

    def unannounced(self, text: str) -> bool:
        candidates = [unwrap(_first_line(text)), unwrap(_last_line(text)), *_final(text)]
        if any(alike(candidate, self.gold) for candidate in candidates if candidate):
            return True
        final = candidates[-1]
        return bool(final) and not is_prose(final) and bool(equivalent(final, self.gold))

    def whole(self, answer: str) -> bool:
        as_gold = compact(answer) == compact(self.gold) or (is_words(self.gold) and alike(answer, self.gold))
        return bool(answer) and (as_gold or not (is_prose(answer) or _REASON.search(answer)))


class _Choices(_Reader):
    """By letter, by the option's text, or by both if they agree."""

    def announced(self, answer: str) -> bool | None:
        place = self._place(answer)
        return None if place is None else self._is_gold(place)

    def unannounced(self, text: str) -> bool:
        text = _RULED_OUT.sub("", text)
        first, last = _first_line(text), _last_line(text)
        places = [self._plainly(first), self._plainly(last), *map(self._stated, reversed(_final(text)))]
        places += [self._mentioned(last), self._mentioned(text), self._held(last)]
        return self._is_gold(next((place for place in places if place is not None), -1))

    def whole(self, answer: str) -> bool:
        letter = _LETTER.match(answer)
        rest = unwrap(answer[letter.end() :]) if letter else answer
        return not rest or self._stated(rest) is not None

    def _is_gold(self, place: int) -> bool:
        return 0 <= place < len(self.choices) and self.choices[place] == self.gold

    def _place(self, answer: str) -> int | None:
        """Which choice an answer names; -1 where it contradicts itself; None where it names none."""
        for read in (self._plainly, self._mentioned, self._held):
            if (place := read(answer)) is not None:
                return place
        return None

    def _plainly(self, answer: str) -> int | None:
        """A letter, an option's text, or both, at the beginning."""
        readings = _readings(answer)
        for reading in readings:
            if (place := self._stated(reading)) is not None:
                return place
        for reading in readings[:1]:
            if letter := _LETTER.match(reading):
                place = "ABCDEFGH".index((letter["a"] or letter["b"]).upper())
                stated = [self._stated(rest) for rest in _readings(reading[letter.end() :].lstrip("-–—: "))]
                named = next((other for other in stated if other is not None), place)
                return place if named == place else -1
        return None

    def _stated(self, text: str) -> int | None:
        """The option whose text this is."""
        for same in (lambda choice: compact(choice) == compact(text), lambda choice: _same_option(choice, text)):
            places = [place for place, choice in enumerate(self.choices) if same(choice)]
            if len(places) == 1:
                return places[0]
        return None

    def _mentioned(self, text: str) -> int | None:
        text = re.sub(r"\b[Nn]ot\s(?:option\s|choice\s)?\(?[A-H]\)?(?!\w)", "", text)
        letters = {first or second for first, second in _MENTION.findall(text)}
        return None if not letters else "ABCDEFGH".index(letters.pop()) if len(letters) == 1 else -1

    def _held(self, text: str) -> int | None:
        """The one option whose text stands among other words; not one within another, not one that is denied."""
        words = f" {normalise_text(text)} "
        held = {place: f" {normalise_text(choice)} " for place, choice in enumerate(self.choices)}
        held = {place: option for place, option in held.items() if option.strip() and option in words}
        held = {
            place: option
            for place, option in held.items()
            if not any(option != other and option in other for other in held.values())
        }
        denial = r"\b(?:not|never|isnt|arent|no)(?: an?| the)?"
        named = [place for place, option in held.items() if not re.search(denial + re.escape(option), words)]
        return named[0] if len(named) == 1 else -1 if held else None


class _Texts(_Reader):
    """By words, without case and punctuation."""

    def announced(self, answer: str) -> bool | None:
        ends = [answer[: end.start()] for end in islice(re.finditer(r"[.!?](?=\s|$)", answer), 4)]
        return any(self.whole(TEXT.sub(r"\1", reading)) for reading in (answer, *ends))

    def unannounced(self, text: str) -> bool:
        first = _first_line(text)
        return any(map(self.whole, (first, _last_line(text), re.sub(r"^[*_]*[A-Z][\w ]{0,30}:", "", first))))

    def whole(self, answer: str) -> bool:
        return normalise_text(answer) == normalise_text(self.gold) != ""

    def bare(self, text: str) -> bool:
        return "\n" not in text.strip() and not text.lstrip().startswith("####") and self.whole(text)


def _same_option(choice: str, text: str) -> bool:
    if is_words(choice) or not re.search(r"[\d\\]", choice):
        return normalise_text(choice) == normalise_text(text) != ""
    return alike(text, choice)


_READERS = {"number": _Numbers, "expression": _Expressions, "choice": _Texts, "text": _Texts}
