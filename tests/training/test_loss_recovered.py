"""The loss recovered, against the Hugging Face model with its layer's output replaced by hand."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from absorb_pl.errors import AbsorbError
from absorb_pl.models import load_language_model
from absorb_pl.saes import load_sae
from absorb_pl.training import (
    LossRecovered,
    SaeSettings,
    SparseAutoencoderModule,
    SpellingActivations,
    TokenActivationDataModule,
    WorldActivations,
    next_token_loss,
)

pytestmark = pytest.mark.usefixtures("_one_thread")

HOOK = "blocks.1.hook_resid_post"


def loss_by_hand(model, ids, replace):
    """Loss of the Hugging Face model, with the output of its second layer replaced after the first token."""

    def hook(_module, _inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        new = torch.cat([hidden[:, :1], replace(hidden[:, 1:])], dim=1)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = model.original_model.model.layers[1].register_forward_hook(hook)
    try:
        with torch.no_grad():
            logits = model.original_model(input_ids=ids).logits
    finally:
        handle.remove()
    chosen = logits[:, :-1].double().log_softmax(dim=-1).gather(2, ids[:, 1:, None])
    return -float(chosen.mean())


def test_losses_are_those_of_the_model_with_its_layer_replaced():
    model, sae = load_language_model("speller"), load_sae("speller/l1-batchtopk-w512-dense")
    ids = SpellingActivations([HOOK], contexts_per_chunk=3).token_ids(0)
    ways = {"unchanged": lambda x: x, "zeros": torch.zeros_like, "sae": lambda x: sae.decode(sae.encode(x))}
    for name, replace in ways.items():
        found = next_token_loss(model, ids, HOOK, None if name == "unchanged" else replace, skip=1)
        assert found == pytest.approx(loss_by_hand(model, ids, replace), rel=1e-5)


class Logged(Callback):
    """Keeps what validations log."""

    def on_validation_end(self, trainer, pl_module) -> None:
        self.sae = pl_module.inference_saes()["b"]
        self.figures = {name: float(value) for name, value in trainer.callback_metrics.items()}


def fit(data, callbacks, tmp_path):
    module = SparseAutoencoderModule({"b": SaeSettings("batchtopk", 256, settings={"k": 20})}, data.hook_widths)
    Trainer(
        accelerator="cpu",
        max_steps=6,
        val_check_interval=6,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        default_root_dir=tmp_path,
    ).fit(module, data)


def test_validation_logs_the_share_of_what_zeros_cost(tmp_path):
    source = SpellingActivations([HOOK], contexts_per_chunk=4, seed=2)  # chunks of two tasks
    data = TokenActivationDataModule(source, batch_size=64, chunks_per_buffer=4, val_chunks=2)
    logged = Logged()
    fit(data, [LossRecovered(chunks=2), logged], tmp_path)
    contexts = [source.token_ids(number) for number in (0, 1)]
    assert contexts[0].shape != contexts[1].shape

    def loss(replace):
        sums = [loss_by_hand(source.model, ids, replace) * ids[:, 1:].numel() for ids in contexts]
        return sum(sums) / sum(ids[:, 1:].numel() for ids in contexts)

    unchanged, zeros = loss(lambda x: x), loss(torch.zeros_like)
    found = loss(lambda x: logged.sae.decode(logged.sae.encode(x)))
    expected = (zeros - found) / (zeros - unchanged)
    assert logged.figures["val/loss_recovered/b"] == pytest.approx(expected, rel=1e-4)


def test_data_without_a_language_model_are_refused(tmp_path):
    world = TokenActivationDataModule(WorldActivations("superposition", rows_per_chunk=64), batch_size=64)
    with pytest.raises(AbsorbError, match=r"`callbacks` was 'LossRecovered with .* on WorldActivations'"):
        fit(world, [LossRecovered()], tmp_path)
    few = TokenActivationDataModule(SpellingActivations([HOOK], contexts_per_chunk=4), batch_size=64, val_chunks=2)
    with pytest.raises(AbsorbError, match="`chunks` was 3, expected at most the 2 chunks that are held out"):
        fit(few, [LossRecovered(chunks=3)], tmp_path)
