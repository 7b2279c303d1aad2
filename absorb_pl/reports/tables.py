"""The tables of a study, put together from its stages."""

from collections.abc import Mapping

import pandas as pd

from absorb_pl.data import PromptDataModule
from absorb_pl.evaluators import (
    RULE,
    AbsorptionStage,
    LinearProbeStage,
    RateSettings,
    SaeProbingStage,
    SaeSource,
    letters_table,
    summary_row,
)


def study_tables(
    saes: Mapping[str, SaeSource],
    words: PromptDataModule,
    probes: LinearProbeStage,
    probing: SaeProbingStage,
    absorption: AbsorptionStage,
    rates: RateSettings,
) -> dict[str, pd.DataFrame]:
    """Put the tables of a study together.

    Args:
        saes: The SAEs by name.
        words: The prompts.
        probes: The finished stage of the linear probes.
        probing: The finished stage that found main latents and candidates.
        absorption: The finished stage that judged the candidates.
        rates: How rates are summed up.

    Returns:
        `summary` (a row an SAE and rule), `letters` (and label), `words` (and candidate word), `latents`,
        `k_sparse`, `candidates` and `training` (a row an epoch of each probe).
    """
    parts: dict[str, list[pd.DataFrame]] = {
        name: [] for name in ("letters", "words", "latents", "k_sparse", "candidates", "training")
    }
    summary = []
    for name, sae in saes.items():
        found, verdicts = probing.result(name), absorption.table(name)
        letters = letters_table(found.letters, verdicts, RULE, rates, words.task.classes)
        summary.append(
            {
                "sae": name,
                "model": words.language_model.cfg.model_name,
                "hook_name": sae.hook_name,
                "layer": sae.layer,
                "architecture": sae.architecture,
                **found.statistics,
                "rule": RULE,
                "shared_context": words.config.shared_context,
                **summary_row(found.letters, verdicts, found.latents, rates),
            }
        )
        texts = [words.texts[row] for row in found.candidates["row"]]
        candidates = found.candidates.assign(word=[t.word for t in texts], prompt=[t.base for t in texts])
        parts["words"].append(verdicts)
        parts["training"].append(_curve(probing.curve(name), "k_sparse_probe", name))
        for table, frame in (
            ("letters", letters),
            ("latents", found.latents),
            ("k_sparse", found.k_sparse),
            ("candidates", candidates),
        ):
            parts[table].append(_with_sae(frame, name, sae.hook_name))
    for hook in dict.fromkeys(sae.hook_name for sae in saes.values()):
        parts["training"].append(_curve(probes.curve(hook), "linear_probe", hook))
    tables = {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}
    return {"summary": pd.DataFrame(summary), **tables}


def _with_sae(frame: pd.DataFrame, sae: str, hook_name: str) -> pd.DataFrame:
    frame = frame.copy()
    frame.insert(0, "sae", sae)
    frame.insert(1, "hook_name", hook_name)
    return frame


def _curve(curve: pd.DataFrame, probe: str, name: str) -> pd.DataFrame:
    return curve.assign(probe=probe, name=name)
