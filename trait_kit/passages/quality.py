"""How good passages are: what was kept and why the rest was not, how varied they are, and which to read first."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from trait_kit.engine.minhash import signatures
from trait_kit.passages.material import content_words, marks_of, numbers, problem_rows

_SAMPLE = 2_000  # passages compared with each other, n-grams counted: the numbers depend on how many
_EXAMPLE = 120  # characters of a reason that are shown


class Page(str):
    """HTML that a notebook shows by itself."""

    def _repr_html_(self) -> str:
        return str(self)


def yield_by_reason(passages: pd.DataFrame, rejected: pd.DataFrame) -> pd.DataFrame:
    """One row for what was kept and one a reason, by drafts: how many, their share of all drafts, and an example."""
    rows = [("kept", len(passages), "")]
    kinds = rejected["reason"].map(lambda reason: reason.partition(":")[0])
    for kind, count in kinds.value_counts().items():
        detail = str(rejected.loc[kinds == kind, "reason"].iloc[0]).partition(":")[2].strip()
        rows.append((kind, int(count), detail[:_EXAMPLE]))
    table = pd.DataFrame(rows, columns=["outcome", "drafts", "example"])
    table.insert(2, "share", table["drafts"] / max(1, table["drafts"].sum()))
    return table


def answer_rate(passages: pd.DataFrame, rejected: pd.DataFrame) -> float:
    """Share of the drafts whose paragraphs were checked for their gold answers that reach all of them."""
    passed = sum("gold answer" in checks for checks in [*passages["checks"], *rejected["checks"]])
    failed = sum(reason.startswith("gold answer:") for reason in rejected["reason"])
    return passed / max(1, passed + failed)


def diversity(passages: pd.DataFrame, problems: pd.DataFrame) -> dict[str, Any]:
    """Distinct n-grams, likeness and coverage; n-grams and likeness are those of at most 2,000 enlightenments.

    distinct_n (Li et al., 2016): different word n-grams divided by all of them. nearest: median similarity (Jaccard of word
    trigrams) to the most similar other enlightenment.
    """
    sample = passages.sample(min(_SAMPLE, len(passages)), random_state=0)
    words = [text.lower().split() for text in sample["enlightenment"]]
    found: dict[str, Any] = {}
    for n in (1, 2, 3, 4):
        grams = [tuple(text[start : start + n]) for text in words for start in range(len(text) - n + 1)]
        found[f"distinct_{n}"] = len(set(grams)) / max(1, len(grams))
    nearest = nearest_similarity(sample["enlightenment"].tolist())
    used = Counter(problem for group in passages["problem_ids"] for problem in group)
    tasks = Counter(task for group in passages["tasks"] for task in set(group))
    found |= {
        "nearest": float(np.median(nearest)) if len(nearest) else 0.0,
        "tasks": f"{len(tasks)} of {problems['task'].nunique()}",
        "passages_by_task": dict(sorted(tasks.items())),
        "shared_values": int(passages["shared"].nunique()),
        "problems_used": len(used) / max(1, len(problems)),
        "uses_a_problem": float(np.mean(list(used.values()))) if used else 0.0,
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


def ranked(passages: pd.DataFrame, problems: pd.DataFrame) -> pd.DataFrame:
    """A sample of the passages with what the checks measured, the best first: those to read are at both ends.

    `named`: of what only one of its problems has (words, numbers), how many the enlightenment takes up, for the problem
    that it says least about. `nearest`: as in `diversity`. `score` = named / (named + 3) - nearest.
    """
    rows, named = problem_rows(problems), []
    sample = passages.sample(min(_SAMPLE, len(passages)), random_state=0)
    for passage in sample.itertuples(index=False):
        pairs = zip(passage.problem_ids, passage.paragraphs, strict=True)
        marks = marks_of([f"{rows[problem].question} {text}" for problem, text in pairs])
        said = content_words(passage.enlightenment) | numbers(passage.enlightenment)
        named.append(min(len(some & said) for some in marks))
    sample = sample.assign(named=named, nearest=nearest_similarity(sample["enlightenment"].tolist()))
    sample["score"] = sample["named"] / (sample["named"] + 3) - sample["nearest"]
    return sample.sort_values(["score", "id"], ascending=[False, True]).reset_index(drop=True)


def browse(passages: pd.DataFrame, problems: pd.DataFrame, places: Sequence[int]) -> Page:
    """Some rows of `passages` or of rejected ones as HTML, each problem beside its paragraph; everything is escaped."""
    rows, shown = problem_rows(problems), []
    for row in passages.iloc[list(places)].to_dict("records"):
        questions = [f"{rows[problem].task}: {rows[problem].question}" for problem in row["problem_ids"]]
        paragraphs = list(row["paragraphs"]) or [row["text"]]
        note = f"rejected: {row['reason']}" if "reason" in row else f"{row['n_tokens']} tokens"
        if "score" in row:
            note += f", names {row['named']} particulars of the least-named problem, nearest other {row['nearest']:.2f}"
        shown.append({**row, "note": note, "pairs": list(itertools.zip_longest(questions, paragraphs, fillvalue=""))})
    page = Path(__file__).with_name("browse.html.jinja").read_text(encoding="utf-8")
    return Page(jinja2.Environment(autoescape=True).from_string(page).render(passages=shown))
