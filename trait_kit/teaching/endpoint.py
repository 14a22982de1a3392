"""Ask any endpoint of the OpenAI protocol (vLLM, SGLang, a vendor), whatever the endpoint does.

What comes back is bounded in bytes, in time and in money, paid for once (`Ledger`), and never holds the API key. One
request that fails is a fault with its reason; only what would fail for every request (a refused key, an unknown model)
raises TraitError.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from trait_kit.errors import TraitError
from trait_kit.files import digest
from trait_kit.params import TeacherParams
from trait_kit.teaching.exchange import clean
from trait_kit.teaching.ledger import CapReached, Completion, Ledger

_MAX_BODY = 4_000_000  # bytes of an HTTP answer that are read
_MAX_KEPT = 20_000  # characters of an unusable answer that are kept with its fault
_UNREACHABLE = ("no connection", "no answer in time")
Answer = TypeVar("Answer")


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
    """One model of one endpoint.

    No server-side JSON mode is asked for, since not every server has one: the reply is parsed strictly, and one repair
    round follows a bad one. Retries (429 with Retry-After, 5xx, timeouts) are the openai client's. The API key is read
    from the environment when the endpoint is made, lives only in the client, and is cut out of every text that is kept; on
    this machine's own addresses, and where `key_variable` is empty, no key is needed.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout: float = 120.0,
        usd_per_million_in: float = 0.0,
        usd_per_million_out: float = 0.0,
        max_cost_usd: float = 0.0,
        max_completion_tokens: int = 4_096,
        max_retries: int = 3,
    ):
        from openai import OpenAI

        if not re.match(r"https?://[^/]", base_url):
            raise TraitError(f"teacher_base_url is '{base_url}'; write it like http://127.0.0.1:8000/v1.")
        if max_cost_usd and not (usd_per_million_in or usd_per_million_out):
            raise TraitError(
                "max_cost_usd is set, but usd_per_million_in and usd_per_million_out are 0, so nothing would ever reach "
                "the cap. Set the prices of the endpoint."
            )
        self.base_url, self.model, self.name = base_url, model, model
        self.concurrency, self.timeout = concurrency, timeout
        self.usd_per_million_in, self.usd_per_million_out = usd_per_million_in, usd_per_million_out
        self.max_cost_usd, self.max_completion_tokens = max_cost_usd, max_completion_tokens
        self._limit_field = "max_tokens"
        self._key_variable = key_variable
        self._key = _read_key(key_variable, base_url)
        self._client = OpenAI(base_url=base_url, api_key=self._key or "none", timeout=timeout, max_retries=max_retries)

    @classmethod
    def of(cls, params: TeacherParams, **options: Any) -> Self:
        """The endpoint that a notebook's parameters name."""
        return cls(
            params.teacher_base_url,
            params.teacher_model,
            key_variable=params.teacher_key_variable,
            concurrency=params.teacher_concurrency,
            timeout=params.teacher_timeout,
            usd_per_million_in=params.usd_per_million_in,
            usd_per_million_out=params.usd_per_million_out,
            max_cost_usd=params.max_cost_usd,
            **options,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r}, {self.model!r})"

    def converse(self, prompt: str, read: Callable[[str], Any], repair: Callable[[str], str], ledger: Ledger) -> Reply:
        """Ask, `read` the answer, and where that is a ValueError tell the model so (`repair`) and ask once more."""
        messages = [{"role": "user", "content": prompt}]
        paid = {"tokens_in": 0, "tokens_out": 0, "cost_usd": 0.0}
        fault = content = ""
        for attempt in range(2):
            try:
                completion = self._complete(messages, ledger)
            except CapReached:
                fault = f"cost cap: not asked, the next request could pass max_cost_usd = {ledger.cap_usd:g}"
                return Reply(None, fault, content[:_MAX_KEPT], **paid)
            except _Failure as failure:
                return Reply(None, str(failure), content[:_MAX_KEPT], **paid)
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

    def estimate(self, requests: int, tokens_in: int, tokens_out: int) -> dict[str, Any]:
        """A bill of requests that have not been made, at this endpoint's prices."""
        cost = (tokens_in * self.usd_per_million_in + tokens_out * self.usd_per_million_out) / 1e6
        return {"requests": requests, "tokens_in": tokens_in, "tokens_out": tokens_out, "cost_usd": cost}

    def _complete(self, messages: list[dict[str, str]], ledger: Ledger) -> Completion:
        limit = self.max_completion_tokens
        key = digest({"base_url": self.base_url, "model": self.model, "messages": messages, "max_tokens": limit})
        completion = ledger.find(key)
        if completion is not None:
            return completion
        size = sum(len(message["content"].encode()) + 32 for message in messages)  # a token is a byte at least
        with ledger.reserve(ledger.cost(size, limit)):
            completion = self._ask(messages, size)
            ledger.record(key, completion)
        return completion

    def _ask(self, messages: list[dict[str, str]], size: int) -> Completion:
        import openai

        try:
            field = self._limit_field  # other threads may learn a new one meanwhile
            try:
                body = self._read_body(messages, field)
            except openai.BadRequestError as error:
                if field == "max_completion_tokens" or "max_completion_tokens" not in str(error.message):
                    raise
                self._limit_field = "max_completion_tokens"  # what newer endpoints call max_tokens
                body = self._read_body(messages, self._limit_field)
        except openai.APITimeoutError:
            raise _Failure(f"no answer in time: {self.timeout:g} s, several times") from None
        except openai.APIStatusError as error:
            told = str(error.message)
            if told == f"Error code: {error.status_code}" and error.body:  # no message field: show what came instead
                told = error.body if isinstance(error.body, str) else json.dumps(error.body)
            told = self._hide(told)[:300]
            if error.status_code == 401:
                raise TraitError(
                    f"{self.base_url} refused the API key (401). Put a valid key into the environment variable "
                    f"{self._key_variable or 'that teacher_key_variable names'}. It said: {told}"
                ) from None
            if error.status_code == 404:
                raise TraitError(f"{self.base_url} knows no model '{self.model}' or no such path (404): {told}") from None
            raise _Failure(f"endpoint error {error.status_code}: {told}") from None
        except openai.APIConnectionError as error:
            raise _Failure(f"no connection: {self._hide(repr(error.__cause__ or error))[:300]}") from None
        except openai.OpenAIError as error:
            raise _Failure(f"endpoint error: {self._hide(str(error))[:300]}") from None
        return self._read_completion(body, size)

    def _read_body(self, messages: list[dict[str, str]], limit_field: str) -> bytes:
        """The body of the answer, bounded in bytes and in total time (a server may send one byte a second for ever)."""
        import openai

        chunks, total = [], 0
        request = {"model": self.model, "messages": messages, limit_field: self.max_completion_tokens}
        with self._client.chat.completions.with_streaming_response.create(**request) as response:
            deadline = time.monotonic() + self.timeout
            try:
                for chunk in response.iter_bytes(65_536):
                    total += len(chunk)
                    chunks.append(chunk)
                    if total > _MAX_BODY:
                        raise _Failure(f"answer too long: more than {_MAX_BODY:,} bytes")
                    if time.monotonic() > deadline:
                        raise _Failure(f"no answer in time: it was still arriving after {self.timeout:g} s")
            except (_Failure, openai.OpenAIError):
                raise
            except Exception as error:  # the HTTP library's own errors, which differ between versions of the client
                kind = "no answer in time" if "Timeout" in type(error).__name__ else "no connection"
                raise _Failure(f"{kind}: the answer broke off ({type(error).__name__})") from None
        return b"".join(chunks)

    def _read_completion(self, body: bytes, size: int) -> Completion:
        try:
            answer = json.loads(body)
            choice = answer["choices"][0]
            content = choice["message"].get("content")
            if content is None and choice["message"].get("refusal"):
                content = str(choice["message"]["refusal"])
            if not isinstance(content, str):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise _Failure("not the OpenAI protocol: the answer has no choices[0].message.content") from None
        usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
        tokens = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
        known = all(isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 10**8 for count in tokens)
        tokens_in, tokens_out = tokens if known else (size // 3 + 1, len(content.encode("utf-8", "replace")) // 3 + 1)
        return Completion(self._hide(content), str(choice.get("finish_reason"))[:40], tokens_in, tokens_out, not known)

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text  # shorter ones are 'EMPTY' and the like


def ask_all(
    count: int,
    ask: Callable[[int], Answer],
    *,
    fault_of: Callable[[Answer], str],
    give_up: Callable[[str], Answer],
    concurrency: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """`ask(0)` .. `ask(count - 1)`, in this order. Threads, so that it works under a running event loop (Jupyter) too.

    When the endpoint cannot be reached many times in a row, the rest is not asked: each is `give_up(reason)` instead.
    """
    answers: list[Any] = [None] * count
    failures, lock = 0, threading.Lock()
    patience = max(10, 2 * concurrency)

    def work(place: int) -> None:
        nonlocal failures
        if failures >= patience:
            answers[place] = give_up(f"endpoint away: not asked, since {patience} requests in a row had no answer")
            return
        answer = ask(place)
        with lock:
            failures = failures + 1 if fault_of(answer).startswith(_UNREACHABLE) else 0
        answers[place] = answer

    if concurrency == 1:
        for place in range(count):
            work(place)
            if progress:
                progress(place + 1, count)
    else:
        executor = ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="teacher")
        try:
            for done, future in enumerate(as_completed([executor.submit(work, place) for place in range(count)]), 1):
                future.result()
                if progress:
                    progress(done, count)
        finally:  # on an error or Ctrl-C: start nothing new, let what is in flight (and paid) reach the cache
            executor.shutdown(wait=True, cancel_futures=True)
    return answers


class _Failure(Exception):
    """A request that brought no completion; nothing is cached, so the next run asks again."""


def _read_key(variable: str, base_url: str) -> str:
    key = os.environ.get(variable, "").strip() if variable else ""
    if key:
        if not (key.isascii() and key.isprintable()):
            raise TraitError(f"The environment variable {variable} does not hold a key that can be sent in a header.")
        return key
    host = urlsplit(base_url).hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if variable and not local:
        raise TraitError(
            f"The environment variable {variable} is not set. Put the API key for {base_url} into it and start again "
            "(the parameter teacher_key_variable chooses another variable; leave it empty for an endpoint without a key)."
        )
    return ""
