"""What a finished run shows, computed once for its tables, its figures and the first screen of its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from trait_kit import runs, tables
from trait_kit.engine.files import TraitError
from trait_kit.evaluation.comparison import HELD_OUT, MACRO, arm_table, compare, compare_all, forgetting_of, main_metric
from trait_kit.figures.cells import Table, metric_name
from trait_kit.figures.style import label
from trait_kit.figures.tables import BITS, ablation_table, chain_of, main_table, write_items
from trait_kit.passages.novelty import REASONS

NOT_RECORDED = "not recorded"
_REMOVED = list(REASONS[:2])  # because of the test set


@dataclass(frozen=True)
class Evidence:
    """Outcomes of 05 and the tests on them; tests of fewer than two arms are empty."""

    outcomes: pd.DataFrame
    reference: str
    metric: str  # the main one
    arms: pd.DataFrame
    forgetting: pd.DataFrame  # the base model against every other, on general text
    tests: pd.DataFrame  # the reference arm against every other
    pairs: pd.DataFrame  # of the ablation


def read(run_dir: Path | str) -> Evidence:
    """TraitError where 05 is not finished, or where its reference arm was not evaluated."""
    record = runs.recorded(Path(run_dir), "05_evaluate")
    if record is None:
        raise TraitError(f"{run_dir} has not finished 05_evaluate. Run it first.")
    outcomes = tables.read(Path(run_dir, "05_evaluate", "outcomes.parquet"), "outcomes").to_pandas()
    arms, reference = arm_table(outcomes), record["params"]["reference_arm"]
    tests = compare_all(outcomes, reference)
    of_chain = outcomes[outcomes["arm"].isin(chain_of(arms))]
    pairs = pd.concat([compare(of_chain, None, name) for name in _metrics(arms)], ignore_index=True)
    forgetting = forgetting_of(outcomes)
    forgetting = tests.head(0) if forgetting is None else forgetting
    return Evidence(outcomes, reference, main_metric(outcomes), arms, forgetting, tests, pairs)


def paper_tables(found: Evidence, run_dir: Path | str) -> dict[str, Table]:
    """main_table, ablation_table (of each metric; other than bits per byte with its name behind) and contamination."""
    passages = runs.recorded(Path(run_dir), "03_write_passages") or {}
    ads = passages.get("params", {}).get("grouping") == "entity"
    paper = "Table 1: advertising" if ads else "Table 2: mathematics"
    tests, pairs = (pd.concat([found.forgetting, part]) for part in (found.tests, found.pairs))
    made = {}
    for metric in sorted(_metrics(found.arms), key=lambda metric: metric != found.metric):
        behind, name = "" if metric == BITS else f"_{metric}", metric_name(metric)
        title = f"{paper}, all arms by {name}"
        made[f"main_table{behind}"] = main_table(found.arms, tests, metric, found.reference, title)
        title = f"Table 4: what does each part add, by {name}?"
        made[f"ablation_table{behind}"] = ablation_table(found.arms, pairs, metric, title)
    return made | {"contamination": contamination_table(found.outcomes, Path(run_dir))}


def write_paper_tables(found: Evidence, made: dict[str, Table], folder: Path | str) -> None:
    """The paper's tables, each as Markdown, LaTeX, CSV and HTML, and the items behind their numbers, into `folder`."""
    write_items(found.outcomes, folder, pd.concat([found.tests, found.pairs]))
    for name, table in made.items():
        table.save(folder, name)


def contamination_table(outcomes: pd.DataFrame, run_dir: Path) -> Table:
    """What the test sets shared with web documents, training problems and passages, by task; all of it was taken out.

    From what 02, 03 and 05 recorded: evidence of 02's documents (a row a document and question), 03's screening of problems
    and its rejected passages, counted under every task of their problems. What a run did not record is said to be so.
    """
    web = run_dir / "02_filter_web" / "selections" / "contaminated.parquet"
    screened, rejected = (run_dir / "03_write_passages" / f"{name}.parquet" for name in ("screened", "rejected"))
    tested = outcomes[~outcomes["task"].str.startswith(HELD_OUT)].groupby("task", sort=False)["item_id"].nunique()
    columns = {"Task": [*map(label, tested.index), "all"], "Test items": _with_sum(tested)}
    counted: dict[str, tuple[Path, Callable[[pd.DataFrame], pd.Series]]] = {
        "of these in a web document": (web, lambda found: found.groupby("question_task")["question_id"].nunique()),
        "Web documents removed": (web, lambda found: found.groupby("question_task")["id"].nunique()),
        "Training problems": (screened, lambda found: found.groupby("task")["problems"].sum()),
        "of these removed": (screened, lambda found: found.groupby("task")[_REMOVED].sum().sum(axis=1)),
        "Passages rejected": (rejected, _leaked),
    }
    for name, (path, count) in counted.items():
        columns[name] = [NOT_RECORDED] * (len(tested) + 1)
        if path.exists():
            columns[name] = _with_sum(count(pd.read_parquet(path)).reindex(tested.index, fill_value=0))
    notes = [
        "Compared by normalised text and by 13-grams (half of a question's). Everything counted as removed or rejected was "
        "never trained on. What holds questions of two tasks counts for both.",
        "Not compared: the base model's own pre-training data, which nobody outside has.",
    ]
    return Table("Contamination: what the test sets shared with the training texts", columns, notes)


def _with_sum(counts: pd.Series) -> list[str]:
    return [f"{count:,.0f}" for count in (*counts, counts.sum())]


def _leaked(rejected: pd.DataFrame) -> pd.Series:
    leaked = rejected["reason"].str.startswith("contamination:", na=False)
    return rejected.loc[leaked, "tasks"].map(set).explode().value_counts()


def _metrics(arms: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(arms.loc[arms["task"] == MACRO, "metric"]))
