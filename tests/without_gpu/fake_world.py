"""A run of rank zero in a world whose other ranks do not exist, in a process of its own.

The `fake` process group answers every collective at once. Accelerate, DDP and the trainer are the
real ones. Prints the collectives of the run by their place, with their number and bytes.

    python -m tests.without_gpu.fake_world 1024 cifar10 train.d_steps=2
"""

import json
import os
import sys
import tempfile
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.futures import Future
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import distgan.gan
from distgan.config.load import load_config
from distgan.runtime.distributed import fix_gradient_buckets
from distgan.runtime.heartbeat import Heartbeat
from distgan.runtime.signals import Interrupt
from distgan.trainer import Trainer
from shards.pack import pack
from tests.worlds import SMALL, leave_out_plots

NUM_STEPS, NUM_SAMPLES = 12, 32  # of the run, and of its evaluation
PLACES = {  # function -> phase of a run
    "train_step": "step",
    "should_stop": "step",
    "save_checkpoint": "checkpoint",
    "evaluate": "evaluation",
    "log_metrics": "report",
    "save_samples": "samples",
}


class Collectives(TorchDispatchMode):
    """The collectives by phase and operation: [calls, bytes]."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def add(self, operation: str, tensors: list[Tensor]) -> None:
        """Count one collective."""
        functions = [frame.name for frame in reversed(traceback.extract_stack())]
        phase = next((PLACES[name] for name in functions if name in PLACES), "start and end")
        count = self.counts[f"{phase}: {operation}"]
        count[0] += 1
        count[1] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = [t for t in tree_leaves(args) if isinstance(t, Tensor)]
            self.add(func._schema.name.split("::")[1].rstrip("_"), tensors)
        return func(*args, **(kwargs or {}))


def gradient_hook(network: str, seen: Collectives) -> Callable[[Any, Any], Future[Tensor]]:
    """Return what DDP does instead of reducing a bucket: the fake group has no result for it."""

    def reduce(_: Any, bucket: dist.GradBucket) -> Future[Tensor]:
        seen.add(f"gradients of the {network}", [bucket.buffer()])
        future: Future[Tensor] = Future()
        future.set_result(bucket.buffer())
        return future

    return reduce


def count_gradients(seen: Collectives) -> None:
    """Count the gradients of both networks from the first backward pass on."""
    names = iter(("generator", "discriminator"))

    def hook_first(network: Any) -> None:
        network.register_comm_hook(None, gradient_hook(next(names), seen))
        fix_gradient_buckets(network)

    distgan.gan.fix_gradient_buckets = hook_first


@contextmanager
def joined_world(size: int) -> Iterator[None]:
    """Be rank zero of a fake world."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(size)}
    os.environ |= {"LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    Heartbeat.connect = lambda self: None  # type: ignore[method-assign]
    yield
    dist.destroy_process_group()


def pack_noise(folder: Path) -> Path:
    """Pack a few images, and return the folder of shards."""
    draw = np.random.default_rng(0)
    for number in range(64):
        place = folder / "images" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number:03d}.png")
    pack(str(folder / "images"), folder / "shards", size=32, workers=1)
    return folder / "shards"


def run(size: int, preset: str, words: list[str]) -> dict[str, Any]:
    """Train for NUM_STEPS steps of two images per rank.

    Returns the collectives, and the bytes of the networks' parameters.
    """
    warnings.simplefilter("ignore")  # DDP warns of the strides of gradients it did not reduce
    torch.set_num_threads(1)
    leave_out_plots()
    kimg = 2 * size / 1000
    seen = Collectives()
    with tempfile.TemporaryDirectory() as name, joined_world(size):
        os.environ["DISTGAN_CACHE"] = name  # measure the real images anew
        shards = pack_noise(Path(name))
        settings = [
            *SMALL, f"data.shards={str(shards)!r}", f"train.batch_size={2 * size}",
            f"train.kimg={NUM_STEPS * kimg}", f"log.every_kimg={4 * kimg}",
            "log.samples_every_kimg=1e9", "checkpoint.every_kimg=1e9", "evaluation.every_kimg=1e9",
            f"evaluation.num_samples={NUM_SAMPLES}", "train.compile=never", *words,
        ]  # fmt: skip
        count_gradients(seen)
        with seen:
            trainer = Trainer(
                load_config(preset, settings),
                name="fake",
                run_dir=Path(name) / "run",
                interrupt=Interrupt(),
                command=["fake"],
            )
            trainer.run()
        networks = {"generator": trainer.gan.generator, "discriminator": trainer.gan.discriminator}
    return {
        "collectives": dict(seen.counts),
        "bytes": {name: num_bytes(network) for name, network in networks.items()},
    }


def num_bytes(network: nn.Module) -> int:
    """Return the bytes of all parameters."""
    return sum(p.numel() * p.element_size() for p in network.parameters())


if __name__ == "__main__":
    print()
    print(json.dumps(run(int(sys.argv[1]), sys.argv[2], sys.argv[3:])))
