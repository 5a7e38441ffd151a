from __future__ import annotations

from collections.abc import Iterator

import pytest
from hydra import initialize_config_dir

from kdresearch.bench.bounds import check_bounds
from kdresearch.commands.compose import compose_overrides, plan_of
from kdresearch.conf_path import config_dir
from kdresearch.errors import UserError


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        yield


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-5", "seeds.init: a whole number from 0 to 4294967295, not -5"),
        ("seed=4294967296", "seeds.init: a whole number from 0 to 4294967295"),
        ("seeds.order=abc", "seeds.order: a whole number .* not 'abc'"),
        ("threads=0", "threads: a whole number from 1 to 1024, or null, not 0"),
        ("threads=nan", "threads: a whole number"),
        ("student.training.epochs=abc", "student.training.epochs: a whole number"),
        ("student.training.batch_size=0", "student.training.batch_size: a whole number of at least 1, not 0"),
        ("student.training.learning_rate=-1", "student.training.learning_rate: a number of at least 0, not -1"),
        ("student.training.head_lr_scale=0", "student.training.head_lr_scale: a number above 0, not 0"),
        ("trainer.max_epochs=2.5", "trainer.max_epochs: a whole number"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0 trains nothing"),
        ("trainer.accumulate_grad_batches=''", "trainer.accumulate_grad_batches: a whole number"),
        ("+trainer.limit_train_batches=0", "trainer.limit_train_batches=0 trains nothing"),
        ("+trainer.fast_dev_run=true", "fast_dev_run leaves no result"),
        ("selection.patience=abc", "selection.patience: a whole number"),
        ("checkpoint_every=inf", "checkpoint_every: a whole number"),
        ("data.validation=nan", "data.validation: a number above 0"),
        ("data.folds=1e21", "data.folds: a whole number"),
        ("data.limit=[1,2]", "data.limit: a whole number"),
        ("data.transfer_share=abc", "data.transfer_share: a number above 0"),
    ],
)
def test_numbers_out_of_bounds_are_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_bounds(plan_of(compose_overrides([override])))


@pytest.mark.parametrize(
    "overrides",
    [(), ("student=pretrained", "student.path=x"), ("trainer.max_steps=5",), ("data.folds=5", "data.fold=0")],
)
def test_usual_plans_pass(overrides: tuple[str, ...]) -> None:
    check_bounds(plan_of(compose_overrides(list(overrides))))
