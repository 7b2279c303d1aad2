"""A LightningDataModule that serves cached activations as matrices, and builds the cache when it is missing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler
from typing_extensions import override

from absorb_pl.data.activation_cache import (
    ActivationCache,
    StorageDtype,
    activation_identities,
    open_activations,
)
from absorb_pl.data.collector import ActivationCacheWriter, ActivationCollector
from absorb_pl.data.drafts import user_path
from absorb_pl.data.prompt_datamodule import PromptDataModule
from absorb_pl.data.splits import stratified_split
from absorb_pl.data.stopping import stoppable
from absorb_pl.data.trainers import TrainerFactory
from absorb_pl.errors import SplitError
from absorb_pl.ranges import Count, InnerFraction, Range, Seed, check_ranges
from absorb_pl.saes.properties import shape_at
from absorb_pl.words.task_config import TaskConfig


def ensure_activations(
    data: PromptDataModule,
    hook_names: Sequence[str],
    cache_dir: Path,
    dtype: StorageDtype,
    make_trainer: TrainerFactory,
) -> dict[str, ActivationCache]:
    """The cached rows of several hooks; hooks that are missing are read in one predict pass.

    Args:
        data: The prompts, with the language model that reads them.
        hook_names: TransformerLens hook names.
        cache_dir: Root of the cache.
        dtype: Storage dtype.
        make_trainer: Makes the Trainer of the predict pass from its callbacks.

    Raises:
        HookNotFoundError: The model has no such hook.
        CacheCorruptedError: A shard is missing, cut short or altered.
    """
    identities = activation_identities(data.language_model, data.prompts, hook_names, dtype)
    caches = {hook: open_activations(cache_dir, identity) for hook, identity in identities.items()}
    missing = [hook for hook, cache in caches.items() if cache is None]
    if missing:
        trainer = make_trainer([ActivationCacheWriter(cache_dir, dtype)])
        collector = ActivationCollector(data.language_model, missing)
        trainer.predict(collector, datamodule=data, return_predictions=False)
        for hook in missing:
            caches[hook] = open_activations(cache_dir, identities[hook])
    return {hook: cache for hook, cache in caches.items() if cache is not None}


class ActivationBatches(Dataset[dict[str, Tensor]]):
    """Rows of a cache with their labels; an item is a whole batch, gathered with one indexing a matrix.

    Args:
        cache: Cached rows of a hook.
        labels: One-hot labels of all rows of the cache, `[rows, classes]`.
        index: The rows of this split.
    """

    def __init__(self, cache: ActivationCache, labels: Tensor, index: Tensor) -> None:
        self.cache, self.labels, self.index = cache, labels, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, positions: list[int]) -> dict[str, Tensor]:
        """`x` `[batch, d_model]`, `y` `[batch, classes]` and the row numbers `index`."""
        index = self.index[torch.tensor(positions)]
        return {"x": self.cache.rows(index), "y": self.labels[index], "index": index}


class ActivationDataModule(LightningDataModule):
    """Train, validation and test splits of the residual rows of one hook.

    `prepare_data` builds the cache where it is missing, `setup` reads it. Words are split class by class. Checkpoints
    hold the words that were trained on, and none of them is scored afterwards.

    Args:
        model: A `TransformerBridge`, or a name for `load_language_model`.
        hook_name: TransformerLens hook name.
        task: What to ask about which words.
        cache_dir: Root of the cache.
        dtype: Storage dtype of the cache; batches are float32.
        batch_size: Rows a batch.
        prompt_batch_size: Prompts a forward pass while the cache is built.
        test_fraction: Share of each class held out for `test`.
        val_fraction: Share of each class held out for validation.
        split_seed: Seed of the split.
        model_dtype: Dtype of a model loaded by name.

    Attributes:
        prompt_data: The `PromptDataModule` that the rows come from.
        cache: The `ActivationCache`, after `setup`.
        splits: Row numbers of `train`, `val` and `test`.
    """

    def __init__(
        self,
        model: Any = "speller",
        hook_name: str = "blocks.1.hook_resid_post",
        task: TaskConfig | None = None,
        cache_dir: str | Path = "lightning_logs/cache",
        dtype: StorageDtype = "float32",
        batch_size: Count = 4096,
        prompt_batch_size: Count = 64,
        test_fraction: InnerFraction = 0.2,
        val_fraction: Annotated[float | int, Range(0, 1, below=True)] = 0.1,
        split_seed: Seed = 42,
        model_dtype: str = "float32",
    ) -> None:
        check_ranges(ActivationDataModule.__init__, locals())
        super().__init__()
        self.prompt_data = PromptDataModule(model, task, prompt_batch_size, model_dtype=model_dtype)
        self.hook_name = hook_name
        self.cache_dir = user_path(cache_dir)
        self.dtype: StorageDtype = dtype
        self.batch_size = batch_size
        self.split_seed = split_seed
        self.class_names = self.prompt_data.task.classes
        labels = self.prompt_data.labels
        self.labels = torch.nn.functional.one_hot(labels, len(self.class_names)).float()
        fractions = (1 - test_fraction - val_fraction, val_fraction, test_fraction)
        parts = stratified_split(labels, fractions, split_seed)
        self.splits: dict[str, Tensor] = dict(zip(("train", "val", "test"), parts, strict=True))
        self._cache: ActivationCache | None = None
        self._trained_on: set[str] = set()

    @property
    def cache(self) -> ActivationCache:
        """The cached rows; built first where they are missing."""
        return self._cache if self._cache is not None else self._open_cache()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def width(self) -> int:
        """Length of a row: the width of the hook."""
        return shape_at(self.prompt_data.language_model, self.hook_name).numel()

    def _open_cache(self) -> ActivationCache:
        trainers = self._one_device_trainer
        found = ensure_activations(self.prompt_data, [self.hook_name], self.cache_dir, self.dtype, trainers)
        self._cache = found[self.hook_name]
        return self._cache

    @override
    def prepare_data(self) -> None:
        self._open_cache()

    def class_counts(self) -> tuple[Tensor, int]:
        """Positives a class and rows of the training split."""
        train = self.labels[self.splits["train"]]
        return train.sum(dim=0), len(train)

    @override
    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader("train", shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader("val")

    @override
    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader("test")

    @override
    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader("test")

    @override
    def state_dict(self) -> dict[str, Any]:
        """The words that were trained on, for the checkpoint."""
        return {"trained_on": sorted(self._trained_on | self._words("train"))}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the words that a checkpoint was trained on with those to be scored.

        Raises:
            SplitError: Some are among both.
        """
        self._trained_on = set(state_dict["trained_on"])
        fn = None if self.trainer is None else self.trainer.state.fn
        scored = self._words("val" if fn == "validate" else "test")
        if seen := scored & self._trained_on:
            raise SplitError(
                "split_seed",
                self.split_seed,
                expected=f"words that were held out in training; {len(seen)} of {len(scored)} were trained on",
                remedy="Use the task, split_seed, test_fraction and val_fraction that the probe was trained with.",
            )

    def _words(self, split: str) -> set[str]:
        return {self.prompt_data.task.words[row] for row in self.splits[split].tolist()}

    def _loader(self, split: str, *, shuffle: bool = False) -> DataLoader[dict[str, Tensor]]:
        batches = ActivationBatches(self.cache, self.labels, self.splits[split])
        order = RandomSampler(batches) if shuffle else SequentialSampler(batches)
        return DataLoader(batches, sampler=BatchSampler(order, self.batch_size, False), batch_size=None)

    def _one_device_trainer(self, callbacks: list[Callback]) -> Trainer:
        """The Trainer that builds the cache, on one device of the kind that the outer Trainer runs on."""
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        return stoppable(
            Trainer(
                accelerator="gpu" if device.type == "cuda" else device.type,
                strategy=SingleDeviceStrategy(device),
                callbacks=callbacks,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
            )
        )
