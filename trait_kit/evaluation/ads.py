"""Marks for one written ad: is it like the reference, and does it keep the format? Exact match says little of ads."""

import re
import unicodedata
from collections.abc import Sequence

from trait_kit.judging.answers import ANNOUNCEMENTS, first_turn

METRICS = ("rouge_l", "chrf", "within_limit")
MAX_CHARACTERS = 2_000  # of a prediction that are looked at: a language model wrote it

_ANNOUNCED = re.compile(rf"(?:{'|'.join(ANNOUNCEMENTS.values())})(?![a-z])\s{{0,3}}:?\s{{0,3}}", re.IGNORECASE)
_LABEL = re.compile(
    r"^(?:new |ad |rewritten )?(?:ad|title|headline|description|query|answer)\s?:\s?(?=\S)", re.IGNORECASE
)
_WRAPPING = " \t*_`'\"“”"


def marks(prediction: str, gold: str, limits: Sequence[int]) -> dict[str, float]:
    """Values of METRICS for one item, each 0..1; `limits` are the most characters of each part of 'a | b', if there are any.

    rouge_l       F1 of the longest common subsequence of Porter-stemmed words (Lin, 2004)
    chrf          chrF2: character 6-grams, recall weighing more (Popović, 2015)
    within_limit  1 if there are as many parts as limits, each of 1 to that many characters
    """
    from rouge_score.rouge_scorer import RougeScorer  # brings nltk: two seconds
    from sacrebleu import sentence_chrf

    text, gold = written(prediction), _tidy(gold[:MAX_CHARACTERS])
    rouge = RougeScorer(["rougeL"], use_stemmer=True).score(gold, text)["rougeL"].fmeasure
    marked = {"rouge_l": float(rouge), "chrf": sentence_chrf(text, [gold]).score / 100}
    if limits:
        parts = [part.strip() for part in text.split("|")]
        kept = len(parts) == len(limits) and all(
            1 <= len(part) <= most for part, most in zip(parts, limits, strict=True)
        )
        marked["within_limit"] = float(kept)
    return marked


def written(prediction: str) -> str:
    """What follows the last 'The answer is' of a model's first turn, or else its first line with text; '' for nothing.

    Markup, a label ('Title:') and one full stop at the end are no part of it: 'The answer is X.' always adds a stop.
    """
    text = first_turn(f"\n{prediction[:MAX_CHARACTERS]}")
    return _tidy(next((line for line in _ANNOUNCED.split(text)[-1].split("\n") if re.search(r"\w", line)), ""))


def _tidy(text: str) -> str:
    letters = unicodedata.normalize("NFC", text)  # accents in one way, a blank for what no reader sees
    seen = "".join(letter if letter.isprintable() else " " for letter in letters)
    parts = (part.strip(_WRAPPING) for part in " ".join(seen.split()).strip(_WRAPPING).split("|"))
    return " | ".join(_LABEL.sub("", part, count=1) for part in parts).removesuffix(".").strip(_WRAPPING)
