"""S3PET's networks and losses: parameter counts, patches, masks, hand-worked numbers, wiring, gradients, padding."""

import itertools
import math

import pytest
import torch
from network_facts import count
from small_s3pet import V0, V2, small
from torch import Tensor, nn

from trainers.systems import s3pet
from trainers.systems.s3pet import Baseline, Bilateral, Config, Decoder, DsMAE, Encoder, MainBranch

PARTS = ("E_L", "E_S", "P_L", "P_S", "P_I", "M", "D_L", "D_S")

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def part(network: Bilateral, name: str) -> nn.Module:
    owner = network.main if hasattr(network.main, name) else network
    module = getattr(owner, name)
    assert isinstance(module, nn.Module)
    return module


def warmed(config: Config) -> Bilateral:
    """A network whose batch norm has seen images, in evaluation mode."""
    network = Bilateral(config)
    for _ in range(3):
        network(*torch.rand(2, 4, 1, config.window, config.window))
    return network.eval()


# Parameter counts and shapes.


def test_parameter_counts_are_those_of_the_reading() -> None:
    config = Config()
    with torch.device("meta"):
        assert count(Encoder(config)) == 7_123_584
        assert count(DsMAE(config)) == 7_148_608  # with the mask token and the head
        assert count(Decoder(768, config.decoder_channels)) == 2_157_537
        assert count(Bilateral(config)) == 19_153_602
        assert count(MainBranch(config)) == 9_724_641
        assert count(Baseline(Config(**V0))) == 8_396_385
        assert count(Bilateral(Config(**V2))) == 19_005_762


def test_shapes_at_full_size() -> None:
    config = Config(blocks=1)
    tokens = Encoder(config)(torch.rand(1, 1, 128, 128))
    assert tokens.shape == (1, 256, 384)
    assert Decoder(768, config.decoder_channels)(tokens, tokens).shape == (1, 1, 128, 128)


# Patches.


def test_unpatchify_inverts_patchify_and_tokens_lie_row_by_row() -> None:
    x = torch.rand(2, 1, 128, 128)
    patches = s3pet.patchify(x, 8)
    assert patches.shape == (2, 256, 64)
    assert torch.equal(s3pet.unpatchify(patches), x)
    for n in (0, 17, 255):
        y, z = 8 * (n // 16), 8 * (n % 16)
        assert torch.equal(patches[1, n], x[1, 0, y : y + 8, z : z + 8].flatten())


def test_positions_tell_every_token_from_every_other() -> None:
    found = s3pet.positions(16, 384, torch.device("cpu"))
    assert found.shape == (256, 384)
    assert torch.pdist(found).min() > 0.5
    row, column = found[:, :192].unflatten(0, (16, 16)), found[:, 192:].unflatten(0, (16, 16))
    assert torch.equal(row, row[:, :1].expand_as(row))
    assert torch.equal(column, column[:1].expand_as(column))


# Masks.


@pytest.mark.parametrize(("ratio", "masked"), [(Config().mask_low, 192), (Config().mask_full, 154), (0.0, 0)])
def test_exactly_the_share_is_masked_differently_for_every_image(ratio: float, masked: int) -> None:
    torch.manual_seed(5)
    mask = s3pet.draw_mask(8, 256, ratio, torch.device("cpu"))
    assert (mask.sum(1) == masked).all()
    torch.manual_seed(5)
    assert torch.equal(mask, s3pet.draw_mask(8, 256, ratio, torch.device("cpu")))
    if masked:
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(mask, 2))
        share = s3pet.draw_mask(2000, 256, ratio, torch.device("cpu")).float().mean(0)
        assert (share - masked / 256).abs().max() < 0.06  # every token alike


def test_nothing_leaks_from_under_the_mask_and_the_visible_reach_it() -> None:
    network = DsMAE(small())
    x, masked = torch.rand(1, 1, 32, 32), torch.zeros(1, 16, dtype=torch.bool)
    masked[0, [3, 7, 12]] = True
    hidden = s3pet.unpatchify(masked[..., None].expand(-1, -1, 64).float())
    before = network(x, masked)
    assert torch.equal(network(x + hidden * torch.rand_like(x), masked), before)
    other = x.clone()
    other[0, 0, 0, 0] += 1  # in token 0, visible
    change = s3pet.patchify((network(other, masked) - before).abs(), 8)[masked]
    assert (change.amax(1) > 0).all()
    nothing = torch.zeros_like(masked)
    assert torch.equal(network(x, nothing), s3pet.unpatchify(network.head(network.encoder(x))))


# Losses.


def test_js_divergence_of_known_distributions() -> None:
    ln3 = math.log(3)
    u, v = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[ln3, 0.0]]])
    u.requires_grad_()
    v.requires_grad_()
    js = s3pet.js_divergence(u, v)
    assert js.item() == pytest.approx(0.033822, abs=1e-6)
    js.backward()
    assert v.grad is not None
    assert u.grad is not None
    torch.testing.assert_close(v.grad, torch.tensor([[[0.0551, -0.0551]]]), atol=5e-5, rtol=0)
    torch.testing.assert_close(u.grad, torch.tensor([[[-0.0639, 0.0639]]]), atol=5e-5, rtol=0)
    two = s3pet.js_divergence(torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]), torch.tensor([[[ln3, 0.0], [4.0, 4.0]]]))
    assert two.item() == pytest.approx(0.016911, abs=1e-6)


def test_js_divergence_is_symmetric_bounded_and_finite_at_extremes() -> None:
    u, v = torch.randn(2, 3, 5, 8).unbind()
    js = s3pet.js_divergence(u, v)
    assert 0 < js < math.log(2)
    assert s3pet.js_divergence(v, u).item() == pytest.approx(js.item(), rel=1e-5)
    assert s3pet.js_divergence(u, u).item() == pytest.approx(0, abs=1e-6)
    assert s3pet.js_divergence(u + 3, v).item() == pytest.approx(js.item(), rel=1e-4)
    far = torch.tensor([[[1e4, -1e4]]], requires_grad=True)
    limit = s3pet.js_divergence(far, -far.detach())
    assert limit.item() == pytest.approx(math.log(2), rel=1e-6)
    limit.backward()
    assert far.grad is not None
    assert far.grad.isfinite().all()
    half = s3pet.js_divergence(u.bfloat16(), v.bfloat16())
    assert half.dtype == torch.float32


def test_loss_arithmetic() -> None:
    terms = {
        name: torch.tensor(v) for name, v in {"align": 0.033822, "transfer": 0.016911, "low": 0.1, "full": 0.05}.items()
    }
    loss = s3pet.total(Config(), terms)
    assert loss.item() == pytest.approx(0.800733)
    rec = 5 * (0.1 + 1 * 0.05)
    assert (s3pet.total(Config(lambda_rec=10.0), terms) - loss).item() == pytest.approx(rec)
    assert (s3pet.total(Config(gamma=3.0), terms) - loss).item() == pytest.approx(5 * 2 * 0.05)
    assert s3pet.total(Config(**V0), {"full": torch.tensor(0.05)}).item() == pytest.approx(0.25)
    x_l, x_s = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
    tokens = torch.rand(4, 1, 3, 8)
    outputs = (x_s + torch.tensor([0.02, -0.08]), x_l - torch.tensor([0.05, 0.15]), *tokens)
    found = s3pet.swap_losses(Config(), outputs, x_l, x_s)
    assert found["low"].item() == pytest.approx(0.1)
    assert found["full"].item() == pytest.approx(0.05)


def test_under_bf16_losses_stay_fp32_and_close() -> None:
    config = small()
    network = Bilateral(config)
    x_l, x_s = torch.rand(2, 4, 1, 32, 32)
    exact = s3pet.swap_losses(config, network(x_l, x_s), x_l, x_s)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = tuple(t.float() for t in network(x_l, x_s))
    for name, value in s3pet.swap_losses(config, rounded, x_l, x_s).items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact[name].item(), rel=0.05)


# Wiring.


class Scaled(nn.Module):
    def __init__(self, factor: float, offset: float = 0.0) -> None:
        super().__init__()
        self.factor, self.offset = factor, offset

    def forward(self, e: Tensor) -> Tensor:
        return self.factor * e + self.offset


class Seen(nn.Module):
    """A decoder that shows what it is given."""

    def forward(self, *tokens: Tensor) -> Tensor:
        return torch.cat(tokens, dim=2)


@pytest.mark.parametrize(("transfer", "low", "full"), [(True, (4, 2), (3, 4)), (False, (4, 30), (3, 2))])
def test_wiring(transfer: bool, low: tuple[float, ...], full: tuple[float, ...]) -> None:
    network = Bilateral(small(transfer=transfer))
    main = network.main
    main.E_L, network.E_S = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    main.P_L, network.P_S, main.P_I = Scaled(1), Scaled(10), Scaled(1, 1)  # type: ignore[assignment]
    main.D_S, network.D_L = Seen(), Seen()  # type: ignore[assignment]
    if transfer:
        main.M = Scaled(2)  # type: ignore[assignment]
    e_l, e_s = torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 3.0)
    xh_s, xh_l, l_di, s_di, s_ds, sh_ds = (t.flatten().tolist() for t in network(e_l, e_s))
    assert (tuple(xh_l), tuple(xh_s)) == (low, full)
    assert (l_di, s_di, s_ds, sh_ds) == ([3], [4], [30], [4 if transfer else 2])
    assert tuple(main(e_l).flatten().tolist()) == full  # inference


@pytest.mark.parametrize("changes", [{}, V2, V0])
def test_a_residual_starts_at_the_low_dose_and_moves_away_from_it(changes: dict[str, bool]) -> None:
    config = small(residual="low", **changes)
    network = Bilateral(config) if config.decouple else Baseline(config)
    low, full = torch.rand(2, 3, 1, config.window, config.window)
    image = network(low, full)[0] if config.decouple else network(low)
    assert torch.equal(image, low)
    (image - full).square().mean().backward()
    decoder = network.main.D_S if isinstance(network, Bilateral) else network.D_S
    assert all(p.grad is not None and p.grad.any() for p in decoder.layers[-1].parameters())
    published = small(**changes)
    assert count(network) == count(Bilateral(published) if published.decouple else Baseline(published))


def test_the_swapped_tokens_are_decoded_beside_the_transferred_ones() -> None:
    config = small(also_decode_swapped=True)
    low, full = torch.rand(2, 3, 1, config.window, config.window)
    torch.manual_seed(0)
    network = Bilateral(config)
    outputs = network(low, full)
    torch.manual_seed(0)
    published = Bilateral(small())
    assert all(map(torch.equal, published(low, full), outputs[:-1]))
    _, _, l_di, _, s_ds, _, swapped = outputs
    torch.testing.assert_close(network.main.image(low, l_di, s_ds), swapped)
    terms = s3pet.swap_losses(config, outputs, low, full)
    torch.testing.assert_close(terms["swapped"], (swapped - full).abs().mean())
    without = {name: value for name, value in terms.items() if name != "swapped"}
    added = s3pet.total(config, terms) - s3pet.total(config, without)
    torch.testing.assert_close(added, config.lambda_rec * config.gamma * terms["swapped"])
    terms["swapped"].backward()
    assert network.P_S.weight.grad is not None
    assert network.P_S.weight.grad.any()  # s_ds has the image as a second teacher
    assert count(network) == count(published)


def test_equal_branches_have_nothing_to_align_or_to_transfer() -> None:
    network = Bilateral(small())
    x = torch.rand(2, 1, 32, 32)
    network.E_S.load_state_dict(network.main.E_L.state_dict())
    _, _, l_di, s_di, s_ds, sh_ds = network(x, x)
    assert torch.equal(l_di, s_di)  # one P_I
    assert s3pet.js_divergence(l_di, s_di).item() == pytest.approx(0, abs=1e-6)
    assert s3pet.js_divergence(s_ds, sh_ds) > 1e-3
    network.P_S.load_state_dict(network.main.P_L.state_dict())
    network.main.M = nn.Identity()
    _, _, _, _, s_ds, sh_ds = network(x, x)
    assert torch.equal(s_ds, sh_ds)


# Gradients, entry by entry.


RECEIVES = {
    "align": {"E_L", "E_S", "P_I"},
    "transfer": {"E_L", "E_S", "P_L", "P_S", "M"},
    "low": {"E_L", "E_S", "P_L", "P_I", "D_L"},
    "full": {"E_L", "P_L", "P_I", "M", "D_S"},
}


@pytest.mark.parametrize("term", RECEIVES)
def test_every_term_reaches_exactly_the_networks_of_the_table(term: str) -> None:
    config = small()
    network = Bilateral(config)
    x_l, x_s = torch.rand(2, 2, 1, 32, 32)
    s3pet.swap_losses(config, network(x_l, x_s), x_l, x_s)[term].backward()
    reached = {
        name for name in PARTS if any(p.grad is not None and p.grad.any() for p in part(network, name).parameters())
    }
    assert reached == RECEIVES[term]


def test_every_parameter_gets_a_gradient_in_the_first_step() -> None:
    for changes in ({}, V2, V0):
        config = small(**changes)
        network: nn.Module = Bilateral(config) if config.decouple else Baseline(config)
        x_l, x_s = torch.rand(2, 2, 1, 32, 32)
        outputs = network(x_l, x_s) if config.decouple else (network(x_l),)
        s3pet.total(config, s3pet.swap_losses(config, outputs, x_l, x_s)).backward()
        assert [name for name, p in network.named_parameters() if p.grad is None] == []


# Inference.


def test_inference_is_the_main_output_of_the_training_graph_and_ignores_full_dose() -> None:
    network = warmed(small())
    x_l, x_s, other = torch.rand(3, 2, 1, 32, 32)
    assert torch.equal(network.main(x_l), network(x_l, x_s)[0])
    network.train()
    assert torch.equal(network(x_l, x_s)[0], network(x_l, other)[0])


def test_zero_padding_reaches_22_pixels_into_a_decoder_s_image() -> None:
    decoder = Decoder(16, (8, 8, 8, 8))
    tokens = torch.rand(2, 32 * 32, 16)
    decoder(tokens)
    decoder.eval()
    whole = decoder(tokens)[..., 64:192, 64:192]
    crop = decoder(tokens.unflatten(1, (32, 32))[:, 8:24, 8:24].flatten(1, 2))
    differs = ((whole - crop).abs() > 1e-5).any(0)[0]
    inner = torch.zeros(128, 128, dtype=torch.bool)
    inner[22:-22, 22:-22] = True
    assert not (differs & inner).any()
    assert differs[21, 21:-21].any()
