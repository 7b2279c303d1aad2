"""Origins of SAEs: which name is of which, and one of one's own goes through loading, patterns, lists and studies."""

import pytest
import torch

from absorb_pl.errors import SaeNotFoundError
from absorb_pl.saes import AdaptedSae, expand_sae_names, list_saes, load_sae
from absorb_pl.saes import origins as places
from absorb_pl.saes.source import SaeSource

HOOK = "blocks.1.hook_resid_post"


class Unit:
    """An SAE that has the first latents of the identity."""

    hook_name = HOOK

    def __init__(self, latents):
        self.W_dec = torch.eye(48)[:latents]
        self.identity = f"unit {latents}"

    def encode(self, x):
        return (x @ self.W_dec.T).relu()

    def decode(self, latents):
        return latents @ self.W_dec


class Units(places.Origin):
    """SAEs by their width: `units/3`."""

    widths = (3, 5, 12)

    def matches(self, name):
        return name.startswith("units/")

    def names(self, pattern):
        return [f"units/{width}" for width in self.widths] if self.matches(pattern) else []

    def describe(self, name):
        return {"hook_name": HOOK, "layer": 1, "d_sae": int(name.removeprefix("units/"))}

    def load(self, name, device, *_):
        if name not in self.names(name):
            raise SaeNotFoundError("name", name, expected="units/3, units/5 or units/12", remedy="Name one of them.")
        return AdaptedSae(Unit(int(name.removeprefix("units/")))).to(device)


def test_an_origin_of_ones_own_goes_everywhere(monkeypatch, gpt2):
    monkeypatch.setattr(places, "ORIGINS", [*places.ORIGINS[:-1], Units(), places.ORIGINS[-1]])
    monkeypatch.setattr("absorb_pl.saes.names.ORIGINS", places.ORIGINS)
    assert expand_sae_names(["units/*"]) == ["units/3", "units/5", "units/12"]
    assert expand_sae_names(["units/?"]) == ["units/3", "units/5"]
    assert list_saes(["units/1*"])[["name", "layer", "d_sae"]].to_numpy().tolist() == [["units/12", 1, 12]]
    assert load_sae("units/5").W_dec.shape == (5, 48)
    assert load_sae("units/5@blocks.2.hook_resid_post").hook_name == "blocks.2.hook_resid_post"
    assert SaeSource.check("units/12", gpt2).d_sae == 12
    with pytest.raises(SaeNotFoundError, match=r"`name` was 'units/4', expected units/3, units/5 or units/12"):
        load_sae("units/4")


def test_the_first_origin_that_matches_is_asked(tmp_path, monkeypatch):
    (tmp_path / "speller" / "own").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = {
        name: type(places.origin_of(name)).__name__
        for name in ("speller/l1-a", "speller/own", "a:b", "a:b(c=3)/d", "gpt2-small-res-jb/blocks.0.hook_resid_pre")
    }
    assert list(found.values()) == ["Bundled", "Local", "Function", "Function", "Release"]
