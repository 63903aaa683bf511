"""Doses that test images state, by the names that tests give them."""

import math
import re

from trainers.recipe import Doses


def stated(*images: str) -> Doses:
    """Return image -> its dose reduction factor: 20 for ``low_drf20``, unknown for any other name."""
    found = {image: re.match(r"low_drf([0-9.]+)", image) for image in images}
    return {image: frozenset({float(match[1]) if match else math.nan}) for image, match in found.items()}
