"""How losses are called: two sides by position, settings by name; class scores are rows [B, C]."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any

import pytest
import torch

from kdresearch import losses

LABEL = {"label": torch.tensor([0, 2])}
OF_LOGITS: dict[str, dict[str, Any]] = {
    "soft_label": {}, "pseudo_label": {}, "logit_mse": {}, "correlation": {}, "standardised": {},
    "total_variation": {}, "decoupled": LABEL, "weighted_soft_label": LABEL,
}  # fmt: skip


@pytest.mark.parametrize("name", losses.__all__)
def test_settings_go_by_name(name: str) -> None:
    parameters = list(signature(getattr(losses, name)).parameters.values())
    assert [each.kind is Parameter.KEYWORD_ONLY for each in parameters[:2]] == [False, False]
    assert all(each.kind is Parameter.KEYWORD_ONLY for each in parameters[2:])
    with pytest.raises(TypeError, match="positional argument"):
        getattr(losses, name)(torch.zeros(2, 3), torch.zeros(2, 3), 2.0)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_scores_that_are_not_rows_of_classes_are_refused_by_their_shapes(name: str) -> None:
    loss, settings = getattr(losses, name), OF_LOGITS[name]
    tokens = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"\[B, C\].*student \[2, 4, 3\], teacher \[2, 4, 3\].*flatten\(0, -2\)"):
        loss(tokens, tokens, **settings)
    for student, teacher in ((tokens[:, 0], tokens[:, 0, :2]), (tokens[0, 0], tokens[0, 0]), (tokens[:0, 0],) * 2):
        with pytest.raises(ValueError, match=r"\[B, C\]") as refusal:
            loss(student, teacher, **settings)
        assert str(list(student.shape)) in str(refusal.value) and str(list(teacher.shape)) in str(refusal.value)
        assert "flatten" not in str(refusal.value)


def test_every_loss_of_logits_is_among_them() -> None:
    """``semantic`` begins with logits as well, by way of ``soft_label``."""
    rows = torch.zeros(2, 3)
    of_logits = set()
    for name in losses.__all__:
        settings = LABEL if "label" in signature(getattr(losses, name)).parameters else {}
        try:
            getattr(losses, name)(rows[0], rows[0], **settings)
        except ValueError as error:
            if "logits must be" in str(error):
                of_logits.add(name)
        except TypeError:
            continue  # one that needs more than two sides
    assert of_logits == set(OF_LOGITS)
    layer = {"student_hidden": rows, "teacher_hidden": rows}
    with pytest.raises(ValueError, match=r"\[B, C\]"):
        losses.semantic(rows[None], rows[None], **layer)


def test_flattened_tokens_are_rows() -> None:
    student, teacher = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    flat = losses.soft_label(student.flatten(0, -2), teacher.flatten(0, -2))
    by_hand = torch.stack([losses.soft_label(s, t) for s, t in zip(student, teacher, strict=True)]).mean()
    torch.testing.assert_close(flat, by_hand)
