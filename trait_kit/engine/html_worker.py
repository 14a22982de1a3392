"""HTML to text in a process of its own: pages on standard input, texts on standard output, a length before each.

lxml is C code that reads whatever the web wrote. A page that makes it loop is ended by the process' own alarm clock (the
kernel ends the process, whatever it is doing), one that makes it crash ends it too, and one that fills the memory meets
a limit. `web_pages.Sandbox` sees the process end, counts the page as lost, and starts another. The file is run by its
path and imports nothing of the kit, so that a process starts fast.
"""

from __future__ import annotations

import codecs
import contextlib
import re
import struct
import sys

MOST_MEMORY = 4 << 30
_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_META = re.compile(rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([\w:.-]{1,40})", re.IGNORECASE)
# What a label means on the web (WHATWG Encoding Standard): browsers read the larger encoding, and pages rely on it.
_MEANT = {"iso8859-1": "cp1252", "ascii": "cp1252", "shift_jis": "cp932", "gb2312": "gb18030", "gbk": "gb18030"}
_MEANT |= {"euc_kr": "cp949", "iso8859-9": "cp1254", "tis-620": "cp874", "big5": "big5hkscs"}


def decode(page: bytes, header_charset: str) -> str:
    """The page as text: by its byte order mark, the HTTP header, the HTML meta, UTF-8, and at last by detection.

    A name that is wrong (unknown, or the bytes do not fit) is passed over, because headers and pages often are.
    """
    meta = _META.search(page[:4096])
    names = [name for mark, name in _BOMS if page.startswith(mark)][:1]
    names += [header_charset, meta[1].decode("ascii") if meta else "", "utf-8"]
    for name in filter(None, names):
        try:
            known = codecs.lookup(name).name
            text = page.decode(_MEANT.get(known, known))
            if isinstance(text, str):
                return text
        except (LookupError, UnicodeError, ValueError, TypeError):
            continue
    from trafilatura.utils import detect_encoding

    for name in detect_encoding(page):
        with contextlib.suppress(LookupError, UnicodeError):
            return page.decode(_MEANT.get(name, name))
    return page.decode("utf-8", "replace")


def extract(page: bytes, header_charset: str) -> str:
    """The main text of a page, tables kept and comments left out; empty if there is none."""
    import trafilatura

    text = decode(page, header_charset)
    # no `deduplicate`: it remembers paragraphs across pages, so a page's text would depend on the pages before it
    return trafilatura.extract(text, include_comments=False, include_tables=True, deduplicate=False) or ""


def serve(function=extract) -> None:
    """Answer (seconds, charset, page) with b"+" and the text, or b"-" and the error, until the input ends."""
    import logging
    import signal

    import trafilatura  # noqa: F401  before the first page's clock runs

    logging.disable(logging.CRITICAL)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    pages, texts = sys.stdin.buffer, sys.stdout.buffer
    while header := pages.read(16):
        seconds, n_charset, n_page = struct.unpack("<fIQ", header)
        charset, page = pages.read(n_charset).decode(), pages.read(n_page)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            answer = b"+" + function(page, charset).encode("utf-8", "replace")
        except (Exception, RecursionError, MemoryError) as error:
            answer = b"-" + type(error).__name__.encode()
        signal.setitimer(signal.ITIMER_REAL, 0)
        texts.write(struct.pack("<Q", len(answer)) + answer)
        texts.flush()


if __name__ == "__main__":
    serve()
