"""A problem on its way to the problems table, and the rule that gives it its split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from random import Random

# The techniques of the math demo: the topics that problems of different tasks share.
EUCLID = "Euclidean algorithm"
PRIMES = "prime factorization"
INVERSE = "inverse operations"
GROUPS = "equal groups"
PARTS = "fractions and ratios"

MIN_CHARACTERS, MAX_CHARACTERS = 60, 500  # of a worked solution
SPLITS = ("train", "validation", "test")
_SHARES = {"train": 70, "validation": 10, "test": 20}  # percent of the generated questions


@dataclass(frozen=True)
class Draft:
    """A problem before it has an id. `key` decides its split: equal keys are the same problem in other words."""

    key: str
    question: str
    answer: str
    solution: str
    choices: list[str]
    entity: str | None
    topic: str
    split: str


def split_of(key: str, shares: dict[str, int] | None = None) -> str:
    """The split a key belongs to, the same in every process and for every seed (a digest, not `hash`)."""
    shares = shares or _SHARES
    point = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % sum(shares.values())
    for name, share in shares.items():
        if point < share:
            return name
        point -= share
    raise AssertionError(key)


def make_draft(key: str, question: str, answer: str, steps: str, wrong: list[str], topic: str, split: str = "") -> Draft:
    """Put the parts together; the four choices are in an order drawn from the key."""
    chosen = [answer]
    for choice in wrong:
        if choice not in chosen and len(chosen) < 4:
            chosen.append(choice)
    Random(f"choices {key}").shuffle(chosen)
    solution = f"{steps} The answer is {answer}."
    return Draft(key, question, answer, solution, chosen, None, topic, split or split_of(key))
