"""What stands behind the teachers: paid answers on disk, the crowd that asks, the money, the server that the kit starts."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import yaml
from passage_problems import params

from trait_kit.engine import local_server
from trait_kit.engine.endpoint import Endpoint, Reply, ask_all
from trait_kit.engine.exchange import read_object
from trait_kit.engine.files import TraitError
from trait_kit.engine.ledger import CapReached, Completion, Ledger
from trait_kit.engine.money import Estimate, agree, prices
from trait_kit.params import PassageParams

# --- paid answers ----------------------------------------------------------------------------------------------------


def completion(text: str = "answer", tokens: int = 10) -> Completion:
    return Completion(text, "stop", tokens, 2 * tokens, False)


def test_answers_that_arrive_together_share_an_fsync_and_are_on_disk_before_they_are_used(tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    ledger, flushed, sync = Ledger(path), [], os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(0.02)
        sync(descriptor)
        flushed.append(path.read_text())

    monkeypatch.setattr(os, "fsync", slow)

    def record(number: int) -> bool:
        ledger.record(f"key-{number}", completion(f"text {number}"))
        return f'"key-{number}"' in flushed[-1]

    with ThreadPoolExecutor(32) as executor:
        assert all(executor.map(record, range(320)))
    assert len(flushed) < 60
    again = Ledger(path)
    assert [again.find(f"key-{number}").content for number in range(320)] == [f"text {number}" for number in range(320)]
    assert again.skipped_lines == 0


def test_a_disk_that_is_full_fails_every_answer_of_the_batch_and_counts_none(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "answers.jsonl")

    def full(descriptor: int) -> None:
        time.sleep(0.02)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with ThreadPoolExecutor(8) as executor:
        errors = [executor.submit(ledger.record, f"key-{number}", completion()).exception() for number in range(8)]
    assert all(isinstance(error, TraitError) and "No space left" in str(error) for error in errors)
    assert ledger.bill()["requests_this_run"] == ledger.tokens_in == 0
    monkeypatch.undo()
    ledger.record("key-1", completion())
    assert Ledger(ledger.path).find("key-1") == completion()


def test_a_completion_counts_once_however_often_it_is_found_and_the_cap_knows_what_was_paid_before(tmp_path):
    path = tmp_path / "answers.jsonl"
    ledger = Ledger(path, price_in=1e5, price_out=1e5)
    for key in ("a", "b"):
        ledger.record(key, completion(tokens=1))  # 0.30
    assert ledger.find("a") == ledger.find("a") == completion(tokens=1)
    assert ledger.spent_usd == pytest.approx(0.6)
    again = Ledger(path, price_in=1e5, price_out=1e5, cap_usd=0.8)
    with pytest.raises(CapReached), again.reserve(0.3):  # though nothing was found yet
        pass
    assert again.stopped_by_cap
    assert again.find("b") == again.find("b") == completion(tokens=1)
    assert again.spent_usd == pytest.approx(0.3)
    assert again.bill()["cost_usd_this_run"] == 0
    path.unlink()
    assert again.find("a") is None


def test_a_ledger_takes_over_what_another_process_paid_for_once(tmp_path):
    theirs = Ledger(tmp_path / "shard.jsonl")
    for key in ("a", "b", "c"):
        theirs.record(key, completion(key, tokens=1))
    with theirs.path.open("ab") as stream:
        stream.write(b'{"key": "torn')
    ours = Ledger(tmp_path / "answers.jsonl", price_in=1e5, price_out=1e5)
    ours.record("a", completion("mine", tokens=1))
    for _ in range(2):
        ours.absorb(theirs.path)
    assert ours.paid_usd == Ledger(ours.path, price_in=1e5, price_out=1e5).paid_usd == pytest.approx(0.9)
    assert [ours.find(key).content for key in ("a", "b", "c")] == ["mine", "b", "c"]
    assert Ledger(ours.path).skipped_lines == 0


# --- asking ----------------------------------------------------------------------------------------------------------


def run(count: int, ask, concurrency: int = 4, **changes):
    return ask_all(count, ask, fault_of=lambda _: "", give_up=str, concurrency=concurrency, **changes)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_answers_come_in_order_as_soon_as_they_are_there(concurrency):
    started, told = [], []

    def ask(place: int) -> int:
        started.append(place)
        time.sleep(0.05 if place == 0 else 0.001)
        return place * place

    answers = run(40, ask, concurrency, progress=lambda done, count: told.append((done, count)))
    assert started == []
    assert [next(answers), next(answers)] == [0, 1]
    assert list(answers) == [place * place for place in range(2, 40)]
    assert told == [(done, 40) for done in range(1, 41)]
    assert list(run(0, ask, concurrency)) == []


def test_after_an_error_nothing_new_is_asked_and_what_is_in_flight_ends_first():
    started, ended = [], []

    def ask(place: int) -> int:
        started.append(place)
        if place == 5:
            raise TraitError("refused")
        time.sleep(0.02)
        ended.append(place)
        return place

    with pytest.raises(TraitError, match="refused"):
        list(run(1_000, ask))
    assert len(started) < 20
    assert sorted([*ended, 5]) == sorted(started)
    answers = run(1_000, lambda place: time.sleep(0.01), concurrency=4)
    next(answers)
    answers.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("teacher-")]


# --- money -----------------------------------------------------------------------------------------------------------


def asking(prices_file: Path | str, url: str, model: str = "judge") -> PassageParams:
    return params(teacher="openai", teacher_model=model, teacher_base_url=url, prices=str(prices_file))


def test_a_model_that_is_not_listed_is_free_only_in_ones_own_network(tmp_path, monkeypatch):
    path = tmp_path / "prices.yaml"
    for url in ("http://127.0.0.1:8000/v1", "http://localhost:1/v1", "http://10.1.2.3/v1, http://192.168.1.1:8000/v1"):
        assert prices(asking(path, url)) == (0.0, 0.0)
    for url in ("https://8.8.8.8/v1", "http://127.0.0.1:8000/v1,https://8.8.8.8/v1", "https://no-such-host.invalid/v1"):
        with pytest.raises(TraitError, match=r"prices\.yaml does not say what 'judge' at https://") as error:
            Endpoint.of(asking(path, url))
        line = str(error.value).splitlines()[1]
        assert yaml.safe_load(line) == {"judge": {"usd_per_million_in": 0.0, "usd_per_million_out": 0.0}}
    path.write_text("judge: {usd_per_million_in: 1.5, usd_per_million_out: 6}")
    for url in ("https://8.8.8.8/v1", "http://127.0.0.1:8000/v1"):  # a listed one may stand behind a proxy
        assert prices(asking(path, url)) == (1.5, 6)
    monkeypatch.setenv("TEST_KEY", "sk-0123456789")
    named = asking(path, "https://8.8.8.8/v1").model_copy(update={"teacher_key_variable": "TEST_KEY", "max_cost_usd": 3.0})
    endpoint = Endpoint.of(named)
    assert (endpoint.usd_per_million_in, endpoint.usd_per_million_out, endpoint.max_cost_usd) == (1.5, 6, 3.0)


@pytest.mark.parametrize(
    "text",
    ["judge: 3", "judge: {usd_per_million_in: 1}", "- judge", "judge: ["]
    + [f"judge: {{usd_per_million_in: {wrong}, usd_per_million_out: 1}}" for wrong in ("-1", ".nan", ".inf", "true", "'1'")],
)
def test_prices_that_cannot_be_right_are_refused(tmp_path, text):
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(TraitError, match=r"prices\.yaml"):
        prices(asking(path, "http://127.0.0.1:8000/v1"))


def test_the_shipped_prices_are_valid_and_name_no_vendor():
    path = Path(__file__).parent.parent / "params" / "prices.yaml"
    assert prices(asking(path, "http://127.0.0.1:8000/v1", "Qwen/Qwen3-32B")) == (0.0, 0.0)
    assert yaml.safe_load(path.read_text()) is None


def test_an_estimate_is_agreed_to_before_it_is_spent():
    estimate = Estimate.of(1_000, 800_000, 200_000, (1.0, 10.0), concurrency=10)
    assert estimate.cost_usd == pytest.approx(2.8)
    assert estimate.hours == pytest.approx(200_000 / 50 / 10 / 3600)
    said = "1,000 requests, about 800,000 tokens in and 200,000 out, $2.80, 0.1 hours at 4.0 seconds a request"
    assert str(estimate) == said == agree(estimate, 2.8)
    with pytest.raises(TraitError, match=r"This would cost about \$2\.80 \(1,000 requests.*\)\. Set max_cost_usd to"):
        agree(estimate, 0.0)
    assert agree(estimate, 0.7) == f"{said}; max_cost_usd = 0.7 will stop it after about 25% of the requests"
    free = Estimate.of(10, 100, 100, (0.0, 0.0), concurrency=1)
    assert "nothing to pay" in agree(free, 0.0)
    assert agree(Estimate.of(0, 0, 0, (1.0, 1.0), 1), 0.0) == "no requests to a language model, nothing to pay"


# --- a server of one's own -------------------------------------------------------------------------------------------


SERVES = """
    import http.server, json, os, subprocess

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send({})

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = {"content": json.dumps({"answer": request["model"]})}
            usage = {"prompt_tokens": 7, "completion_tokens": 3}
            self.send({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})

        def send(self, answer):
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    child = subprocess.Popen(["sleep", "300"])  # such servers have processes of their own
    print("called", json.dumps([*sys.argv[1:-1], os.getcwd(), os.environ.get("HF_HUB_OFFLINE")]), flush=True)
    print("pids", os.getpid(), child.pid, flush=True)
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """A stand-in: nothing here can run vLLM, so this shows how it is called and ended, not that it serves."""

    def install(body: str) -> None:
        program = tmp_path / "bin" / "vllm"
        program.parent.mkdir()
        program.write_text(f"#!{sys.executable}\nimport sys\n{textwrap.dedent(body)}")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    return install


def local_params(model: Path | str, server: str = "vllm") -> PassageParams:
    return params(
        teacher="openai", teacher_model=str(model), teacher_serve=server, teacher_concurrency=2, teacher_max_tokens=24
    )


def pids(log: Path) -> list[int]:
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("pids")]
    return [int(pid) for pid in line.split()[1:]]


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(psutil.pid_exists(pid) for pid in pids):
        time.sleep(0.05)
    return not any(psutil.pid_exists(pid) for pid in pids)


def converse(served: PassageParams, ledger: Ledger, count: int = 4) -> list[Reply]:
    endpoint = Endpoint.of(served)
    replies = ask_all(
        count,
        lambda place: endpoint.converse(
            f"What is {place} + 1? Send {{'answer': ...}}", lambda text: read_object(text, ("answer",)), str, ledger
        ),
        fault_of=lambda reply: reply.fault,
        give_up=lambda reason: Reply(None, reason, "", 0, 0, 0.0),
        concurrency=endpoint.concurrency,
    )
    return list(replies)


def test_vllm_is_started_asked_and_ended_with_all_its_processes(vllm, tmp_path):
    vllm(SERVES)
    model, step = tmp_path / "models" / "tiny", tmp_path / "step"
    model.mkdir(parents=True)
    chosen = local_params(model)
    assert Endpoint.of(chosen).estimate(10, 100, 100).cost_usd == 0  # before there is a server
    with local_server.serving(chosen, step) as served:
        assert {reply.value["answer"] for reply in converse(served, Ledger(step / "answers.jsonl"))} == {"tiny"}
        log = step / "teacher_server.log"
        (called,) = [json.loads(line[7:]) for line in log.read_text().splitlines() if line.startswith("called")]
        assert called == ["serve", "tiny", "--host", "127.0.0.1", "--port", str(model.parent), "1"]
        running = pids(log)
        assert all(psutil.pid_exists(pid) for pid in running)
    assert gone(running)
    with pytest.raises(KeyboardInterrupt), local_server.serving(chosen, step):
        running = pids(log)
        raise KeyboardInterrupt
    assert gone(running)
    with local_server.serving(params(), step) as same:
        assert same == params()


def test_the_server_ends_with_a_step_that_is_killed(vllm, tmp_path):
    vllm(SERVES)
    script = textwrap.dedent(
        f"""
        import sys, time
        sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
        import test_teaching as t
        with t.local_server.serving(t.local_params("owner/name"), t.Path({str(tmp_path)!r})):
            print("serving", flush=True)
            time.sleep(300)
        """
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    while "serving" not in child.stdout.readline():
        assert child.poll() is None
    running = pids(tmp_path / "teacher_server.log")
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert gone(running)


def test_a_server_that_cannot_start_says_why(vllm, tmp_path, monkeypatch):
    chosen = local_params("owner/name")
    vllm("sys.exit('ValueError: the model does not fit into 4 GB')")
    told = r"ended before it answered.*teacher_server\.log(.|\n)*does not fit into 4 GB"
    with pytest.raises(TraitError, match=told), local_server.serving(chosen, tmp_path):
        raise AssertionError("never here")
    monkeypatch.setenv("PATH", str(tmp_path))
    told = "teacher_serve is vllm, which is not installed"
    with pytest.raises(TraitError, match=told), local_server.serving(chosen, tmp_path):
        raise AssertionError("never here")
    with pytest.raises(ValueError, match="leave teacher_base_url empty"):
        params(teacher="openai", teacher_model="m", teacher_serve="vllm", teacher_base_url="http://127.0.0.1:1/v1")


@pytest.mark.slow
def test_a_real_model_served_by_transformers_answers_every_request(tmp_path):
    """SmolLM2 writes hardly any valid JSON: what counts is that every request ends, and is counted."""
    pytest.importorskip("fastapi", reason="needs transformers[serving]")
    with local_server.serving(local_params("demo:smollm2-135m", "transformers"), tmp_path) as served:
        ledger = Ledger(tmp_path / "answers.jsonl")
        replies = converse(served, ledger)
        again = converse(served, Ledger(tmp_path / "answers.jsonl"))
    assert again == replies
    for reply in replies:
        assert reply.value or reply.fault.startswith("unusable answer: after one repair, ")
        assert reply.tokens_in > 10 and 0 < reply.tokens_out <= 48
    assert ledger.tokens_in == sum(reply.tokens_in for reply in replies)
    assert ledger.lost_requests == 0
