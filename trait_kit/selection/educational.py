"""Low, Mid and High educational value: the scale, the labels of foreign models on it, and weak labels by a rule.

The rule looks at the form of a text: does it explain, or only state? The paper filters by educational value with a model
that it does not describe; judgements by an LLM are the usual source of labels (`ratings`). The rule stands in where there
are none. Points:

    +1  at least 2 sentences and 40 words: something can be developed
    +1  at least 1 explanatory cue in 100 words, +2 from 3: reasons, examples, definitions, consequences, purposes
    -1  one sentence, or fewer than 25 words: a stub
    -2  list-like: more than 1 separator (comma, semicolon, bullet, bar, line break) or 1 number in 5 words
    -2  boilerplate of web pages (cookies, subscribe, all rights reserved, ...) or markup
    -2  fewer than 65% letters, or a third of the words in capitals
    -1  repetitive: fewer than 35% different words among the first 200

    Low: 0 points or fewer.  Mid: 1 or 2.  High: 3.

It looks at function words and shape, not at what the text is about, so that it adds to the domain classifier instead of
repeating it; the tests check that no topic is mostly Low or nearly all High, and that topics explain little of the model's
scores. English only: in another language almost nothing is High, and training says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from trait_kit.engine.files import TraitError

LABELS = ("Low", "Mid", "High")
POINTS = {label: float(value) for value, label in enumerate(LABELS)}
_PREFIX = "__label__"
# Label -> points on the scale 0..2, for every set of labels whose meaning is plain. Ratings 0-5 count in the bands that the
# kit's own ratings are trained in, so that min_educational means the same whichever model scores.
_SCALES: tuple[dict[str, int], ...] = (
    {"low": 0, "mid": 1, "high": 2},
    {"low": 0, "medium": 1, "high": 2},
    {"0": 0, "1": 0, "2": 1, "3": 1, "4": 2, "5": 2},
    {"low": 0, "high": 2},
    {"0": 0, "1": 2},
    {"no": 0, "yes": 2},
    {"false": 0, "true": 2},
    {"negative": 0, "positive": 2},
    {"bad": 0, "good": 2},
    {"lq": 0, "hq": 2},
    {"cc": 0, "hq": 2},  # Common Crawl against high quality
    {"not_educational": 0, "educational": 2},
    {"non_educational": 0, "educational": 2},
)

_CUES = re.compile(
    r"\b(?:because|therefore|thus|hence|consequently|since|so that|in order to|as a result|due to|leads? to|led to"
    r"|results? in|resulting in|causes?|caused by|depends? on|means?|meaning|for example|for instance|such as|e\.g|i\.e"
    r"|that is|in other words|namely"
    r"|(?:is|are|be) (?:defined|described|called|used|considered|understood|thought|seen|determined|measured)"
    r"|refers? to|consists? of|known as|based on|if|when|whereas|although|however|in contrast|unlike|rather than|allows?"
    r"|enables?|helps?|requires?|explains?|shows?|usually|typically|generally|often|process|method|how|why|which)\b",
    re.IGNORECASE,
)
_BOILERPLATE = re.compile(
    r"cookie|subscribe|sign up|log ?in\b|click here|all rights reserved|privacy policy|terms of (?:use|service)|add to cart"
    r"|read more|free shipping|buy now|follow us|share this|©|https?://|</?[a-z]+[ >/]|\{\{|\}\}|function ?\(",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_NUMBER = re.compile(r"\b\d[\d.,:]*")
_SEPARATOR = re.compile(r"[,;|•·\n\t]")
_SENTENCE_END = re.compile(r"[.!?](?=\s+[\"'“(]?[A-Z0-9]|\s*$)")


def label_points(labels: Sequence[str]) -> np.ndarray:
    """float32 [n_labels]: each label's points, 0..2, so that probabilities @ points is a text's educational value.

    For High, Mid and Low that is 2 P(High) + P(Mid). Case and fastText's prefix do not matter. TraitError where the
    labels' meaning would be a guess.
    """
    names = [label.removeprefix(_PREFIX).lower().replace("-", "_") for label in labels]
    for scale in _SCALES:
        if sorted(names) == sorted(scale):
            return np.array([scale[name] for name in names], np.float32)
    shown = ", ".join(repr(label) for label in labels[:12]) + (", ..." if len(labels) > 12 else "")
    raise TraitError(
        f"What the {len(labels)} labels {shown} say of educational value is not plain. Use a model with the labels "
        f"{'; or '.join(', '.join(scale) for scale in _SCALES[:5])} (in any case)."
    )


def rating_label(rating: int) -> str:
    """Low for a rating of 0 or 1, Mid for 2 or 3, High for 4 or 5."""
    return LABELS[rating // 2]


def points(text: str) -> int:
    """The rule's points for one text; see the module's table."""
    words = _WORD.findall(text)
    if not words:
        return -3
    count = len(words)
    sentences = len(_SENTENCE_END.findall(text.strip())) or 1
    cues = 100 * len(_CUES.findall(text)) / max(count, 25)
    visible = sum(not character.isspace() for character in text)
    first = [word.lower() for word in words[:200]]
    total = 0
    total += sentences >= 2 and count >= 40
    total += (cues >= 1) + (cues >= 3)
    total -= sentences == 1 or count < 25
    total -= 2 * (len(_SEPARATOR.findall(text.strip())) > count / 5 or len(_NUMBER.findall(text)) > count / 5)
    total -= 2 * bool(_BOILERPLATE.search(text))
    shouted = sum(word.isupper() and len(word) > 1 for word in words)
    total -= 2 * (sum(map(len, words)) < 0.65 * visible or shouted > count / 3)
    total -= len(first) >= 50 and len(set(first)) < 0.35 * len(first)
    return total


def educational_weak_labels(texts: Iterable[str]) -> list[str]:
    """Low, Mid or High for each text."""
    return ["High" if score >= 3 else "Mid" if score >= 1 else "Low" for score in map(points, texts)]
