"""Words of a product's or an ad's text, for the marks of written ads."""

from __future__ import annotations

import re

_FUNCTION = """
a an and are as at be but by can for from has have if in into is it its of on or over so than that the their they this these
to under up upon was were when whether which while will with without you your
"""
_EMPTY = """
any best buy can cheap do find get good great i im like looking me my need new no not online please pretty some want what
where who
"""
_FUNCTION_WORDS = frozenset(_FUNCTION.split())
_EMPTY_WORDS = frozenset(_EMPTY.split())  # words of queries and titles that do not tell one product from another
_WORD = re.compile(r"[^\W_]+(?:[-'./&][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<=[\w)\"']{3}[.!?])(?<!\b(?:Mrs|Inc|Ltd|Vol|Ver|etc)\.)\s+(?=[A-Z0-9\"])")
_JOINED, _NO_WORD = re.compile(r"[-'./&]"), re.compile(r"[\W_]+")


def words(text: str) -> list[str]:
    """Lower-case words as people type them: 'Pro-Line 3/4" Strap' -> pro-line, 3/4, strap."""
    return _WORD.findall(text.lower())


def telling(text: str) -> list[str]:
    """The words of a query or name that say what is wanted, each once."""
    return [word for word in dict.fromkeys(words(text)) if word not in _FUNCTION_WORDS and word not in _EMPTY_WORDS]


def stem(word: str) -> str:
    return word.removesuffix("s") if len(word) > 3 and not word.endswith("ss") else word


class Text:
    """A text that is asked for words: `has` needs the word itself (or its plural), `lacks` not even a part of one."""

    __slots__ = ("_squeezed", "_stems")

    def __init__(self, text: str):
        found = words(text)
        parts = [part for word in found if not word.isalnum() for part in _JOINED.split(word)]
        self._stems = {stem(word) for word in (*found, *parts)}
        self._squeezed = _squeeze(text)

    def has(self, word: str) -> bool:
        return stem(word) in self._stems

    def lacks(self, word: str) -> bool:
        return _squeeze(stem(word)) not in self._squeezed


def _squeeze(text: str) -> str:
    return _NO_WORD.sub("", text.lower())


def sentences(text: str) -> list[str]:
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]
