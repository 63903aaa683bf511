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
from trainers.feed import Feed
from trainers.feed_config import FeedConfig
from trainers.loop import LoopConfig, fit
from trainers.recipe import Batch, BatchSpec, Metrics, State, Synthesizer

NEEDS = BatchSpec(patch=(24, 24, 24), halo=(0, 0, 0), patches_per_case=1, sampler={"body": 1.0})


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

    def batch_spec(self, step: int) -> BatchSpec:
        return NEEDS

    def step(self, batch: Batch, step: int) -> Metrics:
        output = self.engine(batch.source + 0.01 * torch.randn_like(batch.source))
        loss = (output - batch.target).abs().mean()
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


class Listener(Toy):
    """A toy whose first phase ends when validation says so, and which keeps its network then."""

    validate_every = 2
    validate_batches = 3
    validation_batch = NEEDS

    def __init__(self, stop_at: int = 100) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.heard: list[tuple[int, float]] = []
        self.sum = torch.zeros(())

    def validate(self, batch: Batch) -> Metrics:
        with torch.no_grad():
            return {"mse": (self.engine.module(batch.source) - batch.target).square().mean()}

    def observe(self, step: int, scores: Mapping[str, float]) -> int:
        self.heard.append((step, scores["mse"]))
        self.sum = self.sum + scores["mse"]
        return 6 if step == self.stop_at else step

    def exports(self, step: int) -> Mapping[str, Mapping[str, Tensor]]:
        return {"kept": self.weights()} if step == 6 else {}

    def state(self) -> State:
        return super().state() | {"schedule": {"sum": self.sum}}

    def load(self, state: State) -> None:
        super().load(state)
        self.sum = state["schedule"]["sum"]


class StopHereError(Exception):
    """A crash at a chosen moment."""


def run(
    cohort: Path, folder: Path, recipe: Toy, *, crash_at: int | None = None, until: int | None = None, **settings: Any
) -> list[dict[str, Any]]:
    opened = open_cohort(cohort)
    config = FeedConfig(source=("low_drf4",), cases_per_step=2)

    def feed(cases: tuple[str, ...]) -> Feed:
        return Feed(opened, {"paired": cases}, config, recipe.batch_spec, rank=0, world=1, device=torch.device("cpu"))

    sources = feed(opened.cases[1:]), feed(opened.cases[:1])
    records: list[dict[str, Any]] = []

    def report(record: dict[str, Any]) -> None:
        records.append(record)
        if record["event"] == "log" and record["step"] == crash_at:
            raise StopHereError

    try:
        fit(
            recipe,
            sources[0],
            LoopConfig(**{"log_every": 1, "save_every": 4, "picture_every": 0, **settings}),
            folder=folder,
            meta={"recipe": "toy"},
            report=report,
            picture=lambda step, synthesizer: None,
            patches_per_step=2,
            validation=sources[1],
            export=lambda name, tensors: records.append({"event": "export", "name": name, "tensors": dict(tensors)}),
            until=until,
        )
    except StopHereError:
        pass
    finally:
        for source in sources:
            source.close()
    return records


def losses(records: list[dict[str, Any]]) -> dict[int, float]:
    return {r["step"]: r["loss/l1"] for r in records if r["event"] == "log"}


def test_a_run_made_budget_by_budget_ends_as_one_made_at_once(cohort: Path, tmp_path: Path) -> None:
    straight = Listener(stop_at=4)
    expected = losses(run(cohort, tmp_path / "straight", straight))
    found: dict[int, float] = {}
    budgets = Listener(stop_at=4)
    for until in (1, 5, 7, 99):  # validation after step 4 continues at 6, beyond the second budget
        found |= losses(run(cohort, tmp_path / "budgets", budgets, until=until))
        newest, _ = checkpoint.newest(tmp_path / "budgets")
        assert newest
        assert newest.step == {1: 1, 5: 6, 7: 7, 99: 10}[until]
        budgets = Listener(stop_at=4)
    assert found == expected
    newest, _ = checkpoint.newest(tmp_path / "budgets")
    assert newest
    for key, value in straight.state()["net"].items():
        assert torch.equal(newest.state["net"][key], value)


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


def test_a_listening_recipe_hears_the_same_patches_every_time_and_may_end_a_phase(cohort: Path, tmp_path: Path) -> None:
    recipe = Listener(stop_at=2)
    records = run(cohort, tmp_path, recipe)
    assert [step for step, _ in recipe.heard] == [2, 8, 10]  # 6 is where the phase was sent on to, not a step made
    assert [r["step"] for r in records if r["event"] == "log"] == [1, 6, 7, 8, 9, 10]
    assert [r["event"] for r in records].count("validation") == 3
    still = Listener()
    still.engine.set_lr(0.0)
    run(cohort, tmp_path / "still", still)
    assert len({value for _, value in still.heard}) == 1


def test_networks_are_kept_at_the_end_of_a_phase(cohort: Path, tmp_path: Path) -> None:
    recipe = Listener()
    exports = [r for r in run(cohort, tmp_path, recipe) if r["event"] == "export"]
    assert [r["name"] for r in exports] == ["kept"]
    assert exports[0]["tensors"].keys() == recipe.weights().keys()


@pytest.mark.parametrize("crash_at", [3, 7])
def test_what_a_recipe_heard_is_resumed(cohort: Path, tmp_path: Path, crash_at: int) -> None:
    straight, resumed = Listener(stop_at=4), Listener(stop_at=4)
    expected = losses(run(cohort, tmp_path / "straight", straight, save_every=2))
    before = losses(run(cohort, tmp_path / "crashed", Listener(stop_at=4), crash_at=crash_at, save_every=2))
    after = losses(run(cohort, tmp_path / "crashed", resumed, save_every=2))
    assert before | after == expected
    assert torch.equal(straight.sum, resumed.sum)
