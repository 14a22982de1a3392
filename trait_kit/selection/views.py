"""Selection methods side by side: what each chose, why, and how well."""

from typing import Any

import numpy as np
import pandas as pd

from trait_kit.selection.choosing import Filtered, Selected


def funnel(selected: Selected) -> pd.DataFrame:
    """One row a method: n_in -> n_out by reason, tokens, and the score of the last document taken."""
    lost, held, rows = selected.unreadable, selected.held_out, []
    for method, report in selected.methods.items():
        last = {name: report[name] for name in ("n_out", "tokens", "threshold")}
        read = {"n_in": report["n_in"] + lost + held, "held out": held, "unreadable": lost}
        rows.append({"method": method, **read, **report["dropped"], **last})
    return pd.DataFrame(rows).astype({"threshold": float})


def quality(filtered: Filtered) -> pd.DataFrame:
    """Precision, recall, base rate and lift (precision / base rate) of each method against the hidden truth.

    Empty where a corpus has none; recall and lift are null where none of its documents is on topic.
    """
    rows = []
    for method in filtered.selected.methods if filtered.truth else ():
        ids, positives = filtered.selected.chosen(method)["id"].to_pylist(), sum(filtered.truth.values())
        found = sum(filtered.truth[name] for name in ids)
        precision, base_rate = found / len(ids), positives / len(filtered.truth)
        recall, lift = (found / positives, precision / base_rate) if positives else (None, None)
        rows.append((method, len(ids), precision, recall, base_rate, lift))
    return pd.DataFrame(rows, columns=["method", "n_selected", "precision", "recall", "base_rate", "lift"])


def sample_scores(filtered: Filtered, n: int = 200_000, seed: int = 0) -> pd.DataFrame:
    """The scores of about `n` documents (of all, if there are fewer), for figures; with a truth also `on_topic`."""
    share, generator = n / max(filtered.scored.documents, 1), np.random.default_rng(seed)
    parts = (batch.to_pandas() for batch in filtered.scored.batches())
    frame = pd.concat([part[generator.random(len(part)) < share] for part in parts], ignore_index=True)
    return frame.assign(on_topic=frame["id"].map(filtered.truth)) if filtered.truth else frame


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
