"""The seven ads tasks for the products of a user's catalogue.

All problems of a product share its short name (the entity) and what its buyer wants (the topic), so that a passage can join
its tasks. Real queries are used where the catalogue has them: judged exact, clicked, or with all their words in the title;
else a query is made of the title's own telling words. Golds are made of the product's words: nothing is promised that its
page does not say. Negatives are hard: the same kind under another name, or the same name on another kind, and a solution
says which word of the query an offer has or lacks only after its text was searched for it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from trait_kit.catalogue import Catalogue, Product
from trait_kit.product_texts import MAX_DESCRIPTION, MAX_TITLE, Text, specific, stem, telling, words
from trait_kit.task_drafts import MAX_CHARACTERS, MIN_CHARACTERS, Draft

RELEVANT, IRRELEVANT = "relevant", "irrelevant"
_LONG_PAGE = 120  # characters from which on a page's text speaks for itself


@dataclass
class Scene:
    """A product among the others."""

    catalogue: Catalogue
    product: Product

    def rng(self, task: str) -> Random:
        return Random(f"{self.product.id} {task}")

    @property
    def rivals(self) -> list[Product]:
        return self.catalogue.rivals(self.product)

    def query(self, rng: Random, offer: str = "") -> tuple[str, list[str]]:
        """A query for the product, and its telling words; one that is made has only words of `offer`, if given."""
        if self.product.queries:
            query = rng.choice(self.product.queries)
            return query, telling(query)
        return made_query(self.product, rng, offer)


def made_query(product: Product, rng: Random, offer: str = "") -> tuple[str, list[str]]:
    """Up to five words of the short name, as people type them: always what it is and its rarest word."""
    text = Text(offer)
    known = [word for word in specific(product.name) if not offer or text.has(word)]
    anchor = product.anchor if product.anchor in known else next(iter(known), "")
    wanted = {anchor, *(product.kind.split() or known[-1:])}
    others = [word for word in known if word not in wanted]
    room = max(0, min(len(others), 4 - len(wanted)))
    wanted.update(rng.sample(others, rng.randint(min(1, room), room)))
    brand = set(product.brand.split())
    found = [word for word in known if word in wanted or (brand & wanted and word in brand)]
    return " ".join(found), found


def page_of(product: Product) -> str:
    return f"{_stop(product.title)} {product.page}"


def draw(catalogue: Catalogue, task: str, split: str, seed: int, skipped: Counter[str]) -> Iterator[Draft]:
    """The problems of one task in one split, one a product, in an order that all seven tasks share."""
    skipped.update(catalogue.skipped)
    chosen = [product for product in catalogue.products.values() if product.split == split]
    Random(f"catalogue {split} {seed}").shuffle(chosen)
    for product in chosen:
        scene = Scene(catalogue, product)
        made = TASKS[task].make(scene, scene.rng(task))
        if isinstance(made, Draft):
            made = _fault(made, task, product) or made
        if isinstance(made, Draft):
            yield made
        else:
            skipped[made] += 1


def _draft(scene: Scene, task: str, question: str, answer: str, reasoning: str, wrong: Sequence[str]) -> Draft:
    product = scene.product
    if TASKS[task].kind == "text":  # a choice is wrong because it says something that the product's texts do not
        wrong = [choice for choice in wrong if not all(product.text.has(word) for word in telling(choice))]
    chosen = [answer, *dict.fromkeys(choice for choice in wrong if choice.lower() != answer.lower())][:4]
    scene.rng(f"{task} choices").shuffle(chosen)
    solution = f"{reasoning} The answer is {answer.rstrip('.')}."
    return Draft(product.id, question, answer, solution, chosen, product.name, scene.product.intent, product.split)


def _quoted(some: Sequence[str], most: int = 4, last: str = "and") -> str:
    found = [f"'{word}'" for word in some[:most]]
    return found[0] if len(found) == 1 else ", ".join(found[:-1]) + f" {last} {found[-1]}"


def _kept(product: Product) -> str:
    """What the ad title keeps, as far as it is known."""
    title, kind = product.ad_title, product.kind
    which = title[: -len(kind)].strip() if kind and title.lower().endswith(f" {kind}") else ""
    return f"which one it is, '{which}', and what it is, '{kind}'" if which else f"the name '{title}'"


def _stop(text: str) -> str:
    return text if text[-1] in ".!?" else f"{text}."


# ------------------------------------------------------------------------------------------------------- query rewriting

_WORDY = (
    "i am looking for {q}",
    "where can i buy {q} online",
    "do you have {q} in the shop",
    "can you show me {q} please",
    "i want to get {q} for myself",
    "what is the best {q} to buy",
    "looking for a {kind} it should be {rest}",
    "which {kind} do you have i want {rest}",
)


def _rewriting(scene: Scene, rng: Random) -> Draft | str:
    product = scene.product
    query, known = scene.query(rng)
    if not product.queries:
        kind = product.kind or known[-1]
        rest = " ".join(word for word in known if word not in kind.split())
        query = rng.choice(_WORDY if rest and product.kind else _WORDY[:-2]).format(q=query, kind=kind, rest=rest)
    title = Text(product.title)
    wanted = {stem(word) for word in known if title.has(word)} | {stem(word) for word in product.kind.split()}
    said = telling(product.title)
    forms = {stem(word): word for word in said if stem(word) in wanted}  # 'games' or 'game': as asked, if the title has it
    forms |= {stem(word): word for word in (*product.kind.split(), *known) if word in said}
    kept = [word for word in said if forms.get(stem(word)) == word][:6]
    answer = " ".join(kept)
    left = [word for word in dict.fromkeys(words(query)) if not title.has(word)]
    if len(kept) < 2 or answer == query.lower():
        return "the query has no other form in the title's words"
    asked = [word for word in kept if word in words(query)]
    added = [word for word in kept if word not in words(query)]
    steps = [f"The intent is {scene.product.intent}."]
    if asked:
        steps.append(f"In the query, {_quoted(asked, 6)} {'says' if len(asked) == 1 else 'say'} what is wanted.")
    if left:
        steps.append(f"{_quoted(left, 2)} {'is' if len(left) == 1 else 'are'} not in the words of the product's title.")
    if added:
        steps.append(f"The title adds {_quoted(added)}.")
    steps.append(f"The rewrite keeps the title's words in the title's order, so that it finds '{product.name}'.")
    question = f"Rewrite for the shop's search: {query}"
    swapped = [" ".join(rival.anchor if word == product.anchor else word for word in kept) for rival in scene.rivals]
    wrong = [*swapped[:2], *(made_query(rival, scene.rng(f"rewriting {rival.id}"))[0] for rival in scene.rivals)]
    return _draft(scene, "query_rewriting", question, answer, " ".join(steps), wrong)


# ------------------------------------------------------------------------------------------------------------- relevance


def _relevance(task: str, offer: str, shown: Callable[[Product], str | None]) -> Callable[[Scene, Random], Draft | str]:
    """Half of the offers are the product's own; the others lack a word of the query."""

    def make(scene: Scene, rng: Random) -> Draft | str:
        own = shown(scene.product)
        if own is None:
            return "no description of at most 90 characters"
        query, known = scene.query(rng, own)
        fits = _positive(scene, known, offer, own) if known else None
        verdict = _negative(scene, query, known, offer, shown) if fits is None or rng.random() < 0.5 else fits
        verdict = verdict or fits
        if verdict is None:
            return f"the {offer} neither has the query's words nor lacks them"
        answer, text, reason = verdict
        question = f"Is this {offer} relevant to the query? Query: {_stop(query)} {text}"
        return _draft(
            scene, task, question, answer, f"The intent is {scene.product.intent}. {reason}", [RELEVANT, IRRELEVANT]
        )

    return make


def _positive(scene: Scene, known: list[str], offer: str, own: str) -> tuple[str, str, str] | None:
    text = Text(own)
    has = [word for word in known if text.has(word)]
    if len(has) == len(known):
        every = "has" if len(known) == 1 else "has both of" if len(known) == 2 else "has all of"
        return RELEVANT, own, f"The {offer} {every} the query's words {_quoted(has, 6)}, so it offers what is asked for."
    if scene.product.queries and 2 * len(has) >= len(known) and has:
        lacks = [word for word in known if word not in has]
        told = f"does not repeat {_quoted(lacks, 2)}, but it has {_quoted(has)}"
        return RELEVANT, own, f"The {offer} {told}, so it offers what is asked for."
    return None


def _negative(
    scene: Scene, query: str, known: list[str], offer: str, shown: Callable[[Product], str | None]
) -> tuple[str, str, str] | None:
    """An offer that was judged irrelevant to the query, or the closest rival without one of its words."""
    judged = scene.catalogue.judged.get(query, {})
    refused = [scene.catalogue.products[name] for name, exact in judged.items() if exact is False]
    rivals = [rival for rival in scene.rivals if rival.id not in judged]
    candidates = [rival for rival in refused if rival.split == scene.product.split] or rivals
    for rival in candidates:
        text = shown(rival)
        lacks = [word for word in known if rival.text.lacks(word)]
        if text is None or not lacks or rival.name.lower() in scene.product.name.lower():
            continue
        own = Text(text)
        has = [word for word in known if own.has(word)]
        if not has and not refused:
            continue
        shared = f"shares {_quoted(has)} with the query but " if has else ""
        told = f"{shared}nowhere says {_quoted(lacks, 2, 'or')}"
        return IRRELEVANT, text, f"The {offer} for '{rival.ad_title}' {told}, so it offers something else."
    return None


def _shown_ad(product: Product) -> str | None:
    about = product.ad_description
    return f"Ad title: {_stop(product.ad_title)} Ad description: {about}" if about else None


def _shown_page(product: Product) -> str | None:
    return f"Landing page: {page_of(product)}"


# ------------------------------------------------------------------------------------------------------------ generation


def _title_generation(scene: Scene, rng: Random) -> Draft | str:
    product, answer = scene.product, scene.product.ad_title
    told = Text(product.page)  # a page without its title will do, if it has all words that are needed
    alone = len(product.page) > _LONG_PAGE and all(told.has(word) for word in words(answer))
    reasoning = (
        f"The page is about '{product.name}', so the intent is {product.intent}. The title has to say {_kept(product)}, "
        f"in the page's own words. It has {len(answer)} characters, and {MAX_TITLE} are allowed."
    )
    page = product.page if alone else page_of(product)
    question = f"Write an ad title of at most {MAX_TITLE} characters for this page: {page}"
    return _draft(scene, "title_generation", question, answer, reasoning, [rival.ad_title for rival in scene.rivals])


def _title_rewriting(scene: Scene, rng: Random) -> Draft | str:
    product, old, answer = scene.product, scene.product.title, scene.product.ad_title
    query, _ = scene.query(rng, answer)
    if len(old) <= MAX_TITLE:
        return "title is short enough already"
    left = [word for word in telling(old) if not Text(answer).has(word)]
    reasoning = (
        f"The intent is {product.intent}. The old title has {len(old)} characters, and {MAX_TITLE} are allowed. The new one "
        f"says {_kept(product)}, and leaves out {_quoted(left, 3) if left else 'the rest'}. It has {len(answer)} characters."
    )
    task = f"Rewrite this ad title in at most {MAX_TITLE} characters to fit the query."
    question = f"{task} Query: {_stop(query)} Title: {old}"
    return _draft(scene, "title_rewriting", question, answer, reasoning, [rival.ad_title for rival in scene.rivals])


def _description_generation(scene: Scene, rng: Random) -> Draft | str:
    product, answer = scene.product, scene.product.ad_description
    about = [word for word in telling(product.title) if answer and Text(answer).has(word)]
    if answer is None or not about:
        return "no description of at most 90 characters" if answer is None else "description has no word of the title"
    reasoning = (
        f"The intent is {product.intent}, so the description has to speak of {_quoted(about, 3)} and promise nothing that "
        f"the page does not say. The words chosen stand on the page: {len(answer)} of {MAX_DESCRIPTION} characters."
    )
    task = f"Write an ad description of at most {MAX_DESCRIPTION} characters."
    question = f"{task} Ad title: {_stop(product.ad_title)} Landing page: {page_of(product)}"
    wrong = [rival.ad_description for rival in scene.rivals if rival.ad_description]
    return _draft(scene, "description_generation", question, answer, reasoning, wrong)


def _ad_of(product: Product) -> str:
    return f"{product.ad_title} | {product.ad_description}"


def _ad_generation(scene: Scene, rng: Random) -> Draft | str:
    product, title, description = scene.product, scene.product.ad_title, scene.product.ad_description
    query, known = scene.query(rng, _ad_of(product))
    if description is None:
        return "no description of at most 90 characters"
    named = [word for word in known if Text(_ad_of(product)).has(word)]
    if not named:
        return "the ad has no word of the query"
    reasoning = (
        f"The query asks for {_quoted(known, 6)}, so the intent is {product.intent}. The ad takes up {_quoted(named)} in "
        f"the page's own words. The title has {len(title)} of {MAX_TITLE} characters, the description {len(description)} of "
        f"{MAX_DESCRIPTION}."
    )
    task = f"Write an ad as 'title | description' (at most {MAX_TITLE} and {MAX_DESCRIPTION} characters) for query and page."
    question = f"{task} Query: {_stop(query)} Landing page: {page_of(product)}"
    wrong = [_ad_of(rival) for rival in scene.rivals if rival.ad_description]
    return _draft(scene, "ad_generation", question, _ad_of(product), reasoning, wrong)


@dataclass(frozen=True)
class AdsTask:
    about: str
    kind: str
    make: Callable[[Scene, Random], Draft | str]


TASKS = {
    "query_rewriting": AdsTask("A shopper's query in the words of the catalogue's titles.", "text", _rewriting),
    "query_ad_relevance": AdsTask(
        "Is an ad's title and description relevant to a query? Hard negatives only.",
        "choice",
        _relevance("query_ad_relevance", "ad", _shown_ad),
    ),
    "query_landing_page_relevance": AdsTask(
        "Is a product page relevant to a query? Hard negatives only.",
        "choice",
        _relevance("query_landing_page_relevance", "landing page", _shown_page),
    ),
    "title_generation": AdsTask("An ad title of at most 30 characters for a product page.", "text", _title_generation),
    "title_rewriting": AdsTask("A marketplace title as an ad title of at most 30 characters.", "text", _title_rewriting),
    "description_generation": AdsTask(
        "An ad description of at most 90 characters for a product page.", "text", _description_generation
    ),
    "ad_generation": AdsTask("An ad's title and description for a query and a product page.", "text", _ad_generation),
}


def task_fields(name: str) -> dict[str, Any]:
    """What a task file on a catalogue need not write down; without a name, for all seven."""
    task = TASKS.get(name)
    limits = list(_LIMITS.get(name, ()))
    about = task.about if task else "The seven ads tasks for the products of a catalogue."
    return {
        "about": f"{about} Queries are real where the catalogue has them, else made of the titles' words.",
        "kind": task.kind if task else "text",
        "metrics": ["bits_per_byte", "choice_accuracy", "exact_match", *_marks(task, limits)],
        "limits": limits,
    }


def _marks(task: AdsTask | None, limits: list[int]) -> list[str]:
    if task is not None and task.kind == "choice":
        return ["auc", "f1"]
    within_limit = ["within_limit"] if limits else []
    return ["rouge_l", "chrf", *within_limit, "keyword_coverage", "attribute_coverage", "faithful"]


def _fault(draft: Draft, task: str, product: Product) -> str | None:
    """Why a problem must not be taught, or None: recounts lengths and looks for the gold's words in the product's texts."""
    if not MIN_CHARACTERS <= len(draft.solution) <= MAX_CHARACTERS:
        return "solution is too short or too long"
    if len({choice.lower() for choice in draft.choices}) != (2 if TASKS[task].kind == "choice" else 4):
        return "too few products to make wrong choices of"
    if len(re.findall(r"(?i)answer\s*(?:is|:)|[={}]|####", draft.question + draft.solution)) != 1:
        return "texts that would be mistaken for an answer or a sum"
    if task in _LIMITS:
        parts = draft.answer.split(" | ")
        if [len(part) <= limit for part, limit in zip(parts, _LIMITS[task], strict=False)] != [True] * len(_LIMITS[task]):
            return "too long for an ad"
    if task == "description_generation" and draft.answer.rstrip(".") not in draft.question:
        return "gold is not on the page"
    if TASKS[task].kind == "text" and not all(product.text.has(word) for word in words(draft.answer)):
        return "gold has a word that the product's texts do not have"
    return None


_LIMITS = {
    "title_generation": (MAX_TITLE,),
    "title_rewriting": (MAX_TITLE,),
    "description_generation": (MAX_DESCRIPTION,),
    "ad_generation": (MAX_TITLE, MAX_DESCRIPTION),
}
