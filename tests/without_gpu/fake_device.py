"""Whole training steps on a GPU that does not exist, in a process of its own.

Tensors are fake: they have a shape, a type and a device, and no data. An operation on tensors of
different devices raises an error, and so does reading a number, for which a GPU would have to stop
and answer. The device is PyTorch's backend for private use under another name, because a backward
on fake "cuda" tensors asks the driver. Renaming a backend cannot be undone, hence the process.

    python -m tests.without_gpu.fake_device '[{"preset": "cifar10"}]'
"""

import contextlib
import copy
import json
import sys
import types
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.utils.backend_registration as backends
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import distgan.gan
import distgan.networks.ema
from distgan.config.load import load_config
from distgan.config.schema import Config
from distgan.data import TrainingBatches
from distgan.evaluation.batch_diversity import BatchDiversity
from distgan.gan import GAN, generator_spec, prepare_gan
from distgan.networks.base import DiscriminatorSpec
from distgan.networks.build import build_discriminator, build_generator
from distgan.reporting.metrics import RunningMeans
from distgan.steps import train_step

DEVICE, AUTOCAST_KEY = "nogpu", "AutocastPrivateUse1"
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
    dtypes = [torch.bfloat16, torch.float16]
    backends._DummyBackendModule.get_amp_supported_dtype = lambda self: dtypes
    FakeTensorMode.avoid_device_init = True
    torch._C._conv_determine_backend_memory_format = memory_format_of_cudnn
    nn.Module.to = move_module  # type: ignore[assignment,method-assign]
    fake_copy: Any = types.SimpleNamespace(deepcopy=copy_module)
    distgan.gan.copy = distgan.networks.ema.copy = fake_copy
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
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

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
    """What the step uses of Accelerate's optimizer."""

    step_was_skipped = False

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.step = optimizer, optimizer.step

    def zero_grad(self) -> None:
        """Drop the gradients, as Accelerate does."""
        self.optimizer.zero_grad(set_to_none=True)


class FakeAccelerator:
    """What a GAN uses of an Accelerator, on the fake device."""

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
            network.forward = run  # type: ignore[method-assign]
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


class Launches(TorchDispatchMode):
    """The operations that launch a kernel on the device, and copies between device and host."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.copies = Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        returns = func._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if name in ("_to_copy", "copy_") and len({t.device.type for t in tensors}) == 2:
            self.copies[name] += 1
        elif not is_view and name not in WITHOUT_KERNEL:
            self.kernels[name] += any(t.device.type == DEVICE for t in tensors)
        return out


class FakeBatches(TrainingBatches):
    """Batches whose images are in the memory of the device, as `ResidentStream` gives them."""

    def __init__(self, config: Config, image_shape: tuple[int, int, int]) -> None:
        train = config.train
        self.config, self.device = config, torch.device(DEVICE)
        self.batch_size_per_rank, self.offset = train.batch_size, 0
        self.micro_batch_size = train.batch_size // train.accumulate
        self.wait_seconds, self.stream = 0.0, self  # type: ignore[assignment]
        self.draws = None
        images = torch.zeros((1000, *image_shape), dtype=torch.uint8, device=DEVICE)
        self.images = images.to(memory_format=torch.channels_last)

    def __next__(self) -> Tensor:
        return self.images[torch.arange(self.batch_size_per_rank).to(DEVICE)]


def fake_gan(config: Config, image_shape: tuple[int, int, int], precision: str) -> GAN:
    """Build a GAN on the device."""
    spec = generator_spec(config.networks, image_shape)
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


def measure(
    preset: str, words: list[str], *, size: int, channels: int, precision: str, penalty: bool
) -> dict[str, Any]:
    """Take two steps; return what the second one launched, and where its results are.

    The first one creates the state of the optimizers.
    """
    config = load_config(preset, words)
    shape, launches = (channels, size, size), Launches()
    with FakeTensorMode(allow_non_fake_inputs=True), launches:
        gan, batches = fake_gan(config, shape, precision), FakeBatches(config, shape)
        means, diversity = RunningMeans(), BatchDiversity(64, 0.5, 0.1)
        num_images = config.train.batch_size * config.train.d_steps
        interval = config.loss.penalty_interval
        last = 3 * interval if penalty else 3 * interval + 1
        for step in (last - 1, last):
            launches.kernels.clear()
            launches.copies.clear()
            result = train_step(
                gan,
                lambda position: batches.next(position, rollbacks=0),
                config,
                images_seen=step * num_images,
                progress=0.0,
            )
            for statistics in result.statistics:
                means.add(statistics)
        counted, copies = dict(launches.kernels), dict(launches.copies)
        means.add(diversity.metrics(result.fakes))
    networks = (gan.raw_generator, gan.raw_discriminator)
    gradients = [p.grad for network in networks for p in network.parameters()]
    assert None not in gradients, "a parameter has no gradient"
    tensors = [*means.sums.values(), *(p for n in networks for p in n.parameters()), *gradients]
    return {
        "kernels": counted,
        "copies": copies,
        "devices": sorted({t.device.type for t in tensors if t is not None}),
        "gradients": sorted({str(g.dtype) for g in gradients if g is not None}),
    }


def run_cases(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the result of each case; a failure is its first line."""
    registrations = install()
    results = [run_case(case) for case in cases]
    del registrations
    return results


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Return what `measure` returns, or the first line of its error."""
    defaults = {"words": [], "size": 32, "channels": 3, "precision": "bf16", "penalty": False}
    try:
        return measure(**defaults | case)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}


if __name__ == "__main__":
    print(json.dumps(run_cases(json.loads(sys.argv[1]))))
