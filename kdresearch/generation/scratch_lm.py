"""Texts of a small language model that learns from the rows themselves, with nothing downloaded."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler, TensorDataset

from kdresearch.errors import UserError
from kdresearch.generation.causal_lm import check_sampling, draw_labels, sample
from kdresearch.generation.generator import Preparation
from kdresearch.structures import UNLABELLED

END, PLAIN = 0, 1  # the tokens that end a text, and that begin one without a class; one per class follows
# Settings that the weights do not depend on.
SAMPLING = ("temperature", "top_p", "balance", "sample_batch_size", "checkpoint_every")
RECORD, TOKENIZER, WEIGHTS, CHECKPOINT = "lm.json", "tokenizer.json", "model.safetensors", "last.ckpt"


@dataclass(kw_only=True)
class ScratchLm:
    """A causal language model with GPT-2's architecture (Radford et al. 2019) and a byte-level BPE of its own.

    Each text begins with a token that says its class, or that it has none, and the samples with one of a class that
    is drawn for them (Keskar et al. 2019). The training is kept in the folder of ``prepare``: a killed one goes on
    where it stopped, to the same weights, and a finished one is read from there.

    Args:
        layers, width, heads: of the model.
        context: tokens that it reads at once; a sample is shorter, and a longer text is learned in parts.
        vocabulary: entries of its BPE at most, the 256 bytes and the tokens of the classes included.
        epochs: passes over the texts, at most ``max_steps`` updates.
        batch_size: contexts of an update.
        learning_rate: at its height: it rises for a tenth of the updates and falls to 0 in a line.
        precision: of Lightning's Trainer.
        checkpoint_every: updates between two checkpoints to go on from.
        conditional: samples are of a class; else no text's class is said.
        balance: classes are drawn ``uniform``-ly, or as often as among the labelled rows (``train``).
        temperature: 0 takes the likeliest token.
        top_p: probability of the nucleus that tokens are drawn from; 1 is all of them.
        sample_batch_size: samples drawn side by side.
        training_seed: of the initial weights, of the order of the texts and of those held out.

    Raises:
        UserError: settings that make no sense.
    """

    layers: int = 2
    width: int = 128
    heads: int = 4
    context: int = 128
    vocabulary: int = 8000
    dropout: float = 0.1
    epochs: int = 5
    max_steps: int = 500
    batch_size: int = 32
    learning_rate: float = 2e-3
    precision: str = "32-true"
    checkpoint_every: int = 100
    conditional: bool = True
    balance: str = "uniform"
    temperature: float = 1.0
    top_p: float = 0.95
    sample_batch_size: int = 64
    training_seed: int = 0

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.top_p, self.balance)
        least = dict.fromkeys(("layers", "width", "heads", "epochs", "max_steps", "batch_size"), 1)
        least |= {"context": 8, "sample_batch_size": 1, "checkpoint_every": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise UserError(f"generator.{name} must be at least {smallest}, not {getattr(self, name)}")
        if not self.conditional and self.balance != "uniform":
            raise UserError("generator.balance is of classes, and generator.conditional=false draws none")
        if self.width % self.heads:
            raise UserError(f"generator.heads: a width of {self.width} does not divide into {self.heads} heads")

    def key(self) -> dict[str, Any]:
        return {"generator": "scratch_lm", **{each.name: getattr(self, each.name) for each in fields(self)}}

    def preparation_key(self) -> dict[str, Any]:
        return {name: value for name, value in self.key().items() if name not in SAMPLING}

    def prepare(self, given: Preparation) -> None:
        from safetensors.torch import load_model
        from tokenizers import Tokenizer
        from transformers import GPT2LMHeadModel

        texts, folder, say = given.texts, given.folder, given.say
        self.labels = np.asarray(given.labels) if self.conditional else np.full(len(texts), UNLABELLED)
        self.classes = len(given.classes)
        assert folder is not None
        if self.conditional:
            draw_labels(1, self.labels, self.classes, self.balance, np.random.default_rng(0))  # refuses here
        specials = ["<|end|>", "<|plain|>", *(f"<|class {number}|>" for number in range(self.classes))]
        if self.vocabulary < 256 + len(specials):
            raise UserError(f"generator.vocabulary must be at least {256 + len(specials)}, not {self.vocabulary}")
        if not (folder / RECORD).exists():
            rows = np.array([row for row, text in enumerate(texts) if text.strip()], np.int64)
            if len(rows) < 2:
                raise UserError(f"generator: a language model cannot be trained on {len(rows)} texts")
            if not (folder / TOKENIZER).exists():
                say(f"training a BPE tokenizer on {len(rows)} texts")
                _write(folder / TOKENIZER, _bpe([texts[row] for row in rows], self.vocabulary, specials).to_str())
            self._train(texts, rows, folder, given.device, say)
        self.tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        with torch.random.fork_rng(devices=[]):  # it is built with random weights
            model: Any = GPT2LMHeadModel(self._architecture(self.tokenizer.get_vocab_size()))
        load_model(model, str(folder / WEIGHTS))
        self.model = model.to(given.device).eval()
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        say(
            f"language model of {found['parameters']:,} parameters after {found['steps']} steps: perplexity a token "
            f"{found['perplexity']:.1f} ({found['nats_per_token']:.3f} nats) on {found['held_out']} texts held out"
        )

    def generate(self, number: int, seed: int, start: int) -> list[str]:
        first = np.full(number, PLAIN)
        if self.conditional:
            random = np.random.default_rng(seed)
            first = PLAIN + 1 + draw_labels(number, self.labels, self.classes, self.balance, random)
        written = sample(
            self.model,
            [[int(token)] for token in first],
            seed=seed,
            stop=(END,),
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.context - 1,
            batch_size=self.sample_batch_size,
        )
        return [text.strip() for text in self.tokenizer.decode_batch(written)]

    def _train(
        self, texts: Sequence[str], rows: np.ndarray, folder: Path, device: str, say: Callable[[str], None]
    ) -> None:
        from safetensors.torch import save_model
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        random = np.random.default_rng(self.training_seed)
        shuffled = random.permutation(rows)
        held_out, learned = np.split(shuffled, [min(1000, -(-len(rows) // 20))])
        first = np.where(self.labels == UNLABELLED, PLAIN, PLAIN + 1 + self.labels)
        held_out_blocks, blocks = (
            packed(tokenizer, [texts[row] for row in part], first[part], self.context) for part in (held_out, learned)
        )
        steps = min(self.max_steps, -(-self.epochs * len(blocks) // self.batch_size))
        passes = -(-steps * self.batch_size // len(blocks))
        order = np.concatenate([random.permutation(len(blocks)) for _ in range(passes)])
        order = order[: steps * self.batch_size].reshape(steps, self.batch_size)

        checkpoint = folder / CHECKPOINT
        done = 0
        if checkpoint.exists():
            done = int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])
            say(f"going on from step {done} of {steps}")
        place = torch.device(device)
        trainer = pl.Trainer(
            accelerator=place.type,
            devices=[place.index or 0] if place.type == "cuda" else 1,
            precision=self.precision,  # type: ignore[arg-type]
            max_epochs=1,  # the order of all passes is one list
            gradient_clip_val=1.0,
            callbacks=[
                ModelCheckpoint(folder, "last", every_n_train_steps=self.checkpoint_every, enable_version_counter=False)
            ],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []), warnings.catch_warnings():
            for known in ("exists and is not empty", "resuming from a checkpoint that ended", "many workers"):
                warnings.filterwarnings("ignore", message=f".*{known}.*")
            torch.manual_seed(self.training_seed)
            training = Training(
                self._architecture(tokenizer.get_vocab_size()),
                PLAIN + 1 + self.classes,
                steps,
                self.learning_rate,
                self.training_seed,
                say,
            )
            batches = DataLoader(TensorDataset(blocks), batch_sampler=_Batches(order, done))
            trainer.fit(training, batches, ckpt_path=checkpoint if done else None)
        if trainer.interrupted:
            raise KeyboardInterrupt
        nats = training.to(place).nats_per_token(held_out_blocks, self.batch_size)
        save_model(training.model, str(folder / WEIGHTS))
        record = {
            "steps": steps,
            "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
            "texts": len(learned),
            "held_out": len(held_out),
            "nats_per_token": nats,
            "perplexity": float(np.exp(nats)),
        }
        _write(folder / RECORD, json.dumps(record, indent=1))  # last: with it, all else is there
        checkpoint.unlink(missing_ok=True)

    def _architecture(self, vocabulary: int) -> Any:
        from transformers import GPT2Config

        return GPT2Config(
            vocab_size=vocabulary,
            n_positions=self.context,
            n_embd=self.width,
            n_layer=self.layers,
            n_head=self.heads,
            resid_pdrop=self.dropout,
            embd_pdrop=self.dropout,
            attn_pdrop=0.0,  # above 0, sdpa leaves its fast path on a CPU
            bos_token_id=END,
            eos_token_id=END,
        )


class Training(pl.LightningModule):
    """The next token of packed texts. Step by step a pure function of the seed, so that it can be gone on with.

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
        self.told = self.started = time.monotonic()
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
        self.told = self.started = time.monotonic()
        self.first = self.global_step

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        seed = np.random.SeedSequence([self.seed, self.global_step]).generate_state(1, np.uint64)
        torch.manual_seed(int(seed[0]))  # dropout after a kill is that of an uninterrupted training

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        total, count = self.nats(batch[0])
        loss = total / count.clamp(min=1)
        now, done = time.monotonic(), self.global_step - self.first
        if done and now - self.told >= 30:
            self.told = now
            left = (now - self.started) / done * (self.steps - self.global_step)
            self.say(
                f"language model: step {self.global_step} of {self.steps}, {loss:.3f} nats a token, {left:.0f} s left"
            )
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
        rise = max(1, self.steps // 10)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / rise, (self.steps - step) / max(1, self.steps - rise))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.inference_mode()
    def nats_per_token(self, blocks: Tensor, batch_size: int) -> float:
        self.eval()
        sums = [self.nats(batch.to(self.device)) for batch in torch.split(blocks, batch_size)]
        return float(sum(float(total) for total, _ in sums) / max(1, sum(int(count) for _, count in sums)))


class _Batches(Sampler[list[int]]):
    """The rows of ``order`` [steps, batch] from ``done`` on."""

    def __init__(self, order: np.ndarray, done: int) -> None:
        self.order, self.done = order, done

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.order[self.done :].tolist()


def packed(tokenizer: Any, texts: Sequence[str], first: Sequence[int] | np.ndarray, context: int) -> Tensor:
    """Texts one after the other, each from its first token to END, cut into blocks [N, context] of int32.

    What is left of the last block is filled with PLAIN, each the beginning of a text of no tokens.
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


def _bpe(texts: list[str], size: int, specials: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    beside = file.with_name(f"{file.name}.partial")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, file)
