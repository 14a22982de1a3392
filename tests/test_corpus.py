"""A corpus read as a stream: its shards, what damage costs, what is held out and sampled, where its files may lie."""

from __future__ import annotations

import functools
import gzip
import http.server
import json
import os
import random
import re
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trait_kit.engine.files import TraitError
from trait_kit.selection import documents
from trait_kit.selection.documents import (
    Shard,
    id_hashes,
    list_shards,
    load_documents,
    load_held_out,
    read_rows,
    read_shard,
    sample,
)


@pytest.fixture
def cache(tmp_path_factory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAIT_KIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def rows(n: int, words: int = 30, start: int = 0) -> list[dict[str, str]]:
    """Documents that do not compress to nothing, the same in every run."""
    generator = random.Random(start)
    texts = (" ".join(str(generator.randrange(10**6)) for _ in range(words)) for _ in range(n))
    return [{"id": f"d{start + index}", "text": text} for index, text in enumerate(texts)]


def jsonl(records: list[dict]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def drawn(table: pa.Table, n: int, seed: int) -> list[str]:
    """`n` texts without replacement, in the table's order."""
    return table["text"].take(np.sort(np.random.default_rng(seed).permutation(len(table))[:n])).to_pylist()


def parquet(path: Path, records: list[dict], group: int, **options) -> Path:
    pq.write_table(pa.Table.from_pylist(records), path, row_group_size=group, **options)
    return path


def read(spec: str | Path, **options) -> tuple[list[str], list[tuple]]:
    """(ids of all documents but the held-out ones, rejected records) of all shards."""
    parts = [part for shard in list_shards(str(spec), **options) for part in read_shard(shard)]
    ids = [name for part in parts for name in part.documents["id"].to_pylist()]
    return ids, [reject for part in parts for reject in part.rejected]


def every(spec: str | Path) -> set[str]:
    """Ids of all documents, the held-out ones too."""
    return set(read(spec)[0]) | set(load_held_out(str(spec))["id"].to_pylist())


# Shards


def test_parquet_is_cut_between_row_groups_and_keys_follow_the_file(tmp_path: Path) -> None:
    path = parquet(tmp_path / "b.parquet", rows(1_000), 150)
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows(50, start=5_000)))
    shards = list_shards(str(tmp_path / "*"), shard_rows=400)
    assert [(shard.number, Path(shard.source).name, shard.first, shard.stop) for shard in shards] == [
        *[(0, "a.jsonl", 0, -1), (1, "b.parquet", 0, 3), (2, "b.parquet", 3, 6), (3, "b.parquet", 6, 7)],
    ]
    assert list_shards(str(tmp_path / "*"), shard_rows=400) == shards
    os.utime(path, ns=(1, 1))  # a copy without file times is the same file
    assert list_shards(str(tmp_path / "*"), shard_rows=400) == shards
    data = path.read_bytes()
    path.write_bytes(data[:1_000] + bytes([data[1_000] ^ 1]) + data[1_001:])  # one bit, neither size nor time
    os.utime(path, ns=(1, 1))
    again = list_shards(str(tmp_path / "*"), shard_rows=400)
    assert [new.key == old.key for new, old in zip(again, shards, strict=True)] == [True, False, False, False]
    path.write_bytes(data)
    assert len({shard.key for shard in shards}) == 4
    assert len(every(tmp_path / "*")) == 1_050


def test_the_demo_is_one_shard_or_slices_and_its_key_knows_the_seed() -> None:
    whole = load_documents("demo:math/web", seed=3)
    (shard,) = list_shards("demo:math/web", seed=3)
    assert (shard.first, shard.stop, shard.held_out) == (0, whole.num_rows, 0.0)
    assert list_shards("demo:math/web", seed=4)[0].key != shard.key
    parts = [
        part for shard in list_shards("demo:math/web", 3, shard_rows=4_000) for part in read_shard(shard, seed=3)
    ]
    assert len(parts) == 3
    assert pa.concat_tables(part.documents for part in parts).select(whole.column_names).equals(whole)


def test_a_hub_data_set_is_read_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    data = datasets.Dataset.from_dict({"text": [row["text"] for row in rows(100)], "n": list(range(100))})
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: data
    )  # only the door to the network is replaced
    shards = list_shards("hf:owner/in-slices", shard_rows=30)
    assert [(shard.first, shard.stop) for shard in shards] == [(0, 30), (30, 60), (60, 90), (90, 100)]
    texts = [
        text for shard in shards for part in read_shard(shard) for text in part.documents["text"].to_pylist()
    ]
    held = load_held_out("hf:owner/in-slices")["text"].to_pylist()
    assert sorted(texts + held) == sorted(data["text"])
    assert len(held) == 5
    ((source, _, reason, records),) = read("hf:owner/in-slices {text=n}")[1]
    assert (source, reason, records) == (
        "hf:owner/in-slices",
        "damaged: its column 'n' holds int64, not strings",
        100,
    )


def test_documents_at_positions_are_those_of_the_stream(tmp_path: Path) -> None:
    spec = str(parquet(tmp_path / "d.parquet", rows(3_000), 500))
    for shard in list_shards(spec, shard_rows=1_000):
        stream = pa.concat_tables(part.documents for part in read_shard(shard)).select(documents.COLUMNS)
        positions = [0, 3, 499, 500, stream.num_rows - 1]
        assert read_rows(shard, positions).equals(stream.take(positions))
        assert read_rows(shard, []).num_rows == 0


def test_shards_give_the_same_in_any_order_and_in_any_process(tmp_path: Path) -> None:
    for number in range(3):
        parquet(tmp_path / f"{number}.parquet", rows(300, start=1_000 * number), 100)
    shards = list_shards(str(tmp_path / "*.parquet"), shard_rows=100)
    forwards = {
        shard.number: [part.documents["id"].to_pylist() for part in read_shard(shard)] for shard in shards
    }
    backwards = {
        shard.number: [part.documents["id"].to_pylist() for part in read_shard(shard)] for shard in shards[::-1]
    }
    assert forwards == backwards
    spec = str(tmp_path / "*.parquet")
    code = f"from trait_kit.selection.documents import *; print(*[s.key for s in list_shards({spec!r})])"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    ).stdout.split()
    assert output == [shard.key for shard in list_shards(str(tmp_path / "*.parquet"))]
    assert id_hashes(pa.array(["a", "ü"])).tolist() == [13950350942979735504, 6689755093696353227]


# Damage


def write(path: Path, records: list[dict]) -> Path:
    """A file in the format that its name says."""
    plain = jsonl(records)
    if path.suffix == ".parquet":
        return parquet(path, records, 100, compression="zstd", use_dictionary=False)
    if ".wet" in path.name:
        head = "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: {id}\r\nContent-Length: {size}\r\n\r\n{text}\r\n\r\n"
        plain = "".join(head.format(size=len(record["text"]), **record) for record in records).encode()
    with pa.CompressedOutputStream(str(path), "gzip" if path.suffix == ".gz" else "zstd") as stream:
        stream.write(plain)
    return path


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["bad.parquet", "bad.jsonl.gz", "bad.jsonl.zst", "bad.wet.gz"])
@pytest.mark.parametrize("damage", ["cut", "another format", "noise"])
def test_a_damaged_file_is_counted_and_named_and_reading_goes_on(tmp_path: Path, name: str, damage: str) -> None:
    if name.endswith("zst") and damage == "noise":
        pytest.skip("Arrow writes zstd without the checksum that betrays it")
    path = write(tmp_path / name, rows(8_000, 60))
    (tmp_path / "good.jsonl").write_bytes(jsonl(rows(100, start=100_000)))
    data, middle = path.read_bytes(), path.stat().st_size // 2
    noise = random.Random(1).randbytes(5_000)
    broken = {"cut": data[:middle], "noise": data[:middle] + noise + data[middle + len(noise) :]}
    path.write_bytes(broken.get(damage, b"no such format " + data))
    found = every(tmp_path / "*")
    assert {f"d{100_000 + index}" for index in range(100)} <= found
    rejected = read(tmp_path / "*")[1]
    assert {reject.source for reject in rejected} == {str(path)}
    lost, missing = sum(reject.records for reject in rejected), 8_000 - len(found) + 100
    assert 1 <= lost <= 1.3 * missing
    assert lost >= missing / 3 or damage != "noise"
    assert lost >= 100 or damage == "cut"  # how much a missing end held, nobody knows
    with pytest.raises(TraitError, match=rf"{re.escape(name)}: damaged: .*download it again"):
        load_documents(str(path))


def test_a_file_without_the_text_or_with_another_type_of_it_is_rejected_whole(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", rows(60), 20)
    other = [{"id": row["id"], "body": row["text"]} for row in rows(60)]
    parquet(tmp_path / "b.parquet", other, 20)
    parquet(tmp_path / "c.parquet", [{"id": row["id"], "text": 1} for row in rows(60)], 20)
    pq.write_table(pa.table([["x"], ["y"]], ["text", "text"]), tmp_path / "d.parquet")
    (tmp_path / "e.jsonl").write_bytes(jsonl(other * 500) + jsonl(rows(60, start=60)))
    ids, rejected = read(tmp_path / "*")
    assert len(ids) > 100
    assert {(Path(reject.source).name, reject.reason) for reject in rejected} == {
        ("b.parquet", "damaged: it has no column 'text': body, id"),
        ("c.parquet", "damaged: its column 'text' holds int64, not strings"),
        ("d.parquet", "damaged: it has 2 columns 'text': text, text"),
        ("e.jsonl", "unreadable: it has no string 'text', but body, id"),
    }
    assert len(rejected) < 10  # neighbours with one reason are one line of the table
    assert sum(reject.records for reject in rejected) == 60 + 60 + 1 + 30_000


def test_an_endless_line_is_passed_over_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with path.open("wb") as stream:
        stream.write(jsonl(rows(10)) + b'{"text": "')
        for _ in range(40):
            stream.write(b"x" * 1_000_000)
        stream.write(b'"}\n' + jsonl(rows(5, start=10)))
    ids, rejected = read(path)
    assert ids == [f"d{index}" for index in range(15)]
    assert rejected == [(str(path), 11, "unreadable: longer than 32 MB, which is no document", 1)]


def test_a_file_that_vanished_is_an_error_because_it_may_come_back(tmp_path: Path) -> None:
    for name in ("d.parquet", "d.jsonl", "d.warc.gz"):
        with pytest.raises(TraitError, match=name.replace(".", r"\.")):
            list(read_shard(Shard(0, str(tmp_path / name))))


def test_columns_have_the_names_the_corpus_gives_them(tmp_path: Path) -> None:
    named = [
        {"key": 7, "contents": "One.", "link": "https://example.org", "meta": {"a": 1}},
        {"key": 8, "contents": "Two."},
    ]
    (tmp_path / "d.jsonl").write_bytes(jsonl(named))
    parquet(tmp_path / "d.parquet", named, 10)
    for path in tmp_path.iterdir():
        table = load_documents(f"{path} {{text=contents, id=key,url = link, source=meta}}")
        assert table["id"].to_pylist() == ["7", "8"]
        assert table["url"].to_pylist() == ["https://example.org", None]
    for wrong in ("{txt=contents}", "{text}", "{text=}"):
        with pytest.raises(TraitError, match="columns are named like"):
            list_shards(f"{tmp_path}/d.jsonl {wrong}")


# Held out


def test_held_out_documents_stay_when_files_are_added_and_none_is_read(tmp_path: Path) -> None:
    spec = str(tmp_path / "*.parquet")
    for number in range(3):
        parquet(tmp_path / f"{number}.parquet", rows(1_000, 3, 1_000 * number), 500)
    before = set(load_held_out(spec)["id"].to_pylist())
    assert len(before) == pytest.approx(150, abs=40)
    parquet(tmp_path / "0-new.parquet", rows(1_000, 3, 10_000), 500)
    after = set(load_held_out(spec)["id"].to_pylist())
    assert before == {name for name in after if int(name[1:]) < 10_000}
    assert after.isdisjoint(read(spec)[0])
    assert len(read(spec)[0]) + len(after) == 4_000


def test_a_repeated_text_without_ids_is_held_out_everywhere_or_nowhere_however_it_is_cut(tmp_path: Path) -> None:
    spec = str(parquet(tmp_path / "d.parquet", [{"text": f"text {index % 100}"} for index in range(300)], 60))
    held = set(load_held_out(spec)["text"].to_pylist())
    assert 3 <= len(held) <= 5
    for shard_rows in (60, 120, 1_000):
        shards = list_shards(spec, shard_rows=shard_rows)
        texts = [
            text for shard in shards for part in read_shard(shard) for text in part.documents["text"].to_pylist()
        ]
        assert held.isdisjoint(texts)
        assert len(set(texts)) == 100 - len(held)
        again = [reject for shard in shards for part in read_shard(shard) for reject in part.rejected]
        assert len(texts) + len(again) >= 300 - 3 * len(
            held
        )  # in one shard once; the others are counted, and no loss
        assert {reject.reason for reject in again} <= {"skipped: its text was seen before"}


def test_a_large_corpus_is_not_read_to_its_end_for_its_held_out_documents(tmp_path: Path, monkeypatch) -> None:
    for number in range(10):
        ids = pa.array([f"{number}-{index}" for index in range(50_000)])
        pq.write_table(pa.table({"id": ids, "text": ids}), tmp_path / f"{number}.parquet")
    asked = []
    parts = documents._parts
    monkeypatch.setattr(documents, "_parts", lambda shard, seed: asked.append(shard) or parts(shard, seed))
    held = load_held_out(str(tmp_path / "*.parquet"))
    assert held.num_rows == 2_000
    assert len(asked) == 8
    assert len({name.split("-")[0] for name in held["id"].to_pylist()}) == len(asked)


# Samples


def test_a_sample_of_the_demo_is_the_one_that_was_always_drawn() -> None:
    web = load_documents("demo:math/web", seed=2)
    table = sample("demo:math/web", 500, seed=2)
    assert table["text"].to_pylist() == drawn(web, 500, 2)
    old = np.sort(np.random.default_rng(2).permutation(web.num_rows)[:500])
    assert table["id"].to_pylist() == web["id"].take(old).to_pylist()


def test_a_sample_of_a_few_shards_is_uniform_and_drawn_from_the_same_documents(tmp_path: Path) -> None:
    for number in range(3):
        parquet(tmp_path / f"{number}.parquet", rows(500, start=450 * number), 100)  # 50 ids twice
    spec = str(tmp_path / "*.parquet")
    assert sample(spec, 200, 1)["text"].to_pylist() == drawn(load_documents(spec), 200, 1)
    assert sample(spec, 10_000, 1)["id"].to_pylist() == load_documents(spec)["id"].to_pylist()


def test_a_small_corpus_is_read_once_for_a_sample(tmp_path: Path, monkeypatch) -> None:
    spec, asked, parts = str(parquet(tmp_path / "d.parquet", rows(1_000), 100)), [], documents._parts
    list_shards(spec)
    monkeypatch.setattr(documents, "_parts", lambda shard, seed: asked.append(shard) or parts(shard, seed))
    sample(spec, 100, 1)
    assert len(asked) == 1


def test_a_sample_of_many_shards_is_spread_over_them_and_repeats_with_its_seed(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number:03d}.jsonl").write_bytes(jsonl(rows(40 if number % 2 else 4, 3, 100 * number)))
    spec = str(tmp_path / "*.jsonl")
    table = sample(spec, 640, 1)
    assert table.num_rows == 640
    assert table.equals(sample(spec, 640, 1))
    assert not table.equals(sample(spec, 640, 2))
    numbers = [int(name[1:]) for name in table["id"].to_pylist()]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == len(numbers)
    per_shard = np.bincount(np.array(numbers) // 100)
    assert per_shard.max() <= 25  # of 40
    assert (per_shard > 0).sum() >= 64
    assert set(numbers).isdisjoint(int(name[1:]) for name in load_held_out(spec)["id"].to_pylist())


# Places


def test_files_of_an_fsspec_store_are_read_like_local_ones(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    parquet(tmp_path / "b.parquet", rows(300), 100)
    store.pipe("/store/deep/b.parquet", (tmp_path / "b.parquet").read_bytes())
    store.pipe("/store/deep/a.jsonl.gz", gzip.compress(jsonl(rows(200, start=1_000))))
    store.pipe("/store/deep/c.jsonl", jsonl(rows(200, start=2_000)))
    store.pipe("/store/deep/d.jsonl.zst", _zstd(jsonl(rows(200, start=3_000)), tmp_path))
    shards = list_shards("memory://store/*/*", shard_rows=100)
    assert [shard.source.rsplit("/", 1)[1][0] for shard in shards] == ["a", "b", "b", "b", "c", "d"]
    assert len(every("memory://store/*/*")) == 900
    assert documents.fingerprint("memory://store/*/*") == documents.fingerprint("memory://store/*/*")
    with pytest.raises(TraitError, match=r"No file matches memory://store/\*\.parquet"):
        list_shards("memory://store/*.parquet")
    with pytest.raises(TraitError, match="cannot be listed"):
        list_shards("nosuchprotocol://x/*.parquet")


def _zstd(data: bytes, folder: Path) -> bytes:
    with pa.CompressedOutputStream(str(folder / "z"), "zstd") as stream:
        stream.write(data)
    return (folder / "z").read_bytes()


def test_a_file_behind_http_is_read(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(jsonl(rows(100))))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        assert len(read(f"{address}/d.jsonl.gz")[0]) == 95
        with pytest.raises(TraitError, match="No file matches"):
            list_shards(f"{address}/missing.jsonl.gz")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(TraitError, match=r"d\.jsonl\.gz cannot be read"):
        list(read_shard(Shard(0, f"{address}/d.jsonl.gz")))


# Memory


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"d.{kind}"
    text = zlib.compress(random.Random(1).randbytes(9_000)).hex()[:16_000]
    if kind == "jsonl":
        with path.open("w") as stream:
            stream.writelines(f'{{"id": "{index}", "text": "{text}"}}\n' for index in range(12_000))
    else:
        schema = pa.schema([("id", pa.string()), ("text", pa.string())])
        with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
            for start in range(0, 12_000, 3_000):
                ids = [str(start + index) for index in range(3_000)]
                writer.write_table(pa.table([ids, [text] * 3_000], schema), row_group_size=3_000)
    code = (
        "import resource, sys; from trait_kit.selection.documents import *\n"
        "shards = list_shards(sys.argv[1], shard_rows=10**9)\n"
        "unit = 2 ** (20 if sys.platform == 'darwin' else 10)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit\n"
        "before, size = peak(), 0\n"
        "for part in read_shard(shards[0]):\n    size += part.documents['text'].nbytes\n"
        "print(peak() - before, size)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    ).stdout
    grown, size = map(int, output.split())
    assert size > 180_000_000
    assert grown < 120
