"""What a finished run shows, computed once for its tables, its figures and the first screen of its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from trait_kit import runs, tables
from trait_kit.engine.files import TraitError
from trait_kit.evaluation.comparison import MACRO, arm_table, compare, compare_all, forgetting_of, main_metric
from trait_kit.figures.cells import Table, metric_name
from trait_kit.figures.style import label
from trait_kit.figures.tables import BITS, ablation_table, chain_of, main_table, of_task, write_items

NOT_RECORDED = "not recorded"
_REMOVED = ["same as a test question", "overlaps a test question"]  # columns of 03's screening


@dataclass(frozen=True)
class Evidence:
    """Outcomes of 05 and the tests on them; a table of tests is None where there are too few arms for it."""

    outcomes: pd.DataFrame
    reference: str
    metric: str  # the main one
    arms: pd.DataFrame
    tests: pd.DataFrame | None  # the reference arm against every other
    pairs: pd.DataFrame | None  # of the ablation
    forgetting: pd.DataFrame | None  # the base model against every other


def read(run_dir: Path | str) -> Evidence:
    """TraitError where 05 is not finished, or where its reference arm was not evaluated."""
    record = runs.recorded(Path(run_dir), "05_evaluate")
    if record is None:
        raise TraitError(f"{run_dir} has not finished 05_evaluate. Run it first.")
    outcomes = _outcomes(run_dir)
    arms, reference = arm_table(outcomes), record["params"]["reference_arm"]
    names = list(dict.fromkeys(arms["arm"]))
    if reference not in names:
        raise TraitError(f"05_evaluate has no outcomes of the reference arm '{reference}', but of {', '.join(names)}.")
    metric, tests, pairs = main_metric(outcomes), None, None
    if len(names) > 1:
        tests = compare_all(outcomes, reference)
        of_chain = outcomes[outcomes["arm"].isin(chain_of(arms))]
        pairs = pd.concat([compare(of_chain, None, name) for name in _metrics(arms)], ignore_index=True)
    return Evidence(outcomes, reference, metric, arms, tests, pairs, forgetting_of(outcomes))


def paper_tables(found: Evidence, run_dir: Path | str) -> dict[str, Table]:
    """main_table, ablation_table (of each metric; other than bits per byte with its name behind) and contamination."""
    passages = runs.recorded(Path(run_dir), "03_write_passages") or {}
    ads = passages.get("params", {}).get("grouping") == "entity"
    paper, chain = "Table 1: advertising" if ads else "Table 2: mathematics", chain_of(found.arms)
    arms, forgetting = found.arms, found.forgetting
    made = {}
    for metric in sorted(_metrics(arms), key=lambda metric: metric != found.metric):
        behind, name = "" if metric == BITS else f"_{metric}", metric_name(metric)
        shown = {"metric": metric, "title": f"{paper}, all arms by {name}"}
        made[f"main_table{behind}"] = main_table(arms, found.tests, forgetting, reference=found.reference, **shown)
        if found.pairs is not None:
            shown["title"] = f"Table 4: what does each part add, by {name}?"
            made[f"ablation_table{behind}"] = ablation_table(arms, chain, found.pairs, forgetting, **shown)
    return made | {"contamination": contamination_table(run_dir)}


def write_paper_tables(found: Evidence, made: dict[str, Table], folder: Path | str) -> None:
    """The paper's tables, each as Markdown, LaTeX, CSV and HTML, and the items behind their numbers, into `folder`."""
    tests = [table for table in (found.tests, found.pairs) if table is not None]
    write_items(found.outcomes, folder, pd.concat(tests, ignore_index=True) if tests else None)
    for name, table in made.items():
        table.save(folder, name, links=True)


def contamination_table(run_dir: Path | str) -> Table:
    """What the test sets shared with web documents, training problems and passages, by task; all of it was taken out.

    From what 02, 03 and 05 recorded: evidence of 02's documents (a row a document and question), 03's screening of problems
    and its rejected passages, counted under every task of their problems. What a run did not record is said to be so.
    """
    tested = of_task(_outcomes(run_dir), MACRO).groupby("task", sort=False)["item_id"].nunique()
    counts: dict[str, pd.Series | None] = {"Test items": tested}
    found = _parquet(Path(run_dir, "02_filter_web", "selections", "contaminated.parquet"))
    by_task = found.groupby("question_task") if found is not None and "question_task" in found else None
    counts["of these in a web document"] = None if by_task is None else by_task["question_id"].nunique()
    counts["Web documents removed"] = None if by_task is None else by_task["id"].nunique()
    screened = _parquet(Path(run_dir, "03_write_passages", "screened.parquet"))
    screened = None if screened is None else screened.groupby("task").sum(numeric_only=True)
    counts["Training problems"] = None if screened is None else screened["problems"]
    counts["of these removed"] = None if screened is None else screened.reindex(columns=_REMOVED).sum(axis=1)
    rejected = _parquet(Path(run_dir, "03_write_passages", "rejected.parquet"))
    if rejected is not None:
        leaked = rejected[rejected["reason"].fillna("").str.startswith("contamination:")]
        rejected = leaked["tasks"].map(set).explode().value_counts()
    counts["Passages rejected"] = rejected
    columns = {"Task": [*map(label, tested.index), "all"]}
    for name, count in counts.items():
        columns[name] = [NOT_RECORDED] * (len(tested) + 1)
        if count is not None:
            values = count.reindex(tested.index, fill_value=0).astype(int)
            columns[name] = [f"{value:,}" for value in (*values, values.sum())]
    if found is not None:  # a document that holds questions of two tasks is one in the last row
        columns["Web documents removed"][-1] = f"{found['id'].nunique():,}"
    notes = [
        "Compared by normalised text and by 13-grams (half of a question's). Everything counted as removed or rejected was "
        "never trained on. A document that holds questions of two tasks counts for both, and once in the last row.",
        "Not compared: the base model's own pre-training data, which nobody outside has.",
    ]
    return Table.of("Contamination: what the test sets shared with the training texts", columns, notes)


def _metrics(arms: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(arms.loc[arms["task"] == MACRO, "metric"]))


def _outcomes(run_dir: Path | str) -> pd.DataFrame:
    return tables.read(Path(run_dir, "05_evaluate", "outcomes.parquet"), "outcomes").to_pandas()


def _parquet(path: Path) -> pd.DataFrame | None:
    return pd.read_parquet(path) if path.exists() else None
