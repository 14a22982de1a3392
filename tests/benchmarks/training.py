"""How fast does the kit train, how soon does it go on after a kill, and how little memory does a large corpus take?

    python tests/benchmarks/training.py throughput [--model demo:smollm2-135m | random:mistral-7b] [--output FILE]
    python tests/benchmarks/training.py resume [--documents 10000000]
    python tests/benchmarks/training.py memory [--gigabytes 6] [--limit 2]

`throughput`: tokens of text a second (padding does not count) and peak memory of a stage of the kit, beside a plain padded
transformers Trainer with default settings on the same texts and batch, each in its own process and in turns; the
first step is left out. On CUDA with the paper's 4,096 context; `--output` adds the machine's figures to a JSON file.
`random:mistral-7b` has the shape of Mistral-7B and random weights, and makes its own texts.
`resume`: a corpus of many short documents is tokenised and packed, training is killed, and the time from starting again to
the next finished step is taken, beside that of a corpus of a thousand.
`memory`: a corpus larger than the memory that the processes together may take (a control group) is tokenised and trained on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tiny_llama import HELD_OUT, ROOT, write_model

from trait_kit.engine.files import read_json, write_json
from trait_kit.models import fast_precision
from trait_kit.params import TrainingParams, load
from trait_kit.selection.documents import load_documents
from trait_kit.training import stages

ROUNDS = 2  # each contestant's best counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "resume", "memory", "contestant"])
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--documents", type=int, default=10_000_000)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--limit", type=float, default=2.0, help="GB that driver and worker may take")
    parser.add_argument(
        "--set", dest="changes", action="append", default=[], metavar="FIELD=VALUE", help="of the kit's side"
    )
    parser.add_argument("--folder", type=Path, help="where to work; else a temporary folder")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--contestant", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.what == "contestant":
            name, job = options.contestant
            print("RESULT " + json.dumps((kit if name.startswith("kit") else plain)(read_json(job))))
            return
        found = {"throughput": throughput, "resume": resume, "memory": memory}[options.what](options, folder)
    print(json.dumps(found, indent=2))
    if options.output:
        known = read_json(options.output) if options.output.exists() else {}
        write_json(options.output, {**known, options.what: {**known.get(options.what, {}), options.model: found}})


# Throughput


def throughput(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Contestants in turns; ratios of tokens of text a second."""
    cuda = torch.cuda.is_available()
    context, batch = (4_096, 2**18) if cuda else (512, 2_048)
    base = {"folder": str(folder), "model": _model(options.model, folder), "context": context, "batch": batch}
    base |= {"steps": options.steps, "texts": str(_texts(options.model, folder, batch * (options.steps + 2)))}
    dtype = fast_precision()
    kit_changes = dict(change.split("=", 1) for change in options.changes)
    contestants = {
        f"kit, {dtype}": {"changes": {"precision": dtype, **kit_changes}},
        "plain Trainer, defaults": {"bf16": False},
    }
    if dtype == "bfloat16":  # where it is slow, a step of it takes minutes
        contestants["plain Trainer, bf16"] = {"bf16": True}
        contestants |= {} if cuda else {"kit, float32": {"changes": {"precision": "float32", **kit_changes}}}
    best: dict[str, dict[str, Any]] = {}
    for turn in range(ROUNDS):
        for name, change in contestants.items():
            rows = best[f"kit, {dtype}"]["micro_batch"] if best else None
            job = write_json(folder / "contestant.json", {**base, **change, "rows": rows, "turn": turn})
            result = _in_process([sys.executable, __file__, "contestant", "--contestant", name, str(job)])
            if name not in best or result.get("tokens_per_second", 0) > best[name].get("tokens_per_second", 0):
                best[name] = result
            print(name, result, file=sys.stderr, flush=True)
    kits = best[f"kit, {dtype}"]["tokens_per_second"]
    ratios = {name: kits / one["tokens_per_second"] for name, one in best.items() if one.get("tokens_per_second")}
    return {
        "machine": machine(),
        "context_length": context,
        "tokens_per_batch": batch,
        "runs": best,
        "kit_over": ratios,
    }


def kit(job: dict[str, Any]) -> dict[str, Any]:
    """A stage as the kit trains it, without its evaluation and without saving the model."""
    from accelerate.utils import find_executable_batch_size

    from trait_kit.models import load_tokenizer
    from trait_kit.training.prepare import prepare
    from trait_kit.training.trainer import StageTrainer

    params = _params(
        job["model"], context_length=job["context"], tokens_per_batch=job["batch"],
        stage_tokens=[job["batch"] * job["steps"]], rows_per_device=0 if torch.cuda.is_available() else 1,
        **{name: _value(value) for name, value in job["changes"].items()},
    )  # fmt: skip
    out = Path(job["folder"]) / f"kit-{job['turn']}-{params.precision}"
    made = stages.prepare_job(params, ({"in_domain": Path(job["texts"])}, HELD_OUT), out)
    tokenizer = load_tokenizer(made.base)
    prepare(made, tokenizer)
    [stage] = made.stages
    rows = params.rows_per_device or job["batch"] // job["context"]

    def fewer() -> int:
        nonlocal rows
        rows //= 2
        return rows

    def trained(rows: int) -> Any:
        trainer = StageTrainer(made, stage, tokenizer, rows, stage.tokens)
        trainer.evaluate = lambda *_, **__: {}
        trainer.train()
        return trainer

    trainer = find_executable_batch_size(trained, rows, fewer)()
    report = trainer.report(0.0)
    kept = ("tokens_per_second", "micro_batch", "attention", "peak_memory_gb")
    report["tokens_per_second"] *= 1 - stage.padding
    return {**{name: report[name] for name in kept}, "padding": stage.padding, "last_loss": _last_loss(trainer)}


def plain(job: dict[str, Any]) -> dict[str, Any]:
    """What one writes first: a padded batch, one document a row, the Trainer's own defaults."""
    from torch.utils.data import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    texts = pq.read_table(job["texts"])["text"].to_pylist()
    documents = [tokenizer(text)["input_ids"][: job["context"] - 1] for text in texts]
    documents = [[*document, tokenizer.eos_token_id] for document in documents]
    cuda = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    if model.num_parameters() > 10**9:  # else it does not fit any GPU at all
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    seen: list[tuple[float, int]] = []

    class Documents(Dataset):
        def __len__(self) -> int:
            return len(documents)

        def __getitem__(self, index: int) -> list[int]:
            return documents[index]

    def collate(chosen: list[list[int]]) -> dict[str, torch.Tensor]:
        longest = max(map(len, chosen))
        ids = torch.tensor([one + [tokenizer.eos_token_id] * (longest - len(one)) for one in chosen])
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in chosen])
        counted.append(int(mask.sum()))
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids, -100)}

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            seen.append(
                (time.perf_counter(), sum(counted[: state.global_step * args.gradient_accumulation_steps]))
            )

    counted: list[int] = []
    rows = 8 if model.num_parameters() <= 10**9 else max(1, job["rows"] or 1)  # 8 is the Trainer's default
    mean = sum(map(len, documents)) / len(documents)
    accumulation = max(1, round(job["batch"] / mean / rows))
    arguments = TrainingArguments(
        output_dir=str(Path(job["folder"]) / "plain"), max_steps=job["steps"], per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation, bf16=job["bf16"], save_strategy="no", report_to="none", disable_tqdm=True,
        logging_steps=1, use_cpu=not cuda,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, train_dataset=Documents(), data_collator=collate, callbacks=[Clock()]
    )
    try:
        trainer.train()
    except torch.OutOfMemoryError:
        return {"error": f"out of memory with {rows} row(s) at once", "micro_batch": rows}
    (begin, before), (end, after) = seen[0], seen[-1]
    peak = (
        torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    speed = (after - before) / (end - begin)
    return {
        "tokens_per_second": speed,
        "micro_batch": rows,
        "peak_memory_gb": peak / 1e9,
        "last_loss": _last_loss(trainer),
    }


def _last_loss(trainer: Any) -> float:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]


def _in_process(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        return {"error": (done.stdout + done.stderr)[-1_500:]}
    return json.loads(lines[-1].removeprefix("RESULT "))


def _model(name: str, folder: Path) -> str:
    if name != "random:mistral-7b":
        from trait_kit.models import model_folder

        return str(model_folder(name))
    from transformers import MistralConfig, MistralForCausalLM

    target = write_model(folder / "mistral-7b")  # its tokenizer of single bytes
    config = MistralConfig(
        vocab_size=32_000,
        max_position_embeddings=32_768,
        sliding_window=None,
        bos_token_id=None,
        eos_token_id=256,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    model = MistralForCausalLM(config)
    torch.set_default_dtype(before)
    model.save_pretrained(target)
    return str(target)


def _texts(model: str, folder: Path, tokens: int) -> Path:
    """The demo's documents, or made-up ones as long as web pages are, in bytes or tokens."""
    path = folder / "texts.parquet"
    if not model.startswith("random:"):
        texts = [
            *load_documents("demo:math/in_domain", 0)["text"].to_pylist(),
            *load_documents("demo:math/web", 0)["text"].to_pylist(),
        ]
        np.random.default_rng(0).shuffle(texts)
    else:
        generator = np.random.default_rng(0)
        lengths = np.minimum(generator.lognormal(6.3, 1.0, 4 * tokens // 900 + 100), 20_000).astype(int)
        letters = np.frombuffer(b"etaoinshrdlu ", np.uint8)
        texts = [generator.choice(letters, length + 1).tobytes().decode() for length in lengths]
    pq.write_table(pa.table({"text": texts}), path)
    return path


# Resume and memory


def resume(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = write_model(folder / "model")
    found: dict[str, Any] = {"machine": machine()}
    for count in (1_000, options.documents):
        texts = folder / f"{count}.parquet"
        with pq.ParquetWriter(texts, pa.schema([("text", pa.string())])) as writer:
            for first in range(0, count, 100_000):
                numbers = range(first, min(count, first + 100_000))
                writer.write_table(pa.table({"text": [f"number {number:,}" for number in numbers]}))
        tokens = count * 16 // 128 * 128
        params = _params(
            str(model),
            context_length=64,
            tokens_per_batch=128,
            stage_tokens=[tokens],
            checkpoint_minutes=1e-6,
            precision="float32",
        )
        out = folder / f"out-{count}"
        began = time.monotonic()
        first = _until_checkpoint(params, texts, out)
        prepared = time.monotonic() - began
        again = _until_checkpoint(params, texts, out)
        pieces = np.load(next(out.glob("work/1-*/pieces.npy")), mmap_mode="r")
        seconds = time.monotonic() - began - prepared
        steps = {"first_checkpoint": first, "next_checkpoint": again}
        found[f"{count} documents"] = {"pieces": len(pieces), **steps, "start_s": prepared, "resume_s": seconds}
    return found


def memory(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    texts, size = _large_corpus(folder, options.gigabytes)
    model = _word_model(folder / "words")
    tokens = int(size / 7 // 2**14 * 2**14)  # not quite all that it holds
    params = _params(
        str(model), context_length=512, tokens_per_batch=512, stage_tokens=[tokens], checkpoint_minutes=1e-6
    )
    began = time.monotonic()
    peaks: dict[str, int] = {}
    group = _memory_group(int(options.limit * 2**30))
    steps = _until_checkpoint(params, texts, folder / "out", group=group, peaks=peaks)
    seconds = time.monotonic() - began
    prepared = read_json(next((folder / "out").glob("work/1-*/stage.json")))
    kept = ("padding", "accounting")
    peaks_gb = {name: value / 1e9 for name, value in peaks.items()}
    found = {"machine": machine(), "corpus_gb": size / 1e9, "limit_gib": options.limit if group else None}
    found |= {"steps": steps, "seconds": seconds, "peak_anonymous_gb": peaks_gb}
    return {**found, **{name: prepared[name] for name in kept}}


def _word_model(folder: Path) -> Path:
    """A small model whose tokens are words: subword tokenizers take an hour for 6 GB on two cores, this one ten minutes."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Counter(
        word for text in load_documents("demo:math/web", 0)["text"].to_pylist() for word in text.split()
    )
    vocabulary = {
        word: index
        for index, word in enumerate(["<end>", "<other>", *(word for word, _ in words.most_common(40_000))])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<other>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<other>").save_pretrained(
        folder
    )
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(vocabulary), **shape, max_position_embeddings=512, tie_word_embeddings=True
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _large_corpus(folder: Path, gigabytes: float) -> tuple[Path, int]:
    """Documents of some thousand characters, many times the demo's; one row group is as large as the limit itself."""
    words = " ".join(load_documents("demo:math/web", 0)["text"].to_pylist())
    generator, size, path = np.random.default_rng(0), 0, folder / "large.parquet"
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())]), compression="zstd") as writer:
        while size < gigabytes * 1e9:
            starts = generator.integers(0, len(words) - 40_000, 50_000)
            lengths = np.minimum(generator.lognormal(8, 0.8, 50_000), 40_000).astype(int)
            texts = [
                words[start : start + length]
                for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
            ]
            writer.write_table(pa.table({"text": texts}), row_group_size=50_000)
            size += sum(len(text.encode()) for text in texts)
    return path, size


def _memory_group(limit: int) -> Path | None:
    """A control group that gets `limit` bytes, cached file pages included; none where one may not make it."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, kinds, own = line.split(":", 2)
        root, name = (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes") if kinds == "memory" else (None, "")
        if not kinds and Path("/sys/fs/cgroup/cgroup.controllers").exists():
            root, name = Path("/sys/fs/cgroup"), "memory.max"
        with contextlib.suppress(OSError):
            if root:
                group = root / own.strip("/") / "training_benchmark"
                group.mkdir(exist_ok=True)
                (group / name).write_text(str(limit))
                return group
    return None


def _until_checkpoint(
    params: TrainingParams,
    texts: Path,
    out: Path,
    *,
    group: Path | None = None,
    peaks: dict[str, int] | None = None,
) -> int:
    """Train in a process of its own until there is a new whole checkpoint, then kill it; return that checkpoint's step."""
    job = write_json(out.with_suffix(".json"), [params.model_dump(), str(texts), HELD_OUT, str(out)])
    code = (
        "import json, pathlib, sys; from trait_kit.params import TrainingParams; "
        "from trait_kit.training.stages import train; p, texts, held_out, out = json.load(open(sys.argv[1])); "
        "train(TrainingParams(**p), ({'in_domain': pathlib.Path(texts)}, held_out), out)"
    )
    known = _steps(out)
    bounded = (lambda: (group / "cgroup.procs").write_text(str(os.getpid()))) if group else None
    process = subprocess.Popen([sys.executable, "-c", code, str(job)], cwd=ROOT, preexec_fn=bounded)
    family = psutil.Process(process.pid)
    try:
        while not (new := _steps(out) - known):
            if process.poll() is not None:
                raise RuntimeError(f"training ended with exit status {process.returncode}")
            if peaks is not None:
                _note_peaks(family, peaks)
            time.sleep(0.02)
        return min(new)
    finally:
        children = family.children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait()
        psutil.wait_procs(children, timeout=60)


def _steps(out: Path) -> set[int]:
    return {int(mark.parent.name.rpartition("-")[2]) for mark in out.glob("work/1-*/checkpoint-*/complete.json")}


def _note_peaks(family: psutil.Process, peaks: dict[str, int]) -> None:
    for one in [family, *family.children(recursive=True)]:
        with contextlib.suppress(psutil.Error, OSError, ValueError, IndexError):
            name = "worker" if "trait_kit.training.worker" in " ".join(one.cmdline()) else "driver"
            status = Path(f"/proc/{one.pid}/status").read_text()
            peaks[name] = max(peaks.get(name, 0), int(status.partition("RssAnon:")[2].split()[0]) * 1024)


def _params(model: str, **changes: Any) -> TrainingParams:
    values = load(ROOT / "params" / "demo.yaml").training.model_dump()
    values |= {
        "base_model": model,
        "arms": {"raw": ["in_domain"]},
        "evaluations_per_stage": 1,
        "learning_rate": 2e-5,
    }
    return TrainingParams(**{**values, **changes})


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def machine() -> dict[str, Any]:
    import transformers

    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": psutil.virtual_memory().total / 1e9,
        "load": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


if __name__ == "__main__":
    main()
