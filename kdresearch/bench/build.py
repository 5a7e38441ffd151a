"""The parts of a run, built from its plan around its data; what does not fit together is refused."""

from __future__ import annotations

import torch

from kdresearch.bench.data import weigh_classes
from kdresearch.bench.plan import Plan
from kdresearch.bench.samples import build_generator
from kdresearch.data.datamodule import TextDataModule
from kdresearch.errors import UserError
from kdresearch.strategies.distiller import Distiller
from kdresearch.strategies.generative import GenerativeDistiller
from kdresearch.structures import Model, Reading, Teacher


def build_model(plan: Plan, data: TextDataModule) -> Model:
    """A fresh student for the data's vocabulary and classes."""
    model: Model = plan.student.model.build("student.model", vocabulary=data.tokenizer.size, classes=len(data.classes))
    return model


def build_strategy(
    plan: Plan, student: Model, data: TextDataModule, teacher: Teacher | None, reading: Reading
) -> Distiller:
    """The strategy around a student and a teacher; UserError for what does not fit."""
    optimizer, scheduler = plan.optimizer.partial("optimizer"), None
    trial = optimizer([torch.nn.Parameter(torch.zeros(1))])  # both refuse early
    if plan.scheduler is not None:
        scheduler = plan.scheduler.partial("scheduler")
        scheduler(trial, 1)
    module: Distiller = plan.strategy.build(
        "strategy",
        student=student,
        classes=data.classes,
        teacher=teacher,
        optimizer=optimizer,
        scheduler=scheduler,
        head_lr_scale=plan.student.training.get("head_lr_scale", 1.0),
        reading=reading,
        batch_size=plan.student.training["batch_size"],
        telemetry_every=plan.telemetry_every,
        class_weights=weigh_classes(plan, data),
    )
    return module


def look_at_data(student: Model, data: TextDataModule, solved: bool = False) -> None:
    """What a model wants to see before it is trained by updates: n-gram counts, word vectors."""
    if not solved:
        student.prepare(data.training_batches())
    vectors = data.tokenizer.vectors()
    if vectors is not None:
        student.load_vectors(*vectors)


def check_length(student: Model, data: TextDataModule) -> None:
    """Raise UserError for rows of more tokens than the student has positions, before a teacher is paid for."""
    for name, module in student.named_modules():  # type: ignore[attr-defined]
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            positions = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
            longest = int(data.student_rows.lengths(data.used).max())
            if longest > positions:
                raise UserError(
                    f"a row has {longest:,} tokens, and the student positions for {positions:,}: "
                    f"give student.tokenizer.max_length={positions} or less"
                )


def check_unlabelled(plan: Plan, module: Distiller, data: TextDataModule) -> bool:
    """Refuse rows without labels where they teach nothing; whether the teacher is to filter pseudo-samples."""
    samples, options = plan.samples, plan.options
    added = {
        "data.transfer": plan.data.carving.get("transfer", "none") if len(data.split.transfer) else "none",
        "generator": "none" if samples is None else samples.name or "NAME",
    }
    added = {name: option for name, option in added.items() if option != "none"}
    if added and not module.learns_from_unlabelled:
        raise UserError(
            f"{' and '.join(f'{name}={option}' for name, option in added.items())} adds rows without labels, and "
            f"{type(module).__name__} learns from labels only: choose a strategy with a teacher, or "
            f"{' '.join(f'{name}=none' for name in added)}"
        )
    if samples is None:
        if isinstance(module, GenerativeDistiller) and not added:
            raise UserError(
                f"strategy={options.get('strategy', 'generative')} learns from rows without labels, and generator=none "
                "makes none: choose one with generator=NAME, or the data's own with data.transfer=unlabelled"
            )
        data.mixture(0)  # refuses
        return False
    filtered = build_generator(plan, samples)[1].ask_teacher
    if filtered and plan.teacher is None:
        raise UserError(
            "generator.filters: confidence and entropy are a teacher's, and "
            f"strategy={options.get('strategy', type(module).__name__)} has none"
        )
    return filtered
