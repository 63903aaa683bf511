"""Codes of labels for DICOM segmentations, from a name and back: SNOMED CT where PS3.16 lists it, else petscale's own.

Names are those of TotalSegmentator's task ``total`` and those that petscale's phantoms and SGSGAN have.  Left out are
parts whose code no context group of PS3.16 (2024) holds, such as single ribs and muscles: they get a code of petscale's
own, which is their name.
"""

from dataclasses import dataclass

from storage.label_names import LABEL_NAME, is_lesion

SNOMED, OWN = "SCT", "99PETSCALE"  # coding schemes; a private one begins with 99 (PS3.16 section 8.2)
ANATOMICAL = ("91723000", "Anatomical Structure")
ABNORMAL = ("49755003", "Morphologically Abnormal Structure")
TISSUE = ("85756007", "Tissue")
SIDES = {"left": ("7771000", "Left"), "right": ("24028007", "Right"), "both": ("51440002", "Bilateral")}


@dataclass(frozen=True)
class LabelCode:
    """What a segment is (PS3.3 section C.8.20.2): each code is a value and its meaning.

    Args:
        scheme: coding scheme of ``kind``; category and side are SNOMED CT.
        kind: segmented property type.
        category: segmented property category.
        side: modifier of the type; None for what has no side.
    """

    scheme: str
    kind: tuple[str, str]
    category: tuple[str, str]
    side: tuple[str, str] | None = None


# fmt: off
_SINGLE = {
    "spleen": ("78961009", "Spleen"), "gallbladder": ("28231008", "Gallbladder"), "liver": ("10200004", "Liver"),
    "stomach": ("69695003", "Stomach"), "pancreas": ("15776009", "Pancreas"),
    "lung_middle_lobe_right": ("72481006", "Middle lobe of right lung"), "esophagus": ("32849002", "Esophagus"),
    "trachea": ("44567001", "Trachea"), "thyroid_gland": ("69748006", "Thyroid"), "thyroid": ("69748006", "Thyroid"),
    "small_bowel": ("30315005", "Small intestine"), "duodenum": ("38848004", "Duodenum"),
    "colon": ("71854001", "Colon"), "urinary_bladder": ("89837001", "Bladder"), "bladder": ("89837001", "Bladder"),
    "prostate": ("41216001", "Prostate"), "uterus": ("35039007", "Uterus"), "rectum": ("34402009", "Rectum"),
    "sacrum": ("54735007", "Sacrum"), "spine": ("421060004", "Spine"), "heart": ("80891009", "Heart"),
    "aorta": ("15825003", "Aorta"), "pulmonary_vein": ("122972007", "Pulmonary vein"),
    "brachiocephalic_trunk": ("12691009", "Brachiocephalic trunk"),
    "atrial_appendage_left": ("33626005", "Left auricular appendage"),
    "superior_vena_cava": ("48345005", "Superior vena cava"), "inferior_vena_cava": ("64131007", "Inferior vena cava"),
    "spinal_cord": ("2748008", "Spinal cord"), "brain": ("12738006", "Brain"), "skull": ("89546000", "Skull"),
    "sternum": ("56873002", "Sternum"), "costal_cartilages": ("50016007", "Costal Cartilage"),
    "bone_marrow": ("14016003", "Bone Marrow"), "lymph_node": ("59441001", "Lymph Node"),
}
_PAIRED = {
    "kidney": ("64033007", "Kidney"), "adrenal_gland": ("23451007", "Adrenal gland"), "lung": ("39607008", "Lung"),
    "lung_upper_lobe": ("45653009", "Upper lobe of lung"), "lung_lower_lobe": ("90572001", "Lower lobe of lung"),
    "subclavian_artery": ("36765005", "Subclavian artery"),
    "common_carotid_artery": ("32062004", "Common carotid artery"),
    "brachiocephalic_vein": ("8887007", "Brachiocephalic vein"), "iliac_artery": ("73634005", "Common iliac artery"),
    "iliac_vena": ("46027005", "Common iliac vein"), "humerus": ("85050009", "Humerus"),
    "scapula": ("79601000", "Scapula"), "clavicula": ("51299004", "Clavicle"), "femur": ("71341001", "Femur"),
    "hip": ("29836001", "Hip"),
}
_BOTH = {"kidneys": "kidney", "lungs": "lung"}
_VERTEBRAE = {
    "c": ("14806007", "39976000", "113205007", "5329002", "36978003", "36054005", "87391001"),
    "t": (
        "64864005", "53733008", "1626008", "73071006", "56401006", "45296009", "62487009", "11068009", "82687006",
        "7610001", "12989004", "23215003",
    ),
    "l": ("66794005", "14293000", "36470004", "11994002", "49668003"),
}
_ABNORMAL = {
    "lesion": ("52988006", "Lesion"), "cyst": ("367643001", "Cyst"),
    "neoplasm_primary": ("86049000", "Neoplasm, Primary"), "neoplasm_secondary": ("14799000", "Neoplasm, Secondary"),
}
# fmt: on

CODES: dict[str, LabelCode] = {
    **{name: LabelCode(SNOMED, kind, ANATOMICAL) for name, kind in _SINGLE.items()},
    **{name: LabelCode(SNOMED, kind, ANATOMICAL) for name, kind in _PAIRED.items()},
    **{
        f"{name}_{side}": LabelCode(SNOMED, kind, ANATOMICAL, SIDES[side])
        for name, kind in _PAIRED.items()
        for side in ("left", "right")
    },
    **{name: LabelCode(SNOMED, _PAIRED[one], ANATOMICAL, SIDES["both"]) for name, one in _BOTH.items()},
    **{
        f"vertebrae_{part}{number}": LabelCode(SNOMED, (value, f"{part.upper()}{number} vertebra"), ANATOMICAL)
        for part, values in _VERTEBRAE.items()
        for number, value in enumerate(values, start=1)
    },
    **{name: LabelCode(SNOMED, kind, ABNORMAL) for name, kind in _ABNORMAL.items()},
}


def code_of(name: str) -> LabelCode:
    """Return the code of a label's name."""
    if name in CODES:
        return CODES[name]
    return LabelCode(OWN, (name, name.replace("_", " ")), ABNORMAL if is_lesion(name) else TISSUE)


def names_of(scheme: str, value: str, side: str) -> tuple[str, ...]:
    """Return the names that a code stands for, the usual one first; none for a code that is not known here.

    Args:
        scheme: coding scheme of the type, for instance ``SCT``.
        value: code value of the type.
        side: code value of its modifier; empty for none.
    """
    if scheme == OWN:
        return (value,) if LABEL_NAME.fullmatch(value) else ()
    if scheme != SNOMED:
        return ()
    return tuple(name for name, code in CODES.items() if code.kind[0] == value and (code.side or ("",))[0] == side)
