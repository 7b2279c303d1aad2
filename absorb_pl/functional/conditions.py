"""Decisions as lists of conditions: a word counts if it meets all that a rule asks of it."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor


def all_met(conditions: Mapping[str, Bool[Tensor, " words"]]) -> Bool[Tensor, " words"]:
    """Which words meet all conditions.

    Args:
        conditions: Whether each word meets a condition, by its name; at least one.

    Example:
        >>> all_met({"silent": torch.tensor([True, True]), "lead": torch.tensor([True, False])})
        tensor([ True, False])
    """
    return torch.stack(list(conditions.values())).all(dim=0)
