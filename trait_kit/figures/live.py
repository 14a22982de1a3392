"""The loss while it falls: one figure in the notebook, redrawn as training goes on and gone when it is done."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from trait_kit.figures import curves
from trait_kit.runs import BATCH_VARIABLE

SECONDS_BETWEEN = 15.0  # drawing takes a third of a second of the cores that train


@contextlib.contextmanager
def loss_curve(arms: Sequence[str]) -> Iterator[Callable[[pd.DataFrame], None] | None]:
    """Yield what `train_arms` calls with the log so far; nothing where no notebook is open."""
    shell = None
    if BATCH_VARIABLE not in os.environ:
        with contextlib.suppress(ImportError):
            from IPython import get_ipython

            shell = get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        yield None
        return
    from IPython.display import HTML, display

    handle = display(HTML("<i>The curve appears after the first steps.</i>"), display_id=True)
    drawn = -SECONDS_BETWEEN

    def draw(log: pd.DataFrame) -> None:
        nonlocal drawn
        if time.monotonic() - drawn < SECONDS_BETWEEN or not (log["metric"] == "loss").any():
            return
        handle.update(curves.plot_loss(log, [arm for arm in arms if arm in set(log["arm"])]))
        drawn = time.monotonic()

    try:
        yield draw
    finally:
        handle.update(HTML(""))
