"""What it takes to differentiate a model with respect to its embeddings, and that derivative once more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Run a forward pass on kernels that have a second derivative, and a first one in eval mode.

    The fused kernels of scaled dot product attention lack the former, cuDNN's LSTM lacks both. oneDNN's LSTM and
    every convolution have them.
    """
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield


def tracked(embeddings: Tensor) -> Tensor:
    """The same tensor, made a leaf of the graph where it depends on nothing that is trained."""
    if torch.is_grad_enabled() and not embeddings.requires_grad:
        embeddings.requires_grad_()
    return embeddings
