"""What a finished run shows: the verdict, the paper's tables (1, 2 and 4), and the items behind every number as files.

`arms` is comparison.arm_table's; `tests` has rows of compare and compare_all.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from trait_kit import runs, tables
from trait_kit.engine.files import TraitError, digest
from trait_kit.evaluation import comparison
from trait_kit.evaluation.comparison import ALPHA, HELD_OUT, LOWER_IS_BETTER, MACRO, main_metric
from trait_kit.figures import cells
from trait_kit.figures.cells import BITS, GENERAL, Cell, Table, change_text, metric_name, number_text
from trait_kit.figures.curves import plot_gain_and_forgetting
from trait_kit.figures.style import label, spelt
from trait_kit.passages.quality import REASONS

SAY = jinja2.Template(
    Path(__file__).with_name("verdict.jinja").read_text(encoding="utf-8"), trim_blocks=True
).make_module(vars(comparison))  # its thresholds are in the words
DOCUMENTS = {GENERAL: "General text, bits per byte", f"{HELD_OUT}in_domain": "In-domain text, bits per byte"}
CHAIN = cells.WORDING["chain"]  # of the ablation: arm -> what it adds


def control_of(arms: Sequence[str], reference: str, named: str = "") -> str:
    """The arm that the reference has to beat: the `named` one, or what reads the same problems without the structure."""
    order = (named, "worked", "worked_same", "selected", "base", *arms)
    return next((arm for arm in order if arm in arms and arm != reference), "")


def verdict(tests: pd.DataFrame, wanted_metric: str, reference: str, control: str = "") -> dict[str, Any]:
    """What the tests of `reference` (comparison.compare_all's) allow to be said, in verdict.jinja's words.

    headline: the answer; good: better than its control and worse in nothing; worse: what fell, shown or not; forgetting:
    against base, the control and `selected`; cannot_show.
    """
    metric, macro = main_metric(tests, wanted_metric), tests["task"] == MACRO
    by_main = tests[tests["metric"] == metric]
    rivals = by_main[by_main["task"] == MACRO].set_index("arm", drop=False)
    control = control_of(list(rivals.index), reference, control)
    row = rivals.loc[control]
    better, lower = row["gain"] > 0, tests["gain"] < 0
    found = lower & (tests["p_holm"] < ALPHA)
    beside = lower & macro & (tests["arm"] == control) & (tests["metric"] != metric)
    worse = tests[found | beside].sort_values("p_holm", kind="stable")
    general = tests[tests["task"].str.startswith(HELD_OUT) & (tests["task"] != f"{HELD_OUT}in_domain")]
    told = {"worse": worse, "forgetting": general[general["arm"].isin(["base", control, "selected"])]}
    of_tasks = set(tests.loc[~tests["task"].str.startswith(HELD_OUT), "task"])
    unseen = {
        "metric": metric_name(metric),
        "wanted": metric_name(wanted_metric),
        "seeds": by_main["seeds"].max(),
        "lacking": sorted(of_tasks - set(by_main["task"])),
        "one_template": list(by_main.loc[by_main["clusters"] < 2, "task"].unique()),
        "forgetting": len(general),
    }

    return {
        "question": str(SAY.question(reference, control)),
        "headline": str(SAY.headline(cells.words(row), better, len(rivals))).replace("\n", ""),
        "good": bool(row["shown"] and better and not found.any()),
        "main_metric": metric,
        "control_arm": control,
        **{
            part: [str(SAY.line(cells.words(row))) for row in rows.to_dict("records")]
            for part, rows in told.items()
        },
        "cannot_show": str(SAY.cannot_show(**unseen)).splitlines(),
    }


@dataclass(frozen=True)
class Evidence:
    reference: str
    metric: str  # the main one
    arms: pd.DataFrame
    tests: pd.DataFrame  # the reference arm against every other
    said: dict[str, Any]  # verdict's
    tables: dict[str, Table]  # the main one first


def read_and_write(step: Any) -> Evidence:
    return read(step.run_dir, None if step.done else step.folder)


def read(run_dir: Path, folder: Path | None = None) -> Evidence:
    """TraitError where 05 is not finished. With a folder, tables are written there with the items behind them."""
    asked = runs.finished(run_dir, "05_evaluate")["params"]
    outcomes = tables.read(run_dir / "05_evaluate" / "outcomes.parquet", "outcomes").to_pandas()
    reference, wanted = asked["reference_arm"], asked.get("main_metric", "")
    metric, arms = main_metric(outcomes, wanted), comparison.arm_table(outcomes)
    tests = comparison.compare_all(outcomes, reference, metric)
    forgetting = comparison.compare(outcomes, "base", BITS, GENERAL)
    metrics = sorted(set(arms.loc[arms["task"] == MACRO, "metric"]), key=lambda name: (name != metric, name))
    of_chain = outcomes[outcomes["arm"].isin(chain_of(arms))]
    pairs = pd.concat([comparison.compare(of_chain, None, name) for name in metrics])
    made = {}
    for name in metrics:
        behind = f"_{name}" * (name != metric)
        made[f"main_table{behind}"] = main_table(arms, pd.concat([forgetting, tests]), name, reference)
        made[f"ablation_table{behind}"] = ablation_table(arms, pd.concat([forgetting, pairs]), name)
    made["contamination"] = contamination_table(outcomes, run_dir)
    if (run_dir / "05_evaluate" / "form_overlap.csv").exists():
        made["form"] = form_table(run_dir)
    if folder:
        write_items(outcomes, folder, pd.concat([tests, pairs]))
        for name, table in made.items():
            table.save(folder, name)

    return Evidence(
        reference, metric, arms, tests, verdict(tests, wanted, reference, asked.get("control_arm", "")), made
    )


def main_table(arms: pd.DataFrame, tests: pd.DataFrame, metric: str, reference: str) -> Table:
    shown, name = _Arms(arms, tests, metric), label(reference)
    names = list(shown.rows[MACRO].index)
    columns = {
        "Arm": list(map(label, names)),
        "Average of tasks": shown.scores(MACRO, names),
        f"Gain of {name} over this arm": [shown.pair(reference, arm) for arm in names],
        **shown.documents(names),
        **{spelt(task): shown.scores(task, names, reference) for task in shown.tasks},
    }
    return shown.made("main", columns, name=name)


def ablation_table(arms: pd.DataFrame, pairs: pd.DataFrame, metric: str) -> Table:
    """What each part adds; `pairs` has rows of compare(outcomes, None, metric)."""
    shown, names = _Arms(arms, pairs, metric), chain_of(arms)
    columns = {
        "Trained on": [CHAIN.get(arm, f"+ {label(arm)}") for arm in names],
        "Average of tasks": shown.scores(MACRO, names),
        "Gain by this step": [Cell("–")] + [shown.pair(arm, before) for before, arm in pairwise(names)],
        "Gain over base": [shown.pair(arm, names[0]) for arm in names],
        **shown.documents(names),
    }
    return shown.made("ablation", columns)


def comparison_table(tests: pd.DataFrame, notes: Sequence[str] = ()) -> Table:
    columns = pd.DataFrame(map(_compared, tests.to_dict("records"))).to_dict("list")
    lower = ", ".join(map(metric_name, sorted(LOWER_IS_BETTER & set(tests["metric"])))) or "none"
    return cells.made(
        f"pairs_of_{'several_seeds' if tests['seeds'].max() > 1 else 'one_seed'}", columns, notes, lower=lower
    )


def save_comparison(
    tests: pd.DataFrame, outcomes: pd.DataFrame, notes: Sequence[str], folder: Path | None
) -> Table:
    """The table; with a folder written there, with its items, its figure, and a CSV with all digits."""
    table = comparison_table(tests, notes)
    if folder:
        write_items(outcomes, folder, tests)
        table.save(folder, "comparison")
        cells.write_csv(tests, folder / "comparison.csv")
        if tests["reference"].nunique() == 1:
            plot_gain_and_forgetting(tests, *tests[["reference", "metric"]].iloc[0]).save(folder, "comparison")
    return table


def form_table(run_dir: Path) -> Table:
    """How much of a task's test texts is the form of its training texts: a gain there can be form alone."""
    frame = pd.read_csv(run_dir / "05_evaluate" / "form_overlap.csv")
    shares = [f"{share:.0%}" for share in frame["overlap"]]
    columns = {"Task": list(map(spelt, frame["task"])), "Test items": list(map(str, frame["items"]))}
    return cells.made("form", {**columns, "6-grams that stand in training problems": shares})


def contamination_table(outcomes: pd.DataFrame, run_dir: Path) -> Table:
    """What the test sets shared with web documents, training problems and passages, by task; all of it was taken out."""
    tested = outcomes[~outcomes["task"].str.startswith(HELD_OUT)].groupby("task", sort=False)["item_id"].nunique()
    web = pd.read_parquet(run_dir / "02_filter_web" / "selections" / "contaminated.parquet").groupby(
        "question_task"
    )
    screened = pd.read_parquet(run_dir / "03_write_passages" / "screened.parquet").groupby("task")
    rejected = pd.read_parquet(run_dir / "03_write_passages" / "rejected.parquet")
    counts = {
        "Test items": tested,
        "of these in a web document": web["question_id"].nunique(),
        "Web documents removed": web["id"].nunique(),
        "Training problems": screened["problems"].sum(),
        "of these removed": screened[list(REASONS[:2])].sum().sum(axis=1),
        "Passages rejected": rejected.loc[rejected["reason"].str.startswith("contamination:"), "tasks"]
        .map(set)
        .explode()
        .value_counts(),
    }
    frame = pd.DataFrame(counts).reindex(tested.index).fillna(0)
    columns = {name: [f"{count:,.0f}" for count in (*frame[name], frame[name].sum())] for name in frame}
    left_out = (runs.recorded(run_dir, "01_domain_classifier") or {"summary": {}})["summary"].get("left_out", {})
    said = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "none"

    return cells.made("contamination", {"Task": [*map(spelt, tested.index), "all"]} | columns, left_out=said)


def write_items(outcomes: pd.DataFrame, folder: Path | str, tests: pd.DataFrame) -> None:
    """The items behind every number, less questions: a file an arm and metric, one a pair and metric."""
    outcomes, keys = comparison.prepared(outcomes), ["task", "seed", "item_id"]
    parts = {
        names: part[[*keys, "value", "prediction", "gold"]] for names, part in outcomes.groupby(["arm", "metric"])
    }
    for (arm, metric), part in parts.items():
        cells.write_csv(part, Path(folder) / item_file(arm, metric))
    for reference, arm, metric in set(tests[["reference", "arm", "metric"]].itertuples(index=False, name=None)):
        sides = [parts[name, metric][[*keys, "value"]] for name in (reference, arm)]
        both = sides[0].merge(sides[1], on=keys, suffixes=("_reference", "_arm"))
        both["gain"] = (both["value_reference"] - both["value_arm"]) * (-1 if metric in LOWER_IS_BETTER else 1)
        cells.write_csv(both, Path(folder) / item_file(reference, arm, metric))


def chain_of(arms: pd.DataFrame) -> list[str]:
    """The ablation's arms in order: the paper's, or all where an experiment has others."""
    there = list(dict.fromkeys(arms["arm"]))
    chain = [arm for arm in CHAIN if arm in there]
    return chain if len(chain) > 1 else there


def item_file(*names: str) -> str:
    """Where the outcomes of an arm, or of one over another, on a metric stand beside a table."""
    *arms, metric = map(_slug, names)
    return f"items/{'-over-'.join(arms)}-{metric}.csv"


def _slug(name: str) -> str:
    """A name that loses letters gets a digest: no two become the same."""
    kept = re.sub(r"[^A-Za-z0-9_.]+", "_", name)[:60]
    return kept if kept == name else f"{kept}_{digest(name)[:8]}"


class _Arms:
    """One metric's rows, a frame a task with arms as its index, and the cells that tables are made of."""

    def __init__(self, arms: pd.DataFrame, tests: pd.DataFrame, metric: str) -> None:
        # documents beside every metric
        wanted = arms["task"].str.startswith(HELD_OUT) | (arms["metric"] == metric)
        self.rows = {task: part.set_index("arm") for task, part in arms[wanted].groupby("task", sort=False)}
        if MACRO not in self.rows:
            raise TraitError(f"No task has {metric}; the metrics are {', '.join(sorted(set(arms['metric'])))}.")
        self.tasks = [task for task in self.rows if task != MACRO and not task.startswith(HELD_OUT)]
        self.tests, self.metric = tests, metric

    def made(self, kind: str, columns: Mapping[str, Sequence[Cell | str]], **facts: str) -> Table:
        """With a note of the smallest true gains that would have shown: by task, the arms' largest."""
        rows = self.tests[(self.tests["metric"] == self.metric) & ~self.tests["task"].str.startswith(HELD_OUT)]
        largest = {
            task: part.iloc[part["smallest_gain"].argmax()] for task, part in rows.groupby("task", sort=False)
        }
        shown = [
            f"{'average' if task == MACRO else spelt(task)} {cells.words(row)['smallest']} (n {row['n']:,})"
            for task, row in largest.items()
        ]
        better = "lower" if self.metric in LOWER_IS_BETTER else "higher"
        facts["direction"] = f"{metric_name(self.metric).capitalize()}: {better} is better"
        return cells.made(kind, columns, metric=metric_name(self.metric), shown=", ".join(shown), **facts)

    def scores(self, task: str, names: Sequence[str], starred_against: str = "") -> list[Cell]:
        """Means, each with its interval, or on documents with its gain over the base model."""
        rows, metric, column = self.rows[task].reindex(names), BITS if task in DOCUMENTS else self.metric, []
        best = rows["mean"].min() if metric in LOWER_IS_BETTER else rows["mean"].max()
        for arm, mean, low, high in rows[["mean", "low", "high"]].itertuples(name=None):
            sure = self.tested(starred_against, arm, task).get("shown", False)
            small = cells.interval_text(low, high, metric, number_text) + "*" * sure
            if task in DOCUMENTS:
                gain = self.pair(arm, "base", task)
                small = f"gain {gain.text} {gain.small}" * bool(gain.small)
            column.append(Cell(number_text(mean, metric), small, mean == best, item_file(arm, metric)))
        return column

    def documents(self, names: Sequence[str]) -> dict[str, list[Cell]]:
        return {header: self.scores(task, names) for task, header in DOCUMENTS.items() if task in self.rows}

    def pair(self, arm: str, other: str, task: str = MACRO) -> Cell:
        if not (row := self.tested(arm, other, task)):
            return Cell("–")
        said, before = cells.words(row), row["arm_mean" if row["reference"] == arm else "reference_mean"]
        link = item_file(row["reference"], row["arm"], row["metric"])
        return Cell(
            change_text(row["gain"], row["metric"], before), f"{said['interval']}, p {said['p']}", link=link
        )

    def tested(self, arm: str, other: str, task: str) -> dict[str, Any]:
        """The first test of these two, as the gain of `arm` over `other`; {} for none."""
        metric = BITS if task in DOCUMENTS else self.metric
        of_both = self.tests[["reference", "arm"]].isin([arm, other])
        found = self.tests[of_both.all(axis=1) & (self.tests["metric"] == metric) & (self.tests["task"] == task)]
        row = next(iter(found.to_dict("records")), {})
        if row.get("reference", arm) == arm:
            return row
        return row | {"gain": -row["gain"], "gain_low": -row["gain_high"], "gain_high": -row["gain_low"]}


def _compared(row: Mapping[str, Any]) -> dict[str, Cell | str]:
    metric, task, reference, arm = (row[name] for name in ("metric", "task", "reference", "arm"))
    said, link = cells.words(row), item_file(reference, arm, metric)
    means = f"{number_text(row['reference_mean'], metric)} and {number_text(row['arm_mean'], metric)}"
    return {
        "Arms": f"{label(reference)} over {label(arm)}",
        "Task": "average" if task == MACRO else spelt(task.replace(HELD_OUT, "held out: ")),
        "Metric": said["metric"],
        "Items": f"{row['n']:,}" + (f" x {row['seeds']} seeds" if row["seeds"] > 1 else ""),
        "Means": Cell(means, link=link),
        "Gain [interval]": Cell(said["gain"], said["interval"], link=link),
        "p (Holm)": Cell(said["p"], link=link),
        "Better": label(reference if row["gain"] > 0 else arm) if row["shown"] else "–",
        "Smallest that could show": said["smallest"],
    }
