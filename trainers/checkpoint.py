"""Checkpoints by the manifest protocol: an attempt's own folder, safetensors and JSON, the manifest's rename commits.

Nothing is unpickled: a state is tensors by name, complete on rank 0, and is checked against its digests before a byte
of it is believed.  Ray's and DeepSpeed's own notions of a "latest" checkpoint are not used.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from storage import integrity
from storage.errors import InputError
from trainers.feed_config import present_names
from trainers.recipe import State

STATE, META = "state.safetensors", "meta.json"
DIGEST = "digest"  # among an exported file's facts: of its tensors and of all other facts


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint, verified and in memory."""

    step: int
    state: State
    meta: dict[str, Any]


def flatten(state: State) -> dict[str, Tensor]:
    """``engine|tensor`` -> tensor on the CPU; safetensors refuses shared or strided memory, so each is its own."""
    return {
        f"{engine}|{key}": value.detach().cpu().contiguous().clone()
        for engine, tensors in state.items()
        for key, value in tensors.items()
    }


def unflatten(flat: Mapping[str, Tensor]) -> State:
    """Inverse of ``flatten``, in the order of names: safetensors reads a file in another order each time."""
    state: State = {}
    for name, value in sorted(flat.items()):
        engine, key = name.split("|", 1)
        state.setdefault(engine, {})[key] = value
    return state


def save(folder: Path, step: int, state: State, meta: Mapping[str, Any], *, keep: int) -> Path:
    """Commit the state after ``step`` steps and forget all but the newest ``keep`` whole ones; rank 0 only.

    A damaged checkpoint does not count as one that is kept.  One of a later step stays until that step is passed: it
    may be damaged for this reader only, for instance while a file system is away.

    Raises:
        InputError: DISK_FULL; the earlier checkpoints stay whole.
    """
    attempt = folder / f"{step:09d}.{uuid.uuid4().hex[:8]}"
    with integrity.disk_errors(attempt):
        attempt.mkdir(parents=True, mode=0o700)
        try:
            integrity.write_bytes(attempt / STATE, save_safetensors(flatten(state)))
            integrity.write_json(attempt / META, {"step": step, **meta})
            integrity.commit(attempt, {"step": step})
        except BaseException:
            shutil.rmtree(attempt, ignore_errors=True)
            raise
    integrity.fsync_folder(folder)
    for old in _superseded(folder, attempt, keep):
        shutil.rmtree(old, ignore_errors=True)
    return attempt


def _superseded(folder: Path, latest: Path, keep: int) -> list[Path]:
    """The attempts that may go: whole ones beyond the newest ``keep``, and damaged ones of steps up to the latest."""
    others = [attempt for attempt in _attempts(folder) if attempt != latest]
    if len(others) < keep:
        return []
    kept, gone = 1, []
    for attempt in others:
        if kept < keep and not integrity.verify(attempt):  # every byte is read of as few as possible
            kept += 1
        elif _step(attempt) <= _step(latest):
            gone.append(attempt)
    return gone


def _step(attempt: Path) -> str:
    """The step in an attempt's name; as texts of one length they are in order."""
    return attempt.name.split(".")[0]


def _attempts(folder: Path) -> list[Path]:
    """Committed attempts, newest first."""
    return sorted((m.parent for m in folder.glob(f"*.*/{integrity.MANIFEST}")), key=lambda p: p.name, reverse=True)


def newest(folder: Path) -> tuple[Saved | None, list[str]]:
    """Return the newest checkpoint that proves whole, and one line for each newer one that does not.

    Raises:
        InputError: CKPT_ALL_DAMAGED where there are checkpoints and none is whole.
    """
    problems: list[str] = []
    attempts = _attempts(folder)
    for attempt in attempts:
        saved = _read(attempt)
        if isinstance(saved, integrity.Damage):
            problems.append(f"{attempt.name}/{saved.key}: {saved.problem}")
            continue
        warnings = [f"CKPT_DAMAGED {problem}; an older one is used" for problem in problems]
        return saved, warnings
    if attempts:
        raise InputError(
            "CKPT_ALL_DAMAGED",
            where=folder.name,
            found=f"none of {len(attempts)} checkpoints is whole; the newest: {problems[0]}",
            remedy=f"restore one from a copy, or remove the folder {folder.name} to train from the first step again",
        )
    return None, []


def _read(attempt: Path) -> Saved | integrity.Damage:
    """Read a committed attempt, or tell in what it is not what was committed."""
    if damage := integrity.verify(attempt):
        return damage[0]
    try:
        meta = integrity.read_json(attempt / META, "step", "run")
        state = unflatten(load_safetensors((attempt / STATE).read_bytes()))
        return Saved(int(meta["step"]), state, meta)
    except (SafetensorError, ValueError, TypeError, OverflowError) as error:
        return integrity.Damage(META, f"not what petscale wrote ({type(error).__name__})")


def check_same_run(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to continue a checkpoint under another recipe, configuration or set of cases.

    Raises:
        InputError: CKPT_RECIPE, CKPT_DRIFT naming the fields that differ.
    """
    found = {**found, "feed": present_names(found["feed"])} if "feed" in found else found
    if found.get("recipe") != wanted.get("recipe"):
        raise InputError(
            "CKPT_RECIPE",
            where="checkpoint",
            found=f"made by recipe '{found.get('recipe')}', this run is '{wanted.get('recipe')}'",
            remedy="continue with the recipe that made it, or choose a new run folder",
        )
    # A checkpoint calls the system's own settings ``model``; options and files call them ``recipe``.
    changed = sorted(line.replace("model.", "recipe.", 1) for line in _differences("", found, wanted))
    if changed:
        raise InputError(
            "CKPT_DRIFT",
            where="checkpoint",
            found=f"the run was started with other settings: {', '.join(changed)}",
            remedy="use the settings of the run's config.json, or choose a new run folder",
        )


def _differences(prefix: str, a: Any, b: Any) -> list[str]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = {*a, *b}
        return [line for k in keys for line in _differences(f"{prefix}.{k}".lstrip("."), a.get(k), b.get(k))]
    return [] if a == b else [f"{prefix} {a} -> {b}"]


def write_weights(path: Path, weights: Mapping[str, Tensor], meta: Mapping[str, str]) -> None:
    """Export the synthesizer's weights as one safetensors file with what is needed to use them, and its digest."""
    flat = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    told = {**meta, DIGEST: digest(flat, meta)}
    # One entry: safetensors writes several in random order, and equal runs must give equal files.
    integrity.write_bytes(path, save_safetensors(flat, metadata={"petscale": json.dumps(told, sort_keys=True)}))


def digest(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> str:
    """SHA-256 of tensors on the CPU (name, type, shape, bytes) and of the facts beside them, but for the digest."""
    names = sorted(tensors)
    table = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    others = {key: value for key, value in meta.items() if key != DIGEST}
    found = hashlib.sha256(json.dumps([table, others], sort_keys=True).encode())
    for name in names:
        found.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def facts(path: Path) -> dict[str, str]:
    """What ``write_weights`` noted beside the tensors; empty for a file that petscale did not write."""
    try:
        with safe_open(path, framework="pt") as file:
            return _facts((file.metadata() or {}).get("petscale", "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}


def _facts(text: str) -> dict[str, str]:
    """Read a file's facts.

    Raises:
        ValueError: no JSON, or not texts by name.
    """
    content = integrity.parse_json(text)
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ValueError("facts are texts by name")
    return content


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what ``write_weights`` wrote; of a file from before weights carried a digest, the facts have none.

    Raises:
        InputError: CKPT_NONE, CKPT_DAMAGED.
    """
    if not path.is_file():
        raise InputError(
            "CKPT_NONE", where=path.name, found="the run has no weights yet", remedy="finish `petscale train` first"
        )
    try:
        with safe_open(path, framework="pt") as file:
            # A copy is aligned in memory.  Where a tensor lies in the file depends on the length of its metadata, and
            # the last bits of a convolution on where its weights lie.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            told = _facts(file.metadata()["petscale"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        raise _damaged(path, "not a whole safetensors file of petscale") from None
    if DIGEST in told and told[DIGEST] != digest(tensors, told):
        raise _damaged(path, "tensors and facts do not agree with the file's digest")
    return tensors, told


def _damaged(path: Path, found: str) -> InputError:
    return InputError(
        "CKPT_DAMAGED",
        where=path.name,
        found=found,
        remedy="restore it from a copy, or remove it and run the command that trained it again",
    )
