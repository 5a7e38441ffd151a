"""kdresearch: knowledge distillation of text classifiers and of any torch modules; loaded name by name when used."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "bench.distil": ("Distillation", "distil"),
    "bench.components": ("Component",),
    "bench.library": ("load_teacher", "record"),
    "bench.plan": ("Plan", "TeacherPlan"),
    "bench.run": ("run",),
    "data.datamodule": ("TextDataModule",),
    "data.files": ("Files",),
    "data.hub": ("Hub",),
    "data.imdb": ("Imdb",),
    "data.reviews": ("Reviews",),
    "data.texts": ("Texts",),
    "data.tokenizers": ("NgramTokenizer", "PretrainedTokenizer", "TorchtextTokenizer", "WordTokenizer"),
    "errors": ("UserError",),
    "models.bilstm": ("BiLSTM",),
    "models.ngram": ("NgramBag", "NgramLinear"),
    "models.textcnn": ("TextCNN",),
    "models.transformer": ("HubClassifier", "Transformer"),
    "models.wrap": ("wrap",),
    "objectives": (
        "AttentionMaps", "Contrastive", "Correlation", "Decoupled", "Feature", "Label", "LogitMse", "RelationHeads",
        "RkdAngle", "RkdDistance", "SoftLabel", "Standardised", "TotalVariation", "WeightedSoftLabel",
    ),
    "package": ("Package",),
    "reporting.comparison": ("compare",),
    "strategies": (),
    "structures": ("Batch", "Outputs", "Signature", "Tokens"),
}  # fmt: skip
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
_ROOMS = frozenset({"losses", "objectives", "models", "strategies"})


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"kdresearch.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'kdresearch' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"kdresearch.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})
