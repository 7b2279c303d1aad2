"""Whole items shared out among the processes of a run."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch import distributed
from torch.utils.data import DataLoader, IterableDataset
from typing_extensions import override


@runtime_checkable
class SizedItems(Protocol):
    """Items by number, as many as there are."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


class Share(IterableDataset[Any]):
    """This process's items of a dataset: every n-th, n being the number of processes.

    Items are whole batches or units of work, so what is computed of one does not depend on how many processes there
    are. Trainers leave iterable datasets as they are. A process without items gets `nothing` once, for a loop over no
    batches would leave out the callbacks in which processes wait for each other.

    Args:
        items: The items.
        nothing: What a process without items gets.

    Example:
        >>> list(Share(["a", "b", "c"], nothing=""))
        ['a', 'b', 'c']
        >>> list(Share([], nothing=""))
        ['']
    """

    def __init__(self, items: SizedItems, nothing: Any) -> None:
        self.items, self.nothing = items, nothing

    def _numbers(self) -> range:
        is_distributed = distributed.is_available() and distributed.is_initialized()
        rank = distributed.get_rank() if is_distributed else 0
        processes = distributed.get_world_size() if is_distributed else 1
        return range(rank, len(self.items), processes)

    @override
    def __iter__(self) -> Iterator[Any]:
        numbers = self._numbers()
        return (self.items[number] for number in numbers) if numbers else iter([self.nothing])

    def __len__(self) -> int:
        return max(1, len(self._numbers()))

    def loader(self) -> DataLoader[Any]:
        """A loader of this process's items."""
        return DataLoader(self, batch_size=None)
