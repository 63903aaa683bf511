"""Tables of the systems that make a PET from a CT: cascaded U-Nets, also dense ones, and the virtual PET."""

from typing import Any

from petscale.config import RunConfig
from petscale.evaluation.baselines import BY_HU
from petscale.evaluation.detection import FALSE, SHARPNESS, TPR
from petscale.experiments.design import Column, Experiment, Order, PhantomCohort
from petscale.experiments.rows import Size, by_size, orders_of, rows_of, run_of, shrunk
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig
from trainers.feed_config import FeedConfig
from trainers.metrics.detection import DetectionConfig
from trainers.metrics.identifiers import INSIDE
from trainers.systems import cascade
from trainers.systems import virtual_pet as virtual

_REMARKS = (
    "In these phantoms a CT tells of uptake by its organs, by hypodense lesions and cysts, and by a texture that it "
    "shares with the PET: how much a real CT tells is not answered here.",
)


def _cohort(size: Size) -> PhantomCohort:
    """The liver and what is above and below it, with hot hypodense lesions and cold hypodense cysts in it."""
    return PhantomCohort(
        name="from_ct",
        patients=by_size(size, small=24, laptop=40, paper=60),
        body=PhantomConfig(
            shape=by_size(size, small=(60, 80, 112), laptop=(80, 104, 144), paper=(100, 128, 160)),
            spacing_mm=by_size(size, small=(5.0, 4.0, 4.0), laptop=(3.75, 3.25, 3.25), paper=(3.0, 2.75, 2.75)),
            axial_coverage=(0.31, 0.61),
            num_lesions=4,
            lesion_organs=("liver",),
            lesion_hu=(10.0, 40.0),
            num_cysts=2,
            liver_suv=(1.8, 2.2),
        ),
        scan=LowDoseConfig(),
        drfs=(),
    )


# ---- cascaded U-Nets ------------------------------------------------------------------------------------------------


def cascade_table4(size: Size) -> Experiment:
    """Is deeper better?  One to ten U-Nets in a row, and two with dense connections (wiring "images")."""
    sliced = (
        Column(label="SSIM", metric="SSIM", preset="cascade"),
        Column(label="PSNR", metric="PSNR", preset="cascade"),
        Column(label="MAE", metric="MAE", preset="cascade"),
    )
    columns = (
        *sliced,
        Column(label="MS-SSIM", metric="MS-SSIM", preset="cascade"),
        Column(label="PSNR body", metric="PSNR", region="body", preset="cascade", mask=INSIDE),
        Column(label="CB 2", metric="CB 2", region="body", preset="cascade"),
        Column(label="CB 4", metric="CB 4", region="body", preset="cascade"),
    )
    fields: dict[str, Any] = {"mode": "2.5d", "patch": (3, 128, 160), "epoch_samples": 1700, "epochs": 200, "downs": 5}
    fields |= shrunk(size, patch=((3, 80, 112), (3, 96, 128)), downs=(4, 4), width=(12, 16), critic_width=(12, 16))
    fields |= shrunk(size, critic_strides=((2, 2, 1), (2, 2, 1)), validate_batches=(6, 6))
    fields |= shrunk(size, epoch_samples=(400, 800), epochs=(15, 20))
    feed = FeedConfig(source=("ct",), suv_scale=1.0, cases_per_step=4)

    def run(**switches: Any) -> RunConfig:
        return run_of(size, "cascade", cascade.Config(**(fields | switches)), feed)

    table4 = {
        1: "0.9149 27.7411 0.0119",
        2: "0.9182 27.9950 0.0109",
        3: "0.9060 27.6395 0.0127",
        4: "0.9155 28.1969 0.0112",
        5: "0.9104 26.6691 0.0130",
        6: "0.9167 27.9794 0.0108",
        7: "0.9255 27.1919 0.0116",
        8: "0.9178 28.5503 0.0107",
        9: "0.9093 28.7770 0.0109",
        10: "0.9245 28.9168 0.0097",
    }
    unprinted = " -" * (len(columns) - len(sliced))
    printed: list[tuple[str, str, dict[str, Any], str]] = [
        (
            f"{stages} stage{'s' if stages > 1 else ''}",
            BY_HU if stages == 1 else "1 stage",
            {"stages": stages},
            text + unprinted,
        )
        for stages, text in table4.items()
    ]
    dense = {"stages": 2, "dense": "images", "loss_at": "all"}
    printed.append(("dense cascade", "1 stage", dense, "0.9122 28.7630 0.0105" + unprinted))
    rows = rows_of(columns, run, printed)
    pairs = [(row.name, "1 stage") for row in rows[1:]]
    pairs += [("dense cascade", "2 stages"), ("10 stages", "dense cascade")]
    return Experiment(
        name="cascade_table4",
        title="Cascaded U-Nets from CT to PET: depth, and dense connections",
        published_in="Deng, Nagamune, Takada, Table 4 (the best epoch on the test set, for each score apart)",
        cohort=_cohort(size),
        sources=("ct",),
        columns=columns,
        rows=rows,
        untrained={},
        orders=orders_of(sliced, rows, {}, pairs),
        folds=by_size(size, small=2, laptop=2, paper=5),
        of_phantoms=_REMARKS,
        caveats=(
            *_REMARKS,
            "Here one epoch is chosen for all scores, on validation patients; the paper's numbers are maxima over more "
            "than 200 looks at its test set.",
            "The dense cascade stands beside the paper's DSGGAN, whose wiring is not printed: here every stage sees "
            "the CT and all images before it.",
        ),
    )


# ---- virtual PET ----------------------------------------------------------------------------------------------------


def virtual_pet_rows(size: Size) -> Experiment:
    """Does the FCN find, the conditional GAN look real, and their blend do both?"""
    lesions = DetectionConfig(organs=("liver", "cyst"))
    shown: dict[str, Any] = {"region": "liver and cyst", "preset": "detection"}
    columns = (
        Column(label="TPR", metric=TPR, mask=lesions.key, **shown),
        Column(label="false positives", metric=FALSE, mask=lesions.key, **shown),
        Column(label="gradient energy", metric=SHARPNESS, **shown),
        Column(label="PSNR body", metric="PSNR", region="body", preset="native", mask=INSIDE),
        Column(label="MAE lesions", metric="MAE", region="lesions", preset="native", mask=INSIDE),
    )
    fields: dict[str, Any] = {"patch": (1, 128, 160), "blend_levels": 2}
    fields |= {"generator_downs": 5, "critic_strides": (2, 2, 1), "suv_weight_floor": 0.1}
    fields |= shrunk(size, patch=((1, 96, 128), (1, 96, 128)), fcn_widths=((16, 32, 64, 64), (24, 48, 96, 96)))
    fields |= shrunk(size, fcn_fc=(64, 96), fcn_fc6_kernel=(3, 3), fcn_norm=("batch", "batch"), fcn_lr=(1e-3, 1e-3))
    fields |= shrunk(size, generator_width=(12, 16), critic_width=(12, 16), validate_batches=(6, 6))
    fields |= shrunk(size, fcn_samples=(6000, 28_000), cgan_samples=(6000, 28_000), epoch_samples=(600, 800))
    feed = FeedConfig(source=("ct",), suv_scale=1.0, cases_per_step=4)

    def run(**switches: Any) -> RunConfig:
        return run_of(size, "virtual_pet", virtual.Config(**(fields | switches)), feed)

    flat = {"suv_weight_gamma": 0.0}
    printed: tuple[tuple[str, str, dict[str, Any], str], ...] = (
        ("FCN", BY_HU, {"networks": "fcn"}, "- - - - -"),
        ("FCN, unweighted", "FCN", {"networks": "fcn", **flat}, "- - - - -"),
        ("cGAN", "FCN", {"networks": "cgan"}, "- - - - -"),
        ("cGAN, SUV-weighted", "cGAN", {"networks": "cgan", "cgan_suv_weighted": True}, "- - - - -"),
        ("blended", "cGAN", {}, "0.923 0.25 - - -"),
        ("blended, unweighted", "blended", flat, "- - - - -"),
    )
    return Experiment(
        name="virtual_pet",
        title="Virtual PET: FCN, conditional GAN and their blend",
        published_in="Ben-Cohen et al. 2017, arXiv 1707.09585 (24 of 26 tumours, 2 false positives in 8 scans)",
        cohort=_cohort(size),
        sources=("ct",),
        columns=columns,
        rows=rows_of(columns, run, printed),
        untrained={},
        orders=(
            Order("FCN", "cGAN", "TPR"),
            Order("blended", "cGAN", "TPR"),
            Order("FCN", "FCN, unweighted", "TPR"),
            Order("blended", "blended, unweighted", "TPR"),
            Order("cGAN", "FCN", "gradient energy"),
            Order("blended", "FCN", "gradient energy"),
        ),
        folds=by_size(size, small=2, laptop=2, paper=5),
        lesions=lesions,
        of_phantoms=_REMARKS,
        caveats=(
            *_REMARKS,
            "The orderings are the paper's in words: the FCN finds, the conditional GAN looks real, the blend does "
            "both. It prints numbers of the blend alone.",
            "Gradient energy stands for looking real: 1 is as sharp as the real PET.",
            "FCN without VGG16's weights (He initialisation), with batch norm except at paper size.",
            "Every row trains its networks anew, so the blend's are not those of the rows above it.",
        ),
    )
