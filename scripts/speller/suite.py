"""The suite of SAEs that ships with the speller: what each is and how SAELens trains it."""

from dataclasses import dataclass
from typing import Any, Literal

from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata, TrainingSAE

Architecture = Literal["standard", "batchtopk", "matryoshka", "jumprelu"]


@dataclass(frozen=True)
class SuiteEntry:
    """One SAE of the suite.

    Attributes:
        layer: It reads the residual stream behind this layer.
        architecture: How it is trained.
        width: Number of latents.
        level: The word for its sparsity in its name.
        sparsity: The L1 coefficient (standard), the mean number of active latents (BatchTopK and Matryoshka)
            or the L0 coefficient (JumpReLU), all for activations of mean norm sqrt(d_model).
        steps: Training steps; the L1 penalty needs more of them to become sparse.
    """

    layer: int
    architecture: Architecture
    width: int
    level: Literal["sparse", "medium", "dense"]
    sparsity: float
    steps: int = 1500

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"l{self.layer}-{self.architecture}-w{self.width}-{self.level}"

    @property
    def hook_name(self) -> str:
        """TransformerLens name of the activations it reads."""
        return f"blocks.{self.layer}.hook_resid_post"


SUITE = (
    SuiteEntry(1, "standard", 1024, "sparse", 9.0, 5000),
    SuiteEntry(1, "standard", 1024, "medium", 5.0, 5000),
    SuiteEntry(1, "standard", 2048, "medium", 5.0),
    SuiteEntry(1, "standard", 512, "dense", 2.0),
    SuiteEntry(1, "batchtopk", 1024, "sparse", 3),
    SuiteEntry(1, "batchtopk", 1024, "medium", 8),
    SuiteEntry(1, "batchtopk", 512, "dense", 20),
    SuiteEntry(1, "matryoshka", 1024, "sparse", 3),
    SuiteEntry(1, "matryoshka", 1024, "medium", 8),
    SuiteEntry(1, "jumprelu", 1024, "sparse", 3.0),
    SuiteEntry(1, "jumprelu", 1024, "medium", 1.0),
    SuiteEntry(2, "standard", 1024, "sparse", 9.0),
    SuiteEntry(2, "standard", 2048, "medium", 5.0),
    SuiteEntry(2, "standard", 512, "medium", 5.0, 5000),
    SuiteEntry(2, "batchtopk", 1024, "sparse", 3),
    SuiteEntry(2, "batchtopk", 512, "medium", 8),
    SuiteEntry(2, "matryoshka", 1024, "medium", 8),
    SuiteEntry(2, "jumprelu", 1024, "dense", 0.3),
)


def build_training_sae(entry: SuiteEntry, d_model: int, *, steps: int) -> TrainingSAE[Any]:
    """Return the untrained SAE of `entry` for activations of width `d_model`."""
    shared: dict[str, Any] = {
        "d_in": d_model,
        "d_sae": entry.width,
        "normalize_activations": "expected_average_only_in",
        "metadata": SAEMetadata(model_name="speller", hook_name=entry.hook_name, prepend_bos=True),
    }
    warm_up = max(1, steps // 5)
    if entry.architecture == "standard":
        return StandardTrainingSAE(
            StandardTrainingSAEConfig(l1_coefficient=entry.sparsity, l1_warm_up_steps=warm_up, **shared)
        )
    if entry.architecture == "batchtopk":
        return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=entry.sparsity, **shared))
    if entry.architecture == "matryoshka":
        widths = [entry.width // 16, entry.width // 4, entry.width]
        return MatryoshkaBatchTopKTrainingSAE(
            MatryoshkaBatchTopKTrainingSAEConfig(k=entry.sparsity, matryoshka_widths=widths, **shared)
        )
    return JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
            l0_coefficient=entry.sparsity,
            l0_warm_up_steps=warm_up,
            jumprelu_init_threshold=0.3,
            jumprelu_bandwidth=0.5,
            jumprelu_ste_to_input=True,
            **shared,
        )
    )
