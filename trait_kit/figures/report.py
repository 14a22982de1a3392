"""The last step's figures and tables, and one self-contained HTML page a run: what came out, what it cost, every step.

The page makes no request and runs no script: figures are inlined, and a content-security policy forbids the rest. Texts of
documents, models and parameters are data from elsewhere, so the template escapes every one of them. It can be written
at any time: a step that has not been run says so and the rest is shown. The layout and every sentence are the template's;
here is only what they are filled with.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from markupsafe import Markup

from trait_kit import runs, tables
from trait_kit.engine.files import TraitError, read_json, write_text
from trait_kit.evaluation.comparison import ALPHA, LOWER_IS_BETTER, compare
from trait_kit.figures import curves, evidence, gains
from trait_kit.figures.cells import Table, change_text, metric_name, number_text, p_text
from trait_kit.figures.map import draw_map, plot_map
from trait_kit.figures.style import FINE_TUNED, KitFigure, label
from trait_kit.figures.tables import BITS, GENERAL, chain_of, paired
from trait_kit.tasks import load_task, task_names

TITLES = {  # step -> (title, the question that it answers)
    "01_domain_classifier": ("Domain classifier", "Can a small model tell in-domain text from the rest?"),
    "02_filter_web": ("Filter the web", "Which general documents are worth training on, at an equal number of tokens?"),
    "03_write_passages": ("Write passages", "What do the tasks share, and does every paragraph reach the right answer?"),
    "04_train_two_stages": ("Train in two stages", "What does each stage teach?"),
    "05_evaluate": ("Evaluate", "Which arm is better, by how much, and what did it forget?"),
    "06_figures": ("Figures", "What does it look like?"),
}
_SAMPLED = ("selections/[!.]*.parquet", "passages.parquet", "rejected.parquet")


@dataclass(frozen=True)
class Drawn:
    """Figures and tables of 06."""

    map: KitFigure
    nearest: pd.DataFrame  # of the downstream problems, by kind: share and by_chance
    score_against_tokens: KitFigure
    gain_and_forgetting: KitFigure
    tables: dict[str, Table]


def draw_figures(step: Any) -> Drawn:
    """The paper's Figures 3 and 4 and Tables 1, 2 and 4 of a run, kept in the step's folder unless it is finished."""
    coordinates, nearest = draw_map(step)
    log = tables.read(step.path("04_train_two_stages", "log.parquet"), "log").to_pandas()
    found = evidence.read(step.run_dir)
    made = evidence.paper_tables(found, step.run_dir)
    if not step.done:
        evidence.write_paper_tables(found, made, step.folder)
    against_base = pd.concat([compare(found.outcomes, "base", found.metric), found.forgetting])
    arms = [arm for arm in chain_of(found.arms) if arm != found.reference]
    return Drawn(
        map=step.figure(plot_map(coordinates, nearest), "map"),
        nearest=nearest,
        score_against_tokens=step.figure(curves.plot_training_curves(log, [*arms, found.reference]), "score_against_tokens"),
        gain_and_forgetting=step.figure(
            gains.plot_gain_and_forgetting(against_base, found.reference, found.metric), "gain_and_forgetting"
        ),
        tables=made,
    )


def write_report(run_dir: Path | str) -> Path:
    """Write <run_dir>/report.html from whatever the run holds by now, and return its path."""
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise TraitError(f"{run_dir} is not a run folder. Run an experiment first: trait-kit run params/demo.yaml.")
    steps = [_step(run_dir, name) for name in TITLES]
    parameters = {key: value for step in steps for key, value in step["record"].get("params", {}).items()}
    written = sorted(run_dir.glob("params.yaml")) or sorted(run_dir.glob("*/params.yaml"))
    provenance = run_dir / "provenance.json"
    shipped = set(parameters.get("tasks", [])) & set(task_names())
    context = {
        "run_name": run_dir.resolve().name,
        "steps": steps,
        "stale": runs.stale(run_dir),
        "results": _results(run_dir),
        "cost": _cost(run_dir, steps),
        "parameters": parameters,
        "sources": {task: load_task(task).source.partition("/")[0] for task in sorted(shipped)},
        "provenance": read_json(provenance) if provenance.exists() else {},
        "parameter_files": {str(path.relative_to(run_dir)): path.read_text("utf-8") for path in written},
    }
    strict = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), **strict)
    environment.filters |= {"value": show, "table": _table, "duration": duration, "label": label}
    environment.filters |= {"number": number_text, "change": change_text, "p": p_text, "metric_name": metric_name}
    page = environment.get_template("report.html.jinja").render(context)
    return write_text(run_dir / "report.html", page.encode("utf-8", "replace").decode())


def _results(run_dir: Path) -> dict[str, Any]:
    """The first screen's numbers, from the outcomes and their tests; `missing` says why there are none."""
    try:
        found = evidence.read(run_dir)
    except TraitError as error:
        return {"missing": str(error)}
    metric, reference, lower = found.metric, found.reference, found.metric in LOWER_IS_BETTER
    main, *others = evidence.paper_tables(found, run_dir).values()
    arms = [arm for arm in dict.fromkeys(found.arms["arm"]) if arm != reference]
    tests = {arm: row for arm in arms if (row := paired(found.tests, reference, arm, metric))}
    return {
        "missing": "",
        "metric": metric,
        "reference": reference,
        "lower": lower,
        "alpha": ALPHA,
        "tests": tests,
        "best_other": min(tests, key=lambda arm: tests[arm]["before"] * (1 if lower else -1)),
        "not_better_than": [arm for arm, row in tests.items() if not row["reference_better"] or row["p_holm"] >= ALPHA],
        "forgetting": paired(found.forgetting, reference, "base", BITS, GENERAL),
        "main": Markup(main.written("html")),
        "tables": {table.title: Markup(table.written("html")) for table in others},
    }


def _cost(run_dir: Path, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds and memory of the records, tokens trained, tokens and money of the teacher (rejected passages cost too)."""
    records = [step["record"] for step in steps if step["record"]]
    paths = {"log": run_dir / "04_train_two_stages" / "log.parquet"}
    paths |= {kind: run_dir / "03_write_passages" / f"{kind}.parquet" for kind in ("passages", "rejected")}
    log, passages, rejected = (
        (tables.read(path, kind) if path.exists() else tables.SCHEMAS[kind].empty_table()).to_pandas()
        for kind, path in paths.items()
    )
    arms = log[~log["arm"].str.endswith(FINE_TUNED)].groupby("arm")["tokens"].max()
    return {
        "seconds": sum(record["seconds"] for record in records),
        "steps": len(records),
        "memory": max([0, *(record["peak_memory_gb"] for record in records)]),
        "tokens": arms.max(),
        "arms": len(arms),
        "passages": len(passages),
        "teachers": sorted(set(passages["teacher"])),
        "bill": pd.concat([passages, rejected])[["tokens_in", "tokens_out", "cost_usd"]].sum().to_dict(),
    }


def _step(run_dir: Path, name: str) -> dict[str, Any]:
    """A step's record, its figures as data URIs, and some rows of each of its tables."""
    folder, (title, question) = run_dir / name, TITLES[name]
    record = runs.recorded(run_dir, name) or {}
    state = "done" if record else "not finished" if folder.is_dir() and any(folder.iterdir()) else "not run"
    step = {"name": name, "title": title, "question": question, "state": state, "record": record, "samples": {}}
    step["figures"] = {
        svg.stem: f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode()}"
        for svg in sorted(folder.glob("figures/[!.]*.svg"))
    }
    for path in sorted(path for pattern in _SAMPLED for path in folder.glob(pattern)):
        table = pq.read_table(path)
        rows = table.take(np.linspace(0, len(table) - 1, min(3, len(table))).astype(int))
        step["samples"][path.stem] = {"n": len(table), "rows": rows.to_pylist()}
    return step


def _table(rows: Any) -> Markup:
    """Rows (a list of mappings, or a mapping of them by name) as an HTML table of which pandas escapes every text."""
    frame = pd.DataFrame(rows) if isinstance(rows, list) else pd.DataFrame.from_dict(rows, orient="index")
    with pd.option_context("display.max_colwidth", 300):
        named = not isinstance(rows, list)
        return Markup(frame.to_html(index=named, border=0, max_rows=40, float_format=show, na_rep="–"))


def show(value: Any) -> str:
    """A value as a reader wants it: 12,345 or 0.969, 'yes' for True, a dash for nothing; a text as it is."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case dict():
            return ", ".join(f"{key}: {show(item)}" for key, item in value.items()) or "–"
        case list():
            return ", ".join(map(show, value)) or "–"
        case int() | float():
            return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1_000 else f"{value:.4g}"
        case _:
            return str(value)


def duration(seconds: float) -> str:
    """90 -> 0:01:30."""
    return str(timedelta(seconds=round(seconds)))
