"""B2, from the files of a cohort to batches of pairs: an epoch of four random patches per case, mirrored at random.

petscale holds nothing decoded; MONAI a tenth of the cohort, or all of it; TorchIO a queue of patches.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from benchmarks.performance.measure import Benchmark
from benchmarks.performance.volumes import AFFINE, Shape, cohort, missing, pet_like
from trainers.feed import Feed
from trainers.feed_config import FeedConfig
from trainers.recipe import BatchSpec

PER_CASE, PER_BATCH = 4, 2  # patches of a case; cases of a batch
MONAI, TORCHIO = "MONAI CacheDataset", "TorchIO Queue"

Pairs = list[tuple[torch.Tensor, torch.Tensor]]  # of every batch: sources and targets (b, 1, z, y, x)


def loading(folder: Path, shape: Shape, *, cases: int, edge: int) -> Benchmark:
    """Make B2; a low dose is half of its full dose here, so that a pair can be told from two patches."""
    names = [f"c{number:02d}" for number in range(cases)]
    held = {name: {"full": pet_like(shape, seed)} for seed, name in enumerate(names)}
    held = {name: {**images, "low": images["full"] / 2} for name, images in held.items()}
    read = cohort(folder / "cohort", held)
    files = {name: {image: folder / f"{name}_{image}.nii" for image in held[name]} for name in names}
    for name, images in held.items():
        for image, voxels in images.items():
            nibabel.save(nibabel.Nifti1Image(voxels.transpose(2, 1, 0), AFFINE), files[name][image])
    need = BatchSpec((edge, edge, edge), (0, 0, 0), PER_CASE, {"uniform": 1.0})
    config = FeedConfig(source=("low",), cases_per_step=PER_BATCH, augment="flips")
    feed = Feed(read, {"paired": names}, config, lambda _: need, rank=0, world=1, device=torch.device("cpu"))
    steps = cases // PER_BATCH

    def ours() -> Pairs:
        batches = (feed.batch(step, steps) for step in range(steps))
        return [_kept(batch.source, batch.target) for batch in batches]

    absent = missing(monai=MONAI, torchio=TORCHIO)
    peers: dict[str, Callable[[], Pairs]] = {}
    if MONAI not in absent:
        peers[f"{MONAI}, a tenth of the cases cached"] = _monai(files, edge, cached=cases // 10)
        peers[f"{MONAI}, all cases in memory"] = _monai(files, edge, cached=cases)
    if TORCHIO not in absent:
        peers[TORCHIO] = _torchio(files, edge)
    return Benchmark(
        name="B2 loading",
        does=f"an epoch of {cases} cases of two images of {' x '.join(map(str, shape))} float32: {PER_CASE} random "
        f"pairs of {edge}^3 of each, mirrored at random, in batches of {PER_CASE * PER_BATCH}",
        ours=ours,
        peers=peers,
        bounds={"copy of the pairs": _copying(held["c00"]["full"], edge, 2 * cases * PER_CASE)},
        agree=_pairs_of_one_kind,
        others={},
        absent=absent,
    )


def _kept(source: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return some voxels of a batch, which may then be freed, as in a training."""
    return source[..., ::5, ::7, ::3].clone(), target[..., ::5, ::7, ::3].clone()


def _pairs_of_one_kind(ours: Pairs, theirs: Pairs) -> None:
    """As many pairs of the same shape; in each, source and target lie at one place and are mirrored alike."""
    assert [(s.shape, t.shape) for s, t in ours] == [(s.shape, t.shape) for s, t in theirs]
    for source, target in (*ours, *theirs):
        assert torch.equal(2 * source, target)
        assert len(target.unique()) > target.shape[0]


def _copying(voxels: np.ndarray[Any, np.dtype[np.float32]], edge: int, count: int) -> Callable[[], None]:
    def copy() -> None:
        for _ in range(count):
            voxels[:edge, :edge, :edge].copy()

    return copy


def _monai(files: dict[str, dict[str, Path]], edge: int, *, cached: int) -> Callable[[], Pairs]:
    data, transforms = import_module("monai.data"), import_module("monai.transforms")
    keys = ["low", "full"]
    steps = [
        transforms.Lambdad(keys, lambda file: np.asarray(nibabel.load(file).dataobj)[None]),  # faster than LoadImaged
        transforms.RandSpatialCropSamplesd(keys, roi_size=(edge,) * 3, num_samples=PER_CASE, random_size=False),
        *(transforms.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)),
    ]
    cases: Any = data.CacheDataset(
        [{image: str(file) for image, file in images.items()} for images in files.values()],
        transforms.Compose(steps),
        cache_num=cached,
        num_workers=1,
        progress=False,
    )
    loader: Any = data.ThreadDataLoader(cases, batch_size=PER_BATCH, shuffle=True, num_workers=0)
    return lambda: [_kept(torch.as_tensor(batch["low"]), torch.as_tensor(batch["full"])) for batch in loader]


def _torchio(files: dict[str, dict[str, Path]], edge: int) -> Callable[[], Pairs]:
    tio: Any = import_module("torchio")
    subjects = [
        tio.Subject({image: tio.ScalarImage(file) for image, file in images.items()}) for images in files.values()
    ]
    flip = tio.RandomFlip(axes=(0, 1, 2), flip_probability=0.5)
    queue: Any = tio.Queue(
        tio.SubjectsDataset(subjects),
        max_length=PER_CASE * PER_BATCH,
        samples_per_volume=PER_CASE,
        sampler=tio.UniformSampler(edge),
        num_workers=0,
    )
    loader: Any = tio.SubjectsLoader(queue, batch_size=PER_CASE * PER_BATCH, num_workers=0)

    def flipped(patches: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Mirror each patch by itself: as a transform of the dataset, whole volumes would be."""
        pairs = [
            flip(tio.Subject({image: tio.ScalarImage(tensor=patches[image]["data"][one]) for image in ("low", "full")}))
            for one in range(PER_CASE * PER_BATCH)
        ]
        low, full = (torch.stack([pair[image].data for pair in pairs]) for image in ("low", "full"))
        return _kept(low, full)

    return lambda: [flipped(patches) for patches in loader]
