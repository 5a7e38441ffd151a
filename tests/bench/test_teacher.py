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
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf.errors import OmegaConfBaseException

from kdresearch import package
from kdresearch.artifacts import Store
from kdresearch.bench.context import Context
from kdresearch.bench.data import open_data
from kdresearch.bench.knowledge import obtain_knowledge
from kdresearch.bench.plan import Folder, Plan
from kdresearch.bench.run import run as run_plan
from kdresearch.bench.start import check_start
from kdresearch.bench.teacher import TeacherPackages, check_teacher, obtain_teacher
from kdresearch.cli import main
from kdresearch.commands.compose import compose_overrides, plan_of
from kdresearch.conf_path import config_dir
from kdresearch.data.reviews import Reviews
from kdresearch.data.split import split
from kdresearch.data.tokenizers import NgramTokenizer
from kdresearch.errors import UserError
from kdresearch.evaluation.metrics import task_metrics
from kdresearch.models.ngram import NgramLinear
from kdresearch.teachers.ask import logits_of

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
        self.plans: list[Plan] = []

    def __call__(self, plan: Plan, folder: Path, context: Context) -> None:
        self.plans.append(plan)
        write(folder / "student", len(self.plans))
        taught = {} if plan.teacher is None else {"teacher/val_accuracy": len(self.plans) / 100 - 0.01}
        (folder / "metrics.json").write_text(json.dumps({"val/accuracy": len(self.plans) / 100} | taught))


def folder_of(plan: Plan) -> Path:
    """Where the teacher of a link of a chain lies."""
    assert plan.teacher is not None
    (source,) = plan.teacher.members
    assert isinstance(source, Folder)
    return source.path


def write(folder: Path, seed: int, classes: tuple[str, ...] = CLASSES) -> Path:
    tokenizer = NgramTokenizer(orders=1, min_count=1)
    tokenizer.fit([["a fine film", "a dull film"]])
    model = NgramLinear(tokenizer.size, 2, weighting="none")
    model.weight.weight.data = torch.randn(tokenizer.size, 1, generator=torch.Generator().manual_seed(seed))
    package.save(folder, model, tokenizer, classes)
    return folder


def composed(*overrides: str) -> Plan:
    """The plan that a job of the command line has."""
    return plan_of(compose_overrides(["strategy=soft_label", *SMALL, *overrides]))


def obtain(train: Any, *overrides: str, store: Store | None = None) -> TeacherPackages:
    """The teacher's packages, its options checked as a run checks them."""
    plan, nothing = composed(*overrides), Any
    assert plan.teacher is not None
    check_teacher(plan.teacher)
    check_start(plan, nothing, nothing)  # type: ignore[arg-type]
    return obtain_teacher(plan.teacher, Context(store or Store()), train)


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        yield


def test_a_recipe_is_trained_once_whatever_the_student_is() -> None:
    train = Trained()
    first = obtain(train, "teacher=ngram")
    others = [
        obtain(train, "teacher=ngram", "seed=7", "student=textcnn", "strategy.temperature=9"),
        obtain(train, "teacher=ngram", "data.transfer=unlabelled", "optimizer=sgd", "selection.patience=1"),
        obtain(train, "teacher=ngram", "teacher.mode=live", "threads=1"),
    ]
    assert len(train.plans) == 1
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
    obtain(train, "teacher=ngram")
    obtain(train, "teacher=ngram", change)
    assert len(train.plans) == 2


def test_a_recipe_is_trained_on_the_data_of_the_run_by_labels_alone() -> None:
    train = Trained()
    given = (
        "teacher=ngram", f"teacher.recipe={NGRAM}", "data.transfer=unlabelled", "data.limit=50", "seed=5",
        "seeds.teacher=2", "seeds.split=3", "teacher.data={limit: null}", "logger=wandb", "student=textcnn",
    )  # fmt: skip
    obtain(train, *given)
    (plan,) = train.plans
    assert plan.data.source.settings["train"] == 240
    carving = plan.data.carving
    assert (carving["transfer"], carving["limit"], carving["validation"]) == ("none", None, 40)
    assert (plan.seeds.init, plan.seeds.order, plan.seeds.split) == (2, 2, 3)
    assert plan.strategy.target.endswith("SupervisedDistiller")
    assert plan.student.model.target.endswith("NgramLinear")
    assert (plan.student.training["learning_rate"], plan.trainer["accelerator"]) == (0.05, "cpu")
    assert plan.options["data"] == plan.data.name == "reviews"
    assert plan.name is not None and plan.name.startswith("teacher ngram")


def test_a_recipes_data_are_named_as_the_students(tmp_path: Path) -> None:
    train = Trained()
    obtain(train, "teacher=ngram", "data.limit=50", "+teacher.data.validation=20")
    (plan,) = train.plans
    assert (plan.data.carving["limit"], plan.data.carving["validation"]) == (50, 20)
    with pytest.raises(OmegaConfBaseException, match="limt"):
        obtain(train, "teacher=ngram", "teacher.data={limt: 3}")
    assert len(train.plans) == 1


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "run" / "student", 1)
    train = Trained()
    found = obtain(train, "teacher=checkpoint", f"teacher.path={tmp_path / 'run'}")
    assert found.folders == [tmp_path / "run" / "student"]
    assert found.name == "run"
    assert found.facts["fingerprint"] == package.fingerprint(found.folders[0])
    assert train.plans == []


def test_members(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", 1), write(tmp_path / "two", 2)
    train = Trained()

    def ensemble(members: str, *more: str) -> TeacherPackages:
        return obtain(train, "teacher=ensemble", f"teacher.members=[{members}]", *more)

    found = ensemble(f"{{path: {one}}}, {{recipe: ['student=ngram']}}, {{path: {two}}}")
    assert found.folders[::2] == [one, two]
    assert len(train.plans) == 1
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
    assert len(train.plans) == 1


def test_a_path_that_is_read_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path / "one", 1)
    given = ("teacher=checkpoint", f"teacher.path={path}", "teacher.max_length=2", "teacher.truncation=tail")
    found = obtain(Trained(), *given)
    (folder,) = found.folders
    assert found.name == "one" and folder != path
    before, after = package.load(path), package.load(folder)
    assert (after.tokenizer.max_length, after.tokenizer.truncation) == (2, "tail")
    ids, _ = before.tokenizer.encode(["dull film"])
    assert after.tokenizer.encode(["a fine dull film"])[0].tolist() == ids.tolist()
    assert torch.equal(before.model.state_dict()["weight.weight"], after.model.state_dict()["weight.weight"])
    assert after.fingerprint == found.facts["fingerprint"] != before.fingerprint == package.fingerprint(path)
    assert obtain(Trained(), *given).folders == [folder]
    with pytest.raises(UserError, match=r"truncation: 'tial' \(did you mean 'tail'\?\)"):
        obtain(Trained(), "teacher=checkpoint", f"teacher.path={path}", "teacher.truncation=tial")
    assert len(list(Store().artifacts("teacher"))) == 1
    ensemble = f"teacher.members=[{{path: {path}}}, {{path: {path}, max_length: 2, truncation: tail}}]"
    assert obtain(Trained(), "teacher=ensemble", ensemble).folders == [path, folder]


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
        obtain(train, *overrides)
    assert train.plans == []


@pytest.mark.parametrize("short", ["teacher.epochs=3", "teacher.label_smoothing=0.2"])
def test_short_forms_of_a_recipe(short: str) -> None:
    train = Trained()
    plain = obtain(train, "teacher=ngram")
    found = obtain(train, "teacher=ngram", short)
    first, second = train.plans
    assert (first.selection.stop_after, first.strategy.settings["label_smoothing"]) == (None, 0.0)
    changed = (3, 0.0) if "epochs" in short else (None, 0.2)
    assert (second.selection.stop_after, second.strategy.settings["label_smoothing"]) == changed
    assert found.name != plain.name == "ngram"
    long = {"teacher.epochs=3": "selection.stop_after=3", "teacher.label_smoothing=0.2": "strategy.label_smoothing=0.2"}
    obtain(train, "teacher=ngram", f"teacher.recipe=['student=ngram', '{long[short]}']")
    assert len(train.plans) == 2  # it is the same teacher
    members = "teacher.members=[{recipe: ['student=ngram']}, {recipe: ['student=ngram_bag']}]"
    obtain(train, "teacher=ensemble", members, short)
    assert len(train.plans) == 3


def test_what_is_off_makes_no_other_teacher() -> None:
    obtain(Trained(), "teacher=ngram")
    (artifact,) = Store().artifacts("teacher")
    assert "stop_after" not in artifact.key["training"]["selection"]
    assert not {"leave_out", "transfer_share"} & set(artifact.key["training"]["data"])


def test_the_links_of_a_chain_are_trained_once_and_in_order() -> None:
    train = Trained()
    chain = "teacher.chain=[['student=ngram'], ['student=ngram_bag', 'strategy=logit_mse'], ['student=textcnn']]"
    given = ("teacher=chain", chain, "data.transfer=unlabelled", "seeds.teacher=2")
    facts = obtain(train, *given, "teacher.precision=bf16").facts
    kinds = [plan.strategy.target.rsplit(".", 1)[-1] for plan in train.plans]
    assert kinds == ["SupervisedDistiller", "LogitMseDistiller", "SoftLabelDistiller"]
    assert [plan.data.carving["transfer"] for plan in train.plans] == ["none", "unlabelled", "unlabelled"]
    assert {plan.seeds.init for plan in train.plans} == {2}
    packages = sorted((each.created, each.path / "student") for each in Store().artifacts("teacher"))
    by_fingerprint = {package.fingerprint(path): str(path) for _, path in packages}
    assert [link["fingerprint"] for link in facts["chain"]] == [
        package.fingerprint(folder_of(plan)) for plan in train.plans[1:]
    ] + [facts["fingerprint"]]
    assert train.plans[0].teacher is None
    assert [link["validation_accuracy"] for link in facts["chain"]] == [0.01, 0.02, 0.03]
    assert [link["name"] for link in facts["chain"]] == ["ngram", "ngram_bag (strategy=logit_mse)", "textcnn"]
    assert facts["packages"] == [by_fingerprint[facts["fingerprint"]]]

    again = obtain(train, *given, "seed=4")
    assert (again.facts["chain"], len(train.plans)) == (facts["chain"], 3)
    obtain(train, *given[:1], chain.replace("logit_mse", "decoupled"), *given[2:])
    assert len(train.plans) == 5  # the second link and what learns from it
    obtain(train, "teacher=ngram", "data.transfer=unlabelled", "seeds.teacher=2")
    assert len(train.plans) == 5  # the first link is a teacher like any other


def test_a_chain_goes_on_at_the_link_where_it_was_killed() -> None:
    class Killed(Trained):
        def __call__(self, plan: Plan, folder: Path, context: Context) -> None:
            if len(self.plans) == 1:
                raise KeyboardInterrupt
            super().__call__(plan, folder, context)

    with pytest.raises(KeyboardInterrupt):
        obtain(Killed(), *CHAIN)
    train = Trained()
    obtain(train, *CHAIN)
    (plan,) = train.plans
    assert plan.strategy.settings["temperature"] == 4.0


def test_earlier_generations_are_the_student_itself() -> None:
    train = Trained()
    student = (
        "student=bilstm", "student.model.hidden_dim=8", "optimizer=sgd", "scheduler=cosine",
        "trainer.precision=bf16-mixed", "selection.monitor=val/nll", "selection.mode=min", "strategy.temperature=3",
        "strategy.label_smoothing=0.1", "strategy.weights.label=0.25", "teacher=checkpoint", "teacher.path=unused",
    )  # fmt: skip
    whole = composed("strategy=self", "strategy.generations=3", *student)
    found = obtain(train, "strategy=self", "strategy.generations=3", *student)
    assert [link["name"] for link in found.facts["chain"]] == [f"bilstm generation {number}" for number in range(3)]
    for number, plan in enumerate(train.plans):
        for part in ("student", "optimizer", "scheduler", "selection", "trainer"):
            assert getattr(plan, part) == getattr(whole, part)
        assert plan.strategy.target.endswith("SoftLabelDistiller" if number else "SupervisedDistiller")
        settings = plan.strategy.settings
        assert settings["label_smoothing"] == 0.1
        assert not number or (settings["temperature"], settings["weights"]["label"]) == (3, 0.25)
        assert plan.student.name == "bilstm"
    seeds = [plan.seeds.init for plan in train.plans]
    assert len({*seeds, *range(10)}) == 13  # of other initial weights than each other and the students of a sweep
    obtain(train, "strategy=self", "strategy.generations=2", *student, "seed=3")
    assert len(train.plans) == 3
    obtain(train, "strategy=self", "strategy.generations=2", *student, "student.model.hidden_dim=9")
    assert len(train.plans) == 5


def test_assistants_follow_the_configured_teacher(tmp_path: Path) -> None:
    names = ("bad", "good")
    head, train = write(tmp_path / "head" / "student", 9, names), Trained()
    assistants = "strategy.assistants=[['student=textcnn'], ['student=ngram', 'strategy.weights.label=0.125']]"
    class_map = "teacher.class_map={bad: negative, good: positive}"
    given = ("strategy=assistant", assistants, "strategy.temperature=5", "teacher=checkpoint", class_map)
    found = obtain(train, *given, f"teacher.path={tmp_path / 'head'}")
    first, second = train.plans
    assert (folder_of(first), package.fingerprint(head)) == (head, found.facts["chain"][0]["fingerprint"])
    assert first.teacher is not None and second.teacher is not None
    assert (first.teacher.class_map, second.teacher.class_map) == ({"bad": "negative", "good": "positive"}, None)
    learned = [plan.strategy.settings for plan in (first, second)]
    assert [each["temperature"] for each in learned] == [5, 2]  # it says what is its own
    assert [each["weights"]["label"] for each in learned] == [0.5, 0.125]
    assert [link["name"] for link in found.facts["chain"]] == ["head", "textcnn", "ngram (label=0.125)"]
    assert [link["validation_accuracy"] for link in found.facts["chain"]] == [0.0, 0.01, 0.02]
    assert found.class_map is None  # the last one speaks of the data's classes
    # The same recipe as the teacher of a chain of its own: what it learned from is part of what it is.
    obtain(train, *given, f"teacher.path={write(tmp_path / 'other', 8, names)}")
    assert len(train.plans) == 4


def test_a_recipe_that_fails_leaves_nothing() -> None:
    def fails(plan: Plan, folder: Path, context: Context) -> None:
        (folder / "half").touch()
        raise UserError("it diverged")

    with pytest.raises(UserError, match="it diverged"):
        obtain(fails, "teacher=ngram")
    assert list(Store().artifacts("teacher")) == []
    train = Trained()
    assert obtain(train, "teacher=ngram").folders[0].is_dir()


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
    one, two = (package.load(folder).probabilities([texts[row["id"]] for row in rows]) for folder in facts["packages"])
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
    plan = composed("teacher=ngram", f"teacher.recipe={NGRAM}", "teacher.folds=3", "student=ngram", "threads=1")
    context = Context()
    store = context.store
    data = open_data(plan, context).prepare()
    assert plan.teacher is not None
    found = obtain_teacher(plan.teacher, context, run_plan)
    answers = obtain_knowledge(plan, found, data, context, live=False, token_level=False)
    assert (answers.training.signature.fields, found.facts["mode"]) == ({"logits"}, "recorded")
    assert len(set(found.facts["packages"])) == len(found.facts["members_validation_accuracy"]) == 3

    whole = split(data.corpus, validation=40)
    seen = []
    for folder in map(Path, found.facts["packages"]):
        carving = json.loads((folder.parent / "run.json").read_text())["settings"]["data"]
        part = split(data.corpus, validation=carving["validation"], leave_out=carving["leave_out"])
        assert np.array_equal(part.validation, whole.validation)
        assert not np.isin(np.concatenate([whole.validation, whole.test]), part.train).any()
        seen.append(np.isin(whole.train, part.train))
        counts = json.loads((folder.parent / "run.json").read_text())["data"]["counts"]
        assert (counts["train"], counts["validation"]) == (len(part.train), 40)
    assert (np.sum(seen, axis=0) == 2).all()  # of three

    def said(rows: np.ndarray) -> np.ndarray:
        texts = [text for chunk in data.corpus.texts(rows) for text in chunk]
        return np.stack([package.load(folder).probabilities(texts) for folder in found.folders])

    answer = logits_of(answers.training, data, whole.train).softmax(1).numpy()
    each = said(whole.train)
    np.testing.assert_allclose(answer, each[np.argmin(seen, axis=0), np.arange(len(whole.train))], atol=1e-5)
    assert np.abs(answer - each.mean(0)).max() > 0.01  # and not by the mean
    for rows in (whole.validation, whole.test):
        answer = logits_of(answers.evaluation, data, rows).softmax(1).numpy()
        np.testing.assert_allclose(answer, said(rows).mean(0), atol=1e-5)

    # What no model needs to be asked about was not paid for: every training row once, the others three times.
    paid = sum(len(np.load(file)) for file in store.root.glob("knowledge/*/digests.npy"))
    texts = {
        name: len(np.unique(data.corpus.digests(getattr(whole, name)))) for name in ("train", "validation", "test")
    }
    assert paid == texts["train"] + 3 * texts["validation"] + 3 * texts["test"]


def test_folds_in_processes_of_their_own_are_the_same(tmp_path: Path) -> None:
    given = ("teacher=ngram", f"teacher.recipe={NGRAM}", "teacher.folds=2", "threads=1")
    one = obtain(run_plan, *given).facts["fingerprint"]
    store = Store(tmp_path / "other")
    two = obtain(run_plan, *given, "teacher.jobs=2", store=store)
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
    student = ("student=ngram", "student.solver.method=none", "student.training.learning_rate=0.05")
    given = ("strategy=self", "strategy.weights={label: 0, soft_label: 1}", *student)
    facts = run(tmp_path / "one", *given)
    assert [link["name"] for link in facts["chain"]] == ["ngram generation 0", "ngram generation 1"]
    (last,) = facts["packages"]
    assert facts["fingerprint"] == facts["chain"][1]["fingerprint"] == package.fingerprint(Path(last))
    logits, label, ids = told(tmp_path / "one", "validation")
    texts = {row.id: row.text for row in Reviews(train=240, test=40, unlabelled=0).rows()}
    expected = package.load(Path(last)).probabilities([texts[row] for row in ids])
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
        (
            ["strategy=supervised", "selection.stop_after=0"],
            "selection.stop_after: a whole number of at least 1, or null, not 0",
        ),
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
