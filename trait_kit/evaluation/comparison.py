"""Are the arms different? Averages with intervals, and tests that pair the same items of two arms.

Items differ in difficulty far more than arms do on one item: overlapping intervals say little about a paired difference.
p values come with Holm's correction over their table, and with the smallest gain that these items could have shown:
without it, "no difference" says nothing.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from trait_kit.engine.files import TraitError
from trait_kit.evaluation import statistics
from trait_kit.evaluation.metrics import with_set_metrics

MACRO = "macro average"  # every task weighs the same, however many items it has
HELD_OUT = "held_out/"  # tasks that are documents; never part of the macro average
LOWER_IS_BETTER = {"bits_per_number_token", "answer_bits_per_byte", "bits_per_byte", "bits_per_byte_zero_shot"}
ALPHA = statistics.ALPHA
CONFIDENCE = 1 - ALPHA  # of intervals
MARGIN = 0.01  # bits, or a share: smaller differences are taken for none
MIN_ITEMS, MIN_CLUSTERS = 30, 6  # of a verdict
Pair = tuple[np.ndarray, np.ndarray]  # the reference's and the arm's values on a task, [seeds, items]
_WIDE = {"index": ["task", "item_id", "cluster"], "columns": ["arm", "seed"], "values": "value"}
_SET_METRICS = {"auc": "DeLong", "f1": "linearised z"}  # of pseudo-values, which no sign flip can exchange


def arm_table(outcomes: pd.DataFrame) -> pd.DataFrame:
    """A row an arm, metric and task, and the average: arm, task, metric, mean, low, high, n, seeds, clusters.

    A task of a single cluster has no interval, nor has an average with one.
    """
    rows = []
    for (metric, arm), part in prepared(outcomes).groupby(["metric", "arm"], sort=False):
        binary = part["value"].isin((0.0, 1.0)).all()
        found = {task: (values, clusters) for task, (values,), clusters in _grids(part.pivot(**_WIDE), [arm])}
        tasks = {task: [found[task]] for task in dict.fromkeys(part["task"])}
        problems = [grid for task, (grid,) in tasks.items() if not task.startswith(HELD_OUT)]
        for task, grids in {**({MACRO: problems} if problems else {}), **tasks}.items():
            groups, clusters = zip(*grids, strict=True)
            found = statistics.estimate(groups, clusters, statistics.TWO_OF_EACH if binary else ())
            low, high = np.clip(found.interval(CONFIDENCE), *((0, 1) if binary else (None, None)))
            if min(map(len, map(set, clusters))) < 2:
                low, high = -math.inf, math.inf
            row = {"arm": arm, "task": task, "metric": metric, "mean": found.mean, "low": low, "high": high}
            n, n_clusters = sum(group.shape[1] for group in groups), len(set(np.concatenate(clusters)))
            rows.append(row | {"n": n, "seeds": len(groups[0]), "clusters": n_clusters})
    return pd.DataFrame(rows)


def compare(
    outcomes: pd.DataFrame, reference_arm: str | None, metric: str, task: str | None = None
) -> pd.DataFrame:
    """Every other arm against `reference_arm` (None: every pair, the later one as the reference) on one metric.

    `task=None`: macro averages over problem tasks; 'held_out/general' is the forgetting number. Columns:

    reference, arm, metric, task, n (paired items), seeds (that both have), clusters, reference_mean, arm_mean
    gain (above zero: the reference is better, whatever the metric), gain_low to gain_high: what the test would not
    reject, of right and wrong at least Agresti and Min's interval
    test, p_value, p_holm (over the rows of this table)
    equivalent (two one-sided tests with MARGIN and Holm, and no difference is found)
    smallest_gain: what a test at ALPHA after that correction would have found with 80% power; inf for none
    enough (items and clusters for a verdict), shown (and p_holm below ALPHA)
    """
    return _corrected(_rows(prepared(outcomes), reference_arm, metric, task))


def compare_all(outcomes: pd.DataFrame, reference_arm: str | None, main: str = "") -> pd.DataFrame:
    """`compare` for every metric, on the average and on every task, the main metric first.

    Corrected together are averages of the main metric, those of all others, a metric's single tasks, held-out texts.
    """
    outcomes = prepared(outcomes)
    main = main_metric(outcomes, main)
    metrics = list(dict.fromkeys([main, *outcomes["metric"]]))
    families: dict[str, list] = {name: [] for name in ("main", "others", *metrics, HELD_OUT)}
    for metric, task in outcomes[["metric", "task"]].drop_duplicates().itertuples(index=False, name=None):
        families[HELD_OUT if task.startswith(HELD_OUT) else metric] += _rows(
            outcomes, reference_arm, metric, task
        )
    for metric in metrics:
        if families[metric]:
            families["main" if metric == main else "others"] += _rows(outcomes, reference_arm, metric, None)
    return pd.concat(map(_corrected, [rows for rows in families.values() if rows] or [[]]), ignore_index=True)


def compare_pair(
    pairs: Sequence[Pair], metric: str, binary: bool, seed: int = 0, clusters: statistics.Clusters = None
) -> dict[str, Any]:
    """A row of `compare`, less what depends on the number of rows: 'estimate'."""
    gains = [arm - reference if metric in LOWER_IS_BETTER else reference - arm for reference, arm in pairs]
    seeds, n = len(gains[0]), sum(part.shape[1] for part in gains)
    n_clusters = len(set(np.concatenate(clusters))) if clusters else n
    half = math.sqrt(0.5 / seeds)  # half a win of each arm, shared by all seeds (Agresti and Min, 2005)
    found = statistics.estimate(gains, clusters, (half, -half) if binary else ())
    low, high = np.clip(found.interval(CONFIDENCE), *((-1, 1) if binary else (None, None)))
    if seeds > 1 or metric in _SET_METRICS:
        test, p_value = _SET_METRICS.get(metric, "Student's t"), found.p_value
    else:
        test = "McNemar" if binary and len(pairs) == 1 and n_clusters == n else "sign flips"
        p_value, *ends = statistics.sign_flips(gains, seed, clusters)
        narrow = not binary or (n_clusters < n and ends[0] < ends[1])
        low, high = ends if narrow else (min(low, ends[0]), max(high, ends[1]))
        found = replace(found, items=((high - low) / 2 / norm.isf(ALPHA / 2)) ** 2, item_freedom=math.inf)

    return {
        "n": n,
        "seeds": seeds,
        "clusters": n_clusters,
        "reference_mean": statistics.macro([reference for reference, _ in pairs]),
        "arm_mean": statistics.macro([arm for _, arm in pairs]),
        "gain": found.mean,
        "gain_low": low,
        "gain_high": high,
        "test": test,
        "p_value": p_value,
        "p_beyond": found.p_beyond(MARGIN),
        "estimate": found,
    }


def prepared(outcomes: pd.DataFrame) -> pd.DataFrame:
    """The outcomes that are averaged, relevance as AUC and F1; errors for none, and for an item twice."""
    keys = ["arm", "seed", "metric", "task", "item_id"]
    if outcomes.empty:
        raise TraitError("There are no outcomes to compare. Run the evaluation step first.")
    if len(repeated := outcomes.loc[outcomes.duplicated(keys), keys]):
        raise TraitError(
            f"The outcomes hold {len(repeated)} item(s) twice, for instance {repeated.iloc[0].to_dict()}."
        )
    return with_set_metrics(outcomes)


def clusters_needed(rows: int) -> int:
    """So many that sign flips, p >= 2 / 2^n, can reach ALPHA after Holm over the rows."""
    return math.floor(2 + math.log2(rows / ALPHA))


def main_metric(outcomes: pd.DataFrame, wanted: str = "") -> str:
    """The `wanted` one where a task has it; else bits a number token, of the answer, per byte, or the first."""
    metrics = list(dict.fromkeys(outcomes.loc[~outcomes["task"].str.startswith(HELD_OUT), "metric"]))
    order = (wanted, "bits_per_number_token", "answer_bits_per_byte", "bits_per_byte")
    return next((name for name in order if name in metrics), (metrics or ["bits_per_byte"])[0])


def _rows(
    outcomes: pd.DataFrame, reference_arm: str | None, metric: str, task: str | None
) -> list[dict[str, Any]]:
    values = outcomes[outcomes["metric"] == metric]
    binary, there = values["value"].isin((0.0, 1.0)).all(), ", ".join(dict.fromkeys(values["task"])) or "none"
    values = values[values["task"] == task if task else ~values["task"].str.startswith(HELD_OUT)]
    if values.empty:
        raise TraitError(f"No outcome of {metric} is for {task or 'a problem task'}; its tasks are: {there}.")
    arms = list(dict.fromkeys(values["arm"]))
    if reference_arm not in (*arms, None):
        raise TraitError(
            f"The reference arm '{reference_arm}' was not evaluated; the arms are: {', '.join(arms)}."
        )
    against = (
        [(arm, reference_arm) for arm in arms if arm != reference_arm] if reference_arm else combinations(arms, 2)
    )
    wide, rows = values.pivot(**_WIDE), []
    for arm, reference in against:
        _, pairs, clusters = zip(*_grids(wide, [reference, arm]), strict=True)
        row = {"reference": reference, "arm": arm, "metric": metric, "task": task or MACRO}
        rows.append(row | compare_pair(pairs, metric, binary, clusters=clusters))
    return rows


def _grids(wide: pd.DataFrame, arms: Sequence[str]) -> Iterator[tuple[str, Sequence[np.ndarray], np.ndarray]]:
    """Of each task the values of one arm or two, [seeds that both have, items] or NaN, and the items' clusters."""
    seeds, names = [seed for seed in wide[arms[0]] if seed in wide[arms[-1]]], " and ".join(arms)
    if not seeds:
        raise TraitError(f"The arms {names} have no seed in common, so nothing pairs. Evaluate both anew.")
    for task, of_task in wide.groupby(level="task", sort=False):
        asked, also = (of_task[arm][seeds].notna() for arm in (arms[0], arms[-1]))
        if (lacking := (asked != also).to_numpy()).any() or not asked.any().all():
            raise TraitError(
                f"{names} were not evaluated on the same items of {task} in every seed ({seeds}); {lacking.sum()} are "
                "missing in one of them. Run the evaluation again."
            )
        items = of_task[asked.any(axis=1)]
        yield (
            task,
            [items[arm][seeds].to_numpy().T for arm in arms],
            items.index.get_level_values("cluster").to_numpy(str),
        )


def _corrected(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows that are read as one table, with Holm's correction and what its hardest step could have shown."""
    if not rows:
        raise TraitError("Only one arm was evaluated, so there is nothing to compare. Train another one.")
    table = pd.DataFrame(rows)
    table["p_holm"], table["p_beyond"] = (statistics.holm(table[name]) for name in ("p_value", "p_beyond"))
    table["equivalent"] = (table["p_holm"] >= ALPHA) & (table["p_beyond"] < ALPHA)
    smallest = [found.smallest_gain(ALPHA / len(table)) for found in table.pop("estimate")]
    flips = table["test"].isin(("McNemar", "sign flips"))
    few = table["clusters"] < np.where(flips, clusters_needed(len(table)), MIN_CLUSTERS)
    table["smallest_gain"] = np.where(flips & few, math.inf, smallest)
    enough = ~few & (table["n"] >= MIN_ITEMS)
    return table.assign(enough=enough, shown=enough & (table["p_holm"] < ALPHA))
