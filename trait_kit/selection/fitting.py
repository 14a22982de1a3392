"""Trains fastText models: normalised lines, one thread, a fixed seed, so that equal input gives a byte-identical model.

fastText is a linear classifier: a text is the mean of the vectors of its words and hashed word pairs, and the probability of
label y is softmax(B . mean(A[rows]))_y. A held-out part, stratified, judges a model trained without it; the model that is
saved is then trained on all documents, because a scarce seed should not lose a fifth of itself to the report. Beside each
.bin stands its folded scorer with the name of the normalisation that its texts need, which is what notebook 02 loads.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trait_kit.engine.files import TraitError, atomic_path, read_json, write_json
from trait_kit.engine.ngrams import Texts, normalise
from trait_kit.engine.scorer import LABEL_PREFIX, NgramScorer
from trait_kit.params import ClassifierParams


@dataclass
class Report:
    """What a training has to say of documents that it has not seen: numbers for the record, tables to look at."""

    numbers: dict[str, Any]
    tables: dict[str, pd.DataFrame]

    def save(self, path: Path) -> None:
        write_json(path, [self.numbers, {name: table.to_dict("tight") for name, table in self.tables.items()}])

    @classmethod
    def load(cls, path: Path) -> Report:
        numbers, tables = read_json(path)
        return cls(numbers, {name: pd.DataFrame.from_dict(table, orient="tight") for name, table in tables.items()})


NORMALISATION = "words-1"  # of `normalise_lines`, by its name in model files


def _default(name: str) -> float:
    return ClassifierParams.model_fields[name].default  # the one place where it is written


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained and judged; what notebook 01 can change has the name and the default of its parameter."""

    seed: int = _default("seed")
    dimension: int = _default("dimension")
    epochs: int = _default("epochs")
    learning_rate: float = _default("learning_rate")
    buckets: int = _default("buckets")
    word_ngrams: int = 2
    held_out_fraction: float = 0.2
    min_documents: int = 20  # fewest documents a side that are worth training on


def options_of(p: ClassifierParams) -> dict[str, float]:
    return {name: getattr(p, name) for name in TrainingOptions.__dataclass_fields__ if hasattr(p, name)}


def normalise_lines(texts: Texts) -> list[str]:
    """What fastText models of the kit see of each text, in training and in scoring; see ngrams.normalise."""
    return normalise(texts).to_pylist()


def normalise_line(text: str) -> str:
    return normalise_lines([text])[0]


def ngrams_of(line: str, longest: int = 2) -> list[str]:
    """The words and word n-grams of a normalised line, in order, each as one string."""
    words = line.split(" ")
    return [" ".join(span) for n in range(1, longest + 1) for span in zip(*(words[k:] for k in range(n)), strict=False)]


def trial(lines: list[str], labels: list[str], options: TrainingOptions) -> tuple[list[str], list[str], NgramScorer]:
    """The lines and labels held out, and a model that has not seen them."""
    held_out = _held_out(labels, options.held_out_fraction, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        seen = list(itertools.compress(lines, ~held_out)), list(itertools.compress(labels, ~held_out))
        scorer = train(*seen, Path(folder) / "trial.bin", options)
    return list(itertools.compress(lines, held_out)), list(itertools.compress(labels, held_out)), scorer


def _held_out(labels: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """A mask that holds `fraction` of each label's documents, at least one, never all."""
    generator = np.random.default_rng(seed)
    names = np.array(labels)
    mask = np.zeros(len(names), bool)
    for label in dict.fromkeys(labels):
        rows = generator.permutation(np.flatnonzero(names == label))
        mask[rows[: min(max(1, round(fraction * len(rows))), len(rows) - 1)]] = True
    return mask


def train(lines: list[str], labels: list[str], path: Path | str, options: TrainingOptions) -> NgramScorer:
    """Train on normalised lines, write the .bin and its scorer whole or not at all, and return the scorer."""
    import fasttext

    order = np.random.default_rng(options.seed).permutation(len(lines))
    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as temporary:
        source = Path(folder) / "train.txt"
        source.write_text("".join(f"{LABEL_PREFIX}{labels[k]} {lines[k]}\n" for k in order), encoding="utf-8")
        try:
            model = fasttext.train_supervised(
                str(source),
                loss="softmax",
                lr=options.learning_rate,
                dim=options.dimension,
                epoch=options.epochs,
                wordNgrams=options.word_ngrams,
                bucket=options.buckets,
                seed=options.seed,
                thread=1,  # only then is the result the same each time
                verbose=0,
            )
        except RuntimeError as error:
            raise TraitError(f"fastText cannot train on these documents ({error}). Try a lower learning_rate.") from None
        model.save_model(str(temporary))
        try:
            scorer = NgramScorer.from_fasttext(temporary, normalisation=NORMALISATION)
        except TraitError as error:  # the library does not notice a full disk
            raise TraitError(
                f"{path} was not written whole: most likely the disk is full (free some room), else training diverged "
                f"(lower learning_rate). {error}"
            ) from None
        scorer.save(Path(path).with_suffix(".safetensors"))
        return scorer
