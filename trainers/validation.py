"""Validation of any system while it trains: the same patches of patients kept apart, restored as at inference.

The score is the PSNR gained over what a network starts from, which is higher the better, 0 where nothing is gained, and
counts every patch alike, whatever its uptake.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from storage.patches import PatchLocation, SamplingMaps, draw
from storage.randomness import Stream, generator
from storage.reader import Cases
from storage.source import SUV
from trainers.feed_config import FeedConfig
from trainers.recipe import Synthesizer, Tiling
from trainers.synthesize import InSuv, case_context, fitted, for_scan, images_of, window

CHOSEN = "chosen"  # beside a run's weights: the step that they are of and its score, where validation chose them
LEAST_MSE = 1e-8  # SUV^2: patches restored better than that are alike


class Patches:
    """Patches of validation patients: all ranks together restore them all, each its own share.

    Places are drawn in the body, from the feed's seed; patients take turns.

    Args:
        cohort: holds the cases.
        cases: of patients that are not trained on.
        config: the run's feed.
        number: of patches.
        rank: of this process.
        world: number of processes.
        device: where networks are.
    """

    def __init__(
        self,
        cohort: Cases,
        cases: Sequence[str],
        config: FeedConfig,
        number: int,
        *,
        rank: int,
        world: int,
        device: torch.device,
    ) -> None:
        self._config, self._number, self._device = config, number, device
        self._mine = range(rank, number, world)
        names = sorted(cases)
        self._cases = [cohort.case(names[n]) for n in generator(config.seed, Stream.VALIDATION).permutation(len(names))]

    def __call__(self, synthesizer: Synthesizer) -> Float[Tensor, " number"]:
        """Return the gain of every patch of this rank in dB, and 0 for those of others, so that ranks' sums are whole.

        Raises:
            InputError: STORE_DAMAGED.
        """
        gains = torch.zeros(self._number, dtype=torch.float64)
        contexts: dict[tuple[str, str], Mapping[str, Tensor]] = {}
        for number in self._mine:
            case = self._cases[number % len(self._cases)]
            rng = generator(self._config.seed, Stream.VALIDATION, number)
            image = self._config.source[int(rng.integers(len(self._config.source)))]
            source = case.image(image)
            in_suv = for_scan(InSuv(synthesizer, self._config.suv_scale, source.units, self._config.beyond), source)
            if (case.name, image) not in contexts:
                contexts[case.name, image] = case_context(in_suv, case, image, device=self._device)
            box = place(in_suv.tiling, case.sampling_maps, rng)
            seen = images_of(in_suv, case, image)
            start = torch.from_numpy(window(in_suv, seen, box.grown(in_suv.tiling.halo)))[None]
            with torch.no_grad():
                output = in_suv(start.to(self._device), contexts[case.name, image])[0, 0].cpu()
            wanted = torch.from_numpy(case.image(self._config.target).patch(box))
            given = torch.from_numpy(source.patch(box)) if source.units == SUV else torch.zeros_like(wanted)
            inside = tuple(slice(size - a) for a, size in zip(box.start, source.grid.shape, strict=True))
            # Negatives are clipped, as in exported volumes.
            gains[number] = gain_db(given[inside], output.clamp(min=0)[inside], wanted[inside])
        return gains.to(self._device)


def place(tiling: Tiling, maps: SamplingMaps, rng: np.random.Generator) -> PatchLocation:
    """Draw a tile as inference would cut it: of its size, and where its multiples allow; it may pass the volume."""
    _, tile = fitted(tiling, maps.shape)
    box = draw(maps, tile, {"body": 1.0}, rng)
    z, y, x = (a - a % multiple for a, multiple in zip(box.start, tiling.multiple, strict=True))
    return PatchLocation((z, y, x), tile)


def gain_db(given: Float[Tensor, "z y x"], restored: Float[Tensor, "z y x"], wanted: Float[Tensor, "z y x"]) -> float:
    """Return 10 log10(MSE of what was given / MSE of what was restored), all in SUV; the gain of PSNR in dB.

    What is given for a CT, which has no SUV, is an empty image.

    >>> round(gain_db(torch.full((1, 1, 2), 1.0), torch.full((1, 1, 2), 0.1), torch.zeros(1, 1, 2)), 6)
    20.0
    """
    before, after = (float((image.double() - wanted.double()).square().mean()) for image in (given, restored))
    return 10 * math.log10(max(before, LEAST_MSE) / max(after, LEAST_MSE)) if math.isfinite(after) else -math.inf


@dataclass(frozen=True)
class Best:
    """The best weights of a run so far, by validation; part of every checkpoint.

    Args:
        gain_db: their score.
        step: the steps that had been made.
        since: validations made after them.
        weights: what the recipe exports, on the CPU; empty before the first validation.
    """

    gain_db: float = -math.inf
    step: int = 0
    since: int = 0
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    def after(self, gain_db: float, step: int, weights: Mapping[str, Tensor], *, counted: int = 1) -> "Best":
        """Return the best after one more validation; the earlier of two alike.

        Args:
            gain_db: its score.
            step: the steps made before it.
            weights: what was scored.
            counted: how much ``since`` grows where it is no better, 0 in phases that are not followed.
        """
        if self.weights and not gain_db > self.gain_db:
            return replace(self, since=self.since + counted)
        return Best(gain_db, step, 0, {name: value.detach().cpu().clone() for name, value in weights.items()})

    def state(self) -> dict[str, Tensor]:
        """Return it as tensors by name."""
        numbers = {"gain_db": self.gain_db, "step": self.step, "since": self.since}
        kept = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
        return kept | {f"weight/{name}": value for name, value in self.weights.items()}

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> "Best":
        """Inverse of ``state``."""
        weights = {key.removeprefix("weight/"): value for key, value in state.items() if key.startswith("weight/")}
        return cls(float(state["gain_db"]), int(state["step"]), int(state["since"]), weights)
