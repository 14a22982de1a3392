"""The paper's tables: main (1 and 2), ablation (4), pairs of arms, and the items behind their numbers as files.

`arms` is comparison.arm_table's; `tests` has rows of compare and compare_all. Forgetting (held-out general text) always
stands beside the gain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from trait_kit.engine.files import TraitError, digest
from trait_kit.evaluation.comparison import ALPHA, HELD_OUT, LOWER_IS_BETTER, MACRO, prepared
from trait_kit.figures import cells, gains
from trait_kit.figures.cells import BITS, GENERAL, Cell, Table, change_text, interval_text, metric_name, number_text, p_words
from trait_kit.figures.style import label

DOCUMENTS = {GENERAL: "General text, bits per byte", f"{HELD_OUT}in_domain": "In-domain text, bits per byte"}
CHAIN = {  # of the ablation: arm -> what it adds
    "base": "base model",
    "raw": "+ raw in-domain documents",
    "selected": "+ selected web documents",
    "trait": "+ TRAIT passages",
}


def main_table(arms: pd.DataFrame, tests: pd.DataFrame, metric: str, reference: str, title: str = "") -> Table:
    """Every arm: average over tasks, paired gain of the reference arm over it with p, forgetting, and each task."""
    shown, name = _Arms(arms, tests, metric), label(reference)
    names = list(shown.rows[MACRO].index)
    columns = {
        "Arm": list(map(label, names)),
        "Average of tasks": shown.scores(MACRO, names),
        f"Gain of {name} over this arm": [shown.pair(reference, arm) for arm in names],
        **shown.documents(names),
    }
    columns |= {label(task): shown.scores(task, names, reference) for task in shown.tasks}
    notes = cells.notes("main", direction=shown.direction, name=name) + _what_could_show(tests, metric)
    return Table(title or f"All arms by {metric_name(metric)}", columns, notes)


def ablation_table(arms: pd.DataFrame, pairs: pd.DataFrame, metric: str, title: str) -> Table:
    """What each part adds; `pairs` has rows of compare(outcomes, None, metric)."""
    shown, names = _Arms(arms, pairs, metric), chain_of(arms)
    columns = {
        "Trained on": [CHAIN.get(arm, f"+ {label(arm)}") for arm in names],
        "Average of tasks": shown.scores(MACRO, names),
        "Gain by this step": [Cell("–")] + [shown.pair(arm, before) for before, arm in pairwise(names)],
        "Gain over base": [shown.pair(arm, names[0]) for arm in names],
        **shown.documents(names),
    }
    notes = cells.notes("ablation", direction=shown.direction) + _what_could_show(pairs, metric)
    return Table(title, columns, notes)


def comparison_table(tests: pd.DataFrame, notes: Sequence[str] = ()) -> Table:
    """One row a comparison: the gain with its interval, effect, p, and what could show."""
    rows = [_compared(row) for row in tests.to_dict("records")]
    lower = ", ".join(map(metric_name, sorted(LOWER_IS_BETTER & set(tests["metric"])))) or "none"
    about = cells.notes("pairs", lower=lower) + cells.notes("several_seeds" if tests["seeds"].max() > 1 else "one_seed")
    return Table("Pairs of arms", {name: [row[name] for row in rows] for name in rows[0]}, [*about, *notes])


def save_comparison(tests: pd.DataFrame, outcomes: pd.DataFrame, notes: Sequence[str], folder: Path | None) -> Table:
    """The table of `tests`; with a folder also written there, with its items, its figure, and a CSV with all digits."""
    table = comparison_table(tests, notes)
    if folder:
        write_items(outcomes, folder, tests)
        table.save(folder, "comparison")
        cells.write_csv(tests, folder / "comparison.csv")
        if tests["reference"].nunique() == 1:
            gains.plot_gain_and_forgetting(tests, tests["reference"].iloc[0], tests["metric"].iloc[0]).save(
                folder, "comparison"
            )
    return table


def write_items(outcomes: pd.DataFrame, folder: Path | str, tests: pd.DataFrame) -> None:
    """Write the items behind every number, without their questions: a file an arm and metric, one a pair and metric."""
    outcomes, keys = prepared(outcomes), ["task", "seed", "item_id"]
    parts = {names: part[[*keys, "value", "prediction", "gold"]] for names, part in outcomes.groupby(["arm", "metric"])}
    for (arm, metric), part in parts.items():
        cells.write_csv(part, Path(folder) / item_file(arm, metric))
    for reference, arm, metric in set(tests[["reference", "arm", "metric"]].itertuples(index=False, name=None)):
        sides = [parts[name, metric][[*keys, "value"]] for name in (reference, arm)]
        both = sides[0].merge(sides[1], on=keys, suffixes=("_reference", "_arm"))
        both["gain"] = _sign(metric) * (both["value_reference"] - both["value_arm"])
        cells.write_csv(both, Path(folder) / pair_file(reference, arm, metric))


def chain_of(arms: pd.DataFrame) -> list[str]:
    """The arms of the ablation in its order: the paper's, or all where an experiment names its arms otherwise."""
    there = list(dict.fromkeys(arms["arm"]))
    chain = [arm for arm in CHAIN if arm in there]
    return chain if len(chain) > 1 else there


def paired(tests: pd.DataFrame, arm: str, other: str, metric: str, task: str = MACRO) -> dict[str, Any] | None:
    """The first row of `tests` on these two, with the gain of `arm` over `other`, whichever was its reference."""
    of_both = tests[["reference", "arm"]].isin([arm, other]).all(axis=1)
    found = tests[of_both & (tests["metric"] == metric) & (tests["task"] == task)]
    if found.empty:
        return None
    row = found.iloc[0].to_dict()
    if row["reference"] == arm:
        return row
    return row | {"gain": -row["gain"], "gain_low": -row["gain_high"], "gain_high": -row["gain_low"]}


def item_file(arm: str, metric: str) -> str:
    """Where the outcomes behind a number stand, relative to its table."""
    return f"items/{_slug(arm)}-{_slug(metric)}.csv"


def pair_file(reference: str, arm: str, metric: str) -> str:
    return f"items/{_slug(reference)}-over-{_slug(arm)}-{_slug(metric)}.csv"


def _sign(metric: str) -> int:
    return -1 if metric in LOWER_IS_BETTER else 1


def _slug(name: str) -> str:
    """The name as part of a file name and of a link; one that loses letters gets a digest: no two become the same."""
    kept = re.sub(r"[^A-Za-z0-9_.]+", "_", name)[:60]
    return kept if kept == name else f"{kept}_{digest(name)[:8]}"


class _Arms:
    """The rows of one metric, a frame a task with arms as its index, and the cells that tables are made of."""

    def __init__(self, arms: pd.DataFrame, tests: pd.DataFrame, metric: str) -> None:
        documents = arms["task"].str.startswith(HELD_OUT)  # in bits beside every metric of the tasks
        wanted = arms["metric"].where(~documents, metric) == metric
        self.rows = {task: part.set_index("arm") for task, part in arms[wanted].groupby("task", sort=False)}
        if MACRO not in self.rows:
            known = ", ".join(sorted(set(arms["metric"])))
            raise TraitError(f"The table of arms has no averages of {metric}; its metrics are {known}.")
        self.tasks = [task for task in self.rows if task != MACRO and not task.startswith(HELD_OUT)]
        self.tests, self.metric = tests, metric
        self.direction = (
            f"{metric_name(metric).capitalize()}: {'lower' if metric in LOWER_IS_BETTER else 'higher'} is better"
        )

    def scores(self, task: str, names: Sequence[str], starred_against: str = "") -> list[Cell]:
        """Means, the best in bold, each with its interval, or on documents with its gain over the base model."""
        rows, metric, column = self.rows[task].reindex(names), BITS if task in DOCUMENTS else self.metric, []
        best = rows["mean"].min() if metric in LOWER_IS_BETTER else rows["mean"].max()
        for arm, mean, low, high in rows[["mean", "low", "high"]].itertuples(name=None):
            small = interval_text(low, high, metric, number_text)
            against = paired(self.tests, starred_against, arm, metric, task)
            small += "*" if against and against["p_holm"] < ALPHA else ""
            if task in DOCUMENTS:
                gain = self.pair(arm, "base", task)
                small = f"gain {gain.text} {gain.small}" if gain.small else ""
            column.append(Cell(number_text(mean, metric), small, mean == best, item_file(arm, metric)))
        return column

    def documents(self, names: Sequence[str]) -> dict[str, list[Cell]]:
        return {header: self.scores(task, names) for task, header in DOCUMENTS.items() if task in self.rows}

    def pair(self, arm: str, other: str, task: str = MACRO) -> Cell:
        """The gain of arm over other, by their means, and where it was tested with its paired interval and p."""
        if arm == other:
            return Cell("–")
        metric = BITS if task in DOCUMENTS else self.metric
        mean, before = (float(self.rows[task].loc[name, "mean"]) for name in (arm, other))
        gain, row = _sign(metric) * (mean - before), paired(self.tests, arm, other, metric, task)
        text = change_text(gain, metric, before)
        if row is None:
            return Cell(text)
        small = f"{interval_text(row['gain_low'], row['gain_high'], metric)}, p {p_words(row['p_holm'])}"
        return Cell(text, small, link=pair_file(row["reference"], row["arm"], metric))


def _compared(row: Mapping[str, Any]) -> dict[str, Cell | str]:
    metric, task, reference, arm = (row[name] for name in ("metric", "task", "reference", "arm"))
    means = f"{number_text(row['reference_mean'], metric)} and {number_text(row['arm_mean'], metric)}"
    gain, better = change_text(row["gain"], metric), label(reference if row["gain"] > 0 else arm)
    link = pair_file(reference, arm, metric)
    return {
        "Arms": f"{label(reference)} over {label(arm)}",
        "Task": "average" if task == MACRO else label(task.replace(HELD_OUT, "held out: ")),
        "Metric": metric_name(metric),
        "Items": f"{row['n']:,}" + (f" x {row['seeds']} seeds" if row["seeds"] > 1 else ""),
        "Means": Cell(means, link=link),
        "Gain [interval]": Cell(gain, interval_text(row["gain_low"], row["gain_high"], metric), link=link),
        "Effect": f"d_z {row['effect_size']:+.2f}",
        "p (Holm)": Cell(p_words(row["p_holm"]), link=link),
        "Better": better if row["p_holm"] < ALPHA else "–",
        "Smallest that could show": cells.gain_text(row["smallest_gain"], metric),
    }


def _what_could_show(tests: pd.DataFrame, metric: str) -> list[str]:
    """A note on the smallest true gains that the items at hand would have shown: the largest over the arms, by task."""
    rows = tests[(tests["metric"] == metric) & ~tests["task"].str.startswith(HELD_OUT)]
    shown = []
    for task, part in rows.groupby("task", sort=False):
        gain = cells.gain_text(part["smallest_gain"].max(), metric)
        shown.append(f"{'average' if task == MACRO else label(task)} {gain} (n {part['n'].max():,})")
    return cells.notes("could_show", shown=", ".join(shown))
