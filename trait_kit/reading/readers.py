"""Records of Parquet, JSON, CSV and hub data sets as clean Arrow tables, and what could not be used: where, why, how many.

Rows count from 1: lines of a JSONL file, rows of a table. No bad record stops a job, nor does damage to a stretch of a
file: it stands in `rejected` under one of five reasons, with details behind a colon, and how many records it cost.
"""

import contextlib
import csv
import functools
import itertools
import json
import re
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from more_itertools import constrained_batches, split_when

from trait_kit.engine.files import TraitError, from_hub, listed
from trait_kit.reading import streams

NO_TEXT = "no text"
UNREADABLE = "unreadable"  # one record
DAMAGED = "damaged"  # a stretch of a file, or all of it
REPEATED = "its id was seen before"
SKIPPED = "skipped"  # a page of the web without text to read, which is no loss

COLUMNS = ("id", "text", "source", "url")
SCHEMA = pa.schema([*((name, pa.string()) for name in COLUMNS), ("row", pa.int64()), ("file", pa.string())])
# a record; or with a `reason` what cannot be used, and how many records it is, if not one
FOUND = pa.schema([*SCHEMA, ("reason", pa.string()), ("records", pa.int64())])
PART_BYTES = 4_000_000  # of text, about
csv.field_size_limit(streams.LINE_BYTES)


class Columns(NamedTuple):
    """What a corpus calls the kit's columns; and the share of it that is held out."""

    text: str = "text"
    id: str = "id"
    url: str = "url"
    source: str = "source"
    held_out: str = "0.05"


class Reject(NamedTuple):
    """About so many records of a file, from this row on, that cannot be used."""

    source: str
    row: int
    reason: str
    records: int


class Part(NamedTuple):
    documents: pa.Table
    rejected: list[Reject]
    held_out: pa.Table = SCHEMA.empty_table()  # usable, and for evaluation only


class Refused(ValueError):
    """Why a row cannot be used: a reason, ': ', details; `records`, about, are lost with it."""

    def __init__(self, why: str, records: int = 1) -> None:
        super().__init__(why)
        self.records = max(1, records)


def parted(found: pa.Table, origin: str) -> Part:
    """The usable records (FOUND) of a file, and the others, neighbours of one reason as one."""
    files = pc.fill_null(found["file"], origin)
    strings = {name: pc.if_else(pc.equal(found[name], ""), None, found[name]) for name in COLUMNS}
    strings["source"] = pc.coalesce(strings["source"], files)
    blank = pc.fill_null(pc.utf8_is_space(strings["text"]), True)
    reasons = pc.coalesce(found["reason"], pc.if_else(blank, NO_TEXT, None))
    documents = pa.table({**strings, "row": found["row"], "file": files}, SCHEMA)
    others = pa.table([files, found["row"], reasons, pc.fill_null(found["records"], 1)], list(Reject._fields))
    rejects = [Reject(**row) for row in others.filter(reasons.is_valid()).to_pylist()]
    runs = split_when(rejects, lambda one, other: one.reason != other.reason or other.row != one.row + 1)
    rejected = [run[0]._replace(records=sum(reject.records for reject in run)) for run in runs]
    return Part(documents.filter(reasons.is_null()), rejected)


def torn(row: int, what: object, records: int) -> dict[str, Any]:
    return {"row": row, "reason": f"{DAMAGED}: its data after record {row} ({what})", "records": max(records, 1)}


def of_table(table: pa.Table, first: int, origin: str, columns: Columns) -> Part:
    """The records of a table, whose first is row `first` of its origin."""
    if problem := _text_problem(table.schema, columns.text):
        return Part(SCHEMA.empty_table(), [Reject(origin, first, f"{DAMAGED}: {problem}", len(table))])
    found = {name: _as_strings(table, getattr(columns, name), name == "id") for name in COLUMNS}
    broken = pc.and_(table[columns.text].is_valid(), found["text"].is_null())
    found |= {"row": np.arange(first, first + len(table)), "file": pa.repeat(origin, len(table))}
    reasons = pc.if_else(broken, f"{UNREADABLE}: text is not UTF-8", None)
    found |= {"reason": reasons, "records": np.ones(len(table), int)}
    return parted(pa.table(found, FOUND), origin)


def _as_strings(table: pa.Table, name: str, as_hex: bool) -> pa.Array:
    """A column, of one name the first, as strings, whose bytes Arrow does not check.

    Numbers and dates as they print, structures as JSON. Bytes that are no text are missing, or `as_hex`, 16 of them a UUID.
    """
    if name not in table.column_names:
        return pa.nulls(len(table), pa.string())
    array = table.column(table.column_names.index(name)).combine_chunks()
    array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    fixed = pa.types.is_fixed_size_binary(array.type)
    if any(kind in str(array.type) for kind in ("string", "binary")):
        array = array.cast(pa.large_binary())
    with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if not fixed:
            return array.cast(pa.string())
    return pa.array([_printed(value, fixed, as_hex) for value in array.to_pylist()], pa.string())


def _printed(value: Any, fixed: bool = False, as_hex: bool = False) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        return json.dumps(value, default=str)
    if not fixed:
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    return (str(uuid.UUID(bytes=value)) if len(value) == 16 else value.hex()) if as_hex else None


def _text_problem(schema: pa.Schema, text: str) -> str:
    """Why a table has not one column of strings by this name, or ''."""
    if (count := schema.names.count(text)) != 1:
        return f"it has {f'{count} columns' if count else 'no column'} '{text}': {listed(schema.names)}"
    kind = schema.field(text).type
    value = str(kind.value_type if pa.types.is_dictionary(kind) else kind)
    strings = value.removeprefix("large_").removesuffix("_view") in ("string", "binary", "null")
    return "" if strings else f"its column '{text}' holds {kind}, not strings"


# Tables


def _read(origin: str, pieces: Iterable[pa.Table], row: int, stop: int, columns: Columns) -> Iterator[Part]:
    """The rows row..stop (from 0) of a table in pieces; damage costs the rest."""
    try:
        with streams.arrow_damage(origin):
            for some in constrained_batches(pieces, PART_BYTES, get_len=lambda piece: piece.nbytes, strict=False):
                table = pa.concat_tables(some)
                yield of_table(table, row + 1, origin, columns)
                row += len(table)
    except streams.Damaged as damage:
        yield parted(pa.Table.from_pylist([torn(row, damage, stop - row)], FOUND), origin)


def _wanted(columns: Columns, names: list[str]) -> list[str]:
    return [column for column in dict.fromkeys(columns) if column in names] if columns.text in names else names


def read_parquet(name: str, first: int, stop: int, columns: Columns, size: int) -> Iterator[Part]:
    """The row groups first..stop (-1: to the last) of a Parquet file; damage costs the rest of one."""
    try:
        with _parquet(name) as file:
            starts = np.cumsum([0, *_group_rows(file)]).tolist()
            wanted = _wanted(columns, file.schema_arrow.names)
            for index in range(first, file.num_row_groups if stop < 0 else stop):
                group = file.metadata.row_group(index)
                rows = int(np.clip(PART_BYTES / 4 * group.num_rows / max(group.total_byte_size, 1), 20, 2_000))
                pieces = map(pa.table, file.iter_batches(rows, row_groups=[index], columns=wanted))
                yield from _read(name, pieces, starts[index], starts[index + 1], columns)
    except streams.Damaged as damage:  # its footer
        yield parted(pa.Table.from_pylist([torn(0, damage, streams.documents_in(name, size))], FOUND), name)


def _group_rows(file: pq.ParquetFile) -> list[int]:
    return [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]


def _parquet(name: str) -> pq.ParquetFile:
    with streams.arrow_damage(name):
        source = streams.open_file(name) if streams.is_url(name) else name
        return pq.ParquetFile(source, buffer_size=1 << 22, page_checksum_verification=True)


@functools.lru_cache(maxsize=100_000)
def row_groups(name: str, _content: str) -> list[int]:
    """The rows of each row group; none where the footer is damaged, which reading reports."""
    if streams.format_of(name)[0] != ".parquet":
        return []
    try:
        with _parquet(name) as file:
            return _group_rows(file)
    except streams.Damaged:
        return []


def read_hub(origin: str, data: Any, first: int, stop: int, columns: Columns) -> Iterator[Part]:
    """The rows first..stop (-1: to the last) of a hub data set."""
    stop = len(data) if stop < 0 else min(stop, len(data))
    part = (
        data.select(range(first, stop)).select_columns(_wanted(columns, data.column_names)).with_format("arrow")
    )
    yield from _read(origin, part.iter(200), first, stop, columns)


@functools.lru_cache(maxsize=2)
def hub_data(rest: str) -> Any:
    """`owner/name[@config][#split]` on the Hugging Face hub, or in its cache, memory-mapped."""
    name, _, part = rest.partition("#")
    name, _, config = name.partition("@")
    if not name or name.count("/") > 1:
        raise TraitError(
            f"hf:{rest} names no hub data set. Write it as hf:owner/name, hf:owner/name@config or ...#split."
        )
    import datasets

    with from_hub("data set", f"hf:{rest}", "set HF_TOKEN where the hub asks for it, or use local files"):
        return datasets.load_dataset(name, config or None, split=part or "train")


# Lines


def read_lines(name: str, columns: Columns) -> Iterator[Part]:
    """The documents of JSON lines, a JSON array or a table in text (CSV), `PART_BYTES` at a time."""
    for some in constrained_batches(
        _documents(name, columns), PART_BYTES, get_len=lambda row: 200 + len(row.get("text", "")), strict=False
    ):
        yield parted(pa.Table.from_pylist(some, FOUND), name)


def _documents(name: str, columns: Columns) -> Iterator[dict[str, Any]]:
    row = 0
    try:
        for row, record in enumerate(records(name, columns.text), 1):
            try:
                if record is not None:
                    yield {"row": row, **_strings(record, columns)}
            except ValueError as error:
                yield {"row": row, "reason": f"{UNREADABLE}: {error}", "records": getattr(error, "records", 1)}
    except streams.Damaged as damage:
        yield torn(row, damage, streams.documents_in(name, damage.lost, row, damage.good))
        return
    if not row:
        yield {"row": 0, "reason": f"{UNREADABLE}: the file is empty"}


def _strings(record: Any, columns: Columns) -> dict[str, str]:
    if isinstance(record, Refused):
        raise record
    text = record.get(columns.text) if isinstance(record, dict) else None
    if not isinstance(text, str):
        found = listed(record) if isinstance(record, dict) else type(record).__name__
        raise Refused(f"it has no string '{columns.text}', but {found}", str(record).count("{'") - 1)
    text.encode()  # broken bytes, and half a surrogate pair, are no characters
    others = {name: _printed(record.get(getattr(columns, name))) for name in ("id", "source", "url")}
    others = {name: it.encode("utf-8", "backslashreplace").decode() for name, it in others.items() if it}
    return others | {"text": text}


def records(name: str, text: str = "") -> Iterator[Any]:
    """What lines of JSON or rows of a table hold: dicts, `Refused` where one is none, None of a blank line.

    Without a column `text`, of a task's file: rows may lack cells, but a table wrongly divided is Damaged.
    """
    kind = streams.format_of(name)[0]
    if kind == ".parquet":
        with streams.arrow_damage(name), _parquet(name) as file:
            yield from file.read().to_pylist()
    elif kind in (".csv", ".tsv"):
        yield from _of_table(streams.lines(name), text)
    else:
        yield from map(_of_json, streams.lines(name, strict=bool(text)))


def _of_json(line: str) -> Any:
    try:
        return json.loads(line) if line.strip() else None
    except (ValueError, RecursionError) as error:
        long = len(line.encode(errors="surrogateescape")) >= streams.LINE_BYTES
        why = "longer than 32 MB, which is no document" if long else f"not valid JSON: {error}"
        return Refused(why, line.count('{"'))


def _of_table(found: Iterator[str], text: str) -> Iterator[Any]:
    head = next(found, "")
    signs = re.sub(r'"[^"]*"', "", head)
    rows = csv.DictReader(itertools.chain([head], found), delimiter=max(",;\t|", key=signs.count), strict=True)
    try:
        names = [name.strip() for name in rows.fieldnames or []]
    except csv.Error as error:
        raise streams.Damaged(f"its first line cannot be read: {error}", len(head)) from None
    if not text and len(set(names)) < len(names):
        raise streams.Damaged(f"two columns have one name: {listed(names)}")
    problem = text and _text_problem(pa.schema([(name, pa.string()) for name in names]), text)
    rows.fieldnames = [
        name if names.index(name) == place else f"{name} {place}" for place, name in enumerate(names)
    ]
    for row in itertools.count(1):
        last = rows.reader.line_num
        try:
            record = next(rows)
            more = record.pop(None, [])
            cells = len(more) + sum(cell is not None for cell in record.values())
            if problem or any(more) or (text and cells < len(names)):
                record = Refused(problem or f"{cells} cells in {len(names)} columns")
        except StopIteration:
            return
        except csv.Error as error:
            if not text:
                raise streams.Damaged(str(error)) from None
            record = Refused(str(error))
            record.records = max((rows.reader.line_num - last) * row // last, 1)
        yield record
