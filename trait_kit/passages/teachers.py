"""Teachers write drafts of passages: one joins worked solutions, one composes around them, one asks a language model.

A teacher has a `name`, the reasons that another attempt `can_mend`, and `write(orders) -> drafts`, in their order. A draft
that could not be had says why; only what would fail for all of them (a key that is not accepted) raises TraitError.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from trait_kit.engine.files import digest
from trait_kit.engine.ledger import Estimate, Ledger
from trait_kit.engine.llm import Endpoint, Reply, Request, ask, clean
from trait_kit.passages import checks, offline, prompts
from trait_kit.passages.material import Draft, Group, Order, Problem, content

_AROUND = frozenset(
    ("enlightenment", "boilerplate", "recurring clause", "near-duplicate", "paraphrase")
)  # another enlightenment may mend these
_TYPICAL_ANSWER = 90  # tokens, for the estimate
_SHOWN_EVERY = 60  # reports of progress that are not printed between two that are


class JoiningTeacher:
    """Writes nothing: joins worked solutions (`teacher: none`), or bare answers (the ablation 'pairs')."""

    can_mend: frozenset[str] = frozenset()
    prompt_version = ""

    def __init__(self, pairs: bool = False) -> None:
        self.pairs = pairs
        self.name = "none: question-answer pairs" if pairs else "none: worked solutions"

    def write(self, orders: Sequence[Order]) -> list[Draft]:
        return [self._joined(order.rows) for order in orders]

    def _joined(self, rows: Sequence[Problem]) -> Draft:
        draft = Draft((), "", self.name, self.prompt_version)
        if self.pairs:
            return replace(draft, paragraphs=tuple(f"The answer is {row.answer.rstrip('.')}." for row in rows))
        unsolved = next((row.id for row in rows if not _solution(row)), None)
        if unsolved:
            name = self.name.partition(":")[0]
            return replace(draft, fault=f"no worked solution: problem {unsolved} has none, and teacher {name} writes none")
        return replace(draft, paragraphs=tuple(map(_solution, rows)))


class OfflineTeacher(JoiningTeacher):
    """Composes passages from the problems' gold worked solutions; no language model is involved, and its name says so."""

    can_mend = _AROUND

    def __init__(self, seed: int = 0):
        self.name, self.pairs, self.seed = "offline: gold solutions", False, seed
        self.prompt_version = f"offline@{digest(content('offline.yaml'))[:12]}"

    def write(self, orders: Sequence[Order]) -> list[Draft]:
        """The gold solution of each problem as its paragraph, and an enlightenment composed around them."""
        drafts = super().write(orders)
        return [draft if draft.fault else self._around(order, draft) for order, draft in zip(orders, drafts, strict=True)]

    def _around(self, order: Order, draft: Draft) -> Draft:
        seed = f"{self.seed}/{len(order.refused) + 1}" if order.refused else self.seed
        return replace(draft, enlightenment=offline.compose(order.rows, order.group.grouping, order.group.shared, seed))


class EndpointTeacher:
    """Asks a language model, one thing a request: a paragraph for each problem that has no worked solution, once for all
    passages that hold it, then the enlightenment of each passage, whole or sentence by sentence (`teacher_steps`).

    What fails a check is asked for again alone and told why, up to `max_attempts` times; refused answers are in `refusals`.
    """

    can_mend = _AROUND | {"length"}

    def __init__(self, endpoint: Endpoint, ledger: Ledger, params) -> None:
        self.name, self.endpoint, self.ledger, self.params = endpoint.model, endpoint, ledger, params
        self.paragraphs: dict[str, Reply] = {}  # of problems that were asked for
        self.refusals: Counter[str] = Counter()
        self._unpaid: dict[str, Reply] = {}  # paragraphs that no passage has paid for yet

    def write(self, orders: Sequence[Order]) -> list[Draft]:
        missing = {row.id: row for row in self._to_ask(orders) if row.id not in self.paragraphs}
        replies = self._ask([self._paragraph(row) for row in missing.values()], self.params.max_attempts)
        self._unpaid |= zip(missing, replies, strict=True)
        self.paragraphs |= self._unpaid
        drafts = [self._begun(order) for order in orders]
        if self.params.variant == "no_enlightenment":
            return drafts
        around = [[] if draft.fault else self._around(order, draft.paragraphs)
                  for order, draft in zip(orders, drafts, strict=True)]  # fmt: skip
        attempts = 1 if any(order.refused for order in orders) else self.params.max_attempts
        answers = iter(self._ask([request for requests in around for request in requests], attempts))
        return [_ended(draft, [next(answers) for _ in requests]) for draft, requests in zip(drafts, around, strict=True)]

    def estimate(self, orders: Sequence[Order]) -> Estimate:
        """The bill of asking for everything once; a paragraph to come is taken to be like a worked solution."""
        requests = [self._paragraph(row) for row in self._to_ask(orders)]
        for order in orders if self.params.variant != "no_enlightenment" else ():
            requests += self._around(order, [_solution(row) for row in order.rows])
        return prompts.estimate(self.endpoint, requests, _TYPICAL_ANSWER)

    def _to_ask(self, orders: Sequence[Order]) -> list[Problem]:
        rows = {row.id: row for order in orders for row in order.rows}
        return [row for row in rows.values() if self.params.paragraphs == "teacher" or not _solution(row)]

    def _ask(self, requests: Sequence[Request], attempts: int) -> list[Reply]:
        replies = ask(requests, self.endpoint, self.ledger, attempts=attempts, progress=_say)
        self.refusals.update(fault.partition(":")[0] for reply in replies for fault in reply.refused)
        return replies

    def _paragraph(self, row: Problem) -> Request:
        alone = Order(Group("", (row.id,), self.params.kind, row.topic or row.entity or ""), [row])
        without = ("reasoning", "gold answer", "arithmetic") if self.params.variant == "no_gold_checks" else ()
        read = functools.partial(checks.read_paragraph, alone, without=without)
        return Request(prompts.conversation("paragraph", alone), read)

    def _begun(self, order: Order) -> Draft:
        """The paragraphs of a passage; the first passage that holds one pays for it."""
        draft = Draft((), "", self.name, prompts.version(order))
        asked = {row.id: self.paragraphs[row.id] for row in self._to_ask([order])}
        draft = _charged(draft, asked.values(), [self._unpaid.pop(name) for name in asked if name in self._unpaid])
        told = [asked[row.id].value if row.id in asked else _solution(row) for row in order.rows]
        return draft if draft.fault else replace(draft, paragraphs=tuple(told))

    def _around(self, order: Order, paragraphs: Sequence[str]) -> list[Request]:
        """The requests for an enlightenment: one, or one a sentence."""
        if self.params.teacher_steps == "paragraph":
            turns = prompts.conversation("enlightenment", order, paragraphs)
            return [Request(turns, functools.partial(checks.read_enlightenment, order, paragraphs))]
        read = functools.partial(checks.read_sentence, order, paragraphs)
        opening = Request(prompts.conversation("opening", order, paragraphs), functools.partial(read, None))
        return [opening] + [
            Request(prompts.conversation("sentence", order, paragraphs, place), functools.partial(read, place))
            for place in range(len(order.rows))
        ]


Teacher = JoiningTeacher | EndpointTeacher


def make_teacher(params, endpoint: Endpoint | None = None, ledger: Ledger | None = None) -> Teacher:
    """The teacher that the parameters name; one that asks has `endpoint`, or that of the parameters."""
    if params.variant == "pairs" or params.teacher == "none":
        return JoiningTeacher(params.variant == "pairs")
    if params.teacher == "offline":
        return OfflineTeacher(params.seed)
    endpoint = endpoint or Endpoint.of(params)
    return EndpointTeacher(endpoint, ledger or endpoint.ledger(None), params)


def _solution(row: Problem) -> str:
    return clean(row.solution or "")


def _ended(draft: Draft, replies: Sequence[Reply]) -> Draft:
    draft = _charged(draft, replies, replies)
    return draft if draft.fault else replace(draft, enlightenment=" ".join(reply.value for reply in replies))


def _charged(draft: Draft, replies: Iterable[Reply], paid: Sequence[Reply]) -> Draft:
    """The draft with what the paid replies cost; and the first fault among `replies`, for which there is no passage."""
    columns = ("tokens_in", "tokens_out", "cost_usd")
    costs = {name: getattr(draft, name) + sum(getattr(reply, name) for reply in paid) for name in columns}
    failed = next((reply for reply in replies if reply.fault), None)
    return replace(draft, **costs, **({"fault": failed.fault, "answer": failed.content} if failed else {}))


def _say(done: int, count: int) -> None:
    if done == count or int(done) % _SHOWN_EVERY == 0:
        print(f"Asked the teacher: {done:,} of {count:,}", flush=True)
