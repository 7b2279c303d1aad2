import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from scipy.optimize import minimize
from sklearn.metrics import f1_score, roc_auc_score

from absorb_pl.data.labelled_batches import LabelledBatches
from absorb_pl.errors import AbsorbError, LabelError, NonFiniteError, ShapeError
from absorb_pl.functional import minimise_probe_loss
from absorb_pl.probes import (
    MISSING_LOGIT,
    LinearProbe,
    LinearProbeSettings,
    fit_probe,
    train_binary_probe,
    train_multi_probe,
)


def labelled_rows(rows=400, width=12, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    directions = torch.randn(classes, width, generator=generator)
    x = 1.2 * directions[labels] + 2 * torch.randn(rows, width, generator=generator) + 5
    return x, torch.nn.functional.one_hot(labels, classes).float()


def objective(theta, x, y, weight_decay):
    """Regularised loss and gradient in float64, written out with numpy."""
    x = np.concatenate([x.double().numpy(), np.ones((len(x), 1))], axis=1)
    y = y.double().numpy()
    theta = theta.reshape(y.shape[1], -1)
    v = np.where(y > 0, (len(y) - y.sum(0)) / y.sum(0), 1.0)
    margin = np.where(y > 0, 1, -1) * (x @ theta.T)
    loss = (v * np.logaddexp(0, -margin)).mean() + weight_decay / 2 * (theta**2).sum()
    pull = -v * np.where(y > 0, 1, -1) / (1 + np.exp(margin)) / y.size
    return loss, (pull.T @ x + weight_decay * theta).ravel()


def loss_of(probe, x, y, weight_decay):
    theta = torch.cat([probe.weights, probe.biases[:, None]], dim=1).detach().double().numpy()
    return objective(theta.ravel(), x, y, weight_decay)[0]


@pytest.mark.parametrize("weight_decay", [1e-4, 1e-6])
def test_loss_is_at_its_optimum(weight_decay):
    x, y = labelled_rows()
    probe = LinearProbe(12, 4, weight_decay=weight_decay)
    fit_probe(probe, x, y, max_epochs=2)
    best = minimize(objective, np.zeros(4 * 13), (x, y, weight_decay), jac=True, tol=1e-13, options={"maxiter": 20_000})
    assert loss_of(probe, x, y, weight_decay) <= best.fun * 1.0001
    np.testing.assert_allclose(probe.weights.detach(), best.x.reshape(4, 13)[:, :-1], atol=2e-3)


def test_published_recipe_alone_is_adam_from_zero():
    x, y = labelled_rows()
    probe = LinearProbe(12, 4, solver="adam")
    fit_probe(probe, x, y, max_epochs=5)
    layer = torch.nn.Linear(12, 4)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    loss = torch.nn.BCEWithLogitsLoss(pos_weight=(len(y) - y.sum(0)) / y.sum(0))
    adam = torch.optim.Adam(layer.parameters(), lr=1e-2, weight_decay=1e-4)
    for epoch in range(5):
        for group in adam.param_groups:
            group["lr"] = 1e-2 * (1e-5 / 1e-2) ** (epoch / 5)
        adam.zero_grad()
        loss(layer(x), y).backward()
        adam.step()
    torch.testing.assert_close(probe.weights, layer.weight)
    torch.testing.assert_close(probe.biases, layer.bias)


def test_result_does_not_depend_on_batches():
    x, y = labelled_rows()
    found = []
    for batch_size in (32, 400):
        probe = LinearProbe(12, 4)
        fit_probe(probe, x, y, max_epochs=2, batch_size=batch_size)
        found.append(probe.weights)
    assert torch.equal(found[0], found[1])


def test_classes_without_words_are_named_and_never_predicted():
    x, y = labelled_rows()
    y = torch.cat([y[:, :2], torch.zeros(len(y), 1), y[:, 2:]], dim=1)
    probe = LinearProbe(12, 5, class_names=list("abcde"))
    fit_probe(probe, x, y, max_epochs=1)
    assert probe.missing_classes == ["c"]
    assert bool(probe(x).isfinite().all())
    assert not (probe(100 * x)[:, 2] > 0).any()
    assert probe.biases[2] == MISSING_LOGIT
    assert not probe.weights[2].any()
    others = LinearProbe(12, 4)
    fit_probe(others, x, y[:, [0, 1, 3, 4]], max_epochs=1)
    torch.testing.assert_close(probe.weights[[0, 1, 3, 4]], others.weights, atol=1e-5, rtol=1e-4)


class Rows(LightningDataModule):
    """Training and test rows of one task."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def class_counts(self):
        return self.y[:300].sum(dim=0), 300

    def train_dataloader(self):
        return LabelledBatches(self.x[:300].__getitem__, self.y[:300]).loader(64, shuffle=True)

    def val_dataloader(self):
        return LabelledBatches(self.x[300:].__getitem__, self.y[300:]).loader(30)

    def test_dataloader(self):
        return self.val_dataloader()


def quiet_trainer(tmp_path, **kwargs):
    return Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


def test_last_checkpoint_holds_the_finished_probe_and_tests_it(tmp_path):
    x, y = labelled_rows()
    y = torch.cat([y, torch.zeros(len(y), 1)], dim=1)
    data, probe = Rows(x, y), LinearProbe(12, 5, class_names=list("abcde"))
    trainer = quiet_trainer(tmp_path, max_epochs=3, callbacks=[ModelCheckpoint(tmp_path, save_last=True)])
    trainer.fit(probe, datamodule=data)
    assert {"train/loss", "train/f1", "val/loss", "val/f1", "val/auroc"} <= set(trainer.callback_metrics)
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(stored["state_dict"]["fc.weight"], probe.weights)
    loaded = LinearProbe.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(loaded.biases, probe.biases)
    assert loaded.missing_classes == ["e"]

    fresh = LinearProbe(12, 5, class_names=list("abcde"))
    [result] = trainer.test(fresh, datamodule=data, ckpt_path=str(tmp_path / "last.ckpt"), verbose=False)
    logits, truth = probe(x[300:]).detach().numpy()[:, :4], y[300:, :4].numpy()
    assert result["test/f1"] == pytest.approx(f1_score(truth, logits > 0, average="macro"), rel=1e-6)
    assert result["test/auroc"] == pytest.approx(roc_auc_score(truth, logits, average="macro"), rel=1e-6)


def test_a_fit_cut_short_is_finished_too(tmp_path):
    x, y = labelled_rows()
    probe = LinearProbe(12, 4)
    quiet_trainer(tmp_path, max_epochs=50, max_steps=1, enable_checkpointing=False).fit(probe, datamodule=Rows(x, y))
    weight, _ = minimise_probe_loss(x[:300], y[:300], (300 - y[:300].sum(0)) / y[:300].sum(0))
    torch.testing.assert_close(probe.weights.double(), weight, atol=1e-5, rtol=1e-4)


def test_given_weights_are_kept():
    x, y = labelled_rows()
    probe = LinearProbe(12, 4, pos_weight=[1, 2, 3, 4], solver="adam")
    fit_probe(probe, x, y, max_epochs=1)
    assert probe.pos_weight.tolist() == [1, 2, 3, 4]


def test_unusable_input_is_refused():
    x, y = labelled_rows(rows=40)
    with pytest.raises(NonFiniteError):
        fit_probe(LinearProbe(12, 4), x.clone().index_fill_(0, torch.tensor([3]), torch.nan), y, max_epochs=1)
    with pytest.raises(ShapeError):
        fit_probe(LinearProbe(12, 3), x, y, max_epochs=1)
    with pytest.raises(LabelError):
        fit_probe(LinearProbe(12, 4), x, torch.zeros_like(y), max_epochs=1)
    with pytest.raises(AbsorbError):
        LinearProbe(12, 4, l1_decay=0.1)
    with pytest.raises(AbsorbError):
        LinearProbe(12, 4, pos_weight=[1.0, 0.0, 1.0, 1.0])
    with pytest.raises(ShapeError):
        LinearProbe(12, 4, class_names=["a"])


def test_functions_of_the_paper_train_on_tensors():
    x, y = labelled_rows()
    probe = train_multi_probe(x, y, num_probes=4, num_epochs=2, show_progress=False, device="cpu")
    assert loss_of(probe, x, y, 1e-6) < 0.99 * loss_of(LinearProbe(12, 4), x, y, 1e-6)
    one = train_binary_probe(x, y[:, 1].int(), num_epochs=2, weight_decay=1e-4, show_progress=False, device="cpu")
    assert ((one(x)[:, 0] > 0) == y[:, 1].bool()).float().mean() > 0.8


def test_extra_loss_enters_the_training():
    x, y = labelled_rows()

    def shrink(probe, batch_x, batch_y):
        assert batch_x.shape[0] == batch_y.shape[0]
        return 100 * probe.weights.square().sum()

    free = train_multi_probe(x, y, num_epochs=30, show_progress=False, device="cpu")
    held = train_multi_probe(x, y, num_epochs=30, extra_loss_fn=shrink, show_progress=False, device="cpu")
    assert held.weights.norm() < 0.2 * free.weights.norm()


@pytest.mark.slow
def test_two_processes_find_the_same_probe_as_one(tmp_path):
    x, y = labelled_rows(rows=301)
    found = {}
    for processes, strategy in ((1, "auto"), (2, "ddp_fork")):
        probe = LinearProbe(12, 4)
        trainer = quiet_trainer(
            tmp_path, max_epochs=1, devices=processes, strategy=strategy, enable_checkpointing=False
        )
        trainer.fit(probe, LabelledBatches(x.__getitem__, y).loader(64, shuffle=True))
        [result] = trainer.test(probe, LabelledBatches(x[:33].__getitem__, y[:33]).loader(5), verbose=False)
        found[processes] = probe.weights.detach().clone(), result
    torch.testing.assert_close(found[2][0], found[1][0])
    for name in ("test/f1", "test/auroc"):
        assert found[2][1][name] == pytest.approx(found[1][1][name], rel=1e-6)


@pytest.mark.usefixtures("_one_thread")
def test_the_optimum_takes_one_step_whatever_the_batches_and_epochs():
    x, y = labelled_rows()
    weight, bias = minimise_probe_loss(x, y, (len(y) - y.sum(0)) / y.sum(0))
    for epochs, batch_size in ((1, 4096), (50, 4096), (3, 7)):
        probe = LinearProbe(12, 4)
        curve = fit_probe(probe, x, y, max_epochs=epochs, batch_size=batch_size)
        assert probe.trainer.global_step == len(curve) == 1
        assert torch.equal(probe.weights, weight.float())
        assert torch.equal(probe.biases, bias.float())


@pytest.mark.parametrize("given", [{"lr": 0.1}, {"end_lr": 0.1}, {"l1_decay": 0.0}, {"optimizer": "Adam"}])
def test_settings_that_would_do_nothing_are_refused(given):
    (name,) = given
    with pytest.raises(
        AbsorbError, match=rf"`{name}` was .*expected no value with solver='optimum'.*Pass solver='adam'"
    ):
        LinearProbe(12, 4, **given)
    assert LinearProbe(12, 4, solver="adam", **given).steps
    if name in ("lr", "end_lr"):
        with pytest.raises(AbsorbError, match=f"`{name}` was 0.1"):
            LinearProbeSettings(**given)
        assert LinearProbeSettings(solver="adam", **given).identity["max_epochs"] == 50
    assert LinearProbeSettings().identity == {"solver": "optimum", "weight_decay": 1e-4}
