"""The whole pipeline as one function: from words to a table of how much each SAE splits and absorbs."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from absorb_pl.data import (
    PromptDataModule,
    RunFolder,
    StorageDtype,
    TrainerFactory,
    activation_identities,
    ensure_activations,
)
from absorb_pl.errors import AbsorbError, require_at_least
from absorb_pl.evaluators import (
    AbsorptionRule,
    AbsorptionStage,
    KSparseSettings,
    LinearProbeSettings,
    LinearProbeStage,
    PaperRule,
    ProbeData,
    ProjectionStage,
    RateSettings,
    SaeBench060,
    SaeBenchRule,
    SaeProbingStage,
    SaeSource,
    SplitSettings,
    configured_rules,
)
from absorb_pl.models import expand_sae_names, load_language_model
from absorb_pl.probes import quiet_lightning
from absorb_pl.reports import SaeBenchRun, report_study, study_tables
from absorb_pl.words import TaskConfig

_SHARED_SETTINGS = ("linear_probe", "k_sparse", "splits", "rule", "saebench", "rates")


@dataclass(frozen=True)
class TrainerSettings:
    """Where a study runs; the words of `lightning.Trainer`.

    Attributes:
        accelerator: `cpu`, `gpu`, or `auto` for a CUDA GPU where there is one.
        devices: Number of devices.
        strategy: `auto`, `ddp`, …
        progress_bar: Whether stages show progress bars.
    """

    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    progress_bar: bool = True


@dataclass(frozen=True)
class StudyConfig:
    """Settings of a study.

    Attributes:
        saes: Names for `load_sae`, or patterns over bundled SAEs and SAELens releases (`speller/*`).
        model: Name for `load_language_model`.
        run_dir: Where tables, figures, probes and the manifest go.
        cache_dir: Where finished stages are kept, shared by all studies.
        task: What to ask about which words.
        model_dtype: Dtype of the language model.
        sae_dtype: Dtype of the SAEs.
        activation_dtype: Storage dtype of cached activations.
        prompt_batch_size: Prompts a forward pass.
        run_batch_size: Most sequences in one run of the suffix engine.
        saes_per_pass: SAEs held in memory at once while words are scored.
        test_fraction: Share of each class's words held out for evaluation.
        seed: Seed of the split and of probe training.
        linear_probe: Training of the linear probes.
        k_sparse: Training of the k-sparse probes.
        splits: How main latents and candidate words are found.
        rules: Names of the absorption rules: `paper` and its variants `paper-published`, `paper-published-token` and
            `paper-published-letters`, `saebench-0.6.0`, `saebench-0.3.2`, or registered ones.
        rule: Settings of the rule `paper` and its variants.
        saebench: Settings of SAEBench's rules.
        rates: How rates are summed up.
        trainer: Where the study runs.
    """

    saes: list[str]
    model: str = "speller"
    run_dir: str = "lightning_logs/study"
    cache_dir: str = "lightning_logs/cache"
    task: TaskConfig = field(default_factory=TaskConfig)
    model_dtype: str = "float32"
    sae_dtype: str = "float32"
    activation_dtype: StorageDtype = "float32"
    prompt_batch_size: int = 64
    run_batch_size: int = 256
    saes_per_pass: int = 16
    test_fraction: float = 0.2
    seed: int = 42
    linear_probe: LinearProbeSettings = field(default_factory=LinearProbeSettings)
    k_sparse: KSparseSettings = field(default_factory=KSparseSettings)
    splits: SplitSettings = field(default_factory=SplitSettings)
    rules: list[str] = field(default_factory=lambda: ["paper", "saebench-0.6.0", "saebench-0.3.2"])
    rule: PaperRule = field(default_factory=PaperRule)
    saebench: SaeBenchRule = field(default_factory=SaeBenchRule)
    rates: RateSettings = field(default_factory=RateSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)

    def __post_init__(self) -> None:
        require_at_least(
            1,
            prompt_batch_size=self.prompt_batch_size,
            run_batch_size=self.run_batch_size,
            saes_per_pass=self.saes_per_pass,
        )
        self.chosen_rules()

    def chosen_rules(self) -> list[AbsorptionRule]:
        """The rules with their settings.

        Raises:
            RuleError: A name is unknown or stands twice, or there is none.
        """
        return configured_rules(self.rules, {"rule": self.rule, "saebench": self.saebench})


@dataclass(frozen=True)
class StudyResult:
    """What a study leaves.

    Attributes:
        run_dir: The run's folder.
        tables: `summary`, `letters`, `words`, `sensitivity`, `latents`, `k_sparse`, `candidates` and `training`, as
            written to `run_dir/tables`.
    """

    run_dir: Path
    tables: dict[str, pd.DataFrame]


@quiet_lightning()
def run_study(config: StudyConfig) -> StudyResult:
    """Measure splitting and absorption in a list of SAEs.

    Every stage leaves artifacts under `cache_dir`, keyed by all that determines them; what is whole there is not made
    again.

    Args:
        config: The settings.

    Returns:
        The tables, which are also in the run's folder beside figures, probes and TensorBoard events.

    Raises:
        AbsorbError: One of the named errors of `absorb_pl.errors`; nothing half-written is left behind.
    """
    cache_dir, writes = Path(config.cache_dir), getattr(rank_zero_only, "rank", 0) == 0
    _trainers(config, "check")([])
    run = RunFolder(Path(config.run_dir), dataclasses.asdict(config), writes=writes)

    with run.stage("load"):
        model = load_language_model(config.model, dtype=config.model_dtype)
        names = expand_sae_names(config.saes)
        saes = {name: SaeSource.check(name, model, config.sae_dtype) for name in names}
        words = PromptDataModule(model, config.task, config.prompt_batch_size)
        hooks = list(dict.fromkeys(sae.hook_name for sae in saes.values()))
        identities = activation_identities(model, words.prompts, hooks, config.activation_dtype)
    run.claim(
        _common({**identities[hooks[0]], "task": words.identity}, config),
        {name: sae.identity for name, sae in saes.items()},
    )

    with run.stage("activations"):
        trainers = _trainers(config, "activations")
        activations = ensure_activations(words, hooks, cache_dir, config.activation_dtype, trainers)
    data = ProbeData(words, activations, identities, config.test_fraction, config.seed)

    with run.stage("linear probes") as facts:
        probes = LinearProbeStage(cache_dir, data, config.linear_probe)
        facts["made"] = probes.run(hooks, _trainers(config, "linear probes"))

    with run.stage("k-sparse probes") as facts:
        probing = SaeProbingStage(cache_dir, data, saes, probes, config.k_sparse, config.splits)
        facts["made"] = probing.run(names, _trainers(config, "k-sparse probes"))

    rules = config.chosen_rules()
    projections: ProjectionStage | None = None
    scored: dict[str, Callable[[str], pd.DataFrame]] = {}
    if of_projections := [rule.name for rule in rules if rule.evidence == "projections"]:
        with run.stage("projections") as facts:
            stored = config.saebench.stored_absorbers
            projections = ProjectionStage(cache_dir, data, saes, probes, probing, stored)
            facts["made"] = projections.run(names, _trainers(config, "projections"))
            scored |= dict.fromkeys(of_projections, projections.table)
    if tokens := {rule.name: rule.settings.positive_token for rule in rules if rule.evidence == "gradients"}:
        with run.stage("absorption") as facts:
            batches = (config.run_batch_size, config.saes_per_pass)
            absorption = AbsorptionStage(
                cache_dir, run.path, words, saes, probes, probing, config.rule, sorted(set(tokens.values())), *batches
            )
            facts["made"] = absorption.run(names, _trainers(config, "absorption"))
            scored |= {name: partial(absorption.table, positive_token=token) for name, token in tokens.items()}

    tables = study_tables(saes, words, probes, probing, scored, rules, config.rates)
    if writes:
        with run.stage("report"):
            saebench = _saebench_run(config, data, rules, projections, names)
            report_study(run.path, tables, {hook: probes.weights(hook) for hook in hooks}, saebench)
    return StudyResult(run.path, tables)


def _saebench_run(
    config: StudyConfig,
    data: ProbeData,
    rules: Sequence[AbsorptionRule],
    projections: ProjectionStage | None,
    names: Sequence[str],
) -> SaeBenchRun | None:
    """What the files in SAEBench's format say of the run; None where there are none."""
    words = data.words
    rule = next((rule for rule in rules if isinstance(rule, SaeBench060) and rule.name == SaeBench060.name), None)
    if rule is None or projections is None or words.task.name != "first_letter":
        return None
    held_out = len(data.split(next(iter(data.activations)), "test")[2])
    positions = (words.prompts.word_positions - words.prompts.lengths).unique().tolist()
    return SaeBenchRun(
        rule=rule,
        rates=config.rates,
        eval_config={
            "model_name": config.model,
            "random_seed": config.seed,
            "f1_jump_threshold": config.splits.f1_jump,
            "max_k_value": config.splits.max_k,
            "prompt_template": words.task.template,
            **({"prompt_token_pos": positions[0]} if len(positions) == 1 else {}),
            "llm_batch_size": config.prompt_batch_size,
            "llm_dtype": config.model_dtype,
            "k_sparse_probe_l1_decay": config.k_sparse.l1_decay,
            "k_sparse_probe_batch_size": config.k_sparse.batch_size,
            "k_sparse_probe_num_epochs": config.k_sparse.max_epochs,
            "min_GT_probe_f1": config.rates.min_probe_f1,
            "min_feats_for_eval": config.saebench.min_letters,
            "eval_k_sparse_probe_batch_size": held_out,
        },
        facts={
            "word_positions_from_the_end": positions,
            "task": words.task.name,
            "num_words": len(words.texts),
            "num_held_out_words": held_out,
            "test_fraction": config.test_fraction,
            "max_icl_examples": words.task.max_icl_examples,
            "seeds": {"split_and_probes": config.seed, "prompts": config.task.seed, "bootstrap": config.rates.seed},
        },
        sae_cfgs={name: projections.sae_cfg(name) for name in names},
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


class _StageBar(TQDMProgressBar):
    """A progress bar that says which stage it is of."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage

    @property
    @override
    def predict_description(self) -> str:
        return self.stage


def _trainers(config: StudyConfig, stage: str) -> TrainerFactory:
    """Make the Trainers of a stage; they run on the devices of the configuration."""
    settings = config.trainer

    accelerator = settings.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"  # Apple's GPUs have no float64

    def make(callbacks: list[Callback]) -> Trainer:
        try:
            return trainer(callbacks)
        except (MisconfigurationException, ValueError) as error:
            raise AbsorbError(
                "trainer", dataclasses.asdict(settings), expected="devices that this machine has", remedy=str(error)
            ) from error

    def trainer(callbacks: list[Callback]) -> Trainer:
        return Trainer(
            accelerator=accelerator,
            devices=settings.devices,
            strategy=settings.strategy,
            callbacks=[*callbacks, _StageBar(stage)] if settings.progress_bar else callbacks,
            enable_progress_bar=settings.progress_bar,
            inference_mode=False,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )

    return make
