"""Weights that come with petscale, by their names: ``petscale apply restore-small SCAN``."""

from pathlib import Path

FOLDER = Path(__file__).parent / "weights"
SUFFIX = ".safetensors"


def names() -> tuple[str, ...]:
    """Return the names of the weights that come with petscale, sorted."""
    return tuple(sorted(file.stem for file in FOLDER.glob(f"*{SUFFIX}")))


def located(file: Path) -> Path:
    """Return the file of weights that come with petscale where it is their bare name, and no file is called so.

    >>> from pathlib import Path
    >>> located(Path("mine.safetensors"))
    PosixPath('mine.safetensors')
    """
    return FOLDER / f"{file}{SUFFIX}" if str(file) in names() and not file.exists() else file
