"""Pages of the web, the records of WARC and WET files, and files that are a document each, to documents.

FastWARC finds the records, also where one lies about its length: bytes that no whole record claims count as the documents
that they probably held. A file is extracted once, in a child process (datatrove's sandbox): a page that hangs, crashes or
fills the memory ends the child and is lost, alone.

A page becomes its main text (Resiliparse), with formulas as TeX, powers as ^, tables as rows, code with its line breaks.
Formulas hide in scripts, images and hidden elements (MegaMath, arXiv 2504.02807), and are put into its tree first.
"""

import contextlib
import ctypes
import functools
import io
import itertools
import logging
import pickle
import re
import signal
import zlib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from loguru import logger

from trait_kit.engine.files import digest, made_once, read_yaml
from trait_kit.reading import streams
from trait_kit.reading.readers import DAMAGED, FOUND, NO_TEXT, SKIPPED, UNREADABLE, Part, Refused, parted, torn

PAGE_BYTES = 8_000_000  # a larger page is not parsed
_FILE_BYTES = 100_000_000  # nor a larger file, of one document each
_PDF_PAGES = 60  # as many times longer than a page of the web a PDF may take
_RULES = 10  # raised whenever the same file would give others
_PART_ROWS = 500
_CONTROL = re.compile("[\0-\x08\x0e-\x1a\x1c-\x1f\ufffd]")  # many in what is compressed or encrypted
_FORMULAS = read_yaml(Path(__file__).with_name("formulas.yaml"))
_TEXT = {"preserve_formatting": True, "alt_texts": False, "comments": False, "post_meta": False}
_LITTLE = 300  # characters of main text, below which it was missed in 17 of 18 real pages
_PASSED = 100  # bytes between records that hold none


def read_web(source: streams.Source, cache: Path, seconds_per_page: float = 10.0) -> Iterator[Part]:
    """The documents of a WARC or WET file, or of files of one each (names by line), kept in `cache`."""
    made_by = ["fastwarc", "resiliparse", *["pypdf"] * (".pdf" in source.name.lower())]
    named = source.name if streams.is_document(source.name) else ""  # in its documents' ids
    key = digest([source.content, named, _RULES, [*map(version, made_by)], seconds_per_page, PAGE_BYTES])
    path = made_once(cache / f"{key[:32]}.parquet", functools.partial(_write, source.name, seconds_per_page))
    for batch in pq.ParquetFile(path).iter_batches(_PART_ROWS):
        part = parted(pa.table(batch), source.name)
        for reject in part.rejected:
            if reject.reason.startswith(f"{SKIPPED}: read as "):
                streams.say(reject.source, reject.reason.rpartition(" ")[2])
        yield part


def _write(name: str, seconds_per_page: float, path: Path) -> None:
    from datatrove.pipeline.extractors.base import ExtractorSandbox

    logger.disable("datatrove.pipeline.extractors")
    with (
        ExtractorSandbox(seconds_per_page, b"") as sandbox,
        pq.ParquetWriter(path, FOUND, compression="zstd") as writer,
    ):
        rows = _files(name.splitlines(), sandbox) if streams.is_document(name) else _rows(name, sandbox)
        while found := list(itertools.islice(rows, _PART_ROWS)):
            writer.write_table(pa.Table.from_pylist(found, FOUND))


def _files(names: list[str], sandbox: Any) -> Iterator[dict[str, Any]]:
    seconds = sandbox.timeout
    for name in names:
        sandbox.timeout = seconds * (_PDF_PAGES if streams.format_of(name)[0] == ".pdf" else 1)
        try:
            with streams.reading(name) as stream:
                said = _said((name, stream.read(_FILE_BYTES + 1)), sandbox)
        except streams.Damaged as damage:
            said = [{"reason": f"{DAMAGED}: {damage}"}]
        yield from ({"file": name, "row": 1, **each} for each in said)


def _rows(name: str, sandbox: Any) -> Iterator[dict[str, Any]]:
    found = size = end = 0
    steps, kind = None, streams.format_of(name)[0]
    try:
        with streams.reading(name) as stream:
            steps = streams.Steps(stream)
            for row, (start, stop, record) in enumerate(_records(steps), 1):
                passed, end = start - end, stop
                if passed > _PASSED or (row == 1 and not record):
                    reason = f"{UNREADABLE}: {passed:,} bytes without a whole WARC record"
                    records = max(streams.documents_in(kind, passed, found, size), 1)
                    yield {"row": row, "reason": reason, "records": records}
                if record and str(record.record_type) not in ("warcinfo", "request", "metadata"):
                    found, size = found + 1, size + stop - start
                    yield from ({"row": row, **each} for each in _said(record, sandbox))
    except streams.Damaged as damage:
        unread = streams.documents_in(kind, steps.tell() - end, found, size) if steps else 0
        yield torn(found, damage, streams.documents_in(name, damage.lost, found, damage.good) + unread)


# Records


def _records(steps: streams.Steps) -> Iterator[tuple[int, int, Any]]:
    from fastwarc.warc import ArchiveIterator

    for record in ArchiveIterator(steps, parse_http=False, quirks_mode=True):
        start, length = record.stream_pos, record.content_length
        body = record.reader.read(PAGE_BYTES + (1 << 16))
        if len(body) + record.reader.consume() == length and not re.search(rb"\nWARC/\d\.\d+\r?\nWARC-", body):
            record.set_bytes_content(body)
            yield (
                start,
                start + length + sum(len(name) + len(value) + 4 for name, value in record.headers),
                record,
            )
    yield steps.tell(), 0, None


def _said(source: Any, sandbox: Any) -> list[dict[str, Any]]:
    try:
        return sandbox.process_document(pickle.dumps(source), _guarded)
    except TimeoutError:
        return [{"reason": f"{UNREADABLE}: its page took the parser more than {sandbox.timeout:g} s"}]
    except EOFError:
        return [{"reason": f"{UNREADABLE}: its page crashed the parser"}]


# In the child


def _guarded(packed: bytes) -> list[dict[str, Any]]:
    try:
        # at its start: else it keeps an inherited lock
        return _document(packed) if packed else [ctypes.CDLL(None).prctl(1, signal.SIGKILL)]
    except Refused as error:
        return [{"reason": str(error)}]
    except BaseException as error:  # Rust's panics are no Exceptions
        return [{"reason": f"{UNREADABLE}: its page cannot be parsed ({type(error).__name__})"}]


def _document(packed: bytes) -> list[dict[str, Any]]:
    if isinstance(source := pickle.loads(packed), tuple):
        found, empty = {"id": source[0]}, NO_TEXT
        text, lost, encoding = _of_file(*source)
    else:
        record, body = _decoded(packed)
        text, lost, encoding = *_text(record, body), "utf-8"
        url = (record.headers.get("WARC-Target-URI") or "").strip("<>")
        found, empty = {"id": record.headers.get("WARC-Record-ID") or url, "url": url}, f"{SKIPPED}: no main text"
    if not (text := text.strip()):
        raise Refused(empty)
    said = [f"formulas of a page that is read ({lost})"] * bool(lost)
    said += [f"read as {encoding}"] * (encoding != "utf-8")
    return [found | {"text": text}, *({"reason": f"{SKIPPED}: {each}", "records": 0} for each in said)]


def _of_file(name: str, body: bytes) -> tuple[str, int, str]:
    """(text, formulas that it lacks, encoding of a plain text) of a file."""
    if len(body) > _FILE_BYTES:
        raise Refused(f"{UNREADABLE}: larger than {_FILE_BYTES // 1_000_000} MB, which is no document")
    kind = streams.format_of(name)[0]
    if kind == ".pdf":
        from pypdf import PdfReader

        logging.getLogger("pypdf").setLevel(logging.CRITICAL)
        return "\n\n".join(page.extract_text() for page in PdfReader(io.BytesIO(body)).pages), 0, "utf-8"
    if kind.startswith(".htm"):
        return *extract(streams.decode(body)), "utf-8"
    encoding = streams.encoding_of(body)
    return _checked(body.decode(encoding, "replace").removeprefix("\ufeff")), 0, encoding


def _checked(text: str) -> str:
    if len(_CONTROL.findall(text, 0, 2_000)) > min(40, len(text) // 20):
        raise Refused(f"{UNREADABLE}: its body is no text")
    return text


def _text(record: Any, body: bytes) -> tuple[str, int]:
    """(text, formulas that it lacks) of a record; Refused says why it has none."""
    http = record.http_headers if record.is_http else record.headers
    said = ("" if http is None else http.get("Content-Type") or "").lower()
    charset = re.search(r"charset=[\"']?([\w.:-]+)", said)
    begins = body.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")[:1]
    plain = str(record.record_type) == "conversion" and "html" not in said
    html = plain or "html" in said or (not said and begins in (b"<", b""))
    status = getattr(http, "status_code", None) if record.is_http else 200
    refused = {
        f"{UNREADABLE}: no HTTP response": not status,
        f"{SKIPPED}: HTTP status {status}": status != 200,
        f"{SKIPPED}: not HTML: {said[:40] or 'no content type'}": not html,
        f"{SKIPPED}: larger than {PAGE_BYTES // 1_000_000} MB": len(body) > PAGE_BYTES,
    }
    if why := next((why for why, wrong in refused.items() if wrong), ""):
        raise Refused(why)
    text = _checked(streams.decode(body, charset[1] if charset else ""))
    return (text, 0) if plain else extract(text)


def _decoded(packed: bytes) -> tuple[Any, bytes]:
    """A record and its payload, decoded as far as the bytes bear: crawlers keep headers of what they decoded."""
    for encodings in ("all", "content", "transfer", "none"):
        record = pickle.loads(packed)
        with contextlib.suppress(OSError):
            record.parse_http(quirks_mode=True, auto_decode=encodings)
            body = record.reader.read(PAGE_BYTES + 1)
            break
    zipped = body[:2] == b"\x1f\x8b"  # what servers call deflate may be raw
    if zipped or (record.is_http and "deflate" in (record.http_headers.get("Content-Encoding") or "")):
        with contextlib.suppress(zlib.error):
            body = zlib.decompress(body, 31 if zipped else -15)
    return record, body


# A page


def extract(html: str) -> tuple[str, int]:
    """(main text, or all where hardly any is found; how many formulas it lacks)."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse(html)
    formulas = _put_formulas(tree)
    _raise_and_lower(tree)
    text = extract_plain_text(tree, main_content=True, **_TEXT)
    if len(text) < _LITTLE:
        text = extract_plain_text(tree, **_TEXT)
    flat = " ".join(text.split()) if formulas else ""
    return text, sum(max(n - flat.count(tex), 0) if tex else n for tex, n in Counter(formulas).items())


def _put_formulas(tree: Any) -> list[str]:
    """Write each formula of a page as $TeX$; empty where its TeX is not known."""
    formulas = []
    for node in tree.document.query_selector_all(_FORMULAS["formula"])[:]:  # a slice is linear
        tex = " ".join(_tex(node).split())
        formulas.append(tex if not tex or tex.startswith(("$", r"\(", r"\[")) else f"${tex}$")
        if tex:
            node.replace_with(tree.create_text_node(formulas[-1]))
    for node in tree.document.query_selector_all(_FORMULAS["drawn"])[:] if formulas else ():
        node.remove()
    return formulas


def _tex(node: Any) -> str:
    if written := node if node.tag == "script" else node.query_selector(_FORMULAS["annotation"]):
        return written.text
    holders = (node, *node.query_selector_all(_FORMULAS["named"])[:])
    named = (holder.get_attribute(attribute) for holder in holders for attribute in _FORMULAS["attributes"])
    math = node if node.tag == "math" else node.query_selector("math")
    return next(filter(None, named), "") or (_of_mathml(math) if math else "")


def _of_mathml(node: Any) -> str:
    parts = [tex for child in node.children[:] if (tex := _of_mathml(child))]
    before, after = _FORMULAS["around"].get(node.tag, ("", ""))
    with contextlib.suppress(IndexError):
        if node.tag in _FORMULAS["shapes"]:
            return _FORMULAS["shapes"][node.tag].format(*parts)
    joined = _FORMULAS["joined"].get(node.tag, " ").join(parts)
    text = joined or node.text.strip("\u2061\u2062\u2063\u2064 \n\t")
    return f"{before}{text}{after}" if text else ""


def _raise_and_lower(tree: Any) -> None:
    """10<sup>-3</sup> becomes 10^-3, inner ones first; ordinals and notes stay."""
    for node in reversed(tree.document.query_selector_all("sup, sub")[:]):
        raised = node.text.strip()
        if re.search(r"\w", raised) and not re.fullmatch(r"\[.*\]|st|nd|rd|th", raised):
            inside = raised if re.fullmatch(r"[-−+]?[^\W_]+", raised) else f"{{{raised}}}"
            node.replace_with(tree.create_text_node(("^" if node.tag == "sup" else "_") + inside))
