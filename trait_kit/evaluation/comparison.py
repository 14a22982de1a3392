"""Are the arms different? Averages with intervals, and tests that pair the same items of two arms.

Pairing matters: items differ in difficulty far more than arms differ on one item, and two intervals that overlap say
little about a paired difference. Continuous metrics get a sign-flip permutation test, binary ones McNemar's exact test.
Several comparisons are several tests, so p values come with Holm's correction over their table, and with the smallest
gain that these items could have shown: without it, "no difference" says nothing.

Outcomes of several training seeds are compared within each seed; intervals and p values then hold both levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from trait_kit.engine.files import TraitError
from trait_kit.evaluation import statistics
from trait_kit.evaluation.metrics import with_set_metrics

MACRO = "macro average"  # every task weighs the same, however many items it has
HELD_OUT = "held_out/"  # tasks that are documents; never part of the macro average
LOWER_IS_BETTER = {"bits_per_number_token", "answer_bits_per_byte", "bits_per_byte", "bits_per_byte_zero_shot"}
ALPHA = 0.05  # THE level of significance, of every test, table, figure and sentence of the kit
CONFIDENCE = 1 - ALPHA  # of its intervals
MIN_ITEMS, MIN_CLUSTERS = 30, 6  # no verdict from fewer; sign flips of five clusters cannot reach ALPHA
MARGIN = 0.01  # bits, or a share: differences within it are taken for none
_SET_METRICS = {"auc": "DeLong", "f1": "linearised z"}  # of pseudo-values, which no sign flip can exchange
_SAY = jinja2.Template(Path(__file__).with_name("verdict.jinja").read_text(encoding="utf-8"), trim_blocks=True).module


def arm_table(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Columns arm, task, metric, mean, low, high, n, seeds, clusters: a row an arm, metric and task, and the average.

    A single item has no spread: low = high = mean, and n says so. A task of 32 items keeps its width beside one of 1,319.
    """
    rows = []
    for (metric, arm), part in prepared(outcomes).groupby(["metric", "arm"], sort=False):
        tasks = {task: [_grid(of_task)] for task, of_task in part.groupby("task", sort=False)}
        problems = [grid for task, (grid,) in tasks.items() if not task.startswith(HELD_OUT)]
        if len({len(grid) for grid, _ in problems}) > 1:
            raise TraitError("Not every seed of an arm was evaluated on the same tasks. Run the evaluation again.")
        for task, grids in {**({MACRO: problems} if problems else {}), **tasks}.items():
            groups, clusters = zip(*grids, strict=True)
            imagined = statistics.two_of_each(groups)
            found = statistics.estimate(groups, clusters, imagined)
            low, high = np.clip(found.interval(CONFIDENCE), *((0, 1) if imagined else (None, None)))
            row = {"arm": arm, "task": task, "metric": metric, "mean": found.mean, "low": low, "high": high}
            row |= {"n": sum(group.shape[1] for group in groups), "seeds": len(groups[0])}
            rows.append(row | {"clusters": len(set(np.concatenate(clusters)))})
    return pd.DataFrame(rows)


def compare(outcomes: pd.DataFrame, reference_arm: str | None, metric: str, task: str | None = None) -> pd.DataFrame:
    """Every other arm against `reference_arm` on one metric, in order of appearance; None: every pair of arms, the later
    one as the reference.

    `task=None` compares macro averages over the problem tasks; 'held_out/general' is the forgetting number. Columns:

    reference, arm, metric, task, n (paired items), seeds (that both arms have), clusters
    reference_mean, arm_mean, difference (reference minus arm) with its interval low..high
    gain, gain_low, gain_high: the difference with one sign, above zero in the reference's favour
    test, p_value, effect_size (d_z), p_holm (Holm over the rows of this table)
    p_floor: the smallest p_holm that the test's draws can give; 0: any
    p_beyond (TOST with MARGIN, Holm), equivalent (p_beyond is below ALPHA where no difference is found)
    smallest_gain: what a test at ALPHA after that correction would have found with 80% power
    """
    return _corrected(_rows(outcomes, reference_arm, metric, task))


def compare_all(outcomes: pd.DataFrame, reference_arm: str | None, main: str = "") -> pd.DataFrame:
    """`compare` for every metric, on the average and on every task: the rows of the long table, the main metric first.

    Holm's correction is over what is read as one table: the averages of the main metric, the averages of all others, all
    cells of a metric's single tasks, the held-out texts.
    """
    outcomes = prepared(outcomes)
    main = main_metric(outcomes, main)
    by_metric = {main: outcomes[outcomes["metric"] == main], **dict(list(outcomes.groupby("metric", sort=False)))}
    families: dict[str, list] = {name: [] for name in ("main", "others", *by_metric, "held out")}
    for metric, part in by_metric.items():
        for task in list(dict.fromkeys(part["task"])):
            families["held out" if task.startswith(HELD_OUT) else metric] += _rows(part, reference_arm, metric, task)
        if not part["task"].str.startswith(HELD_OUT).all():
            families["main" if metric == main else "others"] += _rows(part, reference_arm, metric, None)
    read_as_one = [rows for rows in families.values() if rows]
    return pd.concat(map(_corrected, read_as_one or [[]]), ignore_index=True)


def compare_pair(
    pairs: list[tuple[np.ndarray, np.ndarray]],
    metric: str,
    binary: bool,
    seed: int = 0,
    clusters: list[np.ndarray] | None = None,
) -> dict[str, Any]:
    """Two arms compared, from (reference's values, arm's values) of each task, [seeds, items]: a row of `compare`, less
    what depends on how many rows there are; 'estimate' is of the differences. `clusters`: labels of each task's items."""
    differences = [reference - arm for reference, arm in pairs]
    seeds, n = len(differences[0]), sum(part.shape[1] for part in differences)
    n_clusters = len(set(np.concatenate(clusters))) if clusters else n
    found = statistics.estimate(differences, clusters, statistics.half_a_win_each(seeds) if binary else ())
    low, high = np.clip(found.interval(CONFIDENCE), *((-1, 1) if binary else (None, None)))
    test, p_value, floor = "Student's t", found.p_value, 0.0
    if n_clusters < 2:
        test, p_value = "none: a single cluster", 1.0
    elif metric in _SET_METRICS:
        test = _SET_METRICS[metric]
    elif binary and seeds == len(pairs) == 1 and n_clusters == n:
        test, p_value = "McNemar", statistics.mcnemar_exact(*pairs[0])
    elif seeds == 1:
        test, p_value = "sign flips", statistics.sign_flip_p_value(differences, seed, clusters)
        floor = 1 / (statistics.FLIPS + 1) if n_clusters > statistics.EXACT_ITEMS else 0.0
    sign = -1 if metric in LOWER_IS_BETTER else 1
    gain_low, gain_high = sorted((sign * low, sign * high))
    return {
        "n": n,
        "seeds": seeds,
        "clusters": n_clusters,
        "reference_mean": statistics.macro([reference for reference, _ in pairs]),
        "arm_mean": statistics.macro([arm for _, arm in pairs]),
        "difference": found.mean,
        "low": low,
        "high": high,
        "gain": sign * found.mean,
        "gain_low": gain_low,
        "gain_high": gain_high,
        "test": test,
        "p_value": p_value,
        "p_floor": floor,
        "p_beyond": found.p_beyond(MARGIN) if n_clusters > 1 else 1.0,
        "effect_size": statistics.standardised(differences),
        "estimate": found,
    }


def prepared(outcomes: pd.DataFrame) -> pd.DataFrame:
    """The outcomes that are averaged: relevance as AUC and F1. Refuses an empty table, and an item counted twice."""
    keys = ["arm", "seed", "metric", "task", "item_id"]
    if outcomes.empty:
        raise TraitError("There are no outcomes to compare. Run the evaluation step first.")
    if (repeated := outcomes.duplicated(keys)).any():
        first = outcomes.loc[repeated, keys].iloc[0].to_dict()
        raise TraitError(f"The outcomes hold {int(repeated.sum())} item(s) twice, for instance {first}.")
    own = outcomes["task"] + "/" + outcomes["item_id"].astype(str)
    clusters = outcomes["cluster"].fillna(own) if "cluster" in outcomes else own
    return with_set_metrics(outcomes.assign(cluster=clusters))


def main_metric(outcomes: pd.DataFrame, wanted: str = "") -> str:
    """The metric `wanted` where a task has it; else bits a number token, of the answer, per byte, or the first there is."""
    metrics = list(dict.fromkeys(outcomes.loc[~outcomes["task"].str.startswith(HELD_OUT), "metric"]))
    order = (wanted, "bits_per_number_token", "answer_bits_per_byte", "bits_per_byte")
    return next((name for name in order if name in metrics), (metrics or ["bits_per_byte"])[0])


def control_of(arms: Sequence[str], reference: str, named: str = "") -> str:
    """The arm that the reference has to beat: the one named, or what reads the same problems without the structure."""
    order = (named, "worked", "worked_same", "selected", "base", *arms)
    return next((arm for arm in order if arm in arms and arm != reference), "")


def forgetting_of(outcomes: pd.DataFrame) -> pd.DataFrame | None:
    """`compare` with the base model on held-out general text; None where that was not evaluated."""
    there = outcomes[outcomes["task"] == f"{HELD_OUT}general"]
    if "base" not in set(there["arm"]) or there["arm"].nunique() < 2:
        return None
    return compare(outcomes, "base", "bits_per_byte", f"{HELD_OUT}general")


def verdict(tests: pd.DataFrame, metric: str, reference: str, control: str = "") -> dict[str, Any]:
    """What the tests of `compare_all` allow to be said of the reference arm, and no more; the words are verdict.jinja's.

    question; headline (the answer in a sentence); good (better than its control and worse in nothing); worse (what fell);
    forgetting (against base, the control and `selected`); cannot_show (what this run says nothing of).
    """
    ours = tests[tests["reference"] == reference]
    macro = ours[ours["task"] == MACRO]
    control = control_of(list(dict.fromkeys(macro["arm"])), reference, control)
    said = {"question": str(_SAY.question(reference, control))}
    of_control = macro[macro["arm"] == control]
    main = of_control["metric"] == metric
    if not main.any():
        return said | {"headline": f"{reference} was compared with no other arm on a task.", "good": False}
    row = of_control[main].iloc[0]
    enough = row["n"] >= MIN_ITEMS and row["clusters"] >= MIN_CLUSTERS
    sure, better = row["p_holm"] < ALPHA, row["gain"] > 0
    worse = ours[(ours["p_holm"] < ALPHA) & (ours["gain"] < 0)]
    fell = pd.concat([worse, of_control[~main & (of_control["gain"] < 0)]]).drop_duplicates(["arm", "metric", "task"])
    general = ours["task"].str.startswith(HELD_OUT) & (ours["task"] != f"{HELD_OUT}in_domain")
    by_main = ours[ours["metric"] == metric]
    problems = {task for task in ours["task"] if not task.startswith(HELD_OUT)}
    unseen = {
        "metric": metric.replace("_", " "),
        "seeds": by_main["seeds"].max(),
        "lacking": sorted(problems - set(by_main["task"])),
        "one_template": list(by_main.loc[by_main["clusters"] < 2, "task"].unique()),
        "forgetting": general.any(),
    }
    in_all = int((macro["metric"] == metric).sum())
    return said | {
        "headline": str(_SAY.headline(_words(row), enough, sure, better, in_all)).replace("\n", ""),
        "good": bool(enough and sure and better and worse.empty),
        "main_metric": metric,
        "control_arm": control,
        "worse": _lines(fell),
        "forgetting": _lines(ours[general & ours["arm"].isin(["base", control, "selected"])]),
        "cannot_show": str(_SAY.cannot_show(**unseen)).splitlines(),
    }


def p_words(row: Mapping[str, Any]) -> str:
    """p after Holm; where no draw was as extreme as what was seen, the least that it can be said to be below."""
    floor = max(row["p_floor"], 1e-4)
    if row["p_holm"] > floor * (1 + 1e-9):
        return f"= {row['p_holm']:.2g}"
    unit = 10 ** math.floor(math.log10(floor))
    return f"< {math.ceil(floor / unit - 1e-9) * unit:.1g}"  # rounded up: 0.00025 is not below 0.0002


def _lines(rows: pd.DataFrame) -> list[str]:
    return [str(_SAY.line(_words(row))) for row in rows.to_dict("records")]


def _words(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `compare` as it is written in a sentence: bits as they are, shares in points."""
    bits = row["metric"] in LOWER_IS_BETTER
    scale, digits, unit = (1, 3, "") if bits else (100, 1, " points")
    gain, low, high = (f"{scale * row[name]:+.{digits}f}" for name in ("gain", "gain_low", "gain_high"))
    return {
        **row,
        "gain": f"{gain}{unit} [{low}, {high}]",
        "p": p_words(row),
        "metric": row["metric"].replace("_", " "),
        "smallest": f"{scale * row['smallest_gain']:.{digits}f}{unit}",
        "MIN_ITEMS": MIN_ITEMS,
        "MIN_CLUSTERS": MIN_CLUSTERS,
        "MARGIN": MARGIN,
    }


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
    wide = values.pivot(index=["task", "item_id", "cluster"], columns=["arm", "seed"], values="value")
    rows = []
    for arm, reference in against:
        pairs, clusters = _paired(wide, reference, arm, wanted)
        row = {"reference": reference, "arm": arm, "metric": metric, "task": task or MACRO}
        rows.append(row | compare_pair(pairs, metric, binary, clusters=clusters))
    return rows


def _paired(
    wide: pd.DataFrame, reference: str, arm: str, tasks: list[str]
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
    """(reference's values, arm's values) of each task, [seeds, items], of the seeds that both have; their clusters."""
    seeds = [seed for seed in wide[reference] if seed in wide[arm]]
    if not seeds:
        raise TraitError(f"The arms {reference} and {arm} have no seed in common, so nothing pairs. Evaluate both anew.")
    pairs, clusters = [], []
    for task in tasks:
        pair = [side.loc[task][seeds].to_numpy().T for side in (wide[reference], wide[arm])]
        asked = ~np.isnan(pair)
        if (lacking := asked[0] != asked[1]).any() or not asked.any(axis=2).all():
            raise TraitError(
                f"{reference} and {arm} were not evaluated on the same items of {task} in every seed ({seeds}); "
                f"{lacking.sum()} are missing in one of them. Run the evaluation again."
            )
        both = asked[0].any(axis=0)
        pairs.append(tuple(side[:, both] for side in pair))
        clusters.append(wide.loc[task].index.get_level_values("cluster")[both].to_numpy(dtype=str))
    return pairs, clusters


def _corrected(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows that are read as one table: Holm's correction, and the gain that its first, hardest step could have shown."""
    if not rows:
        raise TraitError("Only one arm was evaluated, so there is nothing to compare. Train another one.")
    table = pd.DataFrame(rows)
    table["p_holm"] = statistics.holm(table["p_value"].to_numpy(dtype=float))
    table["p_floor"] = np.minimum(1, table["p_floor"] * len(table))
    table["p_beyond"] = statistics.holm(table["p_beyond"].to_numpy(dtype=float))
    table["equivalent"] = (table["p_holm"] >= ALPHA) & (table["p_beyond"] < ALPHA)
    table["smallest_gain"] = [found.smallest_gain(ALPHA / len(table)) for found in table.pop("estimate")]
    return table


def _grid(values: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The values of one arm and task, [seeds, items], NaN where a seed did not see an item; the items' clusters."""
    wide = values.pivot(index=["item_id", "cluster"], columns="seed", values="value")
    return wide.to_numpy().T, wide.index.get_level_values("cluster").to_numpy(dtype=str)
