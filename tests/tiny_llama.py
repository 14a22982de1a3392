"""What the tests of training share: a tiny random Llama, texts for it, and a way to kill its worker."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from trait_kit.engine.packing import plan_rows
from trait_kit.params import TrainingParams, load
from trait_kit.training import stages, worker
from trait_kit.training.plan import PROBLEMS, Job, Stage, plan_stages
from trait_kit.training.tokens import Rows, open_store, piece_records, save_rows, write_store

ROOT = Path(__file__).resolve().parents[1]
CONTEXT, BATCH = 32, 128
STAGE_STEPS = 12


def write_model(folder: Path) -> Path:
    """A 2-layer random Llama with a tokenizer of single bytes, in the ordinary transformers format."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True, eos_token_id=256, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def tiny_params(model_dir: Path, **changes: object) -> TrainingParams:
    values = {
        **load(ROOT / "params" / "demo.yaml").training.model_dump(), "base_model": str(model_dir), "precision": "float32",
        "arms": {"selected": ["in_domain+random", "in_domain+random"], "trait": ["random+in_domain", "passages"]},
        "stage_tokens": [BATCH * STAGE_STEPS, BATCH * STAGE_STEPS], "context_length": CONTEXT, "tokens_per_batch": BATCH,
        "rows_per_device": 2, "learning_rate": 1e-3, "evaluations_per_stage": 2,
    }  # fmt: skip
    return TrainingParams(**{**values, **changes})


def tiny_sources() -> dict[str, list[str]]:
    return {
        "in_domain": [f"The sum of {a} and {a + 1} is {2 * a + 1}." for a in range(70)],
        "random": [f"Item {a} of the list is {'red' if a % 2 else 'blue'}. " * (1 + a % 3) for a in range(60)],
        "passages": [f"{a}+{a}?\nAnswer: {a}+{a}={2 * a}" for a in range(150)],
    }


HELD_OUT = {
    "held_out/solutions": [(f"{a}+{a}?\nAnswer:", f" {a}+{a}={2 * a}") for a in range(200, 206)],
    "held_out/general": [("", "The colour of the sky is blue.")],
}


def trained(params: TrainingParams, out: Path, sources=None, held_out=None, problems=(), watch=None, child=False):
    """What `stages.train` makes of the tiny texts: in this process, which spares an import of torch, or in a `child`."""
    with pytest.MonkeyPatch.context() as patch:
        if not child:
            patch.setattr(worker, "run", _here)
        texts = text_files(sources or tiny_sources(), out, problems)
        return stages.train(params, (texts, held_out or HELD_OUT), out, watch)


def text_files(sources: dict[str, list[str]], folder: Path, problems=()) -> dict[str, Path]:
    """Each source's texts as a Parquet file, and (prompt, target) pairs to fine-tune on as `sources` writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {name: {"text": texts} for name, texts in sources.items()}
    tables[PROBLEMS] = {"prompt": [given for given, _ in problems], "text": ["".join(pair) for pair in problems]}
    for name, columns in tables.items():
        table = pa.table({column: pa.array(texts, pa.string()) for column, texts in columns.items()})
        pq.write_table(table, folder / f"{name}.parquet")
    return {name: folder / f"{name}.parquet" for name in tables}


def planned(
    params: TrainingParams, folder: Path, sources=None, problems=()
) -> tuple[list[Stage], dict[str, list[str]]]:
    """The stages of the tiny texts, and each arm's chain of names."""
    return plan_stages(params, text_files(sources or tiny_sources(), folder, problems), "base", "held_out")


def _here(job: Job, on_line: Callable[[str], None]) -> None:
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("trait_kit.engine.child.tell", on_line)
            worker.main(job.work / "job.json")
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
        signal.signal(signal.SIGTERM, handler)


def packed(documents: list[np.ndarray], folder: Path, context_length: int = CONTEXT) -> dict[str, torch.Tensor]:
    """input_ids, position_ids, labels [rows, context_length] of documents that are packed as training packs them."""
    write_store([documents], folder / "store")
    store = open_store(folder / "store")
    plan = plan_rows(store.lengths, context_length)
    pieces = piece_records([store], np.zeros(len(plan.document)), plan.document, plan.start, plan.length)
    save_rows(folder, pieces, plan.row_ends, [store])
    rows = Rows(folder, context_length, eos=256)
    return {name: torch.stack([rows[index][name] for index in range(len(rows))]) for name in rows[0]}


def same(result: stages.TrainingResult, expected: stages.TrainingResult) -> bool:
    """Bit by bit the same log and models."""
    assert result.log.equals(expected.log)
    assert result.accounting.equals(expected.accounting)
    assert result.models.keys() == expected.models.keys()
    for arm, folder in expected.models.items():
        weights, wanted = (
            load_file(result.models[arm] / "model.safetensors"),
            load_file(folder / "model.safetensors"),
        )
        assert weights.keys() == wanted.keys()
        assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    return True


def driver(
    params: TrainingParams, folder: Path, sources: dict | None = None, **options: object
) -> subprocess.Popen:
    """Training in a process of its own, which writes into folder/out."""
    texts = text_files(sources or tiny_sources(), folder)
    values = [params.model_dump(), {name: str(path) for name, path in texts.items()}, HELD_OUT]
    (folder / "input.json").write_text(json.dumps(values))
    code = (
        "import json, pathlib, sys; from trait_kit.params import TrainingParams; "
        "from trait_kit.training.stages import train; params, texts, held_out = json.load(open(sys.argv[1])); "
        "texts = {name: pathlib.Path(path) for name, path in texts.items()}; "
        "train(TrainingParams(**params), (texts, held_out), sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(folder / "input.json"), str(folder / "out")]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def workers(of: int | None = None) -> list[psutil.Process]:
    """The training workers among the descendants of a process (this one), without their guards."""
    family = psutil.Process(of).children(recursive=True)
    return [
        one
        for one in family
        if "trait_kit.training.worker" in (line := _line(one)) and "engine.child" not in line
    ]


def kill_worker_when(out_dir: Path, pattern: str) -> threading.Thread:
    """Kill the worker as soon as there is such a file; the thread that waits for it."""

    def wait() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if any(out_dir.glob(pattern)):
                for worker in workers():
                    worker.kill()
                return
            time.sleep(0.005)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
