"""Every SAE architecture, hook kind and pair of dtypes with every family of models, from disk to verdicts.

Cases are chosen by one rule instead of the whole product of 6 × 7 × 5 × 3: family f (0 to 5) meets each architecture a
(0 to 6) once, at hook (a + f) mod 5, in dtypes (a + 2f) mod 3. So each family meets every architecture, hook and pair
of dtypes, and any two of architecture, hook and dtypes meet in some family; the first test holds that.
"""

import itertools

import pytest
import torch

from absorb_pl.data import ActivationCollector, PromptDataModule
from absorb_pl.data.prompt_datamodule import PromptBatches
from absorb_pl.engine import apply_saes_and_run
from absorb_pl.evaluators.projections import score_projections
from absorb_pl.models import load_language_model
from absorb_pl.rules import rule_named
from absorb_pl.saes import check_sae_fits, decode_rows, encode_rows, load_sae
from absorb_pl.words import TaskConfig

FAMILIES = ["gpt2", "gpt_neox", "llama", "mistral", "gemma2", "bert"]
ARCHITECTURES = {
    "standard": {},
    "gated": {},
    "topk": {},
    "topk_rescaled": {"rescale_acts_by_decoder_norm": True},
    "abstopk": {},
    "jumprelu": {},
    "matching_pursuit": {},
}
HOOKS = ["hook_resid_pre", "hook_resid_post", "attn.hook_z", "hook_attn_out", "hook_mlp_out"]
DTYPES = [("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")]
CASES = [
    (family, architecture, HOOKS[(a + f) % 5], DTYPES[(a + 2 * f) % 3])
    for f, family in enumerate(FAMILIES)
    for a, architecture in enumerate(ARCHITECTURES)
]
HALF = {"float32": 1e-5, "bfloat16": 2e-2}
"""Tolerance relative to the largest value; bfloat16 has 8 bits."""


def test_any_two_factors_meet():
    for one, other in itertools.combinations(range(4), 2):
        values = [(FAMILIES, list(ARCHITECTURES), HOOKS, DTYPES)[factor] for factor in (one, other)]
        assert {(case[one], case[other]) for case in CASES} == set(itertools.product(*values))


class Run:
    """A model in a dtype, and what the collector reads at the words for all hooks."""

    def __init__(self, folder, dtype, words):
        self.model = load_language_model(str(folder), dtype=dtype)
        self.data = PromptDataModule(self.model, TaskConfig(words=words, max_icl_examples=1), batch_size=len(words))
        (self.batch,) = [PromptBatches(self.data, self.data.rows, len(words))[0]]
        collector = ActivationCollector(self.model, [f"blocks.1.{hook}" for hook in HOOKS])
        self.rows = collector.predict_step(self.batch, 0)

    def ids(self, row):
        """Token ids of one prompt without padding."""
        return self.batch["input_ids"][row : row + 1, : int(self.batch["lengths"][row])]

    def direct(self, row, hook):
        """The activation at the word of one prompt, run by itself."""
        seen = []
        hooks = [(hook, lambda activation, **_: seen.append(activation))]
        with torch.no_grad():
            self.model.run_with_hooks(self.ids(row), fwd_hooks=hooks)
        return seen[0][0, int(self.batch["word_positions"][row])]


@pytest.fixture(scope="module")
def runs(family_folder, known_words):
    made = {}

    def run(family, dtype):
        if (family, dtype) not in made:
            made[family, dtype] = Run(family_folder(family), dtype, known_words)
        return made[family, dtype]

    return run


def assert_near(found, expected, tolerance):
    largest = expected.float().abs().max().item()
    assert largest > 0
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize(("family", "architecture", "hook", "dtypes"), CASES, ids=lambda value: str(value))
def test_from_disk_to_verdicts(runs, make_sae, tmp_path, family, architecture, hook, dtypes):
    run, hook = runs(family, dtypes[0]), f"blocks.1.{hook}"
    kind, options = architecture.removesuffix("_rescaled"), ARCHITECTURES[architecture]
    make_sae(kind, hook, **options).save_model(tmp_path)
    sae = load_sae(str(tmp_path), dtype=dtypes[1])
    check_sae_fits(run.model, sae)

    x, near = run.rows[hook], max(HALF[dtype] for dtype in dtypes)
    assert (x.shape, str(x.dtype)) == ((16, 32), f"torch.{dtypes[0]}")
    for row in (0, 15):
        assert_near(x[row], run.direct(row, hook).flatten(), HALF[dtypes[0]])

    heads = x.unflatten(1, run.direct(0, hook).shape).to(sae.W_dec)
    latents = encode_rows(sae, x)
    assert (str(latents.dtype), latents.shape) == (f"torch.{dtypes[1]}", (16, 48))
    assert_near(latents, sae.encode(heads), near)
    assert_near(decode_rows(sae, latents), sae.decode(latents).flatten(1), near)

    with torch.no_grad():
        plain = run.model(run.ids(3))
        spliced = apply_saes_and_run(run.model, {hook: sae}, run.ids(3))
    assert (spliced.sae_activations[hook].sae_out - spliced.sae_activations[hook].sae_in).abs().max() > 0.1
    assert_near(spliced.model_output, plain, 10 * HALF[dtypes[0]])

    check_verdicts(sae, x, latents, near)


def check_verdicts(sae, x, latents, near):
    """Projections against contributions taken one latent at a time, and what both rules of SAEBench say of them."""
    probe = torch.randn(2, 32, generator=torch.Generator().manual_seed(4))
    labels, mains = ["a", "b"] * 8, {"a": [3], "b": [5, 11]}
    found = score_projections(sae, x, list(range(16)), labels, probe, ["a", "b"], mains).sort_values("row")
    for row, table in list(enumerate(found.to_dict("records")))[::5]:
        unit = probe[row % 2] / probe[row % 2].norm()
        alone = decode_rows(sae, torch.diag(latents[row])) - decode_rows(sae, torch.zeros_like(latents[:1]))
        contributions = (alone.double() @ unit.double()).tolist()
        size = max(map(abs, contributions))
        assert table["top_score"] == pytest.approx(max(contributions), abs=4 * near * size)
        assert contributions[table["top_latent"]] == pytest.approx(max(contributions), abs=4 * near * size)
        assert table["all_projection"] == pytest.approx(sum(contributions), abs=20 * near * size)
        in_mains = sum(contributions[latent] for latent in mains[labels[row]])
        assert table["main_projection"] == pytest.approx(in_mains, abs=4 * near * size)
    for name in ("saebench-0.6.0", "saebench-0.3.2"):
        judged = rule_named(name)().judge(found)
        assert judged["absorption_fraction"].between(0, 1).all()
        silent = (latents[:, [3]] == 0).all(dim=1), (latents[:, [5, 11]] == 0).all(dim=1)
        absorbed = judged["is_absorption"].to_numpy()
        assert not any(absorbed[row] and not silent[row % 2][row] for row in range(16))
