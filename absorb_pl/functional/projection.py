"""How much of a probe's direction each latent holds at a word: what the rules of SAEBench are decided on.

Shapes: w words of one class, l latents, d d_model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from absorb_pl.functional.absorption import written_cosines
from absorb_pl.functional.similarity import unit_rows
from absorb_pl.functional.validation import require_finite, require_latents
from absorb_pl.ranges import Count, check_ranges


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


@dataclass(frozen=True)
class ProjectionScores:
    """What is known of each word, whatever the thresholds.

    A latent's projection is that of what it contributes to the reconstruction, decode(f_j e_j) - decode(0), on the
    probe's unit direction: for unit-norm decoder rows, activation times cosine.

    Attributes:
        probe_projection: Projection of the activation itself.
        main_projection: Summed projection of the main latents, in float64.
        all_projection: Summed projection of all latents, in float64.
        main_activation: Summed activation of the main latents.
        main_max: Largest size of a main latent's activation.
        top_latent: Latent with the largest projection.
        top_projection: Its projection.
        top_probe_cos: Cosine of what it writes with the probe (see `written_cosines`).
        second_latent: Runner-up.
        second_projection: Its projection.
        absorber_latents: Latents that could be absorbers (see `may_absorb`), largest projection first; -1 where a
            word has fewer than others.
        absorber_projections: Their projections; 0 if there is none.
        absorber_probe_cos: Cosines of what they write; 0 if there is none.
    """

    probe_projection: Float[Tensor, " words"]
    main_projection: Float[Tensor, " words"]
    all_projection: Float[Tensor, " words"]
    main_activation: Float[Tensor, " words"]
    main_max: Float[Tensor, " words"]
    top_latent: Int[Tensor, " words"]
    top_projection: Float[Tensor, " words"]
    top_probe_cos: Float[Tensor, " words"]
    second_latent: Int[Tensor, " words"]
    second_projection: Float[Tensor, " words"]
    absorber_latents: Int[Tensor, "words absorbers"]
    absorber_projections: Float[Tensor, "words absorbers"]
    absorber_probe_cos: Float[Tensor, "words absorbers"]


def may_absorb(
    projections: Float[Tensor, "words latents"], probe_cos: Float[Tensor, " latents"], count: Count
) -> Bool[Tensor, "words latents"]:
    """Mark the latents that are among the `count` largest projections for some least cosine.

    A latent is left out when `count` others with a cosine of at least its own project at least as much: whatever least
    cosine is asked for, those come before it. So the marked latents hold the sum of the `count` (or fewer) largest
    positive projections for every least cosine.

    Args:
        projections: Projections; those of latents that may not absorb set to 0.
        probe_cos: Cosine of each latent's decoder row with the probe.
        count: Most absorbers that will be asked for.

    Returns:
        True at the latents to keep.

    Example:
        >>> may_absorb(torch.tensor([[1.0, 2.0, 3.0, 0.5]]), torch.tensor([0.9, 0.5, 0.1, 0.2]), count=1)
        tensor([[ True,  True,  True, False]])
    """
    check_ranges(may_absorb, locals())
    order = probe_cos.argsort(descending=True, stable=True)
    order = order[(projections > 0).any(dim=0)[order]]
    by_cosine = projections[:, order].clamp(min=0)
    # Round k leaves the k-th largest so far in `before`, and hands on what that one displaced.
    handed_on, before = by_cosine, torch.zeros_like(by_cosine)
    for _ in range(count if by_cosine.shape[1] else 0):
        before = torch.zeros_like(by_cosine)
        before[:, 1:] = handed_on.cummax(dim=1).values[:, :-1]
        handed_on = torch.minimum(handed_on, before)
    marked = torch.zeros_like(projections, dtype=torch.bool)
    marked[:, order] = by_cosine > before
    return marked


def projection_scores(
    activations: Float[Tensor, "words latents"],
    projections: Float[Tensor, " words"],
    probe_cos: Float[Tensor, " latents"],
    main_latents: Sequence[int],
    *,
    max_absorbers: Count = 3,
    latent_projections: Float[Tensor, "words latents"] | None = None,
) -> ProjectionScores:
    """Sum up the words of one class for the rules of SAEBench.

    Args:
        activations: Activations at the word; for unit-norm decoder rows where
            `latent_projections` are not given.
        projections: `probe_projection` of the residual activations.
        probe_cos: Cosine of each latent's decoder row with the class's probe.
        main_latents: The class's main latents.
        max_absorbers: Most absorbers that will be asked for.
        latent_projections: Projection of what each latent contributes; `activations × probe_cos` when None.

    Returns:
        One entry per word, enough for any threshold and up to `max_absorbers` absorbers.

    Raises:
        NonFiniteError: An activation, projection or cosine is NaN or infinite.
        ShapeError: A main latent is out of range or stands twice.

    Example:
        >>> found = projection_scores(
        ...     torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([2.0]), torch.tensor([1.0, 0.8, 0.5]), main_latents=[0]
        ... )
        >>> found.top_latent, found.absorber_latents
        (tensor([1]), tensor([[1, 2]]))
    """
    check_ranges(projection_scores, locals())
    require_finite(activations=activations, projections=projections, probe_cos=probe_cos)
    require_latents("main_latents", main_latents, activations.shape[1])
    mains = list(main_latents)
    main_acts = activations[:, mains]
    if latent_projections is None:
        projection_wl = activations * probe_cos
    else:
        require_finite(latent_projections=latent_projections)
        projection_wl = latent_projections.clone()
    top = projection_wl.topk(min(2, projection_wl.shape[1]), dim=1)
    main_w = projection_wl[:, mains].sum(dim=1, dtype=torch.float64)
    all_w = projection_wl.sum(dim=1, dtype=torch.float64)
    projection_wl[:, mains] = 0
    written_cos = probe_cos.abs()  # of what projects above 0, the sign of an activation being its cosine's
    projection_wl = torch.where(may_absorb(projection_wl, written_cos, max_absorbers), projection_wl, 0)
    most = int((projection_wl > 0).sum(dim=1).max()) if len(projection_wl) else 0
    absorbing = projection_wl.topk(most, dim=1)
    present = absorbing.values > 0
    return ProjectionScores(
        probe_projection=projections,
        main_projection=main_w,
        all_projection=all_w,
        main_activation=main_acts.sum(dim=1),
        main_max=main_acts.abs().amax(dim=1),
        top_latent=top.indices[:, 0],
        top_projection=top.values[:, 0],
        top_probe_cos=written_cosines(activations.gather(1, top.indices[:, :1])[:, 0], probe_cos[top.indices[:, 0]]),
        second_latent=top.indices[:, -1],
        second_projection=top.values[:, -1],
        absorber_latents=torch.where(present, absorbing.indices, -1),
        absorber_projections=absorbing.values,
        absorber_probe_cos=torch.where(present, written_cos[absorbing.indices], 0),
    )
