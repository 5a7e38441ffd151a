"""Rows of all the processes that train one model."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def gather(rows: Tensor) -> Tensor:
    """``rows`` [B, ...] of every replica, the first one's first, without gradient; batches may differ in size."""
    rows = rows.detach()
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows
    sizes = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    most = int(max(sizes))
    padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    every = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(every, padded)
    return torch.cat([part[: int(size)] for part, size in zip(every, sizes, strict=True)])
