"""Floating-point operations of PyTorch code, counted while it runs."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCounter(TorchDispatchMode):
    """A context that adds up the FLOPs of convolutions and matrix products run inside it.

    Uses PyTorch's formulas, which count a multiplication and an addition as two operations.
    PyTorch's own FlopCounterMode also tracks modules, and fails at gradient penalties, which
    differentiate with respect to images.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result
