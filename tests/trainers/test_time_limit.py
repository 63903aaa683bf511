"""Work in pieces within a time limit: it ends before a piece that might not be ready, and every command makes one."""

import pytest

from trainers.time_limit import END_S, SPARE, UNMEASURED_SAVE_S, OutOfTimeError, Pieces, TimeLimit


class Clock:
    """A time that goes on only when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_piece_is_begun_only_where_the_longest_one_would_end_in_time() -> None:
    clock = Clock()
    limit = TimeLimit(1000.0, clock)
    pieces = Pieces(limit, made=True)
    for took_s in (100.0, 300.0, 50.0):
        pieces.begin()
        clock.now_s += took_s
    # The longest took 300 s; 550 s are left.
    pieces.begin()
    clock.now_s = 1000.0 - SPARE * 300.0 - END_S - 0.1
    pieces.begin()
    clock.now_s += 0.2
    with pytest.raises(OutOfTimeError):
        pieces.begin()


def test_before_one_was_measured_a_piece_is_taken_to_be_short() -> None:
    clock = Clock()
    pieces = Pieces(TimeLimit(100.0, clock), made=True)
    clock.now_s = 100.0 - SPARE * UNMEASURED_SAVE_S - END_S + 0.1
    with pytest.raises(OutOfTimeError):
        pieces.begin()


def test_the_first_piece_of_a_command_is_made_and_none_is_refused_without_a_limit() -> None:
    clock = Clock()
    pieces = Pieces(TimeLimit(-5.0, clock))
    assert not pieces.made
    pieces.begin()
    assert pieces.made
    with pytest.raises(OutOfTimeError):
        pieces.begin()
    endless = Pieces(None, made=True)
    for _ in range(3):
        endless.begin()
