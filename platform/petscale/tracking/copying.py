"""What is copied of a run into another tool's store, and the one interface that each tool's file fulfils."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from petscale.console import console
from petscale.evaluation.run import run_facts
from petscale.evaluation.scores import Evaluation, read_evaluation
from petscale.folders import EVALUATION, METRICS, PICTURES
from petscale.training.progress import TAKEN_WITH, read_metrics
from storage import integrity
from storage.errors import InputError

NAMES_CASES = ("split.test", "split.unpaired", "split.leave_out")  # settings that hold names of cases


class Tracker(Protocol):
    """Where one run is copied to."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers of a step in; steps never fall."""
        ...

    def picture(self, step: int, name: str, file: Path) -> None:
        """Take in a PNG file."""
        ...

    def close(self) -> None:
        """Write what is left, and end the run."""
        ...


class Tool(Protocol):
    """Opens a tool's store."""

    def __call__(self, store: Path, about: "About") -> Tracker:
        """Begin a run in a store; one of the same key that is there already gives way.

        Args:
            store: a folder, made where it is missing.
            about: the run.

        Raises:
            InputError: CFG_PACKAGE where the tool is not installed.
        """
        ...


@dataclass(frozen=True)
class About:
    """What is known of a run beside its numbers.

    Args:
        key: 16 hexadecimal digits, those of the run's configuration, cases and folder name.
        name: the last part of its folder.
        settings: field -> value of its configuration, without names of cases.
        tags: versions, hardware, commit, digests.
    """

    key: str
    name: str
    settings: Mapping[str, str]
    tags: Mapping[str, str]


def track(run: Path, store: Path, tool: Tool, *, pictures: bool = False) -> None:
    """Copy what a run has recorded so far, in order of its steps.

    Args:
        run: its folder; it may still be training.
        store: the tool's folder.
        tool: opens it.
        pictures: whether pictures of training are copied too: they show a patch of a patient.

    Raises:
        InputError: CFG_RUN_FOLDER, CKPT_NONE for a run without a record, CFG_PACKAGE.
    """
    about = about_run(run)
    records = [record for record in read_metrics(run / METRICS) if numbers_of(record)]
    if not records:
        raise InputError("CKPT_NONE", where=METRICS, found="no record of a step", remedy="start `petscale train` first")
    scores = [scores_of(source, evaluation) for source, evaluation in evaluations(run)]
    tracker = tool(store, about)
    try:
        for record in sorted(records, key=lambda one: int(one["step"])):
            tracker.numbers(int(record["step"]), numbers_of(record))
        last = max(int(record["step"]) for record in records)
        for means in scores:
            tracker.numbers(last, means)
        for file in sorted((run / PICTURES).glob("step-*.png")) if pictures else ():
            tracker.picture(int(file.stem.removeprefix("step-")), "training", file)
    finally:
        tracker.close()
    said = f"{about.name}: {len(records)} records copied"
    console.print(said if pictures else f"{said}, no pictures (--pictures copies them)", markup=False)


def about_run(run: Path) -> About:
    """Gather what is known of a run, without a name of a case or a folder of this machine.

    Raises:
        InputError: CFG_RUN_FOLDER.
    """
    _, facts = run_facts(run)
    settings = {name: value for name, value in flat(facts["config"]) if name not in NAMES_CASES}
    starts = [record[TAKEN_WITH] for record in read_metrics(run / METRICS) if TAKEN_WITH in record]
    tags = {"cohort": integrity.root_digest(facts["cases"], facts.get("subjects", {}))}
    tags |= {name: str(value) for name, value in (starts[-1] if starts else {}).items()}
    name = run.resolve().name
    key = integrity.root_digest({"config": facts["config"], "cohort": tags["cohort"], "name": name}, {})[:16]
    return About(key, name, settings, tags)


def flat(content: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    """Yield (section.field, value as text) of a nested configuration."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value if isinstance(value, str) else json.dumps(value)


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a record, as TensorBoard's copy has them."""
    return {name: value for name, value in record.items() if isinstance(value, float) and math.isfinite(value)}


def evaluations(run: Path) -> Iterator[tuple[str, Evaluation]]:
    """Yield (image started from, scores) of the run's own test cases, where they are scored."""
    for path in sorted((run / EVALUATION).glob("*/scores.json")):
        yield path.parent.name, read_evaluation(path.parent)


def scores_of(source: str, evaluation: Evaluation) -> dict[str, float]:
    """Means over test cases of what the run synthesized, by the project's own rules, body and lesions."""
    return {
        f"test/{source}/{one.definition.metric} {one.region}": one.mean
        for one in evaluation.summary()
        if one.image == evaluation.synthesized
        and one.definition.preset == "native"
        and one.region in ("body", "lesions")
        and math.isfinite(one.mean)
    }


def loaded(package: str, extra: str) -> Any:
    """Import an optional package.

    Raises:
        InputError: CFG_PACKAGE.
    """
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError:
        raise InputError(
            "CFG_PACKAGE",
            where=package.split(".")[0],
            found="not installed",
            remedy=f'install it: pip install "petscale[{extra}]"',
        ) from None


def batches(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield parts of at most ``size``."""
    yield from (values[at : at + size] for at in range(0, len(values), size))
