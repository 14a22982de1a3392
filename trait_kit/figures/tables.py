"""The paper's tables: main (1 and 2), ablation (4), and pairs of arms.

`arms` is what comparison.arm_table returns; `tests` what compare, compare_all or forgetting_of return. Forgetting (held-out
general text) always stands beside the gain.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from trait_kit.engine.files import TraitError, digest
from trait_kit.evaluation.comparison import ALPHA, HELD_OUT, LOWER_IS_BETTER, MACRO
from trait_kit.figures.cells import Cell, Table, change_text, gain_text, interval_text, metric_name, number_text, p_text
from trait_kit.figures.style import label

GENERAL, IN_DOMAIN = f"{HELD_OUT}general", f"{HELD_OUT}in_domain"
DOCUMENTS = {GENERAL: "General text", IN_DOMAIN: "In-domain text"}
BITS = "bits_per_byte"
CHAIN = {  # of the ablation: arm -> what it adds
    "base": "base model",
    "raw": "+ raw in-domain documents",
    "selected": "+ selected web documents",
    "trait": "+ TRAIT passages",
}


def main_table(
    arms: pd.DataFrame,
    tests: pd.DataFrame | None = None,
    forgetting: pd.DataFrame | None = None,
    *,
    metric: str = BITS,
    reference: str = "trait",
    per_task: bool = True,
    title: str = "",
) -> Table:
    """Every arm: average over tasks, paired difference of the reference arm with p, forgetting, and each task.

    Where `tests` has the single tasks too (compare_all), a star says which of them differ from the reference arm.
    """
    names, tasks = _arms_and_tasks(arms, metric)
    pairs = {f"{label(reference)} minus this arm": [(reference, arm) for arm in names]} if tests is not None else {}
    table = _table(arms, metric, names, {"Arm": [label(arm) for arm in names]}, pairs, tests, forgetting)
    stars = 0
    for task in tasks if per_task else []:
        found = {arm: paired(tests, reference, arm, metric, task) for arm in names}
        differ = [arm for arm, row in found.items() if row and row["p_holm"] < ALPHA]
        table[label(task)] = _scores(arms, metric, task, names, differ)
        stars += len(differ)
    better = "lower" if metric in LOWER_IS_BETTER else "higher"
    notes = [f"{metric_name(metric).capitalize()}: {better} is better; [confidence interval]; bold: best of its column."]
    if tests is not None:
        notes.append(f"{label(reference)} minus this arm: paired over the same items; p corrected for all arms (Holm).")
    if stars:
        notes.append(f"*: differs from {label(reference)} on this task, p < {ALPHA:g}, over all arms and tasks (Holm).")
    notes += _what_could_show(tests, metric)
    if set(DOCUMENTS.values()) & table.keys():
        notes.append("General and in-domain text: held-out documents, bits per byte (change from base); above 0 is worse.")
    return Table.of(title or f"All arms by {metric_name(metric)}", table, notes)


def ablation_table(
    arms: pd.DataFrame,
    chain: Iterable[str] = CHAIN,
    pairs: pd.DataFrame | None = None,
    forgetting: pd.DataFrame | None = None,
    *,
    metric: str = BITS,
    title: str = "",
) -> Table:
    """What each part adds (the paper's Table 4); `pairs`, from compare(outcomes, None, metric), has interval and p."""
    names = [arm for arm in chain if arm in _arms_and_tasks(arms, metric)[0]]
    if len(names) < 2:
        known = ", ".join(dict.fromkeys(arms["arm"]))
        raise TraitError(f"The ablation needs two of the arms {', '.join(chain)}; the results have {known}.")
    first = {"Trained on": [CHAIN.get(arm, f"+ {label(arm)}") for arm in names]}
    steps = {"Change by this step": [names[0], *names[:-1]], "Change from base": [names[0]] * len(names)}
    changes = {name: list(zip(names, before, strict=True)) for name, before in steps.items()}
    table = _table(arms, metric, names, first, changes, pairs, forgetting)
    better = "negative is better" if metric in LOWER_IS_BETTER else "positive is better"
    notes = [f"{metric_name(metric).capitalize()}; changes: {better}. Every trained arm saw the same number of tokens."]
    if pairs is not None:
        notes.append("[paired confidence interval over the same items]; p corrected for all pairs of arms (Holm).")
    return Table.of(title or "What does each part add?", table, [*notes, *_what_could_show(pairs, metric)])


def comparison_table(tests: pd.DataFrame, title: str = "Pairs of arms", notes: Sequence[str] = ()) -> Table:
    """One row a comparison of compare or compare_all: the difference with its interval, effect, p, and what could show."""
    rows = [_compared(row) for row in tests.to_dict("records")]
    lower = ", ".join(metric_name(name) for name in sorted(LOWER_IS_BETTER & set(tests["metric"])))
    about = (
        "Paired over the same items; shares in points. p: McNemar or sign flips, with several seeds hierarchical bootstrap; "
        "Holm's correction over the averages of a metric, and over all cells of its tasks. "
        f"Better: p < {ALPHA:g}." + (f" Lower is better: {lower}." if lower else "")
    )
    one = "One training seed: intervals and p speak of these trained models, not of what other seeds would give."
    many = "Intervals and p speak of the recipes, trained anew on other seeds and asked other items."
    seeds = many if (tests["seeds"] > 1).any() else one
    return Table.of(title, pd.DataFrame(rows).to_dict("list"), [about, seeds, *notes])


def chain_of(arms: pd.DataFrame) -> list[str]:
    """The arms of the ablation in its order: the paper's, or where an experiment names its arms otherwise, all of them."""
    there = list(dict.fromkeys(arms["arm"]))
    chain = [arm for arm in CHAIN if arm in there]
    return chain if len(chain) > 1 else there


def paired(tests: pd.DataFrame | None, arm: str, other: str, metric: str, task: str = MACRO) -> dict[str, Any] | None:
    """What `tests` says of arm minus other, whichever of them was its reference; None where it does not compare them."""
    if tests is None:
        return None
    rows = tests[(tests["metric"] == metric) & (tests["task"] == task)]
    for reference, compared, sign in ((arm, other, 1), (other, arm, -1)):
        found = rows[(rows["reference"] == reference) & (rows["arm"] == compared)]
        if len(found):
            row = found.iloc[0].to_dict()
            low, high = sorted(sign * row[end] for end in ("low", "high"))
            return row | {"difference": sign * row["difference"], "low": low, "high": high}
    return None


def item_file(arm: str, task: str, metric: str) -> str:
    """Where the outcomes behind a number stand, relative to its table; evidence.write_items writes them."""
    return f"items/{_slug(arm)}-{_slug(task)}-{_slug(metric)}.csv"


def pair_file(reference: str, arm: str, metric: str, task: str = MACRO) -> str:
    return f"items/{_slug(reference)}-minus-{_slug(arm)}-{_slug(task)}-{_slug(metric)}.csv"


def _slug(name: str) -> str:
    """The name as part of a file name and of a link; one that loses letters gets a digest: no two become the same."""
    name = name.replace(HELD_OUT, "held_out_").replace(MACRO, "average")
    kept = re.sub(r"[^A-Za-z0-9_.]+", "_", name)
    return kept if kept == name and len(kept) <= 60 else f"{kept[:60]}_{digest(name)[:8]}"


def _arms_and_tasks(arms: pd.DataFrame, metric: str) -> tuple[list[str], list[str]]:
    """Of one metric, in the order in which they come."""
    rows = arms[(arms["metric"] == metric) & ~arms["task"].str.startswith(HELD_OUT)]
    names = list(dict.fromkeys(rows.loc[rows["task"] == MACRO, "arm"]))
    if not names:
        known = ", ".join(sorted(set(arms["metric"])))
        raise TraitError(f"The table of arms has no averages of {metric}; its metrics are {known}.")
    return names, [task for task in dict.fromkeys(rows["task"]) if task != MACRO]


def _table(
    arms: pd.DataFrame,
    metric: str,
    names: Sequence[str],
    first: Mapping[str, Sequence[Any]],
    pairs: Mapping[str, Sequence[tuple[str, str]]],
    tests: pd.DataFrame | None,
    forgetting: pd.DataFrame | None,
) -> dict[str, Sequence[Any]]:
    """Columns of a row an arm: its average, a pair of arms a row and column, and what it forgot."""
    columns = dict(first) | {"Average of tasks": _scores(arms, metric, MACRO, names)}
    means = arms[(arms["metric"] == metric) & (arms["task"] == MACRO)].set_index("arm")["mean"]
    for header, of_rows in pairs.items():
        columns[header] = [_pair(means, *pair, metric, tests) for pair in of_rows]
    for task, header in DOCUMENTS.items():
        if ((arms["task"] == task) & (arms["metric"] == BITS)).any():
            columns[header] = _scores(arms, BITS, task, names, against_base=forgetting)
    return columns


def _scores(
    arms: pd.DataFrame,
    metric: str,
    task: str,
    names: Sequence[str],
    differ: Sequence[str] = (),
    against_base: pd.DataFrame | None = None,
) -> list[Cell]:
    """One column's means, the best in bold, each with its interval, or on documents with its change from the base model."""
    rows = arms[(arms["metric"] == metric) & (arms["task"] == task)].set_index("arm")
    present = rows["mean"].reindex(names)
    best = present.min() if metric in LOWER_IS_BETTER else present.max()
    cells = []
    for arm in names:
        if arm not in rows.index:
            cells.append(Cell("–"))
            continue
        mean, low, high = (float(rows.loc[arm, name]) for name in ("mean", "low", "high"))
        small = f"[{number_text(low, metric)}, {number_text(high, metric)}]" + "*" * (arm in differ)
        if task in DOCUMENTS and "base" in rows.index:
            small = "" if arm == "base" else f"({_from_base(rows['mean'], arm, task, against_base)})"
        cells.append(Cell(number_text(mean, metric), small, mean == best, item_file(arm, task, metric)))
    return cells


def _from_base(means: pd.Series, arm: str, task: str, tests: pd.DataFrame | None) -> str:
    row, base = paired(tests, arm, "base", BITS, task), float(means["base"])
    if row is None:
        return change_text(float(means[arm]) - base, BITS, base)
    return f"{change_text(row['difference'], BITS)} {interval_text(row['low'], row['high'], BITS)}"


def _pair(means: pd.Series, arm: str, other: str, metric: str, tests: pd.DataFrame | None) -> Cell:
    """arm minus other: the difference of the averages, and where it was tested its paired interval and p."""
    if arm == other:
        return Cell("–")
    text = change_text(float(means[arm] - means[other]), metric, float(means[other]))
    row = paired(tests, arm, other, metric)
    if row is None:
        return Cell(text)
    small = f"{interval_text(row['low'], row['high'], metric)}, p {p_text(row['p_holm'])}"
    return Cell(text, small, link=pair_file(row["reference"], row["arm"], metric))


def _compared(row: dict[str, Any]) -> dict[str, Cell | str]:
    metric, task, reference, arm = (row[name] for name in ("metric", "task", "reference", "arm"))
    what = "average" if task == MACRO else label(task.removeprefix(HELD_OUT))
    odds = "" if math.isnan(row["odds_ratio"]) else f", odds {row['odds_ratio']:.2g}"
    better = label(reference if row["reference_better"] else arm)
    named = {
        "Difference": f"{label(reference)} minus {label(arm)}",
        "Task": f"{what} (held out)" if task.startswith(HELD_OUT) else what,
        "Metric": metric_name(metric),
        "Items": f"{row['n']:,}" + (f" x {row['seeds']} seeds" if row["seeds"] > 1 else ""),
    }
    numbers = {
        "Means": " and ".join(number_text(row[f"{side}_mean"], metric) for side in ("reference", "arm")),
        "Difference, interval": change_text(row["difference"], metric),
        "Effect": f"{row['effect']} {row['effect_size']:+.2f}{odds}",
        "p (Holm)": p_text(row["p_holm"]),
        "Better": better if row["p_holm"] < ALPHA else "–",
        "Smallest that could show": gain_text(row["smallest_gain"], metric),
    }
    small = {"Difference, interval": interval_text(row["low"], row["high"], metric)}
    link = pair_file(reference, arm, metric, task)
    return named | {name: Cell(text, small.get(name, ""), link=link) for name, text in numbers.items()}


def _what_could_show(tests: pd.DataFrame | None, metric: str) -> list[str]:
    """A note on the smallest true gains that the items at hand would have shown: the largest over the arms, by task."""
    if tests is None:
        return []
    rows = tests[(tests["metric"] == metric) & ~tests["task"].str.startswith(HELD_OUT)]
    by_task = rows.groupby("task", sort=False).agg(gain=("smallest_gain", "max"), n=("n", "max"))
    shown = [
        f"{'average' if task == MACRO else label(task)} {gain_text(gain, metric)} (n {n:,})"
        for task, gain, n in by_task.itertuples()
    ]
    level = f"80% power at the corrected {ALPHA:.0%}"
    return [f"Smallest true difference that these items would have shown ({level}): {', '.join(shown)}."]
