"""From scored files to a selection: the same as sorting, filtering and cutting in memory, and clean."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_random import FOLDER

from trait_kit import tables
from trait_kit.cli import main
from trait_kit.engine.files import TraitError, content
from trait_kit.engine.scorer import NgramScorer
from trait_kit.models import token_counter
from trait_kit.params import ClassifierParams, SelectionParams
from trait_kit.selection.budget import METHODS, Limits, best_first, rank_values
from trait_kit.selection.choosing import Selected, filter_web, funnel, sample_scores, select, summary
from trait_kit.selection.classifier import train_classifiers, train_domain_classifier, train_educational_model
from trait_kit.selection.documents import read_shard
from trait_kit.selection.dsir import DsirModel
from trait_kit.selection.scoring import ModelFiles, Scoring, read_shards, score_corpus

BASE = str(FOLDER)
DOMAIN = ["theorem", "proof", "lemma", "algebra", "integral", "derivative", "matrix", "vector", "prime", "number"]
GENERAL = [
    "market",
    "river",
    "football",
    "cooking",
    "holiday",
    "engine",
    "garden",
    "music",
    "weather",
    "election",
]
limits = functools.partial(Limits, min_tokens=20, max_tokens=200, min_educational=1.0)
FILTERS = limits(documents=10**6)
QUESTION = (
    "A train leaves the station at nine and travels eighty miles an hour for three hours. How far does it go?"
)


def text_of(generator: random.Random, share: float, words: int) -> str:
    """Words of which about this share are the domain's, each followed by a number, so that no two texts are alike."""
    pick = (generator.choice(DOMAIN if generator.random() < share else GENERAL) for _ in range(words))
    return " ".join(f"{word} {generator.randrange(10**5)}" for word in pick)


@functools.cache
def documents(n: int = 400) -> list[dict[str, str]]:
    """The same in every run; one in ten is about the domain."""
    generator = random.Random(0)
    shares = [
        generator.choice([0.5, 0.9]) if k % 10 == 0 else generator.choice([0.0, 0.1, 0.3]) for k in range(n)
    ]
    return [
        {"id": f"d{k}", "text": text_of(generator, share, generator.randrange(3, 40))}
        for k, share in enumerate(shares)
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> ModelFiles:
    folder = tmp_path_factory.mktemp("models")
    generator = random.Random(1)
    inside, outside = ([text_of(generator, share, 30) for _ in range(60)] for share in (1.0, 0.1))
    small = ClassifierParams.model_construct(dimension=8, epochs=20, buckets=2_000)
    train_domain_classifier(inside, outside, folder / "domain.bin", small)
    mixed = [text_of(generator, share, words) for share in (0.0, 1.0) for words in (5, 20, 40) for _ in range(20)]
    labels = [label for _ in range(2) for label in ("Low", "Mid", "High") for _ in range(20)]
    train_educational_model(pd.DataFrame({"text": mixed, "label": labels}), folder / "educational.bin", small)
    DsirModel.fit(inside, outside, buckets=1_000).save(folder / "dsir.safetensors")
    return ModelFiles(*(str(folder / f"{name}.safetensors") for name in ("domain", "educational", "dsir")))


def write(
    folder: Path, records: list[dict[str, str]], kinds: tuple[str, ...] = ("parquet", "jsonl.gz", "jsonl")
) -> str:
    """One file of each kind, with an equal part of the records, in their order; the spec of them all."""
    folder.mkdir(exist_ok=True)
    for number, (kind, rows) in enumerate(
        zip(kinds, np.array_split(np.arange(len(records)), len(kinds)), strict=True)
    ):
        path, part = folder / f"{number}.{kind}", [records[row] for row in rows]
        lines = "".join(json.dumps(record) + "\n" for record in part).encode()
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(part), path, row_group_size=40)
        else:
            path.write_bytes(gzip.compress(lines) if kind.endswith("gz") else lines)
    return str(folder / "*")


def read(scoring: Scoring) -> pa.Table:
    """All scores, with exact numbers of tokens."""
    table = pa.concat_tables(scoring.batches()).combine_chunks()
    parts = [part for shard in scoring.shards for part in read_shard(shard)]
    counts = token_counter(BASE)([text for part in parts for text in part.documents["text"].to_pylist()])
    return table.set_column(table.column_names.index("n_tokens"), "n_tokens", pa.array(counts, pa.int32()))


def reference(
    scores: pa.Table,
    method: str,
    limit: Limits,
    unusable: set[str] = frozenset(),
    groups: dict[str, str] | None = None,
) -> list[str]:
    """Ids, best first: sort, filter, leave out, keep the best of each group, cut. All in memory, a document at a time."""
    order, values, rows = best_first(scores, method, 0), rank_values(scores, method, 0), scores.to_pylist()
    chosen, tokens, seen = [], 0, set()
    for value, row in ((values[place], rows[place]) for place in order):
        group = (groups or {}).get(row["id"], row["id"])
        if (
            not FILTERS.min_tokens <= row["n_tokens"] <= FILTERS.max_tokens
            or row["id"] in unusable
            or group in seen
        ):
            continue
        if method == "fasttext_educational" and row["educational"] < FILTERS.min_educational:
            continue
        seen.add(group)
        tokens += row["n_tokens"]
        if tokens > (limit.tokens or tokens) or len(chosen) == (limit.documents or -1):
            break
        if limit.threshold is not None and value < np.float32(limit.threshold):
            break
        chosen.append(row["id"])
    return chosen


def chosen_ids(selected, method: str) -> set[str]:
    ids = selected.chosen(method)["id"].to_pylist()
    assert len(ids) == len(set(ids)) == selected.methods[method]["n_out"]
    return set(ids)


@pytest.mark.parametrize(
    ("limit", "methods"),
    [
        (limits(tokens=3_000), METHODS),
        (limits(tokens=60_000), ("dsir", "random")),
        (limits(documents=20), METHODS),
        (limits(documents=350), ("fasttext", "random")),
        (limits(threshold=0.6), ("fasttext", "fasttext_educational")),
    ],
)
def test_a_selection_is_what_sorting_and_cutting_in_memory_gives(files, tmp_path, limit, methods):
    scoring = score_corpus(
        write(tmp_path / "web", documents()), files, tmp_path / "scores", documents_per_shard=50
    )
    selected = select(scoring, tmp_path, methods, limit, base_model=BASE)
    texts = {record["id"]: record["text"] for record in documents()}
    scores = read(scoring)
    in_corpus_order = {name: row for row, name in enumerate(scores["id"].to_pylist())}
    assert len(scoring.shards) >= 5
    for method in methods:
        expected = reference(scores, method, limit)
        assert expected
        assert chosen_ids(selected, method) == set(expected)
        written = tables.read(tmp_path / f"{method}.parquet", "selection")
        assert written["id"].to_pylist() == sorted(expected, key=in_corpus_order.__getitem__)
        assert written["text"].to_pylist() == [texts[name] for name in written["id"].to_pylist()]
        assert set(written["method"].to_pylist()) == {method}
        rows = scores.take(pa.array([in_corpus_order[name] for name in written["id"].to_pylist()]))
        assert written.select(scores.column_names).equals(rows.combine_chunks())


def test_test_questions_are_out_and_the_evidence_is_kept(files, tmp_path):
    records = [dict(record) for record in documents()]
    best = reference(read(scored(files, tmp_path, records)), "fasttext", limits(tokens=3_000))
    planted = {
        best[0]: QUESTION,
        best[3]: QUESTION.upper().replace(" ", "\n"),
        best[5]: "far does it go? A train leaves",
    }
    for record in records:
        record["text"] += " " + planted.get(record["id"], "")
    scoring = scored(files, tmp_path, records)
    limit = limits(tokens=3_000)
    questions = ["Who wrote the well-known novel that everybody has on the shelf and nobody has read?", QUESTION]
    selected = select(scoring, tmp_path, ["fasttext"], limit, base_model=BASE, tested=asked(*questions))
    out = {best[0], best[3]}
    assert chosen_ids(selected, "fasttext") == set(reference(read(scoring), "fasttext", limit, out))
    evidence = pq.read_table(tmp_path / "contaminated.parquet").to_pylist()
    found = {(row["id"], row["question_task"], row["question_id"], row["kind"]) for row in evidence}
    assert found == {(name, "riddles", "q1", "exact") for name in out}
    assert all("eighty miles an hour" in row["excerpt"] for row in evidence)
    assert selected.methods["fasttext"]["dropped"]["holds a test item"] == 2
    clean = select(scoring, tmp_path, ["fasttext"], limit, base_model=BASE, tested=asked(*questions[:1]))
    assert best[0] in chosen_ids(clean, "fasttext")  # other questions, in the same folder


def asked(*questions: str) -> pd.DataFrame:
    names = [f"q{k}" for k in range(len(questions))]
    return pd.DataFrame({"question_task": "riddles", "question_id": names, "part": "question", "text": questions})


def scored(files: ModelFiles, folder: Path, records: list[dict[str, str]]):
    return score_corpus(write(folder / "web", records), files, folder / "scores", documents_per_shard=50)


def near(text: str, copy: int) -> str:
    return f"{text} ({copy})"


def test_of_near_duplicates_each_method_keeps_the_one_it_ranks_best(files, tmp_path):
    """Groups of five, all over the corpus; the methods disagree on which is best."""
    originals = [record for record in documents() if len(record["text"].split()) > 40][:40]
    copies = [
        {"id": f"{record['id']}-{k}", "text": near(record["text"], k)} for k in range(4) for record in originals
    ]
    groups = {record["id"]: record["id"].split("-")[0] for record in copies}
    records = [*documents(), *copies]
    random.Random(2).shuffle(records)
    scoring, limit = scored(files, tmp_path, records), limits(tokens=20_000)
    selected = select(scoring, tmp_path, METHODS, limit, base_model=BASE)
    kept = {}
    for method in METHODS:
        kept[method] = chosen_ids(selected, method)
        assert kept[method] == set(reference(read(scoring), method, limit, groups=groups))
        assert any(name in groups for name in kept[method])
    first = {groups.get(name, name): name for name in kept["random"]}
    assert any(
        first.get(groups.get(name, name), name) != name for name in kept["dsir"]
    )  # another one of the same group
    evidence = pq.read_table(tmp_path / "near_duplicates.parquet").to_pylist()
    assert evidence
    assert all(groups.get(row["id"], row["id"]) == groups.get(row["of"], row["of"]) for row in evidence)
    everything = select(scoring, tmp_path, ["fasttext"], limit, base_model=BASE, near_duplicate=0)
    assert chosen_ids(everything, "fasttext") == set(reference(read(scoring), "fasttext", limit))


def test_copies_of_in_domain_documents_are_out(files, tmp_path):
    scoring, limit = scored(files, tmp_path, documents()), limits(tokens=3_000)
    best = reference(read(scoring), "fasttext", limit)
    texts = {record["id"]: record["text"] for record in documents()}
    longest = sorted(best, key=lambda name: len(texts[name]))[-2:]
    seed = [texts[longest[0]], near(texts[longest[1]].upper(), 7), "something else entirely"]
    selected = select(scoring, tmp_path, ["fasttext"], limit, base_model=BASE, in_domain=seed)
    assert chosen_ids(selected, "fasttext") == set(reference(read(scoring), "fasttext", limit, set(longest)))
    assert pq.read_table(tmp_path / "near_duplicates.parquet").to_pylist() == [
        {"id": name, "of": "the in-domain seed", "method": "fasttext"}
        for name in read(scoring)["id"].to_pylist()
        if name in longest
    ]


def test_the_budget_is_filled_though_most_of_the_best_are_copies(files, tmp_path):
    """The first candidates, 1.5 times the budget, are copies of one document: twice as many are asked for, and again."""
    best = max(documents(), key=lambda record: record["text"].count("theorem") + record["text"].count("proof"))
    text = (
        " ".join(word for word in best["text"].split() if not word.isdigit() and word in DOMAIN)
        + " theorem proof" * 9
    )
    records = [*documents(), *({"id": f"copy{k}", "text": text} for k in range(300))]
    groups = {f"copy{k}": "copy" for k in range(300)}
    scoring, limit = scored(files, tmp_path, records), limits(tokens=3_000)
    ranking = reference(read(scoring), "fasttext", limits(tokens=6_000))
    assert all(name in groups for name in ranking[:30])
    for method in ("fasttext", "dsir"):  # each alone and both together
        selected = select(scoring, tmp_path, [method], limit, base_model=BASE)
        assert chosen_ids(selected, method) == set(reference(read(scoring), method, limit, groups=groups))
        assert selected.methods[method]["enough"]
        candidates = read_shards(tmp_path / "candidates" / method, "candidates", len(scoring.shards))
        assert len(candidates) < len(read(scoring))
    both = select(scoring, tmp_path, ["fasttext", "dsir"], limit, base_model=BASE)
    assert chosen_ids(both, "dsir") == chosen_ids(selected, "dsir")


def test_more_than_the_corpus_holds_is_all_that_is_usable(files, tmp_path):
    scoring, limit = scored(files, tmp_path, documents()), limits(tokens=10**9)
    selected = select(scoring, tmp_path, ["fasttext"], limit, base_model=BASE)
    assert chosen_ids(selected, "fasttext") == set(reference(read(scoring), "fasttext", limit))
    assert selected.methods["fasttext"]["enough"] is False


@pytest.mark.parametrize("bytes_per_token", [2.2, 0.6, 8.0])  # the right rate, and two that are far from it
def test_estimated_tokens_steer_and_exact_ones_decide(files, tmp_path, monkeypatch, bytes_per_token):
    monkeypatch.setattr("trait_kit.selection.scoring._BYTES_PER_TOKEN", bytes_per_token)
    limit, estimated = limits(tokens=3_000), scored(files, tmp_path, documents())
    exact = read(estimated)
    lengths = dict(zip(exact["id"].to_pylist(), exact["n_tokens"].to_pylist(), strict=True))
    assert pa.concat_tables(estimated.batches())["n_tokens"].to_pylist() != list(lengths.values())
    selected = select(estimated, tmp_path, METHODS, limit, base_model=BASE)
    for method in METHODS:
        chosen = chosen_ids(selected, method)
        assert chosen == set(reference(exact, method, limit))
        written = selected.chosen(method)
        assert written["n_tokens"].to_pylist() == [lengths[name] for name in written["id"].to_pylist()]
        assert selected.methods[method]["tokens"] == sum(lengths[name] for name in chosen) <= limit.tokens


def test_an_id_in_two_files_is_one_document_where_its_text_is_the_same(files, tmp_path):
    records = [dict(record) for record in documents()]
    best = reference(read(scored(files, tmp_path, records)), "fasttext", limits(tokens=3_000))
    best = [name for name in best if int(name[1:]) < 200][:6]
    texts = {record["id"]: record["text"] for record in records}
    again = [{"id": name, "text": texts[name] + " theorem" * (k % 2)} for k, name in enumerate(best)]
    scoring = scored(files, tmp_path, records + again)  # at the end of the last file
    selected = select(
        scoring, tmp_path / "out", METHODS, limits(tokens=20_000), base_model=BASE, near_duplicate=0
    )
    for method in METHODS:
        written = tables.read(tmp_path / "out" / f"{method}.parquet", "selection").to_pylist()
        assert len({(row["id"], row["text"]) for row in written}) == len(written)
    written = tables.read(tmp_path / "out" / "fasttext.parquet", "selection").to_pylist()
    assert sum(row["id"] in best for row in written) == 9
    assert selected.methods["fasttext"]["dropped"]["id seen before"] == 3


def test_the_funnel_accounts_for_every_document(files, tmp_path):
    """Each reason against a count of its own, for methods whose candidates overlap."""
    records = [dict(record) for record in documents()]
    for record in records[::50]:
        record["text"] += " " + QUESTION
    records += [{"id": f"copy{k}", "text": near(records[k]["text"], 1)} for k in range(1, 100, 7)]
    scoring = scored(files, tmp_path, [*records, {"id": "nothing", "text": " "}])
    limit = limits(tokens=10**9)  # no cut: what is not chosen has a reason
    selected = select(scoring, tmp_path, METHODS, limit, base_model=BASE, tested=asked(QUESTION))
    table = funnel(selected).set_index("method")
    scores = read(scoring)
    lengths, value = scores["n_tokens"].to_numpy(), scores["educational"].to_numpy()
    estimates = pa.concat_tables(scoring.batches())["n_tokens"].to_numpy()
    questions = np.array(
        [name in {"copy50", *(f"d{k}" for k in range(0, 400, 50))} for name in scores["id"].to_pylist()]
    )
    refused = [
        4 * estimates < FILTERS.min_tokens,
        estimates > 4 * FILTERS.max_tokens,
    ]  # by far, before they are candidates
    assert questions.any()
    for method in METHODS:
        row = table.loc[method]
        dull = (value < FILTERS.min_educational) & ~refused[0] & ~refused[1] & (method == "fasttext_educational")
        held = questions & ~dull & ~refused[0] & ~refused[1]
        short, long = ((lengths < FILTERS.min_tokens), (lengths > FILTERS.max_tokens)) & ~dull & ~held
        assert long.any() and (short.any() or method == "fasttext_educational")
        assert row["n_in"] == len(scores) + 1 + row["held out"]
        assert row["held out"] == scoring.held_out == len(records) - len(scores) > 0
        assert row["unreadable"] == 1
        assert row["fewer than min_tokens"] == short.sum()
        assert row["more than max_tokens"] == long.sum()
        assert row["below min_educational"] == dull.sum()
        assert row["holds a test item"] == held.sum()
        assert row["beyond the budget"] == 0
        assert row["near-duplicate of a better one"] == (~(short | long | dull | held)).sum() - row["n_out"]
    cut = select(scoring, tmp_path, METHODS, limits(tokens=3_000), base_model=BASE, tested=asked(QUESTION))
    for method, row in funnel(cut).set_index("method").iterrows():
        assert row["below min_educational"] == table.loc[method, "below min_educational"]
        assert row["beyond the budget"] > 0
        reasons = row.drop(["n_in", "tokens", "threshold"])
        assert reasons.sum() == row["n_in"]
        assert (reasons >= 0).all()


@pytest.mark.parametrize("change", ["other ids", "fewer documents"])
def test_a_file_that_changed_after_scoring_is_refused(files, tmp_path, change):
    scoring = scored(files, tmp_path, documents())
    changed = {
        "other ids": [{**record, "id": record["id"] + "x"} for record in documents()],
        "fewer documents": documents()[:9],
    }[change]
    write(tmp_path / "web", changed)
    with pytest.raises(TraitError, match=r"[Ss]core it again"):
        select(scoring, tmp_path, ["fasttext"], limits(tokens=3_000), base_model=BASE)
    again = scored(files, tmp_path, changed)
    assert (
        select(again, tmp_path, ["random"], Limits(documents=20), base_model=BASE).methods["random"]["n_out"] > 0
    )


def test_another_budget_does_not_score_again(files, tmp_path):
    scoring = scored(files, tmp_path, documents())
    stamps = {path: path.stat().st_mtime_ns for path in scoring.folder.iterdir()}
    sizes = []
    for tokens in (1_000, 20_000, 1_000):
        selected = select(scoring, tmp_path, METHODS, limits(tokens=tokens), base_model=BASE)
        assert [chosen_ids(selected, method) for method in METHODS] == [
            set(reference(read(scoring), method, limits(tokens=tokens))) for method in METHODS
        ]
        sizes.append((tmp_path / "fasttext.parquet").read_bytes())
    assert sizes[0] == sizes[2] != sizes[1]
    assert {path: path.stat().st_mtime_ns for path in scoring.folder.iterdir()} == stamps


def test_texts_survive_byte_for_byte(files, tmp_path):
    strange = [
        "数学的定理与证明。" * 9,
        "نظرية فيثاغورس والبرهان " * 9,
        "😀👩‍🔬 theorem " * 9,
        "a\x00b\r\n\ttheorem\u2028 " * 9,
    ]
    records = [
        {"id": f"{name}-{kind}", "text": f"{name} {text}"}
        for kind, text in enumerate(strange)
        for name in "abcdefgh"
    ]
    random.Random(0).shuffle(records)
    scoring = score_corpus(write(tmp_path / "web", records), files, tmp_path / "scores")
    select(scoring, tmp_path, ["random"], Limits(documents=10**6), base_model=BASE, near_duplicate=0)
    written = tables.read(tmp_path / "random.parquet", "selection").to_pylist()
    assert {row["id"][-1] for row in written} == set("0123")
    texts = {record["id"]: record["text"] for record in records}
    assert all(row["text"].encode() == texts[row["id"]].encode() for row in written)


def test_a_fasttext_file_is_folded_once_and_scored(files, tmp_path):
    given = ModelFiles(files.domain.replace(".safetensors", ".bin"))
    scores = read(score_corpus(write(tmp_path / "web", documents()), given, tmp_path / "scores"))
    folded, texts = NgramScorer.load(tmp_path / "scores" / f"{content(given.domain)[:20]}.safetensors"), {}
    texts = {record["id"]: record["text"] for record in documents()}
    expected = NgramScorer.from_fasttext(given.domain).probabilities(
        [texts[name] for name in scores["id"].to_pylist()]
    )
    np.testing.assert_array_equal(scores["domain"].to_numpy(), expected[:, folded.column("in_domain")])


# --- the stages of notebooks 01 and 02


@dataclass
class Step:
    """What the stages know of a step."""

    name: str
    experiment: SimpleNamespace
    run_dir: Path
    done: bool = False

    @property
    def params(self):
        return self.experiment.classifier if self.name == "01_domain_classifier" else self.experiment.selection

    @property
    def folder(self) -> Path:
        return self.run_dir / self.name

    def path(self, *parts: str) -> Path:
        return self.folder / parts[0] if len(parts) == 1 else self.run_dir.joinpath(*parts)


def both_steps(folder: Path, methods: list[str], **changes) -> tuple[Step, Step]:
    generator = random.Random(1)
    seed = [{"id": f"s{k}", "text": text_of(generator, 1.0, 30)} for k in range(60)]
    common = {"in_domain": write(folder / "seed", seed, ("jsonl",)), "web": write(folder / "web", documents())}
    common |= {"tasks": ["word_problems"], "test_items_per_task": 5, "base_model": BASE}
    small = {
        "negatives_per_positive": 5,
        "dimension": 8,
        "epochs": 10,
        "buckets": 2_000,
        "educational_sample": 300,
    }
    chosen = {"token_budget": 3_000, "methods": methods, "max_tokens": 200, "documents_per_shard": 50, **changes}
    sections = {
        "classifier": ClassifierParams(**common, **small),
        "selection": SelectionParams(**common, **chosen),
    }
    steps = [
        Step(name, SimpleNamespace(**sections), folder) for name in ("01_domain_classifier", "02_filter_web")
    ]
    for step in steps:
        step.folder.mkdir(exist_ok=True)
    return tuple(steps)


def test_the_stages_run_with_two_methods_and_make_no_model_that_none_uses(tmp_path):
    first, second = both_steps(tmp_path, ["random", "fasttext"])
    trained = train_classifiers(first)
    assert trained.numbers["roc_auc"] > 0.9
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "classifiers.json",
        "domain.bin",
        "domain.safetensors",
    ]
    filtered = filter_web(second)
    for method in ("random", "fasttext"):
        table = filtered.chosen(method)
        assert 2_800 < sum(table["n_tokens"].to_pylist()) <= 3_000
        assert table["educational"].null_count == table["dsir"].null_count == len(table)
    said = summary(filtered)
    json.dumps(said, allow_nan=False)
    assert (said["documents"], said["good"], said["quality"]) == (filtered.scored.documents, True, [])


def test_a_finished_step_is_loaded_and_nothing_is_written(tmp_path, monkeypatch):
    def everything() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    steps = both_steps(tmp_path, ["fasttext", "dsir"])
    trained, filtered = train_classifiers(steps[0]), filter_web(steps[1])
    before = everything()
    for step in steps:
        step.done = True
    monkeypatch.setattr("trait_kit.selection.choosing.select", None)
    again, loaded = train_classifiers(steps[0]), filter_web(steps[1])
    assert everything() == before
    assert again.numbers == trained.numbers
    assert {name: table.shape for name, table in again.tables.items()} == {
        k: t.shape for k, t in trained.tables.items()
    }
    pd.testing.assert_frame_equal(funnel(loaded), funnel(filtered))


# --- what lies in the output folder already


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["scores-00000.parquet", "rejected-00002.parquet", "job.json"])
def test_a_file_that_no_job_wrote_is_refused_before_anything_is_touched(files, tmp_path, name):
    spec, out = write(tmp_path / "web", documents()), tmp_path / "scores"
    out.mkdir()
    (out / name).write_bytes(b"[1]")
    before = snapshot(tmp_path)
    for _ in range(2):
        with pytest.raises(TraitError, match=f"{name} is there, but no job of this kind wrote it"):
            score_corpus(spec, files, out, documents_per_shard=50)
    assert snapshot(tmp_path) == before
    (out / name).unlink()
    assert score_corpus(spec, files, out, documents_per_shard=50).documents > 300


def test_files_of_the_user_stay_whatever_their_names_and_of_the_job_only_what_is_out_of_date_goes(
    files, tmp_path
):
    spec, out = write(tmp_path / "web", documents()), tmp_path / "scores"
    out.mkdir()
    names = (
        "scores-2024.parquet",
        "kept-corpus.parquet",
        "rejected-manually.parquet",
        "scores-99999.parquet",
        "domain.bin",
    )
    names += ("domain.safetensors", ".notes.tmp-1", "engine/log.txt", "scores.parquet")
    for name in names:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(name)
    before = snapshot(out)
    many = score_corpus(
        spec, ModelFiles(files.domain.replace(".safetensors", ".bin")), out, documents_per_shard=50
    )
    written = {path.name for path in out.iterdir()} - {name.split("/")[0] for name in names}
    assert len(many.shards) >= 5
    cut = out / "scores-00001.parquet"
    cut.write_bytes(cut.read_bytes()[:100])
    few = score_corpus(str(tmp_path / "web" / "0.parquet"), files, out)
    assert len(few.shards) == 1
    left = {path.name for path in out.iterdir()}
    assert {name for name in left if name in written and name.startswith(("scores-", "rejected-"))} == {
        "scores-00000.parquet",
        "rejected-00000.parquet",
    }
    assert before.items() <= snapshot(out).items()


def test_a_corpus_in_the_output_folder_is_refused_before_anything_is_touched(files, tmp_path):
    out = tmp_path / "scores"
    first = score_corpus(write(tmp_path / "web", documents()), files, out, documents_per_shard=50)
    pq.write_table(pa.Table.from_pylist(documents()), out / "kept-00000.parquet")
    (tmp_path / "link").symlink_to(out)
    before = snapshot(tmp_path)
    for spec in (out / "kept-*.parquet", tmp_path / "link" / "kept-00000.parquet", out / "scores-*.parquet"):
        with pytest.raises(TraitError, match=r"lies in .*scores, which is written into\. Name another folder"):
            score_corpus(str(spec), files, out)
    assert snapshot(tmp_path) == before
    assert first.documents == Scoring.open(out).documents


def test_a_selection_never_replaces_what_it_is_made_of(files, tmp_path, capsys):
    """The output of one selection is the corpus of the next, which is to be written where it lies."""
    out = tmp_path / "out"
    scored = score_corpus(write(tmp_path / "web", documents()), files, tmp_path / "scores")
    select(scored, out, ["fasttext"], Limits(2_000))
    again = score_corpus(str(out / "fasttext.parquet"), files, tmp_path / "again")
    before = snapshot(out)
    with pytest.raises(TraitError, match=r"fasttext\.parquet lies in .*out, which is written into"):
        select(again, out, ["fasttext"], Limits(500))
    command = ["select", "--scores", str(tmp_path / "scores"), "--output", str(out), "--tokens", "500"]
    assert main([*command, "--in-domain", str(out / "fasttext.parquet")]) == 1
    assert "fasttext.parquet lies in" in capsys.readouterr().err
    assert snapshot(out) == before


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("array.jsonl", lambda rows: json.dumps(rows)),
        ("beside.json", lambda rows: json.dumps({"version": 1, "data": rows})),
        ("by_id.json", lambda rows: json.dumps({row["id"]: row for row in rows})),
        ("one_line.jsonl", lambda rows: "".join(map(json.dumps, rows))),
        ("mac.jsonl", lambda rows: "\r".join(map(json.dumps, rows))),
        ("mac.csv", lambda rows: "id,text\r" + "\r".join(f'{row["id"]},"{row["text"]}"' for row in rows)),
    ],
)
def test_a_file_in_a_form_that_is_not_read_counts_as_what_it_holds(files, tmp_path, name, packed):
    write(tmp_path / "web", documents())
    rows = [{"id": f"b{n}", "text": f"{n} bottles stand on the wall, and one falls. " * 60} for n in range(200)]
    (tmp_path / "web" / name).write_text(packed(rows), encoding="utf-8", newline="")
    if name == "array.jsonl":  # an array under another name is read
        scored = score_corpus(str(tmp_path / "web" / "*"), files, tmp_path / "scores")
        assert scored.documents + scored.held_out == len(documents()) + 200
        return
    with pytest.raises(TraitError, match=r"more than max_quarantined"):
        score_corpus(str(tmp_path / "web" / "*"), files, tmp_path / "scores")
    scored = score_corpus(str(tmp_path / "web" / "*"), files, tmp_path / "scores", max_quarantined=0.9)
    assert 100 <= scored.losses().sum() <= 400


def test_a_lost_file_stops_the_job_by_what_it_probably_held(files, tmp_path):
    folder = tmp_path / "web"
    write(folder, documents())
    lines = "".join(json.dumps(record) + "\n" for record in documents() * 30).encode()
    (folder / "bad.jsonl.gz").write_bytes(lines)  # no gzip
    with pytest.raises(TraitError, match=r"more than max_quarantined \(1\.00%\) .*bad\.jsonl\.gz: damaged"):
        score_corpus(str(folder / "*"), files, tmp_path / "scores")
    (folder / "bad.jsonl.gz").rename(folder / "bad.warc")  # no WARC
    with pytest.raises(TraitError, match=r"bad\.warc: unreadable: .* bytes without a whole WARC record"):
        score_corpus(str(folder / "*"), files, tmp_path / "scores")


def test_the_command_line_scores_selects_and_measures(files, tmp_path, capfd):
    records = [{"key": record["id"], "body": record["text"]} for record in documents()]
    spec = write(tmp_path / "web", records) + " {text=body, id=key}"
    scores, out = str(tmp_path / "scores"), str(tmp_path / "out")
    models = ["--model", files.domain, "--educational", files.educational, "--dsir", files.dsir]
    assert main(["score", *models, "--input", spec, "--output", scores]) == 0
    assert re.search(
        r"\d+ documents scored, \d+ held out for evaluation.*, 0 records unusable", capfd.readouterr().out
    )
    select_all = [
        "select",
        "--scores",
        scores,
        "--output",
        out,
        "--methods",
        ",".join(METHODS),
        "--min-tokens",
        "20",
        "--base-model",
        BASE,
    ]
    assert main([*select_all, "--tokens", "3000", "--tasks", "word_problems", "--test-items", "20"]) == 0
    assert "fasttext_educational" in capfd.readouterr().out
    chosen = tables.read(tmp_path / "out" / "fasttext.parquet", "selection")
    assert 2_800 < sum(chosen["n_tokens"].to_pylist()) <= 3_000
    assert main([*select_all, "--threshold", "1.01"]) == 1
    assert "random: none of" in capfd.readouterr().err
    assert main(["score", "--model", files.domain, "--input", str(tmp_path / "none*"), "--output", scores]) == 1
    assert "No file matches" in capfd.readouterr().err
    model = files.domain.replace(".safetensors", ".bin")
    assert main(["bench", "selection", "--model", model, "--input", spec, "--megabytes", "1"]) == 0
    assert "times fastText" in capfd.readouterr().out


def test_a_sample_of_the_scores_knows_the_truth(files, tmp_path):
    scoring = score_corpus(write(tmp_path / "web", documents()), files, tmp_path / "scores")
    everything = sample_scores(Selected(tmp_path, scoring, {}))
    assert len(everything) == scoring.documents
    truth = {record["id"]: k % 3 == 0 for k, record in enumerate(documents())}
    some = sample_scores(Selected(tmp_path, scoring, {}, truth), 100)
    assert 60 < len(some) < 140
    assert some["on_topic"].tolist() == [truth[name] for name in some["id"]]


# What the user did: one message, and no traceback


def wrong(capfd, *arguments: object) -> str:
    """The message of a command that a user has mistaken."""
    assert main([str(argument) for argument in arguments]) == 1
    said = capfd.readouterr().err
    assert "Traceback" not in said and len(said) < 1_000
    return said


@pytest.fixture
def scored_folder(files, tmp_path) -> Path:
    spec = write(tmp_path / "web", documents())
    return score_corpus(spec, files, tmp_path / "scores").folder


def test_nothing_that_passes_names_the_limit_and_what_was_there(scored_folder, tmp_path, capfd):
    common = ("select", "--scores", scored_folder, "--output", tmp_path / "out")
    assert (
        "threshold 0.99999" in (said := wrong(capfd, *common, "--threshold", 0.99999))
        and "best score is 0." in said
    )
    said = wrong(capfd, *common, "--tokens", 100, "--min-tokens", 10**6)
    assert re.search(
        r"tokens 100, min_tokens 1000000: \d{3} fewer than min_tokens, the longest has about \d+ tokens", said
    )
    assert "none of" in wrong(capfd, *common, "--tokens", 100, "--max-tokens", 0)
    assert "near-duplicates must be" in wrong(capfd, *common, "--tokens", 100, "--near-duplicate", -1)
    assert "Say in one way" in wrong(capfd, *common, "--share", -1)
    assert "Unknown method 'best'" in wrong(capfd, *common, "--tokens", 100, "--methods", "best")


@pytest.mark.parametrize("option", ["--share", "--threshold", "--min-educational", "--near-duplicate"])
def test_what_is_no_number_is_no_limit(scored_folder, tmp_path, capfd, option):
    asked = ["select", "--scores", scored_folder, "--output", tmp_path / "out", "--tokens", 100, option, "nan"]
    assert main([*map(str, asked)]) == 2
    assert f"Invalid value for '{option}'" in capfd.readouterr().err
    scored = ["score", "--model", "m", "--input", "c", "--output", "o", "--max-quarantined", "nan"]
    assert main(scored) == 2
    assert "Invalid value for '--max-quarantined'" in capfd.readouterr().err


@pytest.mark.parametrize("damage", ["missing", "cut", "no rejected", "no job", "another job", "half a job"])
def test_scores_that_are_not_whole_are_said(scored_folder, tmp_path, capfd, damage):
    first = scored_folder / "scores-00000.parquet"
    change = {
        "missing": first.unlink,
        "cut": lambda: first.write_bytes(first.read_bytes()[:-50]),
        "no rejected": (scored_folder / "rejected-00001.parquet").unlink,
        "no job": (scored_folder / "job.json").unlink,
        "another job": lambda: (scored_folder / "job.json").write_text("[]"),
        "half a job": lambda: (scored_folder / "job.json").write_text('{"shards": ['),
    }
    change[damage]()
    for amount in ("--tokens", "--share"):
        said = wrong(capfd, "select", "--scores", scored_folder, "--output", tmp_path / "out", amount, 1)
        assert ("trait-kit score" in said and str(scored_folder) in said) or damage == "half a job"
    said = wrong(capfd, "select", "--scores", tmp_path / "nowhere", "--output", tmp_path / "out", "--tokens", 1)
    assert "holds no scores" in said


def test_a_file_for_a_folder_and_the_reverse_are_said(files, scored_folder, tmp_path, capfd):
    path = tmp_path / "web" / "2.jsonl"
    score = ("score", "--model", files.domain, "--input")
    for output in (path, path / "inside"):
        assert "cannot be a folder" in wrong(capfd, *score, tmp_path / "web" / "*", "--output", output)
        assert "cannot be a folder" in wrong(
            capfd, "select", "--scores", scored_folder, "--output", output, "--tokens", 9
        )
    assert "holds no scores" in wrong(
        capfd, "select", "--scores", path, "--output", tmp_path / "out", "--tokens", 9
    )
    for model in (tmp_path, tmp_path / "none.safetensors", tmp_path / "none.bin"):
        assert str(model) in wrong(capfd, *score[:2], model, "--input", path, "--output", tmp_path / "out")


def test_what_is_not_installed_and_what_a_shell_made_of_a_glob_is_said(files, tmp_path, capfd, monkeypatch):
    spec = write(tmp_path / "web", documents())
    common = ("score", "--model", files.domain, "--output", tmp_path / "out", "--input")
    if not importlib.util.find_spec("ray"):
        assert "pip install 'trait-kit[ray]'" in wrong(capfd, *common, spec, "--executor", "ray")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "sbatch is not installed" in wrong(capfd, *common, spec, "--executor", "slurm")
    said = wrong(capfd, *common, *(tmp_path / f"{number}.jsonl" for number in range(5_000)))
    assert "4999 names" in said and "must be quoted" in said
    said = wrong(
        capfd, "select", "--scores", tmp_path, "--output", tmp_path / "o", "--tokens", 9, "--in-domain", "a", "b"
    )
    assert "must be quoted" in said


def test_a_model_of_one_label_and_a_label_that_it_has_not_are_said(files, tmp_path, capfd):
    import fasttext

    spec = write(tmp_path / "web", documents())
    for labels in (1, 2_000):
        lines = "".join(f"__label__{k % labels} word{k % 7} and\n" for k in range(2 * labels + 20))
        (tmp_path / "train.txt").write_text(lines)
        model = fasttext.train_supervised(
            str(tmp_path / "train.txt"), dim=2, bucket=100, epoch=1, thread=1, verbose=0
        )
        model.save_model(str(tmp_path / f"{labels}.bin"))
    common = ("score", "--input", spec, "--output", tmp_path / "out", "--model")
    assert "has one label; a classifier needs two" in wrong(capfd, *common, tmp_path / "1.bin")
    assert "--label" in wrong(capfd, *common, tmp_path / "2000.bin", "--label", "good")


def test_ids_that_repeat_are_said_with_the_way_out(files, tmp_path, capfd):
    spec = write(tmp_path / "web", [{"id": "wiki", "text": record["text"]} for record in documents()], ("jsonl",))
    said = wrong(capfd, "score", "--model", files.domain, "--input", spec, "--output", tmp_path / "out")
    assert "399 of 400" in said and "its id was seen before: 'wiki'" in said and "{id=key}" in said
    assert (
        main(["score", "--model", files.domain, "--input", f"{spec} {{id=}}", "--output", str(tmp_path / "out")])
        == 1
    )
    assert (
        main(
            [
                "score",
                "--model",
                files.domain,
                "--input",
                f"{spec} {{id=none}}",
                "--output",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )


def test_a_selection_overwrites_no_file_that_it_did_not_write(scored_folder, tmp_path, capfd):
    out = tmp_path / "out"
    common = ("select", "--scores", scored_folder, "--output", out, "--tokens", "2000")
    for name in ("fasttext.parquet", "report.json", "near_duplicates.parquet", "job.json"):
        out.mkdir(exist_ok=True)
        (out / name).write_text("mine")
        assert f"{name} is there, but no job of this kind wrote it" in wrong(capfd, *common) or name == "job.json"
        assert [(path.name, path.read_text()) for path in out.iterdir()] == [(name, "mine")]
        (out / name).unlink()
    (out / "dsir.parquet").write_text("mine, and not asked for")
    assert main([str(word) for word in (*common, "--methods", "random,fasttext")]) == 0
    (out / "notes.txt").write_text("mine")
    assert main([str(word) for word in (*common, "--methods", "random")]) == 0
    assert {path.name for path in out.iterdir()} == {
        *("candidates", "contaminated.parquet", "dsir.parquet", "job.json", "near_duplicates.parquet"),
        *("notes.txt", "random.parquet", "report.json"),
    }
    assert "no job of this kind" in wrong(capfd, *common[:3], "--output", scored_folder, "--tokens", "2000")
    assert Scoring.open(scored_folder).documents > 0
    said = wrong(
        capfd, "score", "--model", files_of(scored_folder), "--input", tmp_path / "web" / "*", "--output", out
    )
    assert "no job of this kind" in said and (out / "random.parquet").exists()


def files_of(scores: Path) -> str:
    return json.loads((scores / "job.json").read_text())["files"]["domain"]
