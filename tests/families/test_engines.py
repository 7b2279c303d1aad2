"""Every causal architecture either runs suffixes or whole sequences, as docs/models.md says, with the same results."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from absorb_pl.attribution import compute_prefix, word_ablations, word_integrated_gradients
from absorb_pl.errors import HookNotFoundError
from absorb_pl.models import load_language_model
from absorb_pl.words import TokenizedPrompts

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
HOOK = "blocks.1.hook_resid_post"

TOKENS = {"vocab_size": 296, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
WIDTH = {**TOKENS, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
USUAL = {**WIDTH, "intermediate_size": 48, "max_position_embeddings": 64}
GROUPED = {**USUAL, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}
GEMMA = {**HEADS, "query_pre_attn_scalar": 8, "sliding_window": 4}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MANY_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHORT = {**TOKENS, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
GLOBAL_AND_LOCAL = {"attention_types": [[["global", "local"], 2]], "window_size": 4}
LINEAR = {f"linear_{name}": 8 for name in ("key_head_dim", "value_head_dim")} | {
    f"linear_num_{name}_heads": 2 for name in ("key", "value")
}
TWO_LINEAR = ["linear_attention", "linear_attention", "full_attention"]
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
    "BLOOM": ("BloomConfig", {**TOKENS, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "Falcon": ("FalconConfig", WIDTH),
    "MPT": ("MptConfig", {**TOKENS, "d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 64}),
    "XGLM": (
        "XGLMConfig",
        {**TOKENS, "d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": 64},
    ),
    "Llama": ("LlamaConfig", GROUPED),
    "Mistral": ("MistralConfig", {**GROUPED, "sliding_window": 5}),
    "Mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 4}),
    "Qwen2": ("Qwen2Config", GROUPED),
    "Qwen3": ("Qwen3Config", HEADS),
    "Qwen3-MoE": ("Qwen3MoeConfig", {**HEADS, **MANY_EXPERTS}),
    "Qwen3-Next": ("Qwen3NextConfig", {**HEADS, **MANY_EXPERTS, **LINEAR, "layer_types": TWO_LINEAR}),
    "Gemma": ("GemmaConfig", HEADS),
    "Gemma 2": ("Gemma2Config", GEMMA),
    "Gemma 3": ("Gemma3TextConfig", GEMMA),
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
    "Mamba": ("MambaConfig", {**TOKENS, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4}),
    "Mamba 2": (
        "Mamba2Config",
        {**TOKENS, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4, "n_groups": 1}
        | {"num_heads": 8, "head_dim": 8, "chunk_size": 8},
    ),
}


class TwoLatents:
    """Latents that always fire, along two fixed directions; only what they add matters here."""

    W_dec = torch.randn(2, 32, generator=torch.Generator().manual_seed(4))

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.W_dec.T) + 1

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.W_dec


def tiny_model(config: PreTrainedConfig, folder: Path, tokenizer: Path) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return load_language_model(str(folder))


def documented_engines() -> dict[str, str]:
    """Engine by architecture, from the table of the document."""
    rows = re.findall(r"^\| (.+) \| (suffixes|whole sequences) \|$", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    return {name: engine.removesuffix("es").split()[0] for name, engine in rows}


def metric(logits: Tensor, _rows: Tensor) -> Tensor:
    return logits[:, 7] - logits[:, 40]


def metric_without(model: Any, sae: TwoLatents, ids: Tensor, position: int, latent: int | None) -> float:
    """The metric with one latent's part taken out of the activation at a position, by the hooks of the whole model."""

    def remove(activation: Tensor, **_: Any) -> Tensor:
        if latent is None:
            return activation
        at_word = activation[:, position]
        part = sae.encode(at_word)[:, latent : latent + 1] * sae.W_dec[latent]
        return torch.cat([activation[:, :position], (at_word - part)[:, None], activation[:, position + 1 :]], dim=1)

    with torch.no_grad():
        logits = model.run_with_hooks(ids[None], fwd_hooks=[(HOOK, remove)])
    return metric(logits[:, -1], ids).item()


def test_the_document_names_the_architectures_tried_here():
    assert sorted(documented_engines()) == sorted(ARCHITECTURES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_architecture_gives_true_ablations_by_the_engine_that_the_document_says(name, tmp_path, golden, caplog):
    kind, options = ARCHITECTURES[name]
    model = tiny_model(getattr(transformers, kind)(**options), tmp_path, golden / "gpt2-micro")
    ids = torch.randint(2, 290, (2, 9), generator=torch.Generator().manual_seed(1))
    prompts = TokenizedPrompts(ids, torch.ones(2, 9, dtype=torch.bool), torch.tensor([9, 9]), torch.tensor([5, 6]))
    with caplog.at_level(logging.WARNING):
        prefix = compute_prefix(model, prompts, [HOOK])
    assert prefix.engine == documented_engines()[name]
    assert ("whole sequences are run instead" in caplog.text) == (prefix.engine == "whole")

    sae = TwoLatents()
    values = torch.tensor(
        [
            [metric_without(model, sae, ids[row], position, latent) for latent in (None, 0, 1)]
            for row, position in enumerate((5, 6))
        ]
    )
    effects = (values[:, 1:] - values[:, :1]).flatten()
    removed = word_ablations(model, sae, prompts, metric, [0, 1], hook_name=HOOK, prefix=prefix)
    # Effects are differences of metrics, and both ways round each: experts have no float64 to compare in.
    rounding = 64 * torch.finfo(torch.float32).eps * values.abs().max()
    assert ((removed.scores - effects).abs() <= rounding).all()
    assert effects.abs().max() > 100 * rounding
    found = word_integrated_gradients(model, sae, prompts, metric, hook_name=HOOK, prefix=prefix)
    assert found.scores.abs().min() > 0


def test_a_hook_that_a_forward_pass_never_reaches_is_named(tmp_path, golden):
    model = tiny_model(transformers.OpenAIGPTConfig(**SHORT), tmp_path, golden / "gpt2-micro")
    ids = torch.randint(2, 290, (1, 6))
    prompts = TokenizedPrompts(ids, torch.ones(1, 6, dtype=torch.bool), torch.tensor([6]), torch.tensor([4]))
    with pytest.raises(HookNotFoundError, match=r"blocks\.1\.hook_resid_post.*reaches"):
        compute_prefix(model, prompts, [HOOK])
    assert compute_prefix(model, prompts, ["blocks.1.hook_resid_pre"]).engine == "whole"
