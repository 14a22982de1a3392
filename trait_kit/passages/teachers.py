"""A teacher writes drafts of passages: it joins worked solutions, and asks a language model, anybody's or the local one.

A draft that could not be had says why; only what would fail for all of them (a key that is not accepted) raises TraitError.
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
from trait_kit.passages.material import Draft, Group, Problem
from trait_kit.passages.quality import blames

RECORDED = Path(__file__).parents[1] / "demo_data" / "answers.jsonl.gz"
_LOCAL = {"temperature": 0.2, "seed": 0, "stop": ["\n"]}
_TYPICAL_ANSWER = 70  # tokens
_MENDED = {"enlightenment", "boilerplate", "recurring clause", "near-duplicate", "length"}  # by another attempt
_NOTHING = {"tokens_in": 0, "tokens_out": 0, "cost_usd": 0.0}


class Teacher:
    """Asks one thing a request: a paragraph for each problem without a worked solution, once for all passages that hold it,
    then the enlightenment of each passage, whole or sentence by sentence. With `teacher: none` nobody is asked.
    """

    def __init__(self, params, endpoint: Endpoint | None = None) -> None:
        self.params, self.endpoint = params, None if params.teacher == "none" else endpoint or Endpoint.of(params)
        self.name = self.endpoint.model if self.endpoint else "none: worked solutions"
        self.can_mend = _MENDED if self.endpoint else set()
        self.paragraphs: dict[str, Reply] = {}  # that were asked for; its first passage pays for each
        self.refusals: Counter[str] = Counter()  # of answers, by reason

    def write(self, groups: Sequence[Group]) -> list[Draft]:
        self.tell(self.to_ask(groups))
        drafts = [self._begun(group) for group in groups]
        around = [[] if draft.fault else self._requests(group, draft.paragraphs)
                  for group, draft in zip(groups, drafts, strict=True)]  # fmt: skip
        wanted = [request for requests in around for request in requests]
        answers = iter(self._ask(wanted, self.params.max_attempts))
        for place, requests in enumerate(around):
            replies = [next(answers) for _ in requests]
            parts = tuple(reply.value or "" for reply in replies)
            drafts[place] = _charged(drafts[place], replies, enlightenment=" ".join(parts), parts=parts)
        return drafts

    def tell(self, problems: Sequence[Problem]) -> list[Reply]:
        """The paragraph of each problem, asked for where it has not been."""
        missing = {row.id: row for row in problems if row.id not in self.paragraphs}
        if self.endpoint:
            replies = self._ask([self._paragraph(row) for row in missing.values()], self.params.max_attempts)
        else:
            replies = [Reply(None, f"no worked solution: problem {one} has none") for one in missing]
        self.paragraphs |= zip(missing, replies, strict=True)
        return [self.paragraphs[row.id] for row in problems]

    def estimate(self, groups: Sequence[Group]) -> Estimate:
        """The bill of what has no kept answer; a paragraph to come is taken for a worked solution."""
        rows = self.to_ask(groups)
        requests = [self._paragraph(row) for row in rows]
        replies = ask(requests, self.endpoint, self.params.max_attempts, kept=True)
        kept = {row.id: reply.value for row, reply in zip(rows, replies, strict=True)}
        for group in groups:
            requests += self._requests(
                group, [kept.get(row.id) or clean(row.solution or "") for row in group.rows]
            )
        requests += map(self._paragraph, {*self.to_ask(groups, "both")} - {*rows})
        return self.endpoint.estimate(requests, _TYPICAL_ANSWER)

    def to_ask(self, groups: Sequence[Group], way: str = "teacher") -> list[Problem]:
        rows = {row.id: row for group in groups for row in group.rows}
        anew = self.params.paragraphs == way and self.endpoint
        return [row for row in rows.values() if anew or not clean(row.solution or "")]

    def _ask(self, requests: Sequence[Request], attempts: int) -> list[Reply]:
        """Replies in the order of the requests. Those that begin alike are asked together: a server reads that once."""
        order = sorted(range(len(requests)), key=lambda at: str(requests[at].messages()))
        asked = ask([requests[at] for at in order], self.endpoint, attempts) if requests else []
        replies = [reply for _, reply in sorted(zip(order, asked, strict=True))]
        self.refusals.update(fault.partition(":")[0] for reply in replies for fault in reply.refused)
        return replies

    def _paragraph(self, row: Problem) -> Request:
        alone = Group("", [row], self.params.kind, row.topic or row.entity or "")
        turns = prompts.conversation(self._wording(alone), "paragraph", alone)
        return Request(turns, functools.partial(checks.read_paragraph, alone))

    def _wording(self, group: Group) -> str:
        return self.params.prompts or prompts.choose(group)

    def _begun(self, group: Group) -> Draft:
        asked = {row.id: self.paragraphs[row.id] for row in self.to_ask([group])}
        self.paragraphs |= {name: replace(reply, **_NOTHING) for name, reply in asked.items()}
        told = [asked[row.id].value if row.id in asked else clean(row.solution or "") for row in group.rows]
        draft = Draft((), "", self.name, prompts.version(self._wording(group)) if self.endpoint else "")
        return _charged(draft, asked.values(), paragraphs=tuple(told))

    def _requests(self, group: Group, paragraphs: Sequence[str]) -> list[Request]:
        """For an enlightenment: one, or one a sentence. Why others were refused stands in them."""
        requests, whole = [], self.params.teacher_steps == "paragraph"
        for number, place in enumerate([None, *range(0 if whole else len(group.rows))] if self.endpoint else []):
            part = "enlightenment" if whole else "sentence" if number else "opening"
            told = functools.partial(
                prompts.conversation, self._wording(group), part, group, paragraphs, place or 0
            )
            retry = functools.partial(_anew, told, self.params.teacher == "local")
            asked = told()
            for parts, reason in group.refused:
                if blames(reason, parts[number]):
                    asked = retry(asked, parts[number], reason)
            read = checks.read_enlightenment if whole else functools.partial(checks.read_sentence, place=place)
            requests.append(Request(asked, functools.partial(read, group, paragraphs), retry))
        return requests


def _anew(told: Any, small: bool, last: Any, *why: str) -> Any:
    """The question with its fault; then with the answers too, or for a small model, which repeats them, more help."""
    asked = told((why[-1], False))
    if asked != last and (small or last == told()):
        return asked
    return told((why[-1], True)) if small else again(last, *why)


def local_teacher(params: Any) -> Any:
    """The parameters; this machine's model is small, so it is asked a sentence at a time."""
    if params.teacher != "local":
        return params
    asked = _LOCAL | params.teacher_extra
    return llama.as_endpoint(params, teacher_max_tokens=200, teacher_extra=asked, teacher_steps="sentences")


def recorded(params: Any) -> tuple[str, list[list[Any]]]:
    """The day on which the local teacher was asked for the shipped demos, and its answers (for `Ledger.keep`)."""
    if params.teacher != "local":
        return "", []
    with gzip.open(RECORDED, "rt", encoding="utf-8") as lines:
        return json.loads(next(lines)), [json.loads(line) for line in lines]


def _charged(draft: Draft, replies: Iterable[Reply], **told: Any) -> Draft:
    """The draft with what the replies cost, and with what they `told` or the first fault among them."""
    costs = {name: getattr(draft, name) + sum(getattr(reply, name) for reply in replies) for name in _NOTHING}
    failed = next((reply for reply in replies if reply.fault), None)
    return replace(draft, **costs, **({"fault": failed.fault, "answer": failed.content} if failed else told))
