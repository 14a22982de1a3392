"""Where a model's answers come from: transformers in this process, vLLM, or a server with OpenAI's completions protocol.

Each is a class of lm-eval, so that requests, scores and marks are the same; a backend adds what names the model in the
cache (`identity`: never an address, never a key), loads the model when it is first needed, and turns a server's failures
into one error. Scores of different backends agree to rounding, and are kept apart all the same.
"""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import os
from pathlib import Path
from typing import Any

from trait_kit.engine.files import TraitError
from trait_kit.evaluation import harness
from trait_kit.params import EvaluationParams

_ATTEMPTS = 3  # of a request, each of at most `endpoint_timeout` seconds


class Backend:
    """The model of one arm, in a folder; for an endpoint the folder's tokenizer."""

    def __init__(self, params: EvaluationParams, folder: Path, arm: str, model_digest: str) -> None:
        self.params, self.folder = params, folder
        self.precision = harness.resolve_precision(params.precision)
        self.whose = f"The model of arm '{arm}' ({folder})"
        self.identity = [model_digest, self.precision]
        if params.backend == "vllm":
            self.identity.append("vllm")
        if params.backend == "endpoint":
            self.served = params.endpoint_model.replace("{arm}", arm)
            if arm != "base" and self.served == params.endpoint_model:
                raise TraitError(
                    f"endpoint_model is {self.served} for every arm. Serve each arm, and put {{arm}} into the name."
                )
            self.identity = ["endpoint", self.served, params.endpoint_version]
            self.whose = f"The endpoint's model {self.served}"

    @functools.cached_property
    def model(self) -> Any:
        """The language model, loaded at first use."""
        if self.params.backend == "transformers":
            return harness.load_model(self.folder, batch_size=self.params.batch_size, precision=self.precision)
        if self.params.backend == "vllm":
            return _load_vllm(self.folder, self.precision)
        return _load_endpoint(self.folder, self.params, self.served)

    @property
    def slice_items(self) -> int:
        """Items that are asked and kept at once."""
        return 512 if self.params.backend == "vllm" else getattr(self.model, "slice_items", 64)

    def run(self, tasks: dict[str, Any], places: dict[str, list[int]]) -> dict[str, list[dict[str, Any]]]:
        """`harness.run`; for an endpoint in a thread, since its requests need an event loop and a notebook has one."""
        if self.params.backend != "endpoint":
            return harness.run(self.model, tasks, places)
        model = self.model
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            try:
                return thread.submit(harness.run, model, tasks, places).result()
            except TraitError:
                raise
            except Exception as error:  # of the connection, or of an answer that is none: the client raises many kinds
                raise TraitError(
                    f"The endpoint of {self.served} gave no usable answer: {model.without_secrets(error)}. "
                    "See that endpoint_url is a completions address that answers and endpoint_model its name; finished "
                    "items are kept."
                ) from None

    def close(self) -> None:
        """Free the model's memory."""
        if self.__dict__.pop("model", None) is not None:
            gc.collect()


def _load_vllm(folder: Path, precision: str) -> Any:
    try:
        from lm_eval.models.vllm_causallms import VLLM
    except ImportError as error:
        raise TraitError(
            f"backend is vllm, which cannot be imported ({error}). Run `python -m pip install vllm` on a machine with a GPU."
        ) from None
    with harness.quiet():
        return VLLM(pretrained=str(folder), dtype=precision, batch_size="auto")


def _load_endpoint(folder: Path, params: EvaluationParams, served: str) -> Any:
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.models.utils import resolve_max_length
    from transformers import AutoConfig, AutoTokenizer

    class Completions(LocalCompletionsAPI):
        """lm-eval's client, with the key from its variable and answers that are looked at before they are believed."""

        @property
        def api_key(self) -> str:
            return os.environ.get(params.endpoint_key_variable, "")

        @staticmethod
        def parse_logprobs(outputs: Any, tokens: Any = None, ctxlens: Any = None, **more: Any) -> list[tuple[float, bool]]:
            answers = outputs if isinstance(outputs, list) else [outputs]
            choices = [choice for answer in answers for choice in answer["choices"]]
            for choice, asked in zip(choices, tokens, strict=True):
                given = (choice.get("logprobs") or {}).get("token_logprobs") or []
                if len(given) != len(asked) + 1 or not all(isinstance(value, float | int) for value in given[1:]):
                    raise _NoLogProbabilities
            return LocalCompletionsAPI.parse_logprobs(outputs, tokens=tokens, ctxlens=ctxlens, **more)

        def _loglikelihood_tokens(self, requests: list[Any], **more: Any) -> list[tuple[float, bool]]:
            try:
                return super()._loglikelihood_tokens(requests, **more)
            except _NoLogProbabilities:
                raise TraitError(
                    f"The endpoint of {served} gives no log-probabilities of the prompt's tokens (echo with "
                    "logprobs). Serve the model with a server that does, such as `vllm serve`, or set likelihood: false and "
                    "generate_items."
                ) from None

        def without_secrets(self, error: Exception) -> str:
            said = f"{type(error).__name__}: {error}"
            for secret in (self.api_key, self.base_url):
                said = said.replace(secret, "...") if secret else said
            return said[:300]

    with harness.quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return Completions(
            base_url=params.endpoint_url.rstrip("/").removesuffix("/completions") + "/completions",
            model=served,
            tokenizer=str(folder),
            tokenizer_backend="huggingface",
            max_length=resolve_max_length(AutoConfig.from_pretrained(folder), tokenizer, default=2_048),
            add_bos_token=tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id],
            num_concurrent=max(2, params.batch_size),
            timeout=max(1, round(params.endpoint_timeout)),
            max_retries=_ATTEMPTS,
        )


class _NoLogProbabilities(Exception):
    """An answer without them."""
