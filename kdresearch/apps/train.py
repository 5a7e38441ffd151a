"""``kdresearch train``: one configuration, one run, one complete record."""

from __future__ import annotations

import gc
import os
import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import lightning.pytorch as pl
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint, RichProgressBar
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdresearch import __version__, package
from kdresearch.apps import pseudo_samples, solve, start
from kdresearch.apps import teacher as teachers
from kdresearch.apps.budget import Budget, check_budget, limits
from kdresearch.apps.config import build, plain
from kdresearch.apps.loggers import close_wandb, make_loggers
from kdresearch.apps.recipes import CARVING
from kdresearch.apps.record import Chosen, Record, needs_teacher, write_json, write_predictions
from kdresearch.apps.resume import LastCheckpoint, RandomState, StopAfter
from kdresearch.apps.say import progress, say
from kdresearch.apps.teacher_settings import settings_of
from kdresearch.artifacts import Store
from kdresearch.conf_path import config_dir
from kdresearch.data.account import account, account_lines, class_weights
from kdresearch.data.datamodule import TextDataModule
from kdresearch.errors import Diverged, UserError, choices
from kdresearch.evaluation.efficiency import directory_bytes, efficiency, parameters
from kdresearch.evaluation.metrics import fidelity_metrics, task_metrics
from kdresearch.strategies.distiller import VALIDATION_METRICS, Distiller
from kdresearch.strategies.generative import GenerativeDistiller
from kdresearch.structures import RECORDED, SAME, Model, Reading, Teacher


def run(cfg: DictConfig, folder: Path, chosen: Chosen, tuning: dict[str, Any] | None = None) -> dict[str, float]:
    """Train and evaluate one configuration; ``folder`` then holds its whole record.

    Args:
        chosen: the options and overrides that the configuration was composed from.
        tuning: for the record, how its settings were chosen.

    Returns:
        The content of ``metrics.json``.
    """
    environment(cfg)
    check(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(cfg, folder, chosen)
    if tuning is not None:
        record.facts["tuning"] = tuning
    try:
        metrics = _run(cfg, folder, chosen, record)
    except BaseException as error:
        record.write(status=_status(error))
        close_wandb(failed=True)
        raise
    record.write(status="finished")
    close_wandb()
    return metrics


def _status(error: BaseException) -> str:
    if isinstance(error, Diverged):
        return "diverged"
    return "interrupted" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "failed"


def _run(cfg: DictConfig, folder: Path, chosen: Chosen, record: Record) -> dict[str, float]:
    phases, store = record.phases, Store()
    with phases("data"):
        data = rows_of(cfg, store).prepare()
    record.facts["data"] = _data_facts(data)
    counts = record.facts["data"]["counts"]
    say(f"{record.name}: " + ", ".join(f"{number:,} {name}" for name, number in counts.items() if number))
    for line in account_lines(record.facts["data"], data.carve.get("conflicts", "first")):
        say(line)
    if (weights := _class_weights(cfg, data)) is not None:
        record.facts["class_weights"] = dict(zip(data.classes, weights, strict=True))

    # Once with a teacher that is only promised: what the strategy refuses is refused before a real one is paid for.
    teaches, generates = needs_teacher(cfg), pseudo_samples.asked(cfg)
    asked = pseudo_samples.without(cfg)
    promised, reading = teachers.promise(asked, chosen, store, data) if teaches else (None, SAME)
    planned = _strategy(cfg, student := _student(cfg, data), data, promised, reading)
    start.check(cfg, student, data)
    data.least_labelled = planned.labelled_share
    solver = solve.solver_of(cfg, chosen, planned, data)
    judged = _check_unlabelled(cfg, chosen, data, planned, teaches)
    record.identify(settings_of(cfg, chosen, store))
    answers: teachers.Answers | None = None
    device = device_of(cfg)
    if generates:
        with phases("generate"):
            record.facts["generation"] = pseudo_samples.add(cfg, data, store, device)
    if teaches or cfg.start["from"] is not None:
        with phases("teacher"):
            found = teachers.find(asked, chosen, store, run)
            environment(cfg)
        record.facts["teacher"] = found.facts
    if teaches:
        with phases("knowledge"):
            live = cfg.teacher.mode == "live" or not planned.teacher_needs <= RECORDED
            ask = partial(
                teachers.answer,
                cfg,
                found,
                data,
                store,
                device,
                token_level=planned.compares_tokens,
                needs=planned.teacher_needs,
            )
            answers = ask(live=live and not judged)
            if judged:
                pseudo_samples.judge(cfg, data, answers.evaluation, record.facts["generation"])
                answers = ask(live=True) if live else answers
        record.facts["teacher"] = found.facts
    if generates:
        counts["generated"] = len(data.split.generated)

    pl.seed_everything(cfg.seeds.init, workers=True, verbose=False)
    student = _student(cfg, data)
    with phases("data"):
        _look_at_data(student, data, solved=solver is not None)
    if cfg.start["from"] is not None:
        with phases("knowledge"):
            start.begin(cfg, student, data, found.folders[0], store)
    module = _strategy(cfg, student, data, *((answers.training, answers.reading) if answers else (None, SAME)))
    for peer in getattr(module, "peers", ()):
        _look_at_data(peer, data)
    with phases("fit"):
        if solver is None:
            updates, best_epoch = _fit(cfg, folder, module, data, record)
        else:
            _open_loggers(cfg, folder, module, data, record)
            updates, best_epoch = solve.solve(cfg, solver, folder, module, data, record)
    record.facts |= {"updates": updates, "best_epoch": best_epoch}
    with phases("evaluate"):
        return _evaluate(cfg, folder, module, data, answers.evaluation if answers else None, record)


def device_of(cfg: DictConfig) -> str:
    """Where teachers and generators run beside the trainer."""
    return "cuda" if cfg.trainer.accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def _student(cfg: DictConfig, data: TextDataModule) -> Model:
    sizes = {"vocabulary": data.tokenizer.size, "classes": len(data.classes)}
    student: Model = build(cfg.student.model, "student.model", **sizes)
    return student


def _strategy(
    cfg: DictConfig, student: Model, data: TextDataModule, answer: Teacher | None, reading: Reading
) -> Distiller:
    optimizer, scheduler = build(cfg.optimizer, "optimizer"), build(cfg.scheduler, "scheduler")
    made = build(cfg.optimizer, "optimizer", params=[torch.nn.Parameter(torch.zeros(1))])  # both refuse early
    build(cfg.scheduler, "scheduler", optimizer=made, total=1)
    module: Distiller = build(
        cfg.strategy,
        "strategy",
        student=student,
        classes=data.classes,
        teacher=answer,
        optimizer=optimizer,
        scheduler=scheduler,
        head_lr_scale=cfg.student.training.head_lr_scale,
        reading=reading,
        batch_size=cfg.student.training.batch_size,
        telemetry_every=cfg.telemetry_every,
        class_weights=_class_weights(cfg, data),
    )
    return module


def _class_weights(cfg: DictConfig, data: TextDataModule) -> list[float] | None:
    setting = plain(cfg.student.training.get("class_weights"))
    counts = np.bincount(data.labels[data.split.train], minlength=len(data.classes))
    return None if setting is None else class_weights(setting, data.classes, counts)


def _check_unlabelled(cfg: DictConfig, chosen: Chosen, data: TextDataModule, planned: Distiller, teaches: bool) -> bool:
    """Refuse rows without labels where they teach nothing; whether pseudo-samples are to be judged by the teacher."""
    generator = chosen.options["generator"]
    given = {"data.transfer": cfg.data.transfer if len(data.split.transfer) else "none", "generator": generator}
    given = {name: option for name, option in given.items() if option != "none"}
    if given and not planned.learns_from_unlabelled:
        raise UserError(
            f"{' and '.join(f'{name}={option}' for name, option in given.items())} adds rows without labels, and "
            f"{type(planned).__name__} learns from labels only: choose a strategy with a teacher, or "
            f"{' '.join(f'{name}=none' for name in given)}"
        )
    if not pseudo_samples.asked(cfg):
        if isinstance(planned, GenerativeDistiller) and not given:
            raise UserError(
                f"strategy={chosen.options['strategy']} learns from rows without labels, and generator={generator} "
                "makes none: choose one with generator=NAME, or the data's own with data.transfer=unlabelled"
            )
        data.mixture(0)  # refuses
        return False
    judged = pseudo_samples.made_of(cfg)[1].ask_teacher
    if judged and not teaches:
        raise UserError(
            f"generator.filters: confidence and entropy are a teacher's, and strategy={chosen.options['strategy']} "
            "has none"
        )
    return judged


def check(cfg: DictConfig) -> None:
    if missing := _missing(OmegaConf.to_container(cfg, resolve=False)):
        raise UserError("still to be given: " + ", ".join(f"{name}=..." for name in missing))
    if str(cfg.trainer.precision).startswith("16") and cfg.trainer.accelerator == "cpu":
        raise UserError("trainer.precision=16-mixed needs a GPU: on a CPU use 32-true or bf16-mixed")
    if cfg.selection.mode not in ("min", "max"):
        raise UserError(f"selection.mode: {choices(cfg.selection.mode, ('min', 'max'))}")
    if cfg.selection.stop_after is not None and cfg.selection.stop_after < 1:
        raise UserError(f"selection.stop_after must be at least 1, not {cfg.selection.stop_after}")
    if cfg.selection.monitor not in VALIDATION_METRICS:
        raise UserError(f"selection.monitor: {choices(cfg.selection.monitor, VALIDATION_METRICS)}")
    if cfg.selection.mode != (best := VALIDATION_METRICS[cfg.selection.monitor]):
        raise UserError(
            f"selection.mode={cfg.selection.mode} would keep the worst epoch: {cfg.selection.monitor} takes "
            f"selection.mode={best}"
        )
    check_budget(cfg)
    _trainer(cfg, logger=False, enable_checkpointing=False, enable_progress_bar=False)  # refuses what it cannot do


def _trainer(cfg: DictConfig, **arguments: Any) -> pl.Trainer:
    fixed = {"use_distributed_sampler": False, "num_sanity_val_steps": 0, "enable_model_summary": False}
    try:
        return pl.Trainer(**(fixed | plain(cfg.trainer) | limits(cfg) | arguments))
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"trainer: {error}") from error


def _missing(node: Any, path: str = "") -> list[str]:
    """Paths of the values that are still ``???``."""
    if isinstance(node, dict):
        return [name for key, each in node.items() for name in _missing(each, f"{path}.{key}" if path else str(key))]
    return [path] if node == "???" else []


def environment(cfg: DictConfig) -> None:
    if cfg.threads is not None:
        torch.set_num_threads(int(cfg.threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    torch.set_float32_matmul_precision("high")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*You're resuming from a checkpoint that ended.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*custom batch sampler.*")
    import logging

    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero", "torchtext.vocab"):
        logging.getLogger(name).setLevel(logging.WARNING)


def rows_of(cfg: DictConfig, store: Store) -> TextDataModule:
    return TextDataModule(
        build(cfg.data.source, "data"),
        build(cfg.student.tokenizer, "student.tokenizer"),
        store=store,
        transfer_share=cfg.data.transfer_share,
        split_seed=cfg.seeds.split,
        order_seed=cfg.seeds.order,
        batch_size=cfg.student.training.batch_size,
        say=say,
        **{name: plain(cfg.data[name]) for name in CARVING if name in cfg.data},
    )


def _data_facts(data: TextDataModule) -> dict[str, Any]:
    split = data.split
    return {
        "name": data.corpus.name,
        "synthetic": data.corpus.synthetic,
        "classes": list(data.classes),
        "fingerprint": data.corpus.fingerprint,
        "counts": {
            "train": len(split.train),
            "transfer": len(split.transfer),
            "validation": len(split.validation),
            "test": len(split.test),
        },
        "duplicates_dropped": split.dropped,
        **account(data.corpus, split, getattr(data.source, "label_changes", {})),
    }


def _look_at_data(student: Any, data: TextDataModule, *, solved: bool = False) -> None:
    """What a model wants to see before it is trained: n-gram counts, word vectors."""
    if hasattr(student, "prepare") and not solved:
        student.prepare(data.training_batches())
    vectors = data.tokenizer.vectors() if hasattr(data.tokenizer, "vectors") else None
    if vectors is not None:
        if not hasattr(student, "load_vectors"):
            raise UserError(
                f"student.tokenizer.vectors: {type(student).__name__} has no word embeddings to load them into"
            )
        student.load_vectors(*vectors)


def _open_loggers(
    cfg: DictConfig,
    folder: Path,
    module: Distiller,
    data: TextDataModule,
    record: Record,
    resumed: Path | None = None,
) -> None:
    labels = {
        "name": record.name,
        "study": cfg.study,
        "group": record.group,
        "job_type": "distill" if module.teacher is not None else "train",
        "tags": [data.corpus.name, str(record.facts["cell"]["strategy"]), *cfg.tags],
    }
    config = {
        **plain(cfg),
        "cell": record.facts["cell"],
        "lineage": {"data": record.facts["data"], "teacher": record.facts["teacher"]}
        | ({"generation": record.facts["generation"]} if "generation" in record.facts else {}),
    }
    record.loggers = make_loggers(plain(cfg.logger), folder, labels, config, resumed)


def _fit(cfg: DictConfig, folder: Path, module: Distiller, data: TextDataModule, record: Record) -> tuple[int, int]:
    checkpoints = folder / "checkpoints"
    resumed = record.checkpoint_to_resume()
    keep: dict[str, Any] = {"dirpath": checkpoints, "enable_version_counter": False}
    monitor, mode = cfg.selection.monitor, cfg.selection.mode
    if cfg.selection.stop_after is not None:
        monitor, mode = "epoch", "max"  # the last one is the best
    best = ModelCheckpoint(filename="best", monitor=monitor, mode=mode, **keep)
    last = LastCheckpoint(every_n_train_steps=cfg.checkpoint_every, **keep)
    bar = progress()
    unlabelled = float((data.mixture(0) >= len(data.split.train)).mean())
    budget = Budget.of(cfg, unlabelled)
    callbacks: list[Callback] = [budget, best, last, RandomState(), bar, LearningRateMonitor("step")]
    if cfg.selection.stop_after is not None:
        callbacks.append(StopAfter(cfg.selection.stop_after))
    if cfg.selection.patience is not None:
        stops: dict[str, Any] = {"mode": mode, "patience": cfg.selection.patience, "check_on_train_epoch_end": False}
        callbacks.append(EarlyStopping(monitor, **stops))
    _open_loggers(cfg, folder, module, data, record, resumed)
    trainer = _trainer(
        cfg,
        callbacks=callbacks,
        logger=record.loggers,
        default_root_dir=str(folder),
        enable_progress_bar=isinstance(bar, RichProgressBar),
    )
    if resumed is None:
        shutil.rmtree(checkpoints, ignore_errors=True)
    else:
        say(f"going on from {resumed}")
    torch.manual_seed(cfg.seeds.init)
    record.write(status="running")
    gc.collect()
    gc.freeze()  # what is loaded stays: the collector need not walk it at every step
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resumed)
    finally:
        gc.unfreeze()  # else a sweep in one process would keep every job's models
    if trainer.interrupted:
        raise KeyboardInterrupt
    for checkpoint, name in ((best, "best.ckpt"), (last, "last.ckpt")):
        if not checkpoint.best_model_path:  # max_steps came before the first validation: the end is all there is
            trainer.save_checkpoint(checkpoints / name)
    kept = torch.load(checkpoints / "best.ckpt", map_location="cpu", weights_only=True)
    module.load_state_dict(kept["state_dict"])
    done = torch.load(checkpoints / "last.ckpt", map_location="cpu", weights_only=True, mmap=True)
    # Under ddp_spawn and ddp_fork the updates were counted in other processes.
    return max(trainer.global_step, int(done["global_step"])), int(kept["epoch"]) + 1


def _evaluate(
    cfg: DictConfig, folder: Path, module: Distiller, data: TextDataModule, answer: Teacher | None, record: Record
) -> dict[str, float]:
    data.trainer = None  # one device reads each row once, whatever the training ran on
    predictor = pl.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=1,
        precision=cfg.trainer.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    metrics: dict[str, float] = {}
    splits = []
    parts = {"validation": data.split.validation} | ({"test": data.split.test} if cfg.evaluation.test else {})
    for name, index in parts.items():
        logits = torch.empty(len(index), len(data.classes))
        place = {int(row): position for position, row in enumerate(index)}
        for batch in predictor.predict(module, data.evaluation(index)) or []:
            logits[[place[int(row)] for row in batch["index"]]] = batch["logits"].cpu()  # type: ignore[call-overload]
        if not logits.isfinite().all():
            raise Diverged("the student diverged: its logits are not finite; lower student.training.learning_rate")
        label = torch.from_numpy(data.labels[index])
        short = {"validation": "val", "test": "test"}[name]
        metrics |= {f"{short}/{key}": value for key, value in task_metrics(logits, label).items()}
        taught = teachers.logits_of(answer, data, index) if answer is not None else None
        if taught is not None:
            metrics |= {f"{short}/{key}": value for key, value in fidelity_metrics(logits, taught, label).items()}
            metrics |= {f"teacher/{short}_{key}": value for key, value in task_metrics(taught, label).items()}
        splits.append(
            {"name": name, "ids": data.corpus.ids(index), "labels": label, "student": logits, "teacher": taught}
        )
    write_predictions(folder / "predictions.parquet", splits)
    if answer is not None:
        _compare_teacher(record, metrics)
    if answer is not None and cfg.evaluation.test:
        record.facts["teacher"]["members_test_accuracy"] = teachers.member_accuracies(answer, data, data.split.test)

    student = module.student.cpu().eval()
    shutil.rmtree(folder / "student", ignore_errors=True)
    about = {
        "run": record.name,
        "data": record.facts["data"],
        "teacher": record.facts["teacher"],
        "kdresearch": __version__,
    }
    package.save(folder / "student", student, data.tokenizer, data.classes, about)
    sizes = parameters(student)
    record.facts["student"] = {
        "parameters": sizes["total"],
        "parameters_without_embeddings": sizes["without_embeddings"],
        "bytes": directory_bytes(folder / "student"),
        "fingerprint": package.fingerprint(folder / "student"),
    }
    if cfg.evaluation.efficiency:
        rows = parts[name][: cfg.evaluation.rows]
        batches = [data.student_rows.tokens(rows[first : first + 32]) for first in range(0, len(rows), 32)]
        measured = efficiency(student, batches)
        metrics |= {
            "latency/p50_ms": measured["latency_p50_ms"],
            "latency/p95_ms": measured["latency_p95_ms"],
            "rows_per_second": measured["rows_per_second"],
        }
    write_json(folder / "metrics.json", metrics)
    for logger in record.loggers:
        logger.log_metrics({key: value for key, value in metrics.items() if not key.startswith("val/")})
        logger.save()
    _log_lineage(record)
    told = f"{record.name}: {name} accuracy {metrics[f'{short}/accuracy']:.4f}"
    if f"{short}/agreement" in metrics:
        told += f" (teacher {metrics[f'teacher/{short}_accuracy']:.4f}, agreement {metrics[f'{short}/agreement']:.4f})"
    say(f"{told}, {sizes['total']:,} parameters -> {folder}")
    return metrics


def _compare_teacher(record: Record, metrics: dict[str, float]) -> None:
    """Record, and say, whether the student answers the validation rows better than what taught it."""
    teacher, student = metrics["teacher/val_accuracy"], metrics["val/accuracy"]
    record.facts["teacher"]["below_student"] = below = teacher < student
    if below:
        say(
            f"WARNING: the teacher is below its student: validation accuracy {teacher:.4f} against {student:.4f}; what "
            "the student gains by it is no gain in what the teacher knows"
        )


def _log_lineage(record: Record) -> None:
    """In W&B the student is an artifact that names its teacher and data."""
    import wandb

    if wandb.run is not None:
        student = record.facts["student"]
        artifact = wandb.Artifact(
            f"student-{student['fingerprint']}",
            "model",
            metadata={"teacher": record.facts["teacher"], "data": record.facts["data"]},
        )
        artifact.add_reference(f"file://{(record.folder / 'student').absolute()}", checksum=False)
        wandb.run.log_artifact(artifact)
        wandb.run.summary.update({f"student/{key}": value for key, value in student.items()})


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """One job of ``kdresearch train``; returns the validation accuracy of the kept epoch, for sweepers."""
    hydra_cfg = HydraConfig.get()
    chosen = Chosen(dict(hydra_cfg.runtime.choices), list(hydra_cfg.overrides.task))
    try:
        try:
            metrics = run(cfg, Path(hydra_cfg.runtime.output_dir), chosen)
        except OmegaConfBaseException as error:
            raise UserError(str(error).splitlines()[0]) from error
    except UserError as error:
        if hydra_cfg.mode == RunMode.RUN:  # Hydra prints the overrides before an Exception, and this is one line
            raise SystemExit(2) from error
        say(f"job {hydra_cfg.job.num} failed: {error}")
        raise
    return metrics.get("val/accuracy")
