"""How many tokens are enough? Gain and forgetting of one arm against what its training cost, a run a budget.

A curve that flattens says little by itself: what counts is whether the next larger budget wins items that the smaller one
did not. So every budget is compared with the base model and with the budget before it, item by item.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from trait_kit import runs
from trait_kit.engine.files import TraitError, atomic_path
from trait_kit.evaluation import across_runs, comparison
from trait_kit.evaluation.comparison import LOWER_IS_BETTER
from trait_kit.figures import style
from trait_kit.figures.cells import metric_name
from trait_kit.figures.style import KitFigure, label, tokens_text
from trait_kit.figures.tables import BITS, GENERAL

COLUMNS = (
    *("arm", "stage_tokens", "tokens", "seeds", "passes_over_passages", "training_seconds", "device_hours", "device"),
    *("metric", "score", "base_score", "gain", "gain_low", "gain_high", "step_gain", "step_low", "step_high"),
    *("forgetting", "forgetting_low", "forgetting_high", "confidence"),
)
_TRAINING, _EVALUATION = "04_train_two_stages", "05_evaluate"


def write_study(run_dirs: Sequence[Path | str], folder: Path) -> str:
    """Write study.csv, study.svg and study.png of finished runs into `folder`; return what they say, in a sentence."""
    table = study(run_dirs)
    with atomic_path(folder / "study.csv") as temporary:
        table.to_csv(temporary, index=False)
    figure = style.save(plot(table), folder, "study")
    return f"{verdict(table)}. Table: {folder / 'study.csv'}; figure: {figure}"


def study(run_dirs: Sequence[Path | str], arm: str | None = None, metric: str | None = None) -> pd.DataFrame:
    """COLUMNS, one row a budget in order of tokens; runs of one budget with different seeds are joined.

    `arm`: by default the first run's reference arm; `metric`: comparison.main_metric. tokens: of all the arm's stages.
    training_seconds: of optimizer steps, without held-out scores, summed over the stages, also those that arms or runs
    share; device_hours: the same times processes, in hours; both are means over seeds. passes_over_passages: NaN for an
    arm without passages. gain: over the base model in units of the metric, positive when better; step_gain: over the
    budget before (NaN for the first); forgetting: bits per byte of general text above the base model's, positive when
    worse, NaN where it was not evaluated. Intervals pair items, at `confidence`. The runs must differ in stage_tokens and
    seed alone, as those of a sweep do, or the curve shows more than what the budget does.
    """
    read = {Path(folder): _records(Path(folder)) for folder in run_dirs}
    if not read:
        raise TraitError("A token-budget study needs at least one finished run.")
    arm = arm or next(iter(read.values()))[_EVALUATION]["params"]["reference_arm"]
    budgets: dict[tuple[int, ...], list[Path]] = {}
    for folder, records in read.items():
        budgets.setdefault(tuple(records[_TRAINING]["params"]["stage_tokens"]), []).append(folder)
    rows: list[dict[str, Any]] = []
    before: list[str] = []
    for budget in sorted(budgets, key=lambda budget: (sum(budget), budget)):
        folders = budgets[budget]
        names = [f"{folder}:{arm}" for folder in folders]
        together = across_runs.gather([*(f"{folder}:base" for folder in folders), *names])
        outcomes, metric = together.outcomes, metric or comparison.main_metric(together.outcomes)
        gain = comparison.compare(outcomes, arm, metric).iloc[0]
        cost = pd.DataFrame([_cost(read[folder][_TRAINING]["summary"], arm) for folder in folders])
        row = {
            "arm": arm,
            "stage_tokens": " + ".join(map(str, budget)),
            "device": ", ".join(sorted(set(cost.pop("device")))),
        }
        row |= {"seeds": int(gain["seeds"]), "metric": metric, "confidence": comparison.CONFIDENCE, **cost.mean()}
        row |= {"score": gain["reference_mean"], "base_score": gain["arm_mean"]}
        row |= _gain(gain, "gain", "gain")
        if before:
            pair = across_runs.gather([*before, *names]).outcomes
            later = list(dict.fromkeys(pair["arm"]))[1]
            row |= _gain(comparison.compare(pair, later, metric).iloc[0], "step_gain", "step")
        if (outcomes["task"] == GENERAL).any():
            forgot = comparison.compare(outcomes, arm, BITS, GENERAL).iloc[0]
            ends = (forgot["difference"], forgot["low"], forgot["high"])
            row |= zip(("forgetting", "forgetting_low", "forgetting_high"), ends, strict=True)
        rows.append(row)
        before = names
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"tokens": int})


@style.styled
def plot(study: pd.DataFrame) -> KitFigure:
    """Gain against tokens and against device hours, and forgetting against tokens, each with its interval; log axes."""
    study = study.sort_values("tokens", kind="stable")
    metric, forgot = study["metric"].iloc[0], study[study["forgetting"].notna()]
    scale, unit = (1, "bits per byte") if metric in LOWER_IS_BETTER else (100, "points")
    hours = "GPU hours" if set(study["device"]) == {"cuda"} else "device hours"
    figure, _ = style.new_figure(verdict(study), _subtitle(study), width=9.6, height=6.2, nrows=0)
    grid = figure.add_gridspec(2, 2, height_ratios=[1.25, 1])
    upper, lower = figure.add_subplot(grid[0, :]), figure.add_subplot(grid[1, 0] if len(forgot) else grid[1, :])
    tokens, gain, rise = "tokens trained on, all stages", f"gain ({unit})", "rise (bits per byte)"
    panels = [(upper, study, "tokens", "gain", scale, "By tokens", tokens, gain)]
    panels += [(lower, study, "device_hours", "gain", scale, f"By {hours}", f"{hours} of training", gain)]
    if len(forgot):
        axes = figure.add_subplot(grid[1, 1])
        panels += [(axes, forgot, "tokens", "forgetting", 1, "General text (forgetting)", tokens, rise)]
    for axes, rows, cost, value, by, heading, below, beside in panels:
        _curve(axes, rows, cost, value, by)
        axes.set_title(heading, loc="left", weight="bold")
        axes.set(xlabel=below, ylabel=beside)
    at = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom", "size": 11, "color": style.QUIET}
    for row in study[study["passes_over_passages"].notna()].itertuples():
        style.note(upper, f"{row.passes_over_passages:.2g}x", (row.tokens, 0.02), **at)
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
    enough = max([0, *study.index[study["step_low"] > 0]])
    if enough == last:
        return f"{name}: {metric} still improves at {tokens[last]} tokens, so the largest budget is not yet enough"
    falls = [place for place in study.index[study["step_high"] < 0] if place > enough]
    if falls:
        return f"{name}: {metric} gets worse from {tokens[falls[0] - 1]} to {tokens[falls[0]]} tokens"
    return f"{name}: from {tokens[enough]} tokens on, the next larger budget gains less than its interval"


def _records(folder: Path) -> dict[str, Any]:
    """Of the steps up to the evaluation; training and evaluation must be finished."""
    records = {name: runs.recorded(folder, name) for name in runs.STEPS if name <= _EVALUATION}
    for name in (_TRAINING, _EVALUATION):
        if records[name] is None:
            raise TraitError(f"The run {folder} has not finished {name}. Run it again; it goes on where it stopped.")
    return {name: record for name, record in records.items() if record}


def _cost(training: dict[str, Any], arm: str) -> dict[str, Any]:
    """Of all stages of the arm's chain, whichever run or arm trained them.

    Seconds are a stage's steps at its speed: one that was killed and resumed recorded its time since then alone.
    """
    stages = [row for row in training["stages"] if row["arm"] == arm]
    passes = [row["epochs"] for row in training["accounting"] if (row["arm"], row["source"]) == (arm, "passages")]
    found = pd.DataFrame(stages)
    seconds = (found["tokens"] / found["tokens_per_second"].astype(float)).fillna(found["seconds"])
    return {
        "tokens": found["tokens"].sum(),
        "passes_over_passages": sum(passes) if passes else math.nan,
        "training_seconds": seconds.sum(),
        "device_hours": (seconds * found.get("processes", pd.Series(1, found.index)).fillna(1)).sum() / 3600,
        "device": ", ".join(dict.fromkeys(found["device"].str.partition(":")[0])),
    }


def _gain(row: pd.Series, name: str, ends: str) -> dict[str, float]:
    """The difference of a comparison as a gain of its reference: positive when better, whatever the metric's direction."""
    sign = -1 if row["metric"] in LOWER_IS_BETTER else 1
    low, high = sorted((sign * row["low"], sign * row["high"]))
    return {name: sign * row["difference"], f"{ends}_low": low, f"{ends}_high": high}


def _curve(axes: Axes, study: pd.DataFrame, cost: str, value: str, scale: float) -> None:
    arm, x = study["arm"].iloc[0], study[cost].to_numpy(dtype=float)
    y, low, high = (scale * study[f"{value}{end}"].to_numpy(dtype=float) for end in ("", "_low", "_high"))
    axes.axhline(0, **style.DASHED)
    look = {"color": style.colour(arm), "marker": style.marker(arm), "markersize": 7}
    axes.errorbar(x, y, (y - low, high - y), capsize=4, elinewidth=1.5, **look)
    at = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom", "size": 11, "color": style.QUIET}
    style.note(axes, "base model", (1, 0), (-2, 3), **at)
    axes.set_xscale("log")
    axes.margins(x=0.08, y=0.14)
    axes.set_xticks(x)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(FuncFormatter(tokens_text if cost == "tokens" else lambda place, _: f"{place:.2g}"))


def _subtitle(study: pd.DataFrame) -> str:
    seeds = "-".join(map(str, sorted({study["seeds"].min(), study["seeds"].max()})))
    gain = f"Gain in {metric_name(study['metric'].iloc[0])} over the base model on the same items"
    text = f"{gain}, with {100 * study['confidence'].iloc[0]:.3g}% intervals; training seeds: {seeds}"
    return text + ("; below the points: passes over the passages" if study["passes_over_passages"].notna().any() else "")
