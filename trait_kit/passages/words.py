"""Words and numbers of a text: what problems are related by, and what the checks on passages compare."""

from __future__ import annotations

import re

from trait_kit.engine.numbers import numbers

_STOP_WORDS = """
about above after again also another answer because been before being between both called cannot come comes could does
each either every find first following from give gives given have hence here into itself just know like look make many
more most much must need needs number numbers only other over part particular problem problems question questions rest
same second several should show solution some step steps such take than that their them then there these they thing
things third this those three through thus together under using very want were what when where which while will with
without work would your final result simple task tasks
"""
_STOP = frozenset(_STOP_WORDS.split())


def content_words(text: str) -> set[str]:
    """Lower-case words of at least four letters that carry content; a plural 's' is dropped."""
    words = re.findall(r"[^\W\d_]{4,}", text.lower())
    return {word.removesuffix("s") if len(word) > 4 else word for word in words if word not in _STOP}


def marks_of(texts: list[str]) -> list[set[str]]:
    """For each text the words and numbers that none of the others has: what can only speak of this one."""
    bags = [content_words(text) | numbers(text) for text in texts]
    return [bag - set().union(*(other for other in bags if other is not bag)) for bag in bags]
