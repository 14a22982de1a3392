"""Places among the Geography articles: the entities that the travel ads are about.

A place is recognised by the head of its article's first sentence ("Kyoto is a *city* in ..."); its kind decides what can
be advertised there, and the country or part of the world named first is its region, so that another place of the same
kind and region makes a hard negative.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote

KINDS = {
    "country": r"countr(?:y|ies)|(?:island|archipelagic) country|island nation|sovereign state|nation",
    "city": r"cit(?:y|ies)|capital|municipality|metropolis|town|megacity|seaport",
    "park": r"national park",
    "falls": r"waterfalls?",
    "island": r"islands?|archipelago|atoll",
    "mountain": r"mountains?|mountain (?:range|chain|system)|range|peak|massif|s?t?r?a?t?o?volcano|hills",
    "lake": r"lakes?|reservoir",
    "river": r"rivers?|tributary|canal",
    "sea": r"sea",
    "desert": r"desert",
    "region": r"province|state|region|oblast|territory|prefecture|department|community|peninsula|county|republic|district",
}
_KIND = re.compile("|".join(rf"(?P<{kind}>\b(?:{words})\b)" for kind, words in KINDS.items()), re.I)
_WORLD_NAMES = (  # parts of the world, for places outside any one country
    "Central America, South America, North America, Caribbean, Central Asia, Southeast Asia, South Asia, East Asia, "
    "West Asia, Western Asia, Middle East, Siberia, West Africa, East Africa, Central Africa, North Africa, "
    "Southern Africa, Western Europe, Eastern Europe, Southeast Europe, Southern Europe, Northern Europe, Central "
    "Europe, Western Africa, Eastern Africa, Melanesia, Polynesia, Micronesia, Oceania, Antarctica, Pacific Ocean, "
    "Indian Ocean, Atlantic Ocean, Arctic Ocean, Mediterranean Sea, Asia, Africa, Europe"
)
_WORLD = _WORLD_NAMES.split(", ")
# Countries that have no article of their own under Geography; without them a city would get the wrong region.
_MORE_COUNTRIES_NAMES = (  # the larger ones; doubles do no harm
    "Argentina, Australia, Austria, Bangladesh, Belgium, Brazil, Canada, Chile, China, Colombia, Cuba, Denmark, "
    "Egypt, England, Ethiopia, Finland, France, Germany, Greece, Hungary, India, Indonesia, Iran, Iraq, Italy, "
    "Japan, Kenya, Malaysia, Mexico, Morocco, Myanmar, Netherlands, New Zealand, Nigeria, North Korea, Norway, "
    "Pakistan, Peru, Philippines, Poland, Portugal, Romania, Russia, Saudi Arabia, Scotland, Singapore, South "
    "Africa, South Korea, Spain, Sudan, Sweden, Switzerland, Syria, Taiwan, Thailand, Turkey, Ukraine, United "
    "Kingdom, United States, Uzbekistan, Venezuela, Vietnam, Wales"
)
_MORE_COUNTRIES = _MORE_COUNTRIES_NAMES.split(", ")
_WITH_ARTICLE = re.compile(
    r"(Ocean|Sea|Islands|Caribbean|Middle East|Netherlands|Philippines|Maldives|Bahamas|Gambia|Emirates|Republic|States"
    r"|Kingdom|Comoros|Seychelles|of the Congo)$"
)
_GRIM = re.compile(
    r"\b(war|killed|deaths?|genocide|massacre|famine|conflict|invasion|bomb\w*|disaster|earthquake|coup|slave\w*|crime|poverty|"
    r"terror\w*|nuclear|camps?|occupied|disputed|unrecognized|siege|sanction\w*|riots?|breakaway|partially recogni[sz]ed)\b",
    re.I,
)
_BREAK = re.compile(
    r";|, (?:and (?:is|has|it|its)|which|with|where|as|about|covering|bordered|located|situated)\b"
    r"|\b(?:that|which|where|with|along with|bordered)\b"
)
_NEEDS_CONTEXT = re.compile(
    r"\b(he|she|they|this|these|however|also|census|coordinates|former|latter|them|km2?|GDP)\b|[;:\[\]°§]", re.I
)
_ABBREVIATION = re.compile(r"\b(St|Mt|U\.S|D\.C|c|ca|approx|No|Dr)\.")
_GENERIC = re.compile(r"^(It|The (?:city|country|island|river|lake|region|province|state|mountain|range|park))\b")
_MAX_NAME = 20  # characters: longer names leave no room in a 30-character title


@dataclass(frozen=True)
class Place:
    """One entity. `brief` completes 'X is ...'; `fact` is a whole sentence from the article."""

    name: str
    kind: str
    region: str
    brief: str
    fact: str
    article: str  # "the " where the name needs it, else ""

    @property
    def the(self) -> str:
        return self.article + self.name

    @property
    def at(self) -> str:
        word = {"river": "on", "sea": "on", "lake": "at", "falls": "at"}.get(self.kind, "in")
        on = self.name.startswith("Mount ") or (self.kind == "island" and self.name.endswith(" Island"))
        return f"{'on' if on else word} {self.the}"

    @property
    def in_region(self) -> str:
        return f"in {'the ' if _WITH_ARTICLE.search(self.region) else ''}{self.region}"


@lru_cache(maxsize=1)
def find_places() -> tuple[Place, ...]:
    """Every usable place among the demo's Geography articles, in the order of the corpus."""
    from trait_kit.demo import wikipedia

    rows = [row for row in wikipedia().select(["text", "url", "label"]).to_pylist() if row["label"] == "Geography"]
    titled = [(unquote(row["url"].rsplit("/wiki/", 1)[1]).replace("_", " "), row["text"]) for row in rows]
    first = {title: _first_sentence(text) for title, text in titled}
    countries = [title for title, _ in titled if _kind(first[title])[0] == "country"]
    countries = sorted({*countries, *_MORE_COUNTRIES} - {"Georgia", "Guinea", "Niger", "Jordan"})
    places: dict[str, Place] = {}
    for title, text in titled:
        place = _place(title, text, first[title], countries)
        if place is not None and place.name not in places:
            places[place.name] = place
    return tuple(places.values())


def _clean(text: str) -> str:
    text = re.sub(r"\s*\([^()]*\)", "", re.sub(r"\s*\([^()]*\([^()]*\)[^()]*\)", "", text))
    return re.sub(r"\s+([,.;])", r"\1", re.sub(r"\s+", " ", text)).strip()


def _sentences(text: str) -> list[str]:
    protected = _ABBREVIATION.sub(lambda match: match.group().replace(".", "\0"), _clean(text))
    return [part.replace("\0", ".") for part in re.split(r"(?<=[\w\")])\. (?=[A-Z\"])", protected.rstrip("."))]


def _first_sentence(text: str) -> str:
    return _sentences(text)[0] if text else ""


def _kind(first: str) -> tuple[str, str]:
    """The kind of place and the predicate of the first sentence; ('', '') where it is no place."""
    match = re.search(r"\b(?:is|are)\s+(?:both )?((?:one of )?(?:an?|the|\w+'s)\s+.*)", first)
    if match is None or re.match(r"(An?|In|On)\s", first):
        return "", ""
    predicate = match.group(1)
    head = re.split(r",|;|\b(?:in|on|at|that|which|located|lying|between|separating|with|covering|situated)\b", predicate)[0]
    head = re.sub(r"^one of ", "", head)
    head = re.split(r"\bof\b", head)[0] if not re.search(r"\b(city|capital)\b", head) else head
    found = _KIND.search(head)
    if found is None or re.search(r"\b(strait|ocean|continent|supercontinent|gulf|bay|landmass|subcontinent)\b", head, re.I):
        return "", ""
    kind = str(found.lastgroup)
    if kind == "region" and re.search(r"\b(city|capital)\b", head, re.I):
        kind = "city"  # "state capital"
    return kind, predicate


def _place(title: str, text: str, first: str, countries: list[str]) -> Place | None:
    kind, predicate = _kind(first)
    name = re.sub(r"\s*\(.*\)$|,.*$", "", title)
    key = re.sub(r"^(Mount|Lake|The) ", "", name).split(" ")[0]
    if (
        name in _WORLD
        or not kind
        or len(name) > _MAX_NAME
        or key not in first
        or not name[0].isupper()
        or _GRIM.search(first)
    ):
        return None
    world = sorted((text.find(part), -len(part), part) for part in _WORLD if part in text and part != name)
    opening = " ".join(_sentences(text)[:2])
    named = [country for country in countries if country != name and re.search(rf"\b{country}n?\b", opening)]
    inside = [(opening.find(one), one) for one in named if not any(one != other and one in other for other in named)]
    region = min(inside)[1] if inside and kind != "country" else (world[0][2] if world else "")
    if "U.S." in opening and not inside:
        region = "United States"
    brief = _brief(predicate)
    if not region or not brief:
        return None
    name = name.removeprefix("The ")
    article = "the " if title.startswith("The ") or re.match(rf"The {re.escape(name.split(' ')[0])}\b", first) else ""
    if name.endswith(" Sea"):
        kind = "sea"
    if name.startswith("Republic of") or (kind in ("river", "sea", "desert") and not name.startswith("Lake")):
        article = "the "
    verb = "are" if re.search(r"(Islands|Mountains|Alps|Andes|Hills|Maldives|Falls)$", name) else "is"
    return Place(name, kind, region, brief, _fact(name, article, text, brief, verb), article)


def _brief(predicate: str) -> str:
    """The predicate cut at its first natural end, at most 14 words; '' when nothing short makes sense."""
    text = _BREAK.split(predicate)[0]
    text = re.sub(r"\s+along$", "", text.strip(" ,."))
    parts = text.split(", ")
    if len(" ".join(parts).split()) > 14:
        parts = parts[:1]  # a list that is cut in its middle would read as if it were whole
    text = ", ".join(parts)
    if len(parts) == 1 and "between" in text and ", " in predicate:
        return ""
    dangling = re.search(r"\b(?:of|in|the|and|at|on|by|to|between|from|or|along|an?)$|composed of", text)
    return "" if dangling or not 3 <= len(text.split()) <= 16 or _GRIM.search(text) else text


def _fact(name: str, article: str, text: str, brief: str, verb: str) -> str:
    """A short sentence of the article that reads well alone; else one made from the brief."""
    subject = article.capitalize() + name
    for sentence in _sentences(text)[1:5]:
        sentence = _GENERIC.sub(subject, sentence)
        words = sentence.split()
        if (
            6 <= len(words) <= 20
            and (sentence.startswith(subject + " ") or sentence.startswith(subject + "'"))
            and not _GRIM.search(sentence)
            and not _NEEDS_CONTEXT.search(sentence)
            and sentence.count('"') % 2 == 0
        ):
            return sentence + "."
    return f"{subject} {verb} {brief}."
