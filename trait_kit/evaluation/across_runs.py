"""Outcomes of several finished runs as one table, so that their arms are compared item by item.

Runs whose parameters differ in the seed alone are seeds of the same arms; otherwise an arm is named `run:arm`. Only items
that every arm was asked in a seed pair; others are counted.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from trait_kit import runs, tables
from trait_kit.engine.files import TraitError, digest

_STEP = "05_evaluate"
_ITEM = ["metric", "seed", "task", "item_id"]


@dataclass(frozen=True)
class Together:
    outcomes: pd.DataFrame
    reference: str | None  # the arm that the first run compares with
    main_metric: str  # the first run's
    notes: list[str]


def gather(names: Sequence[str]) -> Together:
    """Read the runs, each `FOLDER` or `FOLDER:arm`, and join what pairs; runs that ask differently are refused."""
    wanted: dict[Path, set[str]] = {}
    for name in names:
        folder, arm = (name, "") if Path(name).is_dir() or ":" not in name else name.rsplit(":", 1)
        wanted.setdefault(Path(folder).resolve(), set()).add(arm)
    experiments: dict[tuple[str, int], str] = {}  # what shaped it, how often its seed came before
    times: Counter[tuple[str, int]] = Counter()  # a seed comes again after a change of the code
    parts, notes, first = [], [], {}
    for path, arms in wanted.items():
        summary, shaped, outcomes = _read(path, arms)
        first = first or summary
        for what, value in summary.get("how_asked", {}).items():
            if (before := first.get("how_asked", {}).get(what, value)) != value:
                raise TraitError(
                    f"{path} was asked in another way than the first run: {what} is {before!r} and {value!r}. "
                    "Evaluate one as the other (--set, --from 05)."
                )
        seed = outcomes["seed"].iloc[0]
        own = path.name if path.name not in experiments.values() else str(path)
        name = experiments.setdefault((shaped, times[shaped, seed]), own)
        times[shaped, seed] += 1
        parts.append((name, outcomes))
        if name != own:
            notes.append(f"{name} and {own} differ in their seed alone: they are seeds of the same arms.")
    prefix = {name: f"{name}:" if len(experiments) > 1 else "" for name in experiments.values()}
    outcomes = pd.concat([part.assign(arm=prefix[name] + part["arm"]) for name, part in parts], ignore_index=True)
    arms = list(dict.fromkeys(outcomes["arm"]))
    if len(arms) < 2:
        raise TraitError(f"Only one arm to compare, {', '.join(arms)}. Name another one, or a whole run.")
    reference = f"{prefix[parts[0][0]]}{first.get('reference_arm')}"
    reference = reference if reference in arms else None

    return Together(_same_items(outcomes, notes), reference, first.get("main_metric", ""), notes)


def _read(path: Path, arms: set[str]) -> tuple[dict[str, Any], str, pd.DataFrame]:
    """A run's summary of 05, the digest of what shapes it but the seed, and the outcomes of the named arms."""
    summary = runs.finished(path, _STEP)["summary"]
    outcomes = tables.read(path / _STEP / "outcomes.parquet", "outcomes").to_pandas()
    known = list(dict.fromkeys(outcomes["arm"]))
    if missing := arms - {"", *known}:
        raise TraitError(f"{path} has no arm '{min(missing)}'; its arms are: {', '.join(known)}.")
    records = [record for step in runs.STEPS if step <= _STEP and (record := runs.recorded(path, step))]
    shapes = [record["shaped_by"] for record in records]
    shaped = digest([[{**shape["params"], "seed": None}, shape["inputs"]] for shape in shapes])
    return summary, shaped, outcomes if "" in arms else outcomes[outcomes["arm"].isin(arms)]


def _same_items(outcomes: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The outcomes of items that every arm has in a seed, with one gold answer; `notes` count the others."""
    items = outcomes.fillna({"gold": ""}).groupby(_ITEM, sort=False).agg({"arm": "nunique", "gold": "nunique"})
    pairs = (items["arm"] == outcomes["arm"].nunique()) & (items["gold"] == 1)
    if not pairs.any():
        asked = outcomes.groupby(["arm", "seed"], sort=False)["task"].unique()
        told = [f"{arm}: {', '.join(tasks)} with seed {seed}" for (arm, seed), tasks in asked.items()]
        raise TraitError(f"No item was asked of every arm in the same seed. {'; '.join(told)}.")
    lost = (~pairs).groupby(["metric", "task"], sort=False).agg(["sum", "size"])
    notes += [
        f"{task}, {metric}: {count:,} of {size:,} items are left out: not asked of every arm, or of other gold answers."
        for (metric, task), (count, size) in zip(lost.index, lost.to_numpy().tolist(), strict=True)
        if count
    ]
    return outcomes[outcomes.set_index(_ITEM).index.isin(pairs.index[pairs])].reset_index(drop=True)
