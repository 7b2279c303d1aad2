from typing import Any

import pytest
import torch

from absorb_pl.attribution import calculate_attribution_grads, calculate_feature_attribution
from absorb_pl.errors import HookNotFoundError, NonFiniteError, PromptError, ShapeError

TRACKED = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post", "blocks.3.hook_resid_post"]


def test_gradients_are_those_of_finite_differences(gpt2_case: Any):
    case, position, step = gpt2_case, -6, 1e-4
    hook, sae = case.hook("standard_A"), case.saes["standard_A"]
    found = calculate_feature_attribution(
        case.model, case.case["clean"], case.metric, include_saes={hook: sae}, include_error_term=False
    )
    for latent in found.sae_feature_activations[hook][0, position].topk(3).indices.tolist():
        metrics = []
        for sign in (1, -1):

            def nudge(value, sign=sign, latent=latent, **_):
                acts = sae.encode(value)
                acts[:, position, latent] += sign * step
                return sae.decode(acts)

            logits = case.model.run_with_hooks(case.case["clean"], fwd_hooks=[(hook, nudge)])
            metrics.append(case.metric(logits).item())
        slope = (metrics[0] - metrics[1]) / (2 * step)
        assert found.sae_feature_grads[hook][0, position, latent].item() == pytest.approx(slope, rel=1e-5)


def test_saes_with_error_terms_do_not_change_gradients_of_the_model(case: Any):
    saes = {case.hook(name): case.saes[name] for name in ("standard_A", "topk_B")}
    without, with_saes = (
        calculate_feature_attribution(
            case.model, case.case["clean"], case.metric, track_hook_points=TRACKED, include_saes=included
        )
        for included in (None, saes)
    )
    for name in TRACKED:
        largest = without.model_attributions[name].abs().max()
        assert largest > 1e-3
        difference = (without.model_attributions[name] - with_saes.model_attributions[name]).abs().max()
        assert difference < 3e-6 * largest


@pytest.mark.parametrize("kind", ["text", "list", "tokens", "flat tokens"])
def test_inputs_of_every_kind(case: Any, kind: str):
    text = case.case["clean"]
    tokens = case.model.to_tokens(text)
    given = {"text": text, "list": [text], "tokens": tokens, "flat tokens": tokens[0]}[kind]
    hook = case.hook("topk_B")
    sae = {hook: case.saes["topk_B"]}
    found = calculate_feature_attribution(case.model, given, case.metric, include_saes=sae)
    expected = calculate_feature_attribution(case.model, tokens, case.metric, include_saes=sae)
    assert torch.equal(found.sae_feature_attributions[hook], expected.sae_feature_attributions[hook])


def test_prompts_in_a_batch_get_the_gradients_they_get_alone(case: Any):
    texts = [case.case["clean"], case.case["corrupted"]]
    hook = case.hook("standard_A")
    sae = {hook: case.saes["standard_A"]}
    together = calculate_feature_attribution(case.model, texts, case.metric, include_saes=sae)
    for row, text in enumerate(texts):
        alone = calculate_feature_attribution(case.model, text, case.metric, include_saes=sae)
        difference = together.sae_feature_grads[hook][row] - alone.sae_feature_grads[hook][0]
        assert difference.abs().max() < 3e-6 * alone.sae_feature_grads[hook].abs().max()


def test_loss_can_be_attributed(case: Any):
    hook = case.hook("standard_A")
    found = calculate_attribution_grads(
        case.model,
        case.case["clean"],
        lambda loss: -loss,
        include_saes={hook: case.saes["standard_A"]},
        return_logits=False,
    )
    assert found.metric.item() == pytest.approx(-case.model(case.case["clean"], return_type="loss").item(), 1e-6)
    gradient = found.sae_activations[hook].feature_acts.grad
    assert gradient is not None
    assert gradient[0, :-1].abs().max() > 1e-5
    assert gradient[0, -1].abs().max() == 0


def test_parameters_receive_no_gradients(case: Any):
    hook = case.hook("standard_A")
    case.model.original_model.requires_grad_(True)
    calculate_attribution_grads(
        case.model, case.case["clean"], case.metric, include_saes={hook: case.saes["standard_A"]}
    )
    assert all(parameter.grad is None for parameter in case.model.parameters())
    assert all(parameter.grad is None for parameter in case.saes["standard_A"].parameters())
    assert all(parameter.requires_grad for parameter in case.model.original_model.parameters())


def test_extra_hooks_run_behind_the_saes(case: Any):
    hook = case.hook("standard_A")
    found = calculate_feature_attribution(
        case.model,
        case.case["clean"],
        case.metric,
        include_saes={hook: case.saes["standard_A"]},
        extra_fwd_hooks=[(hook, lambda value, **_: 0 * value)],
    )
    assert found.sae_feature_activations[hook].abs().max() > 1
    assert found.sae_feature_grads[hook].abs().max() == 0


def test_bad_input_is_named(case: Any):
    with pytest.raises(HookNotFoundError, match="resid_poost"):
        calculate_feature_attribution(
            case.model, "a", case.metric, include_saes={"blocks.1.hook_resid_poost": case.saes["standard_A"]}
        )
    with pytest.raises(HookNotFoundError, match="hook_nothing"):
        calculate_feature_attribution(case.model, "a", case.metric, track_hook_points=["hook_nothing"])
    with pytest.raises(HookNotFoundError, match="hook_nothing"):
        calculate_feature_attribution(
            case.model, "a", case.metric, extra_fwd_hooks=[("hook_nothing", lambda value, **_: value)]
        )
    with pytest.raises(ShapeError, match="one value per prompt"):
        calculate_feature_attribution(case.model, "a", lambda logits: logits[:, -1])
    texts = ["a", " ocaz a"]
    with pytest.raises(ShapeError, match=r"one value per prompt, shape \(2,\)"):
        calculate_feature_attribution(case.model, texts, lambda logits: logits[:1, -1, 5])
    with pytest.raises(ShapeError, match=r"one value per prompt, shape \(2,\)"):
        calculate_feature_attribution(case.model, texts, lambda loss: loss[:1], return_logits=False)
    with pytest.raises(NonFiniteError, match="Count positions from the end"):
        calculate_feature_attribution(case.model, texts, lambda logits: logits[:, 0, 5])
    ids = [torch.tensor([0, 5]), torch.tensor([0])]
    with pytest.raises(PromptError, match="prompt 1 of one token"):
        calculate_feature_attribution(case.model, ids, lambda loss: loss, return_logits=False)
    with pytest.raises(PromptError, match="pad token"):
        calculate_feature_attribution(case.model, case.model.to_tokens(texts), case.metric)
    with pytest.raises(ShapeError, match=r"hook_pattern.*one prompt per call"):
        calculate_feature_attribution(case.model, texts, case.metric, ["blocks.1.attn.hook_pattern"])


def test_attention_patterns_of_prompts_of_one_length_are_tracked(case: Any):
    name = "blocks.1.attn.hook_pattern"
    texts = [case.case["clean"], case.case["corrupted"]]
    together = calculate_feature_attribution(case.model, texts, case.metric, [name]).model_attributions[name]
    for row, text in enumerate(texts):
        alone = calculate_feature_attribution(case.model, text, case.metric, [name]).model_attributions[name]
        assert (together[row] - alone[0]).abs().max() < 3e-6 * alone.abs().max()
