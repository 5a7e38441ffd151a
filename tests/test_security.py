"""The promises of SECURITY.md, line by line, each against a folder or file that would break it."""

from __future__ import annotations

import importlib.metadata
import io
import json
import logging
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdresearch import __file__ as kdresearch
from kdresearch import artifacts, package
from kdresearch.artifacts import MANIFEST, Store, with_sum
from kdresearch.commands.predict import main as predict
from kdresearch.data.tokenizers import NgramTokenizer, PretrainedTokenizer
from kdresearch.errors import UserError
from kdresearch.models.ngram import NgramLinear
from kdresearch.models.transformer import HubClassifier, Transformer

TEXTS = ["a fine film", "a dull film , and long", "fine acting"]
ARCHITECTURE = {
    "model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 16,
}  # fmt: skip
EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').write_text('')\nclass Evil: pass\n"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tokenizer = NgramTokenizer(min_count=1)
    tokenizer.fit([TEXTS])
    torch.manual_seed(0)
    model = NgramLinear(tokenizer.size, 2)
    torch.nn.init.normal_(model.weight.weight)
    package.save(tmp_path / "student", model, tokenizer, ("bad", "good"))
    return tmp_path / "student"


def forged(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A package whose description somebody changed, checksums and all."""
    description = json.loads((folder / package.CONFIG).read_text())
    del description["sum"]
    change(description)
    (folder / package.CONFIG).write_text(json.dumps(with_sum(description)))
    return folder


def with_class(folder: Path, part: str, name: str, **config: object) -> Path:
    return forged(folder, lambda found: found[part].update({"class": name, "config": config or found[part]["config"]}))


def test_every_promise_has_a_test() -> None:
    text = Path(kdresearch).parents[1].joinpath("SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) >= 12 and len(named) >= len(re.findall(r"^\d+\. ", text, re.M))
    assert {name for name in named if name not in globals()} == set()


@pytest.mark.parametrize("part", ["model", "tokenizer"])
@pytest.mark.parametrize(
    "name",
    ["venv.__main__.X", "builtins.exec", "os.system", "subprocess.Popen", "here.Evil", "torch.nn.Linear", "Evil"],
)
def test_no_module_of_a_package_is_imported(
    saved: Path, tmp_path: Path, part: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    monkeypatch.setattr(sys, "argv", ["kdresearch", "predict", "folder", "afine"])
    with_class(saved, part, name, args=f"touch {tmp_path / 'ran'}", shell=True)
    with pytest.raises(UserError) as refused:
        predict([str(saved), "fine"])
    words = f"{saved / package.CONFIG} names the class {name}, .* {package.TRUST}={name.split('.')[0]}"
    assert re.search(words, str(refused.value))
    assert not {"venv.__main__", "here"} & (set(sys.modules) - before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.py", "student"]


@pytest.mark.parametrize("part", ["model", "tokenizer"])
@pytest.mark.parametrize(
    "name",
    [
        "kdresearch.cli.main", "kdresearch.artifacts.Store", "kdresearch.models.transformer.Path",
        "kdresearch.models.transformer.ExitStack", "kdresearch.data.tokenizers.rows.Any",
        "kdresearch.strategies.soft_label.SoftLabelDistiller", "kdresearch..models.X", "kdresearch.models/../x.Y",
    ],
)  # fmt: skip
def test_of_kdresearch_models_and_tokenizers_alone_are_made(saved: Path, part: str, name: str) -> None:
    with pytest.raises(UserError, match=r"names the class .*, which is no model or tokenizer"):
        package.load(with_class(saved, part, name))


def test_a_trusted_module_is_imported(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mylab_models.py").write_text(
        "from kdresearch.models.ngram import NgramLinear\nclass Mine(NgramLinear):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with_class(saved, "model", "mylab_models.Mine")
    for other in ("", "mylab", "mylab_models.Other", " ,,", "mylab_models.Mine.x"):
        monkeypatch.setenv(package.TRUST, other)
        with pytest.raises(UserError, match=f"{package.TRUST}=mylab_models"):
            package.load(saved)
    assert "mylab_models" not in sys.modules
    monkeypatch.setenv(package.TRUST, "elsewhere, mylab_models")
    assert type(package.load(saved).model).__name__ == "Mine"

    monkeypatch.delenv(package.TRUST)
    monkeypatch.setattr(package, "_trusted", set())
    for value in ("mylab_models:Mine", "mylab_models"):
        point = importlib.metadata.EntryPoint("mine", value, package.COMPONENTS)
        with monkeypatch.context() as patched:
            patched.setattr(package, "entry_points", lambda group, point=point: [point] * (group == point.group))
            assert type(package.load(saved).model).__name__ == "Mine"
    with pytest.raises(UserError, match=package.TRUST):
        package.load(saved)
    package.trust("mylab_models.Mine")
    assert type(package.load(saved).model).__name__ == "Mine"


@pytest.mark.parametrize(("name", "value"), [("path", "../../elsewhere"), ("path", "org/model"), ("vectors", "/etc/x")])
def test_a_package_names_no_file_but_its_own(saved: Path, name: str, value: str) -> None:
    for part in ("model", "tokenizer"):
        shutil.copytree(saved, saved.parent / part)
        forged(saved.parent / part, lambda found, part=part: found[part]["config"].update({name: value}))
        with pytest.raises(UserError, match="names no files but its own"):
            package.load(saved.parent / part)


def nested(found: dict[str, Any]) -> None:
    deep: dict[str, Any] = {}
    found["model"]["config"] = deep
    for _ in range(400):
        deep["vocabulary"] = deep = {}


@pytest.mark.parametrize(
    "change",
    [
        nested,
        lambda found: found["model"].update({"class": ["a"]}),
        lambda found: found["model"].update({"config": "a"}),
        lambda found: found.update(model=[]),
        lambda found: found.update(classes="ab"),
        lambda found: found.update(classes=[1, {}]),
        lambda found: found.update(files=[]),
        lambda found: found.update(rum=1),
        lambda found: found["model"]["config"].update(vocabulary=10**12),
        lambda found: found["model"]["config"].update(vocabulary=-1),
        lambda found: found["model"]["config"].update(vocabulary="a"),
        lambda found: found["tokenizer"]["config"].update(orders="a"),
        lambda found: found["files"].update({"../../../etc/passwd": "0"}),
        lambda found: found["files"].pop("tokenizer/words.json"),
    ],
)
def test_a_description_of_another_shape_is_refused_in_words(saved: Path, change: Callable[[Any], object]) -> None:
    forged(saved, change)
    with pytest.raises(UserError, match=str(saved)):
        predict([str(saved), "fine"])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"classes": ' + "[" * 100_000, "[]", "3", "null", "\ud800", "{"])
def test_what_is_no_description_is_refused_in_words(saved: Path, text: str) -> None:
    (saved / package.CONFIG).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=str(saved)):
        package.load(saved)


def test_a_pipe_in_a_package_is_not_read(saved: Path) -> None:
    os.mkfifo(saved / "tokenizer" / "pipe")
    with pytest.raises(UserError, match="pipe is damaged: it is no file"):
        package.load(saved)


def hub_folder(folder: Path, auto_map: bool, kind: str = "bert") -> Path:
    """A model of the hub, evil.py beside it; of an architecture that transformers does not know unless it is BERT's."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    architecture = AutoConfig.for_model(**ARCHITECTURE)
    AutoModelForSequenceClassification.from_config(architecture).save_pretrained(folder)
    configuration = json.loads((folder / "config.json").read_text()) | {"model_type": kind}
    tokenizer: dict[str, Any] = {"tokenizer_class": "BertTokenizer" if kind == "bert" else "EvilTokenizer"}
    if auto_map:
        kinds = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoModelForCausalLM")
        configuration["auto_map"] = dict.fromkeys(kinds, "evil.Evil")
        tokenizer["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    (folder / "config.json").write_text(json.dumps(configuration))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fine", "film"]))
    (folder / "evil.py").write_text(EVIL)
    return folder


@pytest.mark.parametrize("answer", ["y\n", "closed"])
def test_code_of_a_hub_model_is_never_run(tmp_path: Path, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdresearch.generation.pretrained import load

    asked = io.StringIO(answer)
    if answer == "closed":
        asked.close()
    monkeypatch.setattr(sys, "stdin", asked)
    folder = hub_folder(tmp_path / "model", auto_map=True, kind="evil")
    opened: list[Callable[[], object]] = [
        lambda: Transformer(path=folder),
        lambda: HubClassifier(path=folder),
        lambda: PretrainedTokenizer(path=folder),
        lambda: load(folder, "AutoModelForCausalLM", "float32", "cpu"),
    ]
    for each in opened:
        with pytest.raises(UserError, match="has code of its own, which is never run"):
            each()
    if answer != "closed":
        assert asked.tell() == 0
    # What transformers knows is read as what it is, and the code beside it is not.
    known = hub_folder(tmp_path / "known", auto_map=True)
    plain = hub_folder(tmp_path / "plain", auto_map=False)
    shutil.copy(plain / "model.safetensors", known)
    for one, other in zip(HubClassifier(path=known).parameters(), HubClassifier(path=plain).parameters(), strict=True):
        assert torch.equal(one, other)
    assert Transformer(path=known).signature.width == 16
    assert PretrainedTokenizer(path=known).encode(["fine"])[0].tolist() == [2, 5, 3]
    assert not list(tmp_path.rglob("ran")) and not [name for name in sys.modules if name.endswith(".evil")]


def test_code_of_a_tokenizer_in_a_package_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    known = hub_folder(tmp_path / "known", auto_map=False)
    folder = tmp_path / "student"
    package.save(folder, HubClassifier(path=known), PretrainedTokenizer(path=known), ("a", "b"))
    (folder / "tokenizer" / "evil.py").write_text(EVIL)
    with pytest.raises(UserError, match=r"evil\.py is damaged"):  # it was not saved
        package.load(folder)
    hub_folder(tmp_path / "evil", auto_map=True, kind="evil")
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "evil" / name, folder / "tokenizer" / name)
    (folder / "tokenizer" / "tokenizer.json").unlink()
    forged(folder, lambda found: found.pop("files"))
    with pytest.raises(UserError, match="has code of its own, which is never run"):
        predict([str(folder), "fine"])
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_no_kernel_is_fetched_for_a_configuration(tmp_path: Path, key: str) -> None:
    named = ARCHITECTURE | {key: "evil/kernel"}
    folder = hub_folder(tmp_path / "model", auto_map=False)
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | named))
    for made in (
        lambda: Transformer(architecture=named),
        lambda: Transformer(path=folder),
        lambda: HubClassifier(architecture=named),
        lambda: HubClassifier(path=folder),
    ):
        with pytest.raises(UserError, match=f"never run: its {key} is 'evil/kernel'"):
            made()


def _is_json(path: Path, content: Any) -> bool:
    try:
        return json.loads(path.read_bytes()) == content
    except ValueError:
        return False


def flip(path: Path, random: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def test_a_flipped_bit_of_a_package_is_said(saved: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    names = [path.relative_to(saved) for path in sorted(saved.rglob("*")) if path.is_file()]
    plain = json.loads((saved / package.CONFIG).read_text())
    said = 0
    for number in range(40):
        folder = tmp_path / f"flipped {number}"
        shutil.copytree(saved, folder)
        name = names[number % len(names)]
        flip(folder / name, chance)
        if name.name == package.CONFIG and _is_json(folder / name, plain):  # white space between the fields
            package.load(folder)
            continue
        with pytest.raises(UserError, match=re.escape(str(name))):
            package.load(folder)
        said += 1
    assert len(names) == 5 and said >= 38


def test_a_flipped_bit_of_the_store_is_said_and_built_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chance, store, said = random.Random(1), Store(tmp_path / "store"), 0
    content = {"a.bin": chance.randbytes(3000), "deep/b.bin": chance.randbytes(50)}
    made: list[Path] = []

    def build(folder: Path) -> None:
        made.append(folder)
        (folder / "deep").mkdir()
        for name, each in content.items():
            (folder / name).write_bytes(each)

    for number in range(40):
        path = store.build("thing", {"n": number}, build)
        plain = json.loads((path / MANIFEST).read_text())
        name = [*content, MANIFEST][number % 3]
        caplog.clear()
        flip(path / name, chance)
        if store.find("thing", {"n": number}) is not None:  # white space
            assert name == MANIFEST and json.loads((path / MANIFEST).read_text()) == plain
            continue
        said += 1
        assert f"thing/{path.name} in the store is damaged ({name})" in caplog.text
        assert store.build("thing", {"n": number}, build) == path
        assert {name: (path / name).read_bytes() for name in content} == content
    assert said >= 36 and len(made) == 40 + said


def test_an_artifact_is_read_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    path = store.build("thing", {}, lambda folder: (folder / "a").write_bytes(b"abc") and None)
    monkeypatch.setattr("kdresearch.artifacts._TICK", -1)
    read: list[str] = []
    plain = artifacts._read_sha256
    monkeypatch.setattr(artifacts, "_read_sha256", lambda place: read.append(place.name) or plain(place))
    for _ in range(3):
        assert store.find("thing", {}) == path
    assert read == ["a"]
    (path / "a").write_bytes(b"abd")
    assert store.find("thing", {}) is None


def test_a_manifest_names_no_file_outside(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    path = store.build("thing", {}, lambda folder: (folder / "a").write_bytes(b"abc") and None)
    found = json.loads((path / MANIFEST).read_text())
    del found["sum"]
    for name in ("../../../secret", "/etc/hostname"):
        (path / MANIFEST).write_text(json.dumps(with_sum(found | {"files": {name: found["files"]["a"]}})))
        assert store.find("thing", {}) is None
        assert [artifact.files for artifact in store.artifacts()] == [{MANIFEST: {"bytes": 0, "sha256": None}}]
    (path / MANIFEST).write_text("[" * 100_000)
    assert store.find("thing", {}) is None


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
@pytest.mark.parametrize(
    ("parent", "root", "said"),
    [
        (0o755, 0o755, None), (0o1777, 0o755, None), (0o777, 0o755, "parent"), (0o755, 0o777, "store"),
        (0o755, 0o1777, "store"),
    ],
)  # fmt: skip
def test_a_store_that_others_may_write_to_is_said(
    tmp_path: Path, parent: int, root: int, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "parent" / "store"
    place.mkdir(parents=True)
    place.chmod(root)
    place.parent.chmod(parent)
    with caplog.at_level(logging.WARNING):
        for number in range(2):
            Store(place).build("thing", {"n": number}, lambda folder: None)
    told = [each.message for each in caplog.records]
    assert len(told) == (said is not None)
    if said:
        where = place if said == "store" else place.parent
        assert told[0].startswith(f"anybody may write to {where}: ") and f"chmod o-w {where}" in told[0]
