"""Test questions inside training texts.

*exact*: the whole question stands in the text. *ngram*: half of its word n-grams do (13 words is the usual length, GPT-3,
arXiv 2005.14165, appendix C), so that one with an altered opening or end is found, or a short one with a piece put in.
Words are normalised: case, punctuation, line breaks, markup, invisible characters and words broken at a line's end hide no
match, but signs of arithmetic are words: "3x + 2" is not "3x - 2". In scripts without blanks every character is a word.
"""

import difflib
import html
import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from trait_kit.engine.files import read_yaml
from trait_kit.engine.ngrams import UNSPACED, Texts, text_array

COLUMNS = {"text_index": "int64", "test_index": "int64", "kind": "str", "overlap": "float64", "excerpt": "str"}
_EXCERPT_WORDS = 40
_SHARE = 0.5  # of a question's n-grams from which on it is found
_LEAST_WORDS, _MOST_PUT_IN = 10, 12  # of a question that is found with a sentence put into it, and of that
_SAME = read_yaml(Path(__file__).with_name("questions.yaml"))
_UNSEEN = dict.fromkeys(n for n in range(0xE0080) if unicodedata.category(chr(n)) == "Cf")  # e.g. zero-width
_SIGNS = _UNSEEN | str.maketrans(_SAME["signs"])
_BROKEN = re.compile(_SAME["broken"])
_MARKED = re.compile(_SAME["marked"], re.MULTILINE)
_MARKUP = re.compile("|".join(_SAME["markup"]), re.IGNORECASE | re.MULTILINE)
_ASCII_WORD = re.compile(_SAME["word"].replace("L", "[a-z]"))
_UNSPACED = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED)  # each of their characters is a word
_WORD = re.compile(f"[{_UNSPACED}]|" + _SAME["word"].replace("L", rf"[^\W\d_{_UNSPACED}]"))


class QuestionIndex:
    """Every n-gram of test questions (a shorter question is one by itself) -> the questions it is in.

    Texts are looked at only where they have a pair of words that an n-gram begins with.
    """

    def __init__(self, questions: Sequence[str], n: int = 13) -> None:
        self.questions = list(map(words_of, questions))
        self.grams: dict[tuple[str, ...], list[int]] = defaultdict(list)
        # half a question -> three words of the other half -> the questions
        self.halves: dict[tuple[str, ...], dict] = defaultdict(lambda: defaultdict(list))
        self.n_grams: list[int] = []
        for number, words in enumerate(self.questions):
            length = min(n, len(words))
            own = {words[at : at + length] for at in range(len(words) - length + 1)} - {()}
            self.n_grams.append(len(own))
            for gram in own:
                self.grams[gram].append(number)
            if _LEAST_WORDS <= len(words) < 2 * n:  # a sentence in the middle leaves none of its n-grams
                half = len(words) // 2
                self.halves[words[:half]][words[-3:]].append(number)
                self.halves[words[-half:]][words[:3]].append(number)
        self.lengths: dict[tuple[str, str], set[int]] = defaultdict(set)  # first two words -> lengths of n-grams
        for gram in (*self.grams, *self.halves):
            self.lengths[(*gram, "")[:2]].add(len(gram))

    def find(self, texts: Texts) -> pd.DataFrame:
        """Pairs of a text and a test question it holds: text_index, test_index, kind (exact|ngram), overlap (0..1), excerpt.

        ngram: half of the question's distinct n-grams of `n` words stand in the text, or one of 10 to 2n words but for one
        piece put in. A pair is there once, as exact if it is; the excerpt is the first match; sorted by text and question.
        """
        rows = [
            (text_index, *finding)
            for text_index, text in enumerate(text_array(texts) if self.questions else ())
            for finding in sorted(self._findings(words_of(text.as_py())))
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)

    def _findings(self, words: tuple[str, ...]) -> Iterator[tuple[int, str, float, str]]:
        """(test_index, kind, overlap, excerpt) of one text."""
        exact: dict[int, int] = {}  # question -> where its first match starts
        first: dict[int, int] = {}
        parted: dict[int, int] = {}
        found: dict[int, set[tuple[str, ...]]] = defaultdict(set)
        for at, length in self._places(words):
            gram = words[at : at + length]
            for number in self.grams.get(gram, ()):
                question = self.questions[number]
                found[number].add(gram)
                first[number] = min(at, first.get(number, at))
                if question[:length] == gram and words[at : at + len(question)] == question:
                    exact[number] = min(at, exact.get(number, at))
            window = words[max(at - len(gram) * 3, 0) : at + len(gram) * 4] if gram in self.halves else ()
            for others in zip(window, window[1:], window[2:], strict=False):
                for number in self.halves[gram].get(others, ()):
                    if number not in parted and _parted(self.questions[number], window):
                        parted[number] = at
        for number in found | parted:
            overlap = 1.0 if number in exact or number in parted else len(found[number]) / self.n_grams[number]
            if overlap >= _SHARE:
                question, at = self.questions[number], exact.get(number, first.get(number, parted.get(number)))
                excerpt = " ".join(words[at : at + min(len(question), _EXCERPT_WORDS)])
                excerpt += " ..." if len(question) > _EXCERPT_WORDS else ""
                yield number, "exact" if number in exact else "ngram", overlap, excerpt

    def _places(self, words: tuple[str, ...]) -> Iterator[tuple[int, int]]:
        for begins in (itertools.pairwise(words), zip(words, itertools.repeat(""))):
            for at, begin in enumerate(begins):
                for length in self.lengths.get(begin, ()):
                    yield at, length


def _parted(question: tuple[str, ...], window: tuple[str, ...]) -> bool:
    if not set(window).issuperset(question):
        return False
    blocks = difflib.SequenceMatcher(None, question, window, autojunk=False).get_matching_blocks()[:-1]
    sizes, span = [block.size for block in blocks], blocks[-1].b + blocks[-1].size - blocks[0].b if blocks else 0
    return len(blocks) <= 2 and min(sizes, default=0) >= 3 and sum(sizes) == len(question) >= span - _MOST_PUT_IN


def words_of(text: str) -> tuple[str, ...]:
    """Lower-case words, numbers without thousands commas, and arithmetic signs, without markup."""
    text = _BROKEN.sub("", html.unescape(html.unescape(text)))
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    text = text.casefold()
    text = _MARKUP.sub(" ", text) if _MARKED.search(text) else text
    return tuple(word.replace(",", "") for word in (_ASCII_WORD if text.isascii() else _WORD).findall(text))
