"""Asking an endpoint: real servers on the loopback, which behave well and badly; kills; money."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
from llm_server import KEY, PATIENCE, LlmServer, kept, kill_once_it_kept, serving

from trait_kit.engine.files import TraitError
from trait_kit.engine.ledger import Ledger, Price
from trait_kit.engine.llm import Endpoint, Reply, Request, ask, without_thoughts


def good_answer(prompt: str) -> str:
    return f"It is about {prompt[:40]!r}, and about nothing else."


def read(content: str) -> str:
    if not content.startswith("It is about "):
        raise ValueError(f"unusable answer: it says {content[:40]!r}")
    return content


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(LlmServer(good_answer)) as server:
        yield server


@pytest.fixture
def second_server():
    with serving(LlmServer(good_answer)) as server:
        yield server


def endpoint(server: LlmServer, model: str = "test-model", **changes) -> Endpoint:
    options = {"concurrency": 8, "timeout": 5.0, "max_retries": 2, **changes}
    return Endpoint(server.url, model, **options)


def paid(usd_in: float, usd_out: float, cap_usd: float) -> Ledger:
    return Ledger(None, Price(usd_per_million_in=usd_in, usd_per_million_out=usd_out), cap_usd)


def at(path: Path, teacher: Endpoint) -> Endpoint:
    """The endpoint with its answers in a file."""
    return replace(teacher, ledger=Ledger(path, teacher.ledger.price, teacher.ledger.cap_usd))


def ask_modes(teacher: Endpoint, modes: list[str], path: Path, attempts: int = 2) -> tuple[list[Reply], Ledger]:
    """One question a mode."""
    teacher = at(path, teacher)
    requests = [
        Request(f"Question {place}, mode-{mode} {'word ' * 120}", read) for place, mode in enumerate(modes)
    ]
    return ask(requests, teacher, attempts), teacher.ledger


def numbered(count: int) -> list[str]:
    return [f"good-{number}" for number in range(count)]


def test_every_request_ends_with_a_value_or_a_fault(server, tmp_path):
    expected = {
        **dict.fromkeys(
            ("good", "repaired", "busy", "busy-bare", "no-usage", "old-parameter", "thinking", "reasoning")
        ),
        **dict.fromkeys(("off-topic", "empty", "null", "huge", "echo", "thinks-on"), "unusable answer"),
        "broken": r"endpoint error 500: .*\[key\]",
        "hang": "no answer in time",
        "drip": "no answer in time",
        "cut": "no connection: ",
        "half": "not the OpenAI protocol",
        "bytes": "not the OpenAI protocol",
        "html": "not the OpenAI protocol",
    }
    server.usage_of = lambda number: (500 + 7 * number, 250 + 13 * number)
    path = tmp_path / "answers.sqlite"
    teacher = endpoint(server, timeout=PATIENCE, max_retries=1, ledger=paid(1.0, 2.0, 9.0))
    replies, ledger = ask_modes(teacher, list(expected), path)

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
    bill = ledger.bill()
    assert [bill["tokens_in"] - estimated.tokens_in, bill["tokens_out"] - estimated.tokens_out] == billed
    assert bill["cost_usd"] == (bill["tokens_in"] + 2 * bill["tokens_out"]) / 1e6
    assert sum(reply.cost_usd for reply in replies) == pytest.approx(bill["cost_usd"])
    failed = {"broken", "hang", "drip", "cut", "half", "bytes", "html"}
    assert bill["requests_this_run"] == len(server.billed) + 1

    assert server.keys == {f"Bearer {KEY}"}
    assert KEY not in repr(replies) + json.dumps(bill) + repr(teacher)
    assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.iterdir())

    # Again: what was answered comes from the ledger, what failed is asked again and, the endpoint being well, succeeds.
    server.asked.clear()
    server.healthy = True
    repeated, second = ask_modes(teacher, list(expected), path)
    assert {mode for mode, _ in server.asked} == failed
    assert second.bill()["requests_this_run"] == len(failed)
    for mode, before, after in zip(expected, replies, repeated, strict=True):
        assert after.fault == "" if mode in failed else after == before


def test_what_a_model_thinks_aloud_is_no_answer():
    assert without_thoughts("<think>\nIt is 7.\n</think>\n\nIt is 8.") == "It is 8."
    assert without_thoughts("Thinking without a start. </think>It is 8.") == "It is 8."
    assert without_thoughts("<think>It is 7.") == ""
    assert without_thoughts(" It is 8. ") == "It is 8."


def test_a_refused_answer_is_asked_for_again_and_told_why(server, tmp_path):
    (reply,), _ = ask_modes(endpoint(server), ["off-topic"], tmp_path / "c", attempts=3)
    assert len(server.requests) == 3
    assert reply.refused == (reply.fault,) * 3
    last = server.requests[-1]["messages"]
    assert [message["role"] for message in last] == ["user", "assistant"] * 2 + ["user"]
    assert "it says 'I would rather" in last[-1]["content"]


def test_an_answer_belongs_to_what_shapes_it_and_not_to_where_it_came_from(server, second_server, tmp_path):
    path = tmp_path / "c"
    for one in (server, second_server):
        ask_modes(endpoint(one), ["good"], path)
    assert len(server.asked) + len(second_server.asked) == 1
    asked = (
        {"model": "other"},
        {"max_tokens": 100},
        {"extra": {"temperature": 0.0}},
        {"extra": {"temperature": 0.7}},
        {"extra": {"seed": 3}},
    )
    for changes in asked:
        ask_modes(endpoint(server, **changes), ["good"], path)
    first, *others = [{key: request[key] for key in request if key != "messages"} for request in server.requests]
    assert first == {"model": "test-model", "max_tokens": 1024}
    told = [{**first, **changes.get("extra", changes)} for changes in asked]
    assert others == told


def test_the_same_question_is_paid_for_once_however_many_ask_it_at_once(server, tmp_path):
    server.delay = 0.1
    replies = ask([Request("mode-good", read)] * 20, endpoint(server))
    assert len(server.asked) == 1 and len(set(reply.value for reply in replies)) == 1


def test_the_cost_cap_is_not_passed_and_not_renewed_by_a_second_run(server, tmp_path):
    options = {"ledger": paid(100.0, 200.0, 0.75), "max_tokens": 300}  # an answer costs 0.10
    replies, ledger = ask_modes(endpoint(server, **options), numbered(12), tmp_path / "c")
    answered = sum(reply.value is not None for reply in replies)
    spent = ledger.bill()["cost_usd"]
    assert 0.3 <= spent <= 0.75
    assert ledger.stopped_by_cap
    assert answered == len(server.asked) == round(spent / 0.1)
    assert all(reply.value or reply.fault.startswith("cost cap") for reply in replies)
    _, second = ask_modes(endpoint(server, **options), numbered(12), tmp_path / "c")
    assert second.bill()["cost_usd"] <= 0.75
    assert len(second.used) == answered and not second.new
    raised = endpoint(server, **{**options, "ledger": paid(100.0, 200.0, 50.0)})
    assert all(reply.value for reply in ask_modes(raised, numbered(12), tmp_path / "c")[0])
    assert raised.estimate([Request("x" * 4_000)] * 10, 500).cost_usd == 2.0


def test_an_endpoint_with_the_newer_name_of_the_limit_serves_all_that_ask_at_once(server, tmp_path):
    server.delay = 0.1
    replies, _ = ask_modes(endpoint(server), ["old-parameter"] * 8, tmp_path / "c")
    assert all(reply.value for reply in replies)


def test_works_under_a_running_event_loop_and_tells_how_far_it_is(server, monkeypatch, capsys):
    async def cell():
        requests = [Request(f"mode-good {number}", read) for number in range(3)]
        return ask(requests, endpoint(server, concurrency=1))

    monkeypatch.setattr("trait_kit.engine.llm.SAY_EVERY", 0.0)
    server.delay = 1.2
    assert all(reply.value for reply in asyncio.run(cell()))
    assert capsys.readouterr().out.splitlines()[0] == "Asked test-model: 1 of 3; about 0 min left"
    assert ask([], endpoint(server)) == []


def test_the_time_left_is_that_of_what_is_asked_and_not_of_what_is_kept(server, monkeypatch, tmp_path):
    teacher, said = at(tmp_path / "c", endpoint(server, concurrency=4)), []
    requests = [Request(f"mode-good {number}", read) for number in range(240)]
    ask(requests[:100], teacher)
    server.delay = 2.1
    monkeypatch.setattr("trait_kit.engine.llm.SAY_EVERY", 0.0)
    monkeypatch.setattr("builtins.print", lambda *words, **how: said.append(words[0]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):  # one line is enough: what is not asked yet is not asked
        ask(requests, teacher)
    kept, left = map(int, re.fullmatch(r"Asked test-model: (\d+) of 240; about (\d+) min left", said[0]).groups())
    assert (
        kept >= 104 and left >= 1
    )  # as many are done as are asked at once: before that it would be a wild guess


def test_keys(server, monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(TraitError, match=r"OPENAI_API_KEY is not set.*8\.8\.8\.8"):
        Endpoint("https://8.8.8.8/v1", "m")
    assert ask_modes(endpoint(server), ["good"], tmp_path / "c")[0][
        0
    ].value  # a server of this machine needs no key
    assert server.keys == {"Bearer none"}
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(TraitError, match="OPENAI_API_KEY") as refused:
        ask_modes(endpoint(server), ["good", "refused"], tmp_path / "c")
    assert KEY not in str(refused.value)
    monkeypatch.setenv("OPENAI_API_KEY", "clé secrète")
    with pytest.raises(TraitError, match=r"OPENAI_API_KEY .* holds no key"):
        endpoint(server)
    for url in ("llm.example", "", f"{server.url}, https://8.8.8.8/v1", f"{server.url},{server.url}"):
        with pytest.raises(TraitError, match="teacher_base_url"):
            Endpoint(url, "m")


def test_an_endpoint_that_is_away_stops_the_job(server, tmp_path):
    server.die()
    teacher = endpoint(server, concurrency=2, max_retries=0)
    replies, ledger = ask_modes(teacher, numbered(9), tmp_path / "c")
    assert all(reply.fault.startswith("no connection: ") for reply in replies)
    assert ledger.bill()["requests_this_run"] == 0
    with pytest.raises(TraitError, match=r"1\d requests in a row had no answer, the last: no connection"):
        ask_modes(teacher, numbered(40), tmp_path / "c")


def test_after_an_error_nothing_new_is_asked_and_what_is_in_flight_is_kept(server, tmp_path):
    server.delay = 0.1
    with pytest.raises(TraitError):
        ask_modes(endpoint(server, concurrency=4), [*numbered(5), "refused", *numbered(100)], tmp_path / "c")
    assert len(server.asked) < 20
    assert kept(tmp_path / "c") == len(server.billed)


def test_speed_is_that_of_reading_and_writing(server):
    server.delay, server.usage_of = 1.0, lambda number: (350, 20)  # 2 * (350 / 3.5 + 20) in a second
    measured = endpoint(server, concurrency=2, start=lambda: server.url)
    assert 100 < measured.tokens_per_second < 240
    assert {request["max_tokens"] for request in server.requests} == {48}
    assert (
        len({request["messages"][0]["content"] for request in server.requests}) == 2
    )  # nothing is read once for both
    hours = measured.estimate([Request("x" * 2_800)] * 10, 40).hours
    assert hours == pytest.approx(2_400 / measured.tokens_per_second / 3600)


def _asking_process(server: LlmServer, path: Path, count: int = 40) -> subprocess.Popen:
    script = textwrap.dedent(
        f"""
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
        import test_openai_teacher as t
        teacher = t.Endpoint({server.url!r}, "test-model", concurrency=2)
        t.ask_modes(teacher, t.numbered({count}), t.Path({str(path)!r}))
        """
    )
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)


def test_a_killed_run_loses_nothing_that_was_paid_for(server, tmp_path):
    server.delay = 0.2
    path = tmp_path / "answers.sqlite"
    before = kill_once_it_kept(4, _asking_process(server, path), path)
    assert 4 <= before < 40
    server.asked.clear()
    replies, ledger = ask_modes(endpoint(server, concurrency=8), numbered(40), path)
    assert all(reply.value for reply in replies)
    assert len(server.asked) == 40 - before == len(ledger.new)


def test_an_interrupted_run_keeps_what_is_in_flight(server, tmp_path):
    server.delay = 0.3
    path = tmp_path / "answers.sqlite"
    child = _asking_process(
        server, path, count=400
    )  # a busy machine must not finish them before it is interrupted
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(server.asked) < 5:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    assert child.wait(120) != 0
    assert 5 <= kept(path) == len(server.billed) < 400


def test_a_cap_of_nothing_agrees_to_no_retry_and_what_is_free_needs_none(server, tmp_path):
    teacher = endpoint(server, ledger=paid(100.0, 200.0, 9.0))  # an answer costs 0.10
    ask_modes(teacher, ["off-topic"] * 3, tmp_path / "c", attempts=1)
    unpaid = endpoint(server, ledger=paid(100.0, 200.0, 0.0))
    replies, ledger = ask_modes(unpaid, ["off-topic"] * 3, tmp_path / "c", attempts=3)
    assert len(server.asked) == 3 and not ledger.new and ledger.stopped_by_cap
    assert all(reply.fault.startswith("cost cap: not asked") for reply in replies)
    assert ask_modes(endpoint(server), ["off-topic"] * 3, tmp_path / "c", attempts=2)[1].new  # at no price


def test_what_others_had_or_another_price_bought_is_no_spending_at_todays(server, tmp_path):
    at(tmp_path / "c", endpoint(server)).ledger.keep([("k", "somebody's", "stop", 10**6, 10**6)])
    dear = endpoint(server, model="dear", ledger=paid(1_000.0, 0.0, 2.0))  # 0.50 an answer
    assert ask_modes(dear, numbered(3), tmp_path / "c")[1].bill()["cost_usd"] == 1.5
    cheap = endpoint(server, model="cheap", ledger=paid(1.0, 0.0, 1.5), max_tokens=300)
    _, ledger = ask_modes(cheap, numbered(3), tmp_path / "c")
    assert ledger.stopped_by_cap and not ledger.new  # the dear ones' 1.50 were spent
    assert Ledger(tmp_path / "c", cap_usd=2.0)._paid_usd == 1.5


def test_what_is_found_twice_in_a_run_is_charged_to_the_first_that_has_it(server, tmp_path):
    teacher = at(tmp_path / "c", endpoint(server, ledger=paid(1.0, 2.0, 9.0)))
    requests = [Request(f"mode-good {number}", read) for number in range(3)]
    replies = ask(requests, teacher) + ask(requests, teacher)
    assert sum(reply.cost_usd for reply in replies) == pytest.approx(teacher.ledger.bill()["cost_usd"])


def test_an_answer_that_was_cut_off_is_refused(server, tmp_path):
    server.finish_reason = lambda mode, tries: "length" if mode == "long" and tries == 1 else "stop"
    (mended,), _ = ask_modes(endpoint(server), ["long"], tmp_path / "c")
    assert mended.value and mended.refused == ("cut off: length",)
    (refused,), _ = ask_modes(endpoint(server), ["long"], tmp_path / "d", attempts=1)
    assert refused.value is None and refused.fault.startswith("cut off: ")
