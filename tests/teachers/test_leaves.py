"""What is recorded of a teacher's inside is what the live one gives, as far as it is read, whatever form it is in."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from kdresearch import package
from kdresearch.artifacts import Store
from kdresearch.data.datamodule import TextDataModule
from kdresearch.data.encoding import WordRows
from kdresearch.data.reviews import Reviews
from kdresearch.data.tokenizers import PretrainedTokenizer, WordTokenizer
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.textcnn import TextCNN
from kdresearch.models.transformer import Transformer
from kdresearch.objectives.attention import AttentionMaps, RelationHeads, ValueRelation
from kdresearch.objectives.gradient import Jacobian
from kdresearch.objectives.hidden import Feature, Semantic
from kdresearch.objectives.objective import Objective, join_extracts
from kdresearch.package import Package
from kdresearch.structures import LOGITS, Batch, Extract, Outputs, Reading
from kdresearch.teachers import recorded
from kdresearch.teachers.leaves import Leaf, leaves_of, tensors
from kdresearch.teachers.live import LiveTeacher
from kdresearch.teachers.recorded import Inside, RecordedTeacher, record

TINY = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 64,
}  # fmt: skip
TOLERANCE = {"bf16": 2**-8, "int8": 1 / 127}  # of the largest value of a vector
READ = frozenset({"hidden", "attention", "qkv", "sensitivity"})


def wordpiece(texts: list[str], folder: Path) -> PretrainedTokenizer:
    """A tokenizer that cuts words into pieces, between [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special))
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(str(folder))
    return PretrainedTokenizer(path=folder, max_length=40)


class Lesson:
    """Reviews as a word tokenizer reads them, and teachers with tokenizers of two kinds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        source, reads = Reviews(train=60, test=10, unlabelled=4), WordTokenizer(min_count=1, max_length=24)
        self.data = TextDataModule(source, reads, store=Store(folder / "data"), batch_size=8).prepare()
        self.pieces = wordpiece(self.data.corpus.all_texts(self.data.split.train), folder / "wordpiece")

    def teacher(self, kind: str, reading: str) -> Package:
        """A packaged teacher that reads the student's tokens (same) or others of the same words (words)."""
        tokenizer: Any = self.data.tokenizer if reading == "same" else self.pieces
        fingerprint = self.data.fingerprint if reading == "same" else "wordpiece"
        self.data.read_teacher(tokenizer, fingerprint, token_level=True)
        assert self.data.reading == reading
        torch.manual_seed(3)
        size = tokenizer.size
        model: Any = {
            "transformer": lambda: Transformer(size, 2, architecture=TINY),
            "bilstm": lambda: BiLSTM(size, 2, embedding_dim=8, hidden_dim=6, layers=2),
            "textcnn": lambda: TextCNN(size, 2, embedding_dim=8, channels=4),
        }[kind]()
        for name, weights in model.named_parameters():
            if name.endswith(("query.weight", "key.weight")):
                weights.data *= 25  # attention that is not the same everywhere, and says more than rounding does
        return Package(model.eval(), tokenizer, self.data.classes, f"{kind} {reading}", {})

    def record(
        self,
        teacher: Package,
        extracts: Mapping[str, Extract],
        store: Store,
        rows: np.ndarray | None = None,
        numbers: str = "bf16",
        **settings: Any,
    ) -> RecordedTeacher:
        data, signature = self.data, LiveTeacher(teacher).signature
        index = data.split.train if rows is None else rows
        leaves = leaves_of(extracts, signature, numbers, words=data.reading == "words")
        assert data.teacher_rows is not None
        units = rows_read = data.teacher_rows
        if any(leaf.words for leaf in leaves):
            units = WordRows(rows_read.encoded_parts, rows_read.pad_id)
        inside = Inside(leaves, rows_read, units)
        pieces = record(
            teacher.fingerprint, lambda: teacher, data.corpus, index, store, inside=inside, batch_size=7, **settings
        )
        self.units = units
        return RecordedTeacher(pieces, data.corpus, index, teacher.classes, leaves, signature)

    def batches(self, rows: np.ndarray) -> tuple[Batch, Batch]:
        """Rows as a live teacher reads them, and as they are recorded."""
        live: Batch = self.data.rows(rows).__getitems__(list(range(len(rows))))
        return live, live._replace(teacher=self.units.tokens(rows))


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    return Lesson(tmp_path_factory.mktemp("lesson"))


def sample(lesson: Lesson, number: int = 12) -> np.ndarray:
    return np.random.default_rng(1).permutation(lesson.data.split.train)[:number]


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape and found.dtype == torch.float32
    bound = tolerance * expected.abs().amax(-1, keepdim=True) + 1e-12
    assert ((found - expected).abs() <= bound).all()


@pytest.mark.parametrize("numbers", ["bf16", "int8"])
@pytest.mark.parametrize("kind", ["transformer", "bilstm", "textcnn"])
def test_whole_fields_are_the_live_ones(
    kind: str, numbers: str, lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "PIECE", 7)
    package_of_it = lesson.teacher(kind, "same")
    teacher = LiveTeacher(package_of_it)
    needs = (READ & teacher.signature.fields) | LOGITS
    stored = lesson.record(package_of_it, {field: Extract() for field in needs}, Store(tmp_path), numbers=numbers)
    assert stored.signature == teacher.signature
    live, read = lesson.batches(sample(lesson))
    expected, found = teacher(live, needs), stored(read, needs)
    assert torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.logits, expected.logits)
    for field in needs - LOGITS:
        pairs = list(zip(tensors(getattr(found, field)), tensors(getattr(expected, field)), strict=True))
        assert pairs
        for one, other in pairs:
            real = live.teacher.mask[..., None]
            if field == "attention":
                keys = live.teacher.mask[:, None, None]
                real = keys & live.teacher.mask[:, None, :, None] if other.shape[2] > 1 else keys
            close(one, other * real, TOLERANCE[numbers])  # nobody reads what is said of padding


def test_forms_by_hand(lesson: Lesson, tmp_path: Path) -> None:
    package_of_it = lesson.teacher("transformer", "words")
    teacher = LiveTeacher(package_of_it)
    forms = {"hidden": Extract(frozenset({2}), words=True), "attention": Extract(frozenset({1}), True, True, True)}
    stored = lesson.record(package_of_it, forms, Store(tmp_path))
    live, read = lesson.batches(sample(lesson, 5))
    needs = frozenset(forms)
    answer, found = teacher(live, needs), stored(read, needs)
    assert [each is None for each in found.hidden] == [True, True, False, True]
    assert [each is None for each in found.attention] == [True, False, True]
    assert found.attention[1].shape[1:3] == (1, 1)
    for row, words in enumerate(live.teacher.words.tolist()):
        for slot, word in enumerate(sorted(set(words) - {-1})):
            own = [token for token, number in enumerate(words) if number == word]
            assert read.teacher.words[row, slot] == word and read.teacher.mask[row, slot]
            close(found.hidden[2][row, slot], answer.hidden[2][row, own].mean(0), 2**-8)
        paid = answer.attention[1][row, :, 0].mean(0)
        share = [sum(paid[t] for t, w in enumerate(words) if w == word) for word in sorted(set(words) - {-1})]
        expected = torch.stack(share) / sum(share)
        close(found.attention[1][row, 0, 0, : len(share)], expected, 2**-7)


STUDENTS = {
    "bilstm": lambda size: BiLSTM(size, 2, embedding_dim=8, hidden_dim=6, dropout=0.0),
    "transformer": lambda size: Transformer(size, 2, architecture=TINY | {"num_hidden_layers": 2}, dropout=0.0),
}
OBJECTIVES = {
    "feature": (Feature, "bilstm", {"hidden.3"}),
    "uniform": (Feature, "transformer", {"hidden.2", "hidden.3"}),
    "first token": (lambda: Feature("patient", layers="final"), "transformer", {"hidden.3.first"}),
    "semantic": (Semantic, "bilstm", {"hidden.3"}),
    "attention": (AttentionMaps, "bilstm", {"attention.2.average.first"}),
    "by head": (lambda: AttentionMaps(layers="final"), "transformer", {"attention.2"}),
    "over heads": (lambda: AttentionMaps(heads="mean", layers="final"), "transformer", {"attention.2.average"}),
    "scores": (lambda: AttentionMaps(inputs="scores", layers="final"), "transformer", {"qkv.6", "qkv.7"}),
    "minilm": (ValueRelation, "transformer", {"attention.2", "qkv.8"}),
    "relations": (lambda: RelationHeads(2, relations=("q", "v")), "transformer", {"qkv.6", "qkv.8"}),
    "gradient": (Jacobian, "bilstm", {"sensitivity.0"}),
}


@pytest.mark.parametrize("reading", ["same", "words"])
@pytest.mark.parametrize(("make", "student", "names"), OBJECTIVES.values(), ids=OBJECTIVES)
def test_an_objective_has_the_live_gradient_by_what_it_reads_alone(
    make: Any, student: str, names: set[str], reading: str, lesson: Lesson, tmp_path: Path
) -> None:
    objective: Objective = make()
    if reading == "words" and getattr(objective, "inputs", "") == "scores":
        pytest.skip("scores do not add up by word")
    package_of_it = lesson.teacher("transformer", reading)
    teacher = LiveTeacher(package_of_it)
    torch.manual_seed(0)
    model: Any = STUDENTS[student](lesson.data.tokenizer.size)
    objective.bind(model.signature, teacher.signature, Reading(reading))
    extracts = join_extracts([objective])
    stored = lesson.record(package_of_it, extracts, Store(tmp_path))
    form = ".words" if reading == "words" and objective.needs_shared_tokens else ""
    assert {leaf.name for leaf in stored._inside} == {f"{name}{form}.bf16" for name in names}

    def gradient(side: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        found: Outputs = side(batch, objective.teacher_needs)
        value = objective(model(batch.student, objective.needs | LOGITS), found, batch)
        parameters = [each for each in (*model.parameters(), *objective.parameters()) if each.requires_grad]
        parts = torch.autograd.grad(value, parameters, allow_unused=True)
        return value.detach(), torch.cat([part.reshape(-1) for part in parts if part is not None])

    live, read = lesson.batches(sample(lesson))
    (value, expected), (again, found) = gradient(teacher, live), gradient(stored, read)
    assert expected.norm() > 0
    assert float(again) == pytest.approx(float(value), rel=0.02, abs=1e-6)
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_several_objectives_read_what_holds_them_all() -> None:
    one, another = Feature(layers=[[1, 2]]), Feature("patient", layers=[[1, 3]])
    side = Transformer(9, 2, architecture=TINY).signature
    for objective in (one, another):
        objective.bind(side, side, Reading("words"))
    assert join_extracts([one]) == {"hidden": Extract(frozenset({2}), words=True)}
    assert join_extracts([another]) == {"hidden": Extract(frozenset({3}), first=True)}
    assert join_extracts([one, another]) == {"hidden": Extract(frozenset({2, 3}))}
    leaves = leaves_of(join_extracts([one, another]), side, "int8", words=True)
    assert [leaf.name for leaf in leaves] == ["hidden.2.int8", "hidden.3.int8"]
    assert Extract(frozenset({1})).union(Extract()) == Extract()


def inside_bytes(store: Store) -> int:
    """Of the files that hold leaves."""
    return sum(path.stat().st_size for path in store.root.glob("knowledge/*/*.bin"))


def test_what_is_not_read_is_not_written(lesson: Lesson, tmp_path: Path) -> None:
    teacher = lesson.teacher("transformer", "same")
    tokens = int(lesson.data.teacher_rows.lengths(lesson.data.split.train).sum())
    for number, (places, numbers, size) in enumerate(
        [(frozenset({3}), "bf16", 16 * 2), (frozenset({1, 3}), "bf16", 2 * 16 * 2), (frozenset({2}), "int8", 16 + 4)]
    ):
        store = Store(tmp_path / str(number))
        lesson.record(teacher, {"hidden": Extract(places)}, store, numbers=numbers)
        assert inside_bytes(store) == tokens * size


@pytest.mark.parametrize("numbers", ["bf16", "int8"])
@pytest.mark.parametrize("reading", ["same", "words"])
def test_the_estimate_is_what_is_written(reading: str, numbers: str, lesson: Lesson, tmp_path: Path) -> None:
    teacher, estimates = lesson.teacher("transformer", reading), []
    store = Store(tmp_path)
    extracts = {"hidden": Extract(words=True), "attention": Extract(words=True), "qkv": Extract(words=True)}

    def note(leaves: Any, rows: np.ndarray, size: int) -> None:
        assert not list(store.artifacts("knowledge")) and len(rows) == len(lesson.data.split.train)
        estimates.append(size)

    lesson.record(teacher, extracts, store, numbers=numbers, check_room=note)
    written = sum(artifact.bytes for artifact in store.artifacts("knowledge"))
    assert estimates == [pytest.approx(written, rel=0.05)]


class Counted:
    """How many rows and calls a teacher was asked; it may break after so many rows."""

    def __init__(self, teacher: Package, breaks_after: float = float("inf")) -> None:
        self.rows = self.calls = 0
        self.breaks_after = breaks_after
        self.handle = teacher.model.register_forward_pre_hook(self.count)  # type: ignore[attr-defined]

    def count(self, _: object, arguments: tuple[Any, ...]) -> None:
        self.calls, self.rows = self.calls + 1, self.rows + len(arguments[0].ids)
        if self.rows > self.breaks_after:
            raise KeyboardInterrupt


def test_all_fields_are_one_pass_and_nothing_is_asked_twice(lesson: Lesson, tmp_path: Path) -> None:
    teacher, store, train = lesson.teacher("transformer", "same"), Store(tmp_path), lesson.data.split.train
    counted = Counted(teacher)
    both = {"hidden": Extract(frozenset({3})), "attention": Extract(frozenset({2}))}
    lesson.record(teacher, both, store, train[:20])
    assert counted.rows == 20
    lesson.record(teacher, both, store, train[5:15])
    lesson.record(teacher, {"hidden": both["hidden"]}, store, train[:20])
    record(
        teacher.fingerprint, lambda: teacher, lesson.data.corpus, train[:20], store
    )  # class scores are there as well
    assert counted.rows == 20
    lesson.record(teacher, both, store, train[10:30])  # ten of them are new
    assert counted.rows == 30
    size = inside_bytes(store)
    other_layer = lesson.record(teacher, {"hidden": Extract(frozenset({1, 3}))}, store, train[:4])
    assert counted.rows == 34 and inside_bytes(store) - size < size / 4  # what was there is not written again
    live, read = lesson.batches(train[:4])
    expected = LiveTeacher(teacher)(live, frozenset({"hidden"})).hidden
    found = other_layer(read, frozenset({"hidden"})).hidden
    close(found[1], expected[1] * live.teacher.mask[..., None], 2**-8)
    close(found[3], expected[3] * live.teacher.mask[..., None], 2**-8)
    with pytest.raises(KeyError, match="not recorded"):
        other_layer(lesson.batches(train[5:6])[1], LOGITS)
    with pytest.raises(ValueError, match="qkv of Transformer was not recorded"):
        other_layer(read, frozenset({"qkv"}))


def test_a_killed_recording_goes_on_at_the_next_piece(
    lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "PIECE", 10)
    teacher, store, train = lesson.teacher("transformer", "same"), Store(tmp_path), lesson.data.split.train
    counted = Counted(teacher, breaks_after=25)
    extracts = {"hidden": Extract(frozenset({3})), "attention": Extract(frozenset({2}))}
    with pytest.raises(KeyboardInterrupt):
        lesson.record(teacher, extracts, store)
    assert len(list(store.artifacts("knowledge"))) == 2
    counted.handle.remove()
    again = Counted(teacher)
    stored = lesson.record(teacher, extracts, store)
    assert again.rows == len(train) - 20
    undisturbed = lesson.record(teacher, extracts, Store(tmp_path / "other"))
    _, read = lesson.batches(train)
    one, other = (side(read, frozenset({"hidden"})).hidden[3] for side in (stored, undisturbed))
    torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-6)  # rows had other company


def test_pieces_hold_rows_of_about_one_length(lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "PIECE", 10)
    lesson.record(lesson.teacher("transformer", "same"), {"hidden": Extract()}, Store(tmp_path))
    lengths = [np.load(path) for path in tmp_path.glob("knowledge/*/lengths.npy")]
    spans = sorted((int(piece.min()), int(piece.max())) for piece in lengths)
    assert len(spans) == -(-len(lesson.data.split.train) // 10)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))


def test_a_flipped_bit_is_not_read(lesson: Lesson, tmp_path: Path) -> None:
    teacher, train = lesson.teacher("transformer", "same"), lesson.data.split.train
    extracts = {"hidden": Extract(frozenset({3}))}
    store = Store(tmp_path)
    before = lesson.record(teacher, extracts, store)
    _, read = lesson.batches(train)
    expected = before(read, frozenset({"hidden"})).hidden[3].clone()
    (path,) = tmp_path.glob("knowledge/*/hidden.3.bf16.bin")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.unlink()  # the map of the one before lives on
    path.write_bytes(content)
    counted = Counted(teacher)
    again = lesson.record(teacher, extracts, store)
    assert counted.rows == len(train)
    torch.testing.assert_close(again(read, frozenset({"hidden"})).hidden[3], expected)


def test_another_process_maps_the_files_itself(lesson: Lesson, tmp_path: Path) -> None:
    stored = lesson.record(lesson.teacher("transformer", "same"), {"attention": Extract()}, Store(tmp_path))
    content = pickle.dumps(stored)
    assert len(content) < inside_bytes(Store(tmp_path)) / 4
    _, read = lesson.batches(sample(lesson))
    needs = frozenset({"attention"})
    for one, another in zip(stored(read, needs).attention, pickle.loads(content)(read, needs).attention, strict=True):
        assert torch.equal(one, another)


def test_class_scores_are_found_beside_any_leaves(lesson: Lesson, tmp_path: Path) -> None:
    teacher, store, train = lesson.teacher("transformer", "same"), Store(tmp_path), lesson.data.split.train
    lesson.record(teacher, {"attention": Extract()}, store)
    (piece,) = tmp_path.glob("knowledge/*/artifact.json")
    record(teacher.fingerprint, lambda: teacher, lesson.data.corpus, train[:9], store)
    assert list(tmp_path.glob("knowledge/*/artifact.json")) == [piece]


@pytest.mark.parametrize("numbers", ["bf16", "int8"])
def test_stored_numbers(numbers: str) -> None:
    leaf = Leaf("hidden", 1, numbers=numbers)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(9, 33, generator=generator) * torch.logspace(-6, 3, 9)[:, None]
    states[:, 0] *= 20  # one feature beyond the others, as encoders have
    states[4] = 0
    values, scales = leaf.encode(states)
    shaped = values.reshape(states.shape), None if scales is None else scales.reshape(9, 1)
    close(leaf.decode(*shaped), states, TOLERANCE[numbers] / (2 if numbers == "int8" else 1) * 1.01)


RECORDER = """
import sys, time
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from kdresearch import package
from kdresearch.artifacts import Store
from kdresearch.data.corpus import load
from kdresearch.data.encoding import encoded
from kdresearch.data.reviews import Reviews
from kdresearch.structures import Extract
from kdresearch.teachers.leaves import leaves_of
from kdresearch.teachers.recorded import Inside, record

folder, store = Path(sys.argv[1]), Store(Path(sys.argv[2]))
corpus, index = load(Reviews(train=40, test=14, unlabelled=10), store), np.arange(40)
opened, rows = package.load(folder), 0
units = encoded(opened.tokenizer, opened.fingerprint, corpus, index, store)

def count(model, arguments):
    global rows
    rows += len(arguments[0].ids)
    time.sleep(0.1)

opened.model.register_forward_pre_hook(count)
inside = Inside(leaves_of({"hidden": Extract()}, opened.model.signature, "bf16", words=False), units, units)
print("ready", flush=True)
sys.stdin.readline()
lines = []
pieces = record("t", lambda: opened, corpus, index, store, inside=inside, batch_size=4, say=lines.append)
print(rows, len(pieces), sum("waiting" in line for line in lines))
"""


def test_of_two_processes_one_waits(lesson: Lesson, tmp_path: Path) -> None:
    teacher = lesson.teacher("bilstm", "same")
    package.save(tmp_path / "teacher", teacher.model, teacher.tokenizer, teacher.classes)
    command = [sys.executable, "-c", RECORDER, str(tmp_path / "teacher"), str(tmp_path / "store")]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    assert sorted(process.communicate(timeout=60)[0].split() for process in both) == [["0", "1", "1"], ["40", "1", "0"]]
