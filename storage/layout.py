"""The on-disk format of a cohort: names, axes, chunks, shards and attributes; older cohorts stay readable.

    <cohort>/zarr.json                          one Zarr v3 group; ``petscale`` attributes: schema version
    <cohort>/CATALOG.json                       case -> root digest of every committed case
    <cohort>/cases/<case>/MANIFEST.json         the commit point: every file with size and sha256
    <cohort>/cases/<case>/zarr.json             ``petscale``: subject (keyed hash), label names, fingerprint
    <cohort>/cases/<case>/<image>/zarr.json     OME-Zarr 0.5 multiscale; ``petscale``: affine, units, dose, provenance
    <cohort>/cases/<case>/<image>/0             native voxels (z, y, x); 1, 2, ... are coarser and for viewing only
    <cohort>/cases/<case>/aids/...              sampling maps: what samplers and recipes need without reading voxels

<image> is ``full``, ``low_drf<N>`` (N = dose reduction factor), ``truth``, ``ct``, ``labels``, ``body`` or a
user's own.  Names are for users; no name is parsed.  Shards are whole z slabs of at least 64 MiB (or the volume), so
that one task writes one shard.  They hold 32^3 chunks, blosc-lz4 with byte shuffle, and a crc32c to find flipped bits.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from storage import integrity
from storage.errors import InputError
from storage.source import LABEL, Dose, Grid, simulated_dose

if TYPE_CHECKING:  # zarr takes a second to import, and only writers need it
    import zarr

SCHEMA = 1
CHUNK = 32
SHARD_BYTES = 64 * 2**20
OVERVIEW = 64  # edge of the stored overview of every PET, SGSGAN's published input size
CASES, CATALOG, STAGING = "cases", "CATALOG.json", ".staging"
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
CASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
TAKEN = ("aids", "body", "zarr.json")  # names that petscale itself writes


def check_name(name: str, what: str) -> str:
    """Return ``name`` if it may stand in a store.

    Raises:
        InputError: CFG_NAME.
    """
    if name in TAKEN:
        raise InputError("CFG_NAME", where=what, found=f"'{name}' is petscale's own", remedy="choose another name")
    if not NAME.fullmatch(name):
        raise InputError(
            "CFG_NAME",
            where=what,
            found="a name that is not lower-case letters, digits, '_', '.', '-' (64 at most, letter or digit first)",
            remedy="choose another name; it is written into the store, so it must not identify a patient",
        )
    return name


def check_case_name(name: str) -> str:
    """Return ``name`` if it may be a case's; capitals may be in it, unlike in an image's.

    Raises:
        InputError: CFG_NAME.
    """
    if name.lower() not in TAKEN and CASE_NAME.fullmatch(name):
        return name
    raise InputError(
        "CFG_NAME",
        where="case name",
        found="a name that is not letters a to z, digits, '_', '.', '-' (64 at most, letter or digit first)",
        remedy="rename it, or leave --names folder out: cases are then named by a keyed hash",
    )


def low_name(drf: float, realisation: int = 0) -> str:
    """Name of a low-dose image: ``low_drf20``, ``low_drf20_r1`` for its second noise realisation."""
    return f"low_drf{drf:g}" + (f"_r{realisation}" if realisation else "")


def dose_attribute(dose: Dose | None) -> dict[str, Any] | None:
    """Return a dose as JSON values; an unknown dose reduction factor is null, as JSON has no NaN."""
    if dose is None:
        return None
    drf = None if math.isnan(dose.drf) else dose.drf
    return {"drf": drf, "relation": dose.relation, "shares_noise": dose.shares_noise}


def read_dose(facts: Mapping[str, Any]) -> Dose | None:
    """Return the dose in an image's ``petscale`` attributes; of cohorts without it, the one its provenance tells."""
    if "dose" not in facts:
        return simulated_dose(facts["provenance"])
    dose = facts["dose"]
    if dose is None:
        return None
    return Dose(math.nan if dose["drf"] is None else float(dose["drf"]), dose["relation"], dose["shares_noise"])


def _padded(length: int) -> int:
    return -(-length // CHUNK) * CHUNK


def shard_depth(shape: tuple[int, int, int], itemsize: int) -> int:
    """Slices of one shard: the fewest multiple of 32 that makes 64 MiB, or the whole padded volume."""
    layer = _padded(shape[1]) * _padded(shape[2]) * CHUNK * itemsize
    return min(_padded(shape[0]), CHUNK * -(-SHARD_BYTES // layer))


def slabs(shape: tuple[int, int, int], itemsize: int) -> list[tuple[int, int]]:
    """The (z0, z1) of every shard of a volume."""
    depth = shard_depth(shape, itemsize)
    return [(z, min(z + depth, shape[0])) for z in range(0, shape[0], depth)]


def storage_dtype(units: str) -> np.dtype[np.generic]:
    """uint16 for labels (uint8 masks are labels too: lz4 makes the second byte free), float32 for the rest."""
    return np.dtype(np.uint16 if units == LABEL else np.float32)


def create_group(path: Path, attributes: Mapping[str, Any]) -> None:
    """Make a Zarr v3 group with ``attributes``, or add them to one; in a crash the old metadata stays or the new."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    metadata = path / "zarr.json"
    held = integrity.read_json(metadata, "attributes")["attributes"] if metadata.exists() else {}
    group = {"zarr_format": 3, "node_type": "group", "attributes": {**held, **attributes}}
    integrity.write_json(metadata, group)


def create_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic], *, depth: int | None = None) -> None:
    """Make one array in the cohort's codecs; ``depth`` slices per shard, None for a single shard."""
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    padded = tuple(_padded(n) for n in shape)
    zarr.create_array(
        path,
        shape=shape,
        dtype=dtype,
        chunks=tuple(CHUNK for _ in shape),
        shards=(depth or padded[0], *padded[1:]),
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"), Crc32cCodec()],
        fill_value=0,
        dimension_names=("roi", "z", "y", "x")[-len(shape) :],
    )


def write_array(path: Path, values: NDArray[np.generic]) -> None:
    """Write a small array whole, as one shard."""
    create_array(path, values.shape, values.dtype)
    _writable(path)[...] = values


def _writable(path: Path) -> "zarr.Array[Any]":
    import zarr

    # Empty chunks are written, so that an absent one is always a loss, never background.
    return zarr.open_array(path, mode="r+").with_config({"write_empty_chunks": True})


def write_shard(path: Path, z0: int, slab: NDArray[np.generic]) -> None:
    """Write one whole shard; anything else would be a read-modify-write in which two writers lose data."""
    array = _writable(path)
    depth = (array.shards or array.shape)[0]
    last = min(z0 + depth, array.shape[0])
    assert z0 % depth == 0, "one task writes one whole shard"
    assert len(slab) == last - z0, "one task writes one whole shard"
    array[z0:last] = slab


def num_levels(shape: tuple[int, int, int]) -> int:
    """Resolution levels: halve until no axis is longer than 128."""
    levels = 1
    while max(shape) > 128:
        shape = level_shape(shape, 1)
        levels += 1
    return levels


def level_shape(shape: tuple[int, int, int], level: int) -> tuple[int, int, int]:
    """Voxels (z, y, x) of a coarser level."""
    z, y, x = (-(-n // 2**level) for n in shape)
    return z, y, x


def ome_attributes(name: str, grid: Grid) -> dict[str, Any]:
    """OME-Zarr 0.5 metadata of a multiscale image; positions are those of voxel centres, in mm.

    NGFF 0.5 has scale and translation only; the full affine stands in the ``petscale`` attributes.
    """
    datasets = []
    for level in range(num_levels(grid.shape)):
        factor = 2.0**level
        scale = [mm * factor for mm in grid.spacing_mm]
        shift = [mm * (factor - 1) / 2 for mm in grid.spacing_mm]  # a coarse voxel's centre lies between its children's
        datasets.append(
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": scale},
                    {"type": "translation", "translation": shift},
                ],
            }
        )
    axes = [{"name": axis, "type": "space", "unit": "millimeter"} for axis in "zyx"]
    return {"ome": {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": datasets}]}}
