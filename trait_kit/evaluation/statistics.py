"""Numbers in, statistics out: standard errors, intervals, tests, and the smallest gain that items could have shown.

A group is the items of one task, [training seeds, items], NaN where a seed did not see an item. Statistics are of the
mean of the groups' means (every task weighs the same), each over a seed's items, then over seeds: with one seed they speak
of *these trained models* on other items, with several of the recipe.

Items of one cluster (a template, an entity; one label in two tasks is one cluster) are no independent evidence: what
varies, is flipped and is counted are clusters. The methods were chosen by simulation (tests/benchmarks/intervals.py).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

ALPHA = 0.05  # THE level of significance, of every test, table and sentence
FLIPS = 20_000  # random ones, where there are too many to try all
EXACT_ITEMS = 14  # up to so many clusters, all 2^n sign flips are tried
POWER = 0.8  # with which a smallest gain is shown
TWO_OF_EACH = (1.0, 1.0, 0.0, 0.0)  # imagined outcomes, right and wrong (Agresti and Coull, 1998)
_AT_ONCE = 1_000  # sign flips
Clusters = Sequence[np.ndarray] | None  # labels of the items of each group; None: every item is its own


@dataclass(frozen=True)
class Estimate:
    """A mean of group means and its variance (squared units of the metric) by source; all has Student's tails.

    `items`: from drawing other items, shared by all seeds. `seeds`: the seeds' means about their mean, over their number.
    """

    mean: float
    items: float
    seeds: float
    item_freedom: float  # degrees of freedom of `items` (Welch and Satterthwaite); inf where it is 0
    n_seeds: int

    @property
    def variance(self) -> float:
        return self.items + self.seeds

    @property
    def freedom(self) -> float:
        """As Satterthwaite's (1946), but by the seeds' share of the standard error, not of the variance.

        By the latter, tests of three seeds find what is not there in up to 7.5% of tables; so, in 3.3 to 5.3%.
        """
        share = math.sqrt(self.seeds / self.variance) if self.seeds else 0.0
        inverse = (1 - share) ** 2 / self.item_freedom + share**2 / max(1, self.n_seeds - 1)
        return 1 / inverse if inverse else math.inf

    def interval(self, confidence: float) -> tuple[float, float]:
        half = stats.t.isf((1 - confidence) / 2, self.freedom) * math.sqrt(self.variance)
        return self.mean - half, self.mean + half

    @property
    def p_value(self) -> float:
        """Two-sided, that the mean is 0; what has no spread shows nothing."""
        if self.variance <= 0:
            return 1.0
        return float(2 * stats.t.sf(abs(self.mean) / math.sqrt(self.variance), self.freedom))

    def p_beyond(self, margin: float) -> float:
        """That the mean is not within the margin: two one-sided tests (TOST; Schuirmann, 1987)."""
        inside = margin - abs(self.mean)
        if self.variance <= 0:
            return float(inside <= 0)
        return float(stats.t.sf(inside / math.sqrt(self.variance), self.freedom))

    def smallest_gain(self, level: float) -> float:
        """The true mean that a two-sided test at `level` finds with 80% power, in units of the metric.

        Two quantiles of Student's t stand for the noncentral t: right to 1% from 13 items on, and to 6% of 3 seeds.
        """
        steps = stats.t.isf(level / 2, self.freedom) + stats.t.ppf(POWER, self.freedom)
        return float(steps * math.sqrt(self.variance))


def macro(groups: Sequence[np.ndarray]) -> float:
    return float(np.mean([np.nanmean(group, axis=-1).mean() for group in groups]))


def estimate(groups: Sequence[np.ndarray], clusters: Clusters = None, imagined: Sequence[float] = ()) -> Estimate:
    """The mean of the groups' means with where its variance comes from; of a single cluster, it is without bounds.

    `imagined` items stand beside each group's own when its spread is taken: twenty equal outcomes are no certainty.
    Seeds may share all items, none, or some: what they have in common is the covariance of their means through items.
    """
    parts = _influence(groups, clusters, imagined)
    influence = pd.concat(parts).groupby(level=0).sum().to_numpy()  # a cluster in several tasks counts once
    covariance, mean = influence.T @ influence, macro(groups)
    if len(influence) - len(groups) * len(imagined) < 2:
        return Estimate(mean, math.inf, 0.0, 1.0, len(covariance))
    n, items = len(covariance), float(covariance.mean())
    squares = sum(part.sum(axis=1).pow(2).sum() ** 2 / max(1, len(part) - 1) for part in parts) / n**4
    freedom = max(1.0, min(items**2 / squares, len(influence) - 1)) if squares else math.inf
    if n == 1:
        return Estimate(mean, items, 0.0, freedom, n)
    shared = float(covariance.sum() - np.trace(covariance)) / (n * (n - 1))
    of_seeds = np.mean([np.nanmean(group, axis=1) for group in groups], axis=0)
    return Estimate(mean, max(0.0, shared), float(of_seeds.var(ddof=1)) / n, freedom, n)


def _influence(groups: Sequence[np.ndarray], clusters: Clusters, imagined: Sequence[float]) -> list[pd.DataFrame]:
    """By group: how much each cluster moves each seed's mean of group means, [clusters, seeds]; 0 where it is not.

    A group of one cluster counts as far as its mean is from the mean of all, as in survey statistics a stratum of which
    one unit was drawn (Lumley, 2010; Stata's `centered`).
    """
    parts, overall = [], macro(groups)
    for place, group in enumerate(groups):
        labels = (
            [f"item {place} {n}" for n in range(group.shape[1])] if clusters is None else list(clusters[place])
        )
        lone = len(set(labels)) < 2
        labels += [f"imagined {place} {number}" for number in range(len(imagined))]
        group = np.concatenate([group, np.tile(imagined, (len(group), 1))], axis=1)
        centred = group - (overall if lone else np.nanmean(group, axis=1, keepdims=True))
        centred[np.abs(centred) <= 1e-12 * np.nanmax(np.abs(group))] = (
            0.0  # what rounding leaves of equal numbers
        )
        by_cluster = pd.DataFrame(centred.T, index=labels).groupby(level=0)
        n_clusters = (by_cluster.count() > 0).sum()
        unbiased = np.sqrt(n_clusters / np.maximum(1, n_clusters - 1))
        parts.append(by_cluster.sum() / (len(groups) * (~np.isnan(group)).sum(axis=1)) * unbiased)
    return parts


def sign_flips(
    groups: Sequence[np.ndarray], seed: int = 0, clusters: Clusters = None
) -> tuple[float, float, float]:
    """Two-sided p value that paired differences, grouped by task, are symmetric about zero; the shifts not rejected.

    The statistic is the mean of task means. All sign patterns of at most EXACT_ITEMS clusters are tried, else FLIPS
    random ones and the observed: p is never 0. Differences of one size are a fair coin's, as in McNemar's exact test. A
    pattern is as extreme as the observed for shifts between two roots: where its sum, less its share of the shift, is as
    far from zero as the whole.
    """
    shares = np.concatenate([np.full(np.size(group), 1 / (np.size(group) * len(groups))) for group in groups])
    both = np.stack([np.concatenate(list(map(np.ravel, groups))) * shares, shares], axis=1)
    if clusters is not None:
        both = pd.DataFrame(both).groupby(np.concatenate(clusters)).sum().to_numpy()
    seen, n, roots = both[:, 0].sum(), len(both), [[[-math.inf], [math.inf]]]
    for signs in _signs(n, seed):
        flipped, part = (signs @ both).T
        same = np.abs(part) > 1 - 1e-9  # all were flipped, or none: extreme for every shift
        ends = (flipped - seen) / np.where(same, 1, part - 1), (flipped + seen) / np.where(same, 1, part + 1)
        roots.append([np.where(same, -math.inf, np.minimum(*ends)), np.where(same, math.inf, np.maximum(*ends))])
    low, high = np.concatenate(roots[n <= EXACT_ITEMS :], axis=1)
    near = 1e-9 * np.abs(both[:, 0]).sum()  # a pattern that ties but for rounding counts
    p_value, place = np.mean((low <= near) & (high >= -near)), math.ceil(ALPHA * len(low)) - 1
    moved = both[np.abs(both[:, 0]) > 1e-15, 0]
    if len(moved) and np.ptp(np.abs(moved)) <= 1e-9 * np.abs(moved).max():
        p_value = stats.binomtest(int(np.sum(moved > 0)), len(moved)).pvalue

    return float(p_value), float(np.sort(low)[place]), float(np.sort(high)[-1 - place])


def _signs(n: int, seed: int) -> Iterator[np.ndarray]:
    draw, starts = np.random.default_rng(seed), range(0, FLIPS, _AT_ONCE)
    drawn = (draw.integers(0, 2, size=(min(_AT_ONCE, FLIPS - start), n), dtype=bool) for start in starts)
    for part in [(np.arange(2**n)[:, None] >> np.arange(n)) & 1] if n <= EXACT_ITEMS else drawn:
        yield 2.0 * part - 1.0


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjusted p values (family-wise error), in the order they came."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.maximum.accumulate(np.asarray(p_values)[order] * np.arange(len(order), 0, -1))
    return np.minimum(adjusted, 1.0)[np.argsort(order)]
