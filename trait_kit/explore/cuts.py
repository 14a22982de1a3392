"""02: where a token budget cuts a method's ranking: what it takes, how good that is, and the texts on both sides.

Up to the end of its candidates a smaller or larger budget takes the beginning of the same ranking: nothing is scored or
cleaned anew, and at the run's own budget the page shows the run's own selection.
"""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from trait_kit.engine.shards import read_job
from trait_kit.explore.explorer import Explorer
from trait_kit.explore.show import page
from trait_kit.selection.budget import Limits, rank, rank_values
from trait_kit.selection.choosing import Filtered
from trait_kit.selection.scoring import read_shards, shard_path

_SIDE, _STEPS = 3, 40  # texts shown on each side of the cut; places of the slider
_COLUMNS = ["id", "shard", "n_tokens", "domain", "educational", "dsir", "contaminated"]


def explore(filtered: Filtered) -> Explorer:
    """A slider over token budgets, for each method."""
    methods = filtered.selected.methods
    ranked = {method: ranking(filtered, method) for method in methods}
    positives = sum(filtered.truth.values()) if filtered.truth else 0
    own = read_job(_candidates(filtered, next(iter(methods))) / "job.json")["limits"]["tokens"]
    most = max(own, *(int(frame["up_to"].iloc[-1]) for frame in ranked.values()))
    budgets = sorted({own, *np.linspace(most / _STEPS, most, _STEPS).round(-2).astype(int).tolist()})

    def view(method: str, token_budget: int) -> str:
        frame = ranked[method]
        taken, beside = cut(frame, token_budget, positives), around(frame, token_budget)
        path = _candidates(filtered, method)
        rows = beside.assign(text=beside["id"].map(_texts(path, beside))).to_dict("records")
        return page("cut", method=method, budget=token_budget, own=own, taken=taken, rows=rows)

    names = list(ranked)[::-1]
    twin = view(names[0], own // 4) + view(names[0], own)
    return Explorer(view, {"method": names, "token_budget": budgets}, twin, {"token_budget": own})


def ranking(filtered: Filtered, method: str) -> pd.DataFrame:
    """The clean candidates of a method, best first; `up_to`: the tokens of all down to this one."""
    folder = _candidates(filtered, method)
    job, found = read_job(folder / "job.json"), read_shards(folder, "candidates", len(filtered.scored.shards), _COLUMNS)
    repeats = pd.read_parquet(filtered.selected.folder / "near_duplicates.parquet").query("method == @method")
    ids = found["id"].to_pandas()
    unusable = {"not clean": found["contaminated"].to_numpy() | (ids.isin(repeats["id"]) | ids.duplicated()).to_numpy()}
    found = found.take(pa.array(rank(found, method, Limits(**job["limits"]), job["seed"], unusable)[0]))
    frame = found.to_pandas().assign(up_to=np.cumsum(found["n_tokens"].to_numpy().astype(np.int64)))
    values = None if method == "random" else rank_values(found, method, job["seed"])
    return frame.assign(score=values, on_topic=frame["id"].map(filtered.truth) if filtered.truth else None)


def cut(ranked: pd.DataFrame, token_budget: int, positives: int = 0) -> dict[str, Any]:
    """What the budget takes: documents, tokens, the score of the last, and against labels precision and recall."""
    taken = ranked[ranked["up_to"] <= token_budget]
    found = {"documents": len(taken), "tokens": int(taken["n_tokens"].sum())}
    if len(taken):
        found["threshold"] = taken["score"].iloc[-1]
        if positives:
            on_topic = int(taken["on_topic"].sum())
            found |= {"precision": on_topic / len(taken), "recall": on_topic / positives}
    return found | {"candidates_left": len(ranked) - len(taken)}


def around(ranked: pd.DataFrame, token_budget: int) -> pd.DataFrame:
    """The last documents that the budget takes and the first that it leaves."""
    numbered = ranked.assign(rank=np.arange(1, len(ranked) + 1), taken=ranked["up_to"] <= token_budget)
    at = int(numbered["taken"].sum())
    return numbered.iloc[max(0, at - _SIDE) : at + _SIDE]


def _candidates(filtered: Filtered, method: str) -> Any:
    return filtered.selected.folder / "candidates" / method


def _texts(folder: Any, rows: pd.DataFrame) -> dict[str, str]:
    paths = [shard_path(folder, "candidates", number) for number in rows["shard"].unique()]
    found = pq.read_table(paths, columns=["id", "text"], filters=[("id", "in", rows["id"].tolist())])
    return dict(zip(*found.to_pydict().values(), strict=True))
