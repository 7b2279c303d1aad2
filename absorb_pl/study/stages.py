"""The stages of a study, in their order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pandas as pd

from absorb_pl.rules.evidence import Carried, Evidence, Gradients, Projections
from absorb_pl.rules.rule import AbsorptionRule
from absorb_pl.study.config import StageName, StudyConfig
from absorb_pl.study.crossfit_stage import CrossfitStage
from absorb_pl.study.evidence_stages import GradientStage, ProjectionStage
from absorb_pl.study.firing_stage import FiringStage
from absorb_pl.study.fold_stages import FoldGradientStage, FoldMainsStage, FoldProbeStage
from absorb_pl.study.probing_stages import ActivationStage, LinearProbeStage, ProbeData, SaeProbingStage
from absorb_pl.study.shuffle_stage import ShuffleStage
from absorb_pl.study.stage import Stage
from absorb_pl.study.subject import Subject


@dataclass(frozen=True)
class StudyStages:
    """The stages of a study of one model; those that have run give what they found.

    Attributes:
        subject: The model, the SAEs by name, and the prompts.
        activations: Activations: `rows(hook, index)`.
        probes: The linear probes: `weights(hook)`, `curve(hook)`, `held_out(hook)`.
        probing: The k-sparse probes, main latents and candidate words: `result(sae)`, `probes_of(sae)`, `curve(sae)`.
        projections: Evidence that cached activations are enough for: `table(sae, evidence)`; None if no rule needs it.
        gradients: Evidence of the paper's rules: `table(sae, evidence)`; None if no rule needs it.
        firings: Where the latents fire that the tables name: `table(sae)`.
        shuffles: Rates of copies with shuffled decoder rows: `table(sae)`; None if they are not asked for.
        crossfit: Rates over words that were judged out of sample: `tables(sae)`; None if they are not asked for.
    """

    subject: Subject
    activations: ActivationStage
    probes: LinearProbeStage
    probing: SaeProbingStage
    projections: ProjectionStage | None
    gradients: GradientStage | None
    firings: FiringStage
    shuffles: ShuffleStage | None
    crossfit: CrossfitStage | None

    @classmethod
    def of(cls, config: StudyConfig, subject: Subject, rules: Sequence[AbsorptionRule], run_dir: Path) -> "StudyStages":
        """The stages that a study needs; none has run yet."""
        cache_dir, words = Path(config.cache_dir), subject.words
        needs = dict.fromkeys(rule.needs for rule in rules)  # all processes must go through units in one order
        activations = ActivationStage(cache_dir, words, subject.identities, config.activation_dtype)
        data = ProbeData(activations, config.test_fraction, config.seed)
        probes = LinearProbeStage(cache_dir, data, config.linear_probe)
        probing = SaeProbingStage(cache_dir, subject.saes, probes, config.k_sparse, config.splits)
        projected = [each for each in needs if isinstance(each, Projections | Carried)]
        scored = [each for each in needs if isinstance(each, Gradients)]
        projections = ProjectionStage(cache_dir, words, probing, projected) if projected else None
        scoring = (config.run_batch_size, config.saes_per_pass)
        gradients = GradientStage(cache_dir, run_dir, words, probing, scored, *scoring) if scored else None
        crossfit = None
        if config.crossfit:
            fold_probes = FoldProbeStage(cache_dir, probes, config.crossfit)
            mains = FoldMainsStage(cache_dir, subject.saes, fold_probes, config.k_sparse, config.splits)
            of_folds = FoldGradientStage(cache_dir, run_dir, words, mains, scored, *scoring) if scored else None
            crossfit = CrossfitStage(cache_dir, mains, of_folds, rules, config.rates)
        return cls(
            subject,
            activations,
            probes,
            probing,
            projections,
            gradients,
            FiringStage(
                cache_dir, probing, lambda sae: [_gathered(sae, each, projections, gradients) for each in needs]
            ),
            ShuffleStage(cache_dir, probing, rules, config.shuffles, config.rates) if config.shuffles else None,
            crossfit,
        )

    def of_hooks(self, until: StageName) -> list[Stage]:
        """The stages that run once per hook, up to one."""
        return _up_to(until, [self.activations, self.probes])

    def of_saes(self, until: StageName) -> list[Stage]:
        """The stages that run once per SAE, up to one."""
        gathered = [self.probing, self.projections, self.gradients, self.firings]
        return _up_to(until, [*gathered, self.shuffles, self.crossfit])

    def evidence(self, sae: str, needs: Evidence) -> pd.DataFrame:
        """What has been gathered on an SAE's words."""
        return _gathered(sae, needs, self.projections, self.gradients)

    def one_main(self, sae: str, needs: Evidence) -> pd.DataFrame | None:
        """The same with each class's first main latent alone, for rules on projections."""
        return self.projections.one_main(sae, needs) if self.projections and isinstance(needs, Projections) else None


def _gathered(
    sae: str, needs: Evidence, projections: ProjectionStage | None, gradients: GradientStage | None
) -> pd.DataFrame:
    if isinstance(needs, Gradients):
        assert gradients is not None
        return gradients.table(sae, needs)
    assert projections is not None
    return projections.table(sae, needs)


def _up_to(until: StageName, stages: Sequence[Stage | None]) -> list[Stage]:
    order = get_args(StageName)
    last = order.index(until)
    return [stage for stage in stages if stage is not None and order.index(stage.title.replace(" ", "-")) <= last]
