"""The paper's absorption rule: which words to look at, and which of them count.

Shapes: w words of one class, l latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from absorb_pl.errors import ShapeError
from absorb_pl.functional.conditions import all_met
from absorb_pl.functional.validation import require_finite, require_latents
from absorb_pl.ranges import Cosine, Count, NotNegative, Positive, check_ranges

SILENT = 1e-8
"""Activation below which a latent counts as silent."""


def paper_candidates(
    probe_logits: Float[Tensor, " words"],
    k_sparse_logits: Float[Tensor, " words"],
    main_activation: Float[Tensor, " words"],
    *,
    silent: Positive = SILENT,
) -> Bool[Tensor, " words"]:
    """Tell on which words of a class a feature may have been absorbed.

    The linear probe sees the feature (logit > 0), the k-sparse probe on the main latents does not (logit ≤
    0), and the main latents' summed activation is below 1e-8 (arXiv 2409.14507, section 5; the published
    `get_stats_and_likely_false_negative_tokens` and `_filter_prompts`). Where latents can be negative (AbsTopK),
    their sizes are summed: a latent is silent at 0, not below it.

    Args:
        probe_logits: Logits of the class's linear probe.
        k_sparse_logits: Logits of its k-sparse probe with k the number of main latents.
        main_activation: Summed size of the main latents' activations.
        silent: Size of activation below which latents count as silent.

    Returns:
        True for candidates.

    Raises:
        NonFiniteError: A logit or activation is NaN or infinite.

    Example:
        >>> paper_candidates(torch.tensor([2.0, 2.0]), torch.tensor([-1.0, -1.0]), torch.tensor([0.0, 3.0]))
        tensor([ True, False])
    """
    check_ranges(paper_candidates, locals())
    require_finite(probe_logits=probe_logits, k_sparse_logits=k_sparse_logits, main_activation=main_activation)
    return (probe_logits > 0) & (k_sparse_logits <= 0) & (main_activation.abs() < silent)


def sample_candidates(
    candidates: Int[Tensor, " candidates"], limit: Count | None, generator: torch.Generator
) -> tuple[Int[Tensor, " sampled"], float]:
    """Draw at most `limit` candidates without replacement.

    Args:
        candidates: Row numbers of the candidate words.
        limit: Most words to keep (200 in the paper); `None` keeps all.
        generator: Source of the draw.

    Returns:
        The kept row numbers, ascending, and the share of candidates they are (`sample_portion`; 1 if all).

    Raises:
        RangeError: `limit` is below one.

    Example:
        >>> rows, portion = sample_candidates(torch.arange(8), 2, torch.Generator().manual_seed(0))
        >>> len(rows), portion
        (2, 0.25)
    """
    check_ranges(sample_candidates, locals())
    if limit is None or len(candidates) <= limit:
        return candidates.sort().values, 1.0
    order = torch.randperm(len(candidates), generator=generator, device=generator.device)
    kept = candidates[order[:limit].to(candidates.device)]
    return kept.sort().values, limit / len(candidates)


def most_negative_latents(
    scores: Float[Tensor, "words latents"], count: Count = 10
) -> tuple[Int[Tensor, "words ranks"], Float[Tensor, "words ranks"]]:
    """Order latents by integrated-gradient score, most negative first.

    Args:
        scores: Integrated-gradient scores at the word; negative where removing the latent hurts the metric.
        count: Latents to keep; fewer if there are fewer.

    Returns:
        Latent ids and their scores.

    Example:
        >>> most_negative_latents(torch.tensor([[0.5, -2.0, -0.1]]), count=2)
        (tensor([[1, 2]]), tensor([[-2.0000, -0.1000]]))
    """
    check_ranges(most_negative_latents, locals())
    top = scores.topk(min(count, scores.shape[1]), dim=1, largest=False)
    return top.indices, top.values


def written_cosines(
    activations: Float[Tensor, " latents"], probe_cos: Float[Tensor, " latents"]
) -> Float[Tensor, " latents"]:
    """Cosines with the probe of what latents write: that of the decoder row, or against it if they are negative.

    Args:
        activations: Activations of some latents.
        probe_cos: Cosine of each one's decoder row with the probe.

    Returns:
        Cosines; those of the decoder rows for latents that are not negative.

    Example:
        >>> written_cosines(torch.tensor([2.0, 0.0, -2.0]), torch.tensor([0.5, 0.5, -0.5]))
        tensor([0.5000, 0.5000, 0.5000])
    """
    return torch.where(activations < 0, -probe_cos, probe_cos)


@dataclass(frozen=True)
class GradientScores:
    """What the paper's rule is decided on at each word, whatever the thresholds.

    Attributes:
        top_latent: Latent with the most negative score.
        top_score: Its score, in units of the metric (logits).
        top_probe_cos: Cosine of what the top latent writes with the probe (see `written_cosines`).
        second_latent: Runner-up.
        second_score: Its score.
        main_activation: Summed activation of the main latents.
        main_max: Largest size of a main latent's activation.
    """

    top_latent: Int[Tensor, " words"]
    top_score: Float[Tensor, " words"]
    top_probe_cos: Float[Tensor, " words"]
    second_latent: Int[Tensor, " words"]
    second_score: Float[Tensor, " words"]
    main_activation: Float[Tensor, " words"]
    main_max: Float[Tensor, " words"]


def gradient_scores(
    scores: Float[Tensor, "words latents"],
    activations: Float[Tensor, "words latents"],
    probe_cos: Float[Tensor, " latents"],
    main_latents: Sequence[int],
) -> GradientScores:
    """Find the two latents that matter most at each word, and what the main latents do there.

    Args:
        scores: Integrated-gradient scores at the word.
        activations: Activations at the word.
        probe_cos: Cosine of each latent's decoder row with the class's probe.
        main_latents: The class's main latents.

    Returns:
        One entry per word, for `paper_decisions`.

    Raises:
        NonFiniteError: A score, activation or cosine is NaN or infinite.
        ShapeError: A main latent is out of range, or there are fewer than two latents.

    Example:
        >>> found = gradient_scores(
        ...     scores=torch.tensor([[0.0, -3.0, -0.5], [0.0, -3.0, -2.5]]),
        ...     activations=torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 1.0]]),
        ...     probe_cos=torch.tensor([0.9, 0.4, 0.1]),
        ...     main_latents=[0],
        ... )
        >>> found.top_latent, paper_decisions(
        ...     found.top_score, found.second_score, found.top_probe_cos, found.main_max
        ... )
        (tensor([1, 1]), tensor([ True, False]))
    """
    require_finite(scores=scores, activations=activations, probe_cos=probe_cos)
    require_latents("main_latents", main_latents, scores.shape[1])
    if scores.shape[1] < 2:
        raise ShapeError("scores", tuple(scores.shape), expected="at least two latents", remedy="Use a wider SAE.")
    latents, values = most_negative_latents(scores, count=2)
    mains = activations[:, list(main_latents)]
    return GradientScores(
        top_latent=latents[:, 0],
        top_score=values[:, 0],
        top_probe_cos=written_cosines(activations.gather(1, latents[:, :1])[:, 0], probe_cos[latents[:, 0]]),
        second_latent=latents[:, 1],
        second_score=values[:, 1],
        main_activation=mains.sum(dim=1),
        main_max=mains.abs().amax(dim=1),
    )


def paper_decisions(
    top_score: Float[Tensor, " words"],
    second_score: Float[Tensor, " words"],
    top_probe_cos: Float[Tensor, " words"],
    main_max: Float[Tensor, " words"],
    *,
    delta_threshold: NotNegative = 1.0,
    cos_threshold: Cosine = 0.025,
    silent: Positive = SILENT,
) -> Bool[Tensor, " words"]:
    """Judge words by the paper's rule.

    A word counts if every main latent is silent, the latent with the most negative integrated-gradient score has a
    score of at most 0, that score exceeds the runner-up's in size by at least `delta_threshold`, and its decoder row
    has a cosine of at least `cos_threshold` with the probe (arXiv 2409.14507, section 5; the published
    `FeatureAbsorptionCalculator._is_absorption`). A latent that is negative (AbsTopK) writes against its decoder row,
    so there the cosine's sign is turned, and it is silent at 0, not below it.

    Args:
        top_score: Most negative integrated-gradient score at the word, in logits.
        second_score: The runner-up's.
        top_probe_cos: Cosine of what the top latent writes with the probe.
        main_max: Largest size of a main latent's activation.
        delta_threshold: Least lead of the top score, in logits.
        cos_threshold: Least cosine of the top latent with the probe.
        silent: Size of activation below which a main latent counts as silent.

    Returns:
        Whether each word counts.

    Example:
        >>> scores, cos = torch.tensor([-3.0, -3.0]), torch.tensor([0.4, 0.4])
        >>> paper_decisions(scores, torch.tensor([-0.5, -2.5]), cos, torch.zeros(2))
        tensor([ True, False])
    """
    conditions = paper_conditions(
        top_score,
        second_score,
        top_probe_cos,
        main_max,
        delta_threshold=delta_threshold,
        cos_threshold=cos_threshold,
        silent=silent,
    )
    return all_met(conditions)


def paper_conditions(
    top_score: Float[Tensor, " words"],
    second_score: Float[Tensor, " words"],
    top_probe_cos: Float[Tensor, " words"],
    main_max: Float[Tensor, " words"],
    *,
    delta_threshold: NotNegative = 1.0,
    cos_threshold: Cosine = 0.025,
    silent: Positive = SILENT,
) -> dict[str, Bool[Tensor, " words"]]:
    """What the paper's rule asks of a word, one by one (see `paper_decisions`, which takes the same).

    Returns:
        Whether each word meets it, by name: `silent`, the main latents; `helps`, the top latent's score is at most 0;
        `lead`, it leads the runner-up by enough; `aligned`, what it writes points the probe's way.

    Example:
        >>> scores, cos = torch.tensor([-3.0]), torch.tensor([0.4])
        >>> paper_conditions(scores, torch.tensor([-2.5]), cos, torch.zeros(1))["lead"]
        tensor([False])
    """
    check_ranges(paper_conditions, locals())
    lead = top_score.double().abs() - second_score.double().abs()
    return {
        "silent": main_max.double() < silent,
        "helps": top_score <= 0,
        "lead": lead >= delta_threshold,
        "aligned": top_probe_cos.double() >= cos_threshold,
    }
