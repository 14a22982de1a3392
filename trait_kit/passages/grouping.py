"""Groups of problems that a passage joins: of different tasks, and related by something that they share.

The paper's passages (section 3.2) join problems of *different* downstream tasks. What a group
shares is a column of the problems table (`make_groups`): `topic` for knowledge-centred domains such
as mathematics, `entity` for entity-centred ones such as ads; relating.py has what fills these
columns, or does without. The least used problems come first, so that groups spread over all
problems before any is used again.
"""

import heapq
import random
from collections import defaultdict

import pandas as pd

from trait_kit.engine.files import TraitError, digest
from trait_kit.passages.material import Group

COLUMN = {"knowledge": "topic", "entity": "entity"}
Kind = tuple[str, str]  # task, subject
_ATTEMPTS = 8  # draws for a group that was not made before, until what is shared counts as exhausted


def make_groups(
    problems: pd.DataFrame,
    grouping: str,
    *,
    n_groups: int,
    problems_per_group: int,
    max_uses: int,
    seed: int,
) -> list[Group]:
    """Up to `n_groups` groups of `problems_per_group` problems that share a topic (knowledge) or an entity.

    Every group joins at least two tasks, and no task twice while enough tasks that share the value
    have problems left (where the table has a column `subject`, two subjects of one task may do; a
    task that is alone is grouped with itself). A problem appears in at most `max_uses` groups, and
    no two groups hold the same problems. Fewer groups than asked for come back where the problems
    run out (`coverage` shows where). The result depends on the problems and the seed, not on the
    order of the rows.
    """
    column = COLUMN[grouping]
    _refuse_bad(problems)
    shuffle = random.Random(f"groups/{seed}")
    pools = _pools(problems, column, shuffle, max_uses)
    if not pools:
        tasks = ", ".join(sorted(problems["task"].unique()))
        raise TraitError(
            f"No groups can be made: no {column} is shared by two problems of different tasks, or of the only one (tasks: "
            f"{tasks}). Fill the column '{column}' in the task files, take more problems of each task, or set "
            "passages.grouping to something that relates the problems without it."
        )
    turns = [(0.0, place) for place in range(len(pools))]  # pools take turns in proportion to their size
    made: set[frozenset[str]] = set()
    groups: list[Group] = []
    while turns and len(groups) < n_groups:
        placed, place = heapq.heappop(turns)
        pool = pools[place]
        chosen = pool.draw(problems_per_group, made, shuffle)
        if chosen is None:
            continue
        made.add(frozenset(chosen))
        heapq.heappush(turns, (placed + len(chosen) / pool.size, place))
        name = f"p-{digest([grouping, pool.shared, chosen])[:16]}"
        groups.append(Group(name, tuple(chosen), grouping, pool.shared))
    return groups


def coverage(groups: list[Group], problems: pd.DataFrame) -> pd.DataFrame:
    """One row a task: its problems, how many are used in a passage, places they take, and the tasks they meet there."""
    placed = pd.DataFrame([(group.id, name) for group in groups for name in group.problem_ids], columns=["group", "id"])
    placed = placed.merge(problems[["id", "task"]])
    by_task, pairs = (
        placed.groupby("task"),
        placed.merge(placed, on="group", suffixes=("", "_met")).query("task != task_met"),
    )
    met = pairs.groupby("task")["task_met"].unique().map(lambda tasks: ", ".join(sorted(tasks)))
    table = pd.DataFrame({"problems": problems.groupby("task").size(), "used": by_task["id"].nunique()})
    table = table.assign(unused=0, places=by_task.size()).fillna(0).astype(int)
    table["unused"] = table["problems"] - table["used"]
    return table.assign(joined_with=met).fillna({"joined_with": ""}).reset_index()


def _refuse_bad(problems: pd.DataFrame) -> None:
    duplicated = problems.loc[problems["id"].duplicated(), "id"]
    if len(duplicated):
        raise TraitError(f"Two problems have the id {duplicated.iloc[0]!r}; ids must be unique over all tasks.")
    for row in problems[problems["split"] != "train"].itertuples():
        raise TraitError(
            f"Problem {row.id} of task {row.task} is from the split '{row.split}'. Passages are trained on, "
            "so they may only hold problems of the train split."
        )


class _Pool:
    """The problems that share one value: for each kind (task and subject) a heap of (uses, random, id), least used first."""

    def __init__(self, shared: str, kinds: dict[Kind, list[str]], max_uses: int, shuffle: random.Random) -> None:
        self.shared, self.max_uses = shared, max_uses
        self.size = sum(len(ids) for ids in kinds.values())
        self.heaps = {kind: [(0, shuffle.random(), problem_id) for problem_id in ids] for kind, ids in kinds.items()}
        for heap in self.heaps.values():
            heapq.heapify(heap)

    def draw(self, places: int, made: set[frozenset[str]], shuffle: random.Random) -> list[str] | None:
        """Problems of as many tasks as there are places, then of other subjects; None once nothing new can be drawn."""
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
        """The kind to take from: of a task not taken yet, else not the only kind taken; then the least used, the fullest."""
        tasks = {task for task, _ in taken}

        def rank(kind: Kind) -> tuple:
            repeats = kind[0] in tasks, set(taken) == {kind}
            return *repeats, self.heaps[kind][0][0], taken.count(kind), -len(self.heaps[kind]), shuffle.random()

        return min((kind for kind, heap in self.heaps.items() if heap), key=rank, default=None)


def _pools(problems: pd.DataFrame, column: str, shuffle: random.Random, max_uses: int) -> list[_Pool]:
    """One pool for each value that at least two kinds of problem have."""
    usable = problems.assign(shared=problems[column].fillna("").str.strip(), subject=problems.get("subject", ""))
    usable = usable[usable["shared"] != ""].fillna({"subject": ""}).sort_values("id")
    if problems["task"].nunique() == 1:  # then its subjects count as tasks, and every problem is a kind of its own
        usable = usable.assign(task=usable["subject"], subject=usable["id"])
    found: dict[str, dict[Kind, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in usable[["shared", "task", "subject", "id"]].itertuples(index=False):
        found[row.shared][row.task, row.subject].append(row.id)
    kept = [shared for shared in sorted(found) if len(found[shared]) > 1]
    shuffle.shuffle(kept)
    return [_Pool(shared, dict(sorted(found[shared].items())), max_uses, shuffle) for shared in kept]
