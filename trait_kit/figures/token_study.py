"""How many tokens are enough? Gain and forgetting of one arm against what its training cost, a run a budget.

Each budget is compared with the base model and with the one before it, item by item: what counts are items newly won.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.ticker import EngFormatter

from trait_kit import runs
from trait_kit.evaluation import across_runs, comparison
from trait_kit.figures.cells import BITS, GENERAL, metric_name, write_csv
from trait_kit.figures.style import DASHED, KitFigure, colour, label, marker, new_figure, styled
from trait_kit.figures.tables import SAY

tokens_text = EngFormatter(sep="", places=2)  # 5120 -> 5.12k: neighbours of a doubling stay apart
_ENDS = ("", "_low", "_high")


def write_study(run_dirs: Sequence[Path | str], folder: Path) -> str:
    """Write study.csv and its figure into `folder`; return what they say."""
    table = study(run_dirs)
    write_csv(table, folder / "study.csv")
    return f"{verdict(table)}. Table: {folder / 'study.csv'}; figure: {plot(table).save(folder, 'study')}"


def study(run_dirs: Sequence[Path | str]) -> pd.DataFrame:
    """One row a budget in order of tokens, of the first run's reference arm; runs of one budget with other seeds join.

    tokens, device_hours: of all the arm's stages, mean over seeds. gain: over the base model in units of the metric,
    positive when better; step: over the budget before; forgetting: bits per byte of general text above the base model's;
    each with _low and _high, pairing items, NaN where there is none.
    """
    training = {str(folder): runs.finished(Path(folder), "04_train_two_stages") for folder in run_dirs}
    arm = runs.finished(Path(run_dirs[0]), "05_evaluate")["params"]["reference_arm"]
    budgets = {folder: tuple(record["params"]["stage_tokens"]) for folder, record in training.items()}
    rows, before = [], []
    for budget in sorted(set(budgets.values()), key=lambda stages: (sum(stages), stages)):
        folders = [folder for folder in budgets if budgets[folder] == budget]
        names = [f"{folder}:{arm}" for folder in folders]
        together = across_runs.gather([*(f"{folder}:base" for folder in folders), *names])
        outcomes, metric = together.outcomes, comparison.main_metric(together.outcomes, together.main_metric)
        found = {"gain": comparison.compare(outcomes, arm, metric).iloc[0], "step": {}, "forgetting": {}}
        if before:
            pair = across_runs.gather([*before, *names]).outcomes
            found["step"] = comparison.compare(pair, pair["arm"].unique()[1], metric).iloc[0]
        if (outcomes["task"] == GENERAL).any():
            # what base gains over the arm
            found["forgetting"] = comparison.compare(outcomes, "base", BITS, GENERAL).iloc[0]
        gain, costs = found["gain"], [_cost(training[folder]["summary"], arm) for folder in folders]
        row = {
            "arm": arm,
            "stage_tokens": " + ".join(map(str, budget)),
            "seeds": int(gain["seeds"]),
            "metric": metric,
        }
        row |= {"score": gain["reference_mean"], "base_score": gain["arm_mean"], **pd.DataFrame(costs).mean()}
        changes = {
            f"{name}{end}": test.get(f"gain{end}", math.nan) for name, test in found.items() for end in _ENDS
        }
        rows.append(row | changes)
        before = names

    return pd.DataFrame(rows).astype({"tokens": int})


@styled
def plot(study: pd.DataFrame) -> KitFigure:
    metric, arm = study["metric"].iloc[0], study["arm"].iloc[0]
    scale, unit = (1, "") if metric in comparison.LOWER_IS_BETTER else (100, " (points)")
    panels = [("gain", scale, f"gain in {metric_name(metric)}{unit}")]
    if study["forgetting"].notna().any():
        panels.append(("forgetting", 1, "rise in bits per byte of general text"))
    seeds = "-".join(map(str, sorted({study["seeds"].min(), study["seeds"].max()})))
    facts = {"said": verdict(study), "confidence": comparison.CONFIDENCE, "seeds": seeds}
    figure, grid = new_figure("study", facts, 2.3, panels=len(panels))
    told = zip(study["tokens"], study["device_hours"], study["passes_over_passages"], strict=True)
    ticks = [f"{tokens_text(tokens)}\n{hours:.2g} h\n{passes:.2g}x" for tokens, hours, passes in told]
    for axes, (value, scale, name) in zip(grid, panels, strict=True):
        middle, low, high = (scale * study[f"{value}{end}"] for end in _ENDS)
        axes.axhline(0, **DASHED)
        axes.errorbar(
            study["tokens"], middle, (middle - low, high - middle), color=colour(arm), marker=marker(arm)
        )
        axes.set(xscale="log", xticks=study["tokens"], xticklabels=ticks, title=name)
        axes.minorticks_off()
    return figure


def verdict(study: pd.DataFrame) -> str:
    """From which budget on a larger one gains no more than chance would, if any."""
    name, metric = label(study["arm"][0]), metric_name(study["metric"][0])
    tokens = list(map(tokens_text, study["tokens"]))
    enough = max([0, *study.index[study["step_low"] > 0]])
    falls = [place for place in study.index[study["step_high"] < 0] if place > enough]
    return str(SAY.study(name, metric, tokens, (study["gain_low"] > 0).any(), enough, falls)).strip()


def _cost(training: dict[str, Any], arm: str) -> dict[str, float]:
    """Of the arm's stages at their speed: one that was killed and resumed recorded its time since then."""
    found = pd.DataFrame(training["stages"]).query("arm == @arm")
    passes = pd.DataFrame(training["accounting"]).query("arm == @arm and source == 'passages'")["epochs"]
    speed = found["tokens_per_second"]
    seconds = (found["tokens"] / speed).where(speed > 0).fillna(found["seconds"])
    return {
        "tokens": found["tokens"].sum(),
        "passes_over_passages": passes.sum(min_count=1),
        "device_hours": (seconds * found["processes"]).sum() / 3600,
    }
