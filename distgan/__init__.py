"""Train DCGANs, and sample from the trained generators.

    config = distgan.load_config("digits", ["train.kimg=3"])
    result = distgan.train(config)
    images = distgan.load_generator(result.run_dir).sample(16)

Everything is imported on first use, so that `import distgan` is fast. See docs/python-api.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distgan.api import TrainingResult, load_config, train
    from distgan.config.schema import Config
    from distgan.errors import RunFailed, UserError
    from distgan.networks.generator import Generator
    from distgan.networks.generator_file import load_generator

__all__ = [
    "Config",
    "Generator",
    "RunFailed",
    "TrainingResult",
    "UserError",
    "load_config",
    "load_generator",
    "train",
]

# `train` is the function of `distgan.api`. The entry point distgan/train.py is only ever run, never
# imported by the package: importing it would put a module in the function's place.
MODULES = {
    "Config": "distgan.config.schema",
    "Generator": "distgan.networks.generator",
    "RunFailed": "distgan.errors",
    "TrainingResult": "distgan.api",
    "UserError": "distgan.errors",
    "load_config": "distgan.api",
    "load_generator": "distgan.networks.generator_file",
    "train": "distgan.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
