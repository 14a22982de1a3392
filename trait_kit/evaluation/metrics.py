"""Marks (lm-eval's hooks): bits, which of several texts is likelier, is a written answer right; AUC and F1.

Training moves the probability of gold solutions long before any accuracy, but bits per byte also measure wording. So the
main metric counts the *number tokens* alone, each after the gold text before it.

AUC and F1 belong to a set of items, tests to means over items. So each item gets a pseudo-value (by influence function):
their mean is the set's number exactly, their variance that number's own: for AUC, also of the difference of two arms,
DeLong's (DeLong, DeLong & Clarke-Pearson, Biometrics 1988), for F1 the linearised one of a ratio of two means.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from trait_kit.evaluation import ads
from trait_kit.judging.answers import judge

SCORE = "relevance_score"  # how much more 'relevant' is preferred: what AUC and F1 are computed from
RELEVANT, IRRELEVANT = "relevant", "irrelevant"


def bits_per_byte(log_probability: float, n_bytes: int) -> float:
    """-log2 p of a text over its UTF-8 bytes; `log_probability` is in nats."""
    return -log_probability / math.log(2) / n_bytes


def per_byte(choices: list[str], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Log probability of each choice per byte of its text, in nats; `results` are `Answer`s."""
    return {choice: nats / len(choice.encode()) for choice, (nats, *_) in zip(choices, results, strict=True)}


def bits_results(doc: dict[str, Any], results: list) -> dict[str, Any]:
    """lm-eval hook of bits.yaml and documents.yaml: (nats, bytes), for a solution also (nats, tokens) of number tokens.

    lm-eval's aggregation divides; its own models tell no number tokens.
    """
    answer = results[0]  # the nats of a document, or an `Answer`
    nats, _greedy, *numbers = (answer, False) if isinstance(answer, float) else answer
    found = {doc["metric"]: (nats, len(doc["target"].encode()))}
    if doc["metric"] == "bits_per_byte" and any(numbers):
        found["bits_per_number_token"] = tuple(numbers)
    return found


def pair_results(_doc: dict[str, Any], results: list) -> dict[str, float]:
    """lm-eval hook of pairs.yaml: 1 if the gold solution is likelier than itself with a slip."""
    (gold, *_), (slipped, *_) = results
    return {"prefers_gold": float(gold > slipped) if math.isfinite(gold) else math.nan}


def choice_results(doc: dict[str, Any], results: list) -> dict[str, float]:
    """lm-eval hook of choices.yaml; of 'relevant' and 'irrelevant' also how much the first leads."""
    scores = per_byte(doc["choices"], results)
    right = (
        float(max(scores, key=scores.get) == doc["answer"])
        if all(map(math.isfinite, scores.values()))
        else math.nan
    )
    if set(scores) != {RELEVANT, IRRELEVANT}:
        return {"choice_accuracy": right}
    return {"choice_accuracy": right, SCORE: scores[RELEVANT] - scores[IRRELEVANT]}


def generation_results(doc: dict[str, Any], results: list) -> dict[str, float]:
    """lm-eval hook of generation.yaml: the final answer anywhere, and in the asked-for form only; of an ad its marks."""
    flexible, strict = judge(results[0], doc["answer"], doc["kind"], doc["choices"], doc["question"])
    found = ads.marks(results[0], doc["answer"], doc["limits"]) if doc["marks"] else {}
    named = {name: value for name, value in found.items() if name in doc["marks"]}
    return {"exact_match": float(flexible), "exact_match_strict": float(strict)} | named


def with_set_metrics(outcomes: pd.DataFrame) -> pd.DataFrame:
    """The outcomes with the rows of `relevance_score` replaced by rows of `auc` and `f1`, a set an (arm, seed, task).

    The value ranks a set's items; the prediction is what the model prefers. Sets without relevant items have neither
    metric, sets without irrelevant ones no AUC.
    """
    found = [outcomes[outcomes["metric"] != SCORE]]
    for _, rows in outcomes[outcomes["metric"] == SCORE].groupby(["arm", "seed", "task"], sort=False):
        relevant = (rows["gold"] == RELEVANT).to_numpy()
        if relevant.any() and not relevant.all():
            found.append(rows.assign(metric="auc", value=auc_values(rows["value"].to_numpy(float), relevant)))
        if relevant.any():
            preferred = (rows["prediction"] == RELEVANT).to_numpy()
            found.append(rows.assign(metric="f1", value=f1_values(preferred, relevant)))
    return pd.concat(found, ignore_index=True)


def auc_values(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """One value an item, [n]; their mean is the AUC: the chance that a relevant item scores above an irrelevant one.

    An item's part is DeLong's structural component: the share of the other class on whose right side it is, ties counting
    half. The root makes the variance of the mean unbiased; a lone item has no spread.
    """
    n, values = len(scores), np.empty(len(scores))
    above = (np.sign(scores[relevant][:, None] - scores[~relevant]) + 1) / 2  # [relevant, irrelevant]
    for side, components in ((relevant, above.mean(axis=1)), (~relevant, above.mean(axis=0))):
        m = len(components)
        unbiased = math.sqrt(m * (n - 1) / ((m - 1) * n)) if m > 1 else 1.0
        values[side] = above.mean() + unbiased * n / m * (components - components.mean())
    return values


def f1_values(predicted: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """One value an item, [n]; their mean is the F1: 2 TP / (predicted + relevant), a ratio of means."""
    hits = 2.0 * (predicted & relevant)
    claims = predicted.astype(float) + relevant
    f1 = hits.mean() / claims.mean()
    return f1 + (hits - f1 * claims) / claims.mean()
