"""Feature extractors: uint8 images of any size and device -> float32 features, logits if any.

`RandomConv` needs nothing. `probe.Probe` is trained once on labelled images. `Inception` needs the
extra `fid` and gives the FID of published tables.
"""

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from distgan.errors import UserError
from distgan.runtime.distributed import World

THUMBNAIL_SIZE = 8


class Extracted(NamedTuple):
    """Features float32 [B, d], and logits float32 [B, C] or None if there is no classifier."""

    features: Tensor
    logits: Tensor | None


class Extractor(nn.Module):
    """Base of all extractors: a frozen network that always runs in fp32 and without gradients.

    It is a deterministic function of uint8 images [B, C, H, W], on any device, to `Extracted` on
    its own. `version` is a hash of everything that determines the features. `class_names` is empty
    if the logits are not those of the data's classes. `published` means that papers use the same
    features, so that distances are called FID and KID.
    """

    name: str
    version: str
    dim: int
    class_names: tuple[str, ...] = ()
    resize: str = "none"
    published: bool = False

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the logits; None if there are no classes."""
        return len(self.class_names) or None

    @property
    def device(self) -> torch.device:
        """Device of the weights and of the features."""
        return next(self.parameters()).device

    def forward(self, images: Tensor) -> Extracted:
        assert images.dtype == torch.uint8 and images.dim() == 4, (
            f"{images.dtype} {tuple(images.shape)} are not images"
        )
        with torch.inference_mode(), exact_float32(self.device.type):
            return self.extract(images.to(self.device))

    def extract(self, images: Tensor) -> Extracted:
        """Run the network; called in fp32 and without gradients."""
        raise NotImplementedError


@contextmanager
def exact_float32(device_type: str) -> Iterator[None]:
    """Disable autocast, TF32 convolutions, and the choice of algorithms by timing."""
    flags = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with torch.autocast(device_type, enabled=False), flags:
        yield


def weights_hash(network: nn.Module, *extra: object) -> str:
    """Return 12 hex digits of the sha256 of all weights and buffers by name, and of `extra`."""
    digest = hashlib.sha256(repr(extra).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def fit_images(images: Tensor, *, channels: int, size: int) -> Tensor:
    """Return uint8 images [B, *, H, W] as float32 [B, channels, size, size] in [-1, 1].

    Grey is repeated, and colours become their mean. Other numbers of channels are averaged in as
    many groups of neighbours as there are wanted channels. Shrinking averages areas; enlarging is
    bilinear.
    """
    pixels = images.float() / 127.5 - 1
    if images.shape[1] not in (1, 3, channels):
        groups = functional.adaptive_avg_pool1d(pixels.flatten(2).transpose(1, 2), channels)
        pixels = groups.transpose(1, 2).unflatten(2, images.shape[2:])
    elif images.shape[1] != channels:
        pixels = pixels.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    if images.shape[2:] == (size, size):
        return pixels.contiguous()
    if min(images.shape[2:]) >= size:
        return functional.interpolate(pixels, (size, size), mode="area")
    return functional.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)


def thumbnails(images: Tensor) -> Tensor:
    """Return uint8 images [B, C, H, W] as the pixels of 8x8 thumbnails, float32 [B, 64 C]."""
    return functional.adaptive_avg_pool2d(images.float() / 127.5 - 1, THUMBNAIL_SIZE).flatten(1)


def mirrored(thumbnails: Tensor) -> Tensor:
    """Return the thumbnails [B, 64 C] of mirrored images."""
    return thumbnails.unflatten(1, (-1, THUMBNAIL_SIZE, THUMBNAIL_SIZE)).flip(3).flatten(1)


def detail(images: Tensor) -> Tensor:
    """Return how sharp uint8 images [B, C, H, W] are, float32 [B].

    It is the mean absolute difference between pixels and their right and lower neighbours, in
    [0, 255]. Blur lowers it.
    """
    pixels = images.float()
    across, down = pixels.diff(dim=3).abs(), pixels.diff(dim=2).abs()
    return (across.mean((1, 2, 3)) + down.mean((1, 2, 3))) / 2


class RandomConv(Extractor):
    """Three convolutions with fixed random weights, which need neither labels nor a download.

    Features are means and deviations over the four quarters of each feature map, so that both
    texture and layout count. Distances in them compare generators of one dataset with one another.
    """

    name = "random-conv"
    resize = "to 32x32 (area or bilinear)"

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        widths = (3, 16, 32, 32)
        draw = torch.Generator().manual_seed(seed)
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 5, stride=2, padding=2) for i, o in itertools.pairwise(widths)
        )
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d) and conv.bias is not None
            fan_in = conv.in_channels * 25
            conv.weight.data = torch.randn(conv.weight.shape, generator=draw) * (2 / fan_in) ** 0.5
            conv.bias.data.zero_()
        self.requires_grad_(False).eval()
        self.dim = 2 * 4 * widths[-1]
        self.version = weights_hash(self, "quarters", self.resize)

    def extract(self, images: Tensor) -> Extracted:
        maps = fit_images(images, channels=3, size=32)
        for conv in self.convs:
            maps = functional.leaky_relu(conv(maps), 0.2)
        # 4x4 maps in 2x2 cells: [B, C, 2, 2, 4]
        quarters = maps.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
        features = torch.cat([quarters.mean(4).flatten(1), quarters.std(4).flatten(1)], 1)
        return Extracted(features, None)


class Inception(Extractor):
    """The TensorFlow Inception of 2015 as converted by torch-fidelity, which defines the FID.

    `weights` is a file in torch-fidelity's format. With None, torch-fidelity downloads its own, on
    rank zero first.
    """

    name = "inception"
    dim = 2048
    resize = "to 299x299 (TensorFlow 1 bilinear)"
    published = True

    def __init__(self, weights: Path | None = None, *, world: World) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise UserError(
                "Inception features need torch-fidelity; type: pip install 'distgan[fid]'"
            ) from None
        if weights is not None and not weights.is_file():
            raise UserError(
                f"no Inception weights at {weights}; give torch-fidelity's .pth file, "
                "or no path to download it"
            )

        def build() -> Any:
            path = None if weights is None else str(weights)
            return FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], path
            )

        failure = None
        for turn in (world.is_main, not world.is_main):
            # Rank zero downloads while the others wait. Then they find the file, or download it
            # for their own node.
            if turn:
                try:
                    self.network = build()
                except Exception as error:  # raised after the barrier, where other ranks wait
                    failure = error
            world.barrier()
        if failure is not None:
            raise UserError(
                f"cannot load the Inception weights ({failure}); give their path, or a network"
            ) from failure
        self.version = weights_hash(self, self.resize)

    def extract(self, images: Tensor) -> Extracted:
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        features, logits = self.network(images)
        return Extracted(features, logits)
