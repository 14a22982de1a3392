"""How the numbers of a metric are written: accuracies in percent and points, bits per byte as they are."""

from __future__ import annotations

from typing import Any

import pandas as pd

from trait_kit.evaluation.comparison import LOWER_IS_BETTER

_NAMES = {"exact_match_strict": "exact match (strict)", "auc": "AUC", "f1": "F1", "rouge_l": "ROUGE-L", "chrf": "chrF"}


def scale_of(metric: str) -> tuple[int, int]:
    """What a difference is multiplied by to be shown, and its decimals."""
    return (1, 3) if metric in LOWER_IS_BETTER else (100, 1)


def p_text(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    p = row.get("p_holm", row.get("p_value"))
    if p is None or pd.isna(p):
        return "–"
    return "<0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.001 else f"{p:.3f}"


def change_text(value: float, before: float, metric: str) -> str:
    if metric not in LOWER_IS_BETTER:
        return f"{100 * (value - before):+.1f} points"
    return f"{value - before:+.3f}, {100 * (value / before - 1):+.1f}%" if before else f"{value - before:+.3f}"


def signed_text(change: float, metric: str, before: float | None) -> str:
    if metric in LOWER_IS_BETTER and before:
        return f"{100 * change / before:+.1f}% bits per byte"
    return f"{change:+.3f} bits per byte" if metric in LOWER_IS_BETTER else f"{change:+.1f} points"


def number_text(value: float, metric: str) -> str:
    return f"{value:.3f}" if metric in LOWER_IS_BETTER else f"{100 * value:.1f}%"


def metric_name(metric: str) -> str:
    return _NAMES.get(metric, metric.replace("_", " "))
