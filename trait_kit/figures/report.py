"""The last step's figures and tables, and one self-contained HTML page a run: what came out, what it cost, every step.

The page makes no request and runs no script: figures are inlined, and a content-security policy forbids the rest. Texts of
documents, models and parameters are data from elsewhere, so the template escapes every one of them. It can be written
at any time: a step that has not been run, or whose files cannot be read, says so and the rest is shown. The layout and
every sentence are the template's; here is only what they are filled with.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from trait_kit import runs, tables
from trait_kit.engine.files import TraitError, read_json, write_text
from trait_kit.evaluation.comparison import ALPHA, LOWER_IS_BETTER, compare
from trait_kit.figures import curves, evidence, gains
from trait_kit.figures.cells import Table, change_text, metric_name, number_text, p_text
from trait_kit.figures.map import draw_map, plot_map
from trait_kit.figures.style import FINE_TUNED, KitFigure, label
from trait_kit.figures.tables import BITS, GENERAL, paired
from trait_kit.tasks import load_task

TITLES = {  # step -> (title, the question that it answers)
    "01_domain_classifier": ("Domain classifier", "Can a small model tell in-domain text from the rest?"),
    "02_filter_web": ("Filter the web", "Which general documents are worth training on, at an equal number of tokens?"),
    "03_write_passages": ("Write passages", "What do the tasks share, and does every paragraph reach the right answer?"),
    "04_train_two_stages": ("Train in two stages", "What does each stage teach?"),
    "05_evaluate": ("Evaluate", "Which arm is better, by how much, and what did it forget?"),
    "06_figures": ("Figures", "What does it look like?"),
}
_LARGEST_SVG = 700_000  # bytes; beyond it the PNG is the smaller one
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SAMPLED = ("selections/[!.]*.parquet", "passages.parquet", "rejected.parquet")
_UNREADABLE = (TraitError, OSError, TypeError, ValueError, AttributeError, KeyError)  # what a damaged file of a step raises


@dataclass(frozen=True)
class Drawn:
    """Figures and tables of 06; None where a run has no arms to draw it from."""

    map: KitFigure
    nearest: pd.DataFrame  # of the downstream problems, by kind: share and by_chance
    score_against_tokens: KitFigure
    ablation: KitFigure | None
    gain_and_forgetting: KitFigure | None
    tables: dict[str, Table]


def draw_figures(step: Any) -> Drawn:
    """The paper's Figures 3 and 4 and Tables 1, 2 and 4 of a run, kept in the step's folder unless it is finished."""
    coordinates, nearest = draw_map(step)
    log = tables.read(step.path("04_train_two_stages", "log.parquet"), "log").to_pandas()
    found = evidence.read(step.run_dir)
    made = evidence.paper_tables(found, step.run_dir)
    if not step.done:
        evidence.write_paper_tables(found, made, step.folder)
    metric, several = found.metric, found.pairs is not None
    against_base = compare(found.outcomes, "base", metric) if several and "base" in set(found.arms["arm"]) else None
    gain = against_base is not None and gains.plot_gain_and_forgetting(against_base, found.forgetting, metric)
    return Drawn(
        step.figure(plot_map(coordinates, nearest), "map"),
        nearest,
        step.figure(curves.plot_training_curves(log, step.params.curve_arms), "score_against_tokens"),
        step.figure(gains.plot_ablation(found.arms, found.pairs, metric=metric), "ablation") if several else None,
        step.figure(gain, "gain_and_forgetting") if gain else None,
        made,
    )


def write_report(run_dir: Path | str) -> Path:
    """Write <run_dir>/report.html from whatever the run holds by now, and return its path."""
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise TraitError(f"{run_dir} is not a run folder. Run an experiment first: trait-kit run params/demo.yaml.")
    steps = [_step(run_dir, name) for name in TITLES]
    parameters = {key: value for step in steps for key, value in step["record"].get("params", {}).items()}
    written = sorted(run_dir.glob("params.yaml")) or sorted(run_dir.glob("*/params.yaml"))
    name = run_dir.resolve().name
    context = {
        "title": parameters.get("title") or f"TRAIT experiment: {name}",
        "run_name": name,
        "steps": steps,
        "stale": _or(lambda: runs.stale(run_dir), {}),
        "results": _results(run_dir),
        "cost": _cost(run_dir, steps),
        "parameters": parameters,
        "sources": {task: _or(lambda task=task: load_task(task).source, "") for task in parameters.get("tasks", [])},
        "provenance": _or(lambda: read_json(run_dir / "provenance.json"), {}),
        "parameter_files": {str(path.relative_to(run_dir)): path.read_text("utf-8", "replace") for path in written},
    }
    strict = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), **strict)
    environment.filters |= {"value": show, "prose": _prose, "duration": duration, "label": label, "name": _name}
    environment.filters |= {"number": number_text, "change": change_text, "p": p_text, "metric_name": metric_name}
    page = environment.get_template("report.html.jinja").render(context)
    page = _CONTROL.sub("\ufffd", page).encode("utf-8", "replace").decode("utf-8")
    return write_text(run_dir / "report.html", page)


def _results(run_dir: Path) -> dict[str, Any]:
    """The first screen's numbers, from the outcomes and their tests; `missing` says why there are none."""
    if not (run_dir / "05_evaluate" / "report.json").exists():
        return {"missing": "No arm has been evaluated yet: run notebook 05 to see the main table here."}
    try:
        found = evidence.read(run_dir)
        made = evidence.paper_tables(found, run_dir)
    except _UNREADABLE as error:
        return {"missing": str(error)}
    metric, reference = found.metric, found.reference
    chosen = {"metric": metric, "reference": reference, "main": Markup(next(iter(made.values())).to_html())}
    others = [arm for arm in dict.fromkeys(found.arms["arm"]) if arm != reference]
    tests = {arm: row for arm in others if (row := paired(found.tests, reference, arm, metric))}
    lower = metric in LOWER_IS_BETTER
    return chosen | {
        "missing": "",
        "lower": lower,
        "alpha": ALPHA,
        "tests": tests,
        "best_other": min(tests, key=lambda arm: tests[arm]["before"] * (1 if lower else -1), default=""),
        "not_better_than": [arm for arm, row in tests.items() if not row["reference_better"] or row["p_holm"] >= ALPHA],
        "forgetting": paired(found.forgetting, reference, "base", BITS, GENERAL),
        "tables": {table.title: Markup(table.to_html()) for table in list(made.values())[1:]},
    }


def _cost(run_dir: Path, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds and memory of the records, tokens trained, tokens and money of the teacher (rejected passages cost too)."""
    records = [step["record"] for step in steps if step["record"]]
    found = {"log": run_dir / "04_train_two_stages" / "log.parquet"}
    found |= {kind: run_dir / "03_write_passages" / f"{kind}.parquet" for kind in ("passages", "rejected")}
    frames = {kind: _or(lambda kind=kind: tables.read(found[kind], kind).to_pandas()) for kind in found}
    log, passages = frames.pop("log"), frames["passages"]
    arms = log[~log["arm"].str.endswith(FINE_TUNED)].groupby("arm")["tokens"].max() if log is not None else pd.Series()
    written = [frame[["tokens_in", "tokens_out", "cost_usd"]].sum() for frame in frames.values() if frame is not None]
    return {
        "seconds": sum(record.get("seconds") or 0 for record in records),
        "steps": len(records),
        "memory": max([0, *(record.get("peak_memory_gb") or 0 for record in records)]),
        "tokens": arms.max() if len(arms) else 0,
        "arms": len(arms),
        "passages": 0 if passages is None else len(passages),
        "teachers": [] if passages is None else sorted(set(passages["teacher"].dropna())),
        "bill": sum(written).to_dict() if written else {},
    }


def _step(run_dir: Path, name: str) -> dict[str, Any]:
    """A step's record, its figures as data URIs, and some rows of each of its tables."""
    folder, (title, question) = run_dir / name, TITLES[name]
    step = {"name": name, "title": title, "question": question, "state": "not run", "problem": "", "record": {}}
    step |= {"figures": {svg.stem: _image(svg) for svg in sorted(folder.glob("figures/[!.]*.svg"))}, "samples": {}}
    try:
        if (folder / "report.json").exists():
            step |= {"record": read_json(folder / "report.json"), "state": "done"}
        elif folder.is_dir() and any(folder.iterdir()):
            step["state"] = "not finished"
        for path in sorted(path for pattern in _SAMPLED for path in folder.glob(pattern)):
            frame = pd.read_parquet(path)
            rows = frame.iloc[sorted({0, len(frame) // 2, len(frame) - 1} & set(range(len(frame))))]
            step["samples"][path.stem] = {"n": len(frame), "rows": rows.to_dict("records")}
    except _UNREADABLE as error:
        step |= {"state": "unreadable", "problem": str(error)}
    return step


def _image(svg: Path) -> str:
    """The SVG, unless it is large and a PNG stands beside it; inside <img> neither can run scripts or fetch anything."""
    png = svg.with_suffix(".png")
    path, kind = (png, "png") if svg.stat().st_size > _LARGEST_SVG and png.exists() else (svg, "svg+xml")
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _or(read: Callable[[], Any], otherwise: Any = None) -> Any:
    """What cannot be read is left out here: the section of its step says so."""
    try:
        return read()
    except _UNREADABLE:
        return otherwise


def show(value: Any) -> str:
    """A value as a reader wants it: 12,345 or 0.969, 'yes' for True, a dash for nothing; a text as it is."""
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        value = value.tolist()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {show(item)}" for key, item in value.items()) or "–"
    if isinstance(value, list | tuple | set):
        return ", ".join(map(show, value)) or "–"
    if not isinstance(value, int | float):
        return str(value)
    size = abs(value)
    if isinstance(value, int) or 1000 <= size < 1e12:
        return f"{value:,.0f}"
    return f"{value:.4g}" if size >= 1e-3 or not size else f"{value:.2e}"


def duration(seconds: float) -> str:
    """90 -> 1 min 30 s."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _name(key: Any) -> str:
    return re.sub(r"[_\s]+", " ", str(key)).strip()


def _prose(text: Any, letters: int = 2_000) -> Markup:
    """Escaped text with its line breaks kept; of a long one the beginning."""
    text = show(text)
    text = text if len(text) <= letters else text[:letters].rsplit(" ", 1)[0] + " ..."
    return Markup("<br>").join(Markup.escape(line) for line in text.splitlines())
