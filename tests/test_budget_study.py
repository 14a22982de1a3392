"""The token-budget study: its numbers against those made here, its sentence against the table, its sweep on real runs."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, TINY

from trait_kit import pipeline, runs, tables
from trait_kit.engine.files import TraitError, write_json
from trait_kit.figures import token_study

ITEMS = {"algebra": 30, "geometry": 12, "held_out/general": 20}


def make_run(
    folder: Path, second: int, skill: float, *, seed: int = 0, arm: str = "trait", metric: str = "bits_per_byte",
    processes: int = 1, general: bool = True, forgotten: float = 0.05, **training: object,
) -> Path:  # fmt: skip
    """Records and outcomes of a run: the arm beats the base model by about `skill` on each problem."""
    rng = np.random.default_rng([second, seed])
    items = np.random.default_rng(100 + seed)
    rows = []
    for task, count in ITEMS.items():
        held_out = task.startswith("held_out/")
        if held_out and not general:
            continue
        hard = items.uniform(1, 2, count)
        change = forgotten if held_out else -skill if metric == "bits_per_byte" else skill
        values = {"base": hard, arm: hard + change + rng.normal(0, 0.02, count)}
        for name, of_arm in values.items():
            for item, value in enumerate(of_arm):
                key = f"{task}-{item}"
                rows.append((name, seed, task, key, key, "bits_per_byte" if held_out else metric, value, "", ""))
    columns = tables.SCHEMAS["outcomes"].names
    tables.write(folder / "05_evaluate" / "outcomes.parquet", pd.DataFrame(rows, columns=columns), "outcomes")
    common = {"seed": seed}
    stages = [
        {
            "arm": arm,
            "stage": 1,
            "tokens": 1_024,
            "seconds": 99.0,
            "tokens_per_second": 256.0,
            "device": "cuda:0",
        },
        {
            "arm": arm,
            "stage": 2,
            "tokens": second,
            "seconds": 99.0,
            "tokens_per_second": 512.0,
            "device": "cuda:0",
        },
        {"arm": "raw", "stage": 1, "tokens": 7, "seconds": 1e6, "tokens_per_second": 1.0, "device": "cpu"},
    ]
    accounting = [
        {"arm": arm, "stage": 1, "source": "in_domain", "tokens": 1_024, "epochs": 9.0, "available": 114},
        {
            "arm": arm,
            "stage": 2,
            "source": "passages",
            "tokens": second,
            "epochs": second / 2_000,
            "available": 2_000,
        },
    ]
    summary = {"stages": [row | {"processes": processes} for row in stages], "accounting": accounting}
    recorded = {"stage_tokens": [1_024, second], "learning_rate": 1e-4} | training | common
    evaluation = {"reference_arm": arm} | common
    for step, values, found in (("04_train_two_stages", recorded, summary), ("05_evaluate", evaluation, {})):
        record = {
            "step": step,
            "key": "k",
            "params": values,
            "shaped_by": {"params": values, "inputs": {}},
            "summary": found,
        }
        write_json(folder / step / "report.json", record)
    return folder


def curve(folder: Path, *skills: float, **options) -> pd.DataFrame:
    """The study of one run a skill, each with twice the tokens of the one before in its second stage."""
    return token_study.study(
        [make_run(folder / str(n), 1_024 * 2**n, skill, **options) for n, skill in enumerate(skills)]
    )


def of_gains(*gains: float) -> pd.DataFrame:
    """A study's table as it would be: intervals of 0.05 to either side of these gains and of the steps between them."""
    table = pd.DataFrame({"gain": gains, "step": pd.Series(gains).diff()})
    for value in ("gain", "step"):
        table = table.assign(**{f"{value}_low": table[value] - 0.05, f"{value}_high": table[value] + 0.05})
    tokens = [1_024 + 1_024 * 2**n for n in range(len(gains))]
    told = {"arm": "trait", "metric": "bits_per_byte", "seeds": 1, "device": "cpu"}
    return table.assign(tokens=tokens, device_hours=tokens, **told).assign(
        forgetting=np.nan, passes_over_passages=1.0
    )


def by_hand(folder: Path) -> pd.Series:
    """The mean of base minus trait by task: the gain in bits per byte without any of the kit's statistics."""
    outcomes = pd.read_parquet(folder / "05_evaluate" / "outcomes.parquet")
    wide = outcomes.pivot(index=["task", "item_id"], columns="arm", values="value")
    return (wide["base"] - wide["trait"]).groupby("task").mean()


def test_numbers_are_those_of_the_outcomes_and_of_the_training_records(tmp_path):
    folders = [
        make_run(tmp_path / "b", 4_096, 0.3, processes=4),
        make_run(tmp_path / "a", 1_024, 0.1, processes=4),
    ]
    found = token_study.study(folders)
    assert found["tokens"].tolist() == [2_048, 5_120]
    assert found["stage_tokens"].tolist() == ["1024 + 1024", "1024 + 4096"]
    assert found["passes_over_passages"].tolist() == [1_024 / 2_000, 4_096 / 2_000]
    seconds = np.array([1_024 / 256 + 1_024 / 512, 1_024 / 256 + 4_096 / 512])
    np.testing.assert_allclose(found["device_hours"], 4 * seconds / 3_600)
    hand = [by_hand(folder) for folder in reversed(folders)]
    gains = [means[["algebra", "geometry"]].mean() for means in hand]
    np.testing.assert_allclose(found["gain"], gains)
    np.testing.assert_allclose(found["base_score"] - found["score"], gains)
    np.testing.assert_allclose(found["step"], [np.nan, gains[1] - gains[0]])
    np.testing.assert_allclose(found["forgetting"], [-means["held_out/general"] for means in hand])
    for value in ("gain", "forgetting"):
        assert (found[f"{value}_low"] < found[value]).all()
        assert (found[value] < found[f"{value}_high"]).all()
    assert found["step_low"][1] < found["step"][1] < found["step_high"][1]


def test_gain_is_positive_when_better_where_higher_is_better(tmp_path):
    found = curve(tmp_path, 0.1, 0.3, metric="choice_accuracy")
    assert set(found["metric"]) == {"choice_accuracy"}
    np.testing.assert_allclose(found["gain"], [0.1, 0.3], atol=0.02)
    assert found["step"][1] == pytest.approx(0.2, abs=0.02)
    assert (found["gain_low"] > 0).all()


@pytest.mark.parametrize(
    ("skills", "expected"),
    [
        (
            (0.1, 0.3, 0.5, 0.5, 0.5),
            "TRAIT: from 5.12k tokens on, the next larger budget gains less than its interval",
        ),
        ((0.3, 0.3), "TRAIT: from 2.05k tokens on, the next larger budget gains less than its interval"),
        (
            (0.1, 0.3, 0.5),
            "TRAIT: bits per byte still improves at 5.12k tokens, so the largest budget is not yet enough",
        ),
        (
            (0.1, 0.1, 0.5),
            "TRAIT: bits per byte still improves at 5.12k tokens, so the largest budget is not yet enough",
        ),
        ((0.1, 0.5, 0.5, 0.2), "TRAIT: bits per byte gets worse from 5.12k to 9.22k tokens"),
        ((-0.1, -0.2), "TRAIT: no budget up to 3.07k tokens gains more over the base model than its interval"),
        ((0.2,), "TRAIT gains at 2.05k tokens; a single budget does not say how many are enough"),
    ],
)
def test_the_title_says_what_the_table_holds(skills, expected):
    found = of_gains(*skills)
    assert token_study.verdict(found) == expected
    title = " ".join(token_study.plot(found).texts[0].get_text().split())
    assert title == expected


def test_seeds_of_a_budget_are_joined_and_steps_pair_the_seeds_that_both_have(tmp_path):
    small = [make_run(tmp_path / f"small-{seed}", 1_024, 0.1 + 0.1 * seed, seed=seed) for seed in (0, 1)]
    large = [make_run(tmp_path / f"large-{seed}", 2_048, 0.4, seed=seed) for seed in (0, 1, 2)]
    found = token_study.study([*large, *small])
    assert found["seeds"].tolist() == [2, 3]
    gains = {folder.name: by_hand(folder)[["algebra", "geometry"]].mean() for folder in (*small, *large)}
    np.testing.assert_allclose(found["gain"][0], np.mean([gains["small-0"], gains["small-1"]]))
    np.testing.assert_allclose(found["gain"][1], np.mean([gains[f"large-{seed}"] for seed in (0, 1, 2)]))
    steps = [gains[f"large-{seed}"] - gains[f"small-{seed}"] for seed in (0, 1)]
    np.testing.assert_allclose(found["step"][1], np.mean(steps))
    assert "training seeds: 2-3" in token_study.plot(found).texts[1].get_text().replace("\n", " ")


def test_what_cannot_be_studied_is_said(tmp_path):
    with pytest.raises(TraitError, match="has no arm 'dsir'"):
        token_study.study(
            [make_run(tmp_path / "a", 1_024, 0.1, arm="dsir"), make_run(tmp_path / "b", 2_048, 0.1)]
        )
    with pytest.raises(TraitError, match="04_train_two_stages holds no finished result"):
        token_study.study([tmp_path / "nothing"])


def test_the_figure_draws_the_table(tmp_path):
    found = curve(tmp_path, 0.1, 0.3, 0.5, metric="choice_accuracy")
    figure = token_study.plot(found)
    drawn = {}
    for axes in figure.axes:
        line = axes.containers[0].lines[0]
        drawn[axes.get_title(loc="left")] = np.array([line.get_xdata(), line.get_ydata()], dtype=float)
        assert axes.get_xscale() == "log"
    assert list(drawn) == ["gain in choice accuracy (points)", "rise in bits per byte of general text"]
    np.testing.assert_allclose(drawn["gain in choice accuracy (points)"], [found["tokens"], 100 * found["gain"]])
    np.testing.assert_allclose(
        drawn["rise in bits per byte of general text"], [found["tokens"], found["forgetting"]]
    )
    ticks = [tick.get_text().split("\n") for tick in figure.axes[0].get_xticklabels()]
    assert ticks == [["2.05k", "0.0017 h", "0.51x"], ["3.07k", "0.0022 h", "1x"], ["5.12k", "0.0033 h", "2x"]]


def test_a_hostile_arm_and_no_general_text_are_drawn(tmp_path):
    arm = "$x^{\\evil<b>" + "long " * 30
    found = curve(tmp_path, 0.1, 0.3, arm=arm, general=False)
    assert found["forgetting"].isna().all()
    figure = token_study.plot(found)
    assert len(figure.axes) == 1
    assert figure.save(tmp_path, "study").stat().st_size > 10_000


def test_the_study_read_back_from_its_file_gives_the_same_figure(tmp_path):
    folders = [make_run(tmp_path / str(n), 1_024 * 2**n, skill) for n, skill in enumerate((0.1, 0.3, 0.3))]
    assert str(tmp_path / "study.csv") in token_study.write_study(folders, tmp_path)
    table = token_study.study(folders)
    assert (tmp_path / "study.svg").exists()
    again = pd.read_csv(tmp_path / "study.csv")
    pd.testing.assert_frame_equal(again, table)
    first = (tmp_path / "study.png").read_bytes()
    assert token_study.plot(again).save(tmp_path, "again").read_bytes() == first


def test_the_shipped_sweep_trains_one_arm_at_doubled_budgets():
    seconds = []
    for _, found in pipeline.read_sweep(ROOT / "params" / "sweeps" / "token_budget.yaml"):
        assert set(found.training.arms) == {"trait"}
        seconds.append(found.training.stage_tokens[1])
    assert [later / earlier for earlier, later in itertools.pairwise(seconds)] == [2] * (len(seconds) - 1)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({"experiment": "x.yaml"}, "it has neither grid nor points"),
        ({"experiment": "x.yaml", "grid": {"a.b": [1]}, "sett": {}}, "sett\n"),
        ({"experiment": "x.yaml", "grid": {"a.b": 1}}, "Input should be a valid list"),
        ({"experiment": "x.yaml", "grid": {"a.b": [1]}, "set": [1]}, "set\n"),
        (["experiment"], "a sweep needs `experiment`"),
    ],
)
def test_a_wrong_sweep_file_says_what_is_wrong(plan, expected, tmp_path):
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(TraitError, match=re.escape(expected)):
        pipeline.read_sweep(tmp_path / "sweep.yaml")


def test_a_run_may_go_on_from_what_another_one_trained(tmp_path):
    step, stage = "04_train_two_stages", Path("models", "stages", "1-in_domain-abc")
    (tmp_path / "done" / step / stage / "model").mkdir(parents=True)
    (tmp_path / "done" / step / stage / "model" / "weights").write_bytes(b"weights")
    for name in (stage / "stage.json", "report.json"):
        write_json(tmp_path / "done" / step / name, {})
    runs.adopt(tmp_path / "done", step, tmp_path / "new", done=False)
    weights = [tmp_path / run / step / stage / "model" / "weights" for run in ("done", "new")]
    assert weights[0].samefile(weights[1])  # no copy of gigabytes
    assert (tmp_path / "new" / step / stage / "stage.json").exists()
    assert runs.recorded(tmp_path / "new", step) is None and runs.recorded(tmp_path / "done", step) == {}


@pytest.mark.slow
def test_a_sweep_over_budgets_ends_with_its_study(tmp_path):
    plan = {
        "experiment": str(TINY),
        "set": {
            "training.arms": {"trait": ["in_domain+fasttext_educational", "passages"]},
        },
        "grid": {"training.stage_tokens": [[3_072, 1_536], [3_072, 6_144]]},
    }
    (tmp_path / "tokens.yaml").write_text(yaml.safe_dump(plan))
    pipeline.sweep(tmp_path / "tokens.yaml", tmp_path / "runs")
    folders = sorted(path.parent for path in (tmp_path / "runs").glob("*/report.html"))
    assert len(folders) == 2
    found = pd.read_csv(tmp_path / "runs" / "study.csv")
    assert found["tokens"].tolist() == [4_608, 9_216]
    assert found["passes_over_passages"][1] == pytest.approx(4 * found["passes_over_passages"][0], rel=0.2)
    for row, folder in zip(found.to_dict("records"), reversed(folders), strict=True):
        tests = pd.read_csv(folder / "05_evaluate" / "paired_tests.csv")
        against = tests.query("arm == 'base' and task == 'macro average' and metric == 'bits_per_byte'").iloc[0]
        assert math.isclose(row["gain"], -against["gain"])
        assert math.isclose(row["gain_low"], -against["gain_high"])
    second = runs.recorded(tmp_path / "runs" / "stage_tokens--3072-6144", "04_train_two_stages")["summary"][
        "stages"
    ]
    assert [(stage["stage"], stage["new"]) for stage in second] == [(1, False), (2, True)]
    assert {"study.csv", "study.svg", "study.png"} <= {path.name for path in (tmp_path / "runs").iterdir()}
