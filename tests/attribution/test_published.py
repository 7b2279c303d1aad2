"""Every recorded array of the published functions, through the functions of the same names."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from absorb_pl.attribution import (
    calculate_feature_attribution,
    calculate_individual_feature_ablations,
    calculate_integrated_gradient_attribution_patching,
)
from absorb_pl.models import apply_saes_and_run

SAES = ("standard_A", "jumprelu_A", "topk_B")
TRACKED = "blocks.2.hook_resid_post"
FLOAT32_EPS = torch.finfo(torch.float32).eps

PATCHES: dict[str, dict[str, Any]] = {
    "word_s6": {"patch_indices": -6, "interpolation_steps": 6},
    "all_s4": {"interpolation_steps": 4},
    "two_s5": {"patch_indices": [-6, -3], "interpolation_steps": 5},
    "corrupted_s6": {"patch_indices": [(-6, -6), (-5, -5)], "interpolation_steps": 6},
}


@pytest.fixture(params=["float32", "float64"])
def any_precision(request: pytest.FixtureRequest, case: Any):
    """The case in the precision it was recorded in, and in one whose rounding is nothing beside the record's."""
    dtype = getattr(torch, request.param)
    case.cast(dtype)
    yield case
    case.cast(torch.float32)


def assert_recorded(actual: Tensor, expected: Tensor, scale: float | Tensor | None = None) -> None:
    """To 1e-5, beside 16 units of float32 rounding of the largest term that the figures are made of.

    The recorded figures carry that rounding themselves: a float64 run is as far from them as a float32 run.
    """
    size = expected.abs().max() if scale is None else torch.as_tensor(scale)
    assert actual.shape == expected.shape
    error = (actual - expected).abs()
    assert (error <= 1e-5 * expected.abs() + 1e-8 + 16 * FLOAT32_EPS * size).all(), error.max()


@pytest.mark.parametrize("include_error_term", [True, False])
@pytest.mark.parametrize("sae_name", SAES)
def test_apply_saes_and_run(any_precision: Any, sae_name: str, include_error_term: bool):
    case, hook = any_precision, any_precision.hook(sae_name)
    evaluation = json.loads((case.folder.parent / "words.json").read_text())[8:11]
    context = case.case["clean"].rsplit("\n", 1)[0]
    runs = [
        apply_saes_and_run(
            case.model,
            {hook: case.saes[sae_name]},
            f"{context}\n {word} has the first letter:",
            include_error_term=include_error_term,
        )
        for word in evaluation
    ]
    recorded = f"{sae_name}/apply/error_{include_error_term}"
    logits = torch.cat([run.model_output[:, -1] for run in runs])
    latents = torch.cat([run.sae_activations[hook].feature_acts[:, case.case["position"]] for run in runs])
    assert_recorded(logits, case.expected[f"{recorded}/last_logits"])
    assert_recorded(latents, case.expected[f"{recorded}/feature_acts_at_word"])


@pytest.mark.parametrize("include_error_term", [True, False])
@pytest.mark.parametrize("sae_name", SAES)
def test_feature_attribution(any_precision: Any, sae_name: str, include_error_term: bool):
    case, hook = any_precision, any_precision.hook(sae_name)
    found = calculate_feature_attribution(
        case.model,
        case.case["clean"],
        case.metric,
        track_hook_points=[TRACKED],
        include_saes={hook: case.saes[sae_name]},
        include_error_term=include_error_term,
    )
    recorded = f"{sae_name}/attribution/error_{include_error_term}"
    assert_recorded(found.sae_feature_attributions[hook], case.expected[f"{recorded}/sae"])
    assert_recorded(found.sae_feature_grads[hook], case.expected[f"{recorded}/sae_grads"])
    assert_recorded(found.model_attributions[TRACKED], case.expected[f"{recorded}/model"])
    if include_error_term:
        assert_recorded(found.sae_error_grads[hook], case.expected[f"{recorded}/sae_error_grads"])
    else:
        assert found.sae_error_grads == {}


def test_feature_attribution_through_two_saes(any_precision: Any):
    case = any_precision
    saes = {case.hook(name): case.saes[name] for name in ("standard_A", "topk_B")}
    found = calculate_feature_attribution(case.model, case.case["clean"], case.metric, include_saes=saes)
    for hook in saes:
        expected = case.expected[f"two_saes/attribution/{hook}"]
        assert_recorded(found.sae_feature_attributions[hook], expected)


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("sae_name", SAES)
def test_integrated_gradients(any_precision: Any, sae_name: str, patch: str):
    case, hook = any_precision, any_precision.hook(sae_name)
    found = calculate_integrated_gradient_attribution_patching(
        case.model,
        case.case["clean"],
        case.metric,
        corrupted_input=case.case["corrupted"] if patch == "corrupted_s6" else None,
        include_saes={hook: case.saes[sae_name]},
        batch_size=4,
        **PATCHES[patch],
    )
    # the difference of two prompts' latents keeps the rounding of each
    terms = (found.sae_feature_grads[hook] * found.sae_feature_activations[hook]).abs().max()
    assert_recorded(found.sae_feature_attributions[hook], case.expected[f"{sae_name}/ig/{patch}/sae"], terms)


@pytest.mark.parametrize("sae_name", SAES)
def test_individual_feature_ablations(any_precision: Any, sae_name: str):
    case = any_precision
    found = calculate_individual_feature_ablations(
        case.model, case.case["clean"], case.metric, case.saes[sae_name], case.case["position"]
    )
    scores, ids = (case.expected[f"{sae_name}/ablation/{part}"] for part in ("scores", "ids"))
    assert list(found.ablation_scores) == ids.long().tolist()
    # the difference of two metrics keeps the rounding of the logits they are made of
    logits = case.model(case.case["clean"])[0, -1].abs().max()
    assert_recorded(torch.tensor(list(found.ablation_scores.values())), scores, logits)
    original = case.expected[f"{sae_name}/ablation/original_score"]
    torch.testing.assert_close(torch.tensor([found.original_score]), original, rtol=1e-5, atol=1e-8)
