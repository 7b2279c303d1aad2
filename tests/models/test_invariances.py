"""What must not matter: the scale of decoder rows, the order of latents, dead latents, and how rows are batched."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sae_lens import SAE

from absorb_pl.attribution import word_integrated_gradients
from absorb_pl.functional import (
    SaeStatistics,
    cosine_similarity_matrix,
    gradient_scores,
    paper_decisions,
    probe_projection,
    projection_scores,
)
from absorb_pl.probes import encode_latents
from absorb_pl.rules import rule_named
from absorb_pl.saes import decode_rows, encode_rows, portions
from absorb_pl.words import TokenizedPrompts

PROBE = torch.randn(32, generator=torch.Generator().manual_seed(8))
X = torch.randn(40, 32, generator=torch.Generator().manual_seed(9)) * 2
MAINS = [0, 1]


def rebuilt(sae: SAE[Any], change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> SAE[Any]:
    """An SAE of the same kind with changed weights."""
    weights = change({name: tensor.clone() for name, tensor in sae.state_dict().items()})
    config = sae.cfg.to_dict() | {"d_sae": len(weights["W_dec"])}
    made = SAE.from_dict(config)
    made.load_state_dict(weights)
    return made


def folded(sae: SAE[Any]) -> SAE[Any]:
    made = rebuilt(sae, dict)
    made.fold_W_dec_norm()
    return made


ORDER = torch.randperm(48, generator=torch.Generator().manual_seed(2))


def permuted(sae: SAE[Any]) -> SAE[Any]:
    def change(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        moved = {name: tensor[ORDER] for name, tensor in weights.items() if len(tensor) == 48}
        return {**weights, **moved, "W_enc": weights["W_enc"][:, ORDER]}

    return rebuilt(sae, change)


def with_dead_latent(sae: SAE[Any]) -> SAE[Any]:
    """With a last latent that fires nowhere and points along the probe."""

    def change(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        grown = {
            name: torch.cat([tensor, tensor.new_zeros(1)]) for name, tensor in weights.items() if tensor.shape == (48,)
        }
        grown["W_dec"] = torch.cat([weights["W_dec"], PROBE[None]])
        grown["W_enc"] = torch.cat([weights["W_enc"], torch.zeros(32, 1)], dim=1)
        return {**weights, **grown}

    return rebuilt(sae, change)


def figures(sae: SAE[Any]) -> dict[str, torch.Tensor]:
    """Everything that verdicts rest on, a column per latent where there is one, and the verdicts themselves."""
    acts = encode_rows(sae, X)
    cosines = cosine_similarity_matrix(PROBE[None], sae.W_dec.detach())[0]
    contributions = acts * sae.W_dec.detach().norm(dim=1)
    gradients = torch.sin(X) @ sae.W_dec.detach().T
    return {
        "contributions": contributions,
        "fires": acts != 0,
        "cosines": cosines,
        "projections": contributions * cosines,
        "scores": -gradients * acts,
        "reconstruction": decode_rows(sae, acts),
        "explained": torch.tensor(statistics(sae).explained_variance),
        "l0": torch.tensor(statistics(sae).l0),
    }


def statistics(sae: SAE[Any]) -> SaeStatistics:
    sums = SaeStatistics.empty(32, len(sae.W_dec))
    encode_latents(sae, X, torch.tensor([0]), sums)
    return sums


def verdicts(sae: SAE[Any], mains: list[int]) -> dict[str, torch.Tensor]:
    found, acts = figures(sae), encode_rows(sae, X)
    paper = gradient_scores(found["scores"], acts, found["cosines"], mains)
    absorbed = paper_decisions(
        paper.top_score,
        paper.second_score,
        paper.top_probe_cos,
        paper.main_max,
        delta_threshold=0.2,
        cos_threshold=0.0,
    )
    scores = projection_scores(found["contributions"], probe_projection(X, PROBE), found["cosines"], mains)
    stored = {**vars(scores), "top_score": scores.top_projection}
    bench = {version: rule_named(f"saebench-{version}")().decide(stored) for version in ("0.6.0", "0.3.2")}
    return {
        "paper": absorbed,
        "top": paper.top_latent,
        "full": bench["0.6.0"].is_absorption,
        **{f"fraction {version}": verdict.fraction for version, verdict in bench.items()},
    }


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


KINDS = {
    "standard": {},
    "gated": {},
    "jumprelu": {"apply_b_dec_to_input": False},
    "topk": {"rescale_acts_by_decoder_norm": True},
    "abstopk": {"rescale_acts_by_decoder_norm": True},
    "layer_norm": {"normalize_activations": "layer_norm"},
    "constant_norm": {"normalize_activations": "constant_norm_rescale"},
}


@pytest.fixture(params=KINDS)
def sae(request: pytest.FixtureRequest, make_sae: Any) -> SAE[Any]:
    options = KINDS[request.param]
    return make_sae("standard" if "normalize_activations" in options else request.param, **options)


def test_the_verdicts_tested_are_not_all_alike(make_sae: Any) -> None:
    found = verdicts(make_sae("standard"), MAINS)
    for name in ("paper", "fraction 0.3.2"):
        assert len(set(found[name].tolist())) > 1


def test_decoder_norms_do_not_matter(sae: SAE[Any]) -> None:
    """TopK SAEs that rescale by decoder norm have them in their activations; contributions are compared without."""
    before, after = figures(sae), figures(folded(sae))
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        before, after = (
            {k: v for k, v in part.items() if k in ("fires", "cosines", "reconstruction", "l0")}
            for part in (before, after)
        )
        assert_same(after, before)
        return
    assert_same(after, before)
    assert_same(verdicts(folded(sae), MAINS), verdicts(sae, MAINS))


def test_the_order_of_latents_does_not_matter(sae: SAE[Any]) -> None:
    before, after = figures(sae), figures(permuted(sae))
    moved = {name: value[..., ORDER] if value.shape[-1:] == (48,) else value for name, value in before.items()}
    assert_same(after, moved)
    place = ORDER.argsort()
    found, expected = verdicts(permuted(sae), place[MAINS].tolist()), verdicts(sae, MAINS)
    assert_same({**found, "top": ORDER[found["top"]]}, expected)


def test_a_dead_latent_does_not_matter(sae: SAE[Any]) -> None:
    before, after = figures(sae), figures(with_dead_latent(sae))
    assert after["contributions"][:, 48].count_nonzero() == 0
    kept = {name: value[..., :48] if value.shape[-1:] == (49,) else value for name, value in after.items()}
    assert_same(kept, before)
    assert statistics(with_dead_latent(sae)).num_dead == statistics(sae).num_dead + 1
    assert_same(verdicts(with_dead_latent(sae), MAINS), verdicts(sae, MAINS))


def test_how_rows_are_batched_does_not_matter(sae: SAE[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole, sums = encode_latents(sae, X, torch.arange(48)), statistics(sae)
    monkeypatch.setattr(portions, "CHUNK_BYTES", 4 * 48 * 7)
    torch.testing.assert_close(encode_latents(sae, X, torch.arange(48)), whole, rtol=1e-5, atol=1e-6)
    parts = statistics(sae)
    assert (parts.l0, parts.num_dead) == (sums.l0, sums.num_dead)
    assert parts.explained_variance == pytest.approx(sums.explained_variance, abs=1e-6)


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_post", "blocks.0.attn.hook_z", "blocks.0.hook_mlp_out"])
def test_attribution_does_not_see_decoder_norms_or_order(make_sae: Any, load_tiny: Any, hook: str) -> None:
    model, sae = load_tiny("GPT-2"), make_sae("standard", hook)
    ids = torch.randint(2, 296, (4, 8), generator=torch.Generator().manual_seed(3))
    prompts = TokenizedPrompts(
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        lengths=torch.full((4,), 8),
        word_positions=torch.tensor([3, 4, 5, 3]),
    )

    def scores(other: SAE[Any]) -> torch.Tensor:
        return word_integrated_gradients(model, other, prompts, lambda logits, _: logits[:, 5], steps=2).scores

    expected = scores(sae)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(scores(folded(sae)), expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(scores(permuted(sae)), expected[:, ORDER], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(scores(with_dead_latent(sae))[:, :48], expected, rtol=1e-3, atol=1e-6)
