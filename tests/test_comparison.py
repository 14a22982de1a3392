"""Statistics agree with scipy and statsmodels and keep their promises in simulated tables; runs are compared by item."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from trait_kit import pipeline, tables
from trait_kit.engine.files import TraitError, write_json
from trait_kit.evaluation import comparison, statistics
from trait_kit.evaluation.across_runs import gather
from trait_kit.figures.cells import p_words
from trait_kit.figures.tables import verdict

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import intervals


def _outcomes(
    values: dict[str, dict[str, list[float]]], metric: str = "bits_per_byte", seed: int = 0
) -> pd.DataFrame:
    rows = [
        {"arm": arm, "seed": seed, "task": task, "item_id": f"i{n}", "metric": metric, "value": float(value)}
        for arm, tasks in values.items()
        for task, numbers in tasks.items()
        for n, value in enumerate(numbers)
    ]
    table = pd.DataFrame(rows).assign(prediction="", gold="")
    return table.assign(cluster=table["task"] + "/" + table["item_id"])


def test_arm_table_weighs_tasks_equally_and_keeps_forgetting_apart():
    table = comparison.arm_table(
        _outcomes({"a": {"x": [1, 1, 1, 1], "y": [3, 3], "held_out/general": [9, 9]}, "b": {"x": [2], "y": [5]}})
    ).set_index(["arm", "task"])
    assert table.loc[("a", comparison.MACRO), ["mean", "low", "high", "n"]].tolist() == [2, 2, 2, 6]
    assert table.loc[("a", "held_out/general"), "mean"] == 9
    assert table.loc[("b", comparison.MACRO), ["mean", "low", "high", "n"]].tolist() == [3.5, -np.inf, np.inf, 2]
    assert table.loc[("b", "x"), ["low", "high"]].tolist() == [-np.inf, np.inf]


def test_compare_pairs_items_and_corrects_for_several_arms():
    draw = np.random.default_rng(0)
    hard = draw.normal(1, 0.5, size=40)
    noise = draw.normal(0, 0.5, size=10)
    noise = np.concatenate([noise, -noise])  # no difference on average
    arms = {
        "trait": {"x": hard[:20] - 0.05, "y": hard[20:] - 0.05, "held_out/general": hard[:9] + 0.2},
        "base": {"x": hard[:20], "y": hard[20:], "held_out/general": hard[:9]},
        "noisy": {
            "x": hard[:20] + noise,
            "y": hard[20:] + noise,
            "held_out/general": hard[:9],
        },
    }
    outcomes = _outcomes(arms)
    by_task = outcomes.sort_values(["task", "item_id"], ascending=False, kind="stable")  # rows in another order
    table = comparison.compare(by_task, "trait", "bits_per_byte").set_index("arm")
    assert (
        list(table.index) == ["base", "noisy"]
        and set(table["n"]) == {40}
        and set(table["task"]) == {comparison.MACRO}
    )
    base = table.loc["base"]
    assert base["gain"] == pytest.approx(0.05) == base["gain_low"] == pytest.approx(base["gain_high"])
    assert base["p_value"] == pytest.approx(2 * 0.5**40) and base["p_holm"] == pytest.approx(
        4 * 0.5**40
    )  # a fair coin's
    noisy = table.loc["noisy"]  # trait is 0.05 better here too, but items vary ten times as much
    assert noisy["gain"] == pytest.approx(0.05) and noisy["gain_low"] < 0 < 0.05 < noisy["gain_high"]
    assert 0.3 < noisy["p_value"] < 0.8 and noisy["p_holm"] == noisy["p_value"]
    forgetting = (
        comparison.compare(outcomes, "trait", "bits_per_byte", task="held_out/general")
        .set_index("arm")
        .loc["base"]
    )
    assert forgetting["gain"] == pytest.approx(-0.2) and forgetting["n"] == 9
    everything = comparison.compare_all(outcomes, "trait")
    assert len(everything) == 8 and everything[["task", "arm"]].drop_duplicates().shape == (8, 2)
    # unpaired intervals overlap although the paired difference is certain: why the tests are paired
    assert base["gain"] == pytest.approx(0.05) and base["gain_low"] <= base["gain"] <= base["gain_high"]
    means = comparison.arm_table(outcomes).set_index(["arm", "task"])
    assert means.loc[("trait", comparison.MACRO), "high"] > means.loc[("base", comparison.MACRO), "low"]


def test_binary_metrics_use_mcnemar():
    outcomes = _outcomes(
        {"trait": {"x": [1] * 12 + [0] * 8}, "base": {"x": [0] * 9 + [1] * 4 + [0] * 7}}, "choice_accuracy"
    )
    row = comparison.compare(outcomes, "trait", "choice_accuracy").iloc[0]
    assert row["p_value"] == pytest.approx(stats.binomtest(9, 10, 0.5).pvalue) and row["test"] == "McNemar"
    assert row["gain"] == pytest.approx(0.4)
    assert row["gain_low"] < 0.4 < row["gain_high"]


def test_what_cannot_be_compared_is_named():
    outcomes = _outcomes({"trait": {"x": [1, 2, 3]}, "base": {"x": [1, 2]}})
    with pytest.raises(TraitError, match=r"same items of x in every seed .\[0\].; 1 are missing"):
        comparison.compare(outcomes, "trait", "bits_per_byte")
    with pytest.raises(TraitError, match="reference arm 'selected' was not evaluated"):
        comparison.compare(outcomes, "selected", "bits_per_byte")
    with pytest.raises(TraitError, match="No outcome of accuracy is for a problem task"):
        comparison.compare(outcomes, "trait", "accuracy")
    with pytest.raises(TraitError, match="for y; its tasks are: x"):
        comparison.compare(outcomes, "trait", "bits_per_byte", task="y")
    with pytest.raises(TraitError, match="twice"):
        comparison.arm_table(pd.concat([outcomes, outcomes]))
    with pytest.raises(TraitError, match="no outcomes"):
        comparison.arm_table(outcomes.iloc[:0])


def test_the_exact_permutation_test_is_scipys():
    draw = np.random.default_rng(1)
    for n in (4, 9, 12):
        differences = draw.normal(0.4, 1, n)
        reference = stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
        )
        assert statistics.sign_flips([differences])[0] == pytest.approx(reference.pvalue)
        signed_ranks = np.sign(differences) * stats.rankdata(np.abs(differences))
        assert statistics.sign_flips([signed_ranks])[0] == pytest.approx(
            stats.wilcoxon(differences, method="exact").pvalue
        )
    assert statistics.sign_flips([np.zeros(5)])[0] == 1.0


def test_random_sign_flips_agree_with_the_exact_test(monkeypatch):
    draw = np.random.default_rng(2)
    groups = [draw.normal(0.35, 1, 9), draw.normal(0.35, 1, 6)]
    exact = statistics.sign_flips(groups)[0]
    monkeypatch.setattr(statistics, "EXACT_ITEMS", 3)
    assert 0.01 < exact < 0.9
    assert statistics.sign_flips(groups)[0] == pytest.approx(
        exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000)
    )


def test_mcnemar_and_holm_are_statsmodels():
    contingency_tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    from statsmodels.stats.multitest import multipletests

    draw = np.random.default_rng(3)
    for n in (5, 30, 200):
        first, second = draw.integers(0, 2, (2, n))
        table = [[np.sum((first == a) & (second == b)) for b in (0, 1)] for a in (0, 1)]
        reference = contingency_tables.mcnemar(table, exact=True).pvalue
        assert statistics.sign_flips([first - second])[0] == pytest.approx(min(1.0, reference))
    for p_values in ([0.01, 0.04, 0.03, 0.005], [0.5, 0.5, 0.9], [0.2]):
        assert statistics.holm(np.array(p_values)) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_intervals_cover_what_they_claim():
    draw = np.random.default_rng(4)
    repeats = 150
    covered = {"normal": 0, "skewed": 0, "two tasks": 0, "binary": 0}
    for _ in range(repeats):
        samples = {
            "normal": ([draw.normal(1, 2, 12)], 1),
            "skewed": ([draw.gamma(2, 1, 20)], 2),
            "two tasks": ([draw.normal(0, 1, 8), draw.normal(3, 2, 15)], 1.5),
            "binary": ([draw.binomial(1, 0.3, 20).astype(float)], 0.3),
        }
        for name, (groups, truth) in samples.items():
            groups = [np.atleast_2d(group) for group in groups]
            imagined = statistics.TWO_OF_EACH if name == "binary" else ()
            low, high = statistics.estimate(groups, None, imagined).interval(0.9)
            covered[name] += low <= truth <= high
    for name, count in covered.items():  # 150 repeats: standard error 2.4 points; skew costs a little
        assert 0.82 <= count / repeats <= 0.98, (name, count / repeats)


def test_the_permutation_test_keeps_its_level(monkeypatch):
    monkeypatch.setattr(statistics, "FLIPS", 400)
    draw = np.random.default_rng(5)
    p_values = [
        statistics.sign_flips([draw.normal(0, 1, 18), draw.normal(0, 3, 9)], seed)[0] for seed in range(500)
    ]
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.08
    shifted = [
        statistics.sign_flips([draw.normal(0.8, 1, 18), draw.normal(0.8, 1, 9)], seed)[0] for seed in range(60)
    ]
    assert np.mean(np.array(shifted) <= 0.05) > 0.9


def _near(share: float, expected: float, n: int, slack: float = 0.0) -> bool:
    """Whether a simulated share is within the binomial error (one in 3,000) of what is expected."""
    return abs(share - expected) <= slack + 3.6 * math.sqrt(expected * (1 - expected) / n)


def test_one_task_and_seed_is_the_textbook():
    draw = np.random.default_rng(7)
    for n in (13, 100, 1_000):
        differences = draw.normal(0.2, 1, (1, n))
        found = statistics.estimate([differences])
        assert found.items == pytest.approx(stats.sem(differences[0]) ** 2) and found.freedom == pytest.approx(
            n - 1
        )
        reference = stats.ttest_1samp(differences[0], 0)
        low, high = reference.confidence_interval()
        assert found.interval(0.95) == pytest.approx((low, high)) and found.p_value == pytest.approx(
            reference.pvalue
        )
        bootstrap = stats.bootstrap(
            (differences[0],), np.mean, confidence_level=0.95, rng=np.random.default_rng(0)
        )
        if n >= 100:
            limits = bootstrap.confidence_interval
            assert (low, high) == pytest.approx((limits.low, limits.high), abs=0.05 * (high - low))


def test_the_macro_average_is_welchs():
    draw = np.random.default_rng(8)
    groups = [draw.normal(1, 2, (1, 12)), draw.normal(0, 0.5, (1, 200))]
    spread = statistics.estimate(groups)
    welch = stats.ttest_ind(groups[0][0], -groups[1][0], equal_var=False)  # the sum of two means
    assert spread.freedom == pytest.approx(welch.df)
    assert statistics.macro(groups) / math.sqrt(spread.variance) == pytest.approx(welch.statistic)


def test_seeds_and_items_are_a_two_way_analysis_of_variance():
    draw = np.random.default_rng(9)
    n_seeds, n = 4, 30
    values = draw.normal(0, 0.3, (n_seeds, 1)) + draw.normal(0, 1, (1, n)) + draw.normal(0, 0.5, (n_seeds, n))
    spread = statistics.estimate([values])
    sums = pytest.importorskip("statsmodels.stats.anova")
    from statsmodels.formula.api import ols

    long = pd.DataFrame(
        [(s, i, values[s, i]) for s in range(n_seeds) for i in range(n)], columns=["seed", "item", "value"]
    )
    squares = sums.anova_lm(ols("value ~ C(seed) + C(item)", long).fit())["mean_sq"]
    cells = n_seeds * n
    assert spread.seeds == pytest.approx(squares["C(seed)"] / cells)
    assert spread.items == pytest.approx((squares["C(item)"] - squares["Residual"]) / cells)
    shuffled = [values[:, draw.permutation(n)]]
    assert statistics.estimate(shuffled).variance == pytest.approx(spread.variance)


def test_seeds_with_items_of_their_own_are_independent():
    draw = np.random.default_rng(10)
    own = np.full((3, 60), np.nan)
    for seed in range(3):
        own[seed, 20 * seed : 20 * seed + 20] = draw.normal(seed / 10, 1, 20)
    spread = statistics.estimate([own])
    means = [np.nanmean(row) for row in own]
    assert spread.items == 0 and spread.seeds == pytest.approx(
        np.var(means, ddof=1) / 3
    )  # items are in it already
    half = stats.t.ppf(0.975, 2) * stats.sem(means)
    assert spread.interval(0.95) == pytest.approx((np.mean(means) - half, np.mean(means) + half))


def test_the_smallest_gain_is_statsmodels():
    power = pytest.importorskip("statsmodels.stats.power")
    draw = np.random.default_rng(11)
    for n, level in ((13, 0.05), (32, 0.01), (500, 0.05 / 45)):
        differences = draw.normal(0, 0.7, (1, n))
        effect = power.TTestPower().solve_power(nobs=n, alpha=level, power=0.8)
        found = statistics.estimate([differences]).smallest_gain(level)
        assert found == pytest.approx(effect * np.std(differences, ddof=1), rel=0.01)
    three = np.array([[0.1], [0.3], [0.5]]) + np.zeros((3, 40))  # seeds alone vary
    effect = power.TTestPower().solve_power(nobs=3, alpha=0.05, power=0.8)
    assert statistics.estimate([three]).smallest_gain(0.05) == pytest.approx(effect * 0.2, rel=0.06)


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", intervals.KINDS)
@pytest.mark.parametrize("n_seeds", intervals.SEEDS)
def test_intervals_hold_the_truth_and_no_difference_is_rarely_called(count, kind, n_seeds, monkeypatch):
    """The benchmark intervals.py on few tables. Allowed: 1.5 points, and the error of so many tables."""
    monkeypatch.setattr(statistics, "FLIPS", 500)
    monkeypatch.setattr(intervals, "OTHERS", 100)
    for sizes in ((32,), (32, 100)):
        found = intervals.measure(kind, sizes, n_seeds, count)
        assert _near(found["difference"], 0.95, count, 0.015), (sizes, found)
        assert _near(found["mean"], 0.95, count, 0.015), (sizes, found)
        assert found["called at no difference"] <= stats.binom.isf(0.001, count, 0.05) / count, (sizes, found)
        if n_seeds > 1 and kind == "continuous" and count >= 200:  # why seeds need a level of their own
            assert found["items alone"] < 0.91


def test_a_table_without_differences_is_called_one_time_in_twenty(monkeypatch):
    """Holm over the rows of a table: five arms that are all the same."""
    monkeypatch.setattr(statistics, "FLIPS", 400)
    draw, count, called = np.random.default_rng(13), 40, 0
    for _ in range(count):
        hard = draw.normal(1, 0.5, 30)
        outcomes = _outcomes({arm: {"x": hard + draw.normal(0, 0.2, 30)} for arm in "abcde"})
        called += (comparison.compare(outcomes, "a", "bits_per_byte")["p_holm"] <= 0.05).any()
    assert called <= stats.binom.isf(0.001, count, 0.05)


def test_every_pair_of_arms_the_later_one_as_the_reference():
    draw = np.random.default_rng(14)
    outcomes = _outcomes({arm: {"x": draw.normal(place, 1, 20)} for place, arm in enumerate("abc")})
    table = comparison.compare(outcomes, None, "bits_per_byte")
    assert list(zip(table["reference"], table["arm"], strict=True)) == [("b", "a"), ("c", "a"), ("c", "b")]
    one = comparison.compare(outcomes, "c", "bits_per_byte").set_index("arm")
    assert table.set_index(["reference", "arm"]).loc[("c", "a"), "gain"] == one.loc["a", "gain"]
    assert (table["smallest_gain"] > 0).all()


def test_holm_is_over_the_cells_of_a_table_and_averages_are_one_of_their_own():
    draw = np.random.default_rng(15)
    outcomes = _outcomes({arm: {"x": draw.normal(0, 1, 14), "y": draw.normal(0, 1, 14)} for arm in "abc"})
    everything = comparison.compare_all(outcomes, "a")
    for of_macro in (True, False):
        part = everything[(everything["task"] == comparison.MACRO) == of_macro]
        assert len(part) == (2 if of_macro else 4)
        assert part["p_holm"].to_numpy() == pytest.approx(statistics.holm(part["p_value"].to_numpy()))
    single = comparison.compare(outcomes, "a", "bits_per_byte", task="x")
    assert (
        everything[everything["task"] == "x"]["smallest_gain"].to_numpy() > single["smallest_gain"].to_numpy()
    ).all()


def test_several_seeds_are_compared_within_the_seed():
    draw = np.random.default_rng(16)
    hard, drift = draw.normal(1, 0.5, 40), [0.4, -0.3, 0.1]  # what a seed does to both arms
    parts = [
        _outcomes(
            {
                "trait": {"x": hard + drift[seed] - 0.1 + draw.normal(0, 0.02, 40)},
                "base": {"x": hard + drift[seed]},
            },
            seed=seed,
        )
        for seed in range(3)
    ]
    row = comparison.compare(pd.concat(parts), "trait", "bits_per_byte").iloc[0]
    assert row["seeds"] == 3 and row["n"] == 40 and row["test"] == "Student's t"
    assert 0 < row["gain_low"] < 0.1 < row["gain_high"] and row["gain_high"] - row["gain_low"] < 0.08
    parts[1] = parts[1][parts[1]["task"] != "x"]
    assert comparison.compare(pd.concat(parts), "trait", "bits_per_byte").iloc[0]["seeds"] == 2
    with pytest.raises(TraitError, match="no seed in common"):
        comparison.compare(
            pd.concat([parts[0][parts[0]["arm"] == "base"], parts[2].query("arm == 'trait'")]),
            "trait",
            "bits_per_byte",
        )


def _run(
    folder: Path, outcomes: pd.DataFrame, seed: int = 0, learning_rate: float = 1e-4, web: str = "a", **asked
) -> Path:
    """A finished run of which nothing is there but what is compared."""
    named = {"main_metric": asked.pop("main_metric", "bits_per_byte")}
    summary = {"reference_arm": "trait", "how_asked": {"few_shot": 0, **asked}, **named}
    for step, values in (
        ("04_train_two_stages", {"learning_rate": learning_rate}),
        ("05_evaluate", {"few_shot": 0}),
    ):
        shaped_by = {"params": {**values, "seed": 0 if step == "05_evaluate" else seed}}  # training.seed
        shaped_by["inputs"] = {"web": web}
        write_json(
            folder / step / "report.json", {"step": step, "key": "k", "shaped_by": shaped_by, "summary": summary}
        )
    tables.write(folder / "05_evaluate" / "outcomes.parquet", outcomes.assign(seed=seed), "outcomes")
    return folder


def _arms(seed: int, n: int = 24, gain: float = 0.2) -> pd.DataFrame:
    hard, draw = np.random.default_rng(0).normal(1, 0.3, n), np.random.default_rng(seed + 1)
    return _outcomes({"base": {"x": hard}, "trait": {"x": hard - gain + draw.normal(0, 0.05, n)}})


def test_runs_that_differ_in_seed_alone_are_seeds_of_the_same_arms(tmp_path):
    names = [str(_run(tmp_path / f"s{seed}", _arms(seed), seed)) for seed in range(3)]
    together = gather(names)
    assert set(together.outcomes["arm"]) == {"base", "trait"} and set(together.outcomes["seed"]) == {0, 1, 2}
    assert together.reference == "trait" and len(together.notes) == 2
    assert together.notes[1].startswith("s0 and s2 differ in their seed alone")
    assert comparison.compare(together.outcomes, "trait", "bits_per_byte").iloc[0]["seeds"] == 3


def test_runs_on_other_data_are_no_seeds_of_the_same_arms(tmp_path):
    names = [str(_run(tmp_path / f"s{seed}", _arms(seed), seed, web="ab"[seed])) for seed in range(2)]
    with pytest.raises(TraitError, match="No item was asked of every arm in the same seed"):
        gather(names)


def test_runs_are_compared_by_the_metric_that_they_named(tmp_path):
    """By bits a number token nothing differs, by those of the answer all do, and those were named."""
    hard = np.random.default_rng(0).normal(1, 0.3, 40)
    parts = [_outcomes({"base": {"x": hard}, "trait": {"x": hard - gain}}, metric)
             for metric, gain in (("bits_per_number_token", 0.0), ("answer_bits_per_byte", 0.3))]  # fmt: skip
    run = _run(tmp_path / "a", pd.concat(parts), main_metric="answer_bits_per_byte")
    _, tests = pipeline.compare([str(run)])
    assert tests["metric"].iloc[0] == "answer_bits_per_byte"


def test_a_table_names_no_better_arm_from_few_items(tmp_path):
    for n, better in ((12, "–"), (40, "TRAIT")):
        table, _ = pipeline.compare([str(_run(tmp_path / str(n), _arms(0, n=n)))])
        assert set(table.columns["Better"]) == {better}


def test_arms_of_other_runs_are_named_with_their_run(tmp_path):
    a = _run(tmp_path / "a", _arms(0))
    b = _run(tmp_path / "b", _arms(1, gain=0.4), learning_rate=5e-4)
    together = gather([f"{a}:trait", f"{b}:trait"])
    assert set(together.outcomes["arm"]) == {"a:trait", "b:trait"} and together.reference == "a:trait"
    both = gather([str(a), str(b)])
    assert set(both.outcomes["arm"]) == {f"{r}:{arm}" for r in "ab" for arm in ("base", "trait")}
    same = _run(tmp_path / "again", _arms(0))  # the same seed twice: another state of the code
    assert set(gather([f"{a}:trait", f"{same}:trait"]).outcomes["arm"]) == {"a:trait", "again:trait"}


def test_what_does_not_pair_is_named(tmp_path):
    a = _run(tmp_path / "a", pd.concat([_arms(0), _outcomes({"trait": {"y": [1, 2]}, "base": {"y": [1, 2]}})]))
    other = _arms(1, n=20).assign(gold=["other" if item == "i3" else "" for item in _arms(1, n=20)["item_id"]])
    b = _run(tmp_path / "b", other, learning_rate=5e-4)
    together = gather([str(a), str(b)])
    assert together.outcomes.groupby("arm")["item_id"].nunique().tolist() == [19] * 4
    for lost in ("x, bits_per_byte: 5 of 24 items", "y, bits_per_byte: 2 of 2 items"):
        assert any(note.startswith(lost) for note in together.notes)
    late = _run(tmp_path / "late", _arms(2), seed=5, learning_rate=5e-4)
    with pytest.raises(TraitError, match=r"a:base: x, y with seed 0;.* late:base: x with seed 5"):
        gather([str(a), str(late)])


def test_runs_that_cannot_be_compared_say_why(tmp_path):
    a = _run(tmp_path / "a", _arms(0), **{"the version of x": 1})
    cases = {
        "no item was asked of every arm": _run(tmp_path / "b", _arms(0).assign(task="z"), learning_rate=1.0),
        "few_shot is 0 and 4": _run(tmp_path / "c", _arms(0), few_shot=4),
        "the version of x is 1 and 2": _run(tmp_path / "d", _arms(0), **{"the version of x": 2}),
        "no item": _run(tmp_path / "e", _arms(0).assign(metric="exact_match"), learning_rate=1.0),
        "is not a run folder": tmp_path / "absent",
        "has no arm 'tarit'; its arms are: base, trait": f"{a}:tarit",
    }
    (tmp_path / "begun" / "05_evaluate").mkdir(parents=True)
    cases["05_evaluate holds no finished result"] = tmp_path / "begun"
    for message, other in cases.items():
        with pytest.raises(TraitError, match=f"(?i){message}"):
            gather([str(a), str(other)])
    with pytest.raises(TraitError, match="Only one arm to compare, trait"):
        gather([f"{a}:trait"])


def _said(outcomes: pd.DataFrame, metric: str = "bits_per_byte", control: str = "") -> dict:
    return verdict(comparison.compare_all(outcomes, "trait", metric), metric, "trait", control)


def test_the_verdict_claims_no_more_than_its_tests():
    draw = np.random.default_rng(17)
    hard = draw.normal(1, 0.5, 40)
    arms = {
        "trait": {"x": hard - 0.2},
        "base": {"x": hard + draw.normal(0, 0.05, 40)},
        "worked": {"x": hard - 0.2},
    }
    right = {"trait": {"x": [0] * 40}, "base": {"x": [1] * 20 + [0] * 20}, "worked": {"x": [0] * 40}}
    outcomes = pd.concat([_outcomes(arms), _outcomes(right, "choice_accuracy")])
    found = _said(outcomes)
    assert found["question"].startswith("Is trait better than worked") and found["control_arm"] == "worked"
    assert (
        "is not shown to differ from worked: gain" in found["headline"]
        and "Equivalent within 0.01" in found["headline"]
    )
    assert "40 items in 40 clusters, 1 training seed" in found["headline"] and not found["good"]
    assert any(
        "choice accuracy, against base" in text for text in found["worse"]
    )  # what fell stands beside what rose
    told = " ".join(found["cannot_show"])
    assert "One training seed" in told and "measure wording" in told and "nothing is said of forgetting" in told
    found = _said(outcomes, control="base")
    assert "is better than base: gain +0.1" in found["headline"] and "p < 0.001" in found["headline"]
    assert not found["good"]  # an accuracy fell
    alone = _said(_outcomes({arm: arms[arm] for arm in ("trait", "base")}))
    assert alone["good"] and alone["control_arm"] == "base" and alone["worse"] == []


def test_forgetting_is_told_against_base_and_against_the_control():
    draw = np.random.default_rng(22)
    text = draw.normal(1, 0.1, 40)
    arms = {
        arm: {"x": draw.normal(1, 0.1, 40), "held_out/general": text} for arm in ("base", "selected", "worked")
    }
    arms["trait"] = {"x": arms["base"]["x"], "held_out/general": text + 0.05 + draw.normal(0, 0.01, 40)}
    found = _said(_outcomes(arms))
    assert [line.split(":")[0].split("against ")[1] for line in found["forgetting"]] == [
        "base",
        "selected",
        "worked",
    ]
    assert all("gain -0.0" in line for line in found["forgetting"])
    assert sum("held_out/general" in line for line in found["worse"]) == 3 and not found["good"]


@pytest.mark.parametrize(("n", "per_cluster"), [(29, 1), (60, 60), (60, 12)])
def test_few_items_or_clusters_get_no_verdict(n, per_cluster):
    hard = np.random.default_rng(0).normal(1, 0.5, n)
    outcomes = _outcomes({"trait": {"x": hard - 1}, "base": {"x": hard}})
    outcomes["cluster"] = [f"c{int(item[1:]) // per_cluster}" for item in outcomes["item_id"]]
    found = _said(outcomes)
    assert found["headline"].startswith("Too few items or clusters for a verdict") and not found["good"]


def test_clusters_that_cannot_show_any_gain_over_so_many_arms_get_no_verdict():
    draw = np.random.default_rng(30)
    hard = draw.normal(1, 0.5, 35)
    arms = {arm: {"x": hard + draw.normal(0, 0.001, 35)} for arm in ("base", "raw", "selected", "worked")}
    outcomes = _outcomes({**arms, "trait": {"x": hard - 0.5}})
    outcomes["cluster"] = [f"c{int(item[1:]) // 5}" for item in outcomes["item_id"]]
    found, table = _said(outcomes), comparison.compare(outcomes, "trait", "bits_per_byte")
    assert table["p_holm"].to_numpy() == pytest.approx(4 * 2 / 128)
    assert (table["smallest_gain"] == np.inf).all() and not table["enough"].any()
    assert (
        "7 of 8 clusters, without which no gain over 4 arms can show" in found["headline"] and not found["good"]
    )
    outcomes["cluster"] = [f"c{int(item[1:]) % 8}" for item in outcomes["item_id"]]
    assert "trait is better than worked" in _said(outcomes)["headline"]
    assert [comparison.clusters_needed(rows) for rows in (1, 3, 4)] == [comparison.MIN_CLUSTERS, 7, 8]


def test_what_fell_without_being_shown_says_so():
    draw = np.random.default_rng(31)
    hard = draw.normal(1, 0.5, 40)
    bits = _outcomes({"trait": {"x": hard - 0.2 + draw.normal(0, 0.05, 40)}, "base": {"x": hard}})
    right = _outcomes({"trait": {"x": [0] * 2 + [1] * 38}, "base": {"x": [1] * 40}}, "choice_accuracy")
    found = _said(pd.concat([bits, right]))
    assert [line.endswith("(not shown)") for line in found["worse"]] == [True] and found["good"]


def test_one_item_is_never_significant():
    parts = [
        _outcomes({"trait": {"x": [0.1 + seed / 1e3]}, "base": {"x": [0.9]}}, seed=seed) for seed in range(3)
    ]
    for outcomes in (parts[0], pd.concat(parts)):
        assert comparison.compare(outcomes, "trait", "bits_per_byte").iloc[0]["p_value"] == 1


@pytest.mark.parametrize("null", ["untrained copies", "shuffled arms"])
def test_a_planted_null_claims_no_gain(null):
    """The headline of 40 runs without any difference: a gain over the control in as many as chance allows, or in none."""
    draw, claims = np.random.default_rng(23), 0
    for _ in range(40):
        hard = draw.normal(1, 0.5, 48)
        values = {
            arm: hard + (draw.normal(0, 0.1, 48) if null == "shuffled arms" else 0)
            for arm in ("trait", "worked", "base")
        }
        outcomes = _outcomes({arm: {"x": x} for arm, x in values.items()}, "bits_per_number_token")
        outcomes["cluster"] = [f"c{int(item[1:]) // 4}" for item in outcomes["item_id"]]
        found = _said(outcomes, "bits_per_number_token")
        claims += "is better than" in found["headline"] or found["good"]
    assert claims <= (0 if null == "untrained copies" else stats.binom.isf(0.001, 40, 0.05))


def test_the_main_metric_is_the_one_that_was_named():
    tables = [
        _outcomes({"a": {"x": [1, 2]}}, metric)
        for metric in ("exact_match", "bits_per_byte", "answer_bits_per_byte")
    ]
    outcomes = pd.concat(tables)
    assert comparison.main_metric(outcomes, "exact_match") == "exact_match"
    assert (
        comparison.main_metric(outcomes, "bits_per_number_token") == "answer_bits_per_byte"
    )  # said by the summary
    assert comparison.main_metric(tables[0]) == "exact_match"


# ---- clusters


def test_clusters_of_one_item_change_nothing():
    draw = np.random.default_rng(18)
    groups = [draw.normal(0, 1, (3, 20)), draw.normal(0, 2, (3, 9))]
    labels = [np.array([f"{place} {n}" for n in range(group.shape[1])]) for place, group in enumerate(groups)]
    plain, clustered = statistics.estimate(groups), statistics.estimate(groups, labels)
    assert clustered.variance == pytest.approx(plain.variance) and clustered.freedom == pytest.approx(
        plain.freedom
    )
    one = [group[0] for group in groups]
    assert statistics.sign_flips(one, 0, labels)[0] == pytest.approx(statistics.sign_flips(one)[0], abs=0.02)


def test_the_variance_of_clusters_is_the_robust_one():
    api = pytest.importorskip("statsmodels.api")
    draw = np.random.default_rng(19)
    of = np.repeat(np.arange(9), [3, 5, 2, 8, 4, 4, 1, 6, 7])
    values = draw.normal(0, 1, 9)[of] + draw.normal(0, 0.5, len(of))
    fit = api.OLS(values, np.ones(len(of))).fit(
        cov_type="cluster", cov_kwds={"groups": of, "use_correction": False, "df_correction": False}
    )
    spread = statistics.estimate([values[None]], [of.astype(str)])
    assert spread.variance == pytest.approx(fit.cov_params()[0, 0] * 9 / 8) and spread.freedom == pytest.approx(8)
    assert spread.variance > 3 * statistics.estimate([values[None]]).variance


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_a_task_of_one_template_is_one_piece_of_evidence_in_test_and_interval(n_seeds):
    """Two of three tasks have one template each, whose own chance strikes all of its items: 'better' in at most 5%."""
    draw, better, tables = np.random.default_rng(31), 0, 150
    labels = [np.array([f"w{n}" for n in range(12)]), np.repeat("gcd", 12), np.repeat("lcm", 12)]
    for number in range(tables):
        shared = [draw.normal(0, 0.2, (1, 12)), *(np.full((1, 12), draw.normal(0, 0.2)) for _ in range(2))]
        pairs = [(1 + part + draw.normal(0, 0.02, (n_seeds, 12)), np.ones((n_seeds, 12))) for part in shared]
        row = comparison.compare_pair(pairs, "bits_per_byte", False, number, labels)
        better += row["p_value"] < comparison.ALPHA and row["gain"] > 0
        if row["p_value"] >= comparison.ALPHA:
            assert row["gain_low"] <= 0 <= row["gain_high"]
    assert better <= stats.binom.isf(0.001, tables, 0.05)
    alone = comparison.compare_pair(pairs[1:2], "bits_per_byte", False, 0, labels[1:2])
    assert (alone["gain_low"], alone["gain_high"], alone["p_value"]) == (-np.inf, np.inf, 1.0)
    assert alone["p_beyond"] > comparison.ALPHA and alone["estimate"].smallest_gain(0.05) == np.inf


@pytest.mark.parametrize("n", [9, 40])
def test_the_interval_holds_what_the_test_does_not_reject(n):
    draw = np.random.default_rng(32)
    groups, labels = [draw.normal(0.3, 1, (1, n)), draw.normal(0.3, 2, (1, n))], [np.arange(n).astype(str)] * 2
    _, low, high = statistics.sign_flips(groups, 0, labels)
    for end, inward in ((low, 1), (high, -1)):
        for shift, rejected in ((end - inward * 0.01, True), (end + inward * 0.01, False)):
            p_value = statistics.sign_flips([group - shift for group in groups], 0, labels)[0]
            assert (p_value < 0.05) == rejected, (end, shift, p_value)
    assert statistics.sign_flips([groups[0][:, :5]])[1:] == (-np.inf, np.inf)  # five items never show anything


def test_sign_flips_are_of_whole_clusters_across_tasks():
    draw = np.random.default_rng(20)
    groups, labels = [draw.normal(0.3, 1, 12), draw.normal(0.3, 1, 12)], [np.repeat(list("abcdef"), 2)] * 2
    sums = sum(group.reshape(6, 2).sum(axis=1) for group in groups)  # a label in two tasks is one cluster
    reference = stats.permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert statistics.sign_flips(groups, 0, labels)[0] == pytest.approx(reference.pvalue)


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_eight_correlated_clusters_are_rarely_called_better(n_seeds, monkeypatch):
    """The benchmark intervals.py on few tables: at most 5%, and the error of so many tables."""
    monkeypatch.setattr(statistics, "FLIPS", 400)
    found = intervals.clusters(300, n_seeds)
    assert found["better"] <= stats.binom.isf(0.001, 300, 0.05) / 300
    assert found["better without clusters"] > 0.08  # why clusters are needed


def test_auc_is_tested_by_delong_and_not_at_a_floor():
    draw = np.random.default_rng(21)
    relevant = np.arange(60) % 2 == 0
    scores = {"trait": draw.normal(size=60) + 4 * relevant, "base": draw.normal(size=60)}
    parts = [
        _outcomes({arm: {"x": values}}, "relevance_score").assign(
            gold=np.where(relevant, "relevant", "irrelevant"),
            prediction=np.where(values > 0, "relevant", "irrelevant"),
        )
        for arm, values in scores.items()
    ]
    row = comparison.compare(pd.concat(parts), "trait", "auc").iloc[0]
    assert row["test"] == "DeLong" and row["p_value"] < 1e-6


def test_equivalence_needs_evidence():
    draw = np.random.default_rng(24)
    hard = draw.normal(1, 0.5, 60)
    arms = {
        "a": {"x": hard},
        "same": {"x": hard + draw.normal(0, 0.01, 60)},
        "wide": {"x": hard + draw.normal(0, 0.3, 60)},
    }
    table = comparison.compare(_outcomes(arms), "a", "bits_per_byte").set_index("arm")
    assert table["equivalent"].to_dict() == {"same": True, "wide": False}
    differences = hard - arms["same"]["x"]
    one_sided = [stats.ttest_1samp(differences, sign * comparison.MARGIN, alternative=side).pvalue
                 for sign, side in ((1, "less"), (-1, "greater"))]  # fmt: skip
    assert table.loc["same", "p_beyond"] == pytest.approx(2 * max(one_sided), abs=2e-3)


def test_the_smallest_gain_is_at_the_one_level():
    differences = np.random.default_rng(18).normal(0, 1, 50)
    row = comparison.compare(
        _outcomes({"a": {"x": differences}, "b": {"x": [0.0] * 50}}), "a", "bits_per_byte"
    ).iloc[0]
    wanted = statistics.estimate([differences[None]]).smallest_gain(comparison.ALPHA)
    assert row["smallest_gain"] == pytest.approx(
        wanted, rel=0.03
    )  # that of the flips' interval, beside Student's
    assert comparison.CONFIDENCE == 1 - comparison.ALPHA


@pytest.mark.parametrize(
    ("p", "said"), [(5 / 20_001, "< 0.001"), (1e-12, "< 0.001"), (0.004, "= 0.004"), (1.0, "= 1")]
)
def test_a_p_value_says_no_more_than_flips_can_tell(p, said):
    """5 arms as extreme as no flip are all p = 0.00025, which is a bound and no result."""
    assert p_words(p) == said


def test_a_metric_that_no_task_has_is_named():
    hard = np.random.default_rng(26).normal(1, 0.5, 40)
    outcomes = _outcomes({"trait": {"x": hard - 0.2}, "base": {"x": hard}}, "answer_bits_per_byte")
    told = _said(outcomes, "bits_per_number_token")["cannot_show"]
    assert "No task has bits per number token: answer bits per byte stands for it." in told
    assert not any(
        text.startswith("No task has") for text in _said(outcomes, "answer_bits_per_byte")["cannot_show"]
    )


def test_in_domain_text_is_not_what_is_forgotten():
    draw = np.random.default_rng(25)
    arms = {
        arm: {"x": draw.normal(1, 0.1, 40), "held_out/in_domain": draw.normal(1, 0.1, 40)}
        for arm in ("base", "trait")
    }
    found = _said(_outcomes(arms))
    assert found["forgetting"] == [] and "nothing is said of forgetting" in " ".join(found["cannot_show"])
