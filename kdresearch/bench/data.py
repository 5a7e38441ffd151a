"""A plan's rows: read, carved, encoded, and described for the record."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdresearch.bench.context import Context
from kdresearch.bench.plan import Plan
from kdresearch.data.account import account, class_weights
from kdresearch.data.datamodule import TextDataModule


def open_data(plan: Plan, context: Context) -> TextDataModule:
    """The data module of a plan, not yet prepared.

    Raises:
        UserError: settings of source, tokenizer or carving that make no sense.
    """
    return TextDataModule(
        plan.data.source.build("data"),
        plan.student.tokenizer.build("student.tokenizer"),
        store=context.store,
        transfer_share=plan.data.transfer_share,
        split_seed=plan.seeds.split,
        order_seed=plan.seeds.order,
        batch_size=plan.student.training["batch_size"],
        say=context.say,
        **plan.data.carving,
    )


def describe_data(data: TextDataModule) -> dict[str, Any]:
    """The facts of the rows that a record keeps."""
    split = data.split
    return {
        "name": data.corpus.name,
        "synthetic": data.corpus.synthetic,
        "classes": list(data.classes),
        "fingerprint": data.corpus.fingerprint,
        "counts": {
            "train": len(split.train),
            "transfer": len(split.transfer),
            "validation": len(split.validation),
            "test": len(split.test),
        },
        "duplicates_dropped": split.dropped,
        **account(data.corpus, split, data.label_changes),
    }


def weigh_classes(plan: Plan, data: TextDataModule) -> list[float] | None:
    """The weight of each class in the loss on gold labels; None weighs rows alike."""
    setting = plan.student.training.get("class_weights")
    counts = np.bincount(data.labels[data.split.train], minlength=len(data.classes))
    return None if setting is None else class_weights(setting, data.classes, counts)
