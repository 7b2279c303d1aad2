"""A LightningDataModule that serves cached activations as matrices, and builds the cache when it is missing."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from typing_extensions import override

from absorb_pl.data.activation_cache import (
    ActivationCache,
    StorageDtype,
    activation_identities,
    open_activations,
)
from absorb_pl.data.collector import ActivationCacheWriter, ActivationCollector
from absorb_pl.data.drafts import user_path
from absorb_pl.data.known_activations import KnownActivations, fingerprint, recall, remember
from absorb_pl.data.labelled_datamodule import LabelledDataModule
from absorb_pl.data.prompt_datamodule import PromptDataModule
from absorb_pl.data.trainers import TrainerFactory, one_device_trainer
from absorb_pl.models.language_model import check_hook
from absorb_pl.ranges import Count, InnerFraction, Range, Seed, check_ranges
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.processing import check_given_processing, check_positions, check_processing, trained_positions
from absorb_pl.saes.properties import check_hooks_agree, shape_at
from absorb_pl.words import TaskConfig


def ensure_activations(
    data: PromptDataModule,
    hook_names: Sequence[str],
    cache_dir: Path,
    dtype: StorageDtype,
    make_trainer: TrainerFactory,
    identities: dict[str, dict[str, Any]] | None = None,
) -> dict[str, ActivationCache]:
    """The cached rows of several hooks; hooks that are missing are read in one predict pass.

    Args:
        data: The prompts, with the language model that reads them.
        hook_names: TransformerLens hook names.
        cache_dir: Root of the cache.
        dtype: Storage dtype.
        make_trainer: Makes the Trainer of the predict pass from its callbacks.
        identities: What determines the rows of each hook, if that is known already.

    Raises:
        HookNotFoundError: The model has no such hook.
        CacheCorruptedError: A shard is missing, cut short or altered.
    """
    identities = identities or activation_identities(data.language_model, data.prompts, hook_names, dtype)
    caches = {hook: open_activations(cache_dir, identity) for hook, identity in identities.items()}
    missing = [hook for hook, cache in caches.items() if cache is None]
    if missing:
        trainer = make_trainer([ActivationCacheWriter(cache_dir, dtype, identities)])
        collector = ActivationCollector(data.language_model, missing)
        trainer.predict(collector, datamodule=data, return_predictions=False)
        for hook in missing:
            caches[hook] = open_activations(cache_dir, identities[hook])
    return {hook: cache for hook, cache in caches.items() if cache is not None}


class ActivationDataModule(LabelledDataModule):
    """Train, validation and test splits of the residual rows of one hook.

    `prepare_data` builds the cache if it is missing, `setup` reads it. Nothing is loaded before that, and the language
    model is not loaded at all if the cache is warm and the model is a folder that has not changed. Words are split
    class by class. Checkpoints hold these settings and the words that were trained on; those are not scored afterwards.

    Args:
        model: A `TransformerBridge`, or a name for `load_language_model`.
        hook_name: TransformerLens hook name.
        task: What to ask about which words.
        cache_dir: Root of the cache.
        dtype: Storage dtype of the cache; batches are float32.
        batch_size: Rows per batch.
        prompt_batch_size: Prompts per forward pass while the cache is built.
        test_fraction: Share of each class held out for `test`.
        val_fraction: Share of each class held out for validation.
        split_seed: Seed of the split.
        model_dtype: Dtype of a model loaded by name.

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
        super().__init__(batch_size, test_fraction, val_fraction, split_seed)
        self.model, self.model_dtype = model, model_dtype
        self.hook_name = hook_name
        self.task = task or TaskConfig()
        self.cache_dir = user_path(cache_dir)
        self.dtype: StorageDtype = dtype
        self.prompt_batch_size = prompt_batch_size
        self.save_hyperparameters(
            {
                "model": model if isinstance(model, str) else type(model).__name__,
                "hook_name": hook_name,
                "task": asdict(self.task),
                "dtype": dtype,
                "test_fraction": test_fraction,
                "val_fraction": val_fraction,
                "split_seed": split_seed,
                "model_dtype": model_dtype,
            },
            logger=False,
        )

    @cached_property
    def prompt_data(self) -> PromptDataModule:
        """The prompts, with the language model that reads them; loaded when first asked for."""
        return PromptDataModule(self.model, self.task, self.prompt_batch_size, model_dtype=self.model_dtype)

    @cached_property
    def cache(self) -> ActivationCache:
        """The cached rows; built first if they are missing."""
        known = self._recalled
        found = None if known is None else open_activations(self.cache_dir, known.identity)
        if found is None:
            trainers = self._one_device_trainer
            caches = ensure_activations(
                self.prompt_data, [self.hook_name], self.cache_dir, self.dtype, trainers, self._identities
            )
            found = caches[self.hook_name]
            remember(self.cache_dir, self._fingerprint, self._described(found.width))
        return found

    @cached_property
    def known(self) -> KnownActivations:
        """Words, classes and labels; from the cache if it is warm, else from the prompts."""
        return self._recalled or self._described(self._hook_width)

    @property
    @override
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.known.classes)

    @property
    @override
    def label_numbers(self) -> Int[Tensor, " rows"]:
        return self.known.label_numbers

    @property
    @override
    def row_names(self) -> Sequence[str]:
        return self.known.words

    @property
    @override
    def width(self) -> int:
        return self.known.width

    @override
    def rows(self, index: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen width"]:
        return self.cache.rows(index)

    @override
    def check_sae(self, sae: SparseAutoencoder) -> None:
        """Check that an SAE reads what these rows are: the hook, the model's processing, and where the words stand.

        Args:
            sae: The SAE.

        Raises:
            HookMismatchError: It reads another hook.
            ModelProcessingError: It was trained on a model processed otherwise, or on other positions.
        """
        check_hooks_agree(sae, self.hook_name)
        if isinstance(self.model, str):  # which is loaded as it is
            check_given_processing((), sae)
        else:
            check_processing(self.model, sae)
        check_positions(trained_positions(sae), torch.tensor(self.known.positions))

    @cached_property
    def _fingerprint(self) -> str | None:
        return fingerprint(
            self.model, self.task, hook_name=self.hook_name, dtype=self.dtype, model_dtype=self.model_dtype
        )

    @cached_property
    def _recalled(self) -> KnownActivations | None:
        return recall(self.cache_dir, self._fingerprint)

    @property
    def _hook_width(self) -> int:
        check_hook(self.prompt_data.language_model, self.hook_name)
        return shape_at(self.prompt_data.language_model, self.hook_name).numel()

    @cached_property
    def _identities(self) -> dict[str, dict[str, Any]]:
        data = self.prompt_data
        return activation_identities(data.language_model, data.prompts, [self.hook_name], self.dtype)

    def _described(self, width: int) -> KnownActivations:
        return KnownActivations.of(self.prompt_data, self._identities[self.hook_name], width)

    @override
    def prepare_data(self) -> None:
        """Build the cache if it is missing; one process does."""
        _ = self.cache

    @override
    def setup(self, stage: str) -> None:
        """Open the cache."""
        _ = self.cache

    def _one_device_trainer(self, callbacks: list[Callback]) -> Trainer:
        """The Trainer that builds the cache, on one device of the kind that the outer Trainer runs on."""
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        return one_device_trainer(device, callbacks=callbacks)
