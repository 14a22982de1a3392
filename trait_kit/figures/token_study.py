"""How many tokens are enough? Gain and forgetting of one arm against what its training cost, a run a budget.

A curve that flattens says little by itself: what counts is whether the next larger budget wins items that the smaller one
did not. So every budget is compared with the base model and with the budget before it, item by item.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from trait_kit import runs
from trait_kit.engine.files import TraitError
from trait_kit.evaluation import across_runs, comparison
from trait_kit.evaluation.comparison import LOWER_IS_BETTER
from trait_kit.figures.cells import metric_name
from trait_kit.figures.style import DASHED, INK, QUIET, KitFigure, colour, label, marker, new_figure, note, styled, tokens_text
from trait_kit.figures.tables import BITS, GENERAL

BASE = "base"
COLUMNS = (
    *("arm", "stage_tokens", "tokens", "seeds", "passes_over_passages", "training_seconds", "device_hours", "device"),
    *("metric", "score", "base_score", "gain", "gain_low", "gain_high", "step_gain", "step_low", "step_high"),
    *("forgetting", "forgetting_low", "forgetting_high", "confidence"),
)
_TRAINING, _EVALUATION = "04_train_two_stages", "05_evaluate"
_VARIED = {"run_dir", "seed", "stage_tokens"}


def study(run_dirs: Sequence[Path | str], arm: str | None = None, metric: str | None = None) -> pd.DataFrame:
    """COLUMNS, one row a budget in order of tokens; runs of one budget with different seeds are joined.

    `arm`: by default the first run's reference arm; `metric`: comparison.main_metric. tokens: of all the arm's stages.
    training_seconds: of optimizer steps, without held-out scores, summed over the stages, also those that arms or runs
    share; device_hours: the same times processes, in hours; both are means over seeds. passes_over_passages: NaN for an
    arm without passages. gain: over the base model in units of the metric, positive when better; step_gain: over the
    budget before (NaN for the first); forgetting: bits per byte of general text above the base model's, positive when
    worse, NaN where it was not evaluated. Intervals pair items, at `confidence`. TraitError where runs differ in more
    than budget and seed, or one budget was run twice with one seed.
    """
    read = [_read(Path(folder)) for folder in run_dirs]
    if not read:
        raise TraitError("A token-budget study needs at least one finished run.")
    arm = arm or read[0]["params"][_EVALUATION].get("reference_arm", "trait")
    _refuse_other_differences(read)
    budgets: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for run in read:
        budgets.setdefault(tuple(run["params"][_TRAINING]["stage_tokens"]), []).append(run)
    rows: list[dict[str, Any]] = []
    before: list[str] = []
    for budget in sorted(budgets, key=lambda budget: (sum(budget), budget)):
        folders = [run["folder"] for run in budgets[budget]]
        names = [f"{folder}:{arm}" for folder in folders]
        together = across_runs.gather([*(f"{folder}:{BASE}" for folder in folders), *names])
        outcomes, confidence = together.outcomes, together.confidence
        metric = metric or comparison.main_metric(outcomes)
        gain = comparison.compare(outcomes, arm, metric, confidence).iloc[0]
        cost = pd.DataFrame([_cost(run, arm) for run in budgets[budget]])
        row = {
            "arm": arm,
            "stage_tokens": " + ".join(map(str, budget)),
            "seeds": int(gain["seeds"]),
            "device": ", ".join(dict.fromkeys(cost.pop("device"))),
            "metric": metric,
            "score": gain["reference_mean"],
            "base_score": gain["arm_mean"],
            "confidence": confidence,
        }
        row |= cost.mean().to_dict() | _better(gain, "gain", "gain")
        if before:
            pair = across_runs.gather([*before, *names]).outcomes
            later = list(dict.fromkeys(pair["arm"]))[1]
            row |= _better(comparison.compare(pair, later, metric, confidence).iloc[0], "step", "step_gain")
        if (outcomes["task"] == GENERAL).any():
            forgot = comparison.compare(outcomes, arm, BITS, confidence, GENERAL).iloc[0]
            row |= {f"forgetting{end}": forgot[key] for end, key in (("", "difference"), ("_low", "low"), ("_high", "high"))}
        rows.append(row)
        before = names
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"tokens": int})


@styled
def plot(study: pd.DataFrame) -> KitFigure:
    """Gain against tokens and against device hours, and forgetting against tokens, each with its interval; log axes."""
    if missing := [column for column in COLUMNS if column not in study.columns]:
        raise TraitError(f"The table of the token-budget study lacks the column(s) {', '.join(missing)}.")
    if study.empty:
        raise TraitError("The table of the token-budget study has no rows.")
    study = study.sort_values("tokens", kind="stable")
    lower = study["metric"].iloc[0] in LOWER_IS_BETTER
    scale, unit = (1, "bits per byte") if lower else (100, "points")
    hours = "GPU hours" if set(study["device"]) == {"cuda"} else "device hours"
    forgot = study[study["forgetting"].notna()]
    figure, _ = new_figure(verdict(study), _subtitle(study), width=9.6, height=6.2, rows=0)
    grid = figure.add_gridspec(2, 2, height_ratios=[1.25, 1])
    upper, lower = figure.add_subplot(grid[0, :]), figure.add_subplot(grid[1, 0] if len(forgot) else grid[1, :])
    every = "tokens trained on, all stages"
    panels = [(upper, study, "tokens", "gain", scale, "By tokens", every)]
    panels += [(lower, study, "device_hours", "gain", scale, f"By {hours}", f"{hours} of training")]
    if len(forgot):
        axes = figure.add_subplot(grid[1, 1])
        panels += [(axes, forgot, "tokens", "forgetting", 1, "General text (forgetting)", every)]
    for axes, rows, cost, value, by, heading, below in panels:
        _curve(axes, rows, cost, value, by)
        axes.set_title(heading, loc="left", weight="bold")
        axes.set(xlabel=below, ylabel=f"gain ({unit})" if value == "gain" else "rise (bits per byte)")
    for row in study[study["passes_over_passages"].notna()].itertuples():
        at = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}
        note(upper, f"{row.passes_over_passages:.2g}x", (row.tokens, 0.02), size=11, color=QUIET, **at)
    return figure


def verdict(study: pd.DataFrame) -> str:
    """What the table says, in a sentence: from which budget on a larger one gains no more than chance would, if any."""
    study = study.sort_values("tokens", kind="stable").reset_index(drop=True)
    name, metric = label(study["arm"][0]), metric_name(study["metric"][0])
    tokens, last = [tokens_text(value) for value in study["tokens"]], len(study) - 1
    if not (study["gain_low"] > 0).any():
        return f"{name}: no budget up to {tokens[last]} tokens gains more over the base model than its interval"
    if last == 0:
        return f"{name} gains at {tokens[0]} tokens; a single budget does not say how many are enough"
    rises = [place for place in range(1, last + 1) if study["step_low"][place] > 0]
    enough = rises[-1] if rises else 0
    if enough == last:
        return f"{name}: {metric} still improves at {tokens[last]} tokens, so the largest budget is not yet enough"
    falls = [place for place in range(enough + 1, last + 1) if study["step_high"][place] < 0]
    if falls:
        return f"{name}: {metric} gets worse from {tokens[falls[0] - 1]} to {tokens[falls[0]]} tokens"
    return f"{name}: from {tokens[enough]} tokens on, the next larger budget gains less than its interval"


def _read(folder: Path) -> dict[str, Any]:
    """The folder, and of the steps up to the evaluation their parameters; of training also its summary."""
    records = {name: runs.recorded(folder, name) for name in runs.STEPS if name <= _EVALUATION}
    for name in (_TRAINING, _EVALUATION):
        if records[name] is None:
            raise TraitError(f"The run {folder} has not finished {name}. Run it again; it goes on where it stopped.")
    params = {name: record["params"] for name, record in records.items() if record}
    return {"folder": folder, "params": params, "training": records[_TRAINING]["summary"]}


def _refuse_other_differences(read: list[dict[str, Any]]) -> None:
    """Budget and seed alone may vary, and each pair of them once: else the curve would not show what the budget does."""
    first, seen = read[0], {}
    for run in read:
        for step in first["params"].keys() & run["params"].keys():
            one, other = first["params"][step], run["params"][step]
            if unlike := sorted(key for key in (one.keys() & other.keys()) - _VARIED if one[key] != other[key]):
                raise TraitError(
                    f"{first['folder']} and {run['folder']} differ in {unlike[0]} of {step}, so the study would not show "
                    "what the budget does. Give it runs that differ in stage_tokens and seed alone."
                )
        training = run["params"][_TRAINING]
        point = (*training["stage_tokens"], training["seed"])
        if point in seen:
            raise TraitError(f"{seen[point]} and {run['folder']} have the same budget and seed. Leave one of them out.")
        seen[point] = run["folder"]


def _cost(run: dict[str, Any], arm: str) -> dict[str, Any]:
    """Of all stages of the arm's chain, whichever run or arm trained them.

    Seconds are a stage's steps at its speed: one that was killed and resumed recorded its time since then alone.
    """
    stages = [row for row in run["training"]["stages"] if row["arm"] == arm]
    if not stages:
        arms = ", ".join(dict.fromkeys(row["arm"] for row in run["training"]["stages"]))
        raise TraitError(f"{run['folder']} did not train the arm '{arm}'; it trained {arms}.")
    seconds = [row["tokens"] / row["tokens_per_second"] if row.get("tokens_per_second") else row["seconds"] for row in stages]
    hours = sum(time * (row.get("processes") or 1) for time, row in zip(seconds, stages, strict=True)) / 3600
    passes = [row["epochs"] for row in run["training"]["accounting"] if (row["arm"], row["source"]) == (arm, "passages")]
    return {
        "tokens": sum(row["tokens"] for row in stages),
        "passes_over_passages": sum(passes) if passes else math.nan,
        "training_seconds": sum(seconds),
        "device_hours": hours,
        "device": ", ".join(dict.fromkeys(str(row["device"]).partition(":")[0] for row in stages)),
    }


def _better(row: pd.Series, ends: str, name: str) -> dict[str, float]:
    """The difference of a comparison as a gain of its reference: positive when better, whatever the metric's direction."""
    sign = -1 if row["metric"] in LOWER_IS_BETTER else 1
    low, high = sorted((sign * row["low"], sign * row["high"]))
    return {name: sign * row["difference"], f"{ends}_low": low, f"{ends}_high": high}


def _curve(axes: Axes, study: pd.DataFrame, cost: str, value: str, scale: float) -> None:
    arm, x = study["arm"].iloc[0], study[cost].to_numpy(dtype=float)
    y, low, high = (scale * study[f"{value}{end}"].to_numpy(dtype=float) for end in ("", "_low", "_high"))
    axes.axhline(0, **DASHED)
    axes.errorbar(x, y, (y - low, high - y), color=colour(arm), marker=marker(arm), markersize=7, capsize=4, elinewidth=1.5)
    at = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
    note(axes, "base model", (1, 0), (-2, 3), color=QUIET, size=11, **at)
    axes.set_xscale("log")
    axes.margins(x=0.08, y=0.14)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    columns = axes.get_subplotspec().colspan
    axes.set_xticks(_far_apart(x, 0.08 if len(columns) == 2 else 0.2))
    axes.xaxis.set_major_formatter(FuncFormatter(tokens_text if cost == "tokens" else lambda place, _: f"{place:.2g}"))
    axes.tick_params(axis="x", colors=INK)


def _far_apart(places: np.ndarray, gap: float) -> list[float]:
    """Those of the places, the largest first, that lie at least `gap` of a log axis from each other."""
    chosen: list[float] = []
    least = gap * math.log(places.max() / places.min())
    for place in sorted(set(places), reverse=True):
        if not chosen or math.log(chosen[-1] / place) >= least:
            chosen.append(place)
    return chosen


def _subtitle(study: pd.DataFrame) -> str:
    low, high = study["seeds"].min(), study["seeds"].max()
    over = "one training seed" if high == 1 else f"{low}-{high} seeds" if low < high else f"{low} seeds"
    gain = f"Gain in {metric_name(study['metric'].iloc[0])} over the base model on the same items"
    text = f"{gain}, with {100 * study['confidence'].iloc[0]:.3g}% intervals; {over}"
    passes = study["passes_over_passages"].notna().any()
    return text + ("; below the points: passes over the passages" if passes else "")
