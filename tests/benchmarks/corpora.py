"""What the measurements share: the corpus in memory and as Parquet, and models trained to classify it."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import fasttext
import psutil
import pyarrow as pa
import speed

from trait_kit.demo import part
from trait_kit.engine.ngrams import Normalisation, normalise, text_array
from trait_kit.engine.scorer import NgramScorer

DEMO, SEED_SPEC = "demo:math/web", "demo:math/in_domain"
TOPICS = ("Technology", "Physical sciences", "Mathematics")  # what the trained models call in-domain
LARGE, SMALL = (256, 2_000_000), (16, 200_000)  # dimensions, buckets


class Setup:
    """The corpus, the models and the folder of one run; each is made when first asked for."""

    def __init__(self, folder: Path, spec: str, megabytes: float, turns: int) -> None:
        self.folder, self.spec, self.megabytes, self.turns = folder, spec, megabytes, turns

    @functools.cached_property
    def documents(self) -> pa.Table:
        return speed.take(self.spec, self.megabytes)

    @functools.cached_property
    def texts(self) -> pa.LargeStringArray:
        return text_array(self.documents["text"])

    @functools.cached_property
    def corpus(self) -> Path:
        speed.write_parquet(self.documents, self.folder / "corpus")
        return self.folder / "corpus"

    @functools.cache  # noqa: B019 (one object, as long as the program)
    def model(
        self, size: tuple[int, int], normalisation: Normalisation = "none"
    ) -> tuple[Path, NgramScorer, Path]:
        """(.bin, scorer, .safetensors) of a model trained for one epoch to tell TOPICS from the rest of the demo's web."""
        path = self.folder / f"{size[0]}-{normalisation}.bin"
        documents = part(DEMO.removeprefix("demo:"), 0)
        texts = normalise(documents["text"]) if normalisation != "none" else documents["text"]
        source = path.with_suffix(".txt")
        with source.open("w", encoding="utf-8", newline="\n") as stream:
            for topic, text in zip(documents["label"].to_pylist(), texts.to_pylist(), strict=True):
                label = "in_domain" if topic in TOPICS else "general"
                stream.write(f"__label__{label} {' '.join(text.split())}\n")
        options = dict(dim=size[0], bucket=size[1], epoch=1, lr=0.5, wordNgrams=2, thread=1, verbose=0)
        fasttext.train_supervised(str(source), **options).save_model(str(path))
        scorer = NgramScorer.from_fasttext(path, normalisation)
        return path, scorer, scorer.save(path.with_suffix(".safetensors"))

    def large_corpus(self, megabytes: float) -> tuple[str, float]:
        """(spec, MB) of at least so much text: the corpus' files again and again."""
        copies = int(-(-megabytes // speed.text_megabytes(self.texts)))
        folder = self.folder / f"large-{copies}"
        if not folder.exists():
            folder.mkdir()
            for copy in range(copies):
                for file in self.corpus.iterdir():
                    os.link(file, folder / f"{copy:04d}-{file.name}")
        return f"{folder}/*.parquet", copies * speed.text_megabytes(self.texts)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """This process on one core, the helper threads of its libraries too, where the system can do that."""

    def keep_to(cores: set[int]) -> None:
        for thread in psutil.Process().threads():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, cores)

    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    keep_to({max(cores)})
    try:
        yield
    finally:
        keep_to(cores)


def ratio(speeds: dict[str, dict], ours: str, theirs: str) -> dict:
    times = {clock: round(speeds[ours][clock] / speeds[theirs][clock], 2) for clock in ("wall", "cpu")}
    return {"MB/s": speeds, "ratio": times}
