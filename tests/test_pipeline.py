"""The whole way of the data on a tiny configuration: real text, a real (small) model, the real command line."""

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from conftest import ROOT, TINY, trait_kit

from trait_kit import params, pipeline, runs, tables

SEED_ARMS = ["raw", "random", "dsir", "selected", "trait"]


def executed(output: str) -> list[str]:
    return re.findall(r"\] (\d\d_\w+) \.\.\.", output)


def state(run_dir: Path) -> dict[str, str]:
    """Every number that a run ends with, as one comparable value; times and folders left out."""
    results = {}
    for path in sorted(run_dir.glob("0*/*.parquet")):
        results[str(path.relative_to(run_dir))] = tables.pq.read_table(path).to_pandas().to_csv(index=False)
    return results


def test_run_writes_all_it_promises(tiny_run):
    for name in runs.STEPS:
        record = runs.recorded(tiny_run, name)
        assert record["step"] == name
        assert record["summary"]
        assert (tiny_run / "notebooks" / f"{name}.ipynb").exists()
    assert {"params.yaml", "provenance.json", "report.html"} <= {path.name for path in tiny_run.iterdir()}
    assert not list(tiny_run.rglob("*.tmp-*"))
    assert not list(tiny_run.rglob("*.partial.ipynb"))


def test_selections_hold_the_same_number_of_tokens(tiny_run):
    budget = params.load(TINY).selection.token_budget
    for method in ("random", "dsir", "fasttext", "fasttext_educational"):
        selection = tables.read(tiny_run / "02_filter_web" / "selections" / f"{method}.parquet", "selection")
        lengths = np.asarray(selection["n_tokens"])
        assert budget - lengths.max() <= lengths.sum() <= budget + lengths.max()


def test_fasttext_finds_what_is_hidden(tiny_run):
    quality = {row["method"]: row for row in runs.recorded(tiny_run, "02_filter_web")["summary"]["quality"]}
    assert quality["fasttext"]["lift"] >= 10
    assert quality["fasttext"]["precision"] > quality["random"]["precision"]


def test_arms_trained_on_the_same_number_of_tokens_and_shared_a_stage(tiny_run):
    log = tables.read(tiny_run / "04_train_two_stages" / "log.parquet", "log").to_pandas()
    assert set(log["arm"]) == set(SEED_ARMS)
    assert log.groupby("arm")["tokens"].max().nunique() == 1
    loss = log.query("metric == 'loss' and stage == 1").pivot(index="step", columns="arm", values="value")
    assert (loss["selected"] == loss["trait"]).all()
    assert not (loss["random"] == loss["trait"]).all()


def test_every_arm_was_scored_on_the_same_items(tiny_run):
    outcomes = tables.read(tiny_run / "05_evaluate" / "outcomes.parquet", "outcomes").to_pandas()
    assert set(outcomes["arm"]) == {"base", *SEED_ARMS}
    counts = outcomes.groupby(["task", "metric"])["item_id"].nunique() * 6
    assert (outcomes.groupby(["task", "metric"]).size() == counts).all()


def test_passages_and_test_items_are_disjoint(tiny_run):
    from trait_kit.engine.questions import QuestionIndex
    from trait_kit.tasks import load_problems

    experiment = params.load(TINY).passages
    passages = tables.read(tiny_run / "03_write_passages" / "passages.parquet", "passages").to_pandas()
    test = load_problems(experiment.tasks, "test", experiment.test_items_per_task, experiment.seed)
    assert len(passages) > 0
    assert QuestionIndex(test["question"].tolist()).find(passages["text"].tolist()).empty


def test_report_is_one_file_that_asks_the_network_for_nothing(tiny_run):
    html = (tiny_run / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//[^"']+\.(?:js|css|png|svg|woff2?)""", html)
    assert html.count("data:image/") + html.count("<svg") >= 6
    for arm in ["base", *SEED_ARMS]:
        assert arm in html
    assert 'class="badge bad">unreadable' not in html


def test_running_again_does_nothing_and_is_quick(tiny_run):
    started = time.perf_counter()
    result = trait_kit("run", TINY, "--run-dir", tiny_run)
    assert result.returncode == 0, result.stderr
    assert executed(result.stdout) == []
    assert time.perf_counter() - started < 120


def test_a_training_parameter_would_change_training_and_what_follows(tiny_copy):
    result = trait_kit("status", TINY, "--run-dir", tiny_copy, "--set", "training.learning_rate=2.0e-2")
    assert result.returncode == 0, result.stderr
    said = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert [name for name in said if said[name] == "up to date"] == list(runs.STEPS)[:3]
    assert said["04_train_two_stages"] == "learning_rate: 0.01 -> 0.02"
    assert said["05_evaluate"] == said["06_figures"] == "follows 04_train_two_stages"
    result = trait_kit("status", TINY, "--run-dir", tiny_copy, "--set", "training.seed=1")
    said = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert [name for name in said if said[name] == "up to date"] == list(runs.STEPS)[:3]
    assert said["04_train_two_stages"] == "seed: 0 -> 1"


@pytest.mark.slow
def test_a_training_parameter_changes_training_and_what_follows(tiny_copy):
    result = trait_kit("run", TINY, "--run-dir", tiny_copy, "--set", "training.learning_rate=2.0e-2")
    assert result.returncode == 0, result.stderr
    assert executed(result.stdout) == ["04_train_two_stages", "05_evaluate", "06_figures"]


@pytest.mark.slow
def test_a_step_is_done_anew_where_that_is_asked_for(tiny_copy):
    before = runs.recorded(tiny_copy, "06_figures")["finished"]
    result = trait_kit("run", TINY, "--run-dir", tiny_copy, "--from", "06")
    assert result.returncode == 0, result.stderr
    assert executed(result.stdout) == ["06_figures"]
    assert runs.recorded(tiny_copy, "06_figures")["finished"] > before


def test_a_failing_notebook_is_named_and_the_run_goes_on_afterwards(tiny_copy):
    wrong = (
        "training.context_length=16384",
        "training.tokens_per_batch=32768",
        "training.stage_tokens=[32768,32768]",
    )
    result = trait_kit(
        "run", TINY, "--run-dir", tiny_copy, *(part for value in wrong for part in ("--set", value))
    )
    assert result.returncode == 1
    told = ("trait-kit: ", "context_length (16,384) is longer than", "failed in code cell", "train_arms(")
    assert sorted(places := [result.stderr.index(text) for text in told]) == places  # the reason first
    assert "04_train_two_stages.partial.ipynb" in result.stderr
    assert "Traceback" not in result.stderr
    result = trait_kit("run", TINY, "--run-dir", tiny_copy)
    assert result.returncode == 0
    assert executed(result.stdout) == []


def test_ctrl_c_in_training_ends_in_one_line_and_leaves_nothing_running(tiny_copy):
    command = [sys.executable, "-u", "-m", "trait_kit.cli", "run", str(TINY), "--run-dir", str(tiny_copy)]
    command += ["--set", "training.learning_rate=3.0e-2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    runner = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    for line in runner.stdout:
        if line.startswith("Training "):
            break
    time.sleep(2)
    family = psutil.Process(runner.pid).children(recursive=True)  # the kernel, the guard, the worker
    os.killpg(runner.pid, signal.SIGINT)  # as a terminal does, to all of its foreground
    said, _ = runner.communicate(timeout=60)
    assert runner.returncode == 130
    told = [line for line in said.splitlines() if line.strip()]
    assert told[-1] == "trait-kit: interrupted. Run the same command again to go on."
    assert not [line for line in told if "Error" in line or "Traceback" in line or "exception" in line]
    assert len(family) >= 3
    assert psutil.wait_procs(family, timeout=30)[1] == []


def test_two_runners_do_not_share_a_folder(tmp_path):
    with pipeline.locked(tmp_path / "run"):
        result = trait_kit("run", TINY, "--run-dir", tmp_path / "run")
    assert result.returncode == 1
    assert "Another run is using" in result.stderr


def test_a_misspelt_parameter_of_plain_papermill_is_named(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "papermill", "notebooks/01_domain_classifier.ipynb", tmp_path / "out.ipynb",
         "-p", "run_dir", tmp_path / "run", "-p", "epoch", "3"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode != 0
    assert "unknown field 'epoch'; did you mean 'epochs'?" in result.stderr


def test_plain_papermill_takes_an_experiment_and_any_field_and_leaves_the_evidence(tiny_copy, tmp_path):
    before = runs.recorded(tiny_copy, "02_filter_web")
    result = subprocess.run(
        [sys.executable, "-m", "papermill", "notebooks/02_filter_web.ipynb", tmp_path / "out.ipynb",
         "-p", "experiment", TINY, "-p", "run_dir", tiny_copy, "-p", "token_budget", "4000", "-p", "min_tokens", "30"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert runs.recorded(tiny_copy, "02_filter_web") == before
    scratch = runs.recorded(tiny_copy.with_name("tiny.scratch"), "02_filter_web")
    assert (scratch["params"]["token_budget"], scratch["params"]["min_tokens"]) == (4_000, 30)


def test_a_sweep_shares_the_steps_that_its_points_have_in_common(tiny_copy, tmp_path):
    experiment = params.load(TINY, {"training.learning_rate": 3.0e-2})
    pipeline.adopt_steps(experiment, [tiny_copy], tmp_path / "point")
    adopted = [name for name in runs.STEPS if runs.recorded(tmp_path / "point", name)]
    assert adopted == ["01_domain_classifier", "02_filter_web", "03_write_passages"]
    stages = "04_train_two_stages/models/stages/*/stage.json"  # those that the point would repeat are found by their names
    assert len(list((tmp_path / "point").glob(stages))) == len(list(tiny_copy.glob(stages))) > 0


def test_compare_writes_for_readers_and_for_scripts(tiny_run):
    said = {form: trait_kit("compare", tiny_run, "--format", form) for form in ("txt", "md", "csv", "json")}
    assert {form: result.stderr for form, result in said.items() if result.returncode} == {}
    rows = json.loads(said["json"].stdout)
    found = pd.read_csv(io.StringIO(said["csv"].stdout))
    assert len(rows) == len(found) > 5
    assert np.allclose(found["gain"], [row["gain"] for row in rows])
    assert said["md"].stdout.count("\n|") == len(rows) + 2  # the head, and the line under it


def test_a_sweep_of_points_runs_them_at_once_goes_on_and_compares_their_arms(tiny_copy, tmp_path):
    """Points that differ in nothing that shapes a result: all steps are taken over, each point's report is its own."""
    plan = {
        "experiment": str(TINY),
        "points": [{"selection.workers": 1}, {"selection.workers": 2}, {"selection.workers": 3}],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(plan))
    folder = tmp_path / "runs"
    shutil.copytree(tiny_copy, folder / "workers-1")
    for _ in range(2):
        pipeline.sweep(tmp_path / "mine.yaml", folder, parallel=2)
        assert [(folder / f"workers-{number}" / "report.html").exists() for number in (1, 2, 3)] == [True] * 3
        assert [(folder / f"workers-{number}" / "run.log").exists() for number in (1, 2, 3)] == [
            False,
            True,
            True,
        ]
        log = (folder / "workers-3" / "run.log").read_text()
        assert "0 notebooks executed" in log and not executed(log)
    tests = pd.read_csv(folder / "comparison" / "comparison.csv")
    assert {"workers-2:trait", "workers-3:trait"} <= set(tests["arm"])
    assert tests.query("arm == 'workers-2:trait' and reference == 'workers-1:trait'")["gain"].abs().max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("step", list(runs.STEPS))
def test_a_run_killed_in_any_step_ends_with_the_same_result(step, tiny_run, tmp_path):
    """SIGKILL the runner at a random moment of each step, run again, and compare every table with an undisturbed run's."""
    run_dir = tmp_path / "run"
    command = [sys.executable, "-u", "-m", "trait_kit.cli", "run", str(TINY), "--run-dir", str(run_dir)]
    runner = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    for line in runner.stdout:
        if f"] {step} ..." in line:
            break
    seconds = runs.recorded(tiny_run, step)["seconds"]
    time.sleep(3 + random.random() * seconds)
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    result = trait_kit("run", TINY, "--run-dir", run_dir)
    assert result.returncode == 0, result.stderr
    expected, found = state(tiny_run), state(run_dir)
    assert expected.keys() == found.keys()
    assert [name for name in expected if expected[name] != found[name]] == []


@pytest.mark.slow
def test_a_domain_of_ones_own_is_three_files(tmp_path):
    """Documents and problems from files, no hidden labels, no shipped task: what a user brings."""
    import yaml

    from trait_kit.selection.documents import load_documents
    from trait_kit.tasks import load_problems

    for name in ("in_domain", "web"):
        texts = load_documents(f"demo:math/{name}")["text"].to_pylist()[:1_500]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tasks = []
    for name in ("linear_equations", "greatest_common_divisor"):
        rows = load_problems([name], "train", 300, 0)
        lines = [
            json.dumps({"q": row.question, "a": row.answer, "why": row.solution}) for row in rows.itertuples()
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        task = {
            "about": name,
            "kind": "number",
            "metrics": ["bits_per_byte"],
            "source": f"{name}.jsonl",
            "splits": dict.fromkeys(("train", "validation", "test"), "all"),
            "fields": {"question": "{q}", "answer": "{a}", "solution": "{why}", "topic": "arithmetic"},
        }
        tasks.append(tmp_path / f"{name}.yaml")
        tasks[-1].write_text(yaml.safe_dump(task))
    mine = yaml.safe_load(TINY.read_text())
    mine["common"] |= {
        "in_domain": f"{tmp_path}/in_domain.jsonl",
        "web": f"{tmp_path}/web.jsonl",
        "tasks": [str(t) for t in tasks],
    }
    mine["evaluation"].pop("generate_items")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    result = trait_kit("run", tmp_path / "mine.yaml", "--run-dir", tmp_path / "run")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    outcomes = tables.read(tmp_path / "run" / "05_evaluate" / "outcomes.parquet", "outcomes").to_pandas()
    assert {"linear_equations", "greatest_common_divisor", "held_out/general"} <= set(outcomes["task"])
    assert (tmp_path / "run" / "report.html").exists()
