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
from absorb_pl.functional.projection import projection_scores
from absorb_pl.ranges import Cosine, Count, Fraction, Positive, check_ranges

SaeBenchVersion = Literal["0.6.0", "0.3.2"]


def full_absorption(
    top_projection: Float[Tensor, " words"],
    top_probe_cos: Float[Tensor, " words"],
    probe_projection: Float[Tensor, " words"],
    main_max: Float[Tensor, " words"],
    *,
    cos_threshold: Cosine = 0.025,
    proportion_threshold: Fraction = 0.4,
    silent: Positive = SILENT,
) -> Bool[Tensor, " words"]:
    """Tell on which words one latent took over all of the feature, by either version (see `saebench_verdicts`).

    Args:
        top_projection: Largest projection of a latent.
        top_probe_cos: That latent's cosine with the probe.
        probe_projection: Projection of the activation itself.
        main_max: Largest size of a main latent's activation.
        cos_threshold: Least cosine of the sole absorber.
        proportion_threshold: Least share of the activation's projection that it must hold.
        silent: Size of activation below which a main latent counts as silent.

    Returns:
        Whether each word counts.

    Example:
        >>> full_absorption(torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([2.0]), torch.tensor([0.0]))
        tensor([True])
    """
    check_ranges(full_absorption, locals())
    whole = probe_projection.double()
    return (
        (main_max.double() < silent)
        & (top_probe_cos.double() >= cos_threshold)
        & (whole > 0)
        & (top_projection.double() >= proportion_threshold * whole)
    )


def fraction_by_absorbers(
    absorber_projections: Float[Tensor, "words absorbers"],
    absorber_probe_cos: Float[Tensor, "words absorbers"],
    probe_projection: Float[Tensor, " words"],
    main_projection: Float[Tensor, " words"],
    *,
    cos_threshold: Cosine = 0.1,
    proportion_threshold: Fraction = 0.4,
    max_absorbers: Count = 3,
) -> Float[Tensor, " words"]:
    """Absorption fraction of version 0.6.0 (see `saebench_verdicts`).

    Args:
        absorber_projections: Positive projections of latents that are not main; 0 where there is none.
        absorber_probe_cos: Their cosines with the probe.
        probe_projection: Projection of the activation itself.
        main_projection: Summed projection of the main latents.
        cos_threshold: Least cosine of an absorber.
        proportion_threshold: Least share of the activation's projection that absorbers must hold.
        max_absorbers: Most absorbers that count.

    Returns:
        Fractions from 0 to 1, in float64.

    Example:
        >>> held, cos = torch.tensor([[0.8]]), torch.tensor([[0.8]])
        >>> fraction_by_absorbers(held, cos, torch.tensor([2.0]), torch.tensor([1.0]))
        tensor([0.4444], dtype=torch.float64)
    """
    check_ranges(fraction_by_absorbers, locals())
    whole, mains = probe_projection.double(), main_projection.double()
    aligned = torch.where(absorber_probe_cos.double() >= cos_threshold, absorber_projections.double(), 0.0)
    held = aligned.topk(min(max_absorbers, aligned.shape[1]), dim=1).values.sum(dim=1)
    nothing = (mains >= whole) | (whole <= 0) | (held < proportion_threshold * whole)
    taken = torch.minimum(held, whole - mains)
    share = (taken / torch.where(mains > 0, taken + mains, 1.0)).clamp(0.0, 1.0)
    return torch.where(nothing, 0.0, torch.where(mains > 0, share, 1.0))


def fraction_by_all(
    all_projection: Float[Tensor, " words"],
    probe_projection: Float[Tensor, " words"],
    main_projection: Float[Tensor, " words"],
) -> Float[Tensor, " words"]:
    """Absorption fraction of version 0.3.2 (see `saebench_verdicts`).

    Args:
        all_projection: Summed projection of all latents.
        probe_projection: Projection of the activation itself.
        main_projection: Summed projection of the main latents.

    Returns:
        Fractions from 0 to 1, in float64.

    Example:
        >>> fraction_by_all(torch.tensor([2.0]), torch.tensor([2.0]), torch.tensor([0.5]))
        tensor([0.7500], dtype=torch.float64)
    """
    whole, mains, every = probe_projection.double(), main_projection.double(), all_projection.double()
    nothing = (mains >= whole) | (every <= 0)
    return torch.where(nothing, 0.0, ((every - mains) / torch.where(every > 0, every, 1.0)).clamp(0.0, 1.0))


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
    full_cos_threshold: Cosine = 0.025,
    fraction_cos_threshold: Cosine = 0.1,
    proportion_threshold: Fraction = 0.4,
    max_absorbers: Count = 3,
    silent: Positive = SILENT,
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
        One verdict per word; fractions in float64.

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
    check_ranges(saebench_verdicts, locals())
    scores = projection_scores(activations, projections, probe_cos, main_latents, max_absorbers=max_absorbers)
    if version == "0.6.0":
        fraction = fraction_by_absorbers(
            scores.absorber_projections,
            scores.absorber_probe_cos,
            projections,
            scores.main_projection,
            cos_threshold=fraction_cos_threshold,
            proportion_threshold=proportion_threshold,
            max_absorbers=max_absorbers,
        )
    else:
        fraction = fraction_by_all(scores.all_projection, projections, scores.main_projection)
    return SaeBenchVerdicts(
        absorption_fraction=fraction,
        is_full_absorption=full_absorption(
            scores.top_projection,
            scores.top_probe_cos,
            projections,
            scores.main_max,
            cos_threshold=full_cos_threshold,
            proportion_threshold=proportion_threshold,
            silent=silent,
        ),
        top_latent=scores.top_latent,
        top_projection=scores.top_projection,
        second_latent=scores.second_latent,
        second_projection=scores.second_projection,
        top_probe_cos=scores.top_probe_cos,
        main_projection=scores.main_projection,
        main_activation=scores.main_activation,
    )
