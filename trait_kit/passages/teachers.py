"""Teachers write drafts of passages: one composes them from gold solutions, one asks a language model.

A teacher has a `name`, a `concurrency`, and `write(group, problems, ledger) -> Draft | Rejection`; it never raises for what
a single group brings, only (TraitError) for what would fail for all of them, such as a key that is not accepted.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from trait_kit.params import PassageParams
from trait_kit.passages import enlightenment, prompts, techniques
from trait_kit.passages.drafts import Draft, Rejection, parse_answer
from trait_kit.passages.grouping import Group
from trait_kit.teaching.endpoint import Endpoint
from trait_kit.teaching.exchange import clean
from trait_kit.teaching.ledger import Ledger


def make_teacher(params: PassageParams) -> OfflineTeacher | OpenAITeacher:
    """The teacher that the parameters of notebook 03 name."""
    return OfflineTeacher(seed=params.seed) if params.teacher == "offline" else OpenAITeacher.of(params)


class OfflineTeacher:
    """Composes passages from the problems' gold worked solutions; no language model is involved, and its name says so."""

    name = "offline: gold solutions"
    concurrency = 1
    usd_per_million_in = usd_per_million_out = max_cost_usd = 0.0

    def __init__(self, seed: int = 0):
        self.seed = seed
        wording = b"".join(Path(module.__file__).read_bytes() for module in (enlightenment, techniques))
        self.prompt_version = f"offline@{hashlib.sha256(wording).hexdigest()[:12]}"

    def write(self, group: Group, problems: pd.DataFrame, ledger: Ledger) -> Draft | Rejection:
        """The gold solution of each problem as its paragraph, and an enlightenment composed around them."""
        for row in problems.itertuples(index=False):
            if not isinstance(row.solution, str) or not row.solution.strip():
                reason = f"no worked solution: problem {row.id} has none, and the offline teacher only composes from them"
                return Rejection(reason, self.name, self.prompt_version)
        paragraphs = tuple(clean(solution) for solution in problems["solution"])
        around = enlightenment.compose(problems, group.grouping, group.shared, self.seed)
        return Draft(paragraphs, around, self.name, self.prompt_version)


class OpenAITeacher(Endpoint):
    """Asks an endpoint for the passage as one JSON object."""

    def write(self, group: Group, problems: pd.DataFrame, ledger: Ledger) -> Draft | Rejection:
        name, count = prompts.choose(problems, group.grouping), len(problems)
        reply = self.converse(
            prompts.render(name, problems, group.grouping, group.shared),
            lambda content: parse_answer(content, count),
            lambda fault: prompts.repair(fault, count),
            ledger,
        )
        paid = {"tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out, "cost_usd": reply.cost_usd}
        told = {"teacher": self.name, "prompt_version": prompts.version(name), **paid}
        return Rejection(reply.fault, answer=reply.content, **told) if reply.fault else Draft(*reply.value, **told)
