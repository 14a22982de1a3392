"""Trains the fastText models of the selection: in-domain against general text, and educational value (paper, section 3.1).

Both are trained on normalised lines, on one thread with a fixed seed: equal input gives a byte-identical model. A held-out
part, stratified, judges a model trained without it; the model that is saved is then trained on all documents, because a
scarce seed should not lose a fifth of itself to the report. Beside each fastText .bin stands its .npz: the folded scorer
with the name of the normalisation that its texts need, which is what notebook 02 loads.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trait_kit.engine.files import TraitError, atomic_path
from trait_kit.engine.ngrams import Texts, normalise
from trait_kit.engine.scorer import LABEL_PREFIX, NgramScorer
from trait_kit.selection.educational import LABELS, POINTS, educational_weak_labels

__all__ = [
    "ClassifierReport",
    "EducationalReport",
    "TrainingOptions",
    "educational_weak_labels",
    "normalise_line",
    "normalise_lines",
    "train_domain_classifier",
    "train_educational_model",
]

IN_DOMAIN, GENERAL = "in_domain", "general"
NORMALISATION = "words-1"  # of `normalise_lines`, by its name in model files
_TOP_NGRAMS, _NGRAM_DOCUMENTS = 20, 2_000  # n-grams shown a side; documents they are looked for in


@dataclass(frozen=True)
class TrainingOptions:
    """How both models are trained and judged; the parameters of notebook 01 by their names."""

    seed: int = 0
    dimension: int = 64
    epochs: int = 25
    learning_rate: float = 0.5
    word_ngrams: int = 2
    buckets: int = 200_000
    held_out_fraction: float = 0.2
    min_documents: int = 20


@dataclass
class ClassifierReport:
    """How well the domain classifier separates documents it was not trained on, and what it looks at."""

    n_train: int
    n_held_out: int
    base_rate: float  # share of in-domain documents among the held-out ones: the precision of guessing
    roc_auc: float
    average_precision: float
    dropped: int  # empty and repeated documents, and negatives equal to a positive
    curve: pd.DataFrame  # threshold, precision, recall; ascending threshold
    top_ngrams: pd.DataFrame  # side (in_domain | general), ngram, weight (logit of that n-gram alone), documents


@dataclass
class EducationalReport:
    """How far the educational model repeats its labels on documents it was not trained on."""

    n_train: int
    n_held_out: int
    agreement: float  # share of held-out documents given their own label
    majority: float  # what always answering the most frequent label would score
    rank_correlation: float  # Spearman's, expected value against label
    kappa: float  # Cohen's, quadratic weights: 0 is chance, 1 perfect; Low for High costs four times Low for Mid
    confusion: pd.DataFrame  # rows: label given; columns: label predicted; held-out documents
    distribution: dict[str, int]  # label -> documents


def normalise_lines(texts: Texts) -> list[str]:
    """What fastText models of the kit see of each text, in training and in scoring; see ngrams.normalise."""
    return normalise(texts).to_pylist()


def normalise_line(text: str) -> str:
    return normalise_lines([text])[0]


def train_domain_classifier(
    positives: list[str], negatives: list[str], model_path: Path | str, **options: Any
) -> ClassifierReport:
    """Train in-domain (`positives`) against general (`negatives`), write model and scorer; TraitError for sets too small.

    `options` are the fields of TrainingOptions.
    """
    settings = TrainingOptions(**options)
    fewest = max(settings.min_documents, 2)
    sides = _unique_sides({IN_DOMAIN: positives, GENERAL: negatives})
    for side, lines in sides.items():
        given = len(positives if side == IN_DOMAIN else negatives)
        if len(lines) < fewest:
            raise TraitError(
                f"The domain classifier needs at least {fewest} different {side} documents, but got "
                f"{len(lines)} ({given} given, the rest empty or repeated). Add documents, or lower min_documents."
            )
    lines = [line for side in sides.values() for line in side]
    labels = [side for side, members in sides.items() for _ in members]
    held_out, trial = _trial(lines, labels, settings)
    scores = trial.probabilities(_take(lines, held_out))[:, trial.column(IN_DOMAIN)]
    truth = np.array(_take(labels, held_out)) == IN_DOMAIN
    scorer = _train(lines, labels, model_path, settings)
    scorer.save(scorer_path(model_path))
    return ClassifierReport(
        n_train=int((~held_out).sum()),
        n_held_out=int(held_out.sum()),
        base_rate=float(truth.mean()),
        dropped=len(positives) + len(negatives) - len(lines),
        top_ngrams=_top_ngrams(scorer, sides, settings.word_ngrams),
        **_separation(truth, scores),
    )


def train_educational_model(
    texts: list[str], labels: list[str], model_path: Path | str, **options: Any
) -> EducationalReport:
    """Train Low / Mid / High on given labels (weak ones, or an LLM's), write model and scorer; options as above."""
    settings = TrainingOptions(**options)
    if len(texts) != len(labels):
        raise TraitError(f"The educational model got {len(texts)} texts and {len(labels)} labels; there must be one a text.")
    unknown = sorted(set(labels) - set(LABELS))
    if unknown:
        raise TraitError(f"Unknown educational label(s) {', '.join(map(repr, unknown))}; use {', '.join(LABELS)}.")
    pairs = dict(zip(normalise_lines(texts), labels, strict=True))
    pairs.pop("", None)
    lines, labels = list(pairs), list(pairs.values())
    counts = Counter(labels)
    for label in LABELS:
        if counts[label] < 2:
            found = ", ".join(f"{name} {counts[name]}" for name in LABELS)
            raise TraitError(
                f"The educational model needs documents of each label, but {label} has {counts[label]} of {len(lines)} "
                f"({found}). Give more documents labels (educational_sample, educational_ratings), choose another "
                "educational_source (the rule of 'weak' knows only English), or leave fasttext+educational out of methods."
            )
    if len(lines) < settings.min_documents:
        raise TraitError(
            f"The educational model needs {settings.min_documents} different documents or more, but got {len(lines)}. "
            "Raise educational_sample (and educational_ratings, if it is set)."
        )
    held_out, trial = _trial(lines, labels, settings)
    probabilities = trial.probabilities(_take(lines, held_out))[:, [trial.column(label) for label in LABELS]]
    given = _take(labels, held_out)
    predicted = [LABELS[k] for k in probabilities.argmax(axis=1)]
    _train(lines, labels, model_path, settings).save(scorer_path(model_path))
    confusion = pd.crosstab(pd.Series(given, name="given"), pd.Series(predicted, name="predicted"))
    values = {"given": [POINTS[label] for label in given], "value": probabilities @ list(POINTS.values())}
    ranks = pd.DataFrame(values).rank()
    return EducationalReport(
        n_train=int((~held_out).sum()),
        n_held_out=len(given),
        agreement=float(np.mean([a == b for a, b in zip(given, predicted, strict=True)])),
        majority=max(Counter(given).values()) / len(given),
        rank_correlation=float(np.nan_to_num(np.corrcoef(ranks["given"], ranks["value"])[0, 1])),
        kappa=_weighted_kappa(given, predicted),
        confusion=confusion.reindex(index=LABELS, columns=LABELS, fill_value=0),
        distribution={label: counts[label] for label in LABELS},
    )


def scorer_path(model_path: Path | str) -> Path:
    """Where the folded scorer of a model stands: the same name, .npz."""
    return Path(model_path).with_suffix(".npz")


def _trial(lines: list[str], labels: list[str], options: TrainingOptions) -> tuple[np.ndarray, NgramScorer]:
    """The mask of the documents held out, and a model that has not seen them."""
    held_out = _held_out(labels, options.held_out_fraction, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        return held_out, _train(_take(lines, ~held_out), _take(labels, ~held_out), Path(folder) / "trial.bin", options)


def _unique_sides(sides: dict[str, list[str]]) -> dict[str, list[str]]:
    """Normalised lines of each side without empty or repeated ones; a line of an earlier side is not one of a later."""
    seen = {""}
    unique = {}
    for side, texts in sides.items():
        unique[side] = [line for line in dict.fromkeys(normalise_lines(texts)) if line not in seen]
        seen.update(unique[side])
    return unique


def _held_out(labels: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """A mask that holds `fraction` of each label's documents, at least one, never all."""
    generator = np.random.default_rng(seed)
    names = np.array(labels)
    mask = np.zeros(len(names), bool)
    for label in dict.fromkeys(labels):
        rows = generator.permutation(np.flatnonzero(names == label))
        mask[rows[: min(max(1, round(fraction * len(rows))), len(rows) - 1)]] = True
    return mask


def _take(values: list[str], mask: np.ndarray) -> list[str]:
    return [value for value, taken in zip(values, mask, strict=True) if taken]


def _train(lines: list[str], labels: list[str], path: Path | str, options: TrainingOptions) -> NgramScorer:
    """Train on normalised lines, write the .bin whole or not at all, and return it folded."""
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
            return NgramScorer.from_fasttext(temporary, normalisation=NORMALISATION)
        except TraitError as error:  # the library does not notice a full disk
            raise TraitError(
                f"{path} was not written whole: most likely the disk is full (free some room), else training diverged "
                f"(lower learning_rate). {error}"
            ) from None


def _separation(truth: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    precision, recall, threshold = precision_recall_curve(truth, scores)
    return {
        "roc_auc": float(roc_auc_score(truth, scores)),
        "average_precision": float(average_precision_score(truth, scores)),
        "curve": pd.DataFrame({"threshold": threshold, "precision": precision[:-1], "recall": recall[:-1]}),
    }


def _weighted_kappa(given: list[str], predicted: list[str]) -> float:
    """Cohen's kappa with quadratic weights, 0 where all agree on one label (nothing beyond chance can be told)."""
    from sklearn.metrics import cohen_kappa_score

    if len({*given, *predicted}) < 2:
        return 0.0
    return float(cohen_kappa_score(given, predicted, labels=list(LABELS), weights="quadratic"))


def _top_ngrams(scorer: NgramScorer, sides: dict[str, list[str]], word_ngrams: int) -> pd.DataFrame:
    """The n-grams of letters that push hardest to each side, among those that several documents hold."""
    documents: Counter[str] = Counter()
    for lines in sides.values():
        for line in lines[:_NGRAM_DOCUMENTS]:
            words = line.split(" ")
            spans = (words[k : k + n] for n in range(1, word_ngrams + 1) for k in range(len(words) - n + 1))
            documents.update({" ".join(span) for span in spans if all(word.isalpha() for word in span)})
    floor = min(5, max(documents.values(), default=0))
    ngrams = [ngram for ngram, count in documents.items() if count >= floor]
    weights = scorer.ngram_weights(ngrams)
    rows = []
    for side in sides:
        mine = weights[:, scorer.column(side)]
        for k in np.argsort(-mine, kind="stable")[:_TOP_NGRAMS]:
            if mine[k] > 0:
                rows.append((side, ngrams[k], float(mine[k]), documents[ngrams[k]]))
    return pd.DataFrame(rows, columns=["side", "ngram", "weight", "documents"])
