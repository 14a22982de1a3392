"""The command line as a user meets it: help, typing errors, what a script reads; nothing is computed here."""

import importlib.metadata
import json
import re
import shlex

import pytest
import typer.main
from conftest import TINY, trait_kit

from trait_kit import pipeline, runs
from trait_kit.cli import app, main
from trait_kit.engine.files import TraitError, write_text

COMMANDS = typer.main.get_command(app).commands


def test_version_and_completion_are_there(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == importlib.metadata.version("trait-kit")
    assert main(["--help"]) == 0
    assert {"--version", "--install-completion", *COMMANDS} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(("typed", "meant"), [("stauts", "status"), ("comapre", "compare"), ("runn", "run")])
def test_a_misspelt_command_is_answered_with_the_right_one(typed, meant, capsys):
    assert main([typed]) == 2
    assert f"Did you mean '{meant}'" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example_that_it_would_take(name, capsys):
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    shown = " ".join(shown.split())
    example = shlex.split(re.search(r"Example: (.*)", shown)[1])
    assert name in example
    known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    after = example[example.index(name) + 1 :]
    assert {word for word in after if word.startswith("--")} <= known


def test_what_a_run_would_do_is_said_and_nothing_is_written(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["status", str(TINY), "--run-dir", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == dict.fromkeys(runs.STEPS, "not done yet")
    assert main(["run", str(TINY), "--run-dir", str(folder), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("not done yet") == 6
    assert main(["run", str(TINY), "--run-dir", str(folder), "--from", "09"]) == 1
    assert "--from 09: no such step; the steps are 01_domain_classifier" in capsys.readouterr().err
    assert main(["run", str(TINY), "--run-dir", str(folder), "--from", "99", "--dry-run"]) == 1
    assert "--from 99: no such step" in capsys.readouterr().err
    assert not folder.exists()


def test_a_dry_run_counts_what_from_names_as_not_done(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runs, "status", lambda *_: dict.fromkeys(runs.STEPS, runs.UP_TO_DATE))
    assert main(["run", str(TINY), "--run-dir", str(tmp_path), "--from", "04", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert (shown.count(runs.UP_TO_DATE), shown.count(runs.NOT_DONE)) == (3, 3)


def test_a_value_that_is_no_yaml_is_one_message(capsys):
    assert main(["status", str(TINY), "--set", "training.arms=[a"]) == 1
    assert "--set training.arms=[a: write section.field=value in YAML" in capsys.readouterr().err


def test_open_shows_the_report_or_says_how_to_get_one(tmp_path):
    result = trait_kit("open", tmp_path)
    assert result.returncode == 1
    assert "report.html does not exist. Write it with `trait-kit report" in result.stderr
    page = write_text(tmp_path / "report.html", "<p>")
    result = trait_kit("open", tmp_path, env={"BROWSER": "echo opened %s", "PATH": "/usr/bin:/bin"})
    assert result.returncode == 0
    assert result.stdout.split() == [str(page), "opened", page.as_uri()]


def test_the_points_of_a_sweep_are_a_list_at_every_combination_of_a_grid(tmp_path):
    path = tmp_path / "mine.yaml"
    listed = "points: [{selection.token_budget: 4000}, {selection.token_budget: 6000, selection.min_tokens: 30}]"
    path.write_text(f"experiment: {TINY}\nset: {{common.seed: 5}}\n{listed}\ngrid: {{training.seed: [1, 2]}}\n")
    points = [found for _, found in pipeline.read_sweep(path)]
    shown = [
        (p.selection.token_budget, p.selection.min_tokens, p.training.seed, p.selection.seed) for p in points
    ]
    assert shown == [(4000, 20, 1, 5), (4000, 20, 2, 5), (6000, 30, 1, 5), (6000, 30, 2, 5)]
    path.write_text(f"experiment: {TINY}\npoints: [{{selection.token_bugdet: 4000}}]\n")
    with pytest.raises(TraitError, match="did you mean 'token_budget'"):
        pipeline.read_sweep(path)
