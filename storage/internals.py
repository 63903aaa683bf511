"""The one door to what a library does not promise to keep: its absence is told as a version, never as a traceback.

``pyproject.toml`` bounds the versions of the libraries named here.
"""

from importlib.metadata import version
from typing import Any

from storage.errors import InputError


def internal(owner: Any, path: str, library: str) -> Any:
    """Return an attribute of a library that is not part of its public interface.

    Args:
        owner: a module, class or object of the library.
        path: attribute, or attributes joined by dots.
        library: its distribution name.

    Raises:
        InputError: ``CFG_LIBRARY`` naming the library, its version and what is missing.

    >>> import pathlib
    >>> internal(pathlib, "Path.home", "numpy").__name__
    'home'
    """
    found = owner
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise InputError(
                "CFG_LIBRARY",
                where=f"{library} {version(library)}",
                found=f"it has no {path}, which petscale rests on",
                remedy="install the version that constraints.txt names",
            ) from None
    return found
