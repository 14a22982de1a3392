"""The Trainer of a stage: packed rows, its learning rate, cheap held-out scores, checkpoints that resume bit for bit."""

import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from trait_kit.engine import child
from trait_kit.engine.files import TraitError, read_json, read_yaml, write_json
from trait_kit.engine.machine import peak_memory_gb
from trait_kit.training.held_out import encode, score, token_losses
from trait_kit.training.learning_rate import wsd_factor
from trait_kit.training.plan import Job, Stage, processes
from trait_kit.training.tokens import Rows

_ALWAYS = read_yaml(Path(__file__).with_name("trainer.yaml"))
CHECKPOINT_MARK = "complete.json"  # written last: a checkpoint without it was torn by a kill
PROGRESS_SECONDS = 10.0
STOP = threading.Event()  # set by SIGTERM: finish the step, write a checkpoint and leave


class StageTrainer(Trainer, TrainerCallback):
    """One stage of a job, from its parent's weights alone: its optimizer and schedule are new.

    `rows` at once on each device; accumulation makes up the batch. `tokens_left`: in this stage and those after it. Held-out
    scores come at evenly spaced steps, checkpoints by minutes and when told to stop.
    """

    def __init__(self, job: Job, stage: Stage, tokenizer: Any, rows: int, tokens_left: int) -> None:
        transformers.set_seed(job.params.seed)
        self.job, self.stage, self.tokens_left = job, stage, tokens_left
        self.precision = job.settled_precision()
        arguments, context_length = _arguments(job, stage, self.precision, rows), job.params.context_length
        model = _model(job, stage, self.precision, arguments.device.type)
        texts = Rows(job.work / stage.name, context_length, tokenizer.eos_token_id)
        super().__init__(model=model, args=arguments, callbacks=[self], train_dataset=texts)
        self.model_accepts_loss_kwargs = True  # our loss is that of the whole batch, for every family of models
        self.remove_callback(PrinterCallback)
        self.held_out = {name: encode(texts, tokenizer, context_length) for name, texts in job.held_out.items()}
        count = job.params.evaluations_per_stage
        self._evaluate_at = {round(stage.steps * index / count) for index in range(1, count + 1)}
        self._begin = self._printed = self._saved = time.monotonic()
        self._evaluating, self._steps_before = 0.0, 0

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        if not self.stage.epochs and self.lr_scheduler is None:
            shape = num_training_steps, self.job.params.warmup_fraction, self.job.params.decay_fraction
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: wsd_factor(step, *shape))
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._steps_before = state.global_step
        if self.stage.parent is None and state.global_step == 0:
            self.evaluate()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_evaluate = state.global_step in self._evaluate_at
        late = 0 < 60 * self.job.params.checkpoint_minutes < time.monotonic() - self._saved
        stop, late = self._agreed(STOP.is_set()), self._agreed(late)
        control.should_training_stop |= stop
        control.should_save = (stop or late) and state.global_step < state.max_steps

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_json(
                Path(args.output_dir) / f"checkpoint-{state.global_step}" / CHECKPOINT_MARK, state.global_step
            )
        self._saved = time.monotonic()

    def _agreed(self, wish: bool) -> bool:
        """Whether any process wishes so; all ask at the same time."""
        if wish:
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        if self.model.config._attn_implementation == "flash_attention_2":  # finds documents in a single row only
            inputs = {name: tensor.reshape(1, -1) for name, tensor in inputs.items()}
        losses = token_losses(model, **inputs)
        return losses.sum() / num_items_in_batch * self.accelerator.num_processes  # whose gradients are averaged

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        began = time.monotonic()
        self.model.eval()
        scores = {name: score(self.model_wrapped, rows) for name, rows in self.held_out.items()}
        self.model.train()
        self._evaluating += time.monotonic() - began
        self.control.should_evaluate = False  # or it would be asked again at the end of the epoch
        self.log(scores)
        return scores

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for name, value in logs.items():
            if (name == "loss" or name.startswith("held_out/")) and not math.isfinite(value):
                raise TraitError(
                    f"training: {name} became {value} at step {self.state.global_step} of {self.stage.steps} in stage "
                    f"{self.stage.name}. Lower its learning_rate ({self.args.learning_rate:.1e}), or take precision float32."
                )
        super().log(logs, start_time)
        if "loss" in logs and self.accelerator.is_main_process:
            self._progress(logs["loss"])

    def save_whole(self, folder: Path) -> None:
        """`start`, in float32, for the stages that go on from it; where an arm ends `model`, in bfloat16 as it is served.

        With `precision: float32` both are in float32.
        """
        state = self.accelerator.get_state_dict(self.model_wrapped)
        if not self.accelerator.is_main_process:
            return
        if any(other.parent == self.stage.name for other in self.job.stages):
            _save(self.model, state, folder / "start", torch.float32)
        if self.stage.ends_arm:
            served = torch.float32 if self.job.params.precision == "float32" else torch.bfloat16
            _save(self.model, state, folder / "model", served)

    def report(self, seconds: float) -> dict[str, Any]:
        cuda = self.args.device.type == "cuda"
        return {
            "seconds": seconds,
            "tokens_per_second": self._speed(),
            "micro_batch": self.args.per_device_train_batch_size,
            "peak_memory_gb": torch.cuda.max_memory_allocated() / 2**30 if cuda else peak_memory_gb(),
            "precision": self.precision,
            "attention": self.model.config._attn_implementation,
            "device": str(self.args.device),
            "processes": processes(),
            "sharding": sharding(),
        }

    def _speed(self) -> float:
        tokens = (self.state.global_step - self._steps_before) * self.stage.tokens_per_batch
        return tokens / (time.monotonic() - self._begin - self._evaluating)

    def _progress(self, loss: float) -> None:
        stage, done = self.stage, self.state.global_step * self.stage.tokens_per_batch
        if time.monotonic() - self._printed < PROGRESS_SECONDS and done < stage.tokens:
            return
        self._printed, speed = time.monotonic(), self._speed()
        write_json(Path(self.args.output_dir) / "live.json", log_rows(self.state.log_history, stage))
        child.tell(
            f"{'+'.join(stage.arms)} stage {stage.place} ({stage.mixture}): {done:,} of {stage.tokens:,} tokens, "
            f"loss {loss:.3f}, {speed:,.0f} tokens/s, {(self.tokens_left - done) / speed / 60:.1f} min left in all"
        )


def last_checkpoint(work: Path) -> str | None:
    whole = work.glob(f"checkpoint-*/{CHECKPOINT_MARK}")
    newest = max(whole, key=lambda mark: int(mark.parent.name.rpartition("-")[2]), default=None)
    return str(newest.parent) if newest else None


def sharding() -> str:
    """What the launcher really spreads over the processes, whatever a file says."""
    kinds = {"ACCELERATE_USE_FSDP": "fsdp", "ACCELERATE_USE_DEEPSPEED": "zero"}
    asked = [kind for name, kind in kinds.items() if os.environ.get(name) == "true"]
    return next(iter(asked), "ddp" if processes() > 1 else "none")


def use_cpu() -> bool:
    """Whether to tell accelerate that there are CPUs only, with which it silently leaves sharding out."""
    return torch.accelerator.current_accelerator() is None and sharding() in ("none", "ddp")


def log_rows(history: list[dict[str, Any]], stage: Stage) -> list[dict[str, Any]]:
    """The stage's rows of the training log (no arm, no seed), with tokens counted from the base model on."""
    return [
        {
            "stage": stage.place,
            "step": entry["step"],
            "tokens": stage.tokens_before + entry["step"] * stage.tokens_per_batch,
            "metric": metric,
            "value": entry[metric],
        }
        for entry in history
        for metric in sorted(entry)  # a history that went through a checkpoint has another order of keys
        if metric in ("loss", "learning_rate") or metric.startswith(("held_out/", "task/"))
    ]


def _arguments(job: Job, stage: Stage, precision: str, rows: int) -> TrainingArguments:
    params, cpu = job.params, use_cpu()
    accumulation, rest = divmod(stage.tokens_per_batch, params.context_length * processes() * rows)
    if rest or not accumulation:
        raise TraitError(
            f"training: make tokens_per_batch ({stage.tokens_per_batch:,}) a multiple of context_length x "
            f"rows_per_device x processes ({params.context_length:,} x {rows} x {processes()})."
        )
    if cpu:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    # The experiment decides, not the launcher's file.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if precision == "bfloat16" else "no"
    return TrainingArguments(
        output_dir=str(job.work / stage.name),
        max_steps=stage.steps,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        learning_rate=stage.learning_rate,
        warmup_steps=params.warmup_fraction,
        bf16=precision == "bfloat16",
        seed=params.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and processes() > 1 else None,
        **_ALWAYS,
    )


def _model(job: Job, stage: Stage, precision: str, device: str) -> Any:
    flash = device == "cuda" and precision == "bfloat16" and transformers.utils.is_flash_attn_2_available()
    source = job.stages_dir / stage.parent / "start" if stage.parent else job.base
    attention = "flash_attention_2" if flash else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation=attention)
    if job.params.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _save(model: Any, state: dict[str, torch.Tensor], folder: Path, dtype: torch.dtype) -> None:
    cast: dict[int, torch.Tensor] = {}  # tied weights once
    tensors = {name: cast.setdefault(one.data_ptr(), one.to(dtype)) for name, one in state.items()}
    model.save_pretrained(folder, state_dict=tensors)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "dtype": str(dtype).removeprefix("torch.")})
