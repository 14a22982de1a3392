"""A corpus of any size, as shards that are read part by part: memory never grows with it.

A corpus is named by a *spec*, the same string in every notebook:

    demo:math/in_domain | web | in_domain_held_out | general_held_out      (and demo:ads/...)
    hf:owner/name[@config][#split]                                         split is `train` when left out
    path, URL or glob of .parquet, .jsonl[.gz|.zst], .warc[.gz], .wet[.gz] files; URLs are fsspec's (s3://, hf://, ...)

Where a corpus calls its columns otherwise, the spec says so at its end: `web/*.jsonl.gz {text=content, id=key}`.

A shard is the unit of work and of resume, and is read alone: what it yields depends on its own bytes only. A record that
cannot be used (bytes that are not UTF-8, a broken JSON line, no text, an id seen before in its shard) is reported with
its file, its row and the reason, and so is damage to a file; reading goes on behind it.

Held out of a corpus that is not the demo's are the documents whose id hashes below a share (`identity.held_out_share`) of
the corpus' size: its rows for Parquet and hub data sets, for other files an estimate from their bytes on disk. A single
file of up to 4 MB is read when its shards are listed, and the share set so that exactly 5% of its documents are held out:
a few dozen give at least one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from trait_kit import demo
from trait_kit.engine.files import TraitError, digest
from trait_kit.engine.identity import HELD_OUT_MOST, HELD_OUT_SHARE, Identities, below, held_out_share, share_of
from trait_kit.engine.records import (
    COLUMNS,
    USUAL,
    Columns,
    Damage,
    Part,
    documents_in,
    documents_table,
    hub_data,
    no_documents,
    read_hub,
    read_jsonl,
    read_parquet,
    row_groups,
)
from trait_kit.engine.streams import WARC_SUFFIXES, Source, find, is_url, suffix, unreadable
from trait_kit.engine.web import read_web

__all__ = [
    "Columns",
    "Damage",
    "Part",
    "Shard",
    "fingerprint",
    "held_out",
    "list_shards",
    "read_rows",
    "read_shard",
    "sample",
]

_SMALL_BYTES = 4_000_000
_RULES = 1  # raised whenever the same bytes would give other documents
_FEW_SHARDS, _SAMPLED_SHARDS, _SAMPLED_SHARE = 8, 64, 4


_COLUMN_NAMES = re.compile(r"(.*\S)\s+\{([^{}]*)\}")


class Shard(NamedTuple):
    """A piece of a corpus that one worker reads at once: a file, row groups of one, or rows of a data set."""

    number: int  # 0-based place in the corpus
    source: str  # path, URL or spec it is read from
    first: int = 0  # first row group (Parquet) or row (hub data set, demo corpus)
    stop: int = -1  # past the last; -1: the whole file
    bytes: int = 0  # about how many it holds on disk, for progress; 0 unknown
    key: str = ""  # digest that changes when what it reads does
    held_out: float = HELD_OUT_SHARE  # share of the hashes of ids whose documents are never trained on
    columns: Columns = USUAL  # what the kit's columns are called there


def _named(spec: str) -> tuple[str, Columns]:
    """The spec without its column names, and these."""
    match = _COLUMN_NAMES.fullmatch(spec)
    if not match:
        return spec, USUAL
    pairs = [pair.partition("=") for pair in match[2].split(",") if pair.strip()]
    names = {key.strip(): value.strip() for key, _, value in pairs}
    unknown = sorted(set(names) - set(Columns._fields))
    if unknown or not all(names.values()):
        raise TraitError(f"{spec}: columns are named like {{text=content, id=key}}, for {', '.join(Columns._fields)}.")
    return match[1], Columns(**names)


def _kind(spec: str) -> tuple[str, str]:
    kind, _, rest = spec.partition(":")
    return (kind, rest) if kind in ("demo", "hf") and not is_url(spec) else ("files", spec)


def list_shards(spec: str, seed: int = 0, *, shard_rows: int = 50_000) -> list[Shard]:
    """The shards of a corpus, in the order of its files' names; TraitError if nothing matches.

    Parquet files are cut between row groups, into shards of up to about `shard_rows` rows; hub data sets and demo corpora
    into slices of `shard_rows` rows; any other file is one shard.
    """
    spec, columns = _named(spec)
    kind, rest = _kind(spec)
    if kind == "files":
        sources = find(spec)
        pieces, documents = _pieces(sources, shard_rows)
        small = len(sources) == 1 and 0 < sources[0].bytes <= _SMALL_BYTES
    else:
        data = demo.part(rest, seed) if kind == "demo" else _hub(rest)
        documents = len(data)
        state = [demo.demo_digest(spec), seed] if kind == "demo" else [getattr(data, "_fingerprint", "")]
        starts = range(0, max(documents, 1), shard_rows)
        pieces = [(spec, first, min(first + shard_rows, documents), 0, state) for first in starts]
        small = kind == "hf" and data.data.nbytes <= _SMALL_BYTES
    if kind == "demo":
        share = 0.0
    else:
        share = _exact_share(pieces[0][0], columns, digest(pieces[0][4])) if small else held_out_share(documents)
    same = [_RULES, share, columns]
    return [
        Shard(number, source, first, stop, size, digest([*same, source, first, stop, state]), share, columns)
        for number, (source, first, stop, size, state) in enumerate(pieces)
    ]


@functools.lru_cache(maxsize=100)
def _exact_share(source: str, columns: Columns, _state: str) -> float:
    return share_of([hashes for _, hashes in _checked(Shard(0, source, columns=columns), 0)])


def _pieces(sources: list[Source], shard_rows: int) -> tuple[list[tuple[str, int, int, int, Any]], int]:
    """((source, first, stop, bytes, state) of every shard; about how many documents they hold together)."""
    with ThreadPoolExecutor(16) as pool:  # footers of remote files: the wait is the network's
        groups = list(pool.map(_row_groups, sources))
    pieces, documents = [], 0
    for source, rows in zip(sources, groups, strict=True):
        state = [source.bytes, source.stamp]
        if not rows:
            pieces.append((source.name, 0, -1, source.bytes, state))
            documents += documents_in(source.name, source.bytes)
            continue
        documents += sum(rows)
        first, held = 0, 0
        for stop, count in enumerate([*rows, shard_rows + 1]):
            if (held and held + count > shard_rows) or stop == len(rows):
                size = source.bytes * held // max(sum(rows), 1)
                pieces.append((source.name, first, stop, size, state))
                first, held = stop, 0
            held += count
    return pieces, documents


@functools.lru_cache(maxsize=100_000)
def _row_groups(source: Source) -> tuple[int, ...]:
    return tuple(row_groups(source.name)) if suffix(source.name) == ".parquet" else ()


@functools.lru_cache(maxsize=2)
def _hub(rest: str) -> Any:
    return hub_data(rest)


def fingerprint(spec: str) -> str:
    """A digest that changes when the corpus does: of wheel and text rules, of file sizes and times, or of a hub id."""
    plain, _ = _named(spec)
    kind, _ = _kind(plain)
    if kind == "demo":
        return demo.demo_digest(plain)
    return digest([spec] if kind == "hf" else [spec, [list(source) for source in find(plain)]])


# Reading


def read_shard(shard: Shard, seed: int = 0) -> Iterator[Part]:
    """The usable documents of a shard but for the held-out ones, at most about 4 MB of text at a time, and the others.

    Ids are never null and unique within the shard. Damage never raises: it is in `rejected`. A file that is not there, or
    that the machine or the network cannot give, is a TraitError, because the next attempt may succeed.
    """
    for part, chosen in _divided(shard, seed):
        yield part._replace(documents=part.documents.filter(pa.array(~chosen))) if chosen.any() else part


def _divided(shard: Shard, seed: int) -> Iterator[tuple[Part, np.ndarray]]:
    """(part, bool: its documents to hold out) of a shard."""
    for part, hashes in _checked(shard, seed):
        yield part, below(hashes, shard.held_out)


def _checked(shard: Shard, seed: int) -> Iterator[tuple[Part, np.ndarray]]:
    """(part with complete and unique ids, their hashes) of a shard."""
    identities = Identities()
    for part in _parts(shard, seed):
        documents, hashes, new = identities.check(part.documents)
        if not new.all():
            part.rejected.extend(_repeated(documents.filter(pa.array(~new))))
            documents, hashes = documents.filter(pa.array(new)), hashes[new]
        yield part._replace(documents=documents), hashes


def _repeated(documents: pa.Table) -> list[tuple[str, int, str, int]]:
    places = zip(documents["file"].to_pylist(), documents["row"].to_pylist(), strict=True)
    return [(file, row, "its id was seen before", 1) for file, row in places]


def _parts(shard: Shard, seed: int) -> Iterator[Part]:
    name = shard.source
    kind, rest = _kind(name)
    if kind == "demo":
        rows = demo.part(rest, seed).slice(shard.first, shard.stop - shard.first)
        found = {column: rows[column].combine_chunks() for column in COLUMNS}
        yield Part(documents_table(found, np.arange(rows.num_rows) + shard.first + 1, name), [])
    elif kind == "hf":
        yield from read_hub(rest, _hub(rest), shard.first, shard.stop, shard.columns)
    elif not is_url(name) and _is_empty(name):
        yield Part(no_documents(), [(name, 0, "the file is empty", 1)])
    elif suffix(name) == ".parquet":
        yield from read_parquet(name, shard.first, shard.stop, shard.columns, shard.bytes)
    elif suffix(name) in WARC_SUFFIXES:
        yield from read_web(find(name)[0])
    else:
        yield from read_jsonl(name, shard.columns, shard.bytes)


def _is_empty(name: str) -> bool:
    try:
        return Path(name).stat().st_size == 0
    except OSError as error:
        raise unreadable(name, error) from error


def read_rows(shard: Shard, positions: Sequence[int] | np.ndarray, seed: int = 0) -> pa.Table:
    """The documents (COLUMNS) at these sorted positions among those of `read_shard`; nothing behind the last is read."""
    wanted = np.asarray(positions, np.int64)
    taken, start, done = [no_documents()], 0, 0
    for part in read_shard(shard, seed) if len(wanted) else ():
        end = start + part.documents.num_rows
        stop = int(np.searchsorted(wanted, end))
        if stop > done:
            taken.append(part.documents.take(pa.array(wanted[done:stop] - start)))
        start, done = end, stop
        if done == len(wanted):
            break
    if done < len(wanted):
        raise TraitError(f"{shard.source} holds fewer documents than when it was scored. Score it again.")
    return pa.concat_tables(taken).select(COLUMNS)


def unique_parts(shards: list[Shard], seed: int = 0) -> Iterator[Part]:
    """The parts of small corpora, their ids unique across all shards (8 bytes a document are kept for that)."""
    identities = Identities()
    for shard in shards:
        for part in read_shard(shard, seed):
            documents, _, new = identities.check(part.documents)
            part.rejected.extend(_repeated(documents.filter(pa.array(~new))))
            yield part._replace(documents=documents.filter(pa.array(new)))


# Choosing


def chosen_rows(documents: int, n: int, seed: int) -> np.ndarray:
    """`n` of so many rows without replacement (all of them, if there are fewer), sorted."""
    return np.sort(np.random.default_rng(seed).permutation(documents)[:n])


def sample(spec: str, n: int, seed: int) -> pa.Table:
    """About `n` documents (COLUMNS) to train a classifier on, in the corpus' order; TraitError if none is usable.

    Of a corpus of up to 8 shards, uniform without replacement over all documents, which takes two passes. Of a larger one,
    evenly over 64 shards chosen by the seed (more where these hold too few), each read until it gave four times what is
    taken of it: a sample must not cost a pass over the web.
    """
    shards = list_shards(spec, seed)
    taken = [no_documents()]
    if len(shards) <= _FEW_SHARDS:
        rows = chosen_rows(sum(part.documents.num_rows for part in unique_parts(shards, seed)), n, seed)
        start = 0
        for part in unique_parts(shards, seed):
            end = start + part.documents.num_rows
            inside = rows[np.searchsorted(rows, start) : np.searchsorted(rows, end)]
            taken.append(part.documents.take(pa.array(inside - start)))
            start = end
    else:
        generator, found = np.random.default_rng(seed), {}
        each = -(-n // min(_SAMPLED_SHARDS, len(shards)))
        for number in generator.permutation(len(shards)).tolist():
            missing = n - sum(map(len, found.values()))
            if missing <= 0:
                break
            found[number] = _shard_sample(shards[number], min(each, missing), seed, generator)
        taken += [found[number] for number in sorted(found)]
    documents = pa.concat_tables(taken)
    if n > 0 and not documents.num_rows:
        raise TraitError(f"{spec} has no usable document to sample. Read its quarantine table for the reasons.")
    return documents.select(COLUMNS).combine_chunks()


def _shard_sample(shard: Shard, n: int, seed: int, generator: np.random.Generator) -> pa.Table:
    """The `n` documents with the smallest random keys among the shard's first `_SAMPLED_SHARE` times as many."""
    kept, keys, seen = no_documents(), np.empty(0), 0
    for part in read_shard(shard, seed):
        documents = part.documents.slice(0, n * _SAMPLED_SHARE - seen)
        seen += documents.num_rows
        keys = np.concatenate([keys, generator.random(documents.num_rows)])
        best = np.sort(np.argsort(keys, kind="stable")[:n])
        kept, keys = pa.concat_tables([kept, documents]).take(pa.array(best)), keys[best]
        if seen >= n * _SAMPLED_SHARE:
            break
    return kept


def held_out(spec: str) -> pa.Table:
    """Up to 2,000 documents (COLUMNS) that `read_shard` leaves out; shards are asked in an order made from their names."""
    found, documents, count = {}, 0, 0
    for shard in sorted(list_shards(spec), key=lambda shard: digest([shard.source, shard.first])):
        tables = []
        for part, chosen in _divided(shard, 0):
            tables.append(part.documents.filter(pa.array(chosen)))
            documents, count = documents + len(chosen), count + int(chosen.sum())
            if count >= HELD_OUT_MOST:
                break
        found[shard.number] = tables
        if count >= HELD_OUT_MOST:
            break
    if not count:
        raise TraitError(f"{spec} has {documents} document(s): too few to hold any out. Bring at least 20.")
    held = pa.concat_tables([table for number in sorted(found) for table in found[number]])
    held = held.filter(pa.array(Identities().check(held)[2]))
    return held.select(COLUMNS).slice(0, HELD_OUT_MOST).combine_chunks()
