"""How a stage fits its device: micro-batch, recomputation, attention, precision; decided before any weights are loaded."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, TrainingArguments

from trait_kit.engine.files import TraitError, read_json
from trait_kit.models import resolve_precision
from trait_kit.training import memory


class Fit:
    """Rows at once, accumulation, recomputation and attention of a stage, and the memory that they are estimated to take."""

    def __init__(self, job: dict[str, Any], stage: dict[str, Any], arguments: TrainingArguments, work: Path) -> None:
        params, device = job["params"], arguments.device
        precision = resolve_precision(params["precision"], device)
        config = AutoConfig.from_pretrained(job["base"])
        self.attention = _attention(params["attention"], device, precision)
        rows_a_step = stage["tokens_per_batch"] // params["context_length"] // arguments.world_size
        self.available = int(smallest_of_all(memory.available_bytes(device), arguments))

        def estimate(rows: int, checkpointing: bool) -> memory.Memory:
            return memory.estimate(
                config, rows=rows, context_length=params["context_length"], autocast=precision == "bfloat16",
                checkpointing=checkpointing, processes=arguments.world_size, sharding=sharding(),
                lora_rank=params["lora_rank"], fused_loss=params["fused_loss"], flash=self.attention != "sdpa",
            )  # fmt: skip

        smaller = work / "micro_batch.json"  # memory ran out with more
        wanted = read_json(smaller)["rows"] if smaller.exists() else params["rows_per_device"]
        self.checkpointing = params["activation_checkpointing"] == "always"
        if params["activation_checkpointing"] == "auto":
            self.checkpointing = estimate(wanted or 1, False).total > 0.9 * self.available
        find = functools.partial(estimate, checkpointing=self.checkpointing)
        self.rows = wanted or memory.largest_micro_batch(find, self.available, rows_a_step)
        self.memory = find(self.rows)
        state = self.memory.weights + self.memory.gradients + self.memory.optimizer
        if state > self.available:
            raise TraitError(
                f"training: weights, gradients and optimizer state alone take {state / 1e9:.1f} GB, and "
                f"{self.available / 1e9:.1f} GB are free on {device}. Take a smaller base_model or lora_rank, or more "
                f"processes with params/accelerate/fsdp.yaml.\n{self.memory}"
            )
        self.parameters = memory.model_shape(config).parameters
        self.device = arguments.device
        self.accumulation, rest = divmod(rows_a_step, self.rows)
        if rest or not self.accumulation or stage["tokens_per_batch"] % (params["context_length"] * arguments.world_size):
            raise TraitError(
                f"training: tokens_per_batch ({stage['tokens_per_batch']:,}) is not a multiple of context_length x "
                f"rows_per_device x processes ({params['context_length']:,} x {self.rows} x {arguments.world_size}). "
                "Change one of them."
            )

    def __str__(self) -> str:
        recomputed = ", activations recomputed" if self.checkpointing else ""
        return (
            f"Micro-batch: {self.rows} row(s), {self.accumulation} times a step{recomputed}; estimated memory "
            f"{self.memory.total / 1e9:.1f} GB of {self.available / 1e9:.1f} GB free on {self.device}."
        )


def check_room(job: dict[str, Any], stages: list[dict[str, Any]]) -> None:
    """TraitError where the disk cannot hold the models and checkpoints to come, or a kernel asked for is not there."""
    params = job["params"]
    size = 4 * memory.model_shape(AutoConfig.from_pretrained(job["base"])).parameters
    checkpoints = 3 * size * (params["checkpoints_kept"] + 1)  # weights and two moments
    checkpoints *= bool(params["checkpoint_tokens"] or params["checkpoint_minutes"])
    needed, free = size * len(stages) + checkpoints, shutil.disk_usage(job["stages_dir"]).free
    if needed > free:
        raise TraitError(
            f"training: {len(stages)} model(s) and the checkpoints take {needed / 1e9:,.1f} GB on the disk of "
            f"{job['stages_dir']}, which has {free / 1e9:,.1f} GB left. Free some space, train fewer arms, or lower "
            "checkpoints_kept."
        )
    if params["fused_loss"] and not (torch.cuda.is_available() and transformers.utils.is_liger_kernel_available()):
        raise TraitError("training: fused_loss needs a CUDA device and the package liger-kernel. Set it to false.")


def sharding() -> str:
    """What the launcher has been configured to spread over the processes: none, zero1 or fsdp."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return "fsdp"
    return "zero1" if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" else "none"


def _attention(wanted: str, device: torch.device, precision: str) -> str:
    """Flash attention reads several documents in a row without a mask; torch's own needs one, of context_length squared."""
    installed = device.type == "cuda" and transformers.utils.is_flash_attn_2_available()
    if wanted == "auto":
        return "flash_attention_2" if installed and precision == "bfloat16" else "sdpa"
    if wanted == "flash_attention_2" and not (installed and precision == "bfloat16"):
        raise TraitError("training: attention flash_attention_2 needs CUDA, bfloat16 and flash-attn. Set it to auto.")
    return wanted


def smallest_of_all(value: int, arguments: TrainingArguments) -> float:
    """The smallest value of all processes: they must decide alike."""
    if arguments.world_size == 1:
        return value
    tensor = torch.tensor(float(value), device=arguments.device, dtype=torch.float32)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MIN)
    return tensor.item()


def best_device() -> torch.device:
    for kind, backend in (("cuda", torch.cuda), ("mps", torch.backends.mps)):
        if backend.is_available():
            return torch.device(kind)
    return torch.device("cpu")
