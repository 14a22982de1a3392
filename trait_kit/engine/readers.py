"""Records of Parquet, JSON lines and hub data sets as clean Arrow tables, and what could not be used: where, why, how many.

Columns are checked at once (hundreds of megabytes a second); lines are parsed one by one. Rows count from 1: lines of a
JSONL file, rows of a Parquet file or data set. One bad record never stops a job, nor does damage to a whole stretch of a
file: it stands in `rejected` under one of five reasons, with what exactly behind a colon and how many records it cost.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trait_kit.engine.files import TraitError
from trait_kit.engine.streams import Gap, TooLong, blocks, documents_in, is_url, open_file, split, unreadable

NO_TEXT = "no text"
UNREADABLE = "unreadable"  # one record
DAMAGED = "damaged"  # a stretch of a file, or all of it
REPEATED = "its id was seen before"
SKIPPED = "skipped"  # an ordinary page of the web without text to read, which is no loss

COLUMNS = ("id", "text", "source", "url")
PART_BYTES = 4_000_000  # of text, about
_PART_ROWS = 20_000
_MOST_BYTES = 32_000_000  # of one record: no document of the web is that long, and a file without line ends is no JSONL
_TOO_LONG = f"{UNREADABLE}: longer than {_MOST_BYTES // 1_000_000} MB, which is no document"
_STRINGS = [(name, pa.string()) for name in COLUMNS]
SCHEMA = pa.schema([*_STRINGS, ("row", pa.int64()), ("file", pa.string())])


class Columns(NamedTuple):
    """What a corpus calls the columns or fields of the kit."""

    text: str = "text"
    id: str = "id"
    url: str = "url"
    source: str = "source"


class Reject(NamedTuple):
    """About so many records of a file, from this row on, that could not be used."""

    source: str
    row: int
    reason: str
    records: int


class Part(NamedTuple):
    """Usable records (SCHEMA), and the others."""

    documents: pa.Table
    rejected: list[Reject]


def damaged(name: str, row: int, what: str, records: float) -> Reject:
    return Reject(name, row, f"{DAMAGED}: {what}", max(round(records), 1))


def torn(name: str, row: int, gap: Gap) -> Reject:
    """A Gap behind so many records, and about how many it cost."""
    lost = gap.lost * row / gap.good if row else documents_in(name, gap.lost + gap.good)
    return damaged(name, row, f"its compressed data after record {row} ({gap.reason})", lost)


def clean(table: pa.Table, rows: np.ndarray, origin: str, columns: Columns = Columns(), rejected: Iterable = ()) -> Part:
    """Usable rows and rejected ones of a table; column by column, so that millions of rows stay fast."""
    reasons: dict[int, str] = {}
    found: dict[str, pa.Array] = {"row": pa.array(rows), "file": pa.repeat(pa.scalar(origin, pa.string()), len(rows))}
    for name, column in zip(columns._fields, columns, strict=True):
        values, broken = _as_strings(table, column)
        reasons.update(dict.fromkeys(broken, f"{UNREADABLE}: {name} is not UTF-8"))
        empty = pc.equal(pc.binary_length(values), 0)
        found[name] = pc.if_else(empty, None, values) if pc.any(empty).as_py() else values
    found["source"] = pc.fill_null(found["source"], origin)
    length = pc.fill_null(pc.binary_length(found["text"]), 0).to_numpy()
    blank = pc.fill_null(pc.utf8_is_space(found["text"]), True).to_numpy(zero_copy_only=False)
    for flags, reason in ((blank, NO_TEXT), (length > _MOST_BYTES, _TOO_LONG)):
        for index in np.flatnonzero(flags).tolist():
            reasons.setdefault(index, reason)
    documents = pa.table(found).select(SCHEMA.names)
    if reasons:
        keep = np.ones(len(rows), bool)
        keep[list(reasons)] = False
        documents = documents.filter(pa.array(keep))
    bad = [Reject(origin, int(rows[index]), reason, 1) for index, reason in reasons.items()]
    return Part(documents, list(_runs([*rejected, *bad])))


def _runs(rejected: list[Reject]) -> Iterator[Reject]:
    """Neighbours with one reason as one, so that the losses of a file of nothing else fit in memory."""
    ordered = enumerate(sorted(rejected, key=lambda reject: reject.row))
    for _, run in itertools.groupby(ordered, lambda pair: (pair[1].reason, pair[1].row - pair[0])):
        rejects = [reject for _, reject in run]
        yield rejects[0]._replace(records=sum(reject.records for reject in rejects))


def _as_strings(table: pa.Table, name: str) -> tuple[pa.Array, list[int]]:
    """(strings, indices that are not UTF-8): Arrow does not check the bytes of a string column, so they are checked here.

    Numbers and dates are taken as they print; structures, of which no id or address is made, as missing.
    """
    if name not in table.column_names:
        return pa.nulls(table.num_rows, pa.string()), []
    array = table[name].combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if not any(kind in str(array.type) for kind in ("string", "binary")):
        try:
            return array.cast(pa.string()), []
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return pa.nulls(len(array), pa.string()), []
    array = array.cast(pa.large_binary())
    try:
        return array.cast(pa.string()), []
    except pa.ArrowInvalid:
        texts = [value and value.decode("utf-8", "replace") for value in array.to_pylist()]
        same = pc.equal(pa.array(texts, pa.string()).cast(pa.large_binary()), array)
        return pa.array(texts, pa.string()), np.flatnonzero(
            ~pc.fill_null(same, True).to_numpy(zero_copy_only=False)
        ).tolist()


def _text_problem(schema: pa.Schema, text: str) -> str:
    """Why a table has not exactly one column of strings by this name; empty where it has."""
    if (count := schema.names.count(text)) != 1:
        return f"it has {count or 'no'} column '{text}', but {_listed(schema.names)}"
    kind = schema.field(text).type
    value = str(kind.value_type if pa.types.is_dictionary(kind) else kind)
    strings = value.removeprefix("large_").removesuffix("_view") in ("string", "binary", "null")
    return "" if strings else f"its column '{text}' holds {kind}, not strings"


def _listed(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "")


def _rows_a_part(rows: int, size: int) -> int:
    return int(np.clip(PART_BYTES * rows // max(size, 1), 1, _PART_ROWS))


# Parquet


def row_groups(name: str) -> list[int]:
    """The rows of each row group of a Parquet file; empty where its footer is damaged, which reading it will report."""
    file = _parquet(name)
    if isinstance(file, str):
        return []
    with file:
        return [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]


def _parquet(name: str) -> pq.ParquetFile | str:
    """The file, or why it cannot be read."""
    source = open_file(name) if is_url(name) else name
    try:
        return pq.ParquetFile(source, buffer_size=1 << 22, page_checksum_verification=True)
    except Exception as error:
        return _damage(name, error)


def _damage(name: str, error: Exception) -> str:
    """Arrow's own errors are the file's; what a store raises through Arrow is the network's, as are the system's."""
    if getattr(error, "errno", None) or not isinstance(error, (pa.ArrowException, OSError)):
        raise unreadable(name, error) from error
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_parquet(name: str, first: int, stop: int, columns: Columns, size: int) -> Iterator[Part]:
    """The row groups first..stop of a Parquet file (stop = -1: to the last); one that is damaged costs the rest of it."""
    file = _parquet(name)
    if isinstance(file, str):
        yield Part(SCHEMA.empty_table(), [damaged(name, 0, file, documents_in(name, size))])
        return
    with file:
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        starts = np.cumsum([0, *(group.num_rows for group in groups)]).tolist()
        stop = len(groups) if stop < 0 else stop
        if problem := _text_problem(file.schema_arrow, columns.text):
            yield Part(SCHEMA.empty_table(), [damaged(name, starts[first], problem, starts[stop] - starts[first])])
            return
        wanted = [column for column in columns if column in file.schema_arrow.names]
        for index in range(first, stop):
            row, rows = starts[index], _rows_a_part(groups[index].num_rows, groups[index].total_byte_size)
            batches = file.iter_batches(rows, row_groups=[index], columns=wanted)
            while row < starts[index + 1]:
                try:
                    batch = next(batches)
                except Exception as error:
                    what = f"its row group {index} after row {row} ({_damage(name, error)})"
                    yield Part(SCHEMA.empty_table(), [damaged(name, row, what, starts[index + 1] - row)])
                    break
                yield clean(pa.table(batch), np.arange(row, row + batch.num_rows) + 1, name, columns)
                row += batch.num_rows


# JSON lines


def read_jsonl(name: str, columns: Columns) -> Iterator[Part]:
    """The records of a file of JSON lines, `PART_BYTES` at a time."""
    fields = [getattr(columns, column) for column in COLUMNS]
    records: list[list[str | None]] = []
    rows: list[int] = []
    rejected: list[Reject] = []

    def part() -> Part:
        table = pa.table(list(zip(*records, strict=True)) or [[]] * len(COLUMNS), pa.schema(_STRINGS))
        return clean(table, np.array(rows, np.int64), name, rejected=rejected)

    row = held = 0
    for row, line in enumerate(split(blocks(name), lambda data: data.split(b"\n"), _MOST_BYTES), 1):
        if isinstance(line, Gap):
            rejected.append(torn(name, row - 1, line))
        elif isinstance(line, TooLong):
            rejected.append(Reject(name, row, _TOO_LONG, 1))
        elif line and not line.isspace():
            held += len(line)
            try:
                records.append(_strings(line, fields))
                rows.append(row)
            except (ValueError, RecursionError) as error:
                rejected.append(Reject(name, row, f"{UNREADABLE}: {error}", 1))
        if held > PART_BYTES or len(rows) + len(rejected) >= _PART_ROWS:
            yield part()
            records, rows, rejected, held = [], [], [], 0
    if not row:
        rejected.append(Reject(name, 0, f"{UNREADABLE}: the file is empty", 1))
    yield part()


def _strings(line: bytes, fields: list[str]) -> list[str | None]:
    """The fields of a JSON record as strings, the text second; ValueError says why it cannot be used."""
    record = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode())
    if not isinstance(record, dict) or not isinstance(record.get(fields[1]), str):
        found = _listed(record) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"it has no string '{fields[1]}', but {found}")
    values = [record.get(field) for field in fields]
    values = [value if isinstance(value, str) or value is None else json.dumps(value) for value in values]
    for value in values:
        value is None or value.isascii() or value.encode()  # half a surrogate pair is no character
    return values


# The hub


@functools.lru_cache(maxsize=2)
def hub_data(rest: str) -> Any:
    """`owner/name[@config][#split]` on the Hugging Face hub, or in its local cache, as a memory-mapped data set."""
    name, _, part = rest.partition("#")
    name, _, config = name.partition("@")
    if not name or name.count("/") > 1:
        raise TraitError(f"hf:{rest} names no hub data set. Write it as hf:owner/name, hf:owner/name@config or ...#split.")
    import datasets

    try:
        return datasets.load_dataset(name, config or None, split=part or "train")
    except Exception as error:  # the hub client raises dozens of kinds: not found, gated, offline, a split misspelt
        raise TraitError(
            f"hf:{rest} could not be loaded ({type(error).__name__}: {error}). Check the name, the config and the split, "
            "that the hub can be reached, and that HF_TOKEN is set where it asks for it; or use local files."
        ) from error


def read_hub(origin: str, data: Any, first: int, stop: int, columns: Columns) -> Iterator[Part]:
    """The rows first..stop of a hub data set (stop = -1: to the last)."""
    stop = len(data) if stop < 0 else min(stop, len(data))
    if problem := _text_problem(data.features.arrow_schema, columns.text):
        yield Part(SCHEMA.empty_table(), [damaged(origin, first, problem, stop - first)])
        return
    wanted = [column for column in dict.fromkeys(columns) if column in data.column_names]
    data, each = data.select_columns(wanted).with_format("arrow"), _rows_a_part(data.data.num_rows, data.data.nbytes)
    for start in range(first, stop, each):
        table = data[start : min(start + each, stop)]
        yield clean(table, np.arange(start, start + table.num_rows) + 1, origin, columns)
