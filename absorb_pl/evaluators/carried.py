"""What latents other than a feature's own carry of it: the evidence of `absorb-pl-1`, from cached rows alone."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from absorb_pl.evaluators.projections import joined_columns
from absorb_pl.evaluators.sae_probing import EvaluationRows
from absorb_pl.functional.carried import aligned_latents, of_other_classes, usual_part
from absorb_pl.functional.precision import at_least_float32
from absorb_pl.functional.similarity import unit_rows
from absorb_pl.rules.evidence import Carried
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.portions import rows_at_once
from absorb_pl.saes.rows import encode_and_project, encode_rows
from absorb_pl.schema import CARRIED

_MATRICES = 8
"""Matrices of words × latents that are held at once, with what the backward pass keeps."""
_MOST_OTHERS = 1_000
"""Words of other classes that the mean is taken over, evenly spread if there are more."""


@torch.no_grad()
def gather_carried(
    sae: SparseAutoencoder, rows: EvaluationRows, letters: pd.DataFrame, evidence: Carried
) -> pd.DataFrame:
    """Measure at the held-out words what latents other than a feature's own write along its direction.

    Args:
        sae: The SAE.
        rows: The held-out words; the linear probe says which are scored.
        letters: From `evaluate_sae`: `label, tracking_latent`.
        evidence: Which latents are a feature's own, and what is to be kept of each word.

    Returns:
        One row per word with the columns of `absorb_pl.schema.CARRIED`, in order of `row`.
    """
    chunk = rows_at_once(len(sae.W_dec), matrices=_MATRICES)
    classes = rows.y.int().argmax(dim=1)
    fired = _fired(sae, rows, classes, chunk)
    decoder = at_least_float32(sae.W_dec)
    parts: list[dict[str, Any]] = []
    for row in letters.to_dict("records"):
        label, tracking = str(row["label"]), int(row["tracking_latent"])
        c = rows.class_names.index(label)
        words = rows.seen[classes[rows.seen] == c]
        own = aligned_latents(decoder, tracking, evidence.min_alignment)
        elsewhere = of_other_classes(fired, c)
        direction = unit_rows(decoder[tracking][None])[0]
        write = partial(_written, sae, direction, own, elsewhere)
        found = _joined(write(rows.x[part], evidence.stored_absorbers) for part in words.split(chunk))
        others = (classes != c).nonzero().squeeze(1)
        others = others[:: -(-len(others) // _MOST_OTHERS) or 1]
        if len(others):
            null = _joined(write(rows.x[part]) for part in others.split(chunk))
            # What is along the direction without the feature: neither its own latents nor those of other classes count.
            absent = null["feature_size"] - null["own_part"] - null["left_out"]
            found["feature_size"] = found["feature_size"] - absent.mean()
            found["others_part"] = found["others_part"] - null["others_part"].mean()
        usual = usual_part(found["feature_size"], found["own_part"], found["main_max"])
        about = {"label": label, "own_latents": own, "usual_part": usual}
        repeated = {name: [value] * len(words) for name, value in about.items()}
        cosines = (unit_rows(decoder) @ direction).cpu()
        parts.append({"row": rows.index[words].tolist(), **repeated, **_stored(found, cosines)})
    return joined_columns(parts, CARRIED).sort_values("row", ignore_index=True)


def _fired(sae: SparseAutoencoder, rows: EvaluationRows, classes: Tensor, chunk: int) -> Tensor:
    """On how many words of each class a latent fires, `[classes, latents]`."""
    fired = torch.zeros(len(rows.class_names), len(sae.W_dec), dtype=torch.long)
    for part in torch.arange(len(rows.x)).split(chunk):
        fired.index_add_(0, classes[part], (encode_rows(sae, rows.x[part]) != 0).long().cpu())
    return fired


def _written(
    sae: SparseAutoencoder, direction: Tensor, own: list[int], elsewhere: Tensor, x: Tensor, strongest: int = 0
) -> dict[str, Tensor]:
    """What latents write along a direction at each word: in all, and by the strongest of those that count."""
    latents, written = encode_and_project(sae, x, direction)
    left_out = elsewhere.to(written.device)
    left_out[own] = False
    counted = ~left_out
    counted[own] = False
    by_others = torch.where(counted, written, 0.0)
    found = {
        "feature_size": (x.to(direction) @ direction).double(),
        "left_out": written[:, left_out].sum(dim=1, dtype=torch.float64),
        "own_part": written[:, own].sum(dim=1, dtype=torch.float64),
        "others_part": by_others.sum(dim=1, dtype=torch.float64),
    }
    if strongest:
        most = by_others.topk(max(2, min(strongest, by_others.shape[1])), dim=1)
        found |= {
            "main_activation": latents[:, own].sum(dim=1),
            "main_max": latents[:, own].abs().amax(dim=1),
            "latents": most.indices,
            "parts": most.values,
        }
    return {name: values.cpu() for name, values in found.items()}


def _joined(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    found = list(parts)
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def _stored(found: dict[str, Tensor], cosines: Tensor) -> dict[str, Any]:
    """What is stored of each word; carriers without latents that write nothing."""
    latents, parts = found["latents"], found["parts"]
    counts = (parts > 0).sum(dim=1).tolist()
    plain = ("feature_size", "own_part", "others_part", "main_activation", "main_max")
    return {
        **{name: found[name].numpy() for name in plain},
        "top_latent": latents[:, 0].numpy(),
        "top_score": parts[:, 0].numpy(),
        "top_probe_cos": cosines[latents[:, 0]].numpy(),
        "second_latent": latents[:, 1].numpy(),
        "second_score": parts[:, 1].numpy(),
        "carrier_latents": [each[:n] for each, n in zip(latents.tolist(), counts, strict=True)],
        "carrier_parts": [each[:n] for each, n in zip(parts.tolist(), counts, strict=True)],
    }
