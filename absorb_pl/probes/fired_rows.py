"""Rows of latents without their zeros, so that many rows of a wide SAE fit."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor
from torch.autograd.function import once_differentiable

from absorb_pl.saes import portions

_BYTES_OF_ONE = 8
_SPARSE_SHARE = 1 / 16


@dataclass(frozen=True)
class FiredRows:
    """Rows of latents, of which those that fire are kept.

    Attributes:
        ends: Where each row ends among the latents that fire, row by row, `[rows]`.
        columns: Columns of the latents that fire.
        values: Their activations.
        ids: The latent of each column; None if every latent has one.
        width: Number of columns.
    """

    ends: Int[Tensor, " rows"]
    columns: Int[Tensor, " fired"]
    values: Float[Tensor, " fired"]
    ids: Int[Tensor, " columns"] | None
    width: int

    @classmethod
    def of(cls, parts: Iterable[Float[Tensor, "_ latents"]]) -> "FiredRows | None":
        """Keep what fires; latents that fire on no row have no column, if they are at least half. One column is kept.

        Args:
            parts: Rows of all latents, some at a time.

        Returns:
            The rows; None if what fires is more than `CHUNK_BYTES`.

        Example:
            >>> rows = FiredRows.of([torch.tensor([[0.0, 0.0, 3.0, 0.0]]), torch.tensor([[0.0, 0.0, 4.0, 0.0]])])
            >>> rows.ids, rows.rows(torch.tensor([1, 0]))
            (tensor([2]), tensor([[4.],
                    [3.]]))
        """
        counts, columns, values, total, fires = [], [], [], 0, torch.zeros(0, dtype=torch.bool)
        for latents in parts:
            fired = latents != 0
            counts.append(fired.sum(dim=1))
            total += int(counts[-1].sum())
            if total * _BYTES_OF_ONE > portions.CHUNK_BYTES:
                return None
            fires = fired.any(dim=0) if not len(fires) else fires | fired.any(dim=0)
            columns.append(fired.nonzero()[:, 1].int())
            values.append(latents[fired])
        fires[0] |= not fires.any()
        ids, column = fires.nonzero().squeeze(1), torch.cat(columns)
        if 2 * len(ids) > len(fires):
            return cls(torch.cat(counts).cumsum(0), column, torch.cat(values), None, len(fires))
        column = (fires.cumsum(0, dtype=torch.int32) - 1)[column]
        return cls(torch.cat(counts).cumsum(0), column, torch.cat(values), ids, len(ids))

    @cached_property
    def sparse(self) -> csr_array | None:
        """The rows as a sparse matrix in the same memory; None where whole rows are faster: many fire, or on a GPU."""
        rows = len(self.ends)
        if self.values.device.type != "cpu" or len(self.values) > _SPARSE_SHARE * rows * self.width:
            return None
        ends = torch.cat([self.ends.new_zeros(1), self.ends])
        return csr_array((self.values.numpy(), self.columns.numpy(), ends.numpy()), shape=(rows, self.width))

    def product(
        self, index: Int[Tensor, " chosen"], weight: Float[Tensor, "classes columns"]
    ) -> Float[Tensor, "chosen classes"]:
        """Rows times weights, which gradients go to; sparse rows are summed in the order of the columns.

        Args:
            index: Numbers of the rows.
            weight: A row of weights per class.

        Returns:
            A sum per row and class.
        """
        if self.sparse is None:
            return self.rows(index).to(weight.dtype) @ weight.T
        return _SparseProduct.apply(weight, self.sparse[index.numpy()])

    def rows(self, index: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen columns"]:
        """Rows with their zeros.

        Args:
            index: Numbers of the rows.
        """
        ends = self.ends[index]
        counts = ends - torch.where(index > 0, self.ends[index - 1], 0)
        row = torch.arange(len(index), device=index.device).repeat_interleave(counts)
        place = torch.arange(len(row), device=index.device) + (ends - counts.cumsum(0)).repeat_interleave(counts)
        found = self.values.new_zeros(len(index), self.width)
        found[row, self.columns[place].long()] = self.values[place]
        return found


class _SparseProduct(torch.autograd.Function):
    """A sparse matrix times the transpose of weights, `[rows, classes]`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: csr_array) -> Tensor:
        ctx.rows = rows
        return torch.from_numpy(rows @ weight.detach().T.contiguous().numpy())

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride], as the decorator hides the names
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, None]:
        [gradient] = grad_outputs
        return torch.from_numpy(ctx.rows.T @ gradient.contiguous().numpy()).T.contiguous(), None
