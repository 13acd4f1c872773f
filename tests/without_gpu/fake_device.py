"""Whole training steps on a GPU that does not exist, in a process of its own.

python -m tests.without_gpu.fake_device '[{"preset": "cifar10"}]'
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distgan.commands.estimate import cost_of, num_bytes
from distgan.commands.fake_device import DeviceWork, FakeBatches, fake_gan, install
from distgan.config.load import load_config
from distgan.evaluation.batch_diversity import BatchDiversity
from distgan.reporting.metrics import RunningMeans
from distgan.steps import train_step


class Numbers(TorchDispatchMode):
    """The operations in their order, with the Python numbers among their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[float]]] = []

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        numbers = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, int | float)]
        self.calls.append((func._schema.name.split("::")[1], numbers))
        return func(*args, **kwargs)


def varying(first: Numbers, second: Numbers) -> list[str]:
    """Return the names of the operations whose numbers differ between two equal steps."""
    names = [[name for name, _ in step.calls] for step in (first, second)]
    assert names[0] == names[1], "the steps do different work"
    pairs = zip(first.calls, second.calls, strict=True)
    return sorted({one[0] for one, other in pairs if one != other})


def measure(
    preset: str,
    words: list[str],
    *,
    size: int,
    channels: int,
    precision: str,
    penalty: bool = False,
    compare: bool = False,
) -> dict[str, Any]:
    """Take two steps; return what the second one launched, and where its results are.

    The first one creates the state of the optimizers. With `compare` a third one follows, which is
    compared with the second.
    """
    config = load_config(preset, words)
    shape, work = (channels, size, size), DeviceWork()
    with FakeTensorMode(allow_non_fake_inputs=True), work:
        gan, batches = fake_gan(config, shape, precision), FakeBatches(config, shape)
        means, diversity = RunningMeans(), BatchDiversity(64, 0.5, 0.1)
        num_images = config.train.batch_size * config.train.d_steps
        interval = config.loss.penalty_interval
        first = 3 * interval - (1 if penalty else -1)
        steps = []
        for step in range(first, first + (3 if compare else 2)):
            work.clear()
            steps.append(Numbers())
            with steps[-1]:
                result = train_step(
                    gan,
                    lambda position: batches.next(position, rollbacks=0),
                    config,
                    images_seen=step * num_images,
                    progress=step / 1000,
                )
                for statistics in result.statistics:
                    means.add(statistics)
        counted, copies = dict(work.names), dict(work.copies)
        sizes = (num_bytes(gan.raw_generator), num_bytes(gan.raw_discriminator))
        cost = cost_of(work, reduced_bytes=sizes, batch_size=num_images)
        means.add(diversity.metrics(result.fakes))
    networks = (gan.raw_generator, gan.raw_discriminator)
    gradients = [p.grad for network in networks for p in network.parameters()]
    assert None not in gradients, "a parameter has no gradient"
    tensors = [*means.sums.values(), *(p for n in networks for p in n.parameters()), *gradients]
    return {
        "kernels": counted,
        "copies": copies,
        "cost": asdict(cost),
        "varying": varying(*steps[-2:]) if compare else [],
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
    defaults = {"words": [], "size": 32, "channels": 3, "precision": "bf16"}
    try:
        return measure(**defaults | case)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}


if __name__ == "__main__":
    print(json.dumps(run_cases(json.loads(sys.argv[1]))))
