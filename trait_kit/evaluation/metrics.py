"""Marks (lm-eval's hooks): bits, which of several texts is likelier, is a written answer right; AUC and F1.

Why bits: training moves the probability of gold solutions long before it moves any accuracy. But bits per byte also
measure wording. So the main metric counts the *number tokens* alone, each after the gold text before it; a solution
beside itself with a slip of reasoning asks what wording cannot answer (slips.py); choices stand after the gold reasoning.

AUC and F1 of relevance belong to a set of items, while intervals and tests are of means over items. So each item gets a
pseudo-value (by influence function): their mean is the set's number exactly, and its variance that number's own. For AUC,
also of the difference of two arms, it is DeLong's (DeLong, DeLong & Clarke-Pearson, Biometrics 1988) to the last digit;
for F1 the linearised one of a ratio of two means.
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
    """lm-eval hook of bits.yaml and documents.yaml: (nats, bytes), which lm-eval's aggregation divides.

    A solution also gets (nats, tokens) of its number tokens; models of lm-eval's own do not tell them.
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
    right = float(max(scores, key=scores.get) == doc["answer"]) if all(map(math.isfinite, scores.values())) else math.nan
    if set(scores) != {RELEVANT, IRRELEVANT}:
        return {"choice_accuracy": right}
    return {"choice_accuracy": right, SCORE: scores[RELEVANT] - scores[IRRELEVANT]}


def generation_results(doc: dict[str, Any], results: list) -> dict[str, float]:
    """lm-eval hook of generation.yaml: the final answer wherever it stands, and in the asked-for form only.

    Of an ad also those of `ads.marks` that its task's file names.
    """
    flexible, strict = judge(results[0], doc["answer"], doc["kind"], doc["choices"], doc["question"])
    marked = {"exact_match": float(flexible), "exact_match_strict": float(strict)}
    if doc["marks"]:
        found = ads.marks(results[0], doc["answer"], doc["limits"])
        marked |= {name: value for name, value in found.items() if name in doc["marks"]}
    return marked


def with_set_metrics(outcomes: pd.DataFrame) -> pd.DataFrame:
    """The outcomes with the rows of `relevance_score` replaced by rows of `auc` and `f1`.

    A set is an (arm, seed, task): the value ranks its items, ties counting half; the prediction is what the model prefers.
    Without relevant items it has neither metric, without irrelevant ones no AUC.
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

    An item's part is DeLong's structural component: the share of the other class that it is on the right side of. The
    root makes the variance of the mean the unbiased one of either class; a lone item has no spread.
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
