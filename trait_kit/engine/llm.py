"""The one client for language models: any endpoint of the OpenAI protocol, asked many things at once, each paid for once.

A thing is a `Request`: a conversation, and a reader of the answer that refuses it by a ValueError. What is refused is asked
again alone and told why. What comes back is bounded in bytes, in time and in money, and never holds the API key. One request
that fails is a fault with its reason; only what would fail for every request (a refused key, an unknown model) raises.
No JSON is asked for: a reader takes plain text, and what a model thinks aloud before is not part of it.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import re
import shlex
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trait_kit.engine import child, llama
from trait_kit.engine.files import TraitError, digest
from trait_kit.engine.ledger import TOKENS_PER_SECOND, CapReached, Completion, Estimate, Ledger, is_private, prices

KEY_VARIABLE = "OPENAI_API_KEY"
PRICES = "params/prices.yaml"  # what models cost at addresses outside your network
MAX_CONTENT = 20_000  # characters of an answer that are looked at and kept
_AWAY_SECONDS = 30.0  # that a server without a connection is left out

Message = dict[str, str]


@dataclass(frozen=True)
class Request:
    """One thing to ask: a prompt or a conversation so far, and what makes a value of the answer (ValueError: not usable).

    `retry` makes the next conversation from the last one, its answer and what was wrong with it.
    """

    asked: str | Sequence[Message]
    read: Callable[[str], Any] = str
    retry: Callable[[Sequence[Message], str, str], list[Message]] = lambda *last: again(*last)

    def messages(self) -> list[Message]:
        return [{"role": "user", "content": self.asked}] if isinstance(self.asked, str) else list(self.asked)


@dataclass(frozen=True)
class Reply:
    """The end of one conversation: what was read from the answer, or the fault ('kind: details'), and what it cost."""

    value: Any  # None where there is a fault
    fault: str
    content: str = ""  # the last answer as it came, without what was thought aloud
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0
    tries: int = 0
    refused: tuple[str, ...] = ()  # why earlier answers were not taken


@dataclass(frozen=True)
class Endpoint:
    """One model at one or several addresses (separated by commas), each of which gets `concurrency` requests at once.

    The API key is read from the environment when it is needed and is kept nowhere; on this machine and its private network
    none is needed. `extra` goes into each request's body (temperature, seed, thinking off).
    """

    base_url: str
    model: str
    concurrency: int = 8
    timeout: float = 120.0  # seconds a request
    max_tokens: int = 1_024
    extra: dict[str, Any] = field(default_factory=dict)
    price_in: float = 0.0  # USD for a million tokens
    price_out: float = 0.0
    max_cost_usd: float = 0.0
    max_retries: int = 3
    tokens_per_second: float = 0.0  # of all places together; 0: not measured
    start: Callable[[], str] | None = None  # starts the server of this endpoint and says its address, when first asked

    def __post_init__(self) -> None:
        for url in self.urls or [self.base_url]:
            if not re.match(r"https?://[^/]", url):
                raise TraitError(f"teacher_base_url is '{url}'; write it like http://127.0.0.1:8000/v1.")
        self.key()

    @classmethod
    def of(cls, params: Any) -> "Endpoint":
        """The endpoint that a notebook's `teacher_*` parameters name; with `teacher_serve`, one to estimate with."""
        address = params.teacher_base_url or ("http://127.0.0.1:0/v1" if params.teacher_serve else "")
        fields = ("model", "concurrency", "max_tokens", "extra")
        price_in, price_out = prices(PRICES, params.teacher_model, _addresses(address))
        money = {"price_in": price_in, "price_out": price_out, "max_cost_usd": params.max_cost_usd}
        return cls(address, **{name: getattr(params, f"teacher_{name}") for name in fields}, **money)

    @property
    def urls(self) -> list[str]:
        return _addresses(self.base_url)

    @property
    def places(self) -> int:
        """Requests in flight, at all addresses together."""
        return self.concurrency * len(self.urls)

    def key(self) -> str:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        away = [url for url in self.urls if not is_private(url)]
        if not (key.isascii() and (key.isprintable() or not key)) or (not key and away):
            raise TraitError(
                f"The environment variable {KEY_VARIABLE} is not set, or holds no key that can be sent in a header. "
                f"Put the API key for {away or self.urls} into it (any word where none is needed), and start again."
            )
        return key

    def ledger(self, path: Path | str | None) -> Ledger:
        return Ledger(path, cap_usd=self.max_cost_usd, price_in=self.price_in, price_out=self.price_out)

    def body(self, messages: list[Message]) -> dict[str, Any]:
        """What is sent, without `extra`."""
        return {"model": self.model, "messages": messages, "max_tokens": self.max_tokens}

    def name_of(self, messages: list[Message]) -> str:
        """The name of an answer in the ledger: whatever shapes it is in it."""
        return digest([self.body(messages), self.extra])

    def estimate(self, requests: int, tokens_in: int, tokens_out: int) -> Estimate:
        """A bill of requests that have not been made, at this endpoint's prices and speed."""
        cost = (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6
        speed = self.tokens_per_second or TOKENS_PER_SECOND * self.places
        return Estimate(requests, tokens_in, tokens_out, cost, tokens_out / speed / 3600)

    def measured(self) -> "Endpoint":
        """This endpoint with its speed: tokens a second of short answers, as many at once as there are places."""
        asked = [Request(f"Count from {number} to {number + 40}.") for number in range(self.places)]
        started = time.monotonic()
        written = sum(reply.tokens_out for reply in ask(asked, dataclasses.replace(self, max_tokens=48)))
        return dataclasses.replace(self, tokens_per_second=written / (time.monotonic() - started))


def ask(
    requests: Sequence[Request],
    endpoint: Endpoint,
    ledger: Ledger | Path | str | None = None,
    *,
    attempts: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Reply]:
    """A reply to each request, in their order; what a reader refuses is asked again, told why, up to `attempts` times.

    All run in one thread of their own, so it works under a running event loop (Jupyter) too. On an error (also where many
    requests in a row have no answer) or Ctrl-C nothing new is asked, and what is in flight (and paid) reaches the ledger.
    `progress(done, all)` is called about once a second.
    """
    session = _Session(endpoint, ledger if isinstance(ledger, Ledger) else endpoint.ledger(ledger), attempts)
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        future = executor.submit(asyncio.run, session.run(requests))
        try:
            while concurrent.futures.wait([future], timeout=1.0).not_done:
                if progress:
                    progress(session.done, len(requests))
            replies = future.result()
        except BaseException:
            session.stopped = True
            raise
    if progress:
        progress(len(requests), len(requests))
    return replies


@contextlib.contextmanager
def served(params: Any, folder: Path) -> Iterator[Endpoint]:
    """The endpoint of `params`; with `teacher_serve` (called with --port), of a server that starts with the first question
    that has no kept answer, and ends with the block."""
    endpoint = Endpoint.of(params)
    if not params.teacher_serve:
        yield endpoint
        return
    with contextlib.ExitStack() as stack:

        @functools.cache
        def start() -> str:
            if params.teacher == "local":
                llama.model_file()
            url = f"http://127.0.0.1:{child.free_port()}"

            def ready() -> bool:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
                    return answer.status == 200
                return False

            command = [*shlex.split(params.teacher_serve), "--port", url.rpartition(":")[2]]
            print(f"Starting {endpoint.model} for what has no kept answer ...", flush=True)
            stack.enter_context(child.serving(command, "The language model's server", folder / "teacher_server.log", ready))
            return f"{url}/v1"

        yield dataclasses.replace(endpoint, start=start)


class _Failure(Exception):
    """A request that brought no answer; its text begins with the kind of fault."""


class _Server:
    """One address: its client, and at most so many requests at once."""

    def __init__(self, endpoint: Endpoint, url: str) -> None:
        import openai

        self.url, self.flying, self.away_until = url, 0, 0.0
        self.places = asyncio.Semaphore(endpoint.concurrency)
        self.client = openai.AsyncOpenAI(
            base_url=url,
            api_key=endpoint.key() or "none",
            max_retries=endpoint.max_retries,
            timeout=openai.Timeout(endpoint.timeout, connect=min(endpoint.timeout, 10.0), pool=None),
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not is_private(url)),
        )


class _Session:
    """All requests of one `ask`, in one event loop."""

    def __init__(self, endpoint: Endpoint, ledger: Ledger, attempts: int) -> None:
        self.endpoint, self.ledger, self.attempts = endpoint, ledger, attempts
        self.key, self.limit_field = endpoint.key(), "max_tokens"
        self.done = self.unreached = 0
        self.stopped = False
        self.servers: list[_Server] = []
        self.asking: dict[str, asyncio.Lock] = collections.defaultdict(asyncio.Lock)

    async def run(self, requests: Sequence[Request]) -> list[Reply]:
        replies: list[Any] = [None] * len(requests)
        places = iter(range(len(requests)))

        async def work() -> None:
            for place in places:
                if self.stopped:
                    return
                try:
                    replies[place] = await self._converse(requests[place])
                except BaseException:
                    self.stopped = True
                    raise
                self.done += 1

        async with contextlib.AsyncExitStack() as self.stack:
            crowd = [work() for _ in range(min(len(requests), self.endpoint.places * 5 // 4))]  # one is ready where one ends
            for result in await asyncio.gather(*crowd, return_exceptions=True):
                if result is not None:
                    raise result
        return replies

    async def _converse(self, request: Request) -> Reply:
        messages, paid, refused = request.messages(), [], []
        value, fault, content = None, "", ""
        while len(paid) < self.attempts:
            try:
                completion = await self._complete(messages)
            except CapReached:
                fault = f"cost cap: not asked, the next request could pass max_cost_usd = {self.ledger.cap_usd:g}"
                break
            except _Failure as failure:
                fault = self._hide(str(failure))
                break
            paid.append(completion)
            content = without_thoughts(completion.content)[:MAX_CONTENT]
            try:
                value, fault = request.read(content), ""
                break
            except ValueError as error:
                fault = str(error)
            if completion.finish_reason in ("length", "content_filter"):
                fault += f"; the endpoint stopped it ({completion.finish_reason})"
            refused.append(fault)
            messages = request.retry(messages, content, fault)
        tokens = sum(answer.tokens_in for answer in paid), sum(answer.tokens_out for answer in paid)
        return Reply(value, fault, content, *tokens, self.ledger.cost(*tokens), len(paid), tuple(refused))

    async def _complete(self, messages: list[Message]) -> Completion:
        """The answer: one that was paid for, or a new one within the cap."""
        endpoint, ledger = self.endpoint, self.ledger
        request, key = endpoint.body(messages), endpoint.name_of(messages)
        async with self.asking[key]:  # two that ask the same at once pay once
            if found := ledger.find(key):
                return found
            size = sum(len(message["content"].encode()) + 32 for message in messages)  # a token is a byte at least
            most, completion = ledger.cost(size, endpoint.max_tokens), None
            while not ledger.reserve(most):
                await asyncio.sleep(0.02)
            try:
                completion = self._read(await self._post(request), size)
                ledger.record(key, completion)
                return completion
            finally:
                ledger.release(most, completion is not None)

    async def _post(self, request: dict[str, Any], others: int | None = None) -> Any:
        """The answer of the least busy address; of another one where that cannot be reached, or is cut off."""
        import openai

        endpoint = self.endpoint
        if not self.servers:
            self.servers = [_Server(endpoint, url) for url in ([endpoint.start()] if endpoint.start else endpoint.urls)]
            for server in self.servers:
                await self.stack.enter_async_context(server.client)
        body = {**request, "extra_body": endpoint.extra}
        body[self.limit_field] = body.pop("max_tokens")
        others, now = len(self.servers) if others is None else others, time.monotonic()
        server = min(self.servers, key=lambda server: (server.away_until > now, server.flying))
        server.flying += 1
        try:
            # a server may send a byte a second for ever
            async with server.places, asyncio.timeout(endpoint.timeout * (endpoint.max_retries + 1)):
                answer = await server.client.chat.completions.create(**body)
            self.unreached = 0
            return answer
        except (TimeoutError, openai.APITimeoutError):
            raise self._unreached(f"no answer in time: {endpoint.timeout:g} s, several times") from None
        except openai.APIConnectionError as error:
            server.away_until = time.monotonic() + _AWAY_SECONDS
            if others and not self.stopped:
                return await self._post(request, others - 1)
            raise self._unreached(f"no connection: {server.url}: {error.__cause__ or error!r}"[:400]) from None
        except openai.APIStatusError as error:
            told = self._hide(str(error.body if isinstance(error.body, str) else error))[:400]
            if error.status_code != 400 or "max_tokens" not in body or "max_completion_tokens" not in told:
                raise self._refused(server.url, error.status_code, told) from None
            self.limit_field = "max_completion_tokens"  # what newer endpoints call it
            return await self._post(request)
        except ValueError:
            return None  # what is no JSON is no answer
        finally:
            server.flying -= 1

    def _unreached(self, fault: str) -> Exception:
        self.unreached += 1
        if self.unreached < max(10, 2 * self.endpoint.places):
            return _Failure(fault)
        return TraitError(f"{self.unreached} requests in a row had no answer, the last: {fault}. Run again when it is back.")

    def _refused(self, url: str, status: int, told: str) -> Exception:
        if status not in (401, 404):
            return _Failure(f"endpoint error {status}: {told}")
        return TraitError(
            f"{url} refused the API key, or knows no model '{self.endpoint.model}' ({status}: {told}). Put a valid key into "
            f"the environment variable {KEY_VARIABLE}, or correct teacher_base_url and teacher_model."
        )

    def _read(self, answer: Any, size: int) -> Completion:
        try:
            choice = answer.choices[0]
            content = choice.message.content or choice.message.refusal or ""  # or all its tokens went into thinking
            content = self._hide(content.encode("utf-8", "replace").decode())
        except (AttributeError, IndexError, TypeError):
            raise _Failure("not the OpenAI protocol: the answer has no choices[0].message.content") from None
        tokens = [getattr(answer.usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
        if not all(type(count) is int and 0 <= count < 10**8 for count in tokens):
            tokens = [size // 3 + 1, len(content.encode()) // 3 + 1]
        return Completion(content, str(choice.finish_reason)[:40], *tokens)

    def _hide(self, text: str) -> str:
        return text.replace(self.key, "[key]") if len(self.key) >= 8 else text  # shorter ones are 'EMPTY' and the like


def again(messages: Sequence[Message], content: str, fault: str) -> list[Message]:
    """The conversation gone on with: what was answered, and why that is not taken."""
    told = f"That cannot be used: {fault[:500]}. Write it again without this fault, in the same form, and nothing else."
    return [*messages, {"role": "assistant", "content": content or "(empty)"}, {"role": "user", "content": told}]


def without_thoughts(content: str) -> str:
    """An answer without what was thought aloud before it; nothing where the thinking never ended."""
    return content.rpartition("</think>")[2].partition("<think>")[0].strip()


def clean(text: str) -> str:
    """Valid UTF-8 without lone surrogates, blank lines or trailing space, so that a text keeps its own layout."""
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"[ \t]*\n\s*", "\n", text.strip())


def _addresses(base_urls: str) -> list[str]:
    return [url.strip().rstrip("/") for url in base_urls.split(",") if url.strip()]
