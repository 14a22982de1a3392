"""Records of Parquet, JSON, CSV and hub data sets as clean Arrow tables, and what could not be used: where, why, how many.

Columns are checked at once (hundreds of megabytes a second); lines are parsed one by one. Rows count from 1: lines of a
JSONL file, rows of a table or data set. One bad record never stops a job, nor does damage to a whole stretch of
a file: it stands in `rejected` under one of five reasons, with what exactly behind a colon and how many records it
cost.
"""

import contextlib
import csv
import functools
import itertools
import json
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trait_kit.engine.files import TraitError, from_hub, listed
from trait_kit.engine.pages import encoding_of
from trait_kit.engine.streams import (
    Damaged,
    arrow_damage,
    documents_in,
    format_of,
    is_url,
    lines,
    open_file,
    say,
)

NO_TEXT = "no text"
UNREADABLE = "unreadable"  # one record
DAMAGED = "damaged"  # a stretch of a file, or all of it
REPEATED = "its id was seen before"
SKIPPED = "skipped"  # an ordinary page of the web without text to read, which is no loss

COLUMNS = ("id", "text", "source", "url")
PART_BYTES = 4_000_000  # of text, about
_PART_ROWS = 20_000
_LINE_BYTES = 32_000_000  # no document of the web is that long, and a file without line ends is no JSONL
csv.field_size_limit(_LINE_BYTES)
_STRINGS = [(name, pa.string()) for name in COLUMNS]
SCHEMA = pa.schema([*_STRINGS, ("row", pa.int64()), ("file", pa.string())])


class Columns(NamedTuple):
    """What a corpus calls the columns or fields of the kit; and the share of its documents that is held out."""

    text: str = "text"
    id: str = "id"
    url: str = "url"
    source: str = "source"
    held_out: str = "0.05"


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
    held_out: pa.Table = SCHEMA.empty_table()  # usable, and for evaluation only


def damaged(name: str, row: int, what: object, records: int) -> Part:
    """A part that is lost."""
    return Part(SCHEMA.empty_table(), [Reject(name, row, f"{DAMAGED}: {what}", records)])


def torn(name: str, row: int, damage: Damaged) -> Reject:
    """What follows the record `row` of a file of lines or web records."""
    lost = damage.lost * row // damage.good if row else documents_in(name, damage.lost)
    return Reject(name, row, f"{DAMAGED}: its data after record {row} ({damage})", max(lost, 1))


def clean(
    table: pa.Table,
    rows: np.ndarray,
    origin: str | pa.ChunkedArray,  # their file, or the file of each
    columns: Columns = Columns(),
    rejected: Iterable = (),
) -> Part:
    """Usable rows and rejected ones of a table; column by column, so that millions of rows stay fast."""
    if len(rows) and (problem := _text_problem(table.schema, columns.text)):
        return damaged(origin, int(rows[0]), problem, len(rows))
    files = pa.repeat(pa.scalar(origin, pa.string()), len(rows)) if isinstance(origin, str) else origin.combine_chunks()
    found: dict[str, pa.Array] = {"row": pa.array(rows), "file": files}
    reasons: dict[int, str] = {}
    for name in COLUMNS:
        values, broken = _as_strings(table, getattr(columns, name), name == "id")
        if name == "text":
            reasons = dict.fromkeys(broken, f"{UNREADABLE}: text is not UTF-8")
        found[name] = pc.if_else(pc.equal(values, ""), None, values)
    found["source"] = pc.coalesce(found["source"], files)
    blank = pc.fill_null(pc.utf8_is_space(found["text"]), True).to_numpy(zero_copy_only=False)
    reasons = {index: NO_TEXT for index in np.flatnonzero(blank).tolist()} | reasons
    keep = np.ones(len(rows), bool)
    keep[list(reasons)] = False
    documents = pa.table(found).select(SCHEMA.names).filter(pa.array(keep))
    bad = [Reject(files[index].as_py(), int(rows[index]), reason, 1) for index, reason in reasons.items()]
    return Part(documents, list(_runs([*rejected, *bad])))


def _runs(rejected: list[Reject]) -> Iterator[Reject]:
    """Neighbours with one reason as one, so that the losses of a file of nothing else fit in memory."""
    ordered = enumerate(sorted(rejected, key=lambda reject: reject.row))
    for _, run in itertools.groupby(ordered, lambda pair: (pair[1].reason, pair[1].row - pair[0])):
        rejects = [reject for _, reject in run]
        yield rejects[0]._replace(records=sum(reject.records for reject in rejects))


def _as_strings(table: pa.Table, name: str, as_hex: bool) -> tuple[pa.Array, list[int]]:
    """(strings, indices that are not UTF-8): Arrow does not check the bytes of a string column, so they are checked here.

    Numbers and dates are taken as they print; structures, of which no id or address is made, as missing; of columns of one
    name the first. `as_hex`: bytes that are no text are written as hexadecimal digits, 16 of them as a UUID.
    """
    if name not in table.column_names:
        return pa.nulls(table.num_rows, pa.string()), []
    array = table.column(table.column_names.index(name)).combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    fixed = pa.types.is_fixed_size_binary(array.type)
    if any(kind in str(array.type) for kind in ("string", "binary")):
        array = array.cast(pa.large_binary())
    try:
        if not fixed:
            return array.cast(pa.string()), []
    except pa.ArrowNotImplementedError:
        return pa.nulls(len(array), pa.string()), []
    except pa.ArrowInvalid:
        pass
    values = array.to_pylist()
    texts = [value and value.decode("utf-8", "replace") for value in values]
    broken = [index for index, text in enumerate(texts) if text and (fixed or text.encode() != values[index])]
    for index in broken if as_hex else ():
        value = values[index]
        texts[index] = str(uuid.UUID(bytes=value)) if len(value) == 16 else value.hex()
    return pa.array(texts, pa.string()), broken


def _text_problem(schema: pa.Schema, text: str) -> str:
    """Why a table has not exactly one column of strings by this name; empty where it has."""
    if (count := schema.names.count(text)) != 1:
        return f"it has {f'{count} columns' if count else 'no column'} '{text}': {listed(schema.names)}"
    kind = schema.field(text).type
    value = str(kind.value_type if pa.types.is_dictionary(kind) else kind)
    strings = value.removeprefix("large_").removesuffix("_view") in ("string", "binary", "null")
    return "" if strings else f"its column '{text}' holds {kind}, not strings"


def _rows_a_part(rows: int, size: int) -> int:
    return int(np.clip(PART_BYTES * rows // max(size, 1), 1, _PART_ROWS))


def _wanted(columns: Columns, names: list[str]) -> list[str]:
    """The columns to read; all where the text is not among them, so that they can be named."""
    return [column for column in dict.fromkeys(columns) if column in names] if columns.text in names else names


# Parquet


@functools.lru_cache(maxsize=100_000)
def row_groups(name: str, _content: str) -> list[int]:
    """The rows of each row group of a Parquet file; empty where its footer is damaged, which reading it will report."""
    if format_of(name)[0] != ".parquet":
        return []
    try:
        with _parquet(name) as file:
            return [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    except Damaged:
        return []


def _parquet(name: str) -> pq.ParquetFile:
    with arrow_damage(name):
        source = open_file(name) if is_url(name) else name
        return pq.ParquetFile(source, buffer_size=1 << 22, page_checksum_verification=True)


def read_parquet(name: str, first: int, stop: int, columns: Columns, size: int) -> Iterator[Part]:
    """The row groups first..stop of a Parquet file (stop = -1: to the last); one that is damaged costs the rest of it."""
    try:
        file = _parquet(name)
    except Damaged as damage:
        yield damaged(name, 0, damage, documents_in(name, size))
        return
    with file:
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        starts = np.cumsum([0, *(group.num_rows for group in groups)]).tolist()
        wanted = _wanted(columns, file.schema_arrow.names)
        wide = 0  # bytes of a row, which encodings hide from the metadata
        for index in range(first, len(groups) if stop < 0 else stop):
            row, rows = starts[index], groups[index].num_rows
            try:
                with arrow_damage(name):
                    for batch in file.iter_batches(100, row_groups=[index], columns=wanted) if not wide else ():
                        wide = clean(pa.table(batch), np.arange(len(batch)), name, columns).documents.nbytes // len(batch)
                        break
                    size = _rows_a_part(rows, max(groups[index].total_byte_size, rows * wide))
                    for batch in file.iter_batches(size, row_groups=[index], columns=wanted):
                        part = clean(pa.table(batch), np.arange(row, row + batch.num_rows) + 1, name, columns)
                        yield part
                        row, wide = row + batch.num_rows, part.documents.nbytes // batch.num_rows
            except Damaged as damage:
                what = f"its row group {index} after row {row} ({damage})"
                yield damaged(name, row, what, starts[index + 1] - row)


# Lines


def read_lines(name: str, columns: Columns) -> Iterator[Part]:
    """The records of a file of JSON lines, a JSON array or a table in text (CSV), `PART_BYTES` at a time."""
    fields = [getattr(columns, column) for column in COLUMNS]
    found = _rows_of_csv if format_of(name)[0] in (".csv", ".tsv") else _rows_of_json
    records: dict[int, list[str | None]] = {}  # row -> fields
    rejected: list[Reject] = []

    def part() -> Part:
        table = pa.table(list(zip(*records.values(), strict=True)) or [[]] * len(COLUMNS), pa.schema(_STRINGS))
        return clean(table, np.array(list(records), np.int64), name, rejected=rejected)

    row = held = 0
    try:
        for row, values in found(name, fields):
            if isinstance(values, Reject):
                rejected.append(values)
            elif values:
                records[row], held = values, held + len(values[1])
            if held > PART_BYTES or len(records) + len(rejected) >= _PART_ROWS:
                yield part()
                records, rejected, held = {}, [], 0
    except Damaged as damage:
        rejected.append(torn(name, row, damage))
    if not row and not rejected:
        rejected.append(Reject(name, 0, f"{UNREADABLE}: the file is empty", 1))
    yield part()


Found = tuple[int, list[str | None] | Reject]  # row, its fields; none of a blank line


def _rows_of_json(name: str, fields: list[str]) -> Iterator[Found]:
    for row, line in enumerate(lines(name, _LINE_BYTES), 1):
        try:
            yield row, [] if line.isspace() else _strings(line, fields)
        except (ValueError, RecursionError) as error:
            yield row, Reject(name, row, f"{UNREADABLE}: {error}", 1)


def _strings(line: bytes, fields: list[str]) -> list[str | None]:
    """The fields of a JSON record as strings, the text second; ValueError says why it cannot be used."""
    if len(line) > _LINE_BYTES:
        raise ValueError(f"longer than {_LINE_BYTES // 1_000_000} MB, which is no document")
    record = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape"))
    if not isinstance(record, dict) or not isinstance(record.get(fields[1]), str):
        found = listed(record) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"it has no string '{fields[1]}', but {found}")
    values = [record.get(field) for field in fields]
    values = [value if isinstance(value, str) or value is None else json.dumps(value) for value in values]
    values[1].encode()  # broken bytes, and half a surrogate pair, are no characters
    return [value and value.encode("utf-8", "backslashreplace").decode() for value in values]


def _rows_of_csv(name: str, fields: list[str]) -> Iterator[Found]:
    """The rows of a table, divided by the sign that finds the text's column in its head, or else the most columns.

    A line that is not in the encoding of the first ones is taken as Windows' Western one.
    """
    found = lines(name, _LINE_BYTES)
    first = list(itertools.islice(found, 50))
    encoding = encoding_of(b"".join(first))

    def decoded(line: bytes) -> str:
        with contextlib.suppress(UnicodeDecodeError):
            return line.decode(encoding)
        say(name, f"{encoding}, with lines of cp1252")
        return line.decode("cp1252", "replace")

    texts = map(decoded, itertools.chain(first, found))
    head = next(texts, "").removeprefix("\ufeff")
    heads = {sign: next(csv.reader([head], delimiter=sign), []) for sign in ",;\t|"}
    sign = max(heads, key=lambda sign: (fields[1] in heads[sign], len(heads[sign])))
    if encoding != "utf-8":
        say(name, encoding)
    rows, last = csv.reader(itertools.chain([head], texts), delimiter=sign, strict=True), 0
    names, places, problem = [], [], "its first line cannot be read"
    for row in itertools.count():  # 0: the head
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            lost = (rows.line_num - last) * row // max(last, 1)
            yield row, Reject(name, row, f"{UNREADABLE}: {error}", max(lost, 1))
            continue
        last = rows.line_num
        if not row:
            names = [cell.strip() for cell in cells]
            places = [names.index(field) if field in names else None for field in fields]
            problem = _text_problem(pa.schema([(each, pa.string()) for each in names]), fields[1])
        elif cells:
            odd = len(cells) < len(names) or any(cells[len(names) :])
            if why := problem or f"{len(cells)} cells in {len(names)} columns" * odd:
                yield row, Reject(name, row, f"{UNREADABLE}: {why}", 1)
            else:
                yield row, [None if place is None else cells[place] for place in places]


# The hub


@functools.lru_cache(maxsize=2)
def hub_data(rest: str) -> Any:
    """`owner/name[@config][#split]` on the Hugging Face hub, or in its local cache, as a memory-mapped data set."""
    name, _, part = rest.partition("#")
    name, _, config = name.partition("@")
    if not name or name.count("/") > 1:
        raise TraitError(f"hf:{rest} names no hub data set. Write it as hf:owner/name, hf:owner/name@config or ...#split.")
    import datasets

    with from_hub("data set", f"hf:{rest}", "set HF_TOKEN where the hub asks for it, or use local files"):
        return datasets.load_dataset(name, config or None, split=part or "train")


def read_hub(origin: str, data: Any, first: int, stop: int, columns: Columns) -> Iterator[Part]:
    """The rows first..stop of a hub data set (stop = -1: to the last)."""
    stop = len(data) if stop < 0 else min(stop, len(data))
    each = _rows_a_part(data.data.num_rows, data.data.nbytes)
    data = data.select_columns(_wanted(columns, data.column_names)).with_format("arrow")
    for start in range(first, stop, each):
        table = data[start : min(start + each, stop)]
        yield clean(table, np.arange(start, start + table.num_rows) + 1, origin, columns)
