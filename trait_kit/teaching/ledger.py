"""What was paid for: a cache of the teacher's completions on disk, and the money spent, with a cap.

Each completion is one JSON line, appended and fsynced before it is used, so a kill loses nothing that was paid for. The
key is the digest of the whole request; no key or header is ever written. A line that cannot be read (the end of a file
whose writer was killed) is skipped and counted, and the request it stood for is asked again.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trait_kit.errors import TraitError


@dataclass(frozen=True)
class Completion:
    """One answer of a teacher, with the tokens that were paid for."""

    content: str
    finish_reason: str
    tokens_in: int
    tokens_out: int
    usage_estimated: bool  # the endpoint sent no usable usage, so tokens are counted from characters


class CapReached(Exception):
    """The next request could cost more than what is left under the cap."""


class Ledger:
    """Thread-safe. `cap_usd` 0 means no cap; prices are USD per million tokens.

    Money counts once a request, whether the completion is new or from the cache, so that a run which is killed and
    started again does not get a second cap. `reserve` sets aside the most that a request can cost before it is sent:
    the cap is not overshot, however many requests are in flight.
    """

    def __init__(self, path: Path | str | None, *, cap_usd: float = 0.0, price_in: float = 0.0, price_out: float = 0.0):
        self.path = Path(path) if path else None
        self.cap_usd, self.price_in, self.price_out = cap_usd, price_in, price_out
        self.spent_usd = 0.0
        self.new_usd = 0.0  # the part of spent_usd that this run paid
        self.new_requests = self.cached_requests = self.skipped_lines = 0
        self.stopped_by_cap = False
        self._reserved = 0.0
        self._changed = threading.Condition()
        self._entries = self._read()

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    def find(self, key: str) -> Completion | None:
        """A completion that was paid for earlier; its cost is counted in `spent_usd`."""
        with self._changed:
            completion = self._entries.get(key)
            if completion is not None:
                self.spent_usd += self.cost(completion.tokens_in, completion.tokens_out)
                self.cached_requests += 1
            return completion

    @contextlib.contextmanager
    def reserve(self, most_usd: float) -> Iterator[None]:
        """Hold `most_usd` while a request runs; waits while requests in flight might leave room, else raises CapReached."""
        with self._changed:
            if self.cap_usd:
                while not self.stopped_by_cap and self.spent_usd + self._reserved + most_usd > self.cap_usd:
                    if self._reserved == 0.0:
                        self.stopped_by_cap = True
                        self._changed.notify_all()
                    else:
                        self._changed.wait()
                if self.stopped_by_cap:
                    raise CapReached
            self._reserved += most_usd
        try:
            yield
        finally:
            with self._changed:
                self._reserved = max(0.0, self._reserved - most_usd) if self._reserved - most_usd > 1e-12 else 0.0
                self._changed.notify_all()

    def record(self, key: str, completion: Completion) -> None:
        """Write a new completion to disk (fsync), then count it."""
        line = json.dumps({"key": key, **asdict(completion)}, ensure_ascii=True, sort_keys=True) + "\n"
        with self._changed:
            if self.path:
                try:
                    self._append(line.encode())
                except OSError as error:
                    raise TraitError(
                        f"Could not write a paid answer to {self.path}: {error.strerror}. Make room on the disk (or the "
                        "folder writable) and run again; the answers before it are kept."
                    ) from error
            self._entries[key] = completion
            cost = self.cost(completion.tokens_in, completion.tokens_out)
            self.spent_usd += cost
            self.new_usd += cost
            self.new_requests += 1

    def bill(self) -> dict[str, Any]:
        """What this run asked and paid, for its record."""
        return {
            "cost_usd_this_run": self.new_usd,
            "requests_this_run": self.new_requests,
            "requests_from_cache": self.cached_requests,
            "cap_usd": self.cap_usd,
            "stopped_by_cap": self.stopped_by_cap,
            "unreadable_cache_lines": self.skipped_lines,
        }

    def _append(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as stream:
            if stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":  # the last writer was killed in the middle of a line
                    line = b"\n" + line
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    def _read(self) -> dict[str, Completion]:
        entries: dict[str, Completion] = {}
        if not self.path or not self.path.exists():
            return entries
        with self.path.open("rb") as stream:
            for line in stream:
                try:
                    fields = json.loads(line)
                    key, completion = fields.pop("key"), Completion(**fields)
                    if not isinstance(completion.content, str) or min(completion.tokens_in, completion.tokens_out) < 0:
                        raise ValueError
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    self.skipped_lines += 1
                    continue
                entries[key] = completion
        return entries
