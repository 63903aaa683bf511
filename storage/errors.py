"""The error for a user's mistake: a stable code, where, what was found, what to do.

The families of codes (``DCM_``, ``SER_``, ``FRM_``, ``PET_``, ``PAIR_``, ``NII_``, ``LBL_``, ``IMG_``, ``SPLIT_``,
``SET_``, ``TAB_``, ``BIDS_``, ``STORE_``, ``CFG_``, ``CKPT_``, ``CLU_``, ``DISK_``) are listed in docs/errors.md.
Nothing that identifies a patient may be put in any argument: files are named by their last path component, header
fields by tag and keyword, never by a patient's value.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """A user's mistake, in one line.

    Args:
        code: stable upper-case code with its family prefix, for instance ``NII_TRUNCATED``.
        where: the file (last path component), header field or config field at fault.
        found: what was there.
        remedy: what the user can do about it.
    """

    def __init__(self, code: str, *, where: str, found: str, remedy: str) -> None:
        self.code = code
        self.where = where
        self.found = found
        self.remedy = remedy
        super().__init__(printable(f"{code} {where}: {found}; {remedy}"))

    def __reduce__(self) -> tuple[object, ...]:
        """Let the error cross process borders (Ray, multiprocessing) whole."""
        return (_rebuild, (self.code, self.where, self.found, self.remedy))


@contextmanager
def of_file(name: str) -> Iterator[None]:
    """Let an error about a header's field name the file or folder too, by its last path component."""
    try:
        yield
    except InputError as error:
        if not error.code.startswith("PET_"):
            raise
        where = f"{error.where} of {name}"
        raise InputError(error.code, where=where, found=error.found, remedy=error.remedy) from None


def no_file(path: Path) -> InputError:
    """Return the error for a path where nothing is, or a link to nothing: of git-annex and DataLad it stands for a file
    that was not fetched."""
    if path.is_symlink():
        remedy = "get the file that it stands for first (git annex get, datalad get)"
        return InputError("IMG_NO_FILE", where=path.name, found="a link to no file", remedy=remedy)
    return InputError("IMG_NO_FILE", where=path.name, found="no such file or folder", remedy="check the path")


def printable(text: str, keep: str = "") -> str:
    """Return a text that any terminal can show as it is: control characters, marks that turn the direction of writing,
    and bytes of no encoding are escaped.

    Names of files may hold all of them: an escape sequence would otherwise reach the terminal, a line break the next
    line.

    Args:
        text: what is to be shown.
        keep: characters that stay as they are, for instance a line break of our own.
    """
    shown = text.encode("utf-8", "backslashreplace").decode("utf-8")
    kept = f" {keep}"
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in shown)


def _rebuild(code: str, where: str, found: str, remedy: str) -> InputError:
    return InputError(code, where=where, found=found, remedy=remedy)
