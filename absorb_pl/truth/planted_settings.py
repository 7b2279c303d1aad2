"""The planted settings that rules are held against, by name."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from absorb_pl.ranges import Seed
from absorb_pl.truth.planted import PlantedAbsorption
from absorb_pl.truth.world import WorldSettings


@dataclass(frozen=True)
class PlantedSetting:
    """A world and what an SAE does in it.

    Attributes:
        meaning: What it is, in words.
        world: The world.
        absorption: What the SAE does.
    """

    meaning: str
    world: WorldSettings
    absorption: PlantedAbsorption

    def seeded(self, seed: Seed) -> "PlantedSetting":
        """The same, drawn anew."""
        return replace(self, world=replace(self.world, seed=seed), absorption=replace(self.absorption, seed=seed))


_PLAIN = WorldSettings()
_STRONG = WorldSettings(words_per_class=60, words_per_child=4)
_SEVERAL = WorldSettings(words_per_child=2, unrelated=60)


def _settings() -> dict[str, PlantedSetting]:
    found: dict[str, PlantedSetting] = {}

    def add(name: str, meaning: str, world: WorldSettings, absorption: PlantedAbsorption) -> None:
        found[name] = PlantedSetting(meaning, world, absorption)

    for rate in (0, 10, 30, 60):
        add(f"clean-{rate}", f"{rate} % of words absorbed in full", _PLAIN, PlantedAbsorption(rate / 100))
    for part in (90, 50, 30, 10):
        meaning = f"30 % of words, where the parent's latent still fires at {part} % of its size"
        add(f"partial-{part}", meaning, _PLAIN, PlantedAbsorption(0.3, still_fires=part / 100))
    for count in (2, 3, 5):
        meaning = f"30 % absorbed, each word by {count} latents"
        add(f"carriers-{count}", meaning, replace(_SEVERAL, features_per_child=count), PlantedAbsorption(0.3))
    for times in (9, 15, 45):
        meaning = f"30 % absorbed by latents whose own feature is {times} times the parent's size"
        add(f"strong-child-{times}", meaning, replace(_STRONG, child_strength=float(times)), PlantedAbsorption(0.3))
    crowded = WorldSettings(words_per_class=60, unrelated=400, unrelated_active=40)
    for rate in (0, 30):
        meaning = f"{rate} % absorbed, 40 unrelated latents active on every word"
        add(f"unrelated-40-rate-{rate}", meaning, crowded, PlantedAbsorption(rate / 100))
    shared = WorldSettings(words_per_child=13)
    add("one-child-a-third", "a third of the words absorbed by one latent", shared, PlantedAbsorption(0.34))
    for part in (5, 10, 20, 40):
        meaning = f"nothing absorbed; a second latent of the parent's has {part} % of its words"
        add(f"split-{part}", meaning, _PLAIN, PlantedAbsorption(0.0, split=part / 100))
    add(
        "hedging",
        "30 % absorbed, the parent's latent also writes its children",
        _PLAIN,
        PlantedAbsorption(0.3, hedging=0.5),
    )
    add(
        "shrinkage", "30 % absorbed, every latent loses 30 % of its size", _PLAIN, PlantedAbsorption(0.3, shrinkage=0.3)
    )
    overlapping = WorldSettings(superposition=2.0)
    add("superposition-2", "30 % absorbed, twice as many features as dimensions", overlapping, PlantedAbsorption(0.3))
    few = WorldSettings(smallest_class=10)
    add("small-classes", "30 % absorbed, classes of 40 down to 10 words", few, PlantedAbsorption(0.3))
    return found


PLANTED: Mapping[str, PlantedSetting] = _settings()
"""The settings by name."""
