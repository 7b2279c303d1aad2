"""What a word offers to a rule: integrated gradients, projections on the probe, or what latents carry of a feature."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pandas as pd
import torch
from torch import Tensor

from absorb_pl.ranges import Cosine, Count, Range, check_ranges
from absorb_pl.words.answers import PositiveToken


@dataclass(frozen=True)
class Gradients:
    """Integrated gradients at the candidate words; columns in `absorb_pl.schema.GRADIENTS`.

    Candidates are the words on which the linear probe sees the class, the k-sparse probe does not, and the main
    latents are silent. The model must say what comes next.

    Attributes:
        steps: Integrated-gradient steps.
        positive_token: Token of the right answer.
        top_latents: How many of the best latents per word are kept.
    """

    name: ClassVar[str] = "gradients"
    steps: Count = 6
    positive_token: PositiveToken = "answer"
    top_latents: Annotated[int, Range(2, 2**31 - 1)] = 10

    def __post_init__(self) -> None:
        check_ranges(Gradients, vars(self))


@dataclass(frozen=True)
class Projections:
    """Projections on the probe, at all words on which it sees the class; columns in `absorb_pl.schema.PROJECTIONS`.

    Cached activations are enough: no language model is needed.

    Attributes:
        stored_absorbers: How many absorbers per word are kept.
    """

    name: ClassVar[str] = "projections"
    stored_absorbers: Count = 5

    def __post_init__(self) -> None:
        check_ranges(Projections, vars(self))


@dataclass(frozen=True)
class Carried:
    """What latents other than a feature's own write along its direction; columns in `absorb_pl.schema.CARRIED`.

    At all words on which the probe sees the class; cached activations are enough.

    Attributes:
        min_alignment: Least cosine of a decoder row with the tracking latent's at which both write one feature.
        stored_absorbers: How many carriers per word are kept.
    """

    name: ClassVar[str] = "carried"
    min_alignment: Cosine = 0.95
    stored_absorbers: Count = 5

    def __post_init__(self) -> None:
        check_ranges(Carried, vars(self))


Evidence = Gradients | Projections | Carried


def stored_scores(words: pd.DataFrame, columns: Sequence[str]) -> dict[str, Tensor]:
    """Evidence as tensors; lists of different lengths are filled up with zeros.

    Args:
        words: One row per word.
        columns: Columns of numbers or of lists.

    Example:
        >>> table = pd.DataFrame({"a": [1.0, 2.0], "b": [[0.5], []]})
        >>> stored_scores(table, ["a", "b"])["b"]
        tensor([[0.5000],
                [0.0000]], dtype=torch.float64)
    """
    found = {}
    for name in columns:
        if words[name].dtype != object:
            found[name] = torch.tensor(words[name].to_numpy(), dtype=torch.float64)
            continue
        lists = [torch.as_tensor(list(values), dtype=torch.float64) for values in words[name]]
        found[name] = torch.nn.utils.rnn.pad_sequence(lists, batch_first=True) if lists else torch.zeros(0, 0)
    return found
