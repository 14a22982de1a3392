"""The Trainer of a stage: packed rows, its schedule, cheap held-out scores, checkpoints that resume bit for bit."""

from __future__ import annotations

import contextlib
import functools
import gc
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
from trait_kit.models import resolve_precision
from trait_kit.training import throughput
from trait_kit.training.checkpoints import CHECKPOINT_MARK, Milestones
from trait_kit.training.fit import Fit, best_device, sharding
from trait_kit.training.held_out import bits_per_byte, choice_accuracy, encode, encode_choices, token_losses
from trait_kit.training.rows import Rows
from trait_kit.training.schedule import cosine_factor, wsd_factor

PROGRESS_SECONDS = 10.0
LOSSES_WATCHED, RISES_ALLOWED = 50, 3  # a rise is measured against the median of so many losses before it


class StageTrainer(Trainer):
    """One stage. `job` and `stage` are the dictionaries that plan.py and stages.py write into job.json."""

    def __init__(
        self, job: dict[str, Any], stage: dict[str, Any], held_out: dict[str, list], fit: Fit, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.job, self.stage, self.held_out, self.fit = job, stage, held_out, fit
        self.precision = resolve_precision(job["params"]["precision"], self.args.device)
        self.plain = not (job["launched"] or job["params"]["fused_loss"])  # our own loss; else that of the model
        self.core = self.model.get_base_model() if job["params"]["lora_rank"] else self.model
        self.flat = fit.attention == "flash_attention_2"  # finds documents by position in a single row only
        self.scoring = False  # at this step also the tasks, not only the held-out texts
        self._begin = self._printed = time.monotonic()
        self._evaluating, self._first_step = 0.0, None
        self._losses: deque[float] = deque(maxlen=LOSSES_WATCHED)
        self._rises = 0
        self._flops = throughput.flops_per_token(self.core.config, fit.parameters, stage["mean_attended"])
        self._stopped_at: int | None = None

    def _get_train_sampler(self, *arguments: Any, **named: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # the plan has shuffled the rows

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
        if self.flat:
            inputs = {name: tensor.reshape(1, -1) for name, tensor in inputs.items()}
        if not self.plain:
            with self._autocast():
                return super().compute_loss(model, {**inputs, "use_cache": False}, return_outputs, num_items_in_batch)
        with self._autocast():
            losses = token_losses(self.core, inputs["input_ids"], inputs["position_ids"], inputs["labels"])
        return losses.sum() / num_items_in_batch

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Held-out bits per byte of every set, and where it is time the tasks; the untrained model is scored once."""
        began = time.monotonic()
        kept = _base_scores_path(self.job) if not self.state.global_step else None
        if kept and kept.exists():
            scores = read_json(kept)
        else:
            self.model.eval()
            forward = self.model_wrapped if self.job["launched"] else None
            with self._autocast(), torch.compiler.set_stance("force_eager"):  # items of all lengths: nothing to compile
                scores = {
                    f"held_out/{name}": bits_per_byte(self.core, items, forward=forward)
                    for name, items in self.held_out.items()
                    if not name.startswith("task/")
                }
                tasks = {name: items for name, items in self.held_out.items() if name.startswith("task/")}
                if self.scoring or not self.state.global_step:
                    scores |= {name: choice_accuracy(self.core, items, forward=forward) for name, items in tasks.items()}
            self.model.train()
            if kept and self.accelerator.is_main_process:
                write_json(kept, scores)
        self._evaluating += time.monotonic() - began
        self.control.should_evaluate = False  # or it would be asked again at the end of the epoch
        self.log(scores)
        return scores

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for name in ("loss", *(name for name in logs if name.startswith("held_out/"))):
            if not math.isfinite(logs.get(name, 0.0)):
                self._refuse(f"{name} became {logs[name]}")
        super().log(logs, start_time)
        if "loss" in logs:
            self._watch_rise(logs["loss"])
            if self.accelerator.is_main_process:
                self._progress(logs["loss"])

    def _watch_rise(self, loss: float) -> None:
        allowed = self.job["params"]["max_loss_rise"]
        usual = statistics.median(self._losses) if len(self._losses) >= LOSSES_WATCHED // 5 else math.inf
        self._rises = self._rises + 1 if allowed and loss > usual + allowed else 0
        if self._rises >= RISES_ALLOWED:
            self._refuse(f"the loss rose from about {usual:.2f} to {loss:.2f} and stayed there for {RISES_ALLOWED} steps,")
        if not self._rises:
            self._losses.append(loss)

    def _refuse(self, what: str) -> None:
        rate = "fine_tune_learning_rate" if self.stage.get("epochs") else "learning_rate"
        raise TraitError(
            f"training: {what} at step {self.state.global_step} of {self.state.max_steps} in stage {self.stage['name']}. "
            f"Nothing of this stage is kept but its checkpoints. Lower {rate} (it is {self.args.learning_rate:.1e}) or "
            "max_gradient_norm, or set precision to float32, and run again."
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
                f"{self.stage['name']}. {kept}"
            )

    def save_whole(self, folder: Path) -> None:
        """The model alone, complete, in float32 safetensors; adapters are merged into it."""
        if self.job["params"]["lora_rank"]:
            model = self.model.cpu().float().merge_and_unload()
            model.save_pretrained(folder)
            return
        if self.is_fsdp_enabled:
            self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        self.save_model(str(folder))
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads

    def report(self, seconds: float) -> dict[str, Any]:
        """What the report wants to know beside the scores: speed, cost, device and precision; not part of any key."""
        steps = self.state.global_step - (self._first_step or 0)
        training = max(time.monotonic() - self._begin - self._evaluating, 1e-9)
        speed = steps * self.stage["tokens_per_batch"] / training
        processes = self.args.world_size
        return {
            "evaluation_seconds": self._evaluating,
            "tokens_per_second": speed,
            "mfu": self._mfu(speed),
            "matrix_rate": _matrix_rate(self.args.device.type, self.precision),
            "flops_per_token": self._flops,
            "device_hours": seconds * processes / 3600,
            "cost": throughput.cost(seconds, processes, self.job["params"]["price_per_gpu_hour"]),
            "micro_batch": self.args.per_device_train_batch_size,
            "activation_checkpointing": self.fit.checkpointing,
            "attention": self.fit.attention,
            "memory_estimate_gb": self.fit.memory.total / 1e9,
            "peak_memory_gb": _peak_memory(self.args.device) / 1e9,
            "precision": self.precision,
            "device": str(self.args.device),
            "processes": processes,
            "threads": torch.get_num_threads(),
            "parameters": self.fit.parameters,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    def release(self) -> None:
        """Drop weights and optimizer state: the next stage of this process needs their memory."""
        self.accelerator.free_memory()
        self.model = self.model_wrapped = self.core = self.optimizer = self.lr_scheduler = None
        self.callback_handler.model = self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.precision == "bfloat16" and not self.job["launched"]:
            return torch.autocast(self.args.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _mfu(self, tokens_per_second: float) -> float:
        rate = _matrix_rate(self.args.device.type, self.precision)
        return throughput.mfu(tokens_per_second, self._flops, rate, self.args.world_size)

    def _progress(self, loss: float) -> None:
        step, last = self.state.global_step, self.state.global_step == self.state.max_steps
        if self._first_step is None:
            self._first_step = step - 1
        now = time.monotonic()
        if now - self._printed < PROGRESS_SECONDS and not last:
            return
        self._printed = now
        per_batch = self.stage["tokens_per_batch"]
        elapsed = now - self._begin
        speed = (step - self._first_step) * per_batch / elapsed  # evaluations included: it predicts the time left
        left = (self.job["tokens_left"] - step * per_batch) / speed
        price = self.job["params"]["price_per_gpu_hour"]
        cost = f", {throughput.cost(left, self.args.world_size, price):,.2f} to pay for it" if price else ""
        write_json(Path(self.args.output_dir) / "live.json", log_rows(self.state.log_history, self.stage))
        stage = self.stage
        print(
            f"> {'+'.join(stage['arms'])} stage {stage['place']}/{stage['places']} ({stage['mixture']}): "
            f"{step * per_batch:,} of {stage['tokens']:,} tokens, loss {loss:.3f}, {speed:,.0f} tokens/s "
            f"(MFU {self._mfu(speed):.0%}), {_duration(left)} left in all{cost}",
            flush=True,
        )


def build_trainer(job: dict[str, Any], stage: dict[str, Any], tokenizer: Any, work: Path) -> StageTrainer:
    """A Trainer that starts from the stage's parent (weights only: its optimizer and schedule are new)."""
    params = job["params"]
    cpu = best_device().type == "cpu"
    steps = stage["tokens"] // stage["tokens_per_batch"]
    source = Path(job["stages_dir"]) / stage["parent"] / "model" if stage["parent"] else job["base"]
    precision = resolve_precision(params["precision"], best_device())
    transformers.set_seed(params["seed"])
    if cpu:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(Path(job["stages_dir"]).parent / "tensorboard"))
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=1,  # set below, with the accumulation: they depend on the number of processes
        learning_rate=stage.get("learning_rate", params["learning_rate"]),
        weight_decay=params["weight_decay"],
        adam_beta2=0.95,
        max_grad_norm=params["max_gradient_norm"],
        optim="adamw_torch_fused",
        bf16=job["launched"] and precision == "bfloat16",  # else our autocast
        use_liger_kernel=params["fused_loss"],
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would hide exactly what must stop the run
        save_strategy="no",  # _Milestones asks
        report_to=params["report_to"],
        run_name=stage["name"],
        disable_tqdm=True,
        seed=params["seed"],
        dataloader_pin_memory=not cpu,
        use_cpu=cpu and sharding() == "none",  # the others would silently be left out
        ddp_backend="gloo" if cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        ddp_find_unused_parameters=False,
    )
    fit = Fit(job, stage, arguments, work)
    arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps = fit.rows, fit.accumulation
    if arguments.process_index == 0:
        print(f"> {fit}\n{fit.memory}", flush=True)  # the details go to the log only
    _matrix_rate(arguments.device.type, precision)  # measured while the device is empty
    frozen = torch.bfloat16 if params["lora_rank"] and precision == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(source, dtype=frozen, attn_implementation=fit.attention)
    use_cache = model.config.use_cache
    if fit.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if params["compile_layers"]:
        for layer in [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]:
            layer.compile()
    if params["lora_rank"]:
        model = _with_adapters(model, params["lora_rank"])
    held_out = {
        name: (encode_choices if name.startswith("task/") else encode)(pairs, tokenizer, params["context_length"])
        for name, pairs in sorted(read_json(job["held_out"]).items())
    }
    milestones = Milestones(stage, params, steps)
    trainer = StageTrainer(
        job, stage, held_out, fit, model=model, args=arguments, callbacks=[milestones],
        train_dataset=Rows(work, params["context_length"], tokenizer.eos_token_id),
    )  # fmt: skip
    model.config.use_cache = use_cache  # Trainer turns it off, which would make generation from the saved model slow
    trainer.remove_callback(PrinterCallback)
    milestones.trainer = trainer
    return trainer


def _with_adapters(model: Any, rank: int) -> Any:
    """Low-rank adapters on every linear layer but the output (Hu et al., 2021), scaled by 2."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise TraitError("training: lora_rank needs the package peft: pip install 'trait-kit[lora]'.") from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def log_rows(history: list[dict[str, Any]], stage: dict[str, Any]) -> list[dict[str, Any]]:
    """The stage's rows of the training log (no arm, no seed), with tokens counted from the base model on.

    Where several of the paper's stages share a schedule, each row says to which of them it belongs.
    """
    per_step = stage["tokens"] // stage["steps"]
    ends = [0]
    for part in [] if stage["together"] else stage["parts"]:
        ends.append(ends[-1] + part["steps"])
    rows = []
    for entry in history:
        at = entry["step"]
        part = max(0, sum(at > end for end in ends) - 1)
        place = {"stage": stage["place"] + part, "step": at - ends[part], "tokens": stage["tokens_before"] + at * per_step}
        for metric in sorted(entry):  # a history that went through a checkpoint has another order of keys
            if metric in ("loss", "learning_rate") or metric.startswith(("held_out/", "task/")):
                rows.append({**place, "metric": metric, "value": entry[metric]})
    return rows


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def halve_micro_batch(trainer: StageTrainer, work: Path) -> str:
    """Note the next smaller micro-batch for this stage and say so; TraitError where there is none.

    Among several processes the others wait for this one, so the whole launch has to begin anew, with the smaller one.
    """
    args = trainer.args
    rows, in_all = args.per_device_train_batch_size, args.per_device_train_batch_size * args.gradient_accumulation_steps
    smaller = max((count for count in range(1, rows) if in_all % count == 0), default=0)
    if not smaller:
        raise TraitError(
            f"training: memory ran out with a micro-batch of one row of {trainer.job['params']['context_length']:,} tokens. "
            "Lower context_length, set activation_checkpointing to always, use lora_rank, or shard over more processes."
        )
    write_json(work / "micro_batch.json", {"rows": smaller})
    line = (
        f"Memory ran out with {rows} rows at once: {smaller} at once and {in_all // smaller} times a step from here on. "
        f"The batch stays {trainer.stage['tokens_per_batch']:,} tokens."
    )
    if args.world_size > 1:
        raise TraitError(f"training: {line} Run the same command again.")
    return line


@functools.lru_cache(maxsize=4)
def _matrix_rate(device: str, precision: str) -> float:
    return throughput.measured_matrix_rate(torch.device(device), getattr(torch, precision))


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _base_scores_path(job: dict[str, Any]) -> Path:
    """Where the untrained model's held-out scores are kept: every arm begins with them."""
    key = digest([job["base_digest"], job["held_out_digest"], job["params"]["precision"], job["params"]["context_length"]])
    return Path(job["stages_dir"]) / f"base-{key[:12]}.json"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
