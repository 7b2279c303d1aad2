from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from absorb_pl.data.labelled_batches import LabelledBatches
from absorb_pl.errors import AbsorbError, LabelError, SaeNotFoundError, ShapeError
from absorb_pl.functional import SaeStatistics, rank_latents
from absorb_pl.functional.logistic import solve_logistic_regressions
from absorb_pl.probes import (
    MISSING_LOGIT,
    LinearProbe,
    SaeProbe,
    encode_latents,
    fit_probe,
    fitting,
    train_k_sparse_probes,
    train_sparse_multi_probe,
)
from absorb_pl.saes import portions

GOLDEN_SAE = Path(__file__).parents[1] / "golden" / "gpt2-micro" / "sae_standard_A"
KS = [1, 2, 5]


class TinySae(torch.nn.Module):
    """A ReLU SAE with tied weights."""

    def __init__(self):
        super().__init__()
        rows = torch.randn(30, 10, generator=torch.Generator().manual_seed(5))
        self.W_dec = torch.nn.Parameter(torch.nn.functional.normalize(rows, dim=1))

    def encode(self, x):
        return torch.relu(x @ self.W_dec.T - 1)

    def decode(self, activations):
        return activations @ self.W_dec


@pytest.fixture(scope="module")
def sae():
    return TinySae()


@pytest.fixture(scope="module")
def data(sae):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (300,), generator=generator)
    x = 3 * sae.W_dec.detach()[labels] + 0.6 * torch.randn(300, 10, generator=generator)
    return x, torch.nn.functional.one_hot(labels, 4).float()


@pytest.fixture(scope="module")
def fitted(sae, data):
    torch.manual_seed(0)
    probe = SaeProbe(sae, 4, ks=KS, class_names=list("abcd"))
    fit_probe(probe, *data)
    return probe


def test_coefficients_equal_scikit_learn_on_the_ranked_latents(fitted, sae, data):
    x, y = data
    activations = sae.encode(x).detach()
    assert torch.equal(fitted.latent_ids, rank_latents(fitted.fc.weight.detach(), 5))
    assert fitted.latent_ids[:3, 0].tolist() == [0, 1, 2]
    for i, k in enumerate(KS):
        for c in range(3):
            chosen = activations[:, fitted.latent_ids[c, :k]].double().numpy()
            model = LogisticRegression(class_weight="balanced", solver="newton-cholesky", tol=1e-12, max_iter=10_000)
            model.fit(chosen, y[:, c].numpy())
            assert fitted.weight[i, c, :k].tolist() == pytest.approx(model.coef_[0].tolist(), abs=1e-4)
            assert fitted.bias[i, c].item() == pytest.approx(model.intercept_[0], abs=1e-4)
            expected = torch.from_numpy(model.decision_function(chosen))
            torch.testing.assert_close(fitted(x)[:, i, c].double(), expected, atol=1e-4, rtol=1e-4)


def test_missing_class_is_never_predicted(fitted, data):
    assert fitted.missing_classes == ["d"]
    assert bool((fitted(data[0])[:, :, 3] == MISSING_LOGIT).all())


def test_checkpoint_tests_without_the_sae_in_it(sae, data, tmp_path):
    x, y = data
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(tmp_path, save_last=True)],
    )
    probe = SaeProbe(sae, 4, ks=KS)
    trainer.fit(probe, LabelledBatches(x.__getitem__, y).loader(128, shuffle=True))
    path = tmp_path / "last.ckpt"
    stored = torch.load(path, weights_only=True)
    assert not any("W_dec" in name for name in stored["state_dict"])
    assert stored["hyper_parameters"]["ks"] == KS
    with pytest.raises(SaeNotFoundError, match="given as a module"):
        SaeProbe.load_from_checkpoint(path)
    loaded = SaeProbe.load_from_checkpoint(path, sae=sae)
    assert torch.equal(loaded(x), probe(x))
    loader = LabelledBatches(x.__getitem__, y).loader(100)
    [result] = trainer.test(SaeProbe(sae, 4, ks=KS), loader, ckpt_path=str(path), verbose=False)
    for i, k in enumerate(KS):
        predicted = (probe(x)[:, i, :3] > 0).numpy()
        expected = f1_score(y[:, :3].numpy(), predicted, average="macro", zero_division=0)
        assert result[f"test/f1_k{k}"] == pytest.approx(expected, rel=1e-6)


def test_an_sae_named_in_a_checkpoint_is_loaded_again(tmp_path):
    x = torch.randn(60, 48, generator=torch.Generator().manual_seed(0)) * 3
    y = torch.nn.functional.one_hot((x[:, 0] > 0).long(), 2).float()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(tmp_path, save_last=True)],
    )
    probe = SaeProbe(str(GOLDEN_SAE), 2, ks=[1, 3])
    trainer.fit(probe, LabelledBatches(x.__getitem__, y).loader())
    loaded = SaeProbe.load_from_checkpoint(tmp_path / "last.ckpt")
    torch.testing.assert_close(loaded(x), probe(x))


def test_chunks_change_nothing(fitted, sae, data, monkeypatch):
    monkeypatch.setattr(portions, "CHUNK_BYTES", 4 * 30 * 64)
    torch.manual_seed(0)
    probe = SaeProbe(sae, 4, ks=KS)
    fit_probe(probe, *data)
    assert torch.equal(probe.latent_ids[:3], fitted.latent_ids[:3])
    torch.testing.assert_close(probe.weight, fitted.weight, atol=1e-5, rtol=1e-5)
    whole, parts = SaeStatistics.empty(10, 30), SaeStatistics.empty(10, 30)
    chosen = encode_latents(sae, data[0], torch.tensor([4, 2]), parts)
    torch.testing.assert_close(chosen, sae.encode(data[0]).detach()[:, [4, 2]])
    monkeypatch.undo()
    encode_latents(sae, data[0], torch.tensor([4]), whole)
    assert (parts.l0, parts.num_dead) == (whole.l0, whole.num_dead)
    assert parts.explained_variance == pytest.approx(whole.explained_variance, rel=1e-9)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("kind", ["k-sparse", "linear"])
def test_an_epoch_in_one_batch_takes_the_steps_of_an_epoch_of_batches(sae, data, monkeypatch, kind):
    def fit():
        torch.manual_seed(0)
        made = SaeProbe(sae, 4, ks=KS) if kind == "k-sparse" else LinearProbe(10, 4, solver="adam")
        return made, fit_probe(made, *data, max_epochs=7, batch_size=60)

    one, curve = fit()
    assert not one.automatic_optimization
    monkeypatch.setattr(fitting, "WHOLE_EPOCH_VALUES", 0)
    other, stepped = fit()
    assert other.automatic_optimization
    assert one.trainer.global_step == other.trainer.global_step == 7 * 5
    weights = other.state_dict()
    assert {name: torch.equal(values, weights[name]) for name, values in one.state_dict().items()} == dict.fromkeys(
        weights, True
    )
    pd.testing.assert_frame_equal(curve, stepped, rtol=1e-6)


def test_latents_that_never_fire_cost_nothing_and_change_nothing(sae, data):
    class WithSilentLatents(TinySae):
        """The SAE's latents among three times as many that never fire."""

        def __init__(self):
            super().__init__()
            self.own = torch.arange(len(self.W_dec)) * 4 + 2
            self.W_dec = torch.nn.Parameter(torch.zeros(4 * len(self.own), 10).index_copy(0, self.own, self.W_dec))

        def encode(self, x):
            return torch.relu(x @ self.W_dec.T - 1)

    found, wide = {}, WithSilentLatents()
    for name, one in (("alone", sae), ("among silent ones", wide)):
        found[name] = SaeProbe(one, 4, ks=KS).double()
        torch.manual_seed(0)
        fit_probe(found[name], *data)
    alone, among = found.values()
    silent = torch.ones(len(wide.W_dec), dtype=torch.bool).index_fill(0, wide.own, False)
    assert not among.fc.weight[:, silent].any()
    torch.testing.assert_close(among.fc.weight[:, wide.own], alone.fc.weight, rtol=1e-9, atol=1e-12)
    positive = alone.fc.weight.gather(1, alone.latent_ids)[:3] > 0
    assert positive.sum() >= 6
    assert torch.equal(among.latent_ids[:3][positive], wide.own[alone.latent_ids[:3][positive]])
    torch.testing.assert_close(among.weight[0], alone.weight[0])


def test_small_vocabularies_are_ranked_in_several_batches(sae, data):
    x, y = data
    probe = SaeProbe(sae, 4, ks=[1])
    curve = fit_probe(probe, x, y, max_epochs=2)
    assert len(curve) == 2
    assert probe.trainer.global_step == 10
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.warns(UserWarning, match="1 batches per epoch"):
        trainer.fit(SaeProbe(sae, 4, ks=[1]), LabelledBatches(x.__getitem__, y).loader())


def test_unfitted_probe_refuses_to_score(sae, data):
    with pytest.raises(AbsorbError, match="Fit it"):
        SaeProbe(sae, 4, ks=KS)(data[0])
    with pytest.raises(ShapeError):
        SaeProbe(sae, 4, ks=[31])
    with pytest.raises(SaeNotFoundError):
        SaeProbe(torch.nn.Linear(2, 2))


def test_function_of_the_paper_returns_a_probe_for_each_k_and_label(sae, data, fitted):
    x, y = data
    labels = y.argmax(dim=1) + 2
    probes = train_k_sparse_probes(sae, [(f" w{i}", int(label)) for i, label in enumerate(labels)], x, ks=KS)
    assert {k: sorted(by_label) for k, by_label in probes.items()} == {k: [2, 3, 4] for k in KS}
    activations = sae.encode(x).detach()
    for k in KS:
        probe = probes[k][3]
        assert probe.k == k
        assert probe.feature_ids.tolist()[:1] == fitted.latent_ids[1, :1].tolist()
        weight, bias = solve_logistic_regressions(activations[None, :, probe.feature_ids], y[None, :, 1].bool())
        expected = activations[:, probe.feature_ids].double() @ weight[0] + bias
        torch.testing.assert_close(probe(activations).double(), expected, atol=1e-4, rtol=1e-4)
    assert probes[1][2](activations[0]).shape == ()
    with pytest.raises(LabelError):
        train_k_sparse_probes(sae, [(" a", 0)], x, ks=[1])


def test_activations_before_the_activation_function():
    from absorb_pl.saes import load_sae

    x = torch.randn(80, 48, generator=torch.Generator().manual_seed(0)) * 3
    golden = load_sae(str(GOLDEN_SAE))
    labels = [("", int(row[0] > 0)) for row in x]
    torch.manual_seed(0)
    probes = train_k_sparse_probes(golden, labels, x, ks=[2], sae_post_act=False)
    before = golden.run_with_cache(x)[1]["hook_sae_acts_pre"].detach()
    one_hot = torch.nn.functional.one_hot(torch.tensor([n for _, n in labels]))
    torch.manual_seed(0)
    ranking = train_sparse_multi_probe(before, one_hot, batch_size=16, show_progress=False, device="cpu")
    assert probes[2][1].feature_ids.tolist() == rank_latents(ranking.weights.detach(), 2)[1].tolist()
    assert probes[2][1](before).shape == (80,)
    with pytest.raises(AbsorbError, match="hooks"):
        train_k_sparse_probes(TinySae(), [("", i % 2) for i in range(8)], torch.randn(8, 10), [1], sae_post_act=False)
