"""One look for every figure: an arm, a method or a kind of text has the same colour and marker wherever it appears.

The map's colours are those of the paper's Figure 3 (general light blue, in-domain purple, downstream grey, TRAIT green); an
arm takes the colour of the text it adds. Hues are far apart for the common colour-vision deficiencies (Okabe and Ito's
set where the paper leaves the choice), and markers repeat what colours say. Figures are made without pyplot, so that no
global state or display is touched.
"""

from __future__ import annotations

import hashlib
import io
import textwrap
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from trait_kit.engine.files import atomic_path

DPI = 200  # twice a screen's: figures stay sharp on a dense display
INK, QUIET, LOST = "#1f2430", "#5d6472", "#c8553d"
DASHED = {"color": QUIET, "linestyle": (0, (4, 3)), "linewidth": 1.4}
STYLE = dict(matplotlib.rc_params_from_file(Path(__file__).with_name("trait.mplstyle"), use_default_template=False))
FINE_TUNED = "_fine_tuned"  # ends the name of an arm's fine-tuned model

_KNOWN = {  # name: (colour, marker, label)
    "general": ("#8ec6ee", "o", "general"),
    "in_domain": ("#7a3fa6", "v", "in-domain"),
    "downstream": ("#6f7177", "o", "downstream"),
    "trait": ("#009e73", "o", "TRAIT"),
    "base": ("#6f7177", "o", "base model"),
    "raw": ("#7a3fa6", "v", "raw"),
    "random": ("#56b4e9", "s", "random"),
    "dsir": ("#e08e0b", "^", "DSIR"),
    "fasttext": (LOST, "P", "fastText"),
    "fasttext_educational": ("#0b5fa5", "D", "fastText + educational"),
    "selected": ("#0b5fa5", "D", "selected"),
}
_SPARE_COLOURS = ("#cc79a7", "#8c6d1f", "#2a9db0", "#b0413e", "#4d4dbf", "#5b8c2a")  # of arms that the kit does not know
_SPARE_MARKERS = ("X", "*", "h", "<", ">", "p")


class KitFigure(Figure):
    """A figure that a notebook shows by itself (a Figure made without pyplot otherwise prints only its repr)."""

    def savefig(self, path: Any, **options: Any) -> None:
        """Under the kit's style, and without a date: the same figure gives the same bytes."""
        undated = {"metadata": {"Date": None}} if options.get("format") == "svg" else {}
        with matplotlib.rc_context(STYLE):
            super().savefig(path, **undated, **options)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=DPI)
        width, height = self.get_size_inches() * 100
        return stream.getvalue(), {"width": int(width), "height": int(height)}


def styled(plot: Callable[..., KitFigure]) -> Callable[..., KitFigure]:
    """Run a plot function under the kit's style and leave the caller's matplotlib settings alone."""

    @wraps(plot)
    def with_style(*arguments: Any, **keywords: Any) -> KitFigure:
        with matplotlib.rc_context(STYLE):
            return plot(*arguments, **keywords)

    return with_style


def _look(name: str) -> tuple[str, str, str]:
    """An arm that the kit does not know gets its look from its name alone, so it too is the same in every figure."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    spare = _SPARE_COLOURS[number % 6], _SPARE_MARKERS[number // 7 % 6], name.replace("_", " ")
    return _KNOWN.get(name.replace("+", "_"), spare)


def colour(name: str) -> str:
    """Of an arm, a selection method or a kind of text; a fine-tuned model has its arm's."""
    return _look(name.removesuffix(FINE_TUNED))[0]


def marker(name: str) -> str:
    return "*" if name.endswith(FINE_TUNED) else _look(name)[1]


def label(name: str) -> str:
    """The name a reader sees: 'trait' is TRAIT; a name the kit does not know is shown as it is."""
    return _look(name.removesuffix(FINE_TUNED))[2] + (", fine-tuned" if name.endswith(FINE_TUNED) else "")


def new_figure(
    title: str, subtitle: str = "", width: float = 7.2, height: float = 4.5, **subplots: Any
) -> tuple[KitFigure, Any]:
    """A figure with a wrapped headline above its axes; returns it and its axes (an array, or None for nrows=0)."""
    points = width * 72 - 16  # of a line; letters are about 0.6 and 0.53 em wide
    head = textwrap.wrap(plain(title), int(points / 9.6))
    below = textwrap.wrap(plain(subtitle), int(points / 6.1))
    room = (16 + 19 * len(head) + 15.5 * len(below)) / 72
    figure = KitFigure(figsize=(width, height + room))
    inside = (0.005, 0.005, 0.985, height / (height + room) - 0.005)
    figure.set_layout_engine("constrained", rect=inside, wspace=0.06, hspace=0.08)
    for lines, points_down, look in (
        (head, 9, {"size": 15, "weight": "bold"}),
        (below, 11 + 19 * len(head), {"size": 11.5}),
    ):
        place = (0.11 / width, 1 - points_down / 72 / (height + room))
        figure.text(*place, "\n".join(lines), va="top", linespacing=1.15, color=QUIET if lines is below else INK, **look)
    return figure, figure.subplots(**subplots) if subplots.get("nrows") != 0 else None


def save(figure: Figure, folder: Path | str, name: str) -> Path:
    """Write folder/name.svg and folder/name.png, each whole or not at all; return the path of the PNG."""
    for kind in ("svg", "png"):
        path = Path(folder) / f"{name}.{kind}"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=DPI)
    return path


def plain(text: Any) -> str:
    """Text that matplotlib shows letter by letter: a dollar sign in a name is not the start of a formula."""
    return str(text).replace("$", r"\$")


def note(axes: Axes, text: str, place: tuple[float, float], shift: tuple[float, float] = (0, 0), **options: Any) -> None:
    """A text beside a place of the data, `shift` points away from it."""
    options = {"color": INK, "size": 11.5, "annotation_clip": False} | options
    axes.annotate(plain(text), place, xytext=shift, textcoords="offset points", **options)


def names_down(axes: Axes, names: Iterable[str], headroom: float = 0.6) -> None:
    """Names on the rows of an axes, the first one at the top."""
    names = list(names)[::-1]
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.set_ylim(-0.6, len(names) - 1 + headroom)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def tokens_text(value: float, _: Any = None) -> str:
    """5120 -> 5.12k: in three digits, so that neighbours of a doubling stay apart."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def spread(places: Iterable[float], gap: float) -> np.ndarray:
    """Move numbers apart until neighbours are at least `gap` from each other, moving each as little as needed."""
    places = np.asarray(list(places), dtype=float)
    order, steps = np.argsort(places, kind="stable"), gap * np.arange(len(places))
    result = np.empty_like(places)
    result[order] = isotonic_regression(places[order] - steps).x + steps  # least squares under order, less the gaps
    return result


def end_labels(axes: Axes, x: float, places: list[tuple[str, float]]) -> None:
    """Name each arm at the height where its line ends, right of x, without overlaps. Call after the limits are set."""
    if not places:
        return
    axes.figure.draw_without_rendering()  # lays the axes out, so that their height is known
    low, high = axes.get_ylim()
    gap = abs(high - low) * 15.6 / 72 * axes.figure.dpi / axes.get_window_extent().height
    for (arm, _), y in zip(places, spread([place[1] for place in places], gap), strict=True):
        note(axes, label(arm), (x, y), (9, 0), color=colour(arm), size=12, weight="bold", va="center")
