"""How speed is measured: ways to do the same work run in turns, A B A B, so that a busy machine slows all of them alike.

Speeds are megabytes of text (UTF-8, 10^6 bytes) a second; the best turn of each way counts.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trait_kit.engine.files import TraitError
from trait_kit.engine.ngrams import Texts, normalise, text_array, token_blocks
from trait_kit.engine.scorer import NgramScorer
from trait_kit.selection.budget import Limits
from trait_kit.selection.choosing import select
from trait_kit.selection.documents import list_shards, read_shard
from trait_kit.selection.scoring import ModelFiles, score_corpus

_PACKAGES = ("fasttext-community", "numba", "numpy", "pyarrow", "datatrove", "data-selection")


def machine() -> dict[str, str]:
    """What the figures depend on; a load near or above the cores says that others were busy too."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.2f} (average of the last minute)"
        if hasattr(os, "getloadavg")
        else "unknown",
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
    }


def race(
    works: Mapping[str, Callable[[], object]], megabytes: Mapping[str, float] | float, turns: int
) -> dict[str, dict]:
    """MB/s of each work by the clock (`wall`) and by processor time of all threads (`cpu`), each the best of its turns."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(turns):
        for name, work in works.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    speeds = {}
    for name, times in seconds.items():
        size = megabytes if isinstance(megabytes, int | float) else megabytes[name]
        wall, cpu = (size / max(best, 1e-9) for best in np.min(times, axis=0))
        speeds[name] = {"wall": round(wall, 2), "cpu": round(cpu, 2)}
    return speeds


def take(spec: str, megabytes: float) -> pa.Table:
    """About so many megabytes of a corpus' documents (id, text); a smaller corpus is repeated, under new ids."""
    parts, size = [], 0.0
    for part in (part for shard in list_shards(spec) for part in read_shard(shard)):
        parts.append(part.documents.select(["id", "text"]))
        size += text_megabytes(part.documents["text"])
        if size >= megabytes:
            break
    if not size:
        raise TraitError(f"{spec} has no usable document to measure with.")
    once = pa.concat_tables(parts)
    copies = [once]
    while len(copies) * size < megabytes:
        ids = pc.binary_join_element_wise(once["id"], str(len(copies)), "-")
        copies.append(once.set_column(0, "id", ids))
    documents = pa.concat_tables(copies)
    ends = np.cumsum(pc.binary_length(documents["text"]).to_numpy())
    return documents.slice(0, int(np.searchsorted(ends, megabytes * 1e6)) + 1)


def text_megabytes(texts: pa.Array | pa.ChunkedArray) -> float:
    return (pc.sum(pc.binary_length(texts)).as_py() or 0) / 1e6


def write_parquet(documents: pa.Table, folder: Path, files: int = 4, group_rows: int = 10_000) -> None:
    """The documents as several zstd files of several row groups."""
    folder.mkdir(parents=True)
    each = -(-documents.num_rows // files)
    for number in range(files):
        part = documents.slice(number * each, each)
        pq.write_table(part, folder / f"{number:03d}.parquet", compression="zstd", row_group_size=group_rows)


def fasttext_lines(array: pa.Array, scorer: NgramScorer) -> list[str]:
    """What fastText must be given to see what `scorer` sees, made beforehand, so that its clock does not count it."""
    if scorer.normalisation != "none":
        return normalise(array).to_pylist()
    return [text.replace("\n", " ") for text in array.to_pylist()]


def predict(model: str, lines: list[str]) -> Callable[[], object]:
    import fasttext

    library = fasttext.load_model(model)
    return lambda: library.predict(lines, k=len(library.get_labels()))


def scan(texts: Texts, scorer: NgramScorer) -> None:
    """Read and hash the words, and look nothing up: what no table, however small, can be faster than."""
    for _ in token_blocks(text_array(texts), scorer.normalisation):
        pass


def parquet_to_selection(corpus: Path, table: Path, label: str, limits: Limits, folder: Path) -> Path:
    """Score a folder of Parquet files and select from it in this process, all of it anew; the job's folder within `folder`.

    A quarter of the bytes counts as tokens, so that no tokenizer runs, and near-duplicates stay: for tools that do neither.
    """
    job = new_folder(folder)
    scoring = score_corpus(f"{corpus}/*.parquet", ModelFiles(str(table), label=label), job / "scores")
    select(scoring, job / "selection", ["fasttext"], limits, near_duplicate=0)
    return job


def new_folder(parent: Path) -> Path:
    """An empty folder, so that no clock counts removing what an earlier turn left."""
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=parent))
