"""`calculate_individual_feature_ablations` with several prompts, metrics and extra hooks."""

from typing import Any

import pytest
import torch
from sae_lens import SAE
from torch import Tensor

from absorb_pl.attribution import FeatureAblationsOutput, calculate_individual_feature_ablations
from absorb_pl.errors import AbsorbError, HookNotFoundError, NonFiniteError, PromptError, ShapeError

LATER = "blocks.2.hook_resid_post"


class AbsTopK:
    """The eight latents farthest from 0, of either sign."""

    def __init__(self, sae: SAE):
        self.cfg, self.W_enc, self.W_dec, self.b_dec = sae.cfg, sae.W_enc.detach(), sae.W_dec.detach(), sae.b_dec

    def encode(self, x: Tensor) -> Tensor:
        values = (x - self.b_dec) @ self.W_enc
        kept = values.abs().topk(8, dim=-1).indices
        return torch.zeros_like(values).scatter(-1, kept, values.gather(-1, kept))

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.W_dec + self.b_dec


@pytest.fixture
def texts(case: Any) -> list[str]:
    lines = case.case["clean"].split("\n")
    return ["\n".join(lines[-count:]) for count in (3, len(lines), 1)]


def ablate(case: Any, given: Any, sae: Any = None, **options: Any) -> Any:
    settings = {"metric_fn": case.metric, "ablate_token_index": -6, **options}
    return calculate_individual_feature_ablations(case.model, given, sae=sae or case.saes["standard_A"], **settings)


def halve(value: Tensor, **_: Any) -> Tensor:
    return 0.5 * value


def minus(loss: Tensor) -> Tensor:
    return -loss


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"firing_threshold": 0.3},
        {"ablate_features": list(range(40))[::-1]},
        {"metric_fn": minus, "return_logits": False, "ablate_features": [5, 9, 130]},
        {"extra_fwd_hooks": [(LATER, halve)]},
    ],
    ids=["plain", "threshold", "latents", "loss", "extra hook"],
)
def test_a_list_of_prompts_gives_the_results_of_single_calls(case: Any, texts: list[str], options: dict[str, Any]):
    together = ablate(case, texts, **options)
    assert isinstance(together, list)
    for found, text in zip(together, texts, strict=True):
        alone = ablate(case, text, **options)
        assert found.ablation_scores == alone.ablation_scores
        assert found.original_score == alone.original_score
        assert torch.equal(found.sae_cache.feature_acts, alone.sae_cache.feature_acts)
    assert len({found.original_score for found in together}) == 3


def test_one_prompt_in_any_form_gives_one_result(case: Any, texts: list[str]):
    ids = case.model.to_tokens(texts[0])
    for given in (texts[0], texts[:1], ids, ids[0], [ids[0]]):
        assert isinstance(ablate(case, given), FeatureAblationsOutput)


def test_each_prompt_may_have_a_metric_of_its_own(case: Any, texts: list[str]):
    metrics = [lambda logits, token=token: logits[:, -1, token] for token in (5, 9, 13)]
    for found, text, metric in zip(ablate(case, texts, metric_fn=metrics), texts, metrics, strict=True):
        assert found.ablation_scores == ablate(case, text, metric_fn=metric).ablation_scores
        assert found.original_score == pytest.approx(metric(case.model(text)).item(), rel=1e-5)


@pytest.mark.parametrize("name", [LATER, "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"])
def test_extra_hooks_act_in_every_run(case: Any, name: str):
    text, hook, sae = case.case["clean"], case.hook("standard_A"), case.saes["standard_A"]

    def edit(value: Tensor, **_: Any) -> Tensor:
        value = 0.5 * value
        value[:, -9] = 0
        return value

    found = ablate(case, text, extra_fwd_hooks=[(name, edit)])
    seen = []
    with torch.no_grad():
        hooks = [(hook, lambda value, **_: seen.append(value.clone())), (name, edit)]
        original = case.metric(case.model.run_with_hooks(text, fwd_hooks=hooks)).item()
    acts = sae.encode(seen[0])[0, -6].detach()
    assert list(found.ablation_scores) == acts.nonzero().flatten().tolist()
    assert found.original_score == pytest.approx(original, abs=3e-6)
    for latent, score in list(found.ablation_scores.items())[:6]:

        def remove(value: Tensor, latent: int = latent, **_: Any) -> Tensor:
            value = value.clone()
            value[:, -6] -= acts[latent] * sae.W_dec[latent]
            return value

        with torch.no_grad():
            metric = case.metric(case.model.run_with_hooks(text, fwd_hooks=[(hook, remove), (name, edit)]))
        assert score == pytest.approx(metric.item() - original, abs=5e-6)
    plain = ablate(case, text)
    assert abs(plain.original_score - found.original_score) > 1e-3


def test_latents_of_either_sign_are_removed(case: Any, texts: list[str]):
    sae, hook = AbsTopK(case.saes["standard_A"]), case.hook("standard_A")
    for found, text in zip(ablate(case, texts, sae), texts, strict=True):
        acts = found.sae_cache.feature_acts[0, -6]
        assert (acts < 0).any()
        assert (acts > 0).any()
        assert list(found.ablation_scores) == acts.nonzero().flatten().tolist()
        latent = int(acts.argmin())

        def remove(value: Tensor, acts: Tensor = acts, latent: int = latent, **_: Any) -> Tensor:
            value = value.clone()
            value[:, -6] -= acts[latent] * sae.W_dec[latent]
            return value

        with torch.no_grad():
            metric = case.metric(case.model.run_with_hooks(text, fwd_hooks=[(hook, remove)])).item()
        assert found.ablation_scores[latent] == pytest.approx(metric - found.original_score, abs=5e-6)
    threshold = acts.abs().sort().values[-5:-3].mean().item()
    strong = ablate(case, texts[-1], sae, firing_threshold=threshold)
    assert list(strong.ablation_scores) == (acts.abs() > threshold).nonzero().flatten().tolist()


def test_bad_input_is_named(case: Any, texts: list[str]):
    with pytest.raises(PromptError, match=r"ablate_token_index.*prompt 2 of 7 tokens"):
        ablate(case, texts, ablate_token_index=-8)
    with pytest.raises(PromptError, match="2 metrics"):
        ablate(case, texts, metric_fn=[case.metric] * 2)
    with pytest.raises(PromptError, match="0 prompts"):
        ablate(case, [])
    with pytest.raises(PromptError, match="pad token"):
        ablate(case, case.model.to_tokens(texts))
    with pytest.raises(ShapeError, match="one value per prompt"):
        ablate(case, texts, metric_fn=lambda logits: logits[:, -1])
    with pytest.raises(NonFiniteError, match="metric"):
        ablate(case, texts, metric_fn=lambda logits: logits[:, -1, 5] / 0)
    with pytest.raises(HookNotFoundError, match="hook_nothing"):
        ablate(case, texts, extra_fwd_hooks=[("hook_nothing", halve)])
    with pytest.raises(AbsorbError, match="whole sequences"):
        ablate(case, texts, extra_fwd_hooks=[(LATER, halve)], engine="suffix")
    for latent in (160, -1):
        with pytest.raises(AbsorbError, match="below 160"):
            ablate(case, texts, ablate_features=[latent])
