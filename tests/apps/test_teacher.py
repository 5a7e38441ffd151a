from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from kdresearch import package
from kdresearch.apps import teacher as teachers
from kdresearch.apps import train as train_app
from kdresearch.apps.predict import probabilities
from kdresearch.apps.record import Chosen
from kdresearch.artifacts import Store
from kdresearch.cli import main
from kdresearch.conf_path import config_dir
from kdresearch.data.reviews import Reviews
from kdresearch.data.split import split
from kdresearch.data.tokenizers import NgramTokenizer
from kdresearch.errors import UserError
from kdresearch.evaluation.metrics import task_metrics
from kdresearch.models.ngram import NgramLinear

CLASSES = ("negative", "positive")
SMALL = ("data.rows={train: 240, test: 40, unlabelled: 0}", "data.validation=40", "trainer=cpu", "logger=none")
CHAIN = ("teacher=chain", "teacher.chain=[['student=ngram'], ['student=ngram', 'strategy.temperature=4']]")
BY_UPDATES = "'student.solver.method=none', 'student.training.learning_rate=0.05'"
NGRAM = f"['student=ngram', {BY_UPDATES}, 'student.training.epochs=8']"


@pytest.fixture(autouse=True)
def argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kdresearch"])


class Trained:
    """What ``train`` would leave, without the training; it remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[DictConfig, Chosen]] = []

    def __call__(self, cfg: DictConfig, folder: Path, chosen: Chosen) -> None:
        self.asked.append((cfg, chosen))
        write(folder / "student", len(self.asked))
        taught = {"teacher/val_accuracy": len(self.asked) / 100 - 0.01} if cfg.teacher.path is not None else {}
        (folder / "metrics.json").write_text(json.dumps({"val/accuracy": len(self.asked) / 100} | taught))


def write(folder: Path, seed: int, classes: tuple[str, ...] = CLASSES) -> Path:
    tokenizer = NgramTokenizer(orders=1, min_count=1)
    tokenizer.fit([["a fine film", "a dull film"]])
    model = NgramLinear(tokenizer.size, 2, weighting="none")
    model.weight.weight.data = torch.randn(tokenizer.size, 1, generator=torch.Generator().manual_seed(seed))
    package.save(folder, model, tokenizer, classes)
    return folder


class Composed:
    """A composed configuration, as a job of the command line has it."""

    def __init__(self, *overrides: str) -> None:
        self.cfg = compose("train", ["strategy=soft_label", *SMALL, *overrides], return_hydra_config=True)
        self.chosen = Chosen(dict(self.cfg.hydra.runtime.choices), list(overrides))
        with open_dict(self.cfg):
            del self.cfg["hydra"]

    def find(self, train: Any) -> teachers.Found:
        return teachers.find(self.cfg, self.chosen, Store(), train)


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        yield


def test_a_recipe_is_trained_once_whatever_the_student_is() -> None:
    train = Trained()
    first = Composed("teacher=ngram").find(train)
    others = [
        Composed("teacher=ngram", "seed=7", "student=textcnn", "strategy.temperature=9").find(train),
        Composed("teacher=ngram", "data.transfer=unlabelled", "optimizer=sgd", "selection.patience=1").find(train),
        Composed("teacher=ngram", "teacher.mode=live", "threads=1").find(train),
    ]
    assert len(train.asked) == 1
    assert {each.facts["fingerprint"] for each in [first, *others]} == {first.facts["fingerprint"]}
    assert first.name == "ngram"
    assert first.facts["parameters"] == sum(p.numel() for p in package.load(first.folders[0]).model.parameters())


@pytest.mark.parametrize(
    "change",
    [
        "seeds.teacher=1", "seeds.split=1", "data.rows.train=100", "data.labels=stars", "data.limit=50",
        "data.validation=30", "teacher.recipe=['student=ngram', 'student.training.epochs=1']", "data.seed=3",
    ],
)  # fmt: skip
def test_what_a_teacher_is_made_of_makes_another_teacher(change: str) -> None:
    train = Trained()
    Composed("teacher=ngram").find(train)
    Composed("teacher=ngram", change).find(train)
    assert len(train.asked) == 2


def test_a_recipe_is_trained_on_the_data_of_the_run_by_labels_alone() -> None:
    train = Trained()
    Composed(
        "teacher=ngram", f"teacher.recipe={NGRAM}", "data.transfer=unlabelled", "data.limit=50", "seed=5",
        "seeds.teacher=2", "seeds.split=3", "teacher.data={limit: null}", "logger=wandb", "student=textcnn",
    ).find(train)  # fmt: skip
    ((cfg, chosen),) = train.asked
    assert cfg.data.rows.train == 240
    assert cfg.data.source.train == 240
    assert (cfg.data.transfer, cfg.data.limit, cfg.data.validation) == ("none", None, 40)
    assert (cfg.seeds.init, cfg.seeds.order, cfg.seeds.split) == (2, 2, 3)
    assert cfg.logger.kind == "none"
    assert cfg.strategy._target_.endswith("SupervisedDistiller")
    assert cfg.student.model._target_.endswith("NgramLinear")
    assert (cfg.student.training.learning_rate, cfg.trainer.accelerator) == (0.05, "cpu")
    assert chosen.options["data"] == "reviews"
    assert cfg.name.startswith("teacher ngram")


def test_a_recipes_data_are_named_as_the_students(tmp_path: Path) -> None:
    train = Trained()
    Composed("teacher=ngram", "data.limit=50", "+teacher.data.validation=20").find(train)
    ((cfg, _),) = train.asked
    assert (cfg.data.limit, cfg.data.validation) == (50, 20)
    with pytest.raises(OmegaConfBaseException, match="limt"):
        Composed("teacher=ngram", "teacher.data={limt: 3}").find(train)
    assert len(train.asked) == 1


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "run" / "student", 1)
    train = Trained()
    found = Composed("teacher=checkpoint", f"teacher.path={tmp_path / 'run'}").find(train)
    assert found.folders == [tmp_path / "run" / "student"]
    assert found.name == "run"
    assert found.facts["fingerprint"] == package.fingerprint(found.folders[0])
    assert train.asked == []


def test_members(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", 1), write(tmp_path / "two", 2)
    train = Trained()

    def ensemble(members: str, *more: str) -> teachers.Found:
        return Composed("teacher=ensemble", f"teacher.members=[{members}]", *more).find(train)

    found = ensemble(f"{{path: {one}}}, {{recipe: ['student=ngram']}}, {{path: {two}}}")
    assert found.folders[::2] == [one, two]
    assert len(train.asked) == 1
    assert found.name == "one + ngram + two"
    paths = f"{{path: {one}}}, {{path: {two}}}"
    fingerprints = [
        ensemble(paths).facts["fingerprint"],
        ensemble(paths, "teacher.average=logits").facts["fingerprint"],
        ensemble(paths, "teacher.weights=[1, 2]").facts["fingerprint"],
        found.facts["fingerprint"],
        package.fingerprint(one),
    ]
    assert len(set(fingerprints)) == 5
    assert len(train.asked) == 1


def test_a_path_that_is_read_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path / "one", 1)
    given = ("teacher=checkpoint", f"teacher.path={path}", "teacher.max_length=2", "teacher.truncation=tail")
    found = Composed(*given).find(Trained())
    (folder,) = found.folders
    assert found.name == "one" and folder != path
    before, after = package.load(path), package.load(folder)
    assert (after.tokenizer.max_length, after.tokenizer.truncation) == (2, "tail")
    ids, _ = before.tokenizer.encode(["dull film"])
    assert after.tokenizer.encode(["a fine dull film"])[0].tolist() == ids.tolist()
    assert torch.equal(before.model.state_dict()["weight.weight"], after.model.state_dict()["weight.weight"])
    assert after.fingerprint == found.facts["fingerprint"] != before.fingerprint == package.fingerprint(path)
    assert Composed(*given).find(Trained()).folders == [folder]
    with pytest.raises(UserError, match=r"truncation: 'tial' \(did you mean 'tail'\?\)"):
        Composed("teacher=checkpoint", f"teacher.path={path}", "teacher.truncation=tial").find(Trained())
    assert len(list(Store().artifacts("teacher"))) == 1
    ensemble = f"teacher.members=[{{path: {path}}}, {{path: {path}, max_length: 2, truncation: tail}}]"
    assert Composed("teacher=ensemble", ensemble).find(Trained()).folders == [path, folder]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher=none"], r"strategy=soft_label needs a teacher, and teacher=none names none.*teacher\.recipe=\.\.\."),
        (["teacher=checkpoint"], r"teacher=checkpoint names none.*teacher\.path=\.\.\."),
        (["teacher=ngram", "teacher.path=x"], r"exactly one of recipe, path, id, members, chain .* recipe and path"),
        (["teacher=ngram", "teacher.members=[{path: x}]"], r"exactly one of .* recipe and members"),
        (["teacher=checkpoint", "teacher.path=/no/where"], r"/no/where does not exist"),
        (["teacher=ngram", "teacher.mode=lvie"], r"teacher\.mode: 'lvie' \(did you mean 'live'\?\)"),
        (["teacher=ngram", "teacher.precision=16"], r"teacher\.precision: .*16.*32, bf16"),
        (["teacher=ensemble", "teacher.members=[]"], r"teacher\.members.*at least one"),
        (["teacher=ensemble", "teacher.members=[{pth: x}]"], r"teacher\.members: 'pth' \(did you mean 'path'\?\)"),
        (["teacher=ensemble", "teacher.members=[{class_map: {a: b}}]"], r"teacher\.members: 'class_map'"),
        (["teacher=ensemble", "teacher.members=[{recipe: [a], path: b}]"], r"exactly one of"),
        (["teacher=ensemble", "teacher.members=[{recipe: ['student=ngram']}]", "teacher.weights=[1, 2]"], r"weights"),
        (
            ["teacher=ensemble", "teacher.members=[{recipe: ['student=ngram']}]", "teacher.average=x"],
            r"teacher\.average",
        ),
        (
            ["teacher=ensemble", "teacher.members=[{recipe: ['student=ngram']}, {path: b}]", "teacher.mode=live"],
            r"teacher\.mode=live runs one teacher",
        ),
        (["teacher=ngram", "teacher.temperature=fitt"], r"teacher\.temperature: a number above 0, or fit, not 'fitt'"),
        (["teacher=ngram", "teacher.temperature=0"], r"teacher\.temperature: .* not 0"),
        (["teacher=ngram", "teacher.label_smoothing=1"], r"teacher\.label_smoothing: .* not 1"),
        (["teacher=ngram", "teacher.folds=1"], r"teacher\.folds: a whole number of at least 2, not 1"),
        (["teacher=ngram", "teacher.folds=2.5"], r"teacher\.folds: a whole number"),
        (["teacher=ngram", "teacher.epochs=0"], r"teacher\.epochs: a whole number of at least 1"),
        (["teacher=ngram", "teacher.jobs=0"], r"teacher\.jobs: a whole number of at least 1"),
        (["teacher=ngram", "teacher.max_length=9"], r"teacher\.max_length .* called student\.tokenizer\.max_length"),
        (["teacher=ngram", "teacher.epochs=7"], r"teacher\.epochs=7: the recipe has 6"),
        (["teacher=ngram", "teacher.folds=2", "teacher.mode=live"], r"mode=live runs one model: a teacher in folds"),
        (["teacher=ngram", "teacher.folds=2", "start.from=layers"], r"start\.from=layers takes one model"),
        (["teacher=checkpoint", "teacher.path=x", "teacher.epochs=2"], r"teacher\.epochs says .* by path is trained"),
        (["teacher=hub", "teacher.id=x", "teacher.label_smoothing=0.1"], r"label_smoothing says .* by id is trained"),
        (["teacher=checkpoint", "teacher.path=x", "teacher.folds=2"], r"teacher\.folds says .* by path is trained"),
        (["teacher=ensemble", "teacher.members=[{path: x}]", "teacher.epochs=2"], r"teacher\.epochs says .* by path"),
        (["teacher=ensemble", "teacher.members=[{path: x}]", "teacher.folds=2"], r"folds is of .* teacher\.members"),
        ([*CHAIN, "teacher.folds=2"], r"teacher\.folds is of a teacher by one recipe, and teacher\.chain is given"),
        ([*CHAIN, "teacher.epochs=2"], r"teacher\.epochs is of a teacher by one recipe, and teacher\.chain is given"),
        (["strategy=self", "teacher.label_smoothing=0.1"], r"label_smoothing is of .* strategy=self is given"),
        (["strategy=assistant", "teacher.folds=2"], r"teacher\.folds is of .* strategy=assistant is given"),
        (["strategy=assistant", "teacher=ensemble", "teacher.members=[{path: x}]"], r"assistant begins with one"),
        (["strategy=assistant", "teacher=none"], r"strategy=assistant needs a teacher, and teacher=none names none"),
        (["strategy=self", "strategy.generations=0"], r"strategy\.generations must be at least 1 .* not 0"),
        (["strategy=assistant", "strategy.assistants=[]"], r"strategy\.assistants needs at least one recipe"),
        (["strategy=assistant", "strategy.assistants=['student=ngram']"], r"each is a list of overrides"),
        (["teacher=chain", "teacher.chain=[]"], r"teacher\.chain: a list of recipes"),
        (["teacher=chain", "teacher.chain=[['student=ngram'], a]"], r"teacher\.chain: a list of recipes, each a list"),
        (["teacher=ngram", "teacher.chain=[['student=ngram']]"], r"exactly one of .*, not recipe and chain"),
        (
            ["teacher=chain", "teacher.chain=[['strategy=feature']]"],
            r"chain, link 1 \(.*\) has no teacher to learn from",
        ),
        (
            ["teacher=chain", "teacher.chain=[['student=ngram'], ['strategy=supervised']]"],
            r"teacher\.chain, link 2 \(.*\) learns from labels alone",
        ),
        (
            ["teacher=chain", "teacher.chain=[['student=ngram'], ['teacher=ngram']]"],
            r"teacher\.chain, link 2: its teacher is the link before it",
        ),
    ],
)
def test_refused_before_anything_is_trained(overrides: list[str], message: str) -> None:
    train = Trained()
    with pytest.raises(UserError, match=message):
        Composed(*overrides).find(train)
    assert train.asked == []


@pytest.mark.parametrize("short", ["teacher.epochs=3", "teacher.label_smoothing=0.2"])
def test_short_forms_of_a_recipe(short: str) -> None:
    train = Trained()
    plain = Composed("teacher=ngram").find(train)
    found = Composed("teacher=ngram", short).find(train)
    (first, _), (second, _) = train.asked
    assert (first.selection.stop_after, first.strategy.label_smoothing) == (None, 0.0)
    changed = (3, 0.0) if "epochs" in short else (None, 0.2)
    assert (second.selection.stop_after, second.strategy.label_smoothing) == changed
    assert found.name != plain.name == "ngram"
    long = {"teacher.epochs=3": "selection.stop_after=3", "teacher.label_smoothing=0.2": "strategy.label_smoothing=0.2"}
    Composed("teacher=ngram", f"teacher.recipe=['student=ngram', '{long[short]}']").find(train)
    assert len(train.asked) == 2  # it is the same teacher
    members = "teacher.members=[{recipe: ['student=ngram']}, {recipe: ['student=ngram_bag']}]"
    Composed("teacher=ensemble", members, short).find(train)
    assert len(train.asked) == 3


def test_what_is_off_makes_no_other_teacher() -> None:
    Composed("teacher=ngram").find(Trained())
    (artifact,) = Store().artifacts("teacher")
    assert "stop_after" not in artifact.key["training"]["selection"]
    assert not {"leave_out", "transfer_share"} & set(artifact.key["training"]["data"])


def test_the_links_of_a_chain_are_trained_once_and_in_order() -> None:
    train = Trained()
    chain = "teacher.chain=[['student=ngram'], ['student=ngram_bag', 'strategy=logit_mse'], ['student=textcnn']]"
    found = Composed("teacher=chain", chain, "data.transfer=unlabelled", "seeds.teacher=2", "teacher.precision=bf16")
    facts = found.find(train).facts
    kinds = [cfg.strategy._target_.rsplit(".", 1)[-1] for cfg, _ in train.asked]
    assert kinds == ["SupervisedDistiller", "LogitMseDistiller", "SoftLabelDistiller"]
    assert [cfg.data.transfer for cfg, _ in train.asked] == ["none", "unlabelled", "unlabelled"]
    assert {cfg.seeds.init for cfg, _ in train.asked} == {2}
    packages = sorted((each.created, each.path / "student") for each in Store().artifacts("teacher"))
    by_fingerprint = {package.fingerprint(path): str(path) for _, path in packages}
    assert [link["fingerprint"] for link in facts["chain"]] == [
        package.fingerprint(Path(cfg.teacher.path)) for cfg, _ in train.asked[1:]
    ] + [facts["fingerprint"]]
    assert train.asked[0][0].teacher.path is None
    assert [link["validation_accuracy"] for link in facts["chain"]] == [0.01, 0.02, 0.03]
    assert [link["name"] for link in facts["chain"]] == ["ngram", "ngram_bag (strategy=logit_mse)", "textcnn"]
    assert facts["packages"] == [by_fingerprint[facts["fingerprint"]]]

    again = Composed("teacher=chain", chain, "data.transfer=unlabelled", "seeds.teacher=2", "seed=4").find(train)
    assert (again.facts["chain"], len(train.asked)) == (facts["chain"], 3)
    Composed(
        "teacher=chain", chain.replace("logit_mse", "decoupled"), "data.transfer=unlabelled", "seeds.teacher=2"
    ).find(train)
    assert len(train.asked) == 5  # the second link and what learns from it
    Composed("teacher=ngram", "data.transfer=unlabelled", "seeds.teacher=2").find(train)
    assert len(train.asked) == 5  # the first link is a teacher like any other


def test_a_chain_goes_on_at_the_link_where_it_was_killed() -> None:
    class Killed(Trained):
        def __call__(self, cfg: DictConfig, folder: Path, chosen: Chosen) -> None:
            if len(self.asked) == 1:
                raise KeyboardInterrupt
            super().__call__(cfg, folder, chosen)

    with pytest.raises(KeyboardInterrupt):
        Composed(*CHAIN).find(Killed())
    train = Trained()
    Composed(*CHAIN).find(train)
    ((cfg, _),) = train.asked
    assert cfg.strategy.temperature == 4.0


def test_earlier_generations_are_the_student_itself() -> None:
    train = Trained()
    student = (
        "student=bilstm", "student.model.hidden_dim=8", "optimizer=sgd", "scheduler=cosine",
        "trainer.precision=bf16-mixed", "selection.monitor=val/nll", "selection.mode=min", "strategy.temperature=3",
        "strategy.label_smoothing=0.1", "strategy.weights.label=0.25", "teacher=checkpoint", "teacher.path=unused",
    )  # fmt: skip
    composed = Composed("strategy=self", "strategy.generations=3", *student)
    found = composed.find(train)
    assert [link["name"] for link in found.facts["chain"]] == [f"bilstm generation {number}" for number in range(3)]
    for number, (cfg, chosen) in enumerate(train.asked):
        for node in ("student", "optimizer", "scheduler", "selection", "trainer"):
            assert OmegaConf.to_container(cfg[node], resolve=True) == OmegaConf.to_container(
                composed.cfg[node], resolve=True
            )
        assert cfg.strategy._target_.endswith("SoftLabelDistiller" if number else "SupervisedDistiller")
        assert cfg.strategy.label_smoothing == 0.1
        assert not number or (cfg.strategy.temperature, cfg.strategy.weights.label) == (3, 0.25)
        assert chosen.options["student"] == "bilstm"
    seeds = [cfg.seeds.init for cfg, _ in train.asked]
    assert len({*seeds, *range(10)}) == 13  # of other initial weights than each other and the students of a sweep
    Composed("strategy=self", "strategy.generations=2", *student, "seed=3").find(train)
    assert len(train.asked) == 3
    Composed("strategy=self", "strategy.generations=2", *student, "student.model.hidden_dim=9").find(train)
    assert len(train.asked) == 5


def test_assistants_follow_the_configured_teacher(tmp_path: Path) -> None:
    names = ("bad", "good")
    head, train = write(tmp_path / "head" / "student", 9, names), Trained()
    assistants = "strategy.assistants=[['student=textcnn'], ['student=ngram', 'strategy.weights.label=0.125']]"
    class_map = "teacher.class_map={bad: negative, good: positive}"
    given = ("strategy=assistant", assistants, "strategy.temperature=5", "teacher=checkpoint", class_map)
    found = Composed(*given, f"teacher.path={tmp_path / 'head'}").find(train)
    first, second = (cfg for cfg, _ in train.asked)
    assert (Path(first.teacher.path), package.fingerprint(head)) == (head, found.facts["chain"][0]["fingerprint"])
    assert (dict(first.teacher.class_map), second.teacher.class_map) == ({"bad": "negative", "good": "positive"}, None)
    assert (first.strategy.temperature, second.strategy.temperature) == (5, 2)  # it says what is its own
    assert (first.strategy.weights.label, second.strategy.weights.label) == (0.5, 0.125)
    assert [link["name"] for link in found.facts["chain"]] == ["head", "textcnn", "ngram (label=0.125)"]
    assert [link["validation_accuracy"] for link in found.facts["chain"]] == [0.0, 0.01, 0.02]
    assert found.class_map is None  # the last one speaks of the data's classes
    # The same recipe as the teacher of a chain of its own: what it learned from is part of what it is.
    Composed(*given, f"teacher.path={write(tmp_path / 'other', 8, names)}").find(train)
    assert len(train.asked) == 4


def test_a_recipe_that_fails_leaves_nothing() -> None:
    def fails(cfg: DictConfig, folder: Path, chosen: Chosen) -> None:
        (folder / "half").touch()
        raise UserError("it diverged")

    with pytest.raises(UserError, match="it diverged"):
        Composed("teacher=ngram").find(fails)
    assert list(Store().artifacts("teacher")) == []
    train = Trained()
    assert Composed("teacher=ngram").find(train).folders[0].is_dir()


def test_an_ensemble_teaches(tmp_path: Path) -> None:
    """One whole run: its teacher's logits are the mean of what its two members, trained by recipes, say."""
    other = NGRAM.replace("epochs=8'", "epochs=4'")
    members = f"teacher.members=[{{recipe: {NGRAM}}}, {{recipe: {other}}}]"
    small = ("student=ngram_bag", "student.training.epochs=1", "evaluation.efficiency=false", "threads=1")
    given = ["train", *SMALL, *small, "strategy=soft_label", "teacher=ensemble", members, "teacher.weights=[3, 1]"]
    GlobalHydra.instance().clear()
    assert main([*given, f"hydra.run.dir={tmp_path}"]) == 0
    facts = json.loads((tmp_path / "run.json").read_text())["teacher"]
    assert len(facts["packages"]) == len(facts["members_validation_accuracy"]) == 2
    assert len(facts["members_test_accuracy"]) == 2
    rows = [row for row in pq.read_table(tmp_path / "predictions.parquet").to_pylist() if row["split"] == "test"]
    told = torch.tensor([row["teacher_logits"] for row in rows]).softmax(1)
    texts = {row.id: row.text for row in Reviews(train=240, test=40, unlabelled=0).rows()}
    one, two = (probabilities(package.load(folder), [texts[row["id"]] for row in rows]) for folder in facts["packages"])
    np.testing.assert_allclose(told.numpy(), 0.75 * one + 0.25 * two, atol=1e-5)
    assert np.abs(one - two).max() > 0.01
    label = np.array([row["label"] for row in rows])
    assert facts["members_test_accuracy"] == [float((each.argmax(1) == label).mean()) for each in (one, two)]


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    """A whole small run, and what its record says of its teacher."""
    small = ("student=ngram_bag", "student.training.epochs=1", "evaluation.efficiency=false", "threads=1")
    GlobalHydra.instance().clear()
    assert main(["train", *SMALL, *small, *overrides, f"hydra.run.dir={folder}"]) == 0
    facts: dict[str, Any] = json.loads((folder / "run.json").read_text())["teacher"]
    return facts


def told(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """The teacher's logits [N, C] on a split as a run left them, the labels [N] and the rows' ids."""
    rows = [row for row in pq.read_table(folder / "predictions.parquet").to_pylist() if row["split"] == split]
    logits = torch.tensor([row["teacher_logits"] for row in rows])
    return logits, torch.tensor([row["label"] for row in rows]), [row["id"] for row in rows]


def test_out_of_fold_answers(tmp_path: Path) -> None:
    """One whole run, and what its teacher says of each row of the corpus, by the models' own packages."""
    composed = Composed("teacher=ngram", f"teacher.recipe={NGRAM}", "teacher.folds=3", "student=ngram", "threads=1")
    cfg, store = composed.cfg, Store()
    data = train_app.rows_of(cfg, store).prepare()
    found = composed.find(train_app.run)
    answers = teachers.answer(cfg, found, data, store, "cpu", live=False, token_level=False)
    assert (answers.training.provides, found.facts["mode"]) == ({"logits"}, "recorded")
    assert len(set(found.facts["packages"])) == len(found.facts["members_validation_accuracy"]) == 3

    whole = split(data.corpus, validation=40)
    seen = []
    for folder in map(Path, found.facts["packages"]):
        own = OmegaConf.load(folder.parent / ".hydra" / "config.yaml").data
        part = split(data.corpus, validation=own.validation, leave_out=own.leave_out)
        assert np.array_equal(part.validation, whole.validation)
        assert not np.isin(np.concatenate([whole.validation, whole.test]), part.train).any()
        seen.append(np.isin(whole.train, part.train))
        counts = json.loads((folder.parent / "run.json").read_text())["data"]["counts"]
        assert (counts["train"], counts["validation"]) == (len(part.train), 40)
    assert (np.sum(seen, axis=0) == 2).all()  # of three

    def said(rows: np.ndarray) -> np.ndarray:
        texts = [text for chunk in data.corpus.texts(rows) for text in chunk]
        return np.stack([probabilities(package.load(folder), texts) for folder in found.folders])

    answer = teachers.logits_of(answers.training, data, whole.train).softmax(1).numpy()
    each = said(whole.train)
    np.testing.assert_allclose(answer, each[np.argmin(seen, axis=0), np.arange(len(whole.train))], atol=1e-5)
    assert np.abs(answer - each.mean(0)).max() > 0.01  # and not by the mean
    for rows in (whole.validation, whole.test):
        answer = teachers.logits_of(answers.evaluation, data, rows).softmax(1).numpy()
        np.testing.assert_allclose(answer, said(rows).mean(0), atol=1e-5)

    # What no model needs to be asked about was not paid for: every training row once, the others three times.
    paid = sum(len(np.load(file)) for file in store.root.glob("knowledge/*/digests.npy"))
    texts = {
        name: len(np.unique(data.corpus.digests(getattr(whole, name)))) for name in ("train", "validation", "test")
    }
    assert paid == texts["train"] + 3 * texts["validation"] + 3 * texts["test"]


def test_folds_in_processes_of_their_own_are_the_same(tmp_path: Path) -> None:
    given = ("teacher=ngram", f"teacher.recipe={NGRAM}", "teacher.folds=2", "threads=1")
    one = Composed(*given).find(train_app.run).facts["fingerprint"]
    store = Store(tmp_path / "other")
    two = teachers.find((composed := Composed(*given, "teacher.jobs=2")).cfg, composed.chosen, store, train_app.run)
    assert two.facts["fingerprint"] == one
    assert all(folder.is_relative_to(store.root) for folder in two.folders)


def test_a_fitted_temperature_is_what_students_and_metrics_see(tmp_path: Path) -> None:
    teacher = ("strategy=soft_label", "teacher=ngram", f"teacher.recipe={NGRAM}")
    plain = run(tmp_path / "plain", *teacher)
    fitted = run(tmp_path / "fitted", *teacher, "teacher.temperature=fit")
    given = run(tmp_path / "given", *teacher, f"teacher.temperature={fitted['temperature']}")
    assert plain["temperature"] == 1.0 != fitted["temperature"] == given["temperature"]
    assert plain["calibration"]["before"] == plain["calibration"]["after"] == fitted["calibration"]["before"]
    assert fitted["calibration"]["after"] == given["calibration"]["after"]
    before, label, _ = told(tmp_path / "plain", "validation")
    after, _, _ = told(tmp_path / "fitted", "validation")
    torch.testing.assert_close(after, before / fitted["temperature"])
    for name, logits in (("before", before), ("after", after)):
        scores, expected = fitted["calibration"][name], task_metrics(logits, label)
        assert scores == pytest.approx({key: expected[key] for key in ("accuracy", "nll", "ece", "brier")}, abs=1e-6)
    assert fitted["calibration"]["after"]["nll"] < fitted["calibration"]["before"]["nll"]
    scores = {name: json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("plain", "fitted")}
    assert scores["fitted"]["teacher/test_accuracy"] == scores["plain"]["teacher/test_accuracy"]
    logits, label, _ = told(tmp_path / "fitted", "test")
    assert scores["fitted"]["teacher/test_nll"] == pytest.approx(task_metrics(logits, label)["nll"])
    assert scores["fitted"]["teacher/test_nll"] != scores["plain"]["teacher/test_nll"]
    students = [
        (tmp_path / name / "student" / "model.safetensors").read_bytes() for name in ("plain", "fitted", "given")
    ]
    assert students[0] != students[1] == students[2]


def test_a_live_teacher_is_calibrated_too(tmp_path: Path) -> None:
    given = ("strategy=soft_label", "teacher=ngram", f"teacher.recipe={NGRAM}", "teacher.temperature=3")
    run(tmp_path / "recorded", *given)
    facts = run(tmp_path / "live", *given, "teacher.mode=live")
    assert (facts["mode"], "training" in facts["calibration"]) == ("live", False)
    students = [package.load(tmp_path / name).model.state_dict() for name in ("recorded", "live")]
    for name, value in students[0].items():
        torch.testing.assert_close(value, students[1][name], atol=1e-5, rtol=1e-4)


def test_stopping_early_is_the_beginning_of_the_whole_schedule(tmp_path: Path) -> None:
    def curve(name: str, *overrides: str) -> list[tuple[str, ...]]:
        GlobalHydra.instance().clear()
        student = (
            "student=ngram", "student.solver.method=none", "student.training.epochs=6",
            "student.training.learning_rate=0.05",
        )  # fmt: skip
        more = ("strategy=supervised", "logger=csv", "evaluation.efficiency=false", "threads=1")
        given = [*SMALL, *student, *more, *overrides, f"hydra.run.dir={tmp_path / name}"]
        assert main(["train", *given]) == 0
        with (tmp_path / name / "metrics.csv").open() as file:
            return [(row["step"], row["val/nll"]) for row in csv.DictReader(file) if row.get("val/nll")]

    whole = curve("whole")
    stopped = curve("stopped", "selection.stop_after=2")
    assert len(whole) == 6 and stopped == whole[:2]
    assert json.loads((tmp_path / "stopped" / "run.json").read_text())["best_epoch"] == 2
    # Killed after its last epoch and before its end, it goes on to the end and not to another epoch.
    record, metrics = tmp_path / "stopped" / "run.json", tmp_path / "stopped" / "metrics.json"
    facts, scores = json.loads(record.read_text()), json.loads(metrics.read_text())
    record.write_text(json.dumps(facts | {"status": "running"}))
    curve("stopped", "selection.stop_after=2")
    assert json.loads(metrics.read_text()) == scores
    assert json.loads(record.read_text())["updates"] == facts["updates"]
    # The last one is kept, though another was better by the metric that is monitored.
    curve("worse", "selection.stop_after=3", "selection.monitor=val/nll", "selection.mode=min")
    assert json.loads((tmp_path / "worse" / "run.json").read_text())["best_epoch"] == 3
    metrics = json.loads((tmp_path / "worse" / "metrics.json").read_text())
    assert metrics["val/nll"] == pytest.approx(float(whole[2][1]), abs=1e-5)
    assert float(whole[2][1]) > float(whole[0][1])


def test_generations_teach(tmp_path: Path) -> None:
    """One whole run: its teacher is the last of its earlier generations."""
    student = ("student=ngram", "student.solver.method=none")
    given = ("strategy=self", "strategy.weights={label: 0, soft_label: 1}", *student)
    facts = run(tmp_path / "one", *given)
    assert [link["name"] for link in facts["chain"]] == ["ngram generation 0", "ngram generation 1"]
    (last,) = facts["packages"]
    assert facts["fingerprint"] == facts["chain"][1]["fingerprint"] == package.fingerprint(Path(last))
    logits, label, ids = told(tmp_path / "one", "validation")
    texts = {row.id: row.text for row in Reviews(train=240, test=40, unlabelled=0).rows()}
    expected = probabilities(package.load(Path(last)), [texts[row] for row in ids])
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, atol=1e-5)
    accuracies = [link["validation_accuracy"] for link in facts["chain"]]
    assert accuracies[1] == facts["validation_accuracy"] == float((expected.argmax(1) == label.numpy()).mean())
    taught = json.loads((Path(last).parent / "metrics.json").read_text())
    assert taught["teacher/val_accuracy"] == accuracies[0]
    artifacts = list(Store().artifacts("teacher"))
    run(tmp_path / "two", *given, "seed=1")
    assert len(list(Store().artifacts("teacher"))) == len(artifacts) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["strategy=assistant", "strategy.assistants=[['student=bilstm', 'student.model.pooling=sum']]"],
            "pooling is 'sum'; one of: attention",
        ),
        (["strategy=assistant", "strategy.assistants=[['student=bilstn']]"], "did you mean 'bilstm'?"),
        (["strategy=soft_label", "teacher.folds=150"], "fold 149 of teacher.folds=150 holds none of the 200"),
        (["strategy=feature", "teacher.folds=2"], "needs pooled of the teacher, which provides only logits"),
        (["strategy=supervised", "selection.stop_after=0"], "selection.stop_after must be at least 1, not 0"),
    ],
)
def test_a_run_is_refused_before_its_teacher_is_trained(
    overrides: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    GlobalHydra.instance().clear()
    teacher = ("student=ngram_bag", "teacher=ngram", "teacher.recipe=['student=ngram_bag']")
    assert main(["train", *SMALL, *teacher, *overrides, f"hydra.run.dir={tmp_path}"]) == 2
    assert message in capsys.readouterr().err
    assert list(Store().artifacts("teacher")) == []
