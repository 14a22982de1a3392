"""What a finished run shows, computed once for the tables of the paper, its figures and the first screen of its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from trait_kit import runs, tables
from trait_kit.evaluation.comparison import HELD_OUT, MACRO, arm_table, compare, compare_all, main_metric
from trait_kit.figures.cells import Table, metric_name, notes
from trait_kit.figures.style import label
from trait_kit.figures.tables import BITS, GENERAL, ablation_table, chain_of, main_table, write_items
from trait_kit.passages.quality import REASONS


@dataclass(frozen=True)
class Evidence:
    """Outcomes of 05, the tests on them, and the paper's tables, the main one first."""

    outcomes: pd.DataFrame
    reference: str
    metric: str  # the main one
    wanted_metric: str  # and the arm that the reference has to beat, where the experiment names them
    control: str
    arms: pd.DataFrame
    tests: pd.DataFrame  # the reference arm against every other
    pairs: pd.DataFrame  # of the ablation
    tables: dict[str, Table]


def read(run_dir: Path) -> Evidence:
    """TraitError where 05 is not finished, or where its reference arm was not evaluated."""
    record = runs.finished(run_dir, "05_evaluate")
    outcomes = tables.read(run_dir / "05_evaluate" / "outcomes.parquet", "outcomes").to_pandas()
    reference, wanted = record["params"]["reference_arm"], record["params"].get("main_metric", "")
    metric = main_metric(outcomes, wanted)
    arms, tests = arm_table(outcomes), compare_all(outcomes, reference, metric)
    forgetting = compare(outcomes, "base", BITS, GENERAL)
    metrics = sorted(set(arms.loc[arms["task"] == MACRO, "metric"]), key=lambda name: (name != metric, name))
    of_chain = outcomes[outcomes["arm"].isin(chain_of(arms))]
    pairs = pd.concat([compare(of_chain, None, name) for name in metrics], ignore_index=True)
    ads = runs.recorded(run_dir, "03_write_passages")["params"]["grouping"] == "entity"
    paper = "Table 1: advertising" if ads else "Table 2: mathematics"
    made = {}
    for name in metrics:
        behind = "" if name == metric else f"_{name}"
        title = f"{paper}, all arms by {metric_name(name)}"
        made[f"main_table{behind}"] = main_table(arms, pd.concat([forgetting, tests]), name, reference, title)
        title = f"Table 4: what does each part add, by {metric_name(name)}?"
        made[f"ablation_table{behind}"] = ablation_table(arms, pd.concat([forgetting, pairs]), name, title)
    made["contamination"] = contamination_table(outcomes, run_dir)
    control = record["params"].get("control_arm", "")
    return Evidence(outcomes, reference, metric, wanted, control, arms, tests, pairs, made)


def read_and_write(step: Any) -> Evidence:
    """Unless the step is finished, also write its tables and the items behind their numbers into its folder."""
    found = read(step.run_dir)
    if not step.done:
        write_items(found.outcomes, step.folder, pd.concat([found.tests, found.pairs]))
        for name, table in found.tables.items():
            table.save(step.folder, name)
    return found


def form_table(run_dir: Path) -> Table:
    """How much of a task's test texts is the form of its training texts: a gain on such a task can be form alone."""
    frame = pd.read_csv(run_dir / "05_evaluate" / "form_overlap.csv")
    columns = {"Task": frame["task"].map(label).tolist(), "Test items": frame["items"].map(str).tolist()}
    columns["6-grams that stand in training problems"] = [f"{share:.0%}" for share in frame["overlap"]]
    return Table("Form: how much of the test texts stands in the training problems, numbers masked", columns, [])


def contamination_table(outcomes: pd.DataFrame, run_dir: Path) -> Table:
    """What the test sets shared with web documents, training problems and passages, by task; all of it was taken out.

    From 02's evidence (a row a document and question), 03's screening of problems and its rejected passages, which
    count under every task of their problems.
    """
    tested = outcomes[~outcomes["task"].str.startswith(HELD_OUT)].groupby("task", sort=False)["item_id"].nunique()
    web = pd.read_parquet(run_dir / "02_filter_web" / "selections" / "contaminated.parquet").groupby("question_task")
    screened = pd.read_parquet(run_dir / "03_write_passages" / "screened.parquet").groupby("task")
    rejected = pd.read_parquet(run_dir / "03_write_passages" / "rejected.parquet")
    leaked = rejected.loc[rejected["reason"].str.startswith("contamination:"), "tasks"]
    counts = {
        "Test items": tested,
        "of these in a web document": web["question_id"].nunique(),
        "Web documents removed": web["id"].nunique(),
        "Training problems": screened["problems"].sum(),
        "of these removed": screened[list(REASONS[:2])].sum().sum(axis=1),
        "Passages rejected": leaked.map(set).explode().value_counts(),
    }
    frame = pd.DataFrame(counts).reindex(tested.index).fillna(0)
    columns = {name: [f"{count:,.0f}" for count in (*frame[name], frame[name].sum())] for name in frame}
    left_out = (runs.recorded(run_dir, "01_domain_classifier") or {"summary": {}})["summary"].get("left_out", {})
    said = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "none"
    title = "Contamination: what the test sets shared with the training texts"
    return Table(title, {"Task": [*map(label, tested.index), "all"]} | columns, notes("contamination", left_out=said))
