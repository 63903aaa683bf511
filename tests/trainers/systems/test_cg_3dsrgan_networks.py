"""CG-3DSRGAN's networks and losses: parameter counts, shapes, hand-worked numbers, gradients, norms, reach, classes."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from network_facts import count
from small_cg_3dsrgan import build, make_batch, module, perturb, small
from torch import Tensor

from storage.errors import InputError
from trainers.systems import cg_3dsrgan
from trainers.systems.cg_3dsrgan import Config

pytestmark = pytest.mark.usefixtures("one_thread", "small_autoencoder", "seeded")


# Counts.


def conv(k: int, dim: int, before: int, after: int, bias: bool) -> int:
    return int(k**dim) * before * after + (after if bias else 0)


def unet(dim: int, k: int, widths: list[int], image: int, bias: bool) -> int:
    """pix2pix's U-Net by arithmetic; ``bias``: of the convolutions before a norm, too."""
    n = len(widths)
    total = 0
    for level, (before, after) in enumerate(zip([image, *widths], widths, strict=False)):
        normed = 0 < level < n - 1
        total += conv(k, dim, before, after, bias) + (2 * after if normed else 0)
    for level in range(n):
        before = widths[level] * (1 if level == n - 1 else 2)
        after = widths[level - 1] if level else image
        total += conv(k, dim, before, after, bias or level == 0) + (2 * after if level else 0)
    return total


def patch_discriminator(dim: int, image: int, bias: bool) -> int:
    widths = [image, 64, 128, 256, 512]
    total = sum(conv(4, dim, a, b, bias or a == image) for a, b in itertools.pairwise(widths))
    return total + 2 * (128 + 256 + 512) + conv(4, dim, 512, 1, True)


def test_counts_follow_from_pix2pix_with_only_the_stated_changes() -> None:
    assert unet(2, 4, [64, 128, 256, 512, 512, 512, 512, 512], 3, bias=False) == 54_413_955  # unet_256
    assert patch_discriminator(2, 6, bias=False) == 2_768_705
    assert unet(3, 3, [64, 128, 256, 512, 512], 1, bias=True) == 28_101_697
    assert patch_discriminator(3, 2, bias=True) == 11_053_761
    with torch.device("meta"):
        G = cg_3dsrgan.generator(Config())
        D = cg_3dsrgan.Discriminator(64)
    head = count(G.mlnet.head)
    assert (count(G.mlnet) - head, head) == (28_101_697, 132_613)
    assert (count(G.contextual), count(G), count(D)) == (140_161, 28_374_471, 11_053_761)


def test_narrow_counts() -> None:
    assert count(cg_3dsrgan.MLNet(4, 8, 0)) == 110_437
    assert count(cg_3dsrgan.Discriminator(4)) == 45_741
    assert count(cg_3dsrgan.ContextualNet(8)) == 9_121
    for classes, head in ((3, 132_099), (6, 132_870)):
        with torch.device("meta"):
            assert count(cg_3dsrgan.MLNet(64, 256, classes).head) == head


# Shapes.


def test_shapes() -> None:
    G = cg_3dsrgan.generator(small())
    for shape in ((32, 32, 32), (64, 32, 96)):
        coarse, logits, refined = G(torch.rand(2, 1, *shape))
        assert coarse.shape == refined.shape == (2, 1, *shape)
        assert logits.shape == (2, 5)
    with pytest.raises(ValueError, match="multiples of 32"):
        G(torch.rand(2, 1, 32, 32, 48))
    D = cg_3dsrgan.Discriminator(2)
    for edge, scores in ((32, 2), (64, 6), (96, 10)):
        x = torch.rand(2, 1, edge, edge, edge)
        assert [s.shape for s in D(x, x, x)] == [(2, 1, scores, scores, scores)] * 2


# Hand-worked numbers of eq. 1, 2, 4 and 5 (eq. 3 in test_perceptual), and who learns from which.


def test_hand_worked_losses() -> None:
    y1 = torch.tensor([1.0, 2.0, 0.5, 0.0], requires_grad=True)
    l1 = 300 * F.l1_loss(y1, torch.tensor([1.5, 1.0, 0.5, 0.25]))
    l1.backward()
    assert l1.item() == 131.25
    assert y1.grad is not None
    assert y1.grad.tolist() == [-75, 75, 0, -75]

    z = torch.tensor([[2.0, 0, 0, 0, 0]] * 2, requires_grad=True)
    both = cg_3dsrgan.class_loss(z, torch.tensor([0, 1]), torch.ones(2))
    assert both.item() == pytest.approx(1.432654, abs=2e-6)
    assert cg_3dsrgan.class_loss(z, torch.tensor([0, 1]), torch.tensor([1.0, 0])).item() == pytest.approx(
        0.432654, abs=2e-6
    )
    assert cg_3dsrgan.class_loss(torch.zeros(1, 5), torch.tensor([3]), torch.ones(1)).item() == pytest.approx(1.609438)
    assert cg_3dsrgan.class_loss(z, torch.tensor([0, 1]), torch.zeros(2)).item() == 0
    (gradient,) = torch.autograd.grad(cg_3dsrgan.class_loss(z[:1], torch.tensor([0]), torch.ones(1)), z)
    torch.testing.assert_close(gradient[0], torch.tensor([0.648786 - 1, *[0.087804] * 4]), atol=1e-6, rtol=0)

    real, fake = torch.tensor([0.8, 0.4]), torch.tensor([0.3, -0.1])
    assert cg_3dsrgan.discriminator_loss(real, fake).item() == pytest.approx(0.25)
    adversarial = cg_3dsrgan.adversarial_loss(fake)
    assert adversarial.item() == pytest.approx(0.85)
    c = Config()
    terms = (l1.item() / 300, both.item(), 4.5, adversarial.item())
    total = sum(w * t for w, t in zip((c.lambda_l1, c.lambda_class, c.lambda_perceptual, 1.0), terms, strict=True))
    assert total == pytest.approx(191.42654, abs=2e-5)


@pytest.mark.parametrize("detach", [False, True])
def test_gradients_reach_exactly_the_listed_networks(detach: bool) -> None:
    recipe = build(small(detach_coarse=detach))
    perturb(recipe.M.module)
    assert recipe.D is not None
    G, batch = module(recipe), make_batch(0)

    def reached(loss: Tensor) -> set[str]:
        for p in (*G.parameters(), *recipe.D.module.parameters()):
            p.grad = None
        loss.backward()
        parts: dict[str, Any] = {"mlnet.down": G.mlnet.down, "mlnet.up": G.mlnet.up, "mlnet.head": G.mlnet.head}
        parts |= {"contextual": G.contextual, "D": recipe.D.module}
        return {
            name for name, part in parts.items() if any(p.grad is not None and p.grad.any() for p in part.parameters())
        }

    of_y2 = {"contextual"} if detach else {"contextual", "mlnet.up", "mlnet.down"}
    coarse, _, _ = recipe.M(batch.source)
    assert reached(F.l1_loss(coarse, batch.target)) == {"mlnet.down", "mlnet.up"}
    _, logits, _ = recipe.M(batch.source)
    assert reached(cg_3dsrgan.class_loss(logits, torch.tensor([0, 4]), torch.ones(2))) == {"mlnet.down", "mlnet.head"}
    _, _, refined = recipe.M(batch.source)
    assert reached(recipe._perceptual(refined, batch.target)) == of_y2
    _, _, refined = recipe.M(batch.source)
    assert reached(cg_3dsrgan.discriminator_loss(*recipe.D(batch.source, batch.target, refined.detach()))) == {"D"}
    _, _, refined = recipe.M(batch.source)
    with recipe.D.frozen() as D:
        assert reached(cg_3dsrgan.adversarial_loss(*D(batch.source, refined))) == of_y2


def test_a_generator_step_makes_the_fake_pair_look_real_and_a_discriminator_step_the_opposite() -> None:
    recipe = build(small())
    assert recipe.D is not None
    D, batch = recipe.D.module, make_batch(0)
    perturb(recipe.M.module)
    _, _, refined = recipe.M(batch.source)
    fake = refined.detach().clone().requires_grad_()
    (score,) = D(batch.source, fake)
    cg_3dsrgan.adversarial_loss(score).backward()
    assert fake.grad is not None
    (better,) = D(batch.source, fake - 1e-3 * fake.grad / fake.grad.norm())
    assert cg_3dsrgan.adversarial_loss(better) < cg_3dsrgan.adversarial_loss(score)
    gaps = []
    for _ in range(4):
        real, fakes = recipe.D(batch.source, batch.target, refined.detach())
        loss = cg_3dsrgan.discriminator_loss(real, fakes)
        gaps.append(loss.item())
        recipe.D.backward(loss)
        recipe.D.step()
    assert gaps[-1] < gaps[0]


# Batch norm.


def test_real_and_fake_pairs_are_normed_apart_and_alike_in_any_mode() -> None:
    D, batch = cg_3dsrgan.Discriminator(4), make_batch(0)
    real, fake = D(batch.source, batch.target, 5 * batch.target)
    assert torch.equal(real, D(batch.source, batch.target)[0])
    assert torch.equal(fake, D.eval()(batch.source, 5 * batch.target)[0])
    assert not list(D.buffers())


def test_at_inference_a_sample_does_not_depend_on_its_batch() -> None:
    G = cg_3dsrgan.generator(small())
    perturb(G)
    a, b = torch.rand(2, 1, 1, 32, 32, 32)
    alone, together = G.eval()(a)[2], G(torch.cat([a, b]))[2][:1]
    torch.testing.assert_close(alone, together)
    G.train()
    assert not torch.allclose(G(torch.cat([a, a]))[2][:1], G(torch.cat([a, b]))[2][:1])


# Reach.


def test_contextual_net_reaches_seven_voxels() -> None:
    net = cg_3dsrgan.ContextualNet(2).double()
    perturb(net)
    x = torch.rand(1, 1, 21, 21, 21, dtype=torch.float64, requires_grad=True)
    net(x)[0, 0, 10, 10, 10].backward()
    assert x.grad is not None
    touched = x.grad[0, 0].nonzero()
    assert touched.min() >= 10 - cg_3dsrgan.REACH
    assert touched.min() <= 10 - cg_3dsrgan.REACH + 2  # ReLUs may close the last ones
    assert touched.max() <= 10 + cg_3dsrgan.REACH


def test_a_window_on_the_grid_equals_the_whole_beyond_its_margin() -> None:
    G = cg_3dsrgan.generator(small(mlnet_channels=2, contextual_channels=2))
    perturb(G)
    G.double().eval()
    volume = torch.rand(1, 1, 320, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        whole, window, off = (G(volume[:, :, a:b])[2] for a, b in ((0, 320), (64, 256), (48, 240)))
    inside = slice(39, 192 - 39)
    assert (window - whole[:, :, 64:256])[:, :, inside].abs().max() < 1e-10
    assert (window - whole[:, :, 64:256]).abs().max() > 1e-6
    assert (off - whole[:, :, 48:240])[:, :, inside].abs().max() > 1e-6


# Head and classes.


def test_the_head_sees_the_mean_over_space() -> None:
    net = cg_3dsrgan.MLNet(2, 4, 5).eval()
    seen: list[Tensor] = []
    assert net.head is not None
    net.down[-1].register_forward_hook(lambda module, inputs, output: output.flip(2).roll(1, 3))
    net.head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    low = torch.rand(1, 1, 64, 64, 64)
    turned = net(low)[1]
    net.down[-1]._forward_hooks.clear()
    torch.testing.assert_close(net(low)[1], turned)
    deepest = low
    for down in net.down:
        deepest = down(deepest)
    torch.testing.assert_close(seen[1], F.leaky_relu(deepest, 0.2).mean((2, 3, 4)))


def test_classes_are_the_places_of_the_doses() -> None:
    doses = (4.0, 10.0, 20.0, 50.0, 100.0)
    assert cg_3dsrgan.dose_classes(torch.tensor([100.0, 4.0, 20.0]), doses).tolist() == [4, 0, 2]
    assert cg_3dsrgan.dose_classes(torch.tensor(doses), doses[::-1]).tolist() == [4, 3, 2, 1, 0]
    for unknown in (5.0, float("nan")):
        with pytest.raises(InputError, match="CFG_DOSES"):
            cg_3dsrgan.dose_classes(torch.tensor([4.0, unknown]), doses)
