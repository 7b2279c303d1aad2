"""The whole pipeline as one function: from words to a table of how much each SAE splits and absorbs."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from absorb_pl.data.drafts import check_writable
from absorb_pl.data.forks import without_forks
from absorb_pl.data.run_folder import RunFolder
from absorb_pl.errors import TrainerError
from absorb_pl.interruption import interruptible
from absorb_pl.models.placement import borrowed
from absorb_pl.probes.fitting import quiet_lightning
from absorb_pl.reports.report import report_part, report_study
from absorb_pl.study.config import StudyConfig
from absorb_pl.study.result import StudyResult
from absorb_pl.study.saebench import saebench_run
from absorb_pl.study.stage import Stage
from absorb_pl.study.stages import StudyStages
from absorb_pl.study.subject import load_subject
from absorb_pl.study.tables import join_tables, study_tables
from absorb_pl.study.trainers import stage_trainers


@quiet_lightning()
def study_of_model(config: StudyConfig, processing: Sequence[str] = (), *, show: bool = True) -> StudyResult:
    """Measure splitting and absorption in SAEs of one model.

    Every stage leaves artifacts under `cache_dir`, keyed by all that determines them; what is whole there is not made
    again. SAEs go through the stages `saes_per_pass` at a time, and their rates are shown when they are through.

    Args:
        config: The settings; `models` is not read, and the study stops after the stage `until`.
        processing: How the SAEs ask for the model to be processed.
        show: Whether to print the results.

    Returns:
        The tables, which are also in the run's folder beside figures, probes and TensorBoard events.

    Raises:
        AbsorbError: One of the named errors of `absorb_pl.errors`; nothing half-written is left behind.
        SystemExit: With code 143, after SIGTERM.
        KeyboardInterrupt: After SIGINT.
    """
    writes = getattr(rank_zero_only, "rank", 0) == 0
    run = RunFolder(Path(config.run_dir), config.plain(), writes=writes)
    with (
        interruptible(partial(_kept, run, config)),
        nullcontext() if isinstance(config.model, str) else borrowed(config.model),
    ):
        return _study(config, processing, run, writes=writes, show=show)


def _study(config: StudyConfig, processing: Sequence[str], run: RunFolder, *, writes: bool, show: bool) -> StudyResult:
    processes = stage_trainers(config.trainer, "check")([]).world_size
    if processes > 1 and config.in_memory:
        raise TrainerError(
            "trainer.devices",
            config.trainer.devices,
            expected=f"one device, as {', '.join(config.in_memory)} is in the memory of one process",
            remedy="Save it and name its folder; every process loads it from there.",
        )
    rules = config.chosen_rules()
    if writes:
        check_writable(Path(config.cache_dir))
    with run.stage("load") as facts:
        subject = load_subject(config, processing)
        facts["processing"] = list(processing)
        facts["folded"] = {name: sae.folded for name, sae in subject.saes.items() if sae.folded}
    run.claim(subject.identity(config), {name: sae.identity for name, sae in subject.saes.items()})

    stages = StudyStages.of(config, subject, rules, run.path)
    for stage in stages.of_hooks(config.until):
        _run(stage, subject.hooks, run, config)
    tables = []
    for names in subject.portions(config.saes_per_pass):
        for stage in stages.of_saes(config.until):
            _run(stage, names, run, config)
        if config.until == "report":
            with run.stage("tables"):
                tables.append(study_tables(stages, names, rules, config.rates))
            if writes and len(names) < len(subject.saes):
                report_part(run.path, join_tables(tables), names, show=show)

    if config.until != "report":
        return StudyResult(run.path, {}, None if config.until in ("load", "activations") else stages, run.config)
    found = join_tables(tables)
    if writes:
        with run.stage("report"):
            probes = {hook: stages.probes.weights(hook) for hook in subject.hooks}
            saebench = saebench_run(config, stages, rules)
            report_study(run.path, found, probes, run.config, saebench, config.columns if show else None)
    return StudyResult(run.path, found, stages, run.config)


def _run(stage: Stage, units: Sequence[str], run: RunFolder, config: StudyConfig) -> None:
    with run.stage(stage.title) as facts, without_forks() if config.profile else nullcontext():
        traces = run.path / "profile" / stage.title.replace(" ", "-") if config.profile else None
        facts["made"] = facts.get("made", 0) + stage.run(units, stage_trainers(config.trainer, stage.title, traces))


def _kept(run: RunFolder, config: StudyConfig) -> str:
    """What a study that was stopped leaves, and how to go on."""
    done = ", ".join(run.stages) or "nothing yet"
    where = f"In the stage {run.under_way!r}" if run.under_way else "Between stages"
    return (
        f"{where}; finished stages: {done}. What they made, and finished SAEs of this stage, is kept in "
        f"{config.cache_dir}. The same command goes on from there."
    )
