"""Directions in latent space that change a generator's images most."""

from typing import Any

import torch
from torch import Tensor, nn

from distgan.networks.mixture import Mixture


def latent_directions(network: nn.Module, num: int) -> Tensor:
    """Return unit vectors [K, num, Z] for K generators (one per class, or K = 1), strongest first.

    The principal components of the first layer's outputs for latents from N(0, 1) (Härkönen et al.
    2020, section 2.1), as directions in latent space. Those are the right singular vectors of the
    layer's weight (Shen and Zhou 2021). The sign makes the largest value positive.
    """
    parts: Any = network.parts if isinstance(network, Mixture) else [network]
    return torch.stack([directions_of_weight(part.project.weight, num) for part in parts])


def directions_of_weight(weight: Tensor, num: int) -> Tensor:
    """Return the first right singular vectors [num, Z] of a weight [F, Z]."""
    # The eigenvectors of W^T W, which is much smaller than W.
    weight = weight.detach().double().cpu()
    vectors = torch.linalg.eigh(weight.T @ weight).eigenvectors.flip(1).T[:num]
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return (vectors * largest.sign()).float()
