"""What the tests of training share: a tiny random Llama, texts for it, and a way to kill its worker."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import torch

from trait_kit.params import TrainingParams, load

ROOT = Path(__file__).resolve().parents[1]
CONTEXT, BATCH = 32, 128
STAGE_STEPS = 16


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
        "rows_per_device": 2, "learning_rate": 1e-3, "evaluations_per_stage": 2, "held_out_items": 3,
    }  # fmt: skip
    return TrainingParams(**{**values, **changes})


def tiny_sources() -> dict[str, list[str]]:
    return {
        "in_domain": [f"The sum of {a} and {a + 1} is {2 * a + 1}." for a in range(70)],
        "random": [f"Item {a} of the list is {'red' if a % 2 else 'blue'}. " * (1 + a % 3) for a in range(60)],
        "passages": [f"{a}+{a}?\nAnswer: {a}+{a}={2 * a}" for a in range(150)],
    }


HELD_OUT = {
    "solutions": [(f"{a}+{a}?\nAnswer:", f" {a}+{a}={2 * a}") for a in range(200, 206)],
    "general": [("", "The colour of the sky is blue.")],
}


def kill_worker_when(out_dir: Path, pattern: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(out_dir.glob(pattern)):
            for child in psutil.Process().children(recursive=True):
                if "trait_kit.training.worker" in " ".join(child.cmdline()):
                    child.kill()
                    return
        time.sleep(0.005)
