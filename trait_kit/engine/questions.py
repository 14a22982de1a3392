"""Test questions inside training texts: one pass over the selected corpus and the passages against exactly the test sets.

Two findings. *exact*: the whole question stands in the text. *ngram*: a large share of the question's word n-grams does
(13 words is the usual length, GPT-3, arXiv 2005.14165, appendix C), so that a question with an altered opening or end is
found as well. Both compare normalised words, so case, punctuation, line breaks and typographic variants do not hide a match,
while signs of arithmetic count as words: "3x + 2" and "3x - 2" are different questions. Only questions are compared: a
text that holds the prompt without its answer choices or its answer has a finding too.

Nearly all texts hold nothing, so a filter passes over them and only the rest are compared word by word. It may let a text
through in vain and must never lose one. Let u be a text in one spelling (`_unified`) and its *marks* the maximal runs of
letters, the single digits, and each sign of `+*/=<>^%`, in order. Every mark lies in exactly one word of u and letters that
touch in u touch in their word, so the first few marks of an n-gram that stands in u are a run of the marks of u. The filter
hashes every run of a few lengths and looks for those of all n-grams; equal runs have equal hashes. (Digits are single, as
"1,234" is one word and "1, 234" two; an n-gram without marks switches the filter off; the tokens of ngrams.py cannot serve,
as "3x" is one of them and two words here.)
"""

from __future__ import annotations

import functools
import re
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
_ENDS, _HARD = 1, 3  # in the tables; letters are even (2 x code point), and what stands alone is odd (+ 1)
_TABLE_SIZE = 0x20000  # characters beyond (rare ideographs) separate; a text that holds one is put in one spelling first
_CLEAN, _UNREAD, _SUSPICIOUS = 0, 1, 2
_LENGTHS = (13, 8, 5, 3, 2, 1)  # marks a run: an n-gram is sought by its first 13 or, if it has fewer, by its first 8 ...
_FACTOR, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_LEAVES = np.array([pow(int(_FACTOR), length, 1 << 64) for length in _LENGTHS], np.uint64)


def normalise(text: str) -> str:
    """Lower-case words, numbers without thousands commas, and arithmetic signs, with one space between them."""
    return " ".join(word.replace(",", "") for word in _WORD.findall(_unified(text)))


def find_contaminated(texts: Texts, test_questions: Sequence[str], n: int = 13, share: float = 0.5) -> pd.DataFrame:
    """The findings of `QuestionIndex(test_questions, n, share)` in the texts: the form for a single batch."""
    return QuestionIndex(test_questions, n, share).find(texts)


class QuestionIndex:
    """An index of test questions; `find` compares batch after batch of texts with it.

    It holds every distinct n-gram of the questions (a shorter question is one by itself) -> the questions it is in, and
    hashes of its first marks for the filter. 9,000 questions of 55 words take 3 s to prepare and 150 MB.
    """

    def __init__(self, questions: Sequence[str], n: int = 13, share: float = 0.5) -> None:
        if n < 1 or not 0 < share <= 1:
            raise ValueError(f"n must be at least 1 and share in (0, 1], got n={n} and share={share}")
        self.share = share
        self.same: dict[tuple[str, ...], list[int]] = defaultdict(list)  # words -> all test indices with these words
        for number, question in enumerate(questions):
            if words := tuple(normalise(question).split()):
                self.same[words].append(number)
        self.questions = list(self.same)
        self.grams: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self.n_grams: list[int] = []
        for number, words in enumerate(self.questions):
            own = set(_windows(words, min(n, len(words))))
            self.n_grams.append(len(own))
            for gram in own:
                self.grams[gram].append(number)
        self.lengths = sorted({len(gram) for gram in self.grams})
        self._prepare_filter()

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
        array = text_array(texts)
        try:
            array.validate(full=True)
        except pa.ArrowInvalid as error:
            raise TraitError(
                f"A text is not valid UTF-8 ({error}). load_documents puts such records in quarantine."
            ) from None
        if self._matches_anything:
            return list(range(len(array)))
        unified, raw = _characters()
        state = self._filter(array, raw)
        unread = np.flatnonzero(state == _UNREAD)
        state[unread] = self._filter(text_array([_unified(array[row].as_py()) for row in unread.tolist()]), unified)
        return np.flatnonzero(state == _SUSPICIOUS).tolist()

    def _filter(self, array: pa.LargeStringArray, table: np.ndarray) -> np.ndarray:
        values, offsets = buffers(array)
        return _filter(values, offsets, table, self._lengths, self._bits, self._keys, _room(offsets))

    def _prepare_filter(self) -> None:
        values, offsets = buffers(text_array([" ".join(words) for words in self.grams]))
        keys, lengths = _first_runs(values, offsets, _characters()[0], _room(offsets))
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
        first: dict[int, int] = {}
        found: dict[int, set[tuple[str, ...]]] = defaultdict(set)
        for length in self.lengths:
            for at, gram in enumerate(_windows(tuple(words), length)):
                for number in self.grams.get(gram, ()):
                    question = self.questions[number]
                    found[number].add(gram)
                    first.setdefault(number, at)
                    if question[:length] == gram and tuple(words[at : at + len(question)]) == question:
                        exact.setdefault(number, at)
        for number, grams in found.items():
            overlap = 1.0 if number in exact else len(grams) / self.n_grams[number]
            if overlap >= self.share:
                question = self.questions[number]
                excerpt = _excerpt(words, exact.get(number, first[number]), len(question))
                for test_index in self.same[question]:
                    yield test_index, "exact" if number in exact else "ngram", overlap, excerpt


@functools.cache
def _characters() -> tuple[np.ndarray, np.ndarray]:
    """What each character is to the filter, uint32: in a text in one spelling, and in a text as it comes.

    The second is right where normalisation takes characters one by one, as it does unless a mark or a Hangul vowel or final
    joins the one before it; a text with such a character, or one that becomes several of which some count ("ﬁ", "½"), is
    put in one spelling first.
    """
    unified, raw = np.full((2, _TABLE_SIZE + 1), _ENDS, np.uint32)
    for code in range(_TABLE_SIZE):
        if re.match(r"[^\W\d_]", chr(code)):
            unified[code] = 2 * code
        elif re.match(r"[\d+*/=<>^%]", chr(code)):
            unified[code] = 2 * code + 1
    for code in range(_TABLE_SIZE):
        kinds = [unified[min(ord(character), _TABLE_SIZE)] for character in _unified(chr(code))]
        base = unicodedata.normalize("NFKD", chr(code))[0]
        joins = unicodedata.category(base)[0] == "M" or "\u1160" <= base <= "\u11ff"
        raw[code] = _HARD if joins or (len(kinds) > 1 and max(kinds) > _ENDS) else kinds[0]
    raw[-1] = _HARD
    return unified, raw


def _unified(text: str) -> str:
    """The text in one spelling: compatibility characters, dashes and quotes as ASCII where they can be, no case."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
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
    """For each text: whether no run of its marks is among the keys, or one is, or it must be put in one spelling first."""
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
