"""Teachers write drafts of passages: one composes them from gold solutions, one asks a language model.

A teacher has a `name`, a `concurrency`, the reasons that another attempt `can_mend`, and
`write(group, rows, ledger, refused) -> Draft | Rejection`; it never raises for what a single group brings, only (TraitError)
for what would fail for all of them, such as a key that is not accepted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trait_kit.engine.endpoint import Endpoint
from trait_kit.engine.exchange import clean
from trait_kit.engine.ledger import Ledger
from trait_kit.params import PassageParams
from trait_kit.passages import checks, enlightenment, prompts, techniques
from trait_kit.passages.drafts import Draft, Problem, Rejection, parse_answer
from trait_kit.passages.grouping import Group


def make_teacher(params: PassageParams) -> Teacher:
    """The teacher that the parameters of notebook 03 name."""
    if params.variant == "pairs":
        return QuestionAnswerTeacher()
    if params.teacher == "offline":
        return OfflineTeacher(seed=params.seed)
    teacher = OpenAITeacher.of(params)
    teacher.prompt = params.prompt
    return teacher


@dataclass(frozen=True)
class Refused:
    """What was written for a group so far and why it was refused: (answer, reason), the oldest first."""

    history: tuple[tuple[str, str], ...]

    @property
    def attempt(self) -> int:
        return len(self.history) + 1


class OfflineTeacher:
    """Composes passages from the problems' gold worked solutions; no language model is involved, and its name says so."""

    name = "offline: gold solutions"
    concurrency = 1
    usd_per_million_in = usd_per_million_out = max_cost_usd = 0.0
    can_mend = frozenset(("enlightenment", "boilerplate", "near-duplicate", "paraphrase"))

    def __init__(self, seed: int = 0):
        self.seed = seed
        wording = b"".join(Path(module.__file__).read_bytes() for module in (enlightenment, techniques))
        self.prompt_version = f"offline@{hashlib.sha256(wording).hexdigest()[:12]}"

    def write(
        self, group: Group, rows: Sequence[Problem], ledger: Ledger, refused: Refused | None = None
    ) -> Draft | Rejection:
        """The gold solution of each problem as its paragraph, and an enlightenment composed around them."""
        for row in rows:
            if not row.solution or not row.solution.strip():
                reason = f"no worked solution: problem {row.id} has none, and the offline teacher only composes from them"
                return Rejection(reason, self.name, self.prompt_version)
        seed = f"{self.seed}/{refused.attempt}" if refused else self.seed
        around = enlightenment.compose(rows, group.grouping, group.shared, seed)
        return Draft(tuple(clean(row.solution) for row in rows), around, self.name, self.prompt_version)


class QuestionAnswerTeacher:
    """No passage at all: each question with its bare answer (the ablation 'pairs')."""

    name = "none: question-answer pairs"
    concurrency = 1
    usd_per_million_in = usd_per_million_out = max_cost_usd = 0.0
    can_mend: frozenset[str] = frozenset()

    def write(self, group: Group, rows: Sequence[Problem], ledger: Ledger, refused: Refused | None = None) -> Draft:
        return Draft(tuple(f"The answer is {row.answer.rstrip('.')}." for row in rows), "", self.name, "")


class OpenAITeacher(Endpoint):
    """Asks an endpoint for the passage as one JSON object."""

    prompt = ""  # path of a template of the user's own
    can_mend = frozenset(("unusable answer", *checks.OWN_CHECKS, "boilerplate", "near-duplicate", "paraphrase"))

    def question(self, group: Group, rows: Sequence[Problem]) -> str:
        """What is asked first."""
        return prompts.render(self._template(group, rows), rows, group.grouping, group.shared)

    def _template(self, group: Group, rows: Sequence[Problem]) -> str:
        return self.prompt or prompts.choose(rows, group.grouping)

    def write(
        self, group: Group, rows: Sequence[Problem], ledger: Ledger, refused: Refused | None = None
    ) -> Draft | Rejection:
        name, count = self._template(group, rows), len(rows)
        messages = [{"role": "user", "content": self.question(group, rows)}]
        for answer, reason in refused.history if refused else ():
            messages += [
                {"role": "assistant", "content": answer or "(empty)"},
                {"role": "user", "content": prompts.again(reason, count)},
            ]
        reply = self.converse(
            messages, lambda content: parse_answer(content, count), lambda fault: prompts.repair(fault, count), ledger
        )
        paid = {"tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out, "cost_usd": reply.cost_usd}
        told = {"teacher": self.name, "prompt_version": prompts.version(name), **paid}
        return Rejection(reply.fault, answer=reply.content, **told) if reply.fault else Draft(*reply.value, **told)


Teacher = OfflineTeacher | QuestionAnswerTeacher | OpenAITeacher
