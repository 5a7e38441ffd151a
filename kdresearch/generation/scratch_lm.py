"""Texts of a small language model that learns from the rows themselves, with nothing downloaded."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from kdresearch.errors import UserError
from kdresearch.generation.causal_lm import check_sampling, draw_labels, sample
from kdresearch.generation.generator import Preparation, check_least
from kdresearch.generation.lm_training import END, PLAIN, StepBatches, Training, pack
from kdresearch.structures import UNLABELLED

# Settings that the weights do not depend on.
SAMPLING = ("temperature", "top_p", "balance", "sample_batch_size", "checkpoint_every")
RECORD, TOKENIZER, WEIGHTS, CHECKPOINT = "lm.json", "tokenizer.json", "model.safetensors", "last.ckpt"


@dataclass(kw_only=True)
class ScratchLm:
    """A causal language model with GPT-2's architecture (Radford et al. 2019) and a byte-level BPE of its own.

    Each text begins with a token of its class, or of none, and each sample with that of a class drawn for it (Keskar
    et al. 2019). The training is kept in the folder of ``prepare``: a killed one goes on
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
        conditional: samples are of a class; else no text begins with its class.
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
        check_least(self, layers=1, width=1, heads=1, context=8, epochs=1, max_steps=1, batch_size=1)
        check_least(self, sample_batch_size=1, checkpoint_every=1)
        if not self.conditional and self.balance != "uniform":
            raise UserError("generator.balance is of classes, and generator.conditional=false draws none")
        if self.width % self.heads:
            raise UserError(f"generator.heads: a width of {self.width} does not divide into {self.heads} heads")

    def key(self) -> dict[str, Any]:
        """The settings."""
        return {"generator": "scratch_lm", **{setting.name: getattr(self, setting.name) for setting in fields(self)}}

    def preparation_key(self) -> dict[str, Any]:
        """The settings that the weights depend on."""
        return {name: value for name, value in self.key().items() if name not in SAMPLING}

    def prepare(self, preparation: Preparation) -> None:
        """Train tokenizer and model in the folder, or read them there; UserError without texts or labels for it."""
        from safetensors.torch import load_model
        from tokenizers import Tokenizer
        from transformers import GPT2LMHeadModel

        texts, folder, say = preparation.texts, preparation.folder, preparation.say
        self.labels = np.asarray(preparation.labels) if self.conditional else np.full(len(texts), UNLABELLED)
        self.classes = len(preparation.classes)
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
            self._train(texts, rows, folder, preparation.device, say)
        self.tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        with torch.random.fork_rng(devices=[]):  # it is built with random weights
            model: Any = GPT2LMHeadModel(self._architecture(self.tokenizer.get_vocab_size()))
        load_model(model, str(folder / WEIGHTS))
        self.model = model.to(preparation.device).eval()
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        say(
            f"language model of {record['parameters']:,} parameters after {record['steps']} steps: perplexity a token "
            f"{record['perplexity']:.1f} ({record['nats_per_token']:.3f} nats) on {record['held_out']} texts held out"
        )

    def generate(self, number: int, seed: int, start: int) -> list[str]:
        """Samples, each of a class that is drawn for it where ``conditional``."""
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
            pack(tokenizer, [texts[row] for row in part], first[part], self.context) for part in (held_out, learned)
        )
        steps = min(self.max_steps, -(-self.epochs * len(blocks) // self.batch_size))
        passes = -(-steps * self.batch_size // len(blocks))
        order = np.concatenate([random.permutation(len(blocks)) for _ in range(passes)])
        order = order[: steps * self.batch_size].reshape(steps, self.batch_size)

        place = torch.device(device)
        training = self._fit(blocks, order, tokenizer.get_vocab_size(), folder, place, say)
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
        (folder / CHECKPOINT).unlink(missing_ok=True)

    def _fit(
        self,
        blocks: Tensor,
        order: np.ndarray,
        vocabulary: int,
        folder: Path,
        place: torch.device,
        say: Callable[[str], None],
    ) -> Training:
        """Train on ``blocks`` [N, context] in ``order`` [steps, batch], from the checkpoint in ``folder`` if any."""
        checkpoint, steps, steps_done = folder / CHECKPOINT, len(order), 0
        if checkpoint.exists():
            steps_done = int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])
            say(f"going on from step {steps_done} of {steps}")
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
            for message in ("exists and is not empty", "resuming from a checkpoint that ended", "many workers"):
                warnings.filterwarnings("ignore", message=f".*{message}.*")
            torch.manual_seed(self.training_seed)
            pieces = PLAIN + 1 + self.classes
            architecture = self._architecture(vocabulary)
            training = Training(architecture, pieces, steps, self.learning_rate, self.training_seed, say)
            batches = DataLoader(TensorDataset(blocks), batch_sampler=StepBatches(order, steps_done))
            trainer.fit(training, batches, ckpt_path=checkpoint if steps_done else None)
        if trainer.interrupted:
            raise KeyboardInterrupt
        return training

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
