"""The whole pipeline as one function: from words to a table of how much each SAE splits and absorbs."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.utilities import rank_zero_only

from absorb_pl.data import (
    PromptDataModule,
    RunFolder,
    activation_identities,
    check_split,
    check_writable,
    ensure_activations,
)
from absorb_pl.functional import check_ks
from absorb_pl.interruption import interruptible
from absorb_pl.models import load_language_model
from absorb_pl.probes import quiet_lightning
from absorb_pl.reports import report_part, report_study
from absorb_pl.rules import check_rules_fit
from absorb_pl.saes import SaeSource, distinct_saes, expand_sae_names, tell_equal_saes
from absorb_pl.study.absorption_stage import AbsorptionStage
from absorb_pl.study.config import StudyConfig
from absorb_pl.study.probing_stages import LinearProbeStage, ProbeData, SaeProbingStage
from absorb_pl.study.projection_stage import ProjectionStage
from absorb_pl.study.saebench import saebench_run
from absorb_pl.study.stages import StudyStages
from absorb_pl.study.tables import join_tables, study_tables
from absorb_pl.study.trainers import stage_trainers

_SHARED_SETTINGS = ("linear_probe", "k_sparse", "splits", "rule", "saebench", "rates")


@dataclass(frozen=True)
class StudyResult:
    """What a study leaves.

    Attributes:
        run_dir: The run's folder.
        tables: `summary`, `letters`, `words`, `sensitivity`, `latents`, `k_sparse`, `candidates` and `training`, as
            written to `run_dir/tables`. Empty where the study stopped before the report.
        stages: What its stages found, up to the last that ran; None where it stopped before the linear probes, and for
            studies of several models.
    """

    run_dir: Path
    tables: dict[str, pd.DataFrame]
    stages: StudyStages | None = None


@quiet_lightning()
def study_of_model(config: StudyConfig, processing: Sequence[str] = ()) -> StudyResult:
    """Measure splitting and absorption in SAEs of one model.

    Every stage leaves artifacts under `cache_dir`, keyed by all that determines them; what is whole there is not made
    again. SAEs go through the stages `saes_per_pass` at a time, and their rates are shown when they are through.

    Args:
        config: The settings; `models` is not read, and the study stops after the stage `until`.
        processing: How the SAEs ask for the model to be processed.

    Returns:
        The tables, which are also in the run's folder beside figures, probes and TensorBoard events.

    Raises:
        AbsorbError: One of the named errors of `absorb_pl.errors`; nothing half-written is left behind.
        SystemExit: With code 143, after SIGTERM.
        KeyboardInterrupt: After SIGINT.
    """
    writes = getattr(rank_zero_only, "rank", 0) == 0
    run = RunFolder(Path(config.run_dir), dataclasses.asdict(config), writes=writes)
    with interruptible(partial(_kept, run, config)):
        return _study(config, processing, run, writes=writes)


def _study(config: StudyConfig, processing: Sequence[str], run: RunFolder, *, writes: bool) -> StudyResult:
    cache_dir = Path(config.cache_dir)
    trainers = partial(stage_trainers, config.trainer)
    trainers("check")([])
    rules = config.chosen_rules()
    if writes:
        check_writable(cache_dir)

    with run.stage("load") as facts:
        model = load_language_model(config.model, dtype=config.model_dtype, processing=processing)
        check_rules_fit(rules, model)
        names = [
            name
            for sae in distinct_saes([name for given in config.saes for name in expand_sae_names([given])])
            for name in (sae, *(f"{sae}#{kind}" for kind in config.controls))
        ]
        saes = {name: SaeSource.check(name, model, config.sae_dtype) for name in names}
        tell_equal_saes(saes)
        facts["processing"] = list(processing)
        facts["folded"] = {name: sae.folded for name, sae in saes.items() if sae.folded}
        words = PromptDataModule(model, config.task, config.prompt_batch_size)
        check_split(words.labels, config.test_fraction, config.seed)
        for sae in saes.values():
            check_ks([min(config.k_sparse.ks)], sae.d_sae)
            sae.check_words(words.prompts.word_positions)
        hooks = list(dict.fromkeys(sae.hook_name for sae in saes.values()))
        identities = activation_identities(model, words.prompts, hooks, config.activation_dtype)
    run.claim(
        _common({**identities[hooks[0]], "task": words.identity}, config),
        {name: sae.identity for name, sae in saes.items()},
    )
    if config.until == "load":
        return StudyResult(run.path, {})

    with run.stage("activations"):
        activations = ensure_activations(words, hooks, cache_dir, config.activation_dtype, trainers("activations"))
    if config.until == "activations":
        return StudyResult(run.path, {})
    data = ProbeData(words, activations, identities, config.test_fraction, config.seed)

    with run.stage("linear probes") as facts:
        probes = LinearProbeStage(cache_dir, data, config.linear_probe)
        facts["made"] = probes.run(hooks, trainers("linear probes"))

    of_projections = [rule.name for rule in rules if rule.evidence == "projections"]
    tokens = {rule.name: rule.settings.positive_token for rule in rules if rule.evidence == "gradients"}
    probing = SaeProbingStage(cache_dir, data, saes, probes, config.k_sparse, config.splits)
    projections = ProjectionStage(cache_dir, data, saes, probes, probing, config.saebench.stored_absorbers)
    absorption = AbsorptionStage(
        cache_dir,
        run.path,
        words,
        saes,
        probes,
        probing,
        config.rule,
        sorted(set(tokens.values())),
        config.run_batch_size,
        config.saes_per_pass,
    )
    scored: dict[str, Callable[[str], pd.DataFrame]] = dict.fromkeys(of_projections, projections.table)
    scored |= {name: partial(absorption.table, positive_token=token) for name, token in tokens.items()}
    stages = {"k-sparse probes": probing}
    stages |= {"projections": projections} if of_projections else {}
    stages |= {"absorption": absorption} if tokens else {}
    found = StudyStages(saes, data, probes, probing, projections, absorption)
    if config.until == "linear-probes":
        return StudyResult(run.path, {}, found)

    parts = []
    for start in range(0, len(names), config.saes_per_pass):
        part = names[start : start + config.saes_per_pass]
        for name, stage in stages.items():
            with run.stage(name) as facts:
                facts["made"] = facts.get("made", 0) + stage.run(part, trainers(name))
            if config.until == name.replace(" ", "-"):
                break
        if config.until != "report":
            continue
        with run.stage("tables"):
            of_part = {name: saes[name] for name in part}
            parts.append(study_tables(of_part, words, probes, probing, scored, rules, config.rates))
        if writes and len(part) < len(names):
            report_part(run.path, join_tables(parts), part)

    if config.until != "report":
        return StudyResult(run.path, {}, found)
    tables = join_tables(parts)
    if writes:
        with run.stage("report"):
            measured = [name for name, sae in saes.items() if not sae.control] or names
            saebench = saebench_run(config, data, rules, projections if of_projections else None, measured)
            report_study(run.path, tables, {hook: probes.weights(hook) for hook in hooks}, saebench, config.columns)
    return StudyResult(run.path, tables, found)


def _kept(run: RunFolder, config: StudyConfig) -> str:
    """What a study that was stopped leaves, and how to go on."""
    done = ", ".join(run.stages) or "nothing yet"
    where = f"In the stage {run.under_way!r}" if run.under_way else "Between stages"
    return (
        f"{where}; finished stages: {done}. What they made, and finished SAEs of this stage, is kept in "
        f"{config.cache_dir}. The same command goes on from there."
    )


def _common(identity: dict[str, Any], config: StudyConfig) -> dict[str, Any]:
    """What all rows of a run's tables have in common."""
    shared = {key: value for key, value in identity.items() if key != "hook_name"}
    return {
        **shared,
        "test_fraction": config.test_fraction,
        "seed": config.seed,
        "sae_dtype": config.sae_dtype,
        "rules": config.rules,
        **{name: dataclasses.asdict(getattr(config, name)) for name in _SHARED_SETTINGS},
    }
