from typing import Any

import pytest
import torch

from absorb_pl.errors import AbsorbError, SaeArchitectureError
from absorb_pl.saes import AdaptedSae, check_sae_fits, control_sae, encode_rows, sae_identity

ARCHITECTURES = ["standard", "gated", "topk", "abstopk", "jumprelu"]
X = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))


def rows_of(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(tensor.detach().float(), dim=1)


@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_post", "blocks.1.attn.hook_z"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_shuffled_decoder_fires_alike_and_points_elsewhere(make_sae: Any, architecture: str, hook: str) -> None:
    sae = make_sae(architecture, hook)
    before = sae_identity(sae)
    control = control_sae(sae, "shuffled_decoder", seed=3)
    assert torch.equal(encode_rows(control, X), encode_rows(sae, X))
    torch.testing.assert_close(control.W_dec.norm(dim=1), sae.W_dec.norm(dim=1))
    cosines = rows_of(control.W_dec) @ rows_of(sae.W_dec).T
    assert sorted(cosines.argmax(dim=1).tolist()) == list(range(48))
    assert not (cosines.argmax(dim=1) == torch.arange(48)).any()
    assert (cosines.max(dim=1).values > 1 - 1e-6).all()
    assert sae_identity(sae) == before != sae_identity(control)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "matching_pursuit"])
def test_a_random_control_keeps_norms_biases_and_shapes(make_sae: Any, architecture: str) -> None:
    sae = make_sae(architecture, normalize_activations="constant_norm_rescale")
    before = sae_identity(sae)
    control = control_sae(sae, "random", seed=11)
    assert type(control) is type(sae)
    for name, tensor in sae.state_dict().items():
        if name not in ("W_enc", "W_dec"):
            assert torch.equal(control.state_dict()[name], tensor)
    torch.testing.assert_close(control.W_dec.norm(dim=1), sae.W_dec.norm(dim=1))
    torch.testing.assert_close(control.W_enc.norm(dim=0), sae.W_enc.norm(dim=0))
    torch.testing.assert_close(rows_of(control.W_dec), rows_of(control.W_enc.T))
    directions = rows_of(control.W_dec)
    assert (directions @ rows_of(sae.W_dec).T).abs().max() < 0.75
    assert directions.mean(dim=0).norm() < 0.25
    control.decode(control.encode(X))
    assert not hasattr(sae, "x_norm_coeff")
    assert sae_identity(sae) == before


def test_a_control_depends_on_its_seed_alone(make_sae: Any) -> None:
    sae = make_sae("standard")
    for kind in ("random", "shuffled_decoder"):
        torch.manual_seed(0)
        first = control_sae(sae, kind, seed=1)
        drawn = torch.rand(1)
        torch.manual_seed(0)
        assert torch.equal(drawn, torch.rand(1))
        assert sae_identity(control_sae(sae, kind, seed=1)) == sae_identity(first)
        assert sae_identity(control_sae(sae, kind, seed=2)) != sae_identity(first)


def test_controls_keep_dtype_and_heads(make_sae: Any, load_tiny: Any) -> None:
    sae = make_sae("jumprelu", "blocks.1.attn.hook_z").to(dtype=torch.bfloat16)
    for kind in ("random", "shuffled_decoder"):
        control = control_sae(sae, kind)
        assert {parameter.dtype for parameter in control.parameters()} == {torch.bfloat16}
        check_sae_fits(load_tiny("GPT-2"), control)
        assert control.encode(torch.randn(2, 4, 8)).shape == (2, 48)


class Elsewhere(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.W_dec = torch.nn.Parameter(torch.randn(48, 32, generator=generator))
        self.W_enc = torch.nn.Parameter(torch.randn(32, 48, generator=generator))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.W_enc)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents @ self.W_dec


class Computed:
    """An SAE whose decoder is worked out from something else."""

    def __init__(self):
        self.W_enc = torch.randn(32, 48, generator=torch.Generator().manual_seed(1))

    @property
    def W_dec(self) -> torch.Tensor:
        return 2 * self.W_enc.T

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.W_enc)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents @ self.W_dec


def test_saes_from_elsewhere_have_controls_where_their_weights_can_be_written_to() -> None:
    sae = AdaptedSae(Elsewhere())
    weights = sae.W_dec.detach().clone()
    control = control_sae(sae, "shuffled_decoder")
    assert torch.equal(control.encode(X), sae.encode(X))
    assert torch.equal(sae.W_dec, weights)
    assert not torch.equal(control.W_dec, weights)
    with pytest.raises(SaeArchitectureError, match="`W_dec` can be written to"):
        control_sae(AdaptedSae(Computed()), "random")


def test_what_has_no_control_is_named(make_sae: Any) -> None:
    with pytest.raises(SaeArchitectureError, match=r"encoder apart from its decoder.*'random'"):
        control_sae(make_sae("matching_pursuit"), "shuffled_decoder")
    with pytest.raises(SaeArchitectureError, match="encoder matrix `W_enc`"):
        control_sae(make_sae("temporal", n_heads=2, bottleneck_factor=4), "random")
    with pytest.raises(AbsorbError, match="`kind` was 'shuffled'"):
        control_sae(make_sae("standard"), "shuffled")
