"""Committed cases and their voxels, read box by box; a case that is not committed is not listed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from storage import integrity, layout
from storage.errors import InputError
from storage.patches import PatchLocation, SamplingMaps
from storage.shards import ChunkError, Shards, open_shards
from storage.source import AIR_HU, HU, LABEL, SUV, Dose, Grid

Beyond = Literal["air", "mirror", "mirror_any"]


@dataclass(frozen=True)
class StoredImage:
    """One image of a committed case; an ``ImageSource``.

    Args:
        case: case name.
        name: image name.
        folder: the image's group.
    """

    case: str
    name: str
    folder: Path

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return image_attributes(self.folder)

    @cached_property
    def grid(self) -> Grid:
        """Where the voxels lie, by metadata alone: no library for arrays is loaded."""
        z, y, x = shape_of(self.folder / "0")
        return Grid((z, y, x), np.array(self._facts["affine_ras_mm"], dtype=np.float64))

    @property
    def units(self) -> str:
        """SUVbw, HU or label."""
        return str(self._facts["units"])

    @property
    def provenance(self) -> Mapping[str, object]:
        """Allow-listed facts of the image's origin."""
        facts: Mapping[str, object] = self._facts["provenance"]
        return facts

    @cached_property
    def dose(self) -> Dose | None:
        """With how many counts a PET was measured; None where it is not known, and for CT and labels."""
        return layout.read_dose(self._facts)

    @property
    def statistics(self) -> Mapping[str, float]:
        """Minimum, maximum and mean of the voxels, in units."""
        facts: Mapping[str, float] = self._facts["statistics"]
        return facts

    @cached_property
    def _array(self) -> Shards:
        return _open(self.folder / "0")

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the slab ``z0 <= z < z1``."""
        _, height, width = self.grid.shape
        return np.ascontiguousarray(self._read((slice(z0, z1), slice(0, height), slice(0, width))), dtype=np.float32)

    def patch(self, location: PatchLocation, beyond: Beyond = "air") -> NDArray[np.float32]:
        """Read one box, which may pass the volume.

        Args:
            location: the box.
            beyond: what a PET holds beyond its faces: 0 (``air``), or its mirror image (``mirror``), which has the
                noise and the level of what is near.  Labels are 0 there.  A CT is air beside the volume, and continues
                along z as its end slices are: a scan is cut there, the body is not; with ``mirror_any`` it is mirrored
                as a PET is.

        Raises:
            InputError: STORE_DAMAGED naming case, image and chunk.
        """
        inside = tuple(
            slice(max(0, a), min(n, b)) for a, b, n in zip(location.start, location.stop, self.grid.shape, strict=True)
        )
        if all(s.stop - s.start == n for s, n in zip(inside, location.shape, strict=True)):
            return np.ascontiguousarray(self._read(inside), dtype=np.float32)
        if (beyond, self.units) in (("mirror", SUV), ("mirror_any", SUV), ("mirror_any", HU)):
            return self._mirrored(location)
        if self.units == HU:
            z = np.clip(np.arange(location.start[0], location.stop[0]), 0, self.grid.shape[0] - 1)
            inside = (slice(int(z[0]), int(z[-1]) + 1), *inside[1:])
        result = np.full(location.shape, AIR_HU if self.units == HU else 0.0, dtype=np.float32)
        if all(s.start < s.stop for s in inside):
            place = tuple(slice(s.start - a, s.stop - a) for s, a in zip(inside, location.start, strict=True))
            values = self._read(inside)
            if self.units == HU:
                result[:, *place[1:]] = values[z - z[0]]
            else:
                result[place] = values
        return result

    def _mirrored(self, location: PatchLocation) -> NDArray[np.float32]:
        """Read a box of the volume repeated, mirrored about its faces."""
        index = []
        for start, stop, length in zip(location.start, location.stop, self.grid.shape, strict=True):
            at = np.arange(start, stop) % (2 * length)  # the mirrored volume has this period
            index.append(np.where(at < length, at, 2 * length - 1 - at))
        low = [int(at.min()) for at in index]
        values = self._read(tuple(slice(a, int(at.max()) + 1) for a, at in zip(low, index, strict=True)))
        return np.ascontiguousarray(values[np.ix_(*(at - a for at, a in zip(index, low, strict=True)))], np.float32)

    def _read(self, where: tuple[slice, ...]) -> NDArray[np.generic]:
        start, shape = tuple(s.start for s in where), tuple(s.stop - s.start for s in where)
        return _values(self._array, f"case {self.case}, image {self.name}", start, shape)


@dataclass(frozen=True)
class Case:
    """One committed examination."""

    name: str
    folder: Path

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return case_attributes(self.folder)

    @property
    def subject(self) -> str:
        """Keyed hash of the patient, equal for all of the patient's cases."""
        return str(self._facts["subject"])

    @property
    def fingerprint(self) -> str:
        """Digest of what the case was made from."""
        return str(self._facts["fingerprint"])

    @property
    def voxels(self) -> str:
        """Digest of the voxels of its best PET, or of a CT alone; empty where an earlier version did not store it."""
        return str(self._facts.get("voxels", ""))

    @cached_property
    def labels(self) -> dict[int, str]:
        """Value in the ``labels`` image -> name."""
        return {int(value): name for value, name in self._facts["labels"].items()}

    @property
    def tags(self) -> dict[str, str]:
        """What else is known of the case: fact -> value."""
        return dict(self._facts.get("tags", {}))

    @cached_property
    def images(self) -> tuple[str, ...]:
        """Names of the images, sorted."""
        return tuple(sorted(self._facts["images"]))

    def image(self, name: str) -> StoredImage:
        """Return one image.

        Raises:
            InputError: SET_NO_IMAGE, listing what there is.
        """
        if name not in self.images:
            raise InputError(
                "SET_NO_IMAGE",
                where=f"case {self.name}",
                found=f"no image '{name}' (there are {', '.join(self.images)})",
                remedy="name one of these, or make it: low doses by `petscale simulate`, others by `petscale ingest`",
            )
        return self._opened.setdefault(name, StoredImage(self.name, name, self.folder / name))

    @cached_property
    def _opened(self) -> dict[str, StoredImage]:
        return {}

    @cached_property
    def sampling_maps(self) -> SamplingMaps:
        """What samplers need of the case, read once."""
        names = [name for _, name in sorted(self.labels.items())]
        rois = self._map("rois") / np.float32(255) if names else ()
        return SamplingMaps(
            shape=self.image("body").grid.shape,
            body=self._map("body"),
            uptake=self._map("uptake"),
            rois=dict(zip(names, rois, strict=True)),
        )

    def overview(self, image: str) -> NDArray[np.float32]:
        """Return the whole PET ``image`` resized to 64^3 by area, in SUV."""
        self.image(image)
        return self._map(f"overview_{image}")

    def _map(self, name: str) -> NDArray[np.float32]:
        return _values(_open(self.folder / "aids" / name), f"case {self.name}, sampling map {name}")


class Cases(Protocol):
    """Committed cases by name: a cohort, or several read as one (``storage.joined``)."""

    @property
    def name(self) -> str: ...
    @property
    def cases(self) -> tuple[str, ...]: ...
    def case(self, name: str) -> Case: ...


@dataclass(frozen=True)
class Cohort:
    """Committed cases under one folder."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's name; of a link, the name that the user chose."""
        return Path(os.path.abspath(self.folder)).name

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the committed cases, sorted."""
        parents = (self.folder / layout.CASES).glob(f"*/{integrity.MANIFEST}")
        return tuple(sorted(path.parent.name for path in parents))

    def case(self, name: str) -> Case:
        """Open one case, after checking that every file of its manifest is there in full size.

        A case that is open already in this process is returned again, whichever cohort it was opened by.

        Raises:
            InputError: SET_NO_CASE, STORE_DAMAGED, STORE_UNCOMMITTED.
        """
        folder = self.folder / layout.CASES / name
        if not folder.is_dir():
            raise InputError(
                "SET_NO_CASE",
                where=f"case {name}",
                found=f"not in the cohort ({len(self.cases)} cases)",
                remedy="list the cases with `petscale inspect --cases`",
            )
        content = integrity.check_presence(folder)
        if content["facts"].get("case") != name:
            raise InputError(
                "STORE_DAMAGED",
                where=f"case {name}",
                found="the folder holds another case's files",
                remedy="run `petscale verify`, then put the folders back or ingest again",
            )
        status = (folder / integrity.MANIFEST).stat()
        return _case(name, folder.absolute(), content["root"], (status.st_ino, status.st_ctime_ns))


@lru_cache(maxsize=4096)  # more than the largest public data set has (1447), each a few kB and its sampling maps
def _case(name: str, folder: Path, root: str, file: tuple[int, int]) -> Case:
    """The case of one commit: a result may be replaced, and later again by one that equals the first."""
    return Case(name, folder)


def open_cohort(folder: Path) -> Cohort:
    """Open a cohort for reading.

    Raises:
        InputError: STORE_NONE when there is none, STORE_DAMAGED when it cannot be read, STORE_SCHEMA when it is newer.
    """
    about = attributes(folder).get("petscale", {}) if (folder / "zarr.json").is_file() else {}
    if "schema" not in about:
        raise _no_cohort(folder)
    if not isinstance(about["schema"], int):
        raise _no_metadata(folder)
    if about["schema"] > layout.SCHEMA:
        raise InputError(
            "STORE_SCHEMA",
            where=folder.name,
            found=f"schema {about['schema']}, this petscale reads up to {layout.SCHEMA}",
            remedy="install a newer petscale",
        )
    return Cohort(folder)


def _no_cohort(folder: Path) -> InputError:
    found = "no petscale cohort in this folder"
    remedy = "make one with `petscale ingest`, `petscale phantom` or `petscale simulate`"
    if folder.is_file():
        found = "a file, and no folder of a cohort"
    elif not folder.exists():
        found = "no such folder"
    elif (folder / layout.RUN).is_file():
        found, remedy = "a run, and no cohort", "name a cohort; where a command takes both, the run comes first"
    elif around := next((one for one in folder.absolute().parents if (one / layout.CATALOG).is_file()), None):
        found, remedy = "a folder inside a cohort", f"name the cohort's own: {around.name}"
    return InputError("STORE_NONE", where=folder.name or str(folder), found=found, remedy=remedy)


def attributes(folder: Path | str) -> dict[str, Any]:
    """Return the attributes of a Zarr group; those of petscale, under ``petscale``, are a mapping if they are there.

    Raises:
        InputError: STORE_DAMAGED.
    """
    try:
        with open(f"{folder}/zarr.json", "rb") as file:  # thousands of them are read: paths are not composed as objects
            found: dict[str, Any] = integrity.parse_json(file.read())["attributes"]
        ours = found.get("petscale", {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise _no_metadata(Path(folder)) from None
    if not isinstance(ours, dict):
        raise _no_metadata(Path(folder))
    return found


def case_attributes(folder: Path | str) -> dict[str, Any]:
    """Return what petscale states of a case, in its folder.

    Raises:
        InputError: STORE_DAMAGED.
    """
    facts: dict[str, Any] = attributes(folder).get("petscale", {})
    if not _describes_case(facts):
        raise _no_metadata(Path(folder))
    return facts


def image_attributes(folder: Path | str) -> dict[str, Any]:
    """Return what petscale states of an image, in its folder.

    Raises:
        InputError: STORE_DAMAGED.
    """
    facts: dict[str, Any] = attributes(folder).get("petscale", {})
    if not _describes_image(facts):
        raise _no_metadata(Path(folder))
    return facts


def _describes_case(facts: Mapping[str, Any]) -> bool:
    """Whether attributes are those of a case: digests, names of images and labels, tags."""
    labels, images, tags = facts.get("labels"), facts.get("images"), facts.get("tags", {})
    return (
        isinstance(facts.get("subject"), str)
        and isinstance(facts.get("fingerprint"), str)
        and isinstance(facts.get("voxels", ""), str)
        and isinstance(images, list)
        and all(isinstance(name, str) and layout.NAME.fullmatch(name) for name in images)
        and isinstance(labels, dict)
        and all(value.isdecimal() and isinstance(name, str) for value, name in labels.items())
        and isinstance(tags, dict)
        and all(isinstance(value, str) for value in tags.values())
    )


def _describes_image(facts: Mapping[str, Any]) -> bool:
    """Whether attributes are those of an image: affine, unit, origin, statistics, dose."""
    affine: Any = facts.get("affine_ras_mm")
    statistics, dose = facts.get("statistics"), facts.get("dose")
    try:
        regular = np.array(affine, dtype=np.float64)
        return (
            regular.shape == (4, 4)
            and bool(np.isfinite(regular).all())
            and all(type(value) in (int, float) for row in affine for value in row)
            and isinstance(facts["units"], str)
            and isinstance(facts["provenance"], dict)
            and isinstance(statistics, dict)
            and (facts["units"] == LABEL or {"min", "max", "mean"} <= statistics.keys())
            and all(type(value) in (int, float) for value in statistics.values())
            and (dose is None or dose["drf"] is None or float(dose["drf"]) > 0)
            and (dose is None or {"relation", "shares_noise"} <= dose.keys())
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return False


def shape_of(array: Path | str) -> tuple[int, int, int]:
    """Return the shape (z, y, x) of a stored volume, from the array's own metadata.

    Raises:
        InputError: STORE_DAMAGED.
    """
    try:
        with open(f"{array}/zarr.json", "rb") as file:
            z, y, x = integrity.parse_json(file.read())["shape"]
    except (OSError, ValueError, KeyError, TypeError):
        raise _no_array(Path(array)) from None
    if not all(type(length) is int and 0 < length < 2**31 for length in (z, y, x)):
        raise _no_array(Path(array))
    return z, y, x


def _no_array(array: Path) -> InputError:
    return InputError(
        "STORE_DAMAGED",
        where=f"{array.parent.parent.name}/{array.parent.name}/{array.name}",
        found="the array's metadata cannot be read",
        remedy="run `petscale verify`, then restore the case from a copy, or remove and ingest it again",
    )


def _no_metadata(folder: Path) -> InputError:
    return InputError(
        "STORE_DAMAGED",
        where=f"{folder.name}/zarr.json",
        found="missing or not readable",
        remedy="run `petscale verify`, then restore the case from a copy, or remove and ingest it again",
    )


def _open(folder: Path) -> Shards:
    try:
        return open_shards(folder)
    except (ValueError, OSError):
        raise _no_array(folder) from None


def _values(
    array: Shards, what: str, start: tuple[int, ...] | None = None, shape: tuple[int, ...] = ()
) -> NDArray[Any]:
    """Read a box, or all without a ``start``, of an array opened by ``_open``; ``what`` names it in an error."""
    try:
        return array.whole() if start is None else array.box(start, shape)
    except ChunkError as error:
        raise InputError(
            "STORE_DAMAGED",
            where=f"{what}, {error}",
            found="stored voxels are missing or fail their checksum",
            remedy="run `petscale verify`, then restore the case from a copy, or remove and ingest it again",
        ) from None
