"""What every option of conf/strategy must do with every pair of models: fit, save, restore, go on, or refuse."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from kdresearch.artifacts import Store
from kdresearch.bench.resume import RandomState
from kdresearch.conf_path import config_dir
from kdresearch.data.datamodule import TextDataModule
from kdresearch.data.reviews import Reviews
from kdresearch.data.tokenizers import NgramTokenizer, PretrainedTokenizer, WordTokenizer
from kdresearch.errors import UserError
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.ngram import NgramBag, NgramLinear
from kdresearch.models.textcnn import TextCNN
from kdresearch.models.transformer import Transformer
from kdresearch.package import Package
from kdresearch.strategies.combined import CombinedDistiller
from kdresearch.strategies.distiller import Distiller
from kdresearch.strategies.staged import StagedDistiller
from kdresearch.structures import LOGITS, Reading, Teacher
from kdresearch.teachers.live import LiveTeacher
from kdresearch.teachers.recorded import RecordedTeacher, record

Build = Callable[..., Any]
OPTIONS = sorted(path.stem for path in Path(config_dir(), "strategy").glob("*.yaml"))
STUDENTS = ("transformer", "bilstm", "textcnn", "ngram_bag", "ngram")
TEACHERS = ("transformer", "wordpiece", "bilstm", "textcnn", "ngram", "recorded")
INSIDE = {  # strategies that read more than class scores
    "attention", "contrastive", "distilbert", "feature", "gradient", "minilm", "relation", "semantic", "staged",
    "tinybert",
}  # fmt: skip
SCORES = (("textcnn", "transformer"), ("ngram", "recorded"))  # to class scores, any pair is like any other
CASES = [
    (option, student, teacher)
    for option in OPTIONS
    for student, teacher in (product(STUDENTS, TEACHERS) if option in INSIDE else SCORES)
]


def transfer(option: str) -> str:
    """Rows without labels, where a strategy has a term for them."""
    return "unlabelled" if option == "generative" else "none"


def compatible(option: str, student: str, teacher: str) -> bool:
    """Which pairs can support a strategy: what the documentation promises."""
    layers, attends, differentiable = {"transformer", "wordpiece"}, {"transformer", "wordpiece", "bilstm"}, {"textcnn"}
    same_words = student not in ("ngram", "ngram_bag")  # n-grams have no place in the text
    match option:
        case "feature" | "semantic" | "distilbert" | "relation" | "contrastive" | "staged":  # sentence vectors do
            return student != "ngram" and teacher != "ngram"
        case "attention":
            return same_words and student in attends and teacher in attends
        case "minilm":
            return student in layers and teacher in layers
        case "tinybert":  # scores do not add up by word
            return student in layers and teacher == "transformer"
        case "gradient":
            return same_words and student in attends | differentiable and teacher in attends | differentiable
    return True  # class scores


def model(kind: str, tokenizer: Any, classes: int, seed: int) -> Any:
    torch.manual_seed(seed)
    size = tokenizer.size
    if kind in ("transformer", "wordpiece"):
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        architecture = {"model_type": "bert", "max_position_embeddings": 64, **sizes}
        return Transformer(size, classes, architecture=architecture)
    make: dict[str, Callable[[], Any]] = {
        "bilstm": lambda: BiLSTM(size, classes, embedding_dim=8, hidden_dim=6),
        "textcnn": lambda: TextCNN(size, classes, embedding_dim=8, channels=4, kernel_sizes=[2, 3]),
        "ngram_bag": lambda: NgramBag(size, classes, embedding_dim=6),
        "ngram": lambda: NgramLinear(size, classes, weighting="none"),
    }
    return make[kind]()


class Bench:
    """Tiny models, their data and their tokenizers, all real."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "store")
        self.source = Reviews(labels="stars", train=64, test=16, unlabelled=16)
        self.word = self.data("word")
        texts = self.word.corpus.all_texts(self.word.split.train)
        self.wordpiece = wordpiece(texts, folder / "wordpiece")
        index = self.data("word", "unlabelled").used
        teacher = self.package("transformer", self.word.tokenizer)
        pieces = record("bench", lambda: teacher, self.word.corpus, index, self.store)
        self.recorded = RecordedTeacher(pieces, self.word.corpus, index, self.word.classes)

    def data(self, tokenizer: str, transfer: str = "none") -> TextDataModule:
        reads = WordTokenizer(min_count=1, max_length=24) if tokenizer == "word" else NgramTokenizer(orders=2, size=500)
        return TextDataModule(
            self.source, reads, store=self.store, batch_size=16, validation=16, transfer=transfer
        ).prepare()

    def package(self, kind: str, tokenizer: Any, seed: int = 9) -> Package:
        return Package(model(kind, tokenizer, 8, seed).eval(), tokenizer, self.word.classes, "bench", {})

    def pair(self, student: str, teacher: str, transfer: str = "none") -> tuple[TextDataModule, Teacher, Reading]:
        """Data as both sides read it, the teacher, and how their tokens correspond."""
        data = self.data("ngram" if student.startswith("ngram") else "word", transfer)
        if teacher == "recorded":
            return data, self.recorded, Reading("apart", "the teacher is recorded")
        tokenizer, fingerprint = self.word.tokenizer, self.word.fingerprint
        if teacher == "wordpiece":
            tokenizer, fingerprint = self.wordpiece, "wordpiece"
        if teacher == "ngram":
            ngrams = self.data("ngram")
            tokenizer, fingerprint = ngrams.tokenizer, ngrams.fingerprint
        data.read_teacher(tokenizer, fingerprint, token_level=True)
        return data, LiveTeacher(self.package(teacher, tokenizer)), Reading(data.reading)


def wordpiece(texts: list[str], folder: Path) -> PretrainedTokenizer:
    """A tokenizer that cuts words into pieces, between [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(str(folder))
    return PretrainedTokenizer(path=folder, max_length=40)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def composed(option: str) -> DictConfig:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return compose("train", [f"strategy={option}", "teacher=none"])


@pytest.fixture(scope="module")
def configs() -> dict[str, DictConfig]:
    return {option: composed(option) for option in OPTIONS}


def built(
    build: Build, cfg: DictConfig, data: TextDataModule, student: str, teacher: Teacher, reading: Reading, seed: int = 1
) -> Distiller:
    module: Distiller = build(
        cfg.strategy,
        "strategy",
        student=model(student, data.tokenizer, 8, seed),
        classes=data.classes,
        teacher=teacher,
        reading=reading,
        batch_size=16,
        optimizer=build(cfg.optimizer, "optimizer"),
        scheduler=build(cfg.scheduler, "scheduler"),
    )
    return module


def trainer(folder: Path, steps: int, **more: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "num_sanity_val_steps": 0, "use_distributed_sampler": False, "enable_checkpointing": False,
        "limit_val_batches": 0,
    }  # fmt: skip
    return pl.Trainer(default_root_dir=str(folder), max_steps=steps, **(settings | more))


@pytest.mark.parametrize(("option", "student", "teacher"), CASES)
def test_every_pair_trains_or_is_refused(
    option: str, student: str, teacher: str, bench: Bench, configs: dict[str, DictConfig], build: Build, tmp_path: Path
) -> None:
    data, answers, reading = bench.pair(student, teacher, transfer(option))
    pl.seed_everything(1, verbose=False)
    if not compatible(option, student, teacher):
        with pytest.raises(UserError) as refused:
            built(build, configs[option], data, student, answers, reading)
        names = (model(student, data.tokenizer, 8, 1).signature.name, answers.signature.name)
        assert all(name in str(refused.value) for name in ("objective", *names))
        return
    frozen = getattr(answers, "model", None)
    module = built(build, configs[option], data, student, answers, reading)
    assert option in INSIDE or module.student_needs | module.teacher_needs <= LOGITS
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    kept = {name: value.clone() for name, value in frozen.state_dict().items()} if frozen is not None else {}
    fitting = trainer(tmp_path, 2)
    fitting.fit(module, datamodule=data)
    assert fitting.global_step == 2
    logged = fitting.callback_metrics
    assert all(f"train/{name}" in logged for name in ("loss", *module.objectives))
    assert all(torch.isfinite(value) for value in logged.values())
    changed = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert any(name.startswith("student.") for name in changed)
    assert {name for name in before if ".projection" in name} <= changed
    if frozen is not None:
        assert all(torch.equal(value, kept[name]) for name, value in frozen.state_dict().items())
        assert not frozen.training and all(each.grad is None for each in frozen.parameters())
    assert not any("teacher" in name for name in module.state_dict())


@pytest.mark.parametrize("option", OPTIONS)
def test_a_restored_run_goes_on_exactly(
    option: str, bench: Bench, configs: dict[str, DictConfig], build: Build, tmp_path: Path
) -> None:
    ends = {}
    for kind in ("whole", "stopped"):
        data, answers, reading = bench.pair("transformer", "transformer", transfer(option))
        pl.seed_everything(3, verbose=False)
        module = built(build, configs[option], data, "transformer", answers, reading, seed=1)
        last = ModelCheckpoint(tmp_path / kind, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        fitting = trainer(
            tmp_path, 4 if kind == "whole" else 2, callbacks=[last, RandomState()], enable_checkpointing=True
        )
        fitting.fit(module, datamodule=data)
        if kind == "stopped":
            data, answers, reading = bench.pair("transformer", "transformer", transfer(option))
            pl.seed_everything(99, verbose=False)  # whatever is not restored would differ
            module = built(build, configs[option], data, "transformer", answers, reading, seed=2)
            # A schedule knows where it ends: the continued run ends where the whole one does.
            trainer(tmp_path, 4, callbacks=[RandomState()]).fit(
                module, datamodule=data, ckpt_path=tmp_path / "whole" / "step=2.ckpt"
            )
        ends[kind] = module.state_dict()
    assert set(ends["whole"]) == set(ends["stopped"])
    for name, value in ends["whole"].items():
        assert torch.equal(value, ends["stopped"][name]), name


@pytest.mark.parametrize("option", OPTIONS)
def test_names_are_one_word_everywhere(option: str) -> None:
    node = composed(option).strategy
    kind = get_class(node._target_)
    if kind is CombinedDistiller:
        assert set(node.objectives) == set(node.weights)
    elif option == "tinybert":  # a recipe in stages
        assert kind is StagedDistiller
    else:
        name = "".join(map(str.capitalize, option.split("_")))
        assert node._target_ == f"kdresearch.strategies.{option}.{name}Distiller"
    defaults = {name: each.default for name, each in inspect.signature(kind).parameters.items()}
    for name in set(node) & set(defaults) - {"weights"}:
        assert defaults[name] in (node[name], None, inspect.Parameter.empty), name
    if "weights" in node and kind not in (CombinedDistiller, StagedDistiller):
        assert node["weights"] == defaults["weights"] and set(kind.composition) == set(node["weights"])


def test_the_two_readings_are_as_the_table_thinks(bench: Bench) -> None:
    kinds = {
        pair: bench.pair(*pair)[2].kind
        for pair in (("bilstm", "transformer"), ("bilstm", "wordpiece"), ("ngram_bag", "transformer"))
    }
    assert list(kinds.values()) == ["same", "words", "apart"]
    rows = bench.pair("bilstm", "wordpiece")[0]
    words = rows.teacher_rows.tokens(rows.split.train[:4]).words
    assert (words[:, 0] == -1).all() and (words[:, 1] == 0).all()  # [CLS], then the first word
