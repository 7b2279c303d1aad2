"""The absorption stage of a study: all SAEs' candidate words in few passes, one artifact an SAE."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from typing_extensions import override

from absorb_pl.data import PromptDataModule, Stage, TrainerFactory, write_artifact
from absorb_pl.errors import CacheCorruptedError
from absorb_pl.evaluators.absorption import WORD_COLUMNS, AbsorptionEvaluator, AbsorptionInputs, PaperRule
from absorb_pl.evaluators.probing_stages import LinearProbeStage, SaeProbingStage
from absorb_pl.evaluators.sources import SaeSource
from absorb_pl.evaluators.writers import PredictionTableWriter


class AbsorptionStage(Stage):
    """Judges the candidate words of each SAE.

    SAEs are taken a few at a time, each pass over their words sharing one prefix cache.

    Args:
        cache_dir: Root of the cache.
        run_dir: The run's folder, where a pass under way keeps its table.
        words: The prompts.
        saes: The SAEs by name.
        probes: The finished stage of the linear probes.
        probing: The finished stage that found main latents and candidates.
        rule: Settings of the rule.
        run_batch_size: Most sequences in one run of the model.
        saes_per_pass: SAEs held in memory at once.
    """

    name = "absorption"

    def __init__(
        self,
        cache_dir: Path,
        run_dir: Path,
        words: PromptDataModule,
        saes: Mapping[str, SaeSource],
        probes: LinearProbeStage,
        probing: SaeProbingStage,
        rule: PaperRule,
        run_batch_size: int,
        saes_per_pass: int,
    ) -> None:
        super().__init__(cache_dir)
        self.run_dir = run_dir
        self.words, self.saes, self.probes, self.probing, self.rule = words, saes, probes, probing, rule
        self.run_batch_size, self.saes_per_pass = run_batch_size, saes_per_pass

    @override
    def identity(self, unit: str) -> dict[str, Any]:
        return {"probing": self.probing.identity(unit), "rule": asdict(self.rule), "format": 1}

    @override
    def run(self, units: Sequence[str], make_trainer: TrainerFactory) -> int:
        missing = self.missing(units)
        for start in range(0, len(missing), self.saes_per_pass):
            self._run_pass(missing[start : start + self.saes_per_pass], make_trainer)
        return len(missing)

    def table(self, unit: str) -> pd.DataFrame:
        """Verdicts on the candidate words of an SAE."""
        return pd.read_parquet(self.folder(unit) / "words.parquet").assign(sae=unit)

    def _run_pass(self, units: Sequence[str], make_trainer: TrainerFactory) -> None:
        found = {unit: self.probing.result(unit) for unit in units}
        candidates = pd.concat([result.candidates.assign(sae=unit) for unit, result in found.items()])
        inputs = AbsorptionInputs(
            letters=pd.concat([result.letters.assign(sae=unit) for unit, result in found.items()]),
            candidates=candidates,
            probe_weights={
                hook: self.probes.weights(hook)[0] for hook in {self.saes[unit].hook_name for unit in units}
            },
        )
        writer = PredictionTableWriter(self.run_dir / ".words.parquet", columns=WORD_COLUMNS)
        trainer = make_trainer([writer])
        evaluator = AbsorptionEvaluator(
            self.words.language_model,
            {unit: self.saes[unit].load(torch.device("cpu")) for unit in units},
            inputs,
            self.rule,
            self.run_batch_size,
        )
        trainer.predict(evaluator, datamodule=self.words.only(sorted(set(candidates["row"]))), return_predictions=False)
        if trainer.is_global_zero:
            table = pd.read_parquet(writer.path)
            for unit in units:
                check_complete(unit, table, found[unit].candidates)
                with write_artifact(self.path(unit), self.identity(unit)) as folder:
                    table[table["sae"] == unit].to_parquet(folder / "words.parquet", index=False)
            writer.path.unlink()
        trainer.strategy.barrier()


def check_complete(unit: str, words: pd.DataFrame, candidates: pd.DataFrame) -> None:
    """Raise unless every candidate word of an SAE was judged once."""
    judged = sorted(words.loc[words["sae"] == unit, "row"])
    if judged != sorted(candidates["row"]):
        raise CacheCorruptedError(
            unit,
            f"{len(judged)} judged words",
            expected=f"one verdict on each of its {len(candidates)} candidate words",
            remedy="Run again; give studies that run at the same time run folders of their own.",
        )
