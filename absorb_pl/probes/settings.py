"""How a study trains its probes."""

from dataclasses import dataclass

from absorb_pl.functional import DEFAULT_KS
from absorb_pl.ranges import Count, NotNegative, Positive, check_ranges


@dataclass(frozen=True)
class LinearProbeSettings:
    """Training of the linear probes; the defaults are the paper's.

    Attributes:
        lr: Learning rate of the first epoch.
        end_lr: Learning rate after the last.
        weight_decay: Weight decay.
        max_epochs: Epochs.
        batch_size: Rows a batch.
        polish: Finish at the optimum of the regularised objective.
    """

    lr: Positive = 1e-2
    end_lr: Positive = 1e-5
    weight_decay: NotNegative = 1e-4
    max_epochs: Count = 50
    batch_size: Count = 4096
    polish: bool = True

    def __post_init__(self) -> None:
        check_ranges(LinearProbeSettings, vars(self))


@dataclass(frozen=True)
class KSparseSettings:
    """Training of the k-sparse probes; the defaults are the paper's.

    Attributes:
        ks: Numbers of latents.
        l1_decay: Strength of the L1 penalty that ranks the latents.
        lr: Learning rate of the first epoch.
        end_lr: Learning rate after the last.
        max_epochs: Epochs of the ranking probe.
        batch_size: Rows a batch.
    """

    ks: tuple[Count, ...] = DEFAULT_KS
    l1_decay: NotNegative = 0.01
    lr: Positive = 1e-2
    end_lr: Positive = 1e-5
    max_epochs: Count = 50
    batch_size: Count = 4096

    def __post_init__(self) -> None:
        check_ranges(KSparseSettings, vars(self))
