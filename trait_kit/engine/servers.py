"""HTTP to one model at one or several addresses: kept-alive connections, retries, answers bounded in bytes and in time.

urllib3 in plain threads, since this is where an endpoint's speed is lost: with 64 requests in flight one costs 0.6 ms of CPU
here, and 3 ms through the openai client, which at 320 requests a second is all that Python's lock leaves to one process.
"""

from __future__ import annotations

import contextlib
import email.utils
import ipaddress
import math
import random
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import certifi
import urllib3

MAX_BODY = 4_000_000  # bytes of an HTTP answer that are read
_CONNECT_SECONDS = 10.0
_AWAY_SECONDS = 30.0  # that a server without a connection is left out
_LONGEST_WAIT = 120.0  # seconds of Retry-After that are waited for
_WORTH_A_RETRY = (408, 409, 425, 429)  # and 5xx


class Failure(Exception):
    """A request that brought no answer; its text begins with the kind of fault."""


class NoConnection(Failure):
    pass


class NoAnswer(Failure):
    pass


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    url: str  # of the server that gave it


@dataclass(eq=False)
class _Server:
    url: str
    http: urllib3.PoolManager
    flying: int = 0
    away_until: float = 0.0


class Servers:
    """Thread-safe. Each server gets at most `places` requests at once; a request goes to the least busy one.

    A server that cannot be reached, or that cuts an answer off, is left out for a while, and its request goes to another.
    """

    def __init__(self, urls: list[str], key: str, *, places: int, timeout: float, max_retries: int):
        self.places, self.timeout, self.max_retries = places, timeout, max_retries
        self._headers = {"Content-Type": "application/json", "User-Agent": "trait-kit"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._servers = [_Server(url, _connections(url, places)) for url in urls]
        self._changed = threading.Condition()

    def post(self, path: str, body: bytes) -> Answer:
        """The answer, whatever its status, once it is not worth another try; a Failure where none came."""
        for tries_left in range(self.max_retries, -1, -1):
            wait = min(0.5 * 2 ** (self.max_retries - tries_left), 8.0) * random.uniform(0.75, 1.0)
            try:
                answer, retry_after = self._once(path, body)
            except (NoConnection, NoAnswer):
                if not tries_left:
                    raise
            else:
                again = answer.status in _WORTH_A_RETRY or answer.status >= 500
                if not again or not tries_left or retry_after > _LONGEST_WAIT:
                    return answer
                wait = retry_after or wait
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _once(self, path: str, body: bytes) -> tuple[Answer, float]:
        """One try at each server, the least busy first, until one is reached."""
        tried: list[_Server] = []
        while True:
            with self._place(tried) as server:
                try:
                    return self._exchange(server, path, body)
                except NoConnection:
                    server.away_until = time.monotonic() + _AWAY_SECONDS
                    tried.append(server)
                    if len(tried) == len(self._servers):
                        raise

    @contextlib.contextmanager
    def _place(self, tried: list[_Server]) -> Iterator[_Server]:
        with self._changed:
            while True:
                left = [server for server in self._servers if server not in tried]
                here = [server for server in left if server.away_until <= time.monotonic()] or left
                server = min(here, key=lambda server: server.flying)
                if server.flying < self.places:
                    break
                self._changed.wait(1.0)  # not for ever: who was woken may have no use for that server
            server.flying += 1
        try:
            yield server
        finally:
            with self._changed:
                server.flying -= 1
                self._changed.notify()

    def _exchange(self, server: _Server, path: str, body: bytes) -> tuple[Answer, float]:
        deadline = time.monotonic() + self.timeout
        try:
            response = server.http.request(
                "POST",
                server.url + path,
                body=body,
                headers=self._headers,
                timeout=urllib3.Timeout(connect=min(self.timeout, _CONNECT_SECONDS), read=self.timeout),
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            try:
                content = b"".join(self._read(response, deadline))
            except BaseException:
                response.close()  # with what it has still to send
                raise
            response.release_conn()
        except urllib3.exceptions.ReadTimeoutError:
            raise NoAnswer(f"no answer in time: {self.timeout:g} s, several times") from None
        except urllib3.exceptions.HTTPError as error:
            raise NoConnection(f"no connection: {server.url}: {error!r}"[:400]) from None
        return Answer(response.status, content, server.url), waiting_time(response.headers.get("Retry-After", ""))

    def _read(self, response: urllib3.BaseHTTPResponse, deadline: float) -> Iterator[bytes]:
        """Bounded in bytes and in total time: a server may send one byte a second for ever."""
        total = 0
        while chunk := response.read1(65_536):
            total += len(chunk)
            if total > MAX_BODY:
                raise Failure(f"answer too long: more than {MAX_BODY:,} bytes")
            if time.monotonic() > deadline:
                raise NoAnswer(f"no answer in time: it was still arriving after {self.timeout:g} s")
            yield chunk


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _connections(url: str, places: int) -> urllib3.PoolManager:
    """Through the proxy that the environment names for this address, if any."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # beside the system's own authorities, which some systems lack
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or is_loopback(url) or urllib.request.proxy_bypass(parts.hostname or ""):
        return urllib3.PoolManager(maxsize=places, ssl_context=context)
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    login = urllib3.util.parse_url(proxy).auth
    headers = urllib3.make_headers(proxy_basic_auth=login) if login else None
    return urllib3.ProxyManager(proxy, maxsize=places, ssl_context=context, proxy_headers=headers)


def waiting_time(header: str) -> float:
    """Seconds that a Retry-After header tells, as a number or a date; 0 where there is nothing to go by."""
    try:
        seconds = float(header)
    except ValueError:
        date = email.utils.parsedate_tz(header)
        try:
            seconds = email.utils.mktime_tz(date) - time.time() if date else 0.0
        except (ValueError, OverflowError):
            seconds = 0.0
    return seconds if seconds > 0 and not math.isnan(seconds) else 0.0
