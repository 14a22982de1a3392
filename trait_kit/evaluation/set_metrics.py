"""AUC and F1 of relevance as values of single items, so that they are compared with the statistics of every other metric.

Both belong to a set of items, while the kit's intervals and tests are of means over items. So each item gets a value (a
pseudo-value by influence function) such that the mean over the items is the set's number exactly, and the variance of that
mean, sum of squared deviations / (n (n - 1)), is the number's own: for AUC, also of the difference of two arms, DeLong's
(DeLong, DeLong & Clarke-Pearson, Biometrics 1988) to the last digit; for F1 the linearised one of a ratio of two means.
A single value means nothing by itself and may lie outside 0..1. O(n log n).
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from trait_kit.engine.files import TraitError

SCORE = "relevance_score"  # the rows that both are computed from: how much more 'relevant' is preferred, in any real unit
METRICS = ("auc", "f1")
RELEVANT, IRRELEVANT = "relevant", "irrelevant"


def with_set_metrics(outcomes: pd.DataFrame) -> pd.DataFrame:
    """The outcomes (tables.SCHEMAS['outcomes']) with a row an item for `auc` and `f1` of every (arm, seed, task) scored.

    Made of the rows with the metric `relevance_score`: its value ranks the items (AUC; ties count half), its prediction is
    what the model prefers (F1 of 'relevant'), its gold is 'relevant' or 'irrelevant'. Old rows of the two are replaced. A
    set without relevant items has neither metric, one without irrelevant ones has no AUC.
    """
    outcomes = outcomes[~outcomes["metric"].isin(METRICS)]
    scored = outcomes[outcomes["metric"] == SCORE]
    if odd := set(scored["gold"]) - {RELEVANT, IRRELEVANT}:
        raise TraitError(
            f"A {SCORE} needs the gold '{RELEVANT}' or '{IRRELEVANT}', not {sorted(map(str, odd))[:3]}. Evaluate anew."
        )
    if scored["value"].isna().any():
        raise TraitError(f"A {SCORE} is not a number, so the items have no order. Evaluate anew.")
    found = [outcomes]
    for _, rows in scored.groupby(["arm", "seed", "task"], sort=False):
        relevant = (rows["gold"] == RELEVANT).to_numpy()
        if not relevant.any():
            continue
        if not relevant.all():
            found.append(rows.assign(metric="auc", value=auc_values(rows["value"].to_numpy(dtype=float), relevant)))
        found.append(rows.assign(metric="f1", value=f1_values((rows["prediction"] == RELEVANT).to_numpy(), relevant)))
    return pd.concat(found, ignore_index=True)


def auc_values(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """One value an item, [n]; their mean is the AUC: the chance that a relevant item scores above an irrelevant one.

    An item's part is DeLong's structural component: how many of the other class it is on the right side of. The root of
    m (n - 1) / ((m - 1) n) makes the variance of the mean the unbiased one of either class; a lone item has no spread.
    """
    n, values = len(scores), np.empty(len(scores))
    positives, negatives = scores[relevant], scores[~relevant]
    right = {True: _share_below(positives, negatives), False: 1 - _share_below(negatives, positives)}
    auc = float(right[True].mean())
    for side, components in right.items():
        m = len(components)
        unbiased = math.sqrt(m * (n - 1) / ((m - 1) * n)) if m > 1 else 1.0
        values[relevant == side] = auc + unbiased * n / m * (components - components.mean())
    return values


def f1_values(predicted: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """One value an item, [n]; their mean is the F1 of the relevant ones: 2 TP / (predicted + relevant), a ratio of means."""
    hits = 2.0 * (predicted & relevant)
    claims = predicted.astype(float) + relevant
    f1 = hits.mean() / claims.mean()
    return f1 + (hits - f1 * claims) / claims.mean()


def _share_below(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of `others`, the share below each score; equal ones count half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / (2 * len(ordered))
