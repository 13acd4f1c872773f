"""What a classifier says about diversity: the class histogram, modes captured, missing classes, reverse KL."""

import torch
from torch import Tensor


def class_histogram(labels: Tensor, num_classes: int) -> Tensor:
    """Counts [C] of predicted labels [n], int64."""
    return torch.bincount(labels, minlength=num_classes)


def modes_captured(counts: Tensor) -> int:
    """Classes with at least one sample: the count of the Stacked MNIST papers."""
    return int((counts > 0).sum())


def confident_shares(logits: Tensor, *, confidence: float = 0.7) -> Tensor:
    """Shares [C], float64, of the classes among images that the classifier is sure of: a posterior of `confidence`.

    A classifier that errs sees classes that are not there, a tenth of all cats as dogs; of those it is rarely sure. All
    zero where it is sure of no image.
    """
    posterior, label = logits.softmax(1).max(1)
    counts = class_histogram(label[posterior >= confidence].cpu(), logits.shape[1]).double()
    return counts / counts.sum().clamp_min(1)


def missing_classes(shares: Tensor, real_shares: Tensor, *, below: float = 0.1) -> list[int]:
    """Classes with less than `below` of the reals' share."""
    return torch.nonzero(shares < below * real_shares).flatten().tolist()


def reverse_kl(counts: Tensor, shares: Tensor) -> float:
    """KL(fakes' classes || reals' classes) in nats: 0 at best, ln C for one class of C equal ones.

    Classes without reals get the weight of half a sample, so that a misread sample does not make it infinite.
    """
    p = counts.double() / counts.sum()
    q = shares.double().clamp_min(0.5 / float(counts.sum()))
    return float(torch.special.xlogy(p, p / (q / q.sum())).sum())


def reverse_kl_floor(num_classes: int, *num_samples: int) -> float:
    """What `reverse_kl` of a perfect generator is expected to be: (C - 1) / 2n for each of the finite sets compared.

    The chi-squared approximation; one set where the reals' shares are exact, two where they are themselves counted.
    """
    return sum((num_classes - 1) / (2 * n) for n in num_samples)


def effective_classes(shares: Tensor) -> float:
    """exp of the entropy of shares [C]: the number of equally used classes, from 1 to C."""
    return float(torch.special.entr(shares.double()).sum().exp())
