"""Feature extractors: uint8 images of any size and device -> float32 features [B, d] and, with classes, logits.

`RandomConv` needs nothing, `probe.Probe` needs labels once, `Inception` needs the extra `fid` and gives the published FID.
"""

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from distgan.errors import UserError
from distgan.runtime.distributed import World


class Extracted(NamedTuple):
    """Features float32 [B, d]; logits float32 [B, C], or None without a classifier."""

    features: Tensor
    logits: Tensor | None


class FeatureExtractor(Protocol):
    """Turns uint8 images [B, C, H, W], on any device, into `Extracted` on its own device; the same every time.

    `version` is a hash of all that determines the features. `class_names` is empty where logits mean no classes of the
    data. `published` says that papers use these very features, so that distances may be called FID and KID.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def num_classes(self) -> int | None: ...
    @property
    def resize(self) -> str: ...
    @property
    def published(self) -> bool: ...
    @property
    def device(self) -> torch.device: ...
    def __call__(self, images: Tensor) -> Extracted: ...


class Extractor(nn.Module):
    """What the extractors share: a frozen fp32 network that counts as evaluation whatever surrounds the call."""

    name: str
    version: str
    dim: int
    class_names: tuple[str, ...] = ()
    resize: str = "none"
    published: bool = False

    @property
    def num_classes(self) -> int | None:
        """How many classes the logits tell apart; None without classes."""
        return len(self.class_names) or None

    @property
    def device(self) -> torch.device:
        """Where the weights are and where features come out."""
        return next(self.parameters()).device

    def forward(self, images: Tensor) -> Extracted:
        assert images.dtype == torch.uint8 and images.dim() == 4, (
            f"{images.dtype} {tuple(images.shape)} are no images"
        )
        with torch.inference_mode(), exact_float32(self.device.type):
            return self.extract(images.to(self.device))

    def extract(self, images: Tensor) -> Extracted:
        """The network itself, in fp32 and without gradients."""
        raise NotImplementedError


@contextmanager
def exact_float32(device_type: str) -> Iterator[None]:
    """No autocast, no TF32 convolutions, no choice of algorithm by timing."""
    flags = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with torch.autocast(device_type, enabled=False), flags:
        yield


def weights_hash(network: nn.Module, *extra: object) -> str:
    """sha256 (first 12 hex digits) of all weights and buffers by name, and of whatever else determines the output."""
    digest = hashlib.sha256(repr(extra).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def fit_images(images: Tensor, *, channels: int, size: int) -> Tensor:
    """uint8 [B, *, H, W] -> float32 [B, channels, size, size] in [-1, 1].

    Grey is repeated, colour averaged; shrinking averages areas, growing is bilinear.
    """
    pixels = images.float() / 127.5 - 1
    if images.shape[1] != channels:
        pixels = pixels.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    if images.shape[2:] == (size, size):
        return pixels.contiguous()
    if min(images.shape[2:]) >= size:
        return functional.interpolate(pixels, (size, size), mode="area")
    return functional.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)


class RandomConv(Extractor):
    """Three untrained convolutions with fixed weights: usable without labels, weights or a network.

    Means and deviations over the four quarters of each feature map, so that both texture and layout count. Distances
    compare generators on one dataset; they mean nothing beside another extractor's.
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
        quarters = (
            maps.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
        )  # [B, C, 2, 2, 4]: 4x4 maps in 2x2 cells
        features = torch.cat([quarters.mean(4).flatten(1), quarters.std(4).flatten(1)], 1)
        return Extracted(features, None)


class Inception(Extractor):
    """The 2015 TensorFlow Inception as converted by torch-fidelity: the one extractor whose numbers are called FID.

    `weights` is a file in torch-fidelity's format; None lets torch-fidelity download its own, on rank zero first.
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
                f"no Inception weights at {weights}; give torch-fidelity's .pth file, or no path to download it"
            )

        def build() -> Any:
            path = None if weights is None else str(weights)
            return FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], path
            )

        failure = None
        for turn in (world.is_main, not world.is_main):
            # One rank downloads while the others wait; then they find the file, or fetch their own node's.
            if turn:
                try:
                    self.network = build()
                except (
                    Exception
                ) as error:  # whatever it is, the other ranks are waiting at the barrier
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
