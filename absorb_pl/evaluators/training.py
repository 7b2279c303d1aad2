"""Training the probes of an evaluation on tensors, each from a seed of its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int, Num
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from absorb_pl.probes.base import OneVsRestModule
from absorb_pl.probes.fitting import fit_probe, fit_rankings
from absorb_pl.probes.fold_ranking import FoldRanking
from absorb_pl.probes.k_sparse import SaeProbe
from absorb_pl.probes.linear import LinearProbe
from absorb_pl.probes.settings import KSparseSettings, LinearProbeSettings
from absorb_pl.saes.interface import SparseAutoencoder

SIDE_BY_SIDE = 4
"""Most SAEs whose probes are trained side by side; more gain little."""
_LATENTS_SIDE_BY_SIDE = 2**17
"""Most latents of SAEs that are loaded side by side: 1 GiB of weights at a width of 1024 in float32."""


def train_linear_probe(
    x: Float[Tensor, "rows d_model"],
    y: Num[Tensor, "rows classes"],
    settings: LinearProbeSettings,
    class_names: Sequence[str],
    seed: int,
    device: torch.device | str = "cpu",
) -> tuple[LinearProbe, pd.DataFrame]:
    """Train the linear probe of a hook.

    Args:
        x: Activations of the training words.
        y: One-hot labels.
        settings: How to train.
        class_names: Names of the classes.
        seed: Seed of the order of batches.
        device: Where to train.

    Returns:
        The probe and its training curve, one row per epoch.
    """
    probe = LinearProbe(
        x.shape[1],
        y.shape[1],
        lr=settings.lr,
        end_lr=settings.end_lr,
        weight_decay=settings.weight_decay,
        class_names=class_names,
        solver=settings.solver,
    )
    return probe, _fitted(probe, x, y, settings.max_epochs or 1, settings.batch_size or len(x), seed, device)


def portions_side_by_side(latents: Sequence[int], most: int = SIDE_BY_SIDE) -> Iterator[list[int]]:
    """Portions of SAEs whose probes may be trained side by side: few, and not so wide that memory runs short.

    Args:
        latents: Number of latents of each SAE.
        most: Most SAEs of a portion.

    Yields:
        Numbers of the SAEs of a portion.

    Example:
        >>> list(portions_side_by_side([512, 1024, 2**17, 512, 512]))
        [[0, 1], [2], [3, 4]]
    """
    portion: list[int] = []
    for number, width in enumerate(latents):
        if portion and (len(portion) == most or sum(latents[one] for one in portion) + width > _LATENTS_SIDE_BY_SIDE):
            yield portion
            portion = []
        portion.append(number)
    if portion:
        yield portion


def train_sae_probes(
    saes: Sequence[SparseAutoencoder],
    x: Float[Tensor, "rows d_model"],
    y: Num[Tensor, "rows classes"],
    settings: KSparseSettings,
    class_names: Sequence[str],
    seed: int,
    device: torch.device | str = "cpu",
) -> list[tuple[SaeProbe, pd.DataFrame]]:
    """Train the k-sparse probes of some SAEs of a hook side by side; each ends with what it gets alone.

    Args:
        saes: The SAEs; ks above an SAE's width are left out for it.
        x: Activations of the training words.
        y: One-hot labels.
        settings: How to train.
        class_names: Names of the classes.
        seed: Seed of the order of batches.
        device: Where to train.

    Returns:
        For each SAE its probes and the training curve of its ranking probe, one row per epoch.
    """
    with isolate_rng():
        probes = [
            SaeProbe(
                sae,
                y.shape[1],
                ks=tuple(k for k in settings.ks if k <= sae.W_dec.shape[0]),
                l1_decay=settings.l1_decay,
                lr=settings.lr,
                end_lr=settings.end_lr,
                class_names=class_names,
            )
            for sae in saes
        ]
    with _seeded(seed):
        curves = fit_rankings(probes, x, y, settings.max_epochs, settings.batch_size, device)
    return list(zip(probes, curves, strict=True))


def train_fold_ranking(
    sae: SparseAutoencoder,
    x: Float[Tensor, "rows d_model"],
    y: Num[Tensor, "rows classes"],
    held_out: Int[Tensor, " rows"],
    settings: KSparseSettings,
    seed: int,
    device: torch.device | str = "cpu",
    firing: Int[Tensor, " firing"] | None = None,
) -> FoldRanking:
    """Train the ranking probes of all folds.

    Args:
        sae: The SAE, in the scale of unit-norm decoder rows.
        x: Activations of all words.
        y: One-hot labels.
        held_out: The fold that holds each word out.
        settings: How to train.
        seed: Seed of the order of batches.
        device: Where to train.
        firing: Latents that fire on some row; all when None.
    """
    if firing is None or not len(firing):
        firing = torch.arange(len(sae.W_dec))
    probe = FoldRanking(sae, y.shape[1], held_out, settings, firing)
    _fitted(probe, x, y, settings.max_epochs, settings.batch_size, seed, device)
    return probe


def _fitted(
    probe: OneVsRestModule, x: Tensor, y: Tensor, max_epochs: int, batch_size: int, seed: int, device: Any
) -> pd.DataFrame:
    with _seeded(seed):
        return fit_probe(probe, x, y, max_epochs, batch_size, device)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with isolate_rng():
        torch.manual_seed(seed)
        yield
