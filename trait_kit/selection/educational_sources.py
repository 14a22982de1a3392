"""Educational value from one of three sources, as one model file that notebook 02 loads.

`weak`: the rule of `educational` labels a sample of the web, and a fastText model learns the labels. `llm`: a language model
rates the sample 0-5 (`ratings`), and a fastText model learns Low / Mid / High. `model`: a ready fastText model from a file
or the hub. Whatever the source, `educational.npz` is written with the normalisation that belongs to the model: the kit's
own for the first two, that of `educational_normalisation` for a ready one ("none": it sees texts as fastText itself would).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from trait_kit import tables
from trait_kit.engine import local_server
from trait_kit.engine.endpoint import Endpoint
from trait_kit.engine.files import TraitError
from trait_kit.engine.money import Estimate
from trait_kit.engine.scorer import LABEL_PREFIX, NgramScorer
from trait_kit.models import token_counter
from trait_kit.params import ClassifierParams
from trait_kit.selection import ratings
from trait_kit.selection.classifier import EducationalReport, train_educational_model
from trait_kit.selection.documents import sample
from trait_kit.selection.educational import educational_weak_labels, label_points, points, rating_label

_MAX_FAILED = 0.2  # of the ratings asked for; beyond this the endpoint or the model is not fit for the job
_EXAMPLES, _SHOWN = 3, 240  # examples a label; characters of each text


@dataclass
class EducationalModel:
    """What one source gave. `report` is None for a ready model: there is nothing here to hold its scores against."""

    headline: str
    distribution: pd.DataFrame  # label, documents, share: of the labels given, or of those that a ready model predicts
    examples: pd.DataFrame  # label, rating | score, reason, text; texts and reasons are data: escape them where shown
    report: EducationalReport | None
    summary: dict[str, Any]  # for the step's record


def educational_sample(params: ClassifierParams) -> list[str]:
    """The web texts that get labels, seeded; `educational_ratings` cuts them short for an LLM."""
    size = params.educational_sample
    if params.educational_source == "llm" and params.educational_ratings:
        size = min(size, params.educational_ratings)
    return sample(params.web, size, params.seed + 1)["text"].to_pylist()


def estimate(params: ClassifierParams, texts: Sequence[str]) -> Estimate:
    """What `educational_model` would cost; only an LLM costs anything."""
    if params.educational_source != "llm":
        return Estimate(0, 0, 0, 0.0, 0.0)
    return ratings.estimate_bill(texts, Endpoint.of(params), token_counter(params.base_model))


def educational_model(
    params: ClassifierParams, texts: list[str], folder: Path | str, progress: Callable[[int, int], None] | None = None
) -> EducationalModel:
    """Make `educational.npz` in `folder` from the source that the parameters name, judged on `texts`, a sample of the web.

    Beside it: `educational.bin` where a model was trained; `ratings.parquet` and the paid answers where an LLM was asked.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("educational.npz", "educational.bin", "ratings.parquet"):  # of another source
        if (folder / name).absolute() != Path(params.educational_model).absolute():
            (folder / name).unlink(missing_ok=True)
    if params.educational_source == "model":
        return _ready(params, texts, folder)
    return _weak(params, texts, folder) if params.educational_source == "weak" else _rated(params, texts, folder, progress)


def model_file(name: str) -> Path:
    """The local file of `educational_model`; one on the hub (hf:owner/name/file.bin) is fetched, or found in its cache."""
    if not name.startswith("hf:"):
        return Path(name)
    owner, _, rest = name.removeprefix("hf:").partition("/")
    repository, _, file = rest.partition("/")
    if not (owner and repository and file):
        raise TraitError(f"educational_model is '{name}'; write a model on the hub as hf:owner/name/file.bin.")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file))
    except Exception as error:  # the hub client raises dozens of kinds: not found, gated, offline, a name misspelt
        first = str(error).strip().partition("\n")[0][:200]
        raise TraitError(
            f"{name} could not be fetched ({type(error).__name__}: {first}). Check the name and that the hub can be reached "
            "(HF_TOKEN must be set where the model asks for it). Without a network: run "
            f"`hf download {owner}/{repository} {file}` on a machine that has one, bring the file here, and give its path "
            "as educational_model."
        ) from None


def _weak(params: ClassifierParams, texts: list[str], folder: Path) -> EducationalModel:
    labels = educational_weak_labels(texts)
    report = train_educational_model(texts, labels, folder / "educational.bin", **params.training_options())
    frame = pd.DataFrame(
        {"label": labels, "reason": [f"{points(text)} points by the rule" for text in texts], "text": texts}
    )
    return _trained("weak labels by the rule", report, frame, {"educational_source": "weak"})


def _rated(
    params: ClassifierParams, texts: list[str], folder: Path, progress: Callable[[int, int], None] | None
) -> EducationalModel:
    with local_server.serving(params, folder) as served:
        table, bill = ratings.rate(texts, Endpoint.of(served), folder / "teacher_answers.jsonl", progress or _say)
    tables.write(folder / "ratings.parquet", table, "ratings")
    _refuse_failures(table, folder / "ratings.parquet")
    frame = table.select(["rating", "reason"]).append_column("text", pa.array(texts)).filter(pc.is_valid(table["rating"]))
    frame = frame.to_pandas()
    frame.insert(0, "label", [rating_label(rating) for rating in frame["rating"]])
    try:
        report = train_educational_model(
            frame["text"].tolist(), frame["label"].tolist(), folder / "educational.bin", **params.training_options()
        )
    except TraitError as error:
        if not bill["stopped_by_cap"]:
            raise
        stopped = f"max_cost_usd ({params.max_cost_usd:g}) was reached after {len(frame)} of {len(texts)} ratings; raise it"
        raise TraitError(f"{stopped}, and only the rest is asked and paid for. {error}") from None
    return _trained(f"ratings by {params.teacher_model}", report, frame, {"educational_source": "llm", "bill": bill})


def _ready(params: ClassifierParams, texts: list[str], folder: Path) -> EducationalModel:
    path = model_file(params.educational_model)
    scorer = NgramScorer.from_fasttext(path, normalisation=params.educational_normalisation)
    try:
        values = label_points(scorer.labels)
    except TraitError as error:
        raise TraitError(f"educational_model {params.educational_model}: {error}") from None
    scorer.save(folder / "educational.npz")
    probabilities = scorer.probabilities(texts)
    names = [label.removeprefix(LABEL_PREFIX) for label in scorer.labels]
    predicted = [names[k] for k in probabilities.argmax(axis=1)]
    frame = pd.DataFrame({"label": predicted, "score": np.minimum(probabilities @ values, 2), "text": texts})
    kept = float((frame["score"] >= 1).mean())
    order = [names[k] for k in np.argsort(values, kind="stable")]
    return EducationalModel(
        headline=f"{params.educational_model} gives {kept:.0%} of {len(texts):,} web documents a score of 1 or more, of 2.",
        distribution=_distribution(Counter(frame["label"]), order),
        examples=_examples(frame, order),
        report=None,
        summary={
            "educational_source": "model",
            "educational_model": params.educational_model,
            "educational_mean_score": float(frame["score"].mean()),
            "educational_agreement": None,
        },
    )


def _trained(labelled_by: str, report: EducationalReport, frame: pd.DataFrame, summary: dict[str, Any]) -> EducationalModel:
    return EducationalModel(
        headline=(
            f"Agreement with held-out {labelled_by}: {report.agreement:.2f} (the commonest label alone: "
            f"{report.majority:.2f}), rank correlation {report.rank_correlation:.2f}, weighted kappa {report.kappa:.2f}."
        ),
        distribution=_distribution(report.distribution, list(report.distribution)),
        examples=_examples(frame, list(report.distribution)),
        report=report,
        summary={
            **summary,
            "educational_agreement": report.agreement,
            "educational_majority": report.majority,
            "educational_rank_correlation": report.rank_correlation,
            "educational_kappa": report.kappa,
            "educational_labels": report.distribution,
        },
    )


def _say(done: int, count: int) -> None:
    """Ten lines, however many documents."""
    if done * 10 // count > (done - 1) * 10 // count:
        print(f"rated {done:,} of {count:,}")


def _refuse_failures(table: pa.Table, path: Path) -> None:
    """Stop where too many ratings could not be had; what is empty, or left out by the cap, was not asked for."""
    errors = Counter(error for error in table["error"].to_pylist() if error and not error.startswith(("cost cap", "empty")))
    failed = errors.total()
    asked = failed + len(table) - table["rating"].null_count
    if failed > _MAX_FAILED * asked:
        reason, count = errors.most_common(1)[0]
        raise TraitError(
            f"{failed} of {asked} ratings failed, more than {_MAX_FAILED:.0%}; {count} with: {reason}. {path} has the "
            "reason of each in its column error. See to the endpoint or choose another teacher_model, and run again: what "
            "has an answer is not asked again."
        )


def _distribution(counts: dict[str, int], order: list[str]) -> pd.DataFrame:
    total = max(1, sum(counts.values()))
    rows = [(label, counts.get(label, 0), counts.get(label, 0) / total) for label in order]
    return pd.DataFrame(rows, columns=["label", "documents", "share"])


def _examples(frame: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    """The first few documents of each label, their texts cut to one line."""
    shown = pd.concat([frame[frame["label"] == label].head(_EXAMPLES) for label in order], ignore_index=True)
    return shown.assign(text=[" ".join(text.split())[:_SHOWN] for text in shown["text"]])
