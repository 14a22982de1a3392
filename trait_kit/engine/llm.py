"""The one client for language models: any endpoint of the OpenAI protocol, asked many things at once, each paid for once.

What comes back is bounded in bytes, time and money, and never holds the API key. One request that fails is a fault with
its reason; only what would fail for every request (a refused key, an unknown model) raises.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import functools
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trait_kit.engine import child, llama
from trait_kit.engine.files import TraitError, digest
from trait_kit.engine.ledger import Completion, Estimate, Ledger, NoAnswer, Price, is_private

KEY_VARIABLE = "OPENAI_API_KEY"
MAX_CONTENT = 20_000  # characters of an answer that are looked at
BYTES_A_TOKEN = 4  # for estimates, in any script
TOKENS_PER_SECOND = 50  # of one request, at a busy server
SAY_EVERY = 60.0  # seconds: how far the asking is
READS = 3.5  # tokens read while one is written (3 to 4, measured)

Message = dict[str, str]


def again(messages: Sequence[Message], content: str, fault: str) -> list[Message]:
    """The conversation, with what was answered and why that is not taken."""
    told = f"That cannot be used: {fault[:500]}. Write it again without this fault, in the same form, and nothing else."
    return [*messages, {"role": "assistant", "content": content or "(empty)"}, {"role": "user", "content": told}]


@dataclass(frozen=True)
class Request:
    """A prompt or a conversation so far, and what makes a value of the answer (ValueError: not usable).

    `retry` makes the next conversation of the last one, its answer and its fault.
    """

    asked: str | Sequence[Message]
    read: Callable[[str], Any] = str
    retry: Callable[[Sequence[Message], str, str], list[Message]] = again

    def messages(self) -> list[Message]:
        return [{"role": "user", "content": self.asked}] if isinstance(self.asked, str) else list(self.asked)


@dataclass(frozen=True)
class Reply:
    """The end of a conversation: what was read from the answer, or the fault ('kind: details'), and the cost."""

    value: Any  # None where there is a fault
    fault: str
    content: str = ""  # the last answer as it came, without what was thought aloud
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0
    refused: tuple[str, ...] = ()  # why earlier answers were not taken


@dataclass(frozen=True)
class Endpoint:
    """One model at one address, which gets `concurrency` requests at once, and its ledger.

    The API key is read from the environment when it is needed and kept nowhere; a private network needs none.
    """

    base_url: str
    model: str
    concurrency: int = 8
    timeout: float = 300.0  # seconds a request
    max_tokens: int = 1_024
    extra: dict[str, Any] = field(default_factory=dict)  # more of each request's body
    ledger: Ledger = field(default_factory=Ledger)
    max_retries: int = 3
    # starts its server and says the address, when first asked
    start: Callable[[], str] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"https?://[^/\s,][^\s,]*", self.base_url):
            raise TraitError(f"teacher_base_url is '{self.base_url}'; write it like http://127.0.0.1:8000/v1.")
        self.key()

    @classmethod
    def of(cls, params: Any, folder: Path | None = None) -> "Endpoint":
        """The endpoint that `teacher_*` parameters name, its paid answers in `folder`."""
        address = params.teacher_base_url or ("http://127.0.0.1:0/v1" if params.teacher_serve else "")
        if address and not params.teacher_price and not is_private(address):
            raise TraitError(
                f"teacher_price does not say what '{params.teacher_model}' at {address} costs. Set it to [1.5, 6.0], in USD "
                "for a million tokens in and out, or to [0, 0]."
            )
        named = ("model", "concurrency", "max_tokens", "extra")
        price = Price(*params.teacher_price or ())
        ledger = Ledger(folder and folder / "teacher_answers.sqlite", price, params.max_cost_usd)
        return cls(address, **{name: getattr(params, f"teacher_{name}") for name in named}, ledger=ledger)

    def key(self) -> str:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (key.isascii() and key.isprintable()) or not (key or is_private(self.base_url)):
            raise TraitError(
                f"The environment variable {KEY_VARIABLE} is not set, or holds no key that can be sent in a header. "
                f"Put the API key for {self.base_url} into it (any word where none is needed), and start again."
            )
        return key

    def name_of(self, messages: list[Message]) -> str:
        return digest([{"model": self.model, "messages": messages, "max_tokens": self.max_tokens}, self.extra])

    def estimate(self, requests: Sequence[Request], answer_tokens: int) -> Estimate:
        """The bill of asking each thing once that has no kept answer."""
        new = [one for one in map(Request.messages, requests) if not self.ledger.find(self.name_of(one))]
        self.ledger.used.clear()  # it uses none
        tokens_in = sum(len(one["content"].encode()) for messages in new for one in messages) // BYTES_A_TOKEN
        tokens_out = answer_tokens * len(new)
        hours = (tokens_out + tokens_in / READS) / self.tokens_per_second / 3600 if new else 0.0
        return Estimate(len(new), tokens_in, tokens_out, self.ledger.price.of(tokens_in, tokens_out), hours)

    @functools.cached_property
    def tokens_per_second(self) -> float:
        """Of all requests; measured where the kit starts the server."""
        typical = TOKENS_PER_SECOND * self.concurrency
        if not self.start:
            return typical
        self.start()
        counts = (map(str, range(number, number + 99)) for number in range(self.concurrency))
        asked, started = [Request(f"Go on: {' '.join(count)}") for count in counts], time.monotonic()
        replies = ask(asked, replace(self, max_tokens=48, ledger=Ledger()))
        return (
            sum(one.tokens_out + one.tokens_in / READS for one in replies) / (time.monotonic() - started)
            or typical
        )


def ask(requests: Sequence[Request], endpoint: Endpoint, attempts: int = 1, *, kept: bool = False) -> list[Reply]:
    """A reply to each request, in their order; what a reader refuses is asked again, told why, up to `attempts` times.

    In a thread of its own, so that it works under a running event loop (Jupyter). After an error or Ctrl-C nothing new is
    asked, and what is in flight (and paid) reaches the ledger. `kept`: nobody is asked.
    """
    session, count = _Session(endpoint, attempts, kept), len(requests)
    began = said = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        future = executor.submit(asyncio.run, session.run(requests))
        try:
            while concurrent.futures.wait([future], timeout=1.0).not_done:
                if (now := time.monotonic()) - said > SAY_EVERY and (new := session.done) >= endpoint.concurrency:
                    said, done = now, session.known + new
                    left = f"about {(now - began) / new * (count - done) / 60:.0f} min left"
                    print(f"Asked {endpoint.model}: {done:,} of {count:,}; {left}", flush=True)
        finally:
            session.stopped = True
    return future.result()


@contextlib.contextmanager
def served(params: Any, folder: Path) -> Iterator[Endpoint]:
    """The endpoint of `params`; a server of `teacher_serve` starts when it is needed, and ends with the block."""
    endpoint = Endpoint.of(params, folder)
    with contextlib.ExitStack() as stack:
        stack.callback(endpoint.ledger.close)

        @functools.cache
        def start() -> str:
            if params.teacher == "local":
                llama.model_file()
            print(f"Starting {endpoint.model} for what has no kept answer ...", flush=True)
            command, log = shlex.split(params.teacher_serve), folder / "teacher_server.log"
            return stack.enter_context(child.serving(command, "The language model's server", log)) + "/v1"

        yield replace(endpoint, start=start if params.teacher_serve else None)


class _Session:
    def __init__(self, endpoint: Endpoint, attempts: int, kept: bool) -> None:
        self.endpoint, self.ledger, self.attempts, self.stopped = endpoint, endpoint.ledger, attempts, kept
        self.key, self.limit_field = endpoint.key(), "max_tokens"
        self.done = self.known = self.unreached = 0
        self.places = asyncio.Semaphore(endpoint.concurrency)
        self.asking: dict[str, asyncio.Lock] = collections.defaultdict(asyncio.Lock)

    async def run(self, requests: Sequence[Request]) -> list[Reply]:
        talks = [asyncio.ensure_future(self._converse(request)) for request in requests]
        await asyncio.sleep(0)  # each reads what is kept
        self.known, self.done = self.done, 0
        try:
            return await asyncio.gather(*talks)
        finally:
            self.stopped = True
            await asyncio.gather(*talks, return_exceptions=True)
            if "client" in vars(self):
                await self.client.close()

    async def _converse(self, request: Request) -> Reply:
        messages, paid, refused = request.messages(), [], []
        value, fault, content = None, "", ""
        while len(paid) < self.attempts:
            try:
                completion = await self._complete(messages)
            except NoAnswer as error:
                fault = self._hide(str(error))
                break
            paid.append(completion)
            content = without_thoughts(completion.content)[:MAX_CONTENT]
            try:
                if completion.finish_reason in ("length", "content_filter"):
                    raise ValueError(f"cut off: {completion.finish_reason}")
                value, fault = request.read(content), ""
                break
            except ValueError as error:
                refused.append(fault := str(error))
            messages = request.retry(messages, content, fault)
        self.done += 1
        tokens = sum(answer.tokens_in for answer in paid), sum(answer.tokens_out for answer in paid)
        return Reply(value, fault, content, *tokens, self.ledger.price.of(*tokens), tuple(refused))

    async def _complete(self, messages: list[Message]) -> Completion:
        key = self.endpoint.name_of(messages)
        async with self.asking[key]:  # two that ask the same at once pay once
            if found := self.ledger.find(key):
                return found
            # a token is a byte at least
            size = sum(len(message["content"].encode()) + 32 for message in messages)
            async with self.places:
                if self.stopped:
                    raise NoAnswer("not asked: no answer is kept")
                async with self.ledger.reserved(self.ledger.price.of(size, self.endpoint.max_tokens)):
                    completion = self._read(await self._post(messages), size)
                    self.ledger.record(key, completion)
                    return completion

    async def _post(self, messages: list[Message]) -> Any:
        """What the endpoint answers; None if no JSON."""
        import openai

        endpoint = self.endpoint
        body = {"model": endpoint.model, "messages": messages, self.limit_field: endpoint.max_tokens}
        try:
            # a server may send a byte a second for ever
            async with asyncio.timeout(endpoint.timeout * (endpoint.max_retries + 1)):
                answer = await self.client.chat.completions.create(**body, extra_body=endpoint.extra)
            self.unreached = 0
            return answer
        except (TimeoutError, openai.APIConnectionError) as error:
            away = f"no connection: {self.client.base_url}: {error.__cause__ or error!r}"[:400]
            late = isinstance(error, TimeoutError | openai.APITimeoutError)
            fault = f"no answer in time: {endpoint.timeout:g} s, several times" if late else away
            self.unreached += 1
            if self.unreached < max(10, 2 * endpoint.concurrency):
                raise NoAnswer(fault) from None
            raise TraitError(
                f"{self.unreached} requests in a row had no answer, the last: {fault}. Run again when it is back."
            ) from None
        except openai.APIStatusError as error:
            said = error.body if isinstance(error.body, str) else error
            status, told = error.status_code, self._hide(str(said))[:400]
            if status == 400 and "max_tokens" in body and "max_completion_tokens" in told:
                self.limit_field = "max_completion_tokens"  # what newer endpoints call it
                return await self._post(messages)
            if status not in (401, 404):
                raise NoAnswer(f"endpoint error {status}: {told}") from None
            raise TraitError(
                f"{self.client.base_url} refused the API key, or knows no model '{endpoint.model}' ({status}: {told}). "
                f"Put a valid key into the variable {KEY_VARIABLE}, or correct teacher_base_url and teacher_model."
            ) from None
        except ValueError:
            return None

    @functools.cached_property
    def client(self) -> Any:
        import openai

        endpoint = self.endpoint
        url = endpoint.start() if endpoint.start else endpoint.base_url
        return openai.AsyncOpenAI(
            base_url=url,
            api_key=self.key or "none",
            max_retries=endpoint.max_retries,
            timeout=openai.Timeout(endpoint.timeout, connect=min(endpoint.timeout, 10.0)),
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not is_private(url)),
        )

    def _read(self, answer: Any, size: int) -> Completion:
        try:
            choice = answer.choices[0]
            content = choice.message.content or choice.message.refusal or ""  # '' where all went into thinking
            content = self._hide(content.encode("utf-8", "replace").decode())
        except (AttributeError, IndexError, TypeError):
            raise NoAnswer("not the OpenAI protocol: the answer has no choices[0].message.content") from None
        tokens = [getattr(answer.usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
        if not all(type(count) is int and 0 <= count < 10**8 for count in tokens):
            tokens = [size // 3 + 1, len(content.encode()) // 3 + 1]
        return Completion(content, str(choice.finish_reason)[:40], *tokens)

    def _hide(self, text: str) -> str:
        # shorter ones are 'EMPTY' and the like
        return text.replace(self.key, "[key]") if len(self.key) >= 8 else text


def without_thoughts(content: str) -> str:
    """An answer without what was thought aloud before it; empty where the thinking never ended."""
    return content.rpartition("</think>")[2].partition("<think>")[0].strip()


def clean(text: str) -> str:
    """A text without lone surrogates, blank lines or trailing space, in its own layout."""
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"\s*\n", "\n", text.strip())
