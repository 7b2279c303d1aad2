"""The data frame of the absorption experiment: one row per judged word, from results or from the stages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
import torch
from typing_extensions import override

from absorb_pl.evaluators.calculator import AbsorptionResult, FeatureScore
from absorb_pl.experiments.common import SaeInfo
from absorb_pl.experiments.runs import Frames, FrameStage
from absorb_pl.functional.similarity import cosine_similarity_matrix
from absorb_pl.probes.latents import encode_latents
from absorb_pl.rules.rule import AbsorptionRule
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.study.stages import StudyStages

COLUMNS = (
    "letter",
    "token",
    "prompt",
    "sample_portion",
    "num_probe_true_positives",
    "split_feats",
    "split_feat_acts",
    "split_feat_probe_cos",
    "top_ablation_feat",
    "top_ablation_score",
    "top_ablation_feat_probe_cos",
    "second_ablation_feat",
    "second_ablation_score",
    "second_ablation_feat_probe_cos",
    "ablation_scores",
    "ablation_feats",
    "ablation_feat_acts",
    "ablation_feat_probe_cos",
    "is_absorption",
)
"""Columns of the data frame, one row per judged word."""


def frame_row(letter: str, portion: float, true_positives: int, result: AbsorptionResult) -> dict[str, Any]:
    """A row of the data frame.

    Args:
        letter: The word's letter.
        portion: Judged words of the letter ÷ candidates.
        true_positives: Words of the letter that the linear probe tells.
        result: What was found on the word.

    Returns:
        Values by the names of `COLUMNS`.
    """
    mains, tops = result.main_feature_scores, result.top_ablation_feature_scores
    places = {
        f"{place}_ablation_{name}": value
        for place, top in zip(("top", "second"), tops, strict=False)
        for name, value in (
            ("feat", top.feature_id),
            ("score", top.ablation_score),
            ("feat_probe_cos", top.probe_cos_sim),
        )
    }
    return {
        "letter": letter,
        "token": result.word,
        "prompt": result.prompt,
        "sample_portion": portion,
        "num_probe_true_positives": true_positives,
        "split_feats": [main.feature_id for main in mains],
        "split_feat_acts": [main.activation for main in mains],
        "split_feat_probe_cos": [main.probe_cos_sim for main in mains],
        **places,
        "ablation_scores": [top.ablation_score for top in tops],
        "ablation_feats": [top.feature_id for top in tops],
        "ablation_feat_acts": [top.activation for top in tops],
        "ablation_feat_probe_cos": [top.probe_cos_sim for top in tops],
        "is_absorption": result.is_absorption,
    }


class AbsorptionFrameStage(FrameStage):
    """Makes `layer_L_width_W_l0_N.parquet` of each SAE from the scores of the absorption stage.

    Args:
        stages: The stages of the study.
        infos: What the caller says of SAEs.
        rule: The rule that judges the words; one on gradients.
    """

    name = "feature_absorption"

    def __init__(self, stages: StudyStages, infos: Mapping[str, SaeInfo], rule: AbsorptionRule) -> None:
        super().__init__(stages, infos)
        self.rule = rule

    @override
    def basis(self, unit: str) -> dict[str, Any]:
        return {
            "probing": self.stages.probing.identity(unit),
            "rule": self.rule.name,
            "settings": asdict(self.rule.settings),
        }

    @override
    def frames(self, unit: str, sae: SparseAutoencoder, info: SaeInfo) -> Frames:
        words = self.rule.judge(self.stages.evidence(unit, self.rule.needs))
        letters = {row["label"]: row for row in self.stages.probing.result(unit).letters.to_dict("records")}
        rows = []
        for letter, of_letter in words.groupby("label", sort=False):
            about = letters[letter]
            of_mains = self._mains(unit, sae, str(letter), list(map(int, about["main_latents"])), of_letter)
            rows += [
                frame_row(str(letter), about["sample_portion"], about["num_probe_true_positives"], result)
                for result in _results(of_letter.to_dict("records"), of_mains)
            ]
        frame = pd.DataFrame(rows, columns=list(COLUMNS))
        return {f"layer_{info.layer}_width_{info.width}_l0_{info.l0:g}.parquet": frame}

    def _mains(
        self, unit: str, sae: SparseAutoencoder, letter: str, latents: Sequence[int], words: pd.DataFrame
    ) -> list[list[FeatureScore]]:
        """Score of each main latent at each word."""
        subject = self.stages.subject
        hook = subject.saes[unit].hook_name
        ids = torch.tensor(latents)
        weight, _ = self.stages.probes.weights(hook)
        decoder = sae.W_dec.detach()
        direction = weight[subject.words.task.classes.index(letter), None].to(decoder.device)
        cosines = cosine_similarity_matrix(direction, decoder[ids.to(decoder.device)])[0].tolist()
        activations = encode_latents(sae, self.stages.activations.rows(hook, torch.tensor(words["row"].tolist())), ids)
        return [
            [
                FeatureScore(latent, activation, float(score), cosine)
                for latent, activation, score, cosine in zip(ids.tolist(), at_word, scores, cosines, strict=True)
            ]
            for at_word, scores in zip(activations.tolist(), words["main_scores"], strict=True)
        ]


def _results(rows: Iterable[Mapping[Any, Any]], of_mains: Iterable[list[FeatureScore]]) -> list[AbsorptionResult]:
    return [
        AbsorptionResult(
            word=row["word"],
            prompt=row["prompt"],
            main_feature_scores=mains,
            top_ablation_feature_scores=[
                FeatureScore(int(latent), float(activation), float(score), float(cosine))
                for latent, activation, score, cosine in zip(
                    row["latents"], row["activations"], row["scores"], row["probe_cos"], strict=True
                )
            ],
            is_absorption=bool(row["is_absorption"]),
        )
        for row, mains in zip(rows, of_mains, strict=True)
    ]
