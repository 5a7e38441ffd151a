"""Equal settings are one run however they were typed; different ones are two."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir

from kdresearch.bench.context import Context
from kdresearch.bench.identity import comparable, differences, flat, identity, method, normalised, settings
from kdresearch.bench.settings import resolve_settings
from kdresearch.commands.compose import compose_overrides, plan_of
from kdresearch.conf_path import config_dir

ROWS = "data.rows={train: 60, test: 20, unlabelled: 10}"
TEXTS = ("strategy=generative", "generator=texts", "teacher=ngram")


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDRESEARCH_HOME", str(tmp_path_factory.getbasetemp() / "identity-home"))


def resolved(*overrides: str, search: Path | None = None) -> dict[str, Any]:
    path = [f"hydra.searchpath=[file://{search}]"] if search else []
    with initialize_config_dir(config_dir(), version_base="1.3"):
        plan = plan_of(compose_overrides(["student=textcnn", ROWS, *overrides], path))
    return resolve_settings(plan, Context())


@pytest.mark.parametrize(
    "typed",
    [
        ["student.training.min_epochs=6", "student.training.epochs=null"],
        ["optimizer.lr=0.002", "student.training.learning_rate=2e-3"],
        ["student.training.weight_decay=0"],
        ["trainer.gradient_clip_val=1", "data.limit=null"],
        ["trainer.precision=32", "trainer=cpu", "+trainer.profiler=simple", "trainer.log_every_n_steps=1"],
        ["name=other", "threads=1", "logger=none", "study=else", "evaluation.efficiency=false", "telemetry_every=5"],
        ["strategy.temperature=2", "strategy.weights={label: 0.50, soft_label: 0.5}"],
        ["teacher.mode=live", "teacher.batch_size=3", "teacher.precision=32"],
        ["start.layers=first"],  # of no start
    ],
)
def test_the_same_settings_typed_otherwise_are_one_run(typed: list[str]) -> None:
    usual = resolved("strategy=soft_label", "teacher=ngram")
    assert identity(resolved("strategy=soft_label", "teacher=ngram", *typed)) == identity(usual)


def test_an_exact_length_is_one_wherever_it_is_typed() -> None:
    by_student, by_trainer = (resolved(f"{name}=6") for name in ("student.training.epochs", "trainer.max_epochs"))
    assert identity(by_student) == identity(by_trainer) != identity(resolved())
    assert identity(resolved("student.training.learning_rate=0.5")) == identity(resolved("optimizer.lr=0.5"))


@pytest.mark.parametrize(
    "typed",
    [
        ["student.training.epochs=7"],
        ["data.limit=20"],
        ["strategy.temperature=3"],
        ["teacher.temperature=fit"],
        ["teacher=textcnn"],
        ["teacher.epochs=2"],
        ["optimizer=sgd"],
        ["trainer.gradient_clip_val=0.5"],
        ["+trainer.limit_train_batches=2"],
        ["selection.monitor=val/nll"],
        ["data.transfer=unlabelled"],
        ["data.seed=3"],
    ],
)
def test_other_settings_are_another_method(typed: list[str]) -> None:
    usual = resolved("strategy=soft_label", "teacher=ngram")
    changed = resolved("strategy=soft_label", "teacher=ngram", *typed)
    assert method(changed) != method(usual) and identity(changed) != identity(usual)


def test_seeds_make_replicates_of_one_method_the_teachers_among_them() -> None:
    usual = resolved("strategy=soft_label", "teacher=ngram")
    for typed in ("seed=3", "seeds.init=4", "seeds.teacher=1"):
        replicate = resolved("strategy=soft_label", "teacher=ngram", typed)
        assert identity(replicate) != identity(usual) and method(replicate) == method(usual)


def test_a_student_alone_has_no_teacher_whatever_is_configured() -> None:
    assert identity(resolved("teacher=textcnn")) == identity(resolved("teacher=none"))


def test_a_file_of_texts_is_its_content(tmp_path: Path) -> None:
    for name, content in (("a", "one\ntwo\n"), ("b", "one\nthree\n"), ("copy", "one\ntwo\n")):
        (tmp_path / f"{name}.txt").write_text(content)
    one, two, same = (resolved(*TEXTS, f"generator.path={tmp_path / name}.txt") for name in ("a", "b", "copy"))
    assert method(one) != method(two)
    assert identity(one) == identity(same)


def test_an_edited_option_file_is_another_method_and_a_key_left_out_is_its_default(tmp_path: Path) -> None:
    file = tmp_path / "strategy" / "mine.yaml"
    file.parent.mkdir()
    target = "_target_: kdresearch.strategies.soft_label.SoftLabelDistiller\n_partial_: true\n"
    text = f"{target}weights: {{label: 0.5, soft_label: 0.5}}\n"
    found = []
    for temperature in ("", "temperature: 2.0\n", "temperature: 3.0\n"):
        file.write_text(text + temperature)
        found.append(resolved("strategy=mine", "teacher=ngram", search=tmp_path))
    left_out, typed, edited = map(method, found)
    assert left_out == typed != edited
    assert typed == method(resolved("strategy=soft_label", "teacher=ngram"))


def test_teachers_of_other_data_are_other_teachers() -> None:
    teachers = [resolved("strategy=soft_label", "teacher=ngram", f"data.limit={n}")["teacher"] for n in (10, 20)]
    assert differences(*teachers) == {"recipe.data.limit": (10, 20)}


def test_numbers_nulls_and_orders_are_normal() -> None:
    assert normalised({"b": 2.0, "a": (1, None), "c": None, 3: True}) == {"b": 2, "a": [1, None], "3": True}
    assert normalised(True) is True
    assert flat({"a": {"b": 1}, "c": [1, 2], "d": [{"e": 3}], "f": {}}) == {
        "a.b": 1, "c": [1, 2], "d.0.e": 3,
    }  # fmt: skip


def test_what_is_compared_leaves_out_what_only_a_teacher_uses() -> None:
    def plain(strategy: dict[str, Any], **more: Any) -> dict[str, Any]:
        data = {"source": {"path": "/here"}, "path": "/here", "limit": 5, **more.pop("data", {})}
        student = {"training": {"epochs": 3, "learning_rate": 0.1}}
        config = {"data": data, "student": student, "strategy": strategy, "seeds": {"init": 1}}
        return settings(copy.deepcopy(config), content="rows", **more)

    alone = plain({"_target_": "a", "label_smoothing": 0.0, "weights": {"label": 1}})
    taught = plain(
        {"_target_": "b", "label_smoothing": 0, "temperature": 2, "weights": {}},
        teacher={"package": "x"},
        data={"transfer": "unlabelled"},
    )
    assert alone["data"] == {"content": "rows", "limit": 5}  # not where they lie
    assert differences(comparable(taught, alone), comparable(alone, taught)) == {}
    smooth = plain({"_target_": "a", "label_smoothing": 0.1})
    assert differences(comparable(taught, smooth), comparable(smooth, taught)) == {"strategy.label_smoothing": (0, 0.1)}
