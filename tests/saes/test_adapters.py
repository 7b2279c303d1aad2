"""SAEs from elsewhere: functions that make them, what they must have, and what they are taken for."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from absorb_pl.engine import apply_saes_and_run
from absorb_pl.errors import SaeInterfaceError, SaeNotFoundError
from absorb_pl.saes import (
    AdaptedSae,
    SparseAutoencoder,
    check_sae_fits,
    decode_rows,
    encode_rows,
    expand_sae_names,
    load_sae,
    sae_hook_name,
    sae_identity,
)
from absorb_pl.saes.rows import encoder_parts
from absorb_pl.saes.source import SaeSource

HOOK = "blocks.1.hook_resid_post"
MODULE = '''
import torch


class Plain:
    """No nn.Module: tensors in attributes."""

    def __init__(self, seed=0, hook_name="blocks.1.hook_resid_post"):
        generator = torch.Generator().manual_seed(seed)
        self.W_dec = torch.randn(48, 32, generator=generator) / 6
        self.W_enc = torch.randn(32, 48, generator=generator) / 6
        self.hook_name = hook_name
        self.order = torch.arange(48)

    def encode(self, x):
        return torch.relu(x @ self.W_enc)

    def decode(self, latents):
        return latents @ self.W_dec


def load():
    return Plain()


def load_training():
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=32, d_sae=48, k=4.0))


def load_at(layer, site="hook_resid_post"):
    return Plain(layer, f"blocks.{layer}.{site}")


def load_all():
    return {"wide": Plain(1), "narrow": Plain(2), "wider": Plain(3)}


number = 3
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module of the user's in the working folder, which is not on the path."""
    name = f"my_saes_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


class Closed:
    """An SAE that keeps its encoder in a closure."""

    def __init__(self, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        encoder = torch.randn(32, 48, generator=generator)
        self.W_dec = torch.ones(48, 32)
        self.encode: Callable[[torch.Tensor], torch.Tensor] = lambda x: x @ encoder.to(x)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents @ self.W_dec


class Still:
    """An SAE whose weights nobody can move."""

    W_dec = property(lambda _: torch.ones(48, 32))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.ones(32, 48)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents @ self.W_dec


class Module(nn.Module):
    """A module without a configuration."""

    def __init__(self):
        super().__init__()
        self.W_dec = nn.Parameter(torch.randn(48, 32, generator=torch.Generator().manual_seed(0)) / 6)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.W_dec.T)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents @ self.W_dec


def test_a_function_makes_an_sae(module: str, load_tiny: Any) -> None:
    sae = load_sae(f"{module}:load")
    assert isinstance(sae, AdaptedSae)
    assert isinstance(sae.sae, SparseAutoencoder)
    check_sae_fits(load_tiny("GPT-2"), sae)
    x = torch.randn(4, 32)
    torch.testing.assert_close(encode_rows(sae, x), torch.relu(x @ sae.sae.W_enc))
    source = SaeSource.check(f"{module}:load", load_tiny("GPT-2"))
    assert (source.hook_name, source.architecture, source.d_sae, source.layer) == (HOOK, "Plain", 48, 1)
    assert source.identity == sae_identity(source.load(torch.device("cpu")))


def test_arguments_are_literals_by_name(module: str) -> None:
    assert sae_hook_name(load_sae(f"{module}:load_at(layer=0, site='hook_mlp_out')")) == "blocks.0.hook_mlp_out"
    assert sae_hook_name(load_sae(f"{module}:load_at(layer=0)@blocks.5.hook_z")) == "blocks.5.hook_z"
    for arguments in ("(0)", "(layer=open('x'))", "(**{'layer': 0})", "(layer=)", "(layer=0)(layer=0)"):
        with pytest.raises(SaeNotFoundError, match=r"literals|no such"):
            load_sae(f"{module}:load_at{arguments}")


def test_an_sae_in_training_becomes_the_one_that_would_be_saved(module: str) -> None:
    sae = load_sae(f"{module}:load_training@{HOOK}", dtype="bfloat16")
    assert (type(sae).__name__, sae_hook_name(sae), sae.W_dec.dtype) == ("JumpReLUSAE", HOOK, torch.bfloat16)


def test_a_mapping_is_named_by_keys(module: str) -> None:
    name = f"{module}:load_all"
    assert expand_sae_names([name]) == [f"{name}/wide", f"{name}/narrow", f"{name}/wider"]
    assert expand_sae_names([f"{name}/wide*", f"{module}:load"]) == [f"{name}/wide", f"{name}/wider", f"{module}:load"]
    assert load_sae(f"{name}/narrow").W_dec.std() < 1
    with pytest.raises(SaeNotFoundError, match="load_all/wide, "):
        load_sae(name)
    with pytest.raises(SaeNotFoundError, match="no key goes after"):
        load_sae(f"{module}:load/wide")
    with pytest.raises(SaeNotFoundError, match="none of 3 names"):
        expand_sae_names([f"{name}/x*"])


@pytest.mark.parametrize("name", ["no_such_module:load", "torch:no_such_function", "torch:__version__"])
def test_functions_that_do_not_exist_are_named(name: str) -> None:
    with pytest.raises(SaeNotFoundError, match=r"No module named|There is no function"):
        load_sae(name)


@pytest.mark.parametrize("member", ["encode", "decode", "W_dec"])
def test_a_missing_member_is_named(member: str) -> None:
    sae = Closed()
    setattr(sae, member, None)
    with pytest.raises(SaeInterfaceError, match=f"`sae.{member}` was None, expected a"):
        AdaptedSae(sae)


@pytest.mark.parametrize("member", ["encode", "decode"])
def test_a_member_that_gives_another_shape_is_named(member: str) -> None:
    sae = Closed()
    setattr(sae, member, lambda x: x[:, :5])
    with pytest.raises(SaeInterfaceError, match=rf"`sae.{member}` was 'a result of shape \(2, 5\)'"):
        AdaptedSae(sae)


def test_plain_objects_move_with_their_tensors(module: str) -> None:
    sae = load_sae(f"{module}:load", dtype="bfloat16")
    assert (sae.sae.W_enc.dtype, sae.sae.order.dtype) == (torch.bfloat16, torch.int64)
    latents = encode_rows(sae, torch.randn(3, 32))
    assert latents.dtype == decode_rows(sae, latents).dtype == torch.bfloat16
    assert sae.to("cpu", torch.float64).sae.W_dec.dtype == torch.float64
    with pytest.raises(SaeInterfaceError, match="method `to"):
        AdaptedSae(Still()).to(torch.float64)


def test_an_object_s_own_way_to_move_is_taken() -> None:
    class Moving(Closed):
        def to(self, device: torch.device, dtype: torch.dtype) -> "Moving":
            moved = Moving()
            moved.W_dec = self.W_dec.to(device, dtype)
            return moved

    sae = AdaptedSae(Moving())
    assert sae.to(dtype=torch.float64).W_dec.dtype == torch.float64


def test_identity_is_content(module: str) -> None:
    names = [f"{module}:load", f"{module}:load_at(layer=1)", f"{module}:load_all/wide", f"{module}:load_all/narrow"]
    identities = [sae_identity(load_sae(name)) for name in [*names, f"{names[0]}@blocks.0.hook_resid_post"]]
    assert identities[1] == identities[2]
    assert len(set(identities)) == 4
    assert sae_identity(load_sae(names[0])) == identities[0]
    changed = load_sae(names[0])
    changed.sae.W_enc[0, 0] += 1
    assert sae_identity(changed) != identities[0]
    changed.sae.power = 2.0
    assert sae_identity(changed) != sae_identity(load_sae(names[0]))
    assert sae_identity(AdaptedSae(Module())) == sae_identity(AdaptedSae(Module()))


def test_an_object_that_cannot_be_identified_must_say_what_it_is() -> None:
    sae = AdaptedSae(Still())
    with pytest.raises(SaeInterfaceError, match="attribute `identity`"):
        sae_identity(sae)
    sae.sae.identity = "trained 2026-01-01"
    first = sae_identity(sae)
    sae.sae.identity = "trained 2026-01-02"
    assert sae_identity(sae) != first


def test_tensors_in_closures_are_part_of_the_identity() -> None:
    identities = [sae_identity(AdaptedSae(Closed(seed))) for seed in (0, 1, 0)]
    assert identities[0] == identities[2] != identities[1]


NUMBERS = count()
CODE = """
from types import SimpleNamespace

import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

SCALE = 1.0


def gate(x):
    return torch.relu(x * SCALE)  # as trained


class Mine:
    hook_name = "blocks.1.hook_resid_post"

    def __init__(self):
        self.W_dec = torch.eye(4)
        self.settings = {"gate": {"power": 1, "kinds": ["a", {"b"}]}, "more": SimpleNamespace(bias=torch.zeros(4))}

    def encode(self, x):
        return gate(x + self.settings["more"].bias) ** self.settings["gate"]["power"]

    def decode(self, latents):
        return latents @ self.W_dec


class Derived(StandardSAE):
    def encode(self, x):
        return super().encode(x) * 1


def load():
    return Mine()


def load_derived():
    return Derived(StandardSAEConfig(d_in=4, d_sae=4, metadata=SAEMetadata(hook_name=Mine.hook_name)))
"""


@pytest.fixture
def identity_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The identity of an SAE that a changed `CODE` makes, in a module of another name."""
    monkeypatch.chdir(tmp_path)

    def identity(old: str = "", new: str = "", function: str = "load") -> str:
        assert old in CODE
        name = f"my_code_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(CODE.replace(old, new) if old else CODE)
        torch.manual_seed(0)
        return sae_identity(load_sae(f"{name}:{function}"))

    return identity


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 1.0", "SCALE = 2.0"),
        ("torch.relu(x * SCALE)", "torch.relu(x * SCALE - 1)"),
        ("torch.zeros(4)", "torch.ones(4)"),
        ('"power": 1', '"power": 2'),
        ('{"b"}', '{"c"}'),
        ("return latents @ self.W_dec", "return latents @ self.W_dec.T"),
        ("blocks.1.hook", "blocks.2.hook"),
    ],
)
def test_code_and_nested_settings_are_part_of_the_identity(identity_of: Any, old: str, new: str) -> None:
    assert identity_of(old, new) != identity_of()


def test_comments_and_names_of_modules_are_not(identity_of: Any) -> None:
    assert identity_of("  # as trained", "") == identity_of()


def test_a_class_of_one_s_own_over_one_of_saelens_has_its_code(identity_of: Any) -> None:
    assert identity_of("* 1", "* 2", function="load_derived") != identity_of(function="load_derived")


@pytest.mark.parametrize("made", [Module, Closed])
def test_heads_are_laid_side_by_side(load_tiny: Any, made: Any) -> None:
    hook = "blocks.1.attn.hook_z"
    sae, model = AdaptedSae(made(), hook), load_tiny("Llama")
    check_sae_fits(model, sae)
    ids = torch.randint(2, 296, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        run = apply_saes_and_run(model, {hook: sae}, ids)
        torch.testing.assert_close(run.model_output, model(ids), rtol=1e-5, atol=1e-3)
    cache = run.sae_activations[hook]
    assert cache.sae_out.shape == cache.sae_in.shape == (2, 7, 4, 8)
    torch.testing.assert_close(encode_rows(sae, cache.sae_in[0].flatten(1)), cache.feature_acts[0])


def test_the_latent_evaluation_knows_what_stands_in_for_an_encoder(make_sae: Any) -> None:
    sae = Module()
    encoder, bias, threshold = encoder_parts(AdaptedSae(sae, HOOK))
    assert torch.equal(encoder, sae.W_dec.detach().T)
    assert (bias.count_nonzero(), threshold) == (0, None)
    gated = make_sae("gated")
    assert torch.equal(encoder_parts(gated)[1], gated.b_gate)
    jumprelu = make_sae("jumprelu").to(dtype=torch.bfloat16)
    assert [part.dtype for part in encoder_parts(jumprelu)] == [torch.bfloat16, torch.float32, torch.float32]
    assert encoder_parts(make_sae("matching_pursuit"))[1].count_nonzero() == 0
