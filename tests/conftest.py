"""How the tests are run: hidden GPUs, the number of workers, and what they have in common.

The process that only starts the workers imports neither torch nor the fixtures: all workers would
wait for it.
"""

import gc
import os
from typing import Any

import pytest

from shards.processes import num_usable_cores
from tests.worlds import share_fork_server, use_fork_server

NUM_IMAGES = 30  # of the fixture `shards`


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, so that tests compute the same on all machines, unless `-m gpu` asks for them."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    if "fork_server" in getattr(config, "workerinput", {}):
        use_fork_server(config.workerinput["fork_server"])
    if not starts_workers(config):
        config.pluginmanager.import_plugin("tests.fixtures")


def starts_workers(config: pytest.Config) -> bool:
    """Return whether this process runs no tests itself, but starts others that do."""
    options = config.option
    is_distributed = getattr(options, "dist", "no") != "no" and bool(options.tx)
    return is_distributed and not options.collectonly


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Fork the processes of all workers from one, unless each has an environment of its own."""
    if all(specification == "popen" for specification in node.config.option.tx):
        node.workerinput["fork_server"] = share_fork_server()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one worker more than cores, since many tests wait for processes or time."""
    return num_usable_cores() + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU if there is none."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not has_gpu():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no GPU, or hidden: pytest -n 0 -m gpu"))


def pytest_collection_finish() -> None:
    """Exempt what the tests have imported from garbage collection.

    A full collection would search millions of objects, and some code under test asks for several.
    """
    gc.freeze()


def has_gpu() -> bool:
    """Return whether PyTorch sees a GPU."""
    import torch

    return torch.cuda.is_available()
