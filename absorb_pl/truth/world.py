"""Activations with a known hierarchy: every class is a feature, and every word has finer features below it."""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from absorb_pl.errors import ShapeError
from absorb_pl.ranges import Count, CountOrZero, NotNegative, Positive, Range, Seed, check_ranges

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class WorldSettings:
    """What a world is like.

    Attributes:
        classes: Number of classes; each has a feature, the parent.
        words_per_class: Words of each class.
        smallest_class: Words of the last class; the numbers fall evenly from the first, in proportion, to it. None
            for classes of one size.
        words_per_child: Words that share a finer feature, a child; 1 gives every word its own.
        features_per_child: Directions that a child consists of, each with a part of its size.
        child_strength: Size of a child, in sizes of its parent.
        unrelated: Number of features that have nothing to do with the classes.
        unrelated_active: How many of them are active on a word, drawn anew.
        superposition: Features per dimension. At 1 or below all directions are orthogonal; above it they are random and
            overlap.
        noise: Standard deviation of the noise of each coordinate, in sizes of the parent.
        seed: Seed of everything drawn.
    """

    classes: Annotated[int, Range(2, 26)] = 26
    words_per_class: Annotated[int, Range(10, 10_000)] = 40
    smallest_class: Annotated[int, Range(10, 10_000)] | None = None
    words_per_child: Count = 1
    features_per_child: Count = 1
    child_strength: Positive = 2.0
    unrelated: CountOrZero = 200
    unrelated_active: CountOrZero = 5
    superposition: Positive = 1.0
    noise: NotNegative = 0.005
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_ranges(WorldSettings, vars(self))
        if self.unrelated_active > self.unrelated:
            raise ShapeError(
                "unrelated_active",
                self.unrelated_active,
                expected=f"at most {self.unrelated}, the number of unrelated features",
                remedy="Ask for more features, or for fewer of them at a time.",
            )
        if self.smallest_class is not None and self.smallest_class > self.words_per_class:
            raise ShapeError(
                "smallest_class",
                self.smallest_class,
                expected=f"at most words_per_class, {self.words_per_class}",
                remedy="Leave it out for classes of one size.",
            )


@dataclass(frozen=True)
class World:
    """Activations of which everything is known.

    An activation is a constant vector, its features' directions times their sizes, and noise.

    Attributes:
        activations: One row per word.
        labels: Class of each word.
        class_names: Names of the classes.
        directions: Unit direction of each feature: parents in order of the classes, children, unrelated features.
        sizes: Size of each feature at each word.
        children: Number of each word's child, counted over all classes.
        children_of: Features of each child.
        mean: The constant vector.
        unrelated: Number of the first unrelated feature.
        settings: What the world is like.
    """

    activations: Float[Tensor, "words d_model"]
    labels: list[str]
    class_names: tuple[str, ...]
    directions: Float[Tensor, "features d_model"]
    sizes: Float[Tensor, "words features"]
    children: Int[Tensor, " words"]
    children_of: Int[Tensor, "children parts"]
    mean: Float[Tensor, " d_model"]
    unrelated: int
    settings: WorldSettings

    @property
    def classes(self) -> Int[Tensor, " words"]:
        """Number of each word's class, which is its parent feature's too."""
        return torch.tensor([self.class_names.index(label) for label in self.labels])

    def of_class(self, number: int) -> Bool[Tensor, " words"]:
        """The words of a class."""
        return self.classes == number


def make_world(settings: WorldSettings | None = None) -> World:
    """Draw a world.

    Sizes of parents differ by word, evenly from 0.8 to 1.2; a word's child is `child_strength` times as large as its
    parent, and its features have equal parts of that in length. Unrelated features are from 0.5 to 1.5 in size.

    Args:
        settings: What it is like.

    Example:
        >>> world = make_world(WorldSettings(classes=3, words_per_class=12, unrelated=4, unrelated_active=2))
        >>> world.activations.shape, world.labels.count("a"), len(world.directions)
        (torch.Size([36, 43]), 12, 43)
    """
    settings = settings or WorldSettings()
    draw = torch.Generator().manual_seed(settings.seed)
    counts = _counts(settings)
    classes = torch.arange(settings.classes).repeat_interleave(torch.tensor(counts))
    place = torch.cat([torch.arange(count) for count in counts])
    _, children = torch.stack([classes, place // settings.words_per_child]).unique(dim=1, return_inverse=True)
    number, parts = int(children.max()) + 1, settings.features_per_child
    children_of = settings.classes + torch.arange(number * parts).view(number, parts)
    unrelated = settings.classes + number * parts
    features = unrelated + settings.unrelated
    directions = _directions(features, settings.superposition, draw)

    words = torch.arange(len(classes))
    sizes = torch.zeros(len(classes), features, dtype=torch.float64)
    parent = 0.8 + 0.4 * torch.rand(len(classes), generator=draw, dtype=torch.float64)
    sizes[words, classes] = parent
    sizes[words[:, None], children_of[children]] = (settings.child_strength * parent / parts**0.5)[:, None]
    if settings.unrelated_active:
        active = torch.rand(len(classes), settings.unrelated, generator=draw).topk(settings.unrelated_active).indices
        drawn = 0.5 + torch.rand(active.shape, generator=draw, dtype=torch.float64)
        sizes.scatter_(1, unrelated + active, drawn)
    mean = torch.randn(directions.shape[1], generator=draw, dtype=torch.float64) / directions.shape[1] ** 0.5
    noise = torch.randn(len(classes), directions.shape[1], generator=draw, dtype=torch.float64)
    names = tuple(LETTERS[: settings.classes])
    return World(
        activations=(mean + sizes @ directions + settings.noise * noise).float(),
        labels=[names[c] for c in classes.tolist()],
        class_names=names,
        directions=directions,
        sizes=sizes,
        children=children,
        children_of=children_of,
        mean=mean,
        unrelated=unrelated,
        settings=settings,
    )


def _counts(settings: WorldSettings) -> list[int]:
    """Words of each class."""
    last = settings.smallest_class or settings.words_per_class
    step = (last / settings.words_per_class) ** (1 / (settings.classes - 1))
    return [round(settings.words_per_class * step**c) for c in range(settings.classes)]


def _directions(features: int, superposition: float, draw: torch.Generator) -> Tensor:
    """Unit directions: the coordinates themselves if there is room, else random ones that overlap."""
    if superposition <= 1:
        return torch.eye(features, dtype=torch.float64)
    width = max(2, round(features / superposition))
    return torch.nn.functional.normalize(torch.randn(features, width, generator=draw, dtype=torch.float64), dim=1)
