"""01: the models of the selection: in-domain against general text, and where a method uses it, educational value.

The positives are the in-domain documents, the negatives a plain sample of the web: unlabelled, so a few of them are
in-domain too, which a linear classifier tolerates (paper, section 3.1). How models are trained is in `fitting`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from trait_kit.engine.files import TraitError
from trait_kit.engine.scorer import NgramScorer
from trait_kit.selection.documents import load_documents, sample
from trait_kit.selection.educational import educational_model
from trait_kit.selection.fitting import Report, TrainingOptions, ngrams_of, normalise_lines, options_of, train, trial

if TYPE_CHECKING:
    from trait_kit.runs import Step

IN_DOMAIN, GENERAL = "in_domain", "general"
_TOP_NGRAMS, _NGRAM_DOCUMENTS = 15, 2_000  # n-grams shown a side; documents they are looked for in


def train_classifiers(step: Step) -> Report:
    """01: domain.safetensors, and educational.safetensors where a method of the experiment needs it, in the step's folder.

    The numbers are those of the step's record; the tables are curve, top_ngrams and, of an educational model, examples and
    confusion.
    """
    p, path = step.params, step.path("classifiers.json")
    if step.done:
        return Report.load(path)
    positives = load_documents(p.in_domain, p.seed)["text"].to_pylist()
    negatives = sample(p.web, p.negatives_per_positive * len(positives), p.seed)["text"].to_pylist()
    domain = train_domain_classifier(positives, negatives, step.path("domain.bin"), **options_of(p))
    educational = Report({"educational_source": "not used by any method"}, {})
    if "fasttext+educational" in step.experiment.selection.methods:
        educational = educational_model(p, sample(p.web, p.educational_sample, p.seed + 1)["text"].to_pylist(), step.folder)
    auc = domain.numbers["roc_auc"]
    headline = f"On unseen documents the classifier ranks in-domain above general text {auc:.0%} of the time."
    numbers = {"headline": headline, "good": auc > 0.9, "in_domain_documents": len(positives), "negatives": len(negatives)}
    report = Report(numbers | domain.numbers | educational.numbers, domain.tables | educational.tables)
    report.save(path)
    return report


def train_domain_classifier(positives: list[str], negatives: list[str], model_path: Path | str, **options: Any) -> Report:
    """Train in-domain (`positives`) against general (`negatives`), write model and scorer; TraitError for sets too small.

    `options` are the fields of TrainingOptions. Tables: curve (threshold, precision, recall; ascending threshold) and
    top_ngrams (side, ngram, weight: logit of that n-gram alone, documents).
    """
    settings = TrainingOptions(**options)
    sides = _unique_sides({IN_DOMAIN: positives, GENERAL: negatives})
    for side, lines in sides.items():
        given = len(positives if side == IN_DOMAIN else negatives)
        if len(lines) < max(settings.min_documents, 2):
            raise TraitError(
                f"The domain classifier needs at least {settings.min_documents} different {side} documents, but got "
                f"{len(lines)} ({given} given, the rest empty or repeated). Add documents."
            )
    lines = [line for side in sides.values() for line in side]
    labels = [side for side, members in sides.items() for _ in members]
    unseen, given, judge = trial(lines, labels, settings)
    truth = np.array(given) == IN_DOMAIN
    numbers, curve = _separation(truth, judge.probabilities(unseen)[:, judge.column(IN_DOMAIN)])
    top = _top_ngrams(train(lines, labels, model_path, settings), sides, settings.word_ngrams)
    numbers |= {
        "n_train": len(lines) - len(unseen),
        "n_held_out": len(unseen),
        "base_rate": float(truth.mean()),  # share of in-domain documents among the held-out: the precision of guessing
        "dropped": len(positives) + len(negatives) - len(lines),  # empty, repeated, and negatives equal to a positive
        "top_in_domain_ngrams": ", ".join(top.loc[top["side"] == IN_DOMAIN, "ngram"]),
    }
    return Report(numbers, {"curve": curve, "top_ngrams": top})


def _unique_sides(sides: dict[str, list[str]]) -> dict[str, list[str]]:
    """Normalised lines of each side without empty or repeated ones; a line of an earlier side is not one of a later."""
    seen = {""}
    unique = {}
    for side, texts in sides.items():
        unique[side] = [line for line in dict.fromkeys(normalise_lines(texts)) if line not in seen]
        seen.update(unique[side])
    return unique


def _separation(truth: np.ndarray, scores: np.ndarray) -> tuple[dict[str, Any], pd.DataFrame]:
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    precision, recall, threshold = precision_recall_curve(truth, scores)
    curve = pd.DataFrame({"threshold": threshold.astype(float), "precision": precision[:-1], "recall": recall[:-1]})
    area, average = roc_auc_score(truth, scores), average_precision_score(truth, scores)
    return {"roc_auc": float(area), "average_precision": float(average)}, curve


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
