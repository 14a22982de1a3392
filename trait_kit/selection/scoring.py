"""Scores every document of a corpus once, shard by shard, and keeps the scores (paper, section 3.1).

A shard is the unit of work and of resume: `score_shard` needs only its shard and the models, and leaves one Parquet file of
scores and one of what could not be used, which carry the digest of both. A run that was killed computes the missing shards;
a changed model or file computes its shards again. Whatever executes the shards (`engine.shards`) is a detail.
Scores are kept apart from choices, so a budget, a threshold or a method can change without scoring again.
"""

from __future__ import annotations

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
from trait_kit.engine.ngrams import Texts, text_array
from trait_kit.engine.readers import SKIPPED, Columns
from trait_kit.engine.scorer import NgramScorer
from trait_kit.engine.shards import Place, Progress, read_job, run
from trait_kit.models import token_counter
from trait_kit.selection.documents import Shard, list_shards, read_shard, sample
from trait_kit.selection.dsir import DsirModel
from trait_kit.selection.educational import label_points
from trait_kit.selection.fitting import open_scorer

if TYPE_CHECKING:
    from trait_kit.runs import Step

KEY = b"trait_kit.key"  # in a shard's Parquet metadata: digest of what it was computed from
_SAMPLE = 20_000  # web documents that DSIR's general side and the tokens of a byte are taken from
_BATCH_ROWS = 200_000
_SURE = 1_000  # documents from which on a share of losses says something of the rest


# Models


@dataclass(frozen=True)
class ModelFiles:
    """What turns a text into its scores, as paths: each process maps the files for itself. Empty: that score is null."""

    domain: str  # .safetensors of the kit, or any fastText .bin
    educational: str = ""  # the same, with labels such as High, Mid and Low
    dsir: str = ""  # .safetensors of DsirModel
    label: str = "in_domain"  # the domain model's label whose probability is the score
    bytes_per_token: float = 4.0  # by which tokens are estimated; see `calibrate`

    @property
    def fingerprint(self) -> str:
        """Digest of everything that shapes the scores."""
        contents = [content(path) if path else "" for path in (self.domain, self.educational, self.dsir)]
        return digest([*contents, self.label, self.bytes_per_token])


class Models(NamedTuple):
    domain: NgramScorer
    educational: NgramScorer | None
    dsir: DsirModel | None


def model_files(step: Step, in_domain: Texts) -> ModelFiles:
    """The models of 02: those that 01 left, and DSIR's, which is fitted here to a plain sample of the web."""
    p = step.params
    general, dsir = sample(p.web, _SAMPLE, p.seed)["text"], ""
    if "dsir" in p.methods:
        dsir = str(DsirModel.fit(in_domain, general).save(step.path("dsir.safetensors")))
    return ModelFiles(
        domain=str(step.path("01_domain_classifier", "domain.safetensors")),
        educational=str(step.path("01_domain_classifier", "educational.safetensors"))
        if "fasttext+educational" in p.methods
        else "",
        dsir=dsir,
        bytes_per_token=calibrate(general, p.base_model),
    )


def calibrate(texts: Texts, base_model: str) -> float:
    """Bytes of text for a token of this base model, over a sample of the corpus."""
    array = text_array(texts)
    tokens = int(token_counter(base_model)(array.to_pylist()).sum())
    return (pc.sum(pc.binary_length(array)).as_py() or 0) / max(tokens, 1)


@functools.lru_cache(maxsize=1)
def open_models(files: ModelFiles, fingerprint: str) -> Models:
    """The models of a job, opened once in a process."""
    if files.fingerprint != fingerprint:
        raise TraitError("A model file has changed since scoring began. Start scoring again.")
    educational = open_scorer(files.educational) if files.educational else None
    return Models(open_scorer(files.domain), educational, DsirModel.load(files.dsir) if files.dsir else None)


def _folded(files: ModelFiles, folder: Path) -> ModelFiles:
    """The same with every .bin folded and saved in `folder`, so that workers map it instead of each folding it again."""
    made = {}
    for name in ("domain", "educational"):
        path = getattr(files, name)
        if path.endswith(".bin"):
            made[name] = str(open_scorer(path).save(folder / f"{name}.safetensors"))
    return replace(files, **made)


def score_texts(texts: pa.Array, models: Models, files: ModelFiles) -> dict[str, np.ndarray]:
    """The columns domain, educational, dsir (float32 [n]) and n_tokens (int32 [n]); absent without its model.

    Models with the same normalisation share one pass over the text.
    """
    named = {name: model for name, model in models._asdict().items() if model is not None}
    found: dict[str, np.ndarray] = {}
    for normalisation in {model.normalisation for model in named.values()}:
        group = {name: model for name, model in named.items() if model.normalisation == normalisation}
        totals = linear.total(texts, [model.table for model in group.values()], normalisation)
        for (name, model), (sums, rows) in zip(group.items(), totals, strict=True):
            found[name] = model.finish(sums, rows)
    found["domain"] = found["domain"][:, models.domain.column(files.label)]
    if "educational" in found:
        found["educational"] = np.minimum(found["educational"] @ label_points(models.educational.labels), np.float32(2))
    sizes = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    found["n_tokens"] = np.ceil(sizes / files.bytes_per_token).astype(np.int32)
    return found


# A scored corpus


@dataclass(frozen=True)
class Scoring:
    """A scored corpus on disk: `folder` holds job.json, scores-NNNNN.parquet and rejected-NNNNN.parquet."""

    folder: Path
    job: dict[str, Any]  # see `score_corpus`
    shards: list[Shard]

    @classmethod
    def open(cls, folder: Path) -> Scoring:
        """What `score_corpus` left in a folder."""
        job = read_job(folder / "job.json")
        return cls(folder, job, [Shard(*shard[:-1], Columns(*shard[-1])) for shard in job["shards"]])

    def path(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}-{number:05d}.parquet"

    def key(self, number: int) -> str:
        """What a shard's files are computed from."""
        return digest([self.job["fingerprint"], self.job["seed"], number, self.shards[number].key])

    def refuse_changed(self) -> None:
        """TraitError if a file of the corpus is no longer what was scored."""
        now = list_shards(self.job["corpus"], self.job["seed"], shard_rows=self.job["documents_per_shard"])
        keys = {shard.number: shard.key for shard in now}
        for shard in self.shards:
            if keys.get(shard.number) != shard.key:
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
                yield pa.Table.from_batches([batch]).replace_schema_metadata(None)


def score_corpus(
    spec: str,
    files: ModelFiles,
    folder: Path | str,
    *,
    seed: int = 0,
    documents_per_shard: int = 50_000,
    max_quarantined: float = 0.01,
    place: Place = Place(),
) -> Scoring:
    """Score every document of a corpus into `folder`; shards that it holds are not scored again.

    TraitError where more than the share `max_quarantined` of the documents cannot be used; what the web is full of anyway
    (pages that are not HTML, or have no main text) does not count.
    """
    shards = list_shards(spec, seed, shard_rows=documents_per_shard)
    folder = Path(folder).absolute()
    files = _folded(files, folder)
    open_models(files, files.fingerprint).domain.column(files.label)
    job = {
        "files": asdict(files),
        "fingerprint": files.fingerprint,
        "corpus": spec,
        "documents_per_shard": documents_per_shard,
        "seed": seed,
        "shards": shards,
    }
    write_json(folder / "job.json", job)
    scoring = Scoring.open(folder)
    pairs = [[scoring.path(kind, shard.number) for kind in ("scores", "rejected")] for shard in shards]
    missing = [n for n, pair in enumerate(pairs) if not all(has_key(path, scoring.key(n)) for path in pair)]
    valid = {path for n, pair in enumerate(pairs) if n not in set(missing) for path in pair}
    for stale in {*folder.glob("scores-*.parquet"), *folder.glob("rejected-*.parquet")} - valid:
        stale.unlink()  # out of date, damaged, or of a corpus with more shards; its presence would pass for progress
    losses = _Losses(scoring, max_quarantined)
    progress = Progress("scoring", len(shards), functools.partial(scoring.path, "scores"), losses.count)
    run(score_shard, folder / "job.json", missing, place, progress)
    progress.look()
    losses.refuse(len(shards))
    if not scoring.documents:
        raise TraitError(f"There are no documents to score: the corpus is empty, or nothing is usable. {losses.worst}")
    return scoring


class _Losses:
    """Refuses, as early as it is sure, what loses more records than the limit allows."""

    def __init__(self, scoring: Scoring, limit: float) -> None:
        self.scoring, self.limit = scoring, limit
        self.shards = self.documents = 0
        self.lost: Counter[str] = Counter()  # 'file: reason' -> records

    @property
    def worst(self) -> str:
        return next((where for where, _ in self.lost.most_common(1)), "")

    def count(self, number: int, documents: int) -> None:
        self.shards, self.documents = self.shards + 1, self.documents + documents
        for row in pq.read_table(self.scoring.path("rejected", number)).to_pylist():
            if not row["reason"].startswith(SKIPPED):
                self.lost[f"{row['source']}: {row['reason']}"] += row["records"]
        if self.documents + self.lost.total() >= _SURE:  # the first shards may be the worst
            self.refuse(self.shards)

    def refuse(self, shards: int) -> None:
        """By what is known when so many of the shards are done."""
        lost = self.lost.total()
        read = self.documents + lost
        if lost > self.limit * read * len(self.scoring.shards) / shards:
            raise TraitError(
                f"{lost:,} of {read:,} web documents are unreadable, more than max_quarantined ({self.limit:.2%}) allows; "
                f"most of them: {self.worst}. The rejected-*.parquet files name each with its reason; repair them, or raise "
                "max_quarantined."
            )


def score_shard(job_path: Path, number: int) -> None:
    """Score one shard of the job and write its files, the scores last: by them a shard is known as done."""
    scoring = Scoring.open(job_path.parent)
    files = ModelFiles(**scoring.job["files"])
    models = open_models(files, scoring.job["fingerprint"])
    metadata, rejected = {KEY: scoring.key(number)}, []
    schema = tables.SCHEMAS["scores"].with_metadata(metadata)
    with (
        atomic_path(scoring.path("scores", number)) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=["shard"]) as writer,
    ):
        for part in read_shard(scoring.shards[number], scoring.job["seed"]):
            rejected.extend(part.rejected)
            if part.documents.num_rows:
                found = {"id": part.documents["id"], **score_texts(text_array(part.documents["text"]), models, files)}
                found["shard"] = np.full(part.documents.num_rows, number, np.int32)
                missing = {name: pa.nulls(part.documents.num_rows) for name in schema.names if name not in found}
                writer.write_table(tables.conform(pa.table(found | missing), "scores").cast(schema))
        rows = [dict(zip(tables.SCHEMAS["quarantine"].names, row, strict=True)) for row in rejected]
        table = pa.Table.from_pylist(rows, tables.SCHEMAS["quarantine"].with_metadata(metadata))
        write_table(scoring.path("rejected", number), table)


def write_table(path: Path, table: pa.Table) -> None:
    """Whole or not at all."""
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def has_key(path: Path, key: str) -> bool:
    """Whether this Parquet file is whole and was computed from what the key stands for."""
    try:
        return (pq.read_schema(path).metadata or {}).get(KEY) == key.encode()
    except (OSError, pa.ArrowInvalid):  # absent or damaged
        return False
