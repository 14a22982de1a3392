"""Selection methods side by side: what each chose, why, how well, and what lies around its cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from trait_kit.engine.files import TraitError
from trait_kit.selection.choosing import Filtered, Selected
from trait_kit.selection.scoring import Scoring


def funnel(selected: Selected) -> pd.DataFrame:
    """One row a method: n_in -> n_out by reason, tokens, and the score of the last document taken."""
    rows = []
    for method, choice in selected.choices.items():
        report = choice.report
        read = {"n_in": report["n_in"] + selected.unreadable, "unreadable": selected.unreadable, **report["dropped"]}
        rows.append({"method": method, **read, **{name: report[name] for name in ("n_out", "tokens", "threshold")}})
    table = pd.DataFrame(rows)
    last = ["beyond the budget", "n_out", "tokens", "threshold"]
    table = table[[name for name in table.columns if name not in last] + last]
    counts = [name for name in table.columns if name not in ("method", "threshold")]
    table[counts] = table[counts].fillna(0).astype(int)
    return table


def quality(filtered: Filtered) -> pd.DataFrame:
    """Precision, recall, base rate and lift of each method against hidden labels; empty where a corpus has none."""
    rows = []
    for method, choice in filtered.selected.choices.items() if filtered.labels else ():
        ids = filtered.selected.table["id"].take(pa.array(choice.indices)).to_pylist()
        rows.append({"method": method, **selection_quality(ids, filtered.labels, filtered.truth)})
    return pd.DataFrame(rows, columns=["method", "n_selected", "precision", "recall", "base_rate", "lift"])


def selection_quality(ids: Iterable[str], labels: Mapping[str, str], truth_label: str) -> dict[str, Any]:
    """Precision, recall, base_rate and lift (precision / base rate) against the hidden labels of the whole corpus.

    recall and lift are null where the corpus holds no document with the label.
    """
    ids = list(ids)
    unknown = [name for name in ids if name not in labels]
    if unknown:
        raise TraitError(
            f"{len(unknown)} selected documents have no label, for instance {unknown[0]!r}. Use the labels of this corpus."
        )
    positives = sum(label == truth_label for label in labels.values())
    found = sum(labels[name] == truth_label for name in ids)
    precision = found / len(ids) if ids else 0.0
    base_rate = positives / len(labels) if labels else 0.0
    return {
        "n_selected": len(ids),
        "n_positive": positives,
        "n_found": found,
        "precision": precision,
        "recall": found / positives if positives else None,
        "base_rate": base_rate,
        "lift": precision / base_rate if base_rate else None,
    }


def overlap(selected: Selected) -> pd.DataFrame:
    """Share of the row method's documents that the column method also chose."""
    chosen = {method: set(choice.indices.tolist()) for method, choice in selected.choices.items()}
    shares = {a: {b: len(chosen[a] & chosen[b]) / len(chosen[a]) for b in chosen} for a in chosen}
    return pd.DataFrame(shares).T


def only_by(selected: Selected, n: int = 2, characters: int = 160) -> pd.DataFrame:
    """The best ranked documents that one method alone chose: method, documents (how many), id, domain, text."""
    chosen = {method: set(choice.indices.tolist()) for method, choice in selected.choices.items()}
    rows, places = [], []
    for method, choice in selected.choices.items():
        others = set().union(*(members for name, members in chosen.items() if name != method))
        alone = [row for row in choice.indices.tolist() if row not in others]
        rows += [(method, len(alone))] * len(alone[:n])
        places += alone[:n]
    frame = pd.DataFrame(rows, columns=["method", "documents"])
    return pd.concat([frame, _documents(selected, places, characters)[["id", "domain", "text"]]], axis=1)


def around_cut(selected: Selected, method: str, n: int = 4, characters: int = 200) -> pd.DataFrame:
    """The last `n` documents taken and the first `n` left: rank, taken, id, domain, educational, dsir, n_tokens, text."""
    choice = selected.choices[method]
    cut = len(choice.indices)
    ranks = np.arange(max(0, cut - n), min(len(choice.ranking), cut + n))
    frame = _documents(selected, choice.ranking[ranks].tolist(), characters)
    frame.insert(0, "rank", ranks + 1)
    frame.insert(1, "taken", ranks < cut)
    return frame


def _documents(selected: Selected, rows: list[int], characters: int) -> pd.DataFrame:
    """Scores and the first characters of candidates, in the order of these rows of the candidates' table."""
    names = ["id", "domain", "educational", "dsir", "n_tokens"]
    frame = selected.table.select(names).take(pa.array(rows, pa.int64())).to_pandas()
    wanted, texts, start = np.sort(np.unique(rows)).astype(np.int64), {}, 0
    for documents in selected.texts(["text"]):
        inside = wanted[(wanted >= start) & (wanted < start + documents.num_rows)]
        found = documents["text"].take(pa.array(inside - start)).to_pylist()
        texts.update(zip(inside.tolist(), found, strict=True))
        start += documents.num_rows
    frame["text"] = [" ".join(texts[row].split())[:characters] for row in rows]
    return frame


def sample_scores(scoring: Scoring, n: int = 200_000, seed: int = 0) -> pa.Table:
    """The scores of about `n` documents (of all, if there are fewer), for figures; one row a document."""
    share = min(1.0, n / max(scoring.documents, 1))
    parts = []
    for shard in scoring.shards:
        scores = pq.read_table(scoring.scores(shard.number)).replace_schema_metadata(None)
        if share < 1:
            scores = scores.filter(pa.array(np.random.default_rng([seed, shard.number]).random(scores.num_rows) < share))
        parts.append(scores)
    return pa.concat_tables(parts).combine_chunks()


def thresholds(scores: pa.Table, documents: int, hidden: np.ndarray | None = None, steps: int = 9) -> pd.DataFrame:
    """What a threshold on the domain score would keep: threshold, documents, tokens and, where truth is known, precision.

    `scores`: a sample of a corpus of so many documents; `hidden`: bool [n], which of the sample are in-domain.
    """
    domain, lengths = scores["domain"].to_numpy(), scores["n_tokens"].to_numpy().astype(np.int64)
    scale = documents / max(len(domain), 1)
    rows = []
    for threshold in [*np.linspace(0.1, 0.9, steps).round(3).tolist(), 0.95, 0.99]:
        kept = domain >= threshold
        row = {"threshold": threshold, "documents": round(kept.sum() * scale), "tokens": round(lengths[kept].sum() * scale)}
        if hidden is not None:
            row["precision"] = hidden[kept].mean() if kept.any() else None
            row["recall"] = hidden[kept].sum() / max(hidden.sum(), 1)
        rows.append(row)
    return pd.DataFrame(rows)


def summary(filtered: Filtered) -> dict[str, Any]:
    """For the step's record."""
    found, selected = quality(filtered), filtered.selected
    lifts = ", ".join(f"{row.method} {row.lift:.1f}" for row in found.itertuples())
    return {
        "headline": f"Times better than chance at finding what was hidden: {lifts or 'not known, there are no labels'}.",
        "good": all(choice.report["enough"] for choice in selected.choices.values()),
        "documents": selected.documents,
        "quarantined": selected.unreadable,
        "contaminated": int(selected.contaminated["id"].nunique()),
        "tokens_counted": "all" if filtered.scored.exact_tokens else "candidates",
        "truth_label": filtered.truth,
        "quality": found.to_dict("records"),
        "funnel": funnel(selected).to_dict("records"),
    }


def hidden(filtered: Filtered, scores: pa.Table) -> np.ndarray | None:
    """bool [n]: which of these scored documents are on topic; None where a corpus has no hidden labels."""
    if not filtered.labels:
        return None
    return np.array([filtered.labels[name] == filtered.truth for name in scores["id"].to_pylist()])
