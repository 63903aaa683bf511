"""The loop: bit-equal resume at any step, non-finite losses named, weights behind them never committed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from storage.errors import InputError
from storage.reader import open_cohort
from trainers import assembly, checkpoint
from trainers.engine import EngineConfig, plain_engine, plain_engines
from trainers.feed import Feed
from trainers.feed_config import FeedConfig
from trainers.habits import Engines
from trainers.loop import AS_THEY_ARE, Gains, Leading, LoopConfig, Picture, fit
from trainers.recipe import Batch, BatchSpec, EngineFactory, Metrics, State, Synthesizer, Tiling
from trainers.time_limit import END_S, SPARE, UNMEASURED_SAVE_S, TimeLimit
from trainers.validation import Best, Patches

NEEDS = BatchSpec(patch=(24, 24, 24), halo=(0, 0, 0), patches_per_case=1, sampler={"body": 1.0})


class Toy:
    """The smallest recipe: one convolution, two phases, noise of its own."""

    num_steps = 10
    phase_starts: Mapping[str, int] = {"one": 0, "two": 6}

    def __init__(self, poison: int | None = None, make_engine: EngineFactory = plain_engine) -> None:
        torch.manual_seed(0)
        self.engine = make_engine(nn.Conv3d(1, 1, 3, padding=1), lambda p: torch.optim.RMSprop(p, lr=0.01))
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


class ByTurns(Toy):
    """A toy that measures one thing in even steps and another in odd ones."""

    def step(self, batch: Batch, step: int) -> Metrics:
        super().step(batch, step)
        return {"even" if step % 2 == 0 else "odd": torch.tensor(float(step))}


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


class Followed(Toy):
    """A toy that the loop validates, by scores told beforehand."""

    scores: Mapping[int, float] = {2: 1.0, 4: 3.0, 6: 2.0, 8: 3.0, 10: 9.0}  # steps made -> gain in dB
    made = 0

    def step(self, batch: Batch, step: int) -> Metrics:
        self.made = step + 1
        return super().step(batch, step)

    def weights(self) -> dict[str, Tensor]:
        return assembly.weights_of(self.engine)

    def synthesizer(self) -> Synthesizer:
        return assembly.windows(self.engine.module, Tiling((24, 24, 24), (0, 0, 0)))

    def gains(self, synthesizer: Synthesizer) -> Tensor:
        return torch.tensor([self.scores[self.made] - 1, self.scores[self.made] + 1], dtype=torch.float64)


def run(
    cohort: Path,
    folder: Path,
    recipe: Toy,
    *,
    crash_at: int | None = None,
    until: int | None = None,
    limit: TimeLimit | None = None,
    engines: Leading = AS_THEY_ARE,
    gains: Gains | None = None,
    picture: Picture = lambda step, synthesizer: None,
    augment: Any = "none",
    streams: tuple[str, ...] = ("paired",),
    **settings: Any,
) -> list[dict[str, Any]]:
    opened = open_cohort(cohort)
    config = FeedConfig(source=("low_drf4",), cases_per_step=2, augment=augment)

    def feed(cases: tuple[str, ...]) -> Feed:
        kinds = dict.fromkeys(streams, cases)
        return Feed(opened, kinds, config, recipe.batch_spec, rank=0, world=1, device=torch.device("cpu"))

    sources = feed(opened.cases[1:]), feed(opened.cases[:1])
    records: list[dict[str, Any]] = []

    def report(record: dict[str, Any]) -> None:
        records.append(record)
        if record["event"] == "log" and record["step"] == crash_at:
            raise StopHereError

    try:
        best = fit(
            recipe,
            sources[0],
            LoopConfig(**{"log_every": 1, "save_every": 4, "picture_every": 0, **settings}),
            folder=folder,
            meta={"recipe": "toy"},
            report=report,
            picture=picture,
            patches_per_step=2,
            engines=engines,
            validation=sources[1],
            gains=gains,
            export=lambda name, tensors: records.append({"event": "export", "name": name, "tensors": dict(tensors)}),
            until=until,
            limit=limit,
        )
        records.append({"event": "end", "best": best})
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


class Clock:
    """A monotonic clock that a test moves on by so much each time it is asked."""

    def __init__(self, tick_s: float) -> None:
        self.now, self.tick_s = 0.0, tick_s

    def __call__(self) -> float:
        self.now += self.tick_s
        return self.now


@pytest.mark.parametrize("tick_s", [12.0, 20.0, 1000.0])
def test_a_run_stopped_in_time_and_continued_ends_as_one_made_at_once(
    cohort: Path, tmp_path: Path, tick_s: float
) -> None:
    straight = Toy()
    expected = losses(run(cohort, tmp_path / "straight", straight))
    found: dict[int, float] = {}
    stops: list[int | None] = []
    while not stops or stops[-1] is not None:
        limit = TimeLimit(100.0, Clock(tick_s))
        records = run(cohort, tmp_path / "limited", Toy(), limit=limit)
        found |= losses(records)
        stops.append(limit.stopped_at)
        newest, _ = checkpoint.newest(tmp_path / "limited")
        assert newest
        assert newest.step == (limit.stopped_at or 10)
        assert records[-2] == {"event": "checkpoint", "step": newest.step}
    assert len(stops) > 1
    if tick_s > 100:  # one step at least, each time
        assert stops == [*range(1, 10), None]
    assert found == expected
    for key, value in straight.state()["net"].items():
        assert torch.equal(newest.state["net"][key], value)


def test_the_time_that_writing_takes_is_kept_free() -> None:
    clock = Clock(0.0)
    limit = TimeLimit(100.0, clock)
    clock.now = 100.0 - END_S - SPARE * UNMEASURED_SAVE_S - 1.0
    assert not limit.near
    limit.stepped(2.0)
    limit.stepped(0.1)
    assert limit.near
    limit.saved(3.0)
    assert not limit.near
    clock.now = 100.0 - END_S - SPARE * (3.0 + 2.0) + 0.1
    assert limit.near


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


def test_what_some_steps_measure_is_averaged_over_these(cohort: Path, tmp_path: Path) -> None:
    """Steps 0 to 3, 4 and 5, where the phase ends, and so on."""
    records = [r for r in run(cohort, tmp_path, ByTurns(), log_every=4) if r["event"] == "log"]
    found = [(r["step"], r["loss/even"], r["loss/odd"]) for r in records]
    assert found == [(4, 1, 2), (6, 4, 5), (8, 6, 7), (10, 8, 9)]


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


def best_of(records: list[dict[str, Any]]) -> Best:
    best: Best = records[-1]["best"]
    return best


@pytest.mark.parametrize("crash_at", [None, 3, 5, 7, 8])
def test_the_best_weights_are_kept_and_training_ends_where_nothing_gets_better(
    cohort: Path, tmp_path: Path, crash_at: int | None
) -> None:
    settings: dict[str, Any] = {"validate_every": 2, "patience": 2, "save_every": 3}
    wanted = Followed()
    run(cohort, tmp_path / "four steps", wanted, until=4)
    recipe = Followed()
    before = losses(run(cohort, tmp_path / "run", recipe, crash_at=crash_at, gains=recipe.gains, **settings))
    if crash_at is not None:
        recipe = Followed()
    records = run(cohort, tmp_path / "run", recipe, gains=recipe.gains, **settings)
    assert sorted(before | losses(records)) == list(range(1, 9))  # 6 and 8 are no better than 4
    best = best_of(records)
    assert (best.step, best.gain_db, best.since) == (4, 3.0, 2)
    assert all(torch.equal(value, best.weights[name]) for name, value in wanted.weights().items())
    newest, _ = checkpoint.newest(tmp_path / "run")
    assert newest
    assert newest.step == 8
    again = Followed()
    after = run(cohort, tmp_path / "run", again, gains=again.gains, **settings)
    assert losses(after) == {}
    assert best_of(after).step == 4


def test_a_run_without_patience_is_validated_to_its_last_step(cohort: Path, tmp_path: Path) -> None:
    recipe = Followed()
    records = run(cohort, tmp_path, recipe, gains=recipe.gains, validate_every=4)
    scored = [(r["step"], r["validation/gain_db"], r["best_step"]) for r in records if r["event"] == "validation"]
    assert scored == [(4, 3.0, 4), (8, 3.0, 4), (10, 9.0, 10)]
    assert all(torch.equal(value, best_of(records).weights[name]) for name, value in recipe.weights().items())


class LastPhaseCounts(Followed):
    """Whose first phase, of steps 1 to 6, makes nothing that validations should be counted for."""

    followed = "two"
    scores: Mapping[int, float] = {2: 5.0, 4: 3.0, 6: 2.0, 8: 3.0, 9: 4.0, 10: 9.0}


@pytest.mark.parametrize(("patience", "made"), [(1, 8), (2, 10)])
def test_validations_count_as_made_in_vain_in_the_phase_that_is_followed(
    cohort: Path, tmp_path: Path, patience: int, made: int
) -> None:
    recipe = LastPhaseCounts()
    records = run(cohort, tmp_path, recipe, gains=recipe.gains, validate_every=2, patience=patience)
    assert max(losses(records)) == made
    assert best_of(records).step == (2 if made < 10 else 10)


def test_no_validation_is_no_choice(cohort: Path, tmp_path: Path) -> None:
    assert best_of(run(cohort, tmp_path, Toy())).weights == {}


def test_a_budget_adds_no_validation(cohort: Path, tmp_path: Path) -> None:
    steps = []
    for until in (3, 5, 10):
        recipe = Followed()
        records = run(cohort, tmp_path, recipe, gains=recipe.gains, validate_every=4, until=until)
        steps += [r["step"] for r in records if r["event"] == "validation"]
    assert steps == [4, 8, 10]


class EndsUnpaired(Followed):
    """Whose second phase sees one dose alone."""

    def batch_spec(self, step: int) -> BatchSpec:
        return NEEDS if step < 6 else replace(NEEDS, images="source")

    def step(self, batch: Batch, step: int) -> Metrics:
        return super().step(replace(batch, target=batch.source), step)


def test_a_phase_without_pairs_is_not_validated(cohort: Path, tmp_path: Path) -> None:
    recipe = EndsUnpaired()
    records = run(cohort, tmp_path, recipe, gains=recipe.gains, validate_every=2, streams=("paired", "source"))
    assert [r["step"] for r in records if r["event"] == "validation"] == [2, 4, 6]


class EndsWithOthers(Followed):
    """A toy whose second phase sees sources of some patients beside targets of others."""

    def batch_spec(self, step: int) -> BatchSpec:
        return NEEDS if step < 6 else replace(NEEDS, images="unpaired")


def test_a_phase_that_restores_without_pairs_is_validated(cohort: Path, tmp_path: Path) -> None:
    recipe = EndsWithOthers()
    streams = ("paired", "source", "unpaired")
    records = run(cohort, tmp_path, recipe, gains=recipe.gains, validate_every=2, streams=streams)
    assert [r["step"] for r in records if r["event"] == "validation"] == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("crash_at", [3, 6, 9])
def test_all_habits_together_resume_bit_for_bit(cohort: Path, tmp_path: Path, crash_at: int) -> None:
    """Averages, schedule, turns and validation of real patches."""
    opened = open_cohort(cohort)
    config = EngineConfig(ema_decay=0.8, warm_up_steps=3, lr_decay="cosine", gradient_clipping=0.5)
    fed = FeedConfig(source=("low_drf4",))
    gains = Patches(opened, opened.cases[:1], fed, 3, rank=0, world=1, device=torch.device("cpu"))

    def trained(folder: str, crash_at: int | None = None) -> tuple[list[dict[str, Any]], Followed]:
        engines = Engines(plain_engines(config), config)
        recipe = Followed(make_engine=engines.make)
        chosen: dict[str, Any] = {"validate_every": 2, "augment": "flips_and_turns"}
        return run(cohort, tmp_path / folder, recipe, crash_at=crash_at, engines=engines, gains=gains, **chosen), recipe

    expected, straight = trained("straight")
    before, _ = trained("crashed", crash_at)
    after, resumed = trained("crashed")
    assert losses(before) | losses(after) == losses(expected)
    for name, value in straight.engine.state().items():
        assert torch.equal(value, resumed.engine.state()[name]), name
    found, wanted = best_of(after), best_of(expected)
    assert (found.step, found.gain_db) == (wanted.step, wanted.gain_db)
    assert all(torch.equal(value, found.weights[name]) for name, value in wanted.weights.items())


def test_what_is_scored_and_pictured_is_what_would_be_exported(cohort: Path, tmp_path: Path) -> None:
    config = EngineConfig(ema_decay=0.9)
    engines = Engines(plain_engine, config)
    recipe = Followed(make_engine=engines.make)
    seen = []

    def look(kind: str) -> None:
        exported = recipe.weights()
        same = all(torch.equal(p, exported[name]) for name, p in recipe.engine.module.named_parameters())
        seen.append((kind, same))

    def gains(synthesizer: Synthesizer) -> Tensor:
        look("validation")
        return torch.zeros(1, dtype=torch.float64)

    often: dict[str, Any] = {"validate_every": 5, "picture_every": 10}
    run(cohort, tmp_path, recipe, engines=engines, gains=gains, picture=lambda step, made: look("picture"), **often)
    assert seen == [("validation", True), ("validation", True), ("picture", True)]
    exported = recipe.weights()
    assert not all(torch.equal(p, exported[name]) for name, p in recipe.engine.module.named_parameters())
