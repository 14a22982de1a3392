"""A user's product catalogue: files of products and, where there are any, of judged, clicked or plain queries.

Columns are named by templates (trait_kit.fields); queries are read as ESCI (query, product_id, esci_label: E, S, C, I)
and WANDS (query.csv and label.csv: Exact, Partial, Irrelevant) write them. What lies between fitting and not (S, C, Partial)
is taught as neither. A row that cannot be used is skipped and counted by reason, because nobody proof-reads a catalogue;
only a file without a single usable product is an error.

Products whose titles are nearly the same (four fifths of their words, numbers aside) are one family and share a split, and a
real query belongs to one split as well, so nothing of a test product or its query is seen in training.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from trait_kit.engine.files import TraitError
from trait_kit.fields import FieldError, check, render
from trait_kit.product_texts import (
    Text,
    Vocabulary,
    ad_description,
    ad_title,
    clean,
    short_names,
    shown_title,
    specific,
    stem,
    telling,
    words,
)
from trait_kit.task_drafts import SPLITS, split_of
from trait_kit.task_rows import read_rows

MAX_TITLE_CHARACTERS, MAX_TEXT_CHARACTERS = 500, 50_000  # of a product's title and description; longer ones are no copy
_COMPARED, _RIVALS = 60, 20  # products that are compared with one, and those kept as most like it
_SAME_TITLE = 0.8  # Jaccard similarity of the words of two titles from which on they are one family
_MOST_MATCHES = 5  # products with all words of a query that nobody judged; one with more asks for no product of them
_BETWEEN = ("s", "c", "substitute", "complement", "partial")
_LABELS = {"e": True, "exact": True, "i": False, "irrelevant": False, **dict.fromkeys(_BETWEEN)}
_CLICKS = ("click", "add_to_cart", "purchase", "buy", "order")


class CatalogueFiles(BaseModel):
    """The `catalogue` mapping of a task file: paths (beside the task file, or from here) and templates over the columns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    products: str = Field(min_length=1)  # .jsonl, .json, .csv, .tsv (each also .gz) or .parquet
    id: str
    title: str
    description: str
    category: str | None = None
    judgments: str | None = None  # columns product_id, esci_label or label, and query (or query_id, with `queries`)
    queries: str | None = None  # columns query and, for judgments by number, query_id
    events: str | None = None  # columns query, action (click, add_to_cart, ...), product_id or title

    @field_validator("id", "title", "description", "category")
    @classmethod
    def _known_extractors(cls, template: str | None) -> str | None:
        if template is not None:
            check(template)
        return template

    def paths(self) -> dict[str, str]:
        """The files by field."""
        named = {field: getattr(self, field) for field in ("products", "judgments", "queries", "events")}
        return {field: name for field, name in named.items() if name}


@dataclass(eq=False)
class Product:
    """One product with what its texts say in few words; `queries` are real ones that share their words with it."""

    id: str
    title: str
    page: str  # sentences of its description
    category: str  # lower case, '' where there is none
    name: str
    kind: str  # 'guitar strap', or '' where unclear
    brand: str  # the first two words of its name, where they open many titles; else ''
    ad_title: str
    ad_description: str | None
    text: Text  # all of it
    title_words: frozenset[str]
    anchor: str  # the word of its name that the fewest titles have
    split: str = ""
    queries: list[str] = field(default_factory=list)

    @property
    def intent(self) -> str:
        """What its buyer wants: 'buying a guitar strap'."""
        if not self.kind:
            return f"a purchase in the category {self.category}" if self.category else f"buying {self.name}"
        many = self.kind.endswith("s") and not self.kind.endswith("ss")
        return f"buying {'' if many else 'an ' if self.kind[0] in 'aeiou' else 'a '}{self.kind}"


class Catalogue:
    """All usable products, who resembles whom, and what was skipped."""

    def __init__(self, files: CatalogueFiles):
        self.skipped: Counter[str] = Counter()
        self._rivals: dict[str, list[Product]] = {}
        texts = self._read(files)
        self.vocabulary = Vocabulary([(title, description) for title, description, _ in texts.values()])
        self.products = self._products(texts)
        splits = _splits({name: texts[name][0] for name in self.products})
        # who could be mistaken for whom: (split, kind | word | category, which one) -> products
        self.pools: dict[tuple[str, str, str], list[Product]] = defaultdict(list)
        for product in self.products.values():
            product.split = splits[product.id]
            for group in self.groups(product):
                self.pools[group].append(product)
        # query -> product id -> exact (True), irrelevant (False), between (None)
        self.judged: dict[str, dict[str, bool | None]] = defaultdict(dict)
        self._read_queries(files)

    def groups(self, product: Product) -> list[tuple[str, str, str]]:
        """The pools a product is in, closest first: its kind, the words of its name from the rarest on, its category."""
        rare = self.vocabulary.titles_with
        named = [("word", word) for word in sorted({stem(w) for w in telling(product.name)}, key=lambda w: (rare[w], w))]
        pools = [("kind", product.kind), *named, ("category", product.category), ("all", "products")]
        return [(product.split, group, name) for group, name in pools if name]

    def rivals(self, product: Product) -> list[Product]:
        """Products of the same split that could be mistaken for this one, the closest first."""
        if product.id not in self._rivals:
            found: dict[str, Product] = {}
            for group in self.groups(product):
                pool = self.pools[group]
                some = Random(f"rivals {product.id} {group}").sample(pool, min(_COMPARED // 2, len(pool)))
                found |= {other.id: other for other in some}
                if len(found) > _COMPARED:
                    break
            found.pop(product.id, None)
            closest = sorted(found.values(), key=lambda other: -len(product.title_words & other.title_words))
            self._rivals[product.id] = closest[:_RIVALS]
        return self._rivals[product.id]

    def _read(self, files: CatalogueFiles) -> dict[str, tuple[str, str, str]]:
        """id -> (title, description, category), cleaned; each id and each title once."""
        found: dict[str, tuple[str, str, str]] = {}
        titles: set[str] = set()
        first = ""
        for row in read_rows(files.products, self.skipped):
            try:
                name, title, description, category = _read_product(files, row)
                if name in found:
                    raise FieldError("product id occurs before")
                if title.lower() in titles:
                    raise FieldError("title occurs before")
            except FieldError as error:
                reason, _, detail = str(error).partition(": ")
                self.skipped[reason] += 1
                first = first or detail
                continue
            titles.add(title.lower())
            found[name] = title, description, category
        if not found:
            reasons = ", ".join(f"{count} rows: {reason}" for reason, count in self.skipped.most_common(3)) or "no rows"
            raise TraitError(f"{files.products} has no usable product ({reasons}). {first or 'Look at its columns.'}")
        return dict(sorted(found.items()))  # nothing depends on the file's order

    def _products(self, texts: Mapping[str, tuple[str, str, str]]) -> dict[str, Product]:
        names = {key: short_names(title, text, self.vocabulary) for key, (title, text, _) in texts.items()}
        uses = Counter(name.lower() for found in names.values() for name in {name for name, _ in found})
        products, taken = {}, set()
        for key, (title, description, category) in texts.items():
            name, kind = next((pair for pair in names[key] if uses[pair[0].lower()] == 1), (names[key] or [("", "")])[-1])
            short = ad_title(name, kind, self.vocabulary) if name else None
            if short is None or name.lower() in taken:
                self.skipped["short name is that of another product" if short else "title gives no short ad title"] += 1
                continue
            taken.add(name.lower())
            about, page = ad_description(description, title, self.vocabulary)
            brand = " ".join(words(name)[:2])
            products[key] = Product(
                key,
                shown_title(title),
                " ".join(page),
                category,
                name,
                kind,
                brand if brand in self.vocabulary.openings else "",
                short,
                about,
                Text(f"{title} {description}"),
                frozenset(stem(word) for word in telling(title)),
                self.vocabulary.rarest(specific(name)),
            )
        return products

    def _read_queries(self, files: CatalogueFiles) -> None:
        by_number: dict[str, str] = {}
        plain: list[str] = []
        if files.queries:
            for row in read_rows(files.queries, self.skipped):
                query = clean(str(_column(files.queries, row, "query") or ""))
                by_number[str(row.get("query_id"))] = query
                plain.append(query)
        if files.judgments:
            for row in read_rows(files.judgments, self.skipped):
                query = row["query"] if "query" in row else by_number.get(str(_column(files.judgments, row, "query_id")))
                label = str(_column(files.judgments, row, "esci_label", "label")).strip().lower()
                product = str(_column(files.judgments, row, "product_id"))
                if not isinstance(query, str) or not query.strip():
                    self.skipped["judgment without its query"] += 1
                elif product not in self.products:
                    self.skipped["judgment of a product that is not there"] += 1
                elif label not in _LABELS:
                    self.skipped["judgment with an unknown label (known: E, S, C, I; Exact, Partial, Irrelevant)"] += 1
                else:
                    self.judged[clean(query)][product] = _LABELS[label]
        pairs = [(query, name) for query, found in self.judged.items() for name, exact in found.items() if exact]
        pairs += self._clicked(files.events) if files.events else []
        pairs += self._matched([query for query in plain if query not in self.judged])
        for query, name in sorted(set(pairs)):
            product = self.products[name]
            known = telling(query)
            shared = sum(product.text.has(word) for word in known)
            if split_of(f"query {query.lower()}") != product.split:
                self.skipped["query is of another split than its product"] += 1
            elif not known or len(query) > 120 or shared < max(min(2, len(known)), len(known) / 2):
                self.skipped["query shares too few words with its product"] += 1
            else:
                product.queries.append(query)

    def _clicked(self, path: str) -> Iterator[tuple[str, str]]:
        """(query, product id) of clicks; clicks are noisy, so the query's words must be the product's as well."""
        titles = {product.title.lower(): product.id for product in self.products.values()}
        for row in read_rows(path, self.skipped):
            query, action = _column(path, row, "query"), _column(path, row, "action")
            name = str(row.get("product_id"))
            name = name if name in self.products else titles.get(shown_title(clean(str(row.get("title")))).lower(), "")
            if isinstance(query, str) and str(action).lower() in _CLICKS and name and clean(query) not in self.judged:
                yield clean(query), name

    def _matched(self, queries: list[str]) -> Iterator[tuple[str, str]]:
        """(query, product id) for real queries without judgments: all their words, two or more, stand in the title, and one
        says what the product is ('flip flops' is no query for a soft toy that wears some).
        """
        having: dict[str, list[str]] = defaultdict(list)
        for product in self.products.values():
            for word in {stem(word) for word in words(product.title)}:
                having[word].append(product.id)
        for query in dict.fromkeys(queries):
            known = [stem(word) for word in telling(query)]
            if len(known) > 1:
                named = set.intersection(*(set(having.get(word, ())) for word in known))
                found = {name for name in named if stem(self.products[name].kind.rpartition(" ")[2]) in known}
                if len(found) <= _MOST_MATCHES:
                    yield from ((query, name) for name in sorted(found))


@lru_cache(maxsize=2)
def open_catalogue(files: CatalogueFiles, stamps: tuple[int, ...]) -> Catalogue:
    """Read once for all seven tasks and all splits; `stamps` are the files' times, so that a changed file is read again."""
    return Catalogue(files)


def _column(path: str, row: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if name in row:
            return row[name]
    raise TraitError(f"{path}: there is no column '{' or '.join(names)}' (columns: {', '.join(map(str, row))[:200]}).")


def _read_product(files: CatalogueFiles, row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """(id, title, description, category); FieldError is 'reason' or 'reason: details'."""
    values: dict[str, Any] = {}
    for name in ("id", "title", "description", "category"):
        template = getattr(files, name)
        try:
            values[name] = render(template, row) if template else ""
        except FieldError as error:
            raise FieldError(f"{name} is missing: {error}") from None
    if isinstance(values["id"], bool) or not isinstance(values["id"], str | int) or not str(values["id"]).strip():
        raise FieldError("id is missing")
    for name, most in (("title", MAX_TITLE_CHARACTERS), ("description", MAX_TEXT_CHARACTERS)):
        value = values[name]
        if value is None or value == "":
            raise FieldError(f"{name} is missing")
        if not isinstance(value, str):
            raise FieldError(f"{name} is not text")
        if len(value) > most:
            raise FieldError(f"{name} is longer than {most:,} characters")
        values[name] = clean(value)
        if "\ufffd" in value or len(words(values[name])) < 2:
            raise FieldError(f"{name} has no readable words")
    category = values["category"]
    category = category[-1] if isinstance(category, list) and category else category
    levels = [part for part in re.split(r"[/>|]", clean(str(category or "").replace("_", " "))) if part.strip()]
    return str(values["id"]).strip(), values["title"], values["description"], levels[-1].strip().lower() if levels else ""


def _splits(titles: Mapping[str, str]) -> dict[str, str]:
    """The split of each product: that of its family, the titles connected by near-equality, named by its first title.

    Two sets of n and m words with Jaccard similarity t or more share a word among the n - ceil(t n) + 1 rarest of the one
    and the same of the other (the prefix filter of similarity joins), so only those are compared.
    """
    bags = {key: frozenset(word for word in words(title) if word.isalpha()) for key, title in titles.items()}
    count = Counter(word for bag in bags.values() for word in bag)
    parent = {key: key for key in titles}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    seen: dict[str, list[str]] = defaultdict(list)
    same: dict[frozenset[str], str] = {}
    for key, bag in bags.items():
        if bag in same:  # also where no word is left: nothing tells such titles apart
            parent[root(key)] = root(same[bag])
            continue
        same[bag] = key
        rarest = sorted(bag, key=lambda word: (count[word], word))
        for word in rarest[: len(bag) + 1 - -int(-_SAME_TITLE * len(bag) // 1)]:
            for other in seen[word]:
                if len(bag & bags[other]) >= _SAME_TITLE * len(bag | bags[other]):
                    parent[root(key)] = root(other)
            seen[word].append(key)
    families: dict[str, list[str]] = defaultdict(list)
    for key in titles:
        families[root(key)].append(key)
    found = {}
    for members in families.values():
        first = min(titles[key].lower() for key in members)
        split = split_of(f"product {hashlib.sha256(first.encode()).hexdigest()}")
        found.update(dict.fromkeys(members, split))
    assert set(found.values()) <= set(SPLITS)
    return found
