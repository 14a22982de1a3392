"""What passages have to beat: the same problems in plainer packages, and passages whose enlightenment cannot help.

Each is a source of texts like the passages themselves, made from what notebook 03 wrote. An arm that reads one in the
passages' place shows what a gain is due to: the problems, their form, or what the enlightenment says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from trait_kit.engine.files import TraitError
from trait_kit.tasks import prompt


def worked(problems: pd.DataFrame, passages: pd.DataFrame) -> list[str]:
    """Every problem that passages could hold, as question and worked solution (or answer), one document each."""
    told = problems["solution"].where(problems["solution"].notna(), problems["answer"])
    return [f"{prompt(question)} {text}" for question, text in zip(problems["question"], told, strict=True)]


def worked_same(problems: pd.DataFrame, passages: pd.DataFrame) -> list[str]:
    """The same of the passages' own problems alone; a stage repeats them until its tokens are full."""
    return worked(problems[problems["id"].isin(set(passages["problem_ids"].explode()))], passages)


def no_enlightenment(problems: pd.DataFrame, passages: pd.DataFrame) -> list[str]:
    """Passages without their last paragraph; a stage reads more of them for the same tokens."""
    pairs = zip(passages["text"], passages["enlightenment"], strict=True)
    return [text.removesuffix(enlightenment).rstrip() for text, enlightenment in pairs]


def permuted(problems: pd.DataFrame, passages: pd.DataFrame) -> list[str]:
    """Passages, each with the enlightenment of one that shares something else; those that find none are left out."""
    rows = passages.sort_values(["shared", "id"]).reset_index(drop=True)
    step = int(rows["shared"].value_counts().max())  # so far on, nobody meets what shares the same
    others = pd.concat([rows[step:], rows[:step]], ignore_index=True)
    bodies = no_enlightenment(problems, rows)
    apart = rows["shared"] != others["shared"]
    return [f"{bodies[place]}\n\n{others['enlightenment'][place]}" for place in rows.index[apart]]


CONTROLS: dict[str, Callable[[pd.DataFrame, pd.DataFrame], list[str]]] = {
    function.__name__: function for function in (worked, worked_same, no_enlightenment, permuted)
}


def texts(name: str, run_dir: Path) -> list[str]:
    """The documents of a control; TraitError where there are none to be had."""
    written = [pd.read_parquet(run_dir / "03_write_passages" / f"{part}.parquet") for part in ("problems", "passages")]
    found = CONTROLS[name](*written)
    if not found:
        raise TraitError(f"training.arms: the control '{name}' has no text. Look at the passages of notebook 03.")
    return found
