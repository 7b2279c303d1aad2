"""Projections on the probe: what the rules of SAEBench are decided on, from cached residual rows alone."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from absorb_pl.evaluators.sae_probing import EvaluationRows
from absorb_pl.functional.precision import at_least_float32
from absorb_pl.functional.projection import ProjectionScores, probe_projection, projection_scores
from absorb_pl.functional.similarity import cosine_similarity_matrix, unit_rows
from absorb_pl.rules.evidence import Projections
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.portions import rows_at_once
from absorb_pl.saes.rows import encode_and_project
from absorb_pl.schema import PROJECTIONS, Columns, dtypes

_FIELDS = {"top_score": "top_projection", "second_score": "second_projection"}
_LISTS = ("absorber_latents", "absorber_projections", "absorber_probe_cos")
_MATRICES = 8
"""Matrices of words × latents that are held at once, with what the backward pass keeps."""


@torch.no_grad()
def score_projections(
    sae: SparseAutoencoder,
    x: Float[Tensor, "words d_model"],
    rows: Sequence[int],
    labels: Sequence[str],
    probe_weight: Float[Tensor, "classes d_model"],
    class_names: Sequence[str],
    main_latents: Mapping[str, Sequence[int]],
    *,
    stored_absorbers: int = 5,
) -> pd.DataFrame:
    """Project what words' latents contribute to the reconstruction on their class's probe.

    Contributions are taken through the SAE's own `decode` (see `saes.encode_and_project`), so that decoder norms,
    also those that activations hold already, and norms of the input count as they do in the reconstruction.

    Args:
        sae: The SAE.
        x: Residual rows at the words.
        rows: Number of each word in the task.
        labels: Class of each word.
        probe_weight: Weights of the linear probe.
        class_names: Names of the classes.
        main_latents: The main latents of each class.
        stored_absorbers: Most absorbers that will be asked for.

    Returns:
        One row per word with the columns of `absorb_pl.schema.PROJECTIONS`, classes in order.
    """
    device = sae.W_dec.device
    directions = at_least_float32(probe_weight.to(device))
    cosines = cosine_similarity_matrix(directions, at_least_float32(sae.W_dec))
    units = unit_rows(directions)
    classes = torch.tensor([class_names.index(label) for label in labels], dtype=torch.long)
    parts: list[dict[str, Any]] = []
    order, chunk = classes.argsort(stable=True), rows_at_once(len(sae.W_dec), matrices=_MATRICES)
    for part in order.split(chunk) if len(order) else ():
        inputs, of_part = x[part].to(device), classes[part]
        latents, contributions = encode_and_project(sae, inputs, units[of_part.to(device)])
        for c in map(int, of_part.unique()):
            own = (of_part == c).nonzero().squeeze(1)
            scores = projection_scores(
                latents[own],
                probe_projection(at_least_float32(inputs[own]), directions[c]),
                cosines[c],
                list(main_latents[class_names[c]]),
                max_absorbers=stored_absorbers,
                latent_projections=contributions[own],
            )
            numbers = [rows[number] for number in part[own].tolist()]
            parts.append({"row": numbers, "label": [class_names[c]] * len(own), **_stored(scores)})
    return joined_columns(parts, PROJECTIONS)


def gather_projections(
    sae: SparseAutoencoder, rows: EvaluationRows, letters: pd.DataFrame, evidence: Projections
) -> pd.DataFrame:
    """Project the held-out words on which the linear probe sees the class, of the classes that are asked for.

    Args:
        sae: The SAE.
        rows: The held-out words.
        letters: From `evaluate_sae`: `label, main_latents`.
        evidence: What is to be kept of each word.

    Returns:
        One row per word, and class of it, with the columns of `absorb_pl.schema.PROJECTIONS`, in order of `row`.
    """
    asked = torch.tensor([rows.class_names.index(label) for label in letters["label"]], dtype=torch.long)
    places, classes = rows.seen[torch.isin(rows.seen[:, 1], asked)].unbind(dim=1)
    found = score_projections(
        sae,
        rows.x[places],
        rows.index[places].tolist(),
        [rows.class_names[c] for c in classes.tolist()],
        rows.probe_weight,
        rows.class_names,
        {row["label"]: [int(latent) for latent in row["main_latents"]] for row in letters.to_dict("records")},
        stored_absorbers=evidence.stored_absorbers,
    )
    return found.sort_values("row", kind="stable", ignore_index=True)


def joined_columns(parts: Sequence[Mapping[str, Any]], columns: Columns) -> pd.DataFrame:
    """Put parts of a table together; a table each would take longer than what is in it.

    Args:
        parts: Values of each column, as lists or arrays.
        columns: The columns.
    """
    found = {name: list(chain.from_iterable(part[name] for part in parts)) for name in columns}
    return pd.DataFrame(found).astype(dtypes(columns))


def _stored(scores: ProjectionScores) -> dict[str, Any]:
    """What is stored of each word; absorbers without their padding."""
    found: dict[str, Any] = {}
    counts = (scores.absorber_latents >= 0).sum(dim=1).tolist()
    for name in PROJECTIONS.keys() - {"row", "label"}:
        values = getattr(scores, _FIELDS.get(name, name)).cpu()
        kept = zip(values.tolist(), counts, strict=True) if name in _LISTS else ()
        found[name] = [one[:n] for one, n in kept] if name in _LISTS else values.numpy()
    return found
