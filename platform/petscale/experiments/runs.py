"""Named runs: functions that return a RunConfig; each says what it reproduces, what it costs and what to expect."""

from dataclasses import replace

from petscale.cluster.placement import machine_cpus
from petscale.config import ClusterConfig, RunConfig
from petscale.splits import SplitConfig
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig
from trainers.feed_config import FeedConfig
from trainers.loop import LoopConfig
from trainers.systems import restore, sgsgan

DEMO_PATIENTS = 7  # five to train on, two to test

DEMO_DRFS = (20.0,)


def demo_phantom(seed: int = 0) -> PhantomConfig:
    """A stylised adult from pelvis to lower head, with a dozen lesions: few patients have to teach what one is.

    The voxels are fine enough for the smallest lesion, of 10 mm, to hold a dozen of them.
    """
    return PhantomConfig(
        shape=(150, 120, 144),
        spacing_mm=(4.0, 3.33, 3.33),
        seed=100 * seed,
        num_lesions=12,
        axial_coverage=(0.3, 0.9),
    )


def demo_scan(seed: int = 0) -> LowDoseConfig:
    """A sparse scan, so that a twentieth of the dose is visibly noisy."""
    return LowDoseConfig(seed=seed, million_prompts_per_bed=60.0)


def demo(seed: int = 0) -> RunConfig:
    """restore on the demo's phantoms: a minute of training on two cores.

    Expected: 0.5 to 0.6 dB PSNR over the best of all filters inside the body, and 0.4 to 0.6 dB in lesions (two
    seeds).  A lesion weighs twice as much as by default: 0.2 dB more in lesions for 0.1 to 0.2 less in the body.
    """
    return RunConfig(
        recipe="restore",
        model=restore.Config(bank_samples=160, samples=1600, margin=(4, 4, 4), lr=2e-3, lesion_weight=500.0),
        feed=replace(restore.FEED, source=("low_drf20",), seed=seed),
        engine=replace(restore.ENGINE, warm_up_steps=40),  # of 400 updates
        loop=LoopConfig(log_every=10, save_every=200, picture_every=400, seed=seed),
        split=SplitConfig(test_fraction=0.3, seed=seed),
        cluster=ClusterConfig(workers=min(2, machine_cpus())),
    )


def demo_of_sgsgan(seed: int = 0) -> RunConfig:
    """SGSGAN-DCITN on the demo's phantoms: minutes on two cores, not the paper's weeks on a V100.

    Deviations from the paper, all for the clock: 32^3 patches, a narrow critic, a few hundred steps of phase 1 only.
    Expected: at least 3 dB PSNR inside the body over the low-dose input.
    """
    return RunConfig(
        recipe="sgsgan",
        model=sgsgan.Config(
            patch=(32, 32, 32),
            patches_per_case=2,
            critic_channels=8,
            rois=(),
            phase_samples=(1200, 0, 0, 0),
        ),
        feed=FeedConfig(source=("low_drf20",), cases_per_step=2, seed=seed),
        loop=LoopConfig(log_every=5, save_every=50, picture_every=50, seed=seed),
        split=SplitConfig(test_fraction=0.3, seed=seed),
        cluster=ClusterConfig(workers=min(2, machine_cpus())),
    )


DEMOS = {"restore": demo, "sgsgan": demo_of_sgsgan}


def sarcoma() -> RunConfig:
    """SGSGAN-DCITN at DRF 4, 20 and 100, simulated from 39 public soft-tissue-sarcoma PETs, tumour guidance on.

    All four phases in the paper's ratio 12:1:3:1, at three hundredths of their length: half an hour on two cores.
    Every fourth patient is held out, and STS_001 with the whole-body scan.  Figures: docs/results/sarcoma.md.
    """
    held = (1, 5, 9, 13, 17, 21, 25, 29, 33, 37)
    return RunConfig(
        recipe="sgsgan",
        model=sgsgan.Config(
            patch=(40, 24, 24),  # the smallest crop is 47 x 27 x 26
            critic_channels=16,
            segmenter_channels=4,
            rois=("lesion",),
            phase_samples=(7200, 600, 1800, 600),
        ),
        feed=FeedConfig(source=("low_drf4", "low_drf20", "low_drf100"), cases_per_step=2),
        loop=LoopConfig(log_every=10, save_every=100, picture_every=200),
        split=SplitConfig(test=("sts_001_wholebody", *(f"sts_{number:03d}" for number in held))),
        cluster=ClusterConfig(workers=min(2, machine_cpus())),
    )
