"""Scores every document of a corpus once, shard by shard, and keeps the scores (paper, section 3.1).

A shard is the unit of work and of resume: `score_shard` needs only its shard and the models, and leaves one Parquet file of
scores and one of what could not be used, which carry the digest of both. A run that was killed computes the missing shards;
a changed model or file computes its shards again. Whatever executes the shards (`engine.shards`) is a detail.
Scores are kept apart from choices, so a budget, a threshold or a method can change without scoring again.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trait_kit import tables
from trait_kit.engine import ngram_tables as linear
from trait_kit.engine.files import TraitError, atomic_path, content, digest, write_json
from trait_kit.engine.ngrams import Normalisation, Texts, text_array
from trait_kit.engine.readers import SKIPPED, Columns
from trait_kit.engine.scorer import NgramScorer
from trait_kit.engine.shards import Place, Progress, read_job, run
from trait_kit.models import TokenCounter, token_counter
from trait_kit.selection.documents import Shard, list_shards, read_shard, sample
from trait_kit.selection.dsir import DsirModel
from trait_kit.selection.educational import label_points

if TYPE_CHECKING:
    from trait_kit.runs import Step

KEY = b"trait_kit.key"  # in a shard's Parquet metadata: digest of what it was computed from
_SAMPLE = 20_000  # web documents that DSIR's general side and the tokens of a byte are taken from
_BATCH_ROWS = 200_000


@dataclass(frozen=True)
class ModelFiles:
    """What turns a text into its scores, as paths: each process maps the files for itself. Empty: that score is null."""

    domain: str  # .safetensors of the kit, or any fastText .bin
    educational: str = ""  # the same, with labels such as High, Mid and Low
    dsir: str = ""  # .safetensors of DsirModel
    label: str = "in_domain"  # the domain model's label whose probability is the score
    base_model: str = ""  # its tokenizer counts the tokens of each document; empty: estimated by bytes_per_token
    bytes_per_token: float = 4.0  # see `calibrate`
    normalisation: Normalisation = "none"  # what texts need for a .bin; the kit's own file knows it


class Models(NamedTuple):
    domain: NgramScorer
    column: int  # of the in-domain label
    educational: NgramScorer | None
    dsir: DsirModel | None
    count_tokens: TokenCounter | None
    bytes_per_token: float
    fingerprint: str  # digest of everything that shapes the scores


def model_files(step: Step, in_domain: Texts) -> ModelFiles:
    """The models of 02: those that 01 left, and DSIR's, which is fitted here to a plain sample of the web."""
    p = step.params
    exact, general = p.token_counts == "all", sample(p.web, _SAMPLE, p.seed)["text"]
    folder, dsir = step.path("01_domain_classifier", "domain.safetensors").parent, ""
    if "dsir" in p.methods:
        dsir = str(DsirModel.fit(in_domain, general).save(step.path("dsir.safetensors")))
    return ModelFiles(
        domain=str(folder / "domain.safetensors"),
        educational=str(folder / "educational.safetensors") if "fasttext+educational" in p.methods else "",
        dsir=dsir,
        base_model=p.base_model if exact else "",
        bytes_per_token=4.0 if exact else calibrate(general, p.base_model),
    )


def open_models(files: ModelFiles) -> Models:
    domain = open_scorer(files.domain, files.normalisation)
    educational = open_scorer(files.educational, files.normalisation) if files.educational else None
    dsir = DsirModel.load(files.dsir) if files.dsir else None
    counter = token_counter(files.base_model) if files.base_model else None
    column = domain.column(files.label)
    tables_used = [content(path) if path else None for path in (files.domain, files.educational, files.dsir)]
    fingerprint = digest([*tables_used, column, counter.fingerprint if counter else files.bytes_per_token])
    return Models(domain, column, educational, dsir, counter, files.bytes_per_token, fingerprint)


@functools.lru_cache(maxsize=1)
def _models(files: ModelFiles, fingerprint: str) -> Models:
    """The models of a job, opened once in a process."""
    models = open_models(files)
    if models.fingerprint != fingerprint:
        raise TraitError("A model file has changed since scoring began. Start scoring again.")
    return models


def open_scorer(path: str, normalisation: Normalisation = "none") -> NgramScorer:
    """A model of the kit, or a fastText .bin, folded."""
    return NgramScorer.from_fasttext(path, normalisation) if path.endswith(".bin") else NgramScorer.load(path)


def _folded(files: ModelFiles, folder: Path) -> ModelFiles:
    """The same with every .bin folded and saved in `folder`, so that workers map it instead of each folding it again."""
    made = {}
    for name in ("domain", "educational"):
        path = getattr(files, name)
        if path.endswith(".bin"):
            made[name] = str(open_scorer(path, files.normalisation).save(folder / f"{name}.safetensors"))
    return replace(files, **made)


def calibrate(texts: Texts, base_model: str) -> float:
    """Bytes of text for a token of this base model, over a sample of the corpus."""
    array = text_array(texts)
    tokens = int(token_counter(base_model)(array.to_pylist()).sum())
    return (pc.sum(pc.binary_length(array)).as_py() or 0) / max(tokens, 1)


def score_texts(texts: Texts, models: Models) -> dict[str, np.ndarray]:
    """The columns domain, educational, dsir (float32 [n]) and n_tokens (int32 [n]); absent without its model.

    Models with the same normalisation share one pass over the text.
    """
    array = text_array(texts)
    named = {name: model for name in ("domain", "educational", "dsir") if (model := getattr(models, name)) is not None}
    found: dict[str, np.ndarray] = {}
    for normalisation in dict.fromkeys(model.normalisation for model in named.values()):
        group = {name: model for name, model in named.items() if model.normalisation == normalisation}
        totals = linear.total(array, [model.table for model in group.values()], normalisation)
        for (name, model), (sums, rows) in zip(group.items(), totals, strict=True):
            found[name] = model.finish(sums, rows)
    found["domain"] = found["domain"][:, models.column]
    if "educational" in found:
        found["educational"] = np.minimum(found["educational"] @ label_points(models.educational.labels), np.float32(2))
    if models.count_tokens:
        found["n_tokens"] = np.asarray(models.count_tokens(array.to_pylist()), np.int32)
    else:
        sizes = pc.binary_length(array).to_numpy(zero_copy_only=False)
        found["n_tokens"] = np.ceil(sizes / models.bytes_per_token).astype(np.int32)
    return found


@dataclass(frozen=True)
class Scoring:
    """A scored corpus on disk: `folder` holds job.json, scores-NNNNN.parquet, rejected-NNNNN.parquet and, where asked for,
    kept-NNNNN.parquet."""

    folder: Path
    corpus: str  # its spec
    documents_per_shard: int
    shards: list[Shard]
    seed: int
    keeps: bool  # whether kept-NNNNN.parquet was asked for
    exact_tokens: bool  # counted by the base model's tokenizer, not estimated

    def path(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}-{number:05d}.parquet"

    def files(self, number: int) -> list[Path]:
        """What a finished shard has."""
        return [self.path(kind, number) for kind in ("scores", "rejected", "kept")[: 3 if self.keeps else 2]]

    def refuse_changed(self) -> None:
        """TraitError if a file of the corpus is no longer what was scored."""
        now = {shard.number: shard.key for shard in list_shards(self.corpus, self.seed, shard_rows=self.documents_per_shard)}
        for shard in self.shards:
            if now.get(shard.number) != shard.key:
                raise TraitError(f"{shard.source} has changed since it was scored. Score it again.")

    @property
    def documents(self) -> int:
        """How many documents were scored."""
        return sum(pq.read_metadata(self.path("scores", shard.number)).num_rows for shard in self.shards)

    @property
    def lost(self) -> int:
        """How many records could not be read; pages without text to read are not among them."""
        quarantine = self.quarantine()
        skipped = pc.starts_with(quarantine["reason"], SKIPPED)
        return pc.sum(quarantine["records"].filter(pc.invert(skipped))).as_py() or 0

    def quarantine(self) -> pa.Table:
        """Everything that could not be used, with its file, place and reason."""
        found = [pq.read_table(self.path("rejected", shard.number)) for shard in self.shards]
        return tables.conform(pa.concat_tables([tables.empty("quarantine"), *found]), "quarantine")

    def batches(self) -> Iterator[pa.Table]:
        """The scores in the corpus' order, a bounded number of rows at a time."""
        for shard in self.shards:
            for batch in pq.ParquetFile(self.path("scores", shard.number)).iter_batches(_BATCH_ROWS):
                yield pa.Table.from_batches([batch])

    def read(self) -> pa.Table:
        """All scores as one table; for corpora that fit in memory."""
        found = [pq.read_table(self.path("scores", shard.number)) for shard in self.shards]
        return tables.conform(pa.concat_tables(found), "scores")


def score_corpus(
    spec: str,
    files: ModelFiles,
    folder: Path | str,
    *,
    seed: int = 0,
    documents_per_shard: int = 50_000,
    max_quarantined: float = 0.01,
    keep_above: float | None = None,
    place: Place = Place(),
) -> Scoring:
    """Score every document of a corpus into `folder`; shards that it holds are not scored again.

    TraitError where more than the share `max_quarantined` of the documents cannot be used; what the web is full of anyway
    (pages that are not HTML, or have no main text) does not count.
    `keep_above`: in the same pass, also write the documents with at least this domain score (selection schema), where a
    threshold is known beforehand and nothing is to be cleaned or budgeted: the fastest filter there is.
    """
    shards = list_shards(spec, seed, shard_rows=documents_per_shard)
    folder = Path(folder).absolute()
    files = _folded(files, folder)
    job = {
        "files": asdict(files),
        "fingerprint": open_models(files).fingerprint,
        "corpus": spec,
        "documents_per_shard": documents_per_shard,
        "seed": seed,
        "keep_above": keep_above,
        "shards": shards,
    }
    write_json(folder / "job.json", job)
    scoring = open_scoring(folder)
    wanted = {path for shard in shards for path in scoring.files(shard.number)}
    for stale in {path for kind in ("scores", "rejected", "kept") for path in folder.glob(f"{kind}-*.parquet")} - wanted:
        stale.unlink()  # of a corpus that was larger, or cut into more shards
    missing = [
        shard.number for shard in shards if not all(has_key(path, _key(job, shard)) for path in scoring.files(shard.number))
    ]
    for number in missing:  # out of date or damaged; its presence would pass for progress
        scoring.path("scores", number).unlink(missing_ok=True)
    losses = _Losses(scoring, max_quarantined)
    progress = Progress("scoring", len(shards), functools.partial(scoring.path, "scores"), losses.count)
    run(score_shard, folder / "job.json", missing, place, progress)
    progress.look()
    losses.refuse(final=True)
    return scoring


class _Losses:
    """Refuses, as early as it is sure, what loses more records than the limit allows."""

    def __init__(self, scoring: Scoring, limit: float) -> None:
        self.scoring, self.limit = scoring, limit
        self.shards = self.documents = 0
        self.lost: Counter[str] = Counter()  # file -> records
        self.why: dict[str, str] = {}

    def count(self, number: int, documents: int) -> None:
        self.shards, self.documents = self.shards + 1, self.documents + documents
        for row in pq.read_table(self.scoring.path("rejected", number)).to_pylist():
            if not row["reason"].startswith(SKIPPED):
                self.lost[row["source"]] += row["records"]
                self.why[row["source"]] = row["reason"]
        self.refuse()

    def refuse(self, final: bool = False) -> None:
        lost, worst = self.lost.total(), next((f"{file}: {self.why[file]}" for file, _ in self.lost.most_common(1)), "")
        expected = (self.documents + lost) * (1 if final else len(self.scoring.shards) / self.shards)
        if lost > self.limit * expected:
            raise TraitError(
                f"{lost:,} of {self.documents + lost:,} web documents are unreadable, more than max_quarantined "
                f"({self.limit:.2%}) allows; most of them: {worst}. The rejected-*.parquet files name each with its reason; "
                "repair them, or raise max_quarantined."
            )
        if final and not self.documents:
            raise TraitError(f"There are no documents to score: the corpus is empty, or nothing is usable. {worst}")


def open_scoring(folder: Path) -> Scoring:
    """The scored corpus that `score_corpus` left in a folder."""
    job = read_job(Path(folder) / "job.json")
    shards = [Shard(*shard[:-1], Columns(*shard[-1])) for shard in job["shards"]]
    corpus = job["corpus"], job["documents_per_shard"]
    return Scoring(
        Path(folder), *corpus, shards, job["seed"], job["keep_above"] is not None, bool(job["files"]["base_model"])
    )


def score_shard(job_path: Path, number: int) -> None:
    """Score one shard of the job and write its files, the scores last: by them a shard is known as done."""
    job = read_job(job_path)
    scoring = open_scoring(job_path.parent)
    shard = scoring.shards[number]
    models = _models(ModelFiles(**job["files"]), job["fingerprint"])
    key, rejected = _key(job, shard), []
    with contextlib.ExitStack() as files:  # closed in reverse
        scores = _writer(files, scoring.path("scores", number), "scores", key)
        kept = _writer(files, scoring.path("kept", number), "selection", key) if scoring.keeps else None
        for part in read_shard(shard, scoring.seed):
            rejected.extend(part.rejected)
            if not part.documents.num_rows:
                continue
            table = _scores_table(part.documents, number, models)
            scores.write_table(table.cast(scores.schema))
            if kept:
                chosen = pc.greater_equal(table["domain"], pa.scalar(job["keep_above"], pa.float32()))
                kept.write_table(_kept(part.documents, table, chosen).cast(kept.schema))
        rows = [dict(zip(tables.SCHEMAS["quarantine"].names, row, strict=True)) for row in rejected]
        writer = _writer(files, scoring.path("rejected", number), "quarantine", key)
        writer.write_table(pa.Table.from_pylist(rows, tables.SCHEMAS["quarantine"]).cast(writer.schema))


def _writer(files: contextlib.ExitStack, path: Path, kind: str, key: str) -> pq.ParquetWriter:
    temporary = files.enter_context(atomic_path(path))
    schema = tables.SCHEMAS[kind].with_metadata({KEY: key})
    dictionary = [name for name in ("shard", "method", "source") if name in schema.names]
    return files.enter_context(pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=dictionary))


def _kept(documents: pa.Table, scores: pa.Table, chosen: pa.Array) -> pa.Table:
    columns = {name: table[name] for table in (scores, documents) for name in table.column_names}
    columns["method"] = pa.array(["fasttext"] * documents.num_rows, pa.string())
    return pa.table({name: columns[name] for name in tables.SCHEMAS["selection"].names}).filter(chosen)


def _scores_table(documents: pa.Table, number: int, models: Models) -> pa.Table:
    found = score_texts(documents["text"], models)
    nothing = pa.nulls(documents.num_rows, pa.float32())
    columns = {"id": documents["id"], **{name: found.get(name, nothing) for name in ("domain", "educational", "dsir")}}
    columns["n_tokens"] = found["n_tokens"]
    columns["shard"] = np.full(documents.num_rows, number, np.int32)
    return tables.conform(pa.table(columns), "scores")


def has_key(path: Path, key: str) -> bool:
    """Whether this Parquet file is whole and was computed from what the key stands for."""
    try:
        return (pq.read_schema(path).metadata or {}).get(KEY) == key.encode()
    except (OSError, pa.ArrowInvalid):  # absent or damaged
        return False


def _key(job: dict[str, Any], shard: Shard) -> str:
    return digest([job["fingerprint"], job["seed"], job["keep_above"], shard.number, shard.key])
