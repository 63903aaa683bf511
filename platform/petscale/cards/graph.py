"""``petscale export CARD MODEL.onnx``: a card's network as an ONNX graph of one tile, which any runtime of ONNX runs.

The graph's own metadata say how a volume is cut into tiles, in which units, and what the network is meant for.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from storage.patches import CELL
from storage.reader import Beyond
from storage.source import AIR_HU, HU, SUV
from trainers.graph import (
    CONTEXT,
    ContextGraph,
    Edges,
    Shared,
    TileGraph,
    Windows,
    check_graphed,
    example,
    example_of_scan,
    shared_of,
    windows_of,
)
from trainers.synthesize import InSuv

SUFFIX = ".onnx"
OPSET = 18  # the one that torch's exporter is written for: no graph is converted from another
FORM = 1
CLOSE = 1e-4  # difference from torch, in parts of the largest value and of 1 SUV at least
# Share of voxels that may differ by more.  An adaptive filter puts voxels into classes: where one lies between two of
# them within rounding, the classes of two programs differ, and so do single voxels.
ELSEWHERE = 1e-4
OUTPUT = "tile"
Arrays = Mapping[str, np.ndarray[Any, Any]]
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
    check_graphed(in_suv, where)
    windows, shared = windows_of(in_suv, tile), shared_of(in_suv)
    graph = TileGraph(in_suv, shared)
    with torch.no_grad():
        inputs = {name: value.to(trained.device) for name, value in example(in_suv, windows, graph.facts).items()}
        before = None
        if shared is not None:
            of_scan = ContextGraph(in_suv, shared)
            inputs |= {name: value.to(trained.device) for name, value in example_of_scan(in_suv, shared).items()}
            inputs[CONTEXT] = of_scan(*(inputs[name] for name in of_scan.inputs))
            before = _model(of_scan, of_scan.inputs, inputs, "made", where, cut=shared.short == "cut")
        wanted = graph(*(inputs[name] for name in graph.inputs)).cpu().numpy()
        model = _model(graph, graph.inputs, inputs, OUTPUT, where)
    if before is not None:
        _join(model, before)
    _forget_where_it_was_made(model)
    for name, value in {**_cut(in_suv, trained.on.spacing_mm, windows, graph, shared), **told}.items():
        model.metadata_props.add(key=name, value=value)
    content = model.SerializeToString()
    return content, _compared(content, {name: value.cpu().numpy() for name, value in inputs.items()}, wanted, where)


def _model(
    module: torch.nn.Module,
    names: Sequence[str],
    inputs: Mapping[str, Tensor],
    output: str,
    where: str,
    cut: bool = False,
) -> Any:
    """Return a module as an ONNX model.

    Args:
        names: of its inputs.
        inputs: by name.
        output: name of what it gives.
        where: what the error calls the weights.
        cut: whether edges of ``patches`` differ between scans.

    Raises:
        InputError: CKPT_GRAPH.
    """
    free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC, 4: torch.export.Dim.DYNAMIC}
    first, *others = ({} if not cut or name != "patches" else free for name in names)
    with _quiet():
        try:
            program = torch.onnx.export(
                module,
                tuple(inputs[name] for name in names),
                dynamo=True,
                input_names=names,
                output_names=(output,),
                opset_version=OPSET,
                dynamic_shapes=(first, tuple(others)) if cut else None,
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
    return program.model_proto


def _join(tile: Any, of_scan: Any) -> None:
    """Let a tile's model compute its context where none is given, by what is another model up to then.

    Its input ``context_out`` becomes an output: ``of_scan``'s answer where the new input ``context`` begins with NaN,
    and else that input.  The other inputs of both are inputs, and weights of both are kept once.

    Args:
        tile: an ONNX model, which is changed.
        of_scan: an ONNX model.
    """
    from onnx import helper

    graph, branch = tile.graph, of_scan.graph
    kept_once = {_without_name(one): one.name for one in graph.initializer}
    names = {one.name: kept_once.get(_without_name(one), "") for one in branch.initializer}
    own = [one for one in branch.initializer if not names[one.name]]
    computed = (name for node in branch.node for name in node.output if name)
    names |= {name: f"of_scan/{name}" for name in (*(one.name for one in own), *computed)}
    for one in own:
        one.name = names[one.name]
    for node in branch.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
    (line,) = (one for one in graph.input if one.name == CONTEXT)
    line_type = line.type.tensor_type
    size = line_type.shape.dim[0].dim_value
    then_made = helper.make_tensor_value_info(names[branch.output[0].name], line_type.elem_type, [size])
    then_kept = helper.make_tensor_value_info("kept", line_type.elem_type, [size])
    made = helper.make_graph(list(branch.node), "made", [], [then_made], own)
    kept = helper.make_graph([helper.make_node("Identity", ["context"], ["kept"])], "given", [], [then_kept])
    before = [
        helper.make_node("Constant", [], ["first"], value_int=0),
        helper.make_node("Gather", ["context", "first"], ["first_of_context"]),
        helper.make_node("IsNaN", ["first_of_context"], ["not_given"]),
        helper.make_node("If", ["not_given"], [CONTEXT], then_branch=made, else_branch=kept),
    ]
    nodes = [*before, *graph.node]
    given = {one.name for one in graph.input}
    inputs = [one for one in graph.input if one.name != CONTEXT]
    inputs += [one for one in branch.input if one.name not in given]
    inputs.append(helper.make_tensor_value_info("context", line_type.elem_type, [size]))
    for field, values in ((graph.node, nodes), (graph.input, inputs), (graph.output, [*graph.output, line])):
        copies = [type(one).FromString(one.SerializeToString()) for one in values]
        del field[:]
        field.extend(copies)


def _without_name(tensor: Any) -> bytes:
    nameless = type(tensor).FromString(tensor.SerializeToString())
    nameless.ClearField("name")
    content: bytes = nameless.SerializeToString()
    return content


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
    in_suv: InSuv,
    spacing_mm: tuple[float, float, float] | None,
    windows: Windows,
    graph: TileGraph,
    shared: Shared | None,
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
        "facts": graph.facts,
        "unknown": graph.unknown,
        "context": _of_whole_scan(shared) if shared else None,
        "channels": [{"image": name} | beyond_of(units, in_suv.beyond) for name, units in seen.items()],
        "spacing_mm": spacing_mm,
        "opset": OPSET,
        "form": FORM,
    }
    return {name: json.dumps(value) for name, value in plain.items()} | {"units": in_suv.units, "output_units": SUV}


def _of_whole_scan(shared: Shared) -> dict[str, Any]:
    """How the inputs that tell of the whole scan are made of it."""
    return {
        "size": shared.size,
        "patch": shared.patch,
        "halo": shared.halo,
        "short": shared.short,
        "centres": [(centre.share, *centre.voxel) for centre in shared.centres],
        "cell": CELL,
        "overview": shared.overview,
    }


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


def _compared(content: bytes, inputs: Arrays, wanted: np.ndarray[Any, Any], where: str) -> float:
    """Run the graph by itself; returns the largest difference from what torch gave, but for a share ``ELSEWHERE``.

    With a context, it is run without one and then with the one that it gave, and the larger difference counts.

    Args:
        inputs: by name.
        wanted: the tile.

    Raises:
        InputError: CKPT_GRAPH where it is too large.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone: it warns of constants that no operation takes
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    if CONTEXT in inputs:
        given = {name: value for name, value in inputs.items() if name != CONTEXT}
        unknown = np.full_like(inputs[CONTEXT], np.nan)
        found, context = session.run(None, {**given, "context": unknown})
        not_read = np.full_like(inputs["patches"], np.nan)
        again, _ = session.run(None, {**given, "patches": not_read, "context": context})
        tiles = [found, again]
    else:
        tiles = session.run(None, dict(inputs))
    difference = max(float(np.quantile(np.abs(one - wanted), 1 - ELSEWHERE, method="higher")) for one in tiles)
    if not difference <= CLOSE * max(1.0, float(np.abs(wanted).max())):
        raise InputError(
            "CKPT_GRAPH",
            where=where,
            found=f"a network whose ONNX graph differs from torch's by {difference:.2g} SUV",
            remedy="use petscale apply, and tell petscale's authors",
        )
    return difference


def _translations() -> dict[Any, Callable[..., Any]]:
    """Operations of torch for which its exporter has no ONNX form, or one that is less exact.

    onnxruntime adds up one number after the other: over all axes of a context's patches at once, a mean is wrong by
    some parts in 10,000.
    """
    from onnxscript import opset18 as op

    def bucketize(values: Any, edges: Any, out_int32: bool = False, right: bool = False) -> Any:
        """Count the edges (rising) below each value, or up to it (``right``)."""
        compare = op.GreaterOrEqual if right else op.Greater
        below = op.Cast(compare(op.Unsqueeze(values, [-1]), edges), to=6)  # 6: int32, the smallest that is summed
        return op.Cast(op.ReduceSum(below, [-1], keepdims=0), to=7)  # 7: int64

    def axis_by_axis(values: Any, dim: Sequence[int]) -> Any:
        for axis in dim:
            values = op.ReduceMean(values, [axis], keepdims=1)
        return values

    def mean(values: Any, dim: Sequence[int], keepdim: bool = False, dtype: int = -1) -> Any:
        found = axis_by_axis(values, dim)
        return found if keepdim else op.Squeeze(found, list(dim))

    def var_mean(values: Any, dim: Sequence[int], correction: float = 1.0, keepdim: bool = False) -> Any:
        middle = axis_by_axis(values, dim)
        from_middle = op.Sub(values, middle)
        spread = axis_by_axis(op.Mul(from_middle, from_middle), dim)
        if correction:
            count = op.CastLike(op.ReduceProd(op.Gather(op.Shape(values), list(dim)), keepdims=0), values)
            spread = op.Mul(spread, op.Div(count, op.Sub(count, op.CastLike(float(correction), values))))
        found = spread, middle
        return found if keepdim else tuple(op.Squeeze(one, list(dim)) for one in found)

    def var(values: Any, dim: Sequence[int], correction: float = 1.0, keepdim: bool = False) -> Any:
        return var_mean(values, dim, correction, keepdim)[0]

    aten = torch.ops.aten
    return {
        aten.bucketize.Tensor: bucketize,
        aten.mean.dim: mean,
        aten.var_mean.correction: var_mean,
        aten.var.correction: var,
    }


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
