"""Marks of ads on real tasks, planted faults and hostile text; AUC and F1 by item against scikit-learn and DeLong."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score

from trait_kit import tables
from trait_kit.evaluation import ads, comparison, statistics
from trait_kit.evaluation.metrics import auc_values, f1_values, with_set_metrics
from trait_kit.tasks import load_problems, load_task

GOLD = "Acme Trail Hiking Boots | Waterproof boots of brown leather with a rubber sole."
LIMITS = [30, 90]


def mark(prediction: str, gold: str = GOLD, limits: list[int] = LIMITS) -> dict[str, float]:
    return ads.marks(prediction, gold, limits)


# --------------------------------------------------------------------------------------------------- what was written


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("Dive the Arctic", "Dive the Arctic"),
        (" \n\n Dive the Arctic.\nIt has 15 characters.", "Dive the Arctic"),
        (" The page is about diving. It has 15 characters. The answer is Dive the Arctic.", "Dive the Arctic"),
        (
            "The answer is A. No, the answer is: **Dive the Arctic**.\n\nQuestion: The answer is C.",
            "Dive the Arctic",
        ),
        ("The answer is\nDive | Go deep. Today.\nBye", "Dive | Go deep. Today"),
        ("THE ANSWER IS 'Dive'.", "Dive"),
        ('"Title: Dive | Description: Go deep."', "Dive | Go deep"),
        ("Ad title: Dive", "Dive"),
        ("Question: what now?\nAnswer: x", ""),
        ("Dive<|im_end|>\nassistant The answer is no", "Dive"),
        ("Dive\u200b the\x00Arctic\x1b[2J", "Dive the Arctic [2J"),
        ("", ""),
        (" \n*_`\n..", ""),
        ("x" * 1_990 + "\nThe answer is late.", "x" * 1_990),
    ],
)
def test_the_ad_is_read_off_a_prediction(prediction, expected):
    assert ads.written(prediction) == expected


# ----------------------------------------------------------------------------------------------------------------- marks


def test_rouge_and_chrf_by_hand():
    found = mark("Red Shoe Sales", gold="Cheap red shoes", limits=[])
    assert found["rouge_l"] == pytest.approx(2 / 3)  # 'red shoe' of three stemmed words each
    assert found["chrf"] == pytest.approx(_chrf("RedShoeSales", "Cheapredshoes"))
    assert mark(GOLD)["rouge_l"] == mark(GOLD)["chrf"] == 1
    assert mark("quite other")["rouge_l"] == 0


def _chrf(text: str, gold: str) -> float:
    """Popović (2015), formula 1: F2 of precision and recall, each averaged over the orders 1 to 6."""
    precisions, recalls = [], []
    for n in range(1, 7):
        own, other = (Counter(line[at : at + n] for at in range(len(line) - n + 1)) for line in (text, gold))
        precisions.append((own & other).total() / own.total())
        recalls.append((own & other).total() / other.total())
    precision, recall = np.mean(precisions), np.mean(recalls)
    return 5 * precision * recall / (4 * precision + recall)


@pytest.mark.parametrize(
    ("text", "limits", "expected"),
    [
        ("t" * 30, [30], 1),
        ("t" * 30 + ".", [30], 1),  # the stop of 'The answer is X.'
        ("t" * 31, [30], 0),
        ("", [30], 0),
        ("t | d", [30], 0),
        ("t" * 30 + " | " + "d" * 90, LIMITS, 1),
        ("t" * 30 + "|" + "d" * 91, LIMITS, 0),
        ("t | ", LIMITS, 0),
        (" | d", LIMITS, 0),
        ("t", LIMITS, 0),
        ("t | d | e", LIMITS, 0),
        ("Zu\u0308rich" + "t" * 24, [30], 1),  # a character that is typed as two
    ],
)
def test_limits_count_characters_of_every_part(text, limits, expected):
    assert mark(f"The answer is {text}", limits=limits)["within_limit"] == expected


def test_no_limit_no_mark():
    assert "within_limit" not in mark("t", limits=[])


def test_an_empty_text_gets_nothing():
    assert set(mark("").values()) == {0.0}


def test_real_ads_golds_keep_the_marks_and_other_products_do_not():
    tasks = ["title_generation", "title_rewriting", "description_generation", "ad_generation", "query_rewriting"]
    limits = {name: load_task(name).limits for name in tasks}
    assert limits == dict(zip(tasks, ([30], [30], [90], [30, 90], []), strict=True))
    problems = load_problems(tasks, "test", 30, 0)
    golds, others = [], []
    for row in problems.to_dict("records"):
        rest = row["answer"], limits[row["task"]]
        golds.append(ads.marks(f"The answer is {row['answer'].rstrip('.')}.", *rest))
        others += [ads.marks(choice, *rest) for choice in row["choices"] if row["entity"] not in choice]
    golds, others = pd.DataFrame(golds), pd.DataFrame(others)
    assert len(golds) == 150 and len(others) > 150
    assert (golds[["rouge_l", "chrf"]] == 1).all(axis=None) and (golds["within_limit"].dropna() == 1).all()
    assert (others[["rouge_l", "chrf"]].mean() < 0.6).all()


# ---------------------------------------------------------------------------------------------------------- hostile text


@pytest.mark.parametrize(
    "text",
    [
        "A" * 10_000_000,
        "y" * 2_000,
        "The answer is " * 100_000,
        "$1,000." * 300_000,
        "9" * 100_000,
        "1,000" * 20_000,
        "|" * 100_000,
        "A. " * 100_000,
        "A-" * 100_000,
        "Ab: " * 100_000,
        "Query: " * 100_000,
        "\x00\x1b[2J\u202e\ud800" * 10_000,
        "e\u0301\u0327" * 10_000,
        "\ufdfa" * 10_000,
        "(a+)+$ <script>alert(1)</script> {{7*7}} %s \\",
        "\n" * 100_000,
        "東京の旅行 Москва для Вас हिन्दी",
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_hostile_text_gets_marks(text):
    for prediction, gold in ((text, GOLD), ("Acme Boots", text)):
        found = ads.marks(prediction, gold, LIMITS)
        assert set(found) == {"rouge_l", "chrf", "within_limit"} and all(
            0 <= value <= 1 for value in found.values()
        )


# ------------------------------------------------------------------------------------------------------------ AUC and F1


def outcomes(
    scores: np.ndarray, relevant: np.ndarray, arm: str = "a", seed: int = 0, task: str = "t"
) -> pd.DataFrame:
    """Scores above 0 prefer 'relevant'."""
    rows = {"arm": arm, "seed": seed, "task": task, "item_id": [f"i{n}" for n in range(len(scores))]}
    rows["cluster"] = [f"{task}/{item}" for item in rows["item_id"]]
    names = np.array(["irrelevant", "relevant"])
    said = {"prediction": names[(scores > 0).astype(int)], "gold": names[relevant.astype(int)]}
    return pd.DataFrame({**rows, "metric": "relevance_score", "value": scores, **said})


def test_values_of_a_small_set_by_hand():
    scores, relevant = np.array([3.0, 1.0, 2.0, 0.0, 1.0]), np.array([True, True, False, False, False])
    # of 6 pairs, 3 + 1.5 are in order: AUC 3/4. Components: 1 and 1/2 of the relevant, 1/2, 1 and 3/4 of the others.
    scale = [5 / 2 * math.sqrt(2 * 4 / (1 * 5))] * 2 + [5 / 3 * math.sqrt(3 * 4 / (2 * 5))] * 3
    deviations = np.array([0.25, -0.25, -0.25, 0.25, 0.0])
    assert auc_values(scores, relevant) == pytest.approx(0.75 + scale * deviations)
    # predicted: all but the fourth. F1 = 4 / (4 + 2); an item's part is (2 hit - F1 (predicted + relevant)) / 1.2
    parts = np.array([2 - 4 / 3, 2 - 4 / 3, -2 / 3, 0, -2 / 3]) / 1.2
    assert f1_values(scores > 0, relevant) == pytest.approx(2 / 3 + parts)


def random_set(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Of any size from 2, any balance, often with ties; both classes are there."""
    n = int(generator.integers(2, 60))
    relevant = generator.random(n) < generator.uniform(0.05, 0.95)
    relevant[:2] = generator.permutation([True, False])
    scores = generator.normal(relevant * generator.uniform(-1, 3), 1)
    return (np.round(scores, int(generator.integers(0, 3))) if generator.random() < 0.7 else scores), relevant


def test_means_are_the_sets_auc_and_f1():
    generator = np.random.default_rng(0)
    for _ in range(100):
        scores, relevant = random_set(generator)
        found = with_set_metrics(outcomes(scores, relevant)).groupby("metric")["value"].mean()
        assert found["auc"] == pytest.approx(roc_auc_score(relevant, scores), abs=1e-12)
        assert found["f1"] == pytest.approx(f1_score(relevant, scores > 0, zero_division=0), abs=1e-12)


def delong(scores: list[np.ndarray], relevant: np.ndarray) -> np.ndarray:
    """DeLong et al. (1988), equations 4 to 6 by definition: the covariance of several AUCs of the same items."""
    components = []
    for score in scores:
        wins = np.array([[(x > y) + 0.5 * (x == y) for y in score[~relevant]] for x in score[relevant]])
        components.append((wins.mean(axis=1), wins.mean(axis=0)))
    parts = [np.cov(np.array(side)) / len(side[0]) for side in zip(*components, strict=True)]
    return np.atleast_2d(parts[0] + parts[1])


def test_variances_of_correlated_aucs_are_delongs():
    generator = np.random.default_rng(1)
    for n in (8, 25, 120):
        relevant = np.arange(n) % 3 == 0
        shared = generator.normal(size=n) + relevant
        scores = [np.round(shared + generator.normal(size=n), 1), np.round(shared + generator.normal(size=n), 1)]
        values = [auc_values(score, relevant) for score in scores]
        expected = delong(scores, relevant)
        assert np.cov(np.array(values)) / n == pytest.approx(expected, rel=1e-9)
        difference = expected[0, 0] + expected[1, 1] - 2 * expected[0, 1]
        spread = statistics.estimate(
            [np.atleast_2d(values[0] - values[1])]
        )  # what the kit's intervals and tests use
        assert spread.items == pytest.approx(difference, rel=1e-9)


def test_variance_of_f1_is_that_of_its_bootstrap():
    generator = np.random.default_rng(2)
    relevant = generator.random(400) < 0.4
    predicted = generator.random(400) < np.where(relevant, 0.7, 0.3)
    claimed = np.sqrt(f1_values(predicted, relevant).var(ddof=1) / 400)
    drawn = generator.integers(0, 400, size=(4_000, 400))
    hits, claims = (
        (predicted & relevant)[drawn].sum(axis=1),
        predicted[drawn].sum(axis=1) + relevant[drawn].sum(axis=1),
    )
    assert claimed == pytest.approx((2 * hits / claims).std(), rel=0.05)


def test_intervals_from_the_values_cover():
    """400 sets of 80 items from known distributions: 95% intervals cover the true AUC and F1 as often as they say."""
    generator, covered = np.random.default_rng(3), Counter()
    shift, n, sets = 1.0, 80, 400
    right = (
        stats.norm.sf(0.5 - shift),
        stats.norm.sf(0.5),
    )  # chance to be predicted for a relevant and an irrelevant item
    truth = {
        "auc": stats.norm.cdf(shift / math.sqrt(2)),
        "f1": 2 * 0.4 * right[0] / (0.4 * right[0] + 0.6 * right[1] + 0.4),
    }
    for _ in range(sets):
        relevant = generator.random(n) < 0.4
        scores = generator.normal(size=n) + shift * relevant
        for metric, values in (("auc", auc_values(scores, relevant)), ("f1", f1_values(scores > 0.5, relevant))):
            half = 1.96 * values.std(ddof=1) / math.sqrt(n)
            covered[metric] += abs(values.mean() - truth[metric]) <= half
    # 95% claimed; 80 items are few for a normal interval, and 400 sets leave a standard error of 1.1 points
    assert all(0.915 <= covered[metric] / sets <= 0.98 for metric in truth), covered


def test_rows_are_added_for_every_arm_seed_and_task():
    generator = np.random.default_rng(4)
    relevant = np.arange(40) % 2 == 0
    scores = {arm: generator.normal(size=40) + shift * relevant for arm, shift in (("base", 0.2), ("trait", 3.0))}
    sets = [
        outcomes(scores[arm], relevant, arm, seed, task) for arm in scores for seed in (0, 1) for task in "tu"
    ]
    other = pd.DataFrame(
        [
            {
                **dict(arm="base", seed=0, task="x", item_id="i", cluster="i"),
                "metric": "exact_match",
                "value": 1.0,
                "prediction": "",
                "gold": "",
            }
        ]
    )
    table = with_set_metrics(pd.concat([other, *sets]))
    tables.conform(table, "outcomes")
    assert Counter(table["metric"]) == {"exact_match": 1, "auc": 320, "f1": 320}
    row = comparison.compare(table[table["seed"] == 0], "trait", "auc", task="t").iloc[0]
    assert row["gain"] == pytest.approx(
        np.subtract(*(roc_auc_score(relevant, scores[arm]) for arm in ("trait", "base")))
    )
    assert row["gain_low"] > 0 and row["n"] == 40
    means = comparison.arm_table(table).set_index(["arm", "task", "metric"])
    assert means.loc[("trait", "u", "f1"), "mean"] == pytest.approx(f1_score(relevant, scores["trait"] > 0))


def test_sets_without_one_of_the_classes():
    scores, none = np.array([0.1, -0.2, 0.3]), np.zeros(3, bool)
    assert with_set_metrics(outcomes(scores, none)).empty
    every = with_set_metrics(outcomes(scores, ~none)).groupby("metric")["value"].mean()
    assert set(every.index) == {"f1"} and every["f1"] == pytest.approx(f1_score(~none, scores > 0))
    lone = auc_values(scores, np.array([True, False, False]))  # a class of one has no spread
    assert lone.mean() == pytest.approx(roc_auc_score([1, 0, 0], scores)) and np.isfinite(lone).all()
    never = f1_values(np.zeros(3, bool), np.array([True, False, True]))
    assert never.tolist() == [0, 0, 0]
    no_rows = outcomes(scores, none).iloc[:0]
    assert with_set_metrics(no_rows).empty
