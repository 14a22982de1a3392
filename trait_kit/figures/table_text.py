"""A finished table of strings, and its Markdown, LaTeX, HTML, CSV and plain text; each writer escapes for its own format."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trait_kit.engine.files import write_text

_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # a terminal would obey them


@dataclass(frozen=True)
class Cell:
    """What a cell says, a smaller second line (an interval), whether it is the best of its column, and its items' file.

    `link` is relative to the folder of the table, and followed by no writer unless that is asked for: a table is also shown
    where the files do not stand beside it.
    """

    text: str
    small: str = ""
    best: bool = False
    link: str = ""


@dataclass(frozen=True)
class Table:
    """A finished table of strings; every writer escapes for its own format."""

    title: str
    header: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)

    def to_markdown(self, links: bool = False) -> str:
        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cells) + " |"

        lines = [line([_markdown(name) for name in self.header]), line(["---"] + ["---:"] * (len(self.header) - 1))]
        for row in self.rows:
            cells = []
            for cell in row:
                text = f"**{_markdown(cell.text)}**" if cell.best else _markdown(cell.text)
                text = f"[{text}]({cell.link})" if links and cell.link else text
                cells.append(f"{text} {_markdown(cell.small)}".strip())
            lines.append(line(cells))
        return (
            "\n".join(
                [f"**{_markdown(self.title)}**", "", *lines, "", *(_markdown(note) + "  " for note in self.notes)]
            ).rstrip()
            + "\n"
        )

    def to_latex(self) -> str:
        lines = [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{_latex(self.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}",
        ]
        lines += [r"\toprule", " & ".join(_latex(name) for name in self.header) + r" \\", r"\midrule"]
        for row in self.rows:
            cells = []
            for cell in row:
                text = rf"\textbf{{{_latex(cell.text)}}}" if cell.best else _latex(cell.text)
                cells.append(text + (rf" {{\scriptsize {_latex(cell.small)}}}" if cell.small else ""))
            lines.append(" & ".join(cells) + r" \\")
        lines += [
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\smallskip{{\footnotesize {_latex(note)}}}" for note in self.notes),
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def to_csv(self) -> str:
        """Every column, and after it what its cells say in small, where any do."""
        small = [any(row[place].small for row in self.rows) for place in range(len(self.header))]
        lines = [
            [text for name, more in zip(self.header, small, strict=True) for text in (name, f"{name}: more")[: 1 + more]]
        ]
        for row in self.rows:
            pairs = zip(row, small, strict=True)
            lines.append([text for cell, more in pairs for text in (cell.text, cell.small)[: 1 + more]])
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([csv_text(text) for text in line] for line in lines)
        return stream.getvalue()

    def to_text(self) -> str:
        """Aligned columns for a terminal."""
        lines = [self.header, *([f"{cell.text} {cell.small}".strip() for cell in row] for row in self.rows)]
        lines = [[" ".join(text.split()) for text in line] for line in lines]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        shown = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
        page = "\n".join([" ".join(self.title.split()), "", *shown, "", *self.notes])
        return _UNPRINTABLE.sub("?", page) + "\n"

    def to_html(self, links: bool = False) -> str:
        """A <figure class="table">; every text in it is escaped, so it may be put into a page as it is."""
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in self.header)
        body = []
        for row in self.rows:
            cells = []
            for place, cell in enumerate(row):
                text = html.escape(cell.text)
                text = f"<strong>{text}</strong>" if cell.best else text
                text = f'<a href="{html.escape(cell.link)}">{text}</a>' if links and cell.link else text
                text += f'<small style="display:block">{html.escape(cell.small)}</small>' if cell.small else ""
                cells.append(f'<th scope="row">{text}</th>' if place == 0 else f"<td>{text}</td>")
            body.append(f"<tr>{''.join(cells)}</tr>")
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return (
            f'<figure class="table"><figcaption>{html.escape(self.title)}</figcaption><div class="scroll">'
            f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>{notes}</figure>"
        )

    def _repr_html_(self) -> str:  # a notebook shows the table by itself
        return self.to_html()

    def save(self, folder: Path | str, name: str, links: bool = False) -> Path:
        """Write folder/name.md, .tex, .csv and .html; return the path of the Markdown file.

        `links`: cells link to the files of their items, which evidence.write_items puts beside the table.
        """
        written = {"html": self.to_html(links), "csv": self.to_csv(), "tex": self.to_latex(), "md": self.to_markdown(links)}
        for suffix, text in written.items():
            path = write_text(Path(folder) / f"{name}.{suffix}", text)
        return path


def csv_text(text: str) -> str:
    """A text that a spreadsheet does not take for a formula: an apostrophe before what starts like one and is no number."""
    if text[:1] in ("=", "+", "-", "@", "\t", "\r") and not re.fullmatch(r"[-+0-9.,%() \[\]*]+( points)?", text):
        return f"'{text}"
    return text


def _markdown(text: str) -> str:
    text = html.escape(" ".join(str(text).split()), quote=False)
    for letter in ("\\", "|", "*", "_", "`"):
        text = text.replace(letter, "\\" + letter)
    return text.replace("](", "]\\(")  # else a name could be a link


def _latex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "–": "--",
        "<": "$<$",
        ">": "$>$",
    }
    special |= {letter: "\\" + letter for letter in "&%$#_{}"}
    return "".join(special.get(letter, letter) for letter in " ".join(str(text).split()))
