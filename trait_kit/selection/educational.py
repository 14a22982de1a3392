"""Educational value, 0 to 2 (2 P(High) + P(Mid)), as a model made from one of three sources of labels.

The paper filters by educational value with a model that it does not describe. `llm`: a language model rates a sample of the
web 0-5, and a fastText model learns Low (0, 1), Mid (2, 3) and High (4, 5). `model`: a ready fastText model. `weak`: a rule
stands in where there is neither. It looks at the form of a text: does it explain, or only state? Points:

    +1  at least 2 sentences and 40 words: something can be developed
    +1  at least 1 explanatory cue in 100 words, +2 from 3: reasons, examples, definitions, consequences, purposes
    -1  one sentence, or fewer than 25 words: a stub
    -2  list-like: more than 1 separator (comma, semicolon, bullet, bar, line break) or 1 number in 5 words
    -2  boilerplate of web pages (cookies, subscribe, all rights reserved, ...) or markup
    -2  fewer than 65% letters, or a third of the words in capitals
    -1  repetitive: fewer than 35% different words among the first 200

    Low: 0 points or fewer.  Mid: 1 or 2.  High: 3.

The rule looks at function words and shape, not at what the text is about, so that it adds to the domain classifier instead
of repeating it. English only: in another language almost nothing is High, and training says so.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import yaml

from trait_kit.engine.files import TraitError, atomic_path
from trait_kit.engine.scorer import LABEL_PREFIX, NgramScorer
from trait_kit.params import ClassifierParams
from trait_kit.selection.fitting import Report, TrainingOptions, normalise_lines, options_of, train, trial

LABELS = ("Low", "Mid", "High")
MAX_CHARACTERS = 6_000  # of a document that are sent: what it is shows by then, and the bill stays foreseeable
_LISTS = yaml.safe_load((Path(__file__).parent / "educational.yaml").read_text(encoding="utf-8"))
_PROMPT = Path(__file__).parent / "prompts" / "educational.jinja"
_MAX_FAILED = 0.2  # of the ratings asked for; beyond this the endpoint or the model is not fit for the job
_EXAMPLES, _SHOWN = 3, 240  # examples a label; characters of each text
Message = dict[str, str]
Ask = Callable[[list[list[Message]]], list[int | None]]  # conversations -> what `read_rating` read of each answer


# Labels


def label_points(labels: Sequence[str]) -> np.ndarray:
    """float32 [n_labels]: each label's points, 0..2, so that probabilities @ points is a text's educational value.

    Case and fastText's prefix do not matter. TraitError where the labels' meaning would be a guess.
    """
    names = [label.removeprefix(LABEL_PREFIX).lower().replace("-", "_") for label in labels]
    for scale in _LISTS["scales"]:
        if sorted(names) == sorted(scale):
            return np.array([scale[name] for name in names], np.float32)
    shown = ", ".join(repr(label) for label in labels[:12]) + (", ..." if len(labels) > 12 else "")
    raise TraitError(
        f"What the {len(labels)} labels {shown} say of educational value is not plain. Use a model with the labels "
        f"{'; or '.join(', '.join(scale) for scale in _LISTS['scales'][:5])} (in any case)."
    )


_CUES = re.compile(rf"\b(?:{'|'.join(_LISTS['cues'])})\b", re.IGNORECASE)
_BOILERPLATE = re.compile("|".join(_LISTS["boilerplate"]), re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_NUMBER = re.compile(r"\b\d[\d.,:]*")
_SEPARATOR = re.compile(r"[,;|•·\n\t]")
_SENTENCE_END = re.compile(r"[.!?](?=\s+[\"'“(]?[A-Z0-9]|\s*$)")


def points(text: str) -> int:
    """The rule's points for one text; see the module's table."""
    words = _WORD.findall(text)
    if not words:
        return -3
    count = len(words)
    sentences = len(_SENTENCE_END.findall(text.strip())) or 1
    cues = 100 * len(_CUES.findall(text)) / max(count, 25)
    visible = sum(not character.isspace() for character in text)
    first = [word.lower() for word in words[:200]]
    total = 0
    total += sentences >= 2 and count >= 40
    total += (cues >= 1) + (cues >= 3)
    total -= sentences == 1 or count < 25
    total -= 2 * (len(_SEPARATOR.findall(text.strip())) > count / 5 or len(_NUMBER.findall(text)) > count / 5)
    total -= 2 * bool(_BOILERPLATE.search(text))
    shouted = sum(word.isupper() and len(word) > 1 for word in words)
    total -= 2 * (sum(map(len, words)) < 0.65 * visible or shouted > count / 3)
    total -= len(first) >= 50 and len(set(first)) < 0.35 * len(first)
    return total


def educational_weak_labels(texts: Iterable[str]) -> list[str]:
    """Low, Mid or High for each text."""
    return ["High" if score >= 3 else "Mid" if score >= 1 else "Low" for score in map(points, texts)]


# Ratings by a language model


def rate(texts: Sequence[str], ask: Ask) -> list[int | None]:
    """Educational value 0..5 of each text; None where no rating could be had. Equal texts are asked for once."""
    excerpts = [_excerpt(text) for text in texts]
    asked = [excerpt for excerpt in dict.fromkeys(excerpts) if excerpt]
    ratings = dict(zip(asked, ask([conversation(excerpt) for excerpt in asked]), strict=True))
    return [ratings.get(excerpt) for excerpt in excerpts]


def read_rating(answer: str) -> int:
    """The last 'Rating: N' of an answer; ValueError says what is wrong with it, in words that the model can be told."""
    found = re.findall(r"\brating\b\W{0,6}(\d+(?:\.\d+)?)", answer, re.IGNORECASE)
    if not found or found[-1] not in ("0", "1", "2", "3", "4", "5"):
        raise ValueError("it must end with a line of its own, Rating: and a whole number from 0 to 5")
    return int(found[-1])


def conversation(excerpt: str) -> list[Message]:
    """The criteria as a system line, and the document as one line of JSON: data, in which no marker can occur."""
    system = jinja2.Template(_PROMPT.read_text(encoding="utf-8"), trim_blocks=True).render(
        cut=len(excerpt) == MAX_CHARACTERS, limit=f"{MAX_CHARACTERS:,}"
    )
    text = json.dumps({"text": excerpt}, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e")
    return [{"role": "system", "content": system}, {"role": "user", "content": f"<<<DOCUMENT\n{text}\nDOCUMENT>>>"}]


def _excerpt(text: str) -> str:
    """The beginning of a document without control characters and lone surrogates."""
    text = text[: 2 * MAX_CHARACTERS].encode("utf-8", "replace").decode()
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]+", " ", text).strip()[:MAX_CHARACTERS]


@contextlib.contextmanager
def _teacher(params: ClassifierParams, folder: Path, count: int) -> Iterator[tuple[Ask, Callable[[], dict[str, Any]]]]:
    """(ask, the bill so far) of the language model that the parameters name: the one place that knows its client."""
    from trait_kit.engine import ledger, llm

    with llm.served(params, folder) as endpoint:
        paid = endpoint.ledger(folder / "teacher_answers.sqlite")
        most = endpoint.estimate(count, count * (MAX_CHARACTERS // 4 + 400), count * 100)
        print(f"At most {ledger.agree(most, params.max_cost_usd)}", flush=True)

        def ask(conversations: list[list[Message]]) -> list[int | None]:
            requests = [llm.Request(messages, read_rating) for messages in conversations]
            return [reply.value for reply in llm.ask(requests, endpoint, paid, attempts=2)]

        yield ask, paid.bill


# Models


def educational_model(params: ClassifierParams, texts: list[str], folder: Path | str) -> Report:
    """Make `educational.safetensors` in `folder` from the source that the parameters name, judged on a sample of the web.

    Beside it: `educational.bin` where a model was trained; `ratings.parquet` and the paid answers where an LLM was asked.
    Tables: examples (label, points | rating | score, text; texts are data: escape them where shown) and, where there are
    labels, confusion (those of held-out documents, in rows, against the model's).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("educational.safetensors", "educational.bin", "ratings.parquet"):  # of another source
        if (folder / name).absolute() != Path(params.educational_model).absolute():
            (folder / name).unlink(missing_ok=True)
    return {"weak": _weak, "llm": _rated, "model": _ready}[params.educational_source](params, texts, folder)


def _weak(params: ClassifierParams, texts: list[str], folder: Path) -> Report:
    frame = pd.DataFrame({"label": educational_weak_labels(texts), "points": list(map(points, texts)), "text": texts})
    return _trained(params, frame, folder, "weak labels by the rule")


def _rated(params: ClassifierParams, texts: list[str], folder: Path) -> Report:
    with _teacher(params, folder, len(texts)) as (ask, bill):
        ratings = rate(texts, ask)
        paid = bill()
    frame = pd.DataFrame({"rating": pd.array(ratings, "Int64"), "text": texts})
    with atomic_path(folder / "ratings.parquet") as temporary:
        frame.to_parquet(temporary)
    failed, stopped = int(frame["rating"].isna().sum()), paid["stopped_by_cap"]
    if failed > _MAX_FAILED * len(texts) and not stopped:
        raise TraitError(
            f"{failed} of {len(texts)} documents got no rating, more than {_MAX_FAILED:.0%}. See to the endpoint or choose "
            "another teacher_model, and run again: what has an answer is not asked again."
        )
    frame = frame.dropna().astype({"rating": int})
    frame.insert(0, "label", [LABELS[rating // 2] for rating in frame["rating"]])
    try:
        report = _trained(params, frame, folder, f"ratings by {params.teacher_model}")
    except TraitError as error:
        if not stopped:
            raise
        cap = f"max_cost_usd ({params.max_cost_usd:g}) was reached after {len(frame)} of {len(texts)} ratings; raise it"
        raise TraitError(f"{cap}, and only the rest is asked and paid for. {error}") from None
    report.numbers |= {"bill": paid, "educational_unrated": failed}
    return report


def _ready(params: ClassifierParams, texts: list[str], folder: Path) -> Report:
    path = model_file(params.educational_model)
    scorer = NgramScorer.load(path) if path.suffix == ".safetensors" else NgramScorer.from_fasttext(path)
    try:
        values = label_points(scorer.labels)
    except TraitError as error:
        raise TraitError(f"educational_model {params.educational_model}: {error}") from None
    scorer.save(folder / "educational.safetensors")
    probabilities = scorer.probabilities(texts)
    labels = [scorer.labels[k].removeprefix(LABEL_PREFIX) for k in probabilities.argmax(axis=1)]
    frame = pd.DataFrame({"label": labels, "score": np.minimum(probabilities @ values, 2), "text": texts})
    kept = float((frame["score"] >= 1).mean())
    headline = f"{params.educational_model} gives {kept:.0%} of {len(texts):,} web documents a score of 1 or more, of 2."
    return _report(params, frame, {"headline": headline, "mean_score": float(frame["score"].mean()), "agreement": None})


def _trained(params: ClassifierParams, frame: pd.DataFrame, folder: Path, labelled_by: str) -> Report:
    texts, labels = frame["text"].tolist(), frame["label"].tolist()
    found = train_educational_model(texts, labels, folder / "educational.bin", **options_of(params))
    n = found.numbers
    headline = (
        f"Agreement with held-out {labelled_by}: {n['agreement']:.2f} (the commonest label alone: {n['majority']:.2f}), "
        f"rank correlation {n['rank_correlation']:.2f}, kappa {n['kappa']:.2f}."
    )
    return _report(params, frame, {"headline": headline, **n}, **found.tables)


def _report(params: ClassifierParams, frame: pd.DataFrame, numbers: dict[str, Any], **tables: pd.DataFrame) -> Report:
    """With how many documents have which label, and the first few of each, their texts cut to one line."""
    shown = frame.groupby("label").head(_EXAMPLES).sort_values("label", kind="stable")
    examples = shown.assign(text=[" ".join(text.split())[:_SHOWN] for text in shown["text"]]).reset_index(drop=True)
    numbers = {"source": params.educational_source, "labels": frame["label"].value_counts().to_dict(), **numbers}
    return Report({f"educational_{name}": value for name, value in numbers.items()}, {"examples": examples, **tables})


def train_educational_model(texts: list[str], labels: list[str], model_path: Path | str, **options: Any) -> Report:
    """Train Low / Mid / High on given labels, write model and scorer; `options` are the fields of TrainingOptions.

    Of held-out documents: agreement, majority (what always answering the commonest label would score), rank_correlation
    (Spearman's, expected value against label), kappa (Cohen's, quadratic weights: Low for High costs four times Low for
    Mid; 0 where all agree on one label, because nothing beyond chance can be told). Table: confusion.
    """
    from sklearn.metrics import cohen_kappa_score

    settings = TrainingOptions(**options)
    if unknown := sorted(set(labels) - set(LABELS)):
        raise TraitError(f"Unknown educational label(s) {', '.join(map(repr, unknown))}; use {', '.join(LABELS)}.")
    pairs = dict(zip(normalise_lines(texts), labels, strict=True))
    pairs.pop("", None)
    counts = Counter(pairs.values())
    for label in LABELS:
        if counts[label] < 2 or len(pairs) < settings.min_documents:
            found = ", ".join(f"{name} {counts[name]}" for name in LABELS)
            raise TraitError(
                f"The educational model needs {settings.min_documents} different documents and each label, but {label} has "
                f"{counts[label]} of {len(pairs)} ({found}). Raise educational_sample, choose another educational_source "
                "(the rule of 'weak' knows only English), or leave fasttext+educational out of methods."
            )
    unseen, given, judge = trial(list(pairs), list(pairs.values()), settings)
    probabilities = judge.probabilities(unseen)[:, [judge.column(label) for label in LABELS]]
    train(list(pairs), list(pairs.values()), model_path, settings)
    frame = pd.DataFrame({"given": given, "predicted": [LABELS[k] for k in probabilities.argmax(axis=1)]})
    value, truth = pd.Series(probabilities @ np.arange(3.0)), frame["given"].map(LABELS.index)
    numbers = {
        "agreement": float((frame["given"] == frame["predicted"]).mean()),
        "majority": float(frame["given"].value_counts(normalize=True).max()),
        "rank_correlation": float(np.nan_to_num(value.corr(truth, method="spearman"))),
        "kappa": 0.0,
    }
    if frame.stack().nunique() > 1:
        numbers["kappa"] = float(cohen_kappa_score(*frame.to_numpy().T, labels=list(LABELS), weights="quadratic"))
    confusion = pd.crosstab(frame["given"], frame["predicted"]).reindex(index=LABELS, columns=LABELS, fill_value=0)
    return Report(numbers, {"confusion": confusion})


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
            f"{name} could not be fetched ({type(error).__name__}: {first}). Check the name, HF_TOKEN and the network. "
            f"Without one: run `hf download {owner}/{repository} {file}` where there is, bring the file here, and give its "
            "path as educational_model."
        ) from None
