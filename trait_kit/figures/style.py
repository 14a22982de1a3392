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

WIDTH = 7.2  # inches
DPI = 200  # twice a screen's: figures stay sharp on a dense display
INK, QUIET, LOST = "#1f2430", "#5d6472", "#c8553d"
DASHED = {"color": QUIET, "linestyle": (0, (4, 3)), "linewidth": 1.4}
STYLE = dict(matplotlib.rc_params_from_file(Path(__file__).with_name("trait.mplstyle"), use_default_template=False))
FINE_TUNED = "_fine_tuned"  # ends the name of an arm's fine-tuned model

COLOURS = {
    "general": "#8ec6ee",
    "in_domain": "#7a3fa6",
    "downstream": "#6f7177",
    "trait": "#009e73",
    "base": "#6f7177",
    "raw": "#7a3fa6",
    "random": "#56b4e9",
    "dsir": "#e08e0b",
    "fasttext": LOST,
    "fasttext+educational": "#0b5fa5",
    "selected": "#0b5fa5",
}
_MARKERS = {"base": "o", "raw": "v", "random": "s", "dsir": "^", "fasttext": "P", "selected": "D", "trait": "o"}
_LABELS = {
    "in_domain": "in-domain",
    "trait": "TRAIT",
    "base": "base model",
    "dsir": "DSIR",
    "fasttext": "fastText",
    "fasttext+educational": "fastText + educational",
}
_SPARE_COLOURS = ("#cc79a7", "#8c6d1f", "#2a9db0", "#b0413e", "#4d4dbf", "#5b8c2a")  # arms that the kit does not know
_SPARE_MARKERS = ("X", "*", "h", "<", ">", "p")


class KitFigure(Figure):
    """A figure that a notebook shows by itself (a Figure made without pyplot otherwise prints only its repr)."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        stream = io.BytesIO()
        with matplotlib.rc_context(STYLE):
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


def canonical(name: str) -> str:
    """The key of an arm, method or kind: 'fasttext_educational' (a file name) is 'fasttext+educational'."""
    return "fasttext+educational" if name == "fasttext_educational" else name


def colour(name: str) -> str:
    """An arm the kit does not know gets a colour from its name alone, so it too is the same in every figure."""
    name = name.removesuffix(FINE_TUNED)
    return COLOURS.get(canonical(name)) or _SPARE_COLOURS[_number(name) % len(_SPARE_COLOURS)]


def marker(name: str) -> str:
    if name.endswith(FINE_TUNED):
        return "*"  # in the colour of the arm that was fine-tuned
    name = "selected" if canonical(name) == "fasttext+educational" else name
    return _MARKERS.get(name) or _SPARE_MARKERS[_number(name) // 7 % len(_SPARE_MARKERS)]


def label(name: str) -> str:
    """The name a reader sees: 'trait' is TRAIT; a name the kit does not know is shown as it is."""
    if name.endswith(FINE_TUNED):
        return f"{label(name.removesuffix(FINE_TUNED))}, fine-tuned"
    return _LABELS.get(canonical(name), str(name).replace("_", " "))


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def new_figure(
    title: str,
    subtitle: str = "",
    *,
    height: float = 4.5,
    width: float = WIDTH,
    rows: int = 1,
    columns: int = 1,
    **subplots: Any,
) -> tuple[KitFigure, Any]:
    """A figure with a wrapped headline above its axes; returns it and its axes (an array of them, or None for rows=0)."""
    points = width * 72 - 16
    # widths of DejaVu letters in running text: bold 0.62 em, plain 0.53 em
    headline = _wrap(title, int(points / (15 * 0.64)))
    below = _wrap(subtitle, int(points / (11.5 * 0.53)))
    head = (12 + 19 * len(headline) + 15.5 * len(below) + 4) / 72
    whole = height + head
    figure = KitFigure(figsize=(width, whole))
    room = (0.005, 0.005, 0.985, height / whole - 0.005)
    figure.set_layout_engine("constrained", rect=room, wspace=0.06, hspace=0.08)
    top, left = 1 - 9 / 72 / whole, 0.11 / width
    figure.text(left, top, "\n".join(headline), size=15, weight="bold", va="top", linespacing=1.15)
    if below:
        top -= (19 * len(headline) + 2) / 72 / whole
        figure.text(left, top, "\n".join(below), size=11.5, color=QUIET, va="top", linespacing=1.15)
    return figure, figure.subplots(rows, columns, **subplots) if rows else None


def _wrap(text: str, width: int) -> list[str]:
    """Lines of about equal length: as few as `width` letters allow, with no word left alone on the last one."""
    text, width = plain(text), max(20, width)
    lines = textwrap.wrap(text, width)
    for narrower in range(width - 1, 19, -1):
        balanced = textwrap.wrap(text, narrower)
        if len(balanced) > len(lines):
            break
        lines = balanced
    return lines


def save(figure: Figure, folder: Path | str, name: str) -> Path:
    """Write folder/name.svg and folder/name.png, each whole or not at all; return the path of the PNG."""
    folder = Path(folder)
    with matplotlib.rc_context(STYLE):
        for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            with atomic_path(folder / f"{name}.{kind}") as temporary:
                figure.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)
    return folder / f"{name}.png"


def plain(text: Any) -> str:
    """Text that matplotlib shows letter by letter: a dollar sign in a name is not the start of a formula."""
    return str(text).replace("$", r"\$")


def note(axes: Axes, text: str, place: tuple[float, float], shift: tuple[float, float] = (0, 0), **options: Any) -> None:
    """A text beside a place of the data, `shift` points away from it."""
    options = {"color": INK, "size": 11.5, "annotation_clip": False} | options
    axes.annotate(plain(text), place, xytext=shift, textcoords="offset points", **options)


def names_down(axes: Axes, names: Iterable[str], **limits: float) -> None:
    """Names on the rows of an axes, the first one at the top."""
    names = list(names)[::-1]
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.set_ylim(limits.get("bottom", -0.6), limits.get("top", len(names) - 0.4))
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


def end_labels(axes: Axes, x: float, places: list[tuple[str, float, str]], size: float = 12.0) -> None:
    """Write (text, y, colour) to the right of x without overlaps, instead of a legend. Call after the limits are set."""
    if not places:
        return
    axes.figure.draw_without_rendering()  # lays the axes out, so that their height is known
    low, high = axes.get_ylim()
    gap = abs(high - low) * size * 1.3 / 72 * axes.figure.dpi / axes.get_window_extent().height
    for (text, _, shade), y in zip(places, spread([place[1] for place in places], gap), strict=True):
        note(axes, text, (x, y), (9, 0), color=shade, size=size, weight="bold", va="center")
