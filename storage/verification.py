"""Verification of a whole cohort: every case against its manifest, every manifest against the catalog.

Only digests are computed: no library for arrays is imported.
"""

from pathlib import Path

from storage import integrity, layout
from storage.reader import open_cohort


def verify(cohort: Path) -> dict[str, list[integrity.Damage]]:
    """Read every byte of a cohort and compare it with the manifests and the catalog.

    Returns:
        Case name -> what is wrong with it; the catalog's own damage stands under its file name.  Empty when all is
        whole.

    Raises:
        InputError: STORE_NONE, STORE_DAMAGED, STORE_SCHEMA when the folder is no cohort that can be opened.
    """
    open_cohort(cohort)
    folders = {path.name: path for path in (cohort / layout.CASES).glob("*") if path.is_dir()}
    found = {name: integrity.verify(folder) for name, folder in folders.items()}
    roots = {}
    for name, folder in folders.items():
        if not found[name]:
            content = integrity.manifest(folder)
            roots[name] = content["root"]
            if content["facts"].get("case") != name:
                found[name].append(integrity.Damage(integrity.MANIFEST, "belongs to another case"))
    try:
        catalog: dict[str, str] = read_catalog(cohort)
    except ValueError:
        found[layout.CATALOG] = [integrity.Damage(layout.CATALOG, "missing or not readable")]
        catalog = {}
    for name, root in catalog.items():
        if name not in folders:
            found[name] = [integrity.Damage("", "the whole case is missing")]
        elif name in roots and roots[name] != root:
            found[name].append(integrity.Damage(integrity.MANIFEST, "is not the one that was committed"))
    return {name: damage for name, damage in sorted(found.items()) if damage}


def read_catalog(cohort: Path) -> dict[str, str]:
    """Return case name -> root digest of every case that was committed.

    Raises:
        ValueError: the catalog is missing or not readable.
    """
    try:
        content = integrity.parse_json((cohort / layout.CATALOG).read_bytes())
    except OSError as error:
        raise ValueError from error
    if not isinstance(content, dict) or not all(isinstance(root, str) for root in content.values()):
        raise ValueError("no digests by name")
    return content
