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
CREATE TABLE IF NOT EXISTS paid (usd REAL);
"""


class NoAnswer(Exception):
    """Why a request brought none; begins with the kind of fault."""


class Ledger:
    """`cap_usd` 0 agrees only to what costs nothing; without a path nothing outlives the ledger.

    An answer counts once a run. The cap is for all that was paid, by any run, to any model.
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
            (self._paid_usd,) = self._sql.execute("SELECT TOTAL(usd) FROM paid").fetchone()  # by all runs
        except sqlite3.Error as error:
            raise TraitError(
                f"{path} holds no paid answers that can be read ({error}). Bring it back from a copy, or move it away "
                "to ask, and pay, for everything again."
            ) from None

    def close(self) -> None:
        self._sql.close()

    def find(self, key: str) -> Completion | None:
        """An earlier answer; with 0 tokens where this run had it before."""
        row = self._sql.execute("SELECT * FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        return Completion(*row[1:3], *((0, 0) if key in self.used else self.used.setdefault(key, row[3:])))

    def keep(self, rows: Sequence[Sequence[Any]]) -> None:
        """Answers that somebody else had (key, *completion); those that are here stay."""
        self._sql.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", rows)

    def record(self, key: str, completion: Completion) -> None:
        usd = self.price.of(*completion[2:])
        try:
            self._sql.execute("INSERT INTO paid VALUES (?)", (usd,))
            self._sql.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", (key, *completion))
        except sqlite3.Error as error:
            raise TraitError(
                f"Could not write a paid answer to {self.path}: {error}. Make room on the disk, or the folder writable, "
                "and run again; the answers before it are kept."
            ) from error
        self.used[key] = completion[2:]
        self.new.append(key)
        self._paid_usd += usd

    @contextlib.asynccontextmanager
    async def reserved(self, most_usd: float) -> AsyncIterator[None]:
        """Room under the cap for the most that a request can cost; it waits for what those in flight may leave."""
        while most_usd and self._paid_usd + sum(self._reserved) + most_usd > self.cap_usd:
            self.stopped_by_cap |= not self._reserved
            if self.stopped_by_cap:
                raise NoAnswer(f"cost cap: not asked, it could pass max_cost_usd = {self.cap_usd:g}")
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
            "answers": len(self.used),
            "requests_this_run": len(self.new),
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
        return (
            f"{self.requests:,} first requests, about {self.tokens_in:,} tokens in and {self.tokens_out:,} out, "
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
