"""What a report shows of a standard deviation's calibration: nominal coverage against observed, per band of SUV."""

from typing import Any

from petscale.calibrations import Kept
from petscale.evaluation import calibrating
from petscale.reporting.charts import COLORS, FAINT, INK, dress, figure_png, new_figure
from trainers.metrics.calibration import AIM, LEVEL, LEVELS


def calibration_facts(kept: Kept) -> dict[str, Any]:
    """What the page says of one calibration."""
    return {
        "description": kept.description,
        "verdict": calibrating.verdict(kept),
        "statement": kept.statement,
        "images": ", ".join(kept.images),
        "lines": calibrating.lines(kept),
        "chart": draw_calibration(kept),
    }


def draw_calibration(kept: Kept) -> str:
    """Draw the share of voxels that intervals held against the share they were to hold, a curve per band of SUV.

    Of test patients where there are any, else of those that it was learned on, which the title says.
    """
    figure = new_figure(5.6, 3.2)
    axes = figure.subplots()
    axes.plot([LEVELS[0], 1], [LEVELS[0], 1], color=INK, linewidth=0.7)
    axes.plot([LEVEL, LEVEL], AIM, color=FAINT, linewidth=5, solid_capstyle="butt")
    named = dict(
        zip((band.low_suv for band in kept.calibration.bands), calibrating.names(kept.calibration), strict=True)
    )
    colors = dict(zip(named, COLORS[1:], strict=False))
    for one in kept.checked or kept.learned:
        label = f"SUV {named[one.low_suv]}"
        axes.plot(LEVELS, one.observed, "o-", markersize=3, linewidth=1.1, color=colors[one.low_suv], label=label)
    axes.legend(fontsize=7.5, frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    whose = "Test patients" if kept.checked else "Validation patients, on which it was learned"
    dress(axes, f"{whose}; grey: {AIM[0]:.0%} to {AIM[1]:.0%}", "the interval's share, Gaussian", "voxels held, share")
    return figure_png(figure)
