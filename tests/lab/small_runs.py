"""Settings of whole runs small enough to train in a test, as ``--set`` takes them, and what a run here leaves."""

import importlib

import torch.distributed as dist

CG_3DSRGAN = [
    "recipe.doses=4,20",
    "recipe.perceptual=masked",
    "recipe.patch=32,32,32",
    "recipe.mlnet_channels=2",
    "recipe.contextual_channels=2",
    "recipe.discriminator_channels=2",
    "recipe.epoch_samples=8",
    "recipe.max_epochs=3",
    "recipe.validate_batches=1",
    "recipe.backbone_samples=8",
    "recipe.calibration_samples=8",
    "feed.source=low_drf4,low_drf20",
]
S3PET = [
    "recipe.window=32",
    "recipe.slices=2",
    "recipe.patch_size=8",  # the paper's also on coarse phantoms
    "recipe.dim=16",
    "recipe.blocks=1",
    "recipe.heads=2",
    "recipe.decoder_channels=8,4,4,4",
    "recipe.low_samples=16",
    "recipe.full_samples=16",
    "recipe.swap_samples=16",
    "feed.source=low_drf20",
    "feed.cases_per_step=2",
    "split.unpaired_fraction=0.4",
]


def leave_group() -> None:
    """End the process group that a trial of this process has left to the next one."""
    comm = importlib.import_module("deepspeed.comm")
    if comm.is_initialized():
        comm.destroy_process_group()
    if dist.is_initialized():  # where no engine of DeepSpeed's was made, DeepSpeed knows of no group
        dist.destroy_process_group()
    comm.comm.cdb = None
