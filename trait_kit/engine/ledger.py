"""What was paid for: answers and money in one sqlite file, a cap that is never passed, the bill before anything is asked.

An answer is committed before it is used, so a killed process pays for nothing twice. The key of an answer is the digest
of its request; no API key or header is ever written.
"""

import asyncio
import contextlib
import ipaddress
import socket
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from trait_kit.engine.files import TraitError


class Price(NamedTuple):
    usd_per_million_in: float = 0.0
    usd_per_million_out: float = 0.0

    def of(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.usd_per_million_in + tokens_out * self.usd_per_million_out) / 1e6


class Completion(NamedTuple):
    """An answer of a language model, and its tokens (reckoned where the endpoint does not say)."""

    content: str
    finish_reason: str
    tokens_in: int
    tokens_out: int


# a kill loses nothing; a power cut may lose the last answers
_SET_UP = """
PRAGMA journal_mode=WAL;
PRAGMA synchronous=NORMAL;
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, content TEXT, finish_reason TEXT, tokens_in INTEGER, tokens_out INTEGER
);
"""


class NoAnswer(Exception):
    """Why a request brought none; begins with the kind of fault."""


class Ledger:
    """`cap_usd` 0 means no cap; without a path nothing outlives the ledger.

    An answer counts once, new or found. The cap is for all that the file holds: a second run gets no second one.
    """

    def __init__(self, path: Path | None = None, price: Price = Price(), cap_usd: float = 0.0):
        self.path = path
        self.price, self.cap_usd = price, cap_usd
        # key -> tokens in and out of an answer that this run got or found
        self.used: dict[str, tuple[int, int]] = {}
        self.new: list[str] = []  # the keys of those that it paid for
        self.stopped_by_cap = False
        self._reserved: list[float] = []  # the most that each request in flight can cost
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._sql = sqlite3.connect(
                path or ":memory:", timeout=60, check_same_thread=False, isolation_level=None
            )
            self._sql.executescript(_SET_UP)
            sums = "SELECT COALESCE(SUM(tokens_in), 0), COALESCE(SUM(tokens_out), 0) FROM answers"
            self._paid_usd = price.of(*self._sql.execute(sums).fetchone())  # by all runs
        except sqlite3.Error as error:
            raise TraitError(
                f"{path} holds no paid answers that can be read ({error}). Bring it back from a copy, or move it away "
                "to ask, and pay, for everything again."
            ) from None

    def close(self) -> None:
        self._sql.close()

    def __contains__(self, key: str) -> bool:
        return bool(self._sql.execute("SELECT 1 FROM answers WHERE key = ?", (key,)).fetchone())

    def find(self, key: str) -> Completion | None:
        """An answer that was paid for earlier; it counts in the bill, once."""
        row = self._sql.execute("SELECT * FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        self.used[key] = row[3:]
        return Completion(*row[1:])

    def keep(self, rows: Sequence[Sequence[Any]]) -> None:
        """Answers that somebody else had (key, *completion); those that are here stay."""
        self._sql.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", rows)

    def record(self, key: str, completion: Completion) -> None:
        try:
            self._sql.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", (key, *completion))
        except sqlite3.Error as error:
            raise TraitError(
                f"Could not write a paid answer to {self.path}: {error}. Make room on the disk, or the folder writable, "
                "and run again; the answers before it are kept."
            ) from error
        self.used[key] = completion[2:]
        self.new.append(key)
        self._paid_usd += self.price.of(*completion[2:])

    @contextlib.asynccontextmanager
    async def reserved(self, most_usd: float) -> AsyncIterator[None]:
        """Room under the cap for the most that a request can cost; it waits for what those in flight may leave."""
        while self.cap_usd and self._paid_usd + sum(self._reserved) + most_usd > self.cap_usd:
            self.stopped_by_cap = self.stopped_by_cap or not self._reserved
            if self.stopped_by_cap:
                raise NoAnswer(
                    f"cost cap: not asked, the next request could pass max_cost_usd = {self.cap_usd:g}"
                )
            await asyncio.sleep(0.02)
        self._reserved.append(most_usd)
        try:
            yield
        finally:
            self._reserved.remove(most_usd)

    def bill(self) -> dict[str, Any]:
        """What was paid, but for requests without an answer that an endpoint may charge for."""
        tokens_in, tokens_out = (sum(tokens[side] for tokens in self.used.values()) for side in (0, 1))
        return {
            "tokens_in": tokens_in,
            "tokens_out": tokens_out,
            "cost_usd": self.price.of(tokens_in, tokens_out),
            "requests_this_run": len(self.new),
            "requests_from_cache": len(self.used) - len(self.new),
            "stopped_by_cap": self.stopped_by_cap,
        }


class Estimate(NamedTuple):
    """A bill of requests that have not been made."""

    requests: int
    tokens_in: int
    tokens_out: int
    cost_usd: float
    hours: float

    def __str__(self) -> str:
        if not self.requests:
            return "no requests to a language model, nothing to pay"
        return (
            f"{self.requests:,} requests, about {self.tokens_in:,} tokens in and {self.tokens_out:,} out, "
            f"{_usd(self.cost_usd) if self.cost_usd else 'nothing to pay'}, {self.hours:.1f} hours"
        )


def agree(estimate: Estimate, max_cost_usd: float) -> str:
    """The estimate in words, and what the cap does to it; TraitError where it costs money and no cap was set."""
    if estimate.cost_usd and not max_cost_usd:
        raise TraitError(
            f"This would cost about {_usd(estimate.cost_usd)} ({estimate}). Set max_cost_usd to what you agree to spend."
        )
    if estimate.cost_usd > max_cost_usd:
        share = max_cost_usd / estimate.cost_usd
        return f"{estimate}; max_cost_usd = {max_cost_usd:g} will stop it after about {share:.0%} of the requests"
    return str(estimate)


def _usd(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 0.1 else f"${amount:.2g}"


def is_private(url: str) -> bool:
    """Whether all addresses of the URL's host are of this machine or of a private network."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(urlsplit(url).hostname or "", None)}
        return all(ipaddress.ip_address(address.partition("%")[0]).is_private for address in found)
    except (OSError, ValueError):
        return False
