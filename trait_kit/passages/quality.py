"""How good passages are: what was kept, why the rest was not, and how varied they are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from trait_kit.engine.minhash import signatures

_SAMPLE = 2_000  # passages compared with each other, n-grams counted: the numbers depend on how many
_EXAMPLE = 120  # characters of a reason that are shown


def yield_by_reason(passages: pd.DataFrame, rejected: pd.DataFrame) -> pd.DataFrame:
    """One row for what was kept and one a reason, by drafts: how many, their share of all drafts, and an example."""
    told = rejected["reason"].str.partition(":").groupby(0, sort=False)[2].agg(["size", "first"])
    told = told.sort_values("size", ascending=False, kind="stable")
    table = pd.DataFrame({"outcome": ["kept", *told.index], "drafts": [len(passages), *told["size"]]})
    table["share"] = table["drafts"] / max(1, table["drafts"].sum())
    return table.assign(example=["", *told["first"].str.strip().str[:_EXAMPLE]])


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
    nearest = np.zeros(len(marks))
    for place in range(len(marks)):
        same = (marks == marks[place]).mean(axis=1)
        same[place] = 0.0
        nearest[place] = same.max(initial=0.0)
    return nearest
