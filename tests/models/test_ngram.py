from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from kdresearch.errors import UserError
from kdresearch.models.ngram import NgramBag, NgramLinear, log_count_ratio, sparse_rows
from kdresearch.structures import LOGITS, UNLABELLED, Batch, Tokens


def tokens(*rows: list[int], width: int = 0) -> Tokens:
    width = max(width, *map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return Tokens(ids, mask)


def batch(labels: list[int], *rows: list[int]) -> Batch:
    return Batch(torch.arange(len(rows)), torch.tensor(labels), tokens(*rows))


ROWS = ([1, 2, 5], [3], [], [4, 1, 2, 3])


def prepared(classes: int, **options: float) -> NgramLinear:
    torch.manual_seed(0)
    model = NgramLinear(6, classes, **({"weighting": "nb"} | options))  # type: ignore[arg-type]
    labels = [0, 1, classes - 1, 1]
    model.prepare([batch(labels, *ROWS), batch([classes - 1, UNLABELLED], [1, 4], [1, 1, 5])])
    torch.nn.init.normal_(model.weight.weight)
    torch.nn.init.normal_(model.bias)
    return model


def test_log_count_ratio_by_hand() -> None:
    counts = torch.tensor([[3.0, 1.0], [0.0, 4.0], [2.0, 2.0]], dtype=torch.float64)
    # α = 1: p = (2, 5, 3)/10 of the second class, q = (4, 1, 3)/8 of the first.
    expected = [[math.log(0.2 / 0.5)], [math.log(0.5 / 0.125)], [math.log(0.3 / 0.375)]]
    torch.testing.assert_close(log_count_ratio(counts), torch.tensor(expected))
    # α = 0.5: p = (1.5, 4.5, 2.5)/8.5, q = (3.5, 0.5, 2.5)/6.5.
    halves = [[math.log(1.5 / 8.5 * 6.5 / 3.5)], [math.log(4.5 / 8.5 * 6.5 / 0.5)], [math.log(6.5 / 8.5)]]
    torch.testing.assert_close(log_count_ratio(counts, 0.5), torch.tensor(halves))


def test_log_count_ratio_of_three_classes_is_each_against_the_rest() -> None:
    counts = torch.tensor([[3.0, 1.0, 0.0], [0.0, 4.0, 2.0], [0.0, 0.0, 0.0], [2.0, 2.0, 5.0]], dtype=torch.float64)
    before, ratio = counts.clone(), log_count_ratio(counts)
    for own in range(3):
        rest = counts.sum(1) - counts[:, own]
        against = log_count_ratio(torch.stack([rest, counts[:, own]], dim=1))
        torch.testing.assert_close(ratio[:, own], against[:, 0])
    assert ratio.shape == (4, 3) and not ratio[2].any() and torch.equal(counts, before)


def test_prepare_counts_the_labelled_rows_alone() -> None:
    model = prepared(2)
    counts = torch.tensor([[0, 0], [1, 2], [1, 1], [0, 2], [0, 2], [1, 0]], dtype=torch.float64)
    torch.testing.assert_close(model.ratio, log_count_ratio(counts))
    assert model.ratio[0] == 0


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("weighting", ["nb", "none"])
def test_scores_by_hand(classes: int, weighting: str) -> None:
    model = prepared(classes, weighting=weighting)  # type: ignore[arg-type]
    weight = model.weight.weight.detach().numpy()
    ratio = model.ratio.expand(6, weight.shape[1]).numpy()
    assert weighting == "nb" or (ratio == 1).all()
    logits = model(tokens(*ROWS)).logits.detach().numpy()
    for row, ids in enumerate(ROWS):
        score = model.bias.detach().numpy() + sum((ratio[i] * weight[i] for i in ids), np.zeros(1))
        expected = score if classes > 2 else np.array([-score[0] / 2, score[0] / 2])
        np.testing.assert_allclose(logits[row], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_tfidf_scores_are_those_of_scikit_learns_rows(classes: int) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = ["a b e", "c", "", "d a b c", "a d"]
    vectors = TfidfVectorizer(token_pattern=r"\w", vocabulary={"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}, binary=True)
    rows = vectors.fit_transform(texts)
    ids = ([1, 2, 5], [3], [], [4, 1, 2, 3], [1, 4])
    model = NgramLinear(6, classes, weighting="tfidf")
    model.prepare([batch([0, 1], *ids[:2]), batch([1, 0, 1], *ids[2:])])
    torch.nn.init.normal_(model.weight.weight)
    torch.nn.init.normal_(model.bias)
    scores = torch.from_numpy(rows.toarray()).float() @ model.weight.weight[1:] + model.bias
    logits = model(tokens(*ids)).logits
    torch.testing.assert_close(logits if classes == 3 else logits[:, 1:] - logits[:, :1], scores)


@pytest.mark.parametrize("classes", [2, 3])
def test_nb_tfidf_is_tfidf_times_the_root_of_the_mean_square_of_the_ratios(classes: int) -> None:
    batches = [batch([0, 1], [1, 2, 5], [3]), batch([1, 0, classes - 1], [], [4, 1, 2, 3], [1, 4])]
    model = NgramLinear(6, classes, weighting="nb_tfidf")
    rows, label = sparse_rows(batches, 6)
    ratio = model.ratios(rows, label, "nb_tfidf", np.array([0, 1, 2, 3, 1, 1]))
    nb, tfidf = model.ratios(rows, label, "nb"), model.ratios(rows, label, "tfidf")
    assert nb is not None and tfidf is not None and ratio is not None and ratio.shape == (6, 1)
    expected = [tfidf[i, 0] * (sum(r**2 for r in nb[i]) / nb.shape[1]) ** 0.25 for i in range(6)]
    np.testing.assert_allclose(ratio[:, 0], expected)  # n-grams of three words among them
    model.prepare(batches)
    torch.nn.init.normal_(model.weight.weight)
    torch.nn.init.normal_(model.bias)
    values = (
        torch.tensor([[0, *([1] * 5)]]).float()
        * torch.from_numpy(ratio[:, 0]).float()
        * torch.tensor([[0, 1, 1, 0, 0, 1]])
    )
    scores = values / values.norm() @ model.weight.weight + model.bias
    logits = model(tokens([1, 2, 5])).logits
    torch.testing.assert_close(logits if classes == 3 else logits[:, 1:] - logits[:, :1], scores)


def test_tfidf_reads_n_grams_of_two_words_at_most() -> None:
    model = NgramLinear(5, 2, weighting="tfidf")
    rows, label = sparse_rows([batch([0, 1], [1, 2, 3], [1, 3, 4])], 5)
    plain = model.ratios(rows, label, "tfidf")[:, 0]
    told = model.ratios(rows, label, "tfidf", np.array([0, 1, 2, 3, 0]))[:, 0]
    assert told[3] == 0 < plain[3] and (told[[1, 2, 4]] == plain[[1, 2, 4]]).all()


def test_a_package_of_full_ratios_is_read() -> None:
    """As packages before the ratios were folded have them: [V, columns], ones where there is no weighting."""
    for weighting, ratio in (("none", torch.ones(6, 3)), ("nb", torch.randn(6, 3))):
        weight, bias = torch.randn(6, 3), torch.randn(3)
        weight[0] = 0
        model = NgramLinear(vocabulary=6, classes=3, weighting=weighting, smoothing=1.0)
        model.load_state_dict({"weight.weight": weight, "bias": bias, "ratio": ratio})
        expected = torch.stack([(weight * ratio)[row].sum(0) + bias for row in map(torch.tensor, (ROWS[0], ROWS[1]))])
        torch.testing.assert_close(model(tokens(*ROWS)).logits[:2], expected)


def test_two_classes_in_one_column_are_binary_logistic_regression() -> None:
    model = prepared(2)
    batch_ = tokens(*ROWS)
    probability = model(batch_).logits.softmax(1)
    score = torch.stack([(model.weight.weight * model.ratio)[row].sum() for row in map(torch.tensor, (*ROWS[:2],))])
    torch.testing.assert_close(probability[:2, 1], torch.sigmoid(score + model.bias))
    # The same as two columns, each half of the one with its sign.
    two = torch.nn.EmbeddingBag(6, 2, mode="sum", padding_idx=0)
    with torch.no_grad():
        two.weight.copy_(model.weight.weight * model.ratio * torch.tensor([-0.5, 0.5]))
    torch.testing.assert_close(model(batch_).logits, two(batch_.ids) + model.bias * torch.tensor([-0.5, 0.5]))
    assert sum(parameter.numel() for parameter in model.parameters()) == 7


@pytest.mark.parametrize("kind", ["linear", "three", "bag"])
def test_padding_changes_nothing_and_learns_nothing(kind: str) -> None:
    torch.manual_seed(0)
    model = {"linear": lambda: prepared(2), "three": lambda: prepared(3), "bag": lambda: NgramBag(6, 2)}[kind]().eval()
    short, long = model(tokens(*ROWS)).logits, model(tokens(*ROWS, width=9)).logits
    torch.testing.assert_close(short, long)
    for row, ids in enumerate(ROWS):
        torch.testing.assert_close(model(tokens(ids, width=1)).logits[0], short[row])
    long.pow(2).sum().backward()
    table = model.weight.weight if kind != "bag" else model.embedding.weight
    assert not table.grad[0].any() and table.grad[1:].any(dim=1).all()


def test_bag_is_the_mean_by_hand() -> None:
    torch.manual_seed(0)
    model = NgramBag(6, 3, embedding_dim=4, dropout=0.5).eval()
    outputs = model(tokens(*ROWS), LOGITS | {"pooled"})
    table = model.embedding.weight
    expected = torch.stack([(table[1] + table[2] + table[5]) / 3, table[3], torch.zeros(4), table[1:5].mean(0)])
    torch.testing.assert_close(outputs.pooled, expected)
    torch.testing.assert_close(outputs.logits, model.classifier(expected))
    assert model.signature.width == 4 and model(tokens(*ROWS)).pooled is None
    assert not torch.equal(model.train()(tokens(*ROWS)).logits, outputs.logits)


@pytest.mark.parametrize(
    "make", [lambda: prepared(2, smoothing=0.3), lambda: prepared(3), lambda: NgramBag(6, 3, embedding_dim=5)]
)
def test_config_and_weights_make_it_again(make) -> None:
    model = make().eval()
    again = type(model)(**json.loads(json.dumps(model.config))).eval()
    again.load_state_dict(model.state_dict())  # the ratios come with the weights
    assert torch.equal(again(tokens(*ROWS)).logits, model(tokens(*ROWS)).logits)
    assert (
        model.signature.fields >= LOGITS
        and model.signature.depth == model.signature.heads == model.signature.embedding_width == 0
    )


def test_it_learns_what_a_word_tells() -> None:
    torch.manual_seed(0)
    rows = [[1 + label, 3 + i % 3] for i in range(60) for label in (0, 1)]
    data = batch([0, 1] * 60, *rows)
    model = NgramLinear(7, 2)
    model.prepare([data])
    assert model.ratio[1] < -2 < 2 < model.ratio[2] and model.ratio[3:6].abs().max() < 1e-6
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(data.student).logits, data.label).backward()
        optimizer.step()
    assert (model(data.student).logits.argmax(1) == data.label).all()


def test_what_it_does_not_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"weighting: 'bn'.*auto, nb, tfidf, nb_tfidf, none"):
        NgramLinear(6, 2, weighting="bn")
    for model, field in ((NgramLinear(6, 2), "pooled"), (NgramBag(6, 2), "attention")):
        with pytest.raises(ValueError, match=f"does not provide {field}"):
            model(tokens(*ROWS), frozenset({field}))
