"""Any torch module as a model of ours: its inside is read by hooks on named submodules."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kdresearch.errors import UserError, choices
from kdresearch.models.differentiation import tracked, twice_differentiable
from kdresearch.models.model import TextModel
from kdresearch.structures import LOGITS, Outputs, Signature, Tokens, check_needs


def wrap(
    module: nn.Module,
    *,
    hidden: Sequence[str] = (),
    pooled: str | None = None,
    attention: Sequence[str] = (),
    embeddings: str | None = None,
    logits: str | None = None,
    classes: Sequence[str] | None = None,
    heads: int = 0,
    example: Any = None,
) -> WrappedModel:
    """A torch module as student or teacher, whatever its inputs are.

    The named submodules are read by hooks while it runs and only then; of one that gives a tuple, the first tensor.

    Args:
        module: gives logits [B, C]: a tensor, the first of a tuple, or a field ``logits``.
        hidden: submodules whose outputs are layers 1, 2, ... of ``Outputs.hidden``: [B, T, D], or maps [B, D, H, W].
        pooled: the one that gives the vector which the classifier reads: [B, D], or [B, D, 1, 1]; of token states
            [B, T, D], the first token's.
        attention: those that give attention maps [B, H, T, T].
        embeddings: the one that gives layer 0, [B, T, E].
        logits: the one that gives the logits, where the module's own output is something else.
        classes: names of the logits, where they should be compared with the data's.
        heads: H.
        example: inputs of some rows, from which widths are read at once; else they are read with the first batch.

    Raises:
        UserError: a submodule that the module does not have.
    """
    return WrappedModel(module, hidden, pooled, attention, embeddings, logits, classes, heads, example)


class WrappedModel(TextModel):
    """What ``wrap`` makes; see there."""

    def __init__(
        self,
        module: nn.Module,
        hidden: Sequence[str],
        pooled: str | None,
        attention: Sequence[str],
        embeddings: str | None,
        logits: str | None,
        classes: Sequence[str] | None,
        heads: int,
        example: Any,
    ) -> None:
        super().__init__()
        self.module = module
        self.names = {
            "hidden": list(hidden),
            "attention": list(attention),
            "pooled": _listed(pooled),
            "embeddings": _listed(embeddings),
            "logits": _listed(logits),
        }
        submodules = dict(module.named_modules())
        for names in self.names.values():
            for name in names:
                if name not in submodules:
                    raise UserError(f"wrap: {type(module).__name__} has no submodule {choices(name, submodules)}")
        self.config: dict[str, Any] = {}
        self.classes = None if classes is None else tuple(map(str, classes))
        self.heads = heads
        self._keywords = "input_ids" in inspect.signature(module.forward).parameters
        self._signature: Signature | None = None
        if example is not None:
            self.look_at(example)

    @property
    def fields(self) -> frozenset[str]:
        """What it can give, known before its widths."""
        return LOGITS | {field for field, names in self.names.items() if names and field != "logits"}

    @property
    def signature(self) -> Signature:  # type: ignore[override]
        """What it gives; not ``measured`` until it has read inputs (``look_at``)."""
        name = type(self.module).__name__
        depth = len(self.names["hidden"])
        return self._signature or Signature(
            self.fields, depth=depth, heads=self.heads, classes=self.classes, measured=False, name=name
        )

    @torch.no_grad()
    def look_at(self, inputs: Any) -> None:
        """Run once on inputs of some rows, for the widths of what it gives; nothing of its state changes.

        Raises:
            UserError: hidden states of two kinds, or logits that are not [B, C] or not as many as ``classes``.
        """
        modes = {part: part.training for part in self.modules()}
        self.eval()
        try:
            with torch.random.fork_rng():
                outputs = self._run(inputs, self.fields)
        finally:
            for part, training in modes.items():
                part.training = training
        self._check_logits(outputs.logits)
        states = outputs.hidden or ()
        maps = any(state.ndim == 4 for state in states)
        if maps and not all(state.ndim == 4 for state in states[1:]):
            raise UserError("wrap: hidden mixes maps [B, D, H, W] and states [B, T, D]: wrap one kind")
        widths = tuple(state.shape[1 if state.ndim == 4 else -1] if state.numel() else 0 for state in states)
        self._signature = Signature(
            self.fields,
            width=0 if outputs.pooled is None else outputs.pooled.shape[1],
            depth=max(0, len(states) - 1),
            heads=self.heads,
            embedding_width=widths[0] if widths else 0,
            classes=self.classes,
            logits=outputs.logits.shape[1],  # type: ignore[union-attr]
            widths=widths or None,
            layout="map" if maps else "tokens",
            name=type(self.module).__name__,
        )

    def _check_logits(self, logits: Tensor | None) -> None:
        name = type(self.module).__name__
        if logits is None or logits.ndim != 2:
            shape = None if logits is None else list(logits.shape)
            raise UserError(
                f"wrap: {name} gives {shape} for logits, and they are [B, C]: name their submodule (logits=)"
            )
        if self.classes is not None and len(self.classes) != logits.shape[1]:
            raise UserError(f"wrap: {name} gives {logits.shape[1]} logits, and classes names {len(self.classes)}")

    def forward(self, inputs: Any, needs: frozenset[str] = LOGITS) -> Outputs:
        """Run the module; ValueError where ``needs`` names what is not wrapped."""
        check_needs(self, needs)
        return self._run(inputs, needs)

    def _run(self, inputs: Any, needs: frozenset[str]) -> Outputs:
        submodules = dict(self.module.named_modules())
        results: dict[str, Tensor] = {}
        hook_names = {name for field in needs | LOGITS for name in self.names.get(field, ())}
        if "hidden" in needs:
            hook_names |= set(self.names["embeddings"])
        with ExitStack() as hooks:
            for name in hook_names:
                hooks.enter_context(submodules[name].register_forward_hook(_keep(results, name, "embeddings" in needs)))
            if "embeddings" in needs:
                hooks.enter_context(twice_differentiable())
            output = self._call(inputs)

        def outputs_of(field: str) -> list[Tensor]:
            return [results[name] for name in self.names[field]]

        logits = outputs_of("logits")[0] if self.names["logits"] else _logits_of(output)
        states = None
        if "hidden" in needs:
            layers = outputs_of("hidden")
            first = outputs_of("embeddings")[0] if self.names["embeddings"] else layers[0].new_empty(0)
            states = (first, *layers)
        return Outputs(
            logits=logits if "logits" in needs else None,
            pooled=_vector(outputs_of("pooled")[0]) if "pooled" in needs else None,
            hidden=states,
            attention=tuple(outputs_of("attention")) if "attention" in needs else None,
            embeddings=outputs_of("embeddings")[0] if "embeddings" in needs else None,
            mask=_mask_of(inputs, states, results, self.names),
        )

    def _call(self, inputs: Any) -> Any:
        if isinstance(inputs, Tokens):
            if self._keywords:
                return self.module(input_ids=inputs.ids, attention_mask=inputs.mask.long())
            return self.module(inputs.ids)
        if isinstance(inputs, Mapping):
            return self.module(**inputs)
        if isinstance(inputs, list | tuple):
            return self.module(*inputs)
        return self.module(inputs)


def _listed(name: str | None) -> list[str]:
    return [] if name is None else [name]


def _keep(results: dict[str, Tensor], name: str, differentiable: bool) -> Any:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        results[name] = tracked(_tensor(output)) if differentiable else _tensor(output)

    return hook


def _tensor(output: Any) -> Tensor:
    """The first tensor of what a submodule gives."""
    if isinstance(output, Tensor):
        return output
    values: Iterable[Any] = output.values() if isinstance(output, Mapping) else output
    return next(value for value in values if isinstance(value, Tensor))


def _logits_of(output: Any) -> Tensor:
    logits = getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else _tensor(output)


def _vector(output: Tensor) -> Tensor:
    """[B, D] of a vector, of a map of one place, or of the first of several tokens."""
    return output[:, 0] if output.ndim == 3 else output.flatten(1)


def _mask_of(
    inputs: Any, states: tuple[Tensor, ...] | None, results: Mapping[str, Tensor], names: Mapping[str, list[str]]
) -> Tensor | None:
    """[B, T] bool: where tokens are real; None for maps and where there are no tokens."""
    if isinstance(inputs, Tokens):
        return inputs.mask
    if isinstance(inputs, Mapping) and isinstance(inputs.get("attention_mask"), Tensor):
        mask: Tensor = inputs["attention_mask"].bool()
        return mask
    of_tokens = [state for state in states or () if state.ndim == 3]
    of_tokens += [results[name] for name in names["embeddings"] if name in results]
    size = next(((len(state), state.shape[1]) for state in of_tokens), None)
    for name in names["attention"]:
        if size is None and name in results:
            size = (len(results[name]), results[name].shape[-1])
    return None if size is None else torch.ones(size, dtype=torch.bool, device=next(iter(results.values())).device)
