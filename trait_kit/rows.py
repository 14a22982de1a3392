"""Rows of task data: JSONL, JSON (a list), CSV, TSV, each also gzipped, Parquet, and data sets of the hub."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from trait_kit.engine.assets import from_hub
from trait_kit.engine.files import TraitError

_KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
Row = dict[str, Any]


def read_rows(path: Path, skipped: Counter[str] | None = None) -> list[Row]:
    """All rows of a file; one that cannot be read is an error that names its line, or counted where `skipped` is given.

    Cells of a table stay text ('007' is no number). A .csv that is divided by tabs is read as such.
    """
    kind = next((suffix for suffix in reversed(path.suffixes) if suffix != ".gz"), "")
    if kind not in _KINDS:
        raise TraitError(f"{path}: rows are read from {', '.join(_KINDS[:-1])} (or these with .gz) and .parquet.")
    try:
        if kind == ".parquet":
            return pq.read_table(path).to_pylist()
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig", "strict" if skipped is None else "replace")
        if kind in (".csv", ".tsv"):
            head = text.partition("\n")[0]
            divider = "\t" if head.count("\t") > head.count(",") else ","
            return pd.read_csv(io.StringIO(text), sep=divider, dtype=str, keep_default_na=False).to_dict("records")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, pa.ArrowException, pd.errors.ParserError) as error:
        raise TraitError(f"{path} cannot be read: {error}. Repair the file (text is UTF-8), or name another one.") from None
    except pd.errors.EmptyDataError:
        return []
    return _json_rows(path, [text] if kind == ".json" else text.split("\n"), skipped)


def _json_rows(path: Path, texts: list[str], skipped: Counter[str] | None) -> list[Row]:
    rows: list[Row] = []
    for line, text in enumerate(texts, start=1):
        try:
            value = json.loads(text) if text.strip() else []
        except (ValueError, RecursionError) as error:
            if skipped is None:
                raise TraitError(f"{path}, line {line}: not valid JSON ({error}). Repair it.") from None
            skipped["row is not valid JSON"] += 1
            continue
        for row in value if isinstance(value, list) and (len(texts) == 1 or not value) else [value]:
            if isinstance(row, dict):
                rows.append(row)
            elif skipped is None:
                raise TraitError(f"{path}, line {line}: expected an object with named fields, got {str(row)[:60]!r}.")
            else:
                skipped["row has no named fields"] += 1
    return rows


@lru_cache(maxsize=8)
def hub_rows(spec: str, split: str, origin: str) -> list[Row]:
    """All rows of one split of owner/name[@config]; `origin` is the task file, for messages."""
    from datasets import load_dataset

    name, _, config = spec.partition("@")
    with from_hub(f"{origin}, field source", f"the split {split} of the data set {spec}", "name a folder with a local copy"):
        return load_dataset(name, config or None, split=split).to_list()
