"""Engines: DeepSpeed at every stage against plain PyTorch, several networks in one graph, portable state."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ranks import run_ranks
from torch import Tensor, nn

from trainers import assembly
from trainers.engine import EngineConfig, deepspeed_engines, plain_engine, plain_engines
from trainers.habits import Engines
from trainers.losses import critic_loss, gradient_penalty
from trainers.recipe import Engine, EngineFactory

STEPS, CLIP = 4, 0.05
STAGES: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)


def generator() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv3d(4, 1, 3, padding=1))


def critic() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv3d(1, 5, 3), nn.LeakyReLU(0.2), nn.Conv3d(5, 1, 3))


def rmsprop(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(parameters, lr=1e-3)  # type: ignore[arg-type]


def sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-2)  # type: ignore[arg-type]


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.rand(2, 1, 8, 8, 8, generator=rng)
    return x, 2 * x + 1


def gan_step(G: Engine, D: Engine, x: Tensor, y: Tensor) -> None:
    """One WGAN iteration in SGSGAN's order: critic on the detached fake, clip, generator through the frozen critic."""
    fake = G(x)
    D.backward(D(fake.detach()).mean() - D(y).mean())
    D.step()
    D.clip_weights(CLIP)
    with D.frozen() as score:
        G.backward(10 * (y - fake).abs().mean() - score(fake).mean())
    G.step()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(body: Callable[..., None], world: int, *args: object) -> None:
    run_ranks(_rank, world, world, free_port(), body, args)


def _rank(rank: int, world: int, port: int, body: Callable[..., None], args: tuple[object, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", "cpu"),
        "OMP_NUM_THREADS": "1",
    }
    torch.set_num_threads(1)
    backend = "nccl" if os.environ["DS_ACCELERATOR"] == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=world)
    try:
        body(rank, world, *args)
    finally:
        dist.destroy_process_group()
    # gloo can abort in its static destructors when a rank leaves before its peers; what was to be tested has passed.
    os._exit(0)


def engines(make: EngineFactory, optimizer: Callable[[object], torch.optim.Optimizer]) -> tuple[Engine, Engine]:
    return make(generator(), optimizer), make(critic(), optimizer)


def normed(make: EngineFactory, optimizer: Callable[[object], torch.optim.Optimizer]) -> tuple[Engine, Engine]:
    """The same with batch norm in the generator."""
    first, *others = generator().children()
    return make(nn.Sequential(first, nn.BatchNorm3d(4), *others), optimizer), make(critic(), optimizer)


def reference(world: int, optimizer: Callable[[object], torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Single process on the joint batch of all ranks: the mean over ranks of equal shares is the joint mean."""
    G, D = normed(plain_engine, optimizer)
    for step in range(STEPS):
        shares = [batch(step, rank) for rank in range(world)]
        gan_step(G, D, torch.cat([x for x, _ in shares]), torch.cat([y for _, y in shares]))
    return {f"G/{k}": v for k, v in G.state().items()} | {f"D/{k}": v for k, v in D.state().items()}


def _matches_plain(rank: int, world: int) -> None:
    for stage in STAGES:  # in one pair of processes: starting them costs more than the steps
        _matches_plain_at(stage, rank, world)


def _matches_plain_at(stage: Literal[0, 1, 2], rank: int, world: int) -> None:
    G, D = normed(deepspeed_engines(EngineConfig(zero_stage=stage), device=torch.device("cpu")), sgd)
    for step in range(STEPS):
        before = D.state()
        x, y = batch(step, rank)
        fake = G(x)
        D.backward(D(fake.detach()).mean() - D(y).mean())
        frozen_g = G.state()
        D.step()
        D.clip_weights(CLIP)
        after = D.state()
        # Bitwise: the critic's update does not touch the generator, the generator's does not touch the critic.
        assert all(torch.equal(v, G.state()[k]) for k, v in frozen_g.items())
        assert any(not torch.equal(v, after[k]) for k, v in before.items())
        with D.frozen() as score:
            G.backward(10 * (y - fake).abs().mean() - score(fake).mean())
        G.step()
        assert all(torch.equal(v, D.state()[k]) for k, v in after.items())
        assert all(p.grad is None or not p.grad.any() for p in D.module.parameters())
        # The weights that the next step uses, masters included, obey the bound.
        assert all(v.abs().max() <= CLIP for k, v in after.items() if k.startswith("weight/"))
        assert all(p.abs().max() <= CLIP for p in D.module.parameters())
    found = {f"G/{k}": v for k, v in G.state().items()} | {f"D/{k}": v for k, v in D.state().items()}
    for key, value in reference(world, sgd).items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6, msg=key)


def test_two_ranks_train_a_gan_as_one_process_would_at_every_stage() -> None:
    spawn(_matches_plain, 2)


def averaging(stage: Literal[0, 1, 2], decay: float = 0.5) -> Engines:
    config = EngineConfig(zero_stage=stage, ema_decay=decay)
    return Engines(deepspeed_engines(config, device=torch.device("cpu")), config)


def _continue(rank: int, world: int, folder: str) -> None:
    for stage in STAGES:
        _continue_at(stage, rank, folder)


def _continue_at(stage: Literal[0, 1, 2], rank: int, folder: str) -> None:
    run = averaging(stage)
    make = run.make
    G, D = engines(make, rmsprop)
    average = {name: value.detach().clone() for name, value in G.module.named_parameters()}
    for step in range(2):
        gan_step(G, D, *batch(step, rank))
        decay = min(0.5, (1 + step) / (10 + step))
        average = {k: decay * v + (1 - decay) * G.state()[f"weight/{k}"] for k, v in average.items()}
    saved = G.state(), D.state()
    for name, value in average.items():  # of the weights that ZeRO steps on, equal on all ranks
        torch.testing.assert_close(assembly.weights_of(G)[name], value)
    with run.averaged():  # lent, on the copy that runs forward; nothing of it stays
        assert all(torch.equal(p, assembly.weights_of(G)[name]) for name, p in G.module.named_parameters())
    if rank == 0:
        torch.save(saved, f"{folder}/saved-{stage}.pt")
    for step in range(2, STEPS):
        gan_step(G, D, *batch(step, rank))
    straight = G.state(), D.state()
    G, D = engines(make, rmsprop)
    gan_step(G, D, *batch(99, rank))  # whatever happened before a load must not matter
    G.load(saved[0])
    D.load(saved[1])
    for old, new in zip(saved, (G.state(), D.state()), strict=True):
        assert old.keys() == new.keys()
        assert all(torch.equal(old[k], new[k]) for k in old)
    for step in range(2, STEPS):
        gan_step(G, D, *batch(step, rank))
    for old, new in zip(straight, (G.state(), D.state()), strict=True):
        assert all(torch.equal(old[k], new[k]) for k in old), "resume is not bit-equal"


# zero_stage of the run that is saved, and of the one that continues it
RESUMED_STAGES: tuple[tuple[Literal[0, 1, 2], Literal[0, 1, 2]], ...] = ((2, 0), (1, 2), (0, 1))


def _reload(rank: int, world: int, folder: str) -> None:
    for old_stage, new_stage in RESUMED_STAGES:
        make = averaging(new_stage).make
        saved = torch.load(f"{folder}/saved-{old_stage}.pt", weights_only=True)
        G, D = engines(make, rmsprop)
        G.load(saved[0])
        D.load(saved[1])
        for old, new in zip(saved, (G.state(), D.state()), strict=True):
            assert all(torch.equal(old[k], new[k]) for k in old)
        gan_step(G, D, *batch(7, rank))


def test_resume_is_bit_equal_and_a_state_moves_to_another_world_size_and_stage(tmp_path: Path) -> None:
    spawn(_continue, 2, str(tmp_path))
    spawn(_reload, 1, str(tmp_path))


def _gradient_clipping() -> None:
    # DeepSpeed clips gradients to norm 1 unless told otherwise: a large gradient must arrive whole.
    make = deepspeed_engines(EngineConfig(), device=torch.device("cpu"))
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    engine = make(net, lambda p: torch.optim.SGD(p, lr=1.0))
    engine.backward(100 * engine(torch.ones(1, 1)).sum())
    engine.step()
    assert net.weight.item() == pytest.approx(1 - 100)


def _clipped_gradients(rank: int, world: int) -> None:
    """The norm of all ranks' mean gradient is bounded, at every stage as by plain PyTorch; a smaller one stays."""
    for bound in (0.5, 1e6):
        changes = {}
        for stage in (None, *STAGES):
            config = EngineConfig(zero_stage=stage or 0, gradient_clipping=bound)
            make = plain_engines(config) if stage is None else deepspeed_engines(config, device=torch.device("cpu"))
            engine = make(generator(), lambda p: torch.optim.SGD(p, lr=1.0))
            before = engine.state()
            x = batch(0, rank)[0] if stage is not None else torch.cat([batch(0, one)[0] for one in range(world)])
            engine.backward(100 * engine(x).square().mean())
            engine.step()
            after = engine.state()
            changes[stage] = torch.cat([(before[key] - value).flatten() for key, value in after.items()])
        for change in changes.values():
            assert change.norm() <= bound * (1 + 1e-5)
            torch.testing.assert_close(change, changes[None], rtol=1e-4, atol=1e-5)
        assert (changes[None].norm() > 0.99 * bound) == (bound < 1)


def _scheduled_rates(rank: int, world: int) -> None:
    """A factor on the rate that a system sets is what every stage steps with."""
    x = batch(0, 0)[0]
    for stage in STAGES:
        config = EngineConfig(zero_stage=stage, warm_up_steps=4)
        run = Engines(deepspeed_engines(config, device=torch.device("cpu")), config)
        engine, bare = run.make(generator(), sgd), plain_engine(generator(), sgd)
        for step in range(3):
            engine.set_lr(0.2)
            bare.set_lr(0.2 * (step + 1) / 4)
            run.begin(step, 10)
            for one in (engine, bare):
                one.backward(one(x).square().mean())
                one.step()
        found = engine.state()
        for key, value in bare.state().items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)


class Penalised(nn.Module):
    """A critic that says how far its gradient is from 1, for which its own weights are differentiated twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = critic()

    def forward(self, images: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        return self.scores(images), gradient_penalty(self.scores(at), at)


def penalised(D: Engine, shares: list[tuple[Tensor, Tensor]], steps: int = 2) -> dict[str, Tensor]:
    for _ in range(steps):
        real, fake = (torch.cat(images) for images in zip(*shares, strict=True))
        scores, penalty = D(torch.cat([real, fake]), (0.3 * real + 0.7 * fake).requires_grad_())
        D.backward(critic_loss(*scores.chunk(2)) + 10 * penalty)
        D.step()
    return D.state()


def _penalised_critics(rank: int, world: int) -> None:
    everyone = [batch(0, one) for one in range(world)]
    expected, still = (penalised(plain_engine(Penalised(), sgd), everyone, steps) for steps in (2, 0))
    for stage in STAGES:
        make = deepspeed_engines(EngineConfig(zero_stage=stage), device=torch.device("cpu"))
        found = penalised(make(Penalised(), sgd), [batch(0, rank)])
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=f"{stage} {key}")
            assert not torch.equal(value, still[key]) or "2.bias" in key  # which no loss sees


def _schedule_clipping_and_penalty(rank: int, world: int) -> None:
    _scheduled_rates(rank, world)
    _clipped_gradients(rank, world)
    _penalised_critics(rank, world)


def test_gradients_are_clipped_rates_scheduled_and_critics_penalised_alike_by_every_engine() -> None:
    spawn(_schedule_clipping_and_penalty, 2)


def _bf16(rank: int, world: int) -> None:
    os.environ["PATH"] = ""  # DeepSpeed would compile an operator here, unless told that it is not wanted
    for stage in STAGES:
        _bf16_at(stage, rank)
    _gradient_clipping()


def _bf16_at(stage: Literal[0, 1, 2], rank: int) -> None:
    make = deepspeed_engines(EngineConfig(zero_stage=stage, precision="bf16"), device=torch.device("cpu"))
    G, D = engines(make, rmsprop)
    seen: list[torch.dtype] = []
    G.module[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for step in range(2):
        gan_step(G, D, *batch(step, rank))
    assert seen[0] == torch.bfloat16
    assert all(v.dtype == torch.float32 for v in G.state().values())
    assert all(v.abs().max() <= CLIP for k, v in D.state().items() if k.startswith("weight/"))


def test_bf16_keeps_fp32_weights_gradients_are_not_clipped_and_no_compiler_is_needed() -> None:
    spawn(_bf16, 1)


def test_plain_state_round_trip_is_bit_equal() -> None:
    G, D = engines(plain_engine, rmsprop)
    gan_step(G, D, *batch(0, 0))
    saved = G.state(), D.state()
    gan_step(G, D, *batch(1, 0))
    straight = G.state(), D.state()
    G, D = engines(plain_engine, rmsprop)
    G.load(saved[0])
    D.load(saved[1])
    gan_step(G, D, *batch(1, 0))
    for old, new in zip(straight, (G.state(), D.state()), strict=True):
        assert all(torch.equal(old[k], new[k]) for k in old)


def _cuda(rank: int, world: int) -> None:
    make = deepspeed_engines(EngineConfig(zero_stage=1, precision="bf16"), device=torch.device("cuda"))
    G, D = engines(make, rmsprop)
    for step in range(2):
        x, y = batch(step, rank)
        gan_step(G, D, x.cuda(), y.cuda())
    saved = G.state()
    G.load(saved)
    assert all(torch.equal(value, G.state()[key]) for key, value in saved.items())
    assert all(p.abs().max() <= CLIP for p in D.module.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_engines_train_on_a_gpu_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")  # which a process that is forked learns too late
    mp.spawn(_rank, (1, free_port(), _cuda, ()), nprocs=1)  # type: ignore[attr-defined,no-untyped-call]


class TwoHeads(nn.Module):
    """A network with batch norm and more than one output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2))
        self.head = nn.Conv3d(2, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return features, self.head(features)


def adam(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)  # type: ignore[arg-type]


def _step(engine: Engine, x: Tensor) -> None:
    features, score = engine(x)
    engine.backward(features.square().mean() + (score - 1).square().mean())
    engine.step()


def _moments_in_any_order(rank: int) -> None:
    """A loaded engine exports what it was given, though each rank was given it in an order of its own."""
    for stage in STAGES:
        make = deepspeed_engines(EngineConfig(zero_stage=stage), device=torch.device("cpu"))
        engine = make(TwoHeads(), adam)
        _step(engine, batch(0, rank)[0])
        saved = engine.state()
        again = make(TwoHeads(), adam)
        again.load(dict(sorted(saved.items(), reverse=rank == 1)))
        assert again.state().keys() == saved.keys()
        assert all(torch.equal(value, again.state()[name]) for name, value in saved.items())


def _learning_rate_and_statistics(rank: int, world: int) -> None:
    _moments_in_any_order(rank)
    for stage in STAGES:
        make = deepspeed_engines(EngineConfig(zero_stage=stage), device=torch.device("cpu"))
        engine = make(TwoHeads(), adam)
        _step(engine, batch(0, rank)[0])
        before = engine.state()
        everyone: list[dict[str, Tensor]] = [{} for _ in range(world)]
        dist.all_gather_object(everyone, dict(engine.module.named_buffers()))
        joint = TwoHeads().train()
        joint(torch.cat([batch(0, one)[0] for one in range(world)]))
        for name in ("body.1.running_mean", "body.1.running_var"):
            assert torch.equal(everyone[0][name], everyone[1][name])
            assert torch.equal(before[f"weight/{name}"], everyone[0][name])
            torch.testing.assert_close(everyone[0][name], joint.get_buffer(name))
        engine.set_lr(0.0)
        _step(engine, batch(1, rank)[0])
        frozen = engine.state()
        named = [f"weight/{name}" for name, _ in engine.module.named_parameters()]
        assert all(torch.equal(before[name], frozen[name]) for name in named)
        engine.set_lr(1e-3)
        _step(engine, batch(2, rank)[0])
        assert all(not torch.equal(before[name], engine.state()[name]) for name in named if "weight" in name)


def test_the_learning_rate_can_be_set_and_ranks_agree_on_the_statistics_of_batch_norm() -> None:
    spawn(_learning_rate_and_statistics, 2)
