"""The ads demo's problems: seven tasks of travel advertising around places. The ads are synthetic, and say nothing true
about any company: a generator of the kit writes queries, ad copy and landing pages from a small vocabulary of intents
(ads_intents.yaml) and from the places' own encyclopedia articles.

All problems of one place share one intent, so that a passage can join its tasks (entity-centred domains, paper section
3.2: the enlightenment is that query rewriting, relevance and ad writing turn on the same intent). Relevance has hard
negatives only: the right place with another intent, or the right intent in another place of the same region and kind.
Titles have at most 30 characters, descriptions at most 90, counted in the reasoning and recounted before use.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import yaml

from trait_kit.places import Place, find_places
from trait_kit.task_drafts import MAX_CHARACTERS, MIN_CHARACTERS, Draft, split_of

MAX_TITLE, MAX_DESCRIPTION = 30, 90  # characters
RELEVANT, IRRELEVANT = "relevant", "irrelevant"


@dataclass(frozen=True)
class Intent:
    """One thing a traveller can want; see ads_intents.yaml for what the fields mean."""

    intent: str
    family: str
    kinds: list[str]
    phrase: str
    need: str
    queries: list[tuple[str, list[str]]]
    titles: list[str]
    descriptions: list[str]
    page: str


@dataclass(frozen=True)
class Scene:
    """What the seven problems of one place share."""

    place: Place
    intent: Intent
    other_place: Place  # same kind, same region where there is one
    other_intent: Intent  # fits the place, of another family
    rng_key: str

    def rng(self, task: str) -> Random:
        return Random(f"{self.rng_key} {task}")


@lru_cache(maxsize=1)
def intents() -> tuple[Intent, ...]:
    raw = yaml.safe_load(Path(__file__).with_name("ads_intents.yaml").read_text(encoding="utf-8"))
    return tuple(Intent(**item) for item in raw)


@lru_cache(maxsize=1)
def scenes() -> tuple[Scene, ...]:
    """One scene a place, the same in every run: a place's intent and its rivals follow from its name."""
    places = find_places()
    found = []
    for place in places:
        rng = Random(f"scene {place.name}")
        fitting = [intent for intent in intents() if place.kind in intent.kinds]
        if re.search(r"island|archipelag", place.brief):  # no railways to sell there
            fitting = [intent for intent in fitting if intent.family != "transport"]
        intent = rng.choice(fitting)
        others = [other for other in fitting if other.family != intent.family]
        near = [rival for rival in places if rival.kind == place.kind and not _overlap(place, rival)]
        same = [rival for rival in near if rival.region == place.region]
        if others and near:
            found.append(Scene(place, intent, rng.choice(same or near), rng.choice(others), place.name))
    return tuple(found)


def draw(task: str, split: str, seed: int, skipped: Counter[str]) -> Iterator[Draft]:
    """The problems of one ads task in one split, one a place, in an order that all seven tasks share.

    The split is the place's, so no place of the test was seen in training.
    """
    chosen = [scene for scene in scenes() if split_of(f"place {scene.place.name}") == split]
    Random(f"ads {split} {seed}").shuffle(chosen)
    for scene in chosen:
        draft = TASKS[task](scene, scene.rng(task))
        reason = "no title or description fits its limit" if draft is None else _fault(draft)
        if reason:
            skipped[reason] += 1
        else:
            yield draft


def _overlap(a: Place, b: Place) -> bool:
    return a.name in b.name or b.name in a.name or a.name in b.fact or b.name in a.fact


def _fill(template: str, place: Place) -> str:
    return template.format(place=place.name, the=place.the, at=place.at)


def _title(intent: Intent, place: Place, start: int) -> str | None:
    """The first title from `start` on that keeps the limit."""
    turned = intent.titles[start:] + intent.titles[:start]
    return next((title for text in turned if len(title := _fill(text, place)) <= MAX_TITLE), None)


def _description(intent: Intent, place: Place, start: int) -> str | None:
    turned = intent.descriptions[start:] + intent.descriptions[:start]
    return next((text for item in turned if len(text := _fill(item, place)) <= MAX_DESCRIPTION), None)


def _query(intent: Intent, place: Place, rng: Random) -> tuple[str, str]:
    """A query as a traveller types it (lower case, no care), and its telling words as quoted in the reasoning."""
    text, cues = rng.choice(intent.queries)
    query = _fill(text, place).lower()
    return query, " and ".join(f"'{cue}'" for cue in cues)


def _shown(intent: Intent, cues: str) -> str:
    """'kids' shows the intent: family holidays, that is a trip that works for parents and children together."""
    return f"{cues} {'show' if ' and ' in cues else 'shows'} the intent: {intent.intent}, that is {intent.need}"


def _page(intent: Intent, place: Place, rng: Random) -> str:
    offer = _fill(intent.page, place)
    return f"{offer} {place.fact}" if rng.random() < 0.5 else f"{place.fact} {offer}"


def _draft(scene: Scene, task: str, question: str, answer: str, reasoning: str, wrong: list[str | None]) -> Draft:
    chosen = [answer, *dict.fromkeys(choice for choice in wrong if choice and choice != answer)][:4]
    scene.rng(f"{task} choices").shuffle(chosen)
    solution = f"{reasoning} The answer is {answer.rstrip('.')}."
    key = f"place {scene.place.name}"
    return Draft(key, question, answer, solution, chosen, scene.place.name, scene.intent.intent, split_of(key))


def _know(place: Place) -> str:
    name = place.the[0].upper() + place.the[1:]
    return f"{name} {'are' if place.fact.startswith(name + ' are ') else 'is'} {place.brief}."


def _rewriting(scene: Scene, rng: Random) -> Draft | None:
    place, intent = scene.place, scene.intent
    query, cues = _query(intent, place, rng)
    answer = _fill(intent.phrase, place)
    reasoning = (
        f"{_know(place)} The user wants to go there, and {_shown(intent, cues)}. "
        "The rewrite keeps the place and says the intent in the words that advertisers use."
    )
    wrong = [
        _fill(scene.other_intent.phrase, place),
        _fill(intent.phrase, scene.other_place),
        _fill(scene.other_intent.phrase, scene.other_place),
    ]
    question = f"Rewrite this search query so that it matches travel ads: {query}"
    return _draft(scene, "query_rewriting", question, answer, reasoning, wrong)


def _judged(scene: Scene, rng: Random) -> tuple[str, Place, Intent]:
    """Half of the offers fit; the others fail in the place or in the intent, in equal parts."""
    kind = rng.choice(["fits", "fits", "place", "intent"])
    place = scene.other_place if kind == "place" else scene.place
    return kind, place, scene.other_intent if kind == "intent" else scene.intent


def _verdict(scene: Scene, kind: str, cues: str, offer: str) -> tuple[str, str]:
    place, intent = scene.place, scene.intent
    wants = f"The query names {place.the}, and {_shown(intent, cues)}."
    if kind == "fits":
        return RELEVANT, f"{wants} The {offer} is about the same place and serves the same intent."
    if kind == "place":
        rival = scene.other_place
        shared = f"also {place.in_region}" if rival.region == place.region else f"{rival.in_region}"
        if rival.region == place.region and place.kind == "country":
            shared = f"another country {place.in_region}"
        verdict = f"The {offer} serves this intent, but for {rival.the}, which is {shared}: the wrong place."
        return IRRELEVANT, f"{wants} {verdict}"
    other = f"{scene.other_intent.intent}, that is {scene.other_intent.need}"
    return IRRELEVANT, f"{wants} The {offer} is about the right place, but it serves another intent: {other}."


def _ad_relevance(scene: Scene, rng: Random) -> Draft | None:
    query, cues = _query(scene.intent, scene.place, rng)
    kind, place, intent = _judged(scene, rng)
    title, description = _title(intent, place, rng.randrange(3)), _description(intent, place, rng.randrange(3))
    if title is None or description is None:
        return None
    answer, reasoning = _verdict(scene, kind, cues, "ad")
    question = f"Is this ad relevant to the query? Query: {query}. Ad title: {title}. Ad description: {description}"
    return _draft(scene, "query_ad_relevance", question, answer, reasoning, [RELEVANT, IRRELEVANT])


def _page_relevance(scene: Scene, rng: Random) -> Draft | None:
    query, cues = _query(scene.intent, scene.place, rng)
    kind, place, intent = _judged(scene, rng)
    answer, reasoning = _verdict(scene, kind, cues, "landing page")
    question = f"Is this landing page relevant to the query? Query: {query}. Landing page: {_page(intent, place, rng)}"
    return _draft(scene, "query_landing_page_relevance", question, answer, reasoning, [RELEVANT, IRRELEVANT])


def _title_choices(scene: Scene, start: int) -> list[str | None]:
    """Another intent, another place, and a title that is vague or too long."""
    place = scene.place
    return [
        _title(scene.other_intent, place, start),
        _title(scene.intent, scene.other_place, start),
        f"Book {_fill(scene.intent.phrase, place)} with us today",
        "Great Trips, Great Prices",
    ]


def _title_generation(scene: Scene, rng: Random) -> Draft | None:
    place, intent = scene.place, scene.intent
    start = rng.randrange(3)
    answer = _title(intent, place, start)
    if answer is None:
        return None
    reasoning = (
        f"The page offers {_fill(intent.phrase, place)}, so the intent is {intent.intent}: {intent.need}. The title has to "
        f"name the place and the intent in at most {MAX_TITLE} characters. '{answer}' has {len(answer)} characters."
    )
    question = f"Write an ad title of at most {MAX_TITLE} characters for this landing page: {_page(intent, place, rng)}"
    return _draft(scene, "title_generation", question, answer, reasoning, _title_choices(scene, start))


def _title_rewriting(scene: Scene, rng: Random) -> Draft | None:
    place, intent = scene.place, scene.intent
    start = rng.randrange(3)
    answer = _title(intent, place, start)
    query, cues = _query(intent, place, rng)
    weak, fault = rng.choice(
        [
            ("Click Here For Great Deals!!!", "names neither the place nor the intent"),
            (f"Visit {place.name}", "names the place but not the intent"),
            ("The Trip You Have Dreamed Of", "names neither the place nor the intent"),
            (_fill(intent.phrase, place).upper() + "!", "shouts and is not written as a title"),
        ]
    )
    if answer is None:
        return None
    reasoning = (
        f"The old title {fault}. In the query, {_shown(intent, cues)}. The new title names {place.the} and this intent. "
        f"'{answer}' has {len(answer)} characters, and {MAX_TITLE} are allowed."
    )
    question = f"Rewrite this ad title in at most {MAX_TITLE} characters to fit the query. Query: {query}. Title: {weak}"
    return _draft(scene, "title_rewriting", question, answer, reasoning, [*_title_choices(scene, start)[:3], weak])


def _description_choices(scene: Scene, start: int) -> list[str | None]:
    return [
        _description(scene.other_intent, scene.place, start),
        _description(scene.intent, scene.other_place, start),
        "We have the best trips at the best prices. Click here to find out more.",
    ]


def _description_generation(scene: Scene, rng: Random) -> Draft | None:
    place, intent = scene.place, scene.intent
    start = rng.randrange(3)
    answer, title = _description(intent, place, start), _title(intent, place, rng.randrange(3))
    query, cues = _query(intent, place, rng)
    if answer is None or title is None:
        return None
    reasoning = (
        f"The words {cues} in the query and the title '{title}' share one intent: {intent.intent}, that is {intent.need}. "
        f"The description says what is offered {place.at} and ends with the next step. It has {len(answer)} characters, and "
        f"{MAX_DESCRIPTION} are allowed."
    )
    question = f"Write an ad description of at most {MAX_DESCRIPTION} characters. Query: {query}. Ad title: {title}"
    return _draft(scene, "description_generation", question, answer, reasoning, _description_choices(scene, start))


def _ad_generation(scene: Scene, rng: Random) -> Draft | None:
    place, intent = scene.place, scene.intent
    start, second = rng.randrange(3), rng.randrange(3)

    def ad(about: Intent, where: Place) -> str | None:
        title, description = _title(about, where, start), _description(about, where, second)
        return f"{title} | {description}" if title and description else None

    answer = ad(intent, place)
    if answer is None:
        return None
    title, _, description = answer.partition(" | ")
    query, cues = _query(intent, place, rng)
    reasoning = (
        f"The query names {place.the}, and {_shown(intent, cues)}. The title names both ({len(title)} of {MAX_TITLE} "
        f"characters). The description says what is offered and what to do next ({len(description)} of {MAX_DESCRIPTION} "
        "characters)."
    )
    question = (
        f"Write an ad as 'title | description' (at most {MAX_TITLE} and {MAX_DESCRIPTION} characters) for this query and "
        f"landing page. Query: {query}. Landing page: {_page(intent, place, rng)}"
    )
    wrong = [ad(scene.other_intent, place), ad(intent, scene.other_place), ad(scene.other_intent, scene.other_place)]
    return _draft(scene, "ad_generation", question, answer, reasoning, wrong)


TASKS: dict[str, Callable[[Scene, Random], Draft | None]] = {
    "query_rewriting": _rewriting,
    "query_ad_relevance": _ad_relevance,
    "query_landing_page_relevance": _page_relevance,
    "title_generation": _title_generation,
    "title_rewriting": _title_rewriting,
    "description_generation": _description_generation,
    "ad_generation": _ad_generation,
}


def _fault(draft: Draft) -> str | None:
    """Why a problem must not be taught, or None: recounts every printed length and compares the answers."""
    if not draft.solution.endswith(f" The answer is {draft.answer.rstrip('.')}."):
        return "solution does not end in its answer"
    if not MIN_CHARACTERS <= len(draft.solution) <= MAX_CHARACTERS:
        return "solution is too short or too long"
    wanted = 2 if draft.answer in (RELEVANT, IRRELEVANT) else 4
    if len(set(draft.choices)) != wanted or draft.answer not in draft.choices:
        return "too few different choices"
    parts = draft.answer.split(" | ")
    lengths = [int(count) for count in re.findall(r"(?:has |\()(\d+) (?:of \d+ )?characters", draft.solution)]
    if lengths and lengths != [len(part) for part in parts]:
        return "a printed length is wrong"
    if "{" in draft.question + draft.solution:
        return "a template was not filled"
    return None
