"""The loop: bit-equal resume at any step, non-finite losses named, weights behind them never committed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from storage.errors import InputError
from storage.reader import open_cohort
from trainers import checkpoint
from trainers.engine import plain_engine
from trainers.feed import Feed, FeedConfig
from trainers.loop import LoopConfig, fit
from trainers.recipe import Batch, Metrics, Needs, State, Synthesizer

NEEDS = Needs(patch=(24, 24, 24), halo=0, patches_per_case=1, sampler={"body": 1.0})


class Toy:
    """The smallest recipe: one convolution, two phases, noise of its own."""

    num_steps = 10
    phase_starts: Mapping[str, int] = {"one": 0, "two": 6}

    def __init__(self, poison: int | None = None) -> None:
        torch.manual_seed(0)
        self.engine = plain_engine(nn.Conv3d(1, 1, 3, padding=1), lambda p: torch.optim.RMSprop(p, lr=0.01))
        self.poison = poison

    def phase(self, step: int) -> str:
        return "one" if step < 6 else "two"

    def needs(self, step: int) -> Needs:
        return NEEDS

    def step(self, batch: Batch, step: int) -> Metrics:
        output = self.engine(batch.low + 0.01 * torch.randn_like(batch.low))
        loss = (output - batch.full).abs().mean()
        if step == self.poison:
            loss = loss * torch.inf
        self.engine.backward(loss)
        self.engine.step()
        return {"l1": loss.detach()}

    def weights(self) -> dict[str, Tensor]:
        return self.state()["net"]

    def synthesizer(self) -> Synthesizer:
        return None  # type: ignore[return-value]

    def state(self) -> State:
        return {"net": self.engine.state()}

    def load(self, state: State) -> None:
        self.engine.load(state["net"])


class StopHereError(Exception):
    """A crash at a chosen moment."""


def run(
    cohort: Path, folder: Path, recipe: Toy, *, crash_at: int | None = None, **settings: Any
) -> list[dict[str, Any]]:
    opened = open_cohort(cohort)
    config = FeedConfig(low=("low_drf4",), cases_per_step=2)
    feed = Feed(opened, opened.cases, config, recipe.needs, rank=0, world=1, device=torch.device("cpu"))
    records: list[dict[str, Any]] = []

    def report(record: dict[str, Any]) -> None:
        records.append(record)
        if record["event"] == "log" and record["step"] == crash_at:
            raise StopHereError

    try:
        fit(
            recipe,
            feed,
            LoopConfig(**{"log_every": 1, "save_every": 4, "picture_every": 0, **settings}),
            folder=folder,
            meta={"recipe": "toy"},
            report=report,
            picture=lambda step, synthesizer: None,
            patches_per_step=2,
        )
    except StopHereError:
        pass
    finally:
        feed.close()
    return records


def losses(records: list[dict[str, Any]]) -> dict[int, float]:
    return {r["step"]: r["loss/l1"] for r in records if r["event"] == "log"}


@pytest.mark.parametrize("crash_at", [1, 5, 6, 9])
def test_resume_gives_the_same_losses_and_weights_bit_for_bit(cohort: Path, tmp_path: Path, crash_at: int) -> None:
    straight = Toy()
    expected = losses(run(cohort, tmp_path / "straight", straight))
    assert sorted(expected) == list(range(1, 11))

    before = losses(run(cohort, tmp_path / "crashed", Toy(), crash_at=crash_at))
    resumed = Toy()
    records = run(cohort, tmp_path / "crashed", resumed)
    assert records[0]["step"] == crash_at // 4 * 4
    assert before | losses(records) == expected
    for name, value in straight.state()["net"].items():
        assert torch.equal(value, resumed.state()["net"][name])


def test_a_finished_run_trains_no_more(cohort: Path, tmp_path: Path) -> None:
    run(cohort, tmp_path, Toy())
    assert losses(run(cohort, tmp_path, Toy())) == {}


def test_a_non_finite_loss_stops_the_run_names_the_patches_and_is_never_committed(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"TRAIN_NONFINITE step 6, patches phantom-00\d low_drf4 \d+:\d+,"):
        run(cohort, tmp_path, Toy(poison=6), log_every=100, save_every=4)
    saved, _ = checkpoint.newest(tmp_path)
    assert saved is not None
    assert saved.step == 4
    assert all(torch.isfinite(v).all() for v in saved.state["net"].values())


def test_a_checkpoint_of_another_recipe_is_refused(cohort: Path, tmp_path: Path) -> None:
    recipe = Toy()
    checkpoint.save(tmp_path, 4, recipe.state(), {"run": {"recipe": "other"}}, keep=2)
    with pytest.raises(InputError, match="CKPT_RECIPE"):
        run(cohort, tmp_path, recipe)


def test_records_tell_phase_speed_and_waiting(cohort: Path, tmp_path: Path) -> None:
    records = [r for r in run(cohort, tmp_path, Toy(), log_every=4) if r["event"] == "log"]
    assert [(r["step"], r["phase"]) for r in records] == [(4, "one"), (6, "one"), (8, "two"), (10, "two")]
    assert all(r["patches_per_s"] > 0 and 0 <= r["wait_share"] <= 1 for r in records)
