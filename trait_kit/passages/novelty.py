"""Whether a passage is new beside those accepted before it: by its words (MinHash), and by its meaning if asked."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from trait_kit.engine.minhash import EMPTY, WINDOW, _keys, banding, signatures
from trait_kit.models import embed
from trait_kit.params import PassageParams

_SAME_ENLIGHTENMENT, _SAME_TEXT = 0.6, 0.8  # Jaccard similarity of word trigrams


class Novelty:
    """The checks that compare a passage with those accepted before it.

    Passages come in batches (`begin`) and are then named by their place in the batch; `checks` maps a check's name to a
    function from a place to its fault, or None. What is accepted costs 1 KB, and 1.5 KB more where meanings are compared.
    """

    def __init__(self, params: PassageParams) -> None:
        self._enlightenments, self._texts = NearDuplicates(_SAME_ENLIGHTENMENT), NearDuplicates(_SAME_TEXT)
        self.checks = {"boilerplate": self._boilerplate, "near-duplicate": self._near_duplicate}
        self._meanings = None
        if params.paraphrase_similarity:
            self._meanings = Meanings(params.embedding_model, params.paraphrase_similarity)
            self.checks["paraphrase"] = self._paraphrase

    def begin(self, texts: list[str], enlightenments: list[str]) -> None:
        self._enlightenments.begin(enlightenments)
        self._texts.begin(texts)
        if self._meanings:
            self._meanings.begin(texts)

    def accept(self, place: int, name: str) -> None:
        for some in (self._enlightenments, self._texts, self._meanings):
            if some:
                some.accept(place, name)

    def _boilerplate(self, place: int) -> str | None:
        near = self._enlightenments.find(place)
        return f"the enlightenment is {near[1]:.0%} that of passage {near[0]}" if near else None

    def _near_duplicate(self, place: int) -> str | None:
        near = self._texts.find(place)
        return f"{near[1]:.0%} the same as passage {near[0]}" if near else None

    def _paraphrase(self, place: int) -> str | None:
        near = self._meanings.find(place) if self._meanings else None
        return f"it says the same as passage {near[0]} (cosine {near[1]:.3f})" if near else None


class NearDuplicates:
    """Which texts are near-duplicates (word trigrams, Jaccard) of one accepted before them.

    Texts come in batches (`begin`), so that their MinHash signatures are computed at once, and are then named by their
    place in the batch. The similarity is estimated from 128 hashes, with standard deviation sqrt(J (1 - J) / 128). An
    accepted text costs 512 bytes, whatever its length.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._rows = np.zeros((0, 128), np.uint32)
        self._names: dict[int, str] = {}  # accepted row -> name

    def begin(self, texts: list[str]) -> None:
        self._rows = np.concatenate([self._rows[list(self._names)], signatures(texts, shingle_words=3)])
        self._names = dict(enumerate(self._names.values()))
        self._first = len(self._names)
        self._bands: list[tuple[np.ndarray, dict[int, list[int]]]] = []  # bucket of each new text; bucket -> accepted rows
        bands, width = banding(self.threshold, self._rows.shape[1])
        for band in range(bands):
            keys = _keys(self._rows, np.arange(len(self._rows)), 0, band * width, 0, width)
            _, bucket, size = np.unique(keys, return_inverse=True, return_counts=True)
            bucket[size[bucket] == 1] = -1  # most texts are alone in theirs
            accepted: dict[int, list[int]] = defaultdict(list)
            for row in np.flatnonzero(bucket[: self._first] >= 0).tolist():
                accepted[int(bucket[row])].append(row)
            self._bands.append((bucket[self._first :].copy(), accepted))

    def find(self, place: int) -> tuple[str, float] | None:
        """The accepted text most similar to this one, as (name, similarity), if it is at or over the threshold."""
        near = sorted({row for bucket, accepted in self._bands for row in accepted.get(int(bucket[place]), ())[-WINDOW:]})
        own = self._rows[self._first + place]
        if not near or own.min() == EMPTY:  # a text without words is like no other
            return None
        similarity = (self._rows[near] == own).mean(axis=1)
        best = int(similarity.argmax())
        return (self._names[near[best]], float(similarity[best])) if similarity[best] >= self.threshold else None

    def accept(self, place: int, name: str) -> None:
        self._names[self._first + place] = name
        for bucket, accepted in self._bands:
            if bucket[place] >= 0:
                accepted[int(bucket[place])].append(self._first + place)


class Meanings:
    """As NearDuplicates, by the cosine of sentence embeddings: what is said again in other words."""

    def __init__(self, model: str, threshold: float) -> None:
        self.model, self.threshold = model, threshold
        self._names: list[str] = []
        self._blocks: list[np.ndarray] = []  # of accepted vectors, earlier batches
        self._new: list[int] = []  # accepted places of this batch

    def begin(self, texts: list[str]) -> None:
        if self._new:
            self._blocks.append(self._vectors[self._new])
        self._new = []
        self._vectors = embed(texts, self.model, max_tokens=512)
        self._nearest = np.zeros(len(texts), np.int64)  # among the accepted of earlier batches
        self._cosine = np.full(len(texts), -2.0, np.float32)
        first = 0
        for block in self._blocks:
            cosines = self._vectors @ block.T
            best = cosines.argmax(axis=1)
            value = cosines[np.arange(len(texts)), best]
            closer = value > self._cosine
            self._nearest[closer], self._cosine[closer] = first + best[closer], value[closer]
            first += len(block)

    def find(self, place: int) -> tuple[str, float] | None:
        nearest, cosine = int(self._nearest[place]), float(self._cosine[place])
        if self._new:
            cosines = self._vectors[self._new] @ self._vectors[place]
            best = int(cosines.argmax())
            if cosines[best] > cosine:
                nearest, cosine = len(self._names) - len(self._new) + best, float(cosines[best])
        return (self._names[nearest], cosine) if cosine >= self.threshold else None

    def accept(self, place: int, name: str) -> None:
        self._names.append(name)
        self._new.append(place)
