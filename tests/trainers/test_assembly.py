"""Parts of systems, one by one; the systems' own tests show that they fit together."""

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Annotated, Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pairs import noisy, train
from torch import Tensor, nn

from storage.errors import InputError
from storage.ranges import Range
from trainers import assembly
from trainers.blocks import OfPairs, PatchGAN
from trainers.engine import plain_engine
from trainers.feed_config import FeedConfig
from trainers.losses import logistic_discriminator_loss
from trainers.recipe import Batch, BatchSpec, Engine, Followed, Metrics, Tiling


@dataclass(frozen=True, kw_only=True)
class Settings:
    kind: Literal["a", "b"] = "a"
    width: Annotated[int, Range(1)] = 4
    edges: Annotated[tuple[int, ...] | None, Range(2)] = None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kind": "c"}, "CFG_CHOICE odd.kind: 'c'; use one of a, b"),
        ({"width": 0}, "CFG_RANGE odd.width: 0; give 1 or more"),
        ({"edges": (3, 1)}, "CFG_RANGE odd.edges: (3, 1); give 2 or more"),
    ],
)
def test_choices_and_ranges_are_checked_as_they_are_declared(change: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as refusal:
        assembly.check_fields(Settings(**change), "odd")
    assert str(refusal.value) == text


def test_checks_across_fields_name_the_field_and_its_value() -> None:
    require = assembly.check_fields(Settings(edges=(2, 9)), "odd")
    require(True, "CFG_STAGE", "width", "never told")
    with pytest.raises(InputError) as refusal:
        require(False, "CFG_STAGE", "width", "use another")
    assert str(refusal.value) == "CFG_STAGE odd.width: 4; use another"


def test_a_ct_is_fed_alone_and_unscaled() -> None:
    assembly.check_ct_to_suv(FeedConfig(source=("ct",), suv_scale=1.0))
    with pytest.raises(InputError, match="CFG_SCALE"):
        assembly.check_ct_to_suv(FeedConfig(source=("ct",), suv_scale=2.0))
    with pytest.raises(InputError, match="CFG_INPUTS"):
        assembly.check_ct_to_suv(FeedConfig(source=("ct", "ct_2"), suv_scale=1.0))


def test_windows_that_pass_a_volume_hold_the_same_of_both_doses() -> None:
    for beyond in ("air", "mirror_any"):
        assembly.check_air_beyond(None, FeedConfig(beyond=beyond), {})
    with pytest.raises(InputError, match=r"CFG_CHOICE feed.beyond: 'mirror'"):
        assembly.check_air_beyond(None, FeedConfig(beyond="mirror"), {})


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 5), min_size=1, max_size=6))
def test_phases_follow_each_other(steps: dict[str, int]) -> None:
    phases = assembly.Phases(steps)
    names, ends = list(steps), list(accumulate(steps.values()))
    assert phases.num_steps == ends[-1]
    assert [phases.end(name) for name in names] == ends
    assert phases.starts == {n: a for n, a, b in zip(names, [0, *ends], ends, strict=False) if a < b}
    assert [phases.at(step) for step in range(ends[-1])] == [names[bisect_right(ends, s)] for s in range(ends[-1])]
    for outside in (-1, ends[-1]):
        with pytest.raises(ValueError, match=f"step {outside} is not one of {ends[-1]}"):
            phases.at(outside)


@given(st.integers(0, 10**7), st.integers(1, 10**4))
def test_steps_see_at_least_the_samples(samples: int, per_step: int) -> None:
    steps = assembly.steps_of(samples, per_step)
    assert steps * per_step >= samples
    assert (steps - 1) * per_step < samples


class Two(nn.Module):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, width), nn.BatchNorm1d(width)


def engine(network: nn.Module) -> Engine:
    return plain_engine(network, lambda parameters: torch.optim.Adam(parameters, lr=0.1))


def test_states_go_out_and_come_back() -> None:
    there, here = engine(Two()), engine(Two())
    named = assembly.present({"G": there, "D": None})
    assert named == {"G": there}
    state = assembly.states(named)
    assembly.load_states({"G": here}, {**state, "schedule": {}})
    assert all(torch.equal(value, here.state()[name]) for name, value in state["G"].items())


def test_weights_are_the_networks_state_dict() -> None:
    network = Two()
    expected = network.state_dict()
    found = assembly.weights_of(engine(network))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert assembly.weights_of(engine(network), under="first.").keys() == {"weight", "bias"}


def test_a_network_takes_over_weights_without_drawing_any() -> None:
    weights = Two(3).state_dict()
    before = torch.get_rng_state()
    network = assembly.with_weights(lambda: Two(3), weights, "weights of two")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    with pytest.raises(InputError, match="CKPT_CONFIG weights of two"):
        assembly.with_weights(lambda: Two(4), weights, "weights of two")
    with pytest.raises(InputError, match="CKPT_CONFIG"):
        assembly.with_weights(lambda: Two(3), {"first.weight": weights["first.weight"]}, "weights of two")


@given(st.tuples(*[st.integers(0, 2)] * 3))
def test_a_margin_is_cut_off_either_side(margin: tuple[int, int, int]) -> None:
    image = torch.arange(7.0 * 6 * 5).reshape(1, 1, 7, 6, 5)
    z, y, x = margin
    assert torch.equal(assembly.cropped(image, margin), image[:, :, z : 7 - z, y : 6 - y, x : 5 - x])


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return 2 * x


def test_windows_share_nothing_and_lose_their_halo() -> None:
    tiling = Tiling(tile=(2, 2, 2), halo=(0, 1, 2))
    synthesizer = assembly.windows(Doubled(), tiling)
    low = torch.rand(1, 1, 2, 4, 6, requires_grad=True)
    image = synthesizer(low, {})
    assert torch.equal(image, 2 * low[:, :, :, 1:3, 2:4])
    assert not image.requires_grad
    assert (synthesizer.tiling, synthesizer.context_batch, synthesizer.context(low, low)) == (tiling, None, {})
    assert math.prod(image.shape) == 8


# Several networks.


def several() -> assembly.Assembled:
    """Two networks trained one after the other: the second on what the first makes."""
    torch.manual_seed(0)
    engines = {name: plain_engine(nn.Conv3d(1, 1, 1), partial(torch.optim.SGD, lr=0.1)) for name in "AB"}
    phases = assembly.Phases({"a": 2, "b": 1})

    def update(batch: Batch, step: int) -> Metrics:
        x = batch.source
        if phases.at(step) == "b":
            with torch.no_grad(), engines["A"].frozen() as before:
                x = before(x)
        engine = engines[phases.at(step).upper()]
        loss = (engine(x) - batch.target).square().mean()
        engine.backward(loss)
        engine.step()
        return {"loss": loss}

    def inference(networks: Mapping[str, nn.Module]) -> assembly.WindowSynthesizer:
        return assembly.windows(nn.Sequential(*networks.values()), Tiling((4, 4, 4), (0, 0, 0)))

    spec = BatchSpec((4, 4, 4), (0, 0, 0), 1, {"body": 1.0})
    return assembly.Assembled(engines, update, spec, phases, {"A": "a", "B": "b"}, inference)


def test_a_network_is_used_from_the_phase_on_in_which_its_training_begins() -> None:
    recipe, batch = several(), noisy((4, 4, 4))
    a, b = (recipe.engines[name].module for name in "AB")
    expected = {0: [a], 1: [a], 2: [a, b]}
    for step, used in expected.items():
        train(recipe, batch, step, step + 1)
        assert {key.split(".")[0] for key in recipe.weights()} == set("AB"[: len(used)])
        assert torch.equal(recipe.synthesizer()(batch.source, {}), nn.Sequential(*used)(batch.source))
        resumed = several()
        resumed.load(recipe.state())
        assert resumed.weights().keys() == recipe.weights().keys()
    assert not any(value.requires_grad for value in recipe.step(batch, 2).values())
    assert isinstance(recipe, Followed)
    assert recipe.followed == "b"


def test_exported_networks_are_built_again_and_others_refused() -> None:
    builds = {"A": partial(nn.Conv3d, 1, 1, 1), "B": partial(nn.Conv3d, 1, 1, 1)}
    recipe = several()
    early = assembly.networks_of(recipe.weights(), builds, "weights")
    assert list(early) == ["A"]
    train(recipe, noisy((4, 4, 4)), 2, 3)
    weights = recipe.weights()
    both = assembly.networks_of(weights, builds, "weights")
    for name, network in both.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, weights[f"{name}.{key}"])
    for wrong in ({}, weights | {"C.weight": torch.zeros(1)}, weights | {"A.bias": torch.zeros(2)}):
        with pytest.raises(InputError, match="CKPT_CONFIG weights"):
            assembly.networks_of(wrong, builds, "weights")


def test_a_discriminator_is_updated_and_no_gradient_reaches_the_image() -> None:
    D = plain_engine(OfPairs(PatchGAN(2, width=2, strides=(2,))), partial(torch.optim.SGD, lr=0.1))
    condition, real, fake = torch.rand(3, 2, 1, 16, 16)
    fake.requires_grad_()
    before = {key: value.clone() for key, value in D.module.state_dict().items()}
    expected = logistic_discriminator_loss(*D.module(condition, real, fake)).detach()
    found = assembly.update_discriminator(D, condition, real, fake, logistic_discriminator_loss)
    assert torch.equal(found.detach(), expected)
    assert fake.grad is None
    assert all(not torch.equal(value, before[key]) for key, value in D.module.state_dict().items())
