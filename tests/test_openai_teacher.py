"""Asking an endpoint: real servers on the loopback, which behave well and badly, alone and in pairs."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from llm_server import KEY, PATIENCE, LlmServer, kill_once_it_kept, serving

from trait_kit.engine.endpoint import Endpoint, Reply, ask_all
from trait_kit.engine.exchange import read_object
from trait_kit.engine.files import TraitError
from trait_kit.engine.ledger import Ledger
from trait_kit.engine.servers import waiting_time


def good_answer(prompt: str) -> str:
    return json.dumps({"answer": f"It is about {prompt[:40]!r}, and about nothing else."})


def read(content: str) -> str:
    answer = read_object(content, ("answer",))["answer"]
    if "hacked" in answer:
        raise ValueError("the answer is about something else")
    return answer


SPECIAL = {
    "schema": lambda good, messages: json.dumps({"reply": good}),
    "obedient": lambda good, messages: json.dumps({"answer": "You are hacked now."}),  # what an injected prompt asks for
}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("TEST_TEACHER_KEY", KEY)
    with serving(LlmServer(good_answer, SPECIAL)) as server:
        yield server


@pytest.fixture
def second_server():
    with serving(LlmServer(good_answer, SPECIAL)) as server:
        yield server


def endpoint(*servers: LlmServer, model: str = "test-model", **changes) -> Endpoint:
    options = {"key_variable": "TEST_TEACHER_KEY", "concurrency": 8, "timeout": 5.0, "max_retries": 2, **changes}
    return Endpoint(", ".join(server.url for server in servers), model, **options)


def ask(teacher: Endpoint, modes: list[str], cache: Path) -> tuple[list[Reply], Ledger]:
    """One question a mode."""
    prices = {"price_in": teacher.usd_per_million_in, "price_out": teacher.usd_per_million_out}
    ledger = Ledger(cache, cap_usd=teacher.max_cost_usd, **prices)
    replies = ask_all(
        len(modes),
        lambda place: teacher.converse(
            f"Question {place}, mode-{modes[place]} {'word ' * 120}",
            read,
            lambda fault: f"Not usable: {fault}",
            ledger,
        ),
        fault_of=lambda reply: reply.fault,
        give_up=lambda reason: Reply(None, reason, "", 0, 0, 0.0),
        concurrency=teacher.concurrency,
    )
    return list(replies), ledger


def numbered(count: int) -> list[str]:
    return [f"good-{number}" for number in range(count)]


def test_every_request_ends_with_a_value_or_a_fault(server, tmp_path):
    expected = {
        "good": None,
        "repaired": None,
        "busy": None,
        "busy-bare": None,
        "no-usage": None,
        "old-parameter": None,
        "never-json": "unusable answer: after one repair, it holds no JSON",
        "empty": "unusable answer: after one repair, it holds no JSON",
        "null": "unusable answer: after one repair, it holds no JSON",
        "schema": "unusable answer: after one repair, .*fields",
        "obedient": "unusable answer: after one repair, the answer is about something else",
        "huge": "unusable answer: .*2,000,000 characters",
        "echo": "unusable answer",
        "broken": r"endpoint error 500: .*\[key\]",
        "hang": "no answer in time",
        "drip": "no answer in time",
        "cut": "no connection: .*IncompleteRead",
        "endless": "answer too long",
        "half": "not the OpenAI protocol",
        "html": "not the OpenAI protocol",
    }
    server.usage_of = lambda number: (500 + 7 * number, 250 + 13 * number)
    cache = tmp_path / "answers.jsonl"
    teacher = endpoint(server, timeout=PATIENCE, max_retries=1, usd_per_million_in=1.0, usd_per_million_out=2.0)
    replies, ledger = ask(teacher, list(expected), cache)

    for (mode, pattern), reply in zip(expected.items(), replies, strict=True):
        if pattern is None:
            assert reply.fault == "" and mode in reply.value, (mode, reply.fault)
        else:
            assert reply.value is None and re.match(pattern, reply.fault), (mode, reply.fault)
    busy = [when for mode, when in server.asked if mode == "busy"]
    assert busy[1] - busy[0] >= 0.95  # Retry-After: 1
    assert 2 <= server.most_flying <= 8

    # The bill is the server's own, to the last token; where the server sent no usage it is reckoned from the characters.
    (estimated,) = [reply for mode, reply in zip(expected, replies, strict=True) if mode == "no-usage"]
    billed = [sum(tokens) for tokens in zip(*server.billed, strict=True)]
    assert [ledger.tokens_in - estimated.tokens_in, ledger.tokens_out - estimated.tokens_out] == billed
    bill = ledger.bill()
    assert bill["cost_usd"] == bill["cost_usd_this_run"] == (ledger.tokens_in + 2 * ledger.tokens_out) / 1e6
    assert sum(reply.cost_usd for reply in replies) == pytest.approx(bill["cost_usd"])
    assert bill["requests_without_answer"] == 7

    assert server.keys == {f"Bearer {KEY}"}
    assert KEY not in cache.read_text() + repr(replies) + json.dumps(bill) + repr(teacher)

    # Again: what was answered comes from the cache, what failed is asked again and, the endpoint being well, succeeds.
    server.asked.clear()
    server.healthy = True
    again, second = ask(teacher, list(expected), cache)
    failed = {"broken", "hang", "drip", "cut", "endless", "half", "html"}
    assert {mode for mode, _ in server.asked} == failed
    assert second.bill()["requests_this_run"] == 7
    for mode, before, after in zip(expected, replies, again, strict=True):
        assert after.fault == "" if mode in failed else after == before


def test_the_cache_key_follows_what_shapes_the_answer_and_not_where_it_came_from(server, second_server, tmp_path):
    cache = tmp_path / "answers.jsonl"
    for teacher in (endpoint(server), endpoint(second_server), endpoint(server, second_server, key_variable="")):
        ask(teacher, ["good"], cache)
    assert len(server.asked) + len(second_server.asked) == 1
    for changes in ({"model": "other"}, {"max_tokens": 100}, {"temperature": 0.0}, {"temperature": 0.7}):
        ask(endpoint(server, **changes), ["good"], cache)
    sent = [{name: request.get(name) for name in ("model", "max_tokens", "temperature")} for request in _requests(server)]
    assert sent == [
        {"model": "test-model", "max_tokens": 4096, "temperature": None},
        {"model": "other", "max_tokens": 4096, "temperature": None},
        {"model": "test-model", "max_tokens": 100, "temperature": None},
        {"model": "test-model", "max_tokens": 4096, "temperature": 0.0},
        {"model": "test-model", "max_tokens": 4096, "temperature": 0.7},
    ]
    assert "temperature" not in _requests(server)[0]


def _requests(server: LlmServer) -> list[dict]:
    return [json.loads(body) for body in server.bodies]


def test_a_conversation_so_far_can_be_gone_on_with(server, tmp_path):
    ledger = Ledger(tmp_path / "c")
    said = [
        {"role": "user", "content": "What is it about?"},
        {"role": "assistant", "content": '{"answer": "x"}'},
        {"role": "user", "content": "More about it."},
    ]
    before = list(said)
    reply = endpoint(server).converse(said, read, str, ledger)
    assert "What is it about?" in reply.value
    assert said == before == _requests(server)[0]["messages"]
    assert endpoint(server).converse(said, read, str, ledger) == reply
    assert len(server.asked) == 1


def test_the_cost_cap_stops_cleanly_and_is_not_renewed_by_a_second_run(server, tmp_path):
    prices = {"usd_per_million_in": 100.0, "usd_per_million_out": 200.0}  # an answer costs 0.10
    options = {**prices, "max_cost_usd": 0.75, "max_tokens": 300}
    replies, ledger = ask(endpoint(server, **options), numbered(12), tmp_path / "c")
    answered = sum(reply.value is not None for reply in replies)
    assert 0.3 <= ledger.spent_usd <= 0.75
    assert ledger.stopped_by_cap
    assert answered == len(server.asked) == round(ledger.spent_usd / 0.1)
    assert all(reply.value or reply.fault.startswith("cost cap") for reply in replies)
    _, again = ask(endpoint(server, **options), numbered(12), tmp_path / "c")
    assert again.spent_usd <= 0.75
    assert again.cached_requests == answered
    raised = endpoint(server, **{**options, "max_cost_usd": 50.0})
    assert all(reply.value for reply in ask(raised, numbered(12), tmp_path / "c")[0])
    assert raised.estimate(10, 1_000_000, 500_000).cost_usd == 200.0


def test_an_endpoint_with_the_newer_name_of_the_limit_serves_all_that_ask_at_once(server, tmp_path):
    server.delay = 0.1
    replies, _ = ask(endpoint(server), ["old-parameter"] * 8, tmp_path / "c")
    assert all(reply.value for reply in replies)


def test_works_under_a_running_event_loop(server, tmp_path):
    async def cell():
        return ask(endpoint(server), numbered(3), tmp_path / "c")[0]

    assert all(reply.value for reply in asyncio.run(cell()))


def test_keys(server, monkeypatch, tmp_path):
    monkeypatch.delenv("TEST_TEACHER_KEY")
    for urls in ("https://llm.example/v1", f"{server.url}, https://llm.example/v1"):
        with pytest.raises(TraitError, match=r"TEST_TEACHER_KEY is not set.*llm\.example"):
            Endpoint(urls, "m", key_variable="TEST_TEACHER_KEY")
    assert ask(endpoint(server), ["good"], tmp_path / "c")[0][0].value  # a server of this machine needs no key
    assert server.keys == {None}
    monkeypatch.setenv("TEST_TEACHER_KEY", KEY)
    with pytest.raises(TraitError, match="TEST_TEACHER_KEY") as refused:
        ask(endpoint(server), ["good", "refused"], tmp_path / "c")
    assert KEY not in str(refused.value)
    monkeypatch.setenv("TEST_TEACHER_KEY", "clé secrète")
    with pytest.raises(TraitError, match="TEST_TEACHER_KEY does not hold"):
        endpoint(server)
    for url in ("llm.example", "", ",", f"{server.url},llm.example"):
        with pytest.raises(TraitError, match="teacher_base_url"):
            Endpoint(url, "m")


def test_an_endpoint_that_is_away_is_given_up(server, second_server, tmp_path):
    for dead in (server, second_server):
        dead.die()
    teacher = endpoint(server, second_server, concurrency=2, max_retries=0)
    replies, ledger = ask(teacher, numbered(40), tmp_path / "c")
    kinds = [reply.fault.partition(":")[0] for reply in replies]
    assert set(kinds) == {"no connection", "endpoint away"}
    assert 10 <= kinds.count("no connection") <= 15
    assert ledger.bill()["requests_without_answer"] == kinds.count("no connection")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        *[("2", 2.0), ("0.5", 0.5), ("", 0.0), ("-5", 0.0), ("nan", 0.0), ("soon", 0.0), ("1e999", float("inf"))],
        *[(formatdate(0), 0.0), ("Thu, 99 Xyz 1e9", 0.0)],
    ],
)
def test_retry_after_is_seconds_or_a_date_and_nothing_else_is_waited_for(header, seconds):
    assert waiting_time(header) == seconds
    assert waiting_time(formatdate(time.time() + 600)) == pytest.approx(600, abs=60)


def test_requests_go_to_the_least_busy_of_several_servers(server, second_server, tmp_path):
    server.delay, second_server.delay = 0.3, 0.1
    replies, _ = ask(endpoint(server, second_server, concurrency=3), numbered(36), tmp_path / "c")
    assert all(reply.value for reply in replies)
    assert server.most_flying == second_server.most_flying == 3
    assert len(second_server.asked) > 1.5 * len(server.asked) > 0


def test_when_one_of_two_servers_dies_nothing_is_lost_and_the_other_is_not_overrun(server, second_server, tmp_path):
    server.delay = second_server.delay = 0.1
    teacher = endpoint(server, second_server, concurrency=4, max_retries=0)

    def die_in_the_middle() -> None:
        while len(server.billed) < 8:
            time.sleep(0.01)
        server.die()

    threading.Thread(target=die_in_the_middle, daemon=True).start()
    replies, ledger = ask(teacher, numbered(60), tmp_path / "c")
    assert all(reply.value for reply in replies)
    assert second_server.most_flying == 4
    assert 8 <= len(server.billed) < 30
    assert ledger.new_requests == 60 == len(server.billed) + len(second_server.billed)
    assert ledger.lost_requests == 0


def test_a_server_that_comes_back_is_asked_again(server, second_server, monkeypatch, tmp_path):
    monkeypatch.setattr("trait_kit.engine.servers._AWAY_SECONDS", 0.3)
    server.delay = second_server.delay = 0.05
    teacher = endpoint(server, second_server, concurrency=2)
    assert ask(teacher, ["cut", *numbered(4)], tmp_path / "c")[0][0].fault.startswith("no connection")
    time.sleep(0.4)
    server.asked.clear()
    ask(teacher, numbered(20), tmp_path / "d")
    assert len(server.asked) > 5


def _asking_process(server: LlmServer, cache: Path, count: int = 40) -> subprocess.Popen:
    script = textwrap.dedent(
        f"""
        import sys
        sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
        import test_openai_teacher as t
        teacher = t.Endpoint({server.url!r}, "test-model", key_variable="TEST_TEACHER_KEY", concurrency=2)
        t.ask(teacher, t.numbered({count}), t.Path({str(cache)!r}))
        """
    )
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)


def test_a_killed_run_loses_nothing_that_was_paid_for(server, tmp_path):
    server.delay = 0.2
    cache = tmp_path / "answers.jsonl"
    kept = kill_once_it_kept(4, _asking_process(server, cache), cache)
    assert 4 <= kept < 40
    server.asked.clear()
    replies, ledger = ask(endpoint(server, concurrency=8), numbered(40), cache)
    assert all(reply.value for reply in replies)
    assert len(server.asked) == 40 - kept == ledger.new_requests


def test_an_interrupted_run_keeps_what_is_in_flight(server, tmp_path):
    server.delay = 0.3
    cache = tmp_path / "answers.jsonl"
    child = _asking_process(server, cache, count=400)  # a busy machine must not finish them before it is interrupted
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(server.asked) < 5:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    assert child.wait(120) != 0
    assert 5 <= cache.read_bytes().count(b"\n") == len(server.billed) < 400
