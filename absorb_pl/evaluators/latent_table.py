"""The latent evaluation as a table: the latents nearest to each class's probe, as classifiers of the class."""

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from absorb_pl.functional.latents import LATENT_DECISION_THRESHOLD, latent_scores, top_latents_by_encoder
from absorb_pl.functional.metrics import binary_metrics
from absorb_pl.functional.similarity import cosine_similarity_matrix
from absorb_pl.ranges import Count, check_ranges
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.rows import encoder_parts


@torch.no_grad()
def latent_table(
    sae: SparseAutoencoder,
    x: Float[Tensor, "rows d_model"],
    y: Bool[Tensor, "rows classes"],
    probe_weight: Float[Tensor, "classes d_model"],
    probe_logits: Float[Tensor, "rows classes"],
    class_names: tuple[str, ...],
    top: Count = 5,
) -> pd.DataFrame:
    """Score the latents nearest to each class's probe by encoder cosine (arXiv 2409.14507, section 4).

    Args:
        sae: An SAE; `encoder_parts` says what stands in for an encoder matrix or bias that it lacks.
        x: Residual rows of the evaluation words.
        y: Which class each word is of.
        probe_weight: Weights of the linear probe.
        probe_logits: Its logits on the same rows.
        class_names: Names of the classes.
        top: Latents a class.

    Returns:
        One row per class and rank: `label, rank, latent, cos_encoder, cos_decoder, f1, precision, recall, auroc`,
        beside the probe's own `probe_f1, probe_precision, probe_recall, probe_auroc`. Classes that do not occur
        among the words are left out; AUROC is missing if no other class occurs.
    """
    check_ranges(latent_table, locals())
    encoder, bias, threshold = encoder_parts(sae)
    probe_weight = probe_weight.to(encoder.device)
    latents, cos_encoder = top_latents_by_encoder(probe_weight, encoder, top)
    cos_decoder = cosine_similarity_matrix(probe_weight, sae.W_dec).gather(1, latents)
    scores = latent_scores(x.to(encoder.device), encoder, bias, latents, threshold).cpu()
    ranks = latents.shape[1]
    of_latents = binary_metrics(
        scores.flatten(1), y.repeat_interleave(ranks, dim=1), threshold=LATENT_DECISION_THRESHOLD
    )
    of_probe = binary_metrics(probe_logits, y)
    occurs = y.any(dim=0)
    table = pd.DataFrame(
        {
            "label": [name for name in class_names for _ in range(ranks)],
            "rank": list(range(ranks)) * len(class_names),
            "latent": latents.flatten().tolist(),
            "cos_encoder": cos_encoder.flatten().tolist(),
            "cos_decoder": cos_decoder.flatten().tolist(),
            **{name: getattr(of_latents, name).tolist() for name in ("f1", "precision", "recall", "auroc")},
            **{
                f"probe_{name}": getattr(of_probe, name).repeat_interleave(ranks).tolist()
                for name in ("f1", "precision", "recall", "auroc")
            },
        }
    )
    return table[occurs.repeat_interleave(ranks).tolist()].reset_index(drop=True)
