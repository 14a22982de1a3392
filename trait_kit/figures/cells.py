"""A table of cells, written as Markdown, LaTeX, CSV, HTML or plain text, and how its numbers are written.

Every writer escapes for its own format, since names of arms and tasks are data from elsewhere. A cell can be the best of its
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

from trait_kit.engine.files import write_text
from trait_kit.evaluation.comparison import LOWER_IS_BETTER

_NAMES = {"exact_match_strict": "exact match (strict)", "auc": "AUC", "f1": "F1", "rouge_l": "ROUGE-L", "chrf": "chrF"}
_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # a terminal would obey them
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


@dataclass(frozen=True)
class Table:
    """A title, a frame of Cells whose first column names the rows, and notes."""

    title: str
    frame: pd.DataFrame
    notes: Sequence[str] = ()

    @classmethod
    def of(cls, title: str, columns: Mapping[str, Sequence[Cell | str]], notes: Sequence[str] = ()) -> Table:
        rows = list(zip(*columns.values(), strict=True))
        frame = pd.DataFrame(rows, columns=list(columns), dtype=object)
        return cls(title, frame.map(lambda cell: cell if isinstance(cell, Cell) else Cell(cell)), notes)

    def to_markdown(self, links: bool = False) -> str:
        frame = self._written(_markdown, "**{}**", " {}", "[{0}]({1})" if links else "{0}")
        align = ["left"] + ["right"] * (frame.shape[1] - 1)
        body = frame.to_markdown(index=False, disable_numparse=True, colalign=align)
        notes = "  \n".join(map(_markdown, self.notes))
        return f"**{_markdown(self.title)}**\n\n{body}\n\n{notes}".rstrip() + "\n"

    def to_latex(self) -> str:
        frame, title = self._written(_latex, r"\textbf{{{}}}", r" {{\scriptsize {}}}", "{0}"), _latex(self.title)
        shape = "l" + "r" * (frame.shape[1] - 1)
        body = frame.to_latex(index=False, escape=False, caption=title, column_format=shape, position="t")
        notes = "".join(rf"\par\smallskip{{\footnotesize {_latex(note)}}}" + "\n" for note in self.notes)
        end = "\\end{table}"  # of the table alone: texts are escaped
        return body.replace(end, notes + end)

    def to_html(self, links: bool = False) -> str:
        """A <figure class="table">; every text in it is escaped, so it may be put into a page as it is."""
        link, small = '<a href="{1}">{0}</a>' if links else "{0}", '<small style="display:block">{}</small>'
        frame = self._written(html.escape, "<strong>{}</strong>", small, link)
        rows = frame.set_index(frame.columns[0]).rename_axis(index=None, columns=frame.columns[0])
        with pd.option_context("display.max_colwidth", None):  # else pandas cuts texts
            body = rows.to_html(escape=False, border=0, justify="inherit")
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        title = f"<figcaption>{html.escape(self.title)}</figcaption>"
        return f'<figure class="table">{title}<div class="scroll">{body}</div>{notes}</figure>'

    def _repr_html_(self) -> str:  # a notebook shows the table by itself
        return self.to_html()

    def to_csv(self) -> str:
        """Every column, and after it what its cells say in small, where any do."""
        columns = []
        for name, cells in self.frame.items():
            columns.append(cells.map(lambda cell: cell.text).rename(name))
            if cells.map(lambda cell: bool(cell.small)).any():
                columns.append(cells.map(lambda cell: cell.small).rename(f"{name}: more"))
        frame = pd.concat(columns, axis=1).map(csv_text)
        return frame.rename(columns=csv_text).to_csv(index=False, lineterminator="\n")

    def to_text(self) -> str:
        """Aligned columns for a terminal."""
        frame = self._written(_one_line, "{}", " {}", "{0}")
        body = frame.to_markdown(index=False, tablefmt="plain", disable_numparse=True)
        return _UNPRINTABLE.sub("?", "\n".join([_one_line(self.title), "", body, "", *self.notes])) + "\n"

    def save(self, folder: Path | str, name: str, links: bool = False) -> None:
        """Write folder/name.md, .tex, .csv and .html."""
        written = {"html": self.to_html(links), "csv": self.to_csv(), "tex": self.to_latex(), "md": self.to_markdown(links)}
        for suffix, text in written.items():
            write_text(Path(folder) / f"{name}.{suffix}", text)

    def _written(self, escape: Callable[[str], str], best: str, small: str, link: str) -> pd.DataFrame:
        """The frame as strings, by the format's own forms of what is best, small or a link."""

        def write(cell: Cell) -> str:
            text = best.format(escape(cell.text)) if cell.best else escape(cell.text)
            text = link.format(text, cell.link) if cell.link else text
            return text + (small.format(escape(cell.small)) if cell.small else "")

        return self.frame.map(write).rename(columns=escape)


def csv_text(text: str) -> str:
    """A text that a spreadsheet does not take for a formula: an apostrophe before what starts like one and is no number."""
    formula = text[:1] in ("=", "+", "-", "@", "\t", "\r") and not _NUMBER.fullmatch(text)
    return f"'{text}" if formula else text


def _one_line(text: str) -> str:
    return " ".join(str(text).split())


def _markdown(text: str) -> str:
    text = re.sub(r"([\\|*_`])", r"\\\1", html.escape(_one_line(text), quote=False))
    return text.replace("](", "]\\(")  # else a name could be a link


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in _one_line(text))


def number_text(value: float, metric: str) -> str:
    return f"{value:.3f}" if metric in LOWER_IS_BETTER else f"{100 * value:.1f}%"


def change_text(change: float, metric: str, before: float | None = None) -> str:
    """A difference: bits as they are, and with `before` in percent of it; shares in points."""
    if metric not in LOWER_IS_BETTER:
        return f"{100 * change:+.1f} points"
    return f"{change:+.3f}" + (f", {100 * change / before:+.1f}%" if before else "")


def interval_text(low: float, high: float, metric: str) -> str:
    return f"[{change_text(low, metric)}, {change_text(high, metric)}]".replace(" points", "")


def gain_text(gain: float, metric: str) -> str:
    return change_text(gain, metric).removeprefix("+") if gain < math.inf else "none"


def p_text(p: float) -> str:
    return "<0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.001 else f"{p:.3f}"


def metric_name(metric: str) -> str:
    return _NAMES.get(metric, metric.replace("_", " "))
