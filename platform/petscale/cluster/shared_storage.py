"""The folder that all nodes of a cluster must share: the check that each node reads what the others write."""

import hashlib
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from petscale.cluster.nodes import joined, on_every_node
from storage.errors import InputError


def require_path(*folders: Path) -> None:
    """Refuse, on a cluster, mirrors of what lies at an URL where every node needs the thing itself.

    Raises:
        InputError: CLU_URL.
    """
    from storage import remote  # here: every worker process of a cluster loads this module, and most need no store

    for folder in folders:
        if joined() and remote.origin(folder):
            raise InputError(
                "CLU_URL",
                where=folder.name,
                found="many runs on many nodes share one folder, and an object store is none",
                remedy="keep cohort and study on storage that all nodes mount; petscale train takes URLs",
            )


def check_shared(folder: Path, *read: Path) -> None:
    """Prove that every node writes to ``folder`` what the others read there.

    Args:
        folder: exists for this process.
        read: files that every node must find with the same content, for instance a cohort's.

    Raises:
        InputError: CLU_STORAGE, CLU_NODE_SILENT.
    """
    token = secrets.token_hex(8)
    try:
        probe = folder / f".probe-{token}-driver"
        probe.write_text(token)
        contents = {str(path): _content(path) for path in read}
        missing = {
            node: found
            for node, found in on_every_node(_look, str(folder), token, contents).items()
            if found or not (folder / f".probe-{token}-{node}").is_file()
        }
        # The others' files, by a second look: what a node wrote must have reached every other node.
        missing |= {} if missing else {n: f for n, f in on_every_node(_count, str(folder), token).items() if f}
    finally:
        for path in folder.glob(f".probe-{token}-*"):
            path.unlink(missing_ok=True)
    if missing:
        node, found = next(iter(missing.items()))
        raise InputError(
            "CLU_STORAGE",
            where=f"node {node}",
            found=found or f"what it writes to '{folder.name}' is not seen elsewhere",
            remedy="put cohorts and runs on a file system that all nodes mount at the same path, or on an object store",
        )


def _look(folder: str, token: str, contents: Mapping[str, str]) -> str:
    """On a node: what is missing, empty when nothing is; leaves a probe of its own."""
    import ray

    here = Path(folder)
    if not here.is_dir() or not (here / f".probe-{token}-driver").is_file():
        return f"the folder '{here.name}' is not there, or is another one"
    for name, content in contents.items():
        if _content(Path(name)) != content:
            return f"'{Path(name).parent.name}' is not there, or is another one"
    with suppress(OSError):
        (here / f".probe-{token}-{ray.util.get_node_ip_address()}").write_text(token)
        return ""
    return f"may not write to '{here.name}'"


def _count(folder: str, token: str) -> str:
    """On a node: whether every node's probe is there to be read."""
    import ray

    expected = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    found = {path.name.removeprefix(f".probe-{token}-") for path in Path(folder).glob(f".probe-{token}-*")}
    return f"does not see what {', '.join(sorted(expected - found))} wrote" if expected - found else ""


def _content(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
