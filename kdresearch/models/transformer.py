"""Hugging Face encoders as students and teachers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdresearch.errors import UserError, choices
from kdresearch.hub import from_pretrained, hub_name, refuse_kernels
from kdresearch.models.differentiation import tracked, twice_differentiable
from kdresearch.models.model import TextModel, class_names
from kdresearch.structures import FIELDS, LOGITS, Outputs, Signature, Tokens, check_needs

POOLINGS = ("mean", "first")
_POOLED = frozenset({"albert", "bert", "camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"})
_QKV = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"))  # BERT's kin, DistilBERT, MPNet


class Transformer(TextModel):
    """An encoder, a pooled vector and a linear classifier.

    It provides ``qkv`` where the linear maps to queries, keys and values are found in each layer: BERT and its kin,
    DistilBERT, MPNet.

    Args:
        classes: C, or their names.
        vocabulary: V, for an architecture that is not pretrained.
        path: a folder or hub id with pretrained weights; their architecture is used.
        architecture: a Hugging Face configuration with its ``model_type``, for a model from scratch.
        pooling: ``mean`` over real tokens, or the ``first`` token.
        dropout: before the classifier and, unless the pretrained configuration is kept, in the encoder.
        attention_dropout: above 0, sdpa leaves its fast path on a CPU.

    Raises:
        UserError: neither or both of path and architecture, an unknown pooling or architecture.
    """

    def __init__(
        self,
        vocabulary: int | None = None,
        classes: int | Sequence[str] = 2,
        *,
        path: str | Path | None = None,
        architecture: dict[str, Any] | None = None,
        pooling: str = "mean",
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        classes, names = class_names(classes)
        if pooling not in POOLINGS:
            raise UserError(f"student.model.pooling: {choices(pooling, POOLINGS)}")
        if (path is None) == (architecture is None):
            raise UserError("a transformer needs either a path (folder or hub id) or an architecture, and not both")
        drop = {"attention_probs_dropout_prob": attention_dropout, "attention_dropout": attention_dropout}
        if path is not None:
            name = hub_name(path)
            configuration = from_pretrained(AutoConfig, name)
            settings = {key: value for key, value in drop.items() if hasattr(configuration, key)}
            self.encoder = from_pretrained(AutoModel, name, **settings, **_without_pooler(configuration))
        else:
            assert architecture is not None
            refuse_kernels(architecture, "student.model.architecture")
            fields = {"hidden_dropout_prob": dropout, **drop, **architecture}
            if vocabulary is not None and "vocab_size" not in architecture:
                fields |= {"vocab_size": vocabulary, "pad_token_id": 0}
            try:
                configuration = AutoConfig.for_model(**fields)
                settings = {"trust_remote_code": False, **_without_pooler(configuration)}
                self.encoder = AutoModel.from_config(configuration, **settings)  # type: ignore[no-untyped-call]
            except (ValueError, TypeError) as error:
                raise UserError(f"student.model.architecture: {error}") from error
        self.signature = replace(_signature(self.encoder, FIELDS, type(self).__name__), classes=names, logits=classes)
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.signature.width, classes)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)
        self.config: dict[str, Any] = {
            "classes": classes,
            "architecture": self.encoder.config.to_diff_dict() | {"model_type": self.encoder.config.model_type},
            "pooling": pooling,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
        }

    def forward(self, tokens: Tokens, needs: frozenset[str] = LOGITS) -> Outputs:
        """Read B rows of T tokens; ValueError where ``needs`` names what the model does not provide."""
        check_needs(self, needs)
        answer, fields = _run(self.encoder, tokens, needs)
        pooled = _pool(answer.last_hidden_state, tokens.mask, self.pooling) if needs & {"logits", "pooled"} else None
        return Outputs(
            logits=self.classifier(self.dropout(pooled)) if "logits" in needs else None,
            pooled=pooled if "pooled" in needs else None,
            mask=tokens.mask,
            **fields,
        )


class HubClassifier(TextModel):
    """Any Hugging Face sequence classifier with its own head: a teacher that others fine-tuned.

    It provides ``qkv`` for the same architectures as ``Transformer``.

    Args:
        path: a folder or hub id.
        architecture: a configuration, to build it without weights (they come with the package).
    """

    def __init__(self, *, path: str | Path | None = None, architecture: dict[str, Any] | None = None) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModelForSequenceClassification

        if path is not None:
            self.model = from_pretrained(AutoModelForSequenceClassification, hub_name(path))
        else:
            refuse_kernels(architecture or {}, "architecture")
            configuration = AutoConfig.for_model(**(architecture or {}))
            self.model = AutoModelForSequenceClassification.from_config(configuration, trust_remote_code=False)  # type: ignore[no-untyped-call]
        configuration = self.model.config
        self.classes = tuple(str(configuration.id2label[number]) for number in range(configuration.num_labels))
        self.signature = replace(_signature(self.model, FIELDS - {"pooled"}, type(self).__name__), classes=self.classes)
        self.config: dict[str, Any] = {
            "architecture": configuration.to_diff_dict() | {"model_type": configuration.model_type}
        }

    def forward(self, tokens: Tokens, needs: frozenset[str] = LOGITS) -> Outputs:
        """Read B rows of T tokens; ValueError where ``needs`` names what the model does not provide."""
        check_needs(self, needs)
        answer, fields = _run(self.model, tokens, needs)
        return Outputs(logits=answer.logits if "logits" in needs else None, mask=tokens.mask, **fields)


def _signature(model: Any, fields: frozenset[str], name: str) -> Signature:
    """What a Hugging Face model gives: ``fields``, without ``qkv`` where its linear maps are not found."""
    configuration = model.config
    width = int(configuration.hidden_size)
    return Signature(
        fields - (set() if _projections(model) else {"qkv"}),
        width=width,
        depth=int(configuration.num_hidden_layers),
        heads=int(configuration.num_attention_heads),
        embedding_width=width,
        vocabulary=int(configuration.vocab_size),
        name=name,
    )


def _run(model: Any, tokens: Tokens, needs: frozenset[str]) -> tuple[Any, dict[str, Any]]:
    """The answer of a Hugging Face model, and those fields of Outputs that are read off its inside."""
    _choose_attention(model, maps="attention" in needs)
    queries, keys, values = qkv = [], [], []  # type: tuple[list[Tensor], list[Tensor], list[Tensor]]
    with ExitStack() as hooks:
        if "embeddings" in needs:
            hooks.enter_context(twice_differentiable())
            # The word vectors already: what is made of them, hidden_states[0], then has a gradient, frozen or not.
            hooks.enter_context(model.get_input_embeddings().register_forward_hook(lambda *call: tracked(call[-1])))
        if "qkv" in needs:
            for captured, modules in zip(qkv, _projections(model), strict=True):
                for module in modules:
                    hooks.enter_context(module.register_forward_hook(partial(_append_output, captured)))
        answer = model(
            input_ids=tokens.ids,
            attention_mask=tokens.mask.long(),
            output_hidden_states=bool(needs & {"hidden", "embeddings"}),
            output_attentions="attention" in needs,
        )
    return answer, {
        "hidden": tuple(answer.hidden_states) if "hidden" in needs else None,
        "attention": tuple(answer.attentions) if "attention" in needs else None,
        "qkv": tuple(zip(queries, keys, values, strict=True)) if "qkv" in needs else None,
        "embeddings": answer.hidden_states[0] if "embeddings" in needs else None,
    }


def _append_output(outputs: list[Tensor], module: nn.Module, arguments: Any, output: Tensor) -> None:
    outputs.append(output)


def _projections(model: Any) -> list[list[nn.Module]]:
    """The linear maps of every layer to queries, to keys and to values; empty where they are not as expected.

    They are looked up by name, as many as layers; ALBERT has one layer per group, run again and again.
    """
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    layers = getattr(model.config, "num_hidden_groups", layers)
    linear = [(path.rpartition(".")[2], module) for path, module in model.named_modules() if _maps_to(module, width)]
    for names in _QKV:
        modules_by_role = [[module for leaf, module in linear if leaf == name] for name in names]
        if all(len(modules) == layers for modules in modules_by_role):
            return modules_by_role
    return []


def _maps_to(module: nn.Module, width: int) -> bool:
    return isinstance(module, nn.Linear) and module.out_features == width


def _choose_attention(model: Any, maps: bool) -> None:
    """Eager attention while maps are wanted, which no other implementation gives; then what was there before."""
    current = model.config._attn_implementation
    if maps and current != "eager":
        model.attention_without_maps = current
        model.set_attn_implementation("eager")
    elif not maps and (before := model.__dict__.pop("attention_without_maps", None)):
        model.set_attn_implementation(before)


def _without_pooler(configuration: Any) -> dict[str, bool]:
    """No head that nothing reads: parameters without a gradient stop DDP."""
    return {"add_pooling_layer": False} if configuration.model_type in _POOLED else {}


def _pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """[B, T, D] and [B, T] to [B, D]."""
    if pooling == "first":
        return hidden[:, 0]
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return torch.sum(hidden * weight, dim=1) / weight.sum(dim=1).clamp(min=1)
