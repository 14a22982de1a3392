"""What passages have to beat: the same problems in plainer packages, and passages whose enlightenment cannot help.

Each is a source of texts like the passages themselves, made from what notebook 03 wrote. An arm
that reads one in the passages' place shows what a gain is due to: the problems, their form, the
teacher's wording, that what stands together is related, or what the enlightenment says. Nothing is
drawn at random here, so the texts are the same for every seed.
"""

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


def rephrased(problems: pd.DataFrame, passages: pd.DataFrame, told: pd.DataFrame) -> list[str]:
    """The passages' own problems, each as question and the teacher's own paragraph: what its wording alone is worth."""
    return told.loc[told["id"].isin(set(passages["problem_ids"].explode())), "text"].to_list()


def no_enlightenment(problems: pd.DataFrame, passages: pd.DataFrame) -> list[str]:
    """Passages without their last paragraph; a stage reads more of them for the same tokens."""
    pairs = zip(passages["text"], passages["enlightenment"], strict=True)
    return [text.removesuffix(enlightenment).rstrip() for text, enlightenment in pairs]


def permuted(problems: pd.DataFrame, passages: pd.DataFrame) -> list[str]:
    """Passages, each with the enlightenment of one that shares something else; those that find none are left out."""
    rows, step = _apart(passages)
    others = pd.concat([rows[step:], rows[:step]], ignore_index=True)
    bodies = no_enlightenment(problems, rows)
    apart = rows["shared"] != others["shared"]
    return [f"{bodies[place]}\n\n{others['enlightenment'][place]}" for place in rows.index[apart]]


def unrelated(problems: pd.DataFrame, passages: pd.DataFrame) -> list[str]:
    """The passages' problems and paragraphs in groups that share nothing, so without an enlightenment, which has no subject.

    Beside `no_enlightenment`, whose groups share something, it shows what being related is worth. A
    group takes its first problem from one passage, its second from a passage further on that shares
    something else, and so on; each paragraph is read as often as in the passages. Groups that would
    share something all the same are left out.
    """
    rows, step = _apart(passages)
    question, found = dict(zip(problems["id"], problems["question"], strict=True)), []
    for place in range(len(rows)):
        taken = [rows.iloc[(place + number * step) % len(rows)] for number in range(len(rows["problem_ids"][place]))]
        group = [(one["problem_ids"], one["paragraphs"], number) for number, one in enumerate(taken)]
        parts = [(ids[number], told[number]) for ids, told, number in group if number < len(ids)]
        if len({one["shared"] for one in taken}) == len(taken) == len(dict(parts)):
            found.append("\n\n".join(f"{prompt(question[name])} {paragraph}" for name, paragraph in parts))
    return found


def _apart(passages: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Passages by what they share, and how many further on nobody meets what shares the same."""
    rows = passages.sort_values(["shared", "id"]).reset_index(drop=True)
    return rows, int(rows["shared"].value_counts().max())


CONTROLS: dict[str, Callable[..., list[str]]] = {
    function.__name__: function for function in (worked, worked_same, rephrased, no_enlightenment, permuted, unrelated)
}


def texts(name: str, run_dir: Path) -> list[str]:
    """The documents of a control; TraitError where there are none to be had."""
    folder = run_dir / "03_write_passages"
    written = [pd.read_parquet(folder / f"{part}.parquet") for part in ("problems", "passages")]
    if name == "rephrased":
        if not (told := folder / "rephrased.parquet").exists():
            raise TraitError(
                f"training.arms: 'rephrased' needs {told}, the teacher's own paragraph of each problem. Set "
                "passages.paragraphs: both and run notebook 03 again."
            )
        written.append(pd.read_parquet(told))
    found = CONTROLS[name](*written)
    if not found:
        raise TraitError(f"training.arms: the control '{name}' has no text. Look at the passages of notebook 03.")
    return found
