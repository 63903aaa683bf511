"""Durations as a user types them: 3h50m, 90m, 45s, 1d2h."""

import re

from storage.errors import InputError

_DURATION = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?")
_SECONDS = (86400, 3600, 60, 1)


def seconds_of(text: str, where: str) -> float:
    """Return a duration in seconds, above 0.

    Args:
        text: whole numbers of days, hours, minutes and seconds in this order, each with its letter.
        where: the option's name, for the error.

    Raises:
        InputError: CFG_DURATION.

    >>> seconds_of("3h50m", "--time-limit"), seconds_of("1d2h", "--time-limit"), seconds_of("45s", "--time-limit")
    (13800.0, 93600.0, 45.0)
    """
    found = _DURATION.fullmatch(text)
    seconds = sum(int(part) * unit for part, unit in zip(found.groups(), _SECONDS, strict=True) if part) if found else 0
    if seconds == 0:
        raise InputError(
            "CFG_DURATION",
            where=where,
            found=repr(text),
            remedy="give days, hours, minutes or seconds, for instance 3h50m, 90m, 45s, 1d2h",
        )
    return float(seconds)
