"""What a student starts from, where that is its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdresearch import package
from kdresearch.bench.context import Context
from kdresearch.bench.plan import Plan
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

SOURCES = ("layers", "embeddings", "vectors")


def check_start(plan: Plan, student: Model, data: TextDataModule) -> None:
    """Raise UserError for a start that this student cannot have, before a teacher is paid for."""
    source = plan.start.source
    if source is None:
        return
    if source not in SOURCES:
        raise UserError(f"start.from: {choices(source, SOURCES)}")
    if plan.teacher is None:
        raise UserError(f"start.from={source} takes a teacher, and none is named: choose one with teacher=NAME")
    if plan.teacher.folds is not None:
        raise UserError(f"start.from={source} takes one model to start from: leave teacher.folds out")
    name = type(student).__name__
    if source == "layers" and not isinstance(student, Transformer):
        raise UserError(f"start.from=layers: {name} has no layers like a teacher's: use start.from=vectors")
    if source == "vectors":
        if not isinstance(student, (BiLSTM, TextCNN, NgramBag)):
            raise UserError(f"start.from=vectors: {name} has no table of word vectors: use start.from=embeddings")
        if not isinstance(data.tokenizer, (WordTokenizer, TorchtextTokenizer, NgramTokenizer)):
            raise UserError("start.from=vectors: the student's tokenizer has no words: use start.from=embeddings")


def start_student(plan: Plan, student: Any, data: TextDataModule, folder: Path, context: Context) -> None:
    """Put the teacher's layers, embeddings or distilled word vectors into a fresh student.

    Args:
        folder: of the teacher's package.

    Raises:
        UserError: the two do not fit each other.
    """
    teacher = package.load(folder)
    model: Any = teacher.model
    if plan.start.source == "vectors":
        copy_vectors(student.embedding, *_vectors(student, teacher, data, context))
        context.say(f"the student starts from {student.embedding.num_embeddings:,} word vectors of the teacher")
        return
    _check_vocabulary(data, teacher)
    if plan.start.source == "embeddings":
        variance = reduce_embeddings(student, model)
        context.say(f"the student starts from the teacher's embeddings: {variance:.1%} of their variance kept")
        return
    if not isinstance(model, (Transformer, HubClassifier)):
        raise UserError(f"start.from=layers: the teacher, {type(model).__name__}, has no layers like the student's")
    layers = copy_layers(student, model, plan.start.layers)
    context.say(f"the student starts from layers {', '.join(map(str, layers))} of the teacher")


def _check_vocabulary(data: TextDataModule, teacher: Package) -> None:
    """The ids of both sides must mean the same words; asked of the words of some training rows, one by one."""
    texts = next(iter(data.corpus.texts(data.split.train[:1000])))
    words = sorted({word for text in texts for word in text.split()})
    student_side, teacher_side = (item.encode(words) for item in (data.tokenizer, teacher.tokenizer))
    if not all(np.array_equal(a, b) for a, b in zip(student_side, teacher_side, strict=True)):
        raise UserError(
            "start: the student's token ids do not mean what the teacher's do: give it the teacher's tokenizer "
            "(student/tokenizer=pretrained student.tokenizer.path=...), or use start.from=vectors"
        )


def _vectors(
    student: Any, teacher: Package, data: TextDataModule, context: Context
) -> tuple[torch.Tensor, torch.Tensor]:
    """A vector for every row of the student's table [V, E], and which rows have one [V]."""
    width = student.embedding.embedding_dim
    key = {"teacher": teacher.fingerprint, "tokenizer": data.fingerprint, "width": width}

    def build(path: Path) -> None:
        vectors, has_vector = _distil_vectors(teacher, data, width, context)
        np.save(path / "vectors.npy", vectors.numpy())
        np.save(path / "known.npy", has_vector.numpy())

    folder = context.store.build("vectors", key, build, waiting=context.say)
    vectors = torch.from_numpy(np.load(folder / "vectors.npy"))
    return vectors * spread(student), torch.from_numpy(np.load(folder / "known.npy"))


def _distil_vectors(
    teacher: Package, data: TextDataModule, width: int, context: Context
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the teacher makes of every word, or n-gram, of the student's vocabulary [V, width], and which it has [V]."""
    tokenizer = data.tokenizer

    def encode(texts: list[str]) -> Tokens:
        ids, lengths = teacher.tokenizer.encode(texts)
        return pad(np.split(ids, np.cumsum(lengths)[:-1]), teacher.tokenizer.pad_id)

    def distil(words: list[str]) -> torch.Tensor:
        context.say(f"word vectors: asking the teacher about {len(words):,} words")
        return static_vectors(teacher.model, encode, words, width)

    if isinstance(tokenizer, TorchtextTokenizer):
        names = tokenizer.words
    else:
        assert isinstance(tokenizer, (WordTokenizer, NgramTokenizer))
        names = [name for name, _ in sorted(tokenizer.words.get_vocab().items(), key=lambda item: item[1])]
    if isinstance(tokenizer, NgramTokenizer):
        members = torch.from_numpy(tokenizer.members(data.corpus.texts(data.split.trained)))
        used = torch.from_numpy(np.unique(members.numpy())[1:]).long()  # without 0, which ends an n-gram
        words = torch.zeros(len(names), width)
        words[used] = distil([names[number] for number in used.tolist()])
        return ngram_vectors(words, members)
    vectors, has_vector = torch.zeros(len(names), width), torch.ones(len(names), dtype=torch.bool)
    vectors[2:] = distil(names[2:])  # after padding and unknown
    has_vector[:2] = False
    return vectors, has_vector
