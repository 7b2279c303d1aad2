"""Truth to hold the rules against: worlds and SAEs of which it is known what is absorbed."""

from absorb_pl.truth.planted import PlantedAbsorption, PlantedSae, planted_sae
from absorb_pl.truth.world import World, WorldSettings, make_world

__all__ = ["PlantedAbsorption", "PlantedSae", "World", "WorldSettings", "make_world", "planted_sae"]
