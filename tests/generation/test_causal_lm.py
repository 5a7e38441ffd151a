from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch

from kdresearch.errors import UserError
from kdresearch.generation.causal_lm import CausalLm, Nucleus, sample
from kdresearch.generation.generator import Preparation

TEXTS = ["a fine film with a fine song", "the plot is dull\nand the dog is bad", "what a great tree", "no comment"]
LABELS = np.array([1, 0, 1, -1])
CLASSES = ("negative", "positive")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with random weights, wide enough apart for greedy choices to be clear."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    )
    where = tmp_path_factory.mktemp("gpt2")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(str(where))
    torch.manual_seed(0)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 48, "initializer_range": 0.3}
    GPT2LMHeadModel(
        GPT2Config(vocab_size=tokenizer.get_vocab_size(), bos_token_id=0, eos_token_id=0, **size)
    ).save_pretrained(str(where))
    return where


def prepared(folder: Path, labels: np.ndarray = LABELS, **settings: Any) -> CausalLm:
    generator = CausalLm(path=folder, **{"max_new_tokens": 12, "batch_size": 4} | settings)
    generator.prepare(Preparation(TEXTS, labels, CLASSES, folder))
    return generator


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return prepared(folder).model


PROMPTS = [[5, 80, 7], [9], [33, 40, 41, 42, 43, 44, 45], [250, 6], [17, 18, 19, 20]]
GREEDY: dict[str, Any] = {"seed": 0, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 15}


def by_hand(model: Any, prompt: list[int], stop: set[int]) -> list[int]:
    """The likeliest token, one at a time, all computed anew for each."""
    ids = list(prompt)
    for step in range(15):
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids])).logits[0, -1]
        if step == 0:
            scores[sorted(stop)] = -torch.inf
        ids.append(int(scores.argmax()))
        if ids[-1] in stop:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_padded_batch_is_written_on_as_each_prompt_alone(model: Any, cache: bool, batch_size: int) -> None:
    free = [by_hand(model, prompt, set()) for prompt in PROMPTS]
    stop = {row[4] for row in free}
    expected = [by_hand(model, prompt, stop) for prompt in PROMPTS]
    assert len({len(row) for row in expected}) > 1 and len({tuple(row) for row in free}) == len(PROMPTS)
    assert sample(model, PROMPTS, stop=(), batch_size=batch_size, cache=cache, **GREEDY) == free
    assert sample(model, PROMPTS, stop=stop, batch_size=batch_size, cache=cache, **GREEDY) == expected


def test_a_narrow_nucleus_is_greedy_and_a_wide_one_is_not(model: Any) -> None:
    settings = GREEDY | {"stop": (), "batch_size": 3, "temperature": 1.5}
    greedy = sample(model, PROMPTS, **settings | {"temperature": 0.0})
    assert sample(model, PROMPTS, **settings | {"top_p": 1e-6}) == greedy
    assert sample(model, PROMPTS, **settings | {"top_p": 0.0}) == greedy
    assert sample(model, PROMPTS, **settings | {"temperature": 1e-4, "top_p": 0.9}) == greedy
    assert sample(model, PROMPTS, **settings | {"top_p": 0.9}) != greedy


def test_draws_are_those_of_the_seed_and_of_nothing_else(model: Any) -> None:
    settings: dict[str, Any] = {"stop": (), "batch_size": 3, "temperature": 1.0, "top_p": 0.95, "max_new_tokens": 8}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = sample(model, PROMPTS, seed=2**64 - 1, **settings)
    assert torch.equal(torch.rand(3), expected)
    assert sample(model, PROMPTS, seed=2**64 - 1, **settings) == first
    assert sample(model, PROMPTS, seed=8, **settings) != first


def drawn(scores: torch.Tensor, number: int, temperature: float = 1.0, top_p: float = 1.0) -> torch.Tensor:
    nucleus = Nucleus(temperature, top_p, torch.Generator().manual_seed(0))
    answer = nucleus(torch.empty(number, 0), scores.expand(number, -1))
    assert torch.equal(answer.sort(dim=1).values[:, -2:], torch.tensor([-torch.inf, 0.0]).expand(number, 2))
    return torch.bincount(answer.argmax(dim=1), minlength=len(scores)) / number


def test_draws_follow_the_shares_of_the_nucleus() -> None:
    shares = torch.tensor([0.05, 0.5, 0.15, 0.3])
    close = {"atol": 4 * (0.25 / 40_000) ** 0.5, "rtol": 0.0}
    torch.testing.assert_close(drawn(shares.log(), 40_000), shares, **close)
    squares = shares**2 / (shares**2).sum()
    torch.testing.assert_close(drawn(shares.log(), 40_000, temperature=0.5), squares, **close)
    for top_p in (0.51, 0.79):
        torch.testing.assert_close(
            drawn(shares.log(), 40_000, top_p=top_p), torch.tensor([0, 0.625, 0, 0.375]), **close
        )
    assert drawn(shares.log(), 100, top_p=0.49).tolist() == [0, 1, 0, 0]
    found = drawn(shares.log(), 40_000, top_p=0.81)
    assert found[0] == 0 and (found[1:] > 0.1).all()


@pytest.mark.parametrize("rounds", [0, 1, 8])  # sorted at once, nearly all drawn again, all found by drawing
def test_the_nucleus_is_that_of_transformers_however_wide(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TopPLogitsWarper

    monkeypatch.setattr(Nucleus, "ROUNDS", rounds)
    sizes = []
    for seed, spread in enumerate((0.1, 1.0, 4.0)):
        scores = spread * torch.randn(50, generator=torch.Generator().manual_seed(seed))
        kept = torch.isfinite(TopPLogitsWarper(0.8)(torch.empty(1, 0), scores[None]))[0]
        sizes.append(int(kept.sum()))
        assert torch.equal(drawn(scores, 10_000, top_p=0.8) > 0, kept)
    assert sizes[0] > 32 > sizes[1] > 4 >= sizes[2]


def test_a_nucleus_of_one_token_in_a_flat_vocabulary() -> None:
    scores = torch.zeros(1000).index_fill(0, torch.tensor([7]), 1e-3)
    assert drawn(scores, 500, top_p=1e-6)[7] == 1


def test_texts_are_those_of_the_seed(folder: Path) -> None:
    generator = prepared(folder)
    texts = generator.generate(10, 3, 0)
    assert len(texts) == 10 and texts == generator.generate(10, 3, 0) == prepared(folder).generate(10, 3, 0)
    assert texts != generator.generate(10, 4, 0)
    assert not any("\n" in text or "<|end|>" in text or "text:" in text for text in texts)


def test_the_settings_that_come_with_a_model_change_nothing(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    own = json.loads((other / "generation_config.json").read_text())
    (other / "generation_config.json").write_text(
        json.dumps(own | {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1})
    )
    for settings in ({}, {"temperature": 0.0}):
        assert prepared(other, **settings).generate(6, 1, 0) == prepared(folder, **settings).generate(6, 1, 0)


def test_a_line_ends_the_sample_where_it_is_asked_to(folder: Path) -> None:
    lines = prepared(folder, one_line=False, temperature=3.0, max_new_tokens=40, batch_size=60).generate(60, 0, 0)
    assert any("\n" in text for text in lines)
    (newline,) = prepared(folder).tokenizer("\n")["input_ids"]
    assert newline in prepared(folder).stop and newline not in prepared(folder, one_line=False).stop


def test_prompts_name_classes_as_often_as_asked(folder: Path) -> None:
    random = np.random.default_rng
    labels = np.array([1, 0, 1, -1])
    uniform = prepared(folder, labels, prompt="A {label} film:").prompts(4000, random(0))
    assert abs(uniform.count("A positive film:") - 2000) < 4 * 1000**0.5
    assert uniform.count("A positive film:") + uniform.count("A negative film:") == 4000
    train = prepared(folder, labels, balance="train", names={"negative": "bad"}).prompts(4000, random(0))
    assert abs(train.count("A bad text:") - 4000 / 3) < 4 * (4000 * 2 / 9) ** 0.5
    assert set(train) == {"A bad text:", "A positive text:"}
    unlabelled = prepared(folder, np.full(4, -1)).prompts(50, random(0))
    assert set(unlabelled) == {"A negative text:", "A positive text:"}


def test_prompts_open_with_rows_of_their_class(folder: Path) -> None:
    openings = {"a fine film", "the plot is", "what a great", "no comment"}
    assert set(prepared(folder, prompt="{text}", words=3).prompts(200, np.random.default_rng(0))) == openings
    both = set(prepared(folder, prompt="{label}: {text}", words=3).prompts(200, np.random.default_rng(0)))
    assert both == {"positive: a fine film", "positive: what a great", "negative: the plot is"}


def test_the_prompt_is_part_of_the_sample_where_it_is_asked_to(folder: Path) -> None:
    settings = {"prompt": "{text}", "words": 3}
    with_, without = (prepared(folder, keep_prompt=keep, **settings).generate(9, 5, 0) for keep in (True, False))
    prompts = prepared(folder, **settings).prompts(9, np.random.default_rng(5))
    for whole, text, prompt in zip(with_, without, prompts, strict=True):
        assert whole.startswith(prompt) and whole[len(prompt) :].strip() == text
    assert any(without)


def test_an_empty_prompt_begins_with_the_end_of_another_text(folder: Path) -> None:
    generator = prepared(folder, prompt="", temperature=0.0)
    (text,) = set(generator.generate(3, 0, 0))
    expected = generator.tokenizer.decode(by_hand(generator.model, [0], set(generator.stop))[:12])
    assert text == expected.replace("<|end|>", "").split("\n")[0].strip()


def test_a_long_prompt_is_cut_to_the_room_that_there_is(folder: Path) -> None:
    texts = prepared(folder, prompt="é" * 60, max_new_tokens=10, temperature=0.0).generate(2, 0, 0)
    assert texts == prepared(folder, prompt="é" * 19, max_new_tokens=10, temperature=0.0).generate(2, 0, 0)
    with pytest.raises(UserError, match=r"max_new_tokens: .* has room for 48 tokens"):
        prepared(folder, max_new_tokens=48)


def test_the_key_is_of_the_content_and_the_settings(folder: Path, tmp_path: Path) -> None:
    key = CausalLm(path=folder).key()
    assert json.loads(json.dumps(key)) == key
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "README.md").write_text("other words")
    assert CausalLm(path=other).key() == key
    assert CausalLm(path=folder, top_p=0.5).key() != key
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    assert CausalLm(path=other).key() != key


def test_a_hub_id_in_the_cache_is_known_by_its_commit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--org--tiny"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    generator = CausalLm(path="org/tiny", max_new_tokens=12, batch_size=4)
    assert generator.key()["model"] == commit
    generator.prepare(Preparation(TEXTS, LABELS, CLASSES, tmp_path))
    assert generator.generate(3, 1, 0) == prepared(folder).generate(3, 1, 0)


def test_what_is_no_trained_causal_model_is_refused(folder: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM, BertModel, GPT2Model

    for file in folder.glob("tokenizer*"):
        for name in ("bert", "encoder", "headless"):
            (tmp_path / name).mkdir(exist_ok=True)
            shutil.copy(file, tmp_path / name)
    with pytest.raises(UserError, match=r"headless cannot be read as AutoModelForCausalLM"):
        prepared(tmp_path / "headless")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    configuration = BertConfig(vocab_size=300, **size)
    BertForMaskedLM(configuration).save_pretrained(str(tmp_path / "bert"))
    with pytest.raises(UserError, match="bert is no causal language model: it reads what comes after"):
        prepared(tmp_path / "bert")
    BertModel(configuration).save_pretrained(str(tmp_path / "encoder"))
    with pytest.raises(UserError, match=r"encoder holds no trained language model .* lack cls\.predictions\.bias"):
        prepared(tmp_path / "encoder")
    trunk = prepared(folder).model.transformer
    assert isinstance(trunk, GPT2Model)
    trunk.save_pretrained(str(tmp_path / "headless"))  # GPT-2's head is its embeddings: nothing is missing
    prepared(tmp_path / "headless")
    (tmp_path / "headless" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"headless cannot be read as AutoModelForCausalLM"):
        prepared(tmp_path / "headless")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "A {labl} film"}, r"prompt: 'labl' \(did you mean 'label'\?\)"),
        (
            {"prompt": "A film", "balance": "train"},
            r"balance is about classes, and generator\.prompt names no \{label\}",
        ),
        ({"prompt": "{text}", "names": {"negative": "bad"}}, r"names is about classes, and generator\.prompt"),
        ({"prompt": "A {label film"}, r"prompt: 'A \{label film' is no template"),
        ({"top_p": 1.1}, r"top_p must be between 0 and 1, not 1\.1"),
        ({"temperature": -1}, "temperature must be at least 0, not -1"),
        ({"balance": "even"}, "balance: 'even'.* one of: uniform, train"),
        ({"dtype": "float8"}, "dtype: 'float8'.* one of: float32"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"names": {"negativ": "bad"}}, r"names: 'negativ' \(did you mean 'negative'\?\)"),
        ({"balance": "train", "labels": np.full(4, -1)}, "no row has a label"),
        ({"prompt": "{label} {text}", "labels": np.full(4, -1)}, "no row has a label"),
    ],
)
def test_settings_that_make_no_sense_are_refused(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepared(folder, **settings)


def test_a_model_out_of_reach_is_refused_at_once(tmp_path: Path) -> None:
    started = time.perf_counter()
    with pytest.raises(UserError, match=r"'org/nowhere' is no local folder, and the Hugging Face hub is out of reach"):
        CausalLm(path="org/nowhere")
    with pytest.raises(UserError, match=r"nowhere' is no folder"):
        CausalLm(path=tmp_path / "nowhere")
    assert time.perf_counter() - started < 5


def test_half_precision_writes_too(folder: Path) -> None:
    generator = prepared(folder, dtype="bfloat16")
    assert generator.model.dtype == torch.bfloat16
    assert generator.generate(4, 0, 0) == generator.generate(4, 0, 0)
