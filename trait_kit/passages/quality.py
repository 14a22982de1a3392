"""How good passages are: new beside those accepted before, and free of test questions."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from trait_kit.engine.minhash import EMPTY, HASHES, WINDOW, banding, signatures
from trait_kit.engine.questions import QuestionIndex
from trait_kit.passages.material import content, content_words

SAME_ENLIGHTENMENT, SAME_TEXT = 0.6, 0.8  # Jaccard similarity of word trigrams
# Why a problem is in no passage
REASONS = "same as a test question", "overlaps a test question", "needs a drawing"
_CLAUSE_WORDS, _CLAUSE_USES = 4, 2  # a clause of so many content words may stand in so many enlightenments
_BATCH = 5_000  # problems whose n-grams are in memory at a time
_DRAWING = "[asy]"  # MATH's pictures are programs: hundreds of coordinates that teach nothing
_EXAMPLE = 120  # characters of a reason that are shown


class Beside:
    """The checks that compare a passage with test questions, and with the passages accepted before it.

    All passages of an attempt come at once (`begin`) and are then named by their place.
    """

    def __init__(self, test_questions: Sequence[str]) -> None:
        self.tested = QuestionIndex(test_questions)
        self.checks: list[tuple[str, str, Accepted | Clauses]] = [
            ("boilerplate", "enlightenment", Accepted(SAME_ENLIGHTENMENT)),
            ("recurring clause", "enlightenment", Clauses()),
            ("near-duplicate", "passage", Accepted(SAME_TEXT)),
        ]

    def begin(self, texts: list[str], enlightenments: list[str]) -> None:
        self.leaks = {
            row.text_index: row for row in self.tested.find(texts).drop_duplicates("text_index").itertuples()
        }
        self.texts = {"passage": texts, "enlightenment": enlightenments}
        for _, part, accepted in self.checks:
            accepted.begin(self.texts[part], texts)

    def faults(self, place: int) -> Iterator[tuple[str, str | None]]:
        if leak := self.leaks.get(place):
            leak = f"{leak.kind} overlap ({leak.overlap:.0%}) with test question {leak.test_index}: {leak.excerpt[:100]!r}"
        yield "contamination", leak
        for name, part, accepted in self.checks:
            if self.texts[part][place]:  # what nobody wrote is not compared
                near = accepted.nearest(place)
                yield name, near and f"the {part} is {near[1]:.0%} the same as that of {near[0]}"

    def accept(self, place: int, name: str) -> None:
        for _, _, accepted in self.checks:
            accepted.accept(place, name)


class Accepted:
    """Texts accepted so far, and whether a new one is a near-duplicate (word trigrams, Jaccard) of one of them.

    Pairs are looked for by bands of the signature, which miss under 1% of those at the threshold.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold, self._banding = threshold, banding(threshold, HASHES)
        self.accepted: list[tuple[str, np.ndarray]] = []
        self._buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def begin(self, texts: list[str], passages: list[str] | None = None) -> None:
        self.new = signatures(texts, shingle_words=3)

    def nearest(self, place: int) -> tuple[str, float] | None:
        """The name and similarity of the accepted text most similar to this one, if that reaches the threshold."""
        found = sorted({row for key in self._keys(place) for row in self._buckets.get(key, ())[-WINDOW:]})
        near = [
            (self.accepted[row][0], float((self.accepted[row][1] == self.new[place]).mean())) for row in found
        ]
        best = max(near, key=lambda pair: pair[1], default=("", 0.0))
        return best if best[1] >= self.threshold else None

    def accept(self, place: int, name: str) -> None:
        for key in self._keys(place):
            self._buckets[key].append(len(self.accepted))
        self.accepted.append((name, self.new[place]))

    def _keys(self, place: int) -> list[tuple[int, bytes]]:
        (bands, width), row = self._banding, self.new[place]
        bands *= row.min() < EMPTY  # a text without words is like no other
        return [(band, row[band * width :][:width].tobytes()) for band in range(bands)]


class Clauses:
    """Clauses of earlier enlightenments that stand in no solution beside them, numbers masked."""

    def __init__(self) -> None:
        self.used: dict[str, list[str]] = defaultdict(list)

    def begin(self, texts: list[str], passages: list[str]) -> None:
        told = zip(texts, passages, strict=True)
        self.clauses = [clauses_of(text) - clauses_of(passage.removesuffix(text)) for text, passage in told]

    def nearest(self, place: int) -> tuple[str, float] | None:
        worn = [clause for clause in sorted(self.clauses[place]) if len(self.used[clause]) >= _CLAUSE_USES]
        return (f"{self.used[worn[0]][0]} in '{worn[0]}'", 1.0) if worn else None

    def accept(self, place: int, name: str) -> None:
        for clause in self.clauses[place]:
            self.used[clause].append(name)


def clauses_of(text: str) -> set[str]:
    """Clauses that say something, in lower case, without numbers and what a sentence must begin with."""
    text = re.sub(r"(?:^|(?<=[.!?] ))(?:With|For) [^,.]*, ", "", text)
    words = [" ".join(re.findall(r"[^\W\d]+", part)) for part in re.split(r"[.;:!?,]\s", text.lower())]
    return {clause for clause in words if len(content_words(clause)) >= _CLAUSE_WORDS}


def blames(reason: str, part: str) -> bool:
    """Whether this part of an enlightenment is why it was refused: the one that holds a worn clause, else any."""
    return not reason.startswith("recurring clause") or any(
        f"'{clause}'" in reason for clause in clauses_of(part)
    )


def screen_problems(problems: pd.DataFrame, tests: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(problems that passages may hold, what was dropped by task and reason).

    Dropped where a test question stands in a problem's question or solution, whole or by half of its 13-grams,
    or the other way round.
    """
    texts = (problems["question"] + "\n" + problems["solution"].fillna("")).tolist()
    kinds: dict[int, set[str]] = defaultdict(set)
    for row in QuestionIndex(tests).find(texts).itertuples(index=False):
        kinds[row.text_index].add(row.kind)
    for first in range(0, len(problems), _BATCH):
        some = QuestionIndex(problems["question"].iloc[first : first + _BATCH].tolist())
        for row in some.find(tests).itertuples(index=False):
            kinds[first + row.test_index].add(row.kind)
    reasons = {place: REASONS[2] for place, text in enumerate(texts) if _DRAWING in text}
    reasons |= {place: REASONS[0] if "exact" in found else REASONS[1] for place, found in kinds.items()}
    dropped = pd.Series(reasons, dtype=object).reindex(range(len(problems)))
    table = pd.crosstab(problems["task"], dropped.fillna("kept")).reindex(
        columns=[*REASONS, "kept"], fill_value=0
    )
    table.insert(0, "problems", problems.groupby("task").size())

    return problems[dropped.isna()].reset_index(drop=True), table.rename_axis(columns=None).reset_index()


def yield_by_reason(passages: pd.DataFrame, rejected: pd.DataFrame) -> pd.DataFrame:
    """One row for what was kept and one a reason: drafts, their share of all, an example, what helps."""
    reasons = rejected["reason"].str.extract(rf"(?s)([^:]*):?\s*(.{{,{_EXAMPLE}}})")
    told = (
        reasons.groupby(0, sort=False)[1]
        .agg(["size", "first"])
        .sort_values("size", ascending=False, kind="stable")
    )
    table = pd.DataFrame({"outcome": ["kept", *told.index], "drafts": [len(passages), *told["size"]]})
    return table.assign(
        share=table["drafts"] / max(1, table["drafts"].sum()),
        example=["", *told["first"]],
        helps=table["outcome"].map(content("remedies.yaml")).fillna(""),
    )
