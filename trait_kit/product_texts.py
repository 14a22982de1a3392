"""What a product's texts say in few words: plain text from marketplace copy, a short name, its kind, an ad title, an ad
description. Nothing is invented: every name, title and description consists of words of the product's own texts, and
whether a text has or lacks a word can be asked and is checked before a problem says so.

No list of brands or product kinds is needed. A catalogue's own descriptions tell ordinary words from names (ordinary ones
are written in lower case) and nouns from adjectives (a noun is often followed by a break or a function word), which holds
for English copy.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

MAX_TITLE, MAX_DESCRIPTION = 30, 90  # characters: the formats of search ads
MAX_NAME, MAX_PAGE, MAX_SHOWN_TITLE = 70, 160, 100  # characters of a short name, of a description and a title as shown
_MIN_DESCRIPTION, _COMMON = 35, 20  # characters; titles that have a word
_FUNCTION = """
a an and are as at be but by can for from has have if in into is it its of on or over so than that the their they this these
to under up upon was were when whether which while will with without you your
"""
_EMPTY = """
any best buy can cheap do find get good great i im like looking me my need new no not online please pretty some want what
where who
"""
_LOOK = """
amber beige black blue bronze brown chrome clear copper cream ebony gold golden gray green grey ivory large lime maroon
medium metallic multicolor natural navy orange pink purple red silver small sunburst tan teal turquoise violet white yellow
xl xxl plastic wood metal leather steel silicone aluminum rubber mahogany maple walnut
"""
_MEASURE = "fun finish pcs piece pieces pack packs count pair pairs edition style size color colors inch inches series lot"
_FUNCTION_WORDS = frozenset(_FUNCTION.split())
_EMPTY_WORDS = frozenset(_EMPTY.split())  # words of queries and titles that do not tell one product from another
_LOOKS = frozenset(_LOOK.split())  # at the end of a name they say how it looks, how large it is or what it is made of
_NO_KINDS = _LOOKS | _FUNCTION_WORDS | frozenset(_MEASURE.split())  # not what a product is
_UNIT = r"(?:pcs?|packs?|pieces?|pairs?|sets?|counts?|ct|x)"
_QUANTITY = re.compile(rf"^(?:(?:set|pack|box|lot) of \d+|\d[\d,]*[ -]?{_UNIT}(?:/\w+)?)\b[\s,:-]*", re.I)
_BREAK = re.compile(r"\s*(?:[;|()\[\]{}!?~]|[,:](?!\d))+\s*|\s+[-+/]\s+|(?<=\w{3})\.\s+(?=[A-Z])")
_ENDS = "for|with|in|from|compatible|fits?|including|includes|featuring|suitable|designed|made"
_END = re.compile(rf"\s(?:w/|(?:{_ENDS})\b)", re.I)
_WORD = re.compile(r"[^\W_]+(?:[-'./&][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<=[\w)\"']{3}[.!?])(?<!\b(?:Mrs|Inc|Ltd|Vol|Ver|etc)\.)\s+(?=[A-Z0-9\"])")
_THIS = re.compile(r"(?i)\b(?:this|these|our|your)((?: [\w-]+){1,4})")
_LIST_GOES_ON = re.compile(r"\W*(?:[\w'-]+ ){0,2}(?:[\w'-]+, )?(?:and|or)\b")
_JOINED, _NO_WORD = re.compile(r"[-'./&]"), re.compile(r"[\W_]+")
_NOT_A_START = re.compile(r"(?:with|from|whether|when|if|as|while|featuring|calling|so|but|and|or|not|get ready|no)\b", re.I)


def clean(text: str) -> str:
    """One line of plain text from HTML, Markdown and odd characters; lines and bullets become sentences."""
    text = html.unescape(html.unescape(text))
    if "<" in text:
        text = re.sub(r"<\s*/?\s*(?:br|p|li|ul|ol|div|h\d|tr)\b[^<>]{0,300}>", "\n", text, flags=re.I)
        text = re.sub(r"</?[a-zA-Z!][^<>]{0,300}>", " ", text)
    text = unicodedata.normalize("NFKC", re.sub("[™®©]", "", text))
    text = text.translate(_TYPOGRAPHY)
    text = re.sub(r"!?\[([^\[\]\n]{0,200})\]\([^()\s]{0,300}\)", r"\1", text)
    text = re.sub(r"\*{1,3}|_{2,3}|`+|~~|^\s*\|[-:| ]+\|?\s*$", "", text, flags=re.M)
    lines = []
    for line in re.split(r"[\n\r●•▪◆★]+", text):
        line = " ".join(_UNREADABLE.sub(" ", line).split())
        line = re.sub(r"^(?:[-+>]\s)+", "", line).strip()
        if line and not re.match(r"#{1,6}\s", line):  # a heading repeats the title or praises
            lines.append(line)
    ended = [line if line[-1] in ".!?:;," else f"{line}." for line in lines[:-1]]
    return " ".join([*ended, *lines[-1:]])


_TYPOGRAPHY = str.maketrans("’‘“”–—−×【】", "''\"\"---x[]")
_UNREADABLE = re.compile(r"[^\x20-\x7e\w°£€¥½¼¾]")  # control characters, pictures, private ones


def words(text: str) -> list[str]:
    """Lower-case words as people type them: 'Pro-Line 3/4" Strap' -> pro-line, 3/4, strap."""
    return _WORD.findall(text.lower())


def telling(text: str) -> list[str]:
    """The words of a query or name that say what is wanted, each once."""
    return [word for word in dict.fromkeys(words(text)) if word not in _FUNCTION_WORDS and word not in _EMPTY_WORDS]


def stem(word: str) -> str:
    return word.removesuffix("s") if len(word) > 3 and not word.endswith("ss") else word


def specific(name: str) -> list[str]:
    """The telling words of a name without lone letters and small numbers, which nobody would search by."""
    found = telling(name)
    return [word for word in found if len(word) > 1 and not (word.isdigit() and len(word) < 3)] or found


class Text:
    """A text that is asked for words: `has` needs the word itself (or its plural), `lacks` not even a part of one."""

    __slots__ = ("_squeezed", "_stems")

    def __init__(self, text: str):
        found = words(text)
        parts = [part for word in found if not word.isalnum() for part in _JOINED.split(word)]
        self._stems = {stem(word) for word in (*found, *parts)}
        self._squeezed = _squeeze(text)

    def has(self, word: str) -> bool:
        return stem(word) in self._stems

    def lacks(self, word: str) -> bool:
        return _squeeze(stem(word)) not in self._squeezed


def _squeeze(text: str) -> str:
    return _NO_WORD.sub("", text.lower())


def sentences(text: str) -> list[str]:
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


class Vocabulary:
    """Which words of a catalogue are ordinary, which of them are nouns, which pairs of words belong together, which words
    open many titles together (a brand in two words), and how many titles have each word.
    """

    def __init__(self, texts: Sequence[tuple[str, str]]):
        """`texts` are the (title, description) of all products."""
        lower: Counter[str] = Counter()
        upper: Counter[str] = Counter()
        heads: Counter[str] = Counter()
        pairs: Counter[tuple[str, str]] = Counter()
        openings: Counter[str] = Counter()
        self.titles_with: Counter[str] = Counter()
        for title, description in texts:
            found = words(title)
            self.titles_with.update({stem(word) for word in found})
            openings.update((" ".join(found[:1]), " ".join(found[:2])))
            before = ""
            for word, between, after in re.findall(r"([A-Za-z][A-Za-z'-]*)([^A-Za-z]*)(?=([A-Za-z]*))", description):
                if word.islower():
                    lower[word] += 1
                    heads[word] += between[:1] in ".!?;:" or (between == " " and after in _FUNCTION_WORDS)
                    if before:
                        pairs[before, word] += 1
                else:
                    upper[word.lower()] += 1
                before = word if word.islower() and between == " " else ""
        ordinary = {word for word, count in lower.items() if count >= 0.3 * (count + upper[word])}
        self.ordinary = frozenset(ordinary - _FUNCTION_WORDS)
        self.nouns = frozenset(word for word in self.ordinary if heads[word] >= 0.35 * lower[word] and len(word) > 2)
        self.nouns -= _NO_KINDS
        firsts = self.ordinary - _LOOKS
        self.pairs = frozenset(
            pair for pair, count in pairs.items() if count > 1 and pair[1] in self.nouns and pair[0] in firsts
        )
        self.openings = frozenset(
            pair for pair, count in openings.items() if " " in pair and count > 2 and 2 * count >= openings[pair.split()[0]]
        )

    def rarest(self, candidates: Sequence[str]) -> str:
        """The word that the fewest titles have: the one that tells a product from the others."""
        return min(candidates, key=lambda word: (self.titles_with[stem(word)], -len(word), word))


def segments(title: str) -> list[str]:
    """The parts, between breaks, of what a title says before 'for', 'with' and the like; no quantity first, no shouting."""
    letters = [mark for mark in title if mark.isalpha()]
    if len(letters) > 12 and sum(mark.isupper() for mark in letters) > 0.8 * len(letters):
        title = " ".join(word.capitalize() if word.isalpha() and len(word) > 3 else word for word in title.split())
    title = _QUANTITY.sub("", re.sub(r"^(?:brand )?new\s+", "", _QUANTITY.sub("", title), flags=re.I))
    end = _END.search(title, 1)
    parts = [part.strip(" -.,'\"&") for part in _BREAK.split(title[: end.start()] if end else title)]
    return [part for part in parts if re.search(r"[^\W\d_]{2}", part)]


def kind_of(name: str, description: str, vocabulary: Vocabulary) -> str:
    """What the product is: the noun at the name's end, with the word before where the two are used together; '' if unclear.

    A noun that few titles have may be part of a name ('Grand Symphony'), so the description has to say 'this ... symphony'.
    """
    found = [word.lower() for word in name.split()]
    while found and found[-1] in _LOOKS:
        found.pop()
    if not found or found[-1] not in vocabulary.nouns:
        return ""
    first, noun = found[-2] if len(found) > 1 else "", found[-1]
    if first in _FUNCTION_WORDS:  # 'Book of Eclipse', 'Magic The Gathering'
        return ""
    if (first, noun) in vocabulary.pairs or (first in vocabulary.ordinary and f"{first} {noun}" in description):
        return f"{first} {noun}"
    pointed = stem(noun) in {stem(word) for found in _THIS.findall(description) for word in found.split()}
    return noun if pointed or vocabulary.titles_with[stem(noun)] >= _COMMON else ""


def short_names(title: str, description: str, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """(name, kind) of growing length, those with a kind first, so that a caller can take the first no other product has.

    A part of a title that runs on without a break is cut after the first two words that are used together as a kind, if
    the description uses the second and what follows does not go on with them ('Guitar Pedal Power Supply').
    """
    parts = segments(title)
    names: list[tuple[str, str]] = []
    for count in range(1, min(4, len(parts)) + 1):
        name = " ".join(parts[:count])
        if len(name) > MAX_NAME or len(name.split()) > 9:
            cut = _cut(name, description, vocabulary)
            names += [cut] if cut and cut not in names else []
            break
        if sum(word[0].isalpha() for word in telling(name)) > 1:
            kinds = (kind_of(part, description, vocabulary) for part in (name, parts[0]))
            names.append((name, next(filter(None, kinds), "")))
    return sorted(names, key=lambda pair: not pair[1])


def _cut(name: str, description: str, vocabulary: Vocabulary) -> tuple[str, str] | None:
    found = name.split()
    for end in range(3, min(10, len(found)) + 1):
        start = " ".join(found[:end])
        kind = kind_of(start, description, vocabulary)
        after = found[end].lower() if end < len(found) else ""
        ends = (
            f" {stem(found[end - 1].lower())}" in description
            and after not in vocabulary.nouns
            and (found[end - 1].lower(), after) not in vocabulary.pairs
        )
        if len(start) <= MAX_NAME and " " in kind and start.lower().endswith(kind) and ends:
            return start, kind
    return None


def ad_title(name: str, kind: str, vocabulary: Vocabulary) -> str | None:
    """At most 30 characters: the whole name, or its first word, the kind's noun, and what else fits in the order brand, the
    word before the noun, other names and numbers, other words. None where that does not fit or would be the kind alone.
    """
    if len(name) <= MAX_TITLE:
        return _capital(name)
    found = name.split()
    lower = [word.lower() for word in found]
    last = max((place for place, word in enumerate(lower) if kind and word == kind.split()[-1]), default=-1)
    if last < 1:
        return None
    places = [place for place in range(1, last) if specific(found[place]) == [lower[place]] and len(lower[place]) > 1]
    brand = [1] if " ".join(lower[:2]) in vocabulary.openings else []
    names = [place for place in places if lower[place] not in vocabulary.ordinary]
    kept = {0, last}
    for place in (*brand, last - 1, *names, *reversed(places)):
        if place in places and len(" ".join(found[item] for item in sorted({*kept, place}))) <= MAX_TITLE:
            kept.add(place)
    title = " ".join(found[place] for place in sorted(kept)).strip(" -,&")
    return _capital(title) if len(title) <= MAX_TITLE and len(kept) > len(kind.split()) else None


def ad_description(description: str, title: str, vocabulary: Vocabulary) -> tuple[str | None, list[str]]:
    """The sentence, or its beginning up to a comma, that says most about the product in 90 characters; and the page.

    It shares a word with the title and adds three, so it is neither praise of nothing nor the title once more. The page has
    the whole sentence, and of the others the first that fit.
    """
    about = {stem(word) for word in telling(title)}
    said = sentences(description)
    best, chosen, most = None, -1, 0
    for place, sentence in enumerate(said):
        text = _fitting(sentence, vocabulary)
        found = {stem(word) for word in telling(text)}
        shared = min(3, len(found & about))
        if shared > most and len(found - about) >= 3:
            best, chosen, most = text, place, shared
    room = MAX_PAGE - (len(said[chosen]) if best else 0)
    page = []
    for place, sentence in enumerate(said):
        room -= 0 if place == chosen else len(sentence) + 1
        if place == chosen or room >= 0:
            page.append(sentence)
    return best, page


def shown_title(title: str) -> str:
    return title if len(title) <= MAX_SHOWN_TITLE else title[:MAX_SHOWN_TITLE].rsplit(" ", 1)[0].rstrip(" ,;|(-&/")


def _fitting(sentence: str, vocabulary: Vocabulary) -> str:
    if _NOT_A_START.match(sentence) or sentence[0].islower() or re.search(r"\||\banswer\b", sentence) or sentence[-1] == "?":
        return ""
    text = sentence
    if len(text) > MAX_DESCRIPTION:
        end = max(text.rfind(mark, 0, MAX_DESCRIPTION) for mark in (", ", "; ", " - "))
        text = text[:end].rstrip(" ,;-") if end > 0 else ""
        last, rest = (words(text) or [""])[-1], sentence[len(text) :]
        whole = last in vocabulary.nouns or last not in vocabulary.ordinary  # not 'delivers a rich'
        text = f"{text}." if whole and not _LIST_GOES_ON.match(rest) else ""
    return text if _MIN_DESCRIPTION <= len(text) <= MAX_DESCRIPTION and text.count('"') % 2 == 0 else ""


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
