"""A real OpenAI-protocol server on the loopback that behaves well and badly, shared by the tests that ask a model."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEY = "sk-secret-0123456789"
PATIENCE = 4.0  # seconds of a client that waits for servers that hang: a machine with other work stalls for one or two


class LlmServer(ThreadingHTTPServer):
    """Behaves as the first `mode-...` in a prompt says.

    `good(prompt)` is the content of a good answer; `special[mode](good content, messages in the request)` of another one.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, good: Callable[[str], str], special: dict[str, Callable[[str, int], str]] | None = None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.good, self.special = good, special or {}
        self.asked: list[tuple[str, float]] = []  # (mode, when)
        self.bodies: list[str] = []
        self.keys: set[str] = set()
        self.flying = self.most_flying = 0
        self.delay = 0.0
        self.healthy = False  # True: every mode answers well
        self.dead = False
        self.usage_of: Callable[[int], tuple[int, int]] = lambda number: (500, 250)  # tokens in and out of an answer
        self.billed: list[tuple[int, int]] = []  # the usage of every answer that was sent whole
        self.lock = threading.Lock()

    def handle_error(self, request, client_address):
        """A client that gave up waiting is part of the tests."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def die(self) -> None:
        """As a machine that is switched off: no new connections, and those that wait for an answer are cut."""
        self.dead = True
        self.shutdown()
        self.server_close()

    def count(self, mode: str) -> int:
        return sum(name == mode for name, _ in self.asked)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        server = self.server
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        request = json.loads(body)
        prompt, self.request_fields = request["messages"][0]["content"], set(request)
        mode = re.search(r"mode-([a-z0-9-]+)", prompt)[1] if "mode-" in prompt else "good"
        with server.lock:
            server.asked.append((mode, time.monotonic()))
            server.bodies.append(body)
            server.keys.add(self.headers["Authorization"])
            server.flying += 1
            server.most_flying = max(server.most_flying, server.flying)
            turn = server.count(mode)
        try:
            time.sleep(server.delay)
            if server.dead:
                self.close_connection = True
                return
            self.behave("good" if server.healthy else mode, turn, prompt, len(request["messages"]))
        finally:
            with server.lock:
                server.flying -= 1

    def behave(self, mode: str, turn: int, prompt: str, messages: int) -> None:
        good = self.server.good(prompt)
        if mode in self.server.special:
            self.answer(self.server.special[mode](good, messages))
        elif mode == "repaired" and messages == 1:
            self.answer(good[:-20])
        elif mode == "never-json":
            self.answer("I would rather talk about something else.")
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
        elif mode == "empty":
            self.answer("")
        elif mode == "null":
            self.answer(None)
        elif mode == "huge":
            self.answer("x" * 2_000_000)
        elif mode == "endless":
            self.send(200, b" " * 6_000_000)
        elif mode == "html":
            self.send(200, b"<html>proxy login</html>")
        elif mode == "echo":
            self.answer(self.headers["Authorization"])
        elif mode == "refused":
            self.send(401, json.dumps({"error": {"message": "bad key " + self.headers["Authorization"]}}).encode())
        elif mode == "old-parameter" and "max_completion_tokens" not in self.request_fields:
            self.send(400, json.dumps({"error": {"message": "use max_completion_tokens instead"}}).encode())
        else:
            self.answer(good, usage=mode != "no-usage")

    def answer(self, content: str | None, usage: bool = True) -> None:
        message = {"role": "assistant", "content": content}
        body = {"id": "1", "object": "chat.completion", "model": "m", "created": 1, "choices": []}
        body["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
        if usage:
            with self.server.lock:
                tokens = self.server.usage_of(len(self.server.billed))
                self.server.billed.append(tokens)
            body["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
        self.send(200, json.dumps(body).encode())

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def serving(server: LlmServer) -> Iterator[LlmServer]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def kill_once_it_kept(answers: int, child: subprocess.Popen, cache: Path) -> int:
    """SIGKILL a process that asks, once its cache holds so many answers; how many it holds in the end."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not cache.exists() or cache.read_bytes().count(b"\n") < answers):
        time.sleep(0.02)
    child.kill()
    child.wait()
    time.sleep(0.3)  # the server may still write into the dead connection
    return cache.read_bytes().count(b"\n")
