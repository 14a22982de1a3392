"""Planted leaks: a test item in the in-domain text, a held-out document's copy in the web. Found, named, left out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from test_catalogue import BRANDS, GOODS, product, write_shop
from test_selecting import BASE, Step, text_of

from trait_kit import params
from trait_kit.cli import main
from trait_kit.selection.choosing import filter_web, funnel
from trait_kit.selection.classifier import train_classifiers
from trait_kit.selection.disjoint import in_domain_documents
from trait_kit.selection.documents import load_documents, load_held_out
from trait_kit.tasks import load_problems, texts_of_tests
from trait_kit.training.stages import training_sources

TINY = Path(__file__).parent / "tiny.yaml"
QUESTION = "A baker in {} sells {} rolls before noon and {} loaves after it. How many pieces does the baker sell that day?"
SOLUTION = "Before noon there are {} rolls and after it there are {} loaves, so in {} the baker sells {} pieces."


def write_task(folder: Path) -> str:
    rows = []
    for k in range(40):
        place, rolls, loaves = f"Town{k}", 20 + 3 * k, 7 + 11 * k
        solution = SOLUTION.format(rolls, loaves, place, rolls + loaves)
        rows.append({"q": QUESTION.format(place, rolls, loaves), "a": str(rolls + loaves), "s": solution})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = {"about": "Baking.", "kind": "number", "metrics": ["bits_per_byte"], "source": "rows.jsonl"}
    raw |= {"splits": dict.fromkeys(("train", "validation", "test"), "rows.jsonl"), "source": str(folder)}
    raw |= {"fields": {"question": "{q}", "answer": "{a}", "solution": "{s}", "topic": "baking"}}
    (folder / "baking.yaml").write_text(yaml.safe_dump(raw))
    return str(folder / "baking.yaml")


def write(folder: Path, name: str, texts: dict[str, str]) -> None:
    """One more file of a corpus; of one of several files, a document's fate depends on its own id alone."""
    folder.mkdir(exist_ok=True)
    lines = (json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items())
    (folder / f"{name}.jsonl").write_text("".join(lines))


@pytest.fixture
def mine(tmp_path) -> Path:
    """An experiment of one's own: folders seed and web of two files, and a task."""
    generator = random.Random(5)
    for side, share in (("seed", 1.0), ("web", 0.1)):
        for half in "ab":
            texts = {f"{side}-{half}{k}": text_of(generator, share, 30) for k in range(80)}
            write(tmp_path / side, half, texts)
    raw = yaml.safe_load(TINY.read_text())
    raw["common"] |= {
        "in_domain": str(tmp_path / "seed" / "*"),
        "web": str(tmp_path / "web" / "*"),
        "base_model": BASE,
    }
    raw["common"] |= {"tasks": [write_task(tmp_path)], "test_items_per_task": 100}
    raw["selection"] |= {"token_budget": 3_000, "methods": ["random", "fasttext"]}
    raw["training"] |= {"arms": {"raw": ["in_domain"]}, "stage_tokens": raw["training"]["stage_tokens"][:1]}
    raw["evaluation"] |= {"reference_arm": "raw"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path / "mine.yaml"


def plant_in_domain(mine: Path) -> dict[str, str]:
    """id -> the reason for which it must be left out; a document that holds a train problem is none of them."""
    common = params.load(mine).selection
    tested, trained = (load_problems(common.tasks, split, 100) for split in ("test", "train"))
    own, general = (load_held_out(spec)["text"].to_pylist() for spec in (common.in_domain, common.web))
    planted = {
        "question": f"From a school book. {tested['question'][0].upper()} Write it down.",
        "gold": f"Some say: {tested['solution'][1]} Others disagree.",
        "general": general[0] + " (again)",
        "copied": own[1].upper(),
        "harmless": f"{trained['question'][0]} {trained['solution'][0]}",
    }
    write(mine.parent / "seed", "planted", planted)
    assert set(planted) <= set(load_documents(common.in_domain)["id"].to_pylist())
    copy = "repeats a held-out document"
    part = "holds a test item's {}".format
    return {"question": part("question"), "gold": part("gold"), "general": copy, "copied": copy}


def test_a_leak_in_the_in_domain_text_is_named_by_check_and_read_by_no_arm(mine, capfd):
    expected = plant_in_domain(mine)
    experiment = params.load(mine)
    screened = in_domain_documents(experiment.selection)
    assert dict(zip(screened.left_out["id"], screened.left_out["reason"], strict=True)) == expected
    everything = set(load_documents(experiment.selection.in_domain)["id"].to_pylist())
    assert set(screened.documents["id"].to_pylist()) == everything - set(expected)

    assert main(["check", str(mine)]) == 0
    said = capfd.readouterr().out
    tested = load_problems(experiment.selection.tasks, "test", 100)["id"]
    said = " ".join(said.split())
    assert f"holds a test item's question question ({tested[0]})" in said
    assert f"holds a test item's gold gold ({tested[1]})" in said
    assert "repeats a held-out document copied" in said and "repeats a held-out document general" in said

    (mine.parent / "04_train_two_stages").mkdir()
    source = training_sources(experiment.training, mine.parent)["in_domain"]
    assert pq.read_table(source)["text"].to_pylist() == screened.documents["text"].to_pylist()
    assert "4 left out" in capfd.readouterr().out


def test_the_steps_01_and_02_count_and_keep_out_both_leaks(mine):
    expected = plant_in_domain(mine)
    experiment = params.load(mine)
    copies, tested = plant_in_web(experiment)
    first, second = (Step(name, experiment, mine.parent) for name in ("01_domain_classifier", "02_filter_web"))
    for step in (first, second):
        step.folder.mkdir()
    trained = train_classifiers(first)
    counts = {reason: [*expected.values()].count(reason) for reason in expected.values()}
    assert trained.numbers["left_out"] == counts
    assert set(trained.tables["left_out"]["id"]) == set(expected)
    assert trained.numbers["in_domain_documents"] == len(load_documents(experiment.selection.in_domain)) - len(
        expected
    )
    filtered = filter_web(second)
    for method in ("random", "fasttext"):
        assert not set(filtered.chosen(method)["id"].to_pylist()) & {*copies, *tested}
    evidence = pq.read_table(filtered.folder / "near_duplicates.parquet").to_pylist()
    found = {row["id"] for row in evidence if (row["of"], row["method"]) == ("a held-out document", "fasttext")}
    assert found == set(copies)
    held = filtered.contaminated.query("method == 'fasttext'")
    assert dict(zip(held["id"], held["part"], strict=True)) == tested
    row = funnel(filtered).set_index("method").loc["fasttext"]
    assert (row["repeats a held-out document"], row["holds a test item"]) == (len(copies), 2)


def plant_in_web(experiment: params.Experiment) -> tuple[list[str], dict[str, str]]:
    """(ids of five copies of held-out documents that fastText ranks first, id -> part of a test item that it holds)."""
    p = experiment.selection
    own, general = (load_held_out(spec)["text"].to_pylist() for spec in (p.in_domain, p.web))
    copies = {
        "exact": own[0],
        "shouted": own[1].upper(),
        "longer": own[2] + " and so it ends",
        "laid-out": own[3].replace(" ", "\n\n"),
        "of-general": general[0],
    }
    problem = load_problems(p.tasks, "test", 100).iloc[2]
    held = {"asks": problem["question"], "solves": "theorem proof lemma " * 9 + problem["solution"]}
    write(Path(p.web).parent, "planted", copies | held)
    assert {*copies, *held} <= set(load_documents(p.web)["id"].to_pylist())
    return list(copies), {"asks": "question", "solves": "gold"}


def test_select_keeps_copies_of_held_out_documents_out(mine, tmp_path, capfd):
    experiment = params.load(mine)
    copies, _ = plant_in_web(experiment)
    p, folder = experiment.selection, tmp_path / "01_domain_classifier"
    folder.mkdir()
    train_classifiers(Step("01_domain_classifier", experiment, tmp_path))
    scores, model = str(tmp_path / "scores"), str(folder / "domain.safetensors")
    assert main(["score", "--model", model, "--input", p.web, "--output", scores]) == 0
    for near_duplicate in ("0.8", "0"):
        asked = ["select", "--scores", scores, "--output", str(tmp_path / "out"), "--share", "0.9"]
        assert main([*asked, "--in-domain", p.in_domain, "--near-duplicate", near_duplicate]) == 0
        out = capfd.readouterr().out
        assert any(line.split() == ["repeats", "a", "held-out", "document", "5"] for line in out.splitlines())
        chosen = pq.read_table(tmp_path / "out" / "fasttext.parquet")["id"].to_pylist()
        assert chosen and not set(copies) & set(chosen)


def test_golds_made_of_ones_own_documents_are_recognised(mine):
    """A shop's descriptions are the golds of its own tasks, and stand in its in-domain documents as they are."""
    pairs = [(brand, kind) for brand in BRANDS for kind in GOODS]
    products = [product(brand, kind, number) for number, (brand, kind) in enumerate(pairs)]
    shop = f"{write_shop(mine.parent, products)}#description_generation"
    tested = set(load_problems([shop], "test", 1_000)["entity"])
    write(mine.parent / "seed", "shop", {row["id"]: row["description"] for row in products})
    p = params.load(mine, {"common.tasks": [shop], "common.test_items_per_task": 1_000}).selection
    screened = in_domain_documents(p)
    reasons = dict(zip(screened.left_out["id"], screened.left_out["reason"], strict=True))
    read = set(load_documents(p.in_domain)["id"].to_pylist())
    golds = {row["id"] for row in products if row["title"] in tested} & read
    assert len(golds) > 15
    assert {reasons.get(name) for name in golds} == {"holds a test item's gold"}
    assert len(set(reasons) - golds) < len(products) / 10  # and the train products stay
    few = in_domain_documents(p.model_copy(update={"in_domain": f"{mine.parent}/seed/shop*"}))
    assert "the tasks were not made of" not in few.said


def test_where_golds_are_most_of_the_documents_it_is_said(mine):
    p = params.load(mine).selection
    golds = load_problems(p.tasks, "test", 100)["solution"]
    texts = {f"gold{k}-{place}": f"Page {k}. {gold}" for k in range(4) for place, gold in enumerate(golds)}
    write(mine.parent / "golds", "a", texts | {"other": "Bread is made of flour."})
    said = in_domain_documents(p.model_copy(update={"in_domain": f"{mine.parent}/golds/*"})).said
    assert "the tasks were not made of" in said


def test_short_answers_are_no_leak(mine):
    p = params.load(mine).selection
    texts = texts_of_tests(p.tasks, 100, 0)
    problems = load_problems(p.tasks, "test", 100)
    assert texts["part"].value_counts().to_dict() == {"question": len(problems), "gold": len(problems)}
    assert not set(texts["text"]) & set(problems["answer"])
