"""Train the small SAEs that ship with the package, in the worlds of `absorb_pl.truth.hierarchy`.

    python scripts/train_worlds.py --out absorb_pl/truth/assets [--worlds rare-children] [--samples 1500000]

Five architectures, each from hardly sparse to too sparse, so that what they absorb differs. Weights are stored in
float16; the truth is read off the stored SAE. About a quarter of a minute per SAE on one core.
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.synthetic import train_toy_sae

from absorb_pl.saes import load_sae
from absorb_pl.truth.hierarchy import HIERARCHIES, HierarchyWorld, hierarchy_truth

SPARSITIES: dict[str, tuple[float, ...]] = {
    "standard": (0.1, 0.3, 0.6),
    "topk": (2, 3),
    "batchtopk": (1.5, 2.5),
    "matryoshka": (2, 3),
    "jumprelu": (0.003, 0.01),
}
"""What each architecture is asked for: L1 or L0 coefficient, or the number of latents that fire."""


def training_sae(architecture: str, sparsity: float, d_model: int, latents: int) -> TrainingSAE[Any]:
    """An untrained SAE.

    Args:
        architecture: One of `SPARSITIES`.
        sparsity: Its coefficient or number of latents.
        d_model: Width of the activations.
        latents: Number of latents.
    """
    sizes: dict[str, Any] = {"d_in": d_model, "d_sae": latents}
    if architecture == "standard":
        return StandardTrainingSAE(StandardTrainingSAEConfig(**sizes, l1_coefficient=sparsity))
    if architecture == "topk":
        return TopKTrainingSAE(TopKTrainingSAEConfig(**sizes, k=int(sparsity)))
    if architecture == "batchtopk":
        return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes, k=sparsity))
    if architecture == "matryoshka":
        widths = [latents // 8, latents // 2, latents]
        return MatryoshkaBatchTopKTrainingSAE(
            MatryoshkaBatchTopKTrainingSAEConfig(**sizes, k=sparsity, matryoshka_widths=widths)
        )
    return JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
            **sizes, l0_coefficient=sparsity, jumprelu_init_threshold=0.1, jumprelu_bandwidth=0.1, l0_warm_up_steps=200
        )
    )


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="Folder to write below.")
    parser.add_argument("--worlds", nargs="+", choices=list(HIERARCHIES), default=list(HIERARCHIES))
    parser.add_argument("--architectures", nargs="+", choices=list(SPARSITIES), default=list(SPARSITIES))
    parser.add_argument("--samples", type=int, default=1_500_000, help="Training samples per SAE.")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in options.worlds:
        world = HierarchyWorld(HIERARCHIES[name])
        sizes, activations, _ = world.labelled(200, seed=1_000)
        for architecture in options.architectures:
            for sparsity in SPARSITIES[architecture]:
                torch.manual_seed(1)
                sae = training_sae(architecture, sparsity, world.settings.d_model, world.settings.features)
                train_toy_sae(
                    sae,
                    world.dictionary,
                    world.generator,
                    training_samples=options.samples,
                    batch_size=1024,
                    lr=1e-3,
                    lr_decay_steps=options.samples // 1024 // 4,
                )
                folder = options.out / name / f"{architecture}-{sparsity:g}"
                sae.cfg.dtype = "float16"
                sae.to(dtype=torch.float16).save_inference_model(folder)
                stored = load_sae(str(folder))
                latents = stored.encode(activations)
                rest = ((stored.decode(latents) - activations) ** 2).sum()
                explained = 1 - float(rest / ((activations - activations.mean(dim=0)) ** 2).sum())
                truth = hierarchy_truth(world, stored, sizes, activations)
                print(
                    f"{name}/{folder.name:<16} L0 {float((latents != 0).sum(dim=1).float().mean()):5.1f}   "
                    f"explained {explained:.3f}   absorbed {truth['is_absorbed'].mean():.3f}   "
                    f"share {truth['share'].mean():.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
