"""05: every test item, what it was worth to each arm and what each said: losses as readily as wins."""

import pandas as pd

from trait_kit.evaluation.comparison import HELD_OUT
from trait_kit.evaluation.outcomes import Evaluation
from trait_kit.explore.explorer import Explorer
from trait_kit.explore.show import ALL, MOST, menu, page
from trait_kit.figures.gains import item_gains

BETTER, WORSE, SAME = "it is better", "it is worse", "both are equal"


def explore(found: Evaluation, control: str = "base") -> Explorer:
    """All items by metric, by the arm that the reference arm is set against, by task, and by which of the two is better."""
    reference = found.params.reference_arm
    outcomes = found.outcomes[~found.outcomes["task"].str.startswith(HELD_OUT)]
    problems = {(row["task"], row["id"]): row for row in found.problems.to_dict("records")}
    marks = dict(list(outcomes.groupby(["task", "item_id"], sort=False)))

    def view(metric: str, against: str, task: str, where: str, search: str = "") -> str:
        rows = choose(item_gains(outcomes, reference, [against], metric), found.problems, task, where, search)
        entries = []
        for row in rows.head(MOST).itertuples():
            item = marks[row.task, row.item_id]
            values = item.pivot_table(index="arm", columns="metric", values="value", sort=False).to_dict("index")
            said = item[item["prediction"] != ""].groupby("arm")["prediction"].unique().to_dict()
            entries.append({"gain": row.gain, "values": values, "said": said, "problem": problems[row.task, row.item_id]})
        names = {"reference": reference, "against": against, "metric": metric, "where": where}
        return page("items", entries=entries, found=len(rows), **names)

    controls = {
        "metric": menu([found.metric, *outcomes["metric"]])[1:],
        "against": [arm for arm in menu([control, "base", *outcomes["arm"]])[1:] if arm != reference],
        "task": menu(outcomes["task"]),
        "where": [BETTER, WORSE, SAME, ALL],
        "search": "",
    }
    twin = "".join(view(found.metric, controls["against"][0], ALL, where) for where in (BETTER, WORSE))
    return Explorer(view, controls, twin)


def choose(gains: pd.DataFrame, problems: pd.DataFrame, task: str, where: str, search: str = "") -> pd.DataFrame:
    """The rows of `item_gains` that the controls let through, what is furthest from zero first."""
    rows = gains.merge(problems[["task", "id", "question"]], left_on=["task", "item_id"], right_on=["task", "id"])
    gain = rows["gain"]
    kept = {BETTER: gain > 0, WORSE: gain < 0, SAME: gain == 0, ALL: gain.notna()}[where]
    kept &= rows["question"].str.contains(search.strip(), case=False, regex=False) & ((rows["task"] == task) | (task == ALL))
    return rows[kept].sort_values("gain", key=abs, ascending=False, kind="stable")
