"""What the tables of several papers are made with: printed values, orderings that they show, rows and runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from petscale.config import ClusterConfig, RunConfig
from petscale.experiments.design import Column, Order, Published, Row, SegmenterRow
from storage.phantom import PhantomConfig
from trainers.feed_config import FeedConfig
from trainers.loop import LoopConfig

Size = Literal["small", "laptop", "paper"]

_T = TypeVar("_T")

WHOLE_BODY: Mapping[Size, PhantomConfig] = {
    "small": PhantomConfig(shape=(112, 56, 72), spacing_mm=(9.0, 7.0, 7.0)),
    "laptop": PhantomConfig(shape=(160, 80, 104), spacing_mm=(6.25, 5.0, 5.0)),
    "paper": PhantomConfig(shape=(256, 128, 128), spacing_mm=(4.0, 4.0, 4.0)),
}


def by_size(size: Size, *, small: _T, laptop: _T, paper: _T) -> _T:
    """Return what holds at a size.

    Example:
        >>> by_size("laptop", small=12, laptop=24, paper=42)
        24
    """
    values: dict[Size, _T] = {"small": small, "laptop": laptop, "paper": paper}
    return values[size]


def shrunk(size: Size, **fields: tuple[Any, Any]) -> dict[str, Any]:
    """Return the fields that shrink a method, each given as (small, laptop); at paper size it is as published.

    Example:
        >>> shrunk("small", channels=(8, 16))
        {'channels': 8}
        >>> shrunk("paper", channels=(8, 16))
        {}
    """
    if size == "paper":
        return {}
    return {name: by_size(size, small=small, laptop=laptop, paper=None) for name, (small, laptop) in fields.items()}


def published(columns: Sequence[Column], text: str) -> dict[str, Published]:
    """Read values as they are printed, "33.54(0.82)" or "33.54", in the order of the columns; "-" is none."""
    found: dict[str, Published] = {}
    for column, word in zip(columns, text.split(), strict=True):
        mean, _, sd = word.rstrip(")").partition("(")
        if mean != "-":
            found[column.label] = (float(mean), float(sd) if sd else None)
    return found


def orders_of(
    columns: Sequence[Column],
    rows: Sequence[Row | SegmenterRow],
    untrained: Mapping[str, Mapping[str, Published]],
    pairs: Sequence[tuple[str, str]],
) -> tuple[Order, ...]:
    """The paper's ordering of each pair of rows in each column; none where it prints the same number twice."""
    values = {**untrained, **{row.name: row.paper for row in rows}}
    found = []
    for one, other in pairs:
        for label, sign in ((column.label, column.sign) for column in columns):
            if label in values[one] and label in values[other]:
                ahead = sign * (values[one][label][0] - values[other][label][0])
                if ahead:
                    found.append(Order(*((one, other) if ahead > 0 else (other, one)), label))
    return tuple(found)


def steps_of(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Every row and the one that it is tested against."""
    return [(row.name, row.against) for row in rows]


def rows_of(
    columns: Sequence[Column],
    run: Callable[..., RunConfig],
    printed: Sequence[tuple[str, str, Mapping[str, Any], str]],
) -> tuple[Row, ...]:
    """Make rows of (name, reference, switches of the run, printed values)."""
    return tuple(
        Row(name=name, config=run(**switches), paper=published(columns, text), against=against)
        for name, against, switches, text in printed
    )


def run_of(size: Size, recipe: str, model: Any, feed: FeedConfig) -> RunConfig:
    """A run on one core, on two, or on one GPU; folds are filled in by the experiment's runner."""
    loop = by_size(
        size,
        small=LoopConfig(log_every=10, save_every=100, picture_every=0),
        laptop=LoopConfig(log_every=10, save_every=200, picture_every=0),
        paper=LoopConfig(log_every=100, save_every=2000, picture_every=20_000),
    )
    cluster = by_size(
        size,
        small=ClusterConfig(),
        laptop=ClusterConfig(cpus_per_worker=2),
        paper=ClusterConfig(device="cuda", cpus_per_worker=4),
    )
    return RunConfig(recipe=recipe, model=model, feed=feed, loop=loop, cluster=cluster)
