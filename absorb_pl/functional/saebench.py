"""The absorption rules of SAEBench, versions 0.6.0 and 0.3.2: by projection on the probe, without gradients.

Shapes: w words of one class, l latents, d d_model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from absorb_pl.functional.absorption import SILENT
from absorb_pl.functional.similarity import unit_rows
from absorb_pl.functional.validation import require_finite, require_latents

SaeBenchVersion = Literal["0.6.0", "0.3.2"]


def probe_projection(
    x: Float[Tensor, "words d_model"], probe_direction: Float[Tensor, " d_model"]
) -> Float[Tensor, " words"]:
    """Length of each activation along the probe's unit direction.

    Args:
        x: Residual activations at the word.
        probe_direction: Weights of the class's probe, of any length.

    Returns:
        Projections, in the units of `x`.

    Example:
        >>> probe_projection(torch.tensor([[3.0, 4.0]]), torch.tensor([0.0, 2.0]))
        tensor([4.])
    """
    unit = unit_rows(probe_direction[None])[0]
    return x.to(unit.dtype) @ unit


def fold_decoder_norms(
    activations: Float[Tensor, "words latents"], decoder: Float[Tensor, "latents d_model"]
) -> Float[Tensor, "words latents"]:
    """Scale activations to what they would be with unit-norm decoder rows.

    SAEBench requires such rows; with them, activation × cosine is a latent's part of the projection.

    Args:
        activations: Activations of the SAE as it is.
        decoder: Its `W_dec`.

    Returns:
        `activation × ‖decoder row‖`.

    Example:
        >>> fold_decoder_norms(torch.tensor([[2.0, 1.0]]), torch.tensor([[0.0, 3.0], [1.0, 0.0]]))
        tensor([[6., 1.]])
    """
    return activations * decoder.to(activations.dtype).norm(dim=1)


@dataclass(frozen=True)
class SaeBenchVerdicts:
    """What a SAEBench rule says of each word.

    Attributes:
        absorption_fraction: Share of the feature taken over by other latents, 0 to 1.
        is_full_absorption: Whether one other latent took over all of it.
        top_latent: Latent with the largest projection.
        top_projection: Its projection.
        second_latent: Runner-up.
        second_projection: Its projection.
        top_probe_cos: Cosine of the top latent's decoder row with the probe.
        main_projection: Summed projection of the main latents.
        main_activation: Summed activation of the main latents.
    """

    absorption_fraction: Float[Tensor, " words"]
    is_full_absorption: Bool[Tensor, " words"]
    top_latent: Int[Tensor, " words"]
    top_projection: Float[Tensor, " words"]
    second_latent: Int[Tensor, " words"]
    second_projection: Float[Tensor, " words"]
    top_probe_cos: Float[Tensor, " words"]
    main_projection: Float[Tensor, " words"]
    main_activation: Float[Tensor, " words"]


def saebench_verdicts(
    activations: Float[Tensor, "words latents"],
    projections: Float[Tensor, " words"],
    probe_cos: Float[Tensor, " latents"],
    main_latents: Sequence[int],
    *,
    version: SaeBenchVersion = "0.6.0",
    full_cos_threshold: float = 0.025,
    fraction_cos_threshold: float = 0.1,
    proportion_threshold: float = 0.4,
    max_absorbers: int = 3,
    silent: float = SILENT,
) -> SaeBenchVerdicts:
    """Judge words by SAEBench's rule.

    A latent's projection is its activation times `probe_cos`; `m` is the main latents' sum, `p` the
    activation's own projection. Full absorption: all mains silent, the latent of largest projection has a
    cosine of at least `full_cos_threshold` and holds at least `proportion_threshold` of `p > 0`. Fraction,
    0.6.0: with `a` the sum of the `max_absorbers` largest positive projections of latents that are not main
    and have a cosine of at least `fraction_cos_threshold`, 0 if `m ≥ p` or `a < proportion_threshold · p`; 1
    if `m ≤ 0`; else `a' / (a' + m)` with `a' = min(a, p − m)`. Fraction, 0.3.2: with `s` the sum over all
    latents, 0 if `m ≥ p` or `s ≤ 0`, else `(s − m) / s` clipped to [0, 1]. Source:
    `FeatureAbsorptionCalculator.calculate_absorption` of the SAEBench releases named. Where they divide by a
    projection of exactly zero, nothing counts as absorbed here.

    Args:
        activations: Activations at the word for unit-norm decoder rows (see `fold_decoder_norms`).
        projections: `probe_projection` of the residual activations.
        probe_cos: Cosine of each latent's decoder row with the class's probe.
        main_latents: The class's main latents.
        version: Which release's rule for the fraction.
        full_cos_threshold: Least cosine of a sole absorber.
        fraction_cos_threshold: Least cosine of an absorber in the fraction (0.6.0).
        proportion_threshold: Least share of the activation's projection that absorbers must hold.
        max_absorbers: Most absorbers that count (0.6.0).
        silent: Size of activation below which a main latent counts as silent.

    Returns:
        One verdict a word; fractions in float64.

    Raises:
        NonFiniteError: An activation, projection or cosine is NaN or infinite.
        ShapeError: A main latent is out of range or stands twice.

    Example:
        >>> verdicts = saebench_verdicts(
        ...     activations=torch.tensor([[0.0, 2.0], [1.0, 1.0]]),
        ...     projections=torch.tensor([2.0, 2.0]),
        ...     probe_cos=torch.tensor([1.0, 0.8]),
        ...     main_latents=[0],
        ... )
        >>> verdicts.is_full_absorption, verdicts.absorption_fraction
        (tensor([ True, False]), tensor([1.0000, 0.4444], dtype=torch.float64))
    """
    require_finite(activations=activations, projections=projections, probe_cos=probe_cos)
    require_latents("main_latents", main_latents, activations.shape[1])
    mains = list(main_latents)
    projection_wl = activations * probe_cos
    main_w = projection_wl[:, mains].sum(dim=1).double()
    whole_w = projections.double()
    top = projection_wl.topk(min(2, projection_wl.shape[1]), dim=1)
    top_cos_w = probe_cos[top.indices[:, 0]]
    full_w = (
        (activations[:, mains].abs() < silent).all(dim=1)
        & (top_cos_w.double() >= full_cos_threshold)
        & (whole_w > 0)
        & (top.values[:, 0].double() >= proportion_threshold * whole_w)
    )
    if version == "0.6.0":
        may_absorb_l = probe_cos >= fraction_cos_threshold
        may_absorb_l[mains] = False
        absorbing_wl = torch.where(may_absorb_l, projection_wl, 0.0).clamp(min=0.0)
        held_w = absorbing_wl.topk(min(max_absorbers, absorbing_wl.shape[1]), dim=1).values.sum(dim=1).double()
        nothing_w = (main_w >= whole_w) | (whole_w <= 0) | (held_w < proportion_threshold * whole_w)
        taken_w = torch.minimum(held_w, whole_w - main_w)
        share_w = (taken_w / torch.where(main_w > 0, taken_w + main_w, 1.0)).clamp(0.0, 1.0)
        fraction_w = torch.where(main_w > 0, share_w, 1.0)
    else:
        all_w = projection_wl.sum(dim=1).double()
        nothing_w = (main_w >= whole_w) | (all_w <= 0)
        fraction_w = ((all_w - main_w) / torch.where(all_w > 0, all_w, 1.0)).clamp(0.0, 1.0)
    return SaeBenchVerdicts(
        absorption_fraction=torch.where(nothing_w, 0.0, fraction_w),
        is_full_absorption=full_w,
        top_latent=top.indices[:, 0],
        top_projection=top.values[:, 0],
        second_latent=top.indices[:, -1],
        second_projection=top.values[:, -1],
        top_probe_cos=top_cos_w,
        main_projection=main_w,
        main_activation=activations[:, mains].sum(dim=1),
    )
