"""05: what every arm said, to each test item (losses as readily as wins) and to a prompt of your own.

Models are loaded when the button is pressed, and two are kept. Answers are greedy and written nowhere: what is tried by
hand is no evidence.
"""

import functools

import pandas as pd
from lm_eval.api.instance import Instance

from trait_kit.evaluation import suites
from trait_kit.evaluation.comparison import HELD_OUT
from trait_kit.evaluation.outcomes import Evaluation
from trait_kit.evaluation.scoring_model import load_model, quiet
from trait_kit.explore.show import ALL, MOST, Explorer, menu, page
from trait_kit.figures.curves import item_gains
from trait_kit.models import fast_precision, model_folder
from trait_kit.tasks import prompt

BETTER, WORSE, SAME = "it is better", "it is worse", "both are equal"
QUESTION, TYPED = "a question", "the beginning of a text"
_opened = functools.lru_cache(maxsize=2)(load_model)


def explore(found: Evaluation, control: str = "base") -> Explorer:
    """All items by metric, by the arm set against the reference arm, by task, and by who is better."""
    reference = found.params.reference_arm
    outcomes = found.outcomes[~found.outcomes["task"].str.startswith(HELD_OUT)]
    marks = dict(list(outcomes.groupby(["task", "item_id"], sort=False)))

    def view(metric: str, against: str, task: str, where: str, search: str = "") -> str:
        rows = choose(item_gains(outcomes, reference, [against], metric), found.problems, task, where, search)
        entries = []
        for row in rows.head(MOST).to_dict("records"):
            item = marks[row["task"], row["item_id"]]
            values = item.pivot_table(index="arm", columns="metric", values="value", sort=False).to_dict("index")
            said = item[item["prediction"] != ""].groupby("arm")["prediction"].unique().to_dict()
            entries.append({"problem": row, "values": values, "said": said})
        chosen = {"reference": reference, "against": against, "metric": metric, "where": where}
        return page("items", entries=entries, found=len(rows), **chosen)

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
    """The rows of `item_gains` that the controls let through, the furthest from zero first."""
    rows = gains.merge(problems.rename(columns={"id": "item_id"}), on=["task", "item_id"])
    gain = rows["gain"]
    kept = {BETTER: gain > 0, WORSE: gain < 0, SAME: gain == 0, ALL: gain.notna()}[where]
    kept &= rows["question"].str.contains(search.strip(), case=False, regex=False) & (
        (rows["task"] == task) | (task == ALL)
    )
    return rows[kept].sort_values("gain", key=abs, ascending=False, kind="stable")


def ask_both(found: Evaluation) -> Explorer:
    """A prompt to type; the twin shows what both said to a test item."""
    p, problems = found.params, found.problems
    arms = sorted((arm for arm in found.models if arm != "base"), key=lambda arm: arm != p.reference_arm)
    tasks = [task for task in problems["task"].unique() if suites.n_examples(p, task)]
    answers = dict(zip(problems["question"], problems["answer"], strict=True))

    def view(prompt: str, arm: str, asked_as: str, tokens: int) -> str:
        said = {name: answer(found, name, prompt, asked_as, tokens) for name in ("base", arm)}
        return page("ask", asked=prompt, gold=answers.get(prompt.strip()), said=said)

    kept = found.outcomes[found.outcomes["arm"].isin(["base", arms[0]]) & (found.outcomes["prediction"] != "")]
    first = problems.set_index("id").reindex([*kept["item_id"].head(1), problems["id"].iloc[0]]).iloc[0]
    said = kept[kept["item_id"] == first.name].groupby("arm")["prediction"].first().to_dict()
    twin = page("ask", asked=first["question"], gold=first["answer"], said=said, kept=True)
    how = {"arm": arms, "asked_as": [*tasks, QUESTION, TYPED], "tokens": [16, 32, 64, 128, 256, 512]}
    return Explorer(view, {"prompt": first["question"], **how}, twin, {"tokens": 64}, button="Ask both")


def answer(found: Evaluation, arm: str, text: str, asked_as: str, tokens: int) -> str:
    """What the arm writes: to a bare question, behind a task's worked examples, or going on with a text."""
    p, context = found.params, text if asked_as == TYPED else prompt(text)
    if asked_as not in (QUESTION, TYPED):
        context = suites.shown(asked_as, suites.worked_examples(p), suites.n_examples(p, asked_as)) + context
    precision = fast_precision() if p.precision == "auto" else p.precision
    model = _opened(model_folder(found.models[arm]), batch_size=1, precision=precision)
    how = {"until": ["\nQuestion:"], "do_sample": False, "max_gen_toks": tokens}
    with quiet():
        return model.generate_until([Instance("generate_until", {}, (context, how), 0)], disable_tqdm=True)[
            0
        ].strip()
