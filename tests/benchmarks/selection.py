"""Selection against the tools it replaces: exactness, speed, agreement, scaling, memory. Run by hand; see README.md.

With --model and --input (`trait-kit bench selection`): how fast one's own model is on this machine and one's own corpus,
so that what a job will take is known before it starts.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import functools
import json
import pstats
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fasttext
import pandas as pd
import psutil
import pyarrow.parquet as pq
import speed
from corpora import DEMO, LARGE, SMALL, Setup, one_core, ratio
from exactness import exactness
from importance import agreement, dsir

from trait_kit.engine.files import read_json, write_json
from trait_kit.engine.ngrams import text_array
from trait_kit.engine.scorer import NgramScorer
from trait_kit.engine.shards import Place
from trait_kit.selection.budget import Limits
from trait_kit.selection.scoring import ModelFiles, score_corpus

STEPS = {
    "reading Parquet": ("records", "read_parquet"),
    "n-grams": ("ngrams", "total"),
    "hashing ids": ("identity", "check"),
    "writing scores and documents": ("core", "write_table"),
}


def scorer(setup: Setup) -> dict:
    """NgramScorer against fastText's predict; normalised lines are made for fastText before its clock starts."""
    found = {}
    for size in (LARGE, SMALL):
        for normalisation in ("none", "words-2"):
            path, ours, table = setup.model(size, normalisation)
            works = {
                "fastText predict": speed.predict(str(path), speed.fasttext_lines(setup.texts, ours)),
                "NgramScorer": functools.partial(ours.probabilities, setup.texts),
                "scan alone": functools.partial(speed.scan, setup.texts, ours),
            }
            with one_core():
                speeds = speed.race(works, speed.text_megabytes(setup.texts), setup.turns)
            megabytes = {file.suffix: round(file.stat().st_size / 1e6, 1) for file in (path, table)}
            name = f"{size[0]} dimensions, {size[1]:,} buckets, {normalisation}"
            found[name] = ratio(speeds, "NgramScorer", "fastText predict") | {"MB on disk": megabytes}
    return found


def parquet(setup: Setup) -> dict:
    """Parquet in, Parquet out, kept where the probability is at least 0.5, against datatrove; the same documents?"""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.filters import FastTextClassifierFilter
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter
    from loguru import logger

    logger.remove()
    model, _, table = setup.model(LARGE)
    library = fasttext.load_model(str(model))
    FastTextClassifierFilter._requires_dependencies = []  # it insists on one distribution of fastText; others work

    class Filter(FastTextClassifierFilter):
        model = property(lambda self: library)  # loaded before its clock starts

    select = Filter(str(model), keep_labels=("in_domain", 0.5), newline_replacement=" ")

    def datatrove(*filters: Filter) -> Path:
        job = speed.new_folder(setup.folder)
        steps = [ParquetReader(str(setup.corpus)), *filters, ParquetWriter(str(job / "out"), compression="zstd")]
        LocalPipelineExecutor(steps, tasks=1, logging_dir=str(job / "log")).run()
        return job

    run = functools.partial(
        speed.parquet_to_selection, setup.corpus, table, "in_domain", Limits(threshold=0.5), setup.folder
    )
    works = {"datatrove, read and write": datatrove, "datatrove": functools.partial(datatrove, select)}
    works["ours"] = run
    with one_core():
        speeds = speed.race(works, speed.text_megabytes(setup.texts), setup.turns)
        shares = _shares(run)
    ours, theirs = run(), datatrove(select)
    kept, all_kept = _ids(ours / "selection", "fasttext.parquet"), _ids(theirs / "out", "*.parquet")
    scored = _ids(ours / "scores", "scores-*.parquet")  # all but a few per cent that the kit holds out
    counts = {"documents": setup.documents.num_rows, "scored": len(scored), "kept": len(kept)}
    counts["kept by one alone"] = len(kept ^ (all_kept & scored))
    return ratio(speeds, "ours", "datatrove") | counts | {"shares of our time": shares}


def _ids(folder: Path, pattern: str) -> set[str]:
    return {
        name for file in folder.glob(pattern) for name in pq.read_table(file, columns=["id"])["id"].to_pylist()
    }


def _shares(work: Callable[[], object]) -> dict[str, float]:
    """The share of a work's time within each of STEPS."""
    profile = cProfile.Profile()
    profile.runcall(work)
    stats = pstats.Stats(profile)
    inside = {(Path(file).stem, name): times[3] for (file, _, name), times in stats.stats.items()}
    return {step: round(inside.get(function, 0) / stats.total_tt, 3) for step, function in STEPS.items()}


def scaling(setup: Setup) -> dict:
    """Two processes against one; a second size tells the steady speed from what starting takes."""
    _, _, table = setup.model(LARGE)
    found = {}
    corpora = [setup.large_corpus(times * setup.megabytes) for times in (10, 20)]
    works, sizes = {}, {}
    for workers in (1, 2):
        for spec, size in corpora:
            works[f"{workers}, {size:.0f} MB"] = functools.partial(_score, setup, spec, table, workers)
            sizes[f"{workers}, {size:.0f} MB"] = size
    speeds = {name: speed["wall"] for name, speed in speed.race(works, sizes, setup.turns).items()}
    (_, small), (_, large) = corpora
    found["processes"] = {"MB/s": speeds}
    for workers in (1, 2):
        seconds = [size / speeds[f"{workers}, {size:.0f} MB"] for size in (small, large)]
        steady = (large - small) / (seconds[1] - seconds[0])
        found["processes"][f"{workers}"] = {
            "steady MB/s": round(steady, 1),
            "starting, s": round(seconds[0] - small / steady, 2),
        }
    found["processes"]["ratio"] = {
        "steady": round(found["processes"]["2"]["steady MB/s"] / found["processes"]["1"]["steady MB/s"], 2),
        f"{large:.0f} MB": round(speeds[f"2, {large:.0f} MB"] / speeds[f"1, {large:.0f} MB"], 2),
    }
    return found


def _score(setup: Setup, spec: str, table: Path, workers: int) -> None:
    score_corpus(spec, ModelFiles(str(table)), speed.new_folder(setup.folder), place=Place(workers=workers))


def memory(setup: Setup) -> dict:
    """The most memory that a scoring worker held beside the table that all of them map."""
    _, _, table = setup.model(LARGE)
    spec, size = setup.large_corpus(10 * setup.megabytes)
    work = threading.Thread(target=_score, args=(setup, spec, table, 2))
    most, seen = Counter(), 0
    work.start()
    while work.is_alive():
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                maps = process.memory_maps()
                if any(part.path == str(table) for part in maps):
                    seen += 1
                    held = {
                        "resident beside the table, MB": sum(part.rss for part in maps if part.path != str(table))
                    }
                    private = (
                        part.private_clean + part.private_dirty for part in maps if not part.path.startswith("/")
                    )
                    held["of it private and of no file, MB"] = sum(private)
                    held["table, MB"] = sum(part.rss for part in maps if part.path == str(table))
                    most.update(
                        {name: max(0, round(value / 1e6, 1) - most[name]) for name, value in held.items()}
                    )
        work.join(0.1)
    return {"corpus, MB": round(size), "looks": seen, **most}


def own(model: str, texts: str, megabytes: float, turns: int = 3) -> pd.DataFrame:
    """Print and return the speed of each way to use this model on about so much of this corpus.

    `model`: a fastText .bin, which is raced against the library, or a .safetensors of the kit. `texts`: any corpus spec.
    """
    documents = speed.take(texts, megabytes)
    library = model.endswith(".bin")
    array, scorer = (
        text_array(documents["text"]),
        NgramScorer.from_fasttext(model) if library else NgramScorer.load(model),
    )
    works: dict[str, Callable[[], object]] = {}
    if library:
        works["fastText predict"] = speed.predict(model, speed.fasttext_lines(array, scorer))
    works["reading and hashing words alone"] = lambda: speed.scan(array, scorer)
    works["NgramScorer"] = lambda: scorer.probabilities(array)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        speed.write_parquet(documents, folder / "corpus")
        files = folder / "corpus", scorer.save(folder / "model.safetensors"), scorer.labels[0]
        works["Parquet to scores to selection, 1 process"] = lambda: speed.parquet_to_selection(
            *files, Limits(documents=-(-len(array) // 10)), folder / "job"
        )
        speeds = speed.race(works, speed.text_megabytes(array), turns)
    found = pd.DataFrame({"work": list(speeds), "MB/s": [one["wall"] for one in speeds.values()]})
    found["documents/s"] = (found["MB/s"] * len(array) / speed.text_megabytes(array)).round().astype(int)
    if library:
        found["times fastText"] = (found["MB/s"] / found["MB/s"][0]).round(1)
    print("\n".join(f"{key}: {value}" for key, value in speed.machine().items()))
    print(f"{len(array):,} documents, {speed.text_megabytes(array):.1f} MB of text, best of {turns}\n")
    print(found.to_string(index=False))
    return found


PARTS = (exactness, scorer, parquet, dsir, agreement, scaling, memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="one's own: a fastText .bin, or a .safetensors of the kit")
    parser.add_argument("--input", help="a corpus to measure one's own model with")
    parser.add_argument(
        "--megabytes", type=float, default=60, help="of text; processes get ten and twenty times as much"
    )
    parser.add_argument("--texts", default=DEMO, help="the corpus whose text is scored")
    parser.add_argument("--turns", type=int, default=3, help="repetitions, of which the best counts")
    parser.add_argument("--only", choices=[part.__name__ for part in PARTS], action="append")
    parser.add_argument(
        "--output", type=Path, help="JSON file; parts that are not measured now stay as they are in it"
    )
    options = parser.parse_args()
    if options.model:
        own(options.model, options.input or options.texts, options.megabytes, options.turns)
        return
    results = read_json(options.output) if options.output and options.output.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(Path(folder), options.texts, options.megabytes, options.turns)
        for part in PARTS:
            if not options.only or part.__name__ in options.only:
                how = {"machine": speed.machine(), "corpus": options.texts, "megabytes": options.megabytes}
                results[part.__name__] = how | part(setup)
                print(json.dumps({part.__name__: results[part.__name__]}, indent=1, default=str), flush=True)
                if options.output:
                    write_json(options.output, results)


if __name__ == "__main__":
    main()
