"""The one fake language model: a real server on the loopback that behaves well and badly, shared by all tests that ask one.

`LlmServer` speaks the chat protocol and answers as a function says.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "sk-secret-0123456789"
PATIENCE = (
    4.0  # seconds of a client that waits for servers that hang: a machine with other work stalls for one or two
)
AGAIN = "That cannot be used: "  # how the kit begins to tell a model why its answer is not taken


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, handler: type[BaseHTTPRequestHandler]):
        super().__init__(("127.0.0.1", 0), handler)
        self.keys: set[str] = set()
        self.lock = threading.Lock()

    def handle_error(self, request, client_address):
        """A client that gave up waiting is part of the tests."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_error) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self) -> bytes:
        received = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.keys.add(self.headers["Authorization"])
        return received

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class LlmServer(_Server):
    """Behaves as the first `mode-...` in what is asked says.

    `good(asked)` is the content of a good answer to the turn that asks; `special[mode](good content, try)` of another one.
    """

    def __init__(self, good: Callable[[str], str], special: dict[str, Callable[[str, int], str]] | None = None):
        super().__init__(_Chat)
        self.good, self.special = good, special or {}
        self.asked: list[tuple[str, float]] = []  # (mode, when)
        self.bodies: list[str] = []
        self.flying = self.most_flying = 0
        self.delay = 0.0
        self.healthy = False  # True: every mode answers well
        self.finish_reason: Callable[[str, int], str] = lambda mode, tries: "stop"
        self.dead = False
        self.usage_of: Callable[[int], tuple[int, int]] = lambda number: (
            500,
            250,
        )  # tokens in and out of an answer
        self.billed: list[tuple[int, int]] = []  # the usage of every answer that was sent whole

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body in self.bodies]

    def die(self) -> None:
        """As a machine that is switched off: no new connections, and those that wait for an answer are cut."""
        self.dead = True
        self.shutdown()
        self.server_close()

    def count(self, mode: str) -> int:
        return sum(name == mode for name, _ in self.asked)


class _Chat(_Handler):
    def do_POST(self):
        server = self.server
        body = self.body().decode()
        request = json.loads(body)
        said = [message["content"] for message in request["messages"] if message["role"] == "user"]
        tries = 1 + sum(text.startswith(AGAIN) for text in said)
        asked, self.request_fields = said[-tries], set(request)
        found = re.search(r"mode-([a-z0-9-]+)", asked)
        mode = found[1] if found else "good"
        self.finished = server.finish_reason(mode, tries)
        with server.lock:
            server.asked.append((mode, time.monotonic()))
            server.bodies.append(body)
            server.flying += 1
            server.most_flying = max(server.most_flying, server.flying)
            turn = server.count(mode)
        try:
            time.sleep(server.delay)
            if server.dead:
                self.close_connection = True
                return
            self.behave("good" if server.healthy else mode, turn, asked, tries)
        finally:
            with server.lock:
                server.flying -= 1

    def behave(self, mode: str, turn: int, asked: str, tries: int) -> None:
        good = self.server.good(asked)
        if mode in self.server.special:
            self.answer(self.server.special[mode](good, tries))
        elif mode == "repaired" and tries == 1:
            self.answer("")
        elif mode == "off-topic":
            self.answer("I would rather talk about something else.")
        elif mode == "thinking":
            self.answer(f"<think>Is it 7?\n\nThe answer is 7.</think>\n\n{good}")
        elif mode == "thinks-on":
            self.answer(f"<think>{good}")
        elif mode == "reasoning":
            self.answer(good, reasoning_content="The answer is 7.")
        elif mode == "busy" and turn == 1:
            self.send(429, json.dumps({"error": {"message": "slow down"}}).encode(), {"Retry-After": "1"})
        elif mode == "busy-bare" and turn == 1:
            self.send(429, b"slow down")
        elif mode == "broken":
            self.send(500, b"<html>Internal error, key " + self.headers["Authorization"].encode() + b"</html>")
        elif mode == "hang":
            time.sleep(3 * PATIENCE)
        elif mode == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            for _ in range(int(30 * PATIENCE)):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.1)
        elif mode == "cut":
            self.send(200, b'{"choices": [', {"Content-Length": "100000"})
            self.close_connection = True
        elif mode == "half":
            self.send(200, b'{"choices": [{"message": {"role": "assis')
        elif mode == "bytes":
            self.send(200, b'{"choices": [{"message": {"content": "\xff\xfe"}}]}')
        elif mode == "empty":
            self.answer("")
        elif mode == "null":
            self.answer(None)
        elif mode == "huge":
            self.answer("x" * 2_000_000)
        elif mode == "html":
            self.send(200, b"<html>proxy login</html>")
        elif mode == "echo":
            self.answer(self.headers["Authorization"])
        elif mode == "refused":
            self.send(
                401, json.dumps({"error": {"message": "bad key " + self.headers["Authorization"]}}).encode()
            )
        elif mode == "old-parameter" and "max_completion_tokens" not in self.request_fields:
            self.send(400, json.dumps({"error": {"message": "use max_completion_tokens instead"}}).encode())
        else:
            self.answer(good, usage=mode != "no-usage")

    def answer(self, content: str | None, usage: bool = True, **more: str) -> None:
        message = {"role": "assistant", "content": content, **more}
        body = {"id": "1", "object": "chat.completion", "model": "m", "created": 1, "choices": []}
        body["choices"] = [{"index": 0, "message": message, "finish_reason": self.finished}]
        if usage:
            with self.server.lock:
                tokens = self.server.usage_of(len(self.server.billed))
                self.server.billed.append(tokens)
            body["usage"] = {
                "prompt_tokens": tokens[0],
                "completion_tokens": tokens[1],
                "total_tokens": sum(tokens),
            }
        self.send(200, json.dumps(body).encode())


@contextlib.contextmanager
def serving(server: LlmServer) -> Iterator[LlmServer]:
    with server:
        yield server


def kept(ledger: Path) -> int:
    """Paid answers in a ledger's file, while somebody writes into it or after."""
    if not ledger.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, timeout=10)) as sql:
        try:
            return sql.execute("SELECT COUNT(*) FROM answers").fetchone()[0]
        except sqlite3.OperationalError:
            return 0


def kill_once_it_kept(answers: int, child: subprocess.Popen, ledger: Path) -> int:
    """SIGKILL a process that asks, once its ledger holds so many answers; how many it holds in the end."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and kept(ledger) < answers:
        time.sleep(0.02)
    child.kill()
    child.wait()
    time.sleep(0.3)  # the server may still write into the dead connection
    return kept(ledger)
