"""Selection on real text: what the models learn, what a budget buys, and what survives a kill."""

from __future__ import annotations

import itertools
import random
import re
import tracemalloc
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_random import FOLDER

from trait_kit import tables
from trait_kit.demo import part
from trait_kit.engine.files import TraitError
from trait_kit.engine.ngrams import normalise
from trait_kit.engine.scorer import NgramScorer
from trait_kit.explore import cuts
from trait_kit.models import token_counter
from trait_kit.params import ClassifierParams
from trait_kit.selection import scoring
from trait_kit.selection.budget import EVERYTHING, METHODS, Limits, best_first, cut_value, rank, rank_values, take
from trait_kit.selection.choosing import quality, select
from trait_kit.selection.classifier import normalise_line, train_domain_classifier, train_educational_model
from trait_kit.selection.documents import load_documents, on_topic
from trait_kit.selection.dsir import DsirModel
from trait_kit.selection.educational import LABELS, demo_labels
from trait_kit.selection.scoring import ModelFiles, score_corpus

BUDGET = 24_000
SMALL = {"dimension": 8, "epochs": 10, "buckets": 5_000}


def options(**changes) -> ClassifierParams:
    return ClassifierParams.model_construct(**changes)


def read(scored: scoring.Scoring) -> pa.Table:
    return pa.concat_tables(scored.batches()).combine_chunks()


@dataclass
class Choice:
    ranking: np.ndarray
    report: dict

    @property
    def indices(self) -> np.ndarray:
        return self.ranking[: self.report["n_out"]]


def choose(scores: pa.Table, method: str, limits: Limits, seed: int = 0) -> Choice:
    """As `select` does with its candidates, but for what is not clean."""
    ranking, dropped = rank(scores, method, limits, seed)
    report = take(scores, ranking, method, limits, seed)
    return Choice(ranking, {**report, "dropped": sum(dropped.values())})


@pytest.fixture(scope="module")
def web():
    return load_documents("demo:math/web", 0)


@pytest.fixture(scope="module")
def models(web, tmp_path_factory):
    """Trained as notebook 01 does: the seed against a plain sample of the web, which holds a few hidden positives."""
    folder = tmp_path_factory.mktemp("models")
    seed = load_documents("demo:math/in_domain", 0)["text"].to_pylist()
    texts = web["text"].to_pylist()
    rng = np.random.default_rng(0)
    general = [texts[k] for k in rng.choice(len(texts), 10 * len(seed), replace=False)]
    rated = rng.choice(len(texts), 2_000, replace=False)
    labels = list(map(demo_labels().get, web["id"].take(pa.array(rated)).to_pylist()))
    domain_report = train_domain_classifier(seed, general, folder / "domain.bin", options(dimension=16))
    frame = pd.DataFrame({"text": [texts[k] for k in rated], "label": labels})
    educational_report = train_educational_model(frame, folder / "educational.bin", options(dimension=16))
    DsirModel.fit(seed, general).save(folder / "dsir.safetensors")
    return {
        "files": ModelFiles(*(str(folder / f"{name}.safetensors") for name in ("domain", "educational", "dsir"))),
        "reports": (domain_report, educational_report),
    }


@pytest.fixture(scope="module")
def scored_web(models, tmp_path_factory):
    return score_corpus(
        "demo:math/web", models["files"], tmp_path_factory.mktemp("scores"), documents_per_shard=3_000
    )


@pytest.fixture(scope="module")
def scored(scored_web):
    return read(scored_web)


# --- normalisation ---------------------------------------------------------------------------------------------------


def test_normalised_lines_are_lower_case_tokens_with_one_space():
    assert (
        normalise_line("  Euler's\tTheorem,\n\n(1736)…of\u00a0Königsberg—Éa\x00\x7fx  ")
        == "euler ' s theorem , ( 1736 ) of königsberg éa x"
    )
    assert normalise_line("数学是 fun、カナ😀x") == "数 学 是 fun カ ナ 😀x"
    assert [normalise_line(text) for text in ("", " \n", "\x00")] == ["", "", ""]


def test_normalising_takes_the_meaning_from_words_that_fasttext_obeys():
    words = normalise_line("end </s> __label__general __LABEL__x").split()
    assert "</s>" not in words
    assert not any(word.startswith("__label__") for word in words)


def test_normalising_twice_changes_nothing_and_loses_no_letter(web):
    rng = random.Random(0)
    hostile = [
        "".join(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])) for _ in range(80))
        for _ in range(300)
    ]
    texts = hostile + web["text"].to_pylist()[:2_000]
    once = normalise(texts).to_pylist()
    assert normalise(once).to_pylist() == once
    for text, line in zip(texts, once, strict=True):
        assert re.fullmatch(r"(?:[^\s]+(?: [^\s]+)*)?", line, re.ASCII)
        assert re.findall("[a-z0-9]", line) == re.findall(
            "[a-z0-9]", pa.compute.utf8_lower(pa.array([text]))[0].as_py()
        )


# --- models ----------------------------------------------------------------------------------------------------------


def test_the_domain_report_is_of_documents_it_was_not_trained_on(models):
    report = models["reports"][0]
    numbers, curve = report.numbers, report.tables["curve"]
    assert numbers["n_held_out"] == pytest.approx(0.2 * 11 * 72, abs=2)
    assert numbers["base_rate"] == pytest.approx(1 / 11, abs=0.02)
    assert numbers["roc_auc"] > 0.9
    assert numbers["average_precision"] > 5 * numbers["base_rate"]
    assert list(curve.columns) == ["threshold", "precision", "recall"]
    assert curve["threshold"].is_monotonic_increasing
    assert curve["recall"].is_monotonic_decreasing
    assert curve["recall"].iloc[0] == 1.0
    top = {side: set(rows["ngram"]) for side, rows in report.tables["top_ngrams"].groupby("side")}
    assert "mathematics" in top["in_domain"]
    assert "mathematics" not in top["general"]


def test_a_classifier_of_noise_is_reported_as_noise(tmp_path):
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=30)) for _ in range(400)]
    report = train_domain_classifier(texts[:200], texts[200:], tmp_path / "noise.bin", options(**SMALL))
    assert 0.3 < report.numbers["roc_auc"] < 0.7


def test_training_is_deterministic_and_seeded(tmp_path, web):
    texts = web["text"].to_pylist()[:120]
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_domain_classifier(texts[:40], texts[40:], tmp_path / name, options(seed=seed, **SMALL))
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1] != files[2]


def test_labels_inside_documents_do_not_become_labels(tmp_path, web):
    texts = [
        f"__label__injected __label__general {text} </s> __label__in_domain"
        for text in web["text"].to_pylist()[:80]
    ]
    train_domain_classifier(texts[:40], texts[40:], tmp_path / "model.bin", options(**SMALL))
    assert sorted(NgramScorer.from_fasttext(tmp_path / "model.bin").labels) == [
        "__label__general",
        "__label__in_domain",
    ]


@pytest.mark.parametrize(
    ("positives", "negatives", "message"),
    [
        ([], ["b"] * 50, "20 are needed, but in_domain has 0"),
        ([f"a {k}" for k in range(50)], [], "20 are needed, but general has 0"),
        (["same"] * 50, [f"b {k}" for k in range(50)], "in_domain has 1 that are neither empty nor repeated"),
        ([f"a {k}" for k in range(19)], [f"b {k}" for k in range(50)], "in_domain has 19"),
        ([" ", "\n", ""] * 20, [f"b {k}" for k in range(50)], "in_domain has 0"),
        ([f"a {k}" for k in range(30)], [f"A  {k}" for k in range(30)], "general has 0"),
    ],
)
def test_sets_too_small_to_learn_from_are_refused(tmp_path, positives, negatives, message):
    with pytest.raises(TraitError, match=message):
        train_domain_classifier(positives, negatives, tmp_path / "model.bin", options())
    assert list(tmp_path.iterdir()) == []


def test_the_educational_model_learns_its_labels_and_is_no_domain_detector(web, models, scored):
    report = models["reports"][1]
    assert report.numbers["educational_agreement"] > report.numbers["educational_majority"] + 0.03
    assert report.numbers["educational_kappa"] > 0.2
    assert report.tables["confusion"].to_numpy().sum() == pytest.approx(400, abs=3)
    topics = np.array(part("math/web", 0)["label"].to_pylist())
    value = scored["educational"].to_numpy()
    assert value.min() >= 0
    assert value.max() <= 2
    assert value.std() > 0.2
    between = sum(
        (topics == topic).mean() * (value[topics == topic].mean() - value.mean()) ** 2 for topic in set(topics)
    )
    assert between / value.var() < 0.25  # the topic explains little of it
    labels = np.array(list(map(demo_labels().get, web["id"].to_pylist()[:3_000])))
    for topic, count in Counter(topics[:3_000]).items():
        if count >= 50:
            shares = [(labels[topics[:3_000] == topic] == label).mean() for label in LABELS]
            assert max(shares[0] / 0.35, shares[2] / 0.7) < 1, (topic, shares)


def test_the_educational_model_refuses_labels_it_cannot_learn(tmp_path):
    texts = [f"text number {k}" for k in range(60)]
    with pytest.raises(TraitError, match=r"Mid has 0 .*educational_sample"):
        train_educational_model(
            pd.DataFrame({"text": texts, "label": ["Low", "High"] * 30}), tmp_path / "e.bin", options()
        )


# --- DSIR ------------------------------------------------------------------------------------------------------------


def reference_hash(token: str) -> int:
    state = 2166136261
    for byte in token.encode():
        state = ((state ^ (byte if byte < 128 else byte + 0xFFFFFF00)) * 16777619) % 2**32
    return state if state < 2**31 else state - 2**32


def reference_buckets(text: str, buckets: int) -> list[int]:
    hashes = [reference_hash(token) for token in normalise_line(text).split()]
    pairs = [(a * 116049371 + b) % 2**64 for a, b in itertools.pairwise(hashes)]
    return [h % 2**64 % buckets for h in hashes] + [pair % buckets for pair in pairs]


def test_dsir_weights_are_the_formula_of_the_paper(web):
    texts = web["text"].to_pylist()
    seed, general, others = texts[:30], texts[30:130], [*texts[130:180], "", "Ünïcode 数学 😀"]
    buckets = 500
    logs = []
    for side in (seed, general):
        counts = np.full(buckets, 0.5)
        for text in side:
            for bucket in reference_buckets(text, buckets):
                counts[bucket] += 1
        logs.append(np.log(counts / counts.sum()))
    expected = [
        sum((logs[0] - logs[1])[bucket] for bucket in reference_buckets(text, buckets)) for text in others
    ]
    model = DsirModel.fit(seed, general, buckets=buckets, smoothing=0.5)
    np.testing.assert_allclose(model.log_weights(others), expected, rtol=1e-4, atol=1e-4)


def test_dsir_saves_whole_and_refuses_nothing_to_learn_from(tmp_path):
    model = DsirModel.fit(["a b c"], ["c d e"], buckets=50)
    path = model.save(tmp_path / "dsir.safetensors")
    loaded = DsirModel.load(path)
    np.testing.assert_array_equal(loaded.log_weights(["a", "d"]), model.log_weights(["a", "d"]))
    assert loaded.save(tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    with pytest.raises(TraitError, match="no in-domain text"):
        DsirModel.fit([" "], ["c"])
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    for name in ("bad.safetensors", "missing.safetensors"):
        with pytest.raises(TraitError, match=name):
            DsirModel.load(tmp_path / name)


# --- budgets ---------------------------------------------------------------------------------------------------------


def made_scores(lengths, **columns) -> pa.Table:
    n = len(lengths)
    given = {"domain": np.zeros(n), "educational": np.full(n, 1.5), "dsir": np.zeros(n)} | columns
    ids = {"id": [f"d{k}" for k in range(n)]}
    return tables.conform(pa.table(ids | given | {"n_tokens": lengths, "shard": np.zeros(n, int)}), "scores")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [700, 5_000, BUDGET])
def test_every_method_gets_the_budget_to_within_one_document(scored, method, budget):
    lengths = scored["n_tokens"].to_numpy()
    choice = choose(scored, method, Limits(budget, min_tokens=20, max_tokens=600), seed=3)
    following = lengths[choice.ranking[len(choice.indices)]]
    assert budget - following < lengths[choice.indices].sum() == choice.report["tokens"] <= budget
    assert len(set(choice.indices)) == len(choice.indices) == choice.report["n_out"]
    assert len(choice.ranking) == len(scored) - choice.report["dropped"]
    assert lengths[choice.indices].min() >= 20
    assert lengths[choice.indices].max() <= 600
    assert choice.report["enough"]


def test_choices_are_seeded_and_ranked_by_their_score(scored):
    for method in METHODS:
        first, again, other = (choose(scored, method, Limits(BUDGET), seed=seed).indices for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert (method in ("random", "dsir")) == (set(first) != set(other))
    choice = choose(scored, "fasttext", Limits(BUDGET))
    domain = scored["domain"].to_numpy()
    assert (np.diff(domain[choice.ranking]) <= 0).all()
    assert choice.report["threshold"] == pytest.approx(float(domain[choice.indices].min()))
    taken = choose(scored, "fasttext_educational", Limits(BUDGET, min_educational=1.2)).indices
    assert (scored["educational"].to_numpy()[taken] >= 1.2).all()


def test_equal_scores_are_not_taken_in_the_order_of_the_corpus():
    scores = made_scores(np.full(200, 10))
    assert choose(scores, "fasttext", Limits(1_000)).indices.mean() == pytest.approx(99.5, abs=25)
    assert set(choose(scores, "fasttext", Limits(1_000), seed=0).indices) != set(
        choose(scores, "fasttext", Limits(1_000), seed=1).indices
    )


def test_dsir_samples_in_proportion_to_the_importance_weights():
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    scores = made_scores(np.full(4, 10), dsir=np.log(shares))
    drawn = (
        np.bincount(
            [choose(scores, "dsir", Limits(10), seed=seed).indices[0] for seed in range(600)], minlength=4
        )
        / 600
    )
    np.testing.assert_allclose(drawn, shares, atol=0.06)  # three standard errors


def test_a_corpus_smaller_than_the_budget_is_taken_whole_and_the_report_says_so():
    choice = choose(made_scores([10, 20, 30]), "random", Limits(1_000))
    assert sorted(choice.indices) == [0, 1, 2]
    assert choice.report["tokens"] == 60
    assert choice.report["enough"] is False
    assert choose(made_scores([10, 20, 30]), "random", Limits(60)).report["enough"] is True


def test_a_number_of_documents_and_a_threshold_limit_as_a_budget_does(scored):
    domain, kept = scored["domain"].to_numpy(), scored["n_tokens"].to_numpy() >= 50
    share = choose(scored, "fasttext", Limits(documents=round(0.02 * len(scored)), min_tokens=50))
    assert len(share.indices) == round(0.02 * len(scored))
    assert domain[share.indices].min() >= np.sort(domain[kept])[-len(share.indices)]
    above = choose(scored, "fasttext", Limits(threshold=0.7, min_tokens=50))
    assert set(above.indices) == set(np.flatnonzero(kept & (domain >= np.float32(0.7))))
    exactly = choose(scored, "fasttext", Limits(threshold=float(domain[above.indices[4]])))
    assert domain[exactly.indices].min() == domain[above.indices[4]]
    assert share.report["enough"] and above.report["enough"]
    everything = choose(scored, "random", Limits(documents=len(scored)))
    assert len(everything.indices) == len(scored) and everything.report["enough"]


@pytest.mark.parametrize(
    "limit",
    [{}, {"tokens": 5, "documents": 1}, {"documents": 1, "threshold": 0.0}, {"tokens": -5}, {"documents": -1}],
)
def test_a_limit_is_one_positive_number(limit):
    with pytest.raises(TraitError, match="in one way"):
        Limits(**limit)


@pytest.mark.parametrize(
    ("lengths", "method", "limit", "filters", "message"),
    [
        ([10, 10], "fastext", 100, {}, "Unknown method 'fastext'; known: random, dsir, fasttext"),
        (
            [10, 10],
            "random",
            100,
            {"min_tokens": 11},
            "none of 2 documents can be selected \\(2 fewer than min_tokens",
        ),
        ([10, 10], "fasttext_educational", 100, {"min_educational": 1.6}, "2 below min_educational"),
        ([200, 300], "fasttext", 100, {}, "first document has [23]00 tokens"),
        ([10, 10], "fasttext", 0, {"threshold": 0.5}, "nothing fits .* the score 0"),
        ([], "random", 100, {}, "none of 0 documents"),
    ],
)
def test_choices_that_cannot_be_made_say_why(lengths, method, limit, filters, message):
    with pytest.raises(TraitError, match=message):
        choose(made_scores(np.array(lengths, int)), method, Limits(limit, **filters))


def test_a_method_without_its_score_is_refused():
    scores = made_scores([10, 10], dsir=pa.nulls(2, pa.float32()))
    with pytest.raises(TraitError, match="'dsir' needs the score 'dsir'"):
        choose(scores, "dsir", Limits(10))
    assert len(choose(scores, "fasttext", Limits(20)).indices) == 2


# --- ranks -----------------------------------------------------------------------------------------------------------


def test_a_rank_depends_on_a_document_alone(scored):
    rows = np.random.default_rng(0).permutation(len(scored))[:500]
    for method in METHODS:
        place, order = np.empty(len(scored), int), best_first(scored, method, 7)
        place[order] = np.arange(len(order))
        some = best_first(scored.take(pa.array(rows)), method, 7)
        np.testing.assert_array_equal(
            rows[some], rows[np.argsort(place[rows])]
        )  # whatever the order and the company
        assert (np.diff(rank_values(scored, method, 7)[order]) <= 0).all()
        assert method not in ("random", "dsir") or (best_first(scored, method, 8) != order).any()


def test_equal_values_are_ordered_by_noise():
    scores = made_scores(np.full(200, 10), domain=np.repeat([0.0, 1.0], 100))
    first, second = (best_first(scores, "fasttext", seed) for seed in (0, 1))
    assert set(first[:100]) == set(second[:100]) == set(range(100, 200))
    assert (first != second).any() and first[:100].tolist() != sorted(first[:100])


@pytest.mark.parametrize("case", range(20))
def test_the_cut_takes_the_budget_and_at_most_a_step_more(case):
    rng = np.random.default_rng(case)
    n = int(rng.integers(1, 4_000))
    values = (
        rng.normal(size=n) if case % 3 else rng.choice([0.0, 1.0, 0.5], n)
    )  # saturated scores: ties by the thousand
    values = values.astype(np.float32)
    weights = rng.integers(1, 3 if case % 2 else 5_000, n)
    total = int(weights.sum())
    budget = [1, int(rng.integers(1, total + 1)), total, total + 1, int(weights[np.argmax(values)])][case % 5]
    places = np.sort(rng.integers(0, n, 5))
    cut = cut_value(zip(np.split(values, places), np.split(weights, places), strict=True), budget)
    taken = int(weights[values >= np.float32(cut)].sum())
    if total < budget:
        assert cut == EVERYTHING and taken == total
    else:
        assert int(weights[values >= cut + 1.01e-4].sum()) < budget <= taken


def test_the_cut_of_nothing_is_below_everything():
    nothing = np.empty(0, np.float32)
    assert cut_value([], 5) == cut_value([(nothing, nothing)], 0) == EVERYTHING


def test_finding_the_cut_takes_little_memory():
    def batches():
        for seed in range(40):
            yield np.random.default_rng(seed).random(20_000, np.float32), np.ones(20_000)

    tracemalloc.start()
    cut = cut_value(batches(), 1_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 1_000 <= sum((values >= np.float32(cut)).sum() for values, _ in batches()) <= 1_200
    assert peak < 3e6  # the values are 3.2e6 bytes, of which 0.08e6 at a time


# --- scoring, writing, judging -----------------------------------------------------------------------------------------


def test_fasttext_finds_the_hidden_articles_twenty_times_better_than_chance(scored_web, tmp_path):
    limits = Limits(BUDGET, min_tokens=20, max_tokens=4_096)
    selected = select(scored_web, tmp_path, METHODS, limits, base_model="demo:smollm2-135m")
    found = quality(replace(selected, truth=on_topic("demo:math/web", 0))).set_index("method")
    assert found["base_rate"].tolist() == pytest.approx([0.0177] * 4, abs=0.0005)
    assert found["lift"]["fasttext"] >= 20
    assert found["lift"][["fasttext_educational", "dsir"]].min() > 10
    assert found["lift"]["random"] < 5


def test_scores_are_those_of_the_models_in_the_documents_order(web, models, scored):
    assert scored.schema.equals(tables.SCHEMAS["scores"])
    assert scored["id"].to_pylist() == web["id"].to_pylist()
    assert scored["shard"].to_pylist() == [k // 3_000 for k in range(len(web))]
    texts, files = web["text"].to_pylist(), models["files"]
    domain, educational = NgramScorer.load(files.domain), NgramScorer.load(files.educational)
    np.testing.assert_array_equal(
        scored["domain"].to_numpy(), domain.probabilities(texts)[:, domain.column("in_domain")]
    )
    parts = educational.probabilities(texts)
    expected = 2 * parts[:, educational.column("High")] + parts[:, educational.column("Mid")]
    np.testing.assert_allclose(scored["educational"].to_numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(scored["dsir"].to_numpy(), DsirModel.load(files.dsir).log_weights(texts))
    assert scored["n_tokens"].to_pylist() == [-(-len(text.encode()) // 4) for text in texts]


def test_models_that_are_not_given_leave_nulls(models, tmp_path):
    write_corpus(tmp_path / "c.parquet", ["Ünïcode", "four", "a longer text"] * 10)
    scores = read(score_corpus(str(tmp_path / "c.parquet"), ModelFiles(models["files"].domain), tmp_path / "s"))
    assert scores["dsir"].null_count == scores["educational"].null_count == len(scores) > 0


def write_corpus(path: Path, texts: list[str], rows_per_group: int = 30) -> None:
    table = pa.table({"id": [f"d{k}" for k in range(len(texts))], "text": texts})
    pq.write_table(table, path, row_group_size=rows_per_group)


def test_only_missing_damaged_or_changed_shards_are_scored_again(web, models, tmp_path):
    """Also where a file is replaced while the process that opened it lives on."""
    folder, given, texts = tmp_path / "scores", models["files"], web["text"].to_pylist()[:100]
    for name in ("domain", "dsir"):
        (tmp_path / f"{name}.safetensors").write_bytes(Path(getattr(given, name)).read_bytes())
    files = ModelFiles(
        str(tmp_path / "domain.safetensors"), given.educational, str(tmp_path / "dsir.safetensors")
    )
    write_corpus(tmp_path / "c.parquet", texts)

    def score(size=30, **changes):
        """(scores, shards computed)"""
        before = {path: path.stat().st_mtime_ns for path in folder.glob("scores-*")}
        settings = ModelFiles(**{**vars(files), **changes})
        scored = score_corpus(str(tmp_path / "c.parquet"), settings, folder, documents_per_shard=size)
        return read(scored), sum(before.get(path) != path.stat().st_mtime_ns for path in folder.glob("scores-*"))

    first, computed = score()
    assert computed == 4
    assert len(list(folder.glob("*.parquet"))) == 8
    again, computed = score()
    assert computed == 0
    assert again.equals(first)
    (folder / "scores-00001.parquet").unlink()
    (folder / "scores-00002.parquet").write_bytes(b"PAR1 cut short")
    (folder / "rejected-00003.parquet").unlink()
    again, computed = score()
    assert computed == 3
    assert again.equals(first)
    again, computed = score(dsir="")
    assert computed == 4
    assert again["dsir"].null_count == len(first)
    again, computed = score()
    assert computed == 4
    assert again.equals(first)
    DsirModel.fit(["a b"], ["c d"]).save(files.dsir)
    again, computed = score()
    assert computed == 4
    assert not again["dsir"].equals(first["dsir"])
    assert again["domain"].equals(first["domain"])
    write_corpus(tmp_path / "c.parquet", [*texts[:99], texts[99] + "!"])
    assert score()[1] == 4  # a file is known by its size and time, not by its rows
    assert score(size=60)[1] == 2
    assert sorted(path.name for path in folder.glob("*.parquet")) == [
        f"{kind}-{number:05d}.parquet" for kind in ("rejected", "scores") for number in (0, 1)
    ]


def test_a_scoring_that_dies_leaves_finished_shards_only(web, models, tmp_path, monkeypatch):
    write_corpus(tmp_path / "c.parquet", web["text"].to_pylist()[:90])
    arguments = str(tmp_path / "c.parquet"), models["files"], tmp_path / "scores"
    real, calls = scoring.score_texts, itertools.count()

    def dying(*given):
        if next(calls):
            raise MemoryError("killed")
        return real(*given)

    monkeypatch.setattr(scoring, "score_texts", dying)
    with pytest.raises(TraitError, match="shard 1: MemoryError: killed"):
        score_corpus(*arguments, documents_per_shard=30)
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == [
        "job.json", "rejected-00000.parquet", "scores-00000.parquet",
    ]  # fmt: skip
    monkeypatch.setattr(scoring, "score_texts", real)
    written = (tmp_path / "scores" / "scores-00000.parquet").stat().st_mtime_ns
    resumed = read(score_corpus(*arguments, documents_per_shard=30))
    assert (tmp_path / "scores" / "scores-00000.parquet").stat().st_mtime_ns == written
    assert resumed.equals(read(score_corpus(*arguments[:2], tmp_path / "at once", documents_per_shard=30)))


def test_a_corpus_without_documents_is_refused(models, tmp_path):
    write_corpus(tmp_path / "c.parquet", [" ", ""])
    with pytest.raises(TraitError, match=r"2 of 2 web documents .*c\.parquet: no text"):
        score_corpus(str(tmp_path / "c.parquet"), models["files"], tmp_path / "scores")
    with pytest.raises(TraitError, match="no documents to score"):
        score_corpus(str(tmp_path / "c.parquet"), models["files"], tmp_path / "scores", max_quarantined=1.0)


@pytest.mark.parametrize("method", METHODS)
def test_what_the_explorer_cuts_off_is_what_that_budget_selects(method, web, scored_web, tmp_path):
    held = web["text"].take(pa.array(range(0, len(web), 7)))  # so that some candidates are not clean
    own = select(scored_web, tmp_path / "own", [method], Limits(tokens=6_000), held_out=held)
    texts = dict(zip(web["id"].to_pylist(), web["text"].to_pylist(), strict=True))
    ranked = cuts.ranking(own, method)
    for budget in (2_000, 6_000):
        selected = select(scored_web, tmp_path / str(budget), [method], Limits(tokens=budget), held_out=held)
        report, found = selected.methods[method], cuts.cut(ranked, budget)
        assert set(ranked["id"].head(report["n_out"])) == set(selected.chosen(method)["id"].to_pylist())
        assert (found["documents"], found["tokens"]) == (report["n_out"], report["tokens"])
        assert found["threshold"] == report["threshold"]
        beside = cuts.around(own, method, ranked, budget)
        assert beside["text"].tolist() == [texts[name] for name in beside["id"]]
        assert beside["taken"].tolist() == [True] * 3 + [False] * 3
        assert beside["rank"].tolist() == list(range(report["n_out"] - 2, report["n_out"] + 4))
    assert cuts.cut(ranked, 0)["documents"] == 0
    assert cuts.cut(ranked, 10**6)["left"] == 0


def test_where_the_best_documents_are_known_the_next_are_taken(web, scored_web, tmp_path):
    best = cuts.ranking(select(scored_web, tmp_path / "a", ["dsir"], Limits(tokens=9_000)), "dsir")["id"]
    texts = dict(zip(web["id"].to_pylist(), web["text"].to_pylist(), strict=True))
    known = [texts[name] for name in best]
    found = select(scored_web, tmp_path / "b", ["dsir"], Limits(tokens=2_000), in_domain=known)
    assert found.methods["dsir"]["n_out"] and not {*best} & {*found.chosen("dsir")["id"].to_pylist()}


@pytest.mark.parametrize(
    ("topic", "expected"), [("x", [2, 0.5, 0.5, 0.25, 2.0]), ("z", [2, 0.0, None, 0.0, None])]
)
def test_quality_counts_against_the_whole_corpus(topic, expected):
    truth = {name: label == topic for name, label in zip("abcdefgh", "xxyyyyyy", strict=True)}
    selected = SimpleNamespace(methods=["dsir"], chosen=lambda _: pa.table({"id": ["a", "c"]}), truth=truth)
    found = quality(selected).drop(columns="method").astype(object)
    assert found.where(found.notna(), None).iloc[0].tolist() == expected
    assert len(quality(SimpleNamespace(truth=None))) == 0


def test_tokens_are_counted_as_the_base_model_sees_them(web):
    from transformers import AutoTokenizer

    texts = ["", " ", "😀 数学 \x00", "a" * 20_000, "<|im_start|>user", *web["text"].to_pylist()[:50]]
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    expected = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    counter = token_counter(str(FOLDER))
    assert counter(texts).tolist() == expected
    assert counter([]).tolist() == []


def test_a_base_model_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(TraitError, match="holds no weights as safetensors"):
        token_counter(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(TraitError, match=r"base_model: .* could not be loaded"):
        token_counter(str(tmp_path))
