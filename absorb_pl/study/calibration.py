"""Rules held against the truth: planted SAEs and SAEs trained in known worlds, from settings to tables and figures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from absorb_pl.data.drafts import check_writable, user_path
from absorb_pl.data.publication import publishing
from absorb_pl.errors import AbsorbError
from absorb_pl.evaluators.activations import evaluate_activations
from absorb_pl.evaluators.evaluation import check_rules_without_model
from absorb_pl.evaluators.sae_probing import SplitSettings
from absorb_pl.evaluators.writers import write_table
from absorb_pl.interruption import interruptible
from absorb_pl.models.closest import closest_names
from absorb_pl.probes.fitting import quiet_lightning
from absorb_pl.ranges import Count, Seed, check_ranges
from absorb_pl.reports.calibration_figures import draw_calibration
from absorb_pl.reports.calibration_table import print_calibration
from absorb_pl.reports.figures import save_figures
from absorb_pl.rules.registry import RuleChoice, configured_rules
from absorb_pl.saes.identity import sae_identity
from absorb_pl.saes.loading import load_sae
from absorb_pl.schema import CALIBRATION
from absorb_pl.study.config import TrainerSettings
from absorb_pl.study.stage import Files, Stage
from absorb_pl.study.trainers import stage_trainers
from absorb_pl.truth.hierarchy import HIERARCHIES, HierarchyWorld, hierarchy_truth
from absorb_pl.truth.planted import planted_sae
from absorb_pl.truth.planted_settings import PLANTED
from absorb_pl.truth.scoring import score_against_truth, score_progress, summarise_scores
from absorb_pl.truth.trained import list_trained_saes, trained_sae_path
from absorb_pl.truth.world import make_world

_ROWS_PER_PARENT = 300
"""Samples of each parent feature on which an SAE trained in a world is evaluated."""
_NONE = "none"


@dataclass(frozen=True)
class CalibrationConfig:
    """Settings of a calibration.

    Attributes:
        rules: The rules to hold against the truth, perhaps with settings; those for which activations are enough.
        planted: Planted settings by name, or `all`, or `none`.
        trained: SAEs trained in known worlds by name, or `all`, or `none`.
        checks: Tables of `AbsorptionMonitor`: how well rates tell the stages of a training apart.
        splits: How main latents and candidate words are found.
        seeds: How many times a planted world and samples are drawn.
        seed: Seed of the split and of probe training.
        run_dir: Where tables and figures go.
        cache_dir: Where finished evaluations are kept.
        trainer: Where the calibration runs.
    """

    rules: RuleChoice = field(default_factory=lambda: ["absorb-pl-1", "saebench-0.6.0", "saebench-0.3.2"])
    planted: list[str] = field(default_factory=lambda: ["all"])
    trained: list[str] = field(default_factory=lambda: ["all"])
    checks: list[str] = field(default_factory=list)
    splits: SplitSettings = field(default_factory=SplitSettings)
    seeds: Count = 2
    seed: Seed = 42
    run_dir: str = "lightning_logs/calibration"
    cache_dir: str = "lightning_logs/cache"
    trainer: TrainerSettings = field(default_factory=TrainerSettings)

    def __post_init__(self) -> None:
        check_ranges(CalibrationConfig, vars(self))
        for name in ("run_dir", "cache_dir"):
            object.__setattr__(self, name, str(user_path(getattr(self, name))))
        rules = configured_rules(self.rules)
        check_rules_without_model(rules)
        object.__setattr__(self, "rules", {rule.name: rule.own_settings() for rule in rules})
        object.__setattr__(self, "planted", _chosen("planted", self.planted, list(PLANTED)))
        object.__setattr__(self, "trained", _chosen("trained", self.trained, list_trained_saes()))
        for file in self.checks:
            if not user_path(file).is_file():
                raise AbsorbError(
                    "checks",
                    file,
                    expected="tables `checks.parquet` of trainings",
                    remedy="Train with the callback `AbsorptionMonitor`; it writes one to the run's folder `tables`.",
                )
        if not self.planted and not self.trained:
            raise AbsorbError(
                "planted",
                _NONE,
                expected="something to hold the rules against",
                remedy="Name planted settings, or SAEs trained in known worlds under `trained`.",
            )


def _chosen(argument: str, asked: Sequence[str], known: list[str]) -> list[str]:
    names = [name for each in asked for name in ({"all": known, _NONE: []}.get(each, [each]))]
    for name in names:
        if name not in known:
            raise AbsorbError(
                argument,
                name,
                expected=f"one of {', '.join(known)}, `all` or `none`",
                remedy=f"Nearest: {closest_names(name, known)}.",
            )
    return list(dict.fromkeys(names))


class CalibrationStage(Stage):
    """Evaluates one planted or trained SAE by all rules and holds them against the truth.

    Args:
        config: The settings.
    """

    name = "calibration"
    title = "calibration"

    def __init__(self, config: CalibrationConfig) -> None:
        super().__init__(Path(config.cache_dir))
        self.config = config
        self.units = {
            f"{name}@{seed}": (family, name, seed)
            for family, names in (("planted", config.planted), ("trained", config.trained))
            for name in names
            for seed in range(config.seeds)
        }

    @override
    def identity(self, unit: str) -> dict[str, Any]:
        family, name, seed = self.units[unit]
        if family == "planted":
            setting = PLANTED[name].seeded(seed)
            subject: dict[str, Any] = {"world": asdict(setting.world), "absorption": asdict(setting.absorption)}
        else:
            world = HIERARCHIES[_world_of(name)]
            subject = {"world": asdict(world), "sae": _identity_of(name), "seed": seed}
        return {
            **subject,
            "rules": self.config.rules,
            "splits": asdict(self.config.splits),
            "split_seed": self.config.seed,
            "format": 5,
        }

    @override
    def size(self, unit: str) -> int:
        return 0  # worlds are small

    @override
    def make(self, unit: str, device: torch.device) -> Files:
        family, name, seed = self.units[unit]
        if family == "planted":
            setting = PLANTED[name].seeded(seed)
            world, made = planted_sae(make_world(setting.world), setting.absorption)
            sae, truth = made.sae, made.truth
            activations, labels = world.activations, world.labels
        else:
            hierarchy = HierarchyWorld(HIERARCHIES[_world_of(name)])
            sae = load_sae(str(trained_sae_path(name)))
            sizes, activations, labels = hierarchy.labelled(_ROWS_PER_PARENT, seed)
            truth = hierarchy_truth(hierarchy, sae, sizes, activations)
        tables = evaluate_activations(
            sae, activations, labels, self.config.rules, seed=self.config.seed, splits=self.config.splits, device=device
        )
        return {"scores.parquet": score_against_truth(tables, truth)}

    def scores(self) -> pd.DataFrame:
        """What all units say, with the columns of `absorb_pl.schema.CALIBRATION`."""
        parts = []
        for unit, (family, name, seed) in self.units.items():
            world, _, sae = name.rpartition("/")
            about = {"family": world or family, "setting": sae if world else name, "seed": seed}
            parts.append(self.read(unit, "scores.parquet").assign(**about))
        return pd.concat(parts, ignore_index=True)[list(CALIBRATION)]


def _read_checks(config: CalibrationConfig) -> pd.DataFrame:
    """Looks at SAEs in training, by the rules of the calibration; SAEs of several trainings by the names of both."""
    parts = []
    for file in map(user_path, config.checks):
        looks = pd.read_parquet(file)
        name = file.parent.parent.name
        parts.append(looks if len(config.checks) == 1 else looks.assign(sae=f"{name}/" + looks["sae"]))
    looks = pd.concat(parts, ignore_index=True)
    return looks[looks["rule"].isin(config.rules)]


@cache
def _identity_of(name: str) -> str:
    """Identity of a trained SAE, whose files are read once: a stage asks for identities again and again."""
    return sae_identity(load_sae(str(trained_sae_path(name))))


def _world_of(name: str) -> Any:
    return name.partition("/")[0]


@quiet_lightning()
def calibrate(config: CalibrationConfig | None = None) -> Mapping[str, pd.DataFrame]:
    """Hold rules against SAEs of which it is known what they absorb.

    Finished evaluations are kept under `cache_dir`; a calibration that was stopped goes on from there.

    Args:
        config: The settings.

    Returns:
        The tables `calibration` and `calibration_summary`, as written to `run_dir/tables` beside the figures.

    Raises:
        AbsorbError: One of the named errors of `absorb_pl.errors`.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> found = calibrate(CalibrationConfig(
        ...     rules="absorb-pl-1", planted=["clean-30"], trained=["none"], seeds=1, run_dir=f"{folder}/run",
        ...     cache_dir=f"{folder}/cache", trainer=TrainerSettings(enable_progress_bar=False)))  # doctest: +ELLIPSIS
        Rules held against the truth...
        >>> abs(found["calibration_summary"]["rate_bias"].item()) < 0.02
        True
    """
    config = config or CalibrationConfig()
    check_writable(Path(config.cache_dir))
    stage = CalibrationStage(config)
    kept = f"Finished evaluations are kept in {config.cache_dir}; the same command goes on from there."
    with interruptible(lambda: kept):
        stage.run(list(stage.units), stage_trainers(config.trainer, stage.title))
    scores = stage.scores()
    summary = [summarise_scores(scores)]
    if config.checks:
        summary.append(score_progress(_read_checks(config)))
    tables = {"calibration": scores, "calibration_summary": pd.concat(summary, ignore_index=True)}
    run_dir = Path(config.run_dir)
    if getattr(rank_zero_only, "rank", 0) == 0:
        with publishing(run_dir) as part:
            for name, table in tables.items():
                write_table(table, part / "tables" / f"{name}.parquet")
            save_figures(draw_calibration(tables), part / "figures")
        print_calibration(tables["calibration_summary"], run_dir)
    return tables
