"""Rows of task data: JSONL, JSON (a list), CSV, TSV, each also gzipped, or Parquet, and data sets of the hub."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trait_kit.engine.files import TraitError

_KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def read_rows(name: str, skipped: Counter[str] | None = None) -> Iterator[dict[str, Any]]:
    """One row after the other. What cannot be read stops with an error, or is counted by reason where `skipped` is given.

    A .csv whose columns are divided by tabs (as WANDS has them) is read as such.
    """
    path = Path(name)
    kind = next((suffix for suffix in reversed(path.suffixes) if suffix != ".gz"), "")
    if kind not in _KINDS:
        raise TraitError(f"{path}: rows are read from {', '.join(_KINDS[:-1])} (or these with .gz) and .parquet.")
    try:
        yield from _parquet_rows(path) if kind == ".parquet" else _text_rows(path, kind, skipped)
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError, pa.ArrowException) as error:
        as_text = "" if kind == ".parquet" else " as UTF-8 text"
        raise TraitError(f"{path} cannot be read{as_text}: {error}. Repair the file, or name another one.") from None


@lru_cache(maxsize=8)
def file_rows(name: str, modified: int) -> list[dict[str, Any]]:
    """All rows of a file, once for each time it was written."""
    return list(read_rows(name))


@lru_cache(maxsize=8)
def hub_rows(spec: str, split: str, origin: str) -> list[dict[str, Any]]:
    """All rows of one split of owner/name[@config]; `origin` is the task file, for messages."""
    from datasets import load_dataset

    name, _, config = spec.partition("@")
    try:
        return load_dataset(name, config or None, split=split).to_list()
    except Exception as error:  # many kinds: offline, unknown name, gated, unknown split
        raise TraitError(
            f"{origin}, field source: the data set {name} (split {split}) could not be loaded: "
            f"{(str(error) or type(error).__name__).splitlines()[0][:200]}. "
            "Check the name and the network, or point 'source' at a local copy (a folder of .jsonl or .parquet files)."
        ) from None


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(2_048):
            yield from batch.to_pylist()


def _text_rows(path: Path, kind: str, skipped: Counter[str] | None) -> Iterator[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    table = kind in (".csv", ".tsv")
    errors = "strict" if skipped is None else "replace"
    with opened(path, "rt", encoding="utf-8-sig", errors=errors, newline="" if table else "\n") as file:
        if table:
            head = file.readline()
            file.seek(0)
            csv.field_size_limit(1 << 28)  # a giant cell is its reader's to judge
            yield from csv.DictReader(file, delimiter="\t" if head.count("\t") > head.count(",") else ",")
            return
        number = 0
        for line, text in enumerate([file.read()] if kind == ".json" else file, start=1):
            for row in _values(text, path, line, kind, skipped):
                number += 1
                if isinstance(row, dict):
                    yield row
                elif skipped is None:
                    raise TraitError(f"{path}, row {number}: expected an object with named fields, got {str(row)[:60]!r}.")
                else:
                    skipped["row has no named fields"] += 1


def _values(text: str, path: Path, line: int, kind: str, skipped: Counter[str] | None) -> list[Any]:
    if not text.strip():
        return []
    try:
        value = json.loads(text.rstrip())
    except (json.JSONDecodeError, RecursionError) as error:
        if skipped is None:
            line += getattr(error, "lineno", 1) - 1
            message = getattr(error, "msg", "nested too deeply")
            raise TraitError(f"{path}, line {line}: not valid JSON ({message}). Repair it.") from None
        skipped["row is not valid JSON"] += 1
        return []
    return value if kind == ".json" and isinstance(value, list) else [value]
