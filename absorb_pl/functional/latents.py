"""Single latents as classifiers: the latents nearest a probe, and their scores."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from absorb_pl.functional.similarity import cosine_similarity_matrix
from absorb_pl.ranges import Count, check_ranges

LATENT_DECISION_THRESHOLD = 1e-8
"""Activation above which a latent says that a word has its class."""


def top_latents_by_encoder(
    probe_weight: Float[Tensor, "classes d_model"], encoder: Float[Tensor, "d_model latents"], count: Count = 5
) -> tuple[Int[Tensor, "classes ranks"], Float[Tensor, "classes ranks"]]:
    """Find each class's latents by cosine of encoder column and probe, best first.

    The latent evaluation of arXiv 2409.14507, section 4 (published `eval_probe_and_top_sae_raw_scores`).

    Args:
        probe_weight: Weights of the linear probe.
        encoder: `W_enc` of the SAE.
        count: Latents a class; fewer if the SAE is narrower.

    Returns:
        Latent ids and their cosines.

    Raises:
        NonFiniteError: A weight is NaN or infinite.

    Example:
        >>> ids, cosines = top_latents_by_encoder(torch.tensor([[1.0, 0.0]]), torch.eye(2), count=1)
        >>> ids, cosines
        (tensor([[0]]), tensor([[1.]]))
    """
    check_ranges(top_latents_by_encoder, locals())
    cosines = cosine_similarity_matrix(probe_weight, encoder.T)
    top = cosines.topk(min(count, cosines.shape[1]), dim=1)
    return top.indices, top.values


def latent_scores(
    x: Float[Tensor, "rows d_model"],
    encoder: Float[Tensor, "d_model latents"],
    encoder_bias: Float[Tensor, " latents"],
    latent_ids: Int[Tensor, "classes ranks"],
    threshold: Float[Tensor, " latents"] | None = None,
) -> Float[Tensor, "rows classes ranks"]:
    """Raw scores of chosen latents, as the published latent evaluation takes them.

    `x @ W_enc + b_enc`, less the threshold for JumpReLU SAEs; `b_dec` is not subtracted from the input, also
    where the SAE does so. A latent says yes when its score is above `LATENT_DECISION_THRESHOLD` (1e-8).

    Args:
        x: Residual activations at the word.
        encoder: `W_enc` of the SAE.
        encoder_bias: `b_enc` of the SAE.
        latent_ids: Latents of each class.
        threshold: JumpReLU thresholds, where the SAE has them.

    Returns:
        Scores, higher for yes, in float32 or better.

    Example:
        >>> x = torch.tensor([[2.0, 1.0]])
        >>> latent_scores(x, torch.eye(2), torch.tensor([0.0, 0.5]), torch.tensor([[1, 0]]))
        tensor([[[1.5000, 2.0000]]])
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    bias = encoder_bias if threshold is None else encoder_bias - threshold
    flat = latent_ids.flatten()
    scores = x.to(dtype) @ encoder[:, flat].to(dtype) + bias[flat].to(dtype)
    return scores.unflatten(1, latent_ids.shape)
