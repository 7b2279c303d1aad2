"""Whole items shared out among the processes of a run."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch.utils.data import DataLoader, IterableDataset
from typing_extensions import override


@runtime_checkable
class SizedItems(Protocol):
    """Items by number, as many as there are."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


@runtime_checkable
class Processes(Protocol):
    """Which process this is, of how many; a Trainer knows."""

    @property
    def global_rank(self) -> int:
        """Number of this process."""
        ...

    @property
    def world_size(self) -> int:
        """Number of processes."""
        ...


class Share(IterableDataset[Any]):
    """This process's items of a dataset: every n-th, n being the number of processes.

    Items are whole batches or units of work, so what is computed of one does not depend on how many processes there
    are. Trainers leave iterable datasets as they are. A process without items gets `nothing` once, for a loop over no
    batches would leave out the callbacks in which processes wait for each other.

    Args:
        items: The items.
        nothing: What a process without items gets.
        trainer: The Trainer that runs over the items; it knows how many processes there are. One process when None.

    Example:
        >>> list(Share(["a", "b", "c"], "", trainer=None))
        ['a', 'b', 'c']
        >>> list(Share([], "", trainer=None))
        ['']
    """

    def __init__(self, items: SizedItems, nothing: Any, trainer: Processes | None) -> None:
        self.items, self.nothing, self.trainer = items, nothing, trainer

    def _numbers(self) -> range:
        # Asked for when the loop runs: a Trainer knows its processes only once they have been started.
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return range(rank, len(self.items), processes)

    @override
    def __iter__(self) -> Iterator[Any]:
        numbers = self._numbers()
        return (self.items[number] for number in numbers) if numbers else iter([self.nothing])

    def __len__(self) -> int:
        return max(1, len(self._numbers()))

    def loader(self, together: int | None = None) -> DataLoader[Any]:
        """A loader of this process's items.

        Args:
            together: How many items come at a time, as a list; each by itself when None.
        """
        return DataLoader(self, batch_size=together, collate_fn=None if together is None else list)
