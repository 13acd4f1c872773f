"""Whether to compile is decided by trying, and a compiler that fails costs nothing."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from distgan.config.schema import Train
from distgan.errors import UserError
from distgan.networks.base import GeneratorSpec
from distgan.networks.build import build_discriminator, build_generator
from distgan.runtime.compilation import Compilation, choose_compilation, ramp, try_modes
from tests.small_gan import snapshot
from tests.worlds import rows, run_world, train_run

SPEC = GeneratorSpec(architecture="dcgan", image_size=32, channels=1, width=4, latent_dim=8)


def networks() -> tuple[nn.Module, nn.Module]:
    """A small pair."""
    return build_generator(SPEC), build_discriminator(SPEC)


@dataclass(frozen=True)
class Compiler(Compilation):
    """A mode with a compiler of the test's own."""

    change: Callable[[nn.Module], object]

    def compile(self, network: nn.Module) -> None:
        self.change(network)


def tried(*modes: Compilation) -> Compilation:
    """What the trial says of them."""
    pair, device = networks(), torch.device("cpu")
    before = [snapshot(network) for network in pair]
    decision = try_modes(
        pair,
        latents=ramp((4, 8), device=device),
        reals=ramp((4, 1, 32, 32), device=device),
        autocast=nullcontext,
        modes=modes,
    )
    for network, weights in zip(pair, before, strict=True):
        assert all(p.grad is None for p in network.parameters())  # only copies were tried
        assert all(torch.equal(p, w) for p, w in zip(network.parameters(), weights, strict=True))
    return decision


def waits(network: nn.Module) -> None:
    """Not a compiler but a brake."""
    network.register_forward_pre_hook(lambda *_: time.sleep(0.01))


def forgets(network: nn.Module) -> None:
    """No gradient comes through."""
    forward = network.forward
    network.forward = lambda images: forward(images).detach().requires_grad_()


def remembers(network: nn.Module) -> None:
    """Fast, and wrong: every output is the first one, with a gradient of zero."""
    kept: dict[tuple[int, ...], torch.Tensor] = {}
    forward, weight = network.forward, next(network.parameters())

    def remembered(images: torch.Tensor) -> torch.Tensor:
        if images.shape not in kept:
            kept[images.shape] = forward(images).detach()
        return kept[images.shape] + 0 * (weight.sum() + images.sum())

    network.forward = remembered


def stumbles(network: nn.Module) -> None:
    """No compiler at all."""
    raise RuntimeError("no C++ compiler found\nand a long story")


def test_the_fastest_way_that_is_right_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """By turns on copies; what is slower, wrong or fails stays out, and the reason tells of each."""
    monkeypatch.setattr("distgan.runtime.compilation.PASSES", 2)
    changes = {"slow": waits, "wrong": remembers, "lost": forgets, "none": stumbles}
    found = tried(*[Compiler(name, "", change) for name, change in changes.items()])
    slow, wrong, lost, none = found.reason.split(", ")
    assert found.mode == "eager" and "slow is 0." in slow and "times as fast as eager" in slow
    assert "wrong fails here: its gradients differ from the eager ones by" in wrong
    assert lost == "lost fails here: its gradients differ from the eager ones by 100%"
    assert none == "none fails here: no C++ compiler found"

    gains = iter([1.2, 1.5, 1.52])
    monkeypatch.setattr("distgan.runtime.compilation.measure_speedup", lambda *_, **__: next(gains))
    found = tried(*[Compilation(name, "") for name in ("good", "best", "same within noise")])
    assert found.mode == "best" and "good is 1.20 times as fast as eager" in found.reason


@pytest.mark.parametrize(
    ("setting", "mode"), [("always", "compiled"), ("never", "eager"), ("auto", "eager")]
)
def test_settings(setting: str, mode: str) -> None:
    """The setting decides, and on a CPU nothing is tried."""
    assert chosen(setting, networks()).mode == mode


def test_graphs_need_a_gpu() -> None:
    """Said before anything begins."""
    with pytest.raises(UserError, match=r"train\.compile=graphs records work of a GPU"):
        chosen("graphs", networks())


def test_a_run_with_graphs_says_so_and_nothing_else(shards: Path, tmp_path: Path) -> None:
    """No word of the images, which have nothing to do with it."""
    with pytest.raises(
        AssertionError, match=r"UserError: train\.compile=graphs records .*; leave it at auto\n"
    ):
        run_world(1, train_run, shards, tmp_path / "run", ["train.compile=graphs"])


def chosen(setting: str, pair: tuple[nn.Module, nn.Module]) -> Compilation:
    """What the setting comes to."""
    train = Train.model_validate({"compile": setting})
    return choose_compilation(
        train,
        pair,
        latent_shape=(8,),
        image_shape=(1, 32, 32),
        micro_batch_size=4,
        num_processes=1,
        autocast=nullcontext,
    )


@pytest.mark.slow
def test_a_compiled_run_is_the_eager_one_but_for_rounding(shards: Path, tmp_path: Path) -> None:
    """Under a penalty, which stays eager, and resumed half way."""
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
        losses.append(
            [[row["loss/d"], row["loss/g"], row["penalty/r1"]] for row in rows(tmp_path / setting)]
        )
    assert len(losses[0]) == 5
    torch.testing.assert_close(
        torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-3, atol=1e-5
    )


@pytest.mark.gpu
def test_auto_tries_on_a_gpu() -> None:
    """Both modes are timed, and the reason says how they compare."""
    generator, discriminator = networks()
    reason = chosen("auto", (generator.cuda(), discriminator.cuda())).reason
    assert (
        "compiled is" in reason
        and "graphs is" in reason
        and reason.count("times as fast as eager") == 2
    )


@pytest.mark.gpu
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["networks.discriminator_norm=none", "loss.r1=0.1"],
        ["networks.discriminator_norm=spectral"],
        ["train.accumulate=2"],
        ["train.d_steps=2"],
    ],
)
def test_graphs_are_the_eager_run_but_for_rounding(
    shards: Path, tmp_path: Path, words: list[str]
) -> None:
    """What the generator's backward needs outlives the discriminator's step."""
    losses = []
    for setting in ("never", "graphs"):
        told = [f"train.compile={setting}", "train.kimg=0.06", *words]
        (skips,) = run_world(
            1, train_and_count_skips, shards, tmp_path / setting, told, timeout=300
        )
        assert skips == 0
        losses.append([[row["loss/d"], row["loss/g"]] for row in rows(tmp_path / setting)])
    torch.testing.assert_close(
        torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-2, atol=1e-3
    )


def train_and_count_skips(shards: Path, run_dir: Path, words: list[str]) -> int:
    """A run, and how many graphs the compiler left out."""
    train_run(shards, run_dir, words)
    return torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
