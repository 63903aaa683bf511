"""Durations as a user types them, 3h50m, 90m, 45s, 1d2h, and as they are said."""

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


def spoken(seconds: float) -> str:
    """Return a duration as one would say it.

    >>> spoken(42.4), spoken(100), spoken(5000), spoken(200000)
    ('42 s', '2 min', '1 h 23 min', '2 d 8 h')
    """
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"
