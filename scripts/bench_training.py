"""Training SAEs on a language model's activations, against SAELens's own runner.

Both train SAEs of the same settings on the same model and texts, with the same batches and buffers in size. A runner of
SAELens trains one SAE, so a sweep over eight sparsities is eight runs; here they train side by side in one. What is
timed is what 62 steps more take, two whole buffers, so that neither start-up nor the first buffer counts.

    python scripts/bench_training.py --shapes speller --json training.json
"""

import contextlib
import io
import logging
import statistics
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmark_shapes import SHAPES, Setting, open_shape
from benchmarking import Report, new_report, parse_arguments, peak_memory, timed
from datasets import Dataset
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, StandardTrainingSAEConfig
from sae_lens.config import LoggingConfig

from absorb_pl.training import (
    SaeOptimisation,
    SaeSettings,
    SparseAutoencoderModule,
    TextActivations,
    TokenActivationDataModule,
)

BATCH, CONTEXT, CONTEXTS_PER_PASS, PASSES_PER_BUFFER = 1024, 128, 8, 32
LATENTS = {"speller": 1024, "gpt2-small": 2048, "gemma2-2b-slice": 4096}
SPARSITIES = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 9.0)
BUFFER_STEPS = 31
TEXTS = 400


def main(args: list[str] | None = None) -> Report:
    """Run the benchmark, print its table, and return its figures."""
    options = parse_arguments(__doc__, SHAPES, args)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("sae_lens").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    report = new_report("training", options.device)
    for name in options.shapes:
        with open_shape(name, options.device) as setting, TemporaryDirectory() as folder:
            texts = _texts(setting)
            texts.save_to_disk(Path(folder) / "texts")
            for count in (1, len(SPARSITIES)):
                report.measurements.append(
                    _benchmark(setting, texts, Path(folder), count, options.repeats, quick=options.quick)
                )
    report.show()
    report.write(options.json)
    return report


def _benchmark(
    setting: Setting, texts: Dataset, folder: Path, count: int, repeats: int, *, quick: bool
) -> dict[str, Any]:
    """Activations per second of both, for some sparsities."""
    steps = (2, 3) if quick else (BUFFER_STEPS, 3 * BUFFER_STEPS)
    data = _data(setting, folder)
    ways = {"saelens": partial(_run_saelens, setting, texts), "this": partial(_run_this, setting, data, count)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory = {}
    for _ in range(repeats):
        for name, run in ways.items():
            short, long = (timed(partial(run, number), setting.device)[0] for number in steps)
            seconds[name].append(max(long - short, 1e-9))
            memory.setdefault(name, peak_memory(setting.device))
    rows = (steps[1] - steps[0]) * BATCH
    saelens, this = (rows / statistics.median(seconds[name]) for name in ways)
    return {
        "shape": setting.name,
        "latents": LATENTS[setting.name],
        "sparsities": count,
        "saelens activations/s": round(saelens / count),
        "this activations/s": round(this),
        "times faster": round(this / (saelens / count), 2),
        "peak MiB after saelens": round(memory["saelens"]),
        "peak MiB after this": round(memory["this"]),
    }


def _run_saelens(setting: Setting, texts: Dataset, steps: int) -> None:
    config = LanguageModelSAERunnerConfig(
        sae=StandardTrainingSAEConfig(
            d_in=setting.model.cfg.d_model, d_sae=LATENTS[setting.name], l1_coefficient=SPARSITIES[0]
        ),
        model_name=setting.name,
        hook_name=setting.shape.hook_name,
        dataset_path="texts",
        is_dataset_tokenized=False,
        streaming=False,
        context_size=CONTEXT,
        prepend_bos=True,
        store_batch_size_prompts=CONTEXTS_PER_PASS,
        n_batches_in_buffer=PASSES_PER_BUFFER,
        train_batch_size_tokens=BATCH,
        training_tokens=steps * BATCH,
        device=setting.device,
        logger=LoggingConfig(log_to_wandb=False),
        output_path=None,
        verbose=False,
    )
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        LanguageModelSAETrainingRunner(config, override_dataset=texts, override_model=setting.model).run()


def _data(setting: Setting, folder: Path) -> TokenActivationDataModule:
    source = TextActivations(
        [setting.shape.hook_name],
        setting.model,
        dataset=str(folder / "texts"),
        context_size=CONTEXT,
        contexts_per_chunk=CONTEXTS_PER_PASS,
        cache_dir=folder / "cache",
    )
    return TokenActivationDataModule(source, batch_size=BATCH, chunks_per_buffer=PASSES_PER_BUFFER, val_chunks=1)


def _run_this(setting: Setting, data: TokenActivationDataModule, count: int, steps: int) -> None:
    saes = {
        f"l1-{sparsity}": SaeSettings("standard", LATENTS[setting.name], settings={"l1_coefficient": sparsity})
        for sparsity in SPARSITIES[:count]
    }
    module = SparseAutoencoderModule(saes, data.hook_widths, SaeOptimisation())
    Trainer(
        strategy=SingleDeviceStrategy(setting.device),
        accelerator="gpu" if setting.device != "cpu" else "cpu",
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, data)


def _texts(setting: Setting) -> Dataset:
    """Texts of random words, long enough for a few rounds of both."""
    generator = torch.Generator().manual_seed(0)
    words = setting.task.words
    drawn = torch.randint(len(words), (TEXTS, 4 * CONTEXT), generator=generator).tolist()
    return Dataset.from_dict({"text": ["".join(f" {words[number].strip()}" for number in text) for text in drawn]})


if __name__ == "__main__":
    main()
