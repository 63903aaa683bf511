"""The published systems, each one file; this dict is the only registry."""

from trainers import cascade, cg_3dsrgan, s3pet, sgsgan, virtual_pet
from trainers.recipe import RecipeSpec

RECIPES: dict[str, RecipeSpec] = {
    "sgsgan": sgsgan,
    "cg_3dsrgan": cg_3dsrgan,
    "s3pet": s3pet,
    "cascade": cascade,
    "virtual_pet": virtual_pet,
}
