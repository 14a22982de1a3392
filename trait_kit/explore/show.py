"""Texts of the web and of language models as HTML: the one way in which explorers show them.

Escaped; not typeset, because MathJax passes over the page's class; isolated in direction, wrapped anywhere, control
characters made visible. Inks are the notebook's own, so that a dark theme stays legible. What is long opens whole.
"""

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from IPython.display import HTML

from trait_kit.figures.cells import change_text, metric_name
from trait_kit.figures.style import label

ALL, MOST = "all", 40  # the choice of a menu that filters nothing; entries on a page


def page(name: str, **values: Any) -> str:
    """The template of that name, filled."""
    return _PAGES.get_template(f"{name}.html.jinja").render(values)


def table(frame: pd.DataFrame) -> HTML:
    """Some rows that hold texts from elsewhere."""
    return HTML(page("table", columns=list(frame), rows=frame.to_dict("records")))


def plain(value: Any) -> str:
    """A cell as text, with what a terminal would obey made visible."""
    if isinstance(value, str):
        return "".join(map(_visible, value))
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if value is None or value != value:
        return "–"
    return f"{value:.3g}" if isinstance(value, float | np.floating) else str(value)


def menu(values: Iterable[str]) -> list[str]:
    """Each of them once, after the choice that filters nothing."""
    return [ALL, *dict.fromkeys(values)]


def _mark(value: float, metric: str) -> str:
    if metric.startswith(("choice_accuracy", "exact_match")) and value in (0.0, 1.0):
        return "right" if value else "wrong"
    return plain(float(value))


def _visible(letter: str) -> str:
    if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs"):
        return letter
    return chr(0x2400 + ord(letter)) if letter < " " else "\ufffd"


_PAGES = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
_PAGES.filters |= {"plain": plain, "label": label, "metric": metric_name, "change": change_text, "mark": _mark}
