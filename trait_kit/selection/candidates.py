"""Candidates: the documents that any method might choose, gathered from the corpus with what cleaning needs to know.

A corpus may be far larger than memory, a selection is not far larger than its budget. So the scores are read as a stream to
find, for each method, the rank above which more than enough tokens lie; only those documents are read again, shard by shard,
counted by the base model's own tokenizer, compared with the test questions, and given a MinHash signature.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trait_kit import tables
from trait_kit.engine import minhash as near_duplicates
from trait_kit.engine import shards as engine
from trait_kit.engine.files import TraitError, atomic_path, digest, read_json, write_json
from trait_kit.engine.questions import TestQuestions
from trait_kit.models import TokenCounter, token_counter
from trait_kit.params import Method
from trait_kit.selection.budget import Filters, Limit, check_method, cut_key, rank_keys, value_keys
from trait_kit.selection.documents import read_rows
from trait_kit.selection.scoring import KEY, Scoring, has_key, open_scoring

_ADDED = [pa.field("row", pa.int64()), pa.field("signature", pa.binary()), pa.field("contaminated", pa.bool_())]
_SCHEMA = pa.schema([*tables.SCHEMAS["documents"], *list(tables.SCHEMAS["scores"])[1:], *_ADDED])
COLUMNS = [name for name in _SCHEMA.names if name not in ("text", "source", "url")]
_EVIDENCE = pa.schema(
    {"id": pa.string(), "test_index": pa.int64(), "kind": pa.string(), "overlap": pa.float64(), "excerpt": pa.string()}
)
_ESTIMATE_SLACK = 2.0  # a document's estimated tokens may be wrong by this factor
_BATCH_ROWS = 200_000


@dataclass(frozen=True)
class Candidates:
    """Gathered documents on disk, a file a shard of the corpus, and everything but their texts in memory."""

    folder: Path
    table: pa.Table  # COLUMNS, in the corpus' order
    contaminated: pa.Table  # id, test_index, kind, overlap, excerpt
    documents: int  # in the corpus
    cuts: dict[str, int]  # method -> the smallest rank key that it nominated
    complete: dict[str, bool]  # method -> whether every document it may choose is here
    dropped: dict[str, dict[str, int]]  # method -> reason -> documents that its filters refused before nomination

    def signatures(self) -> np.ndarray:
        """uint32 [n, n_hashes]"""
        joined = b"".join(self.table["signature"].to_pylist())
        return np.frombuffer(joined, np.uint32).reshape(self.table.num_rows, -1)

    def texts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The documents with their texts, a file at a time; rows are those of `table`."""
        for path in sorted(self.folder.glob("candidates-*.parquet"), key=lambda path: int(path.stem.split("-")[1])):
            yield pq.read_table(path, columns=columns).replace_schema_metadata(None)


def gather(
    scoring: Scoring,
    folder: Path,
    methods: Sequence[Method],
    limit: Limit,
    margin: float,
    *,
    seed: int,
    filters: Filters,
    base_model: str,
    signatures: bool,
    test_questions: Sequence[str],
    place: engine.Place,
) -> Candidates:
    """Nominate for each method documents of `margin` times its limit, and gather them under `folder`.

    `base_model` counts the tokens of candidates whose counts are estimates (empty: they stay estimates).
    `signatures`: whether near-duplicates will be looked for.
    """
    folder = folder.absolute()
    slack = 1.0 if scoring.exact_tokens else _ESTIMATE_SLACK
    cuts, dropped = {}, {}
    for method in methods:
        cuts[method], dropped[method] = _cut(scoring, method, limit, margin, seed, filters, slack)
    write_json(folder / "test_questions.json", list(test_questions))
    job = {
        "scoring": str(scoring.folder),
        "scored": digest(engine.read_job(scoring.folder / "job.json")),
        "cuts": cuts,
        "seed": seed,
        "filters": asdict(filters),
        "slack": slack,
        "base_model": "" if scoring.exact_tokens else base_model,
        "signatures": signatures,
        "tests": digest(list(test_questions)),
    }
    write_json(folder / "job.json", job)
    for stale in folder.glob("c*-*.parquet"):
        if not has_key(stale, digest(job)):
            stale.unlink()
    engine.remove_leftovers(folder)
    progress = engine.Progress("gathering", scoring.shards, lambda n: _path(folder, n), scoring.rejected, 1.0)
    missing = [shard.number for shard in scoring.shards if not _path(folder, shard.number).exists()]
    engine.run(gather_shard, folder / "job.json", missing, place, progress)
    found = [pq.read_table(_path(folder, shard.number), columns=COLUMNS) for shard in scoring.shards]
    evidence = [pq.read_table(_evidence_path(folder, shard.number)) for shard in scoring.shards]
    return Candidates(
        folder,
        pa.concat_tables(found).combine_chunks(),
        pa.concat_tables(evidence).replace_schema_metadata(None).combine_chunks(),
        scoring.documents,
        cuts,
        {method: cut == 0 or limit.score is not None for method, cut in cuts.items()},
        dropped,
    )


def _cut(
    scoring: Scoring, method: Method, limit: Limit, margin: float, seed: int, filters: Filters, slack: float
) -> tuple[int, dict[str, int]]:
    """The smallest rank key of the documents that the method nominates, and how many its filters refuse, by reason."""
    dropped: dict[str, int] = {}

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        dropped.clear()
        for scores in _scores(scoring):
            check_method(method, scores)
            kept = np.ones(scores.num_rows, bool)
            for reason, fails in filters.reasons(scores, method, slack):
                dropped[reason] = dropped.get(reason, 0) + int((kept & fails).sum())
                kept &= ~fails
            weights = scores["n_tokens"].to_numpy() if limit.tokens else np.ones(scores.num_rows)
            yield rank_keys(scores, method, seed)[kept], weights[kept]

    if limit.score is not None:
        for _ in batches():
            pass
        return int(value_keys(limit.score)[0]), dropped
    return cut_key(batches, int(np.ceil(margin * (limit.tokens or limit.share * scoring.documents)))), dropped


def _scores(scoring: Scoring) -> Iterator[pa.Table]:
    for shard in scoring.shards:
        for batch in pq.ParquetFile(scoring.scores(shard.number)).iter_batches(_BATCH_ROWS):
            yield pa.Table.from_batches([batch])


def _path(folder: Path, number: int) -> Path:
    return folder / f"candidates-{number:05d}.parquet"


def _evidence_path(folder: Path, number: int) -> Path:
    return folder / f"contaminated-{number:05d}.parquet"


def gather_shard(job_path: Path, number: int) -> None:
    """Gather one shard's candidates and write its two files, the candidates last."""
    job, folder = engine.read_job(job_path), job_path.parent
    scoring = open_scoring(Path(job["scoring"]))
    scores = tables.conform(pq.read_table(scoring.scores(number)).replace_schema_metadata(None), "scores")
    filters = Filters(**job["filters"])
    wanted = np.zeros(scores.num_rows, bool)
    for method, cut in job["cuts"].items():
        kept = ~np.logical_or.reduce([fails for _, fails in filters.reasons(scores, method, job["slack"])])
        wanted |= kept & (rank_keys(scores, method, job["seed"]) >= np.uint64(cut))
    rows = np.flatnonzero(wanted)
    documents = read_rows(scoring.shards[number], rows, scoring.seed)
    scores = scores.take(pa.array(rows))
    if not documents["id"].combine_chunks().equals(scores["id"].combine_chunks()):
        raise TraitError(f"{scoring.shards[number].source} has changed since it was scored. Score it again.")
    texts = documents["text"].combine_chunks()
    columns = {name: table[name] for table in (scores, documents) for name in table.column_names}
    if job["base_model"]:
        columns["n_tokens"] = pa.array(_counter(job["base_model"])(texts.to_pylist()), pa.int32())
    evidence = _test_questions(folder / "test_questions.json", job["tests"]).find(texts)
    columns["row"] = rows
    columns["signature"] = _signatures(texts) if job["signatures"] else pa.nulls(len(rows), pa.binary())
    columns["contaminated"] = np.isin(np.arange(len(rows)), evidence["text_index"])
    found = evidence.assign(id=documents["id"].take(pa.array(evidence["text_index"])).to_pylist())
    proof = pa.Table.from_pandas(found[_EVIDENCE.names], _EVIDENCE, preserve_index=False)
    _write(_evidence_path(folder, number), proof, job)
    _write(_path(folder, number), pa.table(columns).select(_SCHEMA.names).cast(_SCHEMA), job)


def _signatures(texts: pa.Array) -> pa.Array:
    made = near_duplicates.signatures(texts)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(made.shape[1] * 4), len(made), [None, pa.py_buffer(made)]).cast(
        pa.binary()
    )


def _write(path: Path, table: pa.Table, job: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata({KEY: digest(job)}), temporary, compression="lz4", use_dictionary=False)


@functools.lru_cache(maxsize=1)
def _counter(base_model: str) -> TokenCounter:
    return token_counter(base_model)  # to load a tokenizer takes as long as to count a thousand documents


@functools.lru_cache(maxsize=2)
def _test_questions(path: Path, digest_of_them: str) -> TestQuestions:
    return TestQuestions(read_json(path))
