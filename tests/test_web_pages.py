"""WARC and WET files: pages to text, lying and damaged records, pages that hang the parser, the cache."""

from __future__ import annotations

import faulthandler
import gzip
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from trait_kit.engine import web as web_pages
from trait_kit.engine.files import TraitError
from trait_kit.engine.readers import Part
from trait_kit.engine.streams import find
from trait_kit.engine.web import read_web
from trait_kit.selection.documents import list_shards, read_shard

LOCAL = Path(os.environ.get("TRAIT_KIT_TEST_DATA", "no such folder")) / "web"
needs_local_data = pytest.mark.skipif(not LOCAL.is_dir(), reason="TRAIT_KIT_TEST_DATA names no folder of public data")

GERMAN = (
    "Die Gemüsebrühe köchelt über Stunden, während draußen der Föhn über die Dächer fegt und die Gäste fröhlich grüßen. "
)
JAPANESE = "東京は日本の首都であり、世界で最も人口の多い都市圏のひとつである。多くの人々が毎日電車で通勤している。"
ENGLISH = "The river rises in the northern hills and flows for two hundred miles through forests and farms to the sea. "


LIES = (lambda n: n - 20, lambda _: 0, lambda _: -5, lambda _: "many", lambda _: 10**40)
_LIED = "unreadable: no WARC record of the length that it states"


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
    parts = list(read_web(find(str(path))[0], path.parent / "cache" / "extracted", **options))
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
        assert rejected == [(3, "skipped: no main text"), (4, "unreadable: its text or HTTP message (UnicodeDecodeError)")]
    assert not cache.exists()


# Damage


@pytest.mark.parametrize("length", LIES)
def test_a_lying_length_costs_its_own_record_only(tmp_path: Path, length) -> None:
    for name in ("d.warc", "d.warc.gz"):
        path = write(tmp_path / name, [good(1), record(2, page(ENGLISH).encode(), length=length), good(3), good(4)])
        documents, rejected = read(path)
        assert [row["row"] for row in documents] == [1, 3, 4]
        assert rejected == [(2, _LIED)]


@pytest.mark.parametrize(("more", "kept"), [(300, [1, 4]), (10**9, [1])])
def test_a_length_too_long_costs_the_records_that_it_covers(tmp_path: Path, more: int, kept: list[int]) -> None:
    bad = record(2, page(ENGLISH).encode(), length=lambda n: n + more)
    for name in ("d.warc", "d.warc.gz"):
        documents, rejected = read(write(tmp_path / name, [good(1), bad, good(3), good(4)]))
        assert [row["id"] for row in documents] == [f"<urn:uuid:{number:04d}>" for number in kept]
        assert rejected == [(2, _LIED)]


@pytest.mark.parametrize("keep", [0.6, 0.999])
def test_a_file_that_is_cut_off_counts_what_is_missing(tmp_path: Path, keep: float) -> None:
    data = write(tmp_path / "d.warc.gz", [good(number) for number in range(1, 41)]).read_bytes()
    (tmp_path / "d.warc.gz").write_bytes(data[: int(len(data) * keep)])
    documents, rejected = read(tmp_path / "d.warc.gz")
    assert len(documents) >= 40 * keep - 15
    assert len(rejected) == 1 and rejected[0][1].startswith("damaged: its compressed data after record")


def test_other_versions_and_ends_are_read_and_what_cannot_be_read_counts_by_its_size(tmp_path: Path) -> None:
    records = b"".join(good(number) for number in range(1, 4))
    (tmp_path / "old.warc").write_bytes(records.replace(b"WARC/1.0", b"WARC/0.18"))
    (tmp_path / "one.warc").write_bytes(records.replace(b"\r\n\r\nWARC/", b"\r\nWARC/"))
    for name in ("old", "one"):
        assert [row["row"] for row in read(tmp_path / f"{name}.warc")[0]] == [1, 2, 3]
    (tmp_path / "lf.warc").write_bytes(records.replace(b"\r\n", b"\n"))
    assert read(tmp_path / "lf.warc") == ([], [(1, _LIED)])  # its lengths count the missing bytes
    (tmp_path / "no.warc").write_bytes(b"no WARC at all" * 2_000_000)
    (part,) = read_web(find(str(tmp_path / "no.warc"))[0], tmp_path)
    assert part.rejected == [(str(tmp_path / "no.warc"), 1, _LIED, 466)]


def test_a_page_that_hangs_or_crashes_the_parser_costs_its_time_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    def hostile(html: bytes, charset: str, extract=web_pages.extract) -> str:
        if b"HANG" in html:
            time.sleep(60)
        if b"LOOP" in html:
            int("9" * 4000) ** 9999999
        if b"CRASH" in html:
            faulthandler.disable()
            os.abort()
        if b"RAISE" in html:
            raise KeyError("private words")
        return extract(html, charset)

    monkeypatch.setattr(web_pages, "extract", hostile)  # the child is a fork of this process
    bad = [record(number, page(word).encode()) for number, word in enumerate(("HANG", "CRASH", "LOOP", "RAISE"), start=2)]
    started = time.monotonic()
    documents, rejected = read(write(tmp_path / "d.warc", [good(1), *bad, good(6)]), seconds_per_page=2)
    assert time.monotonic() - started < 30
    assert [row["row"] for row in documents] == [1, 6]
    assert rejected == [
        (2, "unreadable: its HTML took the parser more than 2 s"),
        (3, "unreadable: its HTML crashed the parser"),
        (4, "unreadable: its HTML took the parser more than 2 s"),
        (5, "unreadable: its HTML cannot be parsed (KeyError)"),
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


def test_a_file_is_extracted_once_until_its_content_changes(tmp_path: Path, cache: Path, monkeypatch) -> None:
    path = write(tmp_path / "d.warc.gz", [good(1), record(2, b"x", status="500 No"), good(3)])
    first, asked, pages = read(path), [], web_pages._document
    monkeypatch.setattr(web_pages, "_document", lambda *piece: asked.append(1) or pages(*piece))
    os.utime(path, ns=(1, 1))
    (tmp_path / "copy.warc.gz").write_bytes(path.read_bytes())
    assert read(path) == first
    assert [row["text"] for row in read(tmp_path / "copy.warc.gz")[0]] == [row["text"] for row in first[0]]
    assert asked == []
    write(path, [good(1)])
    assert len(read(path)[0]) == len(asked) == 1
    assert len(list(cache.glob("*.parquet"))) == 2


READ = """
import sys, os
from pathlib import Path
from trait_kit.engine import web
from trait_kit.engine.streams import find
page = web._document
web._document = lambda *piece: print("read", flush=True) or page(*piece)
for part in web.read_web(find(sys.argv[1])[0], Path(sys.argv[2])):
    print(*part.documents["row"].to_pylist())
"""


def test_processes_that_ask_at_once_share_the_work_and_a_killed_one_leaves_nothing_half(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "d.warc.gz", [good(number) for number in range(1, 31)])
    command = [sys.executable, "-c", READ, str(path), str(cache)]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert [killed.stdout.readline() for _ in range(5)] == ["read\n"] * 5
    killed.kill()
    killed.communicate()
    assert not list(cache.glob("*.parquet"))
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0].splitlines() for process in processes]
    assert [output[-1].split() for output in outputs] == [[str(number) for number in range(1, 31)]] * 2
    assert sum(output.count("read") for output in outputs) == 30
    assert [file.suffix for file in cache.iterdir() if not file.name.startswith(".")] == [".parquet"]
    assert not list(cache.glob(".*.tmp-*"))


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
