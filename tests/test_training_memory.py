"""Estimates of memory and FLOPs against what real models save, allocate and multiply. On one CPU, in seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, PreTrainedConfig

from trait_kit.engine.files import TraitError
from trait_kit.training import memory, throughput
from trait_kit.training.held_out import token_losses
from trait_kit.training.memory import Memory, estimate, largest_micro_batch

CONFIG = LlamaConfig(
    vocab_size=300, hidden_size=96, intermediate_size=320, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=20, tie_word_embeddings=False,
)  # fmt: skip
BOTH = pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
CHECKPOINTING = pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])


def _model(checkpointing: bool = False, config: LlamaConfig = CONFIG, attention: str = "sdpa") -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _packed(rows: int, context_length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of two documents each, so that the model needs its dense mask."""
    ids = torch.randint(0, CONFIG.vocab_size, (rows, context_length))
    positions = torch.arange(context_length).repeat(rows, 1) % (context_length // 2)
    return ids, positions, torch.where(positions == 0, -100, ids)


@BOTH
@CHECKPOINTING
@pytest.mark.parametrize(("rows", "context_length"), [(1, 128), (3, 256)])
def test_activations_are_those_that_autograd_saves(
    autocast: bool, checkpointing: bool, rows: int, context_length: int
) -> None:
    model = _model(checkpointing)
    ids, positions, _ = _packed(rows, context_length)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), hooks:
        model.base_model(input_ids=ids, position_ids=positions, use_cache=False)
    measured = sum(tensor.untyped_storage().nbytes() for pointer, tensor in saved.items() if pointer not in own)
    need = estimate(CONFIG, rows=rows, context_length=context_length, autocast=autocast, checkpointing=checkpointing)
    head = 2 * CONFIG.vocab_size * CONFIG.hidden_size if autocast else 0
    expected = need.activations - (2 if autocast else 4) * CONFIG.hidden_size * ids.numel()  # the head's input: no head here
    if not checkpointing:  # else masks and copies are made again
        expected += need.mask - rows * context_length**2 + need.copies - head
    assert 0.98 <= expected / measured <= 1.15


@BOTH
@CHECKPOINTING
def test_the_total_is_the_allocators_peak_of_a_step(autocast: bool, checkpointing: bool) -> None:
    rows, context_length = 2, 256
    model = _model(checkpointing)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids, positions, labels = _packed(rows, context_length)

    def step() -> None:
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = token_losses(model, ids, positions, labels).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # from here on the optimizer has its moments
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    measured = peak + 12 * sum(parameter.numel() for parameter in model.parameters())  # weights and moments came before
    need = estimate(CONFIG, rows=rows, context_length=context_length, autocast=autocast, checkpointing=checkpointing)
    assert 0.95 <= need.total / measured <= 1.25


def test_parameters_are_counted_exactly_and_nothing_is_loaded() -> None:
    need = estimate(MistralConfig(), rows=1, context_length=4_096, autocast=True, checkpointing=True)
    assert need.weights == 4 * 7_241_732_096 and need.optimizer == 2 * need.weights  # Mistral-7B
    assert f"{need.total / 1e9:.2f} GB" in str(need)
    model = _model(config=GPT2Config(n_layer=2))
    other = estimate(GPT2Config(n_layer=2), rows=1, context_length=64, autocast=False, checkpointing=False)
    assert other.weights == 4 * sum(parameter.numel() for parameter in model.parameters())


def test_each_remedy_saves_what_it_is_for() -> None:
    def need(**changes: object) -> Memory:
        values = {"rows": 2, "context_length": 1_024, "autocast": True, "checkpointing": False, **changes}
        return estimate(MistralConfig(vocab_size=32_000, num_hidden_layers=4), **values)

    plain = need()
    assert need(checkpointing=True).activations < plain.activations / 5
    assert need(flash=True).mask == 0 and need(flash=True).activations < plain.activations
    assert need(lora_rank=16).optimizer < plain.optimizer / 50
    assert need(fused_loss=True, rows=16).logits < need(rows=16).logits / 3
    assert need(sharding="zero1", processes=8).optimizer == plain.optimizer // 8
    assert need(sharding="fsdp", processes=8).weights == plain.weights // 8
    assert need(processes=8).gradients == 2 * plain.gradients
    assert need(rows=4).activations == 2 * plain.activations


def test_the_micro_batch_is_the_largest_divisor_that_fits() -> None:
    def need(rows: int) -> Memory:
        return estimate(CONFIG, rows=rows, context_length=64, autocast=False, checkpointing=False)

    room = int(need(5).total / memory.ROOM) + 1
    assert largest_micro_batch(need, room, 12) == 4 and largest_micro_batch(need, room, 7) == 1
    assert largest_micro_batch(need, 100 * room, 12) == 12
    with pytest.raises(TraitError, match=r"(?s)free.*too large: use LoRA, FSDP.*activations.*total"):
        largest_micro_batch(need, need(1).weights, 12)
    with pytest.raises(TraitError, match="gradient checkpointing, a shorter context_length"):
        largest_micro_batch(need, need(1).total, 12)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(TraitError, match="cannot build"):
        estimate(PreTrainedConfig(), rows=1, context_length=8, autocast=False, checkpointing=False)


def test_available_memory_obeys_limits_of_the_process_and_of_its_control_groups(tmp_path) -> None:
    code = (
        "import resource, torch\nfrom trait_kit.training.memory import available_bytes as free\n"
        "before = free(torch.device('cpu'))\nlimit = resource.RLIMIT_DATA\n"
        "import psutil\nused = psutil.Process().memory_info().data\n"
        "resource.setrlimit(limit, (used + 50_000_000, resource.RLIM_INFINITY))\nprint(before, free(torch.device('cpu')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    before, after = map(int, result.stdout.split())
    assert before > 60_000_000 and after <= 40_000_000
    for controllers, names in {"": ("max", "current"), "memory": ("limit_in_bytes", "usage_in_bytes")}.items():
        for depth, (limit, usage) in enumerate([("900", "500"), ("max" if not controllers else "9000", "400")]):
            folder = tmp_path / controllers / ("outer/inner" if depth else "outer")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"memory.{names[0]}").write_text(limit + "\n")
            (folder / f"memory.{names[1]}").write_text(usage + "\n")
        (tmp_path / controllers / "outer" / "memory.stat").write_text(
            f"anon 1\n{'total_' if controllers else ''}inactive_file 100\n"
        )
        rooms = list(memory._group_rooms(f"3:cpu:/x\n0:{controllers}:/outer/inner\n", tmp_path))
        assert min(rooms) == 500  # 900 - 500 + 100


@pytest.mark.parametrize("tied", [True, False])
def test_flops_are_those_that_torch_counts(tied: bool) -> None:
    config = LlamaConfig(**{**CONFIG.to_dict(), "tie_word_embeddings": tied})
    model = _model(config=config, attention="eager")  # torch does not count the CPU's fused attention
    ids, _, _ = _packed(2, 128)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    counted = counter.get_total_flops() / ids.numel()  # eager attention multiplies what the mask then hides, too
    assert throughput.flops_per_token(config, n_parameters, 128) == pytest.approx(counted, rel=0.01)
    fewer = throughput.flops_per_token(config, n_parameters, 28)
    assert counted - fewer == pytest.approx(12 * 4 * 4 * 20 * 100, rel=0.1)


def test_mfu_and_cost() -> None:
    rate = throughput.measured_matrix_rate(torch.device("cpu"), torch.float32)
    assert rate > 0
    assert throughput.mfu(rate / 1e6, 1e6, rate) == pytest.approx(1)
    assert throughput.mfu(1_000, 6e9, 1e13, devices=2) == pytest.approx(0.3)
    assert throughput.cost(1_800, 8, 2.5) == pytest.approx(10)
