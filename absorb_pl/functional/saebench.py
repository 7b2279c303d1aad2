"""The absorption rules of SAEBench, versions 0.6.0 and 0.3.2: by projection on the probe, without gradients.

With `p` the activation's projection on the probe, `m` that of what the main latents contribute, and a latent's
projection that of what it contributes (see `projection_scores`):

- full absorption: all main latents are silent, and the latent of largest projection has a cosine of at least 0.025
  with the probe and holds at least 0.4 of `p > 0`;
- fraction, 0.6.0: with `a` the sum of the 3 largest positive projections of latents that are not main and have a
  cosine of at least 0.1: 0 if `m ≥ p` or `a < 0.4 p`; 1 if `m ≤ 0`; else `a' / (a' + m)` with `a' = min(a, p − m)`;
- fraction, 0.3.2: with `s` the sum over all latents: 0 if `m ≥ p` or `s ≤ 0`, else `(s − m) / s` clipped to [0, 1].

Source: `FeatureAbsorptionCalculator.calculate_absorption` of the SAEBench releases named. Where they divide by a
projection of exactly zero, nothing counts as absorbed here.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from absorb_pl.functional.absorption import SILENT
from absorb_pl.functional.conditions import all_met
from absorb_pl.ranges import Cosine, Count, Fraction, Positive, check_ranges


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
    """Tell on which words one latent took over all of the feature, by either version.

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
    conditions = full_absorption_conditions(
        top_projection,
        top_probe_cos,
        probe_projection,
        main_max,
        cos_threshold=cos_threshold,
        proportion_threshold=proportion_threshold,
        silent=silent,
    )
    return all_met(conditions)


def full_absorption_conditions(
    top_projection: Float[Tensor, " words"],
    top_probe_cos: Float[Tensor, " words"],
    probe_projection: Float[Tensor, " words"],
    main_max: Float[Tensor, " words"],
    *,
    cos_threshold: Cosine = 0.025,
    proportion_threshold: Fraction = 0.4,
    silent: Positive = SILENT,
) -> dict[str, Bool[Tensor, " words"]]:
    """What SAEBench asks of a word, one by one (see `full_absorption`, which takes the same).

    Returns:
        Whether each word meets it, by name: `silent`, the main latents; `aligned`, the latent's decoder row points the
        probe's way; `present`, the activation's projection is above 0; `share`, the latent holds enough of it.

    Example:
        >>> one = torch.ones(1)
        >>> full_absorption_conditions(0.3 * one, one, one, 0 * one)["share"]
        tensor([False])
    """
    check_ranges(full_absorption_conditions, locals())
    whole = probe_projection.double()
    return {
        "silent": main_max.double() < silent,
        "aligned": top_probe_cos.double() >= cos_threshold,
        "present": whole > 0,
        "share": top_projection.double() >= proportion_threshold * whole,
    }


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
    """Absorption fraction of version 0.6.0.

    Args:
        absorber_projections: Positive projections of latents that are not main; 0 if there is none.
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
    """Absorption fraction of version 0.3.2.

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
