"""The stages of a study, to read what they found."""

from collections.abc import Mapping
from dataclasses import dataclass

from absorb_pl.saes import SaeSource
from absorb_pl.study.absorption_stage import AbsorptionStage
from absorb_pl.study.probing_stages import LinearProbeStage, ProbeData, SaeProbingStage
from absorb_pl.study.projection_stage import ProjectionStage


@dataclass(frozen=True)
class StudyStages:
    """The stages of a study of one model; those that have run give what they found.

    Attributes:
        saes: The SAEs by name, controls among them.
        data: The words, their prompts, labels and activations, and the split.
        probes: The linear probes: `weights(hook)`, `curve(hook)`.
        probing: The k-sparse probes, main latents and candidate words: `result(sae)`, `probes_of(sae)`, `curve(sae)`.
        projections: Scores of SAEBench's rules: `table(sae)`.
        absorption: Scores of the paper's rules: `table(sae, positive_token)`.
    """

    saes: Mapping[str, SaeSource]
    data: ProbeData
    probes: LinearProbeStage
    probing: SaeProbingStage
    projections: ProjectionStage
    absorption: AbsorptionStage
