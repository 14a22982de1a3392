"""Documents: the parts of the demo corpora, every file format, and what becomes of records that cannot be used."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trait_kit.demo import DEMO_PARTS
from trait_kit.engine.files import TraitError
from trait_kit.engine.readers import Reject
from trait_kit.selection import documents
from trait_kit.selection.documents import fingerprint, identified, list_shards, load_documents, on_topic, read_shard
from trait_kit.tables import SCHEMAS

GOOD = [{"id": "a", "text": "Alpha beta.", "url": "https://example.org/a"}, {"id": "b", "text": "Gamma delta — ünï."}]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def ids(table: pa.Table) -> list[str]:
    return table["id"].to_pylist()


def reasons(spec: str | Path) -> list[tuple[int, str]]:
    return [(reject.row, reject.reason) for reject in rejects(spec)]


def rejects(spec: str | Path) -> list[Reject]:
    parts = (part for shard in list_shards(str(spec)) for part in read_shard(shard))
    return [reject for part, _ in identified(parts) for reject in part.rejected]


# The demo corpora


@pytest.mark.parametrize(("domain", "least"), [("math", 70), ("ads", 240)])
def test_demo_parts_are_disjoint_and_their_truth_is_known(domain: str, least: int) -> None:
    parts = {part: load_documents(f"demo:{domain}/{part}", seed=1) for part in DEMO_PARTS}
    everything = [name for part in parts.values() for name in ids(part)]
    assert len(set(everything)) == len(everything) == 10_033
    assert all(part.schema == SCHEMAS["documents"] for part in parts.values())
    assert parts["in_domain"].num_rows >= least
    held_out = parts["in_domain_held_out"].num_rows
    assert held_out / (held_out + parts["in_domain"].num_rows) == pytest.approx(0.15, abs=0.01)
    assert parts["general_held_out"].num_rows == 300

    truth = {part: on_topic(f"demo:{domain}/{part}", seed=1) for part in parts}
    assert all(list(truth[part]) == ids(parts[part]) for part in parts)
    assert all([*truth["in_domain"].values(), *truth["in_domain_held_out"].values()])
    assert not any(truth["general_held_out"].values())
    hidden = sum(truth["web"].values())
    assert hidden > 1.9 * (parts["in_domain"].num_rows + held_out)


def test_the_seed_decides_which_third_is_known_in_every_process_alike() -> None:
    first, other = (set(ids(load_documents("demo:math/in_domain", seed=seed))) for seed in (0, 1))
    assert first != other
    code = "from trait_kit.selection import documents as d; print(*d.load_documents('demo:math/in_domain')['id'], sep='\\n')"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONIOENCODING": "utf-8"}
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True).stdout.decode()
    assert output.split("\n")[:-1] == ids(load_documents("demo:math/in_domain", seed=0))


@pytest.mark.parametrize("spec", ["demo:maths/web", "demo:math", "demo:math/test", "demo:"])
@pytest.mark.parametrize("function", [load_documents, on_topic, fingerprint])
def test_an_unknown_demo_corpus_is_an_error_that_lists_the_known_ones(function, spec: str) -> None:
    with pytest.raises(TraitError, match="demo:math/in_domain"):
        function(spec)


# Files


def test_every_format_gives_the_same_documents_whatever_the_case_of_its_name(tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "d.jsonl", GOOD)
    for name in ("d.ndjson", "d.json", "D.JSONL"):
        (tmp_path / name).write_bytes(plain.read_bytes())
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(plain.read_bytes()))
    with pa.CompressedOutputStream(str(tmp_path / "d.jsonl.zst"), "zstd") as stream:
        stream.write(plain.read_bytes())
    pq.write_table(pa.Table.from_pylist(GOOD), tmp_path / "d.parquet")
    for path in tmp_path.iterdir():
        table = load_documents(str(path))
        assert table.schema == SCHEMAS["documents"]
        assert rejects(path) == []
        assert table.select(["id", "text", "url"]).to_pylist() == [{"url": None, **row} for row in GOOD]
        assert table["source"].to_pylist() == [str(path)] * 2


def test_a_glob_reads_its_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b", "a", "deep/c"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"id": name, "text": "Text."}])
    assert ids(load_documents(str(tmp_path / "*.jsonl"))) == ["a", "b"]
    assert ids(load_documents(str(tmp_path / "**" / "*.jsonl"))) == ["a", "b", "deep/c"]


def test_missing_ids_are_made_from_the_text_and_stay_when_files_move(tmp_path: Path) -> None:
    rows = [
        {"text": "same"},
        {"text": "same"},
        {"text": "other", "id": None},
        {"text": "named", "id": 7},
        {"text": "x", "id": ""},
    ]
    (tmp_path / "elsewhere").mkdir()
    one = ids(load_documents(str(write_jsonl(tmp_path / "a.jsonl", rows))))
    two = ids(load_documents(str(write_jsonl(tmp_path / "elsewhere" / "b.jsonl", rows))))
    assert one == two
    assert one[2] == "7"
    assert len(set(one)) == len(one) == 4  # a text that repeats without an id is counted once


def test_unusable_lines_are_quarantined_with_line_and_reason(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "first, behind a byte order mark", "id": "one"}',
        b'{"text": "caf\xe9"}',
        b'{"text": "cut off',
        b"",
        b'{"text": null}',
        b'{"text": "  \\n "}',
        b'{"text": 12}',
        b'{"text": ["a"]}',
        b'["text"]',
        b'{"body": "no text here"}',
        b'{"text": "half a pair \\ud83d"}',
        b'{"text": "again", "id": "one"}',
        b"[" * 100_000,
        b'\xef\xbb\xbf{"text": "last, without a line end", "id": "two", "url": {"x": 1}}',
    ]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join(lines))
    table, lost = load_documents(str(path)), rejects(path)
    assert ids(table) == ["one", "two"]
    assert table["text"][0].as_py() == "first, behind a byte order mark"
    found = {reject.row + index: reject.reason for reject in lost for index in range(reject.records)}
    blank, again = found.pop(6), found.pop(12)
    assert (blank, again) == ("no text", "its id was seen before")
    assert found.keys() == {2, 3, 5, 7, 8, 9, 10, 11, 13}
    assert all(reason.startswith("unreadable: ") for reason in found.values())
    assert found[10] == "unreadable: it has no string 'text', but body"
    assert {reject.source for reject in lost} == {str(path)}


def test_unusable_parquet_rows_are_quarantined(tmp_path: Path) -> None:
    text = pa.array([b"good", b"\xff\xfe bad bytes", None, b" \t", b"fine", b"twice"], pa.binary())
    path = tmp_path / "d.parquet"
    for kind in (pa.binary(), pa.string()):
        column = text if kind == pa.binary() else pa.Array.from_buffers(pa.string(), len(text), text.buffers())
        pq.write_table(pa.table({"id": pa.array([1, 2, 3, 4, 5, 1]), "text": column}), path)
        assert ids(load_documents(str(path))) == ["1", "5"]
        assert reasons(path) == [
            *[(2, "unreadable: text is not UTF-8"), (3, "no text"), (6, "its id was seen before")],  # 3 and 4 are one line
        ]


def test_ids_must_be_unique_across_files_and_dictionary_columns_are_read(tmp_path: Path) -> None:
    column = pa.array(["x", "x"]).dictionary_encode()
    for name in ("a", "b"):
        pq.write_table(
            pa.table({"id": [name, "shared"], "text": pa.array(["T", "U"], pa.large_string()), "source": column}),
            tmp_path / f"{name}.parquet",
        )
    table = load_documents(str(tmp_path / "*.parquet"))
    assert ids(table) == ["a", "shared", "b"]
    assert table["source"].to_pylist() == ["x"] * 3
    assert rejects(tmp_path / "*.parquet") == [(str(tmp_path / "b.parquet"), 2, "its id was seen before", 1)]


def test_the_warning_counts_and_shows_no_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "fine"}\n{"text": "private words\n')
    load_documents(str(path))
    assert "1 of 2 records cannot be used" in caplog.text
    assert "row 2" in caplog.text
    assert "private" not in caplog.text


def test_an_empty_file_among_others_is_quarantined_and_alone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    write_jsonl(tmp_path / "full.jsonl", GOOD)
    assert reasons(tmp_path / "*.jsonl") == [(0, "unreadable: the file is empty")]
    with pytest.raises(TraitError, match=r"empty\.jsonl, row 0: unreadable: the file is empty"):
        load_documents(str(tmp_path / "empty.jsonl"))


def test_no_usable_document_is_an_error_with_the_first_reason(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{"text": ""}, {"text": " "}])
    with pytest.raises(TraitError, match=r"d\.jsonl, row 1: no text"):
        load_documents(str(path))
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    with pytest.raises(TraitError, match=r"none\.parquet has no usable document"):
        load_documents(str(tmp_path / "none.parquet"))


def test_a_missing_text_column_names_the_columns_there_are(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["x"], "n": [1]}), tmp_path / "d.parquet")
    write_jsonl(tmp_path / "d.jsonl", [{"content": "x"}, {"body": "y"}])
    with pytest.raises(TraitError, match=r"d\.parquet: damaged: it has no column 'text', but content, n"):
        load_documents(str(tmp_path / "d.parquet"))
    with pytest.raises(TraitError, match=r"d\.jsonl, row 1: unreadable: it has no string 'text', but content"):
        load_documents(str(tmp_path / "d.jsonl"))


def test_a_text_column_of_numbers_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "d.parquet")
    with pytest.raises(TraitError, match=r"column 'text' holds int64, not strings"):
        load_documents(str(tmp_path / "d.parquet"))


def test_specs_that_name_no_documents(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for spec, message in (
        (tmp_path / "*.jsonl", "No file matches"),
        (tmp_path, "is a folder"),
        (tmp_path / "notes.txt", r"notes\.txt: documents are read from \.parquet"),
        ("hf:", "names no hub data set"),
    ):
        with pytest.raises(TraitError, match=message):
            load_documents(str(spec))


def test_other_corpora_have_no_hidden_truth(tmp_path: Path) -> None:
    spec = str(write_jsonl(tmp_path / "d.jsonl", GOOD))
    assert on_topic(spec) is None


def test_fingerprints_change_with_the_corpus(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", GOOD)
    spec = str(tmp_path / "*.jsonl")
    before = fingerprint(spec)
    assert fingerprint(spec) == before
    write_jsonl(tmp_path / "b.jsonl", GOOD)
    more = fingerprint(spec)
    os.utime(path, ns=(1, 1))
    assert fingerprint(spec) == more  # a run may be copied without file times
    path.write_text(path.read_text(encoding="utf-8").replace("Alpha", "Aleph"), encoding="utf-8")
    os.utime(path, ns=(1, 1))
    assert len({before, more, fingerprint(spec)}) == 3
    assert len({fingerprint(f"demo:math/{part}") for part in DEMO_PARTS}) == 4
    assert fingerprint("hf:a/b") != fingerprint("hf:a/b#test")


# The hub


def test_a_hub_data_set_is_read_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(name: str, config: str | None, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        return datasets.Dataset.from_dict({"text": ["One.", "", "Three."], "meta": [1, 2, 3]}).select([2, 1, 0])

    monkeypatch.setattr(datasets, "load_dataset", load)  # only the door to the network is replaced
    table = load_documents("hf:owner/name@small#validation")
    load_documents("hf:owner/name")
    assert asked == [("owner/name", "small", "validation"), ("owner/name", None, "train")]
    assert table["text"].to_pylist() == ["Three.", "One."]
    assert table["source"].to_pylist() == ["hf:owner/name@small#validation"] * 2
    assert rejects("hf:owner/name@small#validation") == [("hf:owner/name@small#validation", 2, "no text", 1)]


def test_a_hub_that_cannot_be_reached_is_an_error_with_the_next_step() -> None:
    code = "from trait_kit.selection.documents import *; load_documents('hf:owner/nothing-of-this-name')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 1
    assert "TraitError: data set: hf:owner/nothing-of-this-name could not be loaded" in result.stderr


def test_a_share_of_every_corpus_is_held_out_and_never_trained_on(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(100)))
    trained = set(documents.load_documents(str(path))["text"].to_pylist())
    held_out = set(documents.load_held_out(str(path))["text"].to_pylist())
    assert len(trained) == 95
    assert len(held_out) == 5
    assert not trained & held_out
    demo_trained = set(documents.load_documents("demo:math/in_domain")["id"].to_pylist())
    assert not demo_trained & set(documents.load_held_out("demo:math/in_domain")["id"].to_pylist())
    path.write_text(json.dumps({"text": "one"}) + "\n")
    with pytest.raises(TraitError, match="too few to hold any out"):
        documents.load_held_out(str(path))
