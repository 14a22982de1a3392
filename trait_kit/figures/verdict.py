"""What the tests allow to be said of the reference arm, and no more; the words are verdict.jinja's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from trait_kit.evaluation.comparison import ALPHA, HELD_OUT, MACRO, MARGIN, main_metric
from trait_kit.figures.cells import change_text, gain_text, interval_text, metric_name, p_words

MIN_ITEMS, MIN_CLUSTERS = 30, 6  # no verdict from fewer; sign flips of five clusters cannot reach ALPHA
_SAY = jinja2.Template(Path(__file__).with_name("verdict.jinja").read_text(encoding="utf-8"), trim_blocks=True).module


def control_of(arms: Sequence[str], reference: str, named: str = "") -> str:
    """The arm that the reference has to beat: the one named, or what reads the same problems without the structure."""
    order = (named, "worked", "worked_same", "selected", "base", *arms)
    return next((arm for arm in order if arm in arms and arm != reference), "")


def verdict(tests: pd.DataFrame, wanted_metric: str, reference: str, control: str = "") -> dict[str, Any]:
    """`tests`: comparison.compare_all's.

    question; headline (the answer in a sentence); good (better than its control and worse in nothing); worse (what
    fell); forgetting (against base, the control and `selected`); cannot_show (what this run says nothing of).
    """
    ours, metric = tests[tests["reference"] == reference], main_metric(tests, wanted_metric)
    macro = ours[ours["task"] == MACRO]
    control = control_of(list(dict.fromkeys(macro["arm"])), reference, control)
    said = {"question": str(_SAY.question(reference, control))}
    of_control = macro[macro["arm"] == control]
    main = of_control["metric"] == metric
    if not main.any():
        return said | {"headline": f"{reference} was compared with no other arm on a task.", "good": False}
    row = of_control[main].iloc[0]
    enough = row["n"] >= MIN_ITEMS and row["clusters"] >= MIN_CLUSTERS
    sure, better = row["p_holm"] < ALPHA, row["gain"] > 0
    worse = ours[(ours["p_holm"] < ALPHA) & (ours["gain"] < 0)]
    fell = pd.concat([worse, of_control[~main & (of_control["gain"] < 0)]]).drop_duplicates(["arm", "metric", "task"])
    general = ours["task"].str.startswith(HELD_OUT) & (ours["task"] != f"{HELD_OUT}in_domain")
    by_main = ours[ours["metric"] == metric]
    unseen = {
        "metric": metric_name(metric),
        "wanted": metric_name(wanted_metric),
        "seeds": by_main["seeds"].max(),
        "lacking": sorted({task for task in ours["task"] if not task.startswith(HELD_OUT)} - set(by_main["task"])),
        "one_template": list(by_main.loc[by_main["clusters"] < 2, "task"].unique()),
        "forgetting": general.any(),
    }
    in_all, least = int((macro["metric"] == metric).sum()), (MIN_ITEMS, MIN_CLUSTERS)
    return said | {
        "headline": str(_SAY.headline(_words(row), enough, sure, better, in_all, least, MARGIN)).replace("\n", ""),
        "good": bool(enough and sure and better and worse.empty),
        "main_metric": metric,
        "control_arm": control,
        "worse": _lines(fell),
        "forgetting": _lines(ours[general & ours["arm"].isin(["base", control, "selected"])]),
        "cannot_show": str(_SAY.cannot_show(**unseen)).splitlines(),
    }


def _lines(rows: pd.DataFrame) -> list[str]:
    return [str(_SAY.line(_words(row))) for row in rows.to_dict("records")]


def _words(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `compare` as it is written in a sentence."""
    metric = row["metric"]
    gain = f"{change_text(row['gain'], metric)} {interval_text(row['gain_low'], row['gain_high'], metric)}"
    written = {"gain": gain, "p": p_words(row["p_holm"]), "metric": metric_name(metric)}
    return {**row, **written, "smallest": gain_text(row["smallest_gain"], metric)}
