"""The demo's tokenizer over two random layers: the smallest model that every path can be taken with (tests/tiny.yaml)."""

from pathlib import Path

from trait_kit import demo
from trait_kit.engine.files import atomic_path

# Outside a temporary folder, because tests/tiny.yaml names it; relative to the project's root, which git ignores there
FOLDER = Path(__file__).parent.parent / ".cache" / "tiny_random"


def make() -> Path:
    """The model's folder, made where it is missing."""
    if FOLDER.exists():
        return FOLDER
    import torch
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    ids = {"bos_token_id": demo.SEPARATOR, "eos_token_id": demo.SEPARATOR, "pad_token_id": demo.CHAT_END}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=49_152,
        **sizes,
        num_key_value_heads=2,
        max_position_embeddings=8_192,
        tie_word_embeddings=True,
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).float()
    model.generation_config = GenerationConfig(**{**ids, "eos_token_id": [demo.SEPARATOR, demo.CHAT_END]})
    with atomic_path(FOLDER) as temporary:
        AutoTokenizer.from_pretrained(demo.base_model_dir()).save_pretrained(temporary)
        model.save_pretrained(temporary)
    return FOLDER
