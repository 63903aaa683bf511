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

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import integrity
from storage.errors import InputError
from storage.source import LABEL, Dose, Grid, simulated_dose

SCHEMA = 1
CHUNK = 32
SHARD_BYTES = 64 * 2**20
OVERVIEW = 64  # edge of the stored overview of every PET, SGSGAN's published input size
CASES, CATALOG, STAGING = "cases", "CATALOG.json", ".staging"
RUN = "config.json"  # by which the folder of a training is told from that of a cohort, where they are mixed up
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
    integrity.write_bytes(path / "zarr.json", _group(path, attributes))


def stage_group(path: Path, attributes: Mapping[str, Any]) -> None:
    """As ``create_group``, in a folder that nobody reads before ``integrity.commit`` has made it durable as a whole."""
    (path / "zarr.json").write_bytes(_group(path, attributes))


def _group(path: Path, attributes: Mapping[str, Any]) -> bytes:
    """Make the folder of a group; return its metadata with ``attributes`` in place of held ones of their names."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    metadata = path / "zarr.json"
    held = integrity.read_json(metadata, "attributes")["attributes"] if metadata.exists() else {}
    return integrity.json_bytes({"zarr_format": 3, "node_type": "group", "attributes": {**held, **attributes}})


def create_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic], *, depth: int | None = None) -> None:
    """Make one array in the cohort's codecs; ``depth`` slices per shard, None for a single shard."""
    padded = tuple(_padded(n) for n in shape)
    little, checksum = {"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}
    voxels = little if dtype.itemsize > 1 else {"name": "bytes"}
    blosc = {"typesize": dtype.itemsize, "cname": "lz4", "clevel": 5, "shuffle": "shuffle", "blocksize": 0}
    shards = {
        "chunk_shape": [CHUNK] * len(shape),
        "codecs": [voxels, {"name": "blosc", "configuration": blosc}, checksum],
        "index_codecs": [little, checksum],
        "index_location": "end",
    }
    metadata = {  # as zarr.create_array writes it, without the second that zarr takes to be loaded
        "shape": shape,
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [depth or padded[0], *padded[1:]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": dtype.type(0).item(),
        "codecs": [{"name": "sharding_indexed", "configuration": shards}],
        "attributes": {},
        "dimension_names": ("roi", "z", "y", "x")[-len(shape) :],
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    (path / "zarr.json").write_text(json.dumps(metadata, indent=2))


def write_array(path: Path, values: NDArray[np.generic]) -> None:
    """Write a small array whole, as one shard."""
    create_array(path, values.shape, values.dtype)
    write_shard(path, 0, values)


def write_shard(path: Path, z0: int, slab: NDArray[np.generic]) -> None:
    """Write one whole shard; anything else would be a read-modify-write in which two writers lose data.

    Empty chunks are written, so that an absent one is always a loss, never background.
    """
    told = integrity.read_json(path / "zarr.json", "shape", "chunk_grid")
    length, (depth, *_) = told["shape"][0], told["chunk_grid"]["configuration"]["chunk_shape"]
    assert z0 % depth == 0, "one task writes one whole shard"
    assert len(slab) == min(z0 + depth, length) - z0, "one task writes one whole shard"
    shard = path.joinpath("c", str(z0 // depth), *"0" * (slab.ndim - 1))
    shard.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with shard.open("wb") as file:
        file.writelines(_encoded(slab, depth))


def _encoded(slab: NDArray[np.generic], depth: int) -> Iterator[bytes]:
    """The bytes of a shard: its chunks in Morton order, as zarr puts them, then where each of them lies.

    Args:
        slab: what the shard holds; its last slices may be absent, and are absent chunks then.
        depth: slices of the shard.
    """
    from google_crc32c import value as crc32c
    from numcodecs import blosc

    counts = [_padded(n) // CHUNK for n in (depth, *slab.shape[1:])]
    index = np.full((*counts, 2), 2**64 - 1, dtype="<u8")
    held = [_padded(n) // CHUNK for n in slab.shape]
    offset = 0
    for place in sorted(np.ndindex(*held), key=_morton):
        part = slab[tuple(slice(CHUNK * k, CHUNK * (k + 1)) for k in place)]
        chunk = np.zeros([CHUNK] * slab.ndim, slab.dtype.newbyteorder("<"))
        chunk[tuple(map(slice, part.shape))] = part
        packed = blosc.compress(chunk, b"lz4", 5, blosc.SHUFFLE, 0)
        yield packed
        yield crc32c(packed).to_bytes(4, "little")
        index[place] = offset, len(packed) + 4
        offset += len(packed) + 4
    yield index.tobytes()
    yield crc32c(index.tobytes()).to_bytes(4, "little")


def _morton(place: tuple[int, ...]) -> int:
    """The indices' bits taken in turns, those of the first axis lowest."""
    return sum((k >> bit & 1) << (bit * len(place) + axis) for axis, k in enumerate(place) for bit in range(16))


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
