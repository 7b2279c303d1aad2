import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from absorb_pl.data.labelled_batches import LabelledBatches
from absorb_pl.errors import AbsorbError
from absorb_pl.probes import ProbeMetrics
from absorb_pl.probes.rows import training_batches


class Reader(LightningModule):
    """Reads all training rows from inside a fit."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch):
        """Nothing."""

    def configure_optimizers(self):
        return None

    def on_train_epoch_end(self):
        self.seen = torch.cat([batch["index"] for batch in training_batches(self.trainer)])


def rows_read(loader):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    reader = Reader()
    trainer.fit(reader, loader)
    return reader.seen.tolist()


def test_every_training_row_comes_once_in_order_whatever_the_loader():
    x, y = torch.randn(5000, 2), torch.ones(5000, 1)
    batches = LabelledBatches(x.__getitem__, y)
    assert rows_read(batches.loader(64, shuffle=True)) == list(range(5000))
    items = [{"x": x[i], "y": y[i], "index": torch.tensor(i)} for i in range(50)]
    assert rows_read(DataLoader(items, batch_size=7, shuffle=True, drop_last=True)) == list(range(50))


def test_streams_cannot_be_read_in_order():
    class Stream(IterableDataset):
        def __iter__(self):
            yield {"x": torch.zeros(2), "y": torch.zeros(1), "index": torch.tensor(0)}

    with pytest.raises(AbsorbError, match="map-style"):
        rows_read(DataLoader(Stream(), batch_size=1))


def test_repeated_rows_count_once_in_the_metrics():
    generator = torch.Generator().manual_seed(0)
    scores, targets = torch.randn(40, 1, 3, generator=generator), torch.rand(40, 3, generator=generator) < 0.3
    targets[:, 2] = False
    once, twice = ProbeMetrics(), ProbeMetrics()
    once.update(scores, targets, torch.arange(40))
    order = torch.randperm(40, generator=generator)
    twice.update(scores[order], targets[order], order)
    twice.update(scores[:15], targets[:15], torch.arange(15))
    assert once.compute() == twice.compute()
    assert once.by_class().defined.tolist() == [True, True, False]
