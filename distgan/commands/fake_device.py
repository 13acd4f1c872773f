"""A GPU that does not exist, on which whole training steps can be taken to see what they launch.

Tensors are fake: they have a shape, a type and a device, and no data. An operation on tensors of
different devices raises an error, and so does reading a number, for which a GPU would have to stop
and answer. The device is PyTorch's backend for private use under another name, because a backward
on fake "cuda" tensors asks the driver. Renaming a backend cannot be undone, so `install` belongs
into a process of its own.
"""

import contextlib
import copy
import types
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.backend_registration as backends
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import distgan.gan
import distgan.networks.ema
from distgan.config.schema import Config
from distgan.data import TrainingBatches
from distgan.gan import GAN, generator_spec, prepare_gan
from distgan.labels import stand_in_labels
from distgan.networks.base import DiscriminatorSpec
from distgan.networks.build import build_discriminator, build_generator

DEVICE, AUTOCAST_KEY = "nogpu", "AutocastPrivateUse1"
AUTOCAST_DTYPES = [torch.bfloat16, torch.float16]
# What autocast computes in lower precision on CUDA, as far as the networks use it.
LOW_PRECISION = ("linear", "conv2d", "conv_transpose2d.input", "mm", "addmm", "bmm", "matmul")
# Operations that launch no kernel, besides views.
WITHOUT_KERNEL = {
    "device", "empty", "empty_strided", "empty_like", "empty_permuted", "new_empty",
    "new_empty_strided", "detach", "alias", "lift_fresh", "_unsafe_view", "set_", "is_pinned",
}  # fmt: skip


# ------------------------------------------------------------------------------------- the device


def install() -> list[torch.library.Library]:
    """Make the device available; the registrations last as long as the result is kept."""
    backends._setup_privateuseone_for_python_backend(rename=DEVICE)
    replacements: list[tuple[Any, str, Any]] = [
        (backends._DummyBackendModule, "get_amp_supported_dtype", lambda self: AUTOCAST_DTYPES),
        (FakeTensorMode, "avoid_device_init", True),
        (torch._C, "_conv_determine_backend_memory_format", memory_format_of_cudnn),
        (nn.Module, "to", move_module),
        (distgan.gan, "copy", types.SimpleNamespace(deepcopy=copy_module)),
        (distgan.networks.ema, "copy", types.SimpleNamespace(deepcopy=copy_module)),
    ]
    for owner, name, replacement in replacements:
        setattr(owner, name, replacement)
    return [*register_autocast(), register_fused_sgd()]


def memory_format_of_cudnn(images: Tensor, weight: Tensor, _: object) -> torch.memory_format:
    """Return channels last if either argument has it, as cuDNN does."""
    channels_last = any(
        t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
        for t in (images, weight)
    )
    return torch.channels_last if channels_last else torch.contiguous_format


def register_autocast() -> list[torch.library.Library]:
    """Cast on the device as autocast casts on CUDA."""
    others = torch.library.Library("_", "IMPL", AUTOCAST_KEY)
    others.fallback(torch.library.fallthrough_kernel, AUTOCAST_KEY)
    lowered = torch.library.Library("aten", "IMPL", AUTOCAST_KEY)
    for name in LOW_PRECISION:
        base, _, overload = name.partition(".")
        operation = getattr(getattr(torch.ops.aten, base), overload or "default")
        lowered.impl(name, in_low_precision(operation), AUTOCAST_KEY)
    return [others, lowered]


def register_fused_sgd() -> torch.library.Library:
    """Let fake tensors take a step of fused SGD, which returns nothing."""
    meta = torch.library.Library("aten", "IMPL", "Meta")
    meta.impl("_fused_sgd_", lambda *args, **kwargs: None)
    return meta


def in_low_precision(operation: Any) -> Any:
    """Return the operation with its float32 arguments cast to autocast's type."""
    key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, AUTOCAST_KEY))

    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(DEVICE)
        with torch._C._ExcludeDispatchKeyGuard(key):
            cast = [
                a.to(dtype) if isinstance(a, Tensor) and a.dtype == torch.float32 else a
                for a in args
            ]
            return operation(*cast, **kwargs)

    return run


def move_module(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """Do what `nn.Module.to` does, without `swap_tensors`, which fake tensors do not support."""
    device, _, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = parameter.detach().to(device or parameter.device)
                if memory_format and moved.dim() == 4:
                    moved = moved.to(memory_format=memory_format)
                part._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device or buffer.device)
    return module


def copy_module(module: nn.Module) -> nn.Module:
    """Deep-copy a module with new tensors; a fake tensor's own deepcopy would read its data."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p), p.requires_grad) for p in module.parameters()
    }
    memo |= {id(buffer): torch.empty_like(buffer) for buffer in module.buffers()}
    return copy.deepcopy(module, memo)


# ------------------------------------------------------------------------------------ Accelerator


class FakeOptimizer:
    """Stand-in for Accelerate's optimizer, with the parts that a step uses."""

    step_was_skipped = False

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.step = optimizer, optimizer.step

    def zero_grad(self) -> None:
        """Drop the gradients, as Accelerate does."""
        self.optimizer.zero_grad(set_to_none=True)


class FakeAccelerator:
    """Stand-in for an Accelerator on the fake device, with the parts that a GAN uses."""

    num_processes, process_index, scaler = 1, 0, None

    def __init__(self, precision: str) -> None:
        self.mixed_precision, self.device = precision, torch.device(DEVICE)
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a forward."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(DEVICE, dtype=self.dtype)

    def prepare(self, *things: Any) -> list[Any]:
        """Wrap forwards in autocast, with float32 results."""
        return [
            self.with_autocast(thing) if isinstance(thing, nn.Module) else FakeOptimizer(thing)
            for thing in things
        ]

    def with_autocast(self, network: nn.Module) -> nn.Module:
        """Wrap one forward."""
        forward = type(network).forward

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.autocast():
                found = forward(network, *args, **kwargs)
            parts = found if isinstance(found, tuple) else (found,)
            floats = tuple(part.float() for part in parts)
            return floats if isinstance(found, tuple) else floats[0]

        if self.dtype is not None:
            network.forward = run
        return network

    def unwrap_model(self, network: nn.Module) -> nn.Module:
        """Return the network, which has no wrapper in a world of one."""
        return network

    def no_sync(self, network: nn.Module) -> contextlib.AbstractContextManager[None]:
        """There are no other ranks to reduce with."""
        return contextlib.nullcontext()

    def unscale_gradients(self, optimizer: Any) -> None:
        """There is no scaler."""

    def backward(self, loss: Tensor) -> None:
        """Run the backward in this thread: the modes that watch it belong to the thread."""
        with torch.autograd.set_multithreading_enabled(False):
            loss.backward()


# ---------------------------------------------------------------------------------------- a step


@dataclass(frozen=True)
class Kernel:
    """Cost of an operation that launches a kernel; its arguments and results have `num_bytes`.

    `is_float32` says that its arithmetic is not in lower precision.
    """

    num_bytes: int
    flops: int
    is_float32: bool


class DeviceWork(TorchDispatchMode):
    """A context that records the operations on the device, and its memory in use.

    Operations on lists of tensors count as one launch, as they are on a GPU if the list is short.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names = Counter[str]()  # of operations that launch a kernel
        self.copies = Counter[str]()  # between device and host
        self.kernels: list[Kernel] = []
        self.storages: dict[int, int] = {}  # bytes
        self.bytes_in_use = self.peak_bytes = 0

    def clear(self) -> None:
        """Forget everything but the tensors that exist."""
        self.names.clear()
        self.copies.clear()
        self.kernels.clear()
        self.peak_bytes = self.bytes_in_use

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(out)
        returns = func._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        for tensor in filter(is_on_device, outputs):
            self.track(tensor)
        if name in ("_to_copy", "copy_") and len({t.device.type for t in inputs + outputs}) == 2:
            self.copies[name] += 1
        elif not is_view and name not in WITHOUT_KERNEL:
            touched = [*filter(is_on_device, inputs + outputs)]
            if touched:
                formula = flop_registry.get(func._overloadpacket)
                flops = formula(*args, **kwargs, out_val=out) if formula else 0
                num_bytes = sum(t.numel() * t.element_size() for t in touched)
                is_float32 = any(t.dtype == torch.float32 for t in inputs)
                self.names[name] += 1
                self.kernels.append(Kernel(num_bytes, flops, is_float32))
        return out

    def track(self, tensor: Tensor) -> None:
        """Count a tensor's memory until it is freed."""
        storage = tensor.untyped_storage()
        key, num_bytes = storage._cdata, storage.nbytes()
        if key not in self.storages:
            self.storages[key] = num_bytes
            self.bytes_in_use += num_bytes
            self.peak_bytes = max(self.peak_bytes, self.bytes_in_use)
            weakref.finalize(storage, self.free, key)

    def free(self, key: int) -> None:
        """Stop counting a storage."""
        self.bytes_in_use -= self.storages.pop(key)


def tensors_in(tree: Any) -> list[Tensor]:
    """Return all tensors of nested lists, tuples and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def is_on_device(tensor: Tensor) -> bool:
    """Return whether a tensor is on the fake device."""
    return tensor.device.type == DEVICE


class FakeBatches(TrainingBatches):
    """Batches whose images are in the memory of the device, as `ResidentStream` gives them."""

    def __init__(self, config: Config, image_shape: tuple[int, int, int]) -> None:
        train = config.train
        self.config, self.device = config, torch.device(DEVICE)
        self.batch_size_per_rank, self.offset = train.batch_size, 0
        self.micro_batch_size = train.batch_size // train.accumulate
        self.wait_seconds, self.stream = 0.0, self  # type: ignore[assignment]
        self.draws, self.labels_at = None, None
        if (labels := stand_in_labels(config.networks)) is not None:
            self.labels_at = labels.of_samples
        images = torch.zeros((1000, *image_shape), dtype=torch.uint8, device=DEVICE)
        self.images = images.to(memory_format=torch.channels_last)

    def __next__(self) -> Tensor:
        return self.images[torch.arange(self.batch_size_per_rank).to(DEVICE)]


def fake_gan(config: Config, image_shape: tuple[int, int, int], precision: str) -> GAN:
    """Build a GAN on the device."""
    labels = stand_in_labels(config.networks)
    spec = generator_spec(config.networks, image_shape, labels=labels)
    accelerator: Any = FakeAccelerator(precision)
    return prepare_gan(
        accelerator,
        spec,
        generator=build_generator(spec),
        discriminator=build_discriminator(spec, DiscriminatorSpec.from_settings(config.networks)),
        optim=config.optim,
        train=config.train,
        loss=config.loss,
    )
