"""Truth to hold the rules against: worlds and SAEs of which it is known what is absorbed."""

from absorb_pl.truth.ground_truth import GroundTruthEvaluator
from absorb_pl.truth.hierarchy_datamodule import HierarchyDataModule
from absorb_pl.truth.planted import PlantedAbsorption, PlantedSae, planted_sae
from absorb_pl.truth.stream import StreamSae, planted_on_stream
from absorb_pl.truth.world import World, WorldSettings, make_world

__all__ = [
    "GroundTruthEvaluator",
    "HierarchyDataModule",
    "PlantedAbsorption",
    "PlantedSae",
    "StreamSae",
    "World",
    "WorldSettings",
    "make_world",
    "planted_on_stream",
    "planted_sae",
]
