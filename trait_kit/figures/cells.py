"""A table of cells, written as Markdown, LaTeX, HTML, CSV or plain text, and how its numbers are written.

Every format escapes for itself, since names of arms and tasks are data from elsewhere. A cell can be the best of its
column (bold), say something smaller behind (its interval) and link to the file of the items that it was counted from.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml
from tabulate import tabulate

from trait_kit.engine.files import atomic_path, write_text
from trait_kit.evaluation.comparison import ALPHA, HELD_OUT, LOWER_IS_BETTER

BITS, GENERAL = "bits_per_byte", f"{HELD_OUT}general"

_NAMES = {"exact_match_strict": "exact match (strict)", "auc": "AUC", "f1": "F1", "rouge_l": "ROUGE-L", "chrf": "chrF"}
_NOTES = yaml.safe_load(Path(__file__).with_name("notes.yaml").read_text(encoding="utf-8"))
_NUMBER = re.compile(r"[-+0-9.,%() \[\]*]+( points)?")
_LATEX = {letter: "\\" + letter for letter in "&%$#_{}"} | {"<": "$<$", ">": "$>$", "–": "--"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


@dataclass(frozen=True)
class Cell:
    """`link`: the items' file, relative to the table's folder; written only on request (a table is shown elsewhere too)."""

    text: str
    small: str = ""
    best: bool = False
    link: str = ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _markdown(text: str) -> str:
    text = re.sub(r"([\\|*_`])", r"\\\1", html.escape(_one_line(text), quote=False))
    return text.replace("](", "]\\(")  # else a name could be a link


def _latex(text: str) -> str:
    return _one_line(text).translate(str.maketrans(_LATEX))


def _printable(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in _one_line(text))


_SCROLL = '<div class="scroll" tabindex="0" role="region" aria-label="{title}">{body}</div>'
_HTML = f'<figure class="table"><figcaption>{{title}}</figcaption>{_SCROLL}{{notes}}</figure>'
_TEX = "\\begin{{table}}[t]\n\\caption{{{title}}}\n{body}\n{notes}\\end{{table}}\n"
_SMALL = '<small style="display:block">{}</small>'
_FORMATS = {  # tabulate's name of it, how it escapes, what is best, small, a link, a note, the whole
    "md": ("pipe", _markdown, "**{}**", " {}", "[{0}]({1})", "{}  \n", "**{title}**\n\n{body}\n\n{notes}"),
    "tex": ("latex_raw", _latex, r"\textbf{{{}}}", r" {{\scriptsize {}}}", "{0}", "\\par{{\\small {}}}\n", _TEX),
    "html": ("unsafehtml", html.escape, "<strong>{}</strong>", _SMALL, '<a href="{1}">{0}</a>', "<p>{}</p>", _HTML),
    "txt": ("plain", _printable, "{}", " {}", "{0}", "{}\n", "{title}\n\n{body}\n\n{notes}"),
}


@dataclass(frozen=True)
class Table:
    """A title, columns of cells of which the first names the rows, and notes."""

    title: str
    columns: Mapping[str, Sequence[Cell | str]]
    notes: Sequence[str] = ()

    def column(self, name: str) -> list[Cell]:
        return [cell if isinstance(cell, Cell) else Cell(cell) for cell in self.columns[name]]

    def written(self, kind: str, links: bool = False) -> str:
        """The table as md, tex, html or txt; every text in it is escaped, so it may be put into a page as it is."""
        name, escape, best, small, link, note, whole = _FORMATS[kind]

        def write(cell: Cell) -> str:
            text = escape(cell.text)
            text = best.format(text) if cell.best else text
            text = link.format(text, cell.link) if links and cell.link else text
            return text + (small.format(escape(cell.small)) if cell.small else "")

        columns = {escape(header): list(map(write, self.column(header))) for header in self.columns}
        align = ["left"] + ["right"] * (len(columns) - 1)
        body = tabulate(columns, "keys", name, disable_numparse=True, colalign=align)
        notes = "".join(note.format(escape(text)) for text in self.notes)
        return whole.format(title=escape(self.title), body=body, notes=notes)

    def frame(self) -> pd.DataFrame:
        """The texts: every column, and after it what its cells say in small, where any do."""
        found = {}
        for name in self.columns:
            cells = self.column(name)
            found[name] = [cell.text for cell in cells]
            if any(cell.small for cell in cells):
                found[f"{name}: more"] = [cell.small for cell in cells]
        return pd.DataFrame(found, dtype=object)

    def _repr_html_(self) -> str:  # a notebook shows the table by itself
        return self.written("html")

    def save(self, folder: Path | str, name: str) -> None:
        """Write folder/name.md, .tex, .html and .csv, with links."""
        for kind in ("md", "tex", "html"):
            write_text(Path(folder) / f"{name}.{kind}", self.written(kind, links=True))
        write_csv(self.frame(), Path(folder) / f"{name}.csv")


def notes(kind: str, **facts: str) -> list[str]:
    return [text.format(ALPHA=ALPHA, **facts) for text in _NOTES[kind]]


def write_csv(rows: pd.DataFrame, path: Path) -> None:
    """A CSV whose texts a spreadsheet does not take for formulas."""
    texts = rows.select_dtypes(exclude=["number", "bool"]).columns
    rows = rows.assign(**{name: rows[name].fillna("").astype(str).map(csv_text) for name in texts})
    with atomic_path(path) as temporary:
        rows.rename(columns=csv_text).to_csv(temporary, index=False)


def csv_text(text: str) -> str:
    """An apostrophe before what starts like a formula and is no number."""
    formula = text[:1] in ("=", "+", "-", "@", "\t", "\r") and not _NUMBER.fullmatch(text)
    return f"'{text}" if formula else text


def number_text(value: float, metric: str) -> str:
    return f"{value:.3f}" if metric in LOWER_IS_BETTER else f"{100 * value:.1f}%"


def change_text(change: float, metric: str, before: float | None = None) -> str:
    """A gain: bits as they are, and with `before` in percent of it; shares in points."""
    if metric not in LOWER_IS_BETTER:
        return f"{100 * change:+.1f} points"
    return f"{change:+.3f}" + (f", {100 * change / before:+.1f}%" if before else "")


def interval_text(low: float, high: float, metric: str, text: Callable[[float, str], str] = change_text) -> str:
    """Of a gain, or with `text` of number_text of a mean; a single cluster has none."""
    if not math.isfinite(high - low):
        return "(too few clusters)"
    return f"[{text(low, metric)}, {text(high, metric)}]".replace(" points", "")


def gain_text(gain: float, metric: str) -> str:
    return change_text(gain, metric).removeprefix("+") if gain < math.inf else "none"


def p_words(p_holm: float) -> str:
    """p after Holm; what is below 0.001 is said so: random sign flips cannot tell how far (statistics.FLIPS)."""
    return "< 0.001" if p_holm < 1e-3 else f"= {p_holm:.2g}"


def metric_name(metric: str) -> str:
    return _NAMES.get(metric, metric.replace("_", " "))
