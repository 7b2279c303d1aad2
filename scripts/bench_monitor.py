"""What a look of `AbsorptionMonitor` costs while SAEs train, beside evaluating each of them by itself.

    python scripts/bench_monitor.py --json monitor.json

Eight SAEs train side by side on the speller's activations, two sparsities of each of four architectures. After some
steps the monitor looks at them a few times, and in turn each SAE is evaluated alone on the same words, with all that a
study asks of it; both must say the same. Seconds are medians.
"""

import argparse
import logging
import statistics
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from benchmarking import new_report, peak_memory, timed
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from absorb_pl import evaluate_activations
from absorb_pl.data import ActivationDataModule
from absorb_pl.training import (
    AbsorptionMonitor,
    SaeOptimisation,
    SaeSettings,
    SparseAutoencoderModule,
    SpellingActivations,
    TokenActivationDataModule,
)

HOOK = "blocks.1.hook_resid_post"
RULES = ["absorb-pl-1", "saebench-0.6.0"]
ARCHITECTURES: dict[str, list[dict[str, Any]]] = {
    "standard": [{"l1_coefficient": 2.0}, {"l1_coefficient": 6.0}],
    "topk": [{"k": 8}, {"k": 16}],
    "batchtopk": [{"k": 8}, {"k": 16}],
    "jumprelu": [{"l0_coefficient": 0.3}, {"l0_coefficient": 1.0}],
}


class TimedMonitor(AbsorptionMonitor):
    """Looks at the end of a training in turn with evaluations of one SAE after the other."""

    def __init__(self, words: ActivationDataModule, repeats: int) -> None:
        super().__init__(words, every_n_steps=10**9, rules=RULES)
        self.repeats = repeats
        self.seconds: dict[str, list[float]] = {"look": [], "one by one": []}
        self.found: dict[str, pd.DataFrame] = {}

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step < trainer.estimated_stepping_batches:
            return
        module = cast(SparseAutoencoderModule, pl_module)
        data = self.words[HOOK]
        x = data.rows(torch.arange(len(data.labels)))
        labels = [data.class_names[c] for c in data.label_numbers.tolist()]
        look = super().on_train_batch_end

        def one_by_one() -> pd.DataFrame:
            summaries = [
                evaluate_activations(sae, x, labels, RULES, seed=self.seed)["summary"].assign(sae=name)
                for name, sae in module.inference_saes().items()
            ]
            return pd.concat(summaries, ignore_index=True)

        table = pd.DataFrame()
        for _ in range(self.repeats + 1):
            seconds, _ = timed(lambda: look(trainer, module, outputs, batch, batch_idx), "cpu")
            self.seconds["look"].append(seconds)
            seconds, table = timed(one_by_one, "cpu")
            self.seconds["one by one"].append(seconds)
        self.found = {"look": self.checks, "one by one": table}


def measure(latents: int, steps: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Seconds of a look at SAEs, and of an evaluation of each by itself.

    Args:
        latents: Latents of each SAE.
        steps: Steps that they train for before.
        repeats: Looks after the first, which is not counted.
        folder: Where logs and activations go.

    Raises:
        SystemExit: The two say different things of an SAE.
    """
    seed_everything(0, verbose=False)
    saes = {
        f"{architecture}-{number}": SaeSettings(architecture, latents, settings=settings)
        for architecture, sparsities in ARCHITECTURES.items()
        for number, settings in enumerate(sparsities)
    }
    data = TokenActivationDataModule(SpellingActivations(hook_names=[HOOK]), batch_size=1024)
    words = ActivationDataModule(hook_name=HOOK, val_fraction=0.0, cache_dir=folder / "cache")
    monitor = TimedMonitor(words, repeats)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=TensorBoardLogger(folder, name="", version=""),
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(SparseAutoencoderModule(saes, data.hook_widths, SaeOptimisation(lr=1e-3)), datamodule=data)
    tables = [monitor.found[way].set_index(["sae", "rule"]) for way in ("look", "one by one")]
    for figure in ("absorption_rate", "ci_high", "absorption_fraction", "num_splits", "l0"):
        ours, theirs = (table.loc[tables[0].index, figure] for table in tables)
        if not np.allclose(ours.to_numpy(float), theirs.to_numpy(float), atol=1e-3):
            raise SystemExit(f"A look and an evaluation differ in {figure}:\n{pd.concat([ours, theirs], axis=1)}")
    look, alone = (statistics.median(seconds[1:]) for seconds in monitor.seconds.values())
    return {
        "SAEs": len(saes),
        "latents": latents,
        "words": len(words.labels),
        "a look, s": round(look, 2),
        "one by one, s": round(alone, 2),
        "times faster": round(alone / look, 1),
        "memory, MiB": round(peak_memory("cpu")),
    }


def main(args: list[str] | None = None) -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=600, help="steps of training before the looks")
    parser.add_argument("--repeats", type=int, default=3, help="looks after the first")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(args)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    report = new_report("monitor", "cpu")
    with TemporaryDirectory() as folder:
        report.measurements.append(measure(options.latents, options.steps, options.repeats, Path(folder)))
    report.show()
    report.write(options.json)


if __name__ == "__main__":
    main()
