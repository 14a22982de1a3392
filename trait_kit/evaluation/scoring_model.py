"""lm-eval's transformers model, its likelihoods in packed rows: at most a tenth more time than the forward passes."""

import contextlib
import functools
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lm_eval.models.huggingface import HFLM
from transformers import DynamicCache

from trait_kit.engine.files import TraitError

TOKENS_PER_SEQUENCE = 64  # a packed row holds batch_size times this many tokens
_SHARED = 32  # what all prompts begin with is shared in whole blocks of so many tokens
Prefix = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values, a layer each


class Answer(NamedTuple):
    """What a text costs after its context: lm-eval's pair, and the number tokens' part of it."""

    nats: float  # log probability
    greedy: bool  # whether every token is the likeliest
    number_nats: float
    numbers: int  # tokens that hold a digit


@dataclass
class _Row:
    """Token sequences of which equal beginnings stand once: a tree, in the order of a walk (parents first).

    A token sees those before it whose branch it stands in: token j is an ancestor of i where j <= i < ends[j].
    """

    places: dict[tuple[int, int], int] = field(default_factory=dict)  # (place before it, token) -> place
    ends: dict[int, int] = field(default_factory=dict)
    scored: dict[tuple[int, int], int] = field(default_factory=dict)  # (place, next token) -> number of its score
    # request, its tokens, their scores
    asked: list[tuple[int, list[int], list[int]]] = field(default_factory=list)

    def add(self, index: int, context: list[int], wanted: list[int]) -> None:
        """Requests come in the order of their tokens: what begins alike is together."""
        path = [-1]
        for token in context + wanted[:-1]:
            path.append(self.places.setdefault((path[-1], token), len(self.places)))
        self.ends |= dict.fromkeys(path[1:], len(self.places))
        steps = zip(path[len(context) :], wanted, strict=True)
        self.asked.append((index, wanted, [self.scored.setdefault(step, len(self.scored)) for step in steps]))


class PackedLM(HFLM):
    """HFLM's numbers to rounding, in rows of many requests instead of padded batches.

    The requests of one problem begin alike, and a small model's vocabulary costs as much as a quarter of its layers. So
    a row is a tree: what begins alike is read once, texts branch where they part (a 4-D attention mask, positions along
    the branch), and logits are computed at scored positions only. Worked examples are read once for all rows. A model
    whose attention does not honour such a mask gets a row a request.
    """

    def __init__(self, model: Any, *, batch_size: int, **settings: Any) -> None:
        super().__init__(model, batch_size=batch_size, **settings)
        self.row_tokens = batch_size * TOKENS_PER_SEQUENCE
        decode = self.tokenizer.decode  # not `self` in the closure: a circle would keep the model in memory
        self.is_number = functools.cache(lambda token: any(map(str.isdigit, decode([token]))))
        self.product_dtype = self.mixed_precision_dtype or self.model.dtype
        config = self.model.config.get_text_config()
        self.window = getattr(config, "sliding_window", None) or self.max_length  # the mask knows of no window
        usual = set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}
        self.packs = usual
        self.packs = usual and self._is_exact()

    def autocast(self) -> contextlib.AbstractContextManager:
        """One region around many calls lets torch keep its bfloat16 copies of the weights."""
        dtype = self.mixed_precision_dtype
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def score(self, context: str, text: str) -> Answer:
        return self._loglikelihood_tokens([((context, text), *self._encode_pair(context, text))])[0]

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_shown: Any
    ) -> list[Answer]:
        room = self.max_length + 1
        cut = [
            (context[-max(1, room - len(wanted)) :], wanted) for _, context, wanted in requests
        ]  # as HFLM does
        packs = self.packs and max(len(context) + len(wanted) for context, wanted in cut) <= self.window + 1
        contexts = [context[:-1] for context, _ in cut]
        shared = len(commonprefix(contexts)) if packs and len(cut) > 1 else 0  # noqa: RUF071 - of lists, token by token
        n_prefix = shared // _SHARED * _SHARED
        prefix: Prefix = self._read(contexts[0][:n_prefix]) if n_prefix else []
        answers: dict[int, Answer] = {}
        for row in self._rows([(context[n_prefix:], wanted) for context, wanted in cut], packs):
            for index, answer in self._score(row, prefix):
                answers[index] = answer
                if requests[index][0] is not None:  # a window of a document: lm-eval keeps the whole
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
            if self.cache_hook.dbdict is not None:  # row by row: what is resumed packs the same rows
                self.cache_hook.dbdict.commit(blocking=True)
        return [answers[index] for index in range(len(requests))]

    def _read(self, tokens: list[int]) -> Prefix:
        """What all prompts begin with, as worked examples: computed once, seen by all."""
        with torch.no_grad(), self.autocast():
            read = self.model(self._tensor(tokens)[None], use_cache=True, logits_to_keep=1)
        return [(layer.keys, layer.values) for layer in read.past_key_values.layers]

    def _rows(self, pairs: list[tuple[list[int], list[int]]], packs: bool) -> Iterator[_Row]:
        """Rows of `row_tokens` tokens, to the end of a request, from (context, continuation) tokens, in their order.

        What is left of a killed evaluation makes the same rows; what is asked twice is in one row, equal to the last bit.
        """
        row, before = _Row(), []
        for index, (context, wanted) in sorted(enumerate(pairs), key=lambda pair: pair[1][0] + pair[1][1]):
            if row.asked and (not packs or (len(row.places) >= self.row_tokens and context + wanted != before)):
                yield row
                row = _Row()
            row.add(index, context, wanted)
            before = context + wanted
        yield row

    def _score(self, row: _Row, prefix: Prefix) -> Iterator[tuple[int, Answer]]:
        places, targets = (self._tensor(values) for values in zip(*row.scored, strict=True))
        tokens = self._tensor([token for _, token in row.places])[None]
        with torch.no_grad(), self.autocast():
            if prefix or len(row.asked) > 1:
                ends, n_prefix = self._tensor(list(row.ends.values())), prefix[0][0].shape[2] if prefix else 0
                # its ancestors and itself
                seen = (torch.arange(len(ends), device=self.device)[:, None] < ends).tril()
                seen = torch.nn.functional.pad(seen, (n_prefix, 0), value=True)  # [row, prefix + row]
                # cast once, not a layer
                mask = torch.zeros(seen.shape, dtype=self.product_dtype, device=self.device)
                logits = self.model(
                    input_ids=tokens,
                    attention_mask=mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)[None, None],
                    position_ids=seen.sum(1)[None] - 1,
                    past_key_values=DynamicCache(prefix) if prefix else None,
                    logits_to_keep=places,
                    use_cache=bool(prefix),
                ).logits[0]
            else:
                logits = self._model_call(tokens)[0, places]
            scores, greedy = _log_probabilities(logits, targets)

        for index, wanted, steps in row.asked:
            nats = scores[steps].tolist()
            of_numbers = [value for value, token in zip(nats, wanted, strict=True) if self.is_number(token)]
            yield index, Answer(sum(nats), bool(greedy[steps].all()), sum(of_numbers), len(of_numbers))

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def _is_exact(self) -> bool:
        """Score branching requests packed behind a prefix and one by one: equal, unless a mask was ignored."""
        draw = torch.Generator().manual_seed(0)
        size = min(self.model.config.get_text_config().vocab_size, 1_000)
        begin, one, other, end = (torch.randint(size, (n,), generator=draw).tolist() for n in (_SHARED, 9, 8, 6))
        asked = [(None, begin + one, end), (None, begin + one, end[:4]), (None, begin + other, end)]
        single = [self._loglikelihood_tokens([request])[0].nats for request in asked]  # no mask, no prefix
        try:
            packed = [answer.nats for answer in self._loglikelihood_tokens(asked)]
        except (AttributeError, TypeError, ValueError, RuntimeError):
            return False  # an architecture of other arguments or caches
        allowed = 1e-3 if self.product_dtype == torch.float32 else 0.3
        return all(abs(value - alone) <= allowed for value, alone in zip(packed, single, strict=True))


def _log_probabilities(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log probability [n] float64, is it the largest [n]) of each target token under logits [n, vocabulary].

    A few rows at a time on a CPU: their float32 copy stays in its cache, five times as fast.
    """
    rows = 8 if logits.device.type == "cpu" else 4_096
    scores, largest = [], []
    for part, wanted in zip(logits.split(rows), targets.split(rows), strict=True):
        part = part.float()
        scores.append(-torch.nn.functional.cross_entropy(part, wanted, reduction="none"))
        largest.append(part.gather(1, wanted[:, None])[:, 0] >= part.amax(1))
    return torch.cat(scores).double().cpu(), torch.cat(largest).cpu()


def load_model(folder: Path, *, batch_size: int, precision: str) -> PackedLM:
    """The model of a folder, on the GPU where there is one.

    bfloat16 is the weights' type on a GPU, and autocast over float32 weights on a CPU (norms and residuals stay exact).
    """
    mixed = "bfloat16" if precision == "bfloat16" else None
    on_cpu = {"device": "cpu", "dtype": "float32", "mixed_precision_dtype": mixed}
    settings = {"device": "cuda", "dtype": precision} if torch.cuda.is_available() else on_cpu
    with quiet():
        try:
            return PackedLM(str(folder), batch_size=batch_size, **settings)
        except (OSError, ValueError, KeyError) as error:
            raise TraitError(f"{folder} does not hold a transformers causal language model: {error}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval's and transformers' progress bars and notes off the screen; errors are raised as ever."""
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
