"""Doses as folders and files of public data sets spell them.

``1-20 dose``, ``2.886 x 600 WB D20``, ``WB DRF_20``, ``Anonymous-01_DRF-20``; and for the full dose ``Full_dose``,
``2.886 x 600 WB NORMAL``.  A spelling counts where it ends the name: ``100 dose`` is a part of ``1-100 dose``.
"""

import re

FULL_DOSE = re.compile(r"(?:^|[ _.-])(?:full[ _-]?dose|full|normal|ref)$", re.IGNORECASE)
FRACTION = re.compile(r"(?:^|[ _])1[-_/ ](\d+(?:\.\d+)?)[ _-]?dose$", re.IGNORECASE)
FACTOR = re.compile(r"(?:^|[ _-])(?:drf[ _-]?|d)(\d+(?:\.\d+)?)$", re.IGNORECASE)


def parse_drf(name: str) -> float | None:
    """Return the dose reduction factor that a name ends in, 1 for a full dose, None where it names no dose.

    >>> [parse_drf(name) for name in ("1-100 dose", "2.886 x 600 WB D4", "WB DRF_50", "WB normal", "CT")]
    [100.0, 4.0, 50.0, 1.0, None]
    """
    if FULL_DOSE.search(name):
        return 1.0
    found = FRACTION.search(name) or FACTOR.search(name)
    return float(found[1]) if found and float(found[1]) >= 1 else None


def without_drf(name: str) -> str:
    """Return a name without the dose that it ends in.

    >>> without_drf("Anonymous-01_DRF-10")
    'Anonymous-01'
    """
    for pattern in (FRACTION, FACTOR, FULL_DOSE):
        if found := pattern.search(name):
            return name[: found.start()].rstrip(" _-.")
    return name
