"""How busy does the kit keep an endpoint? `python tests/benchmarks/teacher.py [--slots 256 --latency 5]`

A server process with `--slots` places answers each request after `--latency` seconds, as a language model on a node
of GPUs does. The whole way is measured: prompt, HTTP, reading the answer, the answer on disk. Printed: the mean number of
requests in flight at the server over the middle 80% of the run, as a share of its places.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

from trait_kit.engine.ledger import Ledger
from trait_kit.engine.llm import Endpoint, Request, ask

WORDS = "the train leaves at noon and each of its wagons holds forty people so that in all there are some "
PROMPT = (WORDS * 40)[:3_000]
USAGE = {"prompt_tokens": 700, "completion_tokens": 700, "total_tokens": 1400}
MESSAGE = {"index": 0, "message": {"role": "assistant", "content": (WORDS * 40)[:2_900]}, "finish_reason": "stop"}
BODY = json.dumps(
    {"id": "1", "object": "chat.completion", "model": "m", "choices": [MESSAGE], "usage": USAGE}
).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


class Places(asyncio.Protocol):
    """HTTP as far as this needs it; POST is answered after the latency. `marks`: (busy seconds so far, when) of tenths."""

    flying, answered, busy_seconds, since, latency, count = 0, 0, 0.0, 0.0, 0.0, 0
    marks: multiprocessing.Queue

    @classmethod
    def change(cls, change: int) -> None:
        now = time.perf_counter()
        cls.busy_seconds += cls.flying * (now - cls.since)
        cls.flying, cls.since = cls.flying + change, now

    def connection_made(self, transport):
        self.transport, self.received = transport, b""

    def data_received(self, data):
        self.received += data
        head, end, rest = self.received.partition(b"\r\n\r\n")
        if end and len(rest) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            self.received = b""
            Places.change(1)
            asyncio.get_running_loop().call_later(Places.latency, self.answer)

    def answer(self):
        Places.change(-1)
        Places.answered += 1
        if Places.answered in (Places.count // 10, Places.count * 9 // 10):
            Places.marks.put((Places.busy_seconds, Places.since))
        self.transport.write(HEAD % len(BODY) + BODY)


def serve(latency: float, count: int, queue: multiprocessing.Queue) -> None:
    async def run():
        Places.latency, Places.since, Places.count, Places.marks = latency, time.perf_counter(), count, queue
        server = await asyncio.get_running_loop().create_server(Places, "127.0.0.1", 0, backlog=512)
        queue.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2_560)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--latency", type=float, default=5.0)
    options = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    server = context.Process(target=serve, args=(options.latency, options.count, queue), daemon=True)
    server.start()
    with tempfile.TemporaryDirectory() as folder:
        endpoint = Endpoint(f"http://127.0.0.1:{queue.get()}/v1", "m", concurrency=options.slots)
        endpoint = dataclasses.replace(endpoint, ledger=Ledger(Path(folder) / "answers.sqlite"))
        started, cpu = time.perf_counter(), time.process_time()
        requests = [Request(f"{place} {PROMPT}") for place in range(options.count)]
        replies = ask(requests, endpoint)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    (busy_1, time_1), (busy_2, time_2) = queue.get(), queue.get()
    server.terminate()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{options.count:,} requests, {sum(bool(reply.fault) for reply in replies)} faults: "
        f"{(busy_2 - busy_1) / (time_2 - time_1) / options.slots:.1%} of {options.slots} places busy, "
        f"{options.count / seconds:.0f} requests/s, {cpu / options.count * 1e3:.2f} ms of CPU each, {peak:.2f} GB"
    )


if __name__ == "__main__":
    main()
