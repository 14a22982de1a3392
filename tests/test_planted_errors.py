"""Planted errors are found and clean passages pass: a small run of tests/benchmarks/planted_errors.py."""

from __future__ import annotations

import pytest
from benchmarks.planted_errors import FAULTS, Outcome, benchmark_set, demo_sets, run
from local_tasks import LOCAL

from trait_kit.engine.files import TraitError


def check(outcome: Outcome, least_planted: int) -> None:
    table = outcome.table()
    told = f"{table.to_string()}\n{[reason for _, reason in outcome.false_alarms]}"
    assert table["planted"].sum() >= least_planted
    assert table["found"].sum() >= 0.98 * table["planted"].sum(), told
    assert len(outcome.false_alarms) < 0.02 * len(outcome.clean), told
    by_error = table.groupby("error")[["planted", "found"]].sum()
    assert (by_error["found"] >= 0.85 * by_error["planted"]).all(), told


def test_errors_planted_in_the_demos_passages_are_found():
    try:
        sets = list(demo_sets(120))
    except TraitError as error:
        pytest.skip(f"the demo's packages are not at hand: {error}")
    outcome = run(sets, n=300)
    assert {passage.fault for passage, _ in outcome.planted} == set(FAULTS)
    check(outcome, least_planted=250)


@pytest.mark.skipif(not LOCAL.is_dir(), reason="TRAIT_KIT_TEST_DATA names no folder of public data")
def test_errors_planted_among_benchmark_problems_are_found():
    check(run([benchmark_set(1_000, test_items=300)], n=200), least_planted=150)
