"""Sets of known quality from scikit-learn's digits: a fifth are fakes, the rest are reals."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from distgan.evaluation.evaluate import Result, evaluate
from distgan.evaluation.extractors import Extracted, Extractor, weights_hash
from distgan.evaluation.neighbours import squared_distances
from distgan.evaluation.reference import PreparedReference, RealImages, split_reals
from distgan.evaluation.sample import MetricSettings
from distgan.runtime.distributed import World

ALONE = World(0, 1)
NUM = 150  # fakes, and reals of each part
SETTINGS = MetricSettings(kernel_subsets=5)


def digits() -> tuple[Tensor, Tensor]:
    """Return uint8 images [1797, 1, 8, 8] and labels, shuffled."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    images = (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8)[:, None]
    return images[order], torch.from_numpy(bunch.target).long()[order]


def cut(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, RealImages]:
    """Return a fifth of the images as fakes with labels, and the rest as reals."""
    fifth = len(images) // 5
    rest = images[fifth:]
    return images[:fifth], labels[:fifth], RealImages(rest.__getitem__, len(rest), "digits-rest")


class ExampleClassifier(Extractor):
    """A classifier of 8x8 digits that is not trained: features are pixels, logits are densities.

    The logit of a class is the log density of its labelled examples around the image, under a
    normal kernel. Squared distances between pixels are exact in float64, so neighbours, and with
    them most metrics, are the same on any CPU.
    """

    name = "examples"
    dim = 64
    class_names = tuple("0123456789")
    BANDWIDTH = 100.0  # grey levels

    def __init__(self) -> None:
        super().__init__()
        images, labels = digits()
        fifth = len(images) // 5
        self.examples = nn.Parameter(images[fifth:].flatten(1).double(), requires_grad=False)
        self.labels = labels[fifth:]
        self.version = weights_hash(self, self.BANDWIDTH)

    def extract(self, images: Tensor) -> Extracted:
        pixels = images.flatten(1)
        distances = squared_distances(pixels.double(), self.examples)
        log_densities = -distances / (2 * self.BANDWIDTH**2)
        classes = [
            log_densities[:, self.labels == label].logsumexp(1)
            for label in range(len(self.class_names))
        ]
        return Extracted(pixels.float() / 256, torch.stack(classes, 1).float())


def repeated(images: Tensor, num: int = NUM) -> Tensor:
    """Return the first `num` images, repeating them if there are fewer."""
    return images[torch.arange(num) % len(images)]


def noisy(images: Tensor, scale: float = 8) -> Tensor:
    """Add normal noise of `scale` grey levels."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images + scale * noise).round().clamp(0, 255).to(torch.uint8)


def controlled_sets() -> tuple[dict[str, Tensor], RealImages]:
    """Return sets of fakes by what is wrong with them, and the reals."""
    images, labels, reals = cut(*digits())
    reference = split_reals(reals.num_images, NUM, None, seed=0)[0]
    sets = {
        "all classes": repeated(images),
        "half of the classes": repeated(images[labels < 5]),
        "one class": noisy(repeated(images[labels == 3])),
        "one image": noisy(repeated(images[:1])),
        "duplicates": noisy(repeated(images[:40])),
        "copies": reals.images(reference),
        "noise": torch.randint(
            0, 256, (NUM, 1, 8, 8), generator=torch.Generator().manual_seed(2)
        ).to(torch.uint8),
    }
    return sets, reals


def score(
    fakes: Tensor, prepared: PreparedReference, extractor: Extractor, world: World = ALONE
) -> Result:
    """Evaluate a tensor of images."""
    return evaluate(lambda start, stop: fakes[start:stop], prepared, extractor, world=world)
