"""The scale of decoder rows through whole studies: other writings of the same SAE give the same figures."""

import copy

import pandas as pd
import pytest
import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import SAEMetadata

from absorb_pl.saes import encode_rows, load_sae, to_unit_norms
from absorb_pl.saes.source import SaeSource
from absorb_pl.study import run_study

pytestmark = pytest.mark.usefixtures("at_root", "_one_thread")

HOOK = "blocks.1.hook_resid_post"
OF_LATENTS = ("b_enc", "b_gate", "b_mag", "threshold")
RESCALED = {"rescale_acts_by_decoder_norm": True}
# How norms are folded, and whether rows can be scaled one by one: a top-k that compares latents as they are would
# choose others, so only a common factor leaves its function as it is.
# Matching pursuit has no other writings: its latents are projections only where rows have unit norm.
ARCHITECTURES = {
    "standard": ({}, "weights", True),
    "gated": ({}, "weights", True),
    "jumprelu": ({}, "weights", True),
    "topk": ({}, "latents", False),
    "abstopk": ({}, "latents", False),
    "topk_rescaled": (RESCALED, "weights", True),
    "abstopk_rescaled": (RESCALED, "weights", True),
    "mine": ({}, "latents", True),
    "batchtopk": (RESCALED, "", True),  # a checkpoint, whose norms SAELens folds as it converts it
}
ADAPTER = """
from sae_lens import SAE

class Mine:
    hook_name = "blocks.1.hook_resid_post"
    def __init__(self, folder):
        self.inner = SAE.load_from_disk(folder)
        self.W_enc, self.W_dec, self.b_enc = (getattr(self.inner, k).detach() for k in ("W_enc", "W_dec", "b_enc"))
    def encode(self, x):
        return self.inner.encode(x)
    def decode(self, latents):
        return self.inner.decode(latents)

def load(folder):
    return Mine(folder)
"""


def factors(number):
    """Lognormal, and common ones of 10 and a tenth."""
    generator = torch.Generator().manual_seed(1)
    return {
        "unit": torch.ones(number),
        "lognormal": torch.randn(number, generator=generator).exp(),
        "ten": torch.full((number,), 10.0),
        "tenth": torch.full((number,), 0.1),
    }


@torch.no_grad()
def rewritten(sae, factor):
    """The same function with decoder rows multiplied, and what makes the latents divided."""
    made = copy.deepcopy(sae)
    tensors = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    tensors["W_dec"] *= factor[:, None]
    tensors["W_enc"] /= factor
    for name in OF_LATENTS:
        if name in tensors:
            tensors[name] /= factor
    made.load_state_dict(tensors)
    return made.eval()


@torch.no_grad()
def unit(sae):
    sae.W_dec.data = torch.nn.functional.normalize(sae.W_dec.data, dim=1)
    return sae


@torch.no_grad()
def made_of(architecture, make_sae, options):
    """An SAE of an architecture with random weights; of `batchtopk` one in training."""
    if architecture != "batchtopk":
        kind = "standard" if architecture == "mine" else architecture.removesuffix("_rescaled")
        return make_sae(kind, HOOK, d_in=48, **options)
    kind, config = get_sae_training_class("batchtopk")
    sae = kind(config(d_in=48, d_sae=48, k=7, metadata=SAEMetadata(hook_name=HOOK), **options))
    generator = torch.Generator().manual_seed(4)
    for parameter in sae.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    sae.topk_threshold += 0.4
    return sae


@pytest.fixture(scope="module")
def writings(make_sae, study_config, _one_thread, _without_figures, tmp_path_factory):
    """The tables of one study of all architectures in all their writings, and the names of the SAEs."""
    folder = tmp_path_factory.mktemp("writings")
    (folder / "scaled_saes.py").write_text(ADAPTER)
    names = {}
    for architecture, (options, _, each) in ARCHITECTURES.items():
        sae = unit(made_of(architecture, make_sae, options))
        for writing, factor in factors(len(sae.W_dec)).items():
            if writing != ("tenth" if each else "lognormal"):
                path = folder / f"{architecture}_{writing}"
                rewritten(sae, factor).save_model(path)
                named = f"scaled_saes:load(folder={str(path)!r})" if architecture == "mine" else str(path)
                names[architecture, writing] = named
    for writing, factor in factors(160).items():
        if writing != "unit":
            path = folder / f"trained_{writing}"
            rewritten(SAE.load_from_disk("tests/golden/gpt2-micro/sae_standard_A"), factor).save_model(path)
            names["trained", writing] = str(path)
    names["trained", "unit"] = "tests/golden/gpt2-micro/sae_standard_A"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        quick = ("--k_sparse.ks=[1,2,3]", "--splits.max_k=3")
        config = study_config(folder, f"--saes={list(names.values())}", *quick)
        return run_study(config).tables, names


COLUMNS = {
    "summary": ["rule", "l0", "explained_variance", "dead_fraction", "num_splits", "absorption_rate", "num_words"],
    "letters": ["rule", "label", "main_latents", "num_candidates", "absorption_rate"],
    "words": ["rule", "row", "is_absorption", "top_latent", "main_activation", "top_score"],
    "k_sparse": ["label", "k", "f1"],
    "latents": ["label", "rank", "latent", "f1", "auroc"],
}


def of_sae(table: pd.DataFrame, name: str, columns: list[str]) -> pd.DataFrame:
    rows = table.loc[table["sae"] == name, columns].reset_index(drop=True)
    return rows.assign(**{c: rows[c].map(list) for c in ("main_latents",) if c in rows})


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "trained"])
def test_other_writings_have_the_same_tables(writings, architecture):
    tables, names = writings
    others = [writing for name, writing in names if name == architecture and writing != "unit"]
    assert len(others) >= 2
    for writing in others:
        for table, columns in COLUMNS.items():
            expected = of_sae(tables[table], names[architecture, "unit"], columns)
            found = of_sae(tables[table], names[architecture, writing], columns)
            assert len(expected)
            pd.testing.assert_frame_equal(found, expected, rtol=2e-3, atol=2e-5, obj=f"{writing} {table}")


def test_the_summary_says_what_was_folded(writings):
    tables, names = writings
    folded = tables["summary"].drop_duplicates("sae").set_index("sae")["folded"]
    for (architecture, writing), name in names.items():
        how = ARCHITECTURES[architecture][1] if architecture != "trained" else "weights"
        assert folded[name] == ("" if writing == "unit" else how), (architecture, writing)


def test_there_are_verdicts_of_both_kinds(writings):
    tables, names = writings
    words = tables["words"]
    assert set(words.loc[words["sae"] == names["trained", "unit"], "is_absorption"]) == {True, False}


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "batchtopk"])
def test_scaling_keeps_the_function(make_sae, architecture):
    options, how, _ = ARCHITECTURES[architecture]
    kind = "standard" if architecture == "mine" else architecture.removesuffix("_rescaled")
    sae, x = make_sae(kind, HOOK, **options).double(), torch.randn(50, 32, dtype=torch.float64)
    latents, reconstruction, norms = sae.encode(x), sae.decode(sae.encode(x)), sae.W_dec.norm(dim=1)
    scaled = to_unit_norms(sae, in_place=architecture != "mine")
    assert (scaled is sae) == (how == "weights")
    torch.testing.assert_close(scaled.W_dec.norm(dim=1), torch.ones_like(norms))
    torch.testing.assert_close(scaled.encode(x), latents * (1 if options else norms))
    torch.testing.assert_close(scaled.decode(scaled.encode(x)), reconstruction)
    assert ((scaled.encode(x) != 0) == (latents != 0)).all()
    assert to_unit_norms(scaled) is scaled


@pytest.mark.parametrize("kind", ["standard", "topk"])
def test_a_latent_that_writes_nothing_is_zero(make_sae, kind):
    sae, x = make_sae(kind), torch.randn(20, 32)
    with torch.no_grad():
        sae.W_dec[3], sae.b_enc[3] = 0, 50.0
    expected = sae.decode(sae.encode(x))
    scaled = to_unit_norms(sae, in_place=True)
    latents = encode_rows(scaled, x)
    assert latents.isfinite().all()
    assert not latents[:, 3].any()
    torch.testing.assert_close(scaled.decode(latents), expected)


def test_unit_rows_are_left_bit_for_bit(gpt2):
    name = "tests/golden/gpt2-micro/sae_standard_A"
    assert SaeSource.check(name, gpt2).folded == ""
    loaded, source = load_sae(name), SaeSource.check(name, gpt2).load(torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), source.parameters(), strict=True))
