"""Documents of a corpus of any size: named, listed as shards, read part by part, divided and sampled.

A corpus is named by a *spec*; `{text=content, id=key}` at its end names its columns, and `{held_out=0}` holds nothing out:

    demo:math/in_domain | web | in_domain_held_out | general_held_out (and demo:ads/...)
    hf:owner/name[@config][#split], by default the split train
    path, glob, folder or fsspec URL of files, plain, .gz or .zst:
      .parquet, .jsonl, .json, .ndjson, .csv, .tsv, .warc, .wet of many documents
      .txt, .md, .html, .pdf of one, whose id is its path

What a shard yields depends on its own bytes only. Held out are the documents whose id hashes below a share. An id is unique
within its file; where files share one, the texts decide.
"""

import functools
import hashlib
import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from trait_kit import demo
from trait_kit.engine.files import TraitError, cache_dir, digest
from trait_kit.reading import readers
from trait_kit.reading.readers import COLUMNS, SCHEMA, Columns, Part, Reject
from trait_kit.reading.streams import Source, find, format_of, is_document, is_url
from trait_kit.reading.web import read_web

_HELD_OUT_MOST, _HELD_OUT_SHARDS = 2_000, 8
_RULES = 3  # raised when the same bytes give other documents
_SAMPLED_SHARDS, _SAMPLED_SHARE, _SAMPLED_FROM = (
    64,
    4,
    50_000,
)  # shards; documents read for one drawn, and at least
_FILES = 1_000  # of one document each, in a shard

log = logging.getLogger(__name__)


class Shard(NamedTuple):
    """A file, row groups of one, rows of a data set, or files of one document each."""

    number: int  # 0-based place in the corpus
    source: str  # path, URL or spec; a line each of several files
    first: int = 0  # first row group (Parquet) or row (hub, demo)
    stop: int = -1  # past the last; -1: the whole file
    key: str = ""  # digest of what it reads
    held_out: float = 0.0  # share of the hashes of ids
    columns: Columns = Columns()  # what the kit's columns are called there


# Naming


def _named(spec: str) -> tuple[str, str, Columns]:
    """(demo, hf or files; what follows; names of the columns)."""
    columns = Columns()
    if match := re.fullmatch(r"(.*\S)\s+\{([^{}]*)\}", spec):
        pairs = [pair.partition("=") for pair in match[2].split(",") if pair.strip()]
        names = {key.strip(): value.strip() for key, _, value in pairs}
        if set(names) - set(Columns._fields) or not all(names.values()):
            raise TraitError(
                f"{spec}: columns are named like {{text=content, id=key}}, for {', '.join(Columns._fields)}."
            )
        spec, columns = match[1], Columns(**names)
        if not re.fullmatch(r"0?\.[0-4]\d*|0", columns.held_out):
            raise TraitError(f"{spec}: held_out is a share below 0.5, not {columns.held_out}.")
    kind, _, rest = spec.partition(":")
    return (kind, rest, columns) if kind in ("demo", "hf") and not is_url(spec) else ("files", spec, columns)


def fingerprint(spec: str) -> str:
    """A digest of the corpus: of its files' content, the demo's rules, or a hub id."""
    kind, rest, _ = _named(spec)
    if kind == "demo":
        return demo.demo_digest(f"demo:{rest}")
    return digest([spec, [list(source) for source in find(rest)] if kind == "files" else []])


def list_shards(spec: str, seed: int = 0, *, shard_rows: int = 50_000) -> list[Shard]:
    """The shards of a corpus, in the order of its files' names; TraitError if nothing matches.

    Parquet files are cut between row groups, hub data sets and the demo anywhere, into about `shard_rows` rows; other files
    are a shard each, those of one document a thousand a shard. About 5% is held out, of one source of up to 4 MB exactly.
    """
    kind, rest, columns = _named(spec)
    if kind == "files":
        sources = find(rest)
        pieces, size = _cut_files(sources, shard_rows), sum(source.bytes for source in sources)
    else:
        data = demo.part(rest, seed) if kind == "demo" else readers.hub_data(rest)
        size = 0 if kind == "demo" else data.data.nbytes
        state = f"{demo.demo_digest(f'demo:{rest}')} {seed}" if kind == "demo" else data._fingerprint
        pieces = [
            Shard(0, f"{kind}:{rest}", first, min(first + shard_rows, len(data)), state)
            for first in range(0, max(len(data), 1), shard_rows)
        ]
    share = 0.0 if kind == "demo" else float(columns.held_out)
    if 0 < size <= 4_000_000 and len({piece.source for piece in pieces}) == 1:
        share = _exact_share(pieces[0].source, columns, pieces[0].key)
    shards = [piece._replace(number=n, held_out=share, columns=columns) for n, piece in enumerate(pieces)]
    return [shard._replace(key=digest([_RULES, *shard])) for shard in shards]


def refuse_inside(folder: Path, shards: Iterable[Shard]) -> None:
    """TraitError where an input lies in the folder that is written into."""
    names = itertools.chain.from_iterable(shard.source.splitlines() for shard in shards)
    if inside := next((name for name in names if Path(name).resolve().parent == folder.resolve()), ""):
        raise TraitError(f"{inside} lies in {folder}, which is written into. Name another folder.")


def _cut_files(sources: list[Source], shard_rows: int) -> list[Shard]:
    several = [source for source in sources if not is_document(source.name)]
    ones = [source for source in sources if is_document(source.name)]
    for start in range(0, len(ones), _FILES):
        names, sizes, contents = zip(*ones[start : start + _FILES], strict=True)
        several.append(Source("\n".join(names), sum(sizes), digest(contents)))
    with ThreadPoolExecutor(16) as pool:  # footers may be remote
        groups = list(pool.map(lambda source: readers.row_groups(source.name, source.content), several))
    pieces = []
    for source, rows in zip(several, groups, strict=True):
        firsts = np.flatnonzero(np.diff(np.cumsum([0, *rows])[:-1] // shard_rows, prepend=-1)).tolist() or [0]
        stops = [*firsts[1:], len(rows) or -1]
        pieces += [Shard(0, source.name, *ends, source.content) for ends in zip(firsts, stops, strict=True)]
    return pieces


# Identity


@functools.lru_cache(maxsize=100)
def _exact_share(source: str, columns: Columns, _content: str) -> float:
    """The share of hashes that holds out exactly the share of documents, rounded down."""
    ids = [part.documents["id"] for part in read_shard(Shard(0, source, columns=columns))]
    ordered = np.sort(np.concatenate([np.empty(0, np.uint64), *map(id_hashes, ids)]))
    count = int(len(ordered) * float(columns.held_out))
    return float(ordered[count - 1] / 2 + ordered[count] / 2) / 2**64 if count else 0.0


def id_hashes(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """uint64 [n]: SipHash with a fixed key, so the same everywhere."""
    return pd.util.hash_array(ids.to_numpy(zero_copy_only=False), categorize=False)


def _together(tables: Iterable[pa.Table]) -> pa.Table:
    """Documents (COLUMNS) of several files: one of each id and text; an id of several texts is told apart."""
    documents = pa.concat_tables([SCHEMA.empty_table(), *tables]).select(COLUMNS).combine_chunks()
    frame = documents.select(["id", "text"]).to_pandas().drop_duplicates()
    several = frame["id"].duplicated(keep=False)
    frame.loc[several, "id"] = [
        f"{name}#{digest(text)[:12]}" for name, text in frame[several].itertuples(index=False)
    ]
    return documents.take(pa.array(frame.index)).set_column(0, "id", pa.array(frame["id"], pa.string()))


# Reading


def read_shard(shard: Shard, seed: int = 0) -> Iterator[Part]:
    """The documents of a shard, the held-out and the unusable ones, about 4 MB of text at a time.

    Each has an id that was not seen before, a missing one made from the text. Damage never raises; a file that cannot be had
    does, because the next attempt may succeed.
    """
    seen, example = set(), ""
    for documents, rejected, _ in _parts(shard, seed):
        ids, missing = np.array(documents["id"].to_pylist(), object), documents["id"].is_null().to_numpy()
        ids[missing] = [
            hashlib.sha256(text.encode()).hexdigest()[:20]
            for text in documents["text"].filter(pa.array(missing)).to_pylist()
        ]
        documents = documents.set_column(documents.column_names.index("id"), "id", pa.array(ids, pa.string()))
        hashes = id_hashes(documents["id"])
        new = np.array([value not in seen and not seen.add(value) for value in hashes.tolist()], bool)
        example = example or next(iter(ids[~new & ~missing]), "")
        named = f"{readers.REPEATED}: {example[:60]!r}"  # one for all, to count as one reason
        why = np.where(missing, f"{readers.SKIPPED}: its text was seen before", named)[~new].tolist()
        repeated = zip(documents.filter(pa.array(~new)).to_pylist(), why, strict=True)
        rejected = [*rejected, *(Reject(row["file"], row["row"], reason, 1) for row, reason in repeated)]
        kept = hashes >= np.uint64(shard.held_out * 2**64)
        yield Part(documents.filter(pa.array(new & kept)), rejected, documents.filter(pa.array(new & ~kept)))


def _parts(shard: Shard, seed: int) -> Iterator[Part]:
    kind, name, _ = _named(shard.source)
    if kind == "demo":
        rows = demo.part(name, seed).slice(shard.first, shard.stop - shard.first)
        yield readers.of_table(rows, shard.first + 1, shard.source, Columns())
    elif kind == "hf":
        yield from readers.read_hub(shard.source, readers.hub_data(name), shard.first, shard.stop, shard.columns)
    elif format_of(name)[0] == ".parquet":
        size = find(name)[0].bytes if shard.stop < 0 else 0  # of a file whose footer is damaged
        yield from readers.read_parquet(name, shard.first, shard.stop, shard.columns, size)
    elif is_document(name) or format_of(name)[0] in (".warc", ".wet"):
        contents = [find(each)[0].content for each in name.splitlines()]
        yield from read_web(Source(name, 0, digest(contents)), cache_dir() / "extracted")
    else:
        yield from readers.read_lines(name, shard.columns)


def read_rows(shard: Shard, positions: Sequence[int] | np.ndarray, seed: int = 0) -> pa.Table:
    """The documents (COLUMNS) at these sorted positions of `read_shard`; nothing behind the last is read."""
    wanted, taken, start = np.asarray(positions), [SCHEMA.empty_table()], 0
    for part in read_shard(shard, seed) if len(wanted) else ():
        inside = wanted[(wanted >= start) & (wanted < start + len(part.documents))]
        taken.append(part.documents.take(pa.array(inside - start)))
        start += len(part.documents)
        if start > wanted[-1]:
            break
    return pa.concat_tables(taken).select(COLUMNS)


def load_documents(spec: str, seed: int = 0) -> pa.Table:
    """The documents (COLUMNS) of a corpus that fits into memory; TraitError for a damaged file, or no document."""
    parts = [part for shard in list_shards(spec, seed) for part in read_shard(shard, seed)]
    documents = _together(part.documents for part in parts)
    rejected, held_out = (
        [reject for part in parts for reject in part.rejected],
        sum(len(part.held_out) for part in parts),
    )
    losses = [reject for reject in rejected if not reject.reason.startswith(readers.SKIPPED)]
    if damaged := [reject for reject in losses if reject.reason.startswith(readers.DAMAGED)]:
        raise TraitError(f"{damaged[0].source}: {damaged[0].reason}. Write, copy or download it again.")
    first = (losses or rejected or [Reject(spec, 0, "it holds no records", 0)])[0]
    where = f"{first.source}, row {first.row}: {first.reason}"
    if not documents.num_rows:
        raise TraitError(f"{spec} has no usable document. {where}. Name the field of the text, as {{text=body}}.")
    if held_out:
        log.warning("%s: %d documents, and %d held out for evaluation", spec, documents.num_rows, held_out)
    if lost := sum(reject.records for reject in losses):
        log.warning(
            "%s: %d of %d records cannot be used. %s", spec, lost, lost + held_out + documents.num_rows, where
        )
    return documents


# Held out, known, sampled


def load_held_out(spec: str, seed: int = 0, least: int = 1) -> pa.Table:
    """Up to 2,000 held-out documents (COLUMNS), to score learning and forgetting; TraitError for fewer than `least`."""
    kind, rest, _ = _named(spec)
    if kind == "demo":
        domain, name = demo.names_in(rest)
        twins = {"in_domain": "in_domain_held_out", "web": "general_held_out"}
        return demo.part(f"{domain}/{twins.get(name, name)}", seed).select(COLUMNS)
    shards = sorted(list_shards(spec), key=lambda shard: digest([shard.source, shard.first]))
    held = _beginnings(
        [shard for shard in shards if shard.held_out], "held_out", _HELD_OUT_MOST, _HELD_OUT_SHARDS, seed
    )
    if len(held) < least:
        raise TraitError(f"{spec} has documents too few to hold any out, or held_out=0. Bring at least 20.")
    return held.slice(0, _HELD_OUT_MOST)


def _beginnings(shards: list[Shard], kind: str, most: int, spread: int, seed: int) -> pa.Table:
    """The first `most` of `kind` (COLUMNS) at the beginnings of these shards, of `spread` or more, in the corpus' order."""
    quota, found = -(-most // min(spread, len(shards) or 1)), {}
    for shard in itertools.takewhile(lambda _: sum(map(len, found.values())) < most, shards):
        found[shard.number] = SCHEMA.empty_table()
        for part in read_shard(shard, seed):
            found[shard.number] = pa.concat_tables([found[shard.number], getattr(part, kind)]).slice(0, quota)
            if len(found[shard.number]) == quota:
                break
    return _together(found[number] for number in sorted(found))


def on_topic(spec: str, seed: int = 0) -> dict[str, bool] | None:
    """id -> whether a demo document is about the domain; None for other corpora."""
    kind, rest, _ = _named(spec)
    if kind != "demo":
        return None
    table, truth = demo.part(rest, seed), demo.DEMO_TRUTH[demo.names_in(rest)[0]]
    return {row["id"]: row["label"] == truth for row in table.select(["id", "label"]).to_pylist()}


def sample(spec: str, n: int, seed: int) -> pa.Table:
    """Up to `n` documents (COLUMNS) to train a classifier on, in the corpus' order; TraitError if none is usable.

    Uniform over the beginnings of 64 or more shards, because a pass over the web costs too much.
    """
    shards, most = list_shards(spec, seed), max(_SAMPLED_SHARE * n, _SAMPLED_FROM)
    order = np.random.default_rng([seed, 1]).permutation(len(shards))
    documents = _beginnings([shards[number] for number in order], "documents", most, _SAMPLED_SHARDS, seed)
    if not documents.num_rows:
        raise TraitError(f"{spec} has no usable document to sample. Each record needs a text.")
    return documents.take(pa.array(np.sort(np.random.default_rng(seed).permutation(documents.num_rows)[:n])))
