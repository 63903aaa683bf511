"""What systems of two directions share: the pool, the losses, the schedule, and that every network learns its own."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from trainers.cycle import Discriminators, Generators, ImagePool, cycle_losses

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def images(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


def numbers(given: torch.Tensor) -> list[float]:
    found: list[float] = given[:, 0, 0, 0].tolist()
    return found


def test_a_pool_gives_new_images_until_it_is_full_and_then_each_at_most_once() -> None:
    pool = ImagePool(4)
    assert numbers(pool.exchange(images(0, 1, 2))) == [0, 1, 2]
    assert numbers(pool.exchange(images(3))) == [3]
    given: list[float] = []
    held = [0.0, 1.0, 2.0, 3.0]
    for new in range(4, 204, 2):
        given += numbers(pool.exchange(images(new, new + 1)))
        held += [new, new + 1]
    old = sum(number < 4 + 2 * place for place, number in enumerate(given[::2]))
    assert 30 < old < 70, "half of what is given is kept from before"
    assert len(given) == 200
    assert sorted(given + numbers(pool.images)) == held, "none is lost, none is given twice"


def test_no_pool_gives_what_it_gets_and_no_image_takes_a_gradient() -> None:
    new = images(1, 2).requires_grad_()
    for size in (0, 2):
        given = ImagePool(size).exchange(new)
        assert numbers(given) == [1, 2]
        assert not given.requires_grad


def test_a_pool_goes_on_as_it_was() -> None:
    pool, again = ImagePool(3), ImagePool(3)
    assert pool.state()["images"].numel() == 0
    again.load(pool.state())
    for new in range(6):
        pool.exchange(images(new))
    again.load(pool.state())
    for new in range(6, 20):
        found = []
        for one in (pool, again):
            torch.manual_seed(new)
            found.append(numbers(one.exchange(images(new))))
        assert found[0] == found[1]
    assert torch.equal(pool.state()["images"], again.state()["images"])


def test_ranks_share_a_pool_out_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were two ranks, and each were this one in turn."""
    whole = {"images": images(0, 1, 2, 3)}
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    for rank, expected in ((0, [0, 1]), (1, [2, 3])):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        pool = ImagePool(4)
        assert pool.room == 2
        pool.load(whole)
        assert numbers(pool.images) == expected
    small = ImagePool(2)
    small.load(whole)
    assert numbers(small.images) == [2], "no more than there is room for"


class Times(nn.Module):
    """Multiplies by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


def test_the_terms_by_hand() -> None:
    """G doubles, F trebles: low 1 -> 2 -> 6, full 5 -> 15 -> 30; identity: G(full) = 10, F(low) = 3."""
    low, full = images(1), images(5)
    made = Generators(Times(2), Times(3), identity=True)(low, full)
    assert [float(image.mean()) for image in made] == [2, 15, 6, 30, 10, 3]
    terms = cycle_losses(made, low, full)
    assert {name: float(value) for name, value in terms.items()} == {"cycle": 5 + 25, "identity": 5 + 2}
    without = Generators(Times(2), Times(3), identity=False)(low, full)
    assert len(without) == 4
    assert cycle_losses(without, low, full).keys() == {"cycle"}


def test_each_discriminator_scores_its_dose() -> None:
    scores = Discriminators(Times(2), Times(-1))(images(1), images(5))
    assert [float(score.mean()) for score in scores] == [2, -5]
