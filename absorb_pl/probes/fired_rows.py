"""Rows of latents without their zeros, so that many rows of a wide SAE fit."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from absorb_pl.saes import portions

_BYTES_OF_ONE = 8


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
