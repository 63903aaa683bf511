"""Any tree by patterns: paths below the source with wildcards, those of one examination matched by what they share.

``*`` stands for a part of one name, ``{word}`` for a part that has a name.  Wildcards of one name hold the same text in
all images of an examination; plain ones are counted: the first ``*`` of one pattern is the first of the others.

    --pet '{patient}/{study}/SUV.nii.gz' --ct '{patient}/{study}/CTres.nii.gz' --low '{drf}={patient}/{study}/D{drf}'
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from petscale.data.examination import Examination, Files, OtherPet, Tree
from petscale.data.layouts.options import Options, dose_of, number
from storage.errors import InputError
from storage.layout import low_name
from storage.source import Dose

WILDCARD = re.compile(r"\{([a-z][a-z0-9_]*)\}|\*")


def by_patterns(root: Path, options: Options) -> Tree:
    """Find examinations by the patterns of ``options``; the PET's wildcards tell them apart.

    Raises:
        InputError: IMG_NO_FILE, CFG_PATTERN; SET_NO_PET, SET_NO_CT, SET_NO_MASK, SET_NO_LOW for a pattern that matches
            nothing; SET_NO_PATIENT where nothing says who the patient of a NIfTI is.
    """
    if not root.is_dir():
        raise InputError("IMG_NO_FILE", where=root.name, found="no such folder", remedy="name an existing folder")
    pets = _found(root, options.pet, "pet")
    names = _wildcards(options.pet)
    patient = _patient(options, names)
    extra: dict[str, dict[tuple[tuple[str, str], ...], Path]] = {}
    for option in ("ct", "mask", "labels"):
        if pattern := getattr(options, option):
            extra[option] = _found(root, pattern, option)
    lows = dict(_lows(root, options))
    examinations = []
    for values, pet in sorted(pets.items()):
        about = dict(values)
        key = "/".join(about.values()) or root.name
        others = tuple(
            OtherPet(path=path, name=name, dose=dose, choice=options.choices().get(name, ""))
            for (name, dose), paths in sorted(lows.items(), key=lambda item: item[0][0])
            if (path := _of(paths, about)) is not None
        )
        files = Files(
            pet=pet,
            others=others,
            ct=_of(extra.get("ct", {}), about),
            mask=_of(extra.get("mask", {}), about),
            labels=options.label_maps(_of(extra.get("labels", {}), about)),
            grid=options.grid,
            other_grids=options.other_grids,
            units=options.units,
            overrides=options.overrides,
            frames=options.wanted,
            choices=options.choices(),
        )
        examinations.append(Examination(key=key, files=files, patient=about.get(patient, "")))
    return Tree(tuple(examinations))


def _patient(options: Options, names: list[str]) -> str:
    """Which wildcard of the PET's pattern names the patient.

    Raises:
        InputError: SET_NO_PATIENT, CFG_PATTERN.
    """
    if options.patient:
        if options.patient not in names:
            raise InputError(
                "CFG_PATTERN",
                where="--patient",
                found=f"'{options.patient}' is no wildcard of --pet (there are {', '.join(names) or 'none'})",
                remedy="name one of them; plain stars are counted from 1",
            )
        return options.patient
    if "patient" in names:
        return "patient"
    # A name of a file alone may be a scan's: two scans of one patient would lie on both sides of a split.
    folders = _wildcards(str(Path(options.pet).parent))
    if folders:
        return folders[0]
    raise InputError(
        "SET_NO_PATIENT",
        where="--pet",
        found="no folder's wildcard, so nothing says which files are of one patient",
        remedy="write {patient} where the pattern names the patient, or say --patient 1 if every name is one",
    )


def _wildcards(pattern: str) -> list[str]:
    stars = 0
    names = []
    for found in WILDCARD.finditer(pattern):
        stars += not found[1]
        names.append(found[1] or str(stars))
    return list(dict.fromkeys(names))


def expression(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression with a group per wildcard, ``g_`` before its name."""
    parts, last, stars = [], 0, 0
    seen: set[str] = set()
    for found in WILDCARD.finditer(pattern):
        parts.append(re.escape(pattern[last : found.start()]))
        stars += not found[1]
        name = found[1] or str(stars)
        parts.append(f"(?P=g_{name})" if name in seen else f"(?P<g_{name}>[^/]+?)")
        seen.add(name)
        last = found.end()
    return re.compile("".join([*parts, re.escape(pattern[last:])]))


def _found(root: Path, pattern: str, option: str) -> dict[tuple[tuple[str, str], ...], Path]:
    """Wildcards' values -> path, of everything that a pattern matches.

    Raises:
        InputError: CFG_PATTERN, SET_NO_PET and its kin.
    """
    if not pattern or pattern.startswith("/") or ".." in Path(pattern).parts:
        raise InputError(
            "CFG_PATTERN",
            where=f"--{option}",
            found="empty" if not pattern else "a path that leaves the source",
            remedy="write a path below SOURCE, with {patient} or * for what differs",
        )
    wanted = expression(pattern)
    found: dict[tuple[tuple[str, str], ...], Path] = {}
    for path in sorted(root.glob(WILDCARD.sub("*", pattern))):
        if match := wanted.fullmatch(path.relative_to(root).as_posix()):
            values = {name.removeprefix("g_"): value for name, value in match.groupdict().items()}
            found.setdefault(tuple(sorted(values.items())), path)
    if not found:
        raise InputError(
            f"SET_NO_{option.upper()}",
            where=root.name,
            found=f"nothing matches --{option}",
            remedy="write the path below SOURCE, with {patient} or * for what differs",
        )
    return found


def _lows(root: Path, options: Options) -> Iterator[tuple[tuple[str, Dose], dict[tuple[tuple[str, str], ...], Path]]]:
    """(image name, dose) -> paths by wildcards; a pattern may hold the dose reduction factor itself as ``{drf}``."""
    plain = tuple(text for text in options.low if not text.startswith("{drf}="))
    fixed = Options(low=plain, relation=options.relation)
    for name, (pattern, dose) in fixed.lows().items():
        yield (name, dose), _found(root, pattern, "low")
    for text in options.low:
        if text in plain:
            continue
        groups: dict[float, dict[tuple[tuple[str, str], ...], Path]] = defaultdict(dict)
        for values, path in _found(root, text.partition("=")[2], "low").items():
            about = dict(values)
            drf = number(about.pop("drf", ""))
            if drf is not None and drf > 1:
                groups[drf][tuple(sorted(about.items()))] = path
        if not groups:
            raise InputError(
                "CFG_LOW", where="--low", found="{drf} that matches no number above 1", remedy="write the factors out"
            )
        for drf, paths in groups.items():
            yield (low_name(drf), dose_of(drf, options.relation)), paths


def _of(paths: Mapping[tuple[tuple[str, str], ...], Path], about: Mapping[str, str]) -> Path | None:
    """The one whose wildcards agree with the PET's, where both have them."""
    return next((path for values, path in paths.items() if all(about.get(n, v) == v for n, v in values)), None)
