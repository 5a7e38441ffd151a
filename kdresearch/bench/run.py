"""A run from its plan to its record: a handful of phases, each made of what the ones before it gave."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger

from kdresearch import __version__, package
from kdresearch.bench.bounds import check_bounds
from kdresearch.bench.build import build_model, build_strategy, check_length, check_unlabelled, look_at_data
from kdresearch.bench.checkpoints import progress
from kdresearch.bench.contents import CHECKPOINTS, FINISHED
from kdresearch.bench.context import Context, prepare_process
from kdresearch.bench.data import describe_data, open_data, weigh_classes
from kdresearch.bench.evaluate import Scores, evaluate, measure_cost
from kdresearch.bench.fit import Fitted, check_training, fit
from kdresearch.bench.interrupt import Interrupted, full_disk_refused, interruptible
from kdresearch.bench.knowledge import Knowledge, obtain_knowledge
from kdresearch.bench.lock import hold
from kdresearch.bench.loggers import CurveLogger
from kdresearch.bench.plan import Plan
from kdresearch.bench.record import Record
from kdresearch.bench.room import bytes_of
from kdresearch.bench.samples import add_samples, filter_by_teacher
from kdresearch.bench.schema import METRICS, PREDICTIONS, write_json, write_predictions
from kdresearch.bench.settings import resolve_settings
from kdresearch.bench.solve import build_solver, solve
from kdresearch.bench.start import check_start, start_student
from kdresearch.bench.teacher import TeacherPackages, check_sources, check_teacher, obtain_teacher, promise_teacher
from kdresearch.data.account import account_lines
from kdresearch.data.datamodule import TextDataModule
from kdresearch.errors import Diverged, UserError
from kdresearch.evaluation.efficiency import directory_bytes, parameters
from kdresearch.evaluation.task import CLASSIFICATION
from kdresearch.models.solver import Solver
from kdresearch.objectives.objective import join_extracts
from kdresearch.strategies.distiller import Distiller
from kdresearch.structures import LOGITS, RECORDED, SAME, Batch, Extract, Outputs, Signature, Teacher

MakeLoggers = Callable[[Record], list[Logger]]
"""Further places where curves go, beside metrics.csv in the run's folder."""


@dataclass(frozen=True)
class Checked:
    """What is known of a run before anything is paid for."""

    needs: dict[str, Extract]  # fields of the teacher, and how much of each
    live: bool  # whether it runs beside the student
    token_level: bool  # whether its tokens are compared with the student's
    filtered: bool  # whether it filters the pseudo-samples
    solver: Solver | None  # what solves the student, where that can be


def run(
    plan: Plan,
    folder: Path,
    context: Context | None = None,
    make_loggers: MakeLoggers = lambda record: [],
    tuning: dict[str, Any] | None = None,
) -> Record:
    """Train and evaluate one plan; ``folder`` then holds its whole record.

    Args:
        make_loggers: of further places for the curves.
        tuning: for the record, how the plan's settings were chosen.

    Raises:
        UserError: whatever cannot be; told before compute is spent where that can be known.
    """
    context = context or Context()
    check_bounds(plan)
    bytes_of(context.store_limit)  # refuses
    prepare_process(plan)
    check_training(plan)
    if plan.teacher is not None:
        check_teacher(plan.teacher)
        check_sources(plan.teacher)
    with interruptible() as outermost, hold(folder), full_disk_refused(folder):
        record = Record(plan, folder, list(plan.overrides) or sys.argv[1:])  # a launcher's worker has its own argv
        if tuning is not None:
            record.facts["tuning"] = tuning
        try:
            ran = _run(plan, record, context, make_loggers)
        except BaseException as error:
            _leave(record, error, context if outermost else Context())
            raise
        if ran:
            record.write(status=FINISHED)
    return record


def _leave(record: Record, error: BaseException, context: Context) -> None:
    """Say what remains of a run that ended by this, in its record and, where a signal ended it, in a line."""
    record.facts["reason"] = (str(error).splitlines() or [type(error).__name__])[0]
    with suppress(OSError):  # on a full disk the record stays as it was
        record.write(status=status_of(error))
    if isinstance(error, Interrupted):
        kept = progress(record.draft / CHECKPOINTS)
        when = "before its first checkpoint" if kept is None else f"after epoch {kept[0]} (update {kept[1]:,})"
        context.say(f"{record.name}: interrupted {when}: the same command goes on from there")


def status_of(error: BaseException) -> str:
    """What a record says of a run that ended by this."""
    if isinstance(error, Diverged):
        return "diverged"
    ends = (Interrupted, KeyboardInterrupt, SystemExit)
    return "interrupted" if isinstance(error, ends) else "failed"


def _run(plan: Plan, record: Record, context: Context, make_loggers: MakeLoggers) -> bool:
    """Go through the phases; False where the folder has the finished record of this very run."""
    phases = record.phases
    with phases("data"):
        settings = resolve_settings(plan, context)
        if record.adopt(settings, context.say):
            context.say(f"{summary(record, CLASSIFICATION.headline)}: already finished (resume=false does it again)")
            return False
        data = prepare_data(plan, record, context)
    checked = check_signatures(plan, data, context)
    record.identify(settings)
    with phases("generate", plan.samples is not None):
        make_pseudo_samples(plan, data, record, context)
    with phases("teacher", plan.teacher is not None):
        packages = find_teacher(plan, record, context)
    with phases("knowledge", plan.teacher is not None):
        knowledge = record_knowledge(plan, packages, data, checked, record, context)
    with phases("student"):
        module = build_student(plan, packages, knowledge, data, checked, context)
    with phases("fit"):
        fitted = train(plan, module, data, checked, record, make_loggers, context)
    record.facts |= {"updates": fitted.updates, "best_epoch": fitted.best_epoch}
    with phases("evaluate"):
        scores = evaluate(plan, module, data, knowledge)
        write_results(plan, module, data, scores, record, context)
    return True


def prepare_data(plan: Plan, record: Record, context: Context) -> TextDataModule:
    """Read, carve and encode the rows, and say what was done to them."""
    data = open_data(plan, context).prepare()
    facts = record.facts["data"] = describe_data(data)
    context.say(f"{record.name}: " + ", ".join(f"{n:,} {name}" for name, n in facts["counts"].items() if n))
    for line in account_lines(facts, plan.data.carving.get("conflicts", "first")):
        context.say(line)
    if (weights := weigh_classes(plan, data)) is not None:
        record.facts["class_weights"] = dict(zip(data.classes, weights, strict=True))
    return data


def check_signatures(plan: Plan, data: TextDataModule, context: Context) -> Checked:
    """Build everything once around a teacher that is only promised: what cannot be is refused before it is paid for."""
    signature: Signature | None = None
    reading = SAME
    if plan.teacher is not None:
        signature, reading = promise_teacher(plan, data.tokenizer, data.classes, context)
    student = build_model(plan, data)
    module = build_strategy(plan, student, data, None if signature is None else Promise(signature), reading)
    check_start(plan, student, data)
    check_length(student, data)
    data.least_labelled = module.labelled_share
    solver = build_solver(plan, module, data, context)
    filtered = check_unlabelled(plan, module, data)
    live = plan.teacher is not None and (plan.teacher.mode == "live" or not module.teacher_needs <= RECORDED)
    needs = join_extracts(module.objectives.values())  # type: ignore[arg-type]
    return Checked(needs, live, module.compares_tokens, filtered, solver)


@dataclass(frozen=True)
class Promise:
    """A teacher that is not there yet: its signature stands for it."""

    signature: Signature

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        raise NotImplementedError

    def look_at(self, inputs: Any) -> None:
        """Nothing: its signature is known."""

    def to(self, device: torch.device | str) -> Teacher:
        return self


def make_pseudo_samples(plan: Plan, data: TextDataModule, record: Record, context: Context) -> None:
    """Add the generator's samples to what is trained on."""
    if plan.samples is not None:
        record.facts["generation"] = add_samples(plan, plan.samples, data, context)


def find_teacher(plan: Plan, record: Record, context: Context) -> TeacherPackages | None:
    """The teacher's packages, trained where the store lacks them; None without a teacher."""
    if plan.teacher is None:
        return None
    packages = obtain_teacher(plan.teacher, context, run)
    prepare_process(plan)  # training one may have changed it
    record.facts["teacher"] = packages.facts
    return packages


def record_knowledge(
    plan: Plan,
    packages: TeacherPackages | None,
    data: TextDataModule,
    checked: Checked,
    record: Record,
    context: Context,
) -> Knowledge | None:
    """What the teacher says of the rows; None where nothing in the training asks it."""
    if packages is None or not checked.needs:
        return None

    def obtain(live: bool) -> Knowledge:
        try:
            return obtain_knowledge(
                plan, packages, data, context, live=live, token_level=checked.token_level, needs=checked.needs
            )
        except UserError:
            raise
        except ValueError as error:  # of metrics of what is no number
            raise UserError(f"the teacher {packages.name} cannot teach: {error}") from error

    knowledge = obtain(live=checked.live and not checked.filtered)
    if checked.filtered:
        assert plan.samples is not None
        filter_by_teacher(plan.samples, data, knowledge.evaluation, record.facts["generation"], context)
        knowledge = obtain(live=True) if checked.live else knowledge
    if plan.samples is not None:
        record.facts["data"]["counts"]["generated"] = len(data.split.generated)
    return knowledge


def build_student(
    plan: Plan,
    packages: TeacherPackages | None,
    knowledge: Knowledge | None,
    data: TextDataModule,
    checked: Checked,
    context: Context,
) -> Distiller:
    """The student as it starts, in the strategy that trains it."""
    pl.seed_everything(plan.seeds.init, workers=True, verbose=False)
    student = build_model(plan, data)
    look_at_data(student, data, solved=checked.solver is not None)
    if plan.start.source is not None:
        assert packages is not None
        start_student(plan, student, data, packages.folders[0], context)
    teacher, reading = (None, SAME) if knowledge is None else (knowledge.training, knowledge.reading)
    module = build_strategy(plan, student, data, teacher, reading)
    for peer in module.peer_models:
        look_at_data(peer, data)  # type: ignore[arg-type]
    return module


def train(
    plan: Plan,
    module: Distiller,
    data: TextDataModule,
    checked: Checked,
    record: Record,
    make_loggers: MakeLoggers,
    context: Context,
) -> Fitted:
    """Fit the student, or solve it, with its curves in metrics.csv and wherever else."""
    resumed = None if checked.solver is not None else record.checkpoint_to_resume(context.say)
    record.loggers = [CurveLogger(record.draft, resumed), *make_loggers(record)]
    record.write(status="running")
    if checked.solver is not None:
        return solve(plan, checked.solver, module, data, record, context)
    return fit(plan, module, data, record.draft, record.loggers, resumed, context)


def write_results(
    plan: Plan, module: Distiller, data: TextDataModule, scores: Scores, record: Record, context: Context
) -> None:
    """Predictions, the student's package, metrics."""
    folder, facts = record.draft, record.facts
    write_predictions(folder / PREDICTIONS, scores.predictions)
    if facts["teacher"] is not None and module.teacher is not None:
        _compare_teacher(record, scores.metrics, module.task.headline, context)
    if scores.members is not None:
        facts["teacher"]["members_test_accuracy"] = scores.members
    student = module.student.cpu().eval()
    shutil.rmtree(folder / "student", ignore_errors=True)
    origin = {"run": record.name, "data": facts["data"], "teacher": facts["teacher"], "kdresearch": __version__}
    package.save(folder / "student", student, data.tokenizer, data.classes, origin)
    sizes = parameters(student)
    facts["student"] = {
        "parameters": sizes["total"],
        "parameters_without_embeddings": sizes["without_embeddings"],
        "bytes": directory_bytes(folder / "student"),
        "fingerprint": package.fingerprint(folder / "student"),
    }
    record.metrics = scores.metrics | measure_cost(plan, student, data)
    write_json(folder / METRICS, record.metrics)
    record.log_metrics()
    context.say(f"{summary(record, module.task.headline)}, {sizes['total']:,} parameters -> {record.folder}")


def summary(record: Record, headline: str) -> str:
    """The run's main score, and its teacher's, in a line."""
    metrics = record.metrics
    part = "test" if f"test/{headline}" in metrics else "val"
    line = f"{record.name}: {'test' if part == 'test' else 'validation'} {headline} {metrics[f'{part}/{headline}']:.4f}"
    if f"{part}/agreement" in metrics:
        teacher, agreement = metrics[f"teacher/{part}_{headline}"], metrics[f"{part}/agreement"]
        line += f" (teacher {teacher:.4f}, agreement {agreement:.4f})"
    return line


def _compare_teacher(record: Record, metrics: dict[str, float], headline: str, context: Context) -> None:
    """Record, and say, whether the student answers the validation rows better than what taught it."""
    teacher, student = metrics[f"teacher/val_{headline}"], metrics[f"val/{headline}"]
    record.facts["teacher"]["below_student"] = below = teacher < student
    if below:
        context.say(
            f"WARNING: the teacher is below its student: validation {headline} {teacher:.4f} against {student:.4f}; "
            "what the student gains by it is no gain in what the teacher knows"
        )
