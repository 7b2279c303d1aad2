"""The absorption stage of a study: all SAEs' candidate words in few passes, one artifact an SAE and positive token."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from typing_extensions import override

from absorb_pl.data import PromptDataModule, write_artifact
from absorb_pl.errors import CacheCorruptedError
from absorb_pl.evaluators.absorption import SCORED_COLUMNS, AbsorptionEvaluator, AbsorptionInputs
from absorb_pl.evaluators.writers import PredictionTableWriter
from absorb_pl.rules import PaperRule
from absorb_pl.saes.source import SaeSource
from absorb_pl.study.probing_stages import LinearProbeStage, SaeProbingStage
from absorb_pl.study.stage import Stage, TrainerFactory
from absorb_pl.words import PositiveToken

_VERDICTS = ["rule", "is_absorption"]


class AbsorptionStage(Stage):
    """Scores the candidate words of each SAE by integrated gradients.

    SAEs are taken a few at a time, each pass over their words sharing one prefix cache, also between positive tokens.
    What is kept are scores, to which a rule's thresholds are applied when tables are made.

    Args:
        cache_dir: Root of the cache.
        run_dir: The run's folder, where a pass under way keeps its table.
        words: The prompts.
        saes: The SAEs by name.
        probes: The finished stage of the linear probes.
        probing: The finished stage that found main latents and candidates.
        rule: Settings of the scores.
        positive_tokens: Tokens of the right answer to score with.
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
        positive_tokens: Sequence[PositiveToken],
        run_batch_size: int,
        saes_per_pass: int,
    ) -> None:
        super().__init__(cache_dir)
        self.run_dir = run_dir
        self.words, self.saes, self.probes, self.probing, self.rule = words, saes, probes, probing, rule
        self.run_batch_size, self.saes_per_pass = run_batch_size, saes_per_pass
        self._units: dict[str, tuple[str, PositiveToken]] = {
            _unit(sae, token): (sae, token) for sae in saes for token in positive_tokens
        }

    @override
    def identity(self, unit: str) -> dict[str, Any]:
        sae, token = self._units[unit]
        return {
            "probing": self.probing.identity(sae),
            "steps": self.rule.steps,
            "positive_token": token,
            "top_latents": self.rule.top_latents,
            "format": 4,
        }

    @override
    def run(self, units: Sequence[str], make_trainer: TrainerFactory) -> int:
        wanted = [unit for unit, (sae, _) in self._units.items() if sae in set(units)]
        missing = self.missing(wanted)
        by_tokens: dict[tuple[PositiveToken, ...], list[str]] = {}
        for sae in units:
            tokens: tuple[PositiveToken, ...] = tuple(
                self._units[unit][1] for unit in missing if self._units[unit][0] == sae
            )
            if tokens:
                by_tokens.setdefault(tokens, []).append(sae)
        for tokens, saes in by_tokens.items():
            for start in range(0, len(saes), self.saes_per_pass):
                self._run_pass(saes[start : start + self.saes_per_pass], tokens, make_trainer)
        return len(missing)

    def table(self, unit: str, positive_token: PositiveToken = "answer") -> pd.DataFrame:
        """Stored scores of an SAE's candidate words with a positive token."""
        folder = self.folder(_unit(unit, positive_token))
        return pd.read_parquet(folder / "words.parquet").assign(sae=unit)

    def _run_pass(self, saes: Sequence[str], tokens: Sequence[PositiveToken], make_trainer: TrainerFactory) -> None:
        found = {sae: self.probing.result(sae) for sae in saes}
        candidates = pd.concat([result.candidates.assign(sae=sae) for sae, result in found.items()])
        inputs = AbsorptionInputs(
            letters=pd.concat([result.letters.assign(sae=sae) for sae, result in found.items()]),
            candidates=candidates,
            probe_weights={hook: self.probes.weights(hook)[0] for hook in {self.saes[sae].hook_name for sae in saes}},
        )
        writer = PredictionTableWriter(
            self.run_dir / ".words.parquet", ("sae", "positive_token", "row"), columns=SCORED_COLUMNS
        )
        trainer = make_trainer([writer])
        evaluator = AbsorptionEvaluator(
            self.words.language_model,
            {sae: self.saes[sae].load(torch.device("cpu")) for sae in saes},
            inputs,
            self.rule,
            self.run_batch_size,
            tokens,
        )
        trainer.predict(evaluator, datamodule=self.words.only(sorted(set(candidates["row"]))), return_predictions=False)
        if trainer.is_global_zero:
            table = pd.read_parquet(writer.path)
            for sae in saes:
                for token in tokens:
                    unit, words = _unit(sae, token), table[table["positive_token"] == token]
                    check_complete(sae, words, found[sae].candidates)
                    with write_artifact(self.path(unit), self.identity(unit)) as folder:
                        words[words["sae"] == sae].drop(columns=_VERDICTS).to_parquet(
                            folder / "words.parquet", index=False
                        )
            writer.path.unlink()
        trainer.strategy.barrier()


def _unit(sae: str, token: PositiveToken) -> str:
    return sae if token == "answer" else f"{sae}@{token}"


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
