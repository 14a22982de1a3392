"""What a training process needs on its device, estimated from a model's configuration before anything is loaded.

A run that dies of memory after an hour of preparation is the costliest way to learn the micro-batch. Parameters are counted
exactly, on the meta device. Activations are counted as autograd saves them in one decoder layer of the Llama family (Llama,
Mistral, Qwen2: RMSNorm, rotary positions, SDPA, gated MLP) as transformers computes it, operation by operation; the tests
compare that count with what real models save, and the whole with the allocator's peak. Other families go through the same
formula with what their configuration gives, and are only roughly right. Beside weights and moments, estimate / peak was 1.0
for Phi-3, 0.91 for Qwen3 (it also normalises queries and keys), 1.35 for GPT-NeoX (two-matrix MLP), and 0.65 for GPT-2
(dropout, and an activation function of many operations): give such a model fewer rows than the estimate allows.
Not counted: fragmentation, the device's context (about 0.5 GB of CUDA) and library work spaces: hence ROOM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil
import torch

from trait_kit.engine.files import TraitError

ROOM = 0.9  # of the available memory: the rest is for what is not counted
CPU_TENSORS = 0.8  # of a CPU process's memory; SmolLM2-135M's resident memory was 1.20 to 1.24 times this estimate
LOSS_CHUNK = 1_024  # tokens whose logits a fused loss makes at a time
BUCKET = 500_000_000  # values of DeepSpeed's buffer for gradients on their way (its reduce_bucket_size)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. `layer` and `logits` take turns (the backward of a layer, of the loss): the larger one counts."""

    weights: int  # float32; under ZeRO-1 with bfloat16: the bfloat16 model and this process's float32 part
    copies: int  # of weights: bfloat16 ones that autocast keeps, or the layers that FSDP has gathered
    gradients: int  # and the buffers in which processes exchange them
    optimizer: int  # AdamW: two float32 moments of what is trained
    activations: int  # saved from the forward pass to the backward pass
    layer: int  # one decoder layer in its backward pass: its gradients, and its activations where they are recomputed
    logits: int  # hidden -> vocabulary, with the float32 copy and gradients
    mask: int  # the dense mask of packed documents, and its additive form, which SDPA makes and keeps in each layer

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self)) - min(self.layer, self.logits)

    def table(self) -> str:
        """A line for each part and the total, in GB (10^9 bytes)."""
        names = [*(field.name for field in fields(self)), "total"]
        return "\n".join(f"{name:<12}{getattr(self, name) / 1e9:>10.2f} GB" for name in names)

    __str__ = table


class Shape(NamedTuple):
    """Numbers of parameters and the widths that activations have; `block` is one decoder layer's parameters."""

    parameters: int
    matrices: int  # parameters that are multiplied with: all but norms, biases and an input embedding of its own
    block: int
    largest: int  # parameters of a decoder layer's largest matrix
    lora_per_rank: int  # sum of inputs and outputs of the layers' matrices
    layers: int
    hidden: int
    query: int  # heads x head_dim
    key: int  # key-value heads x head_dim
    heads: int
    mlp: int
    vocabulary: int


def estimate(
    config: Any,
    *,
    rows: int,
    context_length: int,
    autocast: bool,
    checkpointing: bool,
    processes: int = 1,
    sharding: Literal["none", "zero1", "fsdp"] = "none",
    lora_rank: int = 0,
    fused_loss: bool = False,
    flash: bool = False,
) -> Memory:
    """Peak bytes of an AdamW step that accumulates gradients over micro-batches of `rows` x `context_length` tokens.

    `autocast`: bfloat16 autocast over float32 weights (DeepSpeed: a bfloat16 model with float32 masters). `checkpointing`:
    whole decoder layers are recomputed. `sharding` over `processes`: DistributedDataParallel with buckets of its own,
    DeepSpeed's ZeRO-1, or full sharding (two layers gathered at a time, gradients reduced after every micro-batch).
    `lora_rank`: adapters on every matrix of the decoder layers, all else frozen. `flash`: no dense mask, and keys and values
    are not repeated for each query head. TraitError where transformers cannot build the model.
    """
    shape = model_shape(config)
    tokens, width = rows * context_length, 2 if autocast else 4  # bytes of what autocast casts
    trained = lora_rank * shape.lora_per_rank if lora_rank else shape.parameters
    weights, gradients, optimizer = 4 * (shape.parameters + trained * bool(lora_rank)), 4 * trained, 8 * trained
    copies = 2 * (shape.block if lora_rank and checkpointing else shape.matrices) if autocast else 0  # frozen: not cached
    if sharding == "zero1":
        weights, copies = width * (weights // 4) + 4 * trained // processes, 0
        gradients = width * (trained + BUCKET) + 4 * trained // processes
        optimizer //= processes
    elif sharding == "fsdp":
        rest = shape.parameters - shape.layers * shape.block
        copies = width * (2 * shape.block + rest)
        gradients = gradients // processes + (0 if lora_rank else width * (shape.block + rest))
        weights, optimizer = weights // processes, optimizer // processes
    elif processes > 1:
        gradients *= 2  # DistributedDataParallel's buckets

    saved = tokens * _saved_per_token(shape, width, lora_rank, flash)  # of one layer
    ends = shape.hidden * ((4 if lora_rank else 8) + width) + 8 * shape.query // shape.heads + 32  # last norm, tables, ids
    kept = 4 * shape.hidden * tokens if checkpointing else saved
    backward = tokens * (2 * width * shape.mlp + 8 * shape.hidden)
    if not lora_rank:
        backward += (6 if autocast else 4) * shape.largest  # a gradient before it is added; autocast makes it in bfloat16
    if fused_loss:
        chunk = min(LOSS_CHUNK, tokens)
        head_gradient = 0 if lora_rank else 4 * shape.vocabulary * shape.hidden
        logits = 12 * chunk * shape.vocabulary + 4 * tokens * shape.hidden + head_gradient
    else:
        logits = 12 * tokens * shape.vocabulary  # log-probabilities, their gradient, the logits' gradient: float32
    squares = 0 if flash else tokens * context_length
    return Memory(
        weights=weights,
        copies=copies,
        gradients=gradients,
        optimizer=optimizer,
        activations=shape.layers * kept + ends * tokens,
        layer=backward + (saved if checkpointing else 0),
        logits=logits,
        mask=squares * (1 + width * (1 if checkpointing else shape.layers)),
    )


def _saved_per_token(shape: Shape, width: int, lora_rank: int, flash: bool) -> int:
    """Bytes that autograd saves for a token in one decoder layer.

    Each of the two norms: its input and (where its weight learns) the normalised input, float32, and the scale; then what
    linear layers multiply, in `width` bytes: the norms' outputs (autocast makes a copy for each of query, key, value, gate
    and up), the attention's, the MLP's product. SDPA: query, key, value (repeated to the query's heads where a mask is
    given), output, and a float32 logsumexp a head. The gated MLP: gate, activation, up, product. Rotary: shared tables.
    """
    norms = 2 * (4 * shape.hidden * (1 if lora_rank else 2) + 4)
    inputs = shape.hidden * (5 if width == 2 else 2)
    attention = 2 * shape.query + 2 * (shape.key if flash else shape.query)
    return norms + width * (inputs + attention + 4 * shape.mlp + 7 * lora_rank) + 4 * shape.heads


def largest_micro_batch(estimate_for: Callable[[int], Memory], available: int, rows_a_step: int) -> int:
    """The most rows at a time, a divisor of the `rows_a_step` rows of a step on one process, that fit ROOM of `available`.

    `estimate_for` maps rows to Memory; TraitError where not even one row fits.
    """
    divisors = [rows for rows in range(1, rows_a_step + 1) if rows_a_step % rows == 0]
    for rows in reversed(divisors):
        if estimate_for(rows).total <= ROOM * available:
            return rows
    needed = estimate_for(1)
    state = needed.weights + needed.copies + needed.gradients + needed.optimizer
    if state > ROOM * available:
        help_with = "The model's own state is too large: use LoRA, FSDP over more processes, or a smaller base_model."
    else:
        help_with = "Use gradient checkpointing, a shorter context_length, LoRA, or FSDP over more processes."
    raise TraitError(
        f"training: one row at a time needs about {needed.total / 1e9:.2f} GB, and {available / 1e9:.2f} GB are free, of "
        f"which a run may plan with {ROOM:.0%}. {help_with} The parts:\n{needed.table()}"
    )


def model_shape(config: Any) -> Shape:
    """Sizes of the causal language model that transformers builds from `config`, without code that comes with it."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=torch.float32)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise TraitError(
            f"training: transformers cannot build a causal language model of the type {config.model_type!r} "
            f"({str(error)[:300]}). Choose a base_model whose architecture transformers has itself."
        ) from error
    text = config.get_text_config()
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    ends = {id(head), id(embedding)}
    matrices = [weight for weight in model.parameters() if weight.ndim > 1 and id(weight) not in ends]
    parameters, layers = sum(weight.numel() for weight in model.parameters()), text.num_hidden_layers
    outside = head.numel() + (0 if head is embedding else embedding.numel())
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    mlp = getattr(text, "intermediate_size", None) or getattr(text, "ffn_dim", None) or 4 * text.hidden_size
    if experts := getattr(text, "num_experts_per_tok", None):
        mlp = experts * (getattr(text, "moe_intermediate_size", None) or mlp)
    return Shape(
        parameters=parameters,
        matrices=sum(weight.numel() for weight in matrices) + head.numel(),
        block=(parameters - outside) // layers,
        largest=max(weight.numel() for weight in matrices),
        lora_per_rank=sum(sum(weight.shape[-2:]) for weight in matrices),
        layers=layers,
        hidden=text.hidden_size,
        query=heads * head_dim,
        key=(getattr(text, "num_key_value_heads", None) or heads) * head_dim,
        heads=heads,
        mlp=mlp,
        vocabulary=head.shape[0],
    )


def available_bytes(device: torch.device) -> int:
    """Bytes left for this process's tensors: a CUDA device's, else CPU_TENSORS of what machine, group and limits leave."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    membership = Path("/proc/self/cgroup")
    groups = membership.read_text() if membership.exists() else ""
    rooms = (psutil.virtual_memory().available, *_group_rooms(groups, Path("/sys/fs/cgroup")), *_limit_rooms())
    return max(0, int(CPU_TENSORS * min(rooms)))


def _group_rooms(membership: str, root: Path) -> Iterator[int]:
    """Bytes left under the memory limits of this process's control groups (version 1 or 2) and of all that hold them.

    File pages that the kernel would drop first (inactive) count as free, though they count as used.
    """
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = root / controllers
        limit = "memory.limit_in_bytes" if controllers else "memory.max"
        usage = "memory.usage_in_bytes" if controllers else "memory.current"
        inactive = "total_inactive_file " if controllers else "inactive_file "
        inside = base / path.lstrip("/")
        for folder in (inside, *inside.parents):
            if folder.is_relative_to(base) and (folder / limit).exists() and (folder / usage).exists():
                most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
                counts = (folder / "memory.stat").read_text().splitlines() if (folder / "memory.stat").exists() else []
                idle = sum(int(count.split()[1]) for count in counts if count.startswith(inactive))
                if most != "max":
                    yield int(most) - used + idle


def _limit_rooms() -> Iterator[int]:
    """Bytes left under the limits of this process's address space and data, where set (`ulimit -v`, `ulimit -d`)."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    memory = psutil.Process().memory_info()
    for limit, used in ((resource.RLIMIT_AS, memory.vms), (resource.RLIMIT_DATA, getattr(memory, "data", 0))):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            yield most - used
