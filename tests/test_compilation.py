"""Whether to compile is decided by trying, and a compiler that fails costs nothing."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from distgan.compilation import choose_compile, ramp, try_both
from distgan.config import Train
from distgan.networks import GeneratorSpec, build_discriminator, build_generator
from tests.players import snapshot
from tests.worlds import rows, run_world, train_run

SPEC = GeneratorSpec("dcgan", 32, 1, width=4, latent_dim=8)


def networks() -> tuple[nn.Module, nn.Module]:
    """A small pair."""
    return build_generator(SPEC), build_discriminator(SPEC)


def tried(compile_network: Callable[[nn.Module], None]) -> tuple[bool, str]:
    """What the trial says of a compiler."""
    pair, device = networks(), torch.device("cpu")
    before = [snapshot(network) for network in pair]
    decision = try_both(
        pair,
        latents=ramp((4, 8), device=device),
        reals=ramp((4, 1, 32, 32), device=device),
        autocast=nullcontext,
        compile_network=compile_network,
    )
    for network, weights in zip(pair, before, strict=True):
        assert all(p.grad is None for p in network.parameters())  # only copies were tried
        assert all(torch.equal(p, w) for p, w in zip(network.parameters(), weights, strict=True))
    return decision


def slowed(network: nn.Module) -> None:
    """What a bad compiler does."""
    network.register_forward_pre_hook(lambda *_: time.sleep(0.01))


def hastened(network: nn.Module) -> None:
    """What a very good one does."""
    kept: dict[tuple[int, ...], torch.Tensor] = {}
    forward = network.forward
    weight = next(network.parameters())

    def remembered(images: torch.Tensor) -> torch.Tensor:
        if images.shape not in kept:
            kept[images.shape] = forward(images).detach()
        return kept[images.shape] + 0 * (weight.sum() + images.sum())

    network.forward = remembered


def stumbling(network: nn.Module) -> None:
    """No compiler at all."""
    raise RuntimeError("no C++ compiler found\nand a long story")


def test_the_faster_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """By turns on copies: slower loses, faster wins, and the reason says how much."""
    monkeypatch.setattr("distgan.compilation.PASSES", 2)
    chosen, reason = tried(slowed)
    assert not chosen and "times as fast as eager" in reason
    chosen, reason = tried(hastened)
    assert chosen and "times as fast as eager" in reason
    assert tried(stumbling) == (False, "compiling fails here: no C++ compiler found")


@pytest.mark.parametrize(("setting", "compiled"), [("always", True), ("never", False), ("auto", False)])
def test_settings(setting: str, compiled: bool) -> None:
    """The setting decides, and on a CPU nothing is tried."""
    train = Train.model_validate({"compile": setting})
    found = choose_compile(train, networks(), latent_shape=(8,), image_shape=(1, 32, 32), share=4, autocast=nullcontext)
    assert found[0] is compiled


@pytest.mark.slow
def test_a_compiled_run_is_the_eager_one_but_for_rounding(shards: Path, tmp_path: Path) -> None:
    """Under a penalty, which stays eager, and taken up again half way."""
    losses = []
    for setting, lengths in (("never", (0.06,)), ("always", (0.036, 0.06))):
        for kimg in lengths:
            words = [
                f"train.kimg={kimg}",
                f"train.compile={setting}",
                "networks.discriminator_norm=none",
                "loss.r1=0.1",
            ]
            run_world(1, train_run, shards, tmp_path / setting, words, timeout=300)
        losses.append([[row["loss/d"], row["loss/g"], row["penalty/r1"]] for row in rows(tmp_path / setting)])
    assert len(losses[0]) == 5
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
def test_auto_tries_on_a_gpu() -> None:
    """Both ways are timed, and the reason says how they compare."""
    generator, discriminator = networks()
    _, reason = choose_compile(
        Train(), (generator.cuda(), discriminator.cuda()), latent_shape=(8,), image_shape=(1, 32, 32), share=4, autocast=nullcontext
    )  # fmt: skip
    assert "times as fast as eager" in reason
