"""The adversarial step: the discriminator first, then the generator, each with one all-reduce of its gradients.

reals, latents -> fakes = G(latents) -> D(reals), D(fakes without gradient) -> one backward -> D moves
               -> frozen D(the same fakes) -> backward through both -> G moves
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distgan.objectives.adversarial import AdversarialLoss
from distgan.players import Players

Statistics = dict[str, Tensor]


def reduce_on_last(
    accelerator: Accelerator, network: nn.Module, index: int, count: int
) -> AbstractContextManager[None]:
    """Gradients stay local until the last micro-batch."""
    return nullcontext() if index == count - 1 else accelerator.no_sync(network)


def grad_norm(network: nn.Module) -> Tensor:
    """Euclidean norm of all gradients together."""
    return torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])


def mean_of(statistics: list[Statistics]) -> Statistics:
    """Means over micro-batches."""
    return {name: torch.stack([each[name] for each in statistics]).mean() for name in statistics[0]}


def discriminator_step(
    players: Players,
    *,
    reals: list[Tensor],
    latents: list[Tensor],
    loss: AdversarialLoss,
    label_smoothing: float,
    keep_graph: bool,
) -> tuple[list[Tensor], Statistics]:
    """Move the discriminator by one step over micro-batches of reals [b, C, H, W] and latents [b, Z].

    Returns the fakes, with the generator's graph where `keep_graph` asks for it, and this rank's statistics.
    """
    accelerator = players.accelerator
    players.optimizer_d.zero_grad()
    all_fakes, all_statistics = [], []
    for index, (images, latent) in enumerate(zip(reals, latents, strict=True)):
        if keep_graph:
            fakes = players.generator(latent)
        else:
            with torch.no_grad():
                fakes = players.bare_generator(latent)
        with reduce_on_last(accelerator, players.discriminator, index, len(reals)):
            # Two forwards, so that norm statistics of reals and fakes stay apart; one backward, so that DDP reduces once.
            real_logits = players.discriminator(images)
            fake_logits = players.discriminator(fakes.detach())
            real_loss = loss.real_loss(real_logits, label_smoothing)
            fake_loss = loss.fake_loss(fake_logits)
            accelerator.backward((real_loss + fake_loss) / len(reals))
        all_fakes.append(fakes)
        all_statistics.append(
            {
                "loss/d": (real_loss + fake_loss).detach(),
                "loss/d_real": real_loss.detach(),
                "loss/d_fake": fake_loss.detach(),
                "logits/real_mean": real_logits.detach().mean(),
                "logits/fake_mean": fake_logits.detach().mean(),
                "accuracy/d_real": (real_logits > 0).float().mean(),
                "accuracy/d_fake": (fake_logits < 0).float().mean(),
            }
        )
    statistics = mean_of(all_statistics)
    accelerator.unscale_gradients(players.optimizer_d)
    statistics["grad_norm/d"] = grad_norm(players.bare_discriminator)
    players.optimizer_d.step()
    return all_fakes, statistics


def generator_step(
    players: Players,
    *,
    fakes: list[Tensor] | None,
    latents: list[Tensor],
    loss: AdversarialLoss,
) -> Statistics:
    """Move the generator by one step on the fakes of the discriminator's step, or on fresh ones where they have no graph.

    The bare discriminator is frozen meanwhile: its gradients are neither computed nor reduced, and it does not change.
    """
    accelerator = players.accelerator
    players.optimizer_g.zero_grad()
    players.bare_discriminator.requires_grad_(False)
    all_statistics = []
    for index, latent in enumerate(latents):
        with reduce_on_last(accelerator, players.generator, index, len(latents)):
            images = players.generator(latent) if fakes is None else fakes[index]
            generator_loss = loss.generator_loss(players.bare_discriminator(images))
            accelerator.backward(generator_loss / len(latents))
        all_statistics.append({"loss/g": generator_loss.detach()})
    players.bare_discriminator.requires_grad_(True)
    statistics = mean_of(all_statistics)
    accelerator.unscale_gradients(players.optimizer_g)
    statistics["grad_norm/g"] = grad_norm(players.bare_generator)
    players.optimizer_g.step()
    return statistics
