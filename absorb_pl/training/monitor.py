"""Absorption while SAEs train: a callback that judges them on words every so many steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pandas as pd
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from absorb_pl.data.activation_datamodule import ActivationDataModule
from absorb_pl.data.forked_steps import forks_on
from absorb_pl.data.forks import at_a_time, in_forks
from absorb_pl.data.labelled_datamodule import LabelledDataModule
from absorb_pl.data.trainers import log_folder
from absorb_pl.engine.run_size import RunSize
from absorb_pl.errors import HookMismatchError, ShapeError
from absorb_pl.evaluators.absorption import gather_gradients
from absorb_pl.evaluators.evaluation import check_rules_without_model, evaluate_rules
from absorb_pl.evaluators.sae_probing import EvaluationRows, Rows, SplitSettings, walked_mains
from absorb_pl.evaluators.training import SIDE_BY_SIDE, portions_side_by_side, train_linear_probe, train_sae_probes
from absorb_pl.evaluators.writers import write_table
from absorb_pl.probes.k_sparse import SaeProbe
from absorb_pl.probes.settings import KSparseSettings, LinearProbeSettings
from absorb_pl.ranges import Count, Seed, check_ranges
from absorb_pl.reports.figures import save_figures
from absorb_pl.reports.training_figures import draw_checks
from absorb_pl.rules.evidence import Gradients
from absorb_pl.rules.rates import RateSettings
from absorb_pl.rules.registry import RuleChoice, configured_rules
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.loading import unit_norm_sae
from absorb_pl.saes.properties import sae_architecture
from absorb_pl.schema import CHECKS, stacked, typed
from absorb_pl.training.sae_module import SparseAutoencoderModule, require_saes_in_training

_WORLD_HOOK = "activations"
_FIRST_KS = 4
"""How far the walk to the main latents is prepared at first; most end before."""


class AbsorptionMonitor(Callback):
    """Splitting and absorption of all SAEs in training, every so many steps and at the end.

    The words' activations are read and the linear probe is trained once, before the first step; each look then takes
    what a study takes for the SAE alone, and its figures are those of a study of the SAE as it would be saved then.
    Logs `absorption/<rule>/<sae>` with the ends of its interval, which checkpoints can be chosen by, writes the table
    `checks`, and draws figures at the end.

    Args:
        words: Labelled activations of each hook: `ActivationDataModule`, or `HierarchyDataModule` for a known world.
            SAEs are judged on its test rows, and probes are trained on its training rows.
        every_n_steps: Steps between looks.
        rules: The rules; `absorb-pl-1` and `saebench-0.6.0` if not given. Rules on gradients need an
            `ActivationDataModule`, whose language model they run at each look.
        rates: How rates are summed up.
        splits: How main latents and candidate words are found.
        linear_probe: Training of the linear probe.
        k_sparse: Training of the k-sparse probes.
        batch_size: Most sequences in one run of the model, for rules on gradients; `auto` takes what the device's
            memory allows.
        seed: Seed of probe training.

    Attributes:
        checks: What was found so far, a row per step, SAE and rule (see `absorb_pl.schema.CHECKS`).

    Raises:
        RuleError: A rule needs gradients and there is no language model, or it is unknown.
        ShapeError: 1 is not among the numbers of latents.
    """

    def __init__(
        self,
        words: LabelledDataModule | list[LabelledDataModule],
        every_n_steps: Count = 1000,
        rules: RuleChoice | None = None,
        rates: RateSettings | None = None,
        splits: SplitSettings | None = None,
        linear_probe: LinearProbeSettings | None = None,
        k_sparse: KSparseSettings | None = None,
        batch_size: RunSize = "auto",
        seed: Seed = 42,
    ) -> None:
        check_ranges(AbsorptionMonitor.__init__, locals())
        self.words = {one.hook_name or _WORLD_HOOK: one for one in ([words] if not isinstance(words, list) else words)}
        self.every_n_steps, self.seed = every_n_steps, seed
        self.batch_size: RunSize = batch_size
        self.rates, self.splits = rates or RateSettings(), splits or SplitSettings()
        self.rules = configured_rules(rules or ["absorb-pl-1", "saebench-0.6.0"])
        if not all(isinstance(one, ActivationDataModule) for one in self.words.values()):
            check_rules_without_model(self.rules)
        for rule in self.rules:
            rule.check_stored(self.splits.silent)
        self.linear_probe, k_sparse = linear_probe or LinearProbeSettings(), k_sparse or KSparseSettings()
        if 1 not in k_sparse.ks:
            raise ShapeError(
                "ks", list(k_sparse.ks), expected="numbers of latents, 1 among them", remedy="Probe with k = 1, 2, 3, …"
            )
        self.ks = tuple(k for k in k_sparse.ks if k <= self.splits.max_k)  # tables of studies alone show further ones
        self.k_sparse = replace(k_sparse, ks=tuple(k for k in self.ks if k <= _FIRST_KS))
        self.checks = pd.DataFrame(columns=list(CHECKS))
        self._rows: dict[str, tuple[Rows, EvaluationRows]] = {}

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the words' activations and train the linear probes.

        Raises:
            AbsorbError: The module does not train SAEs.
            HookMismatchError: There are no words for an SAE's hook.
            SaeWidthError: Words are of another width than SAEs of their hook.
        """
        module = require_saes_in_training(self, pl_module)
        for hook in dict.fromkeys(module.hooks):
            if hook not in self.words:
                raise HookMismatchError(
                    "words",
                    list(self.words),
                    expected=f"words for each hook that SAEs read, also {hook}",
                    remedy="Add a data module of this hook.",
                )
            if hook not in self._rows:
                self._rows[hook] = self._prepared(trainer, self.words[hook], module.device)
        for name, sae in module.inference_saes().items():
            self.words[module.hooks[module.names.index(name)]].check_sae(sae)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every_n_steps == 0 or step == trainer.estimated_stepping_batches:
            self._look(trainer, cast(SparseAutoencoderModule, pl_module), step, batch)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = log_folder(trainer) / "figures"
        if trainer.is_global_zero and len(self.checks):
            save_figures(draw_checks(self.checks), folder)

    @override
    def state_dict(self) -> dict[str, Any]:
        """What was found so far, as plain values."""
        return {"checks": self.checks.astype(object).where(self.checks.notna(), None).to_dict("records")}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.checks = typed(pd.DataFrame(state_dict["checks"]), CHECKS)

    def _prepared(
        self, trainer: Trainer, data: LabelledDataModule, device: torch.device
    ) -> tuple[Rows, EvaluationRows]:
        if trainer.is_global_zero:
            data.prepare_data()
        trainer.strategy.barrier()
        data.setup("fit")
        train, test = data.splits["train"], data.splits["test"]
        training = data.rows(train), data.labels[train]
        probe, _ = train_linear_probe(*training, self.linear_probe, data.class_names, self.seed, device)
        weights, biases = probe.weights.detach().cpu(), probe.biases.detach().cpu()
        return training, EvaluationRows.of(data.rows(test), data.labels[test], test, weights, biases, data.class_names)

    def _look(self, trainer: Trainer, module: SparseAutoencoderModule, step: int, batch: dict[str, Any]) -> None:
        # Every process looks at all SAEs: metrics of nested trainings wait for one another across processes.
        saes, portions = module.inference_saes(), list[tuple[str, list[str]]]()
        forks = self._forks(
            trainer, [(hook, saes[name]) for hook, name in zip(module.hooks, module.names, strict=True)]
        )
        for hook in dict.fromkeys(module.hooks):
            names = [name for name, own in zip(module.names, module.hooks, strict=True) if own == hook]
            most = at_a_time(len(names), forks, SIDE_BY_SIDE)
            # SAEs that stand next to each other are often alike, and the work on dense ones is to be shared out.
            count = math.ceil(len(names) / most)
            for apart in (names[first::count] for first in range(count)):
                for some in portions_side_by_side([len(saes[name].W_dec) for name in apart], most):
                    portions.append((hook, [apart[number] for number in some]))

        def look(portion: tuple[str, list[str]]) -> dict[str, pd.DataFrame]:
            hook, names = portion
            return self._judged({name: saes[name] for name in names}, hook, module.device)

        found = {name: table for tables in in_forks(look, portions, forks) for name, table in tables.items()}
        table = pd.concat([found[name] for name in module.names], ignore_index=True)
        seen = step * len(next(iter(batch.values()))) * trainer.world_size
        table = table.assign(step=step, activations_seen=seen)
        earlier = self.checks[self.checks["step"] < step]
        self.checks = typed(stacked([earlier, table]), CHECKS)
        self._log(trainer, module, table)

    def _forks(self, trainer: Trainer, saes: Sequence[tuple[str, SparseAutoencoder]]) -> int:
        """How many processes look at SAEs; one where rules run the language model, which uses threads well."""
        if any(rule.evidence is Gradients for rule in self.rules):
            return 1
        words = {hook: max(len(training[0]), len(rows.x)) for hook, (training, rows) in self._rows.items()}
        return forks_on(trainer, len(saes), [words[hook] * len(sae.W_dec) for hook, sae in saes])

    def _judged(self, saes: Mapping[str, Any], hook: str, device: torch.device) -> dict[str, pd.DataFrame]:
        """What the rules say of SAEs of a hook, by their names."""
        training, rows = self._rows[hook]
        units = {name: unit_norm_sae(sae) for name, sae in saes.items()}
        with torch.inference_mode(False), torch.enable_grad():
            trained = train_sae_probes(
                list(units.values()), *training, self.k_sparse, rows.class_names, self.seed, device
            )
        found = {}
        for (name, unit), (probe, _) in zip(units.items(), trained, strict=True):
            about = {"sae": name, "hook_name": hook, "architecture": sae_architecture(saes[name])}
            found[name] = self._judged_one(unit, self._with_ks(unit, probe, hook), hook, device).assign(**about)
        return found

    def _with_ks(self, sae: SparseAutoencoder, probe: SaeProbe, hook: str) -> SaeProbe:
        """k-sparse probes for as many ks as the walk to the main latents needs, of the classes where it goes on."""
        training, rows = self._rows[hook]
        walked_on = training if self.splits.selection == "train" else (rows.x, rows.y)
        while True:
            walked, known = walked_mains(sae, probe, walked_on, self.splits), probe.ks[-1]
            goes_on = torch.tensor([len(walked.get(name, [])) == known for name in rows.class_names])
            further = [k for k in self.ks if known < k <= min(2 * known, len(sae.W_dec))]
            if not further or not bool(goes_on.any()):
                return probe
            probe = probe.with_ks([*probe.ks, *further], *training, goes_on)

    def _judged_one(self, unit: SparseAutoencoder, k_sparse: SaeProbe, hook: str, device: torch.device) -> pd.DataFrame:
        """What the rules say of an SAE with decoder rows of unit norm."""
        training, rows = self._rows[hook]
        data, gather = self.words[hook], None
        if isinstance(data, ActivationDataModule) and any(rule.evidence is Gradients for rule in self.rules):
            gather = gather_gradients(unit, data, rows.probe_weight, self.batch_size, device)
        probing, judgements = evaluate_rules(
            unit, k_sparse, rows, self.rules, self.splits, self.rates, gather, training
        )
        return pd.DataFrame([{**probing.statistics, **judgement.figures} for judgement in judgements])

    def _log(self, trainer: Trainer, module: SparseAutoencoderModule, table: pd.DataFrame) -> None:
        figures = {}
        for row in table.to_dict("records"):
            of_sae = f"{row['rule']}/{row['sae']}"
            names = {"absorption": "absorption_rate", "absorption_low": "ci_low", "absorption_high": "ci_high"}
            names |= {"absorbed_share": "absorption_fraction"}
            figures |= {f"{title}/{of_sae}": float(row[name]) for title, name in names.items() if pd.notna(row[name])}
            figures[f"splits/{row['sae']}"] = float(row["num_splits"])
            figures[f"top_latent_f1/{row['sae']}"] = float(row["top_latent_f1"])
        module.log_dict(figures, on_step=True, on_epoch=False, logger=False)
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)
        folder = log_folder(trainer) / "tables"
        if trainer.is_global_zero:
            write_table(self.checks, folder / "checks.parquet")
