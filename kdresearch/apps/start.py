"""What a student starts from, where that is its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from kdresearch import package
from kdresearch.apps import teacher as teachers
from kdresearch.apps.config import plain
from kdresearch.apps.say import say
from kdresearch.artifacts import Store
from kdresearch.data.datamodule import TextDataModule
from kdresearch.data.encoding import pad
from kdresearch.data.tokenizers import NgramTokenizer, TorchtextTokenizer, WordTokenizer
from kdresearch.errors import UserError, choices
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.embedding import copy_vectors
from kdresearch.models.initialise import copy_layers, ngram_vectors, reduce_embeddings, spread, static_vectors
from kdresearch.models.ngram import NgramBag
from kdresearch.models.textcnn import TextCNN
from kdresearch.models.transformer import HubClassifier, Transformer
from kdresearch.package import Package
from kdresearch.structures import Model, Tokens

STARTS = ("layers", "embeddings", "vectors")


def check(cfg: DictConfig, student: Model, data: TextDataModule) -> None:
    """Raise UserError for a start that this student cannot have, before a teacher is paid for."""
    wanted = cfg.start["from"]
    if wanted is None:
        return
    if wanted not in STARTS:
        raise UserError(f"start.from: {choices(wanted, STARTS)}")
    if not teachers.named(cfg):
        raise UserError(f"start.from={wanted} takes a teacher, and none is named: choose one with teacher=NAME")
    name = type(student).__name__
    if wanted == "layers" and not isinstance(student, Transformer):
        raise UserError(f"start.from=layers: {name} has no layers like a teacher's: use start.from=vectors")
    if wanted == "vectors":
        if not isinstance(student, (BiLSTM, TextCNN, NgramBag)):
            raise UserError(f"start.from=vectors: {name} has no table of word vectors: use start.from=embeddings")
        if not isinstance(data.tokenizer, (WordTokenizer, TorchtextTokenizer, NgramTokenizer)):
            kind = data.tokenizer.key()["tokenizer"]
            raise UserError(
                f"start.from=vectors: the {kind} tokenizer has no words to ask the teacher about: "
                "use student/tokenizer=word, torchtext or ngram, or start.from=embeddings"
            )


def begin(cfg: DictConfig, student: Any, data: TextDataModule, folder: Path, store: Store) -> None:
    """Put the teacher's layers, embeddings or distilled word vectors into a fresh student.

    Args:
        folder: of the teacher's package.

    Raises:
        UserError: the two do not fit each other.
    """
    teacher = package.load(folder)
    model: Any = teacher.model
    wanted = cfg.start["from"]
    if wanted == "vectors":
        copy_vectors(student.embedding, *_vectors(student, teacher, data, store))
        say(f"the student starts from {student.embedding.num_embeddings:,} word vectors of the teacher")
        return
    _check_vocabulary(data, teacher)
    if wanted == "embeddings":
        kept = reduce_embeddings(student, model)
        say(f"the student starts from the teacher's embeddings: {kept:.1%} of their variance kept")
        return
    if not isinstance(model, (Transformer, HubClassifier)):
        raise UserError(f"start.from=layers: the teacher, {type(model).__name__}, has no layers like the student's")
    taken = copy_layers(student, model, plain(cfg.start.layers))
    say(f"the student starts from layers {', '.join(map(str, taken))} of the teacher")


def _check_vocabulary(data: TextDataModule, teacher: Package) -> None:
    """The ids of both sides must mean the same words; asked of the words of some training rows, one by one."""
    texts = next(iter(data.corpus.texts(data.split.train[:1000])))
    words = sorted({word for text in texts for word in text.split()})
    own, other = (each.encode(words) for each in (data.tokenizer, teacher.tokenizer))
    if not all(np.array_equal(a, b) for a, b in zip(own, other, strict=True)):
        raise UserError(
            "start: the student's token ids do not mean what the teacher's do: give it the teacher's tokenizer "
            "(student/tokenizer=pretrained student.tokenizer.path=...), or use start.from=vectors"
        )


def _vectors(student: Any, teacher: Package, data: TextDataModule, store: Store) -> tuple[torch.Tensor, torch.Tensor]:
    """A vector for every row of the student's table [V, E], and which rows have one [V]."""
    width, tokenizer = student.embedding.embedding_dim, data.tokenizer
    key = {"teacher": teacher.fingerprint, "tokenizer": data.fingerprint, "width": width}

    def encode(texts: list[str]) -> Tokens:
        ids, lengths = teacher.tokenizer.encode(texts)
        return pad(np.split(ids, np.cumsum(lengths)[:-1]), teacher.tokenizer.pad_id)

    def distilled(words: list[str]) -> torch.Tensor:
        say(f"word vectors: asking the teacher about {len(words):,} words")
        return static_vectors(teacher.model, encode, words, width)

    def build(path: Path) -> None:
        if isinstance(tokenizer, TorchtextTokenizer):
            names = tokenizer.words
        else:
            assert isinstance(tokenizer, (WordTokenizer, NgramTokenizer))
            names = [name for name, _ in sorted(tokenizer.words.get_vocab().items(), key=lambda item: item[1])]
        if isinstance(tokenizer, NgramTokenizer):
            members = torch.from_numpy(tokenizer.members(data.corpus.texts(data.split.trained)))
            used = torch.from_numpy(np.unique(members.numpy())[1:]).long()  # without 0, which ends an n-gram
            words = torch.zeros(len(names), width)
            words[used] = distilled([names[number] for number in used.tolist()])
            vectors, known = ngram_vectors(words, members)
        else:
            vectors, known = torch.zeros(len(names), width), torch.ones(len(names), dtype=torch.bool)
            vectors[2:] = distilled(names[2:])  # after padding and unknown
            known[:2] = False
        np.save(path / "vectors.npy", vectors.numpy())
        np.save(path / "known.npy", known.numpy())

    folder = store.build("vectors", key, build, waiting=say)
    vectors = torch.from_numpy(np.load(folder / "vectors.npy"))
    return vectors * spread(student), torch.from_numpy(np.load(folder / "known.npy"))
