"""Settings of a study, as they stand in a configuration file."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from absorb_pl.data.activation_cache import StorageDtype
from absorb_pl.data.drafts import user_path
from absorb_pl.engine.run_size import RunSize
from absorb_pl.errors import AbsorbError
from absorb_pl.evaluators.crossfit import check_rules_of_folds
from absorb_pl.evaluators.folds import CrossfitSettings
from absorb_pl.evaluators.sae_probing import SplitSettings
from absorb_pl.evaluators.shuffles import Copies, check_shuffles
from absorb_pl.models.divided import devices_of
from absorb_pl.models.hooked_model import check_model
from absorb_pl.models.placement import check_dtype, check_model_dtype, dtype_of, model_device
from absorb_pl.probes.settings import KSparseSettings, LinearProbeSettings
from absorb_pl.ranges import Count, InnerFraction, Seed, check_ranges
from absorb_pl.reports.terminal import ColumnChoice
from absorb_pl.rules.rates import RateSettings
from absorb_pl.rules.registry import RuleChoice, configured_rules
from absorb_pl.rules.rule import AbsorptionRule
from absorb_pl.saes.given import named_saes
from absorb_pl.words.task_config import TaskConfig

ControlKind = Literal["random", "shuffled_decoder"]
"""Controls that can be scored beside each SAE, see `absorb_pl.models.control_sae`."""

StageName = Literal[
    "load",
    "activations",
    "linear-probes",
    "k-sparse-probes",
    "projections",
    "absorption",
    "firings",
    "shuffles",
    "cross-fit",
    "report",
]
"""The stages of a study in their order, as `StudyConfig.until` names them."""


@dataclass(frozen=True)
class TrainerSettings:
    """Where a study runs; arguments of `lightning.Trainer` under their own names.

    Objects are given by `class_path` and `init_args`, as in a configuration file of Lightning. Each stage's Trainer is
    given new ones.

    Attributes:
        accelerator: `cpu`, `gpu`, or `auto` for a CUDA GPU if there is one.
        devices: Number of devices, which ones, `auto`, or -1 for all GPUs.
        strategy: `auto`, `ddp`, …
        num_nodes: Number of machines.
        callbacks: Callbacks beside those of the stages, as `class_path` and `init_args`.
        logger: Loggers of what callbacks log, as `class_path` and `init_args`.
        plugins: Cluster environments, as `class_path` and `init_args`.
        enable_progress_bar: Whether stages show progress bars.
        deterministic: Whether torch may use only algorithms that give the same result each time.
        benchmark: Whether cuDNN tries its algorithms for speed first.
    """

    accelerator: str = "auto"
    devices: int | str | list[int] = 1
    strategy: str = "auto"
    num_nodes: Count = 1
    callbacks: list[dict[str, Any]] = field(default_factory=list)
    logger: list[dict[str, Any]] = field(default_factory=list)
    plugins: list[dict[str, Any]] = field(default_factory=list)
    enable_progress_bar: bool = True
    deterministic: bool | None = None
    benchmark: bool | None = None

    def __post_init__(self) -> None:
        check_ranges(TrainerSettings, vars(self))


@dataclass(frozen=True)
class StudyConfig:
    """Settings of a study.

    Attributes:
        saes: Names for `load_sae`, or patterns over bundled SAEs and SAELens releases (`speller/*`); perhaps by names
            that tables should show instead. In Python also SAEs themselves.
        model: Name for `load_language_model`. In Python also a model itself.
        models: SAEs by model, in place of `saes` and `model`: a study each, in a folder of its own below `run_dir`.
        controls: Controls to score beside each SAE.
        run_dir: Where tables, figures, probes and the manifest go.
        cache_dir: Where finished stages are kept, shared by all studies.
        until: Last stage to run. What was made stays, and a later run goes on from there.
        task: What to ask about which words.
        model_dtype: Dtype of a language model that is loaded: `float32`, `float64`, `bfloat16` or `float16`; or, where
            memory is short, `int8` or `nf4`, for linear layers of 8 or 4 bits a weight.
        n_devices: Number of GPUs to divide a language model's layers among, for one that a single GPU does not hold.
            The study itself runs in one process then, with the SAEs on the first of them.
        sae_dtype: Dtype of the SAEs.
        activation_dtype: Storage dtype of cached activations.
        prompt_batch_size: Prompts per forward pass.
        run_batch_size: Most sequences in one run of the model while words are scored. `auto` is 256 on a CPU; on a GPU
            it follows the free memory, and is halved if that turns out to be too many. It changes no result but by
            rounding (`int8` models: see docs/models.md).
        saes_per_pass: SAEs that go through the stages together and are held in memory at once while words are
            scored; their results are shown when they are through.
        test_fraction: Share of each class's words held out for evaluation.
        seed: Seed of the split and of probe training.
        linear_probe: Training of the linear probes.
        k_sparse: Training of the k-sparse probes.
        splits: How main latents and candidate words are found.
        rules: The absorption rules, perhaps with settings: `paper`, `[paper, saebench-0.6.0]` or
            `{paper: {delta_threshold: 2.0}, saebench-0.6.0: {}}`. There are `paper`, its variants `paper-published`,
            `paper-published-token` and `paper-published-letters`, `saebench-0.6.0`, `saebench-0.3.2`, `silent-mains`,
            and registered ones; `docs/rules.md` lists their settings.
        rates: How rates are summed up.
        shuffles: Copies of each SAE with shuffled decoder rows that its rates are held against, by the rules that
            activations are enough for: the table `shuffles` says by how much a rate exceeds theirs. 0 for none; 19 is
            the least for a p-value of 0.05.
        crossfit: Judges every word out of sample as well, several times over; the tables `crossfit`, `crossfit_letters`
            and `crossfit_words` say what is found. Left out when None.
        trainer: Where the study runs.
        profile: Whether each stage leaves traces of `torch.profiler` in `run_dir/profile`.
        columns: Columns of the printed table: `fit` for those that fit the terminal, or `all`.
    """

    saes: list[Any] | dict[str, Any] = field(default_factory=list)
    model: str | Any = "speller"
    models: dict[str, list[str]] = field(default_factory=dict)
    controls: list[ControlKind] = field(default_factory=list)
    run_dir: str = "lightning_logs/study"
    cache_dir: str = "lightning_logs/cache"
    until: StageName = "report"
    task: TaskConfig = field(default_factory=TaskConfig)
    model_dtype: str = "float32"
    n_devices: Count = 1
    sae_dtype: str = "float32"
    activation_dtype: StorageDtype = "float32"
    prompt_batch_size: Count = 64
    run_batch_size: RunSize = "auto"
    saes_per_pass: Count = 16
    test_fraction: InnerFraction = 0.2
    seed: Seed = 42
    linear_probe: LinearProbeSettings = field(default_factory=LinearProbeSettings)
    k_sparse: KSparseSettings = field(default_factory=KSparseSettings)
    splits: SplitSettings = field(default_factory=SplitSettings)
    rules: RuleChoice = field(default_factory=lambda: ["paper", "saebench-0.6.0", "saebench-0.3.2"])
    rates: RateSettings = field(default_factory=RateSettings)
    shuffles: Copies = 0
    crossfit: CrossfitSettings | None = None
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    profile: bool = False
    columns: ColumnChoice = "fit"

    def __post_init__(self) -> None:
        check_ranges(StudyConfig, vars(self))
        for name in ("run_dir", "cache_dir"):
            object.__setattr__(self, name, str(user_path(getattr(self, name))))
        object.__setattr__(self, "saes", named_saes(self.saes))
        model = str(self.model) if isinstance(self.model, Path) else self.model
        object.__setattr__(self, "model", model)
        if not isinstance(model, str):
            check_model(model)
            object.__setattr__(self, "model_dtype", dtype_of(model))
            object.__setattr__(self, "n_devices", len(devices_of(model)))
        check_model_dtype(self.model_dtype)
        self._check_devices()
        check_dtype(self.sae_dtype)
        if bool(self.saes) == bool(self.models):
            raise AbsorbError(
                "saes",
                self.saes,
                expected="SAEs of one model, or `models` with the SAEs of several, and not both",
                remedy="Name SAEs (`absorb-pl list` shows which there are).",
            )
        if not all(isinstance(name, str) for names in self.models.values() for name in names):
            raise AbsorbError(
                "models",
                self.models,
                expected="names of SAEs by the names of their models",
                remedy="Give SAEs themselves as `saes`, of one model.",
            )
        object.__setattr__(self, "rules", {rule.name: rule.own_settings() for rule in configured_rules(self.rules)})
        if self.crossfit is not None:
            check_rules_of_folds(self.chosen_rules())
        check_shuffles(self.shuffles, self.chosen_rules())
        self._check_until()
        for rule in self.chosen_rules():
            rule.check_stored(self.splits.silent)

    def chosen_rules(self) -> list[AbsorptionRule]:
        """The rules with their settings.

        Raises:
            RuleError: A name is unknown, or a rule has no such setting.
        """
        return configured_rules(self.rules)

    @property
    def in_memory(self) -> list[str]:
        """Names of the SAEs and the model that are given themselves."""
        saes = self.saes.items() if isinstance(self.saes, dict) else ()
        objects = [name for name, sae in saes if not isinstance(sae, str)]
        return objects if isinstance(self.model, str) else [*objects, self.model_name]

    @property
    def model_name(self) -> str:
        """Name of the language model."""
        return self.model if isinstance(self.model, str) else str(self.model.cfg.model_name)

    def plain(self) -> dict[str, Any]:
        """The settings as plain values; what is given itself stands there by its name."""
        saes = self.saes
        if isinstance(saes, dict):
            saes = named_saes({name: sae if isinstance(sae, str) else name for name, sae in saes.items()})
        return asdict(replace(self, saes=saes, model=self.model_name))

    def _check_devices(self) -> None:
        if self.n_devices <= 1:
            return
        first = (0 if isinstance(self.model, str) else model_device(self.model).index) or 0
        where = {name: getattr(self.trainer, name) for name in ("accelerator", "devices", "num_nodes")}
        on_first = where["devices"] in ([first], f"{first},") or (first == 0 and str(where["devices"]) == "1")
        if where["accelerator"] == "cpu" or not on_first or where["num_nodes"] > 1:
            raise AbsorbError(
                "trainer",
                where,
                expected=f"one process on GPU {first}, the first of {self.n_devices} that the model's layers are "
                "divided among (`n_devices`)",
                remedy=f"Leave them out, or set `trainer.accelerator` to gpu and `trainer.devices` to [{first}].",
            )

    def _check_until(self) -> None:
        needed = {"projections": {"projections", "carried"}, "absorption": {"gradients"}}
        kinds = {rule.evidence.name for rule in self.chosen_rules()}
        stages = [stage for stage in get_args(StageName) if stage not in needed or needed[stage] & kinds]
        if self.crossfit is None:
            stages.remove("cross-fit")
        if not self.shuffles:
            stages.remove("shuffles")
        if self.until not in stages:
            raise AbsorbError(
                "until",
                self.until,
                expected=f"a stage that these rules have: {', '.join(stages)}",
                remedy="Leave it out to run the whole study.",
            )
