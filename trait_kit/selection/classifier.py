"""01: the models of the selection: in-domain against general text, and where a method uses it, educational value.

The positives are the in-domain documents, the negatives a plain sample of the web: unlabelled, so a few of them are
in-domain too, which a linear classifier tolerates (paper, section 3.1). How models are trained is in `fitting`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from trait_kit.engine.files import TraitError, read_json, write_json
from trait_kit.engine.scorer import NgramScorer
from trait_kit.selection.corpus import sample
from trait_kit.selection.documents import load_documents
from trait_kit.selection.educational import EducationalModel, educational_model
from trait_kit.selection.fitting import TrainingOptions, ngrams_of, normalise_lines, options_of, train, trial

if TYPE_CHECKING:
    from trait_kit.runs import Step

IN_DOMAIN, GENERAL = "in_domain", "general"
_TOP_NGRAMS, _NGRAM_DOCUMENTS = 20, 2_000  # n-grams shown a side; documents they are looked for in


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
class Classifiers:
    """What 01 leaves; the models themselves are domain.safetensors and educational.safetensors in the step's folder."""

    positives: int  # documents given
    negatives: int
    domain: ClassifierReport
    educational: EducationalModel | None  # None: no method of the experiment uses it

    @property
    def top(self) -> pd.DataFrame:
        """The strongest n-grams of each side, side by side."""
        sides = self.domain.top_ngrams.groupby("side")["ngram"]
        return pd.DataFrame({side: pd.Series(found.head(15).tolist()) for side, found in sides})

    def summary(self) -> dict[str, Any]:
        """For the step's record."""
        auc = self.domain.roc_auc
        return {
            "headline": f"On unseen documents the classifier ranks in-domain above general text {auc:.0%} of the time.",
            "good": auc > 0.9,
            "in_domain_documents": self.positives,
            "negatives": self.negatives,
            "roc_auc": auc,
            "average_precision": self.domain.average_precision,
            "top_in_domain_ngrams": ", ".join(self.top[IN_DOMAIN].dropna()),
            **(self.educational.summary if self.educational else {"educational_source": "not used by any method"}),
        }


def train_classifiers(step: Step) -> Classifiers:
    """01: train the domain classifier, and the educational model where a method of the experiment needs it."""
    p, path = step.params, step.path("classifiers.json")
    if step.done:
        return _load(path)
    positives = load_documents(p.in_domain, p.seed)["text"].to_pylist()
    negatives = sample(p.web, p.negatives_per_positive * len(positives), p.seed)["text"].to_pylist()
    domain = train_domain_classifier(positives, negatives, step.path("domain.bin"), **options_of(p))
    educational = None
    if "fasttext+educational" in step.experiment.selection.methods:
        educational = educational_model(p, sample(p.web, p.educational_sample, p.seed + 1)["text"].to_pylist(), step.folder)
    found = Classifiers(len(positives), len(negatives), domain, educational)
    write_json(path, _plain(found))
    return found


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
                f"{len(lines)} ({given} given, the rest empty or repeated). Add documents."
            )
    lines = [line for side in sides.values() for line in side]
    labels = [side for side, members in sides.items() for _ in members]
    held_out, judged = trial(lines, labels, settings)
    scores = judged.probabilities(list(compress(lines, held_out)))[:, judged.column(IN_DOMAIN)]
    truth = np.array(list(compress(labels, held_out))) == IN_DOMAIN
    return ClassifierReport(
        n_train=int((~held_out).sum()),
        n_held_out=int(held_out.sum()),
        base_rate=float(truth.mean()),
        dropped=len(positives) + len(negatives) - len(lines),
        top_ngrams=_top_ngrams(train(lines, labels, model_path, settings), sides, settings.word_ngrams),
        **_separation(truth, scores),
    )


def _unique_sides(sides: dict[str, list[str]]) -> dict[str, list[str]]:
    """Normalised lines of each side without empty or repeated ones; a line of an earlier side is not one of a later."""
    seen = {""}
    unique = {}
    for side, texts in sides.items():
        unique[side] = [line for line in dict.fromkeys(normalise_lines(texts)) if line not in seen]
        seen.update(unique[side])
    return unique


def _separation(truth: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    precision, recall, threshold = precision_recall_curve(truth, scores)
    return {
        "roc_auc": float(roc_auc_score(truth, scores)),
        "average_precision": float(average_precision_score(truth, scores)),
        "curve": pd.DataFrame({"threshold": threshold.astype(float), "precision": precision[:-1], "recall": recall[:-1]}),
    }


def _top_ngrams(scorer: NgramScorer, sides: dict[str, list[str]], word_ngrams: int) -> pd.DataFrame:
    """The n-grams of letters that push hardest to each side, among those that several documents hold."""
    documents: Counter[str] = Counter()
    for lines in sides.values():
        for line in lines[:_NGRAM_DOCUMENTS]:
            documents.update({ngram for ngram in ngrams_of(line, word_ngrams) if ngram.replace(" ", "").isalpha()})
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


# Kept, for a step that is finished


def _plain(value: Any) -> Any:
    """Dataclasses and tables as JSON has them."""
    if isinstance(value, pd.DataFrame):
        return value.to_dict("tight")
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value


def _restored(kind: type, plain: dict[str, Any]) -> Any:
    values = {
        field.name: pd.DataFrame.from_dict(plain[field.name], orient="tight")
        if field.type.startswith("pd.DataFrame") and plain[field.name] is not None
        else plain[field.name]
        for field in fields(kind)
    }
    return kind(**values)


def _load(path: Path) -> Classifiers:
    found = read_json(path)
    found["domain"] = _restored(ClassifierReport, found["domain"])
    found["educational"] = _restored(EducationalModel, found["educational"]) if found["educational"] else None
    return Classifiers(**found)
