"""02: where a token budget cuts a method's ranking: what it takes, how good that is, and the texts on both sides.

Another budget takes more or less of the same ranking of candidates: nothing is scored or cleaned anew.
"""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from trait_kit.engine.files import read_json
from trait_kit.explore.show import Explorer, page
from trait_kit.selection.choosing import Selected
from trait_kit.selection.scoring import shard_path

_SIDE, _STEPS = 3, 40  # texts on each side of the cut; places of the slider


def explore(selected: Selected) -> Explorer:
    """A slider over token budgets, for each method."""
    ranked = {method: ranking(selected, method) for method in reversed(selected.methods)}
    first, positives = next(iter(ranked)), sum((selected.truth or {}).values())
    own = read_json(selected.folder / "candidates" / first / "job.json")["limits"]["tokens"]
    most = max(own, *(int(frame["up_to"].iloc[-1]) for frame in ranked.values()))
    budgets = sorted({own, *np.linspace(most / _STEPS, most, _STEPS).round(-2).astype(int).tolist()})

    def view(method: str, token_budget: int) -> str:
        taken = cut(ranked[method], token_budget, positives)
        rows = around(selected, method, ranked[method], token_budget).to_dict("records")
        return page("cut", method=method, budget=token_budget, own=own, taken=taken, rows=rows)

    twin = view(first, own // 4) + view(first, own)
    return Explorer(view, {"method": list(ranked), "token_budget": budgets}, twin, {"token_budget": own})


def ranking(selected: Selected, method: str) -> pd.DataFrame:
    """The clean candidates of a method, best first; `up_to`: their tokens so far."""
    ranked = pd.read_parquet(selected.folder / "candidates" / method / "ranking.parquet")
    tokens = ranked["n_tokens"].astype("int64")
    return ranked.assign(up_to=tokens.cumsum(), on_topic=ranked["id"].map(selected.truth or {}))


def cut(ranked: pd.DataFrame, token_budget: int, positives: int = 0) -> dict[str, Any]:
    """What the budget takes: documents, tokens, the last one's score, and against labels precision and recall."""
    taken = ranked[ranked["up_to"] <= token_budget]
    found = {"documents": len(taken), "tokens": int(taken["n_tokens"].sum()), "left": len(ranked) - len(taken)}
    if len(taken):
        found["threshold"] = taken["score"].iloc[-1]
    if len(taken) and positives:
        found |= {
            "precision": taken["on_topic"].sum() / len(taken),
            "recall": taken["on_topic"].sum() / positives,
        }
    return found


def around(selected: Selected, method: str, ranked: pd.DataFrame, token_budget: int) -> pd.DataFrame:
    """The last documents that the budget takes and the first that it leaves, with texts."""
    taken, folder = ranked["up_to"] <= token_budget, selected.folder / "candidates" / method
    numbered = ranked.assign(rank=np.arange(1, len(ranked) + 1), taken=taken)
    near = numbered.iloc[max(0, taken.sum() - _SIDE) : taken.sum() + _SIDE]
    paths = [shard_path(folder, "candidates", number) for number in near["shard"].unique()]
    texts = pq.read_table(paths, columns=["id", "text"], filters=[("id", "in", near["id"].tolist())]).to_pydict()
    return near.assign(text=near["id"].map(dict(zip(texts["id"], texts["text"], strict=True))))
