"""What compares a passage with other texts: is it new beside those accepted before it, and free of test questions?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from trait_kit.engine.minhash import signatures
from trait_kit.engine.questions import QuestionIndex
from trait_kit.models import embed

SAME_ENLIGHTENMENT, SAME_TEXT = 0.6, 0.8  # Jaccard similarity of word trigrams
REASONS = ("same as a test question", "overlaps a test question", "needs a drawing")
_WINDOW = 64  # accepted texts of one bucket that are looked at: what was made to collide costs linear time
_BATCH = 5_000  # problems whose n-grams are in memory at a time
_DRAWING = "[asy]"  # MATH's pictures are programs: hundreds of coordinates that teach nothing


class Beside:
    """The checks that compare a passage with test questions, and with the passages accepted before it.

    Passages come in batches (`begin`) and are then named by their place in the batch.
    """

    def __init__(self, test_questions: Sequence[str], paraphrase_similarity: float = 0.0, embedding_model: str = "") -> None:
        self.tested = QuestionIndex(test_questions)
        same = "the enlightenment is {share:.0%} that of passage {name}"
        self.indexes: list[tuple[str, str, NearDuplicates | Meanings]] = [
            ("boilerplate", same, NearDuplicates(SAME_ENLIGHTENMENT)),
            ("near-duplicate", "{share:.0%} the same as passage {name}", NearDuplicates(SAME_TEXT)),
        ]
        if paraphrase_similarity:
            said = "it says the same as passage {name} (cosine {share:.3f})"
            self.indexes.append(("paraphrase", said, Meanings(embedding_model, paraphrase_similarity)))

    def begin(self, texts: list[str], enlightenments: list[str]) -> None:
        self.leaks: dict[int, str] = {}
        for row in self.tested.find(texts).itertuples(index=False):
            told = f"{row.kind} overlap ({row.overlap:.0%}) with test question {row.test_index}: {row.excerpt[:100]!r}"
            self.leaks.setdefault(int(row.text_index), told)
        for name, _, index in self.indexes:
            index.begin(enlightenments if name == "boilerplate" else texts)

    def faults(self, place: int) -> Iterator[tuple[str, str | None]]:
        """Each check's name and what it finds wrong, or None."""
        yield "contamination", self.leaks.get(place)
        for name, told, index in self.indexes:
            near = index.find(place)
            yield name, told.format(name=near[0], share=near[1]) if near else None

    def accept(self, place: int, name: str) -> None:
        for _, _, index in self.indexes:
            index.accept(place, name)


class NearDuplicates:
    """Which texts are near-duplicates (word trigrams, Jaccard) of one accepted before them.

    Texts come in batches (`begin`), so that their signatures are computed at once, and are then named by their place in the
    batch. The similarity is estimated from 128 hashes, with standard deviation sqrt(J (1 - J) / 128); pairs are looked for
    by bands of the signature, which miss less than 1% of those at the threshold.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold, self._width = threshold, 3 if threshold < 0.7 else 6
        self._rows, self._names = [], []
        self._buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def begin(self, texts: list[str]) -> None:
        self._new = signatures(texts, shingle_words=3)

    def find(self, place: int) -> tuple[str, float] | None:
        """The accepted text most similar to this one, as (name, similarity), if it is at or over the threshold."""
        near = sorted({row for key in self._keys(place) for row in self._buckets.get(key, ())[-_WINDOW:]})
        if not near:
            return None
        similarity = [float((self._rows[row] == self._new[place]).mean()) for row in near]
        best = int(np.argmax(similarity))
        return (self._names[near[best]], similarity[best]) if similarity[best] >= self.threshold else None

    def accept(self, place: int, name: str) -> None:
        for key in self._keys(place):
            self._buckets[key].append(len(self._rows))
        self._rows.append(self._new[place])
        self._names.append(name)

    def _keys(self, place: int) -> Iterator[tuple[int, bytes]]:
        row = self._new[place]
        if (row == row[0]).all():  # a text without words is like no other
            return
        for first in range(0, len(row) - self._width + 1, self._width):
            yield first, row[first : first + self._width].tobytes()


class Meanings:
    """As NearDuplicates, by the cosine of sentence embeddings: what is said again in other words."""

    def __init__(self, model: str, threshold: float) -> None:
        self.model, self.threshold = model, threshold
        self._names: list[str] = []
        self._vectors = np.zeros((0, 0), np.float32)  # of accepted texts, with room for more

    def begin(self, texts: list[str]) -> None:
        self._new = embed(texts, self.model, max_tokens=512)

    def find(self, place: int) -> tuple[str, float] | None:
        if not self._names:
            return None
        cosines = self._vectors[: len(self._names)] @ self._new[place]
        best = int(cosines.argmax())
        return (self._names[best], float(cosines[best])) if cosines[best] >= self.threshold else None

    def accept(self, place: int, name: str) -> None:
        if len(self._names) == len(self._vectors):
            room = np.zeros((max(1_000, len(self._vectors)), self._new.shape[1]), np.float32)
            self._vectors = np.concatenate([self._vectors.reshape(-1, self._new.shape[1]), room])
        self._vectors[len(self._names)] = self._new[place]
        self._names.append(name)


def screen_problems(problems: pd.DataFrame, test_questions: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(problems that passages may hold, what was dropped by task and reason).

    Compared both ways: a problem is dropped where a test question stands in its question or solution, whole or by at least
    half of its 13-grams, and where the problem stands so in a test question.
    """
    pairs = zip(problems["question"], problems["solution"], strict=True)
    texts = [f"{question}\n{solution or ''}" for question, solution in pairs]
    reasons = {place: REASONS[2] for place, text in enumerate(texts) if _DRAWING in text}
    kinds: dict[int, set[str]] = defaultdict(set)
    tests = list(test_questions)
    for row in QuestionIndex(tests).find(texts).itertuples(index=False):
        kinds[row.text_index].add(row.kind)
    for first in range(0, len(problems), _BATCH):
        some = QuestionIndex(problems["question"].iloc[first : first + _BATCH].tolist())
        for row in some.find(tests).itertuples(index=False):
            kinds[first + row.test_index].add(row.kind)
    reasons |= {place: REASONS[0] if "exact" in found else REASONS[1] for place, found in kinds.items()}
    dropped = pd.Series([reasons.get(place) for place in range(len(problems))], index=problems.index, dtype=object)
    table = pd.crosstab(problems["task"], dropped.fillna("kept")).reindex(columns=[*REASONS, "kept"], fill_value=0)
    table.insert(0, "problems", problems.groupby("task").size())
    table.columns.name = None
    return problems[dropped.isna()].reset_index(drop=True), table.reset_index()
