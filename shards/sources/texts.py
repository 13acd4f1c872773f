"""Very many texts in two arrays: small in memory, and shared by all worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class Texts(Sequence[str]):
    """A sequence of texts, which may hold what file names hold: bytes that are no UTF-8."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        data, ends, end = bytearray(), [], 0
        for text in texts:
            encoded = text.encode("utf-8", "surrogateescape")
            data += encoded
            end += len(encoded)
            ends.append(end)
        self._data: NDArray[np.uint8] = np.frombuffer(bytes(data), np.uint8)
        self._ends: NDArray[np.int64] = np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        start = int(self._ends[number - 1]) if number else 0
        return self._data[start : self._ends[number]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends.tolist():
            yield self._data[start:end].tobytes().decode("utf-8", "surrogateescape")
            start = end
