"""Train the SAEs that ship with the speller, with SAELens's own training classes.

    python scripts/train_speller_saes.py --model absorb_pl/models/assets/speller/model \
        --output absorb_pl/models/assets/speller/saes

Every SAE of the suite sees the same activations, generated in memory from the speller's training mixture.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from speller.activations import collect_activations, endless_batches
from speller.measure import sae_figures
from speller.suite import SUITE, build_training_sae
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

from absorb_pl.training.spelling_mixture import SpellingMixture, vocabulary_of


def main(args: list[str] | None = None) -> dict[str, float]:
    """Train and save the chosen SAEs; return the explained variance of each on its training activations."""
    options = _parser().parse_args(args)
    torch.set_num_threads(options.threads)
    entries = [entry for entry in SUITE if not options.only or entry.name in options.only]
    unknown = set(options.only) - {entry.name for entry in entries}
    if unknown:
        raise SystemExit(f"not in the suite: {sorted(unknown)}; it has {[entry.name for entry in SUITE]}")
    model = TransformerBridge.boot_transformers(str(options.model), device="cpu", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    mixture = SpellingMixture(
        tokenizer, vocabulary_of(tokenizer), power=options.power, examples=options.examples, seed=options.seed
    )
    hooks = sorted({entry.hook_name for entry in entries})
    start = time.perf_counter()
    activations = collect_activations(model, mixture, hooks, rows=options.rows, other_share=options.other_share)
    print(f"{options.rows} activations per hook ({time.perf_counter() - start:.0f} s)", flush=True)
    explained = {}
    for entry in entries:
        torch.manual_seed(options.seed)
        start = time.perf_counter()
        rows = activations[entry.hook_name]
        steps = options.steps or entry.steps
        sae = build_training_sae(entry, rows.shape[1], steps=steps)
        train_sae(sae, rows, steps=steps, batch_size=options.batch_size, lr=options.lr, seed=options.seed)
        sae.fold_W_dec_norm()
        for key in ("lr", "rows", "other_share", "power", "seed"):
            sae.cfg.metadata[f"training_{key}"] = getattr(options, key)
        sae.cfg.metadata["training_steps"] = steps
        sae.cfg.metadata["training_batch"] = options.batch_size
        sae.save_inference_model(options.output / entry.name)
        figures = sae_figures(SAE.load_from_disk(options.output / entry.name), rows[:20_000])
        explained[entry.name] = figures["explained_variance"]
        shown = " ".join(f"{figure} {value:.3f}" for figure, value in figures.items())
        print(f"{entry.name} ({time.perf_counter() - start:.0f} s): {shown}", flush=True)
    return explained


def train_sae(sae: TrainingSAE[Any], rows: Tensor, *, steps: int, batch_size: int, lr: float, seed: int) -> None:
    """Train `sae` in place on activations `[rows, d_model]`."""
    SAETrainer(
        SAETrainerConfig(
            total_training_samples=steps * batch_size,
            train_batch_size_samples=batch_size,
            lr=lr,
            lr_end=lr / 10,
            lr_warm_up_steps=steps // 20,
            lr_decay_steps=steps // 4,
            dead_feature_window=max(1, steps // 20),
            feature_sampling_window=max(1, steps // 10),
            n_batches_for_norm_estimate=20,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=endless_batches(rows, batch_size, seed=seed),
    ).fit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder that train_speller.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for the SAEs, one folder each")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="train this one; repeatable")
    parser.add_argument("--steps", type=int, help="in place of each SAE's own number of steps")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--rows", type=int, default=100_000, help="activations generated for each hook")
    parser.add_argument("--other-share", type=float, default=0.2, help="share of rows not read at a word")
    parser.add_argument("--power", type=float, default=0.6, help="words are drawn by frequency to this power")
    parser.add_argument("--examples", type=int, default=11, help="solved examples a context")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="PyTorch threads; figures repeat for equal numbers")
    return parser


if __name__ == "__main__":
    main()
