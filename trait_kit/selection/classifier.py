"""01: the models of the selection: in-domain against general text, and where a method uses it, educational value.

The negatives are a plain sample of the web, a few of which are in-domain too: a linear classifier tolerates that (paper,
section 3.1). fastText reads normalised lines, in one thread and with a fixed seed, so that equal input gives a
byte-identical model; beside each .bin stands its folded scorer.
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
from trait_kit.engine.ngrams import Texts, normalise
from trait_kit.engine.scorer import LABEL_PREFIX, NgramScorer
from trait_kit.params import ClassifierParams
from trait_kit.selection.disjoint import in_domain_documents
from trait_kit.selection.documents import sample
from trait_kit.selection.dsir import NORMALISATION, WORD_NGRAMS
from trait_kit.selection.educational import LABELS, labelled

IN_DOMAIN, GENERAL = "in_domain", "general"
_FEWEST = {IN_DOMAIN: 20, GENERAL: 20} | dict.fromkeys(LABELS, 10)  # documents of a label
_TOP_NGRAMS, _NGRAM_DOCUMENTS = 15, 2_000  # shown a side; documents of it searched for them
_EXAMPLES, _SHOWN = 3, 240  # of a label of educational value; characters of each


@dataclass
class Report:
    """What a training has to say: numbers for the record, tables to look at."""

    numbers: dict[str, Any]
    tables: dict[str, pd.DataFrame]


def train_classifiers(step: Any) -> Report:
    """01: domain.safetensors and, where a method needs it, educational.safetensors.

    Tables: curve, top_ngrams, left_out (`disjoint.InDomain`) and, of an educational model, examples and confusion.
    """
    p, path = step.params, step.path("classifiers.json")
    if step.done:
        numbers, tables = read_json(path)
        return Report(
            numbers, {name: pd.DataFrame.from_dict(table, orient="tight") for name, table in tables.items()}
        )
    screened = in_domain_documents(p)
    print(screened.said)
    positives = screened.documents["text"]
    negatives = sample(p.web, p.negatives_per_positive * len(positives), p.seed)["text"]
    report, left_out = (
        train_domain_classifier(positives, negatives, step.path("domain.bin"), p),
        screened.left_out,
    )
    report.numbers |= {"in_domain_documents": len(positives), "negatives": len(negatives)}
    report.numbers["left_out"], report.tables["left_out"] = left_out["reason"].value_counts().to_dict(), left_out
    if "fasttext_educational" in step.experiment.selection.methods:
        rated, numbers = labelled(p, sample(p.web, p.educational_sample, p.seed + 1), step.folder)
        educational = train_educational_model(rated, step.path("educational.bin"), p)
        report = Report(report.numbers | numbers | educational.numbers, report.tables | educational.tables)
    write_json(path, [report.numbers, {name: table.to_dict("tight") for name, table in report.tables.items()}])

    return report


def train_domain_classifier(
    positives: Texts, negatives: Texts, model_path: Path | str, p: ClassifierParams
) -> Report:
    """Train in-domain against general, write model and scorer; TraitError for sets too small.

    Tables: curve (threshold, ascending; precision, recall) and top_ngrams (side, ngram, weight: its logit alone, documents).
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    inside, outside = (normalise(texts).to_pylist() for texts in (positives, negatives))
    pairs = dict.fromkeys([*inside, *outside], GENERAL) | dict.fromkeys(inside, IN_DOMAIN)
    given, probabilities, scorer = _fit(pairs, (IN_DOMAIN, GENERAL), model_path, p, "Add documents.")
    truth, scores = given == IN_DOMAIN, probabilities[:, 0]
    precision, recall, threshold = precision_recall_curve(truth, scores)
    auc = float(roc_auc_score(truth, scores))
    numbers = {
        "headline": f"On unseen documents the classifier ranks in-domain above general text {auc:.0%} of the time.",
        "good": auc > 0.9,
        "roc_auc": auc,
        "average_precision": float(average_precision_score(truth, scores)),
        "n_held_out": len(given),
        "base_rate": float(truth.mean()),  # the precision of guessing
        "dropped": len(positives) + len(negatives) - len(pairs),  # empty or repeated
    }
    curve = pd.DataFrame(
        {"threshold": threshold.astype(float), "precision": precision[:-1], "recall": recall[:-1]}
    )
    return Report(numbers, {"curve": curve, "top_ngrams": _top_ngrams(scorer, pairs)})


def train_educational_model(rated: pd.DataFrame, model_path: Path | str, p: ClassifierParams) -> Report:
    """Train on Low, Mid, High (label, text), write model and scorer; agreement and quadratic kappa on held-out documents.

    Tables: examples (label, text, maybe rating) and confusion (given label in rows).
    """
    from sklearn.metrics import cohen_kappa_score

    examples = rated.groupby("label").head(_EXAMPLES).sort_values("label", kind="stable", ignore_index=True)
    examples["text"] = examples["text"].str.split().str.join(" ").str[:_SHOWN]
    pairs = dict(zip(normalise(rated["text"].tolist()).to_pylist(), rated["label"], strict=True))
    given, probabilities, _ = _fit(pairs, LABELS, model_path, p, "See educational_sample, max_cost_usd, teacher.")
    predicted = np.array(LABELS)[probabilities.argmax(axis=1)]
    agreement, majority = (
        float((given == predicted).mean()),
        float(pd.Series(given).value_counts(normalize=True).max()),
    )
    kappa = float(np.nan_to_num(cohen_kappa_score(given, predicted, labels=list(LABELS), weights="quadratic")))
    numbers = {
        "educational_labels": rated["label"].value_counts().to_dict(),
        "educational_headline": f"Agreement with held-out labels: {agreement:.2f} (the commonest label alone: "
        f"{majority:.2f}), kappa {kappa:.2f}.",
        "educational_agreement": agreement,
        "educational_majority": majority,
        "educational_kappa": kappa,
    }
    confusion = pd.crosstab(pd.Series(given, name="given"), pd.Series(predicted, name="predicted"))
    return Report(
        numbers,
        {"examples": examples, "confusion": confusion.reindex(index=LABELS, columns=LABELS, fill_value=0)},
    )


def normalise_line(text: str) -> str:
    """What the kit's fastText models see of a text."""
    return normalise([text])[0].as_py()


def ngrams_of(line: str) -> list[str]:
    """The words and word n-grams of a normalised line, in order."""
    words = line.split(" ")
    return [
        " ".join(span)
        for n in range(WORD_NGRAMS)
        for span in zip(*(words[k:] for k in range(n + 1)), strict=False)
    ]


def _top_ngrams(scorer: NgramScorer, pairs: dict[str, str]) -> pd.DataFrame:
    """The n-grams of letters that push hardest to each side, of those in several documents."""
    lines = pd.Series(pairs).groupby(pairs).head(_NGRAM_DOCUMENTS).index
    held = Counter(
        ngram for line in lines for ngram in dict.fromkeys(ngrams_of(line)) if ngram.replace(" ", "").isalpha()
    )
    floor = min(5, max(held.values(), default=0))
    frame = pd.DataFrame([pair for pair in held.items() if pair[1] >= floor], columns=["ngram", "documents"])
    weights = scorer.ngram_weights(frame["ngram"].tolist())
    sides = [
        frame.assign(side=side, weight=weights[:, scorer.column(side)].astype(float))
        for side in (IN_DOMAIN, GENERAL)
    ]
    tops = [side[side["weight"] > 0].nlargest(_TOP_NGRAMS, "weight") for side in sides]
    return pd.concat(tops, ignore_index=True)[["side", "ngram", "weight", "documents"]]


def _fit(
    pairs: dict[str, str], labels: Sequence[str], path: Path | str, p: ClassifierParams, advice: str
) -> tuple[np.ndarray, np.ndarray, NgramScorer]:
    """(given label [n] and probabilities [n, labels] of a stratified part held out; the scorer of all, kept at `path`).

    `pairs`: normalised line -> label. The part judges a model trained without it; the one saved learns from all, because
    seeds are scarce. TraitError where a label has too few lines.
    """
    from sklearn.model_selection import train_test_split

    pairs.pop("", None)
    counts, given = Counter(pairs.values()), list(pairs.values())
    if few := [f"{label} has {counts[label]}" for label in labels if counts[label] < _FEWEST[label]]:
        needed = f"of each label {_FEWEST[labels[0]]} are needed, but {', '.join(few)} that are neither empty nor repeated"
        raise TraitError(f"Too few documents to train on: {needed}. {advice}")
    seen, unseen = train_test_split(list(pairs), test_size=0.2, stratify=given, random_state=p.seed)
    with tempfile.TemporaryDirectory() as folder:
        judge = _train({line: pairs[line] for line in seen}, Path(folder) / "trial.bin", p)
    probabilities = judge.probabilities(unseen)[:, [judge.column(label) for label in labels]]
    return np.array([pairs[line] for line in unseen]), probabilities, _train(pairs, path, p)


def _train(pairs: dict[str, str], path: Path | str, p: ClassifierParams) -> NgramScorer:
    """Write the .bin and its scorer."""
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
                thread=1,  # else the result varies
                verbose=0,
            )
        except RuntimeError as error:
            raise TraitError(
                f"fastText cannot train on these documents ({error}). Try a lower learning_rate."
            ) from None
        model.save_model(str(temporary))
        scorer = NgramScorer.from_fasttext(temporary, normalisation=NORMALISATION)
        scorer.save(Path(path).with_suffix(".safetensors"))
        return scorer
