"""Documents: the parts of the demo corpora, every file format, and what becomes of records that cannot be used."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trait_kit.demo import DEMO_PARTS
from trait_kit.engine.files import TraitError
from trait_kit.reading import streams
from trait_kit.reading.readers import Reject
from trait_kit.selection import documents
from trait_kit.selection.documents import fingerprint, list_shards, load_documents, on_topic, read_shard
from trait_kit.tables import SCHEMAS

GOOD = [
    {"id": "a", "text": "Alpha beta.", "url": "https://example.org/a"},
    {"id": "b", "text": "Gamma delta — ünï."},
]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def ids(table: pa.Table) -> list[str]:
    return table["id"].to_pylist()


def reasons(spec: str | Path) -> list[tuple[int, str]]:
    return [(reject.row, reject.reason) for reject in rejects(spec)]


def rejects(spec: str | Path) -> list[Reject]:
    return [reject for shard in list_shards(str(spec)) for part in read_shard(shard) for reject in part.rejected]


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
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment, check=True
    ).stdout.decode()
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
    assert (blank, again) == ("no text", "its id was seen before: 'one'")
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
            *[
                (2, "unreadable: text is not UTF-8"),
                (3, "no text"),
                (6, "its id was seen before: '1'"),
            ],  # 3 and 4 are one line
        ]


def test_an_id_is_unique_in_its_file_and_texts_tell_documents_of_two_files_apart(tmp_path: Path) -> None:
    column = pa.array(["x", "x", "x"]).dictionary_encode()
    for name in ("a", "b"):
        pq.write_table(
            pa.table(
                {
                    "id": [name, "same", "7"],
                    "text": pa.array(["T", "U", name], pa.large_string()),
                    "source": column,
                }
            ),
            tmp_path / f"{name}.parquet",
        )
    table = load_documents(f"{tmp_path / '*.parquet'} {{held_out=0}}")
    assert [name.partition("#")[0] for name in ids(table)] == ["a", "same", "7", "b", "7"]
    assert len(set(ids(table))) == 5
    assert table["text"].to_pylist() == ["T", "U", "a", "T", "b"]
    assert table["source"].to_pylist() == ["x"] * 5


def test_rows_that_begin_at_nought_in_every_file_are_different_documents(tmp_path: Path) -> None:
    for part in range(4):
        write_jsonl(tmp_path / f"{part}.jsonl", [{"id": k, "text": f"part {part}, row {k}"} for k in range(50)])
    table = load_documents(str(tmp_path / "*.jsonl"))
    assert len(set(ids(table))) == len(set(table["text"].to_pylist())) == len(table)
    assert len(table) + len(documents.load_held_out(str(tmp_path / "*.jsonl"))) == 200


def test_ids_of_any_kind_are_used_and_a_broken_address_costs_no_text(tmp_path: Path) -> None:
    keys = [uuid.UUID(int=k) for k in (1, 2)]
    kinds = {
        "uuid": pa.array([key.bytes for key in keys], pa.uuid()),
        "fixed": pa.array([key.bytes for key in keys], pa.binary(16)),
        "hash": pa.array([b"\xff\x01", b"\xff\x02"], pa.binary()),
        "date": pa.array([1, 2], pa.timestamp("s")),
    }
    for name, column in kinds.items():
        address = pa.array([b"https://example.org/\xff", b"https://example.org/"], pa.binary())
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table([column, address, address, ["One.", "Two."]], ["id", "id", "url", "text"]), path)
        found = load_documents(str(path))
        assert found["text"].to_pylist() == ["One.", "Two."] and rejects(path) == []
        expected = {"hash": ["ff01", "ff02"], "date": ["1970-01-01 00:00:01.000", "1970-01-01 00:00:02.000"]}
        assert ids(found) == expected.get(name, [str(key) for key in keys])
    path = tmp_path / "d.jsonl"
    path.write_bytes(
        b'{"text": "One.", "url": "half \\ud83d"}\n{"text": "Two.", "url": "caf\xe9"}\n{"text": "caf\xe9"}\n'
    )
    assert load_documents(str(path))["text"].to_pylist() == ["One.", "Two."]
    assert [row for row, _ in reasons(path)] == [3]


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
    with pytest.raises(TraitError, match=r"d\.parquet: damaged: it has no column 'text': content, n"):
        load_documents(str(tmp_path / "d.parquet"))
    with pytest.raises(TraitError, match=r"d\.jsonl, row 1: unreadable: it has no string 'text', but content"):
        load_documents(str(tmp_path / "d.jsonl"))


def test_a_text_column_of_numbers_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "d.parquet")
    with pytest.raises(TraitError, match=r"column 'text' holds int64, not strings"):
        load_documents(str(tmp_path / "d.parquet"))


def test_specs_that_name_no_documents(tmp_path: Path) -> None:
    (tmp_path / "notes.docx").write_text("x")
    for spec, message in (
        (tmp_path / "*.jsonl", "No file matches"),
        (tmp_path, "is a folder without files that can be read"),
        (tmp_path / "notes.docx", r"notes\.docx: documents are read from \.parquet"),
        ("hf:", "names no hub data set"),
    ):
        with pytest.raises(TraitError, match=message):
            load_documents(str(spec))


# Tables in text, arrays, encodings


TABLE = [
    {"key": "a", "body": 'Größe; "fünf" | 5 €, and\nmore\tlines\n', "no": "1"},
    {"key": "b", "body": "plain, with; every | sign\tin it", "no": ""},
]


def table_of(rows: list[dict], sign: str, encoding: str) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, rows[0], delimiter=sign)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_tables_are_read_whatever_divides_and_encodes_them(tmp_path, caplog, monkeypatch, sign, encoding) -> None:
    monkeypatch.setattr(streams, "_said", set())
    for name in ("d.csv", "d.tsv", "D.CSV.GZ"):
        data = table_of(TABLE, sign, encoding)
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("GZ") else data)
        spec = f"{tmp_path / name} {{text=body, id=key}}"
        found = load_documents(spec)
        assert [(row["id"], row["text"]) for row in found.to_pylist()] == [
            (row["key"], row["body"]) for row in TABLE
        ]
        assert rejects(spec) == []
    assert ("is read as" in caplog.text) == (not encoding.startswith("utf-8"))
    assert encoding[:6] in caplog.text or encoding.startswith("utf-8")


def test_a_table_in_another_script_is_recognised(tmp_path: Path) -> None:
    for encoding, text in (
        ("gbk", "合同法的规定，是一个数学问题。"),
        ("cp1251", "Это задача по математике, ответ: три."),
    ):
        (tmp_path / "d.csv").write_bytes(f"id;text\n1;{text}\n2;{text}!\n".encode(encoding))
        assert load_documents(str(tmp_path / "d.csv"))["text"].to_pylist() == [text, f"{text}!"]


def test_rows_of_a_table_that_do_not_fit_are_counted_and_lines_of_another_encoding_read(
    tmp_path: Path, caplog
) -> None:
    rows = [f'{k},"Text {k}."\n' for k in range(10)]
    rows[2] = "2,Text, with a stray comma\n"
    rows[5] = '5,"Text that is not closed\n'  # which swallows what follows up to the next quote
    rows[8] = "8,Café\n"
    lines = "".join(
        [
            "id,text\n",
            "".join(rows[:8]).replace("Text 1", "Cafés 1"),
            "".join(f"x{k},y\n" for k in range(100)),
            "\n",
        ]
    ).encode()
    (tmp_path / "d.csv").write_bytes(lines + rows[8].encode("cp1252") + rows[9].encode())
    texts = load_documents(f"{tmp_path / 'd.csv'} {{held_out=0}}")["text"].to_pylist()
    assert {"Text 0.", "Cafés 1.", "Text 3.", "Text 7.", "Text 9.", "Café"} <= set(texts)
    assert "lines of cp1252" in caplog.text
    lost = {reject.row: reject.reason for reject in rejects(tmp_path / "d.csv")}
    assert lost[3] == "unreadable: 3 cells in 2 columns"
    assert len(lost) == 2 and all(reason.startswith("unreadable: ") for reason in lost.values())
    (tmp_path / "open.csv").write_text(
        "id,text\n" + "".join(f"{k},Text\n" for k in range(100)) + '"' + "y,z\n" * 100
    )
    assert 50 < sum(reject.records for reject in rejects(tmp_path / "open.csv")) < 150
    (tmp_path / "none.csv").write_text("id,body\n1,x\n")
    with pytest.raises(TraitError, match=r"none\.csv, row 1: unreadable: it has no column 'text': body, id"):
        load_documents(str(tmp_path / "none.csv"))


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_read_as_its_values(tmp_path: Path, indent: int | None) -> None:
    rows = [*GOOD, {"id": "c", "body": "no text"}, {"id": "d", "text": "Last\u2028line."}]
    data = json.dumps(rows, indent=indent, ensure_ascii=False).encode()
    for name in ("d.json", "D.JSON.GZ"):
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("GZ") else b"\xef\xbb\xbf " + data)
        assert ids(load_documents(str(tmp_path / name))) == ["a", "b", "d"]
        assert reasons(tmp_path / name) == [(3, "unreadable: it has no string 'text', but body, id")]
    long = json.dumps([{"text": "word " * 600}] * 100, indent=indent).encode()
    (tmp_path / "d.json").write_bytes(long[: len(long) // 2])  # cut off
    ((_, _, reason, records),) = rejects(tmp_path / "d.json")
    assert reason.startswith("damaged: ") and 30 <= records <= 100


def test_json_lines_in_utf_16_are_read_and_it_is_said(tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(streams, "_said", set())
    write_jsonl(tmp_path / "u.jsonl", GOOD)
    (tmp_path / "d.jsonl").write_text((tmp_path / "u.jsonl").read_text(encoding="utf-8"), encoding="utf-16")
    assert ids(load_documents(str(tmp_path / "d.jsonl"))) == ["a", "b"]
    assert "d.jsonl is read as utf-16" in caplog.text
    (tmp_path / "d.json").write_text(json.dumps(GOOD), encoding="utf-16-le")
    assert ids(load_documents(str(tmp_path / "d.json"))) == ["a", "b"]


@pytest.mark.parametrize("end", [None, -9])
def test_a_long_zstd_window_is_read_and_a_cut_file_counted(tmp_path: Path, end: int | None) -> None:
    plain = write_jsonl(
        tmp_path / "d.jsonl", [{"id": str(k), "text": f"text {k} {k**40}"} for k in range(10)]
    ).read_bytes()
    path = tmp_path / "d.jsonl.zst"
    with streams.zstd.open(
        path, "wb", options={streams.zstd.CompressionParameter.window_log: 28}
    ) as file:  # 256 MB
        file.write(plain)
    path.write_bytes(path.read_bytes()[:end])
    if end is None:
        assert len(load_documents(str(path))) == 10
    else:
        (reject,) = [each for each in rejects(path) if each.reason.startswith("damaged: ")]
        assert reject.records >= 1


# A document a file


def pdf_of(text: str) -> bytes:
    """The least PDF with a page of this text."""
    shown = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(shown)} >>\nstream\n{shown}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    data, places = "%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n{each}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    end = f"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF"
    return f"{data}xref\n0 6\n0000000000 65535 f \n{table}{end}".encode()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as people have them."""
    monkeypatch.setenv("TRAIT_KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(streams, "_said", set())
    root = tmp_path / "docs"
    for path, data in {
        "a.txt": "First line.\n\n  indented – ünï\n".encode(),
        "deep/b.md": b"# Title\n\n- a list\n",
        "deep/er/c.html": b"<html><body><main><p>A page of <b>HTML</b>: 10<sup>3</sup>.</p></main></body></html>",
        "deep/old.TXT": "Größe und Maß".encode("cp1252"),
        "empty.txt": b" \n",
        "picture.png": b"\x89PNG",
        ".git/hidden.md": b"not wanted",
        "noise.txt": bytes(range(32)) * 10,
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def test_a_folder_is_read_a_document_a_file_and_what_is_none_has_a_reason(
    folder: Path, caplog, monkeypatch
) -> None:
    monkeypatch.chdir(folder.parent)
    for spec in ("docs", "docs/", str(folder)):
        found = load_documents(spec)
        names = [str(folder / name) if spec.startswith("/") else f"docs/{name}" for name in NAMES]
        assert dict(zip(ids(found), found["text"].to_pylist(), strict=True)) == dict(
            zip(names, TEXTS, strict=True)
        )
        assert found["source"].to_pylist() == ids(found)
        assert {Path(reject.source).name: reject.reason for reject in rejects(spec)} == {
            "empty.txt": "no text",
            "old.TXT": "skipped: read as cp1252",
            "noise.txt": "unreadable: its body is no text",
        }
    assert (
        "1 of its 7 files are passed over (1 .png)" in caplog.text and "old.TXT is read as cp1252" in caplog.text
    )
    assert ids(load_documents("docs/**/*.md")) == ["docs/deep/b.md"]
    assert ids(load_documents("docs/deep/**/*.html")) == ["docs/deep/er/c.html"]
    with pytest.raises(TraitError, match=r"picture\.png: documents are read from"):
        load_documents("docs/*.png")


NAMES = ["a.txt", "deep/b.md", "deep/er/c.html", "deep/old.TXT"]
TEXTS = ["First line.\n\n  indented – ünï", "# Title\n\n- a list", "A page of HTML: 10^3.", "Größe und Maß"]


def test_small_files_are_shards_of_many_and_5_percent_of_them_are_held_out(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRAIT_KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(documents, "_FILES", 60)
    for number in range(100):
        (tmp_path / f"{number:03d}.md").write_text(f"Text {number}.")
    (first, second) = list_shards(str(tmp_path / "*.md"))
    parts = [part for shard in (first, second) for part in read_shard(shard)]
    texts = [text for part in parts for text in part.documents["text"].to_pylist()]
    held = documents.load_held_out(str(tmp_path / "*.md"))["text"].to_pylist()
    assert len(texts) + len(held) == 100 == len({*texts, *held})
    assert sum(len(part.held_out) for part in parts) == len(held)
    (tmp_path / "099.md").write_text("Another text.")
    assert [
        new.key == old.key for new, old in zip(list_shards(str(tmp_path / "*.md")), (first, second), strict=True)
    ] == [*[True, False]]


def test_pdf_files_are_read_where_pypdf_is_and_said_where_it_is_not(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRAIT_KIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.pdf").write_bytes(pdf_of("A theorem in a document."))
    (tmp_path / "b.pdf").write_bytes(pdf_of(""))
    (tmp_path / "c.pdf").write_bytes(b"%PDF-1.4 no such thing")
    spec = str(tmp_path / "*.pdf")
    if importlib.util.find_spec("pypdf"):
        assert load_documents(spec)["text"].to_pylist() == ["A theorem in a document."]
        found = {Path(reject.source).name: reject.reason for reject in rejects(spec)}
        assert found.keys() == {"b.pdf", "c.pdf"}
        assert found["b.pdf"].startswith("no text") and found["c.pdf"].startswith("unreadable: ")
    monkeypatch.setitem(sys.modules, "pypdf", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TraitError, match=r"pip install 'trait-kit\[pdf\]'"):
        load_documents(spec)


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
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
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


def test_what_is_held_out_is_said_and_can_be_turned_off_or_up(tmp_path: Path, caplog) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{"id": k, "text": f"document {k}"} for k in range(200)])
    assert len(load_documents(str(path))) == 190
    assert "190 documents, and 10 held out for evaluation" in caplog.text
    for share, held in ((0, 0), (0.1, 20)):
        spec = f"{path} {{held_out={share}, id=id}}"
        assert len(load_documents(spec)) == 200 - held
        assert len(documents.load_held_out(spec, least=0)) == held
    with pytest.raises(TraitError, match="held_out=0"):
        documents.load_held_out(f"{path} {{held_out=0}}")
    for wrong in ("no", "-1", "0.9"):
        with pytest.raises(TraitError, match="held_out is a share"):
            list_shards(f"{path} {{held_out={wrong}}}")


def test_a_cut_json_array_in_utf_16_is_named_as_damaged(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text('[{"text": "a"}, oops', encoding="utf-16")
    with pytest.raises(TraitError, match=r"d\.json: damaged: "):
        load_documents(str(tmp_path / "d.json"))
