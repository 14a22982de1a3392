"""A user's product catalogue as the seven ads tasks; what is asked and answered is written down in catalogue.yaml.

Golds are the catalogue's own fields as they stand: a product's title, its description, its own page or that of another
product of its category. Queries are real where the catalogue has a column of them, else its titles and categories; so
without queries, relevance tells little, and a teacher may write better ones. A row that cannot be used is skipped and
counted by reason, because nobody proof-reads a catalogue; only a file without a single usable product is an error.

Products whose titles begin alike (four words, numbers aside) are one family and share a split, and an offer that is judged
or rewritten comes from the product's own split, so nothing of a test product is seen in training.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from trait_kit.engine.files import TraitError
from trait_kit.fields import FieldError, Template, render
from trait_kit.rows import Row, read_rows

ADS_TASKS: dict[str, Row] = yaml.safe_load(Path(__file__).with_name("catalogue.yaml").read_text(encoding="utf-8"))
SHARES = {"train": 70, "validation": 10, "test": 20}  # percent of the products
MAX_TITLE_CHARACTERS, MAX_TEXT_CHARACTERS = 300, 2_000  # of a title and a description; longer ones are no ad
_RIVALS = 3  # other products of the category whose texts are the wrong choices
_GONE = ("judgments", "queries", "events")


class CatalogueFiles(BaseModel):
    """The `catalogue` mapping of a task file: the products (beside the task file, or from here) and templates of columns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    products: str = Field(min_length=1)  # .jsonl, .json, .csv, .tsv (each also .gz) or .parquet
    id: Template
    title: Template
    description: Template
    category: Template | None = None
    query: Template | None = None  # a real query that the product answers; of a list, the first

    @model_validator(mode="before")
    @classmethod
    def _one_file(cls, raw: Any) -> Any:
        for name in _GONE if isinstance(raw, dict) else ():
            if name in raw:
                raise ValueError(f"'{name}' is gone: put each product's query into a column, and name it in 'query'")

        return raw


@lru_cache(maxsize=2)
def _products(files: CatalogueFiles, _content: str) -> tuple[dict[str, list[Row]], Counter[str]]:
    """(split -> its products; how many rows were skipped by reason)."""
    skipped: Counter[str] = Counter()
    found: dict[str, list[Row]] = defaultdict(list)
    seen: set[str] = set()
    first = ""
    for row in read_rows(Path(files.products), skipped):
        try:
            product = {name: _field(files, name, row) for name in ("id", "title", "description", "category", "query")}
            for name in ("id", "title"):
                key = f"{name} {product[name].lower()}"
                if key in seen:
                    raise FieldError(f"{name} occurs before")
                seen.add(key)
        except FieldError as error:
            reason, _, detail = str(error).partition(": ")
            skipped[reason] += 1
            first = first or detail
            continue
        product["family"] = " ".join(re.findall(r"[^\W\d]+", product["title"].lower())[:4])
        split = split_of(f"product {product['family']}", SHARES)
        if product["query"] and split_of(f"query {product['query'].lower()}", SHARES) != split:
            skipped["query belongs to another split than its product"] += 1  # the product stays, without it
            product["query"] = ""
        found[split].append(product)
    if not found:
        reasons = ", ".join(f"{count} rows: {reason}" for reason, count in skipped.most_common(3)) or "no rows"
        raise TraitError(f"{files.products} has no usable product ({reasons}). {first or 'Look at its columns.'}")
    return found, skipped


def _field(files: CatalogueFiles, name: str, row: Row) -> str:
    """One field of a product in one line; FieldError is 'reason' or 'reason: details'."""
    template = getattr(files, name)
    try:
        value = render(template, row) if template else ""
    except FieldError as error:
        raise FieldError(f"{name} is missing: {error}") from None
    if isinstance(value, list) and name in ("category", "query"):
        value = next(iter(value), "")
    if name in ("title", "description") and not isinstance(value, str | None):
        raise FieldError(f"{name} is not text")
    text = " ".join(str(value if value is not None else "").split())
    if name in ("id", "title", "description") and not re.search(r"\w", text):
        raise FieldError(f"{name} is missing")
    if len(text) > (most := MAX_TEXT_CHARACTERS if name == "description" else MAX_TITLE_CHARACTERS):
        raise FieldError(f"{name} is longer than {most:,} characters")
    return text


def catalogue_rows(
    files: CatalogueFiles, digest: str, task: str, split: str, seed: int, skipped: Counter[str]
) -> Iterator[Row]:
    """The products of a split as rows for one task's templates, in an order that all seven tasks share.

    `digest` is that of the products' file, which is read once for all tasks and splits.
    """
    products, lost = _products(files, digest)
    skipped.update(lost)
    chosen = sorted(products.get(split, []), key=lambda product: sha(f"{seed} {split} {product['id']}"))
    by_category: dict[str, list[Row]] = defaultdict(list)
    for product in sorted(chosen, key=lambda product: product["id"]):
        by_category[product["category"]].append(product)
    for product in chosen:
        rng = Random(f"{product['id']} {task}")
        pool = by_category[product["category"]] if len(by_category[product["category"]]) > _RIVALS else chosen
        drawn = rng.sample(pool, min(len(pool), 5 * _RIVALS))
        near = [other for other in drawn if all(other[name] != product[name] for name in ("family", "description"))][
            :_RIVALS
        ]
        if len(near) < _RIVALS:
            skipped["too few products to make wrong choices of"] += 1
            continue
        fits = rng.random() < 0.5
        shown, shuffled = product if fits else near[0], rng.sample([product, *near], 1 + _RIVALS)
        titles, descriptions = ([one[name] for one in shuffled] for name in ("title", "description"))
        ads = [f"{title} | {text}" for title, text in zip(titles, descriptions, strict=True)]
        offer = {"fits": fits, "shown_title": shown["title"], "shown_description": shown["description"]}
        choices = {"titles": titles, "descriptions": descriptions, "ads": ads, "labels": ["relevant", "irrelevant"]}
        yield {**product, **offer, **choices, "other_title": near[0]["title"]}


def sha(key: str) -> bytes:
    """32 bytes that decide an order or a split, the same in every process (unlike `hash`)."""
    return hashlib.sha256(key.encode()).digest()


def split_of(key: str, shares: dict[str, int]) -> str:
    """The split a key belongs to, the same for every seed; `shares` in any unit."""
    point = int.from_bytes(sha(key)[:8], "big") % sum(shares.values())
    return next(name for name, end in zip(shares, accumulate(shares.values()), strict=True) if point < end)
