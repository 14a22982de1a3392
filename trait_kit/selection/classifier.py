"""01: the models of the selection: in-domain against general text, and where a method uses it, educational value.

The positives are the in-domain documents, the negatives a plain sample of the web: unlabelled, so a few of them are
in-domain too, which a linear classifier tolerates (paper, section 3.1). How models are trained is in `fitting`.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from trait_kit.engine.ngrams import Texts, normalise
from trait_kit.engine.scorer import NgramScorer
from trait_kit.params import ClassifierParams
from trait_kit.selection.disjoint import in_domain_documents
from trait_kit.selection.documents import sample
from trait_kit.selection.educational import educational_model
from trait_kit.selection.fitting import Labelled, Report, ngrams_of, require, train, trial

if TYPE_CHECKING:
    from trait_kit.runs import Step

IN_DOMAIN, GENERAL = "in_domain", "general"
_FEWEST = 20  # documents a side
_TOP_NGRAMS, _NGRAM_DOCUMENTS = 15, 2_000  # n-grams shown a side; documents of it that they are looked for in


def train_classifiers(step: "Step") -> Report:
    """01: domain.safetensors, and educational.safetensors where a method of the experiment needs it, in the step's folder.

    The numbers are those of the step's record; the tables are curve, top_ngrams, left_out (see `disjoint.InDomain`) and, of
    an educational model, examples and confusion.
    """
    p, path = step.params, step.path("classifiers.json")
    if step.done:
        return Report.load(path)
    screened = in_domain_documents(p)
    print(screened.said)
    positives = screened.documents["text"]
    negatives = sample(p.web, p.negatives_per_positive * len(positives), p.seed)["text"]
    report = train_domain_classifier(positives, negatives, step.path("domain.bin"), p)
    report.numbers |= {
        "in_domain_documents": len(positives),
        "negatives": len(negatives),
        "left_out": screened.left_out["reason"].value_counts().to_dict(),
    }
    report.tables["left_out"] = screened.left_out
    if "fasttext_educational" in step.experiment.selection.methods:
        educational = educational_model(p, sample(p.web, p.educational_sample, p.seed + 1), step.folder)
        report = Report(report.numbers | educational.numbers, report.tables | educational.tables)
    report.save(path)
    return report


def train_domain_classifier(positives: Texts, negatives: Texts, model_path: Path | str, p: ClassifierParams) -> Report:
    """Train in-domain against general, write model and scorer; TraitError for sets too small.

    Tables: curve (threshold, precision, recall; ascending threshold) and top_ngrams (side, ngram, weight: logit of that
    n-gram alone, documents).
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    pairs = dict.fromkeys(normalise(positives).to_pylist(), IN_DOMAIN)
    for line in normalise(negatives).to_pylist():
        pairs.setdefault(line, GENERAL)
    pairs.pop("", None)
    require(pairs, (IN_DOMAIN, GENERAL), _FEWEST, "Add documents.")
    given, probabilities = trial(pairs, (IN_DOMAIN,), p)
    truth, scores = given == IN_DOMAIN, probabilities[:, 0]
    precision, recall, threshold = precision_recall_curve(truth, scores)
    auc = float(roc_auc_score(truth, scores))
    numbers = {
        "headline": f"On unseen documents the classifier ranks in-domain above general text {auc:.0%} of the time.",
        "good": auc > 0.9,
        "roc_auc": auc,
        "average_precision": float(average_precision_score(truth, scores)),
        "n_held_out": len(given),
        "base_rate": float(truth.mean()),  # of the held-out: the precision of guessing
        "dropped": len(positives) + len(negatives) - len(pairs),  # empty, repeated, and negatives equal to a positive
    }
    curve = pd.DataFrame({"threshold": threshold.astype(float), "precision": precision[:-1], "recall": recall[:-1]})
    return Report(numbers, {"curve": curve, "top_ngrams": _top_ngrams(train(pairs, model_path, p), pairs)})


def _top_ngrams(scorer: NgramScorer, pairs: Labelled) -> pd.DataFrame:
    """The n-grams of letters that push hardest to each side, among those that several documents hold."""
    documents: Counter[str] = Counter()
    for side in (IN_DOMAIN, GENERAL):
        lines = [line for line, label in pairs.items() if label == side]
        for line in lines[:_NGRAM_DOCUMENTS]:
            documents.update({ngram for ngram in ngrams_of(line) if ngram.replace(" ", "").isalpha()})
    floor = min(5, max(documents.values(), default=0))
    frame = pd.DataFrame([pair for pair in documents.items() if pair[1] >= floor], columns=["ngram", "documents"])
    weights = scorer.ngram_weights(frame["ngram"].tolist())
    found = []
    for side in (IN_DOMAIN, GENERAL):
        mine = frame.assign(side=side, weight=weights[:, scorer.column(side)].astype(float))
        found.append(mine[mine["weight"] > 0].nlargest(_TOP_NGRAMS, "weight"))
    return pd.concat(found, ignore_index=True)[["side", "ngram", "weight", "documents"]]
