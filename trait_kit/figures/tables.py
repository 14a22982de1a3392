"""The paper's tables: main (1 and 2), ablation (4), pairs of arms, and the items behind their numbers as files.

`arms` is what comparison.arm_table returns; `tests` what compare, compare_all or forgetting_of return. Forgetting (held-out
general text) always stands beside the gain.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from trait_kit.engine.files import TraitError, atomic_path, digest
from trait_kit.evaluation.comparison import ALPHA, HELD_OUT, LOWER_IS_BETTER, MACRO, prepared
from trait_kit.figures import cells
from trait_kit.figures.cells import Cell, Table, change_text, interval_text, metric_name
from trait_kit.figures.style import label

BITS, GENERAL = "bits_per_byte", f"{HELD_OUT}general"
DOCUMENTS = {GENERAL: "General text", f"{HELD_OUT}in_domain": "In-domain text"}
CHAIN = {  # of the ablation: arm -> what it adds
    "base": "base model",
    "raw": "+ raw in-domain documents",
    "selected": "+ selected web documents",
    "trait": "+ TRAIT passages",
}


def main_table(
    arms: pd.DataFrame, tests: pd.DataFrame | None = None, forgetting: pd.DataFrame | None = None, *,
    metric: str = BITS, reference: str = "trait", title: str = "",
) -> Table:  # fmt: skip
    """Every arm: average over tasks, paired difference of the reference arm with p, forgetting, and each task.

    Where `tests` has the single tasks too (compare_all), a star says which of them differ from the reference arm.
    """
    shown, name = _Arms(arms, metric, tests, forgetting), label(reference)
    names = list(shown.rows[MACRO].index)
    pairs = {f"{name} minus this arm": [(reference, arm) for arm in names]} if tests is not None else {}
    columns = {"Arm": list(map(label, names))} | shown.columns(names, pairs)
    columns |= {label(task): shown.scores(task, names, reference) for task in shown.tasks}
    notes = [f"{shown.direction} is better; [confidence interval]; bold: best of its column."]
    if tests is not None:
        notes.append(f"{name} minus this arm: paired over the same items; p corrected for all arms (Holm).")
        notes.append(f"*: differs from {name} on this task, p < {ALPHA:g}, corrected for all arms and tasks (Holm).")
    return Table.of(title or f"All arms by {metric_name(metric)}", columns, notes + _what_could_show(tests, metric))


def ablation_table(
    arms: pd.DataFrame, chain: Iterable[str] = CHAIN, pairs: pd.DataFrame | None = None,
    forgetting: pd.DataFrame | None = None, *, metric: str = BITS, title: str = "",
) -> Table:  # fmt: skip
    """What each part adds (the paper's Table 4); `pairs`, from compare(outcomes, None, metric), has interval and p."""
    shown = _Arms(arms, metric, pairs, forgetting)
    known = shown.rows[MACRO].index
    names = [arm for arm in chain if arm in known]
    if len(names) < 2:
        raise TraitError(f"The ablation needs two of the arms {', '.join(chain)}; the results have {', '.join(known)}.")
    before = {"Change by this step": [names[0], *names[:-1]], "Change from base": [names[0]] * len(names)}
    steps = {header: list(zip(names, others, strict=True)) for header, others in before.items()}
    columns = {"Trained on": [CHAIN.get(arm, f"+ {label(arm)}") for arm in names]} | shown.columns(names, steps)
    notes = [f"{shown.direction} is better. Every trained arm saw the same number of tokens."]
    if pairs is not None:
        notes.append("[paired confidence interval over the same items]; p corrected for all pairs of arms (Holm).")
    return Table.of(title or "What does each part add?", columns, notes + _what_could_show(pairs, metric))


def comparison_table(tests: pd.DataFrame, title: str = "Pairs of arms", notes: Sequence[str] = ()) -> Table:
    """One row a comparison of compare or compare_all: the difference with its interval, effect, p, and what could show."""
    rows = pd.DataFrame([_compared(row) for row in tests.to_dict("records")])
    lower = ", ".join(metric_name(name) for name in sorted(LOWER_IS_BETTER & set(tests["metric"])))
    about = (
        "Paired over the same items; shares in points. p: McNemar or sign flips, with several seeds hierarchical bootstrap; "
        "Holm's correction over the averages of a metric, and over all cells of its tasks. "
        f"Better: p < {ALPHA:g}." + (f" Lower is better: {lower}." if lower else "")
    )
    seeds = "One training seed: intervals and p speak of these trained models, not of what other seeds would give."
    if (tests["seeds"] > 1).any():
        seeds = "Intervals and p speak of the recipes, trained anew on other seeds and asked other items."
    return Table.of(title, {name: list(rows[name]) for name in rows}, [about, seeds, *notes])


def save_comparison(tests: pd.DataFrame, outcomes: pd.DataFrame, notes: Sequence[str], folder: Path | None) -> Table:
    """The table of `tests`; with a folder also written there, the CSV with all columns and digits, and with its items."""
    table = comparison_table(tests, notes=notes)
    if folder:
        write_items(outcomes, folder, tests)
        table.save(folder, "comparison", links=True)
        _write(tests, folder / "comparison.csv")
    return table


def write_items(outcomes: pd.DataFrame, folder: Path | str, tests: pd.DataFrame | None = None) -> int:
    """Write the items behind every number, as files beside its table; return how many.

    One an arm, metric and task, and one a pair of `tests`. Questions are not in them: they are the test set's own.
    """
    outcomes, files = prepared(outcomes), {}
    keys = ["task", "seed", "item_id"]
    for (arm, metric), part in outcomes.groupby(["arm", "metric"], sort=False):
        for task in (MACRO, *dict.fromkeys(part["task"])):
            files[item_file(arm, task, metric)] = of_task(part, task)[[*keys, "value", "prediction", "gold"]]
    for row in tests.to_dict("records") if tests is not None else ():
        asked = of_task(outcomes[outcomes["metric"] == row["metric"]], row["task"])
        sides = [asked.loc[asked["arm"] == row[side], [*keys, "value"]] for side in ("reference", "arm")]
        both = sides[0].merge(sides[1], on=keys, suffixes=("_reference", "_arm"))
        files[_pair_file(row)] = both.assign(difference=both["value_reference"] - both["value_arm"])
    files = {name: rows for name, rows in files.items() if len(rows)}
    for name, rows in files.items():
        _write(rows, Path(folder) / name)
    return len(files)


def of_task(outcomes: pd.DataFrame, task: str) -> pd.DataFrame:
    """The average's items are those of all tasks that are not documents."""
    wanted = ~outcomes["task"].str.startswith(HELD_OUT) if task == MACRO else outcomes["task"] == task
    return outcomes[wanted]


def chain_of(arms: pd.DataFrame) -> list[str]:
    """The arms of the ablation in its order: the paper's, or where an experiment names its arms otherwise, all of them."""
    there = list(dict.fromkeys(arms["arm"]))
    chain = [arm for arm in CHAIN if arm in there]
    return chain if len(chain) > 1 else there


def paired(tests: pd.DataFrame | None, arm: str, other: str, metric: str, task: str = MACRO) -> dict[str, Any] | None:
    """What `tests` says of arm minus other, whichever of them was its reference; None where it does not compare them.

    `mean` and `before` are the means of the two.
    """
    for reference, compared, sign in ((arm, other, 1), (other, arm, -1)) if tests is not None else ():
        found = tests[(tests["reference"] == reference) & (tests["arm"] == compared)]
        found = found[(found["metric"] == metric) & (found["task"] == task)]
        if len(found):
            row = found.iloc[0].to_dict()
            low, high = sorted(sign * row[end] for end in ("low", "high"))
            mean, before = (row["reference_mean"], row["arm_mean"])[::sign]
            return row | {"difference": sign * row["difference"], "low": low, "high": high, "mean": mean, "before": before}
    return None


def item_file(arm: str, task: str, metric: str) -> str:
    """Where the outcomes behind a number stand, relative to its table."""
    return f"items/{_slug(arm)}-{_slug(task)}-{_slug(metric)}.csv"


def pair_file(reference: str, arm: str, metric: str, task: str = MACRO) -> str:
    return f"items/{_slug(reference)}-minus-{_slug(arm)}-{_slug(task)}-{_slug(metric)}.csv"


def _pair_file(row: Mapping[str, Any]) -> str:
    return pair_file(*(row[name] for name in ("reference", "arm", "metric", "task")))


def _slug(name: str) -> str:
    """The name as part of a file name and of a link; one that loses letters gets a digest: no two become the same."""
    name = name.replace(HELD_OUT, "held_out_").replace(MACRO, "average")
    kept = re.sub(r"[^A-Za-z0-9_.]+", "_", name)
    return kept if kept == name and len(kept) <= 60 else f"{kept[:60]}_{digest(name)[:8]}"


def _write(rows: pd.DataFrame, path: Path) -> None:
    texts = rows.select_dtypes(exclude=["number", "bool"]).columns
    rows = rows.assign(**{name: rows[name].fillna("").astype(str).map(cells.csv_text) for name in texts})
    with atomic_path(path) as temporary:
        rows.to_csv(temporary, index=False)


class _Arms:
    """The rows of one metric, a frame a task with arms as its index, and the cells that tables are made of."""

    def __init__(self, arms: pd.DataFrame, metric: str, tests: pd.DataFrame | None, forgetting: pd.DataFrame | None):
        documents = (arms["metric"] == BITS) & arms["task"].isin(list(DOCUMENTS))  # beside every metric of the tasks
        wanted = ((arms["metric"] == metric) & ~arms["task"].str.startswith(HELD_OUT)) | documents
        self.rows = {task: part.set_index("arm") for task, part in arms[wanted].groupby("task", sort=False)}
        self.tasks = [task for task in self.rows if task not in (MACRO, *DOCUMENTS)]
        self.metric, self.tests, self.forgetting = metric, tests, forgetting
        self.direction = f"{metric_name(metric).capitalize()}: {'lower' if metric in LOWER_IS_BETTER else 'higher'}"
        if MACRO not in self.rows:
            known = ", ".join(sorted(set(arms["metric"])))
            raise TraitError(f"The table of arms has no averages of {metric}; its metrics are {known}.")

    def columns(self, names: Sequence[str], pairs: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, list[Cell]]:
        """Of a row an arm: its average, a pair of arms in each row of the columns `pairs`, and what it forgot."""
        columns = {"Average of tasks": self.scores(MACRO, names)}
        columns |= {header: [self.pair(*pair) for pair in of_rows] for header, of_rows in pairs.items()}
        documents = {task: header for task, header in DOCUMENTS.items() if task in self.rows}
        return columns | {f"{header}, bits per byte": self.scores(task, names) for task, header in documents.items()}

    def scores(self, task: str, names: Sequence[str], starred_against: str = "") -> list[Cell]:
        """Means, the best in bold, each with its interval, or on documents with its change from the base model."""
        rows, metric = self.rows[task], BITS if task in DOCUMENTS else self.metric
        means, column = rows["mean"].reindex(names), []
        best = means.min() if metric in LOWER_IS_BETTER else means.max()
        for arm, mean in means.items():
            if math.isnan(mean):
                column.append(Cell("–"))
                continue
            small = f"[{', '.join(cells.number_text(rows.loc[arm, end], metric) for end in ('low', 'high'))}]"
            against = paired(self.tests, starred_against, arm, metric, task)
            small += "*" if against and against["p_holm"] < ALPHA else ""
            if task in DOCUMENTS and "base" in rows.index:
                change = self.pair(arm, "base", task)
                small = f"{change.text} {change.small}".strip("– ")
            column.append(Cell(cells.number_text(mean, metric), small, mean == best, item_file(arm, task, metric)))
        return column

    def pair(self, arm: str, other: str, task: str = MACRO) -> Cell:
        """arm minus other: the difference of their means, and where it was tested its paired interval and p."""
        if arm == other:
            return Cell("–")
        metric, tests = (BITS, self.forgetting) if task in DOCUMENTS else (self.metric, self.tests)
        mean, before = (float(self.rows[task].loc[name, "mean"]) for name in (arm, other))
        row = paired(tests, arm, other, metric, task)
        small = f"{interval_text(row['low'], row['high'], metric)}, p {cells.p_text(row['p_holm'])}" if row else ""
        return Cell(change_text(mean - before, metric, before), small, link=_pair_file(row) if row else "")


def _compared(row: dict[str, Any]) -> dict[str, Cell | str]:
    metric, task, reference, arm = (row[name] for name in ("metric", "task", "reference", "arm"))
    what = "average" if task == MACRO else label(task.removeprefix(HELD_OUT))
    better = label(reference if row["reference_better"] else arm)
    named = {
        "Difference": f"{label(reference)} minus {label(arm)}",
        "Task": f"{what} (held out)" if task.startswith(HELD_OUT) else what,
        "Metric": metric_name(metric),
        "Items": f"{row['n']:,}" + (f" x {row['seeds']} seeds" if row["seeds"] > 1 else ""),
    }
    numbers = {
        "Means": " and ".join(cells.number_text(row[f"{side}_mean"], metric) for side in ("reference", "arm")),
        "Difference [interval]": change_text(row["difference"], metric),
        "Effect": f"d_z {row['effect_size']:+.2f}",
        "p (Holm)": cells.p_text(row["p_holm"]),
        "Better": better if row["p_holm"] < ALPHA else "–",
        "Smallest that could show": cells.gain_text(row["smallest_gain"], metric),
    }
    small = {"Difference [interval]": interval_text(row["low"], row["high"], metric)}
    return named | {name: Cell(text, small.get(name, ""), link=_pair_file(row)) for name, text in numbers.items()}


def _what_could_show(tests: pd.DataFrame | None, metric: str) -> list[str]:
    """A note on the smallest true gains that the items at hand would have shown: the largest over the arms, by task."""
    if tests is None:
        return []
    rows = tests[(tests["metric"] == metric) & ~tests["task"].str.startswith(HELD_OUT)]
    shown = []
    for task, part in rows.groupby("task", sort=False):
        gain = cells.gain_text(part["smallest_gain"].max(), metric)
        shown.append(f"{'average' if task == MACRO else label(task)} {gain} (n {part['n'].max():,})")
    return [f"Smallest true difference that would have shown (80% power at the corrected {ALPHA:.0%}): {', '.join(shown)}."]
