"""WARC and WET files: pages to text, lying and damaged records, pages that hang the parser, the cache."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from trait_kit.engine import web as web_pages
from trait_kit.engine.files import TraitError
from trait_kit.engine.records import Damage
from trait_kit.engine.streams import find
from trait_kit.engine.web import read_web
from trait_kit.selection.corpus import Part, list_shards, read_shard
from trait_kit.selection.documents import load_documents

LOCAL = Path(__file__).parent.parent / ".." / "shared" / "data" / "web"
needs_local_data = pytest.mark.skipif(not LOCAL.is_dir(), reason="../shared/data/web (public web pages) is not there")

GERMAN = (
    "Die Gemüsebrühe köchelt über Stunden, während draußen der Föhn über die Dächer fegt und die Gäste fröhlich grüßen. "
)
JAPANESE = "東京は日本の首都であり、世界で最も人口の多い都市圏のひとつである。多くの人々が毎日電車で通勤している。"
ENGLISH = "The river rises in the northern hills and flows for two hundred miles through forests and farms to the sea. "


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAIT_KIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "extracted"


def page(text: str, meta: str = "") -> str:
    head = f'<meta charset="{meta}">' if meta else ""
    body = "".join(f"<p>{text * 3}</p>" for _ in range(4))
    menu = "<nav><ul><li><a href='/'>Home</a></li><li><a href='/b'>Imprint</a></li></ul></nav>"
    return f"<html><head>{head}<title>T</title></head><body>{menu}<article><h1>Title</h1>{body}</article></body></html>"


def record(
    number: int,
    body: bytes,
    *,
    kind: str = "response",
    http: str = "text/html; charset=utf-8",
    status: str = "200 OK",
    length=None,
) -> bytes:
    if kind == "response":
        body = f"HTTP/1.1 {status}\r\nContent-Type: {http}\r\n\r\n".encode() + body
    mime = "application/http; msgtype=response" if kind == "response" else "text/plain"
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number:04d}>\r\n"
        f"WARC-Target-URI: https://example.org/{number}\r\nContent-Type: {mime}\r\n"
        f"Content-Length: {len(body) if length is None else length(len(body))}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def good(number: int, text: str = ENGLISH) -> bytes:
    return record(number, page(text).encode())


def write(path: Path, records: list[bytes]) -> Path:
    packed = [gzip.compress(each) for each in records] if path.suffix == ".gz" else records
    path.write_bytes(b"".join(packed))
    return path


def read(path: Path, **options) -> tuple[list[dict], list[tuple[int, str]]]:
    parts = list(read_web(find(str(path))[0], **options))
    documents = [row for part in parts for row in part.documents.to_pylist()]
    return documents, [(row, reason) for part in parts for _, row, reason, _ in part.rejected]


@pytest.mark.parametrize("name", ["d.warc", "d.warc.gz"])
def test_pages_become_documents_and_everything_else_has_a_reason(tmp_path: Path, name: str) -> None:
    path = write(
        tmp_path / name,
        [
            record(1, b"software: x", kind="warcinfo"),
            good(2),
            record(3, b"GET / HTTP/1.1", kind="request"),
            record(4, b"%PDF-1.4", http="application/pdf"),
            record(5, b"<html><p>Gone</p></html>", status="404 Not Found"),
            record(6, b"<html><body></body></html>"),
            record(7, b"fetchTimeMs: 3", kind="metadata"),
            record(8, b"x" * 8_000_001),
            record(9, gzip.compress(page(GERMAN).encode()), http="text/html\r\nContent-Encoding: gzip"),
            good(10),
        ],
    )
    documents, rejected = read(path)
    assert [row["row"] for row in documents] == [2, 9, 10]
    first = documents[0]
    assert (first["id"], first["url"]) == ("<urn:uuid:0002>", "https://example.org/2")
    assert first["source"] == first["file"] == str(path)
    assert ENGLISH.strip() in first["text"]
    assert "Imprint" not in first["text"]
    assert GERMAN.strip() in documents[1]["text"]
    assert rejected == [
        (4, "skipped: not HTML: application/pdf"),
        (5, "skipped: HTTP status 404"),
        (6, "skipped: no main text"),
        (8, "skipped: larger than 8 MB"),
    ]


@pytest.mark.parametrize(
    ("text", "encoding", "header", "meta"),
    [
        (GERMAN, "latin-1", "iso-8859-1", ""),
        (GERMAN, "latin-1", "", "iso-8859-1"),
        (GERMAN, "latin-1", "", ""),
        (GERMAN, "latin-1", "utf-8", "windows-1252"),  # the header is wrong
        (GERMAN, "utf-8", "no-such-charset", ""),
        (GERMAN + "„Straße“ – 5 €. ", "cp1252", "iso-8859-1", ""),
        (JAPANESE, "shift_jis", "Shift_JIS", ""),
        (JAPANESE, "shift_jis", "", "Shift_JIS"),
        (JAPANESE, "utf-16", "", ""),
    ],
)
def test_text_in_any_encoding_is_unharmed(tmp_path: Path, text: str, encoding: str, header: str, meta: str) -> None:
    http = f"text/html; charset={header}" if header else "text/html"
    path = write(tmp_path / "d.warc.gz", [record(1, page(text, meta).encode(encoding), http=http)])
    documents, rejected = read(path)
    assert rejected == []
    assert text.strip() in documents[0]["text"]


def test_wet_texts_are_taken_as_they_are(tmp_path: Path, cache: Path) -> None:
    records = [
        record(1, b"x", kind="warcinfo"),
        record(2, GERMAN.encode(), kind="conversion"),
        record(3, b" \n", kind="conversion"),
        record(4, b"caf\xe9", kind="conversion"),
        record(5, JAPANESE.encode(), kind="conversion"),
    ]
    for name in ("d.wet", "d.wet.gz", "d.warc.wet.gz"):
        documents, rejected = read(write(tmp_path / name, records))
        assert [row["text"] for row in documents] == [GERMAN.strip(), JAPANESE]
        assert rejected == [(3, "skipped: no main text"), (4, "text is not UTF-8")]
    assert not cache.exists()


# Damage


@pytest.mark.parametrize("name", ["d.warc", "d.warc.gz"])
@pytest.mark.parametrize(
    ("length", "reason"),
    [
        (lambda n: n + 300, "its Content-Length does not fit"),
        (lambda n: n + 10**9, "its Content-Length does not fit"),
        (lambda n: n - 20, "its Content-Length does not fit"),
        (lambda _: 0, "its Content-Length does not fit"),
        (lambda _: -5, "its Content-Length is no length"),
        (lambda _: "many", "its Content-Length is no length"),
        (lambda _: 10**40, "its Content-Length is no length"),
    ],
)
def test_a_lying_length_costs_its_own_record_only(tmp_path: Path, name: str, length, reason: str) -> None:
    path = write(tmp_path / name, [good(1), record(2, page(ENGLISH).encode(), length=length), good(3), good(4)])
    documents, rejected = read(path)
    assert [row["row"] for row in documents] == [1, 3, 4]
    assert rejected == [(2, reason)]


def test_damaged_compression_costs_the_records_it_hit(tmp_path: Path) -> None:
    packed = [gzip.compress(good(number)) for number in range(1, 21)]
    packed[9] = packed[9][:100] + b"\0" * 40 + packed[9][140:]
    path = tmp_path / "d.warc.gz"
    path.write_bytes(b"".join(packed)[:-30])
    parts = [part for shard in list_shards(str(path)) for part in read_shard(shard)]
    kept = {url for part in parts for url in part.documents["url"].to_pylist()}
    lost = {f"https://example.org/{number}" for number in range(1, 21)} - kept
    assert lost == {"https://example.org/10", "https://example.org/20"}
    rejected = [reject for part in parts for reject in part.rejected]
    assert len(rejected) == sum(len(part.damage) for part in parts) == 2
    assert all("cut off or damaged after record" in reason and 1 <= records <= 2 for _, _, reason, records in rejected)
    with pytest.raises(Damage, match=r"d\.warc\.gz: its compressed data is cut off or damaged after record 9"):
        load_documents(str(path))
    (tmp_path / "no.warc.gz").write_bytes(b"no gzip at all")
    (tmp_path / "no.warc").write_bytes(b"no WARC at all")
    assert read(tmp_path / "no.warc.gz")[1][0][1].startswith("its compressed data is cut off or damaged after record 0")
    assert read(tmp_path / "no.warc")[1] == [(1, "not a WARC record")]
    (tmp_path / "no.warc").write_bytes(good(1).replace(b"\r\n", b"\n") * 30_000)  # 20 MB without a record's end
    assert read(tmp_path / "no.warc")[1] == [(1, "not a WARC record")]


HOSTILE = """
import os, sys, time
sys.path.insert(0, {folder!r})
import html_worker
def extract(page, charset):
    if b"HANG" in page: time.sleep(60)
    if b"LOOP" in page: int("9" * 4000) ** 9999999
    if b"CRASH" in page: os.abort()
    if b"RAISE" in page: raise ValueError("private words")
    return html_worker.extract(page, charset)
html_worker.serve(extract)
"""


def test_a_page_that_hangs_or_crashes_the_parser_costs_its_time_and_nothing_else(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(HOSTILE.format(folder=str(Path(web_pages.__file__).parent)))
    bad = [record(number, page(word).encode()) for number, word in enumerate(("HANG", "LOOP", "CRASH", "RAISE"), start=2)]
    started = time.monotonic()
    documents, rejected = read(write(tmp_path / "d.warc", [good(1), *bad, good(6)]), seconds_per_page=0.5, worker=worker)
    assert time.monotonic() - started < 20
    assert [row["row"] for row in documents] == [1, 6]
    assert rejected == [
        (2, "its HTML took the parser more than 0.5 s"),
        (3, "its HTML took the parser more than 0.5 s"),
        (4, f"its HTML crashed the parser (exit code {-signal.SIGABRT})"),
        (5, "its HTML cannot be parsed (ValueError)"),
    ]


@pytest.mark.parametrize(
    "html",
    [
        b"<div>" * 200_000,
        b"<table><tr><td>x" * 5_000 + b"</html>",
        b"<html><!--" + b"-" * 1_000_000,
        b"\x00" * 10_000,
        b"<p>" + b"&#x10ffff;&#xd800;" * 1_000,
        b"<a " + b"x='" * 100_000,
    ],
)
def test_hostile_html_never_stops_a_file(tmp_path: Path, html: bytes) -> None:
    documents, rejected = read(write(tmp_path / "d.warc", [record(1, html), good(2)]), seconds_per_page=5)
    assert documents[-1]["row"] == 2
    assert len(documents) + len(rejected) == 2


# The cache


def test_a_file_is_extracted_once_until_it_changes(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "d.warc.gz", [good(1), record(2, b"x", status="500 No"), good(3)])
    first = read(path)
    asked = []
    monkeypatch.setattr(web_pages, "_extract", lambda *_, _extract=web_pages._extract: asked.append(1) or _extract(*_))
    assert read(path) == first
    assert asked == []
    os.utime(path, ns=(1, 1))
    assert read(path) == first
    assert asked == [1]
    assert len(list(cache.iterdir())) == 2


def test_a_killed_extraction_leaves_whole_parts_and_goes_on_after_them(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_pages, "_PART_RECORDS", 10)
    path = write(tmp_path / "d.warc.gz", [good(number) for number in range(1, 46)])
    code = (
        "import sys\nfrom trait_kit.engine import web as web_pages\nfrom trait_kit.engine.streams import find\n"
        "web_pages._PART_RECORDS = 10\n"
        "for part in web_pages.read_web(find(sys.argv[1])[0]):\n    print(part.documents.num_rows, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == process.stdout.readline() == "10\n"
    process.kill()
    process.communicate()
    (folder,) = cache.iterdir()
    assert not (folder / "finished.json").exists()
    done = {file: file.stat().st_mtime_ns for file in folder.glob("part-*.parquet")}
    assert 2 <= len(done) < 5
    (folder / ".part-00004.parquet.tmp-1").write_bytes(b"half")
    documents, _ = read(path)
    assert [row["row"] for row in documents] == list(range(1, 46))
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in done.items())
    assert json.loads((folder / "finished.json").read_text())["parts"] == 5
    assert not list(folder.glob("*.tmp-*")) + list(folder.glob(".*.tmp-*"))


def test_processes_that_ask_at_once_share_the_work(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "d.warc.gz", [good(number) for number in range(1, 31)])
    code = (
        "import sys\nfrom trait_kit.engine import web as web_pages\nfrom trait_kit.engine.streams import find\n"
        "web_pages._PART_RECORDS = 10\nextract = web_pages._extract\n"
        "web_pages._extract = lambda *given: (print('extracted'), extract(*given))\n"
        "for part in web_pages.read_web(find(sys.argv[1])[0]):\n    print(*part.documents['row'].to_pylist())\n"
    )
    pipes = {"stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes) for _ in range(2)]
    outputs = [process.communicate()[0].splitlines() for process in processes]
    rows = [[int(number) for line in output if line != "extracted" for number in line.split()] for output in outputs]
    assert rows == [list(range(1, 31))] * 2
    assert sum(output.count("extracted") for output in outputs) == 3


def test_missing_libraries_are_named_with_the_way_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(web_pages, "version", missing)
    for name in ("d.warc", "d.wet"):
        with pytest.raises(TraitError, match=r"pip install 'trait-kit\[web\]'"):
            read(write(tmp_path / name, [good(1)]))


# Real pages


@needs_local_data
def test_real_pages_keep_their_words() -> None:
    spec = str(LOCAL / "cc" / "*.warc.gz")
    parts: list[Part] = [part for shard in list_shards(spec) for part in read_shard(shard)]
    documents = [row for part in parts for row in part.documents.to_pylist()]
    reasons = Counter(reason for part in parts for _, _, reason, _ in part.rejected)
    assert len(documents) >= 20
    assert all(row["url"].startswith("https://") for row in documents)
    assert all(reason.startswith("skipped: ") for reason in reasons)


@needs_local_data
def test_real_german_pages_keep_their_umlauts(tmp_path: Path) -> None:
    source = LOCAL / "trafilatura" / "pages-0.warc.gz"
    with gzip.open(source, "rb") as stream:
        data = stream.read(3_000_000)
    (tmp_path / "d.warc").write_bytes(data[: data.rindex(b"\r\n\r\nWARC/1.") + 4])
    documents, rejected = read(tmp_path / "d.warc")
    assert len(documents) >= 20
    assert all(reason.startswith("skipped: ") for _, reason in rejected)
    texts = " ".join(row["text"] for row in documents)
    assert "\ufffd" not in texts
    assert not re.search("Ã[¤¶¼Ÿ„–œ]", texts)  # UTF-8 read as Latin-1
    words = Counter(re.findall(r"\w+", texts.lower()))
    assert min(words[word] for word in ("für", "über", "können", "und")) >= 5
