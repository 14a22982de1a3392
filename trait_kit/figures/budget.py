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
from trait_kit.evaluation.comparison import HELD_OUT, LOWER_IS_BETTER
from trait_kit.figures.measures import metric_name, scale_of
from trait_kit.figures.style import INK, QUIET, KitFigure, colour, label, marker, new_figure, plain, styled

BASE = "base"
COLUMNS = (
    *("arm", "stage_tokens", "tokens", "seeds", "passes_over_passages", "training_seconds", "device_hours", "device"),
    *("metric", "score", "base_score", "gain", "gain_low", "gain_high", "step_gain", "step_low", "step_high"),
    *("forgetting", "forgetting_low", "forgetting_high", "confidence"),
)
_TRAINING, _EVALUATION = "04_train_two_stages", "05_evaluate"
_GENERAL, _FORGETTING = f"{HELD_OUT}general", "bits_per_byte"
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
        members = budgets[budget]
        _refuse_repeated_seeds(members)
        cost = pd.DataFrame([_cost(run, arm) for run in members])
        names = [f"{run['folder']}:{arm}" for run in members]
        against_base = across_runs.gather([*(f"{run['folder']}:{BASE}" for run in members), *names])
        metric = metric or comparison.main_metric(against_base.outcomes)
        confidence = against_base.confidence
        gain = comparison.compare(against_base.outcomes, arm, metric, confidence).iloc[0]
        rows.append(
            {
                "arm": arm,
                "stage_tokens": " + ".join(map(str, budget)),
                "seeds": int(gain["seeds"]),
                "device": ", ".join(dict.fromkeys(cost.pop("device"))),
                **cost.mean().to_dict(),
                "metric": metric,
                "score": gain["reference_mean"],
                "base_score": gain["arm_mean"],
                **_better(gain, "gain"),
                **(_step(before, names, metric, confidence) if before else {}),
                **_forgetting(against_base.outcomes, arm, confidence),
                "confidence": confidence,
            }
        )
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
    first = study.iloc[0]
    scale, _ = scale_of(first["metric"])
    unit = "bits per byte" if scale == 1 else "points"
    forgot = study["forgetting"].notna().any()
    figure, _ = new_figure(verdict(study), _subtitle(study), width=9.6, height=6.2, rows=0)
    grid = figure.add_gridspec(2, 2, height_ratios=[1.25, 1])
    upper, lower = figure.add_subplot(grid[0, :]), figure.add_subplot(grid[1, 0] if forgot else grid[1, :])
    for axes, cost, heading in ((upper, "tokens", "By tokens"), (lower, "device_hours", f"By {_hours(study)}")):
        _curve(axes, study, cost, "gain", scale, wide=axes is upper or not forgot)
        axes.set_title(heading, loc="left", weight="bold")
        axes.set_ylabel(f"gain ({unit})")
        axes.set_xlabel("tokens trained on, all stages" if cost == "tokens" else f"{_hours(study)} of training")
    for row in study.itertuples():
        if math.isfinite(row.passes_over_passages):
            upper.annotate(
                f"{row.passes_over_passages:.2g}x", (row.tokens, 0.02), xycoords=("data", "axes fraction"),
                ha="center", va="bottom", size=11, color=QUIET,
            )  # fmt: skip
    if forgot:
        axes = figure.add_subplot(grid[1, 1])
        _curve(axes, study[study["forgetting"].notna()], "tokens", "forgetting", 1, wide=False)
        axes.set_title("General text (forgetting)", loc="left", weight="bold")
        axes.set(xlabel="tokens trained on, all stages", ylabel="rise (bits per byte)")
    return figure


def verdict(study: pd.DataFrame) -> str:
    """What the table says, in a sentence: from which budget on a larger one gains no more than chance would, if any."""
    study = study.sort_values("tokens", kind="stable").reset_index(drop=True)
    name, metric = label(study["arm"][0]), metric_name(study["metric"][0])
    tokens, last = [_tokens(value) for value in study["tokens"]], len(study) - 1
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
    first = read[0]
    for other in read[1:]:
        for step in first["params"].keys() & other["params"].keys():
            one, another = first["params"][step], other["params"][step]
            unlike = sorted(key for key in (one.keys() & another.keys()) - _VARIED if one[key] != another[key])
            if unlike:
                raise TraitError(
                    f"{first['folder']} and {other['folder']} differ in {unlike[0]} of {step}, so the study would not show "
                    "what the budget does. Give it runs that differ in stage_tokens and seed alone."
                )


def _refuse_repeated_seeds(members: list[dict[str, Any]]) -> None:
    seeds: dict[int, Path] = {}
    for run in members:
        seed = run["params"][_TRAINING]["seed"]
        if seed in seeds:
            raise TraitError(f"{seeds[seed]} and {run['folder']} have the same budget and seed. Leave one of them out.")
        seeds[seed] = run["folder"]


def _cost(run: dict[str, Any], arm: str) -> dict[str, Any]:
    """Of all stages of the arm's chain, whichever run or arm trained them."""
    stages = [row for row in run["training"]["stages"] if row["arm"] == arm]
    if not stages:
        arms = ", ".join(dict.fromkeys(row["arm"] for row in run["training"]["stages"]))
        raise TraitError(f"{run['folder']} did not train the arm '{arm}'; it trained {arms}.")
    seconds = [_seconds(row) for row in stages]
    processes = [row.get("processes") or 1 for row in stages]
    passes = [row["epochs"] for row in run["training"]["accounting"] if (row["arm"], row["source"]) == (arm, "passages")]
    return {
        "tokens": sum(row["tokens"] for row in stages),
        "passes_over_passages": sum(passes) if passes else math.nan,
        "training_seconds": sum(seconds),
        "device_hours": sum(map(math.prod, zip(seconds, processes, strict=True))) / 3600,
        "device": ", ".join(dict.fromkeys(str(row["device"]).partition(":")[0] for row in stages)),
    }


def _seconds(stage: dict[str, Any]) -> float:
    """Of all the stage's steps at its speed: a stage that was killed and resumed recorded the seconds since then alone."""
    speed = stage.get("tokens_per_second")
    return stage["tokens"] / speed if speed else stage["seconds"]


def _step(before: list[str], names: list[str], metric: str, confidence: float) -> dict[str, float]:
    outcomes = across_runs.gather([*before, *names]).outcomes
    later = list(dict.fromkeys(outcomes["arm"]))[1]
    return _better(comparison.compare(outcomes, later, metric, confidence).iloc[0], "step")


def _better(row: pd.Series, name: str) -> dict[str, float]:
    """The difference of a comparison as a gain of its reference: positive when better, whatever the metric's direction."""
    gain, low, high = row["difference"], row["low"], row["high"]
    if row["metric"] in LOWER_IS_BETTER:
        gain, low, high = -gain, -high, -low
    return {"gain" if name == "gain" else f"{name}_gain": gain, f"{name}_low": low, f"{name}_high": high}


def _forgetting(outcomes: pd.DataFrame, arm: str, confidence: float) -> dict[str, float]:
    if not ((outcomes["task"] == _GENERAL) & (outcomes["metric"] == _FORGETTING)).any():
        return {}
    row = comparison.compare(outcomes, arm, _FORGETTING, confidence, _GENERAL).iloc[0]
    return {"forgetting": row["difference"], "forgetting_low": row["low"], "forgetting_high": row["high"]}


def _curve(axes: Axes, study: pd.DataFrame, cost: str, value: str, scale: float, wide: bool) -> None:
    arm = study["arm"].iloc[0]
    x, y = study[cost].to_numpy(dtype=float), scale * study[value].to_numpy(dtype=float)
    low, high = (scale * study[f"{value}_{end}"].to_numpy(dtype=float) for end in ("low", "high"))
    axes.axhline(0, color=QUIET, linestyle=(0, (4, 3)), linewidth=1.3)
    axes.errorbar(x, y, (y - low, high - y), color=colour(arm), marker=marker(arm), markersize=7, capsize=4, elinewidth=1.5)
    axes.annotate(
        "base model", (1, 0), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
        ha="right", va="bottom", color=QUIET, size=11,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.08, y=0.14)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(_apart(x, 0.08 if wide else 0.2))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: _tokens(place) if cost == "tokens" else f"{place:.2g}"))
    axes.tick_params(axis="x", colors=INK)


def _apart(places: np.ndarray, gap: float) -> list[float]:
    """Those of the places, the largest first, that lie at least `gap` of a log axis from each other."""
    chosen: list[float] = []
    least = gap * math.log(places.max() / places.min())
    for place in sorted(set(places), reverse=True):
        if not chosen or math.log(chosen[-1] / place) >= least:
            chosen.append(place)
    return chosen


def _subtitle(study: pd.DataFrame) -> str:
    share = f"{100 * study['confidence'].iloc[0]:.3g}%"
    seeds = sorted(set(study["seeds"]))
    over = "one training seed" if seeds == [1] else f"{'-'.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} seeds"
    gain = f"Gain in {metric_name(study['metric'].iloc[0])} over the base model on the same items"
    parts = [f"{gain}, with {share} intervals; {over}"]
    if study["passes_over_passages"].notna().any():
        parts.append("below the points: passes over the passages")
    return plain("; ".join(parts))


def _hours(study: pd.DataFrame) -> str:
    return "GPU hours" if set(study["device"]) == {"cuda"} else "device hours"


def _tokens(value: float) -> str:
    """In three digits: neighbours of a doubling stay apart."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"
