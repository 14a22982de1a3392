"""Which problems a passage may hold: none that a test set holds, and none that plain text cannot show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pandas as pd

from trait_kit.engine.questions import QuestionIndex

REASONS = ("same as a test question", "overlaps a test question", "needs a drawing")
_BATCH = 5_000  # problems whose n-grams are in memory at a time
_DRAWING = "[asy]"  # MATH's pictures are programs: hundreds of coordinates that teach nothing


def screen_problems(problems: pd.DataFrame, test_questions: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(problems that passages may hold, what was dropped by task and reason).

    Compared both ways: a problem is dropped where a test question stands in its question or solution, whole or by at least
    half of its 13-grams (`data.contamination`), and where the problem stands so in a test question.
    """
    reasons: dict[int, str] = {}
    texts = [
        f"{question}\n{solution or ''}"
        for question, solution in zip(problems["question"], problems["solution"], strict=True)
    ]
    for place, text in enumerate(texts):
        if _DRAWING in text:
            reasons[place] = REASONS[2]
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
