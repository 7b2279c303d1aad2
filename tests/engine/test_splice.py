import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from transformer_lens.model_bridge import TransformerBridge

from absorb_pl.engine.splice import apply_saes_and_run
from absorb_pl.errors import HookNotFoundError

HOOK, DEEPER = "blocks.1.hook_resid_post", "blocks.3.hook_resid_pre"


@pytest.fixture(scope="module", params=["gpt2-micro", "gemma2-micro"])
def folder(request: pytest.FixtureRequest, golden: Path) -> Path:
    return golden / request.param


@pytest.fixture
def model(folder: Path) -> Any:
    return TransformerBridge.boot_transformers(str(folder), device="cpu")


@pytest.fixture
def sae(folder: Path) -> Any:
    return SAE.load_from_disk(folder / "sae_standard_A")


@pytest.fixture
def prompt(folder: Path) -> str:
    return json.loads((folder / "case_attribution.json").read_text())["clean"]


def test_with_error_terms_the_output_is_that_of_the_model(model: Any, sae: Any, prompt: str):
    run = apply_saes_and_run(model, {HOOK: sae}, prompt)
    torch.testing.assert_close(run.model_output, model(prompt), rtol=0, atol=1e-5)
    sae_in, acts, sae_out, error = run.sae_activations[HOOK]
    torch.testing.assert_close(sae_in, model.run_with_cache(prompt)[1][HOOK])
    torch.testing.assert_close(acts, sae.encode(sae_in))
    torch.testing.assert_close(sae_out + error, sae_in)


def test_without_error_terms_the_reconstruction_stands_in(model: Any, sae: Any, prompt: str):
    run = apply_saes_and_run(model, {HOOK: sae}, prompt, include_error_term=False, track_model_hooks=[DEEPER])
    hooks = [(HOOK, lambda value, **_: sae.decode(sae.encode(value)))]
    torch.testing.assert_close(run.model_output, model.run_with_hooks(prompt, fwd_hooks=hooks))
    assert (run.model_output - model(prompt)).abs().max() > 0.1
    assert run.model_activations.keys() == {DEEPER}


def test_gradients_pass_saes_as_if_they_were_not_there(model: Any, folder: Path, sae: Any, prompt: str):
    deeper = SAE.load_from_disk(folder / "sae_topk_B")
    gradients = []
    for saes in ({HOOK: sae}, {HOOK: sae, DEEPER: deeper}):
        run = apply_saes_and_run(model, saes, prompt, track_grads=True)
        run.model_output[0, -1, 5].backward()
        gradients.append(run.sae_activations[HOOK].feature_acts.grad)
    assert (gradients[0] - gradients[1]).abs().max() < 3e-6 * gradients[0].abs().max()


@pytest.mark.parametrize("trainable", [True, False])
def test_every_recorded_activation_keeps_its_gradient(model: Any, sae: Any, prompt: str, trainable: bool):
    sae.requires_grad_(trainable)
    model.original_model.requires_grad_(trainable)
    run = apply_saes_and_run(model, {HOOK: sae}, prompt, track_model_hooks=[DEEPER], track_grads=True)
    run.model_output[0, -1, 5].backward()
    cache = run.sae_activations[HOOK]
    for tensor in (*cache, run.model_activations[DEEPER]):
        assert tensor.grad is not None
        assert tensor.grad.abs().max() > 0
    torch.testing.assert_close(cache.feature_acts.grad, cache.sae_out.grad @ sae.W_dec.T)
    torch.testing.assert_close(cache.sae_in.grad, cache.sae_out.grad)
    torch.testing.assert_close(cache.sae_error.grad, cache.sae_out.grad)
    run.zero_grad()
    assert all(tensor.grad is None for tensor in (*cache, run.model_activations[DEEPER]))


def test_an_sae_in_float32_serves_a_model_in_bfloat16(model: Any, sae: Any, prompt: str):
    model.original_model.to(torch.bfloat16)
    run = apply_saes_and_run(model, {HOOK: sae}, prompt)
    assert run.model_output.dtype == torch.bfloat16
    assert run.sae_activations[HOOK].feature_acts.dtype == torch.float32
    torch.testing.assert_close(run.model_output, model(prompt), rtol=0.1, atol=0.1)


def test_extra_hooks_see_what_leaves_the_saes(model: Any, sae: Any, prompt: str):
    seen = []
    apply_saes_and_run(
        model,
        {HOOK: sae},
        prompt,
        include_error_term=False,
        extra_fwd_hooks=[(HOOK, lambda value, **_: seen.append(value))],
    )
    expected = sae.decode(sae.encode(model.run_with_cache(prompt)[1][HOOK]))
    torch.testing.assert_close(seen[0], expected)


def test_losses_and_lists_of_prompts(model: Any, sae: Any, prompt: str):
    loss = apply_saes_and_run(model, {HOOK: sae}, prompt, return_type="loss").model_output
    torch.testing.assert_close(loss, model(prompt, return_type="loss"), rtol=1e-5, atol=1e-5)
    both = apply_saes_and_run(model, {HOOK: sae}, [prompt, prompt])
    assert both.sae_activations[HOOK].feature_acts.shape[0] == 2


def test_unknown_hooks_are_refused(model: Any, sae: Any, prompt: str):
    with pytest.raises(HookNotFoundError, match=r"blocks\.1\.hook_resid_post"):
        apply_saes_and_run(model, {"blocks.1.hook_resid_pots": sae}, prompt)
    with pytest.raises(HookNotFoundError):
        apply_saes_and_run(model, {}, prompt, track_model_hooks=["blocks.9.hook_resid_pre"])
