"""Controls over a page: they move in a notebook that somebody watches, and stand still everywhere else."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ipywidgets

from trait_kit.engine.files import TraitError
from trait_kit.explore.show import page
from trait_kit.runs import BATCH_VARIABLE

_WATCHED = ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG")  # one is set for the kernel of an open notebook


@dataclass(frozen=True)
class Explorer:
    """A page with controls; a notebook shows it by itself.

    Where nobody watches it is its static twin. Elsewhere the twin goes with it, for what cannot run a widget: an
    exported notebook, a viewer of notebooks.
    """

    view: Callable[..., str]  # the page (HTML), given the value of every control
    controls: Mapping[str, Any]  # name -> its options: numbers for a slider, texts for a menu; or one text to type over
    twin: str
    first: Mapping[str, Any] = field(default_factory=dict)  # where a control stands at first, if not on its first option
    button: str = ""  # what to press for the page, where it takes long

    def _repr_mimebundle_(self, **_asked: Any) -> dict[str, Any]:
        still = {"text/plain": "Explorer", "text/html": self.twin}
        moves = BATCH_VARIABLE not in os.environ and any(name in os.environ for name in _WATCHED)
        return {**self.widget()._repr_mimebundle_(), **still} if moves else still

    def widget(self) -> Any:
        """Controls in a row that wraps, the page below."""
        shown = ipywidgets.HTML(value=self.twin, layout={"width": "100%"})
        controls = {name: self._control(name, given) for name, given in self.controls.items()}
        press = ipywidgets.Button(description=self.button)

        def show(_change: Any = None) -> None:
            press.disabled = True
            if self.button:
                shown.value = page("note", note="A moment: models are loaded, then they write.")
            try:
                shown.value = self.view(**{name: control.value for name, control in controls.items()})
            except TraitError as error:
                shown.value = page("note", note=str(error))
            finally:
                press.disabled = False

        if self.button:
            press.on_click(show)
        else:
            for control in controls.values():
                control.observe(show, "value")
            show()
        row = [*controls.values(), *([press] if self.button else [])]
        return ipywidgets.VBox([ipywidgets.HBox(row, layout={"flex_flow": "row wrap", "grid_gap": "0 1.5em"}), shown])

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
