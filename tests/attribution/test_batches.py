"""One call with many prompts of different lengths against a call with each."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

from absorb_pl.attribution import (
    calculate_attribution_grads,
    calculate_feature_attribution,
    calculate_individual_feature_ablations,
    calculate_integrated_gradient_attribution_patching,
)
from absorb_pl.engine import apply_saes_and_run

HOOK, TRACKED = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"
LENGTHS, CORRUPTED_LENGTHS = (12, 17, 7), (12, 15, 9)
ANSWERS = (5, 9, 13)
# Of the largest figure: the models are in float64, but RMS norms and softmaxes of some compute in float32 inside
# Hugging Face's modules. These are half a unit of float32 for each of the 80 latents and 32 dimensions that are summed.
ROUNDING = (80 + 32) * torch.finfo(torch.float32).eps / 2


def random_prompts(lengths: tuple[int, ...], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 296, (length,), generator=generator) for length in lengths]


PROMPTS, CORRUPTED = random_prompts(LENGTHS, 0), random_prompts(CORRUPTED_LENGTHS, 1)


def random_sae(width: int = 32, hook: str = HOOK) -> StandardSAE:
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=width, d_sae=80, metadata=SAEMetadata(hook_name=hook)))
    with torch.no_grad():
        sae.b_enc.normal_(0, 0.1)
        sae.b_dec.normal_(0, 0.1)
    return sae.to(dtype=torch.float64)


def answers(of: tuple[int, ...] = ANSWERS) -> Callable[[Tensor], Tensor]:
    """A metric with an answer of its own for each prompt."""
    tokens = torch.tensor(of)
    return lambda logits: logits[torch.arange(len(tokens)), -1, tokens] - logits[:, -1].mean(dim=-1)


def losses(of: tuple[int, ...] = ANSWERS) -> Callable[[Tensor], Tensor]:
    """A metric of losses that tells prompts apart."""
    return lambda loss: -loss * torch.tensor(of) if loss.ndim else -loss * of[0]


METRICS = {"logits": answers, "loss": losses}


def assert_rows_equal(together: Any, alone: list[Any], rounding: float = ROUNDING) -> None:
    """Every field of a result, prompt by prompt, and zeros where a prompt has no tokens."""
    seen = 0
    for field in fields(together):
        for name, values in getattr(together, field.name).items():
            for row, single in enumerate(getattr(one, field.name)[name] for one in alone):
                expected = single if single.ndim == values.ndim - 1 else single[0]
                found = values[row, -len(expected) :]
                assert (found - expected).abs().max() <= rounding * expected.abs().max(), (field.name, row)
                assert values[row, : -len(expected)].abs().sum() == 0
                seen += 1
    assert seen > 0


def attribute(model: Any, sae: Any, prompts: Any, metric: Any, return_logits: bool, **options: Any) -> Any:
    return calculate_feature_attribution(
        model,
        prompts,
        metric,
        track_hook_points=[TRACKED],
        include_saes={HOOK: sae},
        return_logits=return_logits,
        **options,
    )


def patch(model: Any, sae: Any, prompts: Any, corrupted: Any, metric: Any, return_logits: bool, **options: Any) -> Any:
    settings = {"patch_indices": [-5, (2, -3)], "interpolation_steps": 3, "batch_size": 4, **options}
    return calculate_integrated_gradient_attribution_patching(
        model,
        prompts,
        metric,
        corrupted_input=corrupted,
        track_hook_points=[TRACKED],
        include_saes={HOOK: sae},
        return_logits=return_logits,
        **settings,
    )


@pytest.mark.parametrize("kind", METRICS)
def test_gradients_of_every_family(family: Any, kind: str):
    sae, is_logits = random_sae(), kind == "logits"
    together = attribute(family, sae, PROMPTS, METRICS[kind](), is_logits)
    alone = [
        attribute(family, sae, prompt, METRICS[kind]((answer,)), is_logits)
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
    ]
    assert_rows_equal(together, alone)
    assert min(row.abs().max() for row in together.sae_feature_attributions[HOOK]) > 1e-4


@pytest.mark.parametrize("kind", METRICS)
def test_patching_of_every_family(family: Any, kind: str):
    sae, is_logits = random_sae(), kind == "logits"
    together = patch(family, sae, PROMPTS, CORRUPTED, METRICS[kind](), is_logits)
    alone = [
        patch(family, sae, prompt, corrupted, METRICS[kind]((answer,)), is_logits)
        for prompt, corrupted, answer in zip(PROMPTS, CORRUPTED, ANSWERS, strict=True)
    ]
    assert_rows_equal(together, alone)
    assert min(row.abs().max() for row in together.sae_feature_attributions[HOOK]) > 1e-4


def test_ablations_of_every_family(family: Any):
    sae = random_sae()
    metrics = [lambda logits, a=answer: logits[:, -1, a] - logits[:, -1].mean(dim=-1) for answer in ANSWERS]
    together = calculate_individual_feature_ablations(family, PROMPTS, metrics, sae, -5)
    alone = [
        calculate_individual_feature_ablations(family, prompt, metric, sae, -5)
        for prompt, metric in zip(PROMPTS, metrics, strict=True)
    ]
    assert [one.ablation_scores for one in together] == [one.ablation_scores for one in alone]
    assert [one.original_score for one in together] == [one.original_score for one in alone]
    assert min(len(one.ablation_scores) for one in together) > 5


@pytest.mark.parametrize("family", ["GPT-2", "GPT-NeoX, Pythia"], indirect=True)
def test_prompts_in_company_are_the_same_computation(family: Any):
    sae = random_sae()
    together = attribute(family, sae, PROMPTS, answers(), True)
    patched = patch(family, sae, PROMPTS, CORRUPTED, answers(), True)
    for row, (prompt, corrupted) in enumerate(zip(PROMPTS, CORRUPTED, strict=True)):
        metric = answers(ANSWERS[row : row + 1])
        alone = attribute(family, sae, prompt, metric, True).sae_feature_attributions[HOOK][0]
        found = together.sae_feature_attributions[HOOK][row, -len(alone) :]
        assert (found - alone).abs().max() < 1e-12 * alone.abs().max()
        alone = patch(family, sae, prompt, corrupted, metric, True).sae_feature_attributions[HOOK][0]
        found = patched.sae_feature_attributions[HOOK][row, -len(alone) :]
        assert (found - alone).abs().max() < 1e-12 * alone.abs().max()


@pytest.mark.parametrize("name", ["GPT-2", "GPT-NeoX, Pythia", "Llama", "Gemma 2"])
def test_bfloat16_models_take_prompts_of_different_lengths(load_tiny: Any, name: str):
    family, sae = load_tiny(name, torch.bfloat16), random_sae().to(dtype=torch.float32)
    together = attribute(family, sae, PROMPTS, answers(), True)
    for row, prompt in enumerate(PROMPTS):
        alone = attribute(family, sae, prompt, answers(ANSWERS[row : row + 1]), True)
        expected = alone.sae_feature_grads[HOOK].flatten().float()
        found = together.sae_feature_grads[HOOK][row, -len(prompt) :].flatten().float()
        assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.99
        assert together.sae_feature_grads[HOOK].isfinite().all()


def test_a_hooked_transformer_takes_prompts_of_different_lengths():
    shape = {"n_layers": 3, "d_model": 32, "n_ctx": 64, "d_head": 8, "d_vocab": 296, "act_fn": "gelu"}
    model = HookedTransformer(
        HookedTransformerConfig(
            **shape, seed=0, init_weights=True, initializer_range=0.2, device="cpu", dtype=torch.float64
        )
    )
    sae = random_sae()
    for kind, metric in METRICS.items():
        together = attribute(model, sae, PROMPTS, metric(), kind == "logits")
        alone = [
            attribute(model, sae, prompt, metric((answer,)), kind == "logits")
            for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
        ]
        assert_rows_equal(together, alone)


def golden_texts(case: Any) -> list[str]:
    """Prompts of three lengths."""
    lines = case.case["clean"].split("\n")
    return ["\n".join(lines[-count:]) for count in (3, len(lines), 1)]


@pytest.mark.parametrize("include_error_term", [True, False])
@pytest.mark.parametrize("sae_name", ["standard_A", "jumprelu_A", "topk_B"])
def test_golden_models(case: Any, sae_name: str, include_error_term: bool):
    texts, hook = golden_texts(case), case.hook(sae_name)
    options = {
        "metric_fn": case.metric,
        "track_hook_points": [TRACKED],
        "include_saes": {hook: case.saes[sae_name]},
        "include_error_term": include_error_term,
    }

    def integrate(text: Any) -> Any:
        return calculate_integrated_gradient_attribution_patching(
            case.model, text, patch_indices=[-6, -3], interpolation_steps=2, batch_size=4, **options
        )

    together = calculate_feature_attribution(case.model, texts, **options)
    alone = [calculate_feature_attribution(case.model, text, **options) for text in texts]
    assert_rows_equal(together, alone)
    found = integrate(texts)
    assert found.corrupted_sae_feature_activations is None
    for row, text in enumerate(texts):
        alone = integrate(text)
        expected = alone.sae_feature_attributions[hook][0]
        difference = found.sae_feature_attributions[hook][row, -len(expected) :] - expected
        assert difference.abs().max() < ROUNDING * expected.abs().max()
        expected = alone.model_grads[TRACKED]
        difference = found.model_grads[TRACKED][row, -len(expected) :] - expected
        assert difference.abs().max() < ROUNDING * expected.abs().max()


def test_two_saes_that_stand_in_for_the_model(case: Any):
    texts = golden_texts(case)
    saes = {case.hook(name): case.saes[name] for name in ("standard_A", "topk_B")}

    def integrate(text: Any) -> Any:
        return calculate_integrated_gradient_attribution_patching(
            case.model,
            text,
            case.metric,
            -6,
            include_saes=saes,
            include_error_term=False,
            interpolation_steps=2,
            batch_size=6,
        ).sae_feature_attributions

    together = integrate(texts)
    for row, text in enumerate(texts):
        for hook, expected in integrate(text).items():
            difference = together[hook][row, -expected.shape[1] :] - expected[0]
            assert difference.abs().max() < ROUNDING * expected.abs().max()


def test_a_run_reads_as_single_runs_do(case: Any):
    texts, hook = golden_texts(case), case.hook("standard_A")
    extra = [(TRACKED, lambda value, **_: value.index_fill(1, torch.tensor([value.shape[1] - 4]), 0))]
    options = {
        "saes": {hook: case.saes["standard_A"]},
        "track_model_hooks": ["blocks.3.hook_resid_post"],
        "extra_fwd_hooks": extra,
    }
    together = apply_saes_and_run(case.model, input=texts, **options)
    by_prompt = apply_saes_and_run(case.model, input=texts, return_type="loss", **options).model_output
    assert by_prompt.shape == (3,)
    for row, text in enumerate(texts):
        alone = apply_saes_and_run(case.model, input=text, **options)
        length = alone.model_output.shape[1]
        pairs = [
            (together.model_output, alone.model_output),
            (
                together.model_activations["blocks.3.hook_resid_post"],
                alone.model_activations["blocks.3.hook_resid_post"],
            ),
            *zip(together.sae_activations[hook], alone.sae_activations[hook], strict=True),
        ]
        for found, expected in pairs:
            difference = found[row, -length:] - expected[0]
            assert difference.abs().max() < ROUNDING * expected.abs().max()
        assert together.model_output[row, :-length].isnan().all()
        assert together.sae_activations[hook].sae_in[row, :-length].abs().sum() == 0
        loss = apply_saes_and_run(case.model, input=text, return_type="loss", **options).model_output
        assert by_prompt[row].item() == pytest.approx(loss.item(), rel=1e-6)
        plain = case.model(text, return_type="loss")
        assert abs(loss.item() - plain.item()) > 1e-4


def test_hooks_that_edit_in_place_act_on_every_prompt(case: Any):
    texts = golden_texts(case)

    def edit(value: Tensor, **_: Any) -> None:
        value[:, -2] = 0

    for form in (edit, lambda value, **_: value.index_fill(1, torch.tensor([value.shape[1] - 2]), 0)):
        with torch.no_grad():
            together = apply_saes_and_run(case.model, {}, texts, extra_fwd_hooks=[(TRACKED, form)]).model_output
            for row, text in enumerate(texts):
                expected = case.model.run_with_hooks(text, fwd_hooks=[(TRACKED, edit)])[0, -1]
                torch.testing.assert_close(together[row, -1], expected, rtol=1e-5, atol=1e-5)
                assert (case.model(text)[0, -1] - expected).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["GPT-2", "Llama", "Gemma 2"], indirect=True)
def test_scores_of_each_prompt_add_up_to_the_change_of_its_metric(family: Any):
    """Completeness: sum of scores and error term = metric(patched) - metric(clean), but for a left sum's error."""
    sae, pairs = random_sae(), [(-5, -3), (-2, -2)]
    metric = answers()
    clean_run = apply_saes_and_run(family, {HOOK: sae}, PROMPTS)
    corrupted_run = apply_saes_and_run(family, {HOOK: sae}, CORRUPTED)
    clean, ends = clean_run.sae_activations[HOOK], corrupted_run.sae_activations[HOOK]

    def swap(value: Tensor, **_: Any) -> Tensor:
        value = value.clone()
        for start, end in pairs:
            value[:, start] = ends.sae_in[:, end]
        return value

    with torch.no_grad():
        patched = apply_saes_and_run(family, {}, PROMPTS, extra_fwd_hooks=[(HOOK, swap)]).model_output
        change = metric(patched) - metric(clean_run.model_output)
    moved = torch.zeros_like(clean.sae_error)
    for start, end in pairs:
        moved[:, start] = ends.sae_error[:, end] - clean.sae_error[:, start]
    gaps = []
    for steps in (8, 32, 128):
        found = patch(
            family, sae, PROMPTS, CORRUPTED, metric, True, patch_indices=pairs, interpolation_steps=steps, batch_size=96
        )
        scores = found.sae_feature_attributions[HOOK][:, [-5, -2]].sum(dim=(1, 2))
        errors = (found.sae_error_grads[HOOK] * moved).sum(dim=(1, 2))
        gaps.append((scores + errors - change).abs().max().item())
    # four times the steps, a quarter of the error
    assert gaps[1] < 0.35 * gaps[0]
    assert gaps[2] < 0.35 * gaps[1]
    assert change.abs().max() > 10 * gaps[2]


def test_batch_size_and_order_change_nothing(case: Any):
    texts, hook = golden_texts(case), case.hook("standard_A")
    answers_of = answers((4, 40, 90))

    def integrate(batch_size: int) -> Tensor:
        return calculate_integrated_gradient_attribution_patching(
            case.model,
            texts,
            answers_of,
            -6,
            include_saes={hook: case.saes["standard_A"]},
            interpolation_steps=3,
            batch_size=batch_size,
        ).sae_feature_attributions[hook]

    expected = integrate(9)
    for batch_size in (1, 2, 4):
        assert (integrate(batch_size) - expected).abs().max() < ROUNDING * expected.abs().max()


def test_one_value_for_all_prompts_is_their_sum(case: Any):
    texts, hook = golden_texts(case), case.hook("standard_A")
    options = {"include_saes": {hook: case.saes["standard_A"]}}
    by_prompt = calculate_attribution_grads(case.model, texts, case.metric, **options)
    summed = calculate_attribution_grads(case.model, texts, lambda logits: case.metric(logits).sum(), **options)
    grads = [run.sae_activations[hook].feature_acts.grad for run in (by_prompt, summed)]
    assert torch.equal(*grads)
