"""Ask any endpoint of the OpenAI protocol (vLLM, SGLang, a vendor), whatever the endpoint does.

What comes back is bounded in bytes, in time and in money, paid for once (`Ledger`), and never holds the API key. One
request that fails is a fault with its reason; only what would fail for every request (a refused key, an unknown model)
raises TraitError.
"""

from __future__ import annotations

import json
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from trait_kit.engine.exchange import clean
from trait_kit.engine.files import TraitError, digest
from trait_kit.engine.ledger import CapReached, Completion, Ledger
from trait_kit.engine.money import Estimate, addresses, prices
from trait_kit.engine.servers import Answer, Failure, Servers, is_loopback
from trait_kit.params import TeacherParams

_MAX_KEPT = 20_000  # characters of an answer that are kept
_UNREACHABLE = ("no connection", "no answer in time")
_NOT_YET = "http://127.0.0.1:0/v1"  # of a server that the kit will start
Message = dict[str, str]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Reply:
    """The end of one conversation: what was read from the answer, or the fault ('kind: details'), and what it cost."""

    value: Any  # None where there is a fault
    fault: str
    content: str  # the last answer as it came
    tokens_in: int
    tokens_out: int
    cost_usd: float


class Endpoint:
    """One model at one or several addresses (separated by commas), each of which gets `concurrency` requests at once.

    No server-side JSON mode is asked for, since not every server has one: the reply is parsed strictly, and one repair
    round follows a bad one. An answer belongs to the model, the messages, max_tokens and the temperature, wherever it came
    from: a cache is good for another address of the same model. The API key is read from the environment when the endpoint
    is made, and is cut out of every text that is kept; on this machine's own addresses, and where `key_variable` is empty,
    no key is needed.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout: float = 120.0,
        max_tokens: int = 4_096,
        temperature: float | None = None,
        usd_per_million_in: float = 0.0,
        usd_per_million_out: float = 0.0,
        max_cost_usd: float = 0.0,
        max_retries: int = 3,
    ):
        self.urls = addresses(base_url)
        for url in self.urls or [base_url]:
            if not re.match(r"https?://[^/]", url):
                raise TraitError(f"teacher_base_url is '{url}'; write it like http://127.0.0.1:8000/v1.")
        self.model = self.name = model
        self.usd_per_million_in, self.usd_per_million_out = usd_per_million_in, usd_per_million_out
        self.max_cost_usd, self.max_tokens, self.temperature = max_cost_usd, max_tokens, temperature
        self._limit_field = "max_tokens"
        self._key_variable = key_variable
        self._key = _read_key(key_variable, self.urls)
        self._servers = Servers(self.urls, self._key, places=concurrency, timeout=timeout, max_retries=max_retries)

    @classmethod
    def of(cls, params: TeacherParams) -> Self:
        """The endpoint that a notebook's parameters name; with `teacher_serve`, one to estimate with until it is served."""
        price_in, price_out = prices(params)
        return cls(
            params.teacher_base_url or (_NOT_YET if params.teacher_serve else ""),
            params.teacher_model,
            key_variable=params.teacher_key_variable,
            concurrency=params.teacher_concurrency,
            timeout=params.teacher_timeout,
            max_tokens=params.teacher_max_tokens,
            temperature=params.teacher_temperature,
            usd_per_million_in=price_in,
            usd_per_million_out=price_out,
            max_cost_usd=params.max_cost_usd,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({','.join(self.urls)!r}, {self.model!r})"

    @property
    def concurrency(self) -> int:
        """Requests in flight, at all addresses together."""
        return self._servers.places * len(self.urls)

    def converse(
        self, asked: str | list[Message], read: Callable[[str], Any], repair: Callable[[str], str], ledger: Ledger
    ) -> Reply:
        """Ask, `read` the answer, and where that is a ValueError tell the model so (`repair`) and ask once more.

        `asked` is a prompt, or a conversation so far that ends with what the model is to answer.
        """
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
        paid = {"tokens_in": 0, "tokens_out": 0, "cost_usd": 0.0}
        fault = content = ""
        for attempt in range(2):
            try:
                completion = self._complete(messages, ledger)
            except CapReached:
                fault = f"cost cap: not asked, the next request could pass max_cost_usd = {ledger.cap_usd:g}"
                return Reply(None, fault, content[:_MAX_KEPT], **paid)
            except Failure as failure:
                return Reply(None, self._hide(str(failure)), content[:_MAX_KEPT], **paid)
            content = clean(completion.content)
            paid["tokens_in"] += completion.tokens_in
            paid["tokens_out"] += completion.tokens_out
            paid["cost_usd"] += ledger.cost(completion.tokens_in, completion.tokens_out)
            try:
                return Reply(read(content), "", content[:_MAX_KEPT], **paid)
            except ValueError as error:
                fault = str(error)
            if completion.finish_reason in ("length", "content_filter"):
                fault += f"; the endpoint stopped it ({completion.finish_reason})"
            if attempt == 0:
                messages += [
                    {"role": "assistant", "content": content[:_MAX_KEPT] or "(empty)"},
                    {"role": "user", "content": repair(fault)},
                ]
        return Reply(None, f"unusable answer: after one repair, {fault}", content[:_MAX_KEPT], **paid)

    def estimate(self, requests: int, tokens_in: int, tokens_out: int) -> Estimate:
        """A bill of requests that have not been made, at this endpoint's prices."""
        per_million = self.usd_per_million_in, self.usd_per_million_out
        return Estimate.of(requests, tokens_in, tokens_out, per_million, self.concurrency)

    def _complete(self, messages: list[Message], ledger: Ledger) -> Completion:
        request: dict[str, Any] = {"model": self.model, "messages": messages, "max_tokens": self.max_tokens}
        if self.temperature is not None:
            request["temperature"] = self.temperature
        key = digest(request)
        completion = ledger.find(key)
        if completion is not None:
            return completion
        size = sum(len(message["content"].encode()) + 32 for message in messages)  # a token is a byte at least
        with ledger.reserve(ledger.cost(size, self.max_tokens)):
            completion = self._ask(request, size)
            ledger.record(key, completion)
        return completion

    def _ask(self, request: dict[str, Any], size: int) -> Completion:
        field = self._limit_field  # other threads may learn a new one meanwhile
        answer = self._post(request, field)
        if answer.status == 400 and field == "max_tokens" and b"max_completion_tokens" in answer.body:
            self._limit_field = "max_completion_tokens"  # what newer endpoints call it
            answer = self._post(request, self._limit_field)
        if answer.status == 200:
            return self._read_completion(answer.body, size)
        told = self._hide(_told(answer.body))[:300]
        if answer.status == 401:
            raise TraitError(
                f"{answer.url} refused the API key (401). Put a valid key into the environment variable "
                f"{self._key_variable or 'that teacher_key_variable names'}. It said: {told}"
            )
        if answer.status == 404:
            raise TraitError(f"{answer.url} knows no model '{self.model}' or no such path (404): {told}")
        raise Failure(f"endpoint error {answer.status}: {told}")

    def _post(self, request: dict[str, Any], limit_field: str) -> Answer:
        assert self.urls != [_NOT_YET], "teacher_serve: ask inside local_server.serving"
        limited = {**request, limit_field: self.max_tokens}
        if limit_field != "max_tokens":
            del limited["max_tokens"]
        return self._servers.post("/chat/completions", json.dumps(limited).encode())

    def _read_completion(self, body: bytes, size: int) -> Completion:
        try:
            answer = json.loads(body)
            choice = answer["choices"][0]
            content = choice["message"].get("content")
            if content is None:  # it refused, or all its tokens went into thinking; either is paid for
                content = str(choice["message"].get("refusal") or "")
            if not isinstance(content, str):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise Failure("not the OpenAI protocol: the answer has no choices[0].message.content") from None
        usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
        tokens = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
        known = all(isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 10**8 for count in tokens)
        tokens_in, tokens_out = tokens if known else (size // 3 + 1, len(content.encode("utf-8", "replace")) // 3 + 1)
        return Completion(self._hide(content), str(choice.get("finish_reason"))[:40], tokens_in, tokens_out, not known)

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text  # shorter ones are 'EMPTY' and the like


def ask_all(
    count: int,
    ask: Callable[[int], Result],
    *,
    fault_of: Callable[[Result], str],
    give_up: Callable[[str], Result],
    concurrency: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Result]:
    """`ask(0)` .. `ask(count - 1)`, in this order, each as soon as those before it are there.

    Threads, so that it works under a running event loop (Jupyter) too, and a quarter more of them than `concurrency`, so
    that a request is ready wherever one ends; the endpoint holds them to its places. On an error or Ctrl-C nothing new
    starts, and what is in flight (and paid) reaches the cache. When the endpoint cannot be reached many times in a row, the
    rest is not asked: each is `give_up(reason)` instead.
    """
    failures, stopped, lock = 0, False, threading.Lock()
    patience = max(10, 2 * concurrency)
    places = iter(range(count))
    finished: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()

    def answer(place: int) -> Result:
        nonlocal failures
        if failures >= patience:
            return give_up(f"endpoint away: not asked, since {patience} requests in a row had no answer")
        result = ask(place)
        with lock:
            failures = failures + 1 if fault_of(result).startswith(_UNREACHABLE) else 0
        return result

    def work() -> None:
        while not stopped:
            with lock:
                place = next(places, None)
            if place is None:
                return
            try:
                finished.put((place, answer(place), None))
            except BaseException as error:
                finished.put((place, None, error))
                return

    if concurrency == 1:
        for place in places:
            result = answer(place)
            if progress:
                progress(place + 1, count)
            yield result
        return
    threads = [
        threading.Thread(target=work, name=f"teacher-{number}", daemon=True)
        for number in range(min(count, concurrency + concurrency // 4))
    ]
    early: dict[int, Result] = {}
    expected = 0
    try:
        for thread in threads:
            thread.start()
        for done in range(1, count + 1):
            place, result, error = finished.get()
            if error:
                raise error
            early[place] = result
            if progress:
                progress(done, count)
            while expected in early:
                yield early.pop(expected)
                expected += 1
    finally:
        stopped = True
        for thread in threads:
            thread.join()


def _told(body: bytes) -> str:
    """An error's message as most servers send it, else whatever came instead."""
    text = body[:2_000].decode("utf-8", "replace")
    try:
        error = json.loads(body)
        error = error.get("error", error)
        return str(error if isinstance(error, str) else error.get("message") or error.get("detail") or text)
    except (ValueError, AttributeError, RecursionError):
        return text


def _read_key(variable: str, urls: list[str]) -> str:
    key = os.environ.get(variable, "").strip() if variable else ""
    if key:
        if not (key.isascii() and key.isprintable()):
            raise TraitError(f"The environment variable {variable} does not hold a key that can be sent in a header.")
        return key
    for url in urls:
        if variable and not is_loopback(url):
            raise TraitError(
                f"The environment variable {variable} is not set. Put the API key for {url} into it and start again "
                "(the parameter teacher_key_variable chooses another variable; leave it empty where no key is needed)."
            )
    return ""
