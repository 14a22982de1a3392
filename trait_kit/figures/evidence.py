"""What a finished run shows, computed once for its tables, its figures and the first screen of its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from trait_kit import runs, tables
from trait_kit.engine.files import TraitError, atomic_path
from trait_kit.evaluation.comparison import (
    HELD_OUT,
    MACRO,
    arm_table,
    compare,
    compare_all,
    forgetting_of,
    main_metric,
    prepared,
)
from trait_kit.figures.cells import Cell, Table, csv_text, metric_name
from trait_kit.figures.style import label
from trait_kit.figures.tables import BITS, ablation_table, chain_of, comparison_table, item_file, main_table, pair_file

NOT_RECORDED = "not recorded"
_REMOVED = ["same as a test question", "overlaps a test question"]  # columns of 03's screening


@dataclass(frozen=True)
class Evidence:
    """Outcomes of 05 and all tests on them; `tests`: the reference arm against every other, `pairs`: of the ablation."""

    outcomes: pd.DataFrame
    reference: str
    confidence: float
    metric: str  # the main one
    arms: pd.DataFrame
    tests: pd.DataFrame | None  # None with a single arm
    pairs: pd.DataFrame | None
    forgetting: pd.DataFrame | None

    @property
    def metrics(self) -> list[str]:
        """Those with an average over tasks, the main one first."""
        found = self.arms.loc[self.arms["task"] == MACRO, "metric"]
        return list(dict.fromkeys([self.metric, *found]))


def read(run_dir: Path | str) -> Evidence:
    """TraitError where 05 is not finished, or where its reference arm was not evaluated."""
    run_dir = Path(run_dir)
    record = runs.recorded(run_dir, "05_evaluate")
    if record is None:
        raise TraitError(f"{run_dir} has not finished 05_evaluate. Run it first.")
    path = run_dir / "05_evaluate" / "outcomes.parquet"
    outcomes = tables.read(path, "outcomes").to_pandas()
    reference = record["params"].get("reference_arm", "trait")
    confidence = record["params"].get("confidence", 0.95)
    arms = arm_table(outcomes, confidence)
    names = list(dict.fromkeys(arms["arm"]))
    if reference not in names:
        raise TraitError(f"{path} has no outcomes of the reference arm '{reference}'; its arms: {', '.join(names)}.")
    chain, metrics = chain_of(arms), list(dict.fromkeys(arms.loc[arms["task"] == MACRO, "metric"]))
    several = len(names) > 1
    of_chain = outcomes[outcomes["arm"].isin(chain)]
    pairs = [compare(of_chain, None, metric, confidence) for metric in metrics] if several else []
    return Evidence(
        outcomes,
        reference,
        confidence,
        main_metric(outcomes),
        arms,
        compare_all(outcomes, reference, confidence) if several else None,
        pd.concat(pairs, ignore_index=True) if pairs else None,
        forgetting_of(outcomes, confidence),
    )


def paper_tables(found: Evidence, run_dir: Path | str) -> dict[str, Table]:
    """main_table, ablation_table (of each metric; other than bits per byte with its name behind) and contamination."""
    passages = runs.recorded(Path(run_dir), "03_write_passages") or {}
    ads = (passages.get("params") or {}).get("grouping") == "entity"
    name = "Table 1: advertising" if ads else "Table 2: mathematics"
    made, chain = {}, chain_of(found.arms)
    for metric in found.metrics:
        behind = "" if metric == BITS else f"_{metric}"
        title = f"{name}, all arms by {metric_name(metric)}"
        made[f"main_table{behind}"] = main_table(
            found.arms, found.tests, found.forgetting, metric=metric, reference=found.reference, title=title
        )
        if len(chain) > 1:
            title = f"Table 4: what does each part add, by {metric_name(metric)}?"
            made[f"ablation_table{behind}"] = ablation_table(
                found.arms, chain, found.pairs, found.forgetting, metric=metric, title=title
            )
    return made | {"contamination": contamination_table(run_dir)}


def write_paper_tables(run_dir: Path | str, folder: Path | str, found: Evidence | None = None) -> dict[str, Table]:
    """Write the paper's tables and the items behind their numbers into `folder`, and return them."""
    found = found or read(run_dir)
    made = paper_tables(found, run_dir)
    tests = [table for table in (found.tests, found.pairs) if table is not None]
    write_items(found.outcomes, folder, pd.concat(tests, ignore_index=True) if tests else None)
    for name, table in made.items():
        table.save(folder, name, links=True)
    return made


def save_comparison(tests: pd.DataFrame, outcomes: pd.DataFrame, notes: Sequence[str], folder: Path | None) -> Table:
    """The table of `tests`; with a folder also written there, the CSV with all columns and digits, and with its items."""
    table = comparison_table(tests, notes=notes)
    if folder:
        write_items(outcomes, folder, tests)
        table.save(folder, "comparison", links=True)
        _write(tests, folder / "comparison.csv")
    return table


def write_items(outcomes: pd.DataFrame, folder: Path | str, comparisons: pd.DataFrame | None = None) -> int:
    """Write the items behind every number, as files beside its table; return how many.

    One a arm, metric and task, and one a pair of `comparisons`. Questions are not in them: they are the test set's own.
    """
    folder, outcomes = Path(folder), prepared(outcomes)
    columns = ["task", "seed", "item_id", "value", "prediction", "gold"]
    files = {}
    for (arm, metric), part in outcomes.groupby(["arm", "metric"], sort=False):
        for task in [MACRO, *dict.fromkeys(part["task"])]:
            files[item_file(arm, task, metric)] = _of_task(part, task)[columns]
    keys = ["task", "seed", "item_id"]
    pairs = comparisons[["reference", "arm", "metric", "task"]] if comparisons is not None else pd.DataFrame()
    for reference, arm, metric, task in pairs.itertuples(index=False):
        rows = _of_task(outcomes[outcomes["metric"] == metric], task)
        sides = [rows.loc[rows["arm"] == name, [*keys, "value"]] for name in (reference, arm)]
        both = sides[0].merge(sides[1], on=keys, suffixes=("_reference", "_arm"))
        both["difference"] = both["value_reference"] - both["value_arm"]
        files[pair_file(reference, arm, metric, task)] = both
    files = {name: rows for name, rows in files.items() if len(rows)}
    for name, rows in files.items():
        _write(rows, folder / name)
    return len(files)


def _of_task(outcomes: pd.DataFrame, task: str) -> pd.DataFrame:
    """The average's items are those of all tasks that are not documents."""
    if task == MACRO:
        return outcomes[~outcomes["task"].str.startswith(HELD_OUT)]
    return outcomes[outcomes["task"] == task]


def _write(rows: pd.DataFrame, path: Path) -> None:
    texts = rows.select_dtypes(exclude=["number", "bool"]).columns
    rows = rows.assign(**{name: rows[name].fillna("").astype(str).map(csv_text) for name in texts})
    with atomic_path(path) as temporary:
        rows.to_csv(temporary, index=False)


def contamination_table(run_dir: Path | str) -> Table:
    """What the test sets shared with web documents, training problems and passages, by task; all of it was taken out.

    From what 02, 03 and 05 recorded: evidence of 02's documents, 03's screening of problems and its rejected passages,
    counted under every task of their problems. What a run did not record is said to be so.
    """
    run_dir = Path(run_dir)
    outcomes = tables.read(run_dir / "05_evaluate" / "outcomes.parquet", "outcomes").to_pandas()
    tested = _of_task(outcomes, MACRO).groupby("task", sort=False)["item_id"].nunique()
    found = _parquet(run_dir / "02_filter_web" / "selections" / "contaminated.parquet")
    named = found is not None and {"question_task", "question_id"} <= set(found.columns)
    by_task = found.groupby("question_task") if named else None
    screened = _parquet(run_dir / "03_write_passages" / "screened.parquet")
    screened = screened.groupby("task").sum(numeric_only=True) if screened is not None else None
    rejected = _parquet(run_dir / "03_write_passages" / "rejected.parquet")
    if rejected is not None:
        leaked = rejected[rejected["reason"].fillna("").str.startswith("contamination:")]
        rejected = leaked["tasks"].map(set).explode().value_counts()
    counts = {
        "Test items": tested,
        "of these in a web document": by_task["question_id"].nunique() if named else None,
        "Web documents removed": by_task["id"].nunique() if named else None,
        "Training problems": screened["problems"] if screened is not None else None,
        "of these removed": screened.reindex(columns=_REMOVED).sum(axis=1) if screened is not None else None,
        "Passages rejected": rejected,
    }
    columns = {"Task": [*map(label, tested.index), "all"]}
    for name, count in counts.items():
        columns[name] = [Cell(NOT_RECORDED)] * (len(tested) + 1)
        if count is not None:
            values = count.reindex(tested.index, fill_value=0).astype(int)
            columns[name] = [Cell(f"{value:,}") for value in (*values, values.sum())]
    if found is not None:  # a document that holds questions of two tasks is one in the last row
        columns["Web documents removed"][-1] = Cell(f"{found['id'].nunique():,}")
    notes = [
        "Compared by normalised text and by 13-grams (half of a question's). Everything counted as removed or rejected was "
        "never trained on. A document that holds questions of two tasks counts for both, and once in the last row.",
        "Not compared: the base model's own pre-training data, which nobody outside has.",
    ]
    return Table.of("Contamination: what the test sets shared with the training texts", columns, notes)


def _parquet(path: Path) -> pd.DataFrame | None:
    return pd.read_parquet(path) if path.exists() else None
