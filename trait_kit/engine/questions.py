"""Test questions inside training texts: one pass over the selected corpus and the passages against exactly the test sets.

Two findings. *exact*: the whole question stands in the text. *ngram*: a large share of the question's word n-grams does
(13 words is the usual length, GPT-3, arXiv 2005.14165, appendix C), so that a question with an altered opening or end is
found as well. Both compare normalised words, so case, punctuation, line breaks and typographic variants do not hide a match,
while signs of arithmetic count as words: "3x + 2" and "3x - 2" are different questions. Only questions are compared: a
text that holds the prompt without its answer choices or its answer has a finding too.

Nearly all texts hold nothing, so a filter at memory speed passes over them and only the rest are compared word by word.
It may let a text through in vain and must never lose one. The argument:

1. Let u be a text after NFKC, the table of signs and case folding: what `_WORD` sees. Its *marks* are its maximal runs of
   letters, each single digit, and each sign of `+*/=<>^%`, in order; all else separates. Every mark lies in exactly one word
   of u, words keep the order, letters that touch in u touch in their word, and those that do not are kept apart in the word
   (by an apostrophe) or by its end. So the marks of u are those of its words, one word after the other. Digits are
   single because "1,234" is one word and "1, 234" two; "-" is no mark because it is a word in some places only.
2. Hence the marks of a question's n-gram (or of a short question, whole) that stands in u are a run of the marks of u, and
   so are the first few of them. The filter hashes every run of a few lengths and looks for those of all n-grams. Equal
   runs have equal hashes; a collision costs time only. An n-gram without marks ("- -") switches the filter off.
3. Marks are read from the text as it is, through a table of what each character becomes in u. That is right where
   normalisation takes characters one by one, and it does unless canonical composition joins two: the second is a
   combining mark, a Hangul vowel or final consonant, or the like. A text with such a character, or one that becomes
   several characters of which some count ("ﬁ", "½"), is normalised first and read through the identity.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from trait_kit.engine.files import TraitError
from trait_kit.engine.ngrams import Texts, buffers, inlined, kernel, text_array

COLUMNS = ("text_index", "test_index", "kind", "overlap", "excerpt")
_EXCERPT_WORDS = 40

_SIGNS = {"−": "-", "–": "-", "—": " ", "×": "*", "·": "*", "÷": "/", "⁄": "/", "’": "'", "‘": "'"}
# a number with its thousands commas and decimals, a word (with its inner apostrophe), or a sign of arithmetic
_WORD = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|[^\W\d_]+(?:'[^\W\d_]+)?|[+*/=<>^%]|(?<![^\W\d_])-|-(?![^\W\d_])")
_LETTER = re.compile(r"[^\W\d_]")
_ALONE = re.compile(r"[\d+*/=<>^%]")

_ENDS, _HARD = 1, 3  # in the tables; letters are even (2 x code point), and what stands alone is odd (+ 1)
_TABLE_SIZE = 0x20000  # characters beyond (rare ideographs) separate; a text that holds one is normalised first
_LENGTHS = (13, 8, 5, 3, 2, 1)  # marks a run: an n-gram is sought by its first 13 or, if it has fewer, by its first 8 ...
_CLEAN, _UNREAD, _SUSPICIOUS = 0, 1, 2
_FACTOR, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_LEAVES = np.array([pow(int(_FACTOR), length, 1 << 64) for length in _LENGTHS], np.uint64)


def normalise(text: str) -> str:
    """Lower-case words, numbers without thousands commas, and arithmetic signs, with one space between them."""
    return " ".join(word.replace(",", "") for word in _WORD.findall(_unified(text)))


def find_contaminated(texts: Texts, test_questions: Sequence[str], n: int = 13, share: float = 0.5) -> pd.DataFrame:
    """The findings of `TestQuestions(test_questions, n, share)` in the texts: the form for a single batch."""
    return TestQuestions(test_questions, n, share).find(texts)


class TestQuestions:
    """An index of test questions; `find` compares batch after batch of texts with it.

    It holds every distinct n-gram of the questions -> the questions it is in, short questions -> themselves, and hashes of
    the first marks of both for the filter. 9,000 questions of 55 words take 3 s to prepare and 150 MB.
    """

    def __init__(self, questions: Sequence[str], n: int = 13, share: float = 0.5) -> None:
        if n < 1 or not 0 < share <= 1:
            raise ValueError(f"n must be at least 1 and share in (0, 1], got n={n} and share={share}")
        self.n, self.share = n, share
        self.same: dict[tuple[str, ...], list[int]] = defaultdict(list)  # words -> all test indices with these words
        for number, question in enumerate(questions):
            words = tuple(normalise(question).split())
            if words:
                self.same[words].append(number)
        self.questions = list(self.same)
        self.vocabulary = {word for words in self.questions for word in words}
        self.short_lengths = sorted({len(words) for words in self.questions if len(words) < n})
        self.shortest = min((min(len(words), n) for words in self.questions), default=0)
        self.grams: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self.n_grams: dict[int, int] = {}
        for number, words in enumerate(self.questions):
            if len(words) >= n:
                grams = set(_windows(words, n))
                self.n_grams[number] = len(grams)
                for gram in grams:
                    self.grams[gram].append(number)
        self._prepare_filter([*self.grams, *(words for words in self.questions if len(words) < n)])

    def find(self, texts: Texts) -> pd.DataFrame:
        """Pairs of a text and a test question it holds: text_index, test_index, kind (exact|ngram), overlap (0..1), excerpt.

        ngram: at least `share` of the question's distinct n-grams of `n` words stand in the text; a question of fewer words
        is only sought whole. A pair is reported once, as exact if it is. The excerpt is the first match, normalised. Rows
        are sorted by text and question; an empty frame means that nothing was found.
        """
        array = text_array(texts)
        rows = [
            (text_index, *finding)
            for text_index in self.suspicious(array)
            for finding in sorted(self._findings(normalise(array[text_index].as_py()).split()))
        ]
        kinds = {"text_index": "int64", "test_index": "int64", "kind": "str", "overlap": "float64", "excerpt": "str"}
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype(kinds)

    def suspicious(self, texts: Texts) -> list[int]:
        """Indices of the texts that must be compared word by word: all with a finding, and very few others."""
        if not self.questions:
            return []
        array = text_array(texts)
        try:
            array.validate(full=True)
        except pa.ArrowInvalid as error:
            raise TraitError(
                f"A text is not valid UTF-8 ({error}). load_documents puts such records in quarantine."
            ) from None
        if self._matches_anything:
            return list(range(len(array)))
        identity, raw = _tables()
        state = self._filter(array, raw)
        unread = np.flatnonzero(state == _UNREAD)
        state[unread] = self._filter(text_array([_unified(array[row].as_py()) for row in unread.tolist()]), identity)
        return np.flatnonzero(state == _SUSPICIOUS).tolist()

    def _filter(self, array: pa.LargeStringArray, table: np.ndarray) -> np.ndarray:
        values, offsets = buffers(array)
        return _filter(values, offsets, table, self._lengths, self._bits, self._keys, _room(offsets))

    def _prepare_filter(self, sought: list[tuple[str, ...]]) -> None:
        values, offsets = buffers(text_array([" ".join(words) for words in sought]))
        keys, lengths = _first_runs(values, offsets, _tables()[0], _room(offsets))
        self._matches_anything = bool((lengths < 0).any())
        self._lengths = np.unique(lengths)  # places in _LENGTHS
        self._keys = np.unique(keys)
        size = 1 << max(10, 5 + len(self._keys).bit_length())  # 32 to 64 bits a key: 2-3% of other runs reach the keys
        self._bits = np.zeros(size // 8, np.uint8)
        place = self._keys & np.uint64(size - 1)
        np.bitwise_or.at(self._bits, place >> np.uint64(3), (1 << (place & np.uint64(7))).astype(np.uint8))

    def _findings(self, words: list[str]) -> Iterator[tuple[int, str, float, str]]:
        """(test_index, kind, overlap, excerpt) of one text."""
        exact: dict[int, int] = {}  # question -> where its first match starts
        found: dict[int, set[tuple[str, ...]]] = defaultdict(set)
        first: dict[int, int] = {}
        short: dict[tuple[str, ...], int] = {}
        for start, end in self._runs(words):
            for at in range(start, end - self.n + 1):
                gram = tuple(words[at : at + self.n])
                for number in self.grams.get(gram, ()):
                    found[number].add(gram)
                    first.setdefault(number, at)
                    question = self.questions[number]
                    if question[: self.n] == gram and tuple(words[at : at + len(question)]) == question:
                        exact.setdefault(number, at)
            for length in self.short_lengths:
                for at in range(start, end - length + 1):
                    candidate = tuple(words[at : at + length])
                    if candidate in self.same:
                        short.setdefault(candidate, at)
        for candidate, at in short.items():
            for test_index in self.same[candidate]:
                yield test_index, "exact", 1.0, _excerpt(words, at, len(candidate))
        for number, grams in found.items():
            overlap = len(grams) / self.n_grams[number]
            question = self.questions[number]
            if number in exact or overlap >= self.share:
                kind = "exact" if number in exact else "ngram"
                at = exact.get(number, first[number])
                for test_index in self.same[question]:
                    yield test_index, kind, 1.0 if kind == "exact" else overlap, _excerpt(words, at, len(question))

    def _runs(self, words: list[str]) -> Iterator[tuple[int, int]]:
        """Stretches of words that all occur in some question: no match can reach across any other word."""
        start = 0
        for at, word in enumerate([*words, None]):
            if word not in self.vocabulary:
                if self.questions and at - start >= self.shortest:
                    yield start, at
                start = at + 1


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """What each character is to the filter, uint32: in normalised text, and in text as it comes."""
    identity, raw = np.full((2, _TABLE_SIZE + 1), _ENDS, np.uint32)
    characters = [chr(code) for code in range(_TABLE_SIZE)]
    for code, character in enumerate(characters):
        if _LETTER.match(character):
            identity[code] = 2 * code
        elif _ALONE.match(character):
            identity[code] = 2 * code + 1
    decompositions = (unicodedata.decomposition(chr(code)).split() for code in range(sys.maxunicode + 1))
    composes = {chr(int(pair[1], 16)) for pair in decompositions if len(pair) == 2 and pair[0][0] != "<"}
    composes |= {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}  # Hangul vowels, finals
    lines = "\n".join(characters[128:])  # nothing composes across a line break
    decomposed, unified = unicodedata.normalize("NFKD", lines).split("\n"), _unified(lines).split("\n")
    for code, (before, after) in enumerate(zip(decomposed, unified, strict=True), start=128):
        kinds = [identity[min(ord(character), _TABLE_SIZE)] for character in after]
        joins = unicodedata.combining(before[0]) or before[0] in composes
        counts = len(kinds) > 1 and any(kind != _ENDS for kind in kinds)
        raw[code] = _HARD if joins or counts else kinds[0]
    raw[:128] = [identity[ord(character.lower())] for character in characters[:128]]
    raw[-1] = _HARD
    return identity, raw


def _unified(text: str) -> str:
    """The text in one spelling: compatibility characters, dashes and quotes as ASCII where they can be, no case."""
    text = unicodedata.normalize("NFKC", text)
    if not text.isascii():
        for sign, plain in _SIGNS.items():
            text = text.replace(sign, plain)
    return text.casefold()


def _room(offsets: np.ndarray) -> np.ndarray:
    """For the marks of the longest text, 8 bytes for each of its bytes at most."""
    return np.empty(np.diff(offsets).max(initial=0) + 1, np.uint64)


@inlined
def _mixed(value):
    value = (value ^ (value >> np.uint64(32))) * _MIX
    return value ^ (value >> np.uint64(29))


@kernel
def _read(values, start, end, table, totals):
    """Put the hash of the first k marks in totals[k], for every k; return how many there are, -1 if a character is hard.

    A run of marks from i to k has the hash totals[k] - totals[i] * _FACTOR ** (k - i), whatever is before it.
    """
    n_marks = 0
    totals[0] = 0
    mark = np.uint64(0)
    previous = kind = np.uint32(_ENDS)
    position = start
    while position <= end:
        width = 1
        if position == end:
            kind = np.uint32(_ENDS)
        elif values[position] < 128:
            kind = table[values[position]]
        else:
            byte = values[position]
            width = 2 if byte < 224 else 3 if byte < 240 else 4
            code = np.int64(byte & (127 >> width))
            for k in range(1, width):
                code = code << 6 | (values[position + k] & 63)
            kind = table[min(code, len(table) - 1)]
        position += width
        if (kind | previous) & 1:
            if mark != 0:
                n_marks += 1
                totals[n_marks] = totals[n_marks - 1] * _FACTOR + _mixed(mark)
                mark = np.uint64(0)
            if kind == _HARD:
                return -1
        if kind != _ENDS:
            mark = (mark ^ np.uint64(kind)) * _FACTOR
        previous = kind
    return n_marks


@kernel
def _first_runs(values, offsets, table, totals):
    """(key, place of its length in _LENGTHS) of the first marks of each text; the place is -1 for a text without marks."""
    keys, lengths = np.zeros(len(offsets) - 1, np.uint64), np.full(len(offsets) - 1, -1)
    for d in range(len(keys)):
        n_marks = _read(values, offsets[d], offsets[d + 1], table, totals)
        for which in range(len(_LENGTHS) - 1, -1, -1):
            if _LENGTHS[which] <= n_marks:
                keys[d], lengths[d] = _mixed(totals[_LENGTHS[which]]), which
    return keys, lengths


@kernel
def _filter(values, offsets, table, lengths, bits, keys, totals):
    """For each text: whether no run of its marks is among the keys, or one is, or a character has to be normalised first."""
    out = np.full(len(offsets) - 1, _CLEAN)
    last_bit = np.uint64(8 * len(bits) - 1)
    for d in range(len(out)):
        n_marks = _read(values, offsets[d], offsets[d + 1], table, totals)
        if n_marks < 0:
            out[d] = _UNREAD
        for which in lengths:
            length, leaves = _LENGTHS[which], _LEAVES[which]
            for k in range(length, n_marks + 1):
                key = _mixed(totals[k] - totals[k - length] * leaves)
                place = key & last_bit
                if bits[place >> np.uint64(3)] >> (place & np.uint64(7)) & 1:
                    at = np.searchsorted(keys, key)
                    if at < len(keys) and keys[at] == key:
                        out[d] = _SUSPICIOUS
                        break
    return out


def _windows(words: tuple[str, ...], n: int) -> Iterator[tuple[str, ...]]:
    return (words[at : at + n] for at in range(len(words) - n + 1))


def _excerpt(words: list[str], at: int, length: int) -> str:
    shown = words[at : at + min(length, _EXCERPT_WORDS)]
    return " ".join(shown) + (" ..." if length > _EXCERPT_WORDS else "")
