"""One self-contained HTML page a run: what was done, what came out, what it cost, what is synthetic; then every step.

The page makes no request and runs no script: figures are inlined, and a content-security policy forbids the rest. Texts of
documents, models and parameters are data from elsewhere, so the template escapes every one of them. It can be written
at any time: a step that has not been run, or whose files cannot be read, says so and the rest is shown.
"""

from __future__ import annotations

import base64
import math
import re
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import pyarrow.parquet as pq
import yaml
from markupsafe import Markup

from trait_kit import tables
from trait_kit.engine.files import TraitError, read_json, write_text
from trait_kit.figures import headline
from trait_kit.figures.style import label

STEPS = {  # folder -> (title, the question that it answers)
    "01_domain_classifier": ("Domain classifier", "Can a small model tell in-domain text from the rest?"),
    "02_filter_web": ("Filter the web", "Which general documents are worth training on, at an equal number of tokens?"),
    "03_write_passages": ("Write passages", "What do the tasks share, and does every paragraph reach the right answer?"),
    "04_train_two_stages": ("Train in two stages", "What does each stage teach?"),
    "05_evaluate": ("Evaluate", "Which arm is better, by how much, and what did it forget?"),
    "06_figures": ("Figures", "What does it look like?"),
}
_LARGEST_SVG = 700_000  # bytes; beyond it the PNG is the smaller one
_ROWS = 40  # rows shown of a table
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_WORDS = {"roc": "ROC", "auc": "AUC", "dsir": "DSIR", "usd": "USD", "gb": "GB", "ngram": "n-gram", "ngrams": "n-grams"}


def write_report(run_dir: Path | str) -> Path:
    """Write <run_dir>/report.html from whatever the run holds by now, and return its path."""
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise TraitError(f"{run_dir} is not a run folder. Run an experiment first: trait-kit run params/demo.yaml.")
    steps = [_step(run_dir, name) for name in STEPS]
    parameters = _merged(run_dir / "params.yaml")
    for step in steps:
        parameters |= step["params"]
    context = {
        "title": str(parameters.get("title") or f"TRAIT experiment: {run_dir.resolve().name}"),
        "run_name": run_dir.resolve().name,
        "steps": steps,
        "overview": headline.overview(run_dir, steps, parameters),
        "figures": steps[-1]["figures"],
        "provenance": _flat(_json(run_dir / "provenance.json")),
        "parameter_files": _parameter_files(run_dir),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"value": show, "prose": _paragraphs, "duration": headline.duration, "label": label}
    page = _CONTROL.sub("\ufffd", environment.get_template("report.html.jinja").render(context))
    return write_text(run_dir / "report.html", page.encode("utf-8", "replace").decode("utf-8"))


def show(value: Any) -> str:
    """A value as a reader wants it: 12,345 or 0.969, 'yes' for True, a dash for nothing; a text as it is."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value == 0 or 1e-3 <= abs(value) < 1e4:
            return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.2e}"
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return show(value.tolist())
    if isinstance(value, dict):
        return ", ".join(f"{key}: {show(item)}" for key, item in value.items()) or "–"
    if isinstance(value, list | tuple | set):
        return ", ".join(show(item) for item in value) or "–"
    return str(value)


def _step(run_dir: Path, name: str) -> dict[str, Any]:
    folder = run_dir / name
    title, question = STEPS[name]
    step = {
        "name": name, "number": name[:2], "title": title, "question": question, "state": "not run", "problem": "",
        "seconds": None, "memory": None, "finished": "", "key": "", "params": {}, "headline": "", "good": None,
        "synthetic": [], "blocks": [], "figures": _figures(folder / "figures"),
        "tables": [], "selections": [], "passages": [], "rejected": None,
    }  # fmt: skip
    try:
        if (folder / "report.json").exists():
            record = read_json(folder / "report.json")
            summary = dict(record.get("summary") or {})
            synthetic = summary.pop("synthetic", [])
            step |= {
                "state": "done",
                "seconds": record.get("seconds"),
                "memory": record.get("peak_memory_gb"),
                "finished": str(record.get("finished", "")),
                "key": str(record.get("key", ""))[:12],
                "params": dict(record.get("params") or {}),
                "headline": str(summary.pop("headline", "")),
                "good": summary.pop("good", None),
                "synthetic": [str(text) for text in (synthetic if isinstance(synthetic, list) else [synthetic])],
                "blocks": _blocks(summary),
            }
        elif folder.is_dir() and any(folder.iterdir()):
            step["state"] = "not finished"
        if name == "02_filter_web":
            step["selections"] = _selections(folder)
        elif name == "03_write_passages":
            step["passages"], step["rejected"] = _passages(folder)
        step["tables"] = _small_tables(folder)
    except (TraitError, TypeError, ValueError, AttributeError, KeyError) as error:
        step |= {"state": "unreadable", "problem": str(error)}
    return step


def _blocks(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Free-form summary values sorted by shape: short ones into one list, then texts and tables in their order."""
    facts, rest = [], []
    for key, value in summary.items():
        name = _name(key)
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            rest.append({"kind": "table", "name": name, "table": _table(_texts_first(pd.DataFrame(value)))})
        elif isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
            frame = pd.DataFrame([{"": inner, **row} for inner, row in value.items()])
            rest.append({"kind": "table", "name": name, "table": _table(frame)})
        elif isinstance(value, dict):
            rows = [[_name(inner), show(item)] for inner, item in value.items()]
            rest.append({"kind": "table", "name": name, "table": {"header": ["", "value"], "rows": rows, "left_out": 0}})
        elif isinstance(value, list) and any(isinstance(text, str) and len(text) > 90 for text in value):
            rest.append({"kind": "texts", "name": name, "texts": [show(text) for text in value[:_ROWS]]})
        elif isinstance(value, str) and len(value) > 90:
            rest.append({"kind": "text", "name": name, "text": value})
        else:
            facts.append((name, show(value)))
    return ([{"kind": "facts", "name": "", "facts": facts}] if facts else []) + rest


def _table(frame: pd.DataFrame) -> dict[str, Any]:
    rows = [[_excerpt(show(value), 300) for value in row] for row in frame.head(_ROWS).itertuples(index=False, name=None)]
    return {"header": [_name(column) for column in frame.columns], "rows": rows, "left_out": max(0, len(frame) - _ROWS)}


def _texts_first(frame: pd.DataFrame) -> pd.DataFrame:
    """JSON keeps keys in alphabetical order: put the columns that name a row before those that measure it."""
    texts = [column for column in frame.columns if all(isinstance(value, str) for value in frame[column])]
    return frame[texts + [column for column in frame.columns if column not in texts]]


def _small_tables(folder: Path) -> list[dict[str, Any]]:
    """Parquet tables of a step that are small enough to read; the kit's large ones have their own display or none."""
    found = []
    for path in sorted(folder.glob("*.parquet")):
        if path.stem in ("scores", "problems", "passages", "rejected", "outcomes", "log", "coordinates", "quarantine"):
            continue
        try:
            if pq.read_metadata(path).num_rows <= 200:
                found.append({"name": _name(path.stem), "table": _table(pd.read_parquet(path))})
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise TraitError(f"{path} is not a readable Parquet file: {error}. Delete it and run the step again.") from error
    return found


def _selections(folder: Path) -> list[dict[str, Any]]:
    """The best and the last three documents of every selection (rows are best first)."""
    found = []
    for path in sorted(folder.glob("selections/*.parquet")):
        if path.stem in ("contaminated", "near_duplicates"):  # evidence of what was dropped
            continue
        frame = tables.read(path, "selection").to_pandas()
        samples = [("best", frame.head(3)), ("just above the cut", frame.iloc[3:].tail(3))]
        rows = []
        for place, part in samples:
            for row in part.to_dict("records"):
                shown = {key: show(row[key]) for key in ("id", "domain", "educational", "dsir", "n_tokens")}
                rows.append({"place": place, "text": _excerpt(row["text"]), "link": _link(row["url"]), **shown})
        method = str(frame["method"].iloc[0]) if len(frame) else path.stem
        found.append({"method": method, "documents": len(frame), "tokens": int(frame["n_tokens"].sum()), "rows": rows})
    return found


def _passages(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Three passages from all over the table, each problem beside its paragraph; and how many were rejected, by reason."""
    if not (folder / "passages.parquet").exists():
        return [], None
    passages = tables.read(folder / "passages.parquet", "passages").to_pandas()
    problems: dict[str, dict[str, Any]] = {}
    if (folder / "problems.parquet").exists():
        problems = {row["id"]: row for row in tables.read(folder / "problems.parquet", "problems").to_pylist()}
    shown = []
    for row in passages.iloc[sorted({0, len(passages) // 2, len(passages) - 1} if len(passages) else set())].to_dict(
        "records"
    ):
        pairs = []
        for identity, task, paragraph in zip(row["problem_ids"], row["tasks"], row["paragraphs"], strict=False):
            problem = problems.get(identity, {})
            pairs.append(
                {
                    "task": task,
                    "question": problem.get("question") or identity,
                    "answer": problem.get("answer") or "",
                    "paragraph": paragraph,
                }
            )
        kept = {
            key: show(row[key])
            for key in ("id", "grouping", "shared", "teacher", "prompt_version", "enlightenment", "checks")
        }
        shown.append({"pairs": pairs, **kept})
    rejected = None
    if (folder / "rejected.parquet").exists():
        reasons = tables.read(folder / "rejected.parquet", "rejected").to_pandas()["reason"].fillna("no reason")
        counts = reasons.map(lambda reason: reason.partition(":")[0]).value_counts()
        rejected = {
            "kept": len(passages),
            "lost": len(reasons),
            "reasons": [(str(reason), int(n)) for reason, n in counts.items()],
        }
    return shown, rejected


def _figures(folder: Path) -> list[dict[str, str]]:
    """Every figure once, as a data URI: the SVG, unless it is large and a PNG stands beside it."""
    found = []
    for stem in sorted(
        {path.stem for path in folder.glob("*") if path.suffix in (".svg", ".png") and not path.name.startswith(".")}
    ):
        svg, png = folder / f"{stem}.svg", folder / f"{stem}.png"
        chosen = png if png.exists() and not (svg.exists() and svg.stat().st_size <= _LARGEST_SVG) else svg
        kind = "image/png" if chosen.suffix == ".png" else "image/svg+xml"
        # an SVG inside <img> cannot run scripts or fetch anything, unlike one written into the page
        found.append({"name": _name(stem), "source": f"data:{kind};base64,{base64.b64encode(chosen.read_bytes()).decode()}"})
    return found


def _parameter_files(run_dir: Path) -> list[tuple[str, str]]:
    """The resolved parameters: the run's file, or where notebooks were run one by one, each step's own."""
    paths = (
        [run_dir / "params.yaml"]
        if (run_dir / "params.yaml").exists()
        else [run_dir / name / "params.yaml" for name in STEPS]
    )
    return [
        (str(path.relative_to(run_dir)), path.read_text(encoding="utf-8", errors="replace"))
        for path in paths
        if path.exists()
    ]


def _merged(path: Path) -> dict[str, Any]:
    """All sections of the run's parameter file as one mapping."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (yaml.YAMLError, UnicodeDecodeError):  # shown as it is under "To repeat it"
        return {}
    sections = raw.values() if isinstance(raw, dict) else []
    return {key: value for section in sections if isinstance(section, dict) for key, value in section.items()}


def _json(path: Path) -> Any:
    try:
        return read_json(path) if path.exists() else {}
    except TraitError as error:
        return {"unreadable": str(error)}


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if not isinstance(value, dict):
        return [
            (
                prefix,
                yaml.safe_dump(value)
                if isinstance(value, list) and any(isinstance(x, dict) for x in value)
                else show(value),
            )
        ]
    return [
        pair for key, item in value.items() for pair in _flat(item, f"{prefix} / {_name(key)}" if prefix else _name(key))
    ]


def _name(key: Any) -> str:
    words = re.sub(r"[_\s]+", " ", str(key)).strip().split(" ")
    return " ".join(_WORDS.get(word, word) for word in words)


def _excerpt(text: Any, letters: int = 700) -> str:
    text = str(text)
    return text if len(text) <= letters else text[:letters].rsplit(" ", 1)[0] + " ..."


def _link(url: Any) -> str:
    """Only web addresses become links; anything else (javascript:, data:) is dropped."""
    return url if isinstance(url, str) and re.match(r"https?://[^\s]+$", url) else ""


def _paragraphs(text: Any) -> Markup:
    """Escaped text with its line breaks kept."""
    return Markup("<br>").join(Markup.escape(line) for line in str(text).splitlines())
