"""WARC and WET files: pages to text, lying and damaged records, pages that hang the parser, the cache."""

from __future__ import annotations

import faulthandler
import gzip
import os
import random
import re
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import pytest

from trait_kit.reading import web as web_pages
from trait_kit.reading.readers import Part
from trait_kit.reading.streams import find
from trait_kit.reading.web import read_web
from trait_kit.selection.documents import list_shards, read_shard

LOCAL = Path(os.environ.get("TRAIT_KIT_TEST_DATA", "no such folder")) / "web"
needs_local_data = pytest.mark.skipif(
    not LOCAL.is_dir(), reason="TRAIT_KIT_TEST_DATA names no folder of public data"
)

GERMAN = (
    "Die Gemüsebrühe köchelt über Stunden, während draußen der Föhn "
    "über die Dächer fegt und die Gäste fröhlich grüßen. "
)
JAPANESE = (
    "東京は日本の首都であり、世界で最も人口の多い都市圏のひとつである。多くの人々が毎日電車で通勤している。"
)
ENGLISH = (
    "The river rises in the northern hills and flows for two hundred miles through forests and farms to the sea. "
)


LIES = (lambda n: n - 20, lambda _: 0, lambda _: -5, lambda _: "many", lambda _: 10**40)


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
        (JAPANESE, "utf-16", "iso-8859-1", "utf-8"),  # the byte order mark is right
        (JAPANESE, "euc_jp", "utf-8", "utf-8"),  # all are wrong
        (JAPANESE, "iso2022_jp", "", "iso-2022-jp"),  # seven bits, which UTF-8 would take too
        (JAPANESE + "①㈱", "cp932", "Shift_JIS", ""),  # what the label means on the web
        ("다람쥐 헌 쳇바퀴에 타고파 똠방각하. ", "cp949", "euc-kr", ""),
    ],
)
def test_text_in_any_encoding_is_unharmed(
    tmp_path: Path, text: str, encoding: str, header: str, meta: str
) -> None:
    http = f"text/html; charset={header}" if header else "text/html"
    path = write(tmp_path / "d.warc.gz", [record(1, page(text, meta).encode(encoding), http=http)])
    documents, rejected = read(path)
    assert rejected == []
    assert text.strip() in documents[0]["text"]


def test_one_broken_byte_costs_one_letter(tmp_path: Path) -> None:
    body = page(GERMAN).encode()
    path = write(
        tmp_path / "d.warc",
        [record(1, body.replace(b"hlich", b"hl\xe4ich", 1)), record(2, body[:-100] + b"\xc3")],
    )
    documents, rejected = read(path)
    assert (rejected, [row["text"].count("Gemüsebrühe") for row in documents]) == ([], [12, 12])


def test_wet_texts_are_taken_as_they_are(tmp_path: Path, cache: Path) -> None:
    records = [
        record(1, b"x", kind="warcinfo"),
        record(2, GERMAN.encode(), kind="conversion"),
        record(3, b" \n", kind="conversion"),
        record(4, GERMAN.encode("latin-1"), kind="conversion"),
        record(5, JAPANESE.encode(), kind="conversion"),
    ]
    for name in ("d.wet", "d.wet.gz", "d.warc.wet.gz"):
        documents, rejected = read(write(tmp_path / name, records))
        assert [row["text"] for row in documents] == [GERMAN.strip(), GERMAN.strip(), JAPANESE]
        assert rejected == [(3, "skipped: no main text")]


# Damage


@pytest.mark.parametrize("length", LIES)
def test_a_lying_length_costs_its_own_record_only(tmp_path: Path, length) -> None:
    for name in ("d.warc", "d.warc.gz"):
        path = write(
            tmp_path / name, [good(1), record(2, page(ENGLISH).encode(), length=length), good(3), good(4)]
        )
        documents, rejected = read(path)
        assert {"<urn:uuid:0001>", "<urn:uuid:0003>", "<urn:uuid:0004>"} <= {row["id"] for row in documents}
        assert len(documents) == 4 or all(reason.startswith("unreadable: ") for _, reason in rejected)
        assert (
            (len(documents) == 4) == (not rejected) == (length(100) == 80)
        )  # some bytes are missing: the page is read


@pytest.mark.parametrize(("more", "kept"), [(300, [1, 4]), (10**9, [1]), (10**6, [1])])
def test_a_length_too_long_costs_the_records_that_it_covers(tmp_path: Path, more: int, kept: list[int]) -> None:
    bad = record(2, page(ENGLISH).encode(), length=lambda n: n + more)
    for name in ("d.warc", "d.warc.gz"):
        path = write(tmp_path / name, [good(1), bad, good(3), good(4)])
        parts = list(read_web(find(str(path))[0], path.parent / "cache" / "extracted"))
        documents = [name for part in parts for name in part.documents["id"].to_pylist()]
        assert documents == [f"<urn:uuid:{number:04d}>" for number in kept]
        (lost,) = [reject for part in parts for reject in part.rejected]
        assert lost.reason.endswith(" bytes without a whole WARC record")
        assert lost.records == 4 - len(kept)  # by the size of those before


@pytest.mark.parametrize("keep", [0.6, 0.999])
def test_a_file_that_is_cut_off_counts_what_is_missing(tmp_path: Path, keep: float) -> None:
    data = write(tmp_path / "d.warc.gz", [good(number) for number in range(1, 41)]).read_bytes()
    (tmp_path / "d.warc.gz").write_bytes(data[: int(len(data) * keep)])
    documents, rejected = read(tmp_path / "d.warc.gz")
    assert len(documents) >= 40 * keep - 15
    assert len(rejected) == 1 and rejected[0][1].startswith("damaged: its data after record")


def test_other_versions_and_ends_are_read_and_what_cannot_be_read_counts_by_its_size(tmp_path: Path) -> None:
    records = b"".join(good(number) for number in range(1, 4))
    with_lf = (good(number).replace(b"\r\n", b"\n") for number in range(1, 4))
    stated = [
        re.sub(rb"Length: \d+", b"Length: %d" % (len(each.partition(b"\n\n")[2]) - 2), each) for each in with_lf
    ]
    for name, data in (
        ("old", records.replace(b"WARC/1.0", b"WARC/0.18")),
        ("one", records.replace(b"\r\n\r\nWARC/", b"\r\nWARC/")),
        ("none", records.replace(b"\r\n\r\nWARC/", b"WARC/")),
        ("lf", b"".join(stated)),
        ("junk", records.replace(b"\r\n\r\nWARC/", b"\r\n\r\n" + b"\0" * 50 + b"\r\nWARC/")),
    ):
        (tmp_path / f"{name}.warc").write_bytes(data)
        (tmp_path / f"{name}.warc.gz").write_bytes(gzip.compress(data))
        for path in (tmp_path / f"{name}.warc", tmp_path / f"{name}.warc.gz"):
            documents, rejected = read(path)
            assert ([row["id"][-2] for row in documents], rejected) == (["1", "2", "3"], [])
    (tmp_path / "no.warc").write_bytes(b"no WARC at all" * 2_000_000)
    (part,) = read_web(find(str(tmp_path / "no.warc"))[0], tmp_path)
    reason = "unreadable: 28,000,000 bytes without a whole WARC record"
    assert part.rejected == [(str(tmp_path / "no.warc"), 1, reason, 466)]
    (tmp_path / "more.warc").write_bytes(records + b"no WARC at all" * 2_000 + b"\r\n" + records)
    parts = list(read_web(find(str(tmp_path / "more.warc"))[0], tmp_path))
    assert sum(len(part.documents) for part in parts) == 6
    assert (
        10 < sum(reject.records for part in parts for reject in part.rejected) < 20
    )  # of 1.7 kB, as those before


PAGE = page(ENGLISH).encode()


@pytest.mark.parametrize(
    ("http", "body"),
    [
        ("text/html, text/html; charset=utf-8", PAGE),
        ("text/html\r\nContent-Type: text/html; charset=utf-8", PAGE),
        ("application/xhtml+xml", PAGE),
        ("TEXT/HTML;CHARSET=UTF-8", PAGE),
        ("\r\nX-Other: none", b"\xef\xbb\xbf" + PAGE),  # no content type, but a byte order mark
        ("text/html\r\nTransfer-Encoding: chunked", PAGE),  # is not
        ("text/html\r\nTransfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(PAGE), PAGE)),
        ("text/html\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip", gzip.compress(PAGE)),  # one of both
        ("text/html\r\nContent-Encoding: gzip", PAGE),  # is not
        ("text/html\r\nContent-Encoding: br", PAGE),  # is not
        ("text/html\r\nContent-Encoding: utf-8", PAGE),  # is none
        ("text/html\r\nContent-Encoding: deflate", zlib.compress(PAGE)),
        ("text/html\r\nContent-Encoding: deflate", zlib.compress(PAGE, wbits=-15)),  # raw, as many servers do
        ("text/html\r\nContent-Encoding: deflate", PAGE),  # is not
        ("text/html", gzip.compress(PAGE)),  # nobody says so
    ],
)
def test_a_page_is_read_whatever_its_header_claims(tmp_path: Path, http: str, body: bytes) -> None:
    documents, rejected = read(write(tmp_path / "d.warc.gz", [record(1, body, http=http)]))
    assert rejected == []
    assert documents[0]["text"].count(ENGLISH.strip()) == 12


@pytest.mark.parametrize(
    "body", [b"\x9d\x03\x1f\x00\x02\xff" * 3, zlib.compress(b"<html>no", 9)[3:], bytes(range(120))]
)
def test_a_short_body_that_is_no_text_is_no_document(tmp_path: Path, body: bytes) -> None:
    documents, rejected = read(write(tmp_path / "d.warc.gz", [record(1, body)]))
    assert documents == [] and len(rejected) == 1


def test_resources_conversions_and_bare_headers_are_read_and_other_records_counted(tmp_path: Path) -> None:
    def other(number: int, kind: str, mime: str, body: bytes) -> bytes:
        plain = record(number, body, kind="x").replace(b"Type: x", f"Type: {kind}".encode(), 1)
        return plain.replace(b"Content-Type: text/plain", f"Content-Type: {mime}".encode())

    http, noise = "application/http; msgtype=response", gzip.compress(random.Random(1).randbytes(9_000))
    records = [
        other(1, "resource", "text/html; charset=iso-8859-1", page(GERMAN).encode("latin-1")),
        other(2, "conversion", "text/html", page(ENGLISH).encode()),
        other(3, "resource", "text/plain", b"--tries=3"),  # how the crawler was called
        other(4, "resource", "image/png", b"\x89PNG"),
        other(5, "response", "text/dns", b"example.org A 1.2.3.4"),
        other(6, "revisit", http, b"HTTP/1.1 304 Not Modified\r\n\r\n"),
        other(7, "response", http, b"HTTP/1.1 200 OK\nContent-Type: text/html\n\n" + page(ENGLISH).encode()),
        other(
            8,
            "response",
            http,
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + noise,
        ),
        other(9, "response", http, page(ENGLISH).encode()),
    ]
    documents, rejected = read(write(tmp_path / "d.warc.gz", records))
    assert [row["row"] for row in documents] == [1, 2, 7]
    assert GERMAN.strip() in documents[0]["text"]
    assert rejected == [
        (3, "skipped: not HTML: text/plain"),
        (4, "skipped: not HTML: image/png"),
        (5, "skipped: not HTML: text/dns"),
        (6, "skipped: HTTP status 304"),
        (8, "unreadable: its body is no text"),
        (9, "unreadable: no HTTP response"),
    ]


# What a page says

KINDS = {
    "wiki": '<span class="mwe-math-element"><span class="mwe-math-mathml-inline" style="display: none;"><math alttext='
    '"{tex}"><semantics><mi>?</mi><annotation encoding="application/x-tex">{tex}</annotation></semantics></math></span>'
    '<img src="x.svg" class="mwe-math-fallback-image-inline" aria-hidden="true" alt="{tex}"></span>',
    "old wiki": '<img class="tex" alt="{tex}" src="/math/1.png">',
    "wordpress": '<img src="https://s0.wp.com/latex.php?latex=x" alt="{tex}" class="latex">',
    "mathjax 2": '<span class="MathJax_Preview">??</span><span class="MathJax"><nobr>??</nobr></span>'
    '<script type="math/tex">{tex}</script>',
    "mathjax 2, display": '<div class="MathJax_Display">??</div><script type="math/tex; mode=display">{tex}</script>',
    "mathjax 3": '<mjx-container class="MathJax" jax="SVG"><svg></svg><mjx-assistive-mml><math><semantics><mi>?</mi>'
    '<annotation encoding="application/x-tex">{tex}</annotation></semantics></math></mjx-assistive-mml></mjx-container>',
    "mathjax 4": '<mjx-container data-latex="{tex}"><mjx-math><mjx-mi>?</mjx-mi></mjx-math></mjx-container>',
    "source": r"\({tex}\)",
    "katex": '<span class="katex"><span class="katex-mathml"><math><semantics><mi>?</mi><annotation encoding='
    '"application/x-tex">{tex}</annotation></semantics></math></span><span class="katex-html" aria-hidden="true">??</span>'
    "</span>",
    "mathml": '<math xmlns="http://www.w3.org/1998/Math/MathML"><semantics><mi>?</mi><annotation encoding="TeX">'
    "{tex}</annotation></semantics></math>",
}


@pytest.mark.parametrize("kind", KINDS)
def test_formulas_survive_as_tex(kind: str) -> None:
    formulas = [rf"x_{{{n}}}=\frac{{-b\pm\sqrt{{b^2-{n}ac}}}}{{2a}}" for n in range(34)]
    written = [
        f"<p>Case {n} has {KINDS[kind].replace('{tex}', tex)} as roots.</p>" for n, tex in enumerate(formulas)
    ]
    text, lost = web_pages.extract(page(ENGLISH + "".join(written)))
    assert lost == 0
    assert all(text.count(tex) == 3 * 4 for tex in formulas)  # as often as `page` repeats it
    assert "?" not in text
    assert re.search(r"Case 7 has\s+\S+\s+as roots\.", text)


@pytest.mark.parametrize(
    ("mathml", "tex"),
    [
        ("<msup><mi>x</mi><mn>2</mn></msup>", "x^{2}"),
        (
            "<mfrac><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow><msqrt><mn>2</mn></msqrt></mfrac>",
            r"\frac{a + b}{\sqrt{2}}",
        ),
        ("<msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup>", "x_{i}^{2}"),
        (
            "<munderover><mo>∑</mo><mrow><mi>i</mi><mo>=</mo><mn>1</mn></mrow><mi>n</mi></munderover>",
            "∑_{i = 1}^{n}",
        ),
        ("<mroot><mi>y</mi><mn>3</mn></mroot>", r"\sqrt[3]{y}"),
        ("<mi>f</mi><mo>&#x2061;</mo><mfenced><mi>x</mi><mi>y</mi></mfenced>", "f (x, y)"),
        (
            "<mtable><mtr><mtd><mn>1</mn></mtd><mtd><mn>0</mn></mtd></mtr></mtable>",
            r"\begin{matrix} 1 & 0 \end{matrix}",
        ),
        ("<msup><mi>x</mi></msup>", "x"),  # broken
    ],
)
def test_mathml_without_its_tex_is_written_in_tex(mathml: str, tex: str) -> None:
    for wrapped in (
        f"<math>{mathml}</math>",
        f"<mjx-container><mjx-assistive-mml><math>{mathml}</math></mjx-container>",
    ):
        text, lost = web_pages.extract(page(f"{ENGLISH} Then {wrapped} holds."))
        assert (lost, f"Then ${tex}$ holds." in text) == (0, True)


def test_powers_tables_and_code_keep_their_meaning() -> None:
    html = (
        "2<sup>10</sup> = 1024, 10<sup>-3</sup> m, x<sub>1</sub>, b<sup>n+1</sup>, y<sup>n<sub>1</sub></sup>, "
        "the 1<sup>st</sup><sup>[3]</sup></p><table><tr><th>n</th><th>square</th></tr><tr><td>7</td><td>49</td></tr></table>"
        "<pre><code>def f(x):\n    if x:\n        return 1</code></pre><p>"
    )
    text, _ = web_pages.extract(page(ENGLISH + html))
    assert "2^10 = 1024, 10^-3 m, x_1, b^{n+1}, y^{n_1}, the 1st[3]" in text
    assert re.search(r"n\s+square\n7\s+49\n", text)
    assert "def f(x):\n    if x:\n        return 1" in text


def test_a_page_of_hardly_any_main_text_is_taken_whole() -> None:
    hidden = (
        f"<html><body><div class='sidebar'><p>{ENGLISH * 20}</p></div><main><p>Short.</p></main></body></html>"
    )
    assert ENGLISH.strip() in web_pages.extract(hidden)[0]
    assert "Imprint" not in web_pages.extract(page(ENGLISH))[0]


def test_formulas_that_are_left_out_are_counted_and_cost_no_document(tmp_path: Path) -> None:
    drawn = (
        '<span class="katex"><span class="katex-html" aria-hidden="true">x</span></span>'  # its TeX is nowhere
    )
    html = (
        page(ENGLISH)
        .replace("<nav>", '<nav><math alttext="a^2"><mi>a</mi></math>')
        .replace("</h1>", f"</h1>{drawn}")
    )
    path = write(tmp_path / "d.warc", [record(1, html.encode())])
    (part,) = read_web(find(str(path))[0], tmp_path)
    assert len(part.documents) == 1
    assert part.rejected == [(str(path), 1, "skipped: formulas of a page that is read (2)", 0)]


def test_a_page_that_hangs_or_crashes_the_parser_costs_its_time_and_nothing_else(
    tmp_path: Path, monkeypatch
) -> None:
    def hostile(html: str, extract=web_pages.extract) -> tuple[str, int]:
        if "HANG" in html:
            time.sleep(60)
        if "LOOP" in html:
            int("9" * 4000) ** 9999999
        if "CRASH" in html:
            faulthandler.disable()
            os.abort()
        if "RAISE" in html:
            raise KeyError("private words")
        return extract(html)

    monkeypatch.setattr(web_pages, "extract", hostile)  # the child is a fork of this process
    bad = [
        record(number, page(word).encode())
        for number, word in enumerate(("HANG", "CRASH", "LOOP", "RAISE"), start=2)
    ]
    started = time.monotonic()
    documents, rejected = read(write(tmp_path / "d.warc", [good(1), *bad, good(6)]), seconds_per_page=2)
    assert time.monotonic() - started < 30
    assert [row["row"] for row in documents] == [1, 6]
    assert rejected == [
        (2, "unreadable: its page took the parser more than 2 s"),
        (3, "unreadable: its page crashed the parser"),
        (4, "unreadable: its page took the parser more than 2 s"),
        (5, "unreadable: its page cannot be parsed (KeyError)"),
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


def test_a_page_of_thousands_of_formulas_is_read(tmp_path: Path) -> None:
    shown = "".join(
        f"<p>Let <math alttext='a_{{{n}}}'></math> and 10<sup>{n}</sup> be given.</p>" for n in range(4_000)
    )
    long = f"<p>So <math><mrow>{'<mi>y</mi>' * 4_000}</mrow></math> ends it.</p>"
    documents, rejected = read(write(tmp_path / "d.warc", [record(1, page(shown + long).encode())]))
    assert not rejected
    assert all(f"$a_{{{n}}}$ and 10^{n} be" in documents[0]["text"] for n in range(4_000))
    assert " ".join("y" * 4_000) in documents[0]["text"]


# The cache


def test_a_file_is_extracted_once_until_its_content_changes(tmp_path: Path, cache: Path, monkeypatch) -> None:
    path = write(tmp_path / "d.warc.gz", [good(1), record(2, b"x", status="500 No"), good(3)])
    first, asked, pages = read(path), [], web_pages._said
    monkeypatch.setattr(web_pages, "_said", lambda *piece: asked.append(1) or pages(*piece))
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
from trait_kit.reading import web
from trait_kit.reading.streams import find
page = web._said
web._said = lambda *piece: print("read", flush=True) or page(*piece)
for part in web.read_web(find(sys.argv[1])[0], Path(sys.argv[2])):
    print(*part.documents["row"].to_pylist())
"""


def test_processes_that_ask_at_once_share_the_work_and_a_killed_one_leaves_nothing_half(
    tmp_path: Path, cache: Path
) -> None:
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
