"""The Trainer of a stage: packed rows, its schedule, cheap held-out scores, checkpoints that resume bit for bit."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, SequentialSampler
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from trait_kit.errors import TraitError
from trait_kit.files import digest, read_json, write_json
from trait_kit.training.held_out import bits_per_byte, encode, token_losses
from trait_kit.training.packing import labels_of
from trait_kit.training.schedule import cosine_factor, wsd_factor

PROGRESS_SECONDS = 10.0
CHECKPOINT_MARK = "complete.json"  # written last: a checkpoint without it was torn by a kill
GRADIENT_CHECKPOINTING_PARAMETERS = 1_000_000_000  # from here on activations, not weights, fill the memory


class Rows(Dataset):
    """Packed rows from disk, memory-mapped: a stage larger than memory trains as well.

    Where the folder has labels of its own (fine-tuning masks its prompts), they are taken, else every token is learnt.
    """

    def __init__(self, folder: Path) -> None:
        self._input_ids = np.load(folder / "input_ids.npy", mmap_mode="r")
        self._position_ids = np.load(folder / "position_ids.npy", mmap_mode="r")
        labels = folder / "labels.npy"
        self._labels = np.load(labels, mmap_mode="r") if labels.exists() else None

    def __len__(self) -> int:
        return len(self._input_ids)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        input_ids, position_ids = np.array(self._input_ids[row]), np.array(self._position_ids[row])
        labels = labels_of(input_ids, position_ids) if self._labels is None else np.array(self._labels[row])
        values = {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}
        return {name: torch.from_numpy(value.astype(np.int64)) for name, value in values.items()}


class StageTrainer(Trainer):
    """One stage. `job` and `stage` are the dictionaries that stages.py writes into job.json."""

    def __init__(self, job: dict[str, Any], stage: dict[str, Any], held_out: dict[str, list], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.job, self.stage, self.held_out = job, stage, held_out
        self.precision = resolve_precision(job["params"]["precision"], self.args.device)
        self.plain = not job["launched"]  # one process, the model as it is: our own loss and autocast
        self._begin = self._printed = time.monotonic()
        self._evaluating, self._first_step = 0.0, None
        self._parameters = sum(parameter.numel() for parameter in self.model.parameters())

    def _get_train_sampler(self, *arguments: Any, **named: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # pack() has shuffled the rows

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        if self.lr_scheduler is None:
            params = self.job["params"]
            factor, fractions = wsd_factor, (params["warmup_fraction"], params["decay_fraction"])
            if self.stage.get("epochs"):
                factor, fractions = cosine_factor, fractions[:1]
            self.lr_scheduler = LambdaLR(
                optimizer or self.optimizer, lambda step: factor(step, num_training_steps, *fractions)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not self.plain:
            return super().compute_loss(model, {**inputs, "use_cache": False}, return_outputs, num_items_in_batch)
        with self._autocast():
            losses = token_losses(model, inputs["input_ids"], inputs["position_ids"], inputs["labels"])
        return losses.sum() / num_items_in_batch

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Held-out bits per byte of every set; the untrained model is scored once for all arms."""
        began = time.monotonic()
        kept = _base_scores_path(self.job) if not self.state.global_step else None
        if kept and kept.exists():
            scores = read_json(kept)
        else:
            self.model.eval()
            forward = None if self.plain else self.model_wrapped
            with self._autocast():
                scores = {
                    f"held_out/{name}": bits_per_byte(self.model, items, forward=forward)
                    for name, items in self.held_out.items()
                }
            self.model.train()
            if kept and self.accelerator.is_main_process:
                write_json(kept, scores)
        self._evaluating += time.monotonic() - began
        self.control.should_evaluate = False  # or it would be asked again at the end of the epoch
        self.log(scores)
        return scores

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        rate = "fine_tune_learning_rate" if self.stage.get("epochs") else "learning_rate"
        for name in ("loss", *(name for name in logs if name.startswith("held_out/"))):
            if not math.isfinite(logs.get(name, 0.0)):
                raise TraitError(
                    f"training: {name} became {logs[name]} at step {self.state.global_step} of {self.state.max_steps} in "
                    f"stage {self.stage['name']}. Nothing of this stage is kept. Lower {rate} (it is "
                    f"{self.args.learning_rate:.1e}) or max_gradient_norm, or set precision to float32, and run again."
                )
        super().log(logs, start_time)
        if "loss" in logs and self.accelerator.is_main_process:
            self._progress(logs["loss"])

    def report(self) -> dict[str, Any]:
        """What the report wants to know beside the scores: speed, device and precision; not part of any key."""
        steps = self.state.global_step - (self._first_step or 0)
        seconds = max(time.monotonic() - self._begin - self._evaluating, 1e-9)
        return {
            "evaluation_seconds": self._evaluating,
            "tokens_per_second": steps * self.job["params"]["tokens_per_batch"] / seconds,
            "precision": self.precision,
            "device": str(self.args.device),
            "processes": self.args.world_size,
            "threads": torch.get_num_threads(),
            "parameters": self._parameters,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    def release(self) -> None:
        """Drop weights and optimizer state: the next stage of this process needs their memory."""
        self.accelerator.free_memory()
        self.model = self.model_wrapped = self.optimizer = self.lr_scheduler = None
        self.callback_handler.model = self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.precision == "bfloat16":
            return torch.autocast(self.args.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _progress(self, loss: float) -> None:
        step, last = self.state.global_step, self.state.global_step == self.state.max_steps
        if self._first_step is None:
            self._first_step = step - 1
        now = time.monotonic()
        if now - self._printed < PROGRESS_SECONDS and not last:
            return
        self._printed = now
        per_batch = self.job["params"]["tokens_per_batch"]
        elapsed = now - self._begin
        speed = (step - self._first_step) * per_batch / elapsed  # evaluations included: it predicts the time left
        left = (self.job["tokens_left"] - step * per_batch) / speed
        print(
            f"{'+'.join(self.stage['arms'])} stage {self.stage['place']}/{self.stage['places']} ({self.stage['mixture']}): "
            f"{step * per_batch:,} of {self.stage['tokens']:,} tokens, loss {loss:.3f}, {speed:,.0f} tokens/s, "
            f"{_duration(left)} left in all",
            flush=True,
        )


class _Milestones(TrainerCallback):
    """Ask for held-out scores at evenly spaced steps and for checkpoints every so many tokens."""

    def __init__(self, evaluate_at: set[int], checkpoint_steps: int, first: bool) -> None:
        self.evaluate_at, self.checkpoint_steps, self.first = evaluate_at, checkpoint_steps, first
        self.trainer: StageTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.first and state.global_step == 0:
            self.trainer.evaluate()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_evaluate = state.global_step in self.evaluate_at
        due = self.checkpoint_steps and state.global_step % self.checkpoint_steps == 0
        control.should_save = bool(due) and state.global_step < state.max_steps
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.accelerator.wait_for_everyone()
        if self.trainer.accelerator.is_main_process:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(folder / CHECKPOINT_MARK, {"step": state.global_step})


def build_trainer(job: dict[str, Any], stage: dict[str, Any], tokenizer: Any, work: Path) -> StageTrainer:
    """A Trainer that starts from the stage's parent (weights only: its optimizer and schedule are new)."""
    params = job["params"]
    cpu = _device().type == "cpu"
    steps = stage["tokens"] // params["tokens_per_batch"]
    source = Path(job["stages_dir"]) / stage["parent"] / "model" if stage["parent"] else job["base"]
    transformers.set_seed(params["seed"])
    if cpu:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=params["rows_per_device"],
        gradient_accumulation_steps=1,  # set below: it depends on the number of processes
        learning_rate=stage.get("learning_rate", params["learning_rate"]),
        weight_decay=params["weight_decay"],
        adam_beta2=0.95,
        max_grad_norm=params["max_gradient_norm"],
        optim="adamw_torch_fused",
        bf16=job["launched"] and resolve_precision(params["precision"], _device()) == "bfloat16",  # else our autocast
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would hide exactly what must stop the run
        save_strategy="no",  # _Milestones asks
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        seed=params["seed"],
        dataloader_pin_memory=not cpu,
        use_cpu=cpu,
    )
    rows_a_step = params["tokens_per_batch"] // params["context_length"]
    arguments.gradient_accumulation_steps, rest = divmod(rows_a_step, params["rows_per_device"] * arguments.world_size)
    if rest or not arguments.gradient_accumulation_steps:
        raise TraitError(
            f"training: tokens_per_batch ({params['tokens_per_batch']:,}) is not a multiple of context_length x "
            f"rows_per_device x processes ({params['context_length']:,} x {params['rows_per_device']} x "
            f"{arguments.world_size}). Change one of them."
        )
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa")
    use_cache = model.config.use_cache
    if model.num_parameters() > GRADIENT_CHECKPOINTING_PARAMETERS:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    count = params["evaluations_per_stage"]
    interval = params["checkpoint_tokens"]
    milestones = _Milestones(
        {round(steps * index / count) for index in range(1, count + 1)},
        max(1, interval // params["tokens_per_batch"]) if interval else 0,
        first=stage["parent"] is None,
    )
    held_out = {
        name: encode(pairs, tokenizer, params["context_length"])
        for name, pairs in sorted(read_json(job["held_out"]).items())
    }
    trainer = StageTrainer(
        job, stage, held_out, model=model, args=arguments, train_dataset=Rows(work), callbacks=[milestones]
    )
    model.config.use_cache = use_cache  # Trainer turns it off, which would make generation from the saved model slow
    trainer.remove_callback(PrinterCallback)
    milestones.trainer = trainer
    return trainer


def resolve_precision(precision: str, device: torch.device) -> str:
    """bfloat16 where the hardware multiplies it fast (CUDA from Ampere on, CPUs with AMX), else float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return "bfloat16" if device.type == "cpu" and tiles() else "float32"


def log_rows(history: list[dict[str, Any]], stage: dict[str, Any]) -> list[dict[str, Any]]:
    """The stage's rows of the training log (no arm, no seed), with tokens counted from the base model on."""
    per_step = stage["tokens"] // stage["steps"]
    rows = []
    for entry in history:
        step, tokens = entry["step"], stage["tokens_before"] + entry["step"] * per_step
        for metric in sorted(entry):  # a history that went through a checkpoint has another order of keys
            if metric in ("loss", "learning_rate") or metric.startswith("held_out/"):
                rows.append({"step": step, "tokens": tokens, "metric": metric, "value": entry[metric]})
    return rows


def last_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint of a stage; torn ones are removed."""
    whole = []
    for folder in work.glob("checkpoint-*"):
        if (folder / CHECKPOINT_MARK).exists():
            whole.append(folder)
        elif os.environ.get("RANK", "0") == "0":
            shutil.rmtree(folder, ignore_errors=True)
    return str(max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]))) if whole else None


def _base_scores_path(job: dict[str, Any]) -> Path:
    """Where the untrained model's held-out scores are kept: every arm begins with them."""
    key = digest([job["base_digest"], job["held_out_digest"], job["params"]["precision"], job["params"]["context_length"]])
    return Path(job["stages_dir"]) / f"base-{key[:12]}.json"


def _device() -> torch.device:
    for kind, backend in (("cuda", torch.cuda), ("mps", torch.backends.mps)):
        if backend.is_available():
            return torch.device(kind)
    return torch.device("cpu")


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
