"""UDPET (Ultra-Low-Dose PET Imaging Challenge, 2022 to 2025) as downloaded: Quadra and uEXPLORER, DICOM and NIfTI.

    Bern-Inselspital-2022/Subject_115-117/<study>/Full_dose, 1-4 dose, ..., 1-100 dose      *.IMA
    Shanghai-Ruijin-Hospital-2023/PART1/PART1/<study>/2.886 x 600 WB NORMAL, ... WB D20      *.dcm
    <study>/4, 10, ..., ref                                                                  one NIfTI each
    Anonymous-01_DRF-10.nii.gz, ...                                                          the test set, flat

Depth and doubled folders do not matter: an examination is a folder whose entries are named by doses.  The low doses are
list-mode events of the full-dose scan, resampled, so all are on the full dose's SUV scale.  A subject's folder of
several studies is several examinations; who the patient is says the DICOM header, else the study's folder.
"""

import os
import re
from collections import defaultdict
from pathlib import Path

from petscale.data.examination import FULL, Examination, Files, OtherPet, Tree
from petscale.data.layouts.dose_names import parse_drf, without_drf
from petscale.data.layouts.options import Options, dose_of
from storage.errors import InputError
from storage.layout import low_name

GA68 = "Ga-68-DOTA, listed by the organisers although some headers say FDG"
WEIGHT = "wrong weight in the header"
# Name of the study's folder -> why it is left out (the organisers' site; a public survey of all headers).
EXCLUDED = {
    "Anonymous_ANO_20220224_1711567_102845": GA68,
    "Anonymous_ANO_20220224_1709580_104139": GA68,
    "Anonymous_ANO_20220224_1713571_101453": GA68,
    "Anonymous_ANO_20220224_1707578_105431": GA68,
    "Anonymous_ANO_20220224_1705576_110625": GA68,
    "Anonymous_ANO_20220224_1703593_111906": GA68 + "; wrong dose in the header",
    "Anonymous_ANO_20220224_1701584_113106": GA68,
    "Anonymous_ANO_20230304_2006087_121244": WEIGHT,
    "130622_4_20220613_133323": WEIGHT,
    "03122021_1_20211203_165117": WEIGHT + ", probably: very high SUV",
    "Anonymous_ANO_20220219_1746459_165142": WEIGHT + ", probably (20 kg); Ga-68",
    "Anonymous-06_DRF-50": "corrupted, withdrawn from the test set",
    "Anonymous-48_DRF-50": "corrupted, withdrawn from the test set",
}
# Left in, to be looked at.
DOUBTS = {
    "Anonymous_ANO_20220219_1730488_173342": "DRF 10 was never given",
    "12112021_2_20211115_081415": "legs only",
    "20221025_1_20221025_170832": "paravenous injection",
    "Anonymous_ANO_20230519_1808448_132917": "paravenous injection",
    "Anonymous_ANO_20230505_1815224_130733": "the arms moved; the injection site is in the image",
    "Anonymous_ANO_20220704_1432027_104818": "readers marked it without a reason",
    "Anonymous_ANO_20230201_1721183_105124": "readers marked it without a reason",
}
PLAIN_DOSES = {"ref": 1.0} | {str(drf): float(drf) for drf in (2, 4, 10, 20, 50, 100)}  # a folder per dose, bare number
NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)


def udpet(root: Path, options: Options) -> Tree:
    """Find examinations by the names of doses.

    Raises:
        InputError: IMG_NO_FILE; SET_NO_PET where no folder or file is named by a dose.
    """
    if not root.is_dir():
        raise InputError("IMG_NO_FILE", where=root.name, found="no such folder", remedy="name an existing folder")
    groups: dict[tuple[Path, str], dict[float, Path]] = defaultdict(dict)
    passed_by: dict[str, str] = {}
    for folder, subfolders, files in os.walk(root):
        subfolders.sort()
        entries = [(name, name) for name in subfolders]
        entries += [(name, NIFTI.sub("", name)) for name in sorted(files) if NIFTI.search(name)]
        bare = sum(name in PLAIN_DOSES for name in subfolders) > 1  # a 4 alone may be anything
        for name, stem in entries:
            drf = parse_drf(stem) or (PLAIN_DOSES.get(stem) if bare else None)
            if drf is None:
                continue
            place = Path(folder, name)
            if name in subfolders and (found := sorted(p for p in place.iterdir() if NIFTI.search(p.name))):
                place = found[0]
            group = groups[Path(folder), "" if name in subfolders else without_drf(stem)]
            if drf in group:
                passed_by[str(place.relative_to(root))] = f"a second image of DRF {drf:g}"
                continue
            group[drf] = place
        subfolders[:] = [name for name in subfolders if parse_drf(name) is None and not (bare and name in PLAIN_DOSES)]
    if not groups:
        raise InputError(
            "SET_NO_PET",
            where=root.name,
            found="no folder or NIfTI file is named by a dose (Full_dose, 1-20 dose, WB D20, DRF-20)",
            remedy="give the folder that was downloaded, or another --layout",
        )
    examinations = []
    for (folder_path, stem), images in sorted(groups.items(), key=lambda item: (str(item[0][0]), item[0][1])):
        study = stem or folder_path.name
        where = folder_path.relative_to(root)
        key = (where / stem).as_posix() if stem else where.as_posix()
        examinations.append(_examination(study, key if key != "." else study, images, options))
    return Tree(tuple(examinations), passed_by)


def _examination(study: str, key: str, images: dict[float, Path], options: Options) -> Examination:
    withdrawn = {drf for drf in images if f"{study}_DRF-{drf:g}" in EXCLUDED}
    images = {drf: path for drf, path in images.items() if drf not in withdrawn} or images
    first = min(images)
    choices = options.choices()

    def dose(drf: float) -> OtherPet:
        name = low_name(drf)
        return OtherPet(path=images[drf], name=name, dose=dose_of(drf, "thinned"), choice=choices.get(name, ""))

    lead = OtherPet(path=images[1.0], name="full", dose=FULL) if first == 1.0 else dose(first)
    files = Files(
        pet=lead.path,
        name=lead.name,
        dose=lead.dose,
        others=tuple(dose(drf) for drf in sorted(images) if drf != first),
        other_grids=options.other_grids,
        units="Bq/mL",
        units_from="layout",
        overrides=options.overrides,
        choices=choices,
    )
    excluded = EXCLUDED.get(study, "")
    if withdrawn and images.keys() <= withdrawn:
        excluded = EXCLUDED[f"{study}_DRF-{first:g}"]
    doubts = [DOUBTS[study]] if study in DOUBTS else []
    if first != 1.0:
        doubts.append("no full dose: nothing to train on")
    return Examination(key=key, files=files, patient=study, excluded=excluded, doubts=tuple(doubts))
