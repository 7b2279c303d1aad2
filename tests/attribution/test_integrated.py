from typing import Any

import pytest
import torch

from absorb_pl.attribution import calculate_integrated_gradient_attribution_patching, word_integrated_gradients
from absorb_pl.errors import AbsorbError, HookNotFoundError, NonFiniteError, PromptError, ShapeError

TRACKED = "blocks.2.hook_resid_post"


def integrate(case: Any, sae_names: tuple[str, ...] = ("standard_A",), **options: Any):
    settings = {
        "input": case.case["clean"],
        "metric_fn": case.metric,
        "patch_indices": -6,
        "batch_size": 8,
        "include_saes": {case.hook(name): case.saes[name] for name in sae_names},
    }
    return calculate_integrated_gradient_attribution_patching(case.model, **{**settings, **options})


def test_scores_at_a_word_are_those_of_the_suffix_engine(case: Any):
    found = integrate(case, interpolation_steps=6)
    words = word_integrated_gradients(case.model, case.saes["standard_A"], case.prompts, case.word_metric)
    scores = found.sae_feature_attributions[case.hook("standard_A")][0, -6]
    assert (scores - words.scores[0]).abs().max() < 1e-5 * scores.abs().max()
    errors = found.sae_error_grads[case.hook("standard_A")][-6]
    assert (errors - words.gradients[0]).abs().max() < 1e-5 * errors.abs().max()


def test_batch_size_changes_nothing(case: Any):
    hook = case.hook("standard_A")
    one, all_at_once = (integrate(case, batch_size=size).sae_feature_attributions[hook] for size in (1, 50))
    assert (one - all_at_once).abs().max() < 3e-6 * one.abs().max()


def test_other_saes_with_error_terms_leave_the_scores_of_one_alone(case: Any):
    hook = case.hook("standard_A")
    alone, both = (integrate(case, names) for names in (("standard_A",), ("standard_A", "topk_B")))
    expected = alone.sae_feature_attributions[hook]
    assert (both.sae_feature_attributions[hook] - expected).abs().max() < 3e-6 * expected.abs().max()
    assert both.sae_feature_attributions.keys() == {hook, case.hook("topk_B")}


def test_tracked_hooks_are_moved_by_themselves(case: Any):
    ids = case.model.to_tokens(case.case["clean"])
    found = integrate(case, track_hook_points=[TRACKED], interpolation_steps=3)
    clean = case.model.run_with_cache(ids)[1][TRACKED].detach()
    gradients = []
    for step in range(3):
        point = clean.clone()
        point[:, -6] *= 1 - step / 3
        point.requires_grad_()
        logits = case.model.run_with_hooks(ids, fwd_hooks=[(TRACKED, lambda _value, point=point, **_: point)])
        gradients.append(torch.autograd.grad(case.metric(logits).sum(), point)[0])
    expected = torch.stack(gradients).mean(dim=0)
    assert (found.model_grads[TRACKED] - expected[0]).abs().max() < 3e-6 * expected.abs().max()
    torch.testing.assert_close(found.model_attributions[TRACKED], found.model_grads[TRACKED] * -clean)
    torch.testing.assert_close(found.model_activations[TRACKED], clean, rtol=1e-5, atol=1e-5)
    assert found.corrupted_model_activations is None


@pytest.mark.parametrize("include_error_term", [True, False])
def test_scores_add_up_to_the_change_of_the_metric(case: Any, include_error_term: bool):
    hook, sae = case.hook("topk_B"), case.saes["topk_B"]

    def metric_with(replace: bool) -> torch.Tensor:
        def splice(value, **_):
            spliced = value.clone() if include_error_term else sae.decode(sae.encode(value))
            if replace:
                spliced[:, -6] = sae.b_dec
            return spliced

        with torch.no_grad():
            return case.metric(case.model.run_with_hooks(case.case["clean"], fwd_hooks=[(hook, splice)]))

    change = metric_with(True) - metric_with(False)
    error = case.model.run_with_cache(case.case["clean"])[1][hook].detach()
    error = error - sae.decode(sae.encode(error)).detach()
    gaps = []
    for steps in (8, 32, 128):
        found = integrate(
            case, ("topk_B",), interpolation_steps=steps, include_error_term=include_error_term, batch_size=32
        )
        total = found.sae_feature_attributions[hook][0, -6].sum()
        if include_error_term:
            total = total - (found.sae_error_grads[hook][-6] * error[0, -6]).sum()
        gaps.append((total - change).abs().item())
    # a left sum: four times the steps, a quarter of the error
    assert gaps[1] < 0.35 * gaps[0]
    assert gaps[2] < 0.35 * gaps[1]


def test_a_corrupted_prompt_of_another_length_needs_pairs(case: Any):
    corrupted = " ocaz has the first letter: O\n" + case.case["corrupted"]
    hook = case.hook("standard_A")
    longer = integrate(case, corrupted_input=corrupted, patch_indices=[(-6, -6), (-5, -5)])
    activations, ends = longer.sae_feature_activations[hook], longer.corrupted_sae_feature_activations
    assert ends is not None
    assert ends[hook].shape[1] > activations.shape[1]
    moved = longer.sae_feature_grads[hook][-6] * (ends[hook][0, -6] - activations[0, -6])
    torch.testing.assert_close(longer.sae_feature_attributions[hook][0, -6], moved)
    unmoved = longer.sae_feature_attributions[hook][0, : activations.shape[1] - 6]
    assert unmoved.abs().max() == 0
    with pytest.raises(PromptError, match="prompts have"):
        integrate(case, corrupted_input=corrupted, patch_indices=None)


def test_positions_pair_with_positions_elsewhere(case: Any):
    hook = case.hook("standard_A")
    found = integrate(case, corrupted_input=case.case["corrupted"], patch_indices=(-6, -1))
    ends = found.corrupted_sae_feature_activations
    assert ends is not None
    change = ends[hook][0, -1] - found.sae_feature_activations[hook][0, -6]
    expected = found.sae_feature_grads[hook][-6] * change
    torch.testing.assert_close(found.sae_feature_attributions[hook][0, -6], expected)
    assert expected.abs().max() > 1e-4


def test_positions_may_be_given_in_every_form(case: Any):
    hook = case.hook("standard_A")
    forms = [-6, [-6], (65, 65), [(-6, -6)], torch.tensor([65]).tolist(), [(65, -6)]]
    scores = [integrate(case, patch_indices=form).sae_feature_attributions[hook] for form in forms]
    assert all(torch.equal(scores[0], other) for other in scores[1:])


def test_a_metric_of_one_number_serves_single_rows(case: Any):
    hook = case.hook("standard_A")
    scalar = integrate(case, metric_fn=lambda logits: case.metric(logits)[0], batch_size=1)
    vector = integrate(case, batch_size=1)
    assert torch.equal(scalar.sae_feature_attributions[hook], vector.sae_feature_attributions[hook])


def test_losses_are_integrated_a_step_at_a_time(case: Any):
    hook = case.hook("standard_A")
    runs = [integrate(case, metric_fn=lambda loss: -loss, return_logits=False, batch_size=size) for size in (1, 8)]
    first, second = (run.sae_feature_attributions[hook] for run in runs)
    assert torch.equal(first, second)
    assert first[0, -6].abs().max() > 1e-6


def test_positions_count_from_each_prompt_s_own_end(case: Any):
    texts = ["\n".join(case.case["clean"].split("\n")[-count:]) for count in (1, 3)]
    hook = case.hook("standard_A")
    for index in (-6, 2, (2, -3)):
        corrupted = list(reversed(texts)) if isinstance(index, tuple) else None
        together = integrate(case, input=texts, corrupted_input=corrupted, patch_indices=index)
        for row, text in enumerate(texts):
            other = None if corrupted is None else corrupted[row]
            alone = integrate(case, input=text, corrupted_input=other, patch_indices=index)
            expected = alone.sae_feature_attributions[hook][0]
            position = index[0] if isinstance(index, tuple) else index
            assert expected[position].abs().max() > 1e-4
            difference = together.sae_feature_attributions[hook][row, -len(expected) :] - expected
            assert difference.abs().max() < 2e-6 * expected.abs().max()


def test_all_positions_are_moved_if_none_is_named(case: Any):
    texts = ["\n".join(case.case[kind].split("\n")[-count:]) for kind in ("clean", "corrupted") for count in (1, 3)]
    hook = case.hook("standard_A")
    together = integrate(case, input=texts[:2], corrupted_input=texts[2:], patch_indices=None, interpolation_steps=2)
    for row in range(2):
        alone = integrate(
            case, input=texts[row], corrupted_input=texts[2 + row], patch_indices=None, interpolation_steps=2
        )
        expected = alone.sae_feature_attributions[hook][0]
        difference = together.sae_feature_attributions[hook][row, -len(expected) :] - expected
        assert difference.abs().max() < 2e-6 * expected.abs().max()


def test_one_prompt_in_a_list_has_the_shapes_of_one_prompt(case: Any):
    hook = case.hook("standard_A")
    single, listed = (integrate(case, input=given) for given in (case.case["clean"], [case.case["clean"]]))
    assert single.sae_feature_grads[hook].ndim == 2
    assert torch.equal(single.sae_feature_grads[hook], listed.sae_feature_grads[hook])
    two = integrate(case, input=[case.case["clean"]] * 2)
    assert two.sae_feature_grads[hook].shape == (2, *single.sae_feature_grads[hook].shape)


def test_extra_hooks_act_in_every_run(case: Any):
    hook, later = case.hook("standard_A"), "blocks.2.hook_mlp_out"
    sae = case.saes["standard_A"]

    def empty(value: torch.Tensor, **_: Any) -> torch.Tensor:
        value = value.clone()
        value[:, -4] = 0
        return value

    def halve(value: torch.Tensor, **_: Any) -> torch.Tensor:
        return 0.5 * value

    plain = integrate(case, interpolation_steps=2).sae_feature_attributions[hook][0]
    found = integrate(case, interpolation_steps=2, extra_fwd_hooks=[(TRACKED, empty), (later, halve)])
    ids = case.model.to_tokens(case.case["clean"])
    clean = case.model.run_with_cache(ids)[1][hook].detach()
    acts = sae.encode(clean).detach()
    error = (clean - sae.decode(acts)).detach()
    gradients = []
    for step in range(2):
        moved = acts.clone()
        moved[:, -6] *= 1 - step / 2
        moved.requires_grad_()
        part = error.clone()
        part[:, -6] *= 1 - step / 2
        point = sae.decode(moved) + part
        hooks = [(hook, lambda _value, point=point, **_: point), (TRACKED, empty), (later, halve)]
        metric = case.metric(case.model.run_with_hooks(ids, fwd_hooks=hooks))
        gradients.append(torch.autograd.grad(metric.sum(), moved)[0])
    expected = (torch.stack(gradients).mean(dim=0) * -acts)[0]
    scores = found.sae_feature_attributions[hook][0]
    assert (scores - expected).abs().max() < 3e-6 * expected.abs().max()
    assert (scores - plain).abs().max() > 1e-2 * plain.abs().max()
    upstream = integrate(case, interpolation_steps=2, extra_fwd_hooks=[("blocks.0.hook_resid_post", halve)])
    assert not torch.allclose(upstream.sae_feature_activations[hook], found.sae_feature_activations[hook])


def test_bad_input_is_named(case: Any):
    clean, corrupted = case.case["clean"], case.case["corrupted"]
    short = clean.split("\n")[-1]
    with pytest.raises(PromptError, match="71 tokens"):
        integrate(case, patch_indices=71)
    with pytest.raises(PromptError, match="prompt 1 of 7 tokens"):
        integrate(case, input=[clean, short], patch_indices=-8)
    with pytest.raises(PromptError, match="prompt 0 of 7 tokens"):
        integrate(case, input=[clean, clean], corrupted_input=[short, clean], patch_indices=(0, 7))
    with pytest.raises(PromptError, match="1 prompts"):
        integrate(case, input=[clean, clean], corrupted_input=corrupted)
    with pytest.raises(PromptError, match="the two of prompt 1 have 71 and 7 tokens"):
        integrate(case, input=[clean, clean], corrupted_input=[corrupted, short], patch_indices=None)
    with pytest.raises(PromptError, match="a list of texts"):
        integrate(case, input=None)
    with pytest.raises(ShapeError, match="one value per prompt"):
        integrate(case, metric_fn=lambda logits: logits[:, -1])
    for wrong in (lambda logits: logits[:1, -1, 5], lambda logits: logits[:, -1, 5].sum()):
        with pytest.raises(ShapeError, match=r"one value per prompt, shape \(2,\)"):
            integrate(case, input=[clean, short], metric_fn=wrong)
    with pytest.raises(NonFiniteError, match="Count positions from the end"):
        integrate(case, input=[clean, short], metric_fn=lambda logits: logits[:, 3, 5])
    with pytest.raises(HookNotFoundError, match="resid_poost"):
        integrate(case, include_saes={"blocks.1.hook_resid_poost": case.saes["standard_A"]})
    with pytest.raises(HookNotFoundError, match="hook_nothing"):
        integrate(case, track_hook_points=["hook_nothing"])
    with pytest.raises(HookNotFoundError, match="hook_nothing"):
        integrate(case, extra_fwd_hooks=[("hook_nothing", lambda value, **_: value)])
    with pytest.raises(AbsorbError, match="interpolation_steps"):
        integrate(case, interpolation_steps=0)
    with pytest.raises(AbsorbError, match="batch_size"):
        integrate(case, batch_size=0)
