"""Shuffled batches of activations without end, the same however many processes there are and wherever one begins."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from typing_extensions import override

from absorb_pl.errors import ShapeError
from absorb_pl.training.sources import ActivationSource, chunk_rng

Place = Callable[[], tuple[int, int, int, torch.device]]
"""Says the number of the next batch, this process's rank, how many processes there are, and the device."""


class ActivationStream(IterableDataset[dict[str, Tensor]]):
    """Batches of a source's rows, mixed within a buffer of many chunks; the whole set is never held.

    The buffer is filled in shards. Each shard is shuffled by itself, and a batch holds as many rows of each, so
    processes share out the shards and all of them together have the batches of one. Buffer by buffer, all chunks are
    gone through in an order drawn anew each time round.

    Args:
        source: Where rows come from.
        batch_size: Rows per batch, of all processes together.
        chunks_per_buffer: Chunks that are mixed.
        shards: Parts that the buffer is filled in; a multiple of the number of processes.
        held_out: Chunks at the beginning that are left to validation.
        seed: Seed of the order.
        place: Says where to begin, and for whom.

    Raises:
        ShapeError: Shards do not divide chunks and rows evenly, or the source has too few chunks.
    """

    def __init__(
        self,
        source: ActivationSource,
        batch_size: int,
        chunks_per_buffer: int,
        shards: int,
        held_out: int,
        seed: int,
        place: Place,
    ) -> None:
        self.source, self.batch_size, self.chunks_per_buffer = source, batch_size, chunks_per_buffer
        self.shards, self.held_out, self.seed, self.place = shards, held_out, seed, place
        if batch_size % shards or chunks_per_buffer % shards:
            raise ShapeError(
                "shards",
                shards,
                expected=f"a number that divides batch_size ({batch_size}) and chunks_per_buffer ({chunks_per_buffer})",
                remedy="Choose another, such as a power of two.",
            )
        if source.num_chunks is not None and source.num_chunks <= held_out:
            raise ShapeError(
                "val_chunks",
                held_out,
                expected=f"fewer than the {source.num_chunks} chunks that the data fill",
                remedy="Hold out fewer, make chunks smaller, or give more data.",
            )

    @override
    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        first, rank, processes, device = self.place()
        if self.shards % processes:
            raise ShapeError(
                "shards",
                self.shards,
                expected=f"a multiple of the {processes} processes",
                remedy="Choose one; batches do not depend on the number of processes as long as it divides the shards.",
            )
        own = range(rank, self.shards, processes)
        rows = self.batch_size // self.shards
        number, skipped = divmod(first, self._batches_per_buffer(device)) if first else (0, 0)
        while True:
            parts = [self._shard(number, shard, device) for shard in own]
            batches = self._batches_in(len(next(iter(parts[0].values()))))
            for batch in range(skipped, batches):
                taken = slice(batch * rows, (batch + 1) * rows)
                yield {hook: torch.cat([part[hook][taken] for part in parts]) for hook in parts[0]}
            number, skipped = number + 1, 0

    def chunk_number(self, place: int) -> int:
        """Number of the chunk that is the n-th to be trained on.

        Args:
            place: n, from 0.
        """
        if self.source.num_chunks is None:
            return self.held_out + place
        trained = self.source.num_chunks - self.held_out
        turn, index = divmod(place, trained)
        return self.held_out + int(chunk_rng(self.seed, turn).permutation(trained)[index])

    def _shard(self, buffer: int, shard: int, device: torch.device) -> dict[str, Tensor]:
        chunks = self.chunks_per_buffer // self.shards
        first = buffer * self.chunks_per_buffer + shard * chunks
        found = [self.source.chunk(self.chunk_number(first + one), device) for one in range(chunks)]
        joined = {hook: torch.cat([chunk[hook] for chunk in found]) for hook in found[0]}
        rows = len(next(iter(joined.values())))
        order = torch.from_numpy(chunk_rng(self.seed, 1, buffer, shard).permutation(rows)).to(device)
        return {hook: values[order] for hook, values in joined.items()}

    def _batches_per_buffer(self, device: torch.device) -> int:
        rows = len(next(iter(self.source.chunk(self.chunk_number(0), device).values())))
        return self._batches_in(rows * (self.chunks_per_buffer // self.shards))

    def _batches_in(self, rows: int) -> int:
        batches = rows // (self.batch_size // self.shards)
        if not batches:
            raise ShapeError(
                "batch_size",
                self.batch_size,
                expected=f"at most the {rows * self.shards} rows of a buffer",
                remedy="Lower it, or raise `chunks_per_buffer`.",
            )
        return batches

    def loader(self) -> DataLoader[dict[str, Tensor]]:
        """A loader of the batches."""
        return DataLoader(self, batch_size=None)
