"""A table of cells, written as Markdown, LaTeX, HTML, CSV or plain text, and how its numbers are written.

Every format escapes for itself, since names of arms and tasks are data from elsewhere.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd
from tabulate import tabulate

from trait_kit.engine.files import atomic_path, read_yaml, write_text
from trait_kit.evaluation.comparison import ALPHA, HELD_OUT, LOWER_IS_BETTER

BITS, GENERAL = "bits_per_byte", f"{HELD_OUT}general"

WORDING = read_yaml(Path(__file__).with_name("tables.yaml"))
_NUMBER = re.compile(r"[-+0-9.,%() \[\]*]+( points)?")


@dataclass(frozen=True)
class Cell:
    text: str
    small: str = ""  # behind it: an interval
    best: bool = False  # of its column: bold
    link: str = ""  # to the items it was counted from, relative to the table's folder


def _escaped(text: str, kind: str) -> str:
    text, escapes = " ".join(text.split()), WORDING["formats"][kind]["escape"]
    if kind == "txt":
        return "".join(letter if letter.isprintable() else "?" for letter in text)
    return re.sub("|".join(map(re.escape, escapes)), lambda found: escapes[found[0]], text)


@dataclass(frozen=True)
class Table:
    title: str
    columns: Mapping[str, Sequence[Cell | str]]  # the first names the rows
    notes: Sequence[str] = ()

    def column(self, name: str) -> list[Cell]:
        return [cell if isinstance(cell, Cell) else Cell(cell) for cell in self.columns[name]]

    def written(self, kind: str, links: bool = False) -> str:
        """As md, tex, html or txt, every text escaped; with `links` only where the items' files are."""
        form = WORDING["formats"][kind]

        def write(cell: Cell) -> str:
            text = _escaped(cell.text, kind)
            text = form["best"].format(text) if cell.best else text
            text = form["link"].format(text, cell.link) if links and cell.link else text
            return text + (form["small"].format(_escaped(cell.small, kind)) if cell.small else "")

        columns = {_escaped(header, kind): list(map(write, self.column(header))) for header in self.columns}
        align = ["left", *["right"] * (len(columns) - 1)]
        wide = dict.fromkeys(("maxcolwidths", "maxheadercolwidths"), form.get("widths"))
        body = tabulate(columns, "keys", form["tabulate"], disable_numparse=True, colalign=align, **wide)
        said = (fill(_escaped(text, kind), form.get("width", 10**6)) for text in self.notes)
        notes = "".join(map(form["note"].format, said))
        return form["whole"].format(title=_escaped(self.title, kind), body=body, notes=notes)

    def _repr_html_(self) -> str:  # a notebook shows the table by itself
        return self.written("html")

    def save(self, folder: Path | str, name: str) -> None:
        """Write folder/name.md, .tex and .html, with links, and .csv, small texts in columns of their own."""
        for kind in ("md", "tex", "html"):
            write_text(Path(folder) / f"{name}.{kind}", self.written(kind, links=True))
        kept = {}
        for header in self.columns:
            kept[header] = [cell.text for cell in self.column(header)]
            if any(small := [cell.small for cell in self.column(header)]):
                kept[f"{header}: more"] = small
        write_csv(pd.DataFrame(kept, dtype=object), Path(folder) / f"{name}.csv")


def made(kind: str, columns: Mapping[str, Sequence[Cell | str]], more: Sequence[str] = (), **facts: Any) -> Table:
    """Title and notes are tables.yaml's, filled with `facts`; `more` notes follow."""
    title, *notes = (text.format(ALPHA=ALPHA, **facts) for text in WORDING["said"][kind])
    return Table(title, columns, [*notes, *more])


def write_csv(rows: pd.DataFrame, path: Path) -> None:
    texts = rows.select_dtypes(exclude=["number", "bool"]).columns
    rows = rows.assign(**{name: rows[name].fillna("").astype(str).map(csv_text) for name in texts})
    with atomic_path(path) as temporary:
        rows.rename(columns=csv_text).to_csv(temporary, index=False)


def csv_text(text: str) -> str:
    """With an apostrophe before what a spreadsheet would take for a formula."""
    return (
        f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) and not _NUMBER.fullmatch(text) else text
    )


def show(value: Any) -> str:
    """As a reader wants it: 12,345 or 0.969, 'yes' for True, a dash for nothing."""
    match value:
        case bool():
            return "yes" if value else "no"
        case dict():
            return ", ".join(f"{key}: {show(item)}" for key, item in value.items()) or "–"
        case list():
            return ", ".join(map(show, value)) or "–"
        case int():
            return f"{value:,}"
        case float() if value == value:
            return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"
        case _:
            return "–" if value is None or value != value else str(value)


def number_text(value: float, metric: str) -> str:
    return f"{value:.3f}" if metric in LOWER_IS_BETTER else f"{100 * value:.1f}%"


def change_text(change: float, metric: str, before: float | None = None) -> str:
    """A gain: shares in points, bits as they are, and with `before` in percent of it."""
    bits = f"{change:+.3f}" + (f", {100 * change / before:+.1f}%" if before else "")
    return bits if metric in LOWER_IS_BETTER else f"{100 * change:+.1f} points"


def interval_text(low: float, high: float, metric: str, text: Callable[[float, str], str] = change_text) -> str:
    """Of a gain, or with number_text of a mean; a single cluster has none."""
    ends = f"[{text(low, metric)}, {text(high, metric)}]".replace(" points", "")
    return ends if math.isfinite(high - low) else "(too few clusters)"


def words(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `comparison.compare` as it is written in tables, figures and sentences."""
    metric, smallest = row["metric"], row["smallest_gain"]
    return {
        **row,
        "metric": metric_name(metric),
        "gain": change_text(row["gain"], metric),
        "interval": interval_text(row["gain_low"], row["gain_high"], metric),
        "smallest": change_text(smallest, metric).removeprefix("+") if smallest < math.inf else "none",
        "p": p_words(row["p_holm"]),
    }


def p_words(p_holm: float) -> str:
    """p after Holm; random sign flips cannot tell how far it is below 0.001 (statistics.FLIPS)."""
    return "< 0.001" if p_holm < 1e-3 else f"= {p_holm:.2g}"


def metric_name(metric: str) -> str:
    return WORDING["metrics"].get(metric, metric.replace("_", " "))
