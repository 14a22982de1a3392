"""What lm-eval needs from the kit: task files on disk, the items behind them, and a model that scores them cheaply.

The shipped files in tasks/ are templates; `write_task` puts a copy of them, the items as JSON lines and a small task file
into the run's folder, so the same tasks also run under lm-eval's own command line:
`lm_eval --model hf --model_args pretrained=MODEL --include_path RUN/05_evaluate/lm_eval --tasks word_problems_choices`.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.tasks import TaskManager
from transformers import DynamicCache

from trait_kit.engine.files import TraitError, atomic_path, digest, write_text
from trait_kit.evaluation.generation import SharedPrefix, generate, n_shared_tokens
from trait_kit.models import resolve_precision

TEMPLATES = Path(__file__).parent / "tasks"
CPU_SLICE_ITEMS, GPU_SLICE_ITEMS = 64, 512  # asked and kept at once: seconds to a minute of work, and full batches
_WORTH_SHARING = 32  # tokens that all prompts begin with
TOKENS_PER_SEQUENCE = 64  # a packed row holds batch_size times this many tokens
_GREEDY = {"until", "max_gen_toks", "do_sample", "temperature"}  # what generation.py knows of lm-eval's settings
_HARMLESS = {  # of a model's generation_config, where nothing is sampled
    *("_from_model_config", "bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_p", "top_k"),
    *("max_length", "max_new_tokens", "transformers_version", "use_cache"),
}


class PackedLM(HFLM):
    """lm-eval's transformers model, with likelihoods scored in packed rows instead of padded batches.

    Why: the five requests of one problem (its gold solution and four choices) share their prompt, and the vocabulary
    of a small model costs as much as a quarter of its layers. A row holds many requests; a prompt appears once, its
    continuations branch from it (a 4-D attention mask, positions that restart at the branch), and logits are computed
    at scored positions only. The numbers are those of HFLM to rounding; a model whose attention does not honour such a
    mask fails the check in __init__ and is scored the ordinary way.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int, autocast: torch.dtype | None) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, mixed_precision_dtype=autocast)
        self.row_tokens = batch_size * TOKENS_PER_SEQUENCE
        self.slice_items = GPU_SLICE_ITEMS if self.device.type == "cuda" else CPU_SLICE_ITEMS
        self.shares = False
        self._encoded: dict[str, list[int]] = {}
        self.packs = "logits_to_keep" in inspect.signature(model.forward).parameters and self._packing_is_exact()
        self.shares = self.packs and self._sharing_is_exact()

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As HFLM's, but every text is tokenised once, all of them in one call that uses every core."""
        texts = {
            text: None for context, wanted in (r.args for r in requests) for text in (context + wanted, context.rstrip())
        }
        special = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        start = self.tokenizer.decode(self.prefix_token_id)  # a text that begins so is left to HFLM
        plain = [text for text in texts if text and not text.startswith(start)]
        self._encoded = dict(zip(plain, self.tokenizer(plain, **special).input_ids, strict=True)) if plain else {}
        try:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        finally:
            self._encoded = {}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **more: Any) -> list[int]:
        known = self._encoded.get(string) if add_special_tokens is None and not more else None
        return super().tok_encode(string, add_special_tokens=add_special_tokens, **more) if known is None else known

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """(log probability in nats, is it the greedy continuation) of each (key, context tokens, continuation tokens)."""
        if not self.packs:
            return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        room = self.max_length + 1
        cut = [(key, context[-max(1, room - len(wanted)) :], wanted) for key, context, wanted in requests]  # as HFLM does
        n_shared = n_shared_tokens([context for _, context, _ in cut]) if self.shares else 0
        prefix = self._prefix(cut[0][1][:n_shared]) if n_shared >= _WORTH_SHARING else []
        for row in self._rows([(key, context[n_shared:] if prefix else context, wanted) for key, context, wanted in cut]):
            for index, answer in self._score(row, prefix):
                answers[index] = answer
        return answers

    def _prefix(self, tokens: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of what all prompts begin with, as the worked examples of a task: computed once, seen by all."""
        with torch.no_grad(), self._autocast():
            cache = self.model(torch.tensor([tokens], device=self.device), use_cache=True, logits_to_keep=1).past_key_values
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _rows(self, requests: list[tuple[Any, list[int], list[int]]]) -> Iterator[list[dict[str, Any]]]:
        """Trees (one context, several indexed continuations), in rows of about `row_tokens` tokens."""
        trees: list[dict[str, Any]] = []
        open_trees: dict[tuple[int, ...], dict[str, Any]] = {}
        for index, (key, context, continuation) in enumerate(requests):
            grown = len(continuation) - 1
            tree = open_trees.get(tuple(context)) if key is not None else None  # a document's windows share nothing
            if tree is None or tree["size"] + grown > max(self.row_tokens, 2 * len(context)):
                tree = {"context": context, "branches": [], "size": len(context)}
                trees.append(tree)
                open_trees[tuple(context)] = tree
            tree["branches"].append((index, continuation))
            tree["size"] += grown
        row: list[dict[str, Any]] = []
        size = 0
        for tree in trees:
            if row and size + tree["size"] > self.row_tokens:
                yield row
                row, size = [], 0
            row.append(tree)
            size += tree["size"]
        if row:
            yield row

    def _score(
        self, row: list[dict[str, Any]], prefix: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        """One forward pass over a row of trees, all of them after the prefix; yields (request index, answer)."""
        n_prefix = prefix[0][0].shape[2] if prefix else 0
        tokens, positions, trees, branches, keep, targets, spans = [], [], [], [], [], [], []
        n_branches = 0
        for number, tree in enumerate(row):
            context = tree["context"]
            last = len(tokens) + len(context) - 1
            tokens += context
            positions += range(len(context))
            branches += [0] * len(context)
            for index, continuation in tree["branches"]:
                n_branches += 1
                grown = len(continuation) - 1
                keep += [last, *range(len(tokens), len(tokens) + grown)]
                spans.append((index, len(targets), len(targets) + len(continuation)))
                targets += continuation
                tokens += continuation[:-1]
                positions += range(len(context), len(context) + grown)
                branches += [n_branches] * grown
            trees += [number] * (len(tokens) - len(trees))

        def tensor(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.long, device=self.device)

        mask = None
        if n_branches > 1 or prefix:
            tree_of, branch_of = tensor(trees), tensor(branches)
            seen = (tree_of[:, None] == tree_of) & ((branch_of == 0) | (branch_of[:, None] == branch_of))
            mask = torch.zeros(seen.shape, dtype=self._dtype, device=self.device)  # cast once, not a layer
            mask = mask.masked_fill_(~seen.tril(), torch.finfo(self._dtype).min)
            mask = torch.nn.functional.pad(mask, (n_prefix, 0))[None, None]
        wanted = tensor(targets)
        with torch.no_grad(), self._autocast():
            logits = self.model(
                input_ids=tensor(tokens)[None],
                attention_mask=mask,
                position_ids=tensor(positions)[None] + n_prefix,
                past_key_values=DynamicCache(prefix) if prefix else None,
                logits_to_keep=tensor(keep),
                use_cache=bool(prefix),
            ).logits[0]
            scores, greedy = _log_probabilities(logits, wanted)
        for index, start, end in spans:
            yield index, (float(scores[start:end].sum()), bool(greedy[start:end].all()))

    def _autocast(self) -> contextlib.AbstractContextManager:
        dtype = self.mixed_precision_dtype
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _packing_is_exact(self) -> bool:
        """Score a few branching requests packed and one by one: equal to rounding unless the mask was not honoured."""
        size = min(self.model.config.get_text_config().vocab_size, 1_000)
        draw = torch.Generator().manual_seed(0)
        context, other, ending = (torch.randint(size, (n,), generator=draw).tolist() for n in (9, 7, 6))
        requests = [((), context, ending), ((), context, ending[:4]), ((), context, ending), ((), other, ending)]
        packed = [answer for row in self._rows(requests) for _, answer in self._score(row)]
        try:
            self.packs = False
            single = [self._loglikelihood_tokens([request], disable_tqdm=True)[0] for request in requests]
        finally:
            self.packs = True
        exact = self._dtype == torch.float32
        return all(abs(a[0] - b[0]) <= (1e-3 if exact else 0.3) for a, b in zip(packed, single, strict=True))

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy texts of HFLM, many at once (generation.py); what is sampled, or altered by the model's own generation
        settings, goes the ordinary way."""
        changed = set(self.model.generation_config.to_diff_dict()) - _HARMLESS
        if not self.shares or changed or any(set(request.args[1]) - _GREEDY for request in requests):
            return super().generate_until(requests, disable_tqdm=disable_tqdm)
        if any(request.args[1].get("do_sample") or request.args[1].get("temperature") for request in requests):
            return super().generate_until(requests, disable_tqdm=disable_tqdm)
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        texts = [""] * len(requests)
        for indices in groups.values():
            contexts = [requests[index].args[0] for index in indices]
            for index, text in zip(indices, self._greedy(contexts, requests[indices[0]].args[1]), strict=True):
                texts[index] = text
        return texts

    def _greedy(self, contexts: list[str], settings: dict[str, Any]) -> list[str]:
        until = settings.get("until") or []
        stops = [until] if isinstance(until, str) else [stop for stop in until if stop]
        most = int(settings.get("max_gen_toks", self.max_gen_toks))
        room = self.max_length - most
        if room < 1:
            raise TraitError(f"max_new_tokens is {most}, but the model's window is {self.max_length} tokens. Lower it.")
        ends = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        tail = 2 + max((len(self.tokenizer.encode(stop, add_special_tokens=False)) for stop in stops), default=0)

        def has_ended(tokens: list[int]) -> bool:
            if tokens[-1] in ends:
                return True
            last = self.tokenizer.decode(tokens[-tail:])
            return any(stop in last for stop in stops) and any(stop in self.tok_decode(tokens) for stop in stops)

        prompts = [self.tok_encode(context)[-room:] or [self.prefix_token_id] for context in contexts]
        with self._autocast():
            found = generate(self.model, prompts, most, has_ended, self._dtype)
        stops = [*stops, self.tok_decode([self.eot_token_id], skip_special_tokens=False)]
        return [postprocess_generated_text(self.tok_decode(tokens), stops, None) for tokens in found]

    def _sharing_is_exact(self) -> bool:
        """Whether logits after a shared prefix are those of whole prompts: not if attention has extras such as windows."""
        config = self.model.config.get_text_config()
        if set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
            return False
        draw = torch.Generator().manual_seed(0)
        prefix, one, other = (torch.randint(min(config.vocab_size, 1_000), (n,), generator=draw).tolist() for n in (7, 5, 3))
        with torch.no_grad(), self._autocast():
            whole = [self.model(torch.tensor([prefix + row], device=self.device)).logits[0, -1] for row in (one, other)]
            try:
                with SharedPrefix(self.model, prefix, self._dtype).attended() as shared:
                    shared.read([one[:-1], other[:-1]], room=1)
                    found = shared.step([one[-1], other[-1]])
            except (AttributeError, TypeError, ValueError, RuntimeError):  # an architecture that keeps its cache otherwise
                return False
        allowed = 1e-3 if self._dtype == torch.float32 else 0.05
        return all((a - b).abs().max() <= allowed * (b.max() - b.min()) for a, b in zip(found, whole, strict=True))

    @property
    def _dtype(self) -> torch.dtype:
        """Of the matrix products."""
        return self.mixed_precision_dtype or self.model.dtype

    def run(self, folder: Path, names: list[str]) -> dict[str, list[dict[str, Any]]]:
        """Evaluate the written tasks of `folder`; returns lm-eval's samples by task."""
        return run(self, load_written(folder, names))


def _log_probabilities(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log probability [n] float64, is it the largest [n]) of each target token under logits [n, vocabulary].

    A few rows at a time on a CPU: their float32 copy then stays in its cache, which is five times faster than whole-matrix
    passes over tens of thousands of columns.
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

    bfloat16 is autocast over float32 weights on a CPU (norms and residuals stay exact) and the weights' type on a GPU.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = resolve_precision(precision) == "bfloat16"
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            dtype = torch.bfloat16 if half and device == "cuda" else torch.float32
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
        except (OSError, ValueError, KeyError) as error:
            raise TraitError(f"{folder} does not hold a transformers causal language model: {error}") from error
        return PackedLM(
            model, tokenizer, batch_size=batch_size, autocast=torch.bfloat16 if half and device == "cpu" else None
        )


def load_written(folder: Path, names: list[str]) -> dict[str, Any]:
    """The named tasks that `write_task` has put into `folder`, by name, as lm-eval's objects."""
    with quiet():
        return TaskManager(include_defaults=False, include_path=str(folder)).load(names)["tasks"]


def run(
    language_model: Any, tasks: dict[str, Any], places: dict[str, list[int]] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """lm-eval's samples by task, in the order of the documents; of the documents at `places` (ascending) only.

    `evaluate` rather than `simple_evaluate`: the latter adds five seconds a call for a description of the machine.
    One autocast region around everything lets torch keep its bfloat16 copies of the weights between rows.
    """
    autocast = language_model._autocast() if isinstance(language_model, PackedLM) else contextlib.nullcontext()
    with quiet(), autocast:
        found = evaluate(language_model, {"tasks": tasks}, samples=places, bootstrap_iters=0, log_samples=True)["samples"]
    return {name: sorted(samples, key=lambda sample: sample["doc_id"]) for name, samples in found.items()}


def load_items(data_file: str, **_metadata: Any) -> Any:
    """lm-eval's `custom_dataset` of every task: the items of a JSON-lines file, kept in memory.

    Not `dataset_path: json`, whose reader turns a column of date-like answers into timestamps and writes to a cache.
    """
    import datasets

    with Path(data_file).open(encoding="utf-8") as stream:
        items = [json.loads(line) for line in stream]
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(items)})


def write_task(folder: Path, template: str, task: str, items: list[dict[str, Any]], **settings: Any) -> str:
    """Write the items and task file of one lm-eval task into `folder`; returns the task's name in lm-eval."""
    for source in TEMPLATES.glob("*.yaml"):
        with atomic_path(folder / source.name) as temporary:
            shutil.copyfile(source, temporary)
    plain = re.sub(r"\W", "_", task)
    name = plain if plain == task else f"{plain}_{digest(task)[:6]}"
    name = f"{name}_{template}"
    data = folder.resolve() / "items" / f"{name}.jsonl"
    write_text(data, "".join(json.dumps(item) + "\n" for item in items))
    config = {"task": name, "include": f"{template}.yaml", "dataset_kwargs": {"data_file": str(data)}, **settings}
    write_text(folder / f"{name}.yaml", yaml.safe_dump(config, sort_keys=False))
    return name


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval's and transformers' progress bars and notes off the screen; errors are raised as ever."""
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger("lm_eval")
    before, transformers_before = logger.level, transformers_logging.get_verbosity()
    logger.setLevel(logging.CRITICAL + 1)  # its errors repeat requests, and those hold a key
    transformers_logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
        transformers_logging.set_verbosity(transformers_before)
