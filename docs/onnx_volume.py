"""A whole volume through a graph of `petscale export CARD MODEL.onnx`, with numpy and onnxruntime alone.

    python onnx_volume.py model.onnx low.npy restored.npy --spacing-mm 2 1.65 1.65 --drf 20

low.npy holds a volume (z, y, x) in the unit that the graph's metadata name; restored.npy will hold SUVbw.
"""

import argparse
import json
from itertools import product

import numpy as np
import onnxruntime


def synthesize(session, volumes, facts):
    """Cut a volume into tiles, run the graph on each, and put the answers together.

    Args:
        session: an onnxruntime.InferenceSession of the graph.
        volumes: the source, and the images that the network sees beside it, all (z, y, x).
        facts: what the graph asks for: spacing_mm (z, y, x), drf, shared.
    """
    cut = {
        name: json.loads(value) if value.startswith(("[", "{")) else value
        for name, value in session.get_modelmeta().custom_metadata_map.items()
    }
    shape, tile, halo, overlap = volumes[0].shape, cut["tile"], cut["halo"], cut["overlap"]
    for length, edge, multiple, whole in zip(shape, tile, cut["multiple"], cut["whole"], strict=True):
        if whole and -(-length // multiple) * multiple != edge:
            raise SystemExit(f"a slice of {shape[1:]} voxels needs a graph made with another --tile than {tile}")
    inputs = {name: np.array(facts[name], np.float32) for name in cut["facts"]}
    total, weights = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    ramp = [ramp_of(*axis) for axis in zip(tile, overlap, strict=True)]
    weight = ramp[0][:, None, None] * ramp[1][:, None] * ramp[2]
    for start in product(*(starts(*axis) for axis in zip(shape, tile, overlap, strict=True))):
        box = [(a - h, a + n + h) for a, n, h in zip(start, tile, halo, strict=True)]
        seen = [read(volume, box, channel) for volume, channel in zip(volumes, cut["channels"], strict=True)]
        (answer,) = session.run(None, {"window": np.stack(seen)[None], **inputs})
        z, y, x = (slice(a, min(a + n, length)) for a, n, length in zip(start, tile, shape, strict=True))
        inside = tuple(slice(0, part.stop - part.start) for part in (z, y, x))
        total[z, y, x] += (answer[0, 0] * weight)[inside]
        weights[z, y, x] += weight[inside]
    return np.maximum(total / weights, 0)  # uptake is never negative


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
    for fact in json.loads(graph.get_modelmeta().custom_metadata_map["facts"]):
        if np.isnan(found[fact]).any():
            words.error(f"this graph needs --{fact.replace('_', '-')}")
    np.save(given.volumes[-1], synthesize(graph, [np.load(one) for one in given.volumes[:-1]], found))
