"""``petscale export CARD MODEL.onnx``: a card's network as an ONNX graph of one tile, which any runtime of ONNX runs.

The graph's own metadata say how a volume is cut into tiles, in which units, and what the network is meant for.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from petscale.cards.card import Card, open_card
from petscale.console import console
from petscale.inference import Trained
from storage import integrity
from storage.errors import InputError
from storage.reader import Beyond
from storage.source import AIR_HU, HU, SUV
from trainers.graph import Edges, TileGraph, Windows, check_alone, example, windows_of
from trainers.synthesize import InSuv

SUFFIX = ".onnx"
OPSET = 18  # the one that torch's exporter is written for: no graph is converted from another
FORM = 1
CLOSE = 1e-4  # difference from torch, in parts of the largest value and of 1 SUV at least
# Share of voxels that may differ by more.  An adaptive filter puts voxels into classes: where one lies between two of
# them within rounding, the classes of two programs differ, and so do single voxels.
ELSEWHERE = 1e-4
OUTPUT = "tile"
OPTIONAL = ("onnx", "onnxscript", "onnxruntime")


def export_graph(card: Path, file: Path, tile: Edges | None = None) -> float:
    """Write a card's network as an ONNX file, after its answer was compared with torch's.

    Args:
        card: a file of ``petscale card``.
        file: a new ``.onnx`` file.
        tile: edges (z, y, x) of a tile in voxels, along axes where the system leaves them free; None for those of
            ``trainers.graph.TILE``.

    Returns:
        The largest difference between the graph and torch on one window, in SUVbw, but for one voxel in 10,000.

    Raises:
        InputError: DISK_EXISTS; CFG_PACKAGE; those of ``open_card``; CFG_RANGE for edges; CKPT_GRAPH for a network that
            no graph of a tile holds.
    """
    integrity.check_new(file, "FILE")
    _require_packages()
    known, trained = open_card(card)
    content, difference = graph_of(trained, card.name, _told(known, integrity.file_digest(card)), tile)
    with integrity.disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        integrity.write_bytes(file, content)
    console.print(
        f"{file.name}: its tile differs from torch's by {difference:.2g} SUV at most, but for one voxel in 10,000",
        markup=False,
        soft_wrap=True,
    )
    return difference


def graph_of(trained: Trained, where: str, told: Mapping[str, str], tile: Edges | None = None) -> tuple[bytes, float]:
    """Return an ONNX file's bytes, and by how much its answer differs from torch's.

    Args:
        where: what errors call the weights.
        told: further metadata.

    Raises:
        InputError: CFG_RANGE, CKPT_GRAPH.
    """
    in_suv = trained.synthesizer
    assert isinstance(in_suv, InSuv), "with_networks makes no other"
    check_alone(in_suv, where)
    windows = windows_of(in_suv, tile)
    graph = TileGraph(in_suv)
    inputs = example(in_suv, windows, trained.device)
    names = ("window", *graph.facts)
    with _quiet(), torch.no_grad():
        wanted = graph(*inputs).cpu().numpy()
        try:
            program = torch.onnx.export(
                graph,
                inputs,
                dynamo=True,
                input_names=names,
                output_names=(OUTPUT,),
                opset_version=OPSET,
                custom_translation_table=_translations(),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise InputError(
                "CKPT_GRAPH",
                where=where,
                found=f"a network that torch cannot write as ONNX: {_cause(error)}",
                remedy="use petscale apply, or weights of another system",
            ) from None
        assert program is not None
        model = program.model_proto
    _forget_where_it_was_made(model)
    for name, value in {**_cut(in_suv, trained.on.spacing_mm, windows, graph.facts), **told}.items():
        model.metadata_props.add(key=name, value=value)
    content = model.SerializeToString()
    return content, _compared(content, dict(zip(names, inputs, strict=True)), wanted, where)


def _forget_where_it_was_made(message: Any) -> None:
    """Take out of an ONNX model, part by part, what torch notes of its making: it names files and folders."""
    for part in ("metadata_props", "doc_string"):
        if part in message.DESCRIPTOR.fields_by_name:
            message.ClearField(part)
    for described, value in message.ListFields():
        if described.message_type is not None:
            for one in value if described.is_repeated else [value]:
                _forget_where_it_was_made(one)


def _cut(
    in_suv: InSuv, spacing_mm: tuple[float, float, float] | None, windows: Windows, facts: tuple[str, ...]
) -> dict[str, str]:
    """How the graph is to be used, as metadata: numbers and lists are JSON."""
    spec = in_suv.context_batch
    beside = {name: HU if name == "ct" else SUV for name in (spec.beside if spec else ())}
    seen = {"source": in_suv.units, **beside}
    plain = {
        "tile": windows.tile,
        "halo": windows.halo,
        "overlap": windows.overlap,
        "multiple": windows.multiple,
        "whole": windows.whole,
        "facts": facts,
        "channels": [{"image": name} | beyond_of(units, in_suv.beyond) for name, units in seen.items()],
        "spacing_mm": spacing_mm,
        "opset": OPSET,
        "form": FORM,
    }
    return {name: json.dumps(value) for name, value in plain.items()} | {"units": in_suv.units, "output_units": SUV}


def beyond_of(units: str, beyond: Beyond) -> dict[str, Any]:
    """Say what lies beyond an image's faces along (z, y, x), as ``StoredImage.patch`` has it.

    Args:
        units: of the image.
        beyond: as ``FeedConfig.beyond``.
    """
    along = ["last" if units == HU else "outside", "outside", "outside"]
    if beyond == "mirror_any" or (beyond == "mirror" and units == SUV):
        along = ["mirror"] * 3
    return {"units": units, "beyond": along, "outside": AIR_HU if units == HU else 0.0}


def _told(card: Card, digest: str) -> dict[str, str]:
    """What a card says of its weights, for whoever holds the graph alone."""
    return {
        "system": card.system,
        "summary": card.summary,
        "drfs": json.dumps(integrity.json_safe(list(card.drfs))),
        "card_sha256": digest,
        "use": card.use,
        "limits": json.dumps(card.limits),
        "licence": card.licence,
        "written_by": f"petscale {version('petscale')}, torch {version('torch')}",
    }


def _compared(content: bytes, inputs: Mapping[str, Tensor], wanted: np.ndarray[Any, Any], where: str) -> float:
    """Run the graph by itself; returns the largest difference from what torch gave, but for a share ``ELSEWHERE``.

    Raises:
        InputError: CKPT_GRAPH where it is too large.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: value.cpu().numpy() for name, value in inputs.items()})
    differences = np.abs(found - wanted)
    difference = float(np.quantile(differences, 1 - ELSEWHERE, method="higher"))
    if not difference <= CLOSE * max(1.0, float(np.abs(wanted).max())):
        raise InputError(
            "CKPT_GRAPH",
            where=where,
            found=f"a network whose ONNX graph differs from torch's by {difference:.2g} SUV",
            remedy="use petscale apply, and tell petscale's authors",
        )
    return difference


def _translations() -> dict[Any, Callable[..., Any]]:
    """Operations of torch for which its exporter has no ONNX form."""
    from onnxscript import opset18 as op

    def bucketize(values: Any, edges: Any, out_int32: bool = False, right: bool = False) -> Any:
        """Count the edges (rising) below each value, or up to it (``right``)."""
        compare = op.GreaterOrEqual if right else op.Greater
        below = op.Cast(compare(op.Unsqueeze(values, [-1]), edges), to=6)  # 6: int32, the smallest that is summed
        return op.Cast(op.ReduceSum(below, [-1], keepdims=0), to=7)  # 7: int64

    return {torch.ops.aten.bucketize.Tensor: bucketize}


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells much of itself: of packages that are not there, and of constants that it did not fold."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _cause(error: Exception) -> str:
    """The last cause of the exporter's error, in one line."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return " ".join(str(cause).split())[:160]


def _require_packages() -> None:
    for name in OPTIONAL:
        try:
            __import__(name)
        except ImportError:
            raise InputError(
                "CFG_PACKAGE", where=name, found="not installed", remedy='install it: pip install "petscale[onnx]"'
            ) from None
