"""What the fake device says when the host reads a number, or when devices are mixed."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from distgan.commands.fake_device import DEVICE, install


def message(mistake: Callable[[Tensor], object]) -> str:
    """Return the error of a mistake with a tensor on the device."""
    with FakeTensorMode():
        try:
            mistake(torch.ones(3, device=DEVICE))
        except Exception as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
    return "no error"


def messages() -> dict[str, str]:
    """Return the error of each mistake."""
    registrations = install()
    found = {
        "reading a number": message(lambda numbers: float(numbers.sum())),
        "mixing devices": message(lambda numbers: numbers + torch.ones(3)),
    }
    del registrations
    return found
