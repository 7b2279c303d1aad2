"""Small models of several families."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, GPT2Config, GPTNeoXConfig, LlamaConfig

SHAPE = {
    "vocab_size": 296,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
FAMILIES = {
    "gpt2": GPT2Config(
        vocab_size=296,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=32,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "gpt_neox": GPTNeoXConfig(**SHAPE),
    "llama": LlamaConfig(**GROUPED),
    "gemma2": Gemma2Config(**GROUPED, head_dim=8, query_pre_attn_scalar=8, sliding_window=4),
}


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory, golden: Path) -> Callable[[str], Any]:
    """Gives the small model of a family, in float32."""
    made: dict[str, Any] = {}

    def model(family: str) -> Any:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(FAMILIES[family]).eval().save_pretrained(folder)
            AutoTokenizer.from_pretrained(golden / "gpt2-micro").save_pretrained(folder)
            made[family] = TransformerBridge.boot_transformers(str(folder), device="cpu")
        return made[family]

    return model
