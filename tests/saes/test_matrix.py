"""Every architecture at every kind of hook, from disk to logits, on small models of four families."""

from pathlib import Path
from typing import Any

import pytest
import torch

from absorb_pl.data import ActivationCollector
from absorb_pl.engine import apply_saes_and_run
from absorb_pl.errors import AbsorbError, SaeArchitectureError, SaeWidthError
from absorb_pl.saes import check_sae_fits, decode_rows, encode_rows, load_sae
from absorb_pl.saes.rows import encode
from absorb_pl.saes.source import SaeSource

ARCHITECTURES = ["standard", "gated", "topk", "abstopk", "jumprelu", "matching_pursuit"]
HOOKS = [
    "blocks.1.hook_resid_pre",
    "blocks.1.hook_resid_post",
    "blocks.1.attn.hook_z",
    "blocks.1.hook_attn_out",
    "blocks.1.hook_mlp_out",
]
IDS = torch.randint(2, 296, (3, 9), generator=torch.Generator().manual_seed(1))
POSITIONS = torch.tensor([4, 8, 6])


def rows(model: Any) -> dict[str, torch.Tensor]:
    """What the collector reads at the words, for all hooks in one pass."""
    batch = {
        "index": torch.arange(3),
        "input_ids": IDS,
        "attention_mask": torch.ones_like(IDS, dtype=torch.bool),
        "word_positions": POSITIONS,
    }
    return ActivationCollector(model, HOOKS).predict_step(batch, 0)


def check_chain(model: Any, sae: Any, hook: str, x: torch.Tensor) -> None:
    """The rows' latents are those of the run, and the error term leaves the logits as they were."""
    check_sae_fits(model, sae)
    latents = encode_rows(sae, x)
    decoded = decode_rows(sae, latents)
    assert (latents.shape, decoded.shape, latents.dtype) == ((3, 48), (3, 32), sae.W_dec.dtype)
    assert torch.count_nonzero(latents)
    with torch.no_grad():
        run = apply_saes_and_run(model, {hook: sae}, IDS)
        plain = model(IDS)
    words = torch.arange(3), POSITIONS
    cache = run.sae_activations[hook]
    assert cache.feature_acts.dtype == sae.W_dec.dtype
    assert cache.sae_in.shape == cache.sae_out.shape
    half = sae.W_dec.dtype != torch.float32
    torch.testing.assert_close(cache.feature_acts[words], latents, rtol=1e-2 if half else 1e-5, atol=1e-5)
    torch.testing.assert_close(cache.sae_out[words].flatten(1), decoded, rtol=1e-2 if half else 1e-5, atol=1e-4)
    assert run.model_output.dtype == plain.dtype
    torch.testing.assert_close(run.model_output, plain, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("family", ["GPT-2", "GPT-NeoX, Pythia", "Llama", "Gemma 2"])
def test_every_architecture(load_tiny: Any, make_sae: Any, tmp_path: Path, family: str, hook: str) -> None:
    model = load_tiny(family)
    x = rows(model)[hook]
    assert x.shape == (3, 32)
    for architecture in ARCHITECTURES:
        make_sae(architecture, hook).save_model(tmp_path / architecture)
        check_chain(model, load_sae(str(tmp_path / architecture)), hook, x)


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16"), ("float32", "float16")])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_model_and_sae_have_dtypes_of_their_own(
    load_tiny: Any, make_sae: Any, tmp_path: Path, architecture: str, dtypes: tuple[str, str]
) -> None:
    model = load_tiny("GPT-2")
    model.original_model.to(getattr(torch, dtypes[0]))
    try:
        found = rows(model)
        for hook in ("blocks.1.hook_resid_post", "blocks.1.attn.hook_z"):
            make_sae(architecture, hook).save_model(tmp_path / hook)
            check_chain(model, load_sae(str(tmp_path / hook), dtype=dtypes[1]), hook, found[hook])
    finally:
        model.original_model.to(torch.float32)


@pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("hook", HOOKS[1:3])
def test_norms_taken_at_run_time_are_the_sae_s_own(load_tiny: Any, make_sae: Any, normalize: str, hook: str) -> None:
    model = load_tiny("GPT-2")
    sae = make_sae("standard", hook, normalize_activations=normalize, apply_b_dec_to_input=False)
    x = rows(model)[hook]
    check_chain(model, sae, hook, x)
    scale = 32**0.5 / x.norm(dim=1, keepdim=True)
    centred = x - x.mean(dim=1, keepdim=True)
    seen = x * scale if normalize == "constant_norm_rescale" else centred / (centred.std(dim=1, keepdim=True) + 1e-5)
    expected = torch.relu(seen @ sae.W_enc + sae.b_enc)
    torch.testing.assert_close(encode_rows(sae, x), expected, rtol=1e-5, atol=1e-5)


def test_rows_leave_an_sae_as_it_was(make_sae: Any) -> None:
    sae = make_sae("standard", "blocks.1.attn.hook_z")
    heads = torch.randn(2, 5, 4, 8, generator=torch.Generator().manual_seed(0))
    latents = sae.encode(heads)
    encode_rows(sae, heads.flatten(0, 1).flatten(1))
    assert sae.decode(latents).shape == heads.shape
    torch.testing.assert_close(sae.encode(heads), latents)


def test_an_sae_that_leaves_reshaping_to_others_reads_heads(make_sae: Any, tmp_path: Path, load_tiny: Any) -> None:
    hook = "blocks.1.attn.hook_z"
    sae = make_sae("jumprelu", hook, reshape_activations="none")
    with pytest.raises(SaeWidthError, match="reshape_activations = 'none'"):
        check_sae_fits(load_tiny("GPT-2"), sae)
    sae.save_model(tmp_path)
    check_sae_fits(load_tiny("GPT-2"), load_sae(str(tmp_path)))
    with pytest.raises(SaeWidthError, match="expected 'none' for activations of shape"):
        check_sae_fits(load_tiny("GPT-2"), load_sae(str(tmp_path)), "blocks.1.hook_attn_out")


def test_a_temporal_sae_runs_on_prompts_but_not_on_words(make_sae: Any, tmp_path: Path, load_tiny: Any) -> None:
    model, hook = load_tiny("Llama"), "blocks.1.hook_resid_post"
    sae = make_sae("temporal", n_heads=2, bottleneck_factor=4, kval_topk=5)
    sae.save_model(tmp_path)
    sae = load_sae(str(tmp_path))
    x = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(2))
    assert (sae.encode(x)[:, 1:] - sae.encode(x[:, 1:])).abs().max() > 1e-3
    with torch.no_grad():
        run = apply_saes_and_run(model, {hook: sae}, IDS)
    torch.testing.assert_close(run.model_output, model(IDS), rtol=1e-5, atol=1e-4)
    for refuse in (encode_rows, encode):
        with pytest.raises(SaeArchitectureError, match=r"was 'temporal'.*activation alone"):
            refuse(sae, x[0])
    with pytest.raises(AbsorbError, match="one cached activation each"):
        SaeSource.check(str(tmp_path), model)


@pytest.mark.parametrize("hook", HOOKS)
def test_studies_take_every_kind_of_hook(make_sae: Any, tmp_path: Path, load_tiny: Any, hook: str) -> None:
    make_sae("gated", hook).save_model(tmp_path)
    source = SaeSource.check(str(tmp_path), load_tiny("Gemma 2"))
    assert (source.hook_name, source.layer, source.architecture, source.d_sae) == (hook, 1, "gated", 48)
