"""Pages that move in JupyterLab and stand still in batch and in an exported notebook.

Texts of the web and of language models are escaped; not typeset, because MathJax passes over the page's class; isolated in
direction, wrapped anywhere, control characters made visible. Inks are the notebook's own, for dark themes.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ipywidgets
import jinja2
import numpy as np
import pandas as pd
from IPython.display import HTML

from trait_kit.engine.files import TraitError
from trait_kit.figures.cells import change_text, metric_name, show
from trait_kit.figures.style import label
from trait_kit.runs import BATCH_VARIABLE

ALL, MOST = "all", 40  # the choice of a menu that filters nothing; entries on a page
# Controls, half characters
_VISIBLE = dict.fromkeys([*range(0x7F, 0xA0), *range(0xD800, 0xE000)], "\ufffd")
_VISIBLE |= {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
# One is set for an open notebook's kernel
_WATCHED = "JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"


@dataclass(frozen=True)
class Explorer:
    """A page with controls; its static twin where nobody watches or no widget runs."""

    view: Callable[..., str]  # the page (HTML) for the values of all controls
    controls: Mapping[str, Any]  # name -> options: numbers (a slider) or texts (a menu); or a text to type over
    twin: str
    first: Mapping[str, Any] = field(default_factory=dict)  # where controls stand, if not on the first option
    button: str = ""  # to press for a page that takes long

    def _repr_mimebundle_(self, **_asked: Any) -> dict[str, Any]:
        still = {"text/plain": "Explorer", "text/html": self.twin}
        moves = BATCH_VARIABLE not in os.environ and any(name in os.environ for name in _WATCHED)
        return {**self.widget()._repr_mimebundle_(), **still} if moves else still

    def widget(self) -> Any:
        shown = ipywidgets.HTML(value=self.twin, layout={"width": "100%"})
        controls = {name: self._control(name, given) for name, given in self.controls.items()}

        def move(_change: Any = None) -> None:
            if self.button:
                shown.value = page("note", note="A moment: models are loaded, then they write.")
            try:
                shown.value = self.view(**{name: control.value for name, control in controls.items()})
            except TraitError as error:
                shown.value = page("note", note=str(error))

        row = list(controls.values())
        if self.button:
            row.append(ipywidgets.Button(description=self.button))
            row[-1].on_click(move)
        else:
            for control in row:
                control.observe(move, "value")
            move()
        return ipywidgets.VBox(
            [ipywidgets.HBox(row, layout={"flex_flow": "row wrap", "grid_gap": "0 1.5em"}), shown]
        )

    def _control(self, name: str, given: Any) -> Any:
        how = {"description": name.replace("_", " "), "style": {"description_width": "initial"}}
        if isinstance(given, str):
            kind = ipywidgets.Textarea if self.button else ipywidgets.Text
            return kind(value=given, layout={"width": "36em" if self.button else "18em"}, **how)
        how["value"] = self.first.get(name, given[0])
        if isinstance(given[0], str):
            return ipywidgets.Dropdown(options=given, layout={"width": "max-content"}, **how)
        options = [(f"{option:,}", option) for option in given]
        return ipywidgets.SelectionSlider(options=options, layout={"width": "36em"}, **how)


def page(name: str, **values: Any) -> str:
    return _PAGES.get_template(f"{name}.html.jinja").render(values)


def table(frame: pd.DataFrame) -> HTML:
    """Rows that hold texts from elsewhere."""
    return HTML(page("table", columns=list(frame), rows=frame.to_dict("records")))


def plain(value: Any) -> str:
    """A cell as text, with what a terminal would obey made visible."""
    return show(value.item() if isinstance(value, np.generic) else value).translate(_VISIBLE)


def menu(values: Iterable[str]) -> list[str]:
    """Each once, after the choice that filters nothing."""
    return [ALL, *dict.fromkeys(values)]


_PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
)
_PAGES.filters |= {"plain": plain, "label": label, "metric": metric_name, "change": change_text}
