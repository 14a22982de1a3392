"""Trains fastText models: normalised lines, one thread, a fixed seed, so that equal input gives a byte-identical model.

A held-out part, stratified, judges a model trained without it; the model that is saved is then trained on all documents,
because a scarce seed should not lose a fifth of itself to the report. Beside each .bin stands its folded scorer.
"""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trait_kit.engine.files import TraitError, atomic_path, read_json, write_json
from trait_kit.engine.ngrams import normalise
from trait_kit.engine.scorer import LABEL_PREFIX, NgramScorer
from trait_kit.params import ClassifierParams

NORMALISATION = "words-2"  # of `ngrams.normalise`, by its name in model files
WORD_NGRAMS = 2
_HELD_OUT = 0.2

Labelled = dict[str, str]  # normalised line -> label; a line has one label


@dataclass
class Report:
    """What a training has to say of documents that it has not seen: numbers for the record, tables to look at."""

    numbers: dict[str, Any]
    tables: dict[str, pd.DataFrame]

    def save(self, path: Path) -> None:
        write_json(path, [self.numbers, {name: table.to_dict("tight") for name, table in self.tables.items()}])

    @classmethod
    def load(cls, path: Path) -> "Report":
        numbers, tables = read_json(path)
        return cls(numbers, {name: pd.DataFrame.from_dict(table, orient="tight") for name, table in tables.items()})


def normalise_line(text: str) -> str:
    """What fastText models of the kit see of a text, in training and in scoring."""
    return normalise([text])[0].as_py()


def ngrams_of(line: str, longest: int = WORD_NGRAMS) -> list[str]:
    """The words and word n-grams of a normalised line, in order, each as one string."""
    words = line.split(" ")
    return [" ".join(span) for n in range(1, longest + 1) for span in zip(*(words[k:] for k in range(n)), strict=False)]


def require(pairs: Labelled, labels: Sequence[str], least: int, advice: str) -> None:
    """TraitError where a label has fewer than `least` lines: nothing can be learned, or judged, of it."""
    counts = Counter(pairs.values())
    if few := [f"{label} has {counts[label]}" for label in labels if counts[label] < least]:
        raise TraitError(
            f"Too few documents to train on: of each label {least} are needed, but {', '.join(few)} that are neither empty "
            f"nor repeated. {advice}"
        )


def trial(pairs: Labelled, labels: Sequence[str], p: ClassifierParams) -> tuple[np.ndarray, np.ndarray]:
    """(given label [n], probabilities [n, labels]) of lines held out, by a model that has not seen them."""
    from sklearn.model_selection import train_test_split

    given = list(pairs.values())
    split = train_test_split(list(pairs), given, test_size=_HELD_OUT, stratify=given, random_state=p.seed)
    seen, unseen, labels_of_seen, labels_of_unseen = split
    with tempfile.TemporaryDirectory() as folder:
        judge = train(dict(zip(seen, labels_of_seen, strict=True)), Path(folder) / "trial.bin", p)
    columns = [judge.column(label) for label in labels]
    return np.array(labels_of_unseen), judge.probabilities(unseen)[:, columns]


def train(pairs: Labelled, path: Path | str, p: ClassifierParams) -> NgramScorer:
    """Train on labelled lines, write the .bin and its scorer whole or not at all, and return the scorer."""
    import fasttext

    lines = [f"{LABEL_PREFIX}{label} {line}\n" for line, label in pairs.items()]
    order = np.random.default_rng(p.seed).permutation(len(lines))
    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as temporary:
        source = Path(folder) / "train.txt"
        source.write_text("".join(lines[k] for k in order), encoding="utf-8")
        try:
            model = fasttext.train_supervised(
                str(source),
                loss="softmax",
                lr=p.learning_rate,
                dim=p.dimension,
                epoch=p.epochs,
                wordNgrams=WORD_NGRAMS,
                bucket=p.buckets,
                seed=p.seed,
                thread=1,  # only then is the result the same each time
                verbose=0,
            )
        except RuntimeError as error:
            raise TraitError(f"fastText cannot train on these documents ({error}). Try a lower learning_rate.") from None
        model.save_model(str(temporary))
        scorer = NgramScorer.from_fasttext(temporary, normalisation=NORMALISATION)
        scorer.save(Path(path).with_suffix(".safetensors"))
        return scorer
