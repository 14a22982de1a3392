"""Selection methods side by side: what each chose, why, how well, and what lies around its cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from trait_kit.engine.files import TraitError
from trait_kit.selection.choosing import Filtered, Selected
from trait_kit.selection.scoring import Scoring


def funnel(selected: Selected) -> pd.DataFrame:
    """One row a method: n_in -> n_out by reason, tokens, and the score of the last document taken."""
    rows = []
    for method, report in selected.methods.items():
        lost, last = selected.unreadable, {name: report[name] for name in ("n_out", "tokens", "threshold")}
        rows.append({"method": method, "n_in": report["n_in"] + lost, "unreadable": lost, **report["dropped"], **last})
    table = pd.DataFrame(rows)
    last = ["beyond the budget", "n_out", "tokens", "threshold"]
    table = table[[name for name in table.columns if name not in last] + last]
    counts = table.columns.drop(["method", "threshold"])
    return table.astype({"threshold": float}).fillna(dict.fromkeys(counts, 0)).astype(dict.fromkeys(counts, int))


def quality(filtered: Filtered) -> pd.DataFrame:
    """Precision, recall, base rate and lift of each method against the hidden truth; empty where a corpus has none."""
    rows = []
    for method in filtered.selected.methods if filtered.truth else ():
        ids = filtered.selected.chosen(method)["id"].to_pylist()
        rows.append({"method": method, **selection_quality(ids, filtered.truth)})
    return pd.DataFrame(rows, columns=["method", "n_selected", "precision", "recall", "base_rate", "lift"])


def selection_quality(ids: Iterable[str], truth: Mapping[str, bool]) -> dict[str, Any]:
    """Precision, recall, base_rate and lift (precision / base rate) against the truth (id -> on topic) of the whole corpus.

    recall and lift are null where no document of the corpus is on topic.
    """
    ids = list(ids)
    if unknown := [name for name in ids if name not in truth]:
        raise TraitError(f"The selected document {unknown[0]!r} is not of this corpus ({len(unknown)} are not).")
    positives, found = sum(truth.values()), sum(truth[name] for name in ids)
    precision, base_rate = found / max(len(ids), 1), positives / max(len(truth), 1)
    recall, lift = (found / positives, precision / base_rate) if positives else (None, None)
    return {"n_selected": len(ids), "precision": precision, "recall": recall, "base_rate": base_rate, "lift": lift}


def around_cut(selected: Selected, method: str) -> pd.DataFrame:
    """The last documents taken and the first left: rank, taken, id, domain, educational, dsir, n_tokens, text."""
    return pd.DataFrame(selected.methods[method]["around_cut"])


def sample_scores(scoring: Scoring, n: int = 200_000, seed: int = 0) -> pa.Table:
    """The scores of about `n` documents (of all, if there are fewer), for figures; one row a document."""
    share, generator = n / max(scoring.documents, 1), np.random.default_rng(seed)
    parts = [batch.filter(pa.array(generator.random(len(batch)) < share)) for batch in scoring.batches()]
    return pa.concat_tables(parts).combine_chunks()


def hidden(filtered: Filtered, scores: pa.Table) -> np.ndarray | None:
    """bool [n]: which of these scored documents are on topic; None where nobody knows."""
    return filtered.truth and np.array([filtered.truth[name] for name in scores["id"].to_pylist()])


def summary(filtered: Filtered) -> dict[str, Any]:
    """For the step's record."""
    found, selected = quality(filtered), filtered.selected
    lifts = ", ".join(f"{row.method} {row.lift:.1f}" for row in found.itertuples())
    table = funnel(selected).astype(object)
    return {
        "headline": f"Times better than chance at finding what was hidden: {lifts or 'not known, there are no labels'}.",
        "good": all(report["enough"] for report in selected.methods.values()),
        "documents": selected.documents,
        "quarantined": selected.unreadable,
        "contaminated": int(selected.contaminated["id"].nunique()),
        "quality": found.to_dict("records"),
        "funnel": table.where(table.notna(), None).to_dict("records"),
    }
