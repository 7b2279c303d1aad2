"""How much memory tensors take."""

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MostBytes(TorchDispatchMode):
    """Counts the bytes of tensors that live at once, those given aside; the process's memory has more in it."""

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()
        self.given = {tensor.untyped_storage()._cdata for tensor in given}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for storage in (each.untyped_storage() for each in tree_leaves(made) if isinstance(each, torch.Tensor)):
            if storage._cdata not in self.given:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {
            key: (reference, size) for key, (reference, size) in self.alive.items() if not reference.expired()
        }
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return made
