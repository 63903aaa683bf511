"""The plain layout: one examination, or a folder with one sub-folder per examination that names its files alike."""

from pathlib import Path

from petscale.data.examination import Examination, Files, OtherPet, Tree
from petscale.data.layouts.options import Options
from storage.errors import InputError


def one_examination(source: Path, options: Options) -> Tree:
    """The source is the PET itself; CT, mask and low doses are paths of their own."""
    others = tuple(
        OtherPet(path=Path(where), name=name, dose=dose, choice=options.choices().get(name, ""))
        for name, (where, dose) in options.lows().items()
    )
    files = Files(
        pet=source,
        others=others,
        ct=Path(options.ct) if options.ct else None,
        mask=Path(options.mask) if options.mask else None,
        labels=options.label_maps(Path(options.labels) if options.labels else None),
        grid=options.grid,
        other_grids=options.other_grids,
        units=options.units,
        overrides=options.overrides,
        frames=options.wanted,
        choices=options.choices(),
    )
    return Tree((Examination(key=source.name, files=files, patient=options.patient),))


def many_examinations(root: Path, options: Options) -> Tree:
    """One examination per sub-folder that holds what ``options.pet`` names; CT, masks and low doses may lack.

    Raises:
        InputError: IMG_NO_FILE, SET_NO_PET, SET_NO_CT, SET_NO_MASK, SET_NO_LABELS, SET_NO_LOW.
    """
    if not root.is_dir():
        raise InputError("IMG_NO_FILE", where=root.name, found="no such folder", remedy="name an existing folder")
    lows = options.lows()
    wanted = {"pet": options.pet, "ct": options.ct, "mask": options.mask, "labels": options.labels}
    wanted |= {name: where for name, (where, _) in lows.items()}
    seen: set[str] = set()
    found = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        # A link to no file is there: its case is refused, not ingested without it.
        held = {
            name: folder / where
            for name, where in wanted.items()
            if where and ((folder / where).exists() or (folder / where).is_symlink())
        }
        if "pet" not in held:
            continue
        seen |= held.keys()
        files = Files(
            pet=held["pet"],
            others=tuple(
                OtherPet(path=held[name], name=name, dose=dose, choice=options.choices().get(name, ""))
                for name, (_, dose) in lows.items()
                if name in held
            ),
            ct=held.get("ct"),
            mask=held.get("mask"),
            labels=options.label_maps(held.get("labels")),
            grid=options.grid,
            other_grids=options.other_grids,
            units=options.units,
            overrides=options.overrides,
            frames=options.wanted,
            choices=options.choices(),
        )
        found.append(Examination(key=folder.name, files=files, patient=folder.name))
    for name, where in wanted.items():
        if where and name not in seen:
            option = name if name in ("pet", "ct", "mask", "labels") else "low"
            raise InputError(
                f"SET_NO_{option.upper()}",
                where=root.name,
                found=f"no sub-folder holds what --{option} names" + (f" for {name}" if option == "low" else ""),
                remedy=f"give --{option} the name that it has inside each sub-folder",
            )
    return Tree(tuple(found))
