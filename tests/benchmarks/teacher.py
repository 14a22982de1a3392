"""How busy does the kit keep an endpoint? `python tests/benchmarks/teacher.py [--count 100000]`

A server process with `--slots` places answers each request after `--latency` seconds; 64 places and 0.2 s are 320 requests a
second, about what a node of GPUs gives. The whole way is measured: prompt, HTTP, reading the answer, the answer on disk.
Printed: the mean number of requests in flight at the server over the middle 80% of the run, as a share of its places.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import tempfile
import time
import urllib.request
from pathlib import Path

from trait_kit.engine.endpoint import Endpoint, ask_all
from trait_kit.engine.exchange import read_object
from trait_kit.engine.ledger import Ledger

WORDS = "the train leaves at noon and each of its wagons holds forty people so that in all there are some "
PROMPT = (WORDS * 40)[:3_000]
ANSWER = json.dumps({"paragraphs": [(WORDS * 10)[:950]] * 3, "enlightenment": WORDS})
USAGE = {"prompt_tokens": 700, "completion_tokens": 700, "total_tokens": 1400}
MESSAGE = {"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
BODY = json.dumps({"id": "1", "object": "chat.completion", "model": "m", "choices": [MESSAGE], "usage": USAGE}).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


class Places(asyncio.Protocol):
    """HTTP as far as this needs it; POST is answered after the latency, GET at once with what was counted so far."""

    flying, busy_seconds, since, latency = 0, 0.0, 0.0, 0.0

    @classmethod
    def count(cls, change: int) -> None:
        now = time.perf_counter()
        cls.busy_seconds += cls.flying * (now - cls.since)
        cls.flying, cls.since = cls.flying + change, now

    def connection_made(self, transport):
        self.transport, self.received = transport, b""

    def data_received(self, data):
        self.received += data
        head, end, rest = self.received.partition(b"\r\n\r\n")
        if self.received.startswith(b"GET") and end:
            Places.count(0)
            body = json.dumps([Places.busy_seconds, Places.since]).encode()
            self.transport.write(HEAD % len(body) + body)
            self.received = b""
        elif end and len(rest) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            self.received = b""
            Places.count(1)
            asyncio.get_running_loop().call_later(Places.latency, self.answer)

    def answer(self):
        Places.count(-1)
        self.transport.write(HEAD % len(BODY) + BODY)


def serve(latency: float, port: multiprocessing.Queue) -> None:
    async def run():
        Places.latency, Places.since = latency, time.perf_counter()
        server = await asyncio.get_running_loop().create_server(Places, "127.0.0.1", 0, backlog=512)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=6_400)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.2)
    options = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    ports = context.Queue()
    server = context.Process(target=serve, args=(options.latency, ports), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ports.get()}/v1"
    marks: list[list[float]] = []

    def look(done: int, count: int) -> None:
        if done in (count // 10, count * 9 // 10):
            with urllib.request.urlopen(url) as answer:
                marks.append(json.loads(answer.read()))

    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "answers.jsonl")
        endpoint = Endpoint(url, "m", concurrency=options.slots)
        fields = ("paragraphs", "enlightenment")
        started, cpu = time.perf_counter(), time.process_time()
        answers = ask_all(
            options.count,
            lambda place: endpoint.converse(
                f"{place} {PROMPT}", lambda content: read_object(content, fields), lambda fault: fault, ledger
            ),
            fault_of=lambda reply: reply.fault,
            give_up=lambda reason: reason,
            concurrency=options.slots,
            progress=look,
        )
        replies = list(answers)  # all of them held, as a caller might
        faults = sum(bool(reply.fault) for reply in replies)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    (busy_1, time_1), (busy_2, time_2) = marks
    server.terminate()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{options.count:,} requests, {faults} faults: {(busy_2 - busy_1) / (time_2 - time_1) / options.slots:.1%} of "
        f"{options.slots} places busy, {options.count / seconds:.0f} requests/s, "
        f"{cpu / options.count * 1e3:.2f} ms of CPU each, peak memory {peak:.2f} GB"
    )


if __name__ == "__main__":
    main()
