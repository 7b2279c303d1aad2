"""Every recorded array of the published functions, through the functions of the same names."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from absorb_pl.attribution import (
    calculate_feature_attribution,
    calculate_individual_feature_ablations,
    calculate_integrated_gradient_attribution_patching,
)
from absorb_pl.engine import apply_saes_and_run

SAES = ("standard_A", "jumprelu_A", "topk_B")
TRACKED = "blocks.2.hook_resid_post"

PATCHES: dict[str, dict[str, Any]] = {
    "word_s6": {"patch_indices": -6, "interpolation_steps": 6},
    "all_s4": {"interpolation_steps": 4},
    "two_s5": {"patch_indices": [-6, -3], "interpolation_steps": 5},
    "corrupted_s6": {"patch_indices": [(-6, -6), (-5, -5)], "interpolation_steps": 6},
}

Figures = dict[str, Tensor]


@pytest.fixture
def agree(case: Any, single_case: Any, float32_rounding: Any, recorded_to: Any) -> Callable[..., None]:
    """Compares the float64 figures with the recorded ones, and the float32 figures with the float64 ones.

    `terms` holds, where a figure is a difference, what cancels in it: its rounding is that of the largest of them, in
    Gemma's norms, which compute in float32, as in float32 throughout. `within` replaces what float64 owes there.
    """

    def check(figures: Callable[[Any], Figures], within: float | None = None, terms: Figures | None = None) -> None:
        exact, rounded = figures(case), figures(single_case)
        assert exact.keys() == rounded.keys() <= case.expected.keys()
        for name, found in exact.items():
            expected = case.expected[name]
            assert (found.dtype, found.shape) == (torch.float64, expected.shape), name
            size = (terms or {}).get(name, found).abs().max()
            if within and case.folder.name != "gpt2-micro":
                allowed = within * expected.abs().max()
            else:
                allowed = recorded_to(case.folder.name) * size
            stored = half_a_float32_unit(expected) * expected.abs()
            assert ((found - expected).abs() <= allowed + stored).all(), (name, (found - expected).abs().max() / size)
            assert (rounded[name] - found).abs().max() <= float32_rounding(case.model) * size, name

    return check


def half_a_float32_unit(recorded: Tensor) -> float:
    """What storing them took from recorded figures: ablations were computed in float64 and written as float32."""
    return torch.finfo(torch.float32).eps / 2 if torch.equal(recorded.float().double(), recorded) else 0.0


@pytest.mark.parametrize("include_error_term", [True, False])
@pytest.mark.parametrize("sae_name", SAES)
def test_apply_saes_and_run(agree: Any, sae_name: str, include_error_term: bool):
    def figures(case: Any) -> Figures:
        hook = case.hook(sae_name)
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
        latents = [run.sae_activations[hook].feature_acts[:, case.case["position"]] for run in runs]
        recorded = f"{sae_name}/apply/error_{include_error_term}"
        return {
            f"{recorded}/last_logits": torch.cat([run.model_output[:, -1] for run in runs]),
            f"{recorded}/feature_acts_at_word": torch.cat(latents),
        }

    agree(figures)


@pytest.mark.parametrize("include_error_term", [True, False])
@pytest.mark.parametrize("sae_name", SAES)
def test_feature_attribution(agree: Any, sae_name: str, include_error_term: bool):
    def figures(case: Any) -> Figures:
        hook = case.hook(sae_name)
        found = calculate_feature_attribution(
            case.model,
            case.case["clean"],
            case.metric,
            track_hook_points=[TRACKED],
            include_saes={hook: case.saes[sae_name]},
            include_error_term=include_error_term,
        )
        recorded = f"{sae_name}/attribution/error_{include_error_term}"
        assert list(found.sae_error_grads) == ([hook] if include_error_term else [])
        return {
            f"{recorded}/sae": found.sae_feature_attributions[hook],
            f"{recorded}/sae_grads": found.sae_feature_grads[hook],
            f"{recorded}/model": found.model_attributions[TRACKED],
            **{f"{recorded}/sae_error_grads": gradients for gradients in found.sae_error_grads.values()},
        }

    agree(figures)


def test_feature_attribution_through_two_saes(agree: Any):
    def figures(case: Any) -> Figures:
        saes = {case.hook(name): case.saes[name] for name in ("standard_A", "topk_B")}
        found = calculate_feature_attribution(case.model, case.case["clean"], case.metric, include_saes=saes)
        return {f"two_saes/attribution/{hook}": scores for hook, scores in found.sae_feature_attributions.items()}

    agree(figures)


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("sae_name", SAES)
def test_integrated_gradients(case: Any, agree: Any, sae_name: str, patch: str):
    def integrate(case: Any) -> Any:
        return calculate_integrated_gradient_attribution_patching(
            case.model,
            case.case["clean"],
            case.metric,
            corrupted_input=case.case["corrupted"] if patch == "corrupted_s6" else None,
            include_saes={case.hook(sae_name): case.saes[sae_name]},
            batch_size=4,
            **PATCHES[patch],
        )

    name, hook = f"{sae_name}/ig/{patch}/sae", case.hook(sae_name)
    exact = integrate(case)
    # the difference of two prompts' latents keeps the rounding of each
    terms = exact.sae_feature_grads[hook] * exact.sae_feature_activations[hook]
    agree(lambda case: {name: integrate(case).sae_feature_attributions[hook]}, terms={name: terms})


@pytest.mark.parametrize("sae_name", SAES)
def test_individual_feature_ablations(case: Any, agree: Any, sae_name: str):
    scores, ids, original = (f"{sae_name}/ablation/{part}" for part in ("scores", "ids", "original_score"))

    def figures(case: Any) -> Figures:
        found = calculate_individual_feature_ablations(
            case.model, case.case["clean"], case.metric, case.saes[sae_name], case.case["position"]
        )
        assert list(found.ablation_scores) == case.expected[ids].long().tolist()
        return {
            scores: torch.tensor(list(found.ablation_scores.values()), dtype=torch.float64),
            original: torch.tensor([found.original_score], dtype=torch.float64),
        }

    # the difference of two metrics keeps the rounding of the logits that they are made of
    logits = case.model(case.case["clean"])[0, -1]
    agree(figures, within=5e-5, terms={scores: logits, original: logits})
