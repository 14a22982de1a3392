"""Ask a teacher what knowledge each problem needs, so that problems of different tasks can be joined by it."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from trait_kit.engine.endpoint import Endpoint, Reply, ask_all
from trait_kit.engine.exchange import as_data, read_object, templates
from trait_kit.engine.ledger import Ledger
from trait_kit.engine.local_server import serving
from trait_kit.engine.money import agree
from trait_kit.params import PassageParams
from trait_kit.passages.prompts import FOLDER

_MAX_QUESTION = 4_000  # characters that are sent
_MAX_WORDS = 6
_CHARACTERS_A_TOKEN, _TYPICAL_ANSWER = 4, 20  # for the estimate


def ask_topics(problems: pd.DataFrame, params: PassageParams, ledger: Ledger) -> pd.DataFrame:
    """The problems with the teacher's `topic`, in one spelling; the topic that they had becomes their `subject`.

    A problem whose topic could not be had keeps none, so that no passage is made of it.
    """
    template = templates(FOLDER).get_template("topic.jinja")
    asked = [template.render(problem=as_data({"question": text[:_MAX_QUESTION]})) for text in problems["question"]]
    estimate = Endpoint.of(params).estimate(
        len(asked), sum(map(len, asked)) // _CHARACTERS_A_TOKEN, _TYPICAL_ANSWER * len(asked)
    )
    print(f"Topics: {agree(estimate, params.max_cost_usd)}")
    with serving(params, ledger.path.parent if ledger.path else Path()) as served:
        endpoint = Endpoint.of(served)
        replies = ask_all(
            len(asked),
            lambda place: endpoint.converse(asked[place], read_topic, _repair, ledger),
            fault_of=lambda reply: reply.fault,
            give_up=lambda fault: Reply(None, fault, "", 0, 0, 0.0),
            concurrency=endpoint.concurrency,
        )
        topics = [reply.value for reply in replies]
    return problems.assign(subject=problems["topic"], topic=topics)


def read_topic(content: str) -> str:
    """The topic of a model's reply in lower case and one spelling; ValueError says what is wrong with it."""
    topic = read_object(content, ("topic",))["topic"]
    if not isinstance(topic, str) or not re.search(r"[^\W\d_]", topic):
        raise ValueError("topic must be a string with a name in it")
    words = re.findall(r"[\w'-]+", topic.casefold())
    if len(words) > _MAX_WORDS:
        raise ValueError(f"topic has {len(words)} words, more than {_MAX_WORDS}")
    return " ".join(words)


def _repair(fault: str) -> str:
    return f'That reply cannot be used: {fault}. Send one JSON object and nothing else: {{"topic": "two to four words"}}.'
