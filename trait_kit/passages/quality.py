"""How good passages are: new beside those accepted before and free of test questions, and, once written, how varied."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from trait_kit.engine.minhash import EMPTY, HASHES, WINDOW, banding, signatures
from trait_kit.engine.questions import QuestionIndex
from trait_kit.passages.material import content_words

SAME_ENLIGHTENMENT, SAME_TEXT = 0.6, 0.8  # Jaccard similarity of word trigrams
REASONS = ("same as a test question", "overlaps a test question", "needs a drawing")
_CLAUSE_WORDS, _CLAUSE_USES = 4, 2  # a clause of so many content words may stand in so many enlightenments
_BATCH = 5_000  # problems whose n-grams are in memory at a time
_DRAWING = "[asy]"  # MATH's pictures are programs: hundreds of coordinates that teach nothing
_SAMPLE = 2_000  # passages compared with each other, n-grams counted: the numbers depend on how many
_EXAMPLE = 120  # characters of a reason that are shown


class Beside:
    """The checks that compare a passage with test questions, and with the passages accepted before it.

    All passages of an attempt come at once (`begin`) and are then named by their place. What nobody wrote is not compared.
    """

    def __init__(self, test_questions: Sequence[str]) -> None:
        self.tested = QuestionIndex(test_questions)
        self.checks: list[tuple[str, str, Accepted | Clauses]] = [
            ("boilerplate", "enlightenment", Accepted(SAME_ENLIGHTENMENT)),
            ("recurring clause", "enlightenment", Clauses()),
            ("near-duplicate", "passage", Accepted(SAME_TEXT)),
        ]

    def begin(self, texts: list[str], enlightenments: list[str]) -> None:
        found = self.tested.find(texts).drop_duplicates("text_index")
        self.leaks = {row.text_index: row for row in found.itertuples(index=False)}
        self.texts = {"passage": texts, "enlightenment": enlightenments}
        for _, part, accepted in self.checks:
            accepted.begin(self.texts[part])

    def faults(self, place: int) -> Iterator[tuple[str, str | None]]:
        """Each check's name and what it finds wrong, or None."""
        leak = self.leaks.get(place)
        told = (
            leak and f"{leak.kind} overlap ({leak.overlap:.0%}) with test question {leak.test_index}: {leak.excerpt[:100]!r}"
        )
        yield "contamination", told
        for name, part, accepted in self.checks:
            if self.texts[part][place]:
                near = accepted.nearest(place)
                yield name, near and f"the {part} is {near[1]:.0%} the same as that of {near[0]}"

    def accept(self, place: int, name: str) -> None:
        for _, _, accepted in self.checks:
            accepted.accept(place, name)


class Accepted:
    """Texts accepted so far, and whether a new one is a near-duplicate (word trigrams, Jaccard) of one of them.

    The similarity is estimated from 128 hashes, with standard deviation sqrt(J (1 - J) / 128). Pairs are looked for by bands
    of the signature, which miss less than 1% of those at the threshold; with all others, 300,000 texts would take hours.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold, self._banding = threshold, banding(threshold, HASHES)
        self.accepted: list[tuple[str, np.ndarray]] = []
        self._buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def begin(self, texts: list[str]) -> None:
        self.new = signatures(texts, shingle_words=3)

    def nearest(self, place: int) -> tuple[str, float] | None:
        """The accepted text most similar to this one, as (name, similarity), if it is at or over the threshold."""
        found = sorted({row for key in self._keys(place) for row in self._buckets.get(key, ())[-WINDOW:]})
        near = [(self.accepted[row][0], float((self.accepted[row][1] == self.new[place]).mean())) for row in found]
        best = max(near, key=lambda pair: pair[1], default=("", 0.0))
        return best if best[1] >= self.threshold else None

    def accept(self, place: int, name: str) -> None:
        for key in self._keys(place):
            self._buckets[key].append(len(self.accepted))
        self.accepted.append((name, self.new[place]))

    def _keys(self, place: int) -> list[tuple[int, bytes]]:
        """By which near-duplicates meet; a text without words is like no other."""
        (bands, width), row = self._banding, self.new[place]
        return [(band, row[band * width :][:width].tobytes()) for band in range(bands) if row.min() < EMPTY]


class Clauses:
    """Which enlightenments say what others said before them, with other numbers: a phrase that a writer falls into."""

    def __init__(self) -> None:
        self.used: dict[str, list[str]] = defaultdict(list)

    def begin(self, texts: list[str]) -> None:
        self.clauses = [clauses_of(text) for text in texts]

    def nearest(self, place: int) -> tuple[str, float] | None:
        worn = [clause for clause in sorted(self.clauses[place]) if len(self.used[clause]) >= _CLAUSE_USES]
        return (f"{self.used[worn[0]][0]} in '{worn[0]}'", 1.0) if worn else None

    def accept(self, place: int, name: str) -> None:
        for clause in self.clauses[place]:
            self.used[clause].append(name)


def clauses_of(text: str) -> set[str]:
    """The clauses of a text that say something, in lower case, without numbers and what a sentence must begin with."""
    text = re.sub(r"(?:^|(?<=[.!?] ))(?:With|For) [^,.]*, ", "", text)
    words = [" ".join(re.findall(r"[^\W\d]+", part)) for part in re.split(r"[.;:!?,]\s", text.lower())]
    return {clause for clause in words if len(content_words(clause)) >= _CLAUSE_WORDS}


def blames(reason: str, part: str) -> bool:
    """Whether a passage was refused because of this part of its enlightenment: the one that holds a worn clause, or any."""
    return not reason.startswith("recurring clause") or any(f"'{clause}'" in reason for clause in clauses_of(part))


def screen_problems(problems: pd.DataFrame, test_questions: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(problems that passages may hold, what was dropped by task and reason).

    Compared both ways: a problem is dropped where a test question stands in its question or
    solution, whole or by at least half of its 13-grams, and where the problem stands so in a test
    question.
    """
    texts = (problems["question"] + "\n" + problems["solution"].fillna("")).tolist()
    tests = list(test_questions)
    kinds: dict[int, set[str]] = defaultdict(set)
    for row in QuestionIndex(tests).find(texts).itertuples(index=False):
        kinds[row.text_index].add(row.kind)
    for first in range(0, len(problems), _BATCH):
        some = QuestionIndex(problems["question"].iloc[first : first + _BATCH].tolist())
        for row in some.find(tests).itertuples(index=False):
            kinds[first + row.test_index].add(row.kind)
    reasons = {place: REASONS[2] for place, text in enumerate(texts) if _DRAWING in text}
    reasons |= {place: REASONS[0] if "exact" in found else REASONS[1] for place, found in kinds.items()}
    dropped = pd.Series([reasons.get(place) for place in range(len(problems))], index=problems.index, dtype=object)
    table = pd.crosstab(problems["task"], dropped.fillna("kept")).reindex(columns=[*REASONS, "kept"], fill_value=0)
    table.insert(0, "problems", problems.groupby("task").size())
    table.columns.name = None
    return problems[dropped.isna()].reset_index(drop=True), table.reset_index()


def yield_by_reason(passages: pd.DataFrame, rejected: pd.DataFrame) -> pd.DataFrame:
    """One row for what was kept and one a reason, by drafts: how many, their share of all drafts, and an example."""
    kinds = rejected["reason"].str.replace("(?s):.*", "", regex=True)
    details = rejected["reason"].str.replace("^[^:]*:?", "", regex=True).str.strip().str[:_EXAMPLE]
    told = details.groupby(kinds, sort=False).agg(["size", "first"]).sort_values("size", ascending=False, kind="stable")
    table = pd.DataFrame({"outcome": ["kept", *told.index], "drafts": [len(passages), *told["size"]]})
    table["share"] = table["drafts"] / max(1, table["drafts"].sum())
    return table.assign(example=["", *told["first"]])


def diversity(passages: pd.DataFrame, problems: pd.DataFrame) -> dict[str, Any]:
    """Distinct n-grams, likeness and coverage; n-grams and likeness are those of at most 2,000 enlightenments.

    distinct_n (Li et al., 2016): different word n-grams divided by all of them. nearest: median
    similarity (Jaccard of word trigrams) to the most similar other enlightenment.
    """
    sample = passages["enlightenment"].sample(min(_SAMPLE, len(passages)), random_state=0)
    words = [text.lower().split() for text in sample]
    found: dict[str, Any] = {}
    for n in (1, 2, 3, 4):
        grams = [tuple(text[start : start + n]) for text in words for start in range(len(text) - n + 1)]
        found[f"distinct_{n}"] = len(set(grams)) / max(1, len(grams))
    tasks = passages["tasks"].explode().nunique()
    found |= {
        "nearest": float(np.median(nearest_similarity(sample.tolist()))) if len(passages) else 0.0,
        "tasks": f"{tasks} of {problems['task'].nunique()}",
        "shared_values": int(passages["shared"].nunique()),
        "problems_used": passages["problem_ids"].explode().nunique() / max(1, len(problems)),
        "median_tokens": float(passages["n_tokens"].median()) if len(passages) else 0.0,
    }
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()}


def nearest_similarity(texts: Sequence[str]) -> np.ndarray:
    """For each text the estimated Jaccard similarity of its word trigrams to the most similar other one, [n]."""
    marks = signatures(list(texts), shingle_words=3)
    alike = ((marks == row).mean(axis=1) for row in marks)
    return np.array([np.delete(same, place).max(initial=0.0) for place, same in enumerate(alike)])
