"""The compilation mode is chosen by trying, and a compiler that fails does no harm."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from torch import nn

from distgan.config.schema import Train
from distgan.errors import UserError
from distgan.networks.base import GeneratorSpec
from distgan.networks.build import build_discriminator, build_generator
from distgan.runtime.compilation import (
    Compilation,
    TrialPass,
    choose_compilation,
    ramp,
    try_modes,
)
from shards.processes import num_usable_cores
from tests.small_gan import snapshot
from tests.worlds import rows, run_world, train_run

SPEC = GeneratorSpec(architecture="dcgan", image_size=32, channels=1, width=4, latent_dim=8)


def networks() -> tuple[nn.Module, nn.Module]:
    """Build a small generator and discriminator."""
    return build_generator(SPEC), build_discriminator(SPEC)


@dataclass(frozen=True)
class Compiler(Compilation):
    """A mode whose compiler is a function of the test."""

    change: Callable[[nn.Module], object]

    def compile(self, network: nn.Module) -> None:
        self.change(network)


def choice_among(
    *modes: Compilation, num_passes: float = math.inf, uses_features: bool = False
) -> Compilation:
    """Return what the trial chooses, and check that it leaves the networks alone."""
    pair, device = networks(), torch.device("cpu")
    latents, reals = ramp((4, 8), device=device), ramp((4, 1, 32, 32), device=device)
    before = [snapshot(network) for network in pair]
    decision = try_modes(
        pair,
        TrialPass(latents, reals, nullcontext, uses_features),
        num_passes=num_passes,
        modes=modes,
    )
    for network, weights in zip(pair, before, strict=True):
        assert all(p.grad is None for p in network.parameters())  # the trial works on copies
        assert all(torch.equal(p, w) for p, w in zip(network.parameters(), weights, strict=True))
    return decision


def slow(network: nn.Module) -> None:
    """Delay every forward by far more than a busy machine would."""
    network.register_forward_pre_hook(lambda *_: time.sleep(0.05))


def without_gradient(network: nn.Module) -> None:
    """Cut the graph, so that no gradient reaches the parameters."""
    forward = network.forward
    network.forward = lambda images: forward(images).detach().requires_grad_()


def wrong(network: nn.Module) -> None:
    """Return the first output forever, which is fast, with a gradient of zero."""
    kept: dict[tuple[int, ...], torch.Tensor] = {}
    forward, weight = network.forward, next(network.parameters())

    def remembered(images: torch.Tensor) -> torch.Tensor:
        if images.shape not in kept:
            kept[images.shape] = forward(images).detach()
        return kept[images.shape] + 0 * (weight.sum() + images.sum())

    network.forward = remembered


def broken(network: nn.Module) -> None:
    """Fail to compile."""
    raise RuntimeError("no C++ compiler found\nand a long story")


def test_the_fastest_correct_mode_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mode that is slower, wrong or broken is not, and the reason names each of them."""
    monkeypatch.setattr("distgan.runtime.compilation.PASSES", 1)
    monkeypatch.setattr("distgan.runtime.compilation.ROUNDS", 3)
    changes = {"slow": slow, "wrong": wrong, "lost": without_gradient, "none": broken}
    found = choice_among(*[Compiler(name, "", change) for name, change in changes.items()])
    slower, differs, lost, none = found.reason.split(", ")
    assert found.mode == "eager" and "slow is 0." in slower and "times as fast as eager" in slower
    assert "wrong fails here: its gradients differ from the eager ones by" in differs
    assert lost == "lost fails here: its gradients differ from the eager ones by 100%"
    assert none == "none fails here: no C++ compiler found"

    gains = iter([1.2, 1.5, 1.52])
    monkeypatch.setattr("distgan.runtime.compilation.measure_speedup", lambda *_, **__: next(gains))
    found = choice_among(*[Compilation(name, "") for name in ("good", "best", "same within noise")])
    assert found.mode == "best" and "good is 1.20 times as fast as eager" in found.reason


def test_a_short_run_tries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes longer than the run could save, which the time of an eager pass tells."""
    monkeypatch.setattr("distgan.runtime.compilation.PASSES", 2)
    monkeypatch.setattr("distgan.runtime.compilation.COMPILE_SEC", 5.0)
    tried: list[nn.Module] = []
    candidate = Compiler("compiled", "", tried.append)
    short = choice_among(candidate, num_passes=1)
    assert (short.mode, tried) == ("eager", [])
    assert "too short to compile" in short.reason
    long = choice_among(candidate, num_passes=1e9)
    assert len(tried) == 2 and "compiled is" in long.reason


def test_the_trial_covers_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled discriminator whose features fail is not chosen by a run that compares them."""
    monkeypatch.setattr("distgan.runtime.compilation.PASSES", 1)

    def break_features(network: nn.Module) -> None:
        forward = network.forward
        network.forward = lambda images, **options: broken(network) if options else forward(images)

    candidate = Compiler("featureless", "", break_features)
    assert "featureless is" in choice_among(candidate).reason
    reason = choice_among(candidate, uses_features=True).reason
    assert reason == "featureless fails here: no C++ compiler found"


def test_each_process_compiles_with_its_own_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default each would start up to 32 workers, whatever runs beside it."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_usable_cores()))
    # Their own `patch`: after that of pytest 9.2 the settings would not exist any more.
    with (
        torch._inductor.config.patch(compile_threads=32),
        torch._dynamo.config.patch(optimize_ddp=True),
    ):
        Compilation("compiled", "").compile(networks()[0])
        assert torch._inductor.config.compile_threads == 1


@pytest.mark.parametrize(
    ("setting", "mode"), [("always", "compiled"), ("never", "eager"), ("auto", "eager")]
)
def test_setting_decides(setting: str, mode: str) -> None:
    """On a CPU `auto` tries nothing."""
    assert chosen(setting, networks()).mode == mode


def test_graphs_need_a_gpu() -> None:
    """The error comes before anything is built."""
    with pytest.raises(UserError, match=r"train\.compile=graphs needs a GPU"):
        chosen("graphs", networks())


def test_a_run_with_graphs_on_a_cpu_fails_in_one_line(shards: Path, tmp_path: Path) -> None:
    """The error does not mention the images, which have nothing to do with it."""
    with pytest.raises(
        AssertionError,
        match=r"UserError: train\.compile=graphs needs a GPU.*; use train\.compile=auto\n",
    ):
        run_world(1, train_run, shards, tmp_path / "run", ["train.compile=graphs"])


def chosen(setting: str, pair: tuple[nn.Module, nn.Module]) -> Compilation:
    """Return the mode for a setting of train.compile."""
    train = Train.model_validate({"compile": setting})
    return choose_compilation(
        train,
        pair,
        latent_shape=(8,),
        image_shape=(1, 32, 32),
        micro_batch_size=4,
        num_passes=1e9,
        uses_features=False,
        num_processes=1,
        autocast=nullcontext,
    )


@pytest.mark.slow
def test_a_compiled_run_equals_the_eager_one_up_to_rounding(shards: Path, tmp_path: Path) -> None:
    """With a penalty, which is not compiled, and resumed half way."""
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
def test_auto_times_both_modes_on_a_gpu() -> None:
    """The reason says how they compare with eager."""
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
def test_a_run_with_graphs_equals_the_eager_one_up_to_rounding(
    shards: Path, tmp_path: Path, words: list[str]
) -> None:
    """Activations that the generator's backward needs survive the discriminator's step."""
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
    """Train, and return how many CUDA graphs the compiler gave up on."""
    train_run(shards, run_dir, words)
    return torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
