"""Outcomes of several finished runs as one table, so that arms of different runs are compared item by item.

Runs whose parameters differ in the seed alone are one experiment, and their outcomes are seeds of the same arms; otherwise
an arm is named `run:arm`. Only items that every arm was asked in a seed pair, and what does not pair is counted, never
dropped in silence. Runs that put their questions differently (another number of worked examples, say) are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from trait_kit import runs, tables
from trait_kit.engine.files import TraitError, digest

_STEP = "05_evaluate"
_ITEM = ["metric", "seed", "task", "item_id"]


@dataclass
class _Run:
    name: str
    summary: dict[str, Any]  # of its evaluation
    signature: str  # of all that shapes it but the seed
    outcomes: pd.DataFrame  # of the arms that were named

    @property
    def seeds(self) -> list[int]:
        return sorted(set(self.outcomes["seed"]))


@dataclass(frozen=True)
class Together:
    """Outcomes of all runs that pair, the arm that the first run compares with, and what to know."""

    outcomes: pd.DataFrame
    reference: str | None
    notes: list[str]


def gather(names: Sequence[str]) -> Together:
    """Read the runs, each `FOLDER` or `FOLDER:arm`, and join what pairs."""
    wanted: dict[Path, set[str]] = {}
    for name in names:
        folder, arm = (name, "") if Path(name).is_dir() or ":" not in name else name.rsplit(":", 1)
        wanted.setdefault(Path(folder).resolve(), set()).add(arm)
    found = [_open(path, arms) for path, arms in wanted.items()]
    _refuse_other_questions(found)
    notes: list[str] = []
    experiments = _experiments(found, notes)
    first = found[0].summary.get("reference_arm")
    if len(experiments) > 1:
        first = f"{next(iter(experiments))}:{first}"
        experiments = {name: part.assign(arm=f"{name}:" + part["arm"]) for name, part in experiments.items()}
    outcomes = pd.concat(experiments.values(), ignore_index=True)
    arms = list(dict.fromkeys(outcomes["arm"]))
    if len(arms) < 2:
        raise TraitError(f"Only one arm to compare, {', '.join(arms)}. Name another one, or a whole run.")
    return Together(_same_items(outcomes, notes), first if first in arms else None, notes)


def _open(path: Path, arms: set[str]) -> _Run:
    if not path.is_dir():
        raise TraitError(f"{path} is not a run folder. Name one that `trait-kit run` wrote, or FOLDER:arm.")
    records = [record for step in runs.STEPS if step <= _STEP and (record := runs.recorded(path, step))]
    if not records or records[-1]["step"] != _STEP:
        raise TraitError(f"The run {path} has not finished {_STEP}. Run its experiment again; it goes on where it stopped.")
    outcomes = tables.read(path / _STEP / "outcomes.parquet", "outcomes").to_pandas()
    known = list(dict.fromkeys(outcomes["arm"]))
    if missing := arms - {"", *known}:
        raise TraitError(f"{path} has no arm '{min(missing)}'; its arms are: {', '.join(known)}.")
    shaped = [{name: value for name, value in r["shaped_by"]["params"].items() if name != "seed"} for r in records]
    kept = outcomes if "" in arms else outcomes[outcomes["arm"].isin(arms)]
    return _Run(path.name, records[-1]["summary"], digest(shaped), kept)


def _refuse_other_questions(found: list[_Run]) -> None:
    """By what each record says of how it asked (outcomes.evaluate_arms)."""
    first = found[0].summary.get("how_asked", {})
    for other in found[1:]:
        for name, value in other.summary.get("how_asked", {}).items():
            if first.get(name, value) != value:
                raise TraitError(
                    f"{found[0].name} and {other.name} asked their items in different ways, so their outcomes do not pair: "
                    f"{name} is {first[name]!r} and {value!r}. Evaluate one as the other (--set, --from 05)."
                )


def _experiments(found: list[_Run], notes: list[str]) -> dict[str, pd.DataFrame]:
    """Outcomes by experiment. The same seed twice, say before and after a change of the code, is two experiments."""
    groups: list[list[_Run]] = []
    for run in found:
        seeds = set(run.seeds)
        same = (group for group in groups if group[0].signature == run.signature)
        group = next((group for group in same if not any(seeds & set(other.seeds) for other in group)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    for group in groups:
        if len(group) > 1:
            seeds = ", ".join(str(seed) for run in group for seed in run.seeds)
            named = ", ".join(run.name for run in group)
            notes.append(f"{named} differ in their seed alone ({seeds}): they are seeds of the same arms.")
    firsts = [group[0].name for group in groups]
    names = [name if firsts.count(name) == 1 else f"{name}{place}" for place, name in enumerate(firsts, 1)]
    tables_of = [pd.concat([run.outcomes for run in group], ignore_index=True) for group in groups]
    return dict(zip(names, tables_of, strict=True))


def _same_items(outcomes: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The outcomes of items that every arm has in a seed, with one gold answer; `notes` count the others."""
    items = outcomes.fillna({"gold": ""}).groupby(_ITEM, sort=False).agg({"arm": "nunique", "gold": "nunique"})
    pairs = (items["arm"] == outcomes["arm"].nunique()) & (items["gold"] == 1)
    if not pairs.any():
        asked = [
            f"{arm}: {', '.join(dict.fromkeys(part['task']))} with seed {seed}"
            for (arm, seed), part in outcomes.groupby(["arm", "seed"], sort=False)
        ]
        raise TraitError(f"No item was asked of every arm in the same seed, so nothing pairs. {'; '.join(asked)}.")
    for (metric, task), part in pairs.groupby(["metric", "task"], sort=False):
        if lost := int((~part).sum()):
            told = "do not pair and are left out: not every arm was asked them, or their gold answers differ"
            notes.append(f"{task}, {metric}: {lost:,} of {len(part):,} items (of a seed) {told}.")
    return outcomes[outcomes.set_index(_ITEM).index.isin(pairs.index[pairs])].reset_index(drop=True)
