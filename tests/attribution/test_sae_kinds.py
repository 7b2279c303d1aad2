"""SAEs on hooks of other shapes and SAEs that normalise what they read, against runs taken step by step."""

from typing import Any

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

from absorb_pl.attribution import (
    calculate_feature_attribution,
    calculate_individual_feature_ablations,
    calculate_integrated_gradient_attribution_patching,
    word_ablations,
    word_integrated_gradients,
)
from absorb_pl.errors import AbsorbError

POSITION = -6
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "residual": ("blocks.0.hook_resid_pre", {}),
    "mlp": ("blocks.2.hook_mlp_out", {}),
    "heads": ("blocks.2.attn.hook_z", {"reshape_activations": "hook_z"}),
    "layer norm": ("blocks.1.hook_resid_post", {"normalize_activations": "layer_norm"}),
    "constant norm": ("blocks.1.hook_resid_post", {"normalize_activations": "constant_norm_rescale"}),
}


@pytest.fixture(params=KINDS)
def sae(request: pytest.FixtureRequest) -> StandardSAE:
    hook, options = KINDS[request.param]
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=48, d_sae=96, metadata=SAEMetadata(hook_name=hook), **options)).double()
    sae.dtype = torch.float64
    with torch.no_grad():
        sae.b_enc.normal_(0, 0.1)
        sae.b_dec.normal_(0, 0.1)
    return sae


def run_with(case: Any, hook: str, value: torch.Tensor) -> torch.Tensor:
    """The metric with another activation at the word."""

    def swap(activation, **_):
        activation = activation.clone()
        activation[:, POSITION] = value
        return activation

    return case.metric(case.model.run_with_hooks(case.case["clean"], fwd_hooks=[(hook, swap)]))


def test_integrated_gradients(gpt2_case: Any, sae: StandardSAE):
    case, hook = gpt2_case, str(sae.cfg.metadata.hook_name)
    clean = case.model.run_with_cache(case.case["clean"])[1][hook][:, POSITION].detach()
    acts = sae.encode(clean).detach()
    error = (clean - sae.decode(acts)).detach()
    gradients = []
    for step in range(3):
        sae.encode(clean)
        moved = ((1 - step / 3) * acts).requires_grad_()
        metric = run_with(case, hook, sae.decode(moved) + (1 - step / 3) * error)
        gradients.append(torch.autograd.grad(metric.sum(), moved)[0])
    expected = (torch.stack(gradients).mean(dim=0) * -acts)[0]
    words = word_integrated_gradients(case.model, sae, case.prompts, case.word_metric, steps=3)
    torch.testing.assert_close(words.scores[0], expected, rtol=1e-8, atol=1e-12)
    patched = calculate_integrated_gradient_attribution_patching(
        case.model,
        case.case["clean"],
        case.metric,
        POSITION,
        include_saes={hook: sae},
        interpolation_steps=3,
        batch_size=2,
    )
    scores = patched.sae_feature_attributions[hook][0, POSITION]
    torch.testing.assert_close(scores, expected, rtol=1e-8, atol=1e-12)
    first = calculate_feature_attribution(case.model, case.case["clean"], case.metric, include_saes={hook: sae})
    at_word = first.sae_feature_attributions[hook][0, POSITION]
    torch.testing.assert_close(at_word, gradients[0][0] * acts[0], rtol=1e-8, atol=1e-12)


def test_ablations(gpt2_case: Any, sae: StandardSAE):
    case, hook = gpt2_case, str(sae.cfg.metadata.hook_name)
    clean = case.model.run_with_cache(case.case["clean"])[1][hook][:, POSITION].detach()
    acts = sae.encode(clean).detach()
    error = (clean - sae.decode(acts)).detach()
    original = case.metric(case.model(case.case["clean"]))
    expected = {}
    for latent in acts[0].nonzero().flatten().tolist():
        sae.encode(clean)
        without = acts.clone()
        without[0, latent] = 0
        expected[latent] = (run_with(case, hook, sae.decode(without) + error) - original).item()
    words = word_ablations(case.model, sae, case.prompts, case.word_metric)
    alone = calculate_individual_feature_ablations(case.model, case.case["clean"], case.metric, sae, POSITION)
    assert words.latents.tolist() == list(expected) == list(alone.ablation_scores)
    assert words.scores.tolist() == pytest.approx(list(expected.values()), rel=1e-8, abs=1e-12)
    assert alone.ablation_scores == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("include_error_term", [True, False])
def test_prompts_in_company_are_scored_as_alone(gpt2_case: Any, sae: StandardSAE, include_error_term: bool):
    case, hook = gpt2_case, str(sae.cfg.metadata.hook_name)
    texts = ["\n".join(case.case["clean"].split("\n")[-count:]) for count in (1, 3)]
    options = {"include_saes": {hook: sae}, "include_error_term": include_error_term}

    def integrate(given: Any, corrupted: Any) -> Any:
        return calculate_integrated_gradient_attribution_patching(
            case.model, given, case.metric, (POSITION, -3), corrupted, interpolation_steps=2, batch_size=3, **options
        )

    together = calculate_feature_attribution(case.model, texts, case.metric, **options)
    patched = integrate(texts, texts[::-1])
    for row, (text, corrupted) in enumerate(zip(texts, texts[::-1], strict=True)):
        expected = calculate_feature_attribution(case.model, text, case.metric, **options)
        alone = integrate(text, corrupted)
        for found, single in ((together, expected), (patched, alone)):
            scores = single.sae_feature_attributions[hook][0]
            assert scores.abs().max() > 1e-4
            in_company = found.sae_feature_attributions[hook][row]
            torch.testing.assert_close(in_company[-len(scores) :], scores, rtol=1e-8, atol=1e-12)
            assert in_company[: -len(scores)].abs().sum() == 0
    (first, second) = calculate_individual_feature_ablations(case.model, texts, case.metric, sae, POSITION)
    for found, text in ((first, texts[0]), (second, texts[1])):
        single = calculate_individual_feature_ablations(case.model, text, case.metric, sae, POSITION)
        assert found.ablation_scores == single.ablation_scores


def test_inference_mode_is_named(gpt2_case: Any, sae: StandardSAE):
    case = gpt2_case
    with torch.inference_mode(), pytest.raises(AbsorbError, match="inference_mode=False"):
        word_integrated_gradients(case.model, sae, case.prompts, case.word_metric)
    with torch.inference_mode():
        ablations = word_ablations(case.model, sae, case.prompts, case.word_metric)
    assert ablations.scores.abs().max() > 0
