"""The training of a small causal language model: texts packed into blocks, and the next token of each place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Sampler

END, PLAIN = 0, 1  # the tokens that end a text, and that begin one without a class; one per class follows


class Training(pl.LightningModule):
    """The next token of packed texts. Each step is a pure function of the seed, so that it can be resumed.

    Args:
        architecture: a GPT2Config.
        pieces: the first id that is a piece of text; those below it begin or end one.
    """

    def __init__(
        self,
        architecture: Any,
        pieces: int,
        steps: int,
        learning_rate: float,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        from transformers import GPT2LMHeadModel

        super().__init__()
        self.model = GPT2LMHeadModel(architecture)
        self.pieces, self.steps, self.learning_rate, self.seed, self.say = pieces, steps, learning_rate, seed, say
        self.reported_at = self.started = time.monotonic()
        self.first = 0

    def nats(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of -log p over the tokens of texts in ``ids`` [B, T], and their number.

        Positions start anew at each text, by which transformers sees where one ends: none looks into another, and
        each is read as it will be written.
        """
        place = torch.arange(ids.shape[1], device=ids.device)
        begins = (ids != END) & (ids < self.pieces)
        positions = place - torch.where(begins, place, 0).cummax(dim=1).values
        logits = self.model(input_ids=ids, position_ids=positions, use_cache=False).logits
        targets = F.pad(ids.long().masked_fill(begins, -100)[:, 1:], (0, 1), value=-100)  # what comes next
        total = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
        return total, (targets >= 0).sum()

    def on_train_start(self) -> None:
        """Start the clock of the progress messages."""
        self.reported_at = self.started = time.monotonic()
        self.first = self.global_step

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step by its number."""
        seed = np.random.SeedSequence([self.seed, self.global_step]).generate_state(1, np.uint64)
        torch.manual_seed(int(seed[0]))  # dropout after a kill is that of an uninterrupted training

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The mean of -log p over the tokens of a batch of blocks [B, context], a scalar."""
        total, count = self.nats(batch[0])
        loss = total / count.clamp(min=1)
        now, steps_done = time.monotonic(), self.global_step - self.first
        if steps_done and now - self.reported_at >= 30:
            self.reported_at = now
            seconds = (now - self.started) / steps_done * (self.steps - self.global_step)
            step = f"step {self.global_step} of {self.steps}"
            self.say(f"language model: {step}, {loss:.3f} nats a token, {seconds:.0f} s left")
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW; the rate rises for a tenth of the steps and falls to 0 in a line."""
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
        rise = max(1, self.steps // 10)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / rise, (self.steps - step) / max(1, self.steps - rise))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.inference_mode()
    def nats_per_token(self, blocks: Tensor, batch_size: int) -> float:
        """The mean of -log p over all tokens of ``blocks`` [N, context], without dropout."""
        self.eval()
        sums = [self.nats(batch.to(self.device)) for batch in torch.split(blocks, batch_size)]
        return float(sum(float(total) for total, _ in sums) / max(1, sum(int(count) for _, count in sums)))


class StepBatches(Sampler[list[int]]):
    """The rows of ``order`` [steps, batch] after the first ``skip`` steps."""

    def __init__(self, order: np.ndarray, skip: int) -> None:
        self.order, self.skip = order, skip

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.order[self.skip :].tolist()


def pack(tokenizer: Any, texts: Sequence[str], first: Sequence[int] | np.ndarray, context: int) -> Tensor:
    """Texts one after the other, each from its first token to END, cut into blocks [N, context] of int32.

    The rest of the last block is filled with PLAIN, each the beginning of a text of no tokens.
    """
    tokenizer.encode_special_tokens = True  # a text that says "<|end|>" does not end there
    rows = []
    for start in range(0, len(texts), 1000):
        encoded = tokenizer.encode_batch_fast(list(texts[start : start + 1000]))
        rows += [
            np.array([token, *row.ids, END], np.int32)
            for token, row in zip(first[start : start + 1000], encoded, strict=True)
        ]
    flat = np.concatenate(rows)
    blocks = np.full((-(-len(flat) // context), context), PLAIN, np.int32)
    blocks.reshape(-1)[: len(flat)] = flat
    return torch.from_numpy(blocks)
