from typing import Any

import pytest
import torch
from torch import Tensor

from absorb_pl.attribution import calculate_individual_feature_ablations
from absorb_pl.errors import AbsorbError, HookNotFoundError, PromptError, ShapeError


class TwoSided:
    """An SAE whose latents may be negative."""

    def __init__(self, sae: Any):
        self.cfg, self.W_dec, self.decode = sae.cfg, sae.W_dec, sae.decode
        self.signs = torch.where(torch.arange(sae.cfg.d_sae) % 2 == 0, 1, -1)
        self.inner = sae

    def encode(self, x: Tensor) -> Tensor:
        return self.inner.encode(x) * self.signs


def ablate(case: Any, sae: Any = None, **options: Any):
    settings = {"input": case.case["clean"], "metric_fn": case.metric, "ablate_token_index": -6}
    return calculate_individual_feature_ablations(
        case.model, sae=sae or case.saes["standard_A"], **{**settings, **options}
    )


def test_scores_are_those_of_runs_without_the_latent(case: Any):
    sae, hook = case.saes["standard_A"], case.hook("standard_A")
    found = ablate(case)
    acts = found.sae_cache.feature_acts[0, -6]
    assert list(found.ablation_scores) == acts.nonzero().flatten().tolist()
    for latent, score in found.ablation_scores.items():

        def remove(value, latent=latent, **_):
            value = value.clone()
            value[:, -6] -= acts[latent] * sae.W_dec[latent]
            return value

        with torch.no_grad():
            metric = case.metric(case.model.run_with_hooks(case.case["clean"], fwd_hooks=[(hook, remove)]))
        assert score == pytest.approx(metric.item() - found.original_score, abs=3e-6)


def test_engines_and_batch_sizes_agree(case: Any):
    scores = [
        torch.tensor(list(ablate(case, engine=engine, batch_size=size).ablation_scores.values()))
        for engine, size in (("suffix", 25), ("suffix", 3), ("whole", 25))
    ]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=3e-6)
    torch.testing.assert_close(scores[0], scores[2], rtol=0, atol=3e-6)


def test_metrics_may_read_any_position(case: Any):
    """Tokens before the ablated one keep their clean logits."""
    found = ablate(case, metric_fn=lambda logits: logits[:, 4, 7] + logits[:, -6, 9])
    whole = ablate(case, metric_fn=lambda logits: logits[:, 4, 7] + logits[:, -6, 9], engine="whole")
    expected = torch.tensor(list(whole.ablation_scores.values()))
    torch.testing.assert_close(torch.tensor(list(found.ablation_scores.values())), expected, rtol=0, atol=5e-6)
    assert expected.abs().max() > 1e-3
    before = ablate(case, metric_fn=lambda logits: logits[:, 4, 7])
    assert max(abs(score) for score in before.ablation_scores.values()) < 5e-6


def test_negative_latents_fire(case: Any):
    sae = TwoSided(case.saes["standard_A"])
    found = ablate(case, sae)
    acts = found.sae_cache.feature_acts[0, -6]
    assert (acts < 0).any()
    assert list(found.ablation_scores) == acts.nonzero().flatten().tolist()


def test_latents_that_fire_weakly_can_be_left_out(case: Any):
    everything = ablate(case)
    acts = everything.sae_cache.feature_acts[0, -6]
    threshold = acts[acts > 0].median().item()
    found = ablate(case, firing_threshold=threshold)
    assert set(found.ablation_scores) == set((acts > threshold).nonzero().flatten().tolist())
    assert 0 < len(found.ablation_scores) < len(everything.ablation_scores)


def test_progress_is_shown_when_asked_for(case: Any, capsys: pytest.CaptureFixture[str]):
    ablate(case)
    assert capsys.readouterr().out == ""
    ablate(case, show_progress=True)
    assert "latents" in capsys.readouterr().out


def test_silent_latents_score_nothing(case: Any):
    silent = (ablate(case).sae_cache.feature_acts[0, -6] == 0).nonzero().flatten().tolist()[:2]
    found = ablate(case, ablate_features=silent)
    assert list(found.ablation_scores) == silent
    assert all(abs(score) < 5e-6 for score in found.ablation_scores.values())


def test_removed_vectors_can_be_modified(case: Any):
    sae = case.saes["standard_A"]
    seen: list[int] = []

    def reverse(deltas: Tensor, latents: list[int]) -> Tensor:
        seen.extend(latents)
        return -deltas

    plain, reversed_scores = ablate(case), ablate(case, modify_ablation_deltas_fn=reverse)
    assert seen == list(plain.ablation_scores)
    strongest = max(plain.ablation_scores, key=lambda latent: abs(plain.ablation_scores[latent]))
    acts = plain.sae_cache.feature_acts[0, -6]

    def double(value, **_):
        value = value.clone()
        value[:, -6] += acts[strongest] * sae.W_dec[strongest]
        return value

    with torch.no_grad():
        metric = case.metric(
            case.model.run_with_hooks(case.case["clean"], fwd_hooks=[(case.hook("standard_A"), double)])
        )
    assert reversed_scores.ablation_scores[strongest] == pytest.approx(metric.item() - plain.original_score, abs=3e-6)


def test_losses_are_measured(case: Any):
    found = ablate(case, metric_fn=lambda loss: -loss, return_logits=False)
    loss = case.model(case.case["clean"], return_type="loss").item()
    assert found.original_score == pytest.approx(-loss, rel=1e-6)
    assert max(abs(score) for score in found.ablation_scores.values()) > 1e-5


def test_bad_input_is_named(case: Any):
    with pytest.raises(PromptError, match="ablate_token_index"):
        ablate(case, ablate_token_index=-72)
    with pytest.raises(AbsorbError, match="below 160"):
        ablate(case, ablate_features=[160])
    with pytest.raises(AbsorbError, match="batch_size"):
        ablate(case, batch_size=0)
    with pytest.raises(ShapeError, match="one value per prompt"):
        ablate(case, metric_fn=lambda logits: logits[:, -1])
    with pytest.raises(ShapeError, match="modify_ablation_deltas_fn"):
        ablate(case, modify_ablation_deltas_fn=lambda deltas, _: deltas[:, :3])
    stray = TwoSided(case.saes["standard_A"])
    stray.cfg = type("Config", (), {"metadata": type("Metadata", (), {"hook_name": "blocks.9.hook_resid_post"})})
    with pytest.raises(HookNotFoundError, match=r"blocks\.9"):
        ablate(case, stray)
