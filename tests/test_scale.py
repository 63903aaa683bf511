"""The simulation of a training does what can be worked out by hand, and its page says what was found."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.scale.page import KEPT, PAGE, STEPS, Large, costs, needs, outcome, page, variants
from benchmarks.scale.simulation import Draw, Setup, replayed, ring_all_reduce_s, simulate, spread_like


def constant(seconds: float, ranks: int = 1) -> Draw:
    return lambda step: np.full(ranks, seconds)


def test_a_feed_faster_than_the_step_costs_its_first_batch_alone() -> None:
    found = simulate(Setup(), 100, step_s=constant(1.0), read_s=constant(0.5))
    assert found.total_s == pytest.approx(100 * 1.0 + 0.5)
    assert found.wait_s == pytest.approx(0.5)
    assert found.step_s == pytest.approx(100.0)


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_a_feed_slower_than_the_step_sets_the_time(readers: int) -> None:
    setup = Setup(readers=readers, read_ahead=readers)
    found = simulate(setup, 300, step_s=constant(0.1), read_s=constant(3.0))
    # As many batches as readers are ready at a time, and as many steps follow the last of them.
    assert found.total_s == pytest.approx(300 * 3.0 / readers + readers * 0.1)
    assert found.wait_s == pytest.approx(found.total_s - 300 * 0.1)


def test_without_reading_ahead_nothing_overlaps() -> None:
    found = simulate(Setup(read_ahead=0), 10, step_s=constant(2.0), read_s=constant(1.0))
    assert found.total_s == pytest.approx(10 * 3.0)


def test_a_storage_slower_than_the_step_sets_the_time_whatever_the_readers() -> None:
    setup = Setup(ranks=4, ranks_per_node=2, batch_bytes=50.0, storage_bytes_per_s=100.0, readers=8, read_ahead=8)
    found = simulate(setup, 200, step_s=constant(0.1, 4), read_s=constant(0.0, 4))
    assert found.total_s == pytest.approx(200 * 4 * 50.0 / 100.0 + 0.1)
    narrow = replace(setup, node_bytes_per_s=20.0)
    assert narrow.transfer_s == pytest.approx(2 * 50.0 / 20.0)


def test_latency_is_hidden_by_reading_side_by_side_and_not_by_one_reader() -> None:
    slow = Setup(latency_s=1.0, readers=1, read_ahead=4)
    assert simulate(slow, 50, step_s=constant(0.5), read_s=constant(0.0)).total_s == pytest.approx(50 * 1.0 + 0.5)
    hidden = replace(slow, readers=4)
    assert simulate(hidden, 50, step_s=constant(0.5), read_s=constant(0.0)).total_s == pytest.approx(1.0 + 50 * 0.5)


def _random(seed: int) -> tuple[Setup, Draw, Draw]:
    rng = np.random.default_rng(seed)
    setup = Setup(
        ranks=4,
        ranks_per_node=2,
        readers=int(rng.integers(1, 4)),
        read_ahead=int(rng.integers(0, 5)),
        batch_bytes=float(rng.uniform(0, 10)),
        storage_bytes_per_s=float(rng.uniform(5, 50)),
        node_bytes_per_s=float(rng.uniform(5, 50)),
        latency_s=float(rng.uniform(0, 0.5)),
        all_reduce_s=float(rng.uniform(0, 0.2)),
        save_every=int(rng.integers(1, 9)),
        save_s=float(rng.uniform(0, 2)),
        write_s=float(rng.uniform(0, 5)),
    )
    measured = rng.gamma(4.0, 0.25, 20)
    return setup, spread_like(measured, 1.0, 4, seed), spread_like(measured, float(rng.uniform(0, 3)), 4, seed + 1)


FASTER: dict[str, Callable[[Setup], Setup]] = {
    "storage": lambda s: replace(s, storage_bytes_per_s=1.3 * s.storage_bytes_per_s),
    "network of a node": lambda s: replace(s, node_bytes_per_s=1.3 * s.node_bytes_per_s),
    "readers": lambda s: replace(s, readers=s.readers + 1),
    "read ahead": lambda s: replace(s, read_ahead=s.read_ahead + 1),
    "latency": lambda s: replace(s, latency_s=0.7 * s.latency_s),
    "all-reduce": lambda s: replace(s, all_reduce_s=0.7 * s.all_reduce_s),
    "writing": lambda s: replace(s, write_s=0.7 * s.write_s),
}


@pytest.mark.parametrize("what", FASTER)
def test_nothing_that_becomes_faster_makes_a_training_slower(what: str) -> None:
    for seed in range(20):
        setup, step_s, read_s = _random(seed)
        before = simulate(setup, 40, step_s=step_s, read_s=read_s)
        after = simulate(FASTER[what](setup), 40, step_s=step_s, read_s=read_s)
        assert after.total_s <= before.total_s + 1e-9


def test_the_parts_sum_to_the_total() -> None:
    for seed in range(20):
        setup, step_s, read_s = _random(seed)
        found = simulate(setup, 40, step_s=step_s, read_s=read_s)
        parts = found.wait_s + found.step_s + found.behind_s + found.all_reduce_s + found.save_s
        assert parts == pytest.approx(found.total_s)


def test_a_checkpoint_in_the_background_costs_nothing_until_it_takes_longer_than_its_interval() -> None:
    setup = Setup(save_every=10, write_s=9.9)
    last = simulate(setup, 100, step_s=constant(1.0), read_s=constant(0.0))
    assert last.total_s == pytest.approx(100.0 + 9.9)  # the last one has no steps to hide behind
    longer = simulate(replace(setup, write_s=12.0), 100, step_s=constant(1.0), read_s=constant(0.0))
    # Every later checkpoint waits for the one before it: 12 s each, instead of 10 s of steps.
    assert longer.total_s == pytest.approx(10.0 + 10 * 12.0)
    assert longer.save_s == pytest.approx(9 * 2.0 + 12.0)


def test_a_checkpoint_in_the_foreground_costs_all_of_itself() -> None:
    setup = Setup(save_every=10, save_s=3.0)
    found = simulate(setup, 25, step_s=constant(1.0), read_s=constant(0.0))
    assert found.total_s == pytest.approx(25.0 + 3 * 3.0)  # after steps 10, 20 and the last one
    assert found.save_s == pytest.approx(9.0)


def test_a_checkpoint_lets_the_feed_get_ahead() -> None:
    setup = Setup(readers=1, read_ahead=2, save_every=2, save_s=10.0)
    found = simulate(setup, 4, step_s=constant(1.0), read_s=constant(2.0))
    # Batches are ready at 2, 4, 6, and, asked for when step 1 begins at 4, at 8; the checkpoint ends at 5 + 10.
    assert found.wait_s == pytest.approx(2.0 + 1.0)
    assert found.total_s == pytest.approx(5.0 + 10.0 + 2.0 + 10.0)


def test_ranks_wait_for_the_slowest_of_them() -> None:
    times = np.array([[1.0, 3.0], [2.0, 1.0]])
    found = simulate(Setup(ranks=2, all_reduce_s=0.5), 2, step_s=lambda s: times[s], read_s=constant(0.0, 2))
    assert found.total_s == pytest.approx(3.0 + 2.0 + 2 * 0.5)
    assert found.behind_s == pytest.approx((2.0 + 0.0 + 0.0 + 1.0) / 2)


def test_a_ring_sends_every_part_but_its_own_twice() -> None:
    assert ring_all_reduce_s(1e9, 64, 50e9, 0.0) == pytest.approx(2 * 63 / 64 / 50)
    assert ring_all_reduce_s(1e9, 64, math.inf, 1e-5) == pytest.approx(2 * 63 * 1e-5)


def test_times_are_spread_as_the_measured_ones_and_the_same_every_time() -> None:
    measured = np.array([1.0, 2.0, 3.0])
    draw = spread_like(measured, 10.0, 1000, seed=3)
    assert set(np.round(draw(0), 9)) == {5.0, 10.0, 15.0}
    np.testing.assert_array_equal(draw(5), draw(5))
    assert (draw(0) != draw(1)).any()
    np.testing.assert_array_equal(replayed(measured)(1), [2.0])


def test_the_page_is_made_of_the_kept_results() -> None:
    assert PAGE.read_text() == page(json.loads(KEPT.read_text()))


def _parts(**changed: dict[str, float]) -> dict[str, dict[str, float]]:
    ample = {
        "patches": {"per_core_s": 1e6, "bytes": 1e6},
        "pairs": {"per_core_s": 1e6},
        "checkpoint": {"weights": 1e6, "save_s": 1e-3, "copy_s": 1e-4},
        "engine": {"added_s": 1e-4},
    }
    return {name: {**told, **changed.get(name, {})} for name, told in ample.items()}


def test_what_breaks_first_is_what_is_shortest() -> None:
    large = Large(pairs_per_s=100.0, pairs_per_step=10, storage_bytes_per_s=6.4e9)
    order = needs(large, _parts())
    # 64 GPUs x 200 patches a second x 1 MB is twice what the storage gives.
    assert (order[0].part, order[0].short) == ("shared storage", pytest.approx(2.0))
    slow = needs(large, _parts(**{"pairs": {"per_core_s": 12.5}}))
    assert (slow[0].part, slow[0].short) == ("loader of a worker, two threads at best", pytest.approx(4.0))


def test_what_a_step_pays_by_hand() -> None:
    large = Large(save_every=100, link_bytes_per_s=1e9, link_s=0.0)
    first, second, _ = costs(large, _parts(checkpoint={"weights": 16e6, "save_s": 2.0}))
    assert (first.per_step_s, second.per_step_s) == (pytest.approx(2 * 63 / 64 * 0.064), pytest.approx(0.02))


def test_the_large_training_is_as_fast_as_its_shortest_part() -> None:
    large = Large(pairs_per_s=100.0, pairs_per_step=10, storage_bytes_per_s=6.4e9)
    setup, read_s = next(iter(variants(large, _parts()).values()))
    found = outcome(setup, read_s, large.step_s, [1.0, 1.0])
    assert STEPS * 64 * 10 / found.total_s == pytest.approx(64 * 100 / 2.0, rel=1e-2)


def test_no_change_makes_the_large_training_slower() -> None:
    large = Large()
    told = _parts(**{"pairs": {"per_core_s": 60.0}, "checkpoint": {"save_s": 1.0}})
    totals = [
        outcome(setup, read_s, large.step_s, [0.9, 1.0, 1.1]).total_s
        for setup, read_s in variants(large, told).values()
    ]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] > 2 * totals[-1]
