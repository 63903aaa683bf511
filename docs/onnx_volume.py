"""A whole volume through a graph of `petscale export CARD MODEL.onnx`, with numpy and onnxruntime alone.

    python onnx_volume.py model.onnx low.npy restored.npy --spacing-mm 2 1.65 1.65 --drf 20

low.npy holds a volume (z, y, x) in the unit that the graph's metadata name; restored.npy will hold SUVbw.
"""

import argparse
import json
from itertools import product

import numpy as np
import onnxruntime

REACH = 8  # voxels of the coarse grid that a body is outlined on: the longest smoothing and rounding


def synthesize(session, volumes, facts):
    """Cut a volume into tiles, run the graph on each, and put the answers together.

    Args:
        session: an onnxruntime.InferenceSession of the graph.
        volumes: the source, and the images that the network sees beside it, all (z, y, x).
        facts: what the graph asks for: spacing_mm (z, y, x), drf, shared; spacing_mm where it has a context too.
    """
    cut = {
        name: json.loads(value) if value.startswith(("[", "{")) else value
        for name, value in session.get_modelmeta().custom_metadata_map.items()
    }
    context = cut["context"] if isinstance(cut["context"], dict) else None
    shape, tile, halo, overlap = volumes[0].shape, cut["tile"], cut["halo"], cut["overlap"]
    for length, edge, multiple, whole in zip(shape, tile, cut["multiple"], cut["whole"], strict=True):
        if whole and -(-length // multiple) * multiple != edge:
            raise SystemExit(f"a slice of {shape[1:]} voxels needs a graph made with another --tile than {tile}")
    inputs = {name: np.array(facts[name], np.float32) for name in cut["facts"]}
    if context:
        inputs |= of_whole_scan(context, volumes, cut["channels"], facts["spacing_mm"])
    total, weights = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    ramp = [ramp_of(*axis) for axis in zip(tile, overlap, strict=True)]
    weight = ramp[0][:, None, None] * ramp[1][:, None] * ramp[2]
    for start in product(*(starts(*axis) for axis in zip(shape, tile, overlap, strict=True))):
        box = [(a - h, a + n + h) for a, n, h in zip(start, tile, halo, strict=True)]
        seen = [read(volume, box, channel) for volume, channel in zip(volumes, cut["channels"], strict=True)]
        answer, *made = session.run(None, {"window": np.stack(seen)[None], **inputs})
        if made:
            inputs["context"] = made[0]  # computed with the first tile, and not again
        z, y, x = (slice(a, min(a + n, length)) for a, n, length in zip(start, tile, shape, strict=True))
        inside = tuple(slice(0, part.stop - part.start) for part in (z, y, x))
        total[z, y, x] += (answer[0, 0] * weight)[inside]
        weights[z, y, x] += weight[inside]
    return np.maximum(total / weights, 0)  # uptake is never negative


def of_whole_scan(context, volumes, channels, spacing_mm):
    """The inputs that tell of the whole scan: patches of the body, the volume resized, and NaN for a context.

    A patch is centred in the cell of the body at which the sum of all cells, in the order of the array, passes a share
    of the whole, as far as the volume's faces allow.
    """
    low, shape = volumes[0], volumes[0].shape
    inputs = {"context": np.full(context["size"], np.nan, np.float32)}
    edges = [min(edge, length) for edge, length in zip(context["patch"], shape, strict=True)]
    filled = [
        (0, whole - edge if context["short"] == "filled" else 0)
        for whole, edge in zip(context["patch"], edges, strict=True)
    ]
    cells = block_means(body(low, spacing_mm).astype(np.float32), (context["cell"],) * 3)
    total = np.cumsum(cells, dtype=np.float64)
    patches = []
    for share, *voxel in context["centres"]:
        flat = min(np.searchsorted(total, share * total[-1], side="right"), cells.size - 1)
        box = []
        axes = zip(np.unravel_index(flat, cells.shape), voxel, edges, shape, context["halo"], strict=True)
        for cell, v, edge, length, halo in axes:
            start = int(np.clip(cell * context["cell"] + v - edge // 2, 0, length - edge))
            box.append((start - halo, start + edge + halo))
        seen = [read(volume, box, channel) for volume, channel in zip(volumes, channels, strict=True)]
        patches.append(np.pad(np.stack(seen), [(0, 0), *filled]))
    inputs["patches"] = np.stack(patches)
    if context["overview"]:
        inputs["overview"] = resized(low, context["overview"])[None, None]
    return inputs


def resized(volume, size):
    """The whole volume as size^3 cells, each the mean of the voxels that it covers, by the part that it covers."""
    for axis, length in enumerate(volume.shape):
        ends, first = np.arange(size + 1) * (length / size), np.arange(length)
        weights = np.clip(np.minimum(ends[1:, None], first + 1) - np.maximum(ends[:-1, None], first), 0, None)
        weights /= weights.sum(1, keepdims=True)
        volume = np.moveaxis(np.tensordot(weights, volume, (1, axis)), 0, axis)
    return volume.astype(np.float32)


def block_means(volume, edges):
    """Mean of each block of ``edges`` voxels; blocks that the border cuts average what they have."""
    for axis, edge in enumerate(edges):
        first = np.arange(0, volume.shape[axis], edge)
        count = np.diff([*first, volume.shape[axis]]).astype(np.float32)
        volume = np.moveaxis(np.moveaxis(np.add.reduceat(volume, first, axis), axis, -1) / count, -1, axis)
    return volume


def body(low, spacing_mm):
    """Outline the body on a PET in SUVbw: the largest piece above 0.1 SUV on a grid of about 5 mm, without holes.

    Lengths hold for a person; where a volume is less than 200 mm across and its voxels are below 1 mm, they shrink with
    its width.
    """
    across_mm = min(length * mm for length, mm in zip(low.shape[1:], spacing_mm[1:], strict=True))
    scale = across_mm / 600 if max(spacing_mm) < 1 and across_mm < 200 else 1.0
    edges = [
        max(f for f in (1, 2, 4, 8, 16, 32) if f == 1 or (f * mm <= 5.5 * scale and (f <= 4 or mm < 0.5)))
        for mm in spacing_mm
    ]
    coarse = block_means(low.astype(np.float32), edges)
    steps_mm = [mm * edge for mm, edge in zip(spacing_mm, edges, strict=True)]
    inside = coarse
    for axis, mm in enumerate(steps_mm):
        inside = smoothed(inside, axis, min(4 * scale / mm, REACH))
    inside = inside > 0.1
    if not inside.any():
        return np.ones(low.shape, bool)
    piece = pieces(inside, (0, 1, 2))
    inside &= piece == np.argmax(np.bincount(piece[inside]))
    reach = [min(max(1, int(10 * scale / mm)), REACH) for mm in steps_mm]
    grown = np.pad(inside, [(n, n) for n in reach], mode="edge")
    closed = ~dilated(~dilated(grown, reach, False), reach, True)[tuple(slice(n, -n) for n in reach)]
    air = pieces(np.pad(~closed, [(0, 0), (1, 1), (1, 1)], constant_values=True), (1, 2))
    filled = (air != air[:, :1, :1])[:, 1:-1, 1:-1]  # what is not connected with the slice's corner
    for axis, edge in enumerate(edges):
        filled = filled.repeat(edge, axis)
    return filled[tuple(map(slice, low.shape))]


def smoothed(volume, axis, sigma):
    """Smooth by a Gaussian along one axis; beyond the ends lies the mirror image."""
    radius = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 / sigma**2 * np.arange(-radius, radius + 1) ** 2)
    weights /= weights.sum()
    length = volume.shape[axis]
    total = np.zeros(volume.shape)
    for weight, offset in zip(weights, range(-radius, radius + 1), strict=True):
        at = (np.arange(length) + offset) % (2 * length)
        total += weight * volume.take(np.where(at < length, at, 2 * length - 1 - at), axis)
    return total.astype(np.float32)


def pieces(mask, axes):
    """Number the connected pieces of a mask, neighbours along ``axes``: each by its first voxel; -1 outside."""
    number = np.where(mask, np.cumsum(mask).reshape(mask.shape) - 1, -1)
    pairs = []
    for axis in axes:
        lines = np.moveaxis(number, axis, 0)
        both = (lines[1:] >= 0) & (lines[:-1] >= 0)
        pairs.append(np.stack([lines[:-1][both], lines[1:][both]]))
    first, second = np.concatenate(pairs, axis=1)
    root = np.arange(mask.sum())
    while (root[first] != root[second]).any():
        a, b = root[first], root[second]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while (root[root] != root).any():
            root = root[root]
    return np.where(mask, root[number], -1)


def dilated(mask, reach, beyond):
    """Dilate a mask by a ball of ``reach`` voxels along (z, y, x); ``beyond`` is what lies past the borders."""
    padded = np.pad(mask, [(n, n) for n in reach], constant_values=beyond)
    made = np.zeros_like(mask)
    for offset in product(*(range(-n, n + 1) for n in reach)):
        if sum((step / n) ** 2 for step, n in zip(offset, reach, strict=True)) <= 1:
            made |= padded[tuple(slice(n + s, n + s + m) for n, s, m in zip(reach, offset, mask.shape, strict=True))]
    return made


def starts(length, tile, overlap):
    """First voxels of the tiles along one axis: where tiles are blended, the last one is moved back inside."""
    if not overlap:
        return range(0, length, tile)
    return [0] if tile >= length else [*range(0, length - tile, tile - overlap), length - tile]


def ramp_of(tile, overlap):
    """Weights along one axis of a tile: 1 inside, less over the overlap."""
    rising = np.minimum(np.arange(tile) + 1, np.arange(tile, 0, -1)) / (overlap + 1)
    return np.minimum(rising, 1).astype(np.float32)


def read(volume, box, channel):
    """A box of a volume, which may pass its faces: mirrored there, its last slice again, or a value outside."""
    index, outside = [], []
    for (start, stop), length, beyond in zip(box, volume.shape, channel["beyond"], strict=True):
        at = np.arange(start, stop)
        outside.append((beyond == "outside") & ((at < 0) | (at >= length)))
        if beyond == "mirror":
            at = at % (2 * length)
            at = np.where(at < length, at, 2 * length - 1 - at)
        index.append(np.clip(at, 0, length - 1))
    values = volume[np.ix_(*index)].astype(np.float32)
    z, y, x = outside
    values[z[:, None, None] | y[:, None] | x] = channel["outside"]
    return values


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("model")
    words.add_argument("volumes", nargs="+", help="the source, what the network sees beside it, and last the result")
    words.add_argument("--spacing-mm", type=float, nargs=3, default=(np.nan,) * 3, metavar=("Z", "Y", "X"))
    words.add_argument("--drf", type=float, default=np.nan, help="dose reduction factor of the scan")
    words.add_argument("--shared", type=float, default=0, help="part of the full dose's counts that the scan holds")
    given = words.parse_args()
    found = {"spacing_mm": given.spacing_mm, "drf": given.drf, "shared": given.shared}
    graph = onnxruntime.InferenceSession(given.model, providers=["CPUExecutionProvider"])
    told = {
        name: json.loads(graph.get_modelmeta().custom_metadata_map[name]) for name in ("facts", "unknown", "context")
    }
    for fact in {*told["facts"], *(["spacing_mm"] if told["context"] else [])} - {*told["unknown"]}:
        if np.isnan(found[fact]).any():
            words.error(f"this graph needs --{fact.replace('_', '-')}")
    np.save(given.volumes[-1], synthesize(graph, [np.load(one) for one in given.volumes[:-1]], found))
