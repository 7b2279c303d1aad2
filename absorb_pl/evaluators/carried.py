"""What latents other than a feature's own carry of it: the evidence of `absorb-pl-1`, from cached rows alone."""

from typing import Any

import pandas as pd
import torch
from torch import Tensor

from absorb_pl.evaluators.sae_probing import EvaluationRows
from absorb_pl.functional.carried import aligned_latents, of_other_classes, usual_part
from absorb_pl.functional.precision import at_least_float32
from absorb_pl.functional.similarity import unit_rows
from absorb_pl.rules.evidence import Carried
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.portions import rows_at_once
from absorb_pl.saes.rows import encode_and_project, encode_rows
from absorb_pl.schema import CARRIED, dtypes

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
    columns: dict[str, list[Any]] = {name: [] for name in CARRIED}
    for row in letters.to_dict("records"):
        label, tracking = str(row["label"]), int(row["tracking_latent"])
        c = rows.class_names.index(label)
        words = rows.seen[classes[rows.seen] == c]
        others = (classes != c).nonzero().squeeze(1)
        others = others[:: -(-len(others) // _MOST_OTHERS) or 1]
        own = aligned_latents(decoder, tracking, evidence.min_alignment)
        elsewhere = of_other_classes(fired, c)
        elsewhere[own] = False
        counted = ~elsewhere
        counted[own] = False
        direction = unit_rows(decoder[tracking][None])[0]
        parts = [
            _written(sae, rows.x[part], direction, own, counted, elsewhere, evidence.stored_absorbers)
            for part in torch.cat([words, others]).split(chunk)
        ]
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if len(others):
            # What is along the direction without the feature: neither its own latents nor those of other classes count.
            absent = found["feature_size"] - found["own_part"] - found["left_out"]
            found["feature_size"] = found["feature_size"] - absent[len(words) :].mean()
            found["others_part"] = found["others_part"] - found["others_part"][len(words) :].mean()
        cosines = (unit_rows(decoder) @ direction).cpu()
        kept = {name: values[: len(words)] for name, values in found.items()}
        columns["row"] += rows.index[words].tolist()
        columns["label"] += [label] * len(words)
        columns["own_latents"] += [own] * len(words)
        usual = usual_part(kept["feature_size"], kept["own_part"], kept["main_max"])
        columns["usual_part"] += [usual] * len(words)
        for name, values in _listed(kept, cosines).items():
            columns[name] += values
    table = pd.DataFrame(columns).astype(dtypes(CARRIED))
    return table.sort_values("row", ignore_index=True)


def _fired(sae: SparseAutoencoder, rows: EvaluationRows, classes: Tensor, chunk: int) -> Tensor:
    """On how many words of each class a latent fires, `[classes, latents]`."""
    fired = torch.zeros(len(rows.class_names), len(sae.W_dec), dtype=torch.long)
    for part in torch.arange(len(rows.x)).split(chunk):
        fired.index_add_(0, classes[part], (encode_rows(sae, rows.x[part]) != 0).long().cpu())
    return fired


def _written(
    sae: SparseAutoencoder,
    x: Tensor,
    direction: Tensor,
    own: list[int],
    counted: Tensor,
    elsewhere: Tensor,
    most: int,
) -> dict[str, Tensor]:
    """What latents write along a direction at each word, in all and by the strongest of the others."""
    latents, written = encode_and_project(sae, x, direction)
    by_others = torch.where(counted.to(written.device), written, 0.0)
    strongest = by_others.topk(max(2, min(most, by_others.shape[1])), dim=1)
    return {
        "feature_size": (x.to(direction) @ direction).double().cpu(),
        "left_out": written[:, elsewhere.to(written.device)].sum(dim=1, dtype=torch.float64).cpu(),
        "own_part": written[:, own].sum(dim=1, dtype=torch.float64).cpu(),
        "others_part": by_others.sum(dim=1, dtype=torch.float64).cpu(),
        "main_activation": latents[:, own].sum(dim=1).cpu(),
        "main_max": latents[:, own].abs().amax(dim=1).cpu(),
        "latents": strongest.indices.cpu(),
        "parts": strongest.values.cpu(),
    }


def _listed(found: dict[str, Tensor], cosines: Tensor) -> dict[str, list[Any]]:
    """The columns of the table; carriers without latents that write nothing."""
    latents, parts = found["latents"], found["parts"]
    counts = (parts > 0).sum(dim=1).tolist()
    return {
        **{
            name: found[name].tolist()
            for name in ("feature_size", "own_part", "others_part", "main_activation", "main_max")
        },
        "top_latent": latents[:, 0].tolist(),
        "top_score": parts[:, 0].tolist(),
        "top_probe_cos": cosines[latents[:, 0]].tolist(),
        "second_latent": latents[:, 1].tolist(),
        "second_score": parts[:, 1].tolist(),
        "carrier_latents": [each[:n] for each, n in zip(latents.tolist(), counts, strict=True)],
        "carrier_parts": [each[:n] for each, n in zip(parts.tolist(), counts, strict=True)],
    }
