"""Schedules, lazy penalties, lookahead, and optimizers across a checkpoint."""

import pytest
import torch
from torch import nn

from distgan.config.schema import Loss, Optim, Train
from distgan.optimizers import (
    OPTIMIZERS,
    Lookahead,
    lr_schedule,
    penalty_scale,
    set_hyperparameters,
)
from distgan.run.checkpoints import pack_optimizer, unpack_optimizer
from distgan.runtime.accelerator import build_accelerator, reset_accelerator
from tests.small_gan import make_gan


@pytest.mark.parametrize(
    ("schedule", "half"), [("constant", 1.0), ("linear", 0.6), ("cosine", 0.6)]
)
def test_schedules_end_at_the_final_learning_rate(schedule: str, half: float) -> None:
    """They go from 1 to `final_lr` and stay there; linear and cosine agree in the middle."""
    optim = Optim(schedule=schedule, final_lr=0.2)
    end = 1.0 if schedule == "constant" else 0.2
    assert [lr_schedule(optim, progress) for progress in (0.0, 0.5, 1.0, 1.5)] == pytest.approx(
        [1.0, half, end, end]
    )


def test_lazy_penalties_keep_their_mean_weight() -> None:
    """Every fourth step has four times the weight, and the weight falls along the run."""
    loss = Loss(r1=1.0, penalty_interval=4, penalty_final=0.5)
    assert [penalty_scale(loss, step, progress=0.0) for step in range(5)] == [
        4.0,
        0.0,
        0.0,
        0.0,
        4.0,
    ]
    assert penalty_scale(loss, 0, progress=1.0) == pytest.approx(2.0)
    assert penalty_scale(Loss(), 0, progress=0.0) == 0.0


def test_lookahead_interpolates_slow_and_fast_weights() -> None:
    """Both networks become slow + alpha (fast - slow), also after a checkpoint."""
    networks = [nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)]
    for network in networks:
        nn.init.zeros_(network.weight)
    lookahead = Lookahead(networks)
    for network in networks:
        nn.init.constant_(network.weight, 4.0)
    lookahead.step(0.25)
    assert [network.weight.item() for network in networks] == [1.0, 1.0]
    other = Lookahead(networks)
    nn.init.constant_(networks[0].weight, 5.0)
    other.unpack(lookahead.pack())
    other.step(0.5)
    assert networks[0].weight.item() == 3.0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_resumes_bit_identically(name: str) -> None:
    """Two steps, a checkpoint and two more steps give the weights of four steps."""

    def build() -> tuple[nn.Conv2d, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return network, OPTIMIZERS[name](
            network.parameters(), Optim(name=name, weight_decay=0.01), fused=True
        )

    def train(network: nn.Conv2d, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            network(torch.full((1, 3, 4, 4), step + 1.0)).square().sum().backward()
            optimizer.step()

    whole, whole_optimizer = build()
    train(whole, whole_optimizer, range(4))
    first, first_optimizer = build()
    train(first, first_optimizer, range(2))
    tensors, plain = pack_optimizer("optimizer", first_optimizer)
    second, second_optimizer = build()
    second.load_state_dict(first.state_dict())
    unpack_optimizer("optimizer", second_optimizer, tensors, plain)
    train(second, second_optimizer, range(2, 4))
    assert torch.equal(whole.weight, second.weight)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_new_settings_replace_those_of_a_loaded_optimizer(name: str) -> None:
    """Loading also brings the old run's weight decay, momentum and decay rates along."""
    weight = nn.Parameter(torch.ones(2))
    old = OPTIMIZERS[name]([weight], Optim(name=name, weight_decay=0.1), fused=False)
    settings = Optim(name=name, betas=(0.25, 0.75), weight_decay=0.01, epsilon=1e-6)
    new = OPTIMIZERS[name]([weight], settings, fused=False)
    set_hyperparameters(new, settings, lr=0.5)
    expected = new.state_dict()["param_groups"]
    assert expected != old.state_dict()["param_groups"]
    new.load_state_dict(old.state_dict())
    set_hyperparameters(new, settings, lr=0.5)
    assert new.state_dict()["param_groups"] == expected


@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
def test_momentum_can_begin_after_the_first_step(name: str) -> None:
    """As after a rollback with a remedy: the second of two equal steps is longer for it."""
    lengths = []
    for momentum in (0.0, 0.5):
        weight = nn.Parameter(torch.zeros(1))
        settings = Optim(name=name, betas=(0.0, 0.5))
        optimizer = OPTIMIZERS[name]([weight], settings, fused=False)
        for beta in (0.0, momentum, momentum):
            before = weight.item()
            settings = Optim(name=name, betas=(beta, 0.5))
            set_hyperparameters(optimizer, settings, lr=0.1)
            weight.grad = torch.ones(1)
            optimizer.step()
        lengths.append(abs(weight.item() - before))
    assert lengths[1] > 1.2 * lengths[0]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop"])
def test_a_step_skipped_by_the_loss_scaler_is_reported(name: str) -> None:
    """After an overflow under fp16 the weights stay, and the moving average is told so."""
    gan = make_gan(optim=Optim(name=name), scaler=torch.amp.GradScaler("cpu"))
    optimizer, weight = gan.optimizer_g, gan.weights_g[0]
    before = weight.detach().clone()
    for gradient, is_skipped in ((torch.inf, True), (1.0, False)):
        optimizer.zero_grad()
        optimizer.scaler.scale((weight * gradient).sum()).backward()
        optimizer.step()
        assert optimizer.step_was_skipped is is_skipped
        assert torch.equal(weight, before) is is_skipped
    reset_accelerator()


def test_the_loss_scale_grows_as_often_whatever_the_number_of_optimizer_steps() -> None:
    """The scaler counts the updates of both networks, so its interval does too."""
    intervals = []
    for d_steps in (1, 3):
        accelerator, _ = build_accelerator(Train(d_steps=d_steps, cpu_threads=1))
        intervals.append(accelerator.scaler_handler.growth_interval / (d_steps + 1))
        reset_accelerator()
    assert intervals == [2000, 2000]
