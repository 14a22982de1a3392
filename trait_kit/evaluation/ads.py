"""Marks for one written ad: is it like the reference, does it keep the format, does it say what it should and no more?

Exact match says little of free text, since a good ad has many wordings. So an ad is compared with the gold one (ROUGE-L,
chrF), held against the platform's limits, and searched for the query's words, for what the product is, and for anything
that its source does not say: the marks by which an advertiser would send it back. The last three need no reference text but
are rules for English copy, not understanding: read them beside the gold ads' own values (`marks(gold, ...)`).

Predictions come from language models: only the first 2,000 characters are looked at, and every pattern is bounded.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import yaml

from trait_kit.evaluation.answers import ENDS
from trait_kit.passages.material import numbers
from trait_kit.product_texts import Text, sentences, stem, telling, words

METRICS = ("rouge_l", "chrf", "within_limit", "keyword_coverage", "attribute_coverage", "faithful")
MAX_CHARACTERS = 2_000  # of a prediction that are looked at
MAX_SOURCE = 20_000  # of a question: a landing page may be long

_ANNOUNCED = re.compile(r"\bthe answer is\b\s{0,3}:?\s{0,3}", re.IGNORECASE)
_LABEL = re.compile(r"^(?:new |ad |rewritten )?(?:ad|title|headline|description|query|answer)\s?:\s?(?=\S)", re.IGNORECASE)
_WRAPPING = " \t*_`'\"“”"
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]+")
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ud800-\udfff]")
_QUERY = re.compile(r"\bQuery:[ \t]{0,3}")
_NEXT_FIELD = re.compile(r"[.!?]?\s(?:[A-Z][a-z]{1,20})(?: [a-z]{1,20}){0,2}:\s|\n")
_FORMAT = re.compile(r"\b\d{1,4}(?: (?:and|or) \d{1,4})? characters\b")  # of the instruction; not what the page says
_AMOUNT = r"(?<![\d.,])(\d[\d.,]{0,20})"
_PERCENT = re.compile(rf"{_AMOUNT}\s?(?:%|per\s?cent\b)", re.IGNORECASE)
_PRICE = re.compile(
    rf"(?:[$€£¥₹]|\b(?:usd|eur|gbp))\s?{_AMOUNT}|{_AMOUNT}\s?(?:[$€£¥₹]|(?:usd|eur|gbp|dollars?|euros?)\b)", re.IGNORECASE
)
_SPELT = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SPELT_NUMBERS = {name: str(place) for place, name in enumerate(_SPELT, start=2)} | {"twenty": "20", "dozen": "12"}
_DATE = re.compile(
    r"\b(?:(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)days?|January|February|April|June|July|August|September"
    r"|October|November|December|Christmas|Easter|Black Friday)\b"
)
_CLAUSE = re.compile(r"[:;|•]\s|\s[-–—]\s")  # a new start within a sentence
_NAME = re.compile(r"(?<![^\W_])[^\W\d_][^\W_]*")


def marks(prediction: str, question: str, gold: str, entity: str | None, limits: Sequence[int]) -> dict[str, float]:
    """Values of METRICS for one item, each 0..1, higher is better; a mark that the item does not have is absent.

    `question` is the whole question and, with `entity`'s name, the only source of facts; `limits` are the most characters of
    each part of 'a | b' (none: no `within_limit`). Which marks an item has depends on the item, never on the prediction.

    rouge_l             F1 of the longest common subsequence of Porter-stemmed words (Lin, 2004)
    chrf                chrF2: character 6-grams, recall weighing more (Popović, 2015)
    within_limit        1 if there are as many parts as limits, each of 1 to that many characters
    keyword_coverage    share of the query's telling words that the text has; where the question has no 'Query: ...', of the
                        gold text's
    attribute_coverage  share of the words that say what is advertised: its name and kind (the telling words of the entity),
                        and the properties that the gold text takes from the source
    faithful            1 if there is a text and nothing in it is `invented`
    """
    text, gold = written(prediction), _tidy(gold[:MAX_CHARACTERS])
    entity = entity[:400] if isinstance(entity, str) else ""
    source = f"{_FORMAT.sub(' ', question[:MAX_SOURCE])}\n{entity}"
    given, found, plain_gold = Text(_plain(source)), Text(_plain(text)), _plain(gold)
    keywords = telling(_plain(query_of(question))) or telling(plain_gold)
    attributes = dict.fromkeys([*telling(_plain(entity)), *(word for word in telling(plain_gold) if given.has(word))])
    marked = {"rouge_l": _rouge_l(plain_gold, _plain(text)), "chrf": _chrf(gold, text)}
    if limits:
        parts = [part.strip() for part in text.split("|")]
        kept = len(parts) == len(limits) and all(1 <= len(part) <= most for part, most in zip(parts, limits, strict=True))
        marked["within_limit"] = float(kept)
    for name, asked in (("keyword_coverage", keywords), ("attribute_coverage", attributes)):
        if asked:
            marked[name] = sum(map(found.has, asked)) / len(asked)
    marked["faithful"] = float(bool(text) and next(invented(text, source), None) is None)
    return marked


def written(prediction: str) -> str:
    """The text that a model wrote, on one line: what follows its last 'The answer is', or else its first line with text.

    It ends where the model makes up a next question. Markup around it, a label ('Title:') and one full stop at the end are
    no part of it, since 'The answer is X.' adds a stop whether X has one or not. '' where nothing was written.
    """
    text = f"\n{prediction[:MAX_CHARACTERS]}"
    for mark in ENDS:
        text = text.partition(mark)[0]
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


def invented(text: str, source: str) -> Iterator[str]:
    """What a text says and its source does not, as 'kind: words'.

    Numbers (in digits or spelt), prices, percentages, weekdays, months and holidays; claims of ads_words.yaml; and names:
    words with a capital. Where most words have one (a title), the ordinary words of ads_words.yaml and forms of the source's
    words are no names; a sentence's first word tells nothing. A false name in small letters is not found, and a rare but
    ordinary word in a title counts as a name.
    """
    text, source = _plain(text), _plain(source)
    for kind, read in (("number", _numbers), ("price", _prices), ("percentage", _percentages)):
        yield from (f"{kind}: {amount}" for amount in sorted(read(text) - read(source)))
    given = Text(source)
    yield from (f"date: {date}" for date in _DATE.findall(text) if not all(map(given.has, words(date))))
    said, known = _run_of_words(text), _run_of_words(source)
    made = {wording for claim in _claims() if not any(wording in known for wording in claim) for wording in claim}
    yield from (f"claim: {wording.strip()}" for wording in sorted(made) if wording in said)
    yield from (f"name: {name}" for name in _unknown_names(text, source, given))


# ---- what was written


def _readable(text: str) -> str:
    return _INVISIBLE.sub("", _CONTROL.sub(" ", unicodedata.normalize("NFC", text)))


def _plain(text: str) -> str:
    """Without accents, so that 'Zurich' is 'Zürich', and trade marks, and with one kind of apostrophe."""
    text = unicodedata.normalize("NFKD", re.sub("[™®©]", " ", text)).replace("’", "'")
    return "".join(mark for mark in text if not unicodedata.combining(mark))


def _tidy(text: str) -> str:
    parts = (part.strip(_WRAPPING) for part in " ".join(_readable(text).split()).strip(_WRAPPING).split("|"))
    return " | ".join(_LABEL.sub("", part, count=1) for part in parts).removesuffix(".").strip(_WRAPPING)


# ---- against the gold text


@lru_cache(maxsize=1)
def _tokenizer():
    from rouge_score.tokenizers import DefaultTokenizer  # brings nltk: two seconds

    return DefaultTokenizer(use_stemmer=True)


@lru_cache(maxsize=1)
def _scorer():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_tokenizer())


def _rouge_l(gold: str, text: str) -> float:
    return float(_scorer().score(gold, text)["rougeL"].fmeasure)


def _chrf(gold: str, text: str) -> float:
    from sacrebleu import sentence_chrf

    return sentence_chrf(text, [gold]).score / 100


# ---- against the source


def _numbers(text: str) -> set[str]:
    return numbers(text) | {_SPELT_NUMBERS[word] for word in re.findall(r"[a-z]+", text.lower()) if word in _SPELT_NUMBERS}


def _prices(text: str) -> set[str]:
    return {amount for before, after in _PRICE.findall(text) for amount in numbers(before or after)}


def _percentages(text: str) -> set[str]:
    return {amount for printed in _PERCENT.findall(text) for amount in numbers(printed)}


@lru_cache(maxsize=1)
def _vocabulary() -> dict[str, list]:
    return yaml.safe_load(Path(__file__).with_name("ads_words.yaml").read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _claims() -> list[list[str]]:
    return [[_run_of_words(wording) for wording in claim] for claim in _vocabulary()["claims"]]


@lru_cache(maxsize=1)
def _ordinary() -> frozenset[str]:
    claimed = (word for claim in _vocabulary()["claims"] for wording in claim for word in words(wording.replace("-", " ")))
    return frozenset(map(_root, [*_vocabulary()["ordinary"].split(), *claimed, *_SPELT_NUMBERS]))


def _run_of_words(text: str) -> str:
    return f" {' '.join(map(stem, words(text.replace('#', 'number '))))} "


def _unknown_names(text: str, source: str, given: Text) -> list[str]:
    names = [name for name in dict.fromkeys(_names(text)) if not given.has(name.lower())]
    names = [name for name in names if _root(name.lower()) not in _ordinary()]
    forms = {form for word in words(source) for form in (word, *re.split(r"[-'./&]", word))} if names else set()
    roots = set(map(_root, forms))
    return [name for name in names if _root(name.lower()) not in roots and not _grown(name.lower(), forms)]


def _names(text: str) -> Iterator[str]:
    """Words with a capital that may be names: of a title every word, elsewhere all but the first of a sentence or clause."""
    for sentence in sentences(text):
        for clause in _CLAUSE.split(sentence):
            parts = _NAME.findall(clause)
            long = [part for part in parts[1:] if len(part) > 3]
            is_title = 2 * sum(part[0].isupper() for part in long) > len(long)
            for part in parts if is_title else parts[1:]:
                if part[0].isupper() and len(part) > 1 and telling(part):
                    yield part


def _grown(name: str, forms: set[str]) -> bool:
    """Whether it is a source's word with another ending: 'Photograph' of 'photography', 'Japanese' of 'Japan'."""
    for form in forms:
        short, long = sorted((name, form), key=len)
        if len(short) > 4 and len(long) - len(short) <= 4 and long.startswith(short):
            return True
    return False


@lru_cache(maxsize=20_000)
def _root(word: str) -> str:
    return "".join(_tokenizer().tokenize(word)) if word.isascii() and len(word) < 40 else word
