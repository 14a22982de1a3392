"""One look for every figure: an arm, a method or a kind of text has the same colour and marker wherever it appears.

The map's colours are those of the paper's Figure 3; an arm takes the colour of the text it adds.
Hues are far apart for the common colour-vision deficiencies (Okabe and Ito's set). Without pyplot,
no global state or display is touched.
"""

from __future__ import annotations

import hashlib
import io
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trait_kit.engine.files import atomic_path

DPI = 200  # twice a screen's: figures stay sharp on a dense display
INK, QUIET, LOST = "#1f2430", "#5d6472", "#c8553d"
DASHED = {"color": QUIET, "linestyle": (0, (4, 3)), "linewidth": 1.4}
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
    "questions": ("#e08e0b", "o", "training questions"),
    "worked": ("#cc79a7", "X", "worked solutions"),
}
_SPARE_COLOURS = ("#cc79a7", "#8c6d1f", "#2a9db0", "#b0413e", "#4d4dbf", "#5b8c2a")  # of arms that the kit does not know

# Decorates what draws: under the kit's style, and the caller's matplotlib settings are left alone.
styled = matplotlib.rc_context(fname=Path(__file__).with_name("trait.mplstyle"))


class KitFigure(Figure):
    """A figure that a notebook shows by itself (a Figure made without pyplot otherwise prints only its repr)."""

    savefig = styled(Figure.savefig)  # ticks take the style that holds when they are drawn

    def save(self, folder: Path | str, name: str) -> Path:
        """Write folder/name.svg and .png, each whole or not at all and without a date; return the path of the PNG."""
        for kind, metadata in (("svg", {"Date": None}), ("png", {})):
            path = Path(folder) / f"{name}.{kind}"
            with atomic_path(path) as temporary:
                self.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)
        return path

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=DPI)
        width, height = self.get_size_inches() * 100
        return stream.getvalue(), {"width": int(width), "height": int(height)}


def _look(name: str) -> tuple[str, str, str]:
    """An arm that the kit does not know gets its colour from its name alone, so it too is the same in every figure."""
    name = name.removesuffix(FINE_TUNED)
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    spare = _SPARE_COLOURS[number % len(_SPARE_COLOURS)], "X", name.replace("_", " ")
    return _KNOWN.get(name, spare)


def colour(name: str) -> str:
    """Of an arm, a selection method or a kind of text; a fine-tuned model has its arm's."""
    return _look(name)[0]


def marker(name: str) -> str:
    return "*" if name.endswith(FINE_TUNED) else _look(name)[1]


def label(name: str) -> str:
    """The name a reader sees: 'trait' is TRAIT; a name the kit does not know is shown as it is."""
    return _look(name)[2] + (", fine-tuned" if name.endswith(FINE_TUNED) else "")


def new_figure(
    title: str, caption: str = "", width: float = 7.2, height: float = 4.5, **subplots: Any
) -> tuple[KitFigure, Any]:
    """A figure with a wrapped headline above its axes and a caption below them; returns it and its axes."""
    headline = textwrap.fill(title, int(7.4 * width))
    below = textwrap.fill(caption, int(11.5 * width))
    room = 0.27 * (1 + headline.count("\n")) + 0.22 * (1 + below.count("\n"))
    figure = KitFigure(figsize=(width, height + room), layout="constrained")
    figure.suptitle(headline, x=0.01, ha="left", size=15, weight="bold")
    figure.supxlabel(below, x=0.01, ha="left", size=11.5, color=QUIET)
    return figure, figure.subplots(**subplots)


def note(axes: Axes, text: str, place: tuple[float, float], shift: tuple[float, float] = (0, 0), **options: Any) -> None:
    """A text beside a place of the data, `shift` points away from it."""
    axes.annotate(text, place, xytext=shift, textcoords="offset points", annotation_clip=False, **options)


def names_down(axes: Axes, names: Iterable[str]) -> None:
    """Names on the rows of an axes, the first one at the top."""
    names = list(names)[::-1]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.15)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
