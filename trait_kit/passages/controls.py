"""What passages have to beat: the same problems in plainer packages, and passages whose enlightenment cannot help.

Each is a source of texts like the passages, made from what notebook 03 wrote: an arm that reads one in their place shows
what a gain is due to. Nothing is drawn at random: the texts are the same for every seed.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from trait_kit.engine.files import TraitError
from trait_kit.tasks import prompt


def pairs(problems: pd.DataFrame) -> list[tuple[str, str]]:
    """The prompt that evaluation asks with, and the target that it scores: the solution, or else the answer."""
    targets = problems["solution"].where(problems["solution"].notna(), problems["answer"])
    return [
        (prompt(question), f" {target}") for question, target in zip(problems["question"], targets, strict=True)
    ]


def worked(problems: pd.DataFrame, passages: pd.DataFrame) -> list[str]:
    """Every problem that passages could hold, one document each."""
    return list(map("".join, pairs(problems)))


def worked_same(problems: pd.DataFrame, passages: pd.DataFrame) -> list[str]:
    """The passages' own problems alone, which a stage repeats."""
    return worked(problems[problems["id"].isin(set(passages["problem_ids"].explode()))], passages)


def rephrased(problems: pd.DataFrame, passages: pd.DataFrame, told: pd.DataFrame) -> list[str]:
    """The passages' own problems, each with the teacher's own paragraph: what its wording alone is worth."""
    return told.loc[told["id"].isin(set(passages["problem_ids"].explode())), "text"].to_list()


def no_enlightenment(problems: pd.DataFrame, passages: pd.DataFrame) -> list[str]:
    """Passages without their last paragraph; a stage reads more of them."""
    told = zip(passages["text"], passages["enlightenment"], strict=True)
    return [text.removesuffix(enlightenment).rstrip() for text, enlightenment in told]


def permuted(problems: pd.DataFrame, passages: pd.DataFrame) -> list[str]:
    """Each with the enlightenment of one that shares something else; those that find none are left out."""
    rows, step = _apart(passages)
    others = pd.concat([rows[step:], rows[:step]], ignore_index=True)
    told = zip(
        no_enlightenment(problems, rows), others["enlightenment"], rows["shared"] != others["shared"], strict=True
    )
    return [f"{body}\n\n{enlightenment}" for body, enlightenment, apart in told if apart]


def unrelated(problems: pd.DataFrame, passages: pd.DataFrame) -> list[str]:
    """The passages' problems and paragraphs in groups that share nothing, and so without an enlightenment.

    Beside `no_enlightenment` it shows what being related is worth. A group takes its first problem from one passage, its
    second from one further on that shares something else, and so on; groups that share something are left out.
    """
    rows, step = _apart(passages)
    question, found = dict(zip(problems["id"], problems["question"], strict=True)), []
    for place in range(len(rows)):
        taken = [
            rows.iloc[(place + number * step) % len(rows)] for number in range(len(rows["problem_ids"][place]))
        ]
        group = [(one["problem_ids"][n:], one["paragraphs"][n:]) for n, one in enumerate(taken)]
        parts = [(ids[0], told[0]) for ids, told in group if len(ids)]
        if len({one["shared"] for one in taken}) == len(taken) == len(dict(parts)):
            found.append("\n\n".join(f"{prompt(question[name])} {paragraph}" for name, paragraph in parts))
    return found


def _apart(passages: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Passages by what they share, and how many further on the next share something else."""
    rows = passages.sort_values(["shared", "id"]).reset_index(drop=True)
    return rows, int(rows["shared"].value_counts().max())


CONTROLS: dict[str, Callable[..., list[str]]] = {
    function.__name__: function
    for function in (worked, worked_same, rephrased, no_enlightenment, permuted, unrelated)
}


def texts(name: str, run_dir: Path) -> list[str]:
    """The documents of a control; TraitError where there are none."""
    parts = ["problems", "passages", *["rephrased"] * (name == "rephrased")]
    paths = [run_dir / "03_write_passages" / f"{part}.parquet" for part in parts]
    if not paths[-1].exists():
        again = "Run notebook 03 again, for 'rephrased' with passages.paragraphs: both."
        raise TraitError(f"training.arms: '{name}' needs {paths[-1]}. {again}")
    found = CONTROLS[name](*map(pd.read_parquet, paths))
    if not found:
        raise TraitError(f"training.arms: the control '{name}' has no text. Look at the passages of notebook 03.")
    return found
