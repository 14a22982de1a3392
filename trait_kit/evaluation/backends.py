"""Where a model's answers come from: transformers in this process, vLLM, or a server with OpenAI's completions protocol.

Each is a class of lm-eval, so that requests, scores and marks are the same. Answers are kept by request, in one file a
model: a killed evaluation goes on with the next request, more items repeat nothing, and arms that share a model share its
answers. Scores of different backends agree to rounding, and are kept apart all the same.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import sqlite3
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval.api.model import CacheHook, CachingLM
from lm_eval.evaluator import evaluate
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.models.utils import resolve_max_length
from sqlitedict import SqliteDict
from transformers import AutoConfig, AutoTokenizer

from trait_kit.engine.closure import code_digest
from trait_kit.engine.files import TraitError, digest
from trait_kit.engine.llm import KEY_VARIABLE
from trait_kit.evaluation.scoring_model import load_model, quiet
from trait_kit.models import fast_precision, model_digest
from trait_kit.params import EvaluationParams

_ATTEMPTS, _TIMEOUT = 3, 120  # of a request to an endpoint; seconds each


class KeptLM(CachingLM):
    """The model of one arm behind lm-eval's cache, in JSON instead of pickles, as a run's folder may come from elsewhere.

    `folder` holds the model; for an endpoint its tokenizer. The cache knows a model by what its answers depend on, never by
    an address or a key; marks are not in it, so that they are always those of today's code.
    """

    def __init__(self, params: EvaluationParams, folder: Path, arm: str, cache: Path, report: Callable[[str], None]) -> None:
        precision = fast_precision() if params.precision == "auto" else params.precision
        self.served, self.whose = "", f"The model of arm '{arm}' ({folder})"
        identity = [params.backend, model_digest(folder), precision, version("lm-eval")]
        if params.backend == "transformers":
            identity.append(code_digest("trait_kit.evaluation.scoring_model", without=["trait_kit.models"]))
            self.lm = load_model(folder, batch_size=params.batch_size, precision=precision)
        elif params.backend == "vllm":
            self.lm = _vllm(folder, precision)
        else:
            self.served = params.endpoint_model.replace("{arm}", arm)
            if arm != "base" and self.served == params.endpoint_model:
                raise TraitError(
                    f"endpoint_model is {self.served} for every arm. Serve each, and put {{arm}} into the name."
                )
            self.whose = f"The endpoint's model {self.served}"
            identity = ["endpoint", self.served, version("lm-eval")]
            self.lm = _endpoint(folder, params, self.served)
        self.cache_db = str(_sound(cache / f"{digest(identity)[:20]}.sqlite", report))
        self.dbdict = SqliteDict(self.cache_db, autocommit=True, encode=json.dumps, decode=json.loads)
        self.lm.set_cache_hook(_Hook(self))

    def samples(self, tasks: dict[str, Any], limit: int | None = None) -> dict[str, list[dict[str, Any]]]:
        """lm-eval's samples of each of its tasks, in the order of the documents.

        `evaluate` rather than `simple_evaluate`: the latter adds five seconds a call for a description of the machine.
        """
        if not self.served:
            with getattr(self.lm, "autocast", contextlib.nullcontext)():
                return self._samples(tasks, limit)
        with concurrent.futures.ThreadPoolExecutor(1) as thread:  # its requests need an event loop, and a notebook has one
            try:
                return thread.submit(self._samples, tasks, limit).result()
            except TraitError:
                raise
            except Exception as error:  # of the connection, or of an answer that is none: the client raises many kinds
                said = f"{type(error).__name__}: {error}"
                for secret in filter(None, (self.lm.api_key, self.lm.base_url)):
                    said = said.replace(secret, "...")
                raise TraitError(
                    f"The endpoint of {self.served} gave no usable answer: {said[:300]}. See that endpoint_url is a "
                    "completions address that answers and endpoint_model its name; finished requests are kept."
                ) from None

    def _samples(self, tasks: dict[str, Any], limit: int | None) -> dict[str, list[dict[str, Any]]]:
        with quiet():
            found = evaluate(self, {"tasks": tasks}, limit=limit, bootstrap_iters=0, log_samples=True)["samples"]
        return {name: sorted(samples, key=lambda sample: sample["doc_id"]) for name, samples in found.items()}

    def __enter__(self) -> KeptLM:
        return self

    def __exit__(self, *_error: object) -> None:
        self.dbdict.close()


class _Hook(CacheHook):
    """lm-eval's, which some of its clients also give the windows of a document, whose key is None."""

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        if req is not None:
            super().add_partial(attr, req, res)


def _sound(path: Path, report: Callable[[str], None]) -> Path:
    """The path of a database, or of none: what is torn or something else is removed, and that is said."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            found = database.execute("PRAGMA quick_check").fetchone()[0]
            if database.execute("SELECT name FROM sqlite_master").fetchone():
                database.execute("SELECT key, value FROM unnamed LIMIT 1")
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        path.unlink()
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
        report(f"{path} held no answers that can be used ({found[:200]}). It was removed; its requests are asked again.")
    return path


def _vllm(folder: Path, precision: str) -> Any:
    try:
        from lm_eval.models.vllm_causallms import VLLM
    except ImportError as error:
        raise TraitError(
            f"backend is vllm, which cannot be imported ({error}). Run `python -m pip install vllm` on a machine with a GPU."
        ) from None
    with quiet():
        return VLLM(pretrained=str(folder), dtype=precision, batch_size="auto")


def _endpoint(folder: Path, params: EvaluationParams, served: str) -> Any:
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        client = Completions(
            base_url=params.endpoint_url.rstrip("/").removesuffix("/completions") + "/completions",
            model=served,
            tokenizer=str(folder),
            tokenizer_backend="huggingface",
            max_length=resolve_max_length(AutoConfig.from_pretrained(folder), tokenizer, default=2_048),
            add_bos_token=tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id],
            num_concurrent=max(2, params.batch_size),
            timeout=_TIMEOUT,
            max_retries=_ATTEMPTS,
        )
    return client


class Completions(LocalCompletionsAPI):
    """lm-eval's client, with the key from the environment and answers that are looked at before they are believed."""

    @property
    def api_key(self) -> str:
        return os.environ.get(KEY_VARIABLE, "")

    @staticmethod
    def parse_logprobs(outputs: Any, tokens: Any = None, ctxlens: Any = None, **more: Any) -> list[tuple[float, bool]]:
        answers = outputs if isinstance(outputs, list) else [outputs]
        choices = [choice for answer in answers for choice in answer["choices"]]
        for choice, asked in zip(choices, tokens, strict=True):
            given = (choice.get("logprobs") or {}).get("token_logprobs") or []
            if len(given) != len(asked) + 1 or not all(isinstance(value, float | int) for value in given[1:]):
                raise TraitError(
                    "The endpoint gives no log-probabilities of the prompt's tokens (echo with logprobs). Serve the model "
                    "with a server that does, such as `vllm serve`, or set likelihood: false and generate_items."
                )
        return LocalCompletionsAPI.parse_logprobs(outputs, tokens=tokens, ctxlens=ctxlens, **more)
