"""One HTML page a run, written at any time: what came out, what it cost, every step.

It makes no request, runs no script, and its template escapes every text: documents and models are data from elsewhere.
"""

import base64
import xml.etree.ElementTree as ElementTree
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
from trait_kit.figures import tables as evidence
from trait_kit.figures.cells import show
from trait_kit.figures.style import FINE_TUNED, ONE_COLUMN, label
from trait_kit.tasks import load_task, task_names

_SAMPLED = ("selections/[!.]*.parquet", "passages.parquet", "rejected.parquet")


def write_report(*run_dirs: Path | str) -> Path:
    """Write report.html of what a run holds by now, or of several side by side, beside the first; return its path."""
    given = [folder for name in run_dirs if not (folder := Path(name).resolve()).is_file()]
    folders = [folder for folder in given if any((folder / name).exists() for name in runs.STEPS)]
    for folder in [folder for folder in given or map(Path, run_dirs) if folder not in folders]:
        if not folders or not folder.is_dir():
            raise TraitError(f"{folder} is not a run folder. First: trait-kit run with its experiment.")
    strict = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), **strict)
    environment.filters |= {"value": show, "table": _table, "label": label}
    environment.filters["duration"] = lambda seconds: str(timedelta(seconds=round(seconds)))
    found, several = list(map(_context, folders)), len(folders) > 1
    page = environment.get_template("reports.html.jinja" if several else "report.html.jinja").render(
        found[0], runs=found
    )
    path = (folders[0].parent if several else folders[0]) / "report.html"
    return write_text(path, page.encode("utf-8", "replace").decode())


def _context(run_dir: Path) -> dict[str, Any]:
    try:
        results = {"missing": "", **vars(evidence.read(run_dir))}
    except TraitError as error:
        results = {"missing": str(error)}
    steps = {name: _step(run_dir, name) for name in runs.STEPS}
    parameters = {
        key: value for step in steps.values() for key, value in step["record"].get("params", {}).items()
    }
    provenance, written = run_dir / "provenance.json", run_dir / "params.yaml"

    return {
        "run_name": run_dir.name,
        "steps": steps,
        "stale": runs.stale(run_dir),
        "results": results,
        "cost": _cost(run_dir, [step["record"] for step in steps.values() if step["record"]]),
        "parameters": parameters,
        "sources": {
            task: load_task(task).source.partition("/")[0]
            for task in task_names()
            if task in parameters.get("tasks", [])
        },
        "provenance": read_json(provenance) if provenance.exists() else {},
        "parameter_file": written.read_text("utf-8") if written.exists() else "",
    }


def _cost(run_dir: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    paths = {"log": run_dir / "04_train_two_stages" / "log.parquet"}
    paths |= {kind: run_dir / "03_write_passages" / f"{kind}.parquet" for kind in ("passages", "rejected")}
    log, passages, rejected = (
        (tables.read(path, kind) if path.exists() else tables.SCHEMAS[kind].empty_table()).to_pandas()
        for kind, path in paths.items()
    )
    arms = log[~log["arm"].str.endswith(FINE_TUNED)].groupby("arm")["tokens"].max().tolist()
    return {
        "seconds": sum(record["seconds"] for record in records),
        "steps": len(records),
        "memory": max((record["peak_memory_gb"] for record in records), default=0),
        "tokens": max(arms, default=0),
        "arms": len(arms),
        "passages": len(passages),
        "teachers": sorted(set(passages["teacher"])),
        "bill": pd.concat([passages, rejected])[["tokens_in", "tokens_out", "cost_usd"]].sum().to_dict(),
    }


def _step(run_dir: Path, name: str) -> dict[str, Any]:
    folder, record = run_dir / name, runs.recorded(run_dir, name) or {}
    state = "done" if record else "not finished" if folder.is_dir() and any(folder.iterdir()) else "not run"
    figures = {}
    for svg in sorted(folder.glob("figures/[!.]*.svg")):  # a narrow twin comes after its figure
        name = svg.stem.removesuffix(ONE_COLUMN)
        image = f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode()}"
        says = ElementTree.parse(svg).findtext("{http://www.w3.org/2000/svg}title", "")
        figures.setdefault(name, {"wide": image, "says": says})["narrow"] = image
    samples = {}
    for path in sorted(path for pattern in _SAMPLED for path in folder.glob(pattern)):
        table = pq.read_table(path)
        rows = table.take(np.linspace(0, len(table) - 1, min(3, len(table))).astype(int))
        samples[path.stem] = {"n": len(table), "rows": rows.to_pylist()}
    return {"record": record, "state": state, "figures": figures, "samples": samples}


def _table(rows: Any) -> Markup:
    """Of mappings, listed or by name; pandas escapes every text."""
    listed = [{"name": name, **row} for name, row in rows.items()] if isinstance(rows, dict) else rows
    frame = pd.DataFrame(listed).rename(columns=lambda name: str(name).replace("_", " "))
    with pd.option_context("display.max_colwidth", 300):
        return Markup(frame.to_html(index=False, border=0, max_rows=40, float_format=show, na_rep="–"))
