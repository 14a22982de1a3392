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
        report, lost = choice.report, selected.unreadable
        last = {name: report[name] for name in ("n_out", "tokens", "threshold")}
        rows.append({"method": method, "n_in": report["n_in"] + lost, "unreadable": lost, **report["dropped"], **last})
    table = pd.DataFrame(rows)
    last = ["beyond the budget", "n_out", "tokens", "threshold"]
    table = table[[name for name in table.columns if name not in last] + last]
    counts = table.columns.drop(["method", "threshold"])
    return table.astype({"threshold": float}).fillna(dict.fromkeys(counts, 0)).astype(dict.fromkeys(counts, int))


def quality(filtered: Filtered) -> pd.DataFrame:
    """Precision, recall, base rate and lift of each method against hidden labels; empty where a corpus has none."""
    rows = []
    for method in filtered.selected.choices if filtered.labels else ():
        ids = filtered.selected.chosen(method)["id"].to_pylist()
        rows.append({"method": method, **selection_quality(ids, filtered.labels, filtered.truth)})
    return pd.DataFrame(rows, columns=["method", "n_selected", "precision", "recall", "base_rate", "lift"])


def selection_quality(ids: Iterable[str], labels: Mapping[str, str], truth_label: str) -> dict[str, Any]:
    """Precision, recall, base_rate and lift (precision / base rate) against the hidden labels of the whole corpus.

    recall and lift are null where the corpus holds no document with the label.
    """
    ids = list(ids)
    if unknown := [name for name in ids if name not in labels]:
        raise TraitError(
            f"{len(unknown)} selected documents have no label, for instance {unknown[0]!r}. Use the labels of this corpus."
        )
    positives = sum(label == truth_label for label in labels.values())
    found = sum(labels[name] == truth_label for name in ids)
    precision, base_rate = found / max(len(ids), 1), positives / max(len(labels), 1)
    recall, lift = (found / positives, precision / base_rate) if positives else (None, None)
    return {"n_selected": len(ids), "precision": precision, "recall": recall, "base_rate": base_rate, "lift": lift}


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
        scores = pq.read_table(scoring.path("scores", shard.number)).replace_schema_metadata(None)
        if share < 1:
            scores = scores.filter(pa.array(np.random.default_rng([seed, shard.number]).random(scores.num_rows) < share))
        parts.append(scores)
    return pa.concat_tables(parts).combine_chunks()


def hidden(filtered: Filtered, scores: pa.Table) -> np.ndarray | None:
    """bool [n]: which of these scored documents are on topic; None where a corpus has no hidden labels."""
    if not filtered.labels:
        return None
    return np.array([filtered.labels[name] == filtered.truth for name in scores["id"].to_pylist()])


def summary(filtered: Filtered) -> dict[str, Any]:
    """For the step's record."""
    found, selected = quality(filtered), filtered.selected
    lifts = ", ".join(f"{row.method} {row.lift:.1f}" for row in found.itertuples())
    table = funnel(selected).astype(object)
    return {
        "headline": f"Times better than chance at finding what was hidden: {lifts or 'not known, there are no labels'}.",
        "good": all(choice.report["enough"] for choice in selected.choices.values()),
        "documents": selected.documents,
        "quarantined": selected.unreadable,
        "contaminated": int(selected.contaminated["id"].nunique()),
        "tokens_counted": "all" if filtered.scored.exact_tokens else "candidates",
        "truth_label": filtered.truth,
        "quality": found.to_dict("records"),
        "funnel": table.where(table.notna(), None).to_dict("records"),
    }
