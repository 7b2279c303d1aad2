"""Every architecture through both kinds of rules: what leaves an SAE's function as it is leaves every verdict."""

import pandas as pd
import pytest
import torch

from absorb_pl.data import PromptDataModule, read_residuals
from absorb_pl.evaluators import AbsorptionEvaluator, AbsorptionInputs
from absorb_pl.evaluators.projections import score_projections
from absorb_pl.rules import PaperRule, PaperSettings, rule_named
from absorb_pl.saes import encode_rows, portions, to_unit_norms
from absorb_pl.words import TaskConfig

HOOK = "blocks.1.hook_resid_post"
WORDS = 24
ARCHITECTURES = {
    "standard": ("standard", {}),
    "gated": ("gated", {}),
    "topk": ("topk", {}),
    "topk_rescaled": ("topk", {"rescale_acts_by_decoder_norm": True}),
    "abstopk": ("abstopk", {}),
    "abstopk_rescaled": ("abstopk", {"rescale_acts_by_decoder_norm": True}),
    "jumprelu": ("jumprelu", {}),
    "matching_pursuit": ("matching_pursuit", {}),
    "layer_norm": ("standard", {"normalize_activations": "layer_norm"}),
}
FOLDABLE = ["standard", "gated", "topk_rescaled", "abstopk_rescaled", "jumprelu", "layer_norm"]
"""Those whose norms can be folded without another choice of latents."""
OF_LATENTS = ("b_enc", "b_gate", "b_mag", "r_mag", "threshold")


def remade(sae, tensors):
    """An SAE of the same class and settings with other weights."""
    cfg = type(sae.cfg).from_dict({**sae.cfg.to_dict(), "d_sae": len(tensors["W_dec"])})
    other = type(sae)(cfg)
    other.load_state_dict(tensors)
    return other.eval().requires_grad_(False)


def by_latent(sae, change, dead):
    """The SAE's weights with a function applied along the latents of each, given what a dead latent holds there."""
    tensors = dict(sae.state_dict())
    for name, weight in tensors.items():
        if name == "W_enc":
            tensors[name] = change(weight.T, torch.zeros(1, len(weight))).T.contiguous()
        elif name == "W_dec":
            tensors[name] = change(weight, dead["W_dec"][None])
        elif name in OF_LATENTS:
            tensors[name] = change(weight, torch.tensor([dead.get(name, 0.0)]))
    return tensors


def permuted(sae, mains):
    order = torch.randperm(len(sae.W_dec), generator=torch.Generator().manual_seed(0))
    place = order.argsort()
    tensors = by_latent(sae, lambda weight, _: weight[order], {"W_dec": sae.W_dec[0]})
    return remade(sae, tensors), {label: place[torch.tensor(ids)].tolist() for label, ids in mains.items()}


def folded(sae, mains):
    other = remade(sae, dict(sae.state_dict()))
    other.fold_W_dec_norm()
    torch.testing.assert_close(other.W_dec.norm(dim=1), torch.ones(len(other.W_dec)))
    return other, mains


def with_a_dead_latent(sae, mains):
    """One latent more that never fires: it points along the first probe, or nowhere where the encoder is tied."""
    tied = "W_enc" not in sae.state_dict()
    # an absolute top-k takes the largest sizes, so there a latent is dead at 0
    silent = 0.0 if sae.cfg.architecture() == "abstopk" else -9.0
    row = torch.zeros(sae.W_dec.shape[1]) if tied else sae.W_dec[0]
    dead = {"W_dec": row, "b_enc": silent, "b_gate": silent, "threshold": 1.0}
    return remade(sae, by_latent(sae, lambda weight, value: torch.cat([weight, value]), dead)), mains


class Words:
    """Words of a model with random probes, and main latents of which some are silent on some words."""

    def __init__(self, model, words):
        self.model = model
        self.data = PromptDataModule(model, TaskConfig(words=words, max_icl_examples=2), batch_size=8)
        prompts = self.data.prompts
        self.x = read_residuals(model, prompts.input_ids, prompts.attention_mask, prompts.word_positions, [HOOK])[HOOK]
        self.labels = [self.data.task.classes[label] for label in self.data.task.labels]
        generator = torch.Generator().manual_seed(5)
        self.probe = torch.randn(len(self.data.task.classes), 48, generator=generator)

    def mains(self, sae):
        """Two latents per class: the one that fires least often on its words, and another."""
        fires = (encode_rows(sae, self.x) != 0).float()
        found = {}
        for label in self.data.task.classes:
            own = torch.tensor([name == label for name in self.labels])
            found[label] = fires[own].sum(dim=0).argsort(stable=True)[:1].tolist() if own.any() else [0]
        return found

    def gradients(self, sae, mains, batch_size=8):
        rows = torch.arange(len(self.labels))
        inputs = AbsorptionInputs(
            letters=pd.DataFrame([{"sae": "sae", "label": name, "main_latents": ids} for name, ids in mains.items()]),
            candidates=pd.DataFrame({"sae": "sae", "row": rows, "label": self.labels}),
            probe_weights={HOOK: self.probe},
        )
        rule = PaperRule(PaperSettings(steps=2, delta_threshold=1e-4, cos_threshold=0.0))
        evaluator = AbsorptionEvaluator(self.model, {"sae": sae}, inputs, rule.needs, batch_size)
        return rule.judge(evaluator.tabulate_words(self.data, rows).sort_values("row", ignore_index=True))

    def projections(self, sae, mains):
        rows, classes = list(range(len(self.labels))), self.data.task.classes
        found = score_projections(sae, self.x, rows, self.labels, self.probe, classes, mains)
        return found.sort_values("row", ignore_index=True)


@pytest.fixture(scope="module")
def words(gpt2):
    texts = [word for word in TaskConfig(max_icl_examples=2).build(gpt2.tokenizer).words if word.strip().isalpha()]
    return Words(gpt2, texts[:WORDS])


@pytest.fixture(scope="module")
def measured(words, make_sae):
    """SAE, main latents and tables of each architecture, made once."""
    made = {}

    def measure(name):
        if name not in made:
            kind, options = ARCHITECTURES[name]
            sae = make_sae(kind, HOOK, d_in=48, **options).eval().requires_grad_(False)
            mains = words.mains(sae)
            made[name] = sae, mains, words.gradients(sae, mains), words.projections(sae, mains)
        return made[name]

    return measure


@pytest.mark.parametrize(
    ("architecture", "change"),
    [(name, change) for name in ARCHITECTURES for change in (permuted, with_a_dead_latent)]
    + [(name, folded) for name in FOLDABLE],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_leaves_every_verdict_as_it_is(words, measured, architecture, change, monkeypatch):
    sae, mains, gradients, projections = measured(architecture)
    other, new_mains = change(sae, mains)
    scale = encode_rows(sae, words.x).abs().max().item()
    after = words.gradients(other, new_mains, batch_size=3)
    assert after["is_absorption"].tolist() == gradients["is_absorption"].tolist()
    close = {"rel": 1e-3, "abs": 1e-4 * gradients["top_score"].abs().max()}
    assert after["top_score"].tolist() == pytest.approx(gradients["top_score"].tolist(), **close)
    monkeypatch.setattr(portions, "CHUNK_BYTES", 8 * 4 * 5 * len(other.W_dec))
    after = words.projections(other, new_mains)
    for column in ("top_score", "main_projection", "all_projection"):
        assert after[column].tolist() == pytest.approx(projections[column].tolist(), rel=1e-3, abs=1e-4 * scale)
    for name in ("saebench-0.6.0", "saebench-0.3.2"):
        one, two = (rule_named(name)().judge(table) for table in (projections, after))
        assert two["is_absorption"].tolist() == one["is_absorption"].tolist()
        assert two["absorption_fraction"].tolist() == pytest.approx(one["absorption_fraction"].tolist(), abs=1e-4)


def test_there_are_verdicts_of_both_kinds(measured):
    """Else the tests above would compare constants."""
    tables = [measured(name) for name in ARCHITECTURES]
    judged = pd.concat([rule_named("saebench-0.6.0")().judge(table[3]) for table in tables])
    shares = {
        "by gradients": pd.concat([table[2] for table in tables])["is_absorption"],
        "by projection": judged["is_absorption"],
        "fractions": judged["absorption_fraction"] > 0,
    }
    assert {name: share.mean() for name, share in shares.items() if not 0.05 < share.mean() < 0.95} == {}


@pytest.mark.parametrize("name", ["abstopk", "abstopk_rescaled"])
def test_a_latent_turned_round_is_the_same_latent(words, measured, name):
    """Encoder, bias and decoder row with the other sign: the latent is negative where it was positive."""
    sae, mains, gradients, projections = measured(name)
    turned = torch.where(torch.arange(len(sae.W_dec)) % 2 == 0, -1.0, 1.0)
    tensors = dict(sae.state_dict())
    tensors |= {"W_dec": turned[:, None] * tensors["W_dec"], "W_enc": tensors["W_enc"] * turned}
    other = remade(sae, tensors | {"b_enc": tensors["b_enc"] * turned})
    before, after = (encode_rows(one, words.x) for one in (sae, other))
    assert (before < 0).any()
    torch.testing.assert_close(after, before * turned)
    found = words.gradients(other, mains)
    assert found["is_absorption"].tolist() == gradients["is_absorption"].tolist()
    for column in ("top_latent", "main_max"):
        assert found[column].tolist() == pytest.approx(gradients[column].tolist())
    found = words.projections(other, mains)
    assert found["absorber_latents"].map(list).tolist() == projections["absorber_latents"].map(list).tolist()
    for column in ("top_latent", "main_max", "top_probe_cos"):
        assert found[column].tolist() == pytest.approx(projections[column].tolist(), abs=1e-6), column


def test_a_strongly_negative_main_latent_is_not_silent(words, measured):
    sae = to_unit_norms(measured("abstopk")[0])
    latents = encode_rows(sae, words.x)
    least = latents.amin(dim=1)
    mains = {label: [int(latents[words.labels.index(label)].argmin())] for label in set(words.labels)}
    every = {label: [0] for label in words.data.task.classes} | mains
    firsts = [words.labels.index(label) for label in mains]
    assert (least[firsts] < -0.1).all()
    for rule, table in (
        ("paper", words.gradients(sae, every)),
        ("saebench-0.6.0", words.projections(sae, every)),
    ):
        judged = rule_named(rule)().judge(table)
        assert judged.loc[firsts, "main_max"].tolist() == pytest.approx((-least[firsts]).tolist(), rel=1e-4)
        assert not judged.loc[firsts, "is_absorption"].any()
