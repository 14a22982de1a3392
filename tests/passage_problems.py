"""Small problems of five tasks with right worked solutions, shared by the tests on passages."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from trait_kit import tables
from trait_kit.params import PassageParams
from trait_kit.passages.grouping import COLUMN, plan_groups
from trait_kit.passages.material import Draft, Group
from trait_kit.passages.teachers import Teacher


def params(**changes) -> PassageParams:
    required = {"in_domain": "d", "web": "w", "tasks": ["a"], "base_model": "m", "grouping": "topic"}
    sizes = {"problems_per_task": 9, "test_items_per_task": 9, "n_groups": 9}
    return PassageParams(**{**required, **sizes, **changes})


def make_groups(problems: pd.DataFrame, grouping: str, **changes) -> list[Group]:
    """The groups of problems that share what their table says."""
    return plan_groups(problems, params(grouping=COLUMN[grouping], **changes))[1]


def count_tokens(texts: list[str]) -> np.ndarray:
    return np.array([len(text) // 4 for text in texts], dtype=np.int64)


class QuotingTeacher(Teacher):
    """Worked solutions, and an enlightenment that passes: the end of every question beside words that no other has."""

    def __init__(self) -> None:
        super().__init__(params(teacher="none"))
        self.name, self.can_mend = "quoting", frozenset({"enlightenment"})

    def write(self, groups: Sequence[Group]) -> list[Draft]:
        return [self._around(group, draft) for group, draft in zip(groups, super().write(groups), strict=True)]

    def _around(self, group: Group, draft: Draft) -> Draft:
        if draft.fault:
            return draft
        rng = random.Random(f"{group.id}/{len(group.refused)}")
        told = [f"{_nonsense(rng)} turns on {re.sub('[.:?] ', ' ', row.question)[-60:]!r}" for row in group.rows]
        text = f"They share {group.shared}, {_nonsense(rng)}: {'; '.join(told)}."
        return replace(draft, enlightenment=text, parts=(text,))


def _nonsense(rng: random.Random) -> str:
    return " ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(6))


def math_problems(per_task: int = 8) -> pd.DataFrame:
    """Three tasks, two topics; every number follows from the index, every solution is right."""
    rows = []

    def add(task: str, topic: str, index: int, question: str, answer: str, solution: str) -> None:
        identity = f"{task}-{index}"
        solution = f"{solution} The answer is {answer}."
        rows.append((identity, task, question, answer, solution, None, None, topic, "train"))

    names = [
        "Ada",
        "Bruno",
        "Chiara",
        "Dmitri",
        "Esther",
        "Farid",
        "Greta",
        "Hugo",
        "Irene",
        "Jonas",
        "Karim",
        "Lotte",
    ]
    things = [
        "marbles",
        "stamps",
        "pencils",
        "shells",
        "coins",
        "cards",
        "beads",
        "apples",
        "books",
        "kites",
        "plums",
        "keys",
    ]
    for index in range(per_task):
        boxes, size = 13 + index, 24 + 3 * index
        name, thing = names[index % 12], things[index % 12]
        add(
            "word_problems",
            "equal groups",
            index,
            f"{name} packs {boxes} boxes with {size} {thing} in each box. How many {thing} does {name} pack?",
            str(boxes * size),
            f"Every box holds the same number, so multiply: {boxes} * {size} = {boxes * size} {thing}.",
        )
        factor, value = 31 + 2 * index, 17 + index
        add(
            "linear_equations",
            "equal groups",
            index,
            f"Solve for k: {factor}*k = {factor * value}",
            str(value),
            f"{factor} groups of k make {factor * value}, so divide: k = {factor * value} / {factor} = {value}.",
        )
        top, bottom, shared = 3 + index, 11 + 2 * index, 7
        add(
            "fraction_simplification",
            "fractions and ratios" if index % 2 else "equal groups",
            index,
            f"Simplify the fraction {top * shared}/{bottom * shared} to its lowest terms.",
            f"{top}/{bottom}",
            f"Both parts divide by {shared}: {top * shared} / {shared} = {top} and {bottom * shared} / {shared} = {bottom}.",
        )
    columns = [name for name in tables.SCHEMAS["problems"].names if name != "template"]
    return pd.DataFrame(rows, columns=columns).assign(template=None)


def ads_problems() -> pd.DataFrame:
    rows = []
    for city, region in [("Machu Picchu", "Peru"), ("Kyoto", "Japan"), ("Lisbon", "Portugal")]:
        query, page = (
            f"{city.lower()} luxury tour packages",
            f"Private {city} journeys with five-star hotels and own guides.",
        )
        rows += [
            (
                f"rewrite-{city}",
                "query_rewriting",
                f"Rewrite this search query so that it matches travel ads: {query}",
                f"private luxury tours to {city}",
                f"{city} lies in {region}. The words 'luxury' and 'packages' show a wish for comfort, arranged for the "
                f"traveller. The answer is private luxury tours to {city}.",
                None,
            ),
            (
                f"page-{city}",
                "query_landing_page_relevance",
                f"Is this landing page relevant? Query: {city.lower()} cheap hostel dormitory. Landing page: {page}",
                "irrelevant",
                "The query asks for a cheap hostel dormitory, while the page sells five-star hotels and private guides. "
                "The answer is irrelevant.",
                ["relevant", "irrelevant"],
            ),
            (
                f"ad-{city}",
                "query_ad_relevance",
                f"Is this ad relevant? Query: {query}. Ad title: Backpacker bunk beds. Description: Lowest rates tonight.",
                "irrelevant",
                "Someone who wants luxury tour packages does not look for backpacker bunk beds at the lowest rates. "
                "The answer is irrelevant.",
                ["relevant", "irrelevant"],
            ),
        ]
    frame = pd.DataFrame(rows, columns=["id", "task", "question", "answer", "solution", "choices"])
    return frame.assign(
        entity=[identity.partition("-")[2] for identity in frame["id"]], topic="luxury travel", split="train"
    )
