"""The items behind every number of a table, as files beside it that a reader can open.

Questions are not in them (they are the test set's own); predictions and gold answers are, and are data from elsewhere: text
that a spreadsheet would take for a formula is defused, and names of arms and tasks never become paths.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from trait_kit.engine.files import atomic_path, digest
from trait_kit.evaluation.comparison import HELD_OUT, MACRO, prepared
from trait_kit.figures.table_text import csv_text

_COLUMNS = ["task", "seed", "item_id", "value", "prediction", "gold"]


def item_file(arm: str, task: str, metric: str) -> str:
    """Where the outcomes behind a number stand, relative to its table; write_items writes them."""
    return f"items/{_slug(arm)}-{_slug(task)}-{_slug(metric)}.csv"


def pair_file(reference: str, arm: str, metric: str, task: str = MACRO) -> str:
    return f"items/{_slug(reference)}-minus-{_slug(arm)}-{_slug(task)}-{_slug(metric)}.csv"


def write_items(outcomes: pd.DataFrame, folder: Path | str, comparisons: pd.DataFrame | None = None) -> int:
    """Write the file of every arm, metric and task, and of every compared pair; return how many.

    `comparisons`: from compare or compare_all, over the same outcomes.
    """
    folder, written, outcomes = Path(folder), 0, prepared(outcomes)
    for (arm, metric), part in outcomes.groupby(["arm", "metric"], sort=False):
        problems = part[~part["task"].str.startswith(HELD_OUT)]
        for task, rows in [*([(MACRO, problems)] if len(problems) else []), *part.groupby("task", sort=False)]:
            _write(rows[_COLUMNS], folder / item_file(arm, task, metric))
            written += 1
    columns = ["reference", "arm", "metric", "task"]
    for reference, arm, metric, task in comparisons[columns].itertuples(index=False) if comparisons is not None else ():
        of_metric = outcomes[outcomes["metric"] == metric]
        wanted = of_metric["task"] == task if task != MACRO else ~of_metric["task"].str.startswith(HELD_OUT)
        sides = [of_metric[wanted & (of_metric["arm"] == name)] for name in (reference, arm)]
        keys = ["task", "seed", "item_id"]
        pairs = sides[0][[*keys, "value"]].merge(sides[1][[*keys, "value"]], on=keys, suffixes=("_reference", "_arm"))
        pairs["difference"] = pairs["value_reference"] - pairs["value_arm"]
        _write(pairs, folder / pair_file(reference, arm, metric, task))
        written += 1
    return written


def _write(rows: pd.DataFrame, path: Path) -> None:
    texts = rows.select_dtypes(exclude="number").columns
    rows = rows.assign(**{name: rows[name].fillna("").astype(str).map(csv_text) for name in texts})
    with atomic_path(path) as temporary:
        rows.to_csv(temporary, index=False)


def _slug(name: str) -> str:
    """The name as part of a file name and of a link; one that loses letters gets a digest: no two become the same."""
    name = name.replace(HELD_OUT, "held_out_").replace(MACRO, "average")
    kept = re.sub(r"[^A-Za-z0-9_.]+", "_", name)
    return kept if kept == name and len(kept) <= 60 else f"{kept[:60]}_{digest(name)[:8]}"
