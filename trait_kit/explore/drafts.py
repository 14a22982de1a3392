"""03: every group of problems, what was asked, what came back and what became of it."""

from dataclasses import replace
from typing import Any

import pandas as pd

from trait_kit.explore.show import ALL, MOST, Explorer, menu, page
from trait_kit.params import PassageParams
from trait_kit.passages import prompts
from trait_kit.passages.material import Group
from trait_kit.passages.writing import Written, group_of

Row = dict[str, Any]
PASSED = "passed"


def explore(written: Written, p: PassageParams) -> Explorer:
    """All drafts by task, by what refused one, and by tries, with a search over their texts."""
    rows = groups(written)
    controls = {
        "outcome": menu([PASSED, *(outcome for row in rows for outcome in row["outcomes"])]),
        "task": menu(task for row in rows for task in row["tasks"]),
        "tries": menu(sorted(str(len(row["drafts"])) for row in rows)),
        "search": "",
    }

    def view(**chosen: str) -> str:
        found, entries = choose(rows, **chosen), []
        for row in found[:MOST]:
            group = group_of(row["drafts"][0], written.problems)
            entries.append(
                {**row, "group": group, "asked": asked(group, list(row["drafts"][0]["paragraphs"]), p)}
            )
        return page("drafts", entries=entries, found=len(found), all=len(rows))

    return Explorer(view, controls, "".join(view(outcome=outcome) for outcome in controls["outcome"][1:]))


def groups(written: Written) -> list[Row]:
    """For each group its drafts, try by try, and what they came to: PASSED, or the check that refused one."""
    drafts = pd.concat([written.passages.assign(reason=""), written.rejected]).sort_values(
        "attempt", kind="stable"
    )
    rows = []
    for _, found in drafts.groupby("id", sort=False):
        row = {name: found[name].iloc[0] for name in ("shared", "tasks")} | {"drafts": found.to_dict("records")}
        row["outcomes"] = [reason.partition(":")[0] or PASSED for reason in found["reason"]]
        row["words"] = "\n".join([*found["shared"], *found["text"], *found["reason"]]).lower()
        rows.append(row)
    return rows


def choose(rows: list[Row], outcome: str = ALL, task: str = ALL, tries: str = ALL, search: str = "") -> list[Row]:
    kept = [row for row in rows if outcome in (ALL, *row["outcomes"]) and task in (ALL, *row["tasks"])]
    return [
        row for row in kept if tries in (ALL, str(len(row["drafts"]))) and search.strip().lower() in row["words"]
    ]


def asked(group: Group, paragraphs: list[str], p: PassageParams) -> list[str]:
    """What a language model is asked for this passage, without system line and examples."""
    if p.teacher == "none":
        return []
    name = p.prompts or prompts.choose(group)
    unsolved = [row for row in group.rows if p.paragraphs == "teacher" or not row.solution]
    turns = [prompts.conversation(name, "paragraph", replace(group, rows=[row])) for row in unsolved]
    sentences = [("opening", 0), *(("sentence", place) for place in range(len(group.rows)))]
    parts = sentences if p.teacher == "local" or p.teacher_steps == "sentences" else [("enlightenment", 0)]
    turns += [prompts.conversation(name, part, group, paragraphs, place) for part, place in parts]
    return [turn[-1]["content"] for turn in turns]
