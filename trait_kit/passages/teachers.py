"""Teachers write drafts of passages: one joins worked solutions, one composes around them, one asks a language model.

A teacher has a `name`, the reasons that another attempt `can_mend`, and `write(orders) -> drafts`, in their order. A draft
that could not be had says why; only what would fail for all of them (a key that is not accepted) raises TraitError.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trait_kit.engine.ledger import Estimate, Ledger
from trait_kit.engine.llm import Endpoint, Message, Reply, Request, again, ask, clean
from trait_kit.passages import checks, offline, prompts
from trait_kit.passages.material import Draft, Group, Problem

_AROUND = frozenset(("enlightenment", "boilerplate", "near-duplicate", "paraphrase"))  # another enlightenment may mend these
Counts = Callable[[list[str]], Sequence[int]]


@dataclass(frozen=True)
class Order:
    """A passage to write; `refused` holds the enlightenments written for it so far and why they were not taken."""

    group: Group
    rows: Sequence[Problem]  # of the group, in its order
    refused: tuple[tuple[str, str], ...] = ()


class JoiningTeacher:
    """Writes nothing: joins worked solutions (`teacher: none`), or bare answers (the ablation 'pairs')."""

    can_mend: frozenset[str] = frozenset()

    def __init__(self, pairs: bool = False) -> None:
        self.pairs = pairs
        self.name = "none: question-answer pairs" if pairs else "none: worked solutions"

    def write(self, orders: Sequence[Order]) -> list[Draft]:
        if self.pairs:
            told = [tuple(f"The answer is {row.answer.rstrip('.')}." for row in order.rows) for order in orders]
            return [Draft(paragraphs, "", self.name, "") for paragraphs in told]
        return [_joined(order.rows, self.name, "") for order in orders]


class OfflineTeacher:
    """Composes passages from the problems' gold worked solutions; no language model is involved, and its name says so."""

    name = "offline: gold solutions"
    can_mend = _AROUND

    def __init__(self, seed: int = 0):
        self.seed = seed
        wording = b"".join(Path(offline.__file__).with_suffix(suffix).read_bytes() for suffix in (".py", ".yaml"))
        self.prompt_version = f"offline@{hashlib.sha256(wording).hexdigest()[:12]}"

    def write(self, orders: Sequence[Order]) -> list[Draft]:
        """The gold solution of each problem as its paragraph, and an enlightenment composed around them."""
        return [self._write(order) for order in orders]

    def _write(self, order: Order) -> Draft:
        draft = _joined(order.rows, self.name, self.prompt_version)
        if draft.fault:
            return draft
        seed = f"{self.seed}/{len(order.refused) + 1}" if order.refused else self.seed
        return replace(draft, enlightenment=offline.compose(order.rows, order.group.grouping, order.group.shared, seed))


class EndpointTeacher:
    """Asks a language model, one thing a request: a paragraph for each problem that has no worked solution, once for all
    passages that hold it, then the enlightenment of each passage, whole or sentence by sentence (`teacher_steps`).

    What fails a check is asked for again alone and told why, up to `max_attempts` times; refused answers are in `refusals`.
    """

    can_mend = _AROUND | {"length"}

    def __init__(self, endpoint: Endpoint, ledger: Ledger, params, progress=None) -> None:
        self.name, self.endpoint, self.ledger, self.params, self.progress = (
            endpoint.model,
            endpoint,
            ledger,
            params,
            progress,
        )
        self.paragraphs: dict[str, Reply] = {}  # of problems that were asked for
        self.refusals: Counter[str] = Counter()
        self._skip = ("reasoning", "gold answer", "arithmetic") if params.variant == "no_gold_checks" else ()
        self._charged: set[str] = set()  # problems whose paragraph a passage has paid for

    def write(self, orders: Sequence[Order]) -> list[Draft]:
        missing = {row.id: row for order in orders for row in self._to_ask(order.rows) if row.id not in self.paragraphs}
        asked = [Request(self._paragraph(row), functools.partial(self._read, row)) for row in missing.values()]
        self.paragraphs |= zip(missing, self._ask(asked, self.params.max_attempts), strict=True)
        drafts = [self._begun(order) for order in orders]
        if self.params.variant == "no_enlightenment":
            return drafts
        open_places = [place for place, draft in enumerate(drafts) if not draft.fault]
        requests = [self._enlightenment(orders[place], drafts[place].paragraphs) for place in open_places]
        attempts = 1 if any(order.refused for order in orders) else self.params.max_attempts
        replies = iter(self._ask([request for some in requests for request in some], attempts))
        for place, some in zip(open_places, requests, strict=True):
            drafts[place] = _ended(drafts[place], [next(replies) for _ in some])
        return drafts

    def estimate(self, orders: Sequence[Order], count_tokens: Counts) -> Estimate:
        """The bill of asking for everything once, counted on about 1,000 prompts; an answer is taken to have 90 tokens."""
        rows = {row.id: row for order in orders for row in self._to_ask(order.rows)}
        sample = list(orders)[:: len(orders) // 500 + 1]
        asked = [self._paragraph(row) for row in list(rows.values())[:: len(rows) // 500 + 1]]
        around = [request.messages() for order in sample for request in self._enlightenment(order, _solutions(order.rows))]
        means = [_mean_tokens(asked, count_tokens), _mean_tokens(around, count_tokens)]
        n_around = 0 if self.params.variant == "no_enlightenment" else len(orders) * len(around) // max(1, len(sample))
        requests = len(rows) + n_around
        return self.endpoint.estimate(requests, round(len(rows) * means[0] + n_around * means[1]), 90 * requests)

    def _to_ask(self, rows: Sequence[Problem]) -> list[Problem]:
        return [row for row in rows if self.params.paragraphs == "teacher" or not (row.solution or "").strip()]

    def _ask(self, requests: Sequence[Request], attempts: int) -> list[Reply]:
        replies = ask(requests, self.endpoint, self.ledger, attempts=attempts, progress=self.progress)
        self.refusals.update(fault.partition(":")[0] for reply in replies for fault in reply.refused)
        return replies

    def _paragraph(self, row: Problem) -> list[Message]:
        alone = Group("", (row.id,), self.params.grouping, row.topic or row.entity or "")
        return prompts.conversation("paragraph", self._prompt([row]), alone, [row])

    def _read(self, row: Problem, content: str) -> str:
        return checks.read_paragraph(row, content, self._skip)

    def _prompt(self, rows: Sequence[Problem]) -> str:
        return self.params.prompt or prompts.choose(rows, self.params.grouping)

    def _begun(self, order: Order) -> Draft:
        """The paragraphs of a passage; the first passage that holds one pays for it."""
        draft = Draft((), "", self.name, prompts.version(self._prompt(order.rows)))
        asked = {row.id: self.paragraphs[row.id] for row in self._to_ask(order.rows)}
        for name in asked.keys() - self._charged:
            draft = _charged(draft, asked[name])
        self._charged |= asked.keys()
        failed = next((reply for reply in asked.values() if reply.fault), None)
        if failed:
            return replace(draft, fault=failed.fault, answer=failed.content)
        told = (asked[row.id].value if row.id in asked else clean(row.solution or "") for row in order.rows)
        return replace(draft, paragraphs=tuple(told))

    def _enlightenment(self, order: Order, paragraphs: Sequence[str]) -> list[Request]:
        group, rows, name = order.group, order.rows, self._prompt(order.rows)
        whole = self.params.teacher_steps == "paragraph"
        parts = [("enlightenment", None)] if whole else [("opening", None), *(("sentence", n) for n in range(len(rows)))]
        requests = []
        for part, place in parts:
            turns = prompts.conversation(part, name, group, rows, paragraphs, place or 0)
            for answer, reason in order.refused:
                turns = again(turns, answer, reason)
            read = functools.partial(checks.read_sentence, rows, paragraphs, place)
            if whole:
                read = functools.partial(checks.read_enlightenment, group, rows, paragraphs)
            requests.append(Request(turns, read))
        return requests


Teacher = JoiningTeacher | OfflineTeacher | EndpointTeacher


def make_teacher(params, endpoint: Endpoint | None = None, ledger: Ledger | None = None, progress=None) -> Teacher:
    """The teacher that the parameters name; one that asks has `endpoint`, or that of the parameters."""
    if params.variant == "pairs" or params.teacher == "none":
        return JoiningTeacher(params.variant == "pairs")
    if params.teacher == "offline":
        return OfflineTeacher(seed=params.seed)
    endpoint = endpoint or Endpoint.of(params)
    return EndpointTeacher(endpoint, ledger or endpoint.ledger(None), params, progress)


def _joined(rows: Sequence[Problem], name: str, version: str) -> Draft:
    for row in rows:
        if not (row.solution or "").strip():
            reason = f"no worked solution: problem {row.id} has none, and teacher {name.partition(':')[0]} writes none"
            return Draft((), "", name, version, fault=reason)
    return Draft(_solutions(rows), "", name, version)


def _solutions(rows: Sequence[Problem]) -> tuple[str, ...]:
    return tuple(clean(row.solution or "") for row in rows)


def _ended(draft: Draft, replies: Sequence[Reply]) -> Draft:
    for reply in replies:
        draft = _charged(draft, reply)
    failed = next((reply for reply in replies if reply.fault), None)
    if failed:
        return replace(draft, fault=failed.fault, answer=failed.content)
    return replace(draft, enlightenment=" ".join(reply.value for reply in replies))


def _charged(draft: Draft, reply: Reply) -> Draft:
    paid = {name: getattr(draft, name) + getattr(reply, name) for name in ("tokens_in", "tokens_out", "cost_usd")}
    return replace(draft, **paid)


def _mean_tokens(conversations: Sequence[list[Message]], count_tokens: Counts) -> float:
    told = ["\n".join(message["content"] for message in turns) for turns in conversations]
    return float(sum(count_tokens(told))) / len(told) if told else 0.0
