"""DCGAN (Radford et al. 2016) for images of 16 to 256 pixels; with 32, 64 or 128 it is the paper's.

generator      latents [B, Z] -> linear -> 4x4 maps -> (norm, ReLU, transposed convolution) x k
               -> tanh -> images [B, C, H, W]
discriminator  images [B, C, H, W] -> (strided convolution, norm, leaky ReLU) x k
               -> 4x4 maps -> linear -> logits [B]

Images of other sizes begin with 3 to 7 pixels in place of 4 (`sizes.py`).

All these convolutions have a 4x4 kernel, stride 2 and padding 1. On a CPU, `build.py` replaces them
with faster equivalents from `convolutions.py`.
"""

from torch import nn

from distgan.networks.base import (
    Discriminator,
    DiscriminatorSpec,
    GeneratorNetwork,
    GeneratorSpec,
    MinibatchStddev,
)
from distgan.networks.conditioning import Layers
from distgan.networks.sizes import ImageSize, pyramid


def init_dcgan(module: nn.Module) -> None:
    """Draw weights from N(0, 0.02) and norm scales from N(1, 0.02), and set biases to zero.

    Radford et al. 2016, section 4.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def init_he(module: nn.Module) -> None:
    """Draw weights that preserve the variance of maps through leaky ReLUs of slope 0.2.

    He et al. 2015, equation 15. Weights from N(0, 0.02) would shrink the maps in every layer
    without a norm.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, 0.2)


class DCGANGenerator(GeneratorNetwork):
    """DCGAN generator: latents [B, latent_dim] to images [B, C, H, W] in [-1, 1].

    `spec.refinements` adds 3x3 convolutions, one per resolution, beginning with the full
    resolution, where it has half the width and makes the image.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        height, width, num_doublings = pyramid(spec.image_size)
        self.start = (height, width)
        widths = doubled_widths(spec.width, num_doublings, most=spec.max_width)[::-1]
        # A 4x4 transposed convolution of a 1x1 map is this matrix product.
        self.project = nn.Linear(spec.latent_dim, widths[0] * height * width, bias=False)
        layers: list[nn.Module] = self.activation(widths[0])
        for number in range(num_doublings):
            if num_doublings - number < spec.refinements:
                same = widths[number]
                layers.append(nn.Conv2d(same, same, 3, padding=1, bias=False))
                layers += self.activation(same)
            if number + 1 < num_doublings:
                layers += self.doubling(widths[number], widths[number + 1])
        if spec.refinements > 0:
            half_width = max(1, spec.width // 2)
            layers += self.doubling(widths[-1], half_width)
            layers.append(nn.Conv2d(half_width, spec.channels, 3, padding=1))
        else:
            layers.append(nn.ConvTranspose2d(widths[-1], spec.channels, 4, stride=2, padding=1))
        layers.append(nn.Tanh())
        self.layers = Layers(*layers)
        self.apply(init_dcgan)
        self.add_condition()

    def activation(self, channels: int) -> list[nn.Module]:
        """Return a norm and ReLU."""
        return [self.norm(channels), nn.ReLU(inplace=True)]

    def doubling(self, before: int, after: int) -> list[nn.Module]:
        """Return layers that double the resolution."""
        up = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)
        return [up, *self.activation(after)]


class DCGANDiscriminator(Discriminator):
    """DCGAN discriminator: strided convolutions, the first without batch norm.

    `refinements` adds 3x3 convolutions without norm, one per resolution, beginning with the full
    resolution (Miyato et al. 2018, table 3). The first of them has half the width.
    """

    def __init__(self, spec: DiscriminatorSpec, *, image_size: ImageSize, channels: int) -> None:
        super().__init__()
        self.packing = spec.packing
        height, width_of_maps, num_doublings = pyramid(image_size)
        widths = doubled_widths(spec.width, num_doublings, most=spec.max_width)
        layers: list[nn.Module] = []
        before = channels * spec.packing
        if spec.refinements > 0:
            half_width = max(1, spec.width // 2)
            layers += refinement(before, half_width)
            before = half_width
        for number, width in enumerate(widths, start=1):
            has_norm = spec.norm == "batch" and number > 1
            layers.append(nn.Conv2d(before, width, 4, stride=2, padding=1, bias=not has_norm))
            if spec.minibatch_stddev and number == len(widths):
                layers.append(MinibatchStddev(width, spec.minibatch_stddev))
            if has_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            if number < spec.refinements:
                layers += refinement(width, width)
            before = width
        self.layers = nn.Sequential(*layers)
        # A 4x4 convolution of a 4x4 map to one number is this matrix product.
        self.head = nn.Linear(widths[-1] * height * width_of_maps, 1)
        self.num_channels = widths[-1]
        self.apply(init_dcgan)
        if spec.init == "he":
            self.layers.apply(init_he)


def doubled_widths(first: int, num: int, *, most: int) -> list[int]:
    """Return `num` numbers of channels, each twice the one before, up to `most`."""
    return [min(first * 2**i, max(first, most)) for i in range(num)]


def refinement(before: int, after: int) -> list[nn.Module]:
    """Return a 3x3 convolution that keeps the resolution, and its activation."""
    return [nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(0.2, inplace=True)]
