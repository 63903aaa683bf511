"""The published systems, each one file; this dict is the only registry."""

from trainers import sgsgan
from trainers.recipe import RecipeSpec

RECIPES: dict[str, RecipeSpec] = {
    "sgsgan": sgsgan,
}
