"""A user's product catalogue as the seven ads tasks; what is asked and answered is written down in catalogue.yaml.

Golds are the catalogue's own fields as they stand. Queries are real where it has a column of them, else its titles and
categories; so without queries, relevance tells little, and a teacher may write better ones. A row that cannot be used is
skipped and counted, because nobody proof-reads a catalogue. Products whose titles begin alike (four words, numbers aside)
are one family and share a split, and an offer that is judged or rewritten comes from the product's own split, so nothing of
a test product is seen in training.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from random import Random

import yaml
from pydantic import BaseModel, ConfigDict, Field

from trait_kit.answers import readable
from trait_kit.engine.files import TraitError, content
from trait_kit.fields import FieldError, Row, Template, fill, one_line, read_rows, usable

ADS_TASKS: dict[str, Row] = yaml.safe_load(Path(__file__).with_name("catalogue.yaml").read_text(encoding="utf-8"))
SHARES = {"train": 70, "validation": 10, "test": 20}  # percent of the products
_MOST_CHARACTERS = defaultdict(lambda: 300, description=2_000)  # of a field; longer ones are no ad
_RIVALS = 3  # other products of the category whose texts are the wrong choices


class CatalogueFiles(BaseModel):
    """The `catalogue` mapping of a task file: the products (beside the task file, or from here) and templates of columns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    products: str = Field(min_length=1)  # .jsonl, .json, .csv, .tsv (each also .gz) or .parquet
    id: Template
    title: Template
    description: Template
    category: Template | None = None
    query: Template | None = None  # a real query that the product answers


@lru_cache(maxsize=2)
def _products(files: CatalogueFiles, path: Path, _content: str) -> tuple[dict[str, list[Row]], Counter[str]]:
    """(split -> its products; how many rows were skipped by reason). Read once for all tasks and splits."""
    read = partial(_product, files)
    skipped: Counter[str] = Counter()
    found: dict[str, list[Row]] = defaultdict(list)
    for product in once(usable(read_rows(path), read, path, skipped), "title", skipped):
        split = split_of(f"product {product['family']}", SHARES)
        if product["query"] and split_of(f"query {product['query'].lower()}", SHARES) != split:
            skipped["query belongs to another split than its product"] += 1  # the product stays, without it
            product["query"] = ""
        found[split].append(product)
    if not found:
        list(usable(read_rows(path), read, path))  # stops at the first row and says what is wrong with it
        raise TraitError(f"{path} has no rows. Name the file of the products.")
    return found, skipped


def _product(files: CatalogueFiles, row: Row) -> Row:
    """A product's fields in one line each, '' where the catalogue has none, its ad and its family."""
    product = fill(files.model_dump(exclude={"products"}), row)
    for name, text in product.items():
        if name in ("id", "title", "description") and not readable(text or "", "text"):
            raise FieldError(f"{name} is missing: {text!r}")
        if text and len(text) > _MOST_CHARACTERS[name]:
            raise FieldError(f"{name} is longer than {_MOST_CHARACTERS[name]:,} characters")
        product[name] = text or ""
    product["ad"] = f"{product['title']} | {product['description']}"
    product["family"] = " ".join(re.findall(r"[^\W\d]+", product["title"].lower())[:4])
    return product


def catalogue_rows(
    files: CatalogueFiles, path: Path, task: str, split: str, seed: int, skipped: Counter[str]
) -> Iterator[Row]:
    """The products of a split of the file `path`, as rows for one task's templates, in an order that all seven share."""
    products, lost = _products(files, path, content(path))
    skipped.update(lost)
    chosen = sorted(products.get(split, []), key=lambda product: sha(f"{seed} {split} {product['id']}"))
    by_category: dict[str, list[Row]] = defaultdict(list)
    for product in sorted(chosen, key=lambda product: product["id"]):
        by_category[product["category"]].append(product)
    for product in chosen:
        rng = Random(f"{product['id']} {task}")
        pool = by_category[product["category"]]
        pool = pool if len(pool) > _RIVALS else chosen
        drawn = rng.sample(pool, min(len(pool), 5 * _RIVALS))
        near = [other for other in drawn if all(other[name] != product[name] for name in ("family", "description"))]
        if len(near) < _RIVALS:
            skipped["too few products to make wrong choices of"] += 1
            continue
        fits = rng.random() < 0.5
        yield {
            **product,
            "fits": fits,
            "shown": product if fits else near[0],
            "other": near[0],
            "offers": rng.sample([product, *near[:_RIVALS]], 1 + _RIVALS),
        }


def once(rows: Iterable[Row], name: str, skipped: Counter[str]) -> Iterator[Row]:
    """Each question, or title, once: two golds for one question could not both be right."""
    seen: set[str] = set()
    for row in rows:
        if (key := plain(row[name])) in seen:
            skipped[f"{name} occurs before"] += 1
        else:
            seen.add(key)
            yield row


def plain(question: str) -> str:
    """A question as it is compared: lower case, single blanks (signs are kept: they matter in mathematics)."""
    return one_line(question.lower())


def sha(key: str) -> bytes:
    """32 bytes that decide an order or a split, the same in every process (unlike `hash`)."""
    return hashlib.sha256(key.encode()).digest()


def split_of(key: str, shares: dict[str, int]) -> str:
    """The split a key belongs to, the same for every seed; `shares` in any unit."""
    point = int.from_bytes(sha(key)[:8], "big") % sum(shares.values())
    return next(name for name, end in zip(shares, accumulate(shares.values()), strict=True) if point < end)
