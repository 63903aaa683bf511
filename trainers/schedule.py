"""The learning rate over a run: a factor on whatever a system sets, a pure function of the step."""

import math
from typing import Literal

Decay = Literal["constant", "cosine"]


def lr_factor(step: int, num_steps: int, *, warm_up_steps: int, decay: Decay) -> float:
    """Return the factor of ``step`` on the learning rate, from above 0 to 1.

    Warm-up as Goyal et al. 2017 (arXiv 1706.02677), linear; decay as Loshchilov and Hutter 2017 (arXiv 1608.03983, Eq.
    5), half a cosine, once.

    Args:
        step: number of steps made.
        num_steps: of the whole run, all its phases together; the cosine reaches 0 there.
        warm_up_steps: steps in which the factor rises linearly; the last of them has 1.
        decay: what follows.

    >>> [lr_factor(step, 8, warm_up_steps=4, decay="cosine") for step in (0, 3, 4, 6)]
    [0.25, 1.0, 1.0, 0.5]
    >>> lr_factor(7, 8, warm_up_steps=0, decay="constant")
    1.0
    """
    if step < warm_up_steps:
        return (step + 1) / warm_up_steps
    if decay == "constant":
        return 1.0
    passed = (step - warm_up_steps) / (num_steps - warm_up_steps)
    return 0.5 * (1 + math.cos(math.pi * passed))
