"""What systems outside the tree are made of: one name for each part, the same in a checkout and in an installed wheel.

    from petscale.systems import BatchSpec, EngineFactory, FeedConfig, Range, Tiling, assembly

The packages that hold the parts have other names in a wheel than in a checkout (docs/decisions.md), and are not to be
imported by these.  Nothing is loaded before a name is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage import patches, stitch
    from storage.errors import InputError
    from storage.ranges import Range
    from storage.source import HU
    from trainers import (
        assembly,
        blocks,
        cycle,
        dose_gaussian,
        filter_bank,
        hu_table,
        losses,
        perceptual,
        residual_unet,
    )
    from trainers.engine import EngineConfig
    from trainers.feed_config import FeedConfig
    from trainers.loop import LoopConfig
    from trainers.recipe import (
        Batch,
        BatchSpec,
        Departure,
        Doses,
        Engine,
        EngineFactory,
        Exporting,
        Followed,
        Graphed,
        GraphedInContext,
        Illustrated,
        Metrics,
        OptimizerFactory,
        Recipe,
        RecipeSpec,
        Scan,
        ScanAware,
        State,
        Synthesizer,
        Tiling,
        Validated,
    )
    from trainers.systems import RECIPES

__all__ = [
    "HU",
    "RECIPES",
    "Batch",
    "BatchSpec",
    "Departure",
    "Doses",
    "Engine",
    "EngineConfig",
    "EngineFactory",
    "Exporting",
    "FeedConfig",
    "Followed",
    "Graphed",
    "GraphedInContext",
    "Illustrated",
    "InputError",
    "LoopConfig",
    "Metrics",
    "OptimizerFactory",
    "Range",
    "Recipe",
    "RecipeSpec",
    "Scan",
    "ScanAware",
    "State",
    "Synthesizer",
    "Tiling",
    "Validated",
    "assembly",
    "blocks",
    "cycle",
    "dose_gaussian",
    "filter_bank",
    "hu_table",
    "losses",
    "patches",
    "perceptual",
    "residual_unet",
    "stitch",
]

_ELSEWHERE = {
    "EngineConfig": "trainers.engine",
    "FeedConfig": "trainers.feed_config",
    "HU": "storage.source",
    "InputError": "storage.errors",
    "LoopConfig": "trainers.loop",
    "RECIPES": "trainers.systems",
    "Range": "storage.ranges",
    "assembly": "trainers.assembly",
    "blocks": "trainers.blocks",
    "cycle": "trainers.cycle",
    "dose_gaussian": "trainers.dose_gaussian",
    "filter_bank": "trainers.filter_bank",
    "hu_table": "trainers.hu_table",
    "losses": "trainers.losses",
    "patches": "storage.patches",
    "perceptual": "trainers.perceptual",
    "residual_unet": "trainers.residual_unet",
    "stitch": "storage.stitch",
}  # every other name is in trainers.recipe


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'petscale.systems' has no attribute '{name}'")
    module = import_module(_ELSEWHERE.get(name, "trainers.recipe"))
    return module if module.__name__.endswith(f".{name}") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
