"""The main table and the ablation table (the paper's Tables 1, 2 and 4), and arms as figures.

They are made from what evaluation.comparison returns: `arms` from arm_table (mean and interval of each arm, task, metric);
`comparison` from compare or compare_all (paired difference, reference arm minus arm, its interval and p values). Forgetting
(held-out general text) always stands beside the gain. Bits per byte: lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from trait_kit.engine.files import TraitError
from trait_kit.evaluation.comparison import HELD_OUT, LOWER_IS_BETTER, MACRO
from trait_kit.figures.items import item_file, pair_file
from trait_kit.figures.measures import change_text, metric_name, number_text, p_text, scale_of, signed_text
from trait_kit.figures.style import INK, QUIET, KitFigure, colour, label, marker, new_figure, plain, styled
from trait_kit.figures.table_text import Cell, Table

GENERAL, IN_DOMAIN = f"{HELD_OUT}general", f"{HELD_OUT}in_domain"
DOCUMENTS = {GENERAL: "General text", IN_DOMAIN: "In-domain text"}
CHAIN = ("base", "raw", "selected", "trait")  # of the ablation
ALPHA = 0.05  # of a star in a table, after Holm's correction


def main_table(
    arms: pd.DataFrame,
    comparison: pd.DataFrame | None = None,
    forgetting: pd.DataFrame | None = None,
    *,
    metric: str = "bits_per_byte",
    reference: str = "trait",
    per_task: bool = True,
    title: str = "",
) -> Table:
    """Every arm: average over tasks, paired difference to the reference arm with p, forgetting, and each task.

    Where `comparison` has the single tasks too (compare_all), a star says which of them differ from the reference arm.

    `forgetting`, from compare(outcomes, "base", "bits_per_byte", task="held_out/general"), gives the change on general text
    a paired interval; without it the change stands alone.
    """
    values, tasks, documents = _rows_of(arms, metric)
    names = list(dict.fromkeys(values["arm"]))
    averages = values[values["task"] == MACRO].set_index("arm")
    header = ["Arm", "Average of tasks"]
    columns = [[Cell(label(arm)) for arm in names], _column(averages, names, metric)]
    if comparison is not None:
        compared = _by_arm(comparison, metric, MACRO)
        header += [f"{label(reference)} minus this arm", "p (Holm)"]
        links = {arm: pair_file(reference, arm, metric) for arm in compared}
        columns.append([_difference(compared.get(arm), metric, arm == reference, links.get(arm, "")) for arm in names])
        columns.append([Cell(p_text(compared.get(arm)), link=links.get(arm, "")) for arm in names])
    for name in documents:
        header.append(DOCUMENTS[name])
        paired = _by_arm(forgetting, "bits_per_byte", GENERAL) if forgetting is not None and name == GENERAL else {}
        columns.append(
            _column(values[values["task"] == name].set_index("arm"), names, "bits_per_byte", from_base=True, paired=paired)
        )
    for name in tasks if per_task else []:
        header.append(label(name))
        differ = _significant(comparison, metric, name)
        columns.append(_column(values[values["task"] == name].set_index("arm"), names, metric, differ=differ))
    better = "lower" if metric in LOWER_IS_BETTER else "higher"
    notes = [f"{metric_name(metric).capitalize()}: {better} is better; [confidence interval]; bold: best of its column."]
    if comparison is not None:
        notes.append(
            f"{label(reference)} minus this arm: paired over the same items; p corrected for the number of arms (Holm)."
        )
        if any(cell.small.endswith("*") for column in columns for cell in column):
            notes.append(
                f"*: differs from {label(reference)} on this task, p < {ALPHA:g}, corrected for all arms and tasks (Holm)."
            )
        notes += _what_could_show(comparison, metric)
    if documents:
        notes.append(
            "General and in-domain text: held-out documents, bits per byte (change from the base model); above 0 is worse."
        )
    return Table(
        title or f"All arms by {metric_name(metric)}",
        header,
        [list(row) for row in zip(*columns, strict=True)],
        notes,
    )


def ablation_table(
    arms: pd.DataFrame,
    chain: Sequence[str] = CHAIN,
    pairs: pd.DataFrame | None = None,
    *,
    metric: str = "bits_per_byte",
    title: str = "",
) -> Table:
    """What each part adds (the paper's Table 4): base, + raw in-domain, + selected web text, + synthetic passages.

    `pairs`, from compare(outcomes, None, metric), gives every change its paired interval and p value.
    """
    values, _, documents = _rows_of(arms, metric)
    averages = values[values["task"] == MACRO].set_index("arm")
    names = [arm for arm in chain if arm in averages.index]
    if len(names) < 2:
        raise TraitError(
            f"The ablation table needs two of the arms {', '.join(chain)}; the results have {', '.join(averages.index)}."
        )
    what = {
        "base": "base model",
        "raw": "+ raw in-domain documents",
        "selected": "+ selected web documents",
        "trait": "+ TRAIT passages",
    }
    rows = []
    for place, arm in enumerate(names):
        mean = float(averages.loc[arm, "mean"])
        steps = [Cell("–"), Cell("–")]
        if place:
            steps = [
                _step(arm, other, mean, float(averages.loc[other, "mean"]), metric, pairs)
                for other in (names[place - 1], names[0])
            ]
        cells = [Cell(what.get(arm, f"+ {label(arm)}")), _column(averages, names, metric)[place], *steps]
        for name in documents:
            cells.append(
                _column(values[values["task"] == name].set_index("arm"), names, "bits_per_byte", from_base=True)[place]
            )
        rows.append(cells)
    header = [
        "Trained on",
        "Average of tasks",
        "Change by this step",
        "Change from base",
        *(DOCUMENTS[name] for name in documents),
    ]
    better = "negative is better" if metric in LOWER_IS_BETTER else "positive is better"
    notes = [f"{metric_name(metric).capitalize()}; changes: {better}. Every trained arm saw the same number of tokens."]
    if pairs is not None:
        notes.append("[paired confidence interval over the same items]; p corrected for all pairs of arms (Holm).")
        notes += _what_could_show(pairs, metric)
    return Table(title or "What does each part add?", header, rows, notes)


@styled
def plot_arms(arms: pd.DataFrame, metric: str = "bits_per_byte") -> KitFigure:
    """Every arm with its interval: the average of the tasks, then each task, on shared rows."""
    values, tasks, _ = _rows_of(arms, metric)
    averages = values[values["task"] == MACRO].set_index("arm")
    names = list(averages.index)
    lower = metric in LOWER_IS_BETTER
    best = averages["mean"].idxmin() if lower else averages["mean"].idxmax()
    title = f"{label(best)} has the best average {metric_name(metric)}: {number_text(averages.loc[best, 'mean'], metric)}"
    if "base" in names and best != "base":
        title += f" (base model {number_text(averages.loc['base', 'mean'], metric)})"
    panels = [("average of tasks", averages)]
    if len(tasks) > 1:
        panels += [(label(task), values[values["task"] == task].set_index("arm")) for task in tasks]
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, grid = new_figure(
        title, f"Bars: confidence intervals; {'lower' if lower else 'higher'} is better; dashed: base model",
        width=9.6 if columns > 1 else 7.2, height=rows * (1.1 + 0.36 * len(names)),
        rows=rows, columns=columns, squeeze=False, sharey=True,
    )  # fmt: skip
    scale = 1 if lower else 100
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.remove()
            continue
        title, table = panels[place]
        if "base" in table.index:
            axes.axvline(table.loc["base", "mean"] * scale, color=QUIET, linestyle=(0, (4, 3)), linewidth=1.3)
        _dots(axes, table[["mean", "low", "high"]] * scale, names)
        axes.set_title(plain(title), loc="left", weight="bold" if place == 0 else "normal")
        if place >= len(panels) - columns:
            axes.set_xlabel(metric_name(metric) + ("" if lower else " (%)"))
    return figure


@styled
def plot_gain_and_forgetting(
    gain: pd.DataFrame, forgetting: pd.DataFrame | None, metric: str = "bits_per_byte"
) -> KitFigure:
    """Change of every arm from the base model, paired over the same items: left on the tasks, right on general text.

    `gain` is comparison.compare(outcomes, "base", metric) and `forgetting` comparison.forgetting_of(outcomes). Pairing shows
    what the arms' own intervals hide: texts differ far more than arms do.
    """
    panels = []
    for table, name, task, text in (
        (gain, metric, MACRO, "Gain: average of tasks"),
        (gain.iloc[:0] if forgetting is None else forgetting, "bits_per_byte", GENERAL, "Forgetting: general text"),
    ):
        scale = 1 if name in LOWER_IS_BETTER else 100
        rows = {
            arm: [-scale * row[key] for key in ("difference", "high", "low")]
            for arm, row in _by_arm(table, name, task).items()
        }
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"])
        panels.append(
            (text, name, frame, {arm: row.get("reference_mean") for arm, row in _by_arm(table, name, task).items()})
        )
    names = list(panels[0][2].index)
    if not names:
        raise TraitError(
            "There is no arm to compare with the base model: plot_gain_and_forgetting needs at least one trained arm."
        )
    arm = "trait" if "trait" in names else names[-1]
    parts = [
        f"{signed_text(frame.loc[arm, 'mean'], name, before.get(arm))} {where}"
        for (_, name, frame, before), where in zip(panels, ("on the tasks", "on general text"), strict=True)
        if arm in frame.index
    ]
    figure, grid = new_figure(
        f"{label(arm)} against the base model: " + ", ".join(parts),
        "Paired change from the base model; bars: confidence intervals; the dashed line is the base model",
        width=9.6, height=1.35 + 0.46 * len(names), columns=2, sharey=True,
    )  # fmt: skip
    for axes, (text, name, frame, _) in zip(grid, panels, strict=True):
        if frame.empty:
            axes.text(0.5, 0.5, "not evaluated", transform=axes.transAxes, ha="center", color=QUIET)
        axes.axvline(0, color=QUIET, linestyle=(0, (4, 3)), linewidth=1.3 if len(frame) else 0)
        _dots(axes, frame, names, f"{{:+.{3 if name in LOWER_IS_BETTER else 1}f}}")
        axes.set_title(text, loc="left", weight="bold")
        axes.set_xlabel("bits per byte (left is better)" if name in LOWER_IS_BETTER else "points (right is better)")
    return figure


def _dots(axes: Any, table: pd.DataFrame, names: Sequence[str], form: str = "") -> None:
    """One row an arm: interval as a bar, mean as the arm's marker, and its value above where `form` is given."""
    for place, arm in enumerate(names):
        if arm not in table.index:
            continue
        mean, low, high = table.loc[arm, ["mean", "low", "high"]]
        y = len(names) - 1 - place
        axes.plot([low, high], [y, y], color=colour(arm), linewidth=3.4, alpha=0.55)
        axes.plot([mean], [y], marker(arm), color=colour(arm), markersize=9.5, markeredgecolor="white", markeredgewidth=1.2)
        if form:
            axes.annotate(
                form.format(mean), (mean, y), xytext=(0, 7), textcoords="offset points", ha="center", va="bottom", size=11,
                color=INK, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
    axes.set_ylim(-0.6, len(names) - (0.15 if form else 0.4))
    axes.set_yticks(range(len(names)), [plain(label(arm)) for arm in reversed(names)])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.margins(x=0.12)
    axes.locator_params(axis="x", nbins=4)


def _rows_of(arms: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, list[str], list[str]]:
    """The rows of one metric and of the held-out documents; the tasks in the order they come; the document sets."""
    missing = {"arm", "task", "metric", "mean", "low", "high"} - set(arms.columns)
    if missing:
        raise TraitError(f"The table of arms lacks the column(s) {', '.join(sorted(missing))}. Run notebook 05 again.")
    documents = arms[(arms["metric"] == "bits_per_byte") & arms["task"].isin(DOCUMENTS)]  # beside every metric of the tasks
    values = arms[(arms["metric"] == metric) & ~arms["task"].str.startswith(HELD_OUT)]
    if not (values["task"] == MACRO).any():
        raise TraitError(
            f"The table of arms has no averages of {metric}; its metrics are {', '.join(sorted(set(arms['metric'])))}."
        )
    tasks = [task for task in dict.fromkeys(values["task"]) if task != MACRO]
    return pd.concat([values, documents]), tasks, [name for name in DOCUMENTS if (documents["task"] == name).any()]


def _by_arm(comparison: pd.DataFrame, metric: str, task: str) -> dict[str, dict[str, Any]]:
    """Rows by arm; of a long table (compare_all) those of one metric and task."""
    for column, wanted in (("metric", metric), ("task", task)):
        if column in comparison.columns:
            comparison = comparison[comparison[column] == wanted]
    return {row["arm"]: row for row in comparison.to_dict("records")}


def _column(
    rows: pd.DataFrame,
    names: Sequence[str],
    metric: str,
    from_base: bool = False,
    paired: Mapping[str, dict[str, Any]] | None = None,
    differ: Sequence[str] = (),
) -> list[Cell]:
    """Cells of one column; small text: the interval, or with `from_base` the change from the base model."""
    present = rows.loc[[arm for arm in names if arm in rows.index], "mean"]
    best = present.min() if metric in LOWER_IS_BETTER else present.max()
    cells = []
    for arm in names:
        if arm not in rows.index:
            cells.append(Cell("–"))
            continue
        mean = float(rows.loc[arm, "mean"])
        small = f"[{number_text(rows.loc[arm, 'low'], metric)}, {number_text(rows.loc[arm, 'high'], metric)}]" + "*" * (
            arm in differ
        )
        if from_base and "base" in rows.index:
            small = "" if arm == "base" else f"({change_text(mean, float(rows.loc['base', 'mean']), metric)})"
            if paired and arm in paired:
                small = f"({-paired[arm]['difference']:+.3f} [{-paired[arm]['high']:+.3f}, {-paired[arm]['low']:+.3f}])"
        link = item_file(arm, str(rows.loc[arm, "task"]), metric)
        cells.append(Cell(number_text(mean, metric), small, bool(mean == best), link))
    return cells


def _step(arm: str, other: str, mean: float, before: float, metric: str, pairs: pd.DataFrame | None) -> Cell:
    """The change from another arm, with its paired interval where `pairs` has it, in either direction."""
    text = change_text(mean, before, metric)
    for reference, compared, sign in ((arm, other, 1), (other, arm, -1)) if pairs is not None else ():
        row = _by_arm(pairs[pairs["reference"] == reference], metric, MACRO).get(compared)
        if row is not None:
            scale, digits = scale_of(metric)
            low, high = sorted(sign * scale * row[end] for end in ("low", "high"))
            small = f"[{low:+.{digits}f}, {high:+.{digits}f}], p {p_text(row)}"
            return Cell(text, small, link=pair_file(reference, compared, metric))
    return Cell(text)


def _significant(comparison: pd.DataFrame | None, metric: str, task: str) -> list[str]:
    rows = _by_arm(comparison, metric, task) if comparison is not None else {}
    return [arm for arm, row in rows.items() if row["p_holm"] < ALPHA]


def _what_could_show(comparison: pd.DataFrame, metric: str) -> list[str]:
    """A note on the smallest true gains that the items at hand would have shown: the largest over the arms, by task."""
    if "smallest_gain" not in comparison.columns:
        return []
    rows = comparison[(comparison["metric"] == metric) & ~comparison["task"].str.startswith(HELD_OUT)]
    gains = rows.groupby("task", sort=False)["smallest_gain"].max()
    scale, digits = scale_of(metric)
    unit = "" if metric in LOWER_IS_BETTER else " points"
    shown = [
        f"{'average' if task == MACRO else label(task)} "
        + (
            f"{scale * gain:.{digits}f}{unit} (n {rows.loc[rows['task'] == task, 'n'].max():,})"
            if gain < math.inf
            else "none"
        )
        for task, gain in gains.items()
    ]
    return [
        "Smallest true difference that these items would have shown (80% power at the corrected 5%): "
        + ", ".join(shown)
        + "."
    ]


def _difference(row: dict[str, Any] | None, metric: str, is_reference: bool, link: str = "") -> Cell:
    if row is None or pd.isna(row["difference"]):
        return Cell("reference" if is_reference else "–")
    scale, digits = scale_of(metric)
    low, high = row["low"] * scale, row["high"] * scale
    return Cell(f"{row['difference'] * scale:+.{digits}f}", f"[{low:+.{digits}f}, {high:+.{digits}f}]", link=link)
