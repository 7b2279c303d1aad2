"""Main latents and candidate words of each fold, found on the words that it does not hold out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from absorb_pl.evaluators.folds import Folds, ProbeOfFold
from absorb_pl.evaluators.sae_probing import EvaluationRows, SplitSettings, aligned_mains
from absorb_pl.evaluators.training import train_fold_ranking
from absorb_pl.functional.absorption import paper_candidates
from absorb_pl.functional.k_sparse import rank_latents, tracking_ranks
from absorb_pl.functional.metrics import f1_scores
from absorb_pl.functional.splits import WalkedMains, walked_main_latents
from absorb_pl.probes.fold_ranking import FoldRanking
from absorb_pl.probes.k_sparse import TRACKED_RANKS
from absorb_pl.probes.latents import encode_latents
from absorb_pl.probes.settings import KSparseSettings
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.portions import rows_at_once
from absorb_pl.saes.rows import encode_rows


@dataclass(frozen=True)
class FoldMains:
    """What was found of one SAE, fold by fold.

    Attributes:
        letters: One row per repeat, fold and class: `repeat, fold, label, main_latents, tracking_latent, num_words,
            num_probe_true_positives, num_candidates, sample_portion, probe_f1, sae_fires`, of the words held out.
        candidates: The words at which gradients are to be computed, as the rule `paper` wants them:
            `repeat, fold, row, label`.
    """

    letters: pd.DataFrame
    candidates: pd.DataFrame

    @property
    def to_score(self) -> pd.DataFrame:
        """The candidate words of all folds, each with its class once: `row, label`."""
        return self.candidates[["row", "label"]].drop_duplicates(ignore_index=True)

    def of_fold(self, repeat: int, fold: int) -> "FoldMains":
        """What was found for one fold.

        Args:
            repeat: Number of the repeat.
            fold: Number of the fold.
        """
        parts = [
            table[(table["repeat"] == repeat) & (table["fold"] == fold)] for table in (self.letters, self.candidates)
        ]
        return FoldMains(*parts)


def fold_mains(
    sae: SparseAutoencoder,
    folds: Folds,
    probe_of_fold: ProbeOfFold,
    k_sparse: KSparseSettings,
    splits: SplitSettings,
    device: torch.device | str = "cpu",
) -> FoldMains:
    """Find main latents and candidate words of one SAE, each fold's without the words that it holds out.

    Args:
        sae: The SAE, in the scale of unit-norm decoder rows.
        folds: The labelled rows and how they are held out.
        probe_of_fold: Gives the linear probes.
        k_sparse: Training of the k-sparse probes.
        splits: How main latents and candidate words are found.
        device: Where to compute.
    """
    firing = _firing(sae, folds.x)
    letters: list[pd.DataFrame] = []
    candidates: list[pd.DataFrame] = []
    for repeat in range(folds.settings.repeats):
        ranking = train_fold_ranking(
            sae, folds.x, folds.y.long(), folds.held_out(repeat), k_sparse, folds.seed + repeat, device, firing
        )
        found = [
            _of_fold(sae, rows, _chosen_latents(sae, ranking, fold, folds.x[train], folds.y[train], splits), splits)
            for fold, (train, rows) in enumerate(folds.judged(repeat, probe_of_fold))
        ]
        eligible = _stacked([words for _, words in found], repeat)
        sampled = _sampled(eligible, len(folds.x), splits)
        portions = (sampled.groupby("label").size() / eligible.groupby("label").size()).to_dict()
        of_repeat = _stacked([table for table, _ in found], repeat)
        letters.append(of_repeat.assign(sample_portion=of_repeat["label"].map(portions).fillna(1.0)))
        candidates.append(sampled)
    table = pd.concat(letters, ignore_index=True).assign(sae_fires=len(firing) > 0)
    return FoldMains(table, pd.concat(candidates, ignore_index=True))


class _Chosen(NamedTuple):
    """What was chosen for a class without the words that are held out."""

    walked: WalkedMains
    tracking_latent: int


def _firing(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    """Latents that fire on some word."""
    parts = [(encode_rows(sae, part) != 0).any(dim=0) for part in x.split(rows_at_once(len(sae.W_dec)))]
    return torch.stack(parts).any(dim=0).nonzero().squeeze(1).cpu()


@torch.no_grad()
def _chosen_latents(
    sae: SparseAutoencoder, ranking: FoldRanking, fold: int, x: Tensor, y: Tensor, splits: SplitSettings
) -> dict[int, _Chosen]:
    """Main latents and tracking latents of the classes, by number, from the words that a fold does not hold out."""
    classes = ranking.learnable[fold].nonzero().squeeze(1).cpu()
    count = min(max(splits.max_k, TRACKED_RANKS), len(sae.W_dec))
    ids = rank_latents(ranking.weight[fold][classes].cpu(), count)
    activations = encode_latents(sae, x, ids.flatten()).unflatten(1, ids.shape).transpose(0, 1)
    targets = y[:, classes].bool()
    mains = walked_main_latents(activations, targets, ids, splits.f1_jump, splits.max_k)
    ranks, _ = tracking_ranks(activations[:, :, :TRACKED_RANKS], targets)
    tracking = ids.gather(1, ranks[:, None]).squeeze(1).tolist()
    return {c: _Chosen(own, latent) for c, own, latent in zip(classes.tolist(), mains, tracking, strict=True)}


def _of_fold(
    sae: SparseAutoencoder, rows: EvaluationRows, chosen: Mapping[int, _Chosen], splits: SplitSettings
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The held-out words of each class, counted, with what was chosen for the class; and its candidate words."""
    f1, labels = f1_scores(rows.probe_logits, rows.y), rows.class_names
    present = [c for c in chosen if bool(rows.y[:, c].any())]
    mains = aligned_mains(sae, rows, {labels[c]: chosen[c].walked.latents for c in present}, splits)
    walked = [torch.tensor(chosen[c].walked.latents) for c in present]
    ids = torch.cat(walked) if walked else torch.zeros(0, dtype=torch.long)
    activations = encode_latents(sae, rows.x, ids).split([len(latents) for latents in walked], dim=1)
    letters, candidates = [], [pd.DataFrame({"row": [], "label": []}).astype({"row": "int64", "label": "str"})]
    for c, of_class in zip(present, activations, strict=True):
        (latents, weight, bias), tracking = chosen[c]
        own = rows.y[:, c].nonzero().squeeze(1)
        probe_logits, fired = rows.probe_logits[own, c], of_class[own]
        kept = fired[:, [latents.index(latent) for latent in mains[labels[c]]]]
        eligible = paper_candidates(
            probe_logits, fired.double() @ weight + bias, kept.abs().sum(dim=1), silent=splits.silent
        )
        letters.append(
            {
                "label": labels[c],
                "main_latents": mains[labels[c]],
                "tracking_latent": tracking,
                "num_words": len(own),
                "num_probe_true_positives": int((probe_logits > 0).sum()),
                "num_candidates": int(eligible.sum()),
                "probe_f1": float(f1[c]),
            }
        )
        words = pd.DataFrame({"row": rows.index[own[eligible]].tolist(), "label": labels[c]})
        candidates.append(words.astype({"row": "int64", "label": "str"}))
    return pd.DataFrame(letters), pd.concat(candidates, ignore_index=True)


def _stacked(tables: list[pd.DataFrame], repeat: int) -> pd.DataFrame:
    """The tables of a repeat's folds below each other."""
    numbered = [table.assign(repeat=repeat, fold=fold) for fold, table in enumerate(tables)]
    return pd.concat(numbered, ignore_index=True)


def _sampled(candidates: pd.DataFrame, num_words: int, splits: SplitSettings) -> pd.DataFrame:
    """The candidate words of a repeat, of each class no more than the settings allow.

    Words come in one drawn order in all repeats, so that these share most of the words whose gradients are computed.
    """
    order = torch.randperm(num_words, generator=torch.Generator().manual_seed(splits.seed))
    place = torch.empty_like(order).scatter_(0, order, torch.arange(num_words))
    drawn = candidates.assign(place=place[torch.tensor(candidates["row"].to_numpy(int))].numpy()).sort_values("place")
    kept = drawn.groupby("label", sort=False).head(splits.max_words_per_letter)
    return kept.drop(columns="place").sort_values("row", ignore_index=True)
