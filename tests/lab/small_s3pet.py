"""S3PET, small enough to train in a test: configurations."""

from typing import Any

from trainers.systems.s3pet import Config

SMALL: dict[str, Any] = {
    "window": 32,
    "slices": 2,
    "dim": 16,
    "blocks": 1,
    "heads": 2,
    "decoder_channels": (8, 4, 4, 4),
    "low_samples": 8,
    "full_samples": 8,
    "swap_samples": 8,
}
V0: dict[str, Any] = {"pretrained": False, "decouple": False, "transfer": False}
V2: dict[str, Any] = {"transfer": False}


def small(**changes: Any) -> Config:
    return Config(**{**SMALL, **changes})
