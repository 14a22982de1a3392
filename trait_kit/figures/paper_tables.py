"""The paper's tables from a finished run, each number with its items: 1 (advertising) or 2 (mathematics), 4 (ablation), and
beside them what the test sets shared with the training texts, without which no gain can be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from trait_kit import runs, tables
from trait_kit.engine.files import TraitError, atomic_path, read_json
from trait_kit.evaluation.comparison import (
    HELD_OUT,
    LOWER_IS_BETTER,
    MACRO,
    arm_table,
    compare,
    compare_all,
    forgetting_of,
)
from trait_kit.figures.items import pair_file, write_items
from trait_kit.figures.measures import metric_name, number_text, p_text, scale_of
from trait_kit.figures.style import INK, QUIET, KitFigure, colour, label, marker, new_figure, plain, styled
from trait_kit.figures.table_text import Cell, Table, csv_text
from trait_kit.figures.tables import CHAIN, ablation_table, main_table

NOT_RECORDED = "not recorded"
_SAME, _OVERLAPS = "same as a test question", "overlaps a test question"  # passages.screening's reasons


def write_paper_tables(run_dir: Path | str, folder: Path | str) -> dict[str, Table]:
    """Write and return main_table, ablation_table (of each metric; other than bits per byte with its name behind) and
    contamination, each as Markdown, LaTeX, CSV and HTML, and the items behind their numbers, into `folder`."""
    run_dir = Path(run_dir)
    record = runs.recorded(run_dir, "05_evaluate")
    if record is None:
        raise TraitError(f"{run_dir} has not finished 05_evaluate. Run it first.")
    outcomes = tables.read(run_dir / "05_evaluate" / "outcomes.parquet", "outcomes").to_pandas()
    reference, confidence = record["params"]["reference_arm"], record["params"]["confidence"]
    arms, tests = arm_table(outcomes, confidence), compare_all(outcomes, reference, confidence)
    forgetting = forgetting_of(outcomes, confidence)
    passages = runs.recorded(run_dir, "03_write_passages") or {}
    ads = (passages.get("params") or {}).get("grouping") == "entity"
    name = "Table 1: advertising" if ads else "Table 2: mathematics"
    found, compared = {"contamination": contamination_table(run_dir)}, [tests]
    for metric in dict.fromkeys(arms.loc[arms["task"] == MACRO, "metric"]):
        behind = "" if metric == "bits_per_byte" else f"_{metric}"
        title = f"{name}, all arms by {metric_name(metric)}"
        found[f"main_table{behind}"] = main_table(arms, tests, forgetting, metric=metric, reference=reference, title=title)
        if len(chain := chain_of(arms)) > 1:
            pairs = compare(outcomes[outcomes["arm"].isin(chain)], None, metric, confidence)
            title = f"Table 4: what does each part add, by {metric_name(metric)}?"
            found[f"ablation_table{behind}"] = ablation_table(arms, chain, pairs, metric=metric, title=title)
            compared.append(pairs)
    write_items(outcomes, folder, pd.concat(compared, ignore_index=True))
    for stem, table in found.items():
        table.save(folder, stem, links=True)
    return found


def chain_of(arms: pd.DataFrame) -> list[str]:
    """The arms of the ablation in its order: the paper's, or where an experiment names its arms otherwise, all of them."""
    there = list(dict.fromkeys(arms["arm"]))
    chain = [arm for arm in CHAIN if arm in there]
    return chain if len(chain) > 1 else there


def comparison_table(tests: pd.DataFrame, title: str = "Pairs of arms", notes: Sequence[str] = ()) -> Table:
    """One row a comparison of compare or compare_all: the difference with its interval, effect, p, and what could show."""
    rows = []
    for row in tests.to_dict("records"):
        metric = row["metric"]
        scale, digits = scale_of(metric)
        low, high, gain = row["low"] * scale, row["high"] * scale, row["smallest_gain"]
        effect = f"{row['effect']} {row['effect_size']:+.2f}"
        effect += "" if math.isnan(row["odds_ratio"]) else f", odds {row['odds_ratio']:.2g}"
        what = "average" if row["task"] == MACRO else label(row["task"].removeprefix(HELD_OUT))
        better = "" if row["p_holm"] >= 0.05 else label(row["reference"] if row["reference_better"] else row["arm"])
        cells = [
            Cell(f"{label(row['reference'])} minus {label(row['arm'])}"),
            Cell(what if not row["task"].startswith(HELD_OUT) else f"{what} (held out)"),
            Cell(metric_name(metric)),
            Cell(f"{row['n']:,}" if row["seeds"] == 1 else f"{row['n']:,} x {row['seeds']} seeds"),
            Cell(f"{number_text(row['reference_mean'], metric)} and {number_text(row['arm_mean'], metric)}"),
            Cell(f"{row['difference'] * scale:+.{digits}f}", f"[{low:+.{digits}f}, {high:+.{digits}f}]"),
            Cell(effect),
            Cell(p_text(row)),
            Cell(better or "–"),
            Cell(f"{gain * scale:.{digits}f}" if gain < math.inf else "none"),
        ]
        link = pair_file(row["reference"], row["arm"], metric, row["task"])
        rows.append([Cell(cell.text, cell.small, link=link) if place > 3 else cell for place, cell in enumerate(cells)])
    header = ["Difference", "Task", "Metric", "Items", "Means", "Difference, interval", "Effect", "p (Holm)", "Better"]
    lower = ", ".join(metric_name(name) for name in sorted(LOWER_IS_BETTER & set(tests["metric"])))
    about = [
        "Paired over the same items; shares in points. p: McNemar or sign flips, with several seeds hierarchical bootstrap; "
        "Holm's correction over the averages of a metric, and over all cells of its tasks."
        + (f" Lower is better: {lower}." if lower else "")
    ]
    several = (tests["seeds"] > 1).any()
    about.append(
        "Intervals and p speak of the recipes, trained anew on other seeds and asked other items."
        if several
        else "One training seed: intervals and p speak of these trained models, not of what other seeds would give."
    )
    return Table(title, [*header, "Smallest that could show"], rows, [*about, *notes])


def save_comparison(tests: pd.DataFrame, outcomes: pd.DataFrame, notes: Sequence[str], folder: Path | None) -> Table:
    """The table of `tests`; with a folder also written there, the CSV with all columns and digits, and with its items."""
    table = comparison_table(tests, notes=notes)
    if folder:
        write_items(outcomes, folder, tests)
        table.save(folder, "comparison", links=True)
        with atomic_path(folder / "comparison.csv") as temporary:
            tests.assign(**{name: tests[name].map(csv_text) for name in ("reference", "arm", "task")}).to_csv(
                temporary, index=False
            )
    return table


def contamination_table(run_dir: Path | str) -> Table:
    """What the test sets shared with web documents, training problems and passages, by task; all of it was taken out.

    From what 02, 03 and 05 recorded: evidence of 02's documents, 03's screening of problems and its rejected passages,
    counted under every task of their problems.
    """
    run_dir = Path(run_dir)
    tested = _test_items(run_dir)
    documents, problems, passages = _documents(run_dir, tested), _problems(run_dir), _passages(run_dir)
    rows = []
    for task, count in tested.items():
        found = [part if part is None else part.get(task, 0) for part in documents]
        rows.append([task, count, *found, *problems(task), None if passages is None else passages.get(task, 0)])
    totals = [None if any(row[at] is None for row in rows) else sum(row[at] for row in rows) for at in range(1, 7)]
    if (total := _total_documents(run_dir)) is not None:
        totals[2] = total
    header = [
        *("Task", "Test items", "of these in a web document", "Web documents removed", "Training problems"),
        *("of these removed", "Passages rejected"),
    ]
    cells = [[Cell(label(str(row[0])))] + [Cell(_count(value)) for value in row[1:]] for row in rows]
    cells.append([Cell("all")] + [Cell(_count(value)) for value in totals])
    notes = [
        "Compared by normalised text and by 13-grams (half of a question's). Everything counted as removed or rejected was "
        "never trained on. A document that holds questions of two tasks counts for both, and once in the last row.",
        "Not compared: the base model's own pre-training data, which nobody outside has.",
    ]
    return Table("Contamination: what the test sets shared with the training texts", header, cells, notes)


@styled
def plot_ablation(
    arms: pd.DataFrame, pairs: pd.DataFrame, chain: Sequence[str] = (), metric: str = "bits_per_byte"
) -> KitFigure:
    """Table 4 as a figure: the change that each part brings to the average, with its paired interval."""
    means = arms[(arms["metric"] == metric) & (arms["task"] == MACRO)].set_index("arm")["mean"]
    names = [arm for arm in chain or chain_of(arms) if arm in means.index]
    if len(names) < 2:
        raise TraitError(f"The ablation needs two arms; of those asked for there are: {', '.join(names)}.")
    scale, digits = scale_of(metric)
    found = pairs[(pairs["metric"] == metric) & (pairs["task"] == MACRO)].set_index(["reference", "arm"])
    steps = []
    for before, arm in pairwise(names):
        row, sign = (found.loc[(arm, before)], 1) if (arm, before) in found.index else (found.loc[(before, arm)], -1)
        steps.append([scale * sign * row["difference"], *sorted(scale * sign * row[end] for end in ("low", "high"))])
    lower = metric in LOWER_IS_BETTER
    gains = [-step[0] if lower else step[0] for step in steps]
    place, unit = gains.index(max(gains)), metric_name(metric) if lower else "points"
    title = f"The largest step is to {label(names[1 + place])}: {steps[place][0]:+.{digits}f} {unit}"
    figure, axes = new_figure(
        title if gains[place] > 0 else f"No part improves the average {metric_name(metric)}",
        f"Change of the average by each part; bars: paired confidence intervals; {'left' if lower else 'right'} is better",
        height=1.2 + 0.5 * len(steps),
    )
    axes.axvline(0, color=QUIET, linestyle=(0, (4, 3)), linewidth=1.3)
    for place, (arm, (change, low, high)) in enumerate(zip(names[1:], steps, strict=True)):
        y = len(steps) - 1 - place
        axes.plot([low, high], [y, y], color=colour(arm), linewidth=3.4, alpha=0.55)
        axes.plot([change], [y], marker(arm), color=colour(arm), markersize=9.5, markeredgecolor="white")
        axes.annotate(
            f"{change:+.{digits}f}", (change, y), xytext=(0, 8), textcoords="offset points", ha="center", color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
    axes.set_ylim(-0.6, len(steps) - 0.3)
    named = [f"{label(before)} → {label(arm)}" for before, arm in pairwise(names)]
    axes.set_yticks(range(len(steps)), [plain(name) for name in reversed(named)])
    axes.grid(False, axis="y")
    axes.margins(x=0.12)
    axes.set_xlabel(unit)
    return figure


def _test_items(run_dir: Path) -> dict[str, int]:
    """Test problems of each task, in the order in which they were asked."""
    outcomes = tables.read(run_dir / "05_evaluate" / "outcomes.parquet", "outcomes").to_pandas()
    problems = outcomes[~outcomes["task"].str.startswith(HELD_OUT)]
    return {str(task): int(part.nunique()) for task, part in problems.groupby("task", sort=False)["item_id"]}


def _evidence(run_dir: Path) -> pd.DataFrame | None:
    path = run_dir / "02_filter_web" / "selections" / "contaminated.parquet"
    return pq.read_table(path).to_pandas() if path.exists() else None


def _documents(run_dir: Path, tested: dict[str, int]) -> list[dict[str, int] | None]:
    """By task: how many test items stood in a web document, and how many documents held one; None where it cannot be told.

    02's evidence names questions by their place in its list, which is that of 05 as long as both asked for the same.
    """
    evidence, asked = _evidence(run_dir), run_dir / "02_filter_web" / "selections" / "candidates" / "test_questions.json"
    params = [(runs.recorded(run_dir, step) or {}).get("params") or {} for step in ("02_filter_web", "05_evaluate")]
    same = all(params[0].get(name) == params[1].get(name) for name in ("tasks", "test_items_per_task", "seed"))
    if evidence is None or not same or not asked.exists() or len(read_json(asked)) != sum(tested.values()):
        return [None, None]
    owner = [task for task, count in tested.items() for _ in range(count)]
    by_task = evidence.assign(task=[owner[place] for place in evidence["test_index"]]).groupby("task")
    return [by_task["test_index"].nunique().to_dict(), by_task["id"].nunique().to_dict()]


def _total_documents(run_dir: Path) -> int | None:
    evidence = _evidence(run_dir)
    return None if evidence is None else int(evidence["id"].nunique())


def _problems(run_dir: Path) -> Any:
    """A function: (training problems, how many of them were removed) of a task."""
    path = run_dir / "03_write_passages" / "screened.parquet"
    screened = {row["task"]: row for row in pq.read_table(path).to_pylist()} if path.exists() else None

    def of_task(task: str) -> tuple[int | None, int | None]:
        if screened is None:
            return None, None
        row = screened.get(task, {})  # a benchmark without training data has no row
        return int(row.get("problems", 0)), int(row.get(_SAME, 0)) + int(row.get(_OVERLAPS, 0))

    return of_task


def _passages(run_dir: Path) -> dict[str, int] | None:
    path = run_dir / "03_write_passages" / "rejected.parquet"
    if not path.exists():
        return None
    rejected = pq.read_table(path, columns=["tasks", "reason"]).to_pandas()
    held = rejected[rejected["reason"].fillna("").str.startswith("contamination:")]
    return held["tasks"].map(lambda names: sorted(set(names))).explode().value_counts().to_dict()


def _count(value: int | None) -> str:
    return NOT_RECORDED if value is None else f"{value:,}"
