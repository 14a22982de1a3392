"""Rate documents 0-5 for educational value by asking a language model.

The prompt (prompts/educational.jinja) is additive: five statements, a point for each that is true. Its version, a digest
of the wording, stands with each rating. Documents come from anywhere: they are cut, cleaned of control characters and
fenced as one line of JSON, and only a reply with a whole number from 0 to 5 and a reason counts. A rating that could not
be had keeps the fault in its row, so that no document is lost silently.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trait_kit import tables
from trait_kit.engine.endpoint import Endpoint, Reply, ask_all
from trait_kit.engine.exchange import as_data, clean, read_object, templates
from trait_kit.engine.ledger import Ledger
from trait_kit.engine.money import Estimate

MAX_CHARACTERS = 6_000  # of a document that are sent: what it is shows by then, and the bill stays foreseeable
_TYPICAL_ANSWER = 100  # tokens, for the estimate
_MAX_REASON = 500  # characters of a reason that are kept
_FOLDER = Path(__file__).parent / "prompts"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]+")


def rate(
    texts: Sequence[str],
    endpoint: Endpoint,
    cache_path: Path | str | None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[pa.Table, dict[str, Any]]:
    """(ratings table with a row a text, in their order; bill). Equal documents are asked for once.

    `cache_path` is the JSONL file of the paid answers: a run that was killed goes on from it and asks nothing twice.
    """
    excerpts = [_excerpt(text) for text in texts]
    asked = [excerpt for excerpt in dict.fromkeys(excerpts) if excerpt]
    ledger = Ledger(
        cache_path,
        cap_usd=endpoint.max_cost_usd,
        price_in=endpoint.usd_per_million_in,
        price_out=endpoint.usd_per_million_out,
    )
    replies = ask_all(
        len(asked),
        lambda place: endpoint.converse(_prompt(asked[place]), read_rating, _repair, ledger),
        fault_of=lambda reply: reply.fault,
        give_up=_not_asked,
        concurrency=endpoint.concurrency,
        progress=progress,
    )
    replied = dict(zip(asked, replies, strict=True)) | {"": _not_asked("empty: there is nothing to rate")}
    rows = [_row(text, replied[excerpt], endpoint) for text, excerpt in zip(texts, excerpts, strict=True)]
    table = pa.Table.from_pylist(rows, schema=tables.SCHEMAS["ratings"])
    faults = Counter(row["error"].partition(":")[0] for row in rows if row["error"])
    return table, {
        "teacher": endpoint.name,
        "prompt_version": version(),
        "documents": len(rows),
        "rated": len(rows) - faults.total(),
        "failed": dict(sorted(faults.items(), key=lambda item: (-item[1], item[0]))),
        **ledger.bill(),
    }


def estimate_bill(texts: Sequence[str], endpoint: Endpoint, count_tokens: Callable[[list[str]], np.ndarray]) -> Estimate:
    """What rating `texts` would cost, before anything is asked: prompts counted (about 1,000 of them), answers guessed."""
    asked = [excerpt for excerpt in dict.fromkeys(map(_excerpt, texts)) if excerpt]
    some = [_prompt(excerpt) for excerpt in asked[:: len(asked) // 1_000 + 1]]
    tokens_in = round(float(np.mean(count_tokens(some))) * len(asked)) if some else 0
    return endpoint.estimate(len(asked), tokens_in, _TYPICAL_ANSWER * len(asked))


def read_rating(content: str) -> tuple[int, str]:
    """(rating, reason) of a model's reply; ValueError says what is wrong with it, in words that the model can be told."""
    value = read_object(content, ("reason", "rating"))
    reason, rating = value["reason"], value["rating"]
    if type(rating) is not int or not 0 <= rating <= 5:
        raise ValueError(f"rating must be a whole number from 0 to 5, it is {str(rating)[:40]!r}")
    if not isinstance(reason, str) or not reason.strip():
        raise ValueError("reason must be a string that is not empty")
    return rating, " ".join(_CONTROL.sub(" ", clean(reason)).split())[:_MAX_REASON]


@cache
def version() -> str:
    """Name and digest of everything that shapes a question: the template, the repair, how much of a document is sent."""
    wording = (_FOLDER / "educational.jinja").read_text(encoding="utf-8") + _repair("") + str(MAX_CHARACTERS)
    return f"educational@{hashlib.sha256(wording.encode()).hexdigest()[:12]}"


def _excerpt(text: str) -> str:
    """The beginning of a document without control characters."""
    return clean(_CONTROL.sub(" ", text[: 2 * MAX_CHARACTERS]))[:MAX_CHARACTERS]


@cache
def _template():
    return templates(_FOLDER).get_template("educational.jinja")


def _prompt(excerpt: str) -> str:
    return _template().render(
        document=as_data({"text": excerpt}), cut=len(excerpt) == MAX_CHARACTERS, limit=f"{MAX_CHARACTERS:,}"
    )


def _repair(fault: str) -> str:
    return (
        f"That reply cannot be used: {fault}. Send one JSON object and nothing else, with the rating as a whole number from "
        '0 to 5: {"reason": "...", "rating": 0}.'
    )


def _not_asked(fault: str) -> Reply:
    return Reply(None, fault, "", 0, 0, 0.0)


def _row(text: str, reply: Reply, endpoint: Endpoint) -> dict[str, Any]:
    rating, reason = reply.value or (None, None)
    return {
        "text_sha256": hashlib.sha256(text.encode("utf-8", "replace")).hexdigest(),
        "rating": rating,
        "reason": reason,
        "error": reply.fault or None,
        "teacher": endpoint.name,
        "prompt_version": version(),
        "tokens_in": reply.tokens_in,
        "tokens_out": reply.tokens_out,
        "cost_usd": reply.cost_usd,
    }
