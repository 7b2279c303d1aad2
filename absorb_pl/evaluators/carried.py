"""What latents other than a feature's own carry of it: the evidence of `absorb-pl-1`, from cached rows alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

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
from absorb_pl.saes.rows import encode_and_project, encode_and_sum, encode_rows
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
        One row per word, and class of it, with the columns of `absorb_pl.schema.CARRIED`, in order of `row`.
    """
    chunk = rows_at_once(len(sae.W_dec), matrices=_MATRICES)
    decoder = unit_rows(at_least_float32(sae.W_dec))
    every = torch.arange(len(rows.x))
    fired, several = _fired(sae, rows, every), rows.y.sum(dim=1) > 1
    features: dict[int, _Feature] = {}
    for row in letters.to_dict("records"):
        c, tracking = rows.class_names.index(row["label"]), int(row["tracking_latent"])
        own = aligned_latents(decoder, tracking, evidence.min_alignment)
        by_class, with_own = fired.by_class, every[rows.y[:, c] & several]  # words that have other classes too
        if len(with_own):
            by_class = by_class - _fired(sae, rows, with_own).by_class
        of_others = of_other_classes(by_class, fired.in_all, c)
        features[c] = _Feature(own, of_others.to(decoder.device), decoder[tracking])
    if not features:
        return joined_columns([], CARRIED)
    null = _written_elsewhere(sae, rows, features, chunk)
    found: dict[int, list[dict[str, Tensor]]] = {c: [] for c in features}
    seen = _seen_by_class(rows, features)
    for pairs in seen.split(chunk) if len(seen) else ():
        part, of_part = pairs.unbind(dim=1)
        along = torch.stack([features[c].direction for c in of_part.tolist()])
        latents, written = encode_and_project(sae, rows.x[part], along)
        sizes = (rows.x[part].to(along) * along).sum(dim=1)
        for c in of_part.unique().tolist():
            place = (of_part == c).nonzero().squeeze(1)
            words = _at_words(features[c], sizes[place], latents[place], written[place], evidence.stored_absorbers)
            found[c].append({"word": part[place], **words})
    parts = [
        _stored(
            rows,
            features[c],
            rows.class_names[c],
            {name: torch.cat([part[name] for part in of_class]) for name in of_class[0]},
            null[c],
            decoder,
        )
        for c, of_class in found.items()
        if of_class
    ]
    return joined_columns(parts, CARRIED).sort_values("row", kind="stable", ignore_index=True)


class _Feature(NamedTuple):
    """The feature of a class: its own latents, the latents of other classes, and the direction they write along."""

    own: list[int]
    of_others: Tensor
    direction: Tensor

    @property
    def left_out(self) -> Tensor:
        """Latents of other classes, but for those that are the feature's own."""
        left_out = self.of_others.clone()
        left_out[self.own] = False
        return left_out

    @property
    def counted(self) -> Tensor:
        """Latents that may carry the feature in place of its own."""
        counted = ~self.of_others
        counted[self.own] = False
        return counted


class _Fired(NamedTuple):
    """On how many words latents fire: of each class, `[classes, latents]`, and in all, `[latents]`."""

    by_class: Tensor
    in_all: Tensor


def _fired(sae: SparseAutoencoder, rows: EvaluationRows, places: Tensor) -> _Fired:
    by_class = torch.zeros(len(rows.class_names), len(sae.W_dec), dtype=torch.long)
    in_all = torch.zeros(len(sae.W_dec), dtype=torch.long)
    for part in places.split(rows_at_once(len(sae.W_dec))):
        fires = (encode_rows(sae, rows.x[part]) != 0).cpu()
        in_all += fires.sum(dim=0)
        by_class += (rows.y[part].T.double() @ fires.double()).long()
    return _Fired(by_class, in_all)


def _seen_by_class(rows: EvaluationRows, features: Mapping[int, _Feature]) -> Tensor:
    """Place and class of the words on which the linear probe sees the class, class by class."""
    pairs = rows.seen[torch.isin(rows.seen[:, 1], torch.tensor(list(features)))]
    return pairs[pairs[:, 1].argsort(stable=True)]


def _written_elsewhere(
    sae: SparseAutoencoder, rows: EvaluationRows, features: Mapping[int, _Feature], chunk: int
) -> dict[int, tuple[Tensor, Tensor]]:
    """Mean over words of other classes of what is along each feature without it, and of what others write of it."""
    directions = torch.stack([feature.direction for feature in features.values()])
    sample = torch.arange(len(rows.x))[:: -(-len(rows.x) // _MOST_OTHERS) or 1]
    others = ~rows.y[sample][:, list(features)]
    written_cl = torch.zeros(len(features), len(sae.W_dec), dtype=torch.float64, device=directions.device)
    size_c = torch.zeros(len(features), dtype=torch.float64)
    for part, counted in zip(sample.split(chunk), others.split(chunk), strict=True):
        x = rows.x[part].to(directions)
        written_cl += encode_and_sum(sae, x, directions, counted)
        size_c += ((x @ directions.T).double().cpu() * counted).sum(dim=0)
    counts = others.sum(dim=0).clamp(min=1)
    written_cl, size_c = written_cl / counts.to(written_cl)[:, None], size_c / counts
    found = {}
    for (c, feature), written, size in zip(features.items(), written_cl, size_c, strict=True):
        absent = size - (written[feature.own].sum() + written[feature.left_out].sum()).cpu()
        found[c] = absent, written[feature.counted].sum().cpu()
    return found


def _at_words(feature: _Feature, sizes: Tensor, latents: Tensor, written: Tensor, most: int) -> dict[str, Tensor]:
    """What latents write of a feature at each word: in all, and by the strongest of those that count."""
    by_others = torch.where(feature.counted, written, 0.0)
    strongest = by_others.topk(max(2, min(most, by_others.shape[1])), dim=1)
    own = latents[:, feature.own]
    found = {
        "feature_size": sizes.double(),
        "own_part": written[:, feature.own].sum(dim=1, dtype=torch.float64),
        "others_part": by_others.sum(dim=1, dtype=torch.float64),
        "main_activation": own.sum(dim=1),
        "main_max": own.abs().amax(dim=1),
        "latents": strongest.indices,
        "parts": strongest.values,
    }
    return {name: values.cpu() for name, values in found.items()}


def _stored(
    rows: EvaluationRows,
    feature: _Feature,
    label: str,
    found: dict[str, Tensor],
    null: tuple[Tensor, Tensor],
    decoder: Tensor,
) -> dict[str, Any]:
    """The columns of a class, less what is found without the feature; carriers without latents that write nothing."""
    latents, parts = found["latents"], found["parts"]
    size, others_part = found["feature_size"] - null[0], found["others_part"] - null[1]
    counts = (parts > 0).sum(dim=1).tolist()
    cosines = (decoder @ feature.direction).cpu()
    usual = usual_part(size, found["own_part"], found["main_max"])
    return {
        "row": rows.index[found["word"]].numpy(),
        **{
            name: [value] * len(counts)
            for name, value in {"label": label, "own_latents": feature.own, "usual_part": usual}.items()
        },
        "feature_size": size.numpy(),
        "others_part": others_part.numpy(),
        **{name: found[name].numpy() for name in ("own_part", "main_activation", "main_max")},
        "top_latent": latents[:, 0].numpy(),
        "top_score": parts[:, 0].numpy(),
        "top_probe_cos": cosines[latents[:, 0]].numpy(),
        "second_latent": latents[:, 1].numpy(),
        "second_score": parts[:, 1].numpy(),
        "carrier_latents": [each[:n] for each, n in zip(latents.tolist(), counts, strict=True)],
        "carrier_parts": [each[:n] for each, n in zip(parts.tolist(), counts, strict=True)],
    }
