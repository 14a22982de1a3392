"""Marks for one item: bits per byte, the choice a model prefers, and whether a written answer is right.

Why bits per byte first: a 135M model trained for minutes moves the probability of gold solutions long before it moves
any accuracy, and the number does not depend on the tokenizer. Written answers are judged by trait_kit.evaluation.answers.
"""

from __future__ import annotations

import math
from typing import Any

from trait_kit.answers import judge
from trait_kit.evaluation import ads


def bits_per_byte(log_probability: float, n_bytes: int) -> float:
    """-log2 p of a text over its UTF-8 bytes; `log_probability` is in nats."""
    return -log_probability / math.log(2) / n_bytes


def relevance_score(choices: list[str], log_probabilities: list[float]) -> float:
    """log p('relevant') - log p('irrelevant'), each per byte of its text, in nats: what ranks pairs for an AUC."""
    scores = {choice: value / len(choice.encode()) for choice, value in zip(choices, log_probabilities, strict=True)}
    return scores["relevant"] - scores["irrelevant"]


def best_choice(choices: list[str], log_probabilities: list[float]) -> int:
    """Index of the choice with the highest log probability per byte of its text; the first of equals."""
    scores = [value / len(choice.encode()) for choice, value in zip(choices, log_probabilities, strict=True)]
    return max(range(len(scores)), key=lambda index: scores[index])


def solution_results(doc: dict[str, Any], results: list) -> dict[str, Any]:
    """lm-eval hook of tasks/solution_bits.yaml: (nats, bytes), which lm-eval's aggregation turns into bits per byte."""
    ((log_probability, _greedy),) = results
    return {"bits_per_byte": (log_probability, len(doc["target"].encode()))}


def document_results(doc: dict[str, Any], results: list) -> dict[str, Any]:
    """lm-eval hook of tasks/document_bits.yaml."""
    (log_probability,) = results
    return {"bits_per_byte": (log_probability, len(doc["text"].encode()))}


def choice_results(doc: dict[str, Any], results: list) -> dict[str, Any]:
    """lm-eval hook of tasks/choices.yaml."""
    best = best_choice(doc["choices"], [log_probability for log_probability, _greedy in results])
    return {"choice_accuracy": float(doc["choices"][best] == doc["answer"])}


def generation_results(doc: dict[str, Any], results: list) -> dict[str, Any]:
    """lm-eval hook of tasks/generation.yaml."""
    return generation_marks(results[0], doc)


def generation_marks(prediction: str, item: dict[str, Any]) -> dict[str, float]:
    """Marks of a generated text by metric: the final answer wherever it stands, and in the asked-for form only; of an ad
    also those of `ads.marks` that its task's file names.

    `item` has question, answer, kind (of the task), choices (where it has some), entity, marks and limits (of the file).
    """
    flexible, strict = judge(
        prediction, item["answer"], item.get("kind") or "", item.get("choices") or (), item.get("question") or ""
    )
    marked = {"exact_match": float(flexible), "exact_match_strict": float(strict)}
    if wanted := item.get("marks"):
        found = ads.marks(prediction, item["question"], item["answer"], item["entity"], item["limits"])
        marked |= {name: value for name, value in found.items() if name in wanted}
    return marked
