"""Marks for one written ad: is it like the reference, does it keep the format, does it say what it should?

Exact match says little of free text, since a good ad has many wordings. So an ad is compared with the gold one (ROUGE-L,
chrF), held against the platform's limits, and searched for the query's words and for what the product is. Whether it
invents anything is a question for a reader.

Predictions come from language models: only the first 2,000 characters are looked at, and every pattern is bounded.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import yaml

from trait_kit.answers import first_turn

METRICS = ("rouge_l", "chrf", "within_limit", "keyword_coverage", "attribute_coverage")
MAX_CHARACTERS = 2_000  # of a prediction that are looked at
MAX_SOURCE = 20_000  # of a question: a landing page may be long

_EMPTY = set(yaml.safe_load(Path(__file__).with_name("ads.yaml").read_text(encoding="utf-8"))["empty"].split())
_ANNOUNCED = re.compile(r"\bthe answer is\b\s{0,3}:?\s{0,3}", re.IGNORECASE)
_LABEL = re.compile(r"^(?:new |ad |rewritten )?(?:ad|title|headline|description|query|answer)\s?:\s?(?=\S)", re.IGNORECASE)
_WRAPPING = " \t*_`'\"“”"
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]+")
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ud800-\udfff]")
_QUERY = re.compile(r"\bQuery:[ \t]{0,3}")
_NEXT_FIELD = re.compile(r"[.!?]?\s(?:[A-Z][a-z]{1,20})(?: [a-z]{1,20}){0,2}:\s|\n")


def marks(prediction: str, question: str, gold: str, entity: str | None, limits: Sequence[int]) -> dict[str, float]:
    """Values of METRICS for one item, each 0..1, higher is better; a mark that the item does not have is absent.

    `question` is the whole question; `limits` are the most characters of each part of 'a | b' (none: no `within_limit`).
    Which marks an item has depends on the item, never on the prediction.

    rouge_l             F1 of the longest common subsequence of Porter-stemmed words (Lin, 2004)
    chrf                chrF2: character 6-grams, recall weighing more (Popović, 2015)
    within_limit        1 if there are as many parts as limits, each of 1 to that many characters
    keyword_coverage    share of the query's telling words that the text has; where the question has no 'Query: ...', of the
                        gold text's
    attribute_coverage  share of the words that say what is advertised: its name and kind (the telling words of the entity),
                        and the properties that the gold text takes from the question
    """
    from rouge_score.rouge_scorer import RougeScorer  # brings nltk: two seconds
    from sacrebleu import sentence_chrf

    text, gold = written(prediction), _tidy(gold[:MAX_CHARACTERS])
    entity = entity[:400] if isinstance(entity, str) else ""
    said, of_gold, of_entity = _telling(text), _telling(gold), _telling(entity)
    source = _telling(question[:MAX_SOURCE]) | of_entity
    rouge = RougeScorer(["rougeL"], use_stemmer=True).score(_plain(gold), _plain(text))["rougeL"].fmeasure
    marked = {"rouge_l": float(rouge), "chrf": sentence_chrf(text, [gold]).score / 100}
    if limits:
        parts = [part.strip() for part in text.split("|")]
        kept = len(parts) == len(limits) and all(1 <= len(part) <= most for part, most in zip(parts, limits, strict=True))
        marked["within_limit"] = float(kept)
    keywords = _telling(query_of(question)) or of_gold
    for name, asked in (("keyword_coverage", keywords), ("attribute_coverage", of_entity | (of_gold & source))):
        if asked:
            marked[name] = len(asked & said) / len(asked)
    return marked


def written(prediction: str) -> str:
    """The text that a model wrote, on one line: what follows its last 'The answer is', or else its first line with text.

    It ends where the model makes up a next question. Markup around it, a label ('Title:') and one full stop at the end are
    no part of it, since 'The answer is X.' adds a stop whether X has one or not. '' where nothing was written.
    """
    text = first_turn(f"\n{prediction[:MAX_CHARACTERS]}")
    announced = list(_ANNOUNCED.finditer(text))
    text = text[announced[-1].end() :] if announced else text
    return _tidy(next((line for line in _readable(text).split("\n") if re.search(r"\w", line)), ""))


def query_of(question: str) -> str:
    """What stands behind 'Query:' up to the next field ('Title: ...', 'Landing page: ...'); '' where there is none."""
    before = _QUERY.search(question[:MAX_SOURCE])
    if not before:
        return ""
    rest = question[before.end() : MAX_SOURCE]
    end = _NEXT_FIELD.search(rest)
    return rest[: end.start()] if end else rest


def _telling(text: str) -> set[str]:
    """The words that tell one product from another, without case, accents and a plural's s."""
    words = set(re.findall(r"[^\W_]+", _plain(text).lower())) - _EMPTY
    return {word.removesuffix("s") if len(word) > 3 and not word.endswith("ss") else word for word in words}


def _readable(text: str) -> str:
    return _INVISIBLE.sub("", _CONTROL.sub(" ", unicodedata.normalize("NFC", text)))


def _plain(text: str) -> str:
    """Without accents, so that 'Zurich' is 'Zürich', and trade marks, and with one kind of apostrophe."""
    text = unicodedata.normalize("NFKD", re.sub("[™®©]", " ", text)).replace("’", "'")
    return "".join(mark for mark in text if not unicodedata.combining(mark))


def _tidy(text: str) -> str:
    parts = (part.strip(_WRAPPING) for part in " ".join(_readable(text).split()).strip(_WRAPPING).split("|"))
    return " | ".join(_LABEL.sub("", part, count=1) for part in parts).removesuffix(".").strip(_WRAPPING)
