"""What was paid for: a cache of the teacher's completions on disk, and the money spent, with a cap.

Each completion is one JSON line, appended and fsynced before it is used, so a kill loses nothing that was paid for; answers
that arrive together share one fsync. Memory holds only where each line begins. The key is the digest of the request; no key
or header is ever written. A line that cannot be read (the end of a file whose writer was killed) is skipped and counted, and
the request it stood for is asked again.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from trait_kit.engine.files import TraitError
from trait_kit.engine.money import prices
from trait_kit.params import TeacherParams


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


@dataclass
class _Batch:
    """Lines, with their keys, that one fsync makes safe."""

    lines: list[tuple[str, bytes]] = field(default_factory=list)
    written: threading.Event = field(default_factory=threading.Event)
    error: OSError | None = None


class Ledger:
    """Thread-safe. `cap_usd` 0 means no cap; prices are USD per million tokens; without a path nothing outlives the ledger.

    What is spent counts once a completion, whether it is new or from the cache, and is reckoned from whole tokens, so that
    it equals the endpoint's own account to the last digit. The cap is for all that the file holds: a run that is killed and
    started again does not get a second one, in whatever order it finds its answers. `reserve` sets aside the most that a
    request can cost before it is sent: the cap is not overshot, however many requests are in flight.
    """

    def __init__(self, path: Path | str | None, *, cap_usd: float = 0.0, price_in: float = 0.0, price_out: float = 0.0):
        self.path = Path(path) if path else None
        self.cap_usd, self.price_in, self.price_out = cap_usd, price_in, price_out
        self.tokens_in = self.tokens_out = 0  # of this run's completions and of those that it found
        self.new_tokens_in = self.new_tokens_out = 0  # the part that this run paid for
        self.new_requests = self.cached_requests = self.lost_requests = self.skipped_lines = 0
        self.stopped_by_cap = False
        self._paid_before = 0.0  # for the completions in the file, by earlier runs
        self._reserved = 0.0
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._batch = _Batch()
        self._counted: set[str] = set()
        self._kept: dict[str, int | Completion] = {}  # the place of its line in the file, or without a file itself
        if self.path and self.path.exists():
            for place, _, key, completion in self._completions(self.path):
                self._kept[key] = place
                self._paid_before += self.cost(completion.tokens_in, completion.tokens_out)

    @classmethod
    def of(cls, params: TeacherParams, path: Path | str | None) -> Self:
        """With the prices and the cap of a notebook's parameters."""
        price_in, price_out = prices(params)
        return cls(path, cap_usd=params.max_cost_usd, price_in=price_in, price_out=price_out)

    @property
    def spent_usd(self) -> float:
        return self.cost(self.tokens_in, self.tokens_out)

    @property
    def paid_usd(self) -> float:
        """For all that the file holds, found by this run or not: what the cap is held against."""
        return self._paid_before + self.cost(self.new_tokens_in, self.new_tokens_out)

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    def find(self, key: str) -> Completion | None:
        """A completion that was paid for earlier; its cost is counted in `spent_usd`."""
        completion = self._kept.get(key)
        if isinstance(completion, int):
            completion = self._look_up(key, completion)
        if completion is not None:
            with self._changed:
                self.cached_requests += 1
                if key not in self._counted:
                    self._count(key, completion)
        return completion

    @contextlib.contextmanager
    def reserve(self, most_usd: float) -> Iterator[None]:
        """Hold `most_usd` while a request runs; waits while requests in flight might leave room, else raises CapReached."""
        with self._changed:
            if self.cap_usd:
                while not self.stopped_by_cap and self.paid_usd + self._reserved + most_usd > self.cap_usd:
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
        except BaseException:
            with self._changed:
                self.lost_requests += 1
            raise
        finally:
            with self._changed:
                self._reserved = max(0.0, self._reserved - most_usd) if self._reserved - most_usd > 1e-12 else 0.0
                self._changed.notify_all()

    def record(self, key: str, completion: Completion) -> None:
        """Write a new completion to disk (fsync), then count it."""
        if self.path:
            self._write(key, completion)
        with self._changed:
            if not self.path:
                self._kept[key] = completion
            self._count(key, completion)
            self.new_tokens_in += completion.tokens_in
            self.new_tokens_out += completion.tokens_out
            self.new_requests += 1

    def absorb(self, path: Path) -> None:
        """Take over the completions of another ledger's file, of a process that asked elsewhere."""
        lines: dict[str, bytes] = {}
        for _, line, key, completion in self._completions(path):
            if key not in self._kept and key not in lines:
                lines[key] = line.rstrip(b"\n") + b"\n"
                self._paid_before += self.cost(completion.tokens_in, completion.tokens_out)
        self._append(list(lines.items()))

    def bill(self) -> dict[str, Any]:
        """What was asked and paid, for the run's record. An endpoint may charge for lost requests too: nobody can know."""
        return {
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "cost_usd": self.spent_usd,
            "cost_usd_this_run": self.cost(self.new_tokens_in, self.new_tokens_out),
            "requests_this_run": self.new_requests,
            "requests_from_cache": self.cached_requests,
            "requests_without_answer": self.lost_requests,
            "cap_usd": self.cap_usd,
            "stopped_by_cap": self.stopped_by_cap,
            "unreadable_cache_lines": self.skipped_lines,
        }

    def _count(self, key: str, completion: Completion) -> None:
        self._counted.add(key)
        self.tokens_in += completion.tokens_in
        self.tokens_out += completion.tokens_out

    def _write(self, key: str, completion: Completion) -> None:
        line = json.dumps({"key": key, **asdict(completion)}, ensure_ascii=True, sort_keys=True).encode() + b"\n"
        with self._changed:
            batch = self._batch
            is_first = not batch.lines
            batch.lines.append((key, line))
        if is_first:  # it writes for all who come while the batch before is being written
            with self._writing:
                with self._changed:
                    self._batch = _Batch()
                try:
                    self._append(batch.lines)
                except OSError as error:
                    batch.error = error
                finally:
                    batch.written.set()
        batch.written.wait()
        if batch.error:
            raise TraitError(
                f"Could not write a paid answer to {self.path}: {batch.error.strerror}. Make room on the disk (or the "
                "folder writable) and run again; the answers before it are kept."
            ) from batch.error

    def _append(self, lines: list[tuple[str, bytes]]) -> None:
        data = b"".join(line for _, line in lines)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as stream:
            if stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":  # the last writer was killed in the middle of a line
                    stream.write(b"\n")
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
            place = stream.tell() - len(data)
        for key, line in lines:
            self._kept[key] = place
            place += len(line)

    def _look_up(self, key: str, place: int) -> Completion | None:
        try:
            with self.path.open("rb") as stream:
                stream.seek(place)
                found, completion = _parse(stream.readline())
        except (OSError, ValueError):  # somebody took the file away meanwhile
            return None
        return completion if found == key else None

    def _completions(self, path: Path) -> Iterator[tuple[int, bytes, str, Completion]]:
        """(place, line, key, completion) of every line that can be read; the others are counted."""
        place = 0
        with path.open("rb") as stream:
            for line in stream:
                try:
                    yield place, line, *_parse(line)
                except ValueError:
                    self.skipped_lines += 1
                place += len(line)


def _parse(line: bytes) -> tuple[str, Completion]:
    try:
        fields = json.loads(line)
        key, completion = fields.pop("key"), Completion(**fields)
        if isinstance(completion.content, str) and min(completion.tokens_in, completion.tokens_out) >= 0:
            return key, completion
    except (TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise ValueError("not a completion")
