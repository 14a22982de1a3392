"""What stands behind the teachers: paid answers on disk, the money, the server that the kit starts."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from passage_problems import params

from trait_kit.engine.files import TraitError
from trait_kit.engine.ledger import Completion, Estimate, Ledger, NoAnswer, Price, agree
from trait_kit.engine.llm import Endpoint, Request, ask, served
from trait_kit.params import PassageParams

PRICE = Price(usd_per_million_in=1.5, usd_per_million_out=6)

# --- paid answers ----------------------------------------------------------------------------------------------------


def completion(text: str = "answer", tokens: int = 10) -> Completion:
    return Completion(text, "stop", tokens, 2 * tokens)


def test_answers_are_on_disk_before_they_are_used(tmp_path):
    path = tmp_path / "answers.sqlite"
    ledger, other = Ledger(path), Ledger(path)
    for number in range(50):
        ledger.record(f"key-{number}", completion(f"text {number} \x00 \N{SNOWMAN}"))
        assert other.find(f"key-{number}") == completion(f"text {number} \x00 \N{SNOWMAN}")
    assert Ledger(path).find("key-unknown") is None


def test_a_torn_file_is_no_loss(tmp_path):
    """What a killed writer leaves is the log beside the file, cut anywhere."""
    path = tmp_path / "answers.sqlite"
    ledger = Ledger(path)
    for number in range(40):
        ledger.record(f"key-{number}", completion("x" * 500))
    log = Path(f"{path}-wal").read_bytes()
    for size in (len(log) - 1, len(log) // 2, len(log) // 3):
        copy = tmp_path / f"copy-{size}.sqlite"
        copy.write_bytes(path.read_bytes())
        Path(f"{copy}-wal").write_bytes(log[:size])
        torn = Ledger(copy)
        found = sum(torn.find(f"key-{number}") is not None for number in range(40))
        assert 40 * size // len(log) - 6 <= found < 40
        torn.record("key-39", completion("asked again"))
        assert Ledger(copy).find("key-39").content == "asked again"


def test_what_is_no_ledger_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "answers.sqlite"
    path.write_bytes(b"something else, and paid for as well" * 100)
    with pytest.raises(TraitError, match="holds no paid answers that can be read"):
        Ledger(path)
    assert path.read_bytes().startswith(b"something else")


def test_an_answer_that_cannot_be_kept_is_not_counted(tmp_path):
    ledger = Ledger(tmp_path / "answers.sqlite")
    ledger._sql.execute("PRAGMA query_only=1")  # as a disk that is full
    with pytest.raises(TraitError, match="Could not write a paid answer"):
        ledger.record("key-1", completion())
    assert ledger.bill()["requests_this_run"] == ledger.bill()["tokens_in"] == 0
    ledger._sql.execute("PRAGMA query_only=0")
    ledger.record("key-1", completion())
    assert Ledger(ledger.path).find("key-1") == completion()


async def spend(ledger: Ledger, *most: float, key: str = "") -> None:
    """Reserve so much after each other, while a first request is in flight; it is answered where it has a key."""
    async with ledger.reserved(most[0]):
        waiting = [asyncio.create_task(spend(ledger, one)) for one in most[1:]]
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in waiting)  # the one in flight may turn out cheaper
        if key:
            ledger.record(key, completion(tokens=1))
    await asyncio.gather(*waiting)


def test_an_answer_counts_once_however_often_it_is_found_and_the_cap_knows_what_was_paid_before(tmp_path):
    path = tmp_path / "answers.sqlite"
    price = Price(usd_per_million_in=1e5, usd_per_million_out=1e5)
    ledger = Ledger(path, price)
    for key in ("a", "b"):
        ledger.record(key, completion(tokens=1))  # 0.30
    ledger.keep([("c", *completion(tokens=9))])  # somebody else's
    assert ledger.find("a") == ledger.find("a") == completion(tokens=0)  # counted when it came
    assert ledger.bill()["cost_usd"] == pytest.approx(0.6)
    again = Ledger(path, price, cap_usd=0.8)
    with pytest.raises(NoAnswer, match="cost cap"):  # though nothing was found yet
        asyncio.run(spend(again, 0.3))
    assert again.stopped_by_cap
    assert (again.find("b"), again.find("b")) == (completion(tokens=1), completion(tokens=0))
    assert again.bill()["cost_usd"] == pytest.approx(0.3)
    assert again.bill()["requests_this_run"] == 0


def test_what_is_in_flight_is_set_aside(tmp_path):
    ledger = Ledger(None, Price(usd_per_million_in=1e5, usd_per_million_out=0.0), cap_usd=1.0)
    asyncio.run(spend(ledger, 0.6, 0.6, key="a"))
    assert (ledger.new, ledger.stopped_by_cap) == (["a"], False)
    with pytest.raises(NoAnswer, match="cost cap"):  # 0.1 are spent
        asyncio.run(spend(ledger, 0.95))
    assert ledger.stopped_by_cap


# --- money -----------------------------------------------------------------------------------------------------------


def priced(url: str, price: object = None) -> Ledger:
    chosen = {"teacher": "openai", "teacher_model": "judge", "teacher_base_url": url, "max_cost_usd": 3.0}
    return Endpoint.of(params(**chosen, teacher_price=price)).ledger


def test_a_model_without_a_price_is_free_only_in_ones_own_network(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    for url in (
        "http://127.0.0.1:8000/v1",
        "http://localhost:1/v1",
        "http://10.1.2.3/v1",
        "http://192.168.1.1/v1",
    ):
        assert priced(url).price == Price()
    away = "https://8.8.8.8/v1"
    for url in (away, "https://no-such-host.invalid/v1"):
        with pytest.raises(TraitError, match=r"teacher_price does not say what 'judge' at https://.* costs"):
            priced(url)
    for url in (away, "http://127.0.0.1:8000/v1"):  # one with a price may stand behind a proxy
        ledger = priced(url, [1.5, 6])
        assert (ledger.price, ledger.cap_usd) == (PRICE, 3.0)
    assert priced(away, [0, 0]).price == Price()


@pytest.mark.parametrize("price", [3, [1], [1, 2, 3], "judge", [-1, 1], [float("nan"), 1], {"in": 1}])
def test_prices_that_cannot_be_right_are_refused(price):
    with pytest.raises(ValueError, match="teacher_price"):
        priced("http://127.0.0.1:8000/v1", price)


def test_an_estimate_is_agreed_to_before_it_is_spent():
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m", concurrency=10, ledger=Ledger(None, PRICE))
    assert (
        endpoint.estimate([Request("题" * 100)], 1).tokens_in == 75
    )  # what a tokenizer makes of such a script, about
    estimate = endpoint.estimate([Request("x" * 3_200)] * 1_000, 200)
    assert estimate.cost_usd == pytest.approx(2.4)
    assert estimate.hours == pytest.approx((200_000 + 800_000 / 3.5) / 50 / 10 / 3600)
    said = "1,000 first requests, about 800,000 tokens in and 200,000 out, $2.40, 0.2 hours"
    assert str(estimate) == said == agree(estimate, 2.4)
    with pytest.raises(
        TraitError, match=r"This would cost about \$2\.40 \(1,000 first requests.*\)\. Set max_cost_usd to"
    ):
        agree(estimate, 0.0)
    assert agree(estimate, 0.6) == f"{said}; max_cost_usd = 0.6 will stop it after about 25% of the requests"
    nothing = "0 first requests, about 0 tokens in and 0 out, nothing to pay, 0.0 hours"
    assert agree(Estimate(0, 0, 0, 0.0, 0.0), 0.0) == nothing


# --- a server of one's own -------------------------------------------------------------------------------------------


SERVES = """
    import http.server, json, os, subprocess, sys

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send({})

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            usage = {"prompt_tokens": 7, "completion_tokens": 3}
            self.send({"choices": [{"message": {"content": request["model"]}, "finish_reason": "stop"}], "usage": usage})

        def send(self, answer):
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    child = subprocess.Popen(["sleep", "300"])  # such servers have processes of their own
    print("pids", os.getpid(), child.pid, flush=True)
    assert sys.argv[1:-1] == ["serve", "tiny", "--port"]
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""


def serving_params(folder: Path, body: str = SERVES) -> PassageParams:
    """A stand-in: nothing here can run vLLM, so this shows how it is called and ended, not that it serves."""
    program = folder / "server.py"
    program.write_text(textwrap.dedent(body))
    command = f"{sys.executable} {program} serve tiny"
    return params(teacher="openai", teacher_model="tiny", teacher_serve=command, teacher_concurrency=2)


def pids(log: Path) -> list[int]:
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("pids")][-1:]
    return [int(pid) for pid in line.split()[1:]]


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(psutil.pid_exists(pid) for pid in pids):
        time.sleep(0.05)
    return not any(psutil.pid_exists(pid) for pid in pids)


def test_a_server_is_started_asked_and_ended_with_all_its_processes(tmp_path):
    chosen, log = serving_params(tmp_path), tmp_path / "teacher_server.log"
    assert Endpoint.of(chosen).estimate([Request("x")], 100).cost_usd == 0  # before there is a server
    with served(chosen, tmp_path) as endpoint:
        replies = ask([Request(f"What is {place}?") for place in range(4)], endpoint)
        assert {reply.value for reply in replies} == {"tiny"}
        running = pids(log)
        assert all(psutil.pid_exists(pid) for pid in running)
    assert gone(running)
    with pytest.raises(KeyboardInterrupt), served(chosen, tmp_path) as endpoint:
        endpoint.start()
        running = pids(log)
        raise KeyboardInterrupt
    assert gone(running)


def test_the_server_ends_with_a_step_that_is_killed(tmp_path):
    script = textwrap.dedent(
        f"""
        import sys, time
        sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
        import test_teaching as t
        folder = t.Path({str(tmp_path)!r})
        with t.served(t.serving_params(folder), folder) as endpoint:
            endpoint.start()
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


def test_a_server_that_cannot_start_says_why(tmp_path):
    told = r"ended with exit status 1(.|\n)*teacher_server\.log(.|\n)*does not fit into 4 GB"
    chosen = serving_params(tmp_path, "raise SystemExit('ValueError: the model does not fit into 4 GB')")
    with pytest.raises(TraitError, match=told), served(chosen, tmp_path) as endpoint:
        endpoint.start()
    with pytest.raises(ValueError, match="teacher_serve instead"):
        params(
            teacher="openai", teacher_model="m", teacher_serve="vllm", teacher_base_url="http://127.0.0.1:1/v1"
        )


@pytest.mark.slow
def test_a_real_model_served_by_transformers_answers_every_request(tmp_path):
    """What counts is that every request ends, and is counted: SmolLM2 writes hardly any sense."""
    pytest.importorskip("fastapi", reason="needs transformers[serving]")
    from trait_kit.models import model_folder

    model = model_folder("demo:smollm2-135m")
    command = f"{Path(sys.executable).parent / 'transformers'} serve {model} --host 127.0.0.1"
    chosen = params(teacher="openai", teacher_model=str(model), teacher_serve=command, teacher_max_tokens=24)
    with served(chosen, tmp_path) as endpoint:
        replies = ask([Request(f"What is {place} + 1?") for place in range(4)], endpoint)
    for reply in replies:
        assert (
            reply.content
            and reply.fault in ("", "cut off: length")
            and reply.tokens_in > 10
            and 0 < reply.tokens_out <= 24
        )
    assert endpoint.ledger.bill()["tokens_in"] == sum(reply.tokens_in for reply in replies)
