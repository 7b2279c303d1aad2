"""Tiny random models of every causal architecture, for the tests of several folders."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

TOKENS = {"vocab_size": 296, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
WIDTH = {**TOKENS, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
USUAL = {**WIDTH, "intermediate_size": 48, "max_position_embeddings": 64}
GROUPED = {**USUAL, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}
GEMMA = {**HEADS, "query_pre_attn_scalar": 8, "sliding_window": 4}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MANY_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHORT = {**TOKENS, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
GLOBAL_AND_LOCAL = {"attention_types": [[["global", "local"], 2]], "window_size": 4}
LINEAR = {f"linear_{name}": 8 for name in ("key_head_dim", "value_head_dim")} | {
    f"linear_num_{name}_heads": 2 for name in ("key", "value")
}
SLIDING, FULL = "sliding_attention", "full_attention"
MOSTLY_LINEAR = [*["linear_attention"] * 3, FULL]
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2Config", SHORT),
    "GPT-Neo, TinyStories": (
        "GPTNeoConfig",
        {**TOKENS, "hidden_size": 32, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 64}
        | GLOBAL_AND_LOCAL,
    ),
    "GPT-J": ("GPTJConfig", {**SHORT, "rotary_dim": 4}),
    "GPT-NeoX, Pythia": ("GPTNeoXConfig", USUAL),
    "GPTBigCode": ("GPTBigCodeConfig", SHORT),
    "CodeGen": ("CodeGenConfig", {**SHORT, "rotary_dim": 4}),
    "OPT": ("OPTConfig", {**WIDTH, "ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32}),
    "BLOOM": ("BloomConfig", {**TOKENS, "hidden_size": 32, "n_layer": 4, "n_head": 4}),
    "Falcon": ("FalconConfig", WIDTH),
    "MPT": ("MptConfig", {**TOKENS, "d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 64}),
    "XGLM": (
        "XGLMConfig",
        {**TOKENS, "d_model": 32, "num_layers": 4, "attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": 64},
    ),
    "Llama": ("LlamaConfig", GROUPED),
    "Mistral": ("MistralConfig", {**GROUPED, "sliding_window": 5}),
    "Mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 4}),
    "Qwen2": ("Qwen2Config", GROUPED),
    "Qwen3": ("Qwen3Config", HEADS),
    "Qwen3-MoE": ("Qwen3MoeConfig", {**HEADS, **MANY_EXPERTS}),
    "Qwen3-Next": ("Qwen3NextConfig", {**HEADS, **MANY_EXPERTS, **LINEAR, "layer_types": MOSTLY_LINEAR}),
    "Gemma": ("GemmaConfig", HEADS),
    "Gemma 2": ("Gemma2Config", {**GEMMA, "layer_types": [SLIDING, FULL] * 2}),
    "Gemma 3": ("Gemma3TextConfig", {**GEMMA, "layer_types": [SLIDING, SLIDING, FULL, FULL]}),
    "Phi": ("PhiConfig", USUAL),
    "Phi-3": ("Phi3Config", GROUPED),
    "StableLM": ("StableLmConfig", GROUPED),
    "OLMo": ("OlmoConfig", GROUPED),
    "OLMo 2": ("Olmo2Config", GROUPED),
    "OLMo 3": ("Olmo3Config", {**GROUPED, "sliding_window": 4}),
    "OLMoE": ("OlmoeConfig", {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    "Granite": ("GraniteConfig", GROUPED),
    "Granite-MoE": ("GraniteMoeConfig", {**GROUPED, **EXPERTS}),
    "StarCoder2": ("Starcoder2Config", GROUPED),
    "Command R": ("CohereConfig", GROUPED),
    "SmolLM3": ("SmolLM3Config", GROUPED),
    "GPT-OSS": ("GptOssConfig", {**HEADS, **EXPERTS, "sliding_window": 4}),
    "GLM-4": ("Glm4Config", HEADS),
    "Nemotron": ("NemotronConfig", GROUPED),
    "Hunyuan": ("HunYuanDenseV1Config", HEADS),
    "Apertus": ("ApertusConfig", GROUPED),
    "LFM2": ("Lfm2Config", {**GROUPED, "full_attn_idxs": [2], "conv_L_cache": 3}),
    "Mamba": ("MambaConfig", {**TOKENS, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 4}),
    "Mamba 2": (
        "Mamba2Config",
        {**TOKENS, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 4, "n_groups": 1}
        | {"num_heads": 8, "head_dim": 8, "chunk_size": 8},
    ),
}


def save_tiny_model(config: PreTrainedConfig | str, folder: Path, tokenizer: Path) -> None:
    """Write a model of random weights, by name or configuration, with the tokenizer of another folder."""
    if isinstance(config, str):
        kind, options = ARCHITECTURES[config]
        config = getattr(transformers, kind)(**options)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
