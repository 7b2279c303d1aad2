"""Words held out in turn, several times over."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from absorb_pl.data.splits import stratified_split
from absorb_pl.errors import LabelError
from absorb_pl.evaluators.sae_probing import EvaluationRows
from absorb_pl.evaluators.training import train_linear_probe
from absorb_pl.probes.settings import LinearProbeSettings
from absorb_pl.ranges import Count, Range, check_ranges

ProbeOfFold = Callable[[int, int, Tensor], tuple[Tensor, Tensor]]
"""Gives weight and bias of the linear probe for a repeat, a fold, and the rows to train on."""


@dataclass(frozen=True)
class CrossfitSettings:
    """How words are held out in turn.

    Attributes:
        folds: Parts of the words; each is held out once per repeat.
        repeats: How many times folds and seeds are drawn anew. An interval needs two or more to hold what that adds.
    """

    folds: Annotated[int, Range(2, 100)] = 5
    repeats: Count = 3

    def __post_init__(self) -> None:
        check_ranges(CrossfitSettings, vars(self))


@dataclass(frozen=True)
class Folds:
    """Labelled rows and how they are held out in turn.

    Attributes:
        x: Activations, one row per word.
        y: Which classes each word is of; folds have about equal shares of each word's first one.
        class_names: Names of the classes.
        settings: How words are held out.
        seed: Seed of the first repeat's folds and training; the others count up from it.

    Raises:
        LabelError: There are folds without words.
    """

    x: Float[Tensor, "words d_model"]
    y: Bool[Tensor, "words classes"]
    class_names: tuple[str, ...]
    settings: CrossfitSettings
    seed: int

    def __post_init__(self) -> None:
        largest = int(torch.bincount(self._first_class).max()) if len(self.y) else 0
        if largest < self.settings.folds:
            raise LabelError(
                "folds",
                self.settings.folds,
                expected=f"no more folds than words of the largest class, which has {largest}",
                remedy="Take fewer folds, or more words.",
            )

    @property
    def _first_class(self) -> Tensor:
        return self.y.int().argmax(dim=1)

    def held_out(self, repeat: int) -> Int[Tensor, " words"]:
        """The fold that holds each word out in a repeat.

        Args:
            repeat: Number of the repeat.
        """
        shares = (1 / self.settings.folds,) * self.settings.folds
        fold_of_word = torch.zeros(len(self.y), dtype=torch.long)
        for fold, part in enumerate(stratified_split(self._first_class, shares, self.seed + repeat)):
            fold_of_word[part] = fold
        return fold_of_word

    def of_repeat(self, repeat: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows to train on and rows to judge, fold by fold.

        Args:
            repeat: Number of the repeat.
        """
        held_out = self.held_out(repeat)
        for fold in range(self.settings.folds):
            yield (held_out != fold).nonzero().squeeze(1), (held_out == fold).nonzero().squeeze(1)

    def judged(self, repeat: int, probe_of_fold: ProbeOfFold) -> Iterator[tuple[Int[Tensor, " train"], EvaluationRows]]:
        """Rows to train on, and those to judge with the linear probe's opinion of them, fold by fold.

        Args:
            repeat: Number of the repeat.
            probe_of_fold: Gives the linear probes.
        """
        for fold, (train, test) in enumerate(self.of_repeat(repeat)):
            weight, bias = probe_of_fold(repeat, fold, train)
            yield train, EvaluationRows.of(self.x[test], self.y[test], test, weight, bias, self.class_names)

    def probe_of_fold(
        self, settings: LinearProbeSettings | None = None, device: torch.device | str = "cpu"
    ) -> ProbeOfFold:
        """Trains linear probes, each once, so that several SAEs of a hook can share them.

        Args:
            settings: How to train.
            device: Where to train.
        """
        trained: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

        def probe(repeat: int, fold: int, rows: Tensor) -> tuple[Tensor, Tensor]:
            if (repeat, fold) not in trained:
                found, _ = train_linear_probe(
                    self.x[rows],
                    self.y[rows].long(),
                    settings or LinearProbeSettings(),
                    self.class_names,
                    self.seed + repeat,
                    device,
                )
                trained[repeat, fold] = found.weights.detach().cpu(), found.biases.detach().cpu()
            return trained[repeat, fold]

        return probe
