"""05: ask both: one prompt of your own, the answers of the untrained model and of an arm next to each other.

Models are loaded when the button is pressed, and two at most are kept. Answers are greedy, so they can be had again, and
are written nowhere: what is tried by hand is no evidence.
"""

import functools
from pathlib import Path

from lm_eval.api.instance import Instance

from trait_kit.evaluation import suites
from trait_kit.evaluation.backends import Completions
from trait_kit.evaluation.outcomes import Evaluation
from trait_kit.evaluation.scoring_model import PackedLM, load_model, quiet
from trait_kit.explore.explorer import Explorer
from trait_kit.explore.show import page
from trait_kit.models import fast_precision, model_folder
from trait_kit.tasks import prompt

QUESTION, TYPED = "a question", "the beginning of a text"


def explore(found: Evaluation) -> Explorer:
    """A field to type into; the twin shows what both said to a test item."""
    p, problems = found.params, found.problems
    arms = sorted((arm for arm in found.models if arm != "base"), key=lambda arm: arm != p.reference_arm)
    tasks = [task for task in problems["task"].unique() if suites.n_examples(p, task)]
    answers = dict(zip(problems["question"], problems["answer"], strict=True))

    def view(prompt: str, arm: str, asked_as: str, tokens: int) -> str:
        said = {name: answer(found, name, prompt, asked_as, tokens) for name in ("base", arm)}
        return page("ask", asked=prompt, gold=answers.get(prompt.strip()), said=said)

    kept = found.outcomes[found.outcomes["arm"].isin(["base", arms[0]]) & (found.outcomes["prediction"] != "")]
    kept = kept.sort_values("metric", key=lambda names: ~names.str.startswith("exact_match"), kind="stable")  # written
    first = problems.set_index("id").reindex([*kept["item_id"].head(1), problems["id"].iloc[0]]).iloc[0]
    said = kept[kept["item_id"] == first.name].groupby("arm")["prediction"].first().to_dict()
    twin = page("ask", asked=first["question"], gold=first["answer"], said=said, kept=True)
    how = {"arm": arms, "asked_as": [*tasks, QUESTION, TYPED], "tokens": [16, 32, 64, 128, 256, 512]}
    return Explorer(view, {"prompt": first["question"], **how}, twin, {"tokens": 64}, button="Ask both")


def answer(found: Evaluation, arm: str, text: str, asked_as: str, tokens: int) -> str:
    """What the arm's model writes: to a bare question, behind a task's worked examples, or going on with the text."""
    p, context = found.params, text if asked_as == TYPED else prompt(text)
    if asked_as not in (QUESTION, TYPED):
        context = suites.shown(asked_as, suites.worked_examples(p), suites.n_examples(p, asked_as)) + context
    if p.endpoint_model:
        model = Completions(model_folder(found.models[arm]), p, p.endpoint_model.replace("{arm}", arm))
    else:
        model = _opened(model_folder(found.models[arm]), fast_precision() if p.precision == "auto" else p.precision)
    how = {"until": ["\nQuestion:"], "do_sample": False, "max_gen_toks": tokens}
    with quiet():
        return model.generate_until([Instance("generate_until", {}, (context, how), 0)], disable_tqdm=True)[0].strip()


@functools.lru_cache(maxsize=2)
def _opened(folder: Path, precision: str) -> PackedLM:
    return load_model(folder, batch_size=1, precision=precision)
