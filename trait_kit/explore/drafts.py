"""03: every group of problems, what was asked, what came back and what became of it, try by try."""

from typing import Any

import pandas as pd

from trait_kit.explore.explorer import Explorer
from trait_kit.explore.show import ALL, MOST, holding, menu, page
from trait_kit.params import PassageParams
from trait_kit.passages import prompts
from trait_kit.passages.material import Order
from trait_kit.passages.writing import Written, group_of, orders_of

PASSED = "passed"


def explore(written: Written, p: PassageParams) -> Explorer:
    """All drafts by task, by what refused one, and by tries, with a search over their texts."""
    rows = groups(written)
    controls = {
        "outcome": menu([PASSED, *rows["refused_by"].explode().dropna().unique()]),
        "task": menu(rows["tasks"].explode().dropna()),
        "tries": menu(map(str, sorted(rows["tries"].unique()))),
        "search": "",
    }

    def view(**chosen: str) -> str:
        found = choose(rows, **chosen)
        entries = [_entry(row, written, p) for row in found.head(MOST).to_dict("records")]
        return page("drafts", entries=entries, found=len(found), all=len(rows))

    return Explorer(view, controls, "".join(view(outcome=outcome) for outcome in controls["outcome"][1:]))


def groups(written: Written) -> pd.DataFrame:
    """A row a group: what it shares, its drafts in the order of their tries, what refused them, whether one passed."""
    drafts = pd.concat([written.passages.assign(reason=""), written.rejected], ignore_index=True)
    rows = []
    for name, tries in drafts.groupby("id", sort=False):
        tries = tries.sort_values("attempt", kind="stable")
        refused_by = [kind for kind in tries["reason"].str.partition(":")[0].unique() if kind]
        shared, tasks, passed = tries["shared"].iloc[0], list(tries["tasks"].iloc[0]), tries["reason"].eq("").any()
        words = " ".join([shared, *tries["text"], *tries["reason"]])
        rows.append((name, shared, tasks, len(tries), passed, refused_by, words, tries))
    columns = ["id", "shared", "tasks", "tries", "passed", "refused_by", "words", "drafts"]
    return pd.DataFrame(rows, columns=columns)


def choose(rows: pd.DataFrame, outcome: str = ALL, task: str = ALL, tries: str = ALL, search: str = "") -> pd.DataFrame:
    """The rows of `groups` that the controls let through."""
    kept = holding(rows["words"], search)
    if outcome != ALL:
        kept &= rows["passed"] if outcome == PASSED else rows["refused_by"].map(lambda kinds: outcome in kinds)
    if task != ALL:
        kept &= rows["tasks"].map(lambda names: task in names)
    if tries != ALL:
        kept &= rows["tries"].astype(str) == tries
    return rows[kept]


def asked(order: Order, paragraphs: list[str], p: PassageParams) -> list[str]:
    """What a language model is asked for this passage; the system line and the examples that come before are left out."""
    if p.teacher == "none":
        return []
    name, alone = p.prompts or prompts.choose(order), [Order(order.group, [row]) for row in order.rows if not row.solution]
    turns = [prompts.conversation(name, "paragraph", one) for one in alone]
    parts = [("opening", 0), *(("sentence", place) for place in range(len(order.rows)))]
    parts = parts if p.teacher_steps == "sentences" else [("enlightenment", 0)]
    turns += [prompts.conversation(name, part, order, paragraphs, place) for part, place in parts]
    return [turn[-1]["content"] for turn in turns]


def _entry(row: dict[str, Any], written: Written, p: PassageParams) -> dict[str, Any]:
    drafts = row["drafts"]
    order = orders_of([group_of(drafts.iloc[0])], written.problems)[0]
    paragraphs = list(drafts["paragraphs"].iloc[0])
    return {**row, "problems": order.rows, "asked": asked(order, paragraphs, p), "drafts": drafts.to_dict("records")}
