"""A teacher's tensor for the rows of a piece: row after row in one file, as long as each has tokens or words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdresearch.structures import Signature
from kdresearch.teachers.leaves import Leaf

LENGTHS = "lengths.npy"
"""Of a piece: the tokens, or words, of each row [N]."""


class Columns:
    """A leaf of the rows of a piece: in memory to be filled, or mapped from a folder.

    Args:
        teacher: the live teacher's signature.
        lengths: tokens, or words, of each row [N].
        folder: that of the piece; None begins an empty one.
    """

    def __init__(self, leaf: Leaf, teacher: Signature, lengths: np.ndarray, folder: Path | None = None) -> None:
        self.leaf, self.teacher, self.lengths, self.folder = leaf, teacher, lengths, folder
        distinct, place = np.unique(lengths, return_inverse=True)
        self._shapes = {int(tokens): leaf.shape(teacher, int(tokens)) for tokens in distinct}
        values = np.array([np.prod(shape) for shape in self._shapes.values()], np.int64)
        vectors = np.array([np.prod(shape[:-1]) for shape in self._shapes.values()], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(values[place])])
        self._vectors = np.concatenate([[0], np.cumsum(vectors[place])])
        scaled = leaf.numbers == "int8"
        if folder is None:
            self._values = np.empty(self._starts[-1], leaf.dtype)
            self._scales = np.empty(self._vectors[-1], np.float32) if scaled else None
        else:
            self._values = _mapped(folder / f"{leaf.name}.bin", leaf.dtype)
            self._scales = _mapped(folder / f"{leaf.name}.scales.bin", np.float32) if scaled else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the files itself."""
        return Columns, (self.leaf, self.teacher, self.lengths, self.folder)

    def put(self, places: np.ndarray, tensor: Tensor) -> None:
        """Set the rows at places [B] to those of [B, ...], as far as they are long."""
        for place, row in zip(places.tolist(), tensor, strict=True):
            shape = self._shapes[int(self.lengths[place])]
            values, scales = self.leaf.encode(row[tuple(map(slice, shape))])
            self._values[self._starts[place] : self._starts[place + 1]] = values
            if self._scales is not None:
                self._scales[self._vectors[place] : self._vectors[place + 1]] = scales

    def get(self, place: int, values: np.ndarray, scales: np.ndarray | None) -> None:
        """Copy a row into ``values``, and its scales; what is beyond either's end stays as it is."""
        shape = self._shapes[int(self.lengths[place])]
        row = self._values[self._starts[place] : self._starts[place + 1]].reshape(shape)
        common = tuple(slice(min(pair)) for pair in zip(shape, values.shape, strict=True))
        values[common] = row[common]
        if scales is not None and self._scales is not None:
            row = self._scales[self._vectors[place] : self._vectors[place + 1]].reshape(*shape[:-1], 1)
            scales[common[:-1]] = row[common[:-1]]

    def write(self, folder: Path) -> None:
        """Its files."""
        self._values.tofile(folder / f"{self.leaf.name}.bin")
        if self._scales is not None:
            self._scales.tofile(folder / f"{self.leaf.name}.scales.bin")


def _mapped(path: Path, dtype: Any) -> np.ndarray:
    """A file, memory-mapped; unlike numpy's, the map keeps no file open, of which a process may have few."""
    size = path.stat().st_size
    if not size:
        return np.empty(0, dtype)
    values: np.ndarray = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy().view(dtype)
    return values
