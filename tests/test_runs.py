"""Records of steps: what makes a step new, what does not, and that looking leaves evidence as it was."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import ROOT, TINY

from trait_kit import params, runs
from trait_kit.engine import child, machine
from trait_kit.engine.files import TraitError, write_text

FIRST, WEB, TRAINING = "01_domain_classifier", "02_filter_web", "04_train_two_stages"


def finished(run_dir: Path, name: str = FIRST, experiment: params.Experiment | None = None) -> runs.Step:
    step = runs.Step(name, experiment or params.load(TINY), run_dir)
    write_text(step.folder / "artefact.txt", name)
    step.finish(headline="done", number=1)
    return step


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def opened_by_hand(name: str, run_dir: Path, cell: str = "") -> runs.Step:
    """What JupyterLab leaves of the parameters cell when the second cell runs."""
    sources = [f'experiment = "{TINY}"\nrun_dir = "{run_dir}"\nepochs = None\n{cell}', "runs.begin(...)"]
    return runs.begin(name, {"In": ["", *sources], "epochs": 77, "unrelated": object()})


@pytest.fixture
def by_hand(monkeypatch):
    monkeypatch.delenv(runs.BATCH_VARIABLE, raising=False)
    monkeypatch.chdir(ROOT)


def test_a_run_copied_without_file_times_is_still_done(tmp_path):
    finished(tmp_path / "run")
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy, copy_function=shutil.copyfile)
    assert runs.Step(FIRST, params.load(TINY), copy).done


def test_what_shapes_a_result_makes_a_step_new_and_nothing_else(tmp_path):
    finished(tmp_path)
    finished(tmp_path, WEB)

    def done(name: str, **overrides) -> bool:
        given = {key.replace("__", "."): value for key, value in overrides.items()}
        return runs.Step(name, params.load(TINY, given), tmp_path).done

    assert done(WEB)
    assert done(WEB, selection__workers=2)
    assert not done(WEB, selection__token_budget=4_000)
    assert done(FIRST, common__base_model="demo:smollm2-135m")  # the classifier never sees the model
    assert not done(WEB, common__base_model="demo:smollm2-135m")


def test_a_result_takes_the_pages_of_the_one_before_away(tmp_path):
    """So a kill before they are written anew leaves none that shows other results."""
    pages = [tmp_path / "report.html", tmp_path / "notebooks" / f"{FIRST}.ipynb"]
    for page in pages:
        write_text(page, "old")
    step = finished(tmp_path)
    assert not any(page.exists() for page in pages)
    write_text(pages[0], "new")
    runs.Step(FIRST, step.experiment, tmp_path).finish()  # looked at only
    assert pages[0].exists()


def test_files_that_evaluation_reads_by_path_are_in_its_key(tmp_path):
    own, lent, general = (tmp_path / name for name in ("own.yaml", "lent.yaml", "general.yaml"))
    task = yaml.safe_load((ROOT / "trait_kit" / "task_files" / "linear_equations.yaml").read_text())
    own.write_text(yaml.safe_dump({**task, "name": "own", "examples_from": str(lent)}))
    lent.write_text(yaml.safe_dump({**task, "name": "lent"}))
    general.write_text("task: fruit")
    shape = {"tasks": [str(own)], "general_tasks": [str(general)]}
    before = runs._inputs(params.EvaluationParams, shape)
    lent.write_text(yaml.safe_dump({**task, "name": "lent", "version": 9}))
    general.write_text("task: fruit\nmetadata: {version: 2}")
    after = runs._inputs(params.EvaluationParams, shape)
    assert all(before[name] != after[name] for name in ("tasks", "general_tasks"))


def test_the_code_of_a_step_is_its_import_closure():
    code = {
        path.relative_to(ROOT).as_posix()
        for path in machine.closure("trait_kit.training.stages.train_arms", without=runs._WATCHING)
    }
    assert {"trait_kit/training/trainer.py", "trait_kit/engine/packing.py", "trait_kit/tasks.py"} <= code
    assert not {name for name in code if name.startswith(("trait_kit/evaluation/", "trait_kit/figures/"))}
    passages = {path.name for path in machine.closure("trait_kit.passages.writing.write_passages")}
    assert {"concepts.yaml", "numbers.py", "answers.py"} <= passages


def test_seconds_add_up_over_executions_and_looking_changes_nothing(tmp_path, by_hand):
    killed = opened_by_hand(FIRST, tmp_path / "run")
    time.sleep(0.4)
    write_text(killed.folder / "artefact.txt", "half of it")  # then it is killed, and time passes
    time.sleep(0.4)
    step = opened_by_hand(FIRST, tmp_path / "run")
    time.sleep(0.4)
    step.finish(headline="done")
    assert runs.recorded(tmp_path / "run", FIRST)["seconds"] == pytest.approx(0.8, abs=0.25)
    before = state(tmp_path)
    again = opened_by_hand(FIRST, tmp_path / "run")
    assert again.done
    again.finish(headline="other")
    assert state(tmp_path) == before


def test_an_edited_parameter_works_in_a_scratch_run(tmp_path, by_hand, capsys):
    run = tmp_path / "run"
    finished(run)
    finished(run, WEB)
    before = state(run)
    step = opened_by_hand(WEB, run, "token_budget = 4_000")
    assert step.params.token_budget == 4_000
    assert step.run_dir == tmp_path / "run.scratch"
    assert runs.recorded(step.run_dir, FIRST)["key"] == runs.recorded(run, FIRST)["key"]
    assert "stays as it is: token_budget: 8000 -> 4000" in capsys.readouterr().out
    step.finish(headline="scratch")
    assert state(run) == before


def test_a_cell_that_only_looks_leaves_a_finished_step_done(tmp_path, monkeypatch):
    project = tmp_path / "project"
    shutil.copytree(ROOT / "notebooks", project / "notebooks")
    (project / ".cache").symlink_to(ROOT / ".cache")
    monkeypatch.chdir(project)
    finished(tmp_path / "run")
    finished(tmp_path / "run", WEB)
    path = project / "notebooks" / f"{WEB}.ipynb"
    book = nbformat.read(path, as_version=4)

    def done_with(source: str) -> bool:
        extended = nbformat.from_dict({**book, "cells": [*book.cells, nbformat.v4.new_code_cell(source)]})
        nbformat.write(extended, path)
        return runs.Step(WEB, params.load(TINY), tmp_path / "run").done

    assert done_with("scores.head()")
    assert done_with("from trait_kit.explore import items\ncuts.explore(filtered).view('dsir', 2_000)")
    assert not done_with("step.params.token_budget")  # what is handed the step may shape what it makes


@pytest.mark.slow
def test_papermill_with_another_value_leaves_the_run_and_the_checkout_as_they_were(tiny_copy, monkeypatch):
    monkeypatch.delenv(runs.BATCH_VARIABLE, raising=False)
    notebooks = state(ROOT / "notebooks")
    before, output = state(tiny_copy), tiny_copy.parent / "out.ipynb"
    for more in ([], ["-p", "token_budget", "4000"]):
        command = [
            "papermill",
            f"notebooks/{WEB}.ipynb",
            output,
            "-p",
            "experiment",
            TINY,
            "-p",
            "run_dir",
            tiny_copy,
            *more,
        ]
        subprocess.run([sys.executable, "-m", *map(str, command)], cwd=ROOT, check=True, capture_output=True)
        assert "widget-view" not in output.read_text()
        assert state(tiny_copy) == before
    scratch = runs.recorded(tiny_copy.with_name("tiny.scratch"), WEB)
    assert scratch["params"]["token_budget"] == 4_000
    assert state(ROOT / "notebooks") == notebooks


def test_steps_that_no_longer_fit_what_they_read_are_stale(tmp_path):
    finished(tmp_path)
    finished(tmp_path, WEB)
    assert runs.stale(tmp_path) == {}
    finished(tmp_path, FIRST, params.load(TINY, {"classifier.epochs": 6}))
    assert list(runs.stale(tmp_path)) == [WEB]


def test_a_misspelt_parameter_is_named_and_a_missing_step_too(tmp_path, by_hand):
    with pytest.raises(TraitError, match="unknown field 'epoch'; did you mean 'epochs'"):
        opened_by_hand(FIRST, tmp_path / "run", "epoch = 3")
    with pytest.raises(TraitError, match="Run 01_domain_classifier first"):
        opened_by_hand(WEB, tmp_path / "run")


def test_a_child_passes_on_lines_messages_and_how_it_ended(tmp_path, capsys):
    code = (
        "from trait_kit.engine import child; from trait_kit.engine.files import TraitError\n"
        "with child.reporting(): child.tell('half'); print('quiet'); raise TraitError('too small')"
    )
    with pytest.raises(TraitError, match=r"^too small$"):
        child.run([sys.executable, "-c", code], "The child", tmp_path / "log")
    assert capsys.readouterr().out == "half\n"
    assert "quiet" in (tmp_path / "log").read_text()
    with pytest.raises(TraitError, match="was ended by signal 9"):
        child.run(["sh", "-c", "kill -9 $$"], "The child", tmp_path / "log")
    with pytest.raises(TraitError, match="ended with exit status 3"):
        child.run(["sh", "-c", "exit 3"], "The child", tmp_path / "log")


def test_no_child_outlives_its_parent(tmp_path):
    """SIGKILL the parent: the child, its own child, and the guard between are gone."""
    grandchild = f"sleep 300 & echo $! > {tmp_path}/pid; wait"
    code = (
        "from pathlib import Path; from trait_kit.engine import child\n"
        f"child.run(['sh', '-c', '''{grandchild}'''], 'x', Path('{tmp_path}/log'))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    number = int((tmp_path / "pid").read_text())
    while time.monotonic() < deadline:
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{number}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.2)
    pytest.fail("the grandchild is still there")
