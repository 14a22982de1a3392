"""The teacher on this machine's processor: recorded answers are replayed, what is not recorded is asked for."""

import re

import pandas as pd
import pytest
import tiny_random

from trait_kit import params
from trait_kit.engine import llama
from trait_kit.passages.writing import write_passages
from trait_kit.runs import Step


@pytest.mark.parametrize(("demo", "recorded", "pass_"), [("demo", 36, 33), ("demo_ads", 24, 16)])
def test_the_demos_replay_what_the_local_teacher_answered(tmp_path, monkeypatch, demo, recorded, pass_):
    """All that is recorded, of which the demos make the first groups."""
    monkeypatch.setattr(llama, "model_file", lambda: pytest.fail("the model was needed"))
    assert params.load(f"params/{demo}.yaml").passages.n_groups <= recorded
    more = {"passages.n_groups": recorded, "passages.base_model": str(tiny_random.make())}
    chosen = params.load(f"params/{demo}.yaml", more)
    written = write_passages(Step("03_write_passages", chosen, tmp_path))
    assert written.bill["teacher"] == llama.NAME and written.bill["requests_this_run"] == 0
    assert written.bill["answers"] > 4 * len(written.passages)  # an opening and three sentences each, and retries
    recorded_answers = rf"0 answers now, {written.bill['answers']} on \d{{4}}-\d\d-\d\d"
    assert re.fullmatch(recorded_answers, written.bill["written"])
    assert (written.bill["groups"], len(written.passages)) == (recorded, pass_)
    for row in written.passages.itertuples():
        assert len(row.paragraphs) == 3 and row.text.endswith(row.enlightenment)
        assert row.enlightenment.count("With " if demo == "demo" else "For ") >= 3  # a sentence a problem


def test_the_teachers_own_paragraphs_of_the_packaging_sweep_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(llama, "model_file", lambda: pytest.fail("the model was needed"))
    both = {"passages.paragraphs": "both", "passages.base_model": str(tiny_random.make())}
    written = write_passages(Step("03_write_passages", params.load("params/demo.yaml", both), tmp_path))
    told = pd.read_parquet(tmp_path / "03_write_passages" / "rephrased.parquet")
    assert written.bill["requests_this_run"] == 0 and len(told) >= 34


@pytest.mark.slow  # fetches 1.1 GB once, and asks a model of 1.5B parameters
def test_the_local_teacher_writes_what_is_not_recorded(tmp_path, capsys):
    sizes = {"common.seed": 5, "passages.n_groups": 1, "passages.base_model": str(tiny_random.make())}
    written = write_passages(Step("03_write_passages", params.load("params/demo.yaml", sizes), tmp_path))
    assert len(written.passages) + len(written.rejected) >= 1
    assert written.bill["requests_this_run"] >= 4
    told = capsys.readouterr().out
    assert "Starting qwen2.5-coder" in told and "4 first requests, about" in told and "hours" in told
