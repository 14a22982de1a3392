"""Documents of a corpus of any size: named, listed as shards, read part by part, divided and sampled.

A corpus is named by a *spec*, the same string in every notebook; `{text=content, id=key}` at its end names its columns:

    demo:math/in_domain | web | in_domain_held_out | general_held_out      (and demo:ads/...)
    hf:owner/name[@config][#split]                                         split is `train` when left out
    path, URL or glob of .parquet, .jsonl, .json, .ndjson, .warc, .wet files, plain, .gz or .zst; URLs are fsspec's

A shard is the unit of work and of resume, and is read alone: what it yields depends on its own bytes only. Held out are the
documents whose id hashes below a share: a document's fate depends on its own id and never on the others'.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from trait_kit import tables
from trait_kit.demo import DEMO_PARTS as DEMO_PARTS
from trait_kit.demo import DEMO_TRUTH, demo_digest, names_in
from trait_kit.demo import part as demo_part
from trait_kit.engine.assets import cache_dir
from trait_kit.engine.files import TraitError, digest
from trait_kit.engine.readers import (
    COLUMNS,
    DAMAGED,
    REPEATED,
    SCHEMA,
    Columns,
    Part,
    Reject,
    clean,
    hub_data,
    read_hub,
    read_jsonl,
    read_parquet,
    row_groups,
)
from trait_kit.engine.streams import Source, documents_in, find, format_of, is_url
from trait_kit.engine.web import read_web

HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 2_000
_SMALL_BYTES, _HELD_BYTES = 4_000_000, 200_000_000
_RULES = 2  # raised whenever the same bytes would give other documents
_FEW_SHARDS, _SAMPLED_SHARDS, _SAMPLED_SHARE = 8, 64, 4
_NOTHING = Part(SCHEMA.empty_table(), [])
_COLUMN_NAMES = re.compile(r"(.*\S)\s+\{([^{}]*)\}")

log = logging.getLogger(__name__)


class Shard(NamedTuple):
    """A piece of a corpus that one worker reads at once: a file, row groups of one, or rows of a data set."""

    number: int  # 0-based place in the corpus
    source: str  # path, URL or spec it is read from
    first: int = 0  # first row group (Parquet) or row (hub data set, demo corpus)
    stop: int = -1  # past the last; -1: the whole file
    bytes: int = 0  # about how many it holds on disk, for progress; 0 unknown
    key: str = ""  # digest that changes when what it reads does
    held_out: float = HELD_OUT_SHARE  # share of the hashes of ids whose documents are never trained on
    columns: Columns = Columns()  # what the kit's columns are called there


# Naming


def _named(spec: str) -> tuple[str, str, Columns]:
    """(demo, hf or files, what follows, names of the columns) of a spec."""
    columns = Columns()
    if match := _COLUMN_NAMES.fullmatch(spec):
        pairs = [pair.partition("=") for pair in match[2].split(",") if pair.strip()]
        names = {key.strip(): value.strip() for key, _, value in pairs}
        if set(names) - set(Columns._fields) or not all(names.values()):
            raise TraitError(f"{spec}: columns are named like {{text=content, id=key}}, for {', '.join(Columns._fields)}.")
        spec, columns = match[1], Columns(**names)
    kind, _, rest = spec.partition(":")
    return (kind, rest, columns) if kind in ("demo", "hf") and not is_url(spec) else ("files", spec, columns)


def fingerprint(spec: str) -> str:
    """A digest that changes when the corpus does: with the content of its files, the demo's rules, or a hub id."""
    kind, rest, _ = _named(spec)
    if kind == "demo":
        return demo_digest(f"demo:{rest}")
    return digest([spec, [list(source) for source in find(rest)] if kind == "files" else []])


def list_shards(spec: str, seed: int = 0, *, shard_rows: int = 50_000) -> list[Shard]:
    """The shards of a corpus, in the order of its files' names; TraitError if nothing matches.

    Parquet files are cut between row groups, into shards of up to about `shard_rows` rows; hub data sets and demo corpora
    into slices of `shard_rows` rows; any other file is one shard. The share that is held out follows the corpus' rows, for
    files without a count an estimate from their bytes; a single file of up to 4 MB is read for it: exactly 5% are held out.
    """
    kind, rest, columns = _named(spec)
    if kind == "files":
        sources = find(rest)
        pieces, documents = _cut_files(sources, shard_rows)
        small = len(sources) == 1 and 0 < sources[0].bytes <= _SMALL_BYTES
    else:
        data = demo_part(rest, seed) if kind == "demo" else hub_data(rest)
        documents, size = len(data), data.nbytes if kind == "demo" else data.data.nbytes
        state = f"{demo_digest(f'demo:{rest}')} {seed}" if kind == "demo" else data._fingerprint
        stops = [(first, min(first + shard_rows, documents)) for first in range(0, max(documents, 1), shard_rows)]
        each = size // len(stops)
        pieces = [Shard(0, f"{kind}:{rest}", first, stop, each, state) for first, stop in stops]
        small = size <= _SMALL_BYTES
    share = 0.0
    if kind != "demo":
        share = _exact_share(pieces[0].source, columns, pieces[0].key) if small else held_out_share(documents)
    shards = [piece._replace(number=n, held_out=share, columns=columns) for n, piece in enumerate(pieces)]
    return [shard._replace(key=digest([_RULES, *shard])) for shard in shards]


def _cut_files(sources: list[Source], shard_rows: int) -> tuple[list[Shard], int]:
    """(the pieces of all files, their content as key; about how many documents they hold together)."""
    with ThreadPoolExecutor(16) as pool:  # footers of remote files: the wait is the network's
        groups = list(pool.map(_row_groups, sources))
    pieces, documents = [], 0
    for source, rows in zip(sources, groups, strict=True):
        documents += sum(rows) if rows else documents_in(source.name, source.bytes)
        starts = np.cumsum([0, *rows])
        first = 0
        while first < len(rows):
            stop = max(int(np.searchsorted(starts, starts[first] + shard_rows, "right")) - 1, first + 1)
            size = source.bytes * int(starts[stop] - starts[first]) // max(int(starts[-1]), 1)
            pieces.append(Shard(0, source.name, first, stop, size, source.content))
            first = stop
        if not rows:
            pieces.append(Shard(0, source.name, 0, -1, source.bytes, source.content))
    return pieces, documents


@functools.lru_cache(maxsize=100_000)
def _row_groups(source: Source) -> tuple[int, ...]:
    return tuple(row_groups(source.name)) if format_of(source.name)[0] == ".parquet" else ()


# Identity


def held_out_share(documents: int) -> float:
    """The share of a corpus of about so many documents that is held out.

    5% up to 40,000 documents, then half as much whenever the corpus doubles, down to 0.625%: 2,000 must be found without
    reading it to its end. In steps, so that one that grows a little keeps what is held out, and all work on the others.
    """
    doublings = math.floor(math.log2(max(documents * HELD_OUT_SHARE / HELD_OUT_MOST, 1)))
    return HELD_OUT_SHARE / 2 ** min(doublings, 3)


@functools.lru_cache(maxsize=100)
def _exact_share(source: str, columns: Columns, _content: str) -> float:
    """The share that holds out exactly 5% (rounded down) of the documents of a small corpus: none of fewer than 20."""
    hashes = [hashes for _, hashes in _checked(Shard(0, source, columns=columns), 0)]
    ordered = np.sort(np.concatenate([np.empty(0, np.uint64), *hashes]))
    count = int(len(ordered) * HELD_OUT_SHARE)
    return float(ordered[count - 1] / 2 + ordered[count] / 2) / 2**64 if count else 0.0


def id_hashes(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """uint64 [n]: SipHash with a fixed key, the same in every process and on every machine."""
    return pd.util.hash_array(ids.to_numpy(zero_copy_only=False), categorize=False)


class Identities:
    """The ids seen so far, as sorted hashes: 8 bytes a document."""

    def __init__(self) -> None:
        self._seen = np.array([2**64 - 1], np.uint64)

    def check(self, documents: pa.Table) -> tuple[pa.Table, np.ndarray, np.ndarray]:
        """(the documents, each with an id; hashes of the ids; bool: the first with its id, counted as seen from now on).

        A missing id is made from the text, and the row where a text repeats, so that it stays when a file moves. Its hash
        is that of the text alone: a text that repeats is held out wherever it stands, or nowhere.
        """
        missing = documents["id"].is_null().to_numpy()
        texts = documents["text"].filter(pa.array(missing)).to_pylist()
        documents = _with_ids(documents, missing, [hashlib.sha256(text.encode()).hexdigest()[:20] for text in texts])
        hashes = id_hashes(documents["id"])
        new = self._fresh(hashes)
        if (again := missing & ~new).any():
            old = documents.filter(pa.array(again))
            names = pc.binary_join_element_wise(old["id"], old["row"].cast(pa.string()), "-")
            documents = _with_ids(documents, again, names.to_pylist())
            new[again] = self._fresh(id_hashes(names))
        return documents, hashes, new

    def unique(self, part: Part) -> tuple[Part, np.ndarray]:
        """(the part without documents whose id was seen before, which are rejected; hashes of the ids)."""
        documents, hashes, new = self.check(part.documents)
        again = documents.filter(pa.array(~new)).to_pylist()
        rejected = [Reject(row["file"], row["row"], REPEATED, 1) for row in again]
        return Part(documents.filter(pa.array(new)), part.rejected + rejected), hashes[new]

    def _fresh(self, hashes: np.ndarray) -> np.ndarray:
        values, first = np.unique(hashes, return_index=True)
        places = np.searchsorted(self._seen, values)
        added = self._seen[np.minimum(places, len(self._seen) - 1)] != values
        self._seen = np.insert(self._seen, places[added], values[added])
        new = np.zeros(len(hashes), bool)
        new[first[added]] = True
        return new


def _with_ids(documents: pa.Table, where: np.ndarray, names: list[str]) -> pa.Table:
    if not names:
        return documents
    ids = pc.replace_with_mask(documents["id"], pa.array(where), pa.array(names, pa.string()))
    return documents.set_column(documents.column_names.index("id"), "id", ids)


# Reading


def read_shard(shard: Shard, seed: int = 0) -> Iterator[Part]:
    """The usable documents of a shard but for the held-out ones, at most about 4 MB of text at a time, and the others.

    Ids are never null and unique within the shard. Damage never raises: it is in `rejected`. A file that is not there, or
    that the machine or the network cannot give, is a TraitError, because the next attempt may succeed.
    """
    for part, hashes in _checked(shard, seed):
        kept = hashes >= np.uint64(shard.held_out * 2**64)
        yield part if kept.all() else part._replace(documents=part.documents.filter(pa.array(kept)))


def _checked(shard: Shard, seed: int) -> Iterator[tuple[Part, np.ndarray]]:
    """(part with complete and unique ids, their hashes) of a shard, the held-out documents included."""
    identities = Identities()
    for part in _parts(shard, seed):
        yield identities.unique(part)


def _parts(shard: Shard, seed: int) -> Iterator[Part]:
    kind, name, _ = _named(shard.source)
    if kind == "demo":
        rows = np.arange(shard.first, shard.stop)
        yield clean(demo_part(name, seed).take(pa.array(rows)), rows + 1, shard.source)
    elif kind == "hf":
        yield from read_hub(shard.source, hub_data(name), shard.first, shard.stop, shard.columns)
    elif format_of(name)[0] == ".parquet":
        yield from read_parquet(name, shard.first, shard.stop, shard.columns, shard.bytes)
    elif format_of(name)[0] in (".warc", ".wet"):
        yield from read_web(find(name)[0], cache_dir() / "extracted")
    else:
        yield from read_jsonl(name, shard.columns)


def read_rows(shard: Shard, positions: Sequence[int] | np.ndarray, seed: int = 0) -> pa.Table:
    """The documents (COLUMNS) at these sorted positions among those of `read_shard`; nothing behind the last is read."""
    wanted = np.asarray(positions, np.int64)
    taken, start, done = [_NOTHING.documents], 0, 0
    for part in read_shard(shard, seed) if len(wanted) else ():
        end = start + part.documents.num_rows
        stop = int(np.searchsorted(wanted, end))
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
            yield identities.unique(part)[0]


def load_documents(spec: str, seed: int = 0) -> pa.Table:
    """The usable documents of a corpus (documents schema, no labels); how many were quarantined is logged as a warning."""
    documents, quarantine = load_with_quarantine(spec, seed)
    if quarantine.num_rows:
        lost, first = pc.sum(quarantine["records"]).as_py(), quarantine.slice(0, 1).to_pylist()[0]
        log.warning(
            "%s: %d of %d records cannot be used; the first is row %d of %s: %s",
            *(spec, lost, lost + documents.num_rows, first["row"], first["source"], first["reason"]),
        )
    return documents


def load_with_quarantine(spec: str, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """(documents to train on or select from, quarantine) of a corpus that fits into memory and matters as a whole.

    So ids are unique across files, and a damaged file is a TraitError that names it, as is a corpus without documents.
    """
    parts = [_NOTHING, *unique_parts(list_shards(spec, seed), seed)]
    rejected = [reject for part in parts for reject in part.rejected]
    for reject in rejected:
        if reject.reason.startswith(DAMAGED):
            raise TraitError(f"{reject.source}: {reject.reason}. Write, copy or download it again.")
    documents = pa.concat_tables(part.documents for part in parts).select(COLUMNS).combine_chunks()
    if not documents.num_rows:
        first = rejected[0] if rejected else Reject(spec, 0, "it holds no records", 0)
        raise TraitError(
            f"{spec} has no usable document. {first.source}, row {first.row}: {first.reason}. Each record needs a non-empty "
            "text, in a field `text` or one that the spec names: {text=body}."
        )
    return documents, quarantine_table(rejected)


def quarantine_table(rejected: Sequence[Reject]) -> pa.Table:
    columns = zip(*rejected, strict=True) if rejected else [()] * len(Reject._fields)
    return tables.conform(pa.table(dict(zip(Reject._fields, columns, strict=True))), "quarantine")


# Choosing


def load_held_out(spec: str, seed: int = 0) -> pa.Table:
    """The documents (COLUMNS) of a corpus that are never trained on: bits per byte on them show learning and forgetting.

    Up to 2,000 that `read_shard` leaves out; shards are asked in an order made from their names, until there are enough.
    """
    kind, rest, _ = _named(spec)
    if kind == "demo":
        domain, name = names_in(rest)
        twins = {"in_domain": "in_domain_held_out", "web": "general_held_out"}
        return demo_part(f"{domain}/{twins.get(name, name)}", seed).select(COLUMNS)
    found, documents, count = {}, 0, 0
    shards = sorted(list_shards(spec), key=lambda piece: digest([piece.source, piece.first]))
    for shard, (part, hashes) in ((piece, read) for piece in shards for read in _checked(piece, 0)):
        chosen = hashes < np.uint64(shard.held_out * 2**64)
        found.setdefault(shard.number, []).append(part.documents.filter(pa.array(chosen)))
        documents, count = documents + len(chosen), count + int(chosen.sum())
        if count >= HELD_OUT_MOST:
            break
    if not count:
        raise TraitError(f"{spec} has {documents} document(s): too few to hold any out. Bring at least 20.")
    held = pa.concat_tables(table for number in sorted(found) for table in found[number])
    held = held.filter(pa.array(Identities().check(held)[2]))
    return held.select(COLUMNS).slice(0, HELD_OUT_MOST).combine_chunks()


def load_labels(spec: str, seed: int = 0) -> dict[str, str] | None:
    """id -> topic of a demo corpus, the hidden truth that scores selections and trains nothing; None for other corpora."""
    kind, rest, _ = _named(spec)
    if kind != "demo":
        return None
    table = demo_part(rest, seed)
    return dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))


def truth_label(spec: str) -> str | None:
    """The label that an on-topic document of this corpus has in `load_labels`; None where there is no truth."""
    kind, rest, _ = _named(spec)
    return DEMO_TRUTH[names_in(rest)[0]] if kind == "demo" else None


def sample(spec: str, n: int, seed: int) -> pa.Table:
    """About `n` documents (COLUMNS) to train a classifier on, in the corpus' order; TraitError if none is usable.

    Of a corpus of up to 8 shards and 200 MB on disk, uniform without replacement over all documents. Of a larger one, evenly
    over 64 shards chosen by the seed (more where these hold too few), each read until it gave four times what is taken of
    it: a sample must not cost a pass over the web.
    """
    shards, generator = list_shards(spec, seed), np.random.default_rng(seed)
    if len(shards) <= _FEW_SHARDS and sum(shard.bytes for shard in shards) <= _HELD_BYTES:
        documents = pa.concat_tables(part.documents for part in (_NOTHING, *unique_parts(shards, seed)))
        documents = documents.take(pa.array(np.sort(generator.permutation(documents.num_rows)[:n])))
    else:
        found: dict[int, pa.Table] = {}
        each = -(-n // min(_SAMPLED_SHARDS, len(shards)))
        for number in generator.permutation(len(shards)).tolist():
            missing = n - sum(map(len, found.values()))
            if missing > 0:
                found[number] = _shard_sample(shards[number], min(each, missing), seed, generator)
        documents = pa.concat_tables([_NOTHING.documents, *(found[number] for number in sorted(found))])
    if n > 0 and not documents.num_rows:
        raise TraitError(f"{spec} has no usable document to sample. Read its quarantine table for the reasons.")
    return documents.select(COLUMNS).combine_chunks()


def _shard_sample(shard: Shard, n: int, seed: int, generator: np.random.Generator) -> pa.Table:
    """The `n` documents with the smallest random keys among the shard's first `_SAMPLED_SHARE` times as many."""
    kept, keys, seen = _NOTHING.documents, np.empty(0), 0
    for part in read_shard(shard, seed):
        documents = part.documents.slice(0, n * _SAMPLED_SHARE - seen)
        seen += documents.num_rows
        keys = np.concatenate([keys, generator.random(documents.num_rows)])
        best = np.sort(np.argsort(keys, kind="stable")[:n])
        kept, keys = pa.concat_tables([kept, documents]).take(pa.array(best)), keys[best]
        if seen >= n * _SAMPLED_SHARE:
            break
    return kept
