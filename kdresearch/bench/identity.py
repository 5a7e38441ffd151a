"""What a run is: the settings that can change its results, and two digests of them.

``identity`` names one run; ``method`` names all runs that differ by seeds alone. Everything here takes and gives plain
values (dictionaries, lists, numbers, strings), so that a run record can be compared long after its configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kdresearch.artifacts import digest

SECTIONS = (
    "data", "student", "teacher", "strategy", "generator", "optimizer", "scheduler", "trainer", "selection", "start",
    "seeds",
)  # fmt: skip
TRANSFER = ("transfer", "transfer_limit", "transfer_share")
"""The settings of ``data`` that a student without a teacher has no use for."""

# Arguments of the Trainer that say what it runs on and what it shows.
_MACHINE = frozenset(
    {
        "accelerator", "devices", "num_nodes", "strategy", "plugins", "logger", "log_every_n_steps", "callbacks",
        "enable_progress_bar", "enable_model_summary", "enable_checkpointing", "default_root_dir", "profiler",
        "benchmark", "deterministic", "detect_anomaly", "barebones", "use_distributed_sampler", "inference_mode",
        "num_sanity_val_steps",
    }
)  # fmt: skip
_PRECISIONS = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}
# Each acting setting, and the setting of the student that is its default: one quantity, one name.
_SAME = {
    ("trainer", "max_epochs"): "epochs",
    ("optimizer", "lr"): "learning_rate",
    ("optimizer", "weight_decay"): "weight_decay",
}


def normalised(value: Any) -> Any:
    """Equal content as equal JSON: 2.0 as 2, tuples as lists, keys as strings, and no key whose value is null."""
    if isinstance(value, Mapping):
        present = {str(key): item for key, item in value.items() if item is not None and key != "_partial_"}
        return {key: normalised(present[key]) for key in sorted(present)}
    if isinstance(value, list | tuple):
        return [normalised(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def settings(config: Mapping[str, Any], *, content: str, teacher: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of a resolved configuration that can change its results, normalised.

    Args:
        config: plain values; files that it names are replaced by their content beforehand.
        content: the fingerprint of the data's rows, which stands for where they lie and how they were read.
        teacher: what the teacher is and how it answers; None where the run has none.
    """
    result: dict[str, Any] = normalised({name: config.get(name) for name in SECTIONS if name != "teacher"})
    data = result.get("data", {})
    sources = {value for value in data.pop("source", {}).values() if isinstance(value, str)}
    result["data"] = {key: item for key, item in data.items() if not (isinstance(item, str) and item in sources)}
    result["data"]["content"] = content
    if "_target_" not in result.get("generator", {}):
        result.pop("generator", None)
    result["trainer"] = _trainer(result.get("trainer", {}))
    if "from" not in result.get("start", {}):  # its own initialisation
        result.pop("start", None)
    training = result.get("student", {}).get("training")
    if training is not None:
        for (section, key), name in _SAME.items():
            if key in result.get(section, {}):
                training[name] = result[section].pop(key)
    if teacher is not None:
        result["teacher"] = normalised(teacher)
    return result


def _trainer(arguments: Mapping[str, Any]) -> dict[str, Any]:
    acting = {key: value for key, value in arguments.items() if key not in _MACHINE}
    if acting.get("max_steps") == -1:  # without a limit
        del acting["max_steps"]
    if "precision" in acting:
        acting["precision"] = _PRECISIONS.get(str(acting["precision"]), acting["precision"])
    return acting


def without_seeds(value: Any) -> Any:
    """Settings without those that make a replicate, a teacher's recipe included."""
    if isinstance(value, Mapping):
        return {key: without_seeds(item) for key, item in value.items() if key != "seeds"}
    return [without_seeds(item) for item in value] if isinstance(value, list) else value


def identity(resolved: Mapping[str, Any]) -> str:
    """The name of a run with these settings."""
    return digest(normalised(resolved))


def method(resolved: Mapping[str, Any]) -> str:
    """The name that a run shares with its replicates."""
    return digest(without_seeds(normalised(resolved)))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key: ``student.training.epochs``. A list is a value, unless it holds mappings."""
    return dict(_leaves(value, prefix))


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        items = enumerate(value)
    else:
        yield key, value
    for name, item in items:
        yield from _leaves(item, f"{key}.{name}" if key else str(name))


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """By dotted key, the two values of every setting in which two runs differ; None where one lacks it."""
    one, two = flat(left), flat(right)
    return {
        key: (one.get(key), two.get(key)) for key in sorted(one.keys() | two.keys()) if one.get(key) != two.get(key)
    }


def comparable(resolved: Mapping[str, Any], partner: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in which a method and its control must be equal: all but what only a teacher has a use for.

    Of the strategy there remains what both have, e.g. label smoothing. Where both have a teacher, the teacher, the
    pseudo-samples and the rows without labels count as well.
    """
    both_have_teachers = "teacher" in resolved and "teacher" in partner
    ignored = {"seeds", "strategy"} | (set() if both_have_teachers else {"teacher", "generator"})
    result = {name: value for name, value in resolved.items() if name not in ignored}
    if not both_have_teachers:
        result["data"] = {key: value for key, value in resolved.get("data", {}).items() if key not in TRANSFER}
    strategy, partners = resolved.get("strategy", {}), partner.get("strategy", {})
    shared = (set(strategy) & set(partners)) - {"_target_", "option", "weights", "schedules"}
    result["strategy"] = {key: value for key, value in strategy.items() if key in shared}
    comparison: dict[str, Any] = without_seeds(result)
    return comparison
