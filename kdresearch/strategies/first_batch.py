"""A look at the data before training, which leaves no trace in it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader


def first_batch(trainer: Trainer) -> Any:
    """The first batch of a trainer's training loader, on the CPU; every random generator is put back.

    To be called while it fits, from ``setup`` on. The loader is the trainer's own, which is not made a second time.
    """
    trainer.fit_loop.setup_data()
    loader = trainer.train_dataloader
    places = (loader, loader.sampler, loader.batch_sampler) if isinstance(loader, DataLoader) else (loader,)
    generators = {
        generator for place in places for generator in vars(place).values() if isinstance(generator, torch.Generator)
    }
    states = [(generator, generator.get_state()) for generator in generators]
    with isolate_rng():
        batch = next(iter(loader))  # type: ignore[arg-type]
    for generator, state in states:
        generator.set_state(state)
    return batch
