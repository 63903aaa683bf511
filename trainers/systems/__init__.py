"""The systems: one file or folder each, and the registry that finds them by name.

``RECIPES`` maps a name to a module that keeps the contract of ``trainers.recipe.RecipeSpec``.  Names are known without
importing any system; a system is imported when it is looked up.  Systems of other distributions are found by the
entry-point group ``petscale.systems``, as their pyproject.toml declares it::

    [project.entry-points."petscale.systems"]
    my_system = "my_package.my_module"
"""

import importlib
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from storage.errors import InputError

if TYPE_CHECKING:
    from trainers.recipe import RecipeSpec

GROUP = "petscale.systems"
BUILT_IN: dict[str, str] = {
    "restore": "trainers.systems.restore",
    "restore_ct": "trainers.systems.restore_ct",
    "sgsgan": "trainers.systems.sgsgan",
    "cg_3dsrgan": "trainers.systems.cg_3dsrgan",
    "s3pet": "trainers.systems.s3pet",
    "cascade": "trainers.systems.cascade",
    "virtual_pet": "trainers.systems.virtual_pet",
    "red_cnn": "trainers.systems.red_cnn",
    "cycle_gan": "trainers.systems.cycle_gan",
    "cycle_gan_3d": "trainers.systems.cycle_gan_3d",
    "cycle_wgan": "trainers.systems.cycle_wgan",
    "semipet": "trainers.systems.semipet",
    "unet": "trainers.systems.unet",
    "unet_3d": "trainers.systems.unet_3d",
    "cgan_3d": "trainers.systems.cgan_3d",
    "auto_context": "trainers.systems.auto_context",
    "ar_gan": "trainers.systems.ar_gan",
    "cvt_gan": "trainers.systems.cvt_gan",
    "medgan": "trainers.systems.medgan",
    "dsg_gan": "trainers.systems.dsg_gan",
}


class Registry(Mapping[str, "RecipeSpec"]):
    """Name -> system: the built-in ones in their order, then those of other distributions by name.

    Looking up a system imports it; ``len``, ``in`` and iteration import nothing.
    """

    def __getitem__(self, name: str) -> "RecipeSpec":
        """Return the system ``name``.

        Raises:
            KeyError: there is no such system.
            InputError: CFG_SYSTEM where an installed distribution offers it and it cannot be used: its name is taken,
                its module cannot be imported, or it lacks a part of ``RecipeSpec``.
        """
        offered = _outside().get(name, ())
        if name not in BUILT_IN and not offered:
            raise KeyError(name)
        if name in BUILT_IN and not offered:
            module: Any = importlib.import_module(BUILT_IN[name])
            return module  # type: ignore[no-any-return]
        if name in BUILT_IN or len(offered) > 1:
            taken = "petscale itself has a system of that name" if name in BUILT_IN else "several have that name"
            raise _unusable(name, offered[0], taken)
        return _load(name, offered[0])

    def __contains__(self, name: object) -> bool:
        return name in BUILT_IN or name in _outside()

    def __iter__(self) -> Iterator[str]:
        yield from BUILT_IN
        yield from sorted(_outside().keys() - BUILT_IN.keys())

    def __len__(self) -> int:
        return len(BUILT_IN.keys() | _outside().keys())


RECIPES = Registry()


def _outside() -> Mapping[str, tuple[EntryPoint, ...]]:
    return _entry_points(tuple(sys.path))


@lru_cache(maxsize=4)
def _entry_points(path: tuple[str, ...]) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Name -> entry points of the distributions that are installed on ``path``, which is the present ``sys.path``."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=GROUP):
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


def _load(name: str, entry: EntryPoint) -> "RecipeSpec":
    from trainers.recipe import RecipeSpec

    try:
        module = entry.load()
    except Exception as error:  # whatever a foreign module raises while it is imported
        reason = (str(error).splitlines() or [""])[0]
        raise _unusable(name, entry, f"its import fails: {error.__class__.__name__}: {reason}") from error
    parts = [*RecipeSpec.__annotations__, *(part for part in vars(RecipeSpec) if part[0] != "_")]
    if missing := [part for part in parts if not hasattr(module, part)]:
        raise _unusable(name, entry, f"it lacks {', '.join(missing)}")
    return module  # type: ignore[no-any-return]


def _unusable(name: str, entry: EntryPoint, found: str) -> InputError:
    origin = entry.dist.name if entry.dist else "an installed distribution"
    return InputError(
        "CFG_SYSTEM",
        where=f"system '{name}' of {origin}",
        found=f"{found} ({entry.value})",
        remedy="correct that distribution, uninstall it, or choose another --recipe (docs/how-to-add-a-system.md)",
    )
