"""A web page to its main text, with formulas as TeX, powers as ^, tables as rows, code with its line breaks (Resiliparse).

No extractor keeps formulas, for pages hide them in scripts, images and hidden elements (MegaMath, arXiv 2504.02807). So
they are put into the page's tree as TeX before its text is taken; `formulas.yaml` says how pages write them.
"""

import codecs
import contextlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

_FORMULAS = yaml.safe_load(Path(__file__).with_name("formulas.yaml").read_text(encoding="utf-8"))
_TEXT = {"preserve_formatting": True, "alt_texts": False, "comments": False, "post_meta": False}
_LITTLE = 300  # characters of main text, below which it was missed in 17 of 18 real pages
# Python's codecs for these are smaller than what their labels mean on the web (WHATWG Encoding Standard).
_LARGER = {"shift_jis": "cp932", "euc_kr": "cp949", "gbk": "gb18030", "big5": "big5hkscs"}
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def extract(html: str) -> tuple[str, int]:
    """(main text, or all where hardly any is found; how many formulas are not in it)."""
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


def decode(page: bytes, charset: str = "") -> str:
    """A page as it is most likely meant: by its byte order mark, the header's `charset`, its HTML meta, its bytes.

    A name that is wrong (unknown, or the bytes do not fit) is passed over, because headers and pages often are.
    """
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    said = "" if page.startswith(_MARKS) else charset
    guesses = (
        lambda: said,
        lambda: detect_encoding(page, from_html_meta=True),
        lambda: "utf-8",
        lambda: detect_encoding(page),
    )
    for guess in guesses:  # the later ones take time
        with contextlib.suppress(LookupError, TypeError, ValueError):
            name = map_encoding_to_html5(guess(), False)
            return page.decode(_LARGER.get(name, name)).removeprefix("\ufeff")
    return page.decode("utf-8", "replace")


def encoding_of(data: bytes) -> str:
    """How the text, no page, that begins so is encoded: utf-8, utf-16, or what its bytes look like."""
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    even, odd = (data[start::2].count(0) > len(data) / 5 for start in (0, 1))
    if data.startswith(_MARKS[1:]):
        return "utf-16"
    if even != odd:
        return "utf-16-be" if even else "utf-16-le"
    with contextlib.suppress(UnicodeDecodeError):
        codecs.getincrementaldecoder("utf-8")().decode(data)
        return "utf-8"
    found = map_encoding_to_html5(detect_encoding(data), False)
    return "cp1252" if found in ("utf-8", "windows-1252", "iso8859-15") else _LARGER.get(found, found)


def _put_formulas(tree: Any) -> list[str]:
    """Write each formula of a page as $TeX$; empty where its TeX is not known."""
    formulas = []
    for node in tree.document.query_selector_all(_FORMULAS["formula"]):
        tex = " ".join(_tex(node).split())
        formulas.append(tex if not tex or tex.startswith(("$", r"\(", r"\[")) else f"${tex}$")
        if tex:
            node.replace_with(tree.create_text_node(formulas[-1]))
    for node in tree.document.query_selector_all(_FORMULAS["drawn"]) if formulas else ():
        node.remove()
    return formulas


def _tex(node: Any) -> str:
    if node.tag == "script":
        return node.text
    if annotation := node.query_selector(_FORMULAS["annotation"]):
        return annotation.text
    for holder in (node, *node.query_selector_all(_FORMULAS["named"])):
        for attribute in _FORMULAS["attributes"]:
            if value := holder.get_attribute(attribute):
                return value
    math = node if node.tag == "math" else node.query_selector("math")
    return _of_mathml(math) if math else ""


def _of_mathml(node: Any) -> str:
    """TeX of a MathML element; its letters and symbols stay Unicode."""
    parts = [tex for child in node.children if (tex := _of_mathml(child))]
    before, after = _FORMULAS["around"].get(node.tag, ("", ""))
    with contextlib.suppress(IndexError):
        if node.tag in _FORMULAS["shapes"]:
            return _FORMULAS["shapes"][node.tag].format(*parts)
    text = _FORMULAS["joined"].get(node.tag, " ").join(parts) if parts else node.text.strip("\u2061\u2062\u2063\u2064 \n\t")
    return f"{before}{text}{after}" if text else ""


def _raise_and_lower(tree: Any) -> None:
    """10<sup>-3</sup> becomes 10^-3, the inner ones first; ordinals, marks and notes stay."""
    for node in reversed(list(tree.document.query_selector_all("sup, sub"))):
        raised = node.text.strip()
        if re.search(r"\w", raised) and not re.fullmatch(r"\[.*\]|st|nd|rd|th", raised):
            simple = re.fullmatch(r"[-−+]?[^\W_]+", raised)
            text = ("^" if node.tag == "sup" else "_") + (raised if simple else f"{{{raised}}}")
            node.replace_with(tree.create_text_node(text))
