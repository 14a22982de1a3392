"""Outcomes of several finished runs as one table, so that arms of different runs are compared item by item.

Runs whose parameters differ in the seed alone are one experiment, and their outcomes are seeds of the same arms; otherwise
an arm is named `run:arm`. Only items that every arm was asked in a seed pair, and what does not pair is named, never
dropped in silence. Runs that put their questions differently (another number of worked examples, say) are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from trait_kit import runs, tables
from trait_kit.engine.files import TraitError, digest
from trait_kit.evaluation.comparison import CONFIDENCE

_STEP = "05_evaluate"
_ITEM = ["metric", "seed", "task", "item_id"]


@dataclass
class _Run:
    name: str
    record: dict[str, Any]  # of its evaluation
    signature: str  # of all that shapes it but the seed
    outcomes: pd.DataFrame
    arms: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Together:
    """Outcomes of all runs that pair, the arm that the first run compares with, and what to know."""

    outcomes: pd.DataFrame
    reference: str | None
    notes: list[str]
    confidence: float = CONFIDENCE

    def arm(self, name: str) -> str:
        """The arm that `name` means: in full, or without its run where that is enough."""
        arms = list(dict.fromkeys(self.outcomes["arm"]))
        found = [arm for arm in arms if arm == name] or [arm for arm in arms if arm.endswith(f":{name}")]
        if len(found) != 1:
            what = "means several arms" if found else "is not an arm"
            raise TraitError(f"--reference {name} {what} of what is compared; the arms are: {', '.join(arms)}.")
        return found[0]


def gather(names: Sequence[str]) -> Together:
    """Read the runs, each `FOLDER` or `FOLDER:arm`, and join what pairs."""
    found = _read(names)
    _refuse_other_questions(found)
    notes: list[str] = []
    experiments = _experiments(found, notes)
    outcomes = _in_step(experiments, notes) if len(experiments) > 1 else next(iter(experiments.values()))
    arms = list(dict.fromkeys(outcomes["arm"]))
    if len(arms) < 2:
        raise TraitError(f"Only one arm to compare, {arms[0]}. Name another one, or a whole run.")
    first = found[0].record["summary"].get("reference_arm")
    named = next((arm for arm in arms if arm in (first, f"{next(iter(experiments))}:{first}")), None)
    return Together(_same_items(outcomes, notes), named, notes)


def _read(names: Sequence[str]) -> list[_Run]:
    found: dict[Path, _Run] = {}
    for name in names:
        folder, arm = (name, "") if Path(name).is_dir() or ":" not in name else name.rsplit(":", 1)
        path = Path(folder).resolve()
        if path not in found:
            found[path] = _open(folder, path)
        known = list(dict.fromkeys(found[path].outcomes["arm"]))
        if arm and arm not in known:
            raise TraitError(f"{folder} has no arm '{arm}'; its arms are: {', '.join(known)}.")
        found[path].arms |= {arm} if arm else set(known)
    short = [path.name for path in found]
    for path, run in found.items():
        run.name = path.name if short.count(path.name) == 1 else run.name
        run.outcomes = run.outcomes[run.outcomes["arm"].isin(run.arms)]
    return list(found.values())


def _open(name: str, path: Path) -> _Run:
    if not path.is_dir():
        raise TraitError(f"{name} is not a run folder. Name one that `trait-kit run` wrote, or FOLDER:arm.")
    record = runs.recorded(path, _STEP)
    if record is None:
        raise TraitError(f"The run {name} has not finished {_STEP}. Run its experiment again; it goes on where it stopped.")
    outcomes = tables.read(path / _STEP / "outcomes.parquet", "outcomes").to_pandas()
    if outcomes.empty:
        raise TraitError(f"The run {name} has no outcomes. Run its experiment again from 05.")
    steps = [runs.recorded(path, step) for step in runs.STEPS if step <= _STEP]
    shaped = [_shape(step) for step in steps if step]
    return _Run(name.rstrip("/"), record, digest(shaped), outcomes)


def _shape(record: dict[str, Any]) -> dict[str, Any]:
    """The parameters that shaped a step, as its record says (runs.py, params.shape), but for the seed."""
    return {name: value for name, value in record["shaped_by"]["params"].items() if name != "seed"}


def _refuse_other_questions(found: list[_Run]) -> None:
    """By what each record says of how it asked (outcomes.evaluate_arms)."""
    first = found[0]
    for other in found[1:]:
        one, another = (run.record["summary"].get("how_asked", {}) for run in (first, other))
        for name in one.keys() & another.keys():
            if one[name] != another[name]:
                raise TraitError(
                    f"{first.name} and {other.name} asked their items in different ways, so their outcomes do not pair: "
                    f"{name} is {one[name]!r} and {another[name]!r}. Evaluate one as the other (--set, --from 05)."
                )


def _experiments(found: list[_Run], notes: list[str]) -> dict[str, pd.DataFrame]:
    """Outcomes by experiment, arms named with it where there are several."""
    groups: dict[str, list[_Run]] = {}
    for run in found:
        groups.setdefault(run.signature, []).append(run)
    experiments: dict[str, pd.DataFrame] = {}
    for members in groups.values():
        seeds = [seed for run in members for seed in sorted(set(run.outcomes["seed"]))]
        if len(set(seeds)) < len(seeds):  # the same experiment twice, say before and after a change of the code
            experiments |= {run.name: run.outcomes for run in members}
            continue
        if len(members) > 1:
            named = ", ".join(run.name for run in members)
            listed = ", ".join(map(str, seeds))
            notes.append(f"{named} differ in their seed alone ({listed}): they are seeds of the same arms.")
        experiments[members[0].name] = pd.concat([run.outcomes for run in members], ignore_index=True)
    if len(experiments) == 1:
        return experiments
    return {name: part.assign(arm=[f"{name}:{arm}" for arm in part["arm"]]) for name, part in experiments.items()}


def _in_step(experiments: dict[str, pd.DataFrame], notes: list[str]) -> pd.DataFrame:
    """One table of several experiments, over the seeds that all of them have."""
    seeds = {name: set(part["seed"]) for name, part in experiments.items()}
    common = set.intersection(*seeds.values())
    if not common:
        have = "; ".join(f"{name}: {', '.join(map(str, sorted(of_run)))}" for name, of_run in seeds.items())
        raise TraitError(f"The runs have no seed in common ({have}), so nothing pairs. Run one with a seed of the other.")
    for name, of_run in seeds.items():
        if left := sorted(of_run - common):
            notes.append(f"{name}: seed(s) {', '.join(map(str, left))} have no partner and are left out.")
    return pd.concat([part[part["seed"].isin(common)] for part in experiments.values()], ignore_index=True)


def _same_items(outcomes: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The outcomes of items that every arm has in a seed, with one gold answer; notes name the others by metric and task."""
    before = outcomes.groupby(["metric", "task"], sort=False)["item_id"].nunique()
    counts = outcomes.fillna({"gold": ""}).groupby(_ITEM, sort=False).agg({"arm": "nunique", "gold": "nunique"})
    reasons = (("not every arm was asked them", "arm", outcomes["arm"].nunique()), ("their gold answers differ", "gold", 1))
    for reason, column, wanted in reasons:
        fine = counts[column] == wanted
        lost = counts[~fine].reset_index().groupby(["metric", "task"], sort=False)["item_id"].nunique()
        for (metric, task), count in lost.items():
            notes.append(f"{task}, {metric}: {count:,} of {before[metric, task]:,} items do not pair: {reason}.")
        counts = counts[fine]
    if counts.empty:
        asked = [f"{arm}: {', '.join(dict.fromkeys(part['task']))}" for arm, part in outcomes.groupby("arm", sort=False)]
        raise TraitError(f"No item was asked of every arm, so nothing pairs. The tasks of {'; of '.join(asked)}.")
    outcomes = outcomes[outcomes.set_index(_ITEM).index.isin(counts.index)]
    whole = outcomes.groupby("metric")["seed"].transform("nunique")
    partial = outcomes.groupby(["metric", "task"])["seed"].transform("nunique") < whole
    for metric, task in dict.fromkeys(outcomes.loc[partial, ["metric", "task"]].itertuples(index=False, name=None)):
        notes.append(f"{task}, {metric}: left out, as not every seed has items of it that pair.")
    return outcomes[~partial].reset_index(drop=True)
