"""Teachers write drafts of passages: one joins worked solutions, one asks a language model, anybody's or the local one.

A teacher has a `name`, the reasons that another attempt `can_mend`, and `write(orders) -> drafts`,
in their order. A draft that could not be had says why; only what would fail for all of them (a key
that is not accepted) raises TraitError.
"""

import functools
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trait_kit.engine import llama
from trait_kit.engine.ledger import Estimate
from trait_kit.engine.llm import Endpoint, Reply, Request, again, ask, clean
from trait_kit.passages import checks, prompts
from trait_kit.passages.material import Draft, Group, Order, Problem
from trait_kit.passages.novelty import blames

RECORDED = Path(__file__).parents[1] / "demo_data" / "answers.jsonl.gz"
_LOCAL = {"temperature": 0.2, "seed": 0, "stop": ["\n"]}
_TYPICAL_ANSWER = 70  # tokens


class JoiningTeacher:
    """Writes nothing: joins worked solutions (`teacher: none`), for tests and for what passages have to beat."""

    name = "none: worked solutions"
    can_mend: frozenset[str] = frozenset()

    def write(self, orders: Sequence[Order]) -> list[Draft]:
        return [self._joined(order.rows) for order in orders]

    def _joined(self, rows: Sequence[Problem]) -> Draft:
        unsolved = next((row.id for row in rows if not _solution(row)), None)
        if unsolved:
            return Draft((), "", self.name, fault=f"no worked solution: problem {unsolved} has none, and nobody writes one")
        return Draft(tuple(map(_solution, rows)), "", self.name)


class EndpointTeacher:
    """Asks a language model, one thing a request: a paragraph for each problem that has no worked solution, once for all
    passages that hold it, then the enlightenment of each passage, whole or sentence by sentence
    (`teacher_steps`).

    What fails a check is asked for again alone and told why, up to `max_attempts` times; refused
    answers are in `refusals`.
    """

    can_mend = frozenset(("enlightenment", "boilerplate", "recurring clause", "near-duplicate", "length"))

    def __init__(self, endpoint: Endpoint, params) -> None:
        self.name, self.endpoint, self.params = endpoint.model, endpoint, params
        self.paragraphs: dict[str, Reply] = {}  # of problems that were asked for
        self.refusals: Counter[str] = Counter()
        self._unpaid: dict[str, Reply] = {}  # paragraphs that no passage has paid for yet

    def write(self, orders: Sequence[Order]) -> list[Draft]:
        self.tell(self._to_ask(orders))
        drafts = [self._begun(order) for order in orders]
        around = [[] if draft.fault else self._around(order, draft.paragraphs)
                  for order, draft in zip(orders, drafts, strict=True)]  # fmt: skip
        attempts = 1 if any(order.refused for order in orders) else self.params.max_attempts
        answers = iter(self._ask([request for requests in around for request in requests], attempts))
        return [_ended(draft, [next(answers) for _ in requests]) for draft, requests in zip(drafts, around, strict=True)]

    def tell(self, problems: Sequence[Problem]) -> list[Reply]:
        """The paragraph of each problem, asked for where it has not been."""
        missing = {row.id: row for row in problems if row.id not in self.paragraphs}
        replies = self._ask([self._paragraph(row) for row in missing.values()], self.params.max_attempts)
        self._unpaid |= zip(missing, replies, strict=True)
        self.paragraphs |= self._unpaid
        return [self.paragraphs[row.id] for row in problems]

    def estimate(self, orders: Sequence[Order]) -> Estimate:
        """The bill of what has no kept answer; a paragraph to come is taken to be like a worked solution."""
        rows = self._to_ask(orders)
        requests = [self._paragraph(row) for row in rows]
        replies = ask(requests, self.endpoint, self.params.max_attempts, kept=True)
        kept = {row.id: reply.value for row, reply in zip(rows, replies, strict=True) if not reply.fault}
        for order in orders:
            requests += self._around(order, [kept.get(row.id) or _solution(row) for row in order.rows])
        return self.endpoint.estimate(requests, _TYPICAL_ANSWER)

    def _to_ask(self, orders: Sequence[Order]) -> list[Problem]:
        rows = {row.id: row for order in orders for row in order.rows}
        return [row for row in rows.values() if self.params.paragraphs == "teacher" or not _solution(row)]

    def _ask(self, requests: Sequence[Request], attempts: int) -> list[Reply]:
        """Replies in the order of the requests. Those that begin alike are asked together: a server reads that once."""
        order = sorted(range(len(requests)), key=lambda at: str(requests[at].messages()))
        asked = ask([requests[at] for at in order], self.endpoint, attempts)
        found = dict(zip(order, asked, strict=True))
        replies = [found[at] for at in range(len(requests))]
        self.refusals.update(fault.partition(":")[0] for reply in replies for fault in reply.refused)
        return replies

    def _paragraph(self, row: Problem) -> Request:
        alone = Order(Group("", (row.id,), self.params.kind, row.topic or row.entity or ""), [row])
        turns = prompts.conversation(self._wording(alone), "paragraph", alone)
        return Request(turns, functools.partial(checks.read_paragraph, alone))

    def _wording(self, order: Order) -> str:
        return self.params.prompts or prompts.choose(order)

    def _begun(self, order: Order) -> Draft:
        """The paragraphs of a passage; the first passage that holds one pays for it."""
        draft = Draft((), "", self.name, prompts.version(self._wording(order)))
        asked = {row.id: self.paragraphs[row.id] for row in self._to_ask([order])}
        draft = _charged(draft, asked.values(), [self._unpaid.pop(name) for name in asked if name in self._unpaid])
        told = [asked[row.id].value if row.id in asked else _solution(row) for row in order.rows]
        return draft if draft.fault else replace(draft, paragraphs=tuple(told))

    def _around(self, order: Order, paragraphs: Sequence[str]) -> list[Request]:
        """The requests for an enlightenment: one, or one a sentence. What was refused stands in them, with the reason."""
        if self.params.teacher_steps == "paragraph":
            read = functools.partial(checks.read_enlightenment, order, paragraphs)
            turns = prompts.conversation(self._wording(order), "enlightenment", order, paragraphs)
            for parts, reason in order.refused:
                turns = again(turns, parts[0], reason)
            return [Request(turns, read)]
        asked = [("opening", None), *(("sentence", place) for place in range(len(order.rows)))]
        return [self._sentence(order, paragraphs, number, *one) for number, one in enumerate(asked)]

    def _sentence(self, order: Order, paragraphs: Sequence[str], number: int, part: str, place: int | None) -> Request:
        """The request for one sentence of an enlightenment."""
        turns = functools.partial(prompts.conversation, self._wording(order), part, order, paragraphs, place or 0)
        blamed = [reason for parts, reason in order.refused if blames(reason, parts[number])]
        read = functools.partial(checks.read_sentence, order, paragraphs, place)
        return Request(turns(*blamed[-1:]), read, lambda _messages, _content, fault: turns(fault))


Teacher = JoiningTeacher | EndpointTeacher


def make_teacher(params, endpoint: Endpoint | None = None) -> Teacher:
    """The teacher that the parameters name; one that asks has `endpoint`, or that of the parameters."""
    if params.teacher == "none":
        return JoiningTeacher()
    return EndpointTeacher(endpoint or Endpoint.of(params), params)


def local_teacher(params: Any) -> Any:
    """The parameters of a teacher that is the model of this machine: small, so it is asked one sentence at a time."""
    asked = {**_LOCAL, **params.teacher_extra}
    return llama.as_endpoint(params, teacher_max_tokens=200, teacher_extra=asked, teacher_steps="sentences")


def recorded() -> tuple[str, list[list[Any]]]:
    """(the day on which the local teacher was asked for the shipped demos, its answers as `Ledger.keep` takes them)."""
    with gzip.open(RECORDED, "rt", encoding="utf-8") as lines:
        return json.loads(next(lines)), [json.loads(line) for line in lines]


def _solution(row: Problem) -> str:
    return clean(row.solution or "")


def _ended(draft: Draft, replies: Sequence[Reply]) -> Draft:
    draft = _charged(draft, replies, replies)
    parts = tuple(reply.value for reply in replies)
    return draft if draft.fault else replace(draft, enlightenment=" ".join(parts), parts=parts)


def _charged(draft: Draft, replies: Iterable[Reply], paid: Sequence[Reply]) -> Draft:
    """The draft with what the paid replies cost; and the first fault among `replies`, for which there is no passage."""
    columns = ("tokens_in", "tokens_out", "cost_usd")
    costs = {name: getattr(draft, name) + sum(getattr(reply, name) for reply in paid) for name in columns}
    failed = next((reply for reply in replies if reply.fault), None)
    return replace(draft, **costs, **({"fault": failed.fault, "answer": failed.content} if failed else {}))
