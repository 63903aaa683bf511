"""Random numbers by key: every draw is a pure function of integers, and each purpose has a stream of its own.

The same key gives the same numbers anywhere: they do not depend on the number of workers, on a resume, or on how far a
loader reads ahead.  Philox: Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a stream of random numbers is for: the integer after the seed in a key.

    Two purposes of one seed and index never share numbers.  A value is never changed or used again: old seeds would
    then give other samples, weights and patients.
    """

    SAMPLE_ORDER = 1  # (seed, SAMPLE_ORDER, epoch): order of the samples of an epoch
    PATCH_PLACE = 2  # (seed, PATCH_PLACE, group): places of the patches of a group
    STEP_NOISE = 3  # (seed, STEP_NOISE, step, rank): seed of torch's generator for a step
    CASE_CONTEXT = 4  # (seed, CASE_CONTEXT): patches that give the statistics of a case at inference
    SPLIT = 5  # (seed, SPLIT): patients to training, validation and test
    PREVIEW = 6  # (0, PREVIEW): the patch that training's previews show
    AUGMENT = 7  # (seed, AUGMENT, group, patch): how a training patch is turned; patch 0 for a group with an overview
    VALIDATION = 8  # (seed, VALIDATION): order of patients; (seed, VALIDATION, number): a patch that is restored
    TILT = 9  # (seed, TILT, group, patch): how a training patch is tilted and scaled
    OTHER_ORDER = 10  # (seed, OTHER_ORDER, epoch): order of the patients whose targets go with sources of others
    OTHER_PLACE = 11  # (seed, OTHER_PLACE, group): places of the patches of these targets
    ANATOMY = 0x9E7  # (seed, ANATOMY, ...): a phantom's anatomy


class Counts(IntEnum):
    """Which counts of a simulated slice are drawn: the integer after (seed, realisation, z) in a key.

    A value is never changed.
    """

    FULL_DOSE = 0  # prompts of the scan at full dose
    THINNED = 1  # the part of them that a low dose keeps
    LOW_ACTIVITY = 2  # prompts of a scan with less activity


def generator(*key: int) -> np.random.Generator:
    """Return the generator of a key; the same non-negative integers give the same numbers anywhere.

    >>> int(generator(7, Stream.SPLIT).integers(100)) == int(generator(7, 5).integers(100))
    True
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
