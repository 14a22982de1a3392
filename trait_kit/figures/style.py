"""One look for every figure: an arm, a method or a kind of text has the same colour and marker wherever it appears.

Colours in one figure differ by 20 or more (CIE76), also for who lacks a kind of cone; where they do not in grey, markers
do (tests/test_figures.py). A figure is as wide as one column of a paper or two, with text of 6 to 8 points. No
pyplot, no global state.
"""

import functools
import hashlib
import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trait_kit.engine.files import atomic_path, read_yaml

DPI = 300  # of what is drawn in pixels
INK, QUIET, LOST = "#1f2430", "#5d6472", "#b94728"
DASHED = {"color": QUIET, "linestyle": (0, (4, 3)), "linewidth": 0.9}
FINE_TUNED = "_fine_tuned"  # ends the name of an arm's fine-tuned model
SIZES = {1: (3.3, 7.25), 2: (7.0, 8.0)}  # columns of a paper -> inches, points of text; small text is 0.83 of it
ONE_COLUMN = "_one_column"  # ends the name of a figure's narrow twin

WORDING = read_yaml(Path(__file__).with_name("figures.yaml"))
_KNOWN, _SPARE = WORDING["looks"], WORDING["spare_colours"]
# of texts on the map -> what they are
KINDS = {kind: longer[0] for kind, (_, _, _, *longer) in _KNOWN.items() if longer}


def _look(columns: int) -> Any:
    """The kit's style as a context: the caller's settings are left alone."""
    sizes = {"figure.figsize": (SIZES[columns][0], 1.0), "font.size": SIZES[columns][1]}
    return matplotlib.rc_context(sizes, Path(__file__).with_name("trait.mplstyle"))


class KitFigure(Figure):
    """A figure that a notebook shows by itself, without pyplot."""

    columns = 2
    says = ""  # in words, for who cannot see it
    inside = (0.0, 0.0, 1.0, 1.0)  # where panels and legends are

    def savefig(self, *args: Any, **options: Any) -> None:
        with _look(self.columns):  # ticks take the style that holds when they are drawn
            super().savefig(*args, **options)

    def save(self, folder: Path | str, name: str) -> Path:
        """Write name.svg, .pdf (text stays text) and .png, also for one column, undated; return the PNG's path."""
        undated = {"svg": {"Date": None, "Title": self.says}, "pdf": {"CreationDate": None}, "png": {}}
        for figure, stem in ((self.narrow(), f"{name}{ONE_COLUMN}"), (self, name)):
            for kind, metadata in undated.items():
                path = Path(folder) / f"{stem}.{kind}"
                with atomic_path(path) as temporary:
                    figure.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)
        return path

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=DPI)
        width, height = self.get_size_inches() * 130
        return stream.getvalue(), {"width": int(width), "height": int(height)}


def styled(draw: Callable[..., KitFigure]) -> Callable[..., KitFigure]:
    """Draws a figure in the kit's style, as wide as `columns` of a paper (1 or 2)."""

    @functools.wraps(draw)
    def drawn(*args: Any, columns: int = 2, **options: Any) -> KitFigure:
        with _look(columns):
            figure = draw(*args, **options)
        figure.columns, figure.narrow = columns, functools.partial(drawn, *args, columns=1, **options)
        return figure

    return drawn


def _of(name: str) -> Sequence[str]:
    """Colour, marker and label; an arm that the kit does not know has its colour and marker from its name alone."""
    name = name.removesuffix(FINE_TUNED)
    number = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    sign = "8+1234"[number // len(_SPARE) % 6]
    return _KNOWN.get(name) or (_SPARE[number % len(_SPARE)], sign, spelt(name))


def spelt(name: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in name.replace("_", " "))  # else no SVG


def colour(name: str) -> str:
    return _of(name)[0]


def marker(name: str) -> str:
    return "*" if name.endswith(FINE_TUNED) else _of(name)[1]


def label(name: str) -> str:
    return _of(name)[2] + (", fine-tuned" if name.endswith(FINE_TUNED) else "")


def new_figure(
    name: str, facts: Mapping[str, Any], height: float = 2.6, panels: int = 1, across: int = 2, **subplots: Any
) -> tuple[KitFigure, list[Axes]]:
    """A figure and its panels' axes, between headline and caption (figures.yaml's, filled with `facts`).

    `height`: of a row of panels, inches. Up to `across` are beside each other; on a single column none are.
    """
    says = {part: text.format(**facts) for part, text in WORDING["says"][name].items()}
    title, caption = says["title"], says.get("caption", "")
    (width, _), points = matplotlib.rcParams["figure.figsize"], matplotlib.rcParams["font.size"]
    across = min(panels, across if width > SIZES[1][0] else 1)
    down = -(-panels // across)
    headline = textwrap.fill(title, int(116 * width / points))
    below = textwrap.fill(caption, int(150 * width / points))
    above, under = (0.019 * points * (1 + text.count("\n")) + 0.03 for text in (headline, below))
    tall = height * down + above + under
    figure = KitFigure(figsize=(width, tall), layout="constrained")
    figure.says = f"{title}. {caption}".strip(". ") + "."
    figure.inside = (0, under / tall, 1, 1 - (above + under) / tall)
    figure.get_layout_engine().set(rect=figure.inside)
    figure.text(0.01, 1 - 0.03 / tall, headline, va="top", size="medium", weight="bold")
    figure.text(0.01, 0.03 / tall, below, va="bottom", size="small", color=QUIET)
    grid = list(figure.subplots(down, across, squeeze=False, **subplots).flat)
    for axes in grid[panels:]:
        axes.remove()
    for axes in grid[:panels]:
        axes.set(xlabel=says.get("x"), ylabel=says.get("y"))

    return figure, grid[:panels]


def legend(figure: KitFigure, place: str, ncols: int, **options: Any) -> None:
    """One of all panels, between them and the headline (place: upper left) or the caption (lower left)."""
    ncols = min(ncols, 2 if figure.get_figwidth() <= SIZES[1][0] else ncols)
    made = figure.legend(loc=place, bbox_to_anchor=figure.inside, ncols=ncols, borderaxespad=0, **options)
    rows, points = -(-len(made.get_texts()) // ncols), made.get_texts()[0].get_fontsize()
    share = (1.5 * rows + 0.8) * points / 72 / figure.get_figheight()
    _, bottom, _, height = figure.inside
    figure.get_layout_engine().set(rect=(0, bottom + (share if "lower" in place else 0), 1, height - share))


def rows_down(axes: Axes, names: Iterable[str], beside: Sequence[str] = ()) -> None:
    """Names on an axes' rows, the first at the top, and what is said of each on its right."""
    names = list(names)
    axes.set(yticks=range(len(names)), yticklabels=names[::-1], ylim=(-0.6, len(names) - 0.4))
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "annotation_clip": False}
    for height, text in enumerate(beside[::-1]):
        axes.annotate(text, (1.0, height), xytext=(4, 0), va="center", size="small", **at)
