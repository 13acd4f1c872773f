"""Random draws as pure functions of (seed, purpose, position), so there is no state to save.

A position is the number of a real image in the run. The latent of image p does not depend on the
number of processes, on the batch size or on whether the run was resumed. The generator is
SplitMix64 (Steele et al. 2014) applied to a counter, in int64 tensor arithmetic.
"""

import hashlib
import math

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # the odd increment of SplitMix64, as a signed number
MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
MIX_2 = 0x94D049BB133111EB - 2**64


def purpose_key(seed: int, purpose: str) -> int:
    """Return the start of a purpose's counter sequence, a signed 64-bit integer."""
    digest = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def shift_right(bits: Tensor, count: int) -> Tensor:
    """Shift right logically; `>>` of int64 alone would keep the sign."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def random_bits(shape: tuple[int, ...], positions: Tensor, *, seed: int, purpose: str) -> Tensor:
    """Return 64 random bits per element, int64 [B, *shape], for positions int64 [B]."""
    per_sample = math.prod(shape)
    element = torch.arange(1, per_sample + 1, device=positions.device)
    bits = (positions[:, None] * per_sample + element) * GOLDEN + purpose_key(seed, purpose)
    bits = (bits ^ shift_right(bits, 30)) * MIX_1
    bits = (bits ^ shift_right(bits, 27)) * MIX_2
    return (bits ^ shift_right(bits, 31)).view(-1, *shape)


def lacks_integers(positions: Tensor) -> bool:
    """Return whether to draw on the CPU, because 64-bit integers are unreliable on the device."""
    return positions.device.type == "mps"


def uniform(shape: tuple[int, ...], positions: Tensor, *, seed: int, purpose: str) -> Tensor:
    """Return float32 [B, *shape], uniform in [0, 1)."""
    if lacks_integers(positions):
        return uniform(shape, positions.cpu(), seed=seed, purpose=purpose).to(positions.device)
    bits = random_bits(shape, positions, seed=seed, purpose=purpose)
    return shift_right(bits, 40).float() * 2.0**-24


def normal(shape: tuple[int, ...], positions: Tensor, *, seed: int, purpose: str) -> Tensor:
    """Return float32 [B, *shape] drawn from N(0, 1), by Box and Muller 1958."""
    if lacks_integers(positions):
        return normal(shape, positions.cpu(), seed=seed, purpose=purpose).to(positions.device)
    bits = random_bits(shape, positions, seed=seed, purpose=purpose)
    uniforms = (shift_right(bits, 32).float() + 0.5) * 2.0**-32
    radius = (-2.0 * uniforms.log()).clamp_min(0.0).sqrt()
    angle = (bits & 0xFFFFFFFF).float() * (2.0 * math.pi * 2.0**-32)
    return radius * angle.cos()
