"""The stages that gather evidence: projections from cached activations, and gradients from the model."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from typing_extensions import override

from absorb_pl.data.prompt_datamodule import PromptDataModule
from absorb_pl.data.trainers import TrainerFactory
from absorb_pl.engine.run_size import RunSize
from absorb_pl.errors import CacheCorruptedError
from absorb_pl.evaluators.absorption import AbsorptionEvaluator, AbsorptionInputs
from absorb_pl.evaluators.evaluation import gather_from_rows, gather_one_main, with_texts
from absorb_pl.evaluators.gradients import GradientEvaluator
from absorb_pl.evaluators.writers import PredictionTableWriter
from absorb_pl.rules.evidence import Carried, Evidence, Gradients, Projections
from absorb_pl.saes.source import SaeSource
from absorb_pl.study.probing_stages import SaeProbingStage
from absorb_pl.study.stage import Files, Stage


class ProjectionStage(Stage):
    """Gathers what cached activations say of the held-out words on which the linear probe sees the class.

    A unit is an SAE with one kind of evidence (see `units`).

    Args:
        cache_dir: Root of the cache.
        words: The prompts.
        probing: The finished stage that found main latents.
        evidence: What is to be gathered, for several rules.
    """

    name = "projections"
    title = "projections"

    def __init__(
        self,
        cache_dir: Path,
        words: PromptDataModule,
        probing: SaeProbingStage,
        evidence: Iterable[Projections | Carried],
    ) -> None:
        super().__init__(cache_dir)
        self.words, self.probing = words, probing
        kinds = list(dict.fromkeys(evidence))
        self._most = max((each.stored_absorbers for each in kinds if isinstance(each, Projections)), default=0)
        self._units: dict[str, tuple[str, Projections | Carried]] = {
            self._unit(sae, each): (sae, Projections(self._most) if isinstance(each, Projections) else each)
            for sae in probing.saes
            for each in kinds
        }

    @override
    def identity(self, unit: str) -> dict[str, Any]:
        sae, evidence = self._units[unit]
        asked = {"stored_absorbers": evidence.stored_absorbers, "format": 3}
        if isinstance(evidence, Carried):
            asked = {"evidence": evidence.name, **asdict(evidence), "format": 2}
        return {"probing": self.probing.identity(sae), **asked}

    @override
    def size(self, unit: str) -> int:
        return self.probing.size(self._units[unit][0])

    @override
    def make(self, unit: str, device: torch.device) -> Files:
        name, evidence = self._units[unit]
        source = self.probing.saes[name]
        sae, rows = source.load(device), self.probing.probes.held_out(source.hook_name)
        letters = self.probing.result(name).letters
        found = gather_from_rows(sae, rows, letters, evidence)
        one_main = {}
        if isinstance(evidence, Projections):
            one_main["one_main.parquet"] = gather_one_main(sae, rows, letters, evidence, found)
        cfg = getattr(sae, "cfg", None)
        return {
            **one_main,
            "words.parquet": with_texts(found, self.words.texts),
            "sae_cfg.json": cfg.to_dict() if cfg is not None and hasattr(cfg, "to_dict") else None,
        }

    @override
    def run(self, units: Sequence[str], make_trainer: TrainerFactory) -> int:
        """Make what is missing of SAEs; returns how many units that were."""
        return super().run([unit for unit, (sae, _) in self._units.items() if sae in units], make_trainer)

    def table(self, sae: str, evidence: Projections | Carried) -> pd.DataFrame:
        """Evidence on an SAE's words."""
        return self.read(self._unit(sae, evidence), "words.parquet").assign(sae=sae)

    def one_main(self, sae: str, evidence: Projections) -> pd.DataFrame:
        """The same with each class's first main latent alone."""
        return self.read(self._unit(sae, evidence), "one_main.parquet")

    @staticmethod
    def _unit(sae: str, evidence: Projections | Carried) -> str:
        return sae if isinstance(evidence, Projections) else "@".join([sae, evidence.name, *_unusual(evidence)])

    def sae_cfg(self, unit: str) -> dict[str, Any] | None:
        """Configuration of an SAE, as SAELens writes it; None for one without."""
        return self.read(unit, "sae_cfg.json")


class ScoringStage(Stage):
    """Scores words of each SAE by integrated gradients.

    SAEs are taken a few at a time. Each pass over their words shares one prefix cache, also between positive tokens. A
    unit is an SAE with one way of scoring. A subclass says which words and by what evaluator.

    Args:
        cache_dir: Root of the cache.
        run_dir: The run's folder, where a pass under way keeps its table.
        words: The prompts.
        saes: The SAEs by name.
        evidence: How to score, for several rules.
        batch_size: Most sequences in one run of the model; `auto` takes what the device's memory allows.
        saes_per_pass: SAEs held in memory at once.
    """

    def __init__(
        self,
        cache_dir: Path,
        run_dir: Path,
        words: PromptDataModule,
        saes: Mapping[str, SaeSource],
        evidence: Iterable[Gradients],
        batch_size: RunSize,
        saes_per_pass: int,
    ) -> None:
        super().__init__(cache_dir)
        self.run_dir, self.words, self.saes = run_dir, words, saes
        self.batch_size: RunSize = batch_size
        self.saes_per_pass = saes_per_pass
        self._units = {
            _unit(sae, each): (sae, each)
            for sae in saes
            for each in sorted(dict.fromkeys(evidence), key=lambda each: each.positive_token)
        }

    @abstractmethod
    def scored_from(self, sae: str) -> dict[str, Any]:
        """What decides an SAE's words and their table, beside how they are scored."""

    @abstractmethod
    def candidates(self, sae: str) -> pd.DataFrame:
        """An SAE's words: `row, label`."""

    @abstractmethod
    def evaluator(
        self, saes: Mapping[str, Any], words: pd.DataFrame, evidence: Sequence[Gradients]
    ) -> GradientEvaluator:
        """What scores the words of some SAEs, given by name; `words` are their candidates, with `sae`."""

    @override
    def identity(self, unit: str) -> dict[str, Any]:
        sae, evidence = self._units[unit]
        return {**self.scored_from(sae), **asdict(evidence), "format": 4}

    def identities(self, sae: str) -> dict[str, Any]:
        """What determines the artifacts of an SAE, by their names."""
        return {unit: self.identity(unit) for unit, (own, _) in self._units.items() if own == sae}

    @override
    def run(self, units: Sequence[str], make_trainer: TrainerFactory) -> int:
        """Make what is missing of SAEs; returns how many units that were."""
        return super().run([unit for unit, (sae, _) in self._units.items() if sae in units], make_trainer)

    @override
    def make_all(self, units: Sequence[str], make_trainer: TrainerFactory) -> None:
        for evidence, saes in self._passes(units).items():
            for start in range(0, len(saes), self.saes_per_pass):
                self._run_pass(saes[start : start + self.saes_per_pass], evidence, make_trainer)

    def table(self, unit: str, evidence: Gradients) -> pd.DataFrame:
        """Scores of an SAE's words."""
        return self.read(_unit(unit, evidence), "words.parquet").assign(sae=unit)

    def _passes(self, units: Sequence[str]) -> dict[tuple[Gradients, ...], list[str]]:
        """SAEs by what is to be scored of them in one pass, in which only the positive token may differ."""
        wanted: dict[tuple[str, int, int], list[Gradients]] = {}
        for unit in units:
            sae, evidence = self._units[unit]
            wanted.setdefault((sae, evidence.steps, evidence.top_latents), []).append(evidence)
        passes: dict[tuple[Gradients, ...], list[str]] = {}
        for (sae, *_), evidence in wanted.items():
            passes.setdefault(tuple(evidence), []).append(sae)
        return passes

    def _run_pass(self, saes: Sequence[str], evidence: Sequence[Gradients], make_trainer: TrainerFactory) -> None:
        candidates = {sae: self.candidates(sae).assign(sae=sae) for sae in saes}
        words = pd.concat(candidates.values(), ignore_index=True)
        writer = PredictionTableWriter(self.run_dir / ".words.parquet", ("sae", "positive_token", "row"))
        trainer = make_trainer([writer])
        evaluator = self.evaluator({sae: self.saes[sae].load(torch.device("cpu")) for sae in saes}, words, evidence)
        trainer.predict(evaluator, datamodule=self.words.only(sorted(set(words["row"]))), return_predictions=False)
        if trainer.is_global_zero:
            table = pd.read_parquet(writer.path)
            for sae in saes:
                for each in evidence:
                    scored = table[(table["sae"] == sae) & (table["positive_token"] == each.positive_token)]
                    check_complete(sae, scored, candidates[sae])
                    self.keep(_unit(sae, each), {"words.parquet": scored})
            writer.path.unlink()
        trainer.strategy.barrier()


class GradientStage(ScoringStage):
    """Scores the candidate words of each SAE, beside what their main latents and probes say there.

    Args:
        cache_dir: Root of the cache.
        run_dir: The run's folder, where a pass under way keeps its table.
        words: The prompts.
        probing: The finished stage that found main latents and candidates.
        evidence: How to score, for several rules.
        batch_size: Most sequences in one run of the model; `auto` takes what the device's memory allows.
        saes_per_pass: SAEs held in memory at once.
    """

    name = "absorption"
    title = "absorption"

    def __init__(
        self,
        cache_dir: Path,
        run_dir: Path,
        words: PromptDataModule,
        probing: SaeProbingStage,
        evidence: Iterable[Gradients],
        batch_size: RunSize,
        saes_per_pass: int,
    ) -> None:
        super().__init__(cache_dir, run_dir, words, probing.saes, evidence, batch_size, saes_per_pass)
        self.probing = probing

    @override
    def scored_from(self, sae: str) -> dict[str, Any]:
        return {"probing": self.probing.identity(sae)}

    @override
    def candidates(self, sae: str) -> pd.DataFrame:
        return self.probing.result(sae).candidates

    @override
    def evaluator(
        self, saes: Mapping[str, Any], words: pd.DataFrame, evidence: Sequence[Gradients]
    ) -> AbsorptionEvaluator:
        hooks = {self.saes[sae].hook_name for sae in saes}
        inputs = AbsorptionInputs(
            letters=pd.concat([self.probing.result(sae).letters.assign(sae=sae) for sae in saes]),
            candidates=words,
            probe_weights={hook: self.probing.probes.weights(hook)[0] for hook in hooks},
        )
        return AbsorptionEvaluator(self.words.language_model, saes, inputs, evidence, self.batch_size)


def check_complete(sae: str, words: pd.DataFrame, candidates: pd.DataFrame) -> None:
    """Raise unless every candidate word of an SAE was scored once."""
    if sorted(words["row"]) != sorted(candidates["row"]):
        raise CacheCorruptedError(
            sae,
            f"{len(words)} scored words",
            expected=f"scores of each of its {len(candidates)} candidate words",
            remedy="Run again; give studies that run at the same time run folders of their own.",
        )


def _unit(sae: str, evidence: Gradients) -> str:
    return "@".join([sae, *_unusual(evidence)])


def _unusual(evidence: Evidence) -> list[str]:
    """The settings that are not the usual ones."""
    usual = astuple(type(evidence)())
    return [str(value) for value, other in zip(astuple(evidence), usual, strict=True) if value != other]
