"""The Trainer of a stage: packed rows, its schedule, cheap held-out scores, checkpoints that resume bit for bit."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import statistics
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainingArguments

from trait_kit.engine.files import TraitError, digest, read_json, write_json
from trait_kit.engine.machine import matrix_rate
from trait_kit.training.checkpoints import CHECKPOINT_MARK, Milestones
from trait_kit.training.held_out import bits_per_byte, choice_accuracy, encode, encode_choices, token_losses
from trait_kit.training.launch import processes, say, sharding
from trait_kit.training.plan import Job, Stage
from trait_kit.training.schedule import cosine_factor, wsd_factor
from trait_kit.training.throughput import flops_per_token
from trait_kit.training.tokens import Rows

PROGRESS_SECONDS = 10.0
LOSSES_WATCHED, RISES_ALLOWED = 50, 3  # a rise is measured against the median of so many losses before it


class StageTrainer(Trainer):
    """One stage of a job."""

    job: Job
    stage: Stage
    held_out: dict[str, list]
    precision: str
    flops: float  # of a training token
    tokens_left: int  # in this stage and those after it
    scoring = False  # at this step also the tasks, not only the held-out texts

    def begin(self) -> StageTrainer:
        lora = self.job.params.lora_rank
        self.core = self.model.get_base_model() if lora else self.model
        self._begin = self._printed = time.monotonic()
        self._evaluating, self._first_step, self._stopped_at = 0.0, None, None
        self._losses: deque[float] = deque(maxlen=LOSSES_WATCHED)
        self._rises = 0
        return self

    def _get_train_sampler(self, *arguments: Any, **named: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # the plan has shuffled the rows

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        if self.lr_scheduler is None:
            params = self.job.params
            factor, fractions = wsd_factor, (params.warmup_fraction, params.decay_fraction)
            if self.stage.epochs:
                factor, fractions = cosine_factor, fractions[:1]
            self.lr_scheduler = LambdaLR(
                optimizer or self.optimizer, lambda step: factor(step, num_training_steps, *fractions)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self.core.config._attn_implementation == "flash_attention_2":  # finds documents in a single row only
            inputs = {name: tensor.reshape(1, -1) for name, tensor in inputs.items()}
        with self._autocast():
            if self.job.launched:  # the wrapped model, and the library's loss
                return super().compute_loss(model, {**inputs, "use_cache": False}, return_outputs, num_items_in_batch)
            losses = token_losses(self.core, inputs["input_ids"], inputs["position_ids"], inputs["labels"])
        return losses.sum() / num_items_in_batch

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Held-out bits per byte of every set, and where it is time the tasks; the untrained model is scored once."""
        began = time.monotonic()
        untrained = not self.state.global_step
        kept = self._base_scores_path() if untrained else None
        if kept and kept.exists():
            scores = read_json(kept)
        else:
            self.model.eval()
            forward = self.model_wrapped if self.job.launched else None
            scores = {}
            with self._autocast():
                for name, items in self.held_out.items():
                    if not name.startswith("task/"):
                        scores[f"held_out/{name}"] = bits_per_byte(self.core, items, forward=forward)
                    elif self.scoring or untrained:
                        scores[name] = choice_accuracy(self.core, items, forward=forward)
            self.model.train()
            if kept and self.accelerator.is_main_process:
                write_json(kept, scores)
        self._evaluating += time.monotonic() - began
        self.control.should_evaluate = False  # or it would be asked again at the end of the epoch
        self.log(scores)
        return scores

    def _base_scores_path(self) -> Path:
        """Where the untrained model's scores are kept: every arm begins with them."""
        job = self.job
        key = digest([job.base_digest, job.held_out_digest, self.precision, job.params.context_length])
        return job.stages_dir / f"base-{key[:12]}.json"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for name, value in logs.items():
            if (name == "loss" or name.startswith("held_out/")) and not math.isfinite(value):
                self._refuse(f"{name} became {value}")
        super().log(logs, start_time)
        if "loss" in logs:
            self._watch_rise(logs["loss"])
            if self.accelerator.is_main_process:
                self._progress(logs["loss"])

    def _watch_rise(self, loss: float) -> None:
        allowed = self.job.params.max_loss_rise
        usual = statistics.median(self._losses) if len(self._losses) >= LOSSES_WATCHED // 5 else math.inf
        self._rises = self._rises + 1 if allowed and loss > usual + allowed else 0
        if self._rises >= RISES_ALLOWED:
            self._refuse(f"the loss rose from about {usual:.2f} to {loss:.2f} and stayed there for {RISES_ALLOWED} steps,")
        if not self._rises:
            self._losses.append(loss)

    def _refuse(self, what: str) -> None:
        rate = "fine_tune_learning_rate" if self.stage.epochs else "learning_rate"
        raise TraitError(
            f"training: {what} at step {self.state.global_step} of {self.state.max_steps} in stage {self.stage.name}. "
            f"Nothing of this stage is kept but its checkpoints. Lower {rate} (it is {self.args.learning_rate:.1e}), "
            "or set precision to float32, and run again."
        )

    def stop_here(self) -> None:
        """Asked to leave: the last whole step is what the checkpoint holds, also in the middle of accumulating the next."""
        self._stopped_at = self.state.global_step
        self.control.should_training_stop = True
        done = Path(self.args.output_dir) / f"checkpoint-{self._stopped_at}" / CHECKPOINT_MARK
        self.control.should_save = self._stopped_at > 0 and not done.exists()

    def raise_if_stopped(self) -> None:
        if self._stopped_at is not None and self._stopped_at < self.state.max_steps:
            kept = "A checkpoint is written: run the same command again to go on from that step." if self._stopped_at else ""
            raise TraitError(
                f"training: told to stop (SIGTERM) after step {self._stopped_at} of {self.state.max_steps} of stage "
                f"{self.stage.name}. {kept}"
            )

    def save_whole(self, folder: Path) -> None:
        """The complete model: `start`, in float32, for the stages that go on from it; `model`, where an arm ends.

        The latter is in bfloat16, as it is served, at half the size; in float32 where `precision: float32` asks for it.
        Adapters are merged into the weights.
        """
        if self.job.params.lora_rank:
            self.core = self.model.cpu().float().merge_and_unload()
            state = self.core.state_dict()
        else:
            state = self.accelerator.get_state_dict(self.model_wrapped)
        if not self.accelerator.is_main_process:
            return
        if any(other.parent == self.stage.name for other in self.job.stages) or self.job.params.keep_stages:
            _save(self.core, state, folder / "start", torch.float32)
        if self.stage.ends_arm:
            exact = self.job.params.precision == "float32"
            _save(self.core, state, folder / "model", torch.float32 if exact else torch.bfloat16)

    def report(self, seconds: float) -> dict[str, Any]:
        """What the report wants to know beside the scores: speed, cost, device and precision; not part of any key."""
        steps = self.state.global_step - (self._first_step or 0)
        training = max(time.monotonic() - self._begin - self._evaluating, 1e-9)
        speed = steps * self.stage.tokens_per_batch / training
        device_hours = seconds * self.args.world_size / 3600
        return {
            "seconds": seconds,
            "evaluation_seconds": self._evaluating,
            "tokens_per_second": speed,
            "mfu": self._mfu(speed),
            "matrix_rate": matrix_rate(self.args.device.type, self.precision),
            "device_hours": device_hours,
            "cost": device_hours * self.job.params.price_per_gpu_hour,
            "micro_batch": self.args.per_device_train_batch_size,
            "peak_memory_gb": _peak_memory(self.args.device) / 1e9,
            "precision": self.precision,
            "attention": self.core.config._attn_implementation,
            "device": str(self.args.device),
            "processes": self.args.world_size,
            "sharding": sharding(),
        }

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.precision == "bfloat16" and not self.job.launched:
            return torch.autocast(self.args.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _mfu(self, tokens_per_second: float) -> float:
        rate = matrix_rate(self.args.device.type, self.precision) * self.args.world_size
        return tokens_per_second * self.flops / rate

    def _progress(self, loss: float) -> None:
        step, stage, now = self.state.global_step, self.stage, time.monotonic()
        if self._first_step is None:
            self._first_step = step - 1
        if now - self._printed < PROGRESS_SECONDS and step < self.state.max_steps:
            return
        self._printed = now
        done = step * stage.tokens_per_batch
        speed = (step - self._first_step) * stage.tokens_per_batch / (now - self._begin)  # evaluations included
        left = (self.tokens_left - done) / speed
        price = self.job.params.price_per_gpu_hour
        cost = f", {left / 3600 * self.args.world_size * price:,.2f} to pay for it" if price else ""
        duration = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        write_json(Path(self.args.output_dir) / "live.json", log_rows(self.state.log_history, stage))
        say(
            f"{'+'.join(stage.arms)} stage {stage.place}/{stage.places} ({stage.mixture}): {done:,} of {stage.tokens:,} "
            f"tokens, loss {loss:.3f}, {speed:,.0f} tokens/s (MFU {self._mfu(speed):.0%}), {duration} left in all{cost}"
        )


def build_trainer(job: Job, stage: Stage, tokenizer: Any, rows: int, tokens_left: int) -> StageTrainer:
    """A Trainer that starts from the stage's parent (weights only: its optimizer and schedule are new).

    `rows` at once on each device; accumulation makes up the batch.
    """
    params, work = job.params, job.work / stage.name
    precision, device = job.settled_precision(), best_device()
    transformers.set_seed(params.seed)
    if device == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    arguments = _arguments(job, stage, precision, device)
    accumulation, rest = divmod(stage.tokens_per_batch, params.context_length * arguments.world_size * rows)
    if rest or not accumulation:
        raise TraitError(
            f"training: tokens_per_batch ({stage.tokens_per_batch:,}) is not a multiple of context_length x "
            f"rows_per_device x processes ({params.context_length:,} x {rows} x {arguments.world_size}). Change one of them."
        )
    arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps = rows, accumulation
    matrix_rate(arguments.device.type, precision)  # measured while the device is empty
    model = _model(job, stage, precision, arguments.device.type)
    use_cache, n_parameters = model.config.use_cache, model.num_parameters()
    flops = flops_per_token(model.config, n_parameters, stage.mean_attended)
    if params.lora_rank:
        model = _with_adapters(model, params.lora_rank)
    milestones = Milestones(stage, params)
    rows_of_text = Rows(work, params.context_length, tokenizer.eos_token_id)
    trainer = StageTrainer(model=model, args=arguments, callbacks=[milestones], train_dataset=rows_of_text)
    model.config.use_cache = use_cache  # Trainer turns it off, which would make generation from the saved model slow
    trainer.remove_callback(PrinterCallback)
    trainer.job, trainer.stage, trainer.precision, trainer.flops = job, stage, precision, flops
    trainer.tokens_left = tokens_left
    trainer.held_out = {
        name: (encode_choices if name.startswith("task/") else encode)(pairs, tokenizer, params.context_length)
        for name, pairs in sorted(read_json(job.work / "held_out.json").items())
    }
    milestones.trainer = trainer
    return trainer.begin()


def best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def log_rows(history: list[dict[str, Any]], stage: Stage) -> list[dict[str, Any]]:
    """The stage's rows of the training log (no arm, no seed), with tokens counted from the base model on.

    Where several of the paper's stages share a schedule, each row says to which of them it belongs.
    """
    ends = [0]
    for part in [] if stage.together else stage.parts:
        ends.append(ends[-1] + part.steps)
    rows = []
    for entry in history:
        at = entry["step"]
        part = max(0, sum(at > end for end in ends) - 1)
        tokens = stage.tokens_before + at * stage.tokens_per_batch
        place = {"stage": stage.place + part, "step": at - ends[part], "tokens": tokens}
        for metric in sorted(entry):  # a history that went through a checkpoint has another order of keys
            if metric in ("loss", "learning_rate") or metric.startswith(("held_out/", "task/")):
                rows.append({**place, "metric": metric, "value": entry[metric]})
    return rows


def _arguments(job: Job, stage: Stage, precision: str, device: str) -> TrainingArguments:
    params = job.params
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(job.folder / "tensorboard"))
    if job.launched:  # the experiment decides, not the launcher's file
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if precision == "bfloat16" else "no"
    return TrainingArguments(
        output_dir=str(job.work / stage.name),
        max_steps=stage.steps,
        per_device_train_batch_size=1,  # set later, with the accumulation
        learning_rate=stage.learning_rate,
        weight_decay=params.weight_decay,
        adam_beta2=0.95,
        optim="adamw_torch_fused",
        bf16=job.launched and precision == "bfloat16",  # else our autocast
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would hide exactly what must stop the run
        save_strategy="no",  # Milestones asks
        report_to=params.report_to,
        run_name=stage.name,
        disable_tqdm=True,
        seed=params.seed,
        dataloader_pin_memory=device == "cuda",
        use_cpu=device == "cpu" and sharding() in ("none", "ddp"),  # the others would silently be left out
        ddp_backend="gloo" if device == "cpu" and processes() > 1 else None,
        ddp_find_unused_parameters=False,
    )


def _model(job: Job, stage: Stage, precision: str, device: str) -> Any:
    params = job.params
    flash = device == "cuda" and precision == "bfloat16" and transformers.utils.is_flash_attn_2_available()
    attention = "flash_attention_2" if flash else "sdpa"
    frozen = torch.bfloat16 if params.lora_rank and precision == "bfloat16" else torch.float32
    source = job.stages_dir / stage.parent / "start" if stage.parent else job.base
    model = AutoModelForCausalLM.from_pretrained(source, dtype=frozen, attn_implementation=attention)
    if params.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _with_adapters(model: Any, rank: int) -> Any:
    """Low-rank adapters on every linear layer but the output (Hu et al., 2021), scaled by 2."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise TraitError("training: lora_rank needs the package peft: pip install 'trait-kit[lora]'.") from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def _save(model: Any, state: dict[str, torch.Tensor], folder: Path, dtype: torch.dtype) -> None:
    """Weights in `dtype`, tied ones once, and a configuration that says so."""
    cast: dict[int, torch.Tensor] = {}
    tensors = {name: cast.setdefault(one.data_ptr(), one.to(dtype)) for name, one in state.items()}
    model.save_pretrained(folder, state_dict=tensors)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "dtype": str(dtype).removeprefix("torch.")})


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
