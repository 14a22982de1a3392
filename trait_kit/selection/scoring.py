"""Scores every document of a corpus once, shard by shard, and keeps the scores (paper, section 3.1).

A shard leaves a file of scores and one of what could not be used, both with the digest of shard and models, so only what is
missing or changed is computed. Another budget, threshold or method needs no scoring.
"""

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trait_kit import tables
from trait_kit.engine import ngrams
from trait_kit.engine.files import TraitError, atomic_path, content, digest, made_folder, read_json
from trait_kit.engine.ngrams import text_array
from trait_kit.engine.scorer import NgramScorer
from trait_kit.engine.shards import Place, Work, claim, run
from trait_kit.reading.readers import SKIPPED, Columns
from trait_kit.selection.documents import Shard, list_shards, read_shard, refuse_inside
from trait_kit.selection.dsir import DsirModel
from trait_kit.selection.educational import LABELS, label_points

_KEY, _HELD_OUT = b"trait_kit.key", b"trait_kit.held_out"  # in Parquet metadata
_BYTES_PER_TOKEN = 4.0  # estimated, so that scores need no base model
_LOADERS = {
    "domain": NgramScorer.load,
    "educational": NgramScorer.load,
    "dsir": DsirModel.load,
}


@dataclass(frozen=True)
class ModelFiles:
    """What turns a text into its scores; a score without its file is null."""

    domain: str  # .safetensors, or any fastText .bin
    educational: str = ""  # the same, with labels such as High, Mid and Low
    dsir: str = ""  # .safetensors of DsirModel
    label: str = "in_domain"  # of the domain model

    @property
    def fingerprint(self) -> str:
        return digest(
            [*(path and content(path) for path in (self.domain, self.educational, self.dsir)), self.label]
        )


@functools.lru_cache(maxsize=1)
def open_models(files: ModelFiles, fingerprint: str) -> dict[str, NgramScorer | DsirModel]:
    """The models of a job, by score."""
    if files.fingerprint != fingerprint:
        raise TraitError("A model file has changed since scoring began. Start scoring again.")
    return {name: load(getattr(files, name)) for name, load in _LOADERS.items() if getattr(files, name)}


def score_texts(
    texts: pa.Array, files: ModelFiles, models: dict[str, NgramScorer | DsirModel]
) -> dict[str, np.ndarray]:
    """domain, educational, dsir (float32 [n]; absent without a model) and n_tokens (int32 [n])."""
    found: dict[str, np.ndarray] = {}
    for normalisation in {model.normalisation for model in models.values()}:
        group = {name: model for name, model in models.items() if model.normalisation == normalisation}
        totals = ngrams.total(texts, [model.table for model in group.values()], normalisation)
        for (name, model), (sums, rows) in zip(group.items(), totals, strict=True):
            found[name] = model.finish(sums, rows)
    found["domain"] = found["domain"][:, models["domain"].column(files.label)]
    if "educational" in found:
        found["educational"] = np.minimum(
            found["educational"] @ label_points(models["educational"].labels), np.float32(2)
        )
    sizes = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    return {**found, "n_tokens": np.ceil(sizes / _BYTES_PER_TOKEN).astype(np.int32)}


def shard_path(folder: Path, kind: str, number: int) -> Path:
    return folder / f"{kind}-{number:05d}.parquet"


def read_shards(folder: Path, kind: str, count: int, columns: list[str] | None = None) -> pa.Table:
    found = [pq.read_table(shard_path(folder, kind, number), columns=columns) for number in range(count)]
    return pa.concat_tables(found).replace_schema_metadata(None).combine_chunks()


def write_table(path: Path, table: pa.Table, key: str = "") -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata({_KEY: key} if key else None), temporary, compression="zstd")


def do_shards(
    work: Work, folder: Path, job: dict[str, Any], keys: list[str], kinds: tuple[str, ...], place: Place
) -> None:
    """Do the shards that lack a file with the right key. `kinds`: the first is written last."""
    files = [[shard_path(folder, kind, number) for kind in kinds] for number in range(len(keys))]
    missing = [n for n, key in enumerate(keys) if not all(_has_key(path, key) for path in files[n])]
    writes = {path.name: key for paths, key in zip(files, keys, strict=True) for path in paths}
    claim(folder, kinds[0], job, writes, writes.keys() - {path.name for n in missing for path in files[n]})
    run(work, folder / "job.json", missing, place)


def _has_key(path: Path, key: str) -> bool:
    try:
        return (pq.read_schema(path).metadata or {}).get(_KEY) == key.encode()
    except (OSError, pa.ArrowInvalid):  # absent or damaged
        return False


@dataclass(frozen=True)
class Scoring:
    """A scored corpus: job.json, and each shard's scores and rejected records."""

    folder: Path
    job: dict[str, Any]  # see `score_corpus`
    shards: list[Shard]

    @classmethod
    def open(cls, folder: Path, finished: bool = True) -> "Scoring":
        job = read_json(folder / "job.json") if (folder / "job.json").is_file() else {}
        if "shards" not in job:
            raise TraitError(f"{folder} holds no scores. Name the folder that `trait-kit score` wrote.")
        if lacks := [
            name for name, key in job["writes"].items() if finished and not _has_key(folder / name, key)
        ]:
            raise TraitError(
                f"{folder} lacks {len(lacks)} whole files, first {lacks[0]}. Run `trait-kit score` again."
            )
        return cls(folder, job, [Shard(*shard[:-1], Columns(*shard[-1])) for shard in job["shards"]])

    @property
    def documents(self) -> int:
        return sum(footer.num_rows for footer in self._footers())

    @property
    def held_out(self) -> int:
        return sum(int(footer.metadata.get(_HELD_OUT, 0)) for footer in self._footers())

    def _footers(self) -> Iterator[pq.FileMetaData]:
        return (pq.read_metadata(shard_path(self.folder, "scores", shard.number)) for shard in self.shards)

    def losses(self) -> pd.Series:
        """'file: reason' -> records that could not be read; pages without text are not among them."""
        rejected = read_shards(self.folder, "rejected", len(self.shards)).to_pandas()
        rejected = rejected[~rejected["reason"].str.startswith(SKIPPED)]
        return rejected.groupby(rejected["source"] + ": " + rejected["reason"])["records"].sum()

    def batches(self) -> Iterator[pa.Table]:
        """The scores in the corpus' order."""
        for shard in self.shards:
            for batch in pq.ParquetFile(shard_path(self.folder, "scores", shard.number)).iter_batches(200_000):
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
    """Score a corpus into `folder`; shards that it holds are kept.

    TraitError where more than the share `max_quarantined` of the documents is lost (`Scoring.losses`).
    """
    shards, folder = list_shards(spec, seed, shard_rows=documents_per_shard), made_folder(folder).resolve()
    refuse_inside(folder, shards)
    for name in ("domain", "educational"):  # a .bin is folded once, for all workers to map
        if (path := getattr(files, name)).endswith(".bin"):
            folded = folder / f"{content(path)[:20]}.safetensors"
            files = replace(
                files, **{name: str(folded if folded.exists() else NgramScorer.load(path).save(folded))}
            )
    models = open_models(files, files.fingerprint)
    models["domain"].column(files.label)  # refused before any time is spent
    label_points(models["educational"].labels if "educational" in models else LABELS)
    job = {
        "files": asdict(files),
        "fingerprint": files.fingerprint,
        "corpus": spec,
        "documents_per_shard": documents_per_shard,
        "seed": seed,
        "shards": shards,
    }
    keys = [digest([files.fingerprint, seed, shard.number, shard.key]) for shard in shards]
    do_shards(score_shard, folder, job, keys, ("scores", "rejected"), place)
    scoring = Scoring.open(folder)
    losses = scoring.losses()
    lost, worst = losses.sum(), "; ".join(losses.nlargest(1).index)
    if lost > max_quarantined * (scoring.documents + lost):
        raise TraitError(
            f"{lost:,} of {scoring.documents + lost:,} web documents cannot be used, more than max_quarantined "
            f"({max_quarantined:.2%}) allows; most of them: {worst}. Repair what rejected-*.parquet names, or raise "
            "max_quarantined. Where ids repeat, name another column, as {id=key}, or none, as {id=-}."
        )
    if not scoring.documents:
        raise TraitError(f"There are no documents to score in {spec}. {worst}")

    return scoring


def score_shard(job_path: Path, number: int) -> None:
    scoring = Scoring.open(job_path.parent, finished=False)
    scores, unusable = (shard_path(scoring.folder, kind, number) for kind in ("scores", "rejected"))
    files, shard, key = (
        ModelFiles(**scoring.job["files"]),
        scoring.shards[number],
        scoring.job["writes"][scores.name],
    )
    models, rejected, held_out = open_models(files, scoring.job["fingerprint"]), [], 0
    schema = tables.SCHEMAS["scores"].with_metadata({_KEY: key})
    with (
        atomic_path(scores) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=["shard"]) as writer,
    ):
        for part in read_shard(shard, scoring.job["seed"]):
            rejected.extend(part.rejected)
            held_out += len(part.held_out)
            columns = dict.fromkeys(_LOADERS, pa.nulls(len(part.documents), pa.float32()))
            columns |= score_texts(text_array(part.documents["text"]), files, models)
            columns |= {"id": part.documents["id"], "shard": np.full(len(part.documents), number, np.int32)}
            writer.write_table(tables.conform(pa.table(columns), "scores").cast(schema))
        writer.add_key_value_metadata({_HELD_OUT: str(held_out)})
        write_table(unusable, tables.conform([reject._asdict() for reject in rejected], "quarantine"), key)
