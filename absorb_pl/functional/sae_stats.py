"""Statistics of an SAE on activations: sparsity, reconstruction and dead latents, chunk by chunk."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from absorb_pl.errors import ShapeError
from absorb_pl.functional.validation import require_finite


@dataclass
class SaeStatistics:
    """Running sums over rows, from which the statistics follow.

    Sums are kept in float64, so chunks of any size and order give the same figures; `merge` joins the sums of
    several processes.

    Attributes:
        fired: Which latents have fired on any row so far.
        num_rows: Rows seen.
        num_active: Latent activations that differ from zero.
        squared_error: `Σ‖x − x̂‖²`.
        squared_norm: `Σ‖x‖²`.
        total: `Σx`.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> stats = SaeStatistics.empty(d_model=2, num_latents=3)
        >>> stats.update(x, latents=torch.tensor([[1.0, 0.0, 0.0], [2.0, 1.0, 0.0]]), reconstruction=0.5 * x)
        >>> stats.l0, stats.explained_variance, stats.num_dead
        (1.5, 0.5, 1)
    """

    fired: Bool[Tensor, " latents"]
    total: Float[Tensor, " d_model"]
    num_rows: int = field(default=0)
    num_active: int = field(default=0)
    squared_error: float = field(default=0.0)
    squared_norm: float = field(default=0.0)

    @classmethod
    def empty(cls, d_model: int, num_latents: int) -> "SaeStatistics":
        """Start without rows.

        Args:
            d_model: Width of the activations.
            num_latents: Width of the SAE.

        Returns:
            Sums of nothing.
        """
        return cls(torch.zeros(num_latents, dtype=torch.bool), torch.zeros(d_model, dtype=torch.float64))

    def update(
        self,
        x: Float[Tensor, "rows d_model"],
        latents: Float[Tensor, "rows latents"],
        reconstruction: Float[Tensor, "rows d_model"],
    ) -> None:
        """Add rows.

        Args:
            x: Activations given to the SAE.
            latents: Its latent activations.
            reconstruction: Its output.

        Raises:
            NonFiniteError: A value is NaN or infinite.
        """
        require_finite(x=x, latents=latents, reconstruction=reconstruction)
        x = x.double()
        active = latents != 0
        self.fired |= active.any(dim=0).to(self.fired.device)
        self.total += x.sum(dim=0).to(self.total.device)
        self.num_rows += len(x)
        self.num_active += int(active.sum())
        self.squared_error += float((x - reconstruction.double()).square().sum())
        self.squared_norm += float(x.square().sum())

    @property
    def l0(self) -> float:
        """Mean number of latents that differ from zero on a row.

        Raises:
            ShapeError: There are no rows.
        """
        self._require_rows(1)
        return self.num_active / self.num_rows

    @property
    def explained_variance(self) -> float:
        """Share of variance reconstructed, `1 − Σ‖x − x̂‖² / Σ‖x − mean(x)‖²` over all rows and dimensions.

        SAEBench's `explained_variance` and SAELens's evaluation differ in averaging per dimension or per row
        first; this is the ratio of sums (one minus the fraction of variance unexplained), which does not
        depend on chunks. Negative where the reconstruction is worse than the mean.

        Raises:
            ShapeError: There are fewer than two rows, or all rows are equal.
        """
        self._require_rows(2)
        variance = self.squared_norm - float(self.total.square().sum()) / self.num_rows
        if variance <= 1e-12 * self.squared_norm:
            raise ShapeError("x", "equal rows", expected="rows that differ", remedy="Use more words.")
        return 1 - self.squared_error / variance

    @property
    def num_dead(self) -> int:
        """Number of latents that fired on no row."""
        return int((~self.fired).sum())

    @property
    def dead_fraction(self) -> float:
        """Share of latents that fired on no row."""
        return self.num_dead / len(self.fired)

    def _require_rows(self, least: int) -> None:
        if self.num_rows < least:
            raise ShapeError(
                "x",
                f"{self.num_rows} rows",
                expected=f"at least {least}",
                remedy="Update with activations first.",
            )
