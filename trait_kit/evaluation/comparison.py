"""Are the arms different? Averages with intervals, and tests that pair the same items of two arms.

Pairing matters: items differ in difficulty far more than arms differ on one item, and two intervals that overlap say
little about a paired difference. Continuous metrics get a paired bootstrap interval and a sign-flip permutation test;
binary ones McNemar's exact test. Several comparisons are several tests, so p values come with Holm's correction over their
table, and with the smallest gain that these items could have shown: without it, "no difference" says nothing.

Outcomes of several training seeds are compared within each seed; intervals and p values then hold both levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

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
_SAY = yaml.safe_load(Path(__file__).with_name("verdict.yaml").read_text(encoding="utf-8"))
_SET_METRICS = {"auc": "DeLong", "f1": "linearised z"}  # of pseudo-values, which no sign flip can exchange
_COLUMNS = (
    *("reference", "arm", "metric", "task", "n", "seeds", "reference_mean", "arm_mean", "difference", "low", "high"),
    *("percent", "reference_better", "test", "p_value", "effect_size", "spread"),
    *("clusters", "gain", "gain_low", "gain_high", "p_floor", "p_beyond"),
)


def arm_table(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Columns arm, task, metric, mean, low, high, n, seeds, clusters: a row an arm, metric and task, and the macro average.

    A single item has no spread: low = high = mean, and n says so.
    """
    rows = []
    for (metric, arm), part in prepared(outcomes).groupby(["metric", "arm"], sort=False):
        tasks = {task: [_grid(of_task)] for task, of_task in part.groupby("task", sort=False)}
        problems = [grid for task, (grid,) in tasks.items() if not task.startswith(HELD_OUT)]
        if len({len(grid) for grid, _ in problems}) > 1:
            raise TraitError("Not every seed of an arm was evaluated on the same tasks. Run the evaluation again.")
        for task, grids in {**({MACRO: problems} if problems else {}), **tasks}.items():
            groups, clusters = zip(*grids, strict=True)
            found = statistics.mean_interval(groups, CONFIDENCE, clusters=clusters)
            row = {"arm": arm, "task": task, "metric": metric, "mean": found.mean, "low": found.low, "high": found.high}
            row |= {"n": sum(group.shape[1] for group in groups), "seeds": len(groups[0])}
            rows.append(row | {"clusters": len(set(np.concatenate(clusters)))})
    return pd.DataFrame(rows)


def compare(outcomes: pd.DataFrame, reference_arm: str | None, metric: str, task: str | None = None) -> pd.DataFrame:
    """Every other arm against `reference_arm` on one metric, in order of appearance; None: every pair of arms, the later
    one as the reference.

    `task=None` compares macro averages over the problem tasks; 'held_out/general' is the forgetting number.
    Columns: reference, arm, metric, task, n (paired items), seeds (that both arms have), reference_mean, arm_mean,
    difference (reference minus arm: for bits per byte, below zero is in the reference's favour) with its interval
    low..high, percent (difference over arm_mean), reference_better, test, p_value, effect_size (d_z), p_holm (Holm over
    the rows of this table), smallest_gain (what a test at ALPHA after that correction would have found with 80% power),
    clusters, gain with gain_low..gain_high (the difference with one sign: above zero is in the reference's favour), p_floor
    (the smallest p_holm that the test's draws can give; 0: any), p_beyond (TOST with MARGIN, Holm), equivalent (p_beyond is
    below ALPHA where no difference is found).
    """
    return _corrected(_rows(outcomes, reference_arm, metric, task))


def compare_all(outcomes: pd.DataFrame, reference_arm: str | None, main: str = "") -> pd.DataFrame:
    """`compare` for every metric, on the macro average and on every task: the rows of the long table, the main metric first.

    Holm's correction is over what is read as one table: the averages of the main metric, the averages of all others, all
    cells of a metric's single tasks, the held-out texts.
    """
    outcomes = prepared(outcomes)
    main = main_metric(outcomes, main)
    by_metric = {main: outcomes[outcomes["metric"] == main], **dict(list(outcomes.groupby("metric", sort=False)))}
    families: dict[str, list] = {name: [] for name in ("main", "others", *by_metric, "held out")}
    for metric, part in by_metric.items():
        names = list(dict.fromkeys(part["task"]))
        for task in [*([None] if any(not name.startswith(HELD_OUT) for name in names) else []), *names]:
            average = "main" if metric == main else "others"
            family = average if task is None else "held out" if task.startswith(HELD_OUT) else metric
            families[family] += _rows(part, reference_arm, metric, task)
    return pd.concat([_corrected(rows) for rows in families.values() if rows], ignore_index=True)


def compare_pair(
    pairs: list[tuple[np.ndarray, np.ndarray]],
    metric: str,
    binary: bool,
    seed: int = 0,
    clusters: list[np.ndarray] | None = None,
) -> dict[str, Any]:
    """Two arms compared, from (reference's values, arm's values) of each task, [seeds, items]: a row of `compare`, less what
    depends on how many rows there are; 'spread' is of the differences. `clusters`: labels of each task's items."""
    differences = [reference - arm for reference, arm in pairs]
    seeds, n = len(differences[0]), sum(part.shape[1] for part in differences)
    imagined = statistics.half_a_win_each(seeds) if binary else ()
    found = statistics.hierarchical_bootstrap(differences, CONFIDENCE, seed, imagined, clusters, MARGIN)
    reference_mean, arm_mean = (statistics.macro([pair[side] for pair in pairs]) for side in (0, 1))
    n_clusters = len(set(np.concatenate(clusters))) if clusters else n
    floor = 0.0
    if n_clusters < 2:
        test, p_value = "none: a single cluster", 1.0
    elif metric in _SET_METRICS:
        test, p_value = _SET_METRICS[metric], statistics.student_p_value(differences, clusters)
    elif seeds > 1:
        test, p_value, floor = "hierarchical bootstrap", found.p_value, 1 / (statistics.RESAMPLES + 1)
    elif binary and len(pairs) == 1 and n_clusters == n:
        test, p_value = "McNemar", statistics.mcnemar_exact(*pairs[0])
    else:
        test, p_value = "sign flips", statistics.sign_flip_p_value(differences, seed, clusters)
        floor = 1 / (statistics.FLIPS + 1) if n_clusters > statistics.EXACT_ITEMS else 0.0
    sign = -1 if metric in LOWER_IS_BETTER else 1
    low, high = sorted((sign * found.low, sign * found.high))
    return {
        "n": n,
        "seeds": seeds,
        "reference_mean": reference_mean,
        "arm_mean": arm_mean,
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "percent": 100 * found.mean / arm_mean if arm_mean else 0.0,
        "reference_better": bool(sign * found.mean > 0),
        "test": test,
        "p_value": p_value,
        "effect_size": statistics.standardised(differences),
        "spread": statistics.spread(differences, imagined, clusters),
        "clusters": n_clusters,
        "gain": sign * found.mean,
        "gain_low": low,
        "gain_high": high,
        "p_floor": floor,
        "p_beyond": found.p_beyond if n_clusters > 1 else 1.0,
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
    """What the tests of `compare_all` allow to be said of the reference arm, and no more.

    question; headline (the answer in a sentence); good (better than its control and worse in nothing); worse (what fell);
    forgetting (against base, the control and `selected`); cannot_show (what this run says nothing of).
    """
    ours = tests[tests["reference"] == reference]
    macro = ours[ours["task"] == MACRO]
    control = control_of(list(dict.fromkeys(macro["arm"])), reference, control)
    main = macro[(macro["metric"] == metric) & (macro["arm"] == control)]
    said = {"question": _SAY["question"].format(reference=reference, control=control or "another arm")}
    if main.empty:
        return said | {"headline": _SAY["none"].format(reference=reference), "good": False}
    row = main.iloc[0].to_dict()
    worse = ours[(ours["p_holm"] < ALPHA) & (ours["gain"] < 0)]
    beside = macro[(macro["arm"] == control) & (macro["metric"] != metric) & (macro["gain"] < 0)]
    fell = pd.concat([worse, beside]).drop_duplicates(["arm", "metric", "task"])
    of_text = ours[ours["task"].str.startswith(HELD_OUT) & ours["arm"].isin(["base", control, "selected"])]
    said |= {
        "main_metric": metric,
        "control_arm": control,
        "worse": [_SAY["line"].format(**_words(each)) for each in fell.to_dict("records")],
        "forgetting": [_SAY["line"].format(**_words(each)) for each in of_text.to_dict("records")],
        "cannot_show": _cannot_show(ours, metric),
    }
    if row["n"] < MIN_ITEMS or row["clusters"] < MIN_CLUSTERS:
        return said | {"headline": _SAY["few"].format(**_words(row)), "good": False}
    sure, better = row["p_holm"] < ALPHA, row["gain"] > 0
    verb = _SAY["same" if not sure else "better" if better else "worse"]
    facts = _words(row) | {"control": control, "verb": verb, "arms": int((macro["metric"] == metric).sum())}
    headline = _SAY["answer"].format(**facts)
    if not sure:
        headline += _SAY["equivalent" if row["equivalent"] else "unseen"].format(**facts)
    return said | {"headline": headline, "good": bool(sure and better and worse.empty)}


def _cannot_show(ours: pd.DataFrame, metric: str) -> list[str]:
    """What the tests of the reference arm say nothing of."""
    by_main = ours[ours["metric"] == metric]
    lacking = sorted({task for task in set(ours["task"]) - set(by_main["task"]) if not task.startswith(HELD_OUT)})
    alone = by_main.loc[by_main["clusters"] < 2, "task"].unique()
    said = {
        "one_seed": by_main["seeds"].max() == 1,
        "wording": metric.startswith("bits_per_byte"),
        "lacking": len(lacking),
        "one_template": len(alone),
        "no_text": not ours["task"].str.startswith(HELD_OUT).any(),
    }
    tasks = {"lacking": ", ".join(lacking), "one_template": ", ".join(alone)}
    metric = metric.replace("_", " ")
    return [_SAY[name].format(metric=metric, tasks=tasks.get(name)) for name, true in said.items() if true]


def p_words(row: Mapping[str, Any]) -> str:
    """p after Holm; where no draw was as extreme as what was seen, the least that it can be said to be below."""
    floor = max(row["p_floor"], 1e-4)
    return f"< {floor:.1g}" if row["p_holm"] <= floor * (1 + 1e-9) else f"= {row['p_holm']:.2g}"


def _words(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `compare` as it is written in a sentence: bits as they are, shares in points."""
    bits = row["metric"] in LOWER_IS_BETTER
    scale, unit = (1, "") if bits else (100, " points")
    gain, low, high = (f"{scale * row[name]:+.{3 if bits else 1}f}" for name in ("gain", "gain_low", "gain_high"))
    told = {"gain": f"{gain}{unit} [{low}, {high}]", "p": p_words(row), "metric": row["metric"].replace("_", " ")}
    told |= {"smallest": f"{scale * row['smallest_gain']:.{3 if bits else 1}f}{unit}"}
    limits = {"MIN_ITEMS": MIN_ITEMS, "MIN_CLUSTERS": MIN_CLUSTERS, "MARGIN": MARGIN}
    return {**row, **told, **limits}


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
    of_item = values.drop_duplicates(["task", "item_id"]).set_index(["task", "item_id"])["cluster"]
    rows = []
    for arm, reference in against:
        pairs, items = _paired(wide, reference, arm, wanted)
        clusters = [of_item.loc[names].to_numpy(dtype=str) for names in items]
        row = {"reference": reference, "arm": arm, "metric": metric, "task": task or MACRO}
        rows.append(row | compare_pair(pairs, metric, binary, clusters=clusters))
    return rows


def _corrected(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows that are read as one table: Holm's correction, and the gain that its first and hardest step could have shown."""
    table = pd.DataFrame(rows, columns=_COLUMNS)
    table["p_holm"] = statistics.holm(table["p_value"].to_numpy(dtype=float))
    table["p_floor"] = np.minimum(1, table["p_floor"] * len(table))
    table["p_beyond"] = statistics.holm(table["p_beyond"].to_numpy(dtype=float))
    table["equivalent"] = (table["p_holm"] >= ALPHA) & (table["p_beyond"] < ALPHA)
    table["smallest_gain"] = [statistics.smallest_gain(spread, ALPHA / len(table)) for spread in table.pop("spread")]
    return table


def _paired(
    wide: pd.DataFrame, reference: str, arm: str, tasks: list[str]
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[list[tuple[str, str]]]]:
    """(reference's values, arm's values) of each task, [seeds, items], of the seeds that both have; which items they are."""
    seeds = [seed for seed in wide[reference] if seed in wide[arm]]
    if not seeds:
        raise TraitError(f"The arms {reference} and {arm} have no seed in common, so nothing pairs. Evaluate both anew.")
    pairs, items = [], []
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
        items.append([(task, item) for item in wide.loc[task].index[both]])
    return pairs, items


def _grid(values: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The values of one arm and task, [seeds, items], NaN where a seed did not see an item; the items' clusters."""
    wide = values.pivot(index="seed", columns="item_id", values="value")
    of_item = values.drop_duplicates("item_id").set_index("item_id")["cluster"]
    return wide.to_numpy(), of_item.loc[wide.columns].to_numpy(dtype=str)
