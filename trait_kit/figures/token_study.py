"""How many tokens are enough? Gain and forgetting of one arm against what its training cost, a run a budget.

A curve that flattens says little by itself: what counts is whether the next larger budget wins items that the smaller
did not. So every budget is compared with the base model and with the budget before it, item by item.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.ticker import EngFormatter

from trait_kit import runs
from trait_kit.engine.files import TraitError
from trait_kit.evaluation import across_runs, comparison
from trait_kit.evaluation.comparison import LOWER_IS_BETTER
from trait_kit.figures import style
from trait_kit.figures.cells import BITS, GENERAL, metric_name, write_csv
from trait_kit.figures.style import KitFigure, label
from trait_kit.figures.tables import SAY

tokens_text = EngFormatter(sep="", places=2)  # 5120 -> 5.12k: neighbours of a doubling stay apart
_ENDS = ("", "_low", "_high")
_COLUMNS = ["arm", "stage_tokens", "seeds", "metric", "score", "base_score", "tokens", "passes_over_passages"]
_COLUMNS += ["device_hours", *(f"{name}{end}" for name in ("gain", "step", "forgetting") for end in _ENDS)]


def write_study(run_dirs: Sequence[Path | str], folder: Path) -> str:
    """Write study.csv, study.svg and study.png of finished runs into `folder`; return what they say, in a sentence."""
    table = study(run_dirs)
    write_csv(table, folder / "study.csv")
    figure = plot(table).save(folder, "study")
    return f"{verdict(table)}. Table: {folder / 'study.csv'}; figure: {figure}"


def study(run_dirs: Sequence[Path | str]) -> pd.DataFrame:
    """One row a budget in order of tokens, of the first run's reference arm; runs of one budget with other seeds join.

    tokens: of all the arm's stages; device_hours: of their optimizer steps, mean over seeds. gain: over the base model
    in units of the metric, positive when better; step: over the budget before (NaN for the first); forgetting: bits per
    byte of general text above the base model's (NaN where it was not evaluated); each with _low and _high, pairing
    items. Runs that differ in more than stage_tokens and seed, unlike those of a sweep, show more than the budget.
    """
    if not run_dirs:
        raise TraitError("A token-budget study needs at least one finished run.")
    training = {str(folder): runs.finished(Path(folder), "04_train_two_stages") for folder in run_dirs}
    arm = runs.finished(Path(run_dirs[0]), "05_evaluate")["params"]["reference_arm"]
    budgets: dict[tuple[int, ...], list[str]] = {}
    for folder, record in training.items():
        budgets.setdefault(tuple(record["params"]["stage_tokens"]), []).append(folder)
    rows, before = [], []
    for budget, folders in sorted(budgets.items(), key=lambda item: (sum(item[0]), item[0])):
        names = [f"{folder}:{arm}" for folder in folders]
        outcomes = across_runs.gather([*(f"{folder}:base" for folder in folders), *names]).outcomes
        metric = comparison.main_metric(outcomes)
        found = {"gain": comparison.compare(outcomes, arm, metric).iloc[0]}
        if before:
            pair = across_runs.gather([*before, *names]).outcomes
            found["step"] = comparison.compare(pair, pair["arm"].unique()[1], metric).iloc[0]
        if (outcomes["task"] == GENERAL).any():
            found["forgetting"] = comparison.compare(outcomes, "base", BITS, GENERAL).iloc[0]  # what base gains over the arm
        means = {"score": found["gain"]["reference_mean"], "base_score": found["gain"]["arm_mean"]}
        row = {"arm": arm, "stage_tokens": " + ".join(map(str, budget)), "seeds": int(found["gain"]["seeds"]), **means}
        row |= pd.DataFrame([_cost(training[folder]["summary"], arm) for folder in folders]).mean()
        changes = {f"{name}{end}": test[f"gain{end}"] for name, test in found.items() for end in _ENDS}
        rows.append(row | changes | {"metric": metric})
        before = names
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"tokens": int})


@style.styled
def plot(study: pd.DataFrame) -> KitFigure:
    """Gain and forgetting against tokens (log axis), each with its interval; below the tokens the device hours."""
    metric, arm = study["metric"].iloc[0], study["arm"].iloc[0]
    bits = metric in LOWER_IS_BETTER
    panels = [("gain", 1 if bits else 100, f"gain in {metric_name(metric)}" + ("" if bits else " (points)"))]
    if study["forgetting"].notna().any():
        panels.append(("forgetting", 1, "rise in bits per byte of general text"))
    seeds = "-".join(map(str, sorted({study["seeds"].min(), study["seeds"].max()})))
    facts = {"said": verdict(study), "confidence": comparison.CONFIDENCE, "seeds": seeds}
    figure, grid = style.new_figure("study", facts, height=2.3, panels=len(panels))
    told = zip(study["tokens"], study["device_hours"], study["passes_over_passages"], strict=True)
    ticks = [f"{tokens_text(tokens)}\n{hours:.2g} h\n{passes:.2g}x" for tokens, hours, passes in told]
    for axes, (value, scale, name) in zip(grid, panels, strict=True):
        middle, low, high = (scale * study[f"{value}{end}"] for end in _ENDS)
        look = {"color": style.colour(arm), "marker": style.marker(arm), "capsize": 2}
        axes.axhline(0, **style.DASHED)
        axes.errorbar(study["tokens"], middle, (middle - low, high - middle), **look)
        axes.set_xscale("log")
        axes.set_xticks(study["tokens"], ticks)
        axes.minorticks_off()
        axes.set_title(name)
    return figure


def verdict(study: pd.DataFrame) -> str:
    """What the table says, in a sentence: from which budget on a larger one gains no more than chance would, if any."""
    name, metric = label(study["arm"][0]), metric_name(study["metric"][0])
    tokens = [tokens_text(value) for value in study["tokens"]]
    enough = max([0, *study.index[study["step_low"] > 0]])
    falls = [place for place in study.index[study["step_high"] < 0] if place > enough]
    return str(SAY.study(name, metric, tokens, (study["gain_low"] > 0).any(), enough, falls)).strip()


def _cost(training: dict[str, Any], arm: str) -> dict[str, float]:
    """Of all stages of the arm's chain, whichever run or arm trained them.

    Seconds are a stage's steps at its speed: one that was killed and resumed recorded its time since then alone.
    """
    found = pd.DataFrame([row for row in training["stages"] if row["arm"] == arm])
    passes = pd.DataFrame(training["accounting"]).query("arm == @arm and source == 'passages'")["epochs"]
    seconds = (found["tokens"] / found["tokens_per_second"]).replace(math.inf, math.nan).fillna(found["seconds"])
    return {
        "tokens": found["tokens"].sum(),
        "passes_over_passages": passes.sum(min_count=1),
        "device_hours": (seconds * found["processes"]).sum() / 3600,
    }
