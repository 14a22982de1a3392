"""What relates problems that carry no common topic or entity.

For entities it is names found in the questions. For knowledge it is mathematical concepts recognised there (concepts.yaml),
or neighbours in an embedding, for any domain. topics.py asks a teacher instead.
"""

from __future__ import annotations

import functools
import heapq
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from trait_kit.engine.files import TraitError
from trait_kit.passages.drafts import Problem, problem_rows
from trait_kit.passages.grouping import Group, refuse_bad
from trait_kit.passages.words import content_words

_NEIGHBORS = 24  # of other tasks, and as many of its own, that a problem may be joined with
_BLOCK_ENTRIES = 1 << 25  # of the similarity matrix in memory at a time: 128 MB
_LEAST_SHARE = 0.5  # of the nearest one's cosine, below which a neighbour is not related
_RANKS_PER_USE = 4  # ranks among the neighbours that one use less makes up for
_NONE = -2.0  # below any cosine
_TRIES = 8  # groups around one problem, before it counts as exhausted


def link_entities(problems: pd.DataFrame, names: Iterable[str] = ()) -> pd.DataFrame:
    """The problems with an `entity` found in their question where they have none: the longest name that stands in it.

    Names are `names` and the entities of the other problems; they match whole words, whatever their case, and a name of
    fewer than three letters matches nothing. A problem in which none is found keeps its null.
    """
    known: dict[tuple[str, ...], str] = {}
    for name in [*names, *sorted(set(problems["entity"].dropna()))]:
        words = tuple(_words(name))
        if len("".join(words)) >= 3:
            known.setdefault(words, " ".join(name.split()))
    longest = max(map(len, known), default=0)
    linked = problems.copy()
    linked["entity"] = [
        entity if isinstance(entity, str) and entity.strip() else _longest_name(_words(question), known, longest)
        for entity, question in zip(problems["entity"], problems["question"], strict=True)
    ]
    return linked


@functools.cache
def concepts() -> dict[str, dict[str, Any]]:
    """name -> its `pattern` and several `why`, from concepts.yaml."""
    return yaml.safe_load(Path(__file__).with_name("concepts.yaml").read_text(encoding="utf-8"))


def tag_concepts(problems: pd.DataFrame) -> pd.DataFrame:
    """The problems with the mathematical concept of their question as `topic`: of several, the rarest among all problems.

    A problem in which none is recognised keeps no topic, so that no passage is made of it. The topic that it had becomes
    its `subject`.
    """
    patterns = {name: re.compile(entry["pattern"]) for name, entry in concepts().items()}
    found = [
        [name for name, pattern in patterns.items() if pattern.search(question.lower())] for question in problems["question"]
    ]
    counts = Counter(name for names in found for name in names)
    tagged = problems.assign(subject=problems["topic"])
    tagged["topic"] = [min(names, key=counts.__getitem__) if names else None for names in found]
    return tagged


def make_related_groups(
    problems: pd.DataFrame,
    vectors: np.ndarray,
    *,
    n_groups: int,
    problems_per_group: int,
    max_uses: int,
    max_similarity: float,
    seed: int,
    one_task: bool = False,
) -> list[Group]:
    """Groups of neighbours in an embedding: related, of different tasks (or topics of one task), and not copies.

    `vectors` are unit vectors, float32 [n_problems, d], in the order of the rows. Starting from a problem that is used
    least, a group takes a near and little used neighbour of another task, then of any task and topic that it lacks;
    no two of its problems may be more similar (cosine) than `max_similarity`. What they share is named by rare words that
    two of them have. With `one_task` (an ablation) all are of one task. Limits are as in `grouping.make_groups`.
    """
    refuse_bad(problems)
    order = np.argsort(problems["id"].to_numpy(), kind="stable")
    rows = list(problem_rows(problems.iloc[order]).values())
    chooser = _Chooser(rows, np.ascontiguousarray(vectors[order], dtype=np.float32), max_uses, max_similarity, one_task)
    name = _namer(rows)
    shuffle = random.Random(f"related groups/{seed}")
    starts = [(0, shuffle.random(), place) for place in range(len(rows))]
    heapq.heapify(starts)
    made: set[frozenset[int]] = set()
    groups: list[Group] = []
    while starts and len(groups) < n_groups:
        used, _, start = heapq.heappop(starts)
        now = chooser.uses[start]
        if used < now < max_uses:  # it was a neighbour since: to its place in the queue
            heapq.heappush(starts, (now, shuffle.random(), start))
        if used < now:
            continue
        for skip in range(_TRIES):
            chosen = chooser.choose(start, problems_per_group, skip)
            if chosen and frozenset(chosen) not in made:
                break
        else:
            continue
        made.add(frozenset(chosen))
        chooser.uses[chosen] += 1
        if now + 1 < max_uses:
            heapq.heappush(starts, (now + 1, shuffle.random(), start))
        shuffle.shuffle(chosen)
        groups.append(Group.of([rows[place].id for place in chosen], "knowledge", name(chosen)))
    return groups


class _Chooser:
    """Chooses neighbours of a problem, by their places in `rows`."""

    def __init__(
        self, rows: Sequence[Problem], vectors: np.ndarray, max_uses: int, max_similarity: float, one_task: bool
    ) -> None:
        tasks = [row.task for row in rows]
        if len(set(tasks)) == 1 and not one_task:  # then its topics take the place of tasks
            tasks = [row.topic or row.task for row in rows]
            if len(set(tasks)) == 1:
                raise TraitError("No groups can be made: all problems are of one task and one topic. Add another task.")
        self.tasks = np.unique(tasks, return_inverse=True)[1]
        self.kinds = np.unique([f"{row.task}\n{row.topic}" for row in rows], return_inverse=True)[1]
        self.vectors, self.max_uses, self.max_similarity, self.one_task = vectors, max_uses, max_similarity, one_task
        self.uses = np.zeros(len(rows), np.int64)
        self.near = np.concatenate(list(self._neighbors()))

    def choose(self, start: int, places: int, skip: int) -> list[int]:
        """`start` and neighbours, `places` in all, or nothing; the first `skip` neighbours are passed over."""
        near = self.near[start]
        near = near[near >= 0]
        near = near[self.uses[near] < self.max_uses]
        near = near[np.argsort(np.arange(len(near)) / _RANKS_PER_USE + self.uses[near], kind="stable")]
        others = near[self.tasks[near] != self.tasks[start]]
        if not (self.one_task or len(others)):
            return []
        chosen = [start]
        if not self.one_task:
            self._take(chosen, others[skip:], 2)
            if len(chosen) < 2:
                return []
            self._take(chosen, near, places, new_kinds=True)
        self._take(chosen, near[skip if self.one_task else 0 :], places)
        return chosen if len(chosen) == places else []

    def _take(self, chosen: list[int], candidates: np.ndarray, places: int, new_kinds: bool = False) -> None:
        for place in candidates.tolist():
            if len(chosen) >= places:
                return
            if place in chosen or (new_kinds and (self.kinds[chosen] == self.kinds[place]).any()):
                continue
            if float((self.vectors[chosen] @ self.vectors[place]).max()) <= self.max_similarity:
                chosen.append(place)

    def _neighbors(self) -> Iterator[np.ndarray]:
        """For each block of rows the nearest rows of other tasks, then of their own, the nearest first, -1 where none."""
        n = len(self.vectors)
        k = min(_NEIGHBORS, n - 1)
        block = max(1, _BLOCK_ENTRIES // n)
        for first in range(0, n, block):
            cosines = self.vectors[first : first + block] @ self.vectors.T
            cosines[np.arange(len(cosines)), first + np.arange(len(cosines))] = _NONE
            own = self.tasks[first : first + block, None] == self.tasks[None, :]
            found = []
            for wanted in (own,) if self.one_task else (~own, own):
                allowed = np.where(wanted, cosines, _NONE)
                top = np.argpartition(-allowed, k - 1, axis=1)[:, :k]
                value = np.take_along_axis(allowed, top, axis=1)
                order = np.argsort(-value, axis=1, kind="stable")
                top, value = np.take_along_axis(top, order, axis=1), np.take_along_axis(value, order, axis=1)
                related = (value > _NONE) & (value >= _LEAST_SHARE * value[:, :1])
                found.append(np.where(related, top, -1).astype(np.int32))
            yield np.concatenate(found, axis=1)


def _namer(rows: Sequence[Problem]) -> Callable[[Sequence[int]], str]:
    """Places of rows -> what they share: at most three words that two of them have, the rarest elsewhere first."""
    bags = [content_words(f"{row.question} {row.solution or ''}") for row in rows]
    documents = Counter(word for bag in bags for word in bag)

    def name(chosen: Sequence[int]) -> str:
        counts = Counter(word for place in chosen for word in bags[place])
        shared = [word for word, count in counts.items() if count >= 2]
        shared.sort(key=lambda word: (-counts[word] * np.log(len(rows) / documents[word]), word))
        topics = list(dict.fromkeys(rows[place].topic for place in chosen if rows[place].topic))
        return ", ".join(shared[:3]) or " and ".join(topics[:3]) or "related ideas"

    return name


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def _longest_name(words: list[str], known: dict[tuple[str, ...], str], longest: int) -> str | None:
    for length in range(min(longest, len(words)), 0, -1):
        for start in range(len(words) - length + 1):
            found = known.get(tuple(words[start : start + length]))
            if found:
                return found
    return None
