"""Run a recipe of this folder in a process of its own, and return its result."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.worlds import run_world

NEWEST = (2, 14)  # these recipes use private parts of torch, and must work on the newest releases


def run_recipe(recipe: Callable[..., Any], *arguments: Any) -> Any:
    """Return what the recipe returns in a new process.

    If the recipe does not work on an older release of torch, the test is skipped with the reason.
    """
    try:
        return run_world(1, recipe, *arguments)[0]
    except AssertionError as error:
        if tuple(map(int, torch.__version__.split(".")[:2])) < NEWEST:
            reason = str(error).strip().splitlines()[-1]
            pytest.skip(f"torch {torch.__version__} lacks what the recipe needs: {reason}")
        raise
