"""Checkpoints: exact, committed by the manifest alone, never believed when damaged, never another run's."""

import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from storage import integrity
from storage.errors import InputError
from trainers import checkpoint

META = {"run": {"recipe": "toy", "model": {"lr": 0.1}}}


def state(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "G": {"weight/a.b": torch.randn(3, 4, generator=rng), "step/a.b": torch.tensor(float(seed))},
        "D": {"square_avg/c": torch.randn(5, generator=rng).t(), "weight/c": torch.zeros(0)},
    }


def equal(a: dict[str, dict[str, torch.Tensor]], b: dict[str, dict[str, torch.Tensor]]) -> bool:
    return a.keys() == b.keys() and all(
        a[e].keys() == b[e].keys() and all(torch.equal(a[e][k], b[e][k]) for k in a[e]) for e in a
    )


def test_round_trip_is_bit_equal(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 7, state(1), META, keep=2)
    saved, warnings = checkpoint.newest(tmp_path)
    assert saved is not None
    assert (saved.step, saved.meta["run"], warnings) == (7, META["run"], [])
    assert equal(saved.state, state(1))
    assert [*saved.state["G"]] == ["step/a.b", "weight/a.b"], "in one order, whatever order safetensors reads them in"


def test_only_the_newest_stay_and_the_newest_is_taken(tmp_path: Path) -> None:
    for step in (5, 10, 200, 1000):
        checkpoint.save(tmp_path, step, state(step), META, keep=2)
    assert len(list(tmp_path.iterdir())) == 2
    saved, _ = checkpoint.newest(tmp_path)
    assert saved is not None
    assert saved.step == 1000


def test_nothing_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none") == (None, [])


@pytest.mark.parametrize("kind", ["flip", "truncate", "empty", "delete"])
@pytest.mark.parametrize("name", [checkpoint.STATE, checkpoint.META, integrity.MANIFEST])
def test_a_damaged_checkpoint_falls_back_aloud(tmp_path: Path, kind: str, name: str) -> None:
    rng = random.Random(f"{kind} {name}")
    checkpoint.save(tmp_path, 1, state(1), META, keep=5)
    newest = checkpoint.save(tmp_path, 2, state(2), META, keep=5)
    path = newest / name
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif kind == "delete":
        path.unlink()
    else:
        path.write_bytes(content[: 0 if kind == "empty" else len(content) // 2])
    saved, warnings = checkpoint.newest(tmp_path)
    assert saved is not None
    assert saved.step == 1
    assert equal(saved.state, state(1))
    # Without its manifest an attempt was never committed, so there is nothing to warn of.
    assert bool(warnings) == ((kind, name) != ("delete", integrity.MANIFEST))


def test_an_uncommitted_attempt_does_not_exist(tmp_path: Path) -> None:
    committed = checkpoint.save(tmp_path, 1, state(1), META, keep=5)
    torn = tmp_path / "000000002.deadbeef"
    shutil.copytree(committed, torn)
    (torn / integrity.MANIFEST).unlink()
    saved, warnings = checkpoint.newest(tmp_path)
    assert saved is not None
    assert (saved.step, warnings) == (1, [])


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, 1, state(1), META, keep=1)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="DISK_FULL"):
        checkpoint.save(tmp_path, 2, state(2), META, keep=1)
    monkeypatch.undo()
    assert [path.name.split(".")[0] for path in tmp_path.iterdir()] == ["000000001"]
    saved, _ = checkpoint.newest(tmp_path)
    assert saved is not None
    assert equal(saved.state, state(1))


@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_damaged_checkpoints_never_cost_a_good_one(tmp_path: Path, keep: int, seed: int) -> None:
    """Random saves, of steps that also come again, and damage of any of them in between."""
    rng = random.Random(f"{keep} {seed}")
    damaged: set[str] = set()
    step = 0
    for _ in range(14):
        there = sorted(path.name for path in tmp_path.iterdir() if path.name not in damaged)
        if there and rng.random() < 0.4:
            name = rng.choice(there)
            (tmp_path / name / checkpoint.STATE).write_bytes(b"damaged")
            damaged.add(name)
            continue
        # A run goes on from its newest whole checkpoint: the same steps are saved again.
        good = [path.name for path in tmp_path.iterdir() if path.name not in damaged]
        step = 1 + max((int(name.split(".")[0]) for name in good), default=0) + rng.randrange(2)
        made = checkpoint.save(tmp_path, step, state(step), META, keep=keep)
        expected = sorted([*good, made.name], reverse=True)[:keep]
        after = {path.name for path in tmp_path.iterdir()}
        assert sorted(after - damaged, reverse=True) == expected
        assert all(int(name.split(".")[0]) > step for name in after & damaged) or len(after) <= keep
        saved, _ = checkpoint.newest(tmp_path)
        assert saved is not None
        assert saved.step == step
        assert equal(saved.state, state(step))


@pytest.mark.parametrize("count", [1, 3])
def test_where_all_are_damaged_training_does_not_begin_again(tmp_path: Path, count: int) -> None:
    for step in range(1, count + 1):
        made = checkpoint.save(tmp_path / "checkpoints", step, state(step), META, keep=3)
        (made / checkpoint.META).write_bytes(b"{}")
    told = rf"none of {count} checkpoints is whole; the newest: 0+{count}\.\w+/meta.json: 2 bytes"
    with pytest.raises(InputError, match=f"CKPT_ALL_DAMAGED checkpoints: {told}"):
        checkpoint.newest(tmp_path / "checkpoints")


@pytest.mark.parametrize("call", range(1, 11))  # every sync of a save
def test_a_failing_disk_is_told_and_leaves_the_earlier_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    checkpoint.save(tmp_path, 1, state(1), META, keep=2)
    real, calls = os.fsync, iter(range(1, 1000))

    def failing(handle: int) -> None:
        if next(calls) == call:
            raise OSError(5, "Input/output error")
        real(handle)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(InputError, match="DISK_ERROR"):
        checkpoint.save(tmp_path, 2, state(2), META, keep=2)
    monkeypatch.undo()
    saved, _ = checkpoint.newest(tmp_path)
    assert saved is not None
    assert equal(saved.state, state(saved.step))


def test_another_recipe_or_setting_is_refused_by_name() -> None:
    wanted = {"recipe": "toy", "model": {"lr": 0.1, "k": 8}}
    checkpoint.check_same_run(wanted, dict(wanted))
    with pytest.raises(InputError, match="CKPT_RECIPE"):
        checkpoint.check_same_run(wanted, {**wanted, "recipe": "other"})
    with pytest.raises(InputError, match=r"CKPT_DRIFT.*recipe\.lr 0\.1 -> 0\.2"):
        checkpoint.check_same_run(wanted, {**wanted, "model": {"lr": 0.2, "k": 8}})


def test_weights_round_trip_and_refuse_strangers(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(InputError, match="CKPT_NONE"):
        checkpoint.read_weights(path)
    weights = {"a": torch.randn(3), "b": torch.randn(2, 2).t()}
    checkpoint.write_weights(path, weights, {"recipe": "toy"})
    found, facts = checkpoint.read_weights(path)
    assert facts == {"recipe": "toy", "digest": checkpoint.digest(found, {"recipe": "toy"})}
    assert all(torch.equal(found[k], weights[k]) for k in weights)
    checkpoint.write_weights(path, weights, facts)
    assert checkpoint.read_weights(path)[1] == facts
    checkpoint.write_weights(path, {**weights, "a": weights["a"] + 1}, facts)
    assert checkpoint.facts(path)["digest"] != facts["digest"]
    path.write_bytes(b"\x80\x04\x95 a pickle")
    with pytest.raises(InputError, match="CKPT_DAMAGED"):
        checkpoint.read_weights(path)
