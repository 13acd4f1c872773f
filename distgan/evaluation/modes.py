"""Diversity as a classifier sees it: class counts, modes captured, missing classes, reverse KL."""

import torch
from torch import Tensor

# Images of a class. Where so many are expected, a generator that is right has less than a tenth of
# them by chance in at most one of 1,000 classes.
FEWEST_EXPECTED = 7


def class_histogram(labels: Tensor, num_classes: int) -> Tensor:
    """Return the counts [C], int64, of predicted labels [n]."""
    return torch.bincount(labels, minlength=num_classes)


def modes_captured(counts: Tensor) -> int:
    """Return the number of classes with a sample, as papers on Stacked MNIST count modes."""
    return int((counts > 0).sum())


def confident_counts(logits: Tensor, *, confidence: float = 0.7) -> Tensor:
    """Return the counts [C], int64, of the classes among the images classified with confidence.

    Those are images with a posterior of at least `confidence`. A classifier that takes a tenth of
    all cats for dogs would see dogs where there are none, but it is rarely certain of them.
    """
    posterior, label = logits.softmax(1).max(1)
    return class_histogram(label[posterior >= confidence].cpu(), logits.shape[1])


def shares_of(counts: Tensor) -> Tensor:
    """Return the shares [C], float64, of classes with these counts; zeros if there is no image."""
    return counts.double() / counts.sum().clamp_min(1)


def missing_classes(counts: Tensor, real_shares: Tensor, *, below: float = 0.1) -> list[int]:
    """Return the classes with less than `below` times the images that the reals' shares promise.

    A class is left out if fewer than seven images of it would be expected among all `counts`.
    """
    expected = real_shares * counts.sum()
    is_missing = (counts < below * expected) & (expected >= FEWEST_EXPECTED)
    return torch.nonzero(is_missing).flatten().tolist()


def reverse_kl(counts: Tensor, shares: Tensor) -> float:
    """Return KL(classes of fakes || classes of reals) in nats, given counts and real shares.

    It is 0 at best, and ln C for one of C equally frequent classes. A class without reals counts as
    half a sample, so that one misclassified fake does not make the divergence infinite.
    """
    p = counts.double() / counts.sum()
    q = shares.double().clamp_min(0.5 / float(counts.sum()))
    return float(torch.special.xlogy(p, p / (q / q.sum())).sum())


def reverse_kl_floor(num_classes: int, *num_samples: int) -> float:
    """Return the expected `reverse_kl` of a perfect generator, by the chi-squared approximation.

    Each finite set of n samples adds (C - 1) / 2n: the fakes, and the reals unless their shares are
    exact.
    """
    return sum((num_classes - 1) / (2 * n) for n in num_samples)


def effective_classes(shares: Tensor) -> float:
    """Return exp of the entropy of shares [C]: the number of classes in equal use, from 1 to C."""
    return float(torch.special.entr(shares.double()).sum().exp())
