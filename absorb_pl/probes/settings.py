"""How a study trains its probes."""

from dataclasses import asdict, dataclass
from typing import Any

from absorb_pl.functional.k_sparse import DEFAULT_KS
from absorb_pl.probes.linear import Solver, check_recipe
from absorb_pl.ranges import Count, NotNegative, Positive, check_ranges

_RECIPE = {"lr": 1e-2, "end_lr": 1e-5, "max_epochs": 50, "batch_size": 4096}


@dataclass(frozen=True)
class LinearProbeSettings:
    """Training of the linear probes.

    Attributes:
        solver: `optimum` finds the optimum of the paper's objective; `adam` is the published recipe.
        weight_decay: Weight decay.
        lr: Learning rate of the first epoch (adam; 1e-2 if not given).
        end_lr: Learning rate after the last epoch (adam; 1e-5 if not given).
        max_epochs: Epochs (adam; 50 if not given).
        batch_size: Rows per batch (adam; 4096 if not given).

    Raises:
        AbsorbError: A setting of adam is given for the solver `optimum`.
    """

    solver: Solver = "optimum"
    weight_decay: NotNegative = 1e-4
    lr: Positive | None = None
    end_lr: Positive | None = None
    max_epochs: Count | None = None
    batch_size: Count | None = None

    def __post_init__(self) -> None:
        check_ranges(LinearProbeSettings, vars(self))
        check_recipe(self.solver, {name: getattr(self, name) for name in _RECIPE})
        if self.solver == "adam":
            for name, value in _RECIPE.items():
                object.__setattr__(self, name, value if getattr(self, name) is None else getattr(self, name))

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that the probe depends on."""
        return {name: value for name, value in asdict(self).items() if value is not None}


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
