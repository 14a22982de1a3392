"""Records of files and of the hub, cleaned: what is a usable document, and what is not, with its place and the reason.

Parquet and hub data sets are checked column by column (hundreds of megabytes a second), JSONL line by line. Rows count
from 1: lines of a JSONL file, rows of a Parquet file or data set. One bad record never stops a job. Neither does damage
to a whole stretch of a file: it is reported with the place, and with how many records it is likely to have cost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trait_kit.engine.files import TraitError
from trait_kit.engine.streams import Gap, TooLong, blocks, is_transient, is_url, open_file, split, suffix, unreadable

COLUMNS = ("id", "text", "source", "url")
PART_BYTES = 4_000_000  # of text, about
MOST_BYTES = 32_000_000  # of one record: no document of the web is that long, and a file without line ends is no JSONL
_PART_ROWS = 20_000
_DOCUMENT_BYTES = {".parquet": 1_500, ".jsonl": 3_000, ".jsonl.gz": 1_200, ".jsonl.zst": 1_200, ".warc": 60_000}
_DOCUMENT_BYTES |= {".warc.gz": 15_000, ".wet": 6_000, ".wet.gz": 2_500}  # on disk, about

Reject = tuple[str, int, str, int]


class Columns(NamedTuple):
    """What a corpus calls the columns or fields of the kit."""

    text: str = "text"
    id: str = "id"
    url: str = "url"
    source: str = "source"


USUAL = Columns()


class Damage(TraitError):
    """A stretch of a file that cannot be read: after `row`, about `records` of them."""

    def __init__(self, source: str, row: int, records: int, reason: str, advice: str) -> None:
        super().__init__(f"{source}{':' if reason.startswith('its') else ''} {reason}. {advice}")
        self.source, self.row, self.records, self.reason = source, row, max(int(records), 1), reason

    @property
    def reject(self) -> Reject:
        return self.source, self.row, self.reason, self.records


class Part(NamedTuple):
    """Usable records (COLUMNS, `row`, `file`), (source, row, reason, records) of the others, and what of these is damage.

    A reason that starts with "skipped: " is no loss but an ordinary page of the web without text to read.
    """

    documents: pa.Table
    rejected: list[Reject]
    damage: tuple[Damage, ...] = ()


def no_documents() -> pa.Table:
    return documents_table({name: [] for name in COLUMNS}, [], "")


def part_of_damage(damage: Damage) -> Part:
    return Part(no_documents(), [damage.reject], (damage,))


def documents_table(columns: dict[str, Any], rows: list[int] | np.ndarray, origin: str) -> pa.Table:
    table = {name: pa.array(columns[name], pa.string()) for name in COLUMNS}
    if table["source"].null_count:
        table["source"] = pc.fill_null(table["source"], origin)
    table["row"] = pa.array(rows, pa.int64())
    table["file"] = pa.repeat(pa.scalar(origin, pa.string()), len(table["row"]))
    return pa.table(table)


def documents_in(name: str, size: int) -> int:
    """About how many documents a file of this many bytes holds."""
    return size // _DOCUMENT_BYTES[suffix(name)]


def records_in(gap: Gap, records: int) -> int:
    """About how many records a Gap cost, after so many good ones."""
    return max(round(gap.lost * records / gap.good) if gap.good else 0, 1)


def cut_off(origin: str, row: int, records: int, reason: str, noun: str = "line") -> Damage:
    reason = f"its compressed data is cut off or damaged after {noun} {row} ({reason})"
    return Damage(origin, row, records, reason, "Copy or download it again.")


# Parquet


def row_groups(name: str) -> list[int]:
    """The rows of each row group of a Parquet file; empty where its footer is damaged, which reading it will report."""
    try:
        with _parquet(name, 0) as file:
            return [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    except Damage:
        return []


def read_parquet(name: str, first: int, stop: int, columns: Columns, size: int) -> Iterator[Part]:
    """The row groups first..stop of a Parquet file (stop = -1: to the last); one that is damaged costs the rest of it."""
    try:
        file = _parquet(name, documents_in(name, size))
    except Damage as damage:
        yield part_of_damage(damage)
        return
    with file:
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        stop = len(groups) if stop < 0 else stop
        names = file.schema_arrow.names
        wanted = [column for column in columns if column in names]
        try:
            _require(name, "column", columns.text, names)
            _require_strings(name, columns.text, file.schema_arrow.field(columns.text).type)
        except Damage as damage:
            damage.records = max(sum(group.num_rows for group in groups[first:stop]), 1)
            yield part_of_damage(damage)
            return
        for index in range(first, min(stop, len(groups))):
            start = sum(group.num_rows for group in groups[:index])
            last = start + groups[index].num_rows
            row = start
            batches = file.iter_batches(_batch_rows(groups[index]), row_groups=[index], columns=wanted)
            while row < last:
                try:
                    batch = next(batches)
                except Exception as error:
                    _raise_if_transient(name, error)
                    reason = f"its row group {index} cannot be read after row {row} ({_first_line(error)})"
                    yield part_of_damage(Damage(name, row, last - row, reason, "Write or download it again."))
                    break
                yield clean_table(pa.table(batch), row + 1, name, columns)
                row += batch.num_rows


def _parquet(name: str, records: int) -> pq.ParquetFile:
    source = open_file(name) if is_url(name) else name
    try:
        return pq.ParquetFile(source, buffer_size=1 << 22, page_checksum_verification=True)
    except Exception as error:
        _raise_if_transient(name, error)
        reason = f"is not a readable Parquet file ({_first_line(error)})"
        raise Damage(name, 0, records, reason, "Write or download it again.") from error


def _raise_if_transient(name: str, error: Exception) -> None:
    """Arrow's own errors are the file's; what a store raises through Arrow is the network's, as are the system's."""
    stores = is_url(name) and not isinstance(error, (pa.ArrowException, OSError))
    if stores or is_transient(error):
        raise unreadable(name, error) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _batch_rows(group: pq.RowGroupMetaData) -> int:
    return int(np.clip(PART_BYTES * group.num_rows // max(group.total_byte_size, 1), 1, _PART_ROWS))


def _require(where: str, noun: str, text: str, names: Iterable[str]) -> None:
    if text not in names:
        shown = sorted(names)
        listed = ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "")
        reason = f"has no {noun} '{text}', but {listed or 'none'}"
        raise Damage(where, 0, 1, reason, "Rename the one that holds the documents, or name it as the text column.")


def _require_strings(where: str, name: str, kind: pa.DataType) -> None:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    tests += (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    if not any(test(value) for test in tests):
        reason = f"its column '{name}' holds {kind}, not strings"
        raise Damage(where, 0, 1, reason, "Convert it to strings, or name another text column.")


def clean_table(table: pa.Table, start: int, origin: str, columns: Columns) -> Part:
    """Split an Arrow table into usable rows and rejected ones; column by column, so that millions of rows stay fast."""
    reasons: dict[int, str] = {}
    found: dict[str, pa.Array] = {}
    for name, column in zip(columns._fields, columns, strict=True):
        if column in table.column_names:
            found[name], broken = _as_strings(table[column])
            reasons.update(dict.fromkeys(broken, f"{name} is not UTF-8"))
        else:
            found[name] = pa.nulls(table.num_rows, pa.string())
        if name != "text":
            empty = pc.equal(pc.binary_length(found[name]), 0)
            found[name] = pc.if_else(empty, None, found[name]) if pc.any(empty).as_py() else found[name]
    text = found["text"]
    length = pc.fill_null(pc.binary_length(text), -1).to_numpy()
    blank = pc.fill_null(pc.utf8_is_space(text), False).to_numpy(zero_copy_only=False)
    for flags, reason in (
        (length < 0, "text is null"),
        ((length == 0) | blank, "text is empty"),
        (length > MOST_BYTES, _too_long(MOST_BYTES)),
    ):
        for index in np.flatnonzero(flags):
            reasons.setdefault(int(index), reason)
    rows = np.arange(start, start + table.num_rows)
    if reasons:
        keep = np.ones(table.num_rows, bool)
        keep[list(reasons)] = False
        found = {name: column.filter(pa.array(keep)) for name, column in found.items()}
        rows = rows[keep]
    rejected = [(origin, index + start, reasons[index], 1) for index in sorted(reasons)]
    return Part(documents_table(found, rows, origin), rejected)


def _too_long(most: int) -> str:
    return f"longer than {most / 1e6:.0f} MB, which is no document"


def _as_strings(column: pa.ChunkedArray) -> tuple[pa.Array, list[int]]:
    """(strings, indices that are not UTF-8): Arrow does not check the bytes of a string column, so they are checked here.

    Numbers and dates are taken as they print; structures, of which no id or address is made, as missing.
    """
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    try:
        binary = array.cast(pa.large_binary())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        try:
            return array.cast(pa.string()), []
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return pa.nulls(len(array), pa.string()), []
    try:
        return binary.cast(pa.string()), []
    except pa.ArrowInvalid:
        values, broken = [], []
        for index, value in enumerate(binary.to_pylist()):
            try:
                values.append(None if value is None else value.decode("utf-8"))
            except UnicodeDecodeError:
                values.append(None)
                broken.append(index)
        return pa.array(values, pa.string()), broken


# JSONL


def read_jsonl(name: str, columns: Columns, size: int) -> Iterator[Part]:
    """The records of a .jsonl, .jsonl.gz or .jsonl.zst file, `PART_BYTES` at a time."""
    named = [(column, getattr(columns, column)) for column in COLUMNS]
    kept: tuple[list[str | None], ...] = ([], [], [], [])
    rejected: list[Reject] = []
    rows: list[int] = []
    fields: set[str] = set()
    number, held = 0, 0

    def part() -> Part:
        """What was read since the last part, and empty lists for the next."""
        nonlocal kept, rejected, rows, held
        done = Part(documents_table(dict(zip(COLUMNS, kept, strict=True)), rows, name), rejected)
        kept, rejected, rows, held = ([], [], [], []), [], [], 0
        return done

    for line in split(blocks(name), b"\n", MOST_BYTES):
        if isinstance(line, Gap):
            yield part()
            yield part_of_damage(cut_off(name, number, records_in(line, number), line.reason))
            continue
        number += 1
        if isinstance(line, TooLong):
            rejected.append((name, number, _too_long(line.most), 1))
            continue
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            if not isinstance(record, dict):
                raise ValueError("not a JSON object")
            if columns.text not in fields:
                fields.update(list(record)[:100])
            found = [_field(record, column, field) for column, field in named]
        except UnicodeDecodeError as error:
            rejected.append((name, number, f"not UTF-8 (byte {error.start + 1} of the line)", 1))
        except json.JSONDecodeError as error:
            rejected.append((name, number, f"not valid JSON ({error.msg}, character {error.pos + 1})", 1))
        except RecursionError:
            rejected.append((name, number, "not valid JSON (nested too deep)", 1))
        except ValueError as error:
            rejected.append((name, number, str(error), 1))
        else:
            rows.append(number)
            for column, value in zip(kept, found, strict=True):
                column.append(value)
        held += len(line)
        if held > PART_BYTES or len(rows) + len(rejected) >= _PART_ROWS:
            if fields and columns.text not in fields:
                break
            yield part()
    if fields and columns.text not in fields:
        try:
            _require(name, "field", columns.text, fields)
        except Damage as damage:
            damage.records = max(number, documents_in(name, size))
            yield part_of_damage(damage)
    else:
        yield part()


def _field(record: dict[str, Any], name: str, field: str) -> str | None:
    """One field of a JSON record as a string; ValueError says why the record cannot be used."""
    value = record.get(field)
    if name == "text":
        if not isinstance(value, str):
            raise ValueError("text is null" if value is None else f"text is not a string but a {type(value).__name__}")
        if not value or value.isspace():
            raise ValueError("text is empty")
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, sort_keys=True)
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{name} holds half a surrogate pair, which is no character") from None
    return value


# The hub


def hub_data(rest: str) -> Any:
    """`owner/name[@config][#split]` on the Hugging Face hub, or in its local cache, as a memory-mapped data set."""
    name, _, split = rest.partition("#")
    name, _, config = name.partition("@")
    if not name or name.count("/") > 1:
        raise TraitError(f"hf:{rest} names no hub data set. Write it as hf:owner/name, hf:owner/name@config or ...#split.")
    import datasets

    try:
        return datasets.load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # the hub client raises dozens of kinds: not found, gated, offline, a split misspelt
        raise TraitError(
            f"hf:{rest} could not be loaded ({type(error).__name__}: {_first_line(error)}). Check the name, the config and "
            "the split, that the hub can be reached, and that HF_TOKEN is set where the data set asks for it; or use local "
            "files."
        ) from error


def read_hub(rest: str, data: Any, first: int, stop: int, columns: Columns) -> Iterator[Part]:
    """The rows first..stop of a hub data set."""
    origin = f"hf:{rest}"
    stop = len(data) if stop < 0 else min(stop, len(data))
    try:
        _require(origin, "column", columns.text, data.column_names)
        _require_strings(origin, columns.text, data.features.arrow_schema.field(columns.text).type)
    except Damage as damage:
        damage.records = max(stop - first, 1)
        yield part_of_damage(damage)
        return
    data = data.select_columns([column for column in columns if column in data.column_names]).with_format("arrow")
    each = int(np.clip(PART_BYTES * data.data.num_rows // max(data.data.nbytes, 1), 1, _PART_ROWS))
    for start in range(first, stop, each):
        yield clean_table(data[start : min(start + each, stop)], start + 1, origin, columns)
