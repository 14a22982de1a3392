"""Numbers in, statistics out: intervals, tests, effect sizes and the smallest gain that a set of items could have shown.

A group is the items of one task, [training seeds, items], NaN where a seed did not see an item; statistics are of the mean
of the groups' means (every task weighs the same), each of them first over a seed's items, then over seeds.

Items of one cluster (a template, an entity, a document; the same label in two tasks is the same cluster) are no independent
evidence: what is drawn, flipped and counted are clusters. Without labels every item is its own.

With one seed a statistic speaks of *these trained models* on other items; with several it speaks of the recipe, trained
anew. Which methods keep their promises was decided by simulation (tests/benchmarks/intervals.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 10_000  # bootstrap draws
FLIPS = 20_000  # random sign flips where there are too many to try all
EXACT_ITEMS = 16  # up to this many non-zero differences, all 2^n sign flips are tried
POWER = 0.8  # with which a smallest gain is shown
_CHUNK = 4_000_000  # numbers drawn at a time
# Imagined items beside a task's binary ones, so that twenty zeros do not claim certainty: two right and two wrong answers
# of an arm (Agresti and Coull, 1998). For a difference of two arms: half_a_win_each.
TWO_OF_EACH = (1.0, 1.0, 0.0, 0.0)
Clusters = Sequence[np.ndarray] | None  # labels of the items of each group; None: every item is its own


@dataclass(frozen=True)
class Spread:
    """Variance of a mean of group means, by what it comes from; in squared units of the metric.

    `items`: from drawing other items. `seeds`: the seeds' means about their mean, divided by how many there are. Chance that
    strikes an item in one seed only is in both of them, as `both`.
    """

    items: float
    seeds: float
    both: float
    freedom: float  # degrees of freedom of `items` (Welch and Satterthwaite); inf where it is 0
    n_seeds: int

    @property
    def variance(self) -> float:
        return max(0.0, self.items - self.both) + self.seeds

    @property
    def heavy(self) -> float:
        """The part of `variance` that gets Student's tails with n_seeds - 1 degrees of freedom; the rest gets the items'.

        The seeds' share to the power of 1.5: 95% intervals then cover 94.7 to 96.5% for any true share, from three seeds on;
        the share itself covers up to 97.6%.
        """
        return (self.seeds / self.variance) ** 1.5 if self.seeds else 0.0


@dataclass(frozen=True)
class Estimate:
    """A mean of group means, its interval, and p values by the draws of the interval: that it is 0 (two-sided), and that it
    is not within the margin (two one-sided tests; Schuirmann, 1987)."""

    mean: float
    low: float
    high: float
    p_value: float
    p_beyond: float = 1.0


def half_a_win_each(n_seeds: int) -> tuple[float, float]:
    """Imagined differences beside those of binary outcomes: half a win of each arm (Agresti and Min, 2005).

    It is shared by the outcomes of all seeds, as two differences whose squares add up to one win.
    """
    return math.sqrt(0.5 / n_seeds), -math.sqrt(0.5 / n_seeds)


def macro(groups: Sequence[np.ndarray]) -> float:
    return float(np.mean([np.nanmean(group, axis=-1).mean() for group in groups]))


def spread(groups: Sequence[np.ndarray], imagined: Sequence[float] = (), clusters: Clusters = None) -> Spread:
    """Where the variance of `macro(groups)` comes from; a single item has no spread, and counts as having none.

    Works through the covariance of the seeds' means that items cause, [seeds, seeds], so that seeds may share all of their
    items (a benchmark), none (problems generated anew), or some.
    """
    influence, by_group = _influence(groups, imagined, clusters)
    covariance = influence @ influence.T
    n_seeds = len(covariance)
    own, items = float(np.trace(covariance)) / n_seeds, float(covariance.mean())
    squares = sum(variance**2 / freedom for variance, freedom in by_group if variance > 0)
    freedom = items**2 / squares if squares else math.inf
    if clusters is not None and squares:  # clusters that are in several tasks count once
        freedom = min(freedom, max(1, influence.shape[1] - 1))
    if n_seeds == 1:
        return Spread(items, 0.0, 0.0, freedom, 1)
    shared = (float(covariance.sum()) - own * n_seeds) / (n_seeds * (n_seeds - 1))
    means = np.mean([np.nanmean(group, axis=1) for group in groups], axis=0)
    return Spread(items, float(means.var(ddof=1)) / n_seeds, max(0.0, (own - shared) / n_seeds), freedom, n_seeds)


def hierarchical_bootstrap(
    groups: Sequence[np.ndarray],
    confidence: float,
    seed: int = 0,
    imagined: Sequence[float] = (),
    clusters: Clusters = None,
    margin: float = 0.0,
) -> Estimate:
    """Mean of group means with an interval that has both levels in it: clusters of items, and training seeds.

    Clusters are resampled, scaled by sqrt(n / (n - 1)) and divided by the root of a chi-square over its degrees of freedom:
    tails are then Student's, as a plain percentile interval is too narrow for a few of them. Seeds are too few to resample:
    their part is drawn from Student's t, with the spread of their own means.
    """
    generator, uncertainty, mean = np.random.default_rng(seed), spread(groups, imagined, clusters), macro(groups)
    drawn, heavy = np.zeros(RESAMPLES), uncertainty.heavy
    if uncertainty.items > 0:
        influence = _influence(groups, imagined, clusters)[0].mean(axis=0)
        n = len(influence)
        for chunk in _chunks(RESAMPLES, n):
            drawn[chunk] = influence[generator.integers(n, size=(len(drawn[chunk]), n))].sum(axis=1)
        drawn *= np.sqrt(uncertainty.freedom / generator.chisquare(uncertainty.freedom, RESAMPLES))
        drawn *= math.sqrt((1 - heavy) * uncertainty.variance / uncertainty.items)
    if heavy:
        drawn += math.sqrt(heavy * uncertainty.variance) * generator.standard_t(uncertainty.n_seeds - 1, RESAMPLES)
    low, high = mean + np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    if imagined:  # of shares, which end at 1, and at 0 or -1
        low, high = max(low, math.floor(min(imagined))), min(high, 1.0)
    extreme = int(np.sum(np.abs(drawn) >= abs(mean) * (1 - 1e-9)))
    beyond = int(max(np.sum(drawn <= mean - margin), np.sum(drawn >= mean + margin)))
    return Estimate(mean, float(low), float(high), (extreme + 1) / (RESAMPLES + 1), (beyond + 1) / (RESAMPLES + 1))


def mean_interval(groups: Sequence[np.ndarray], confidence: float, seed: int = 0, clusters: Clusters = None) -> Estimate:
    """The mean of the groups' means; its p value is of no use. A task of 32 items keeps its width beside one of 1,319."""
    groups = [np.atleast_2d(group) for group in groups]
    return hierarchical_bootstrap(groups, confidence, seed, TWO_OF_EACH if is_binary(groups) else (), clusters)


def mcnemar_exact(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided exact McNemar p value of paired 0/1 outcomes: a fair coin over the items on which they disagree."""
    disagreements = int(np.sum(first != second))
    return float(stats.binomtest(int(np.sum(first > second)), disagreements).pvalue) if disagreements else 1.0


def student_p_value(groups: Sequence[np.ndarray], clusters: Clusters = None) -> float:
    """Two-sided p value of the mean over its standard error; of pseudo-values (metrics.py) DeLong's test, with t's tails."""
    uncertainty = spread(groups, (), clusters)
    if uncertainty.variance <= 0:
        return 1.0
    return float(2 * stats.t.sf(abs(macro(groups)) / math.sqrt(uncertainty.variance), uncertainty.freedom))


def sign_flip_p_value(groups: Sequence[np.ndarray], seed: int = 0, clusters: Clusters = None) -> float:
    """Two-sided p value that paired differences, grouped by task, are symmetric about zero; statistic: mean of task means.

    All differences of a cluster are flipped together, in whichever tasks they are.

    Of binary outcomes it is McNemar's test for a mean of tasks, and of one task McNemar's own. Exact (all sign patterns)
    for at most EXACT_ITEMS non-zero differences; else FLIPS random ones, the observed one counted too: p is never 0.
    """
    weighted = np.concatenate([np.ravel(group) / (np.size(group) * len(groups)) for group in groups])
    if clusters is not None:
        weighted = np.bincount(np.unique(np.concatenate(clusters), return_inverse=True)[1], weighted)
    weighted = weighted[np.abs(weighted) > 1e-15]
    n = len(weighted)
    if n == 0:
        return 1.0
    limit = abs(weighted.sum()) - 1e-9 * np.abs(weighted).sum()  # a pattern that ties but for rounding counts
    if n <= EXACT_ITEMS:
        patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float(np.mean(np.abs((2.0 * patterns - 1.0) @ weighted) >= limit))
    generator, extreme = np.random.default_rng(seed), 0
    for chunk in _chunks(FLIPS, n):
        kept = generator.integers(0, 2, size=(chunk.stop - chunk.start, n), dtype=bool) @ weighted
        extreme += int(np.sum(np.abs(2 * kept - weighted.sum()) >= limit))
    return (extreme + 1) / (FLIPS + 1)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p values (family-wise error), in the order they came."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.maximum.accumulate(np.asarray(p_values)[order] * np.arange(len(order), 0, -1))
    return np.minimum(adjusted, 1.0)[np.argsort(order)]


def standardised(groups: Sequence[np.ndarray]) -> float:
    """d_z (Cohen, 1988): mean paired difference over the differences' standard deviation within tasks.

    Differences are averaged over seeds first; tasks weigh the same, as in the mean. Infinite where nothing varies.
    """
    variances = [np.nanmean(group, axis=0).var(ddof=1) for group in groups if group.shape[1] > 1]
    deviation, mean = math.sqrt(np.mean(variances)) if variances else 0.0, macro(groups)
    if deviation <= 1e-12 * abs(mean):
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean / deviation


def smallest_gain(uncertainty: Spread, level: float) -> float:
    """The true mean difference that a two-sided t test at `level` finds with 80% power, by the spread of the differences.

    In units of the metric. Two quantiles of Student's t stand for the noncentral t: right to 1% from 13 items on, and to 6%
    of 3 seeds.
    """
    parts = ((1 - uncertainty.heavy, uncertainty.freedom), (uncertainty.heavy, uncertainty.n_seeds - 1))
    errors = [
        share * (stats.t.isf(level / 2, freedom) + stats.t.ppf(POWER, freedom)) ** 2 for share, freedom in parts if share
    ]
    return math.sqrt(uncertainty.variance * sum(errors))


def is_binary(groups: Sequence[np.ndarray]) -> bool:
    return all(np.isin(group[~np.isnan(group)], (0.0, 1.0)).all() for group in groups)


def _influence(
    groups: Sequence[np.ndarray], imagined: Sequence[float], clusters: Clusters
) -> tuple[np.ndarray, list[tuple[float, int]]]:
    """How much each cluster moves each seed's mean of group means, [seeds, clusters], and (variance, degrees) by group.

    0 where a seed lacks it. A group of one cluster has no spread between clusters: its interval is that of its items, so it
    speaks of this cluster's items only.
    """
    parts, names, by_group = [], [], []
    for place, group in enumerate(groups):
        labels = [f"item {place} {number}" for number in range(group.shape[1])]
        if clusters is not None and len(set(clusters[place])) > 1:
            labels = [str(label) for label in clusters[place]]
        labels += [f"imagined {place} {number}" for number in range(len(imagined))]
        group = np.concatenate([group, np.tile(np.asarray(imagined, dtype=float), (len(group), 1))], axis=1)
        there = ~np.isnan(group)
        centred = np.nan_to_num(group - np.nanmean(group, axis=1, keepdims=True))
        centred[np.abs(centred) <= 1e-12 * np.nanmax(np.abs(group))] = 0.0  # what rounding leaves of equal numbers
        own, member = np.unique(labels, return_inverse=True)
        summed, found = np.zeros((2, len(group), len(own)))
        np.add.at(summed.T, member, centred.T)
        np.add.at(found.T, member, there.T)
        counts, found = there.sum(axis=1, keepdims=True), (found > 0).sum(axis=1, keepdims=True)
        part = summed / (len(groups) * counts) * np.sqrt(found / np.maximum(1, found - 1))
        by_group.append((float((part @ part.T).mean()), len(own) - 1))
        parts.append(part)
        names.append(own)
    joined, place_of = np.unique(np.concatenate(names), return_inverse=True)
    influence = np.zeros((len(parts[0]), len(joined)))
    np.add.at(influence.T, place_of, np.concatenate(parts, axis=1).T)
    return influence, by_group


def _chunks(total: int, width: int) -> list[slice]:
    """Slices of `total` rows that hold about _CHUNK numbers each."""
    size = max(1, _CHUNK // width)
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
