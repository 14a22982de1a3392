"""Do intervals and tests keep their promises? Simulated tables whose truth is known.

    python tests/benchmarks/intervals.py --output docs/results/intervals.json [--tables 2000] [--only binary 3]

A table is two arms on one task of 32, 100 or 500 items, or on the macro average of 32, 100, 500 and 1,319 items, with 1
or 3 seeds.
Counted: how often the 95% interval of the paired difference, and of an arm's mean, holds the truth; how often a
difference of exactly 0 is called significant at 5%; how often a gain as large as `smallest_gain` is; how often the kit
says 'better' of 8 clusters of 12 correlated items that do not differ (`--only clusters`: this alone). Beside them what other
methods would do, as shares of the same tables: `items alone` forgets the seeds, `resampled seeds` is the plain hierarchical
bootstrap, `plain` a percentile bootstrap without the corrections for few items.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import stats

from trait_kit.evaluation import comparison, statistics

SIZES = ((32,), (100,), (500,), (32, 100, 500, 1319))
KINDS, SEEDS = ("continuous", "binary"), (1, 3)
Pair = tuple[np.ndarray, np.ndarray]  # the reference's values and the arm's, [seeds, items]
# Standard deviations of what makes an outcome: an item's difficulty for both arms, its difference between them, a trained
# seed of an arm (on all tasks alike, and on each), and chance that strikes one item in one seed.
DIFFICULTY, DIFFERENCE, SEED, CHANCE = 1.5, 0.5, 0.1, 0.5
OTHERS = 400  # resamples of the methods beside the kit's
LEVEL = 0.4  # of the weaker arm, and LEVEL + gain of the reference, in the same unit


def table(draw: np.random.Generator, kind: str, sizes: tuple[int, ...], n_seeds: int, gain: float) -> list[Pair]:
    """One simulated table. Items differ in difficulty by a skewed law, arms by a skewed and a heavy-tailed one.

    Continuous outcomes are the sum itself; binary ones whether it is above 0, all of it normal there, so that the truth is
    known. With one seed the seeds' own effect is left out: a statistic then speaks of these models.
    """
    spread = SEED if n_seeds > 1 else 0.0
    everywhere = draw.normal(0, spread, (2, n_seeds, 1))
    pairs = []
    for n in sizes:
        seeds = everywhere + draw.normal(0, spread, (2, n_seeds, 1))
        own, chance = (draw.normal(0, 1, (2, 1, n)), draw.normal(0, 1, (2, n_seeds, n)))
        if kind == "continuous":
            own, chance = (
                draw.gamma(4, 0.5, (2, 1, n)) - 2,
                draw.standard_t(5, (2, n_seeds, n)) / np.sqrt(5 / 3),
            )
        values = draw.normal(LEVEL, DIFFICULTY, n) + seeds + DIFFERENCE * own + CHANCE * chance
        values[0] += gain
        pairs.append(tuple((values > 0).astype(float) if kind == "binary" else values))
    return pairs


def means(kind: str, n_seeds: int, gain: float) -> tuple[float, float]:
    """The true means of the reference and the arm."""
    if kind == "continuous":
        return LEVEL + gain, LEVEL
    spread = 2 * SEED**2 if n_seeds > 1 else 0.0
    scale = np.sqrt(DIFFICULTY**2 + DIFFERENCE**2 + CHANCE**2 + spread)
    return float(stats.norm.cdf((LEVEL + gain) / scale)), float(stats.norm.cdf(LEVEL / scale))


def measure(kind: str, sizes: tuple[int, ...], n_seeds: int, tables: int, seed: int = 0) -> dict[str, float]:
    """Shares of `tables` tables with a true gain (coverage) and of as many without one (called)."""
    draw = np.random.default_rng([seed, KINDS.index(kind), sum(sizes), n_seeds])
    reference, arm = means(kind, n_seeds, 0.15)
    counted: Counter[str] = Counter()
    for number in range(tables):
        pairs = table(draw, kind, sizes, n_seeds, 0.15)
        row = comparison.compare_pair(pairs, "metric", kind == "binary", number)
        counted["difference"] += row["gain_low"] <= reference - arm <= row["gain_high"]
        arms = [pair[1] for pair in pairs]
        imagined = statistics.TWO_OF_EACH if kind == "binary" else ()
        low, high = statistics.estimate(arms, None, imagined).interval(0.95)
        counted["mean"] += low <= arm <= high
        for name, (low, high) in _others([first - second for first, second in pairs], draw):
            counted[name] += low <= reference - arm <= high
        same = table(draw, kind, sizes, n_seeds, 0.0)
        counted["called at no difference"] += (
            comparison.compare_pair(same, "metric", kind == "binary", number)["p_value"] <= 0.05
        )
    return {name: count / tables for name, count in counted.items()}


def power(kind: str, sizes: tuple[int, ...], n_seeds: int, tables: int, seed: int = 0) -> float:
    """How often a true gain as large as such tables' `smallest_gain` (root mean square) is found: it promises 0.8."""
    draw = np.random.default_rng([seed, 1, KINDS.index(kind), sum(sizes), n_seeds])
    binary = kind == "binary"
    some = [comparison.compare_pair(table(draw, kind, sizes, n_seeds, 0.15), "m", binary) for _ in range(100)]
    wanted = float(np.sqrt(np.mean([row["estimate"].smallest_gain(0.05) ** 2 for row in some])))
    if binary:  # in the unit of the latent sum
        base, scale = means(kind, n_seeds, 0.0)[0], LEVEL / stats.norm.ppf(means(kind, n_seeds, 0.0)[0])
        wanted = float(stats.norm.ppf(base + wanted)) * scale - LEVEL
    rows = (
        comparison.compare_pair(table(draw, kind, sizes, n_seeds, wanted), "m", binary, number)
        for number in range(tables)
    )
    return sum(row["p_value"] <= 0.05 for row in rows) / tables


def clusters(
    tables: int, n_seeds: int = 1, n_clusters: int = 8, per_cluster: int = 12, seed: int = 0
) -> dict[str, float]:
    """How often the kit says 'better' of tables without a true difference whose items are correlated in clusters.

    Half of the variance of a paired difference is the cluster's. Beside it: the same tables as if items were independent.
    """
    draw = np.random.default_rng([seed, n_seeds, n_clusters, per_cluster])
    labels = [np.repeat([f"c{number}" for number in range(n_clusters)], per_cluster)]
    called: Counter[str] = Counter()
    for number in range(tables):
        hard = draw.normal(1, DIFFICULTY, n_clusters * per_cluster)
        pair = tuple(np.array(_correlated(draw, hard, n_seeds, n_clusters, per_cluster)) for _ in range(2))
        for name, known in (("better", labels), ("better without clusters", None)):
            row = comparison.compare_pair([pair], "bits_per_byte", False, number, known)
            called[name] += row["p_value"] < comparison.ALPHA and row["gain"] > 0  # as the verdict, of two arms
    return {name: called[name] / tables for name in ("better", "better without clusters")}


def _correlated(
    draw: np.random.Generator, hard: np.ndarray, n_seeds: int, n_clusters: int, per_cluster: int
) -> list[np.ndarray]:
    """An arm's values, a seed each: its clusters and items differ from the other arm's as much as each other."""
    own = np.repeat(draw.normal(0, DIFFERENCE, n_clusters), per_cluster) + draw.normal(0, DIFFERENCE, len(hard))
    seeds = draw.normal(0, SEED if n_seeds > 1 else 0.0, n_seeds)
    return [hard + own + seeds[number] + draw.normal(0, CHANCE, len(hard)) for number in range(n_seeds)]


def _others(groups: list[np.ndarray], draw: np.random.Generator) -> Iterator[tuple[str, tuple[float, float]]]:
    mean = statistics.macro(groups)
    n_seeds, resamples = len(groups[0]), OTHERS
    weights = draw.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), resamples) / n_seeds
    alone, together = np.zeros(resamples), np.zeros(resamples)
    for group in groups:
        n = group.shape[1]
        drawn = (draw.multinomial(n, np.full(n, 1 / n), resamples) @ group.T) / n  # [resamples, seeds]
        alone += drawn.mean(axis=1) / len(groups)
        together += (drawn * weights).sum(axis=1) / len(groups)
    if n_seeds == 1:
        yield "plain", tuple(np.quantile(alone, [0.025, 0.975]))
        return
    squares = sum(group.mean(axis=0).var(ddof=1) / group.shape[1] for group in groups)
    half = 1.96 * np.sqrt(squares) / len(groups)
    yield "items alone", (mean - half, mean + half)
    yield "resampled seeds", tuple(np.quantile(together, [0.025, 0.975]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--tables", type=int, default=2_000)
    parser.add_argument(
        "--only", nargs="*", default=[], help="kinds and numbers of seeds, for instance: binary 3"
    )
    options = parser.parse_args()
    statistics.FLIPS = 1_000
    found = {"tables": options.tables, "flips": statistics.FLIPS, "cells": []}
    found["clusters"] = {n: clusters(options.tables, n) for n in SEEDS}
    print(json.dumps(found["clusters"]), flush=True)
    if options.only == ["clusters"]:
        return
    for kind in [kind for kind in KINDS if kind in options.only or not set(KINDS) & set(options.only)]:
        for n_seeds in [n for n in SEEDS if str(n) in options.only or not {"1", "3"} & set(options.only)]:
            for sizes in SIZES:
                started = time.perf_counter()
                cell = {"kind": kind, "items": "+".join(map(str, sizes)), "seeds": n_seeds}
                cell |= measure(kind, sizes, n_seeds, options.tables)
                cell["power at smallest_gain"] = power(kind, sizes, n_seeds, options.tables // 4)
                found["cells"].append(cell | {"seconds": round(time.perf_counter() - started)})
                print(json.dumps(found["cells"][-1]), flush=True)
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
