"""What the driver hands to every training process, as one typed value that travels as plain JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from petscale.splits import Roles


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """One run as a worker needs it.

    Args:
        cohort: absolute path of the cohort's folder.
        run: absolute path of the run's folder.
        cohort_url: where the cohort was fetched from, empty for a folder that every node mounts.
        lease: fields of the object store's lease that the driver holds, None for a folder.
        used: the configuration as JSON, files from elsewhere by absolute paths.
        recorded: the configuration as JSON, those files by their last path component.
        roles: which cases are trained on, validated on and tested on.
        proof: what the weights are to carry of their run (``petscale.proof.carried``).
        identity: what a checkpoint must agree on.
        starts_from: what a scan must be like to be synthesized from: unit, voxel size.
        drfs: dose reduction factors trained on, None for one that is unknown.
        until: stop, committed, after so many steps; None for all.
        stop_in_s: seconds after ``told_at`` in which the run has to end, None for no limit.
        told_at: when the driver said so, in seconds since 1970: start-up counts too.
        others: absolute paths of further cohorts' folders that are read as one with the first.
        init: absolute path of the weights that its networks start from, empty for none.
    """

    cohort: str
    run: str
    cohort_url: str
    lease: Mapping[str, Any] | None
    used: Mapping[str, Any]
    recorded: Mapping[str, Any]
    roles: Roles
    proof: Mapping[str, str]
    identity: Mapping[str, Any]
    starts_from: Mapping[str, Any]
    drfs: list[float | None]
    until: int | None = None
    stop_in_s: float | None = None
    told_at: float = 0.0
    others: tuple[str, ...] = ()
    init: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "WorkerJob":
        """Inverse of ``to_json``."""
        roles = {role: tuple(cases) for role, cases in content["roles"].items()}
        return cls(**{**content, "roles": Roles(**roles), "others": tuple(content.get("others", ()))})
