"""What relates problems, and the groups of them that passages join: of different tasks (paper, section 3.2).

What a group shares is a column: `topic` in knowledge-centred domains such as mathematics, `entity` in
entity-centred ones such as ads. Where the task files name no topic it is found: mathematical concepts in the questions
(concepts.yaml), or neighbours in an embedding.
"""

import heapq
import random
import re
from collections import Counter, defaultdict

import numpy as np
import pandas as pd

from trait_kit.engine.files import TraitError, digest
from trait_kit.models import embed
from trait_kit.passages.material import Group, content, content_words, problem_rows

COLUMN = {"knowledge": "topic", "entity": "entity"}
Kind = tuple[str, str]  # task, subject
_ATTEMPTS = 8  # draws for a new group until what is shared counts as exhausted
_NEIGHBORHOOD = 12  # problems that are near each other
_MOST_ALIKE = 0.9  # cosine of two problems: beyond it they are copies


def plan_groups(problems: pd.DataFrame, params) -> tuple[pd.DataFrame, list[Group]]:
    """(problems with what relates them; up to `n_groups` groups of problems that share it).

    A group joins two tasks or more, and no task twice while enough tasks that share the value have problems left; with a
    column `subject`, two subjects of one task may do, and a task that is alone is grouped with itself. The least used
    problems come first, each in at most `max_uses` groups; no two groups hold the same.
    """
    for row in problems[problems["split"] != "train"].itertuples():
        raise TraitError(
            f"Problem {row.id} of task {row.task} is from the split '{row.split}'; passages may hold train problems only."
        )
    if params.grouping == "concepts":
        problems = tag_concepts(problems)
    elif params.grouping == "embedding":
        problems = tag_neighborhoods(
            problems, embed(problems["question"].tolist(), params.embedding_model), params.seed
        )
    column, shuffle = COLUMN[params.kind], random.Random(f"groups/{params.seed}")
    pools, rows = _pools(problems, column, shuffle, params.max_uses), problem_rows(problems)
    if not pools:
        tasks = ", ".join(sorted(problems["task"].unique()))
        raise TraitError(
            f"No groups can be made: no {column} is shared by two problems of different tasks, or of the only one "
            f"({tasks}). Fill the column '{column}' in the task files, or change passages.grouping or problems_per_task."
        )
    turns = [(0.0, place) for place in range(len(pools))]  # pools take turns in proportion to their size
    made: set[frozenset[str]] = set()
    groups: list[Group] = []
    while turns and len(groups) < params.n_groups:
        placed, place = heapq.heappop(turns)
        pool = pools[place]
        if chosen := pool.draw(params.problems_per_group, made, shuffle):
            made.add(frozenset(chosen))
            heapq.heappush(turns, (placed + len(chosen) / pool.size, place))
            name = f"p-{digest([params.kind, pool.shared, chosen])[:16]}"
            groups.append(Group(name, [rows[problem_id] for problem_id in chosen], params.kind, pool.shared))

    return problems, groups


def tag_concepts(problems: pd.DataFrame) -> pd.DataFrame:
    """The problems with the mathematical concept of their question as `topic`: of several, the rarest among all problems.

    Where none is recognised there is no topic, and so no passage; the topic that was becomes the `subject`.
    """
    concepts = {name: re.compile(pattern) for name, pattern in content("concepts.yaml").items()}
    questions = problems["question"].str.lower()
    found = [[name for name, pattern in concepts.items() if pattern.search(text)] for text in questions]
    counts = Counter(name for names in found for name in names)
    topics = [min(names, key=counts.__getitem__, default=None) for names in found]
    return problems.assign(subject=problems["topic"], topic=topics)


def tag_neighborhoods(problems: pd.DataFrame, vectors: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """The problems with the neighbourhood of their embedding as `topic`, named by its rare words.

    `vectors`: unit vectors, float32 [n_problems, d]. Neighbourhoods are clusters of about a dozen problems (k-means); of two
    that are nearly copies the later one gets no topic.
    """
    from sklearn.cluster import KMeans

    order = np.argsort(problems["id"].to_numpy(), kind="stable")
    n_clusters = max(1, round(len(order) / _NEIGHBORHOOD))
    clusters = KMeans(n_clusters, n_init=4, random_state=seed).fit_predict(vectors[order])
    bags = list(map(content_words, problems["question"]))
    documents = Counter(word for bag in bags for word in bag)
    topics: list[str | None] = [None] * len(order)
    for cluster in range(n_clusters):
        kept: list[int] = []
        for place in order[clusters == cluster].tolist():
            if not kept or float((vectors[kept] @ vectors[place]).max()) <= _MOST_ALIKE:
                kept.append(place)
        counts = Counter(word for place in kept for word in bags[place])
        rare = sorted(counts, key=lambda word: (-counts[word] * np.log(len(bags) / documents[word]), word))
        for place in kept:
            topics[place] = ", ".join(rare[:3]) or f"neighbourhood {cluster}"
    return problems.assign(subject=problems["topic"], topic=topics)


def coverage(groups: list[Group], problems: pd.DataFrame) -> pd.DataFrame:
    """One row a task: its problems, how many of them passages use and do not use, and the places they take."""
    uses = problems["id"].map(Counter(row.id for group in groups for row in group.rows))
    kinds = {"problems": "size", "used": lambda some: (some > 0).sum(), "unused": lambda some: (some == 0).sum()}
    return uses.groupby(problems["task"]).agg(**kinds, places="sum").reset_index()


class _Pool:
    """The problems that share one value: for each kind a heap of (uses, random, id), least used first."""

    def __init__(self, shared: str, kinds: dict[Kind, list[str]], max_uses: int, shuffle: random.Random) -> None:
        self.shared, self.max_uses = shared, max_uses
        self.size = sum(len(ids) for ids in kinds.values())
        self.heaps = {
            kind: [(0, shuffle.random(), problem_id) for problem_id in ids] for kind, ids in kinds.items()
        }
        for heap in self.heaps.values():
            heapq.heapify(heap)

    def draw(self, places: int, made: set[frozenset[str]], shuffle: random.Random) -> list[str] | None:
        """Of as many tasks as there are places, then of other subjects; None where nothing is new."""
        for _ in range(_ATTEMPTS):
            if sum(bool(heap) for heap in self.heaps.values()) < 2:
                return None
            taken: list[tuple[Kind, int, str]] = []
            while len(taken) < places and (kind := self._next([kind for kind, _, _ in taken], shuffle)):
                uses, _, problem_id = heapq.heappop(self.heaps[kind])
                taken.append((kind, uses, problem_id))
            chosen = [problem_id for _, _, problem_id in taken]
            fresh = frozenset(chosen) not in made
            for kind, uses, problem_id in taken:
                if uses + fresh < self.max_uses:
                    heapq.heappush(self.heaps[kind], (uses + fresh, shuffle.random(), problem_id))
            if fresh:
                shuffle.shuffle(chosen)
                return chosen
        return None

    def _next(self, taken: list[Kind], shuffle: random.Random) -> Kind | None:
        """Of a task not taken yet, else not the only kind taken; then the least used, the fullest."""
        tasks = {task for task, _ in taken}

        def rank(kind: Kind) -> tuple:
            heap, repeats = self.heaps[kind], (kind[0] in tasks, set(taken) == {kind})
            return *repeats, heap[0][0], taken.count(kind), -len(heap), shuffle.random()

        return min((kind for kind, heap in self.heaps.items() if heap), key=rank, default=None)


def _pools(problems: pd.DataFrame, column: str, shuffle: random.Random, max_uses: int) -> list[_Pool]:
    usable = problems.assign(shared=problems[column].fillna("").str.strip(), subject=problems.get("subject", ""))
    usable = usable[usable["shared"] != ""].fillna({"subject": ""}).sort_values("id")
    # the subjects of one task count as tasks
    if problems["task"].nunique() == 1:
        usable = usable.assign(task=usable["subject"], subject=usable["id"])
    found: dict[str, dict[Kind, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in usable[["shared", "task", "subject", "id"]].itertuples(index=False):
        found[row.shared][row.task, row.subject].append(row.id)
    kept = [shared for shared in sorted(found) if len(found[shared]) > 1]
    shuffle.shuffle(kept)
    return [_Pool(shared, dict(sorted(found[shared].items())), max_uses, shuffle) for shared in kept]
