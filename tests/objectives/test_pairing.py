"""Tokens pooled to words, against tables worked out by hand and loops in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kdresearch.objectives.pairing import attention, pair, states
from kdresearch.structures import Batch, Outputs, Tokens

# One text of three words: [CLS] w0 w1 w1 w2 [SEP] of the student; w0 w0 w1 (cut off before w2), padding of the teacher.
STUDENT = torch.tensor([[-1, 0, 1, 1, 2, -1]])
TEACHER = torch.tensor([[0, 0, 1, -1]])


def tokens(words: Tensor, given: bool = True, mask: Tensor | None = None) -> Tokens:
    mask = torch.ones_like(words, dtype=torch.bool) if mask is None else mask
    return Tokens(torch.ones_like(words), mask, words if given else None)


def sides(student: Tokens, teacher: Tokens) -> tuple[Batch, Outputs, Outputs]:
    batch = Batch(torch.arange(len(student.ids)), torch.zeros(len(student.ids)).long(), student, teacher)
    return batch, Outputs(mask=student.mask), Outputs(mask=teacher.mask)


def pairing(student: Tensor = STUDENT, teacher: Tensor = TEACHER):
    return pair(*sides(tokens(student), tokens(teacher)))


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_words_of_both_sides_by_hand() -> None:
    found = pairing()
    assert found.mask.tolist() == [[True, True]]  # w2 is cut off on one side
    assert found.student.tolist() == [[[0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]]
    assert found.teacher.tolist() == [[[1, 1, 0, 0], [0, 0, 1, 0]]]


def test_states_are_means_by_hand() -> None:
    hidden = torch.tensor([[[9.0, 9], [1, 2], [3, 5], [5, 9], [7, 7], [8, 8]]])
    assert states(hidden, pairing().student).tolist() == [[[1, 2], [4, 7]]]
    assert states(hidden, None) is hidden


def test_attention_is_the_mean_over_queries_and_the_sum_over_keys_by_hand() -> None:
    maps = torch.zeros(1, 1, 6, 6)
    maps[0, 0, 1] = torch.tensor([0.2, 0.1, 0.1, 0.2, 0.1, 0.3])  # w0: 0.1 to itself, 0.3 to w1, 0.6 elsewhere
    maps[0, 0, 2] = torch.tensor([0.0, 0.5, 0.2, 0.1, 0.1, 0.1])  # w1's first: 0.5 to w0, 0.3 to itself
    maps[0, 0, 3] = torch.tensor([0.5, 0.1, 0.2, 0.1, 0.1, 0.0])  # w1's second: 0.1 to w0, 0.3 to itself
    found = attention(maps, pairing().student)
    torch.testing.assert_close(found, torch.tensor([[[[1 / 4, 3 / 4], [1 / 2, 1 / 2]]]]))
    single = attention(maps[:, :, 2:3], pairing().student)  # a query of its own stays one
    torch.testing.assert_close(single, torch.tensor([[[[5 / 8, 3 / 8]]]]))
    assert attention(maps, None) is maps


def test_a_batch_against_loops() -> None:
    own = torch.tensor([[-1, 0, 0, 1, 3, 4, -1], [-1, 2, 2, 2, 5, -1, -1], [-1, -1, -1, -1, -1, -1, -1]])
    other = torch.tensor([[0, 1, 1, 2, 4], [1, 2, 5, 5, 6], [0, 1, 2, 3, 4]])
    common = [[0, 1, 4], [2, 5], []]
    found = pairing(own, other)
    assert found.mask.sum(1).tolist() == [3, 2, 0]
    for words, member in ((own, found.student), (other, found.teacher)):
        length = words.shape[1]
        hidden, maps = draw(3, length, 4), draw(3, 2, length, length).softmax(-1)
        pooled, between = states(hidden, member).numpy(), attention(maps, member).numpy()
        for row, names in enumerate(common):
            spans = [np.flatnonzero(words[row].numpy() == name) for name in names]
            for i, span in enumerate(spans):
                np.testing.assert_allclose(pooled[row, i], hidden[row].numpy()[span].mean(0), rtol=1e-12)
                paid = np.stack([maps[row].numpy()[:, span][:, :, to].sum(2).mean(1) for to in spans], 1)
                np.testing.assert_allclose(between[row, :, i, : len(spans)], paid / paid.sum(1, keepdims=True))
            np.testing.assert_allclose(between[row, :, : len(spans)].sum(-1), 1.0, rtol=1e-12)
            assert not pooled[row, len(spans) :].any() and not between[row, :, len(spans) :].any()


def test_words_of_one_token_are_the_tokens() -> None:
    words = torch.arange(5).repeat(2, 1)
    found = pairing(words, words)
    hidden, maps = draw(2, 5, 3), draw(2, 2, 5, 5).softmax(-1)
    assert found.mask.all() and found.mask.shape == (2, 5)
    torch.testing.assert_close(states(hidden, found.student), hidden)
    torch.testing.assert_close(attention(maps, found.teacher), maps)


def test_texts_without_a_word_in_common_compare_nothing_and_stay_finite() -> None:
    found = pairing(torch.tensor([[0, -1], [-1, -1]]), torch.tensor([[1, 2, -1], [-1, -1, -1]]))
    assert not found.mask.any()
    hidden = draw(2, 2, 3).requires_grad_()
    maps = draw(2, 1, 2, 2).softmax(-1).requires_grad_()
    (states(hidden, found.student).sum() + attention(maps, found.student).sum()).backward()
    assert hidden.grad is not None and not hidden.grad.any()
    assert maps.grad is not None and not maps.grad.any()


def test_tokens_as_they_are_where_the_batch_says_nothing_of_words() -> None:
    mask, other = torch.tensor([[1, 1, 1, 0]]).bool(), torch.tensor([[1, 1, 0, 0]]).bool()
    words = torch.arange(4)[None]
    found = pair(*sides(tokens(words, False, mask), tokens(words, False, other)))
    assert found.mask.tolist() == other.tolist() and found.student is None and found.teacher is None
    one_sided = pair(*sides(tokens(words, True, mask), tokens(words, False, other)))
    assert one_sided.student is None and one_sided.teacher is None
    with pytest.raises(ValueError, match=r"\[1, 6\] tokens and the teacher \[1, 4\].*which words"):
        pair(*sides(tokens(STUDENT, False), tokens(TEACHER, False)))


def test_gradients_reach_each_token_of_a_word_alike() -> None:
    hidden = torch.zeros(1, 6, 1, requires_grad=True)
    states(hidden, pairing().student).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.flatten().tolist() == [0, 1, 0.5, 0.5, 0, 0]


def test_full_precision_under_autocast() -> None:
    hidden, maps = draw(1, 6, 4).bfloat16(), draw(1, 2, 6, 6).softmax(-1).bfloat16()
    member = pairing().student
    with torch.autocast("cpu", torch.bfloat16):
        pooled, between = states(hidden, member), attention(maps, member)
    assert pooled.dtype == between.dtype == torch.float32
    torch.testing.assert_close(pooled, states(hidden.float(), member))
    torch.testing.assert_close(between.sum(-1), torch.ones(1, 2, 2))
