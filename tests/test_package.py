from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdresearch import artifacts, package
from kdresearch.data.encoding import pad
from kdresearch.data.tokenizers import NgramTokenizer, WordTokenizer
from kdresearch.errors import UserError
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.ngram import NgramLinear
from kdresearch.models.textcnn import TextCNN

TEXTS = ["a fine film", "a dull film , and long", "fine acting", "what a long and dull evening it was", "çà et là"]
CLASSES = ("schlecht", "gut", "très bien")
KINDS = ["textcnn", "bilstm", "ngram"]


def made(kind: str) -> tuple[nn.Module, NgramTokenizer | WordTokenizer]:
    """A model with random weights and a tokenizer fitted on a few sentences."""
    torch.manual_seed(0)
    tokenizer = NgramTokenizer(min_count=1) if kind == "ngram" else WordTokenizer(min_count=1, max_length=6)
    tokenizer.fit([TEXTS])
    if kind == "ngram":
        model: nn.Module = NgramLinear(tokenizer.size, 3)
        for tensor in (model.weight.weight, model.ratio, model.bias):
            nn.init.normal_(tensor)
    elif kind == "textcnn":
        model = TextCNN(tokenizer.size, 3, embedding_dim=6, channels=5, kernel_sizes=(2, 3))
    else:
        model = BiLSTM(tokenizer.size, 3, embedding_dim=6, hidden_dim=5, layers=2)
    return model.eval(), tokenizer


def logits(model: nn.Module, tokenizer: NgramTokenizer | WordTokenizer, texts: list[str]) -> Tensor:
    ids, lengths = tokenizer.encode(texts)
    with torch.no_grad():
        return model(pad(np.split(ids, np.cumsum(lengths)[:-1]), tokenizer.pad_id)).logits


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    package.save(tmp_path / "run" / "student", *made("ngram"), CLASSES, {"run": "one"})
    return tmp_path / "run" / "student"


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_answers_the_same(kind: str, tmp_path: Path) -> None:
    model, tokenizer = made(kind)
    model.train()
    package.save(tmp_path, model, tokenizer, CLASSES, {"run": "one"})
    torch.manual_seed(1)  # nothing may depend on how the new model is initialised
    loaded = package.load(tmp_path)
    texts = [*TEXTS, "words that no one has seen", "fine fine fine"]
    expected = logits(model.eval(), tokenizer, texts)
    assert expected.std() > 0.01  # else anything would do
    assert torch.equal(logits(loaded.model, loaded.tokenizer, texts), expected)
    assert loaded.classes == CLASSES
    assert loaded.provenance == {"run": "one"}
    assert not loaded.model.training


@pytest.mark.parametrize("kind", KINDS)
def test_saved_again_it_is_the_same_package(kind: str, tmp_path: Path) -> None:
    package.save(tmp_path / "first", *made(kind), CLASSES)
    first = package.load(tmp_path / "first")
    package.save(tmp_path / "second", first.model, first.tokenizer, first.classes)
    assert package.load(tmp_path / "second").fingerprint == first.fingerprint


def test_a_fingerprint_is_of_what_it_computes(tmp_path: Path) -> None:
    def fingerprint(name: str, classes: tuple[str, ...] = CLASSES, about: str = "one", fit: str = "") -> str:
        model, tokenizer = made("ngram")
        if name == "weight":
            model.weight.weight.data[3, 1] += 1e-6
        if fit:
            tokenizer.fit([[*TEXTS, fit]])
        package.save(tmp_path / name, model, tokenizer, classes, {"run": about})
        return package.fingerprint(tmp_path / name)

    first = fingerprint("first")
    assert fingerprint("about", about="two") == first
    others = [fingerprint("weight"), fingerprint("classes", CLASSES[::-1]), fingerprint("tokenizer", fit="more words")]
    assert len({first, *others}) == 4


def test_found_by_its_run_and_by_itself(saved: Path) -> None:
    assert package.located(saved) == package.located(saved.parent) == package.located(str(saved.parent)) == saved


def test_refused_where_there_is_none(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist.*config\.json"):
        package.located(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"{tmp_path} holds no finished run and no package"):
        package.located(tmp_path)
    (saved / package.WEIGHTS).unlink()  # a run that was stopped while it saved
    with pytest.raises(UserError, match="holds no finished run"):
        package.located(saved.parent)


def test_a_model_folder_of_another_kind_is_none(saved: Path) -> None:
    (saved / package.CONFIG).write_text(json.dumps({"architectures": ["BertModel"]}))
    with pytest.raises(UserError, match="no package"):
        package.located(saved)


def test_a_path_is_checked_without_torch(tmp_path: Path) -> None:
    check = (
        "import sys\nfrom kdresearch import package\n"
        f"try:\n    package.located({str(tmp_path)!r})\nexcept ValueError:\n    print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", check], text=True) == "False\n"


def test_a_damaged_config_is_named(saved: Path) -> None:
    text = (saved / package.CONFIG).read_text()
    (saved / package.CONFIG).write_text(text[:50])
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        package.load(saved)
    for lost in ("model", "tokenizer", "about"):
        left = json.loads(text)
        del left[lost], left["sum"]
        (saved / package.CONFIG).write_text(json.dumps(left))
        with pytest.raises(UserError, match=rf"config\.json is damaged: it lacks '{lost}'"):
            package.load(saved)


def test_damaged_weights_are_named(saved: Path) -> None:
    content = (saved / package.WEIGHTS).read_bytes()
    (saved / package.WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        package.load(saved)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_tokenizer_is_named(saved: Path, damage: str) -> None:
    if damage == "cut":
        (saved / package.TOKENIZER / "words.json").write_text("{")
    else:
        shutil.rmtree(saved / package.TOKENIZER)
    with pytest.raises(UserError, match=r"tokenizer/\w+\.(json is damaged|npy is missing)"):
        package.load(saved)
    as_an_earlier_version(saved)
    with pytest.raises(UserError, match="tokenizer is damaged"):
        package.load(saved)


def as_an_earlier_version(saved: Path) -> dict[str, Any]:
    """Write a package's description without any checksum."""
    description: dict[str, Any] = json.loads((saved / package.CONFIG).read_text())
    description.pop("sum", None)
    description.pop("files", None)
    (saved / package.CONFIG).write_text(json.dumps(description))
    return description


def reconfigured(saved: Path, part: str, **changes: object) -> Path:
    description = as_an_earlier_version(saved)
    description[part] |= changes
    (saved / package.CONFIG).write_text(json.dumps(description))
    return saved


def test_a_package_of_an_earlier_version_is_read_and_is_the_same(saved: Path) -> None:
    whole = package.load(saved)
    as_an_earlier_version(saved)
    earlier = package.load(saved)
    assert earlier.fingerprint == whole.fingerprint == package.fingerprint(saved)
    assert torch.equal(logits(earlier.model, earlier.tokenizer, TEXTS), logits(whole.model, whole.tokenizer, TEXTS))


def test_other_tokenizer_settings_are_another_whole_package(saved: Path) -> None:
    before = package.fingerprint(saved)
    package.change_tokenizer(saved, {"max_length": 2})
    assert package.load(saved).tokenizer.max_length == 2 and package.fingerprint(saved) != before


def test_every_file_is_read_once_per_process(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    past = time.time() - 10
    for file in saved.rglob("*"):
        os.utime(file, (past, past))
    time.sleep(0.15)  # else what changed this moment is read again
    read: list[Path] = []
    plain = artifacts._read_sha256
    monkeypatch.setattr(artifacts, "_read_sha256", lambda path: read.append(path) or plain(path))
    for _ in range(3):
        package.load(saved)
        package.fingerprint(saved)
    assert sorted(path.name for path in read) == ["lengths.npy", "model.safetensors", "ngrams.npy", "words.json"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_weights_may_be_read_by_whom_the_umask_says(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        package.save(tmp_path / "new", *made("ngram"), CLASSES)
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "new").rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask}


@pytest.mark.parametrize("name", ["nowhere.Model", "kdresearch.models.ngram.Gone", "kdresearch.models.gone.Gone"])
@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_a_class_that_is_not_here_is_named(saved: Path, part: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(package.TRUST, "nowhere")
    with pytest.raises(UserError, match=f"{name}, which cannot be imported here"):
        package.load(reconfigured(saved, part, **{"class": name}))


@pytest.mark.parametrize("config", [{"vocabulary": 7, "classes": 3}, {"vocabulary": 7, "classes": 3, "new": 1}])
def test_a_model_that_does_not_fit_is_named(saved: Path, config: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"does not fit the kdresearch\.models\.ngram\.NgramLinear"):
        package.load(reconfigured(saved, "model", config=config))
