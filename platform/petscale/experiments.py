"""Named runs: functions that return a RunConfig, each saying what it reproduces, what it costs and what it gives."""

from petscale.config import ClusterConfig, RunConfig, SplitConfig
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig
from trainers import sgsgan
from trainers.feed import FeedConfig
from trainers.loop import LoopConfig

DEMO_PATIENTS = 6
DEMO_DRFS = (20.0,)


def demo_phantom(seed: int = 0) -> PhantomConfig:
    """A stylised adult at 5 mm, mid-thigh to vertex."""
    return PhantomConfig(shape=(160, 80, 96), spacing_mm=(6.25, 5.0, 5.0), seed=100 * seed)


def demo_scan(seed: int = 0) -> LowDoseConfig:
    """A sparse scan, so that a twentieth of the dose is visibly noisy."""
    return LowDoseConfig(seed=seed, million_prompts_per_bed=60.0)


def demo(seed: int = 0) -> RunConfig:
    """SGSGAN-DCITN on the demo's phantoms: minutes on two cores, not the paper's weeks on a V100.

    Deviations from the paper, all for the clock: 32^3 patches, a narrow critic, a tenfold learning rate, hundreds of
    steps of phase 1 only.  Expected: at least 3 dB PSNR inside the body over the low-dose input.
    """
    return RunConfig(
        recipe="sgsgan",
        model=sgsgan.Config(
            patch=(32, 32, 32),
            patches_per_case=4,
            critic_channels=8,
            rois=(),
            lr=1e-3,
            phase_samples=(1600, 0, 0, 0),
        ),
        feed=FeedConfig(low=("low_drf20",), cases_per_step=2, seed=seed),
        loop=LoopConfig(log_every=5, save_every=50, picture_every=50, seed=seed),
        split=SplitConfig(test_fraction=0.34, seed=seed),
        cluster=ClusterConfig(workers=2),
    )
