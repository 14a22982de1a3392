"""Marks for one item: bits per byte, the choice a model prefers, whether a written answer is right; lm-eval's hooks.

Why bits per byte first: a 135M model trained for minutes moves the probability of gold solutions long before it moves
any accuracy, and the number does not depend on the tokenizer. It also measures wording: a model that reasons as well in
other words has more of them. Hence the accuracies, which form cannot win, beside it.
"""

from __future__ import annotations

import math
from typing import Any

from trait_kit.answers import judge
from trait_kit.evaluation import ads


def bits_per_byte(log_probability: float, n_bytes: int) -> float:
    """-log2 p of a text over its UTF-8 bytes; `log_probability` is in nats."""
    return -log_probability / math.log(2) / n_bytes


def per_byte(choices: list[str], log_probabilities: list[float]) -> dict[str, float]:
    """Log probability of each choice per byte of its text, in nats."""
    return {choice: value / len(choice.encode()) for choice, value in zip(choices, log_probabilities, strict=True)}


def preferred(scores: dict[str, float]) -> str:
    """The choice with the highest score; the first of equals."""
    return max(scores, key=lambda choice: scores[choice])


def bits_results(doc: dict[str, Any], results: list) -> dict[str, Any]:
    """lm-eval hook of tasks/solution_bits.yaml and document_bits.yaml: (nats, bytes); lm-eval's aggregation divides them."""
    nats = results[0] if "text" in doc else results[0][0]  # a document's, or (nats, is it greedy) of a solution
    return {"bits_per_byte": (nats, len((doc["text"] if "text" in doc else doc["target"]).encode()))}


def choice_results(doc: dict[str, Any], results: list) -> dict[str, Any]:
    """lm-eval hook of tasks/choices.yaml."""
    scores = per_byte(doc["choices"], [log_probability for log_probability, _greedy in results])
    return {"choice_accuracy": float(preferred(scores) == doc["answer"])}


def generation_results(doc: dict[str, Any], results: list) -> dict[str, float]:
    """lm-eval hook of tasks/generation.yaml: the final answer wherever it stands, and in the asked-for form only; of an ad
    also those of `ads.marks` that its task's file names.

    `doc` has question, answer, kind (of the task), choices (where it has some), entity, marks and limits (of the file).
    """
    flexible, strict = judge(results[0], doc["answer"], doc["kind"], doc["choices"], doc["question"])
    marked = {"exact_match": float(flexible), "exact_match_strict": float(strict)}
    if doc["marks"]:
        found = ads.marks(results[0], doc["question"], doc["answer"], doc["entity"], doc["limits"])
        marked |= {name: value for name, value in found.items() if name in doc["marks"]}
    return marked
