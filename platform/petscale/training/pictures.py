"""Pictures made during training: one patch of a held-out patient as source, synthesized and target.

While something else is trained than what restores, as a masked autoencoder, they show that.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from storage.patches import draw
from storage.randomness import Stream, generator
from storage.reader import Case
from storage.source import HU
from trainers.feed_config import FeedConfig
from trainers.recipe import Illustrated, Synthesizer
from trainers.synthesize import InSuv, case_context, fitted, for_scan, images_of, window

Panels = dict[str, tuple[NDArray[np.float32], tuple[float, float], str]]  # title -> voxels, black and white, colours
CT_HU = (-160.0, 240.0)  # shown black and white in slices of a CT: soft tissue


def picture(
    folder: Path, case: Case, feed: FeedConfig, device: torch.device, window_suv: float = 7.0
) -> Callable[[int, Synthesizer], None]:
    """Return the loop's picture function: source | synthesized | target of one held-out patch, in fixed windows."""

    def draw_picture(step: int, network: Synthesizer) -> None:
        panels = panels_of(network, case, feed, device, window_suv)
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second that only rank 0 spends
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.2), layout="constrained")
        for axes, (title, (voxels, (black, white), colours)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
            axes.imshow(voxels[len(voxels) // 2], cmap=colours, vmin=black, vmax=white)
            axes.set_title(title, fontsize=9)
            axes.set_axis_off()
        figure.suptitle(f"step {step}, case {case.name}, SUV 0 to {window_suv:g}", fontsize=9)
        folder.mkdir(exist_ok=True, mode=0o700)
        FigureCanvasAgg(figure).print_png(folder / f"step-{step:07d}.png")

    return draw_picture


@torch.no_grad()
def panels_of(network: Synthesizer, case: Case, feed: FeedConfig, device: torch.device, window_suv: float) -> Panels:
    """Return what a picture shows of one patch of a case, always the same one: title -> (z, y, x) in SUV or HU."""
    start, target = feed.source[0], feed.target
    units = case.image(start).units
    synthesizer = for_scan(InSuv(network, feed.suv_scale, units, feed.beyond), case.image(start))
    _, tile = fitted(synthesizer.tiling, case.sampling_maps.shape)
    box = draw(case.sampling_maps, tile, {"uptake": 1.0}, generator(0, Stream.PREVIEW))
    pet = (0.0, window_suv)
    if isinstance(network, Illustrated):
        doses = (torch.from_numpy(case.image(name).patch(box))[None, None] / feed.suv_scale for name in (start, target))
        shown = network.shown(*(dose.to(device) for dose in doses))
        return {title: ((image[0, 0] * feed.suv_scale).cpu().numpy(), pet, "gray_r") for title, image in shown.items()}
    context = case_context(synthesizer, case, start, device=device)
    seen = images_of(synthesizer, case, start)
    source = torch.from_numpy(window(synthesizer, seen, box.grown(synthesizer.tiling.halo)))
    output = synthesizer(source[None].to(device), context)[0, 0].cpu()
    return {
        start: (case.image(start).patch(box), *((CT_HU, "gray") if units == HU else (pet, "gray_r"))),
        "synthesized": (output.numpy(), pet, "gray_r"),
        target: (case.image(target).patch(box), pet, "gray_r"),
    }
