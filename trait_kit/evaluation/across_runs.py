"""Outcomes of several finished runs as one table, so that arms of different runs are compared item by item.

Runs whose parameters differ in the seed alone are one experiment, and their outcomes are seeds of the same arms; otherwise
an arm is named `run:arm`. Only items that every arm was asked in a seed pair, and what does not pair is named, never
dropped in silence. Runs that put their questions differently (another number of worked examples, say) are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from trait_kit import runs, tables
from trait_kit.engine.files import TraitError, digest

_STEP = "05_evaluate"
_ITEM = ["metric", "seed", "task", "item_id"]
# Parameters of 05 that choose what is asked, or how it is reported; any other one changes how items are asked.
_NO_MATTER = {
    *("run_dir", "seed", "in_domain", "web", "tasks", "test_items_per_task", "base_model", "general_documents"),
    *("in_domain_documents", "generate_items", "batch_size", "confidence", "reference_arm", "likelihood", "general_tasks"),
    *("general_items", "backend", "judge_items", "max_cost_usd", "prices"),
}
_NO_MATTER_PREFIXES = ("endpoint_", "teacher_")
_REPORTING = {"run_dir", "seed", "confidence", "reference_arm", "batch_size", "workers"}  # of any step


@dataclass
class _Run:
    name: str
    folder: Path
    params: dict[str, Any]  # of its evaluation
    signature: str  # of all its parameters but the seed
    versions: dict[str, int]  # of its task files, where they were recorded
    outcomes: pd.DataFrame
    arms: set[str] = field(default_factory=set)  # asked for; empty: all


@dataclass(frozen=True)
class Together:
    """Outcomes of all runs that pair, the arm that the first run compares with, its confidence, and what to know."""

    outcomes: pd.DataFrame
    reference: str | None
    confidence: float
    notes: list[str]

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
    outcomes = _same_items(outcomes, notes)
    first = found[0].params.get("reference_arm", "trait")
    named = next((arm for arm in arms if arm in (first, f"{next(iter(experiments))}:{first}")), None)
    return Together(outcomes, named, float(found[0].params.get("confidence", 0.95)), notes)


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
    params = record.get("params") or {}
    steps = [runs.recorded(path, step) for step in runs.STEPS if step <= _STEP]
    shaped = [{k: v for k, v in ((step or {}).get("params") or {}).items() if k not in _REPORTING} for step in steps]
    return _Run(
        name.rstrip("/"), path, params, digest(shaped), (record.get("summary") or {}).get("task_versions") or {}, outcomes
    )


def _refuse_other_questions(found: list[_Run]) -> None:
    first = found[0]
    for other in found[1:]:
        names = {name for run in (first, other) for name in run.params} - _NO_MATTER
        names = {name for name in names if not name.startswith(_NO_MATTER_PREFIXES)}
        unlike = {f"evaluation.{name}": (first.params.get(name), other.params.get(name)) for name in sorted(names)}
        shared = first.versions.keys() & other.versions.keys()
        unlike |= {f"the version of {task}": (first.versions[task], other.versions[task]) for task in sorted(shared)}
        for name, (one, another) in unlike.items():
            if one != another:
                raise TraitError(
                    f"{first.name} and {other.name} asked their items in different ways, so their outcomes do not pair: "
                    f"{name} is {one!r} and {another!r}. Evaluate one as the other (--set section.field=value --from 05)."
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
            notes.append(
                f"{named} differ in their seed alone ({', '.join(map(str, seeds))}): they are seeds of the same arms."
            )
        experiments[members[0].name] = pd.concat([run.outcomes for run in members], ignore_index=True)
    if len(experiments) == 1:
        return experiments
    return {name: part.assign(arm=[f"{name}:{arm}" for arm in part["arm"]]) for name, part in experiments.items()}


def _in_step(experiments: dict[str, pd.DataFrame], notes: list[str]) -> pd.DataFrame:
    """One table of several experiments, over the seeds that all of them have."""
    seeds = {name: sorted(set(part["seed"])) for name, part in experiments.items()}
    common = set.intersection(*map(set, seeds.values()))
    if not common:
        count = min(map(len, seeds.values()))
        pairs = "; ".join(f"{name}: {', '.join(map(str, of_run[:count]))}" for name, of_run in seeds.items())
        notes.append(f"The runs have no seed in common; their seeds are paired in order ({pairs}).")
        place = {name: {seed: number for number, seed in enumerate(of_run[:count])} for name, of_run in seeds.items()}
        experiments = {name: part.assign(seed=part["seed"].map(place[name])) for name, part in experiments.items()}
        return pd.concat([part.dropna(subset="seed").astype({"seed": int}) for part in experiments.values()])
    for name, of_run in seeds.items():
        if left := [seed for seed in of_run if seed not in common]:
            notes.append(f"{name}: seed(s) {', '.join(map(str, left))} have no partner and are left out.")
    return pd.concat([part[part["seed"].isin(common)] for part in experiments.values()], ignore_index=True)


def _same_items(outcomes: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The outcomes of items that every arm has in a seed, with one gold answer; notes name the others by metric and task."""
    before = outcomes.groupby(["metric", "task"], sort=False)["item_id"].nunique()
    arms = outcomes["arm"].nunique()
    items = outcomes.fillna({"gold": ""}).groupby(_ITEM, sort=False)
    reasons: list[tuple[str, Callable[[pd.DataFrame], pd.Series]]] = [
        ("not every arm was asked them", lambda frame: frame["arm"] == arms),
        ("their gold answers differ", lambda frame: frame["gold"] == 1),
    ]
    counts = items.agg({"arm": "nunique", "gold": "nunique"})
    for reason, fine in reasons:
        lost = counts[~fine(counts)].reset_index().groupby(["metric", "task"], sort=False)["item_id"].nunique()
        for (metric, task), count in lost.items():
            notes.append(f"{task}, {metric}: {count:,} of {before[metric, task]:,} items do not pair: {reason}.")
        counts = counts[fine(counts)]
    if counts.empty:
        asked = [f"{arm}: {', '.join(dict.fromkeys(part['task']))}" for arm, part in outcomes.groupby("arm", sort=False)]
        raise TraitError(f"No item was asked of every arm, so nothing pairs. The tasks of {'; of '.join(asked)}.")
    outcomes = outcomes[outcomes.set_index(_ITEM).index.isin(counts.index)]
    whole = outcomes.groupby("metric")["seed"].transform("nunique")
    partial = outcomes.groupby(["metric", "task"])["seed"].transform("nunique") < whole
    for metric, task in dict.fromkeys(outcomes.loc[partial, ["metric", "task"]].itertuples(index=False, name=None)):
        notes.append(f"{task}, {metric}: left out, as not every seed has items of it that pair.")
    return outcomes[~partial].reset_index(drop=True)
