"""What relates problems, and the groups that come of it: a field, a name found in the text, a concept, a topic, nearness.

For entities it is names found in the questions. For knowledge it is mathematical concepts recognised there (concepts.yaml),
topics that a language model is asked for, or neighbours in an embedding, for any domain.
"""

from __future__ import annotations

import heapq
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from trait_kit import demo
from trait_kit.embedding import embed
from trait_kit.engine.files import TraitError
from trait_kit.engine.ledger import Ledger, agree
from trait_kit.engine.llm import Endpoint, Request, ask
from trait_kit.passages import prompts
from trait_kit.passages.grouping import make_groups, refuse_bad
from trait_kit.passages.material import Group, Problem, content, content_words, problem_rows

_NEIGHBORS = 24  # of other tasks, and as many of its own, that a problem may be joined with
_LEAST_SHARE = 0.5  # of the nearest one's cosine, below which a neighbour is not related
_MOST_ALIKE = 0.9  # cosine of two problems of one group: beyond it they are copies
_RANKS_PER_USE = 4  # ranks among the neighbours that one use less makes up for
_TRIES = 8  # groups around one problem, before it counts as exhausted
_MAX_TOPIC_WORDS = 6
_CHARACTERS_A_TOKEN, _TYPICAL_TOPIC = 4, 10  # for the estimate


def plan_groups(
    problems: pd.DataFrame, params, endpoint: Endpoint | None = None, ledger: Ledger | None = None
) -> tuple[pd.DataFrame, list[Group]]:
    """(problems with what relates them, groups). Only `shared_from: teacher` asks anybody, on the bill of `ledger`."""
    if params.shared_from == "text":
        problems = link_entities(problems, _names(params.entity_names))
    elif params.shared_from == "concepts":
        problems = tag_concepts(problems)
    elif params.shared_from == "teacher":
        problems = ask_topics(problems, endpoint or Endpoint.of(params), ledger, params.max_attempts)
    shape = {
        "n_groups": params.n_groups,
        "problems_per_group": params.problems_per_group,
        "max_uses": params.max_uses,
        "seed": params.seed,
        "one_task": params.variant == "single_task",
    }
    if params.shared_from != "embedding":
        return problems, make_groups(problems, params.grouping, **shape)
    vectors = embed(problems["question"].tolist(), demo.resolve_model(params.embedding_model))
    return problems, make_related_groups(problems, vectors, **shape)


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


def tag_concepts(problems: pd.DataFrame) -> pd.DataFrame:
    """The problems with the mathematical concept of their question as `topic`: of several, the rarest among all problems.

    A problem in which none is recognised keeps no topic, so that no passage is made of it. The topic that it had becomes
    its `subject`.
    """
    patterns = {name: re.compile(entry["pattern"]) for name, entry in content("concepts").items()}
    found = [
        [name for name, pattern in patterns.items() if pattern.search(question.lower())] for question in problems["question"]
    ]
    counts = Counter(name for names in found for name in names)
    tagged = problems.assign(subject=problems["topic"])
    tagged["topic"] = [min(names, key=counts.__getitem__) if names else None for names in found]
    return tagged


def ask_topics(problems: pd.DataFrame, endpoint: Endpoint, ledger: Ledger | None, attempts: int = 2) -> pd.DataFrame:
    """The problems with the teacher's `topic`, in one spelling; the topic that they had becomes their `subject`.

    A problem whose topic could not be had keeps none, so that no passage is made of it.
    """
    requests = [Request(prompts.topic(question), read_topic) for question in problems["question"]]
    characters = sum(len(message["content"]) for request in requests for message in request.messages())
    estimate = endpoint.estimate(len(requests), characters // _CHARACTERS_A_TOKEN, _TYPICAL_TOPIC * len(requests))
    print(f"Topics: {agree(estimate, endpoint.max_cost_usd)}")
    replies = ask(requests, endpoint, ledger, attempts=max(2, attempts))
    return problems.assign(subject=problems["topic"], topic=[reply.value for reply in replies])


def read_topic(answer: str) -> str:
    """The topic of a model's reply in lower case and one spelling; ValueError says what is wrong with it."""
    words = re.findall(r"[\w'-]+", answer.strip().partition("\n")[0].casefold().removeprefix("topic:"))
    if not 1 <= len(words) <= _MAX_TOPIC_WORDS or not re.search(r"[^\W\d_]", answer):
        raise ValueError(f"a topic is a name of two to four words, and this has {len(words)}")
    return " ".join(words)


def make_related_groups(
    problems: pd.DataFrame,
    vectors: np.ndarray,
    *,
    n_groups: int,
    problems_per_group: int,
    max_uses: int,
    seed: int,
    one_task: bool = False,
    most_alike: float = _MOST_ALIKE,
) -> list[Group]:
    """Groups of neighbours in an embedding: related, of different tasks (or topics of one task), and not copies.

    `vectors` are unit vectors, float32 [n_problems, d], in the order of the rows. Starting from a problem that is used
    least, a group takes a near and little used neighbour of another task, then of any task and topic that it lacks; no two
    of its problems may be more similar (cosine) than `most_alike`. What they share is named by rare words that two of them
    have. With `one_task` (an ablation) all are of one task. Limits are as in `grouping.make_groups`.
    """
    refuse_bad(problems)
    order = np.argsort(problems["id"].to_numpy(), kind="stable")
    rows, vectors = list(problem_rows(problems.iloc[order]).values()), vectors[order]
    tasks = [row.task for row in rows]
    if len(set(tasks)) == 1 and not one_task:  # then its topics take the place of tasks
        tasks = [row.topic or row.task for row in rows]
        if len(set(tasks)) == 1:
            raise TraitError("No groups can be made: all problems are of one task and one topic. Add another task.")
    kinds = np.array([f"{row.task}\n{row.topic}" for row in rows])
    others, own = _neighbors(vectors, np.array(tasks))
    uses, name, shuffle = np.zeros(len(rows), int), _namer(rows), random.Random(f"related groups/{seed}")

    def choose(start: int, skip: int) -> list[int]:
        """`start` and neighbours; the first `skip` of them are passed over."""
        chosen = [start]

        def take(near: np.ndarray, places: int, new_kinds: bool = False) -> None:
            near = near[uses[near] < max_uses]
            for place in near[np.argsort(np.arange(len(near)) / _RANKS_PER_USE + uses[near], kind="stable")].tolist():
                fits = place not in chosen and float((vectors[chosen] @ vectors[place]).max()) <= most_alike
                if len(chosen) < places and fits and not (new_kinds and kinds[place] in kinds[chosen]):
                    chosen.append(place)

        if one_task:
            take(own[start][skip:], problems_per_group)
            return chosen
        take(others[start][skip:], 2)
        if len(chosen) == 2:
            both = np.concatenate([others[start], own[start]])
            take(both, problems_per_group, new_kinds=True)
            take(both, problems_per_group)
        return chosen

    made: set[frozenset[int]] = set()
    groups: list[Group] = []
    starts = [(0, shuffle.random(), place) for place in range(len(rows))]
    heapq.heapify(starts)
    while starts and len(groups) < n_groups:
        used, _, start = heapq.heappop(starts)
        if used < uses[start]:  # it was a neighbour since: to its place in the queue
            if uses[start] < max_uses:
                heapq.heappush(starts, (int(uses[start]), shuffle.random(), start))
            continue
        tried = (choose(start, skip) for skip in range(_TRIES))
        chosen = next((some for some in tried if len(some) == problems_per_group and frozenset(some) not in made), None)
        if chosen is None:
            continue
        made.add(frozenset(chosen))
        uses[chosen] += 1
        if uses[start] < max_uses:
            heapq.heappush(starts, (int(uses[start]), shuffle.random(), start))
        shuffle.shuffle(chosen)
        groups.append(Group.of([rows[place].id for place in chosen], "knowledge", name(chosen)))
    return groups


def _neighbors(vectors: np.ndarray, tasks: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each row its nearest rows of other tasks, and of its own, the nearest first; only those that are related."""
    from sklearn.neighbors import NearestNeighbors

    found: tuple[list, list] = [np.zeros(0, int)] * len(tasks), [np.zeros(0, int)] * len(tasks)
    for task in np.unique(tasks):
        asked = np.flatnonzero(tasks == task)
        for near, pool in zip(found, (np.flatnonzero(tasks != task), asked), strict=True):
            if not len(pool):
                continue
            index = NearestNeighbors(n_neighbors=min(_NEIGHBORS + 1, len(pool)), metric="cosine").fit(vectors[pool])
            distances, places = index.kneighbors(vectors[asked])
            for row, cosines, some in zip(asked.tolist(), 1 - distances, pool[places], strict=True):
                cosines, some = cosines[some != row], some[some != row]
                near[row] = some[cosines >= _LEAST_SHARE * cosines[:1]][:_NEIGHBORS] if len(some) else some
    return found


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


def _names(path: str) -> list[str]:
    if not path:
        return []
    try:
        with open(path, encoding="utf-8") as lines:
            return [line.strip() for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TraitError(f"entity_names: {path} cannot be read ({error}). Give a UTF-8 file with one name a line.") from None
