"""Are the arms different? Averages with intervals, and tests that pair the same items of two arms.

Pairing matters: items differ in difficulty far more than arms differ on one item, and two intervals that overlap say
little about a paired difference. Continuous metrics get a paired bootstrap interval and a sign-flip permutation test;
binary ones McNemar's exact test. Several comparisons are several tests, so p values come with Holm's correction over their
table, and with the smallest gain that these items could have shown: without it, "no difference" says nothing.

Outcomes of several training seeds are compared within each seed; intervals and p values then hold both levels.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from trait_kit.engine.files import TraitError
from trait_kit.evaluation import statistics
from trait_kit.evaluation.metrics import with_set_metrics

MACRO = "macro average"  # every task weighs the same, however many items it has
HELD_OUT = "held_out/"  # tasks that are documents; never part of the macro average
LOWER_IS_BETTER = {"bits_per_number_token", "bits_per_byte", "bits_per_byte_zero_shot", "answer_bits_per_byte"}
ALPHA = 0.05  # THE level of significance, of every test, table, figure and sentence of the kit
CONFIDENCE = 1 - ALPHA  # of its intervals
MIN_ITEMS = 30  # no verdict from fewer
_COLUMNS = (
    *("reference", "arm", "metric", "task", "n", "seeds", "reference_mean", "arm_mean", "difference", "low", "high"),
    *("percent", "reference_better", "test", "p_value", "effect_size", "spread"),
)


def arm_table(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Columns arm, task, metric, mean, low, high, n, seeds: one row an arm, metric and task, and one for the macro average.

    A single item has no spread: low = high = mean, and n says so.
    """
    rows = []
    for (metric, arm), part in prepared(outcomes).groupby(["metric", "arm"], sort=False):
        tasks = {task: [_grid(of_task)] for task, of_task in part.groupby("task", sort=False)}
        problems = [grid for task, (grid,) in tasks.items() if not task.startswith(HELD_OUT)]
        if len({len(grid) for grid in problems}) > 1:
            raise TraitError("Not every seed of an arm was evaluated on the same tasks. Run the evaluation again.")
        for task, groups in {**({MACRO: problems} if problems else {}), **tasks}.items():
            found = statistics.mean_interval(groups, CONFIDENCE)
            row = {"arm": arm, "task": task, "metric": metric, "mean": found.mean, "low": found.low, "high": found.high}
            rows.append({**row, "n": sum(group.shape[1] for group in groups), "seeds": len(groups[0])})
    return pd.DataFrame(rows)


def compare(outcomes: pd.DataFrame, reference_arm: str | None, metric: str, task: str | None = None) -> pd.DataFrame:
    """Every other arm against `reference_arm` on one metric, in order of appearance; None: every pair of arms, the later
    one as the reference.

    `task=None` compares macro averages over the problem tasks; 'held_out/general' is the forgetting number.
    Columns: reference, arm, metric, task, n (paired items), seeds (that both arms have), reference_mean, arm_mean,
    difference (reference minus arm: for bits per byte, below zero is in the reference's favour) with its interval
    low..high, percent (difference over arm_mean), reference_better, test, p_value, effect_size (d_z), p_holm (Holm over
    the rows of this table), smallest_gain (what a test at ALPHA after that correction would have found with 80% power).
    """
    return _corrected(_rows(outcomes, reference_arm, metric, task))


def compare_all(outcomes: pd.DataFrame, reference_arm: str | None) -> pd.DataFrame:
    """`compare` for every metric, on the macro average and on every task: the rows of the long table.

    Holm's correction is over what is read as one table: the averages of a metric, all cells of its single tasks, each set
    of held-out documents.
    """
    tables, outcomes = [], prepared(outcomes)
    for metric, part in outcomes.groupby("metric", sort=False):
        names = list(dict.fromkeys(part["task"]))
        problems = [name for name in names if not name.startswith(HELD_OUT)]
        families = [[None], problems] if problems else []
        for family in [*families, *([name] for name in names if name not in problems)]:
            tables.append(_corrected([row for task in family for row in _rows(outcomes, reference_arm, metric, task)]))
    return pd.concat(tables, ignore_index=True)


def compare_pair(pairs: list[tuple[np.ndarray, np.ndarray]], metric: str, binary: bool, seed: int = 0) -> dict[str, Any]:
    """Two arms compared, from (reference's values, arm's values) of each task, [seeds, items]: a row of `compare`, less what
    depends on how many rows there are; 'spread' is of the differences."""
    differences = [reference - arm for reference, arm in pairs]
    seeds, n = len(differences[0]), sum(part.shape[1] for part in differences)
    imagined = statistics.half_a_win_each(seeds) if binary else ()
    found = statistics.hierarchical_bootstrap(differences, CONFIDENCE, seed, imagined)
    reference_mean, arm_mean = (statistics.macro([pair[side] for pair in pairs]) for side in (0, 1))
    if seeds > 1:
        test, p_value = "hierarchical bootstrap", found.p_value
    elif binary and len(pairs) == 1:
        test, p_value = "McNemar", statistics.mcnemar_exact(*pairs[0])
    else:
        test, p_value = "sign flips", statistics.sign_flip_p_value(differences, seed)
    return {
        "n": n,
        "seeds": seeds,
        "reference_mean": reference_mean,
        "arm_mean": arm_mean,
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "percent": 100 * found.mean / arm_mean if arm_mean else 0.0,
        "reference_better": bool(found.mean < 0 if metric in LOWER_IS_BETTER else found.mean > 0),
        "test": test,
        "p_value": p_value,
        "effect_size": statistics.standardised(differences),
        "spread": statistics.spread(differences, imagined),
    }


def prepared(outcomes: pd.DataFrame) -> pd.DataFrame:
    """The outcomes that are averaged: relevance as AUC and F1. Refuses an empty table, and an item counted twice."""
    keys = ["arm", "seed", "metric", "task", "item_id"]
    if outcomes.empty:
        raise TraitError("There are no outcomes to compare. Run the evaluation step first.")
    if (repeated := outcomes.duplicated(keys)).any():
        first = outcomes.loc[repeated, keys].iloc[0].to_dict()
        raise TraitError(f"The outcomes hold {int(repeated.sum())} item(s) twice, for instance {first}.")
    return with_set_metrics(outcomes)


def main_metric(outcomes: pd.DataFrame) -> str:
    """Bits per byte of the tasks; where no likelihood was asked for, the first metric of theirs."""
    metrics = list(dict.fromkeys(outcomes.loc[~outcomes["task"].str.startswith(HELD_OUT), "metric"]))
    return "bits_per_byte" if "bits_per_byte" in metrics or not metrics else metrics[0]


def forgetting_of(outcomes: pd.DataFrame) -> pd.DataFrame | None:
    """`compare` with the base model on held-out general text; None where that was not evaluated."""
    there = outcomes[outcomes["task"] == f"{HELD_OUT}general"]
    if "base" not in set(there["arm"]) or there["arm"].nunique() < 2:
        return None
    return compare(outcomes, "base", "bits_per_byte", f"{HELD_OUT}general")


def verdict(tests: pd.DataFrame, metric: str, reference: str) -> dict[str, Any]:
    """headline and good: what the tests of `compare_all` allow to be said of the reference arm, and no more.

    Good is only what is better than every other arm, by enough items, and worse in no other metric of the tasks.
    """
    macro = tests[(tests["task"] == MACRO) & (tests["reference"] == reference)]
    main = macro[macro["metric"] == metric]
    if main.empty:
        return {"headline": f"{reference} was compared with no other arm on a task.", "good": False}
    n, seeds, several = int(main["n"].min()), int(main["seeds"].min()), len(main)
    if n < MIN_ITEMS:
        return {"headline": f"Too few items for a verdict ({n}; at least {MIN_ITEMS} are needed).", "good": False}
    sure = macro[macro["p_holm"] < ALPHA]
    won = int((sure["reference_better"] & (sure["metric"] == metric)).sum())
    lost = sure[~sure["reference_better"]]
    said = f"By {_words(metric)}, {reference} is better than {won} of {several} other arms (Holm, p < {ALPHA}; {n:,} items"
    said += f" x {seeds} seeds)." if seeds > 1 else "; one training seed: it speaks of these models, not of the recipe)."
    said += " Bits per byte also measure wording." if metric == "bits_per_byte" else ""
    for row in lost.itertuples():
        said += f" Worse than {row.arm} by {_words(row.metric)}."
    return {"headline": said, "good": won == several and lost.empty}


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _rows(outcomes: pd.DataFrame, reference_arm: str | None, metric: str, task: str | None) -> list[dict[str, Any]]:
    values = prepared(outcomes)
    values = values[values["metric"] == metric]
    binary = bool(values["value"].isin((0.0, 1.0)).all())
    tasks = list(dict.fromkeys(values["task"]))
    wanted = [name for name in tasks if (name == task if task else not name.startswith(HELD_OUT))]
    if not wanted:
        there = ", ".join(tasks) or "none"
        raise TraitError(f"No outcome of {metric} is for {task or 'a problem task'}; its tasks are: {there}.")
    values = values[values["task"].isin(wanted)]
    arms = list(dict.fromkeys(values["arm"]))
    if reference_arm not in (*arms, None):
        raise TraitError(f"The reference arm '{reference_arm}' was not evaluated; the arms are: {', '.join(arms)}.")
    against = [(arm, reference_arm) for arm in arms if arm != reference_arm] if reference_arm else combinations(arms, 2)
    wide = values.pivot(index=["task", "item_id"], columns=["arm", "seed"], values="value")
    return [
        {"reference": reference, "arm": arm, "metric": metric, "task": task or MACRO}
        | compare_pair(_paired(wide, reference, arm, wanted), metric, binary)
        for arm, reference in against
    ]


def _corrected(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows that are read as one table: Holm's correction, and the gain that its first and hardest step could have shown."""
    table = pd.DataFrame(rows, columns=_COLUMNS)
    table["p_holm"] = statistics.holm(table["p_value"].to_numpy(dtype=float))
    table["smallest_gain"] = [statistics.smallest_gain(spread, ALPHA / len(table)) for spread in table.pop("spread")]
    return table


def _paired(wide: pd.DataFrame, reference: str, arm: str, tasks: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(reference's values, arm's values) of each task, [seeds, items], of the seeds that both have."""
    seeds = [seed for seed in wide[reference] if seed in wide[arm]]
    if not seeds:
        raise TraitError(f"The arms {reference} and {arm} have no seed in common, so nothing pairs. Evaluate both anew.")
    pairs = []
    for task in tasks:
        pair = [side.loc[task][seeds].to_numpy().T for side in (wide[reference], wide[arm])]
        asked = ~np.isnan(pair)
        if (lacking := asked[0] != asked[1]).any() or not asked.any(axis=2).all():
            raise TraitError(
                f"{reference} and {arm} were not evaluated on the same items of {task} in every seed ({seeds}); "
                f"{lacking.sum()} are missing in one of them. Run the evaluation again."
            )
        pairs.append(tuple(side[:, asked[0].any(axis=0)] for side in pair))
    return pairs


def _grid(values: pd.DataFrame) -> np.ndarray:
    """The values of one arm and task, [seeds, items], NaN where a seed did not see an item."""
    return values.pivot(index="seed", columns="item_id", values="value").to_numpy()
