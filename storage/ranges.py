"""Ranges of numbers, declared beside the field they hold for: ``width: Annotated[int, Range(1)] = 64``.

One declaration serves the check, the error and the help text of the command line.
"""

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Any

from storage.errors import InputError


@dataclass(frozen=True)
class Range:
    """The numbers that a field may hold; of a field that holds several, each of them.

    Args:
        low: smallest value allowed.
        high: largest value allowed.
        above: bound that the value must exceed.
        below: bound that the value must stay under.

    >>> Range(1).text, Range(0, below=1).text, Range(above=0).text, Range(2, 8).text
    ('1 or more', 'from 0 to below 1', 'above 0', 'from 2 to 8')
    >>> Range(0, below=1).holds(0.5), Range(0, below=1).holds(1.0), Range(1).holds(float("nan"))
    (True, False, False)
    """

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies in the range; NaN never does."""
        return self.low <= value <= self.high and (value > self.above or self.above == -math.inf) and self._under(value)

    def _under(self, value: float) -> bool:
        return value < self.below or self.below == math.inf

    @property
    def text(self) -> str:
        """The range in words, without a subject."""
        begin = f"{self.low:g}" if self.low > -math.inf else ""
        end = f"{self.high:g}" if self.high < math.inf else f"below {self.below:g}" if self.below < math.inf else ""
        if self.above > -math.inf:
            return f"above {self.above:g}" + (f" and up to {end}".replace("up to below", "below") if end else "")
        if begin and end:
            return f"from {begin} to {end}"
        return f"{begin} or more" if begin else f"{end} or less" if self.below == math.inf else end


def ranges_of(config: type[Any]) -> dict[str, Range]:
    """Return field -> range of a dataclass, for the fields that declare one."""
    return dict(_declared(config))


def _declared(config: type[Any]) -> tuple[tuple[str, Range], ...]:
    hints = typing.get_type_hints(config, include_extras=True)
    names = [field.name for field in dataclasses.fields(config)]
    return tuple((name, found) for name in names if (found := _range(hints[name])) is not None)


def _range(hint: object) -> Range | None:
    for noted in getattr(hint, "__metadata__", ()):
        if isinstance(noted, Range):
            return noted
    return next((found for part in typing.get_args(hint) if (found := _range(part)) is not None), None)


def check_ranges(config: object, where: str) -> None:
    """Refuse a dataclass instance that holds a number outside the range its field declares.

    Args:
        config: the instance; values may be numbers, None (never refused), or tuples or lists of numbers.
        where: what the configuration is called, before the field's name in the error.

    Raises:
        InputError: ``CFG_RANGE`` naming the field, the value and the range.
    """
    for name, allowed in _declared(config.__class__):
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple | list) else (value,)
        if not all(number is None or allowed.holds(number) for number in numbers):
            raise InputError("CFG_RANGE", where=f"{where}.{name}", found=repr(value), remedy=f"give {allowed.text}")
