"""How well SAEs reconstruct held-out activations, as a Metric that processes share."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from absorb_pl.functional.sae_stats import SaeStatistics


class ReconstructionMetrics(Metric):
    """Sparsity and reconstruction of an SAE over all rows of all processes.

    Args:
        d_model: Width of the activations.
        num_latents: Number of latents.

    Example:
        >>> metrics = ReconstructionMetrics(d_model=2, num_latents=3)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> metrics.update(x, torch.tensor([[1.0, 0.0, 0.0], [2.0, 1.0, 0.0]]), 0.5 * x)
        >>> {name: round(value, 2) for name, value in metrics.compute().items()}
        {'explained_variance': 0.5, 'l0': 1.5, 'mse': 0.25, 'silent_latents': 0.33}
    """

    full_state_update = False
    is_differentiable = False
    fired: Tensor
    total: Tensor
    sums: Tensor

    def __init__(self, d_model: int, num_latents: int) -> None:
        super().__init__()
        self.set_dtype(torch.float64)
        self.add_state("fired", torch.zeros(num_latents, dtype=torch.bool), dist_reduce_fx="max")
        self.add_state("total", torch.zeros(d_model, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(
        self,
        x: Float[Tensor, "rows d_model"],
        latents: Float[Tensor, "rows latents"],
        reconstruction: Float[Tensor, "rows d_model"],
    ) -> None:
        """Add rows.

        Args:
            x: Activations.
            latents: What the SAE makes of them.
            reconstruction: What it makes of its latents.
        """
        seen = SaeStatistics.empty(x.shape[1], latents.shape[1])
        seen.update(x, latents, reconstruction)
        self.fired |= seen.fired.to(self.fired.device)
        self.total += seen.total.to(self.total.device)
        self.sums += torch.tensor(
            [seen.num_rows, seen.num_active, seen.squared_error, seen.squared_norm], device=self.sums.device
        )

    @override
    def compute(self) -> dict[str, float]:
        """Explained variance, L0, squared error per row summed over dimensions, and share of latents that never fired.

        Raises:
            ShapeError: There are fewer than two rows, or all are equal.
        """
        rows, active, error, norm = self.sums.tolist()
        seen = SaeStatistics(self.fired, self.total, int(rows), int(active), error, norm)
        return {
            "explained_variance": seen.explained_variance,
            "l0": seen.l0,
            "mse": error / rows,
            "silent_latents": seen.dead_fraction,
        }
