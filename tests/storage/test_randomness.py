"""A key is its numbers: the same integers give the same draws, another integer gives others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.randomness import Counts, Stream, generator


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=4))
def test_a_key_is_its_numbers(key: list[int]) -> None:
    first, again = generator(*key), generator(*key)
    assert (first.integers(2**62, size=4) == again.integers(2**62, size=4)).all()
    other = generator(*key, 1)
    assert (generator(*key).integers(2**62, size=4) != other.integers(2**62, size=4)).any()


@given(st.sampled_from([*Stream, *Counts]), st.integers(0, 2**31))
def test_a_named_stream_gives_the_numbers_of_its_bare_integer(stream: int, seed: int) -> None:
    bare = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, int(stream)))))
    assert (generator(seed, stream).integers(2**62, size=4) == bare.integers(2**62, size=4)).all()


@pytest.mark.parametrize(("seed", "numbers"), [(0, [906, 523, 966, 643]), (20, [575, 306, 901, 199])])
def test_the_numbers_of_a_key_never_change(seed: int, numbers: list[int]) -> None:
    assert generator(seed, Stream.SPLIT).integers(1000, size=4).tolist() == numbers


def test_values_of_streams_never_change() -> None:
    assert [int(stream) for stream in Stream] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0x9E7]
    assert [int(counts) for counts in Counts] == [0, 1, 2]
