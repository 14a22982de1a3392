"""Where a model's answers come from: transformers in this process, or a server with OpenAI's completions protocol.

Each is a class of lm-eval: requests, scores and marks are the same. Answers are kept by request, in one file a model: a
killed evaluation goes on with the next request, more items repeat nothing, arms that share a model share its answers.
Scores of different backends agree to rounding, and are kept apart all the same.
"""

import contextlib
import json
import sqlite3
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval.api.model import CachingLM
from lm_eval.evaluator import evaluate
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.models.utils import resolve_max_length
from sqlitedict import SqliteDict
from transformers import AutoConfig

from trait_kit.engine.files import TraitError, digest
from trait_kit.engine.machine import code_digest
from trait_kit.evaluation.scoring_model import Answer, answered, load_model, number_tokens, quiet
from trait_kit.models import fast_precision, load_tokenizer, model_digest
from trait_kit.params import EvaluationParams

_ATTEMPTS, _TIMEOUT = 3, 120  # of a request to an endpoint; seconds each


class KeptLM(CachingLM):
    """The model of one arm behind lm-eval's cache, in JSON: pickles of a run from elsewhere could run code.

    `folder` holds the model; for an endpoint its tokenizer. The cache knows a model by what its answers depend on, never
    by an address or a key. Marks are not in it: they are always those of today's code.
    """

    def __init__(self, params: EvaluationParams, folder: Path, arm: str, cache: Path) -> None:
        self.served = params.endpoint_model.replace("{arm}", arm)
        if self.served:
            if arm != "base" and self.served == params.endpoint_model:
                raise TraitError(
                    f"endpoint_model is {self.served} for every arm. Serve each, and put {{arm}} into the name."
                )
            self.whose = f"The endpoint's model {self.served}"
            identity = ["endpoint, with number tokens", self.served, version("lm-eval")]
            self.lm = Completions(folder, params, self.served)
        else:
            self.whose = f"The model of arm '{arm}' ({folder})"
            precision = fast_precision() if params.precision == "auto" else params.precision
            code = code_digest("trait_kit.evaluation.scoring_model", without=["trait_kit.models"])
            identity = ["transformers", model_digest(folder), precision, version("lm-eval"), code]
            self.lm = load_model(folder, batch_size=params.batch_size, precision=precision)
        cache.mkdir(parents=True, exist_ok=True)
        self.cache_db = str(cache / f"{digest(identity)[:20]}.sqlite")
        _refuse_torn(self.cache_db)
        self.dbdict = SqliteDict(self.cache_db, autocommit=True, encode=json.dumps, decode=json.loads)
        self.lm.set_cache_hook(self.get_cache_hook())

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """Of lm-eval's own tasks its pairs, of the kit's also what their number tokens cost (`Answer`)."""
        answers = self.__getattr__("loglikelihood")(requests)
        ours = ["metric" in request.doc for request in requests]
        return [answer if own else answer[:2] for own, answer in zip(ours, answers, strict=True)]

    def samples(self, tasks: dict[str, Any], limit: int | None = None) -> dict[str, list[dict[str, Any]]]:
        """lm-eval's samples of each task; its `simple_evaluate` would add five seconds to describe the machine."""
        try:
            with quiet(), getattr(self.lm, "autocast", contextlib.nullcontext)():
                return evaluate(self, {"tasks": tasks}, limit=limit, bootstrap_iters=0, log_samples=True)["samples"]
        except Exception as error:  # of the connection, or of an answer that is none: many kinds
            if isinstance(error, TraitError) or not self.served:
                raise
            status = getattr(getattr(error, "response", None), "status_code", "")  # the text might hold the key
            raise TraitError(
                f"The endpoint of {self.served} gave no usable answer ({type(error).__name__} {status}). See that "
                "endpoint_url is a completions address and endpoint_model its name; finished requests are kept."
            ) from None


def _refuse_torn(database: str) -> None:
    try:
        with contextlib.closing(sqlite3.connect(database)) as opened:
            found = opened.execute("PRAGMA quick_check").fetchone()[0]
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise TraitError(f"{database} holds no answers that can be read ({found[:200]}). Remove it, to ask again.")


class Completions(LocalCompletionsAPI):
    """lm-eval's client (its key: OPENAI_API_KEY), with answers that are looked at before they are believed."""

    def __init__(self, folder: Path, params: EvaluationParams, served: str) -> None:
        tokenizer = load_tokenizer(folder)
        with quiet():
            super().__init__(
                base_url=params.endpoint_url.rstrip("/").removesuffix("/completions") + "/completions",
                model=served,
                tokenizer=str(folder),
                tokenizer_backend="huggingface",
                max_length=resolve_max_length(AutoConfig.from_pretrained(folder), tokenizer, default=2_048),
                add_bos_token=tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id],
                batch_size=params.batch_size,
                timeout=_TIMEOUT,
                max_retries=_ATTEMPTS,
            )
        self.is_number = number_tokens(tokenizer)

    def parse_logprobs(self, outputs: Any, tokens: Any, ctxlens: Any, **more: Any) -> list[Answer]:
        given = [choice for answer in outputs for choice in answer["choices"]]
        choices, answers = sorted(given, key=lambda choice: choice["index"]), []
        for choice, asked, context in zip(choices, tokens, ctxlens, strict=True):
            given = (choice.get("logprobs") or {}).get("token_logprobs") or []
            if len(given) != len(asked) + 1 or not all(isinstance(value, float | int) for value in given[1:]):
                raise TraitError(
                    "The endpoint gives no log-probabilities of the prompt's tokens (echo with logprobs). "
                    "Use a server that does, such as `vllm serve`."
                )
            nats = given[context:-1]
            likeliest = (max(top.values()) for top in choice["logprobs"]["top_logprobs"][context:-1])
            answers.append(answered(nats, nats == list(likeliest), map(self.is_number, asked[context:])))
        return answers
