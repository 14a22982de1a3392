"""Documents of a small corpus as one table: the in-domain seed, the held-out sets, the demo.

`corpus` says how a corpus is named, read and divided; a web corpus is read with it, shard by shard. What is loaded here
fits into memory and matters as a whole, so a damaged file is an error that names it, and ids are unique across files.
"""

from __future__ import annotations

import logging

import pyarrow as pa

from trait_kit import demo, tables
from trait_kit.demo import DEMO_PARTS, DEMO_TRUTH
from trait_kit.engine.files import TraitError
from trait_kit.engine.records import COLUMNS, no_documents
from trait_kit.selection import corpus
from trait_kit.selection.corpus import fingerprint

__all__ = [
    "DEMO_PARTS",
    "DEMO_TRUTH",
    "fingerprint",
    "load_documents",
    "load_held_out",
    "load_labels",
    "load_with_quarantine",
    "truth_label",
]

log = logging.getLogger(__name__)


def load_documents(spec: str, seed: int = 0) -> pa.Table:
    """The usable documents of a corpus (documents schema, no labels); how many were quarantined is logged as a warning."""
    documents, quarantine = load_with_quarantine(spec, seed)
    if quarantine.num_rows:
        first = quarantine.slice(0, 1).to_pylist()[0]
        log.warning(
            "%s: %d of %d records cannot be used; the first is row %d of %s: %s",
            *(spec, quarantine.num_rows, quarantine.num_rows + documents.num_rows),
            *(first["row"], first["source"], first["reason"]),
        )
    return documents


def load_with_quarantine(spec: str, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """(documents to train on or select from, quarantine) of a corpus; TraitError if no document is usable, or for damage.

    Rows of the quarantine count from 1 within their source: lines of a JSONL file, rows of a Parquet file or dataset,
    records of a WARC file. Missing ids are made from the text, so they stay the same wherever a file lies.
    """
    found, quarantine = [no_documents()], []
    for part in corpus.unique_parts(corpus.list_shards(spec, seed), seed):
        if part.damage:
            raise part.damage[0]
        found.append(part.documents)
        quarantine.extend(part.rejected)
    documents = pa.concat_tables(found).select(COLUMNS).combine_chunks()
    if not documents.num_rows:
        source, row, reason, _ = quarantine[0] if quarantine else (spec, 0, "it holds no records", 0)
        where = f"{source}, row {row}" if row else source
        raise TraitError(f"{spec} has no usable document. {where}: {reason}. Each record needs a non-empty `text`.")
    return documents, quarantine_table(quarantine)


def load_held_out(spec: str, seed: int = 0) -> pa.Table:
    """The documents of a corpus that are never trained on: bits per byte on them show learning and forgetting."""
    kind, _, rest = spec.partition(":")
    if kind == "demo":
        domain, part = demo.names_in(rest)
        twins = {"in_domain": "in_domain_held_out", "web": "general_held_out"}
        return demo.part(f"{domain}/{twins.get(part, part)}", seed).select(COLUMNS)
    return corpus.held_out(spec)


def quarantine_table(rejected: list[tuple[str, int, str, int]]) -> pa.Table:
    source, row, reason, records = zip(*rejected, strict=True) if rejected else ((), (), (), ())
    table = pa.table({"source": source, "row": row, "reason": reason, "records": records})
    return tables.conform(table, "quarantine")


def load_labels(spec: str, seed: int = 0) -> dict[str, str] | None:
    """id -> topic of a demo corpus, the hidden truth that scores selections and trains nothing; None for other corpora."""
    kind, _, rest = spec.partition(":")
    if kind != "demo":
        return None
    table = demo.part(rest, seed)
    return dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))


def truth_label(spec: str) -> str | None:
    """The label that an on-topic document of this corpus has in `load_labels`; None where there is no truth."""
    kind, _, rest = spec.partition(":")
    return DEMO_TRUTH[demo.names_in(rest)[0]] if kind == "demo" else None
