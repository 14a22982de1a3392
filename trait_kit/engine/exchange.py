"""Text on its way to a language model and back: fenced as data on the way out, read strictly on the way in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jinja2

MAX_CONTENT = 200_000  # characters of an answer that are looked at; a passage has a few thousand


def templates(*folders: Path) -> jinja2.Environment:
    """The prompts in `folders`. They are plain text, so nothing is escaped for HTML: data enters through `as_data`."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def as_data(fields: dict[str, str]) -> str:
    """One line of JSON in which neither marker lines nor a model's control tokens can occur, whatever the fields say."""
    text = json.dumps(fields, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e")


def read_object(content: str, fields: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object with exactly these fields in a model's reply; ValueError says what is wrong with it.

    Strict about the fields, lenient about what surrounds the object: a <think> block, a Markdown fence, a sentence
    before or after.
    """
    if len(content) > MAX_CONTENT:
        raise ValueError(f"it has {len(content):,} characters, more than {MAX_CONTENT:,}")
    text = content.rpartition("</think>")[2]
    start = text.find("{")
    if start < 0:
        raise ValueError("it holds no JSON object")
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        detail = f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise ValueError(f"it is not valid JSON ({detail})") from None
    if set(value) != set(fields):
        names = ", ".join(sorted(str(name)[:40] for name in value)[:6]) or "none"
        raise ValueError(f"the object must have the fields {' and '.join(fields)}, it has {names}")
    return value


def clean(text: str) -> str:
    """Valid UTF-8 without lone surrogates, blank lines or trailing space, so that a text keeps its own layout."""
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"[ \t]*\n\s*", "\n", text.strip())
