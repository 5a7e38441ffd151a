"""From a composed configuration to the plan of its teacher: sources, recipes, chains, and what contradicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import OmegaConf, open_dict

from kdresearch import package
from kdresearch.bench.components import Component, imported
from kdresearch.bench.plan import Folder, HubModel, Plan, Recipe, Source, TeacherPlan
from kdresearch.bench.recipes import earlier_generations
from kdresearch.commands.compose import SOURCES, Composition, plan_without_teacher
from kdresearch.commands.console import say
from kdresearch.errors import UserError, choices

_READS = ("max_length", "truncation")
_OF_A_MEMBER = ("recipe", "path", "id", "data", "epochs", "label_smoothing", *_READS)
_OF_A_RECIPE = ("folds", "epochs", "label_smoothing")
_LABELS_ALONE = {"transfer": "none", "transfer_limit": None}
_ANSWERS = ("temperature", "mode", "keep", "batch_size", "average", "jobs", "folds")


class Teachers:
    """Where a configuration's teacher comes from: its own words, and the strategy's, which may bring teachers."""

    def __init__(self, composition: Composition, plan: Plan) -> None:
        self.cfg, self.options, _ = composition
        self.teacher: dict[str, Any] = OmegaConf.to_container(self.cfg.teacher, resolve=True)  # type: ignore[assignment]
        self.plan_without = plan
        strategy: Any = imported(plan.strategy.target)
        self.settings = plan.strategy.settings
        self.generations = strategy.generations_before(self.settings)
        self.assistants = strategy.assistants_between(self.settings)

    def plan(self) -> TeacherPlan | None:
        """The teacher's plan; None where nothing names one."""
        self._check()
        teacher = self.teacher
        base = TeacherPlan(
            weights=tuple(teacher["weights"]) if isinstance(teacher["weights"], list) else teacher["weights"],
            precision=str(teacher["precision"]),
            class_map=teacher["class_map"],
            name=str(self.options["teacher"]),
            **{name: teacher[name] for name in _ANSWERS},
        )
        if self.generations:
            if self.options["teacher"] not in ("default", "none"):
                name = f"strategy={self.options['strategy']}"
                say(f"{name} learns from its own earlier generations: teacher={self.options['teacher']} is not used")
            return replace(base, chain=self._generations(), name="")
        named_sources = [name for name in SOURCES if teacher[name] is not None]
        chain: list[Recipe] = []
        if teacher["chain"] is not None:
            chain += self._links("teacher.chain", teacher["chain"], first_is_taught=False)
        if self.assistants is not None:
            chain += self._links("strategy.assistants", self.assistants, first_is_taught=True)
        if not named_sources:
            return None
        if teacher["chain"] is not None:
            return replace(base, chain=tuple(chain))
        if teacher["members"] is not None:
            members = tuple(self._source(self._member(member)) for member in teacher["members"])
            return replace(base, members=members, ensemble=True)
        return replace(base, members=(self._source(teacher),), chain=tuple(chain))

    # What contradicts

    def _check(self) -> None:
        teacher = self.teacher
        smoothing = teacher["label_smoothing"]
        if smoothing is not None and not (_is_number(smoothing) and 0 <= smoothing < 1):
            raise UserError(f"teacher.label_smoothing: a number from 0 to below 1, not {smoothing!r}")
        epochs = teacher["epochs"]
        if epochs is not None and not (isinstance(epochs, int) and _is_number(epochs) and epochs >= 1):
            raise UserError(f"teacher.epochs: a whole number of at least 1, not {epochs!r}")
        for name in _OF_A_RECIPE:
            self._check_recipe_of(name)
        for member in self._members():
            _check_reads(member)
        named_sources = [source for source in SOURCES if teacher[source] is not None]
        if not self.generations and len(named_sources) > 1:
            raise UserError(
                f"teacher: exactly one of {', '.join(SOURCES)} must be given, not {' and '.join(named_sources)}"
            )
        if self.assistants is not None and teacher["members"] is not None:
            raise UserError("strategy=assistant begins with one teacher: give a recipe, path, id or chain, not members")

    def _check_recipe_of(self, option: str) -> None:
        """Refuse an option of how a recipe is trained where there is none."""
        teacher, by = self.teacher, None
        if self.generations or (option == "folds" and self.assistants is not None):
            by = f"strategy={self.options['strategy']}"
        elif teacher["chain"] is not None:
            by = "teacher.chain"
        elif option == "folds" and teacher["members"] is not None:
            by = "teacher.members"
        if teacher[option] is not None and by is not None:
            raise UserError(f"teacher.{option} is of a teacher by one recipe, and {by} is given")
        for member in self._members():
            source = next((name for name in ("path", "id") if member[name] is not None), None)
            if member[option] is not None and source is not None:
                raise UserError(
                    f"teacher.{option} says how a recipe is trained: a teacher by {source} is trained already"
                )

    def _members(self) -> list[dict[str, Any]]:
        if self.teacher["members"] is None:
            return [self.teacher]
        return [self._member(member) for member in self.teacher["members"]]

    def _member(self, member: Mapping[str, Any]) -> dict[str, Any]:
        for key in member:
            if key not in _OF_A_MEMBER:
                raise UserError(f"teacher.members: {choices(key, _OF_A_MEMBER)}")
        return self.teacher | dict.fromkeys(SOURCES) | dict(member)

    # Sources

    def _source(self, teacher: Mapping[str, Any]) -> Source:
        named_sources = [source for source in SOURCES[:3] if teacher[source] is not None]
        if len(named_sources) != 1:
            raise UserError(
                f"teacher: exactly one of {', '.join(SOURCES)} must be given, not {' and '.join(named_sources)}"
            )
        reads = {name: teacher[name] for name in _READS if teacher[name] is not None}
        if named_sources == ["path"]:
            return Folder(Path(str(teacher["path"])).expanduser(), reads)
        if named_sources == ["id"]:
            return HubModel(str(teacher["id"]), reads)
        return self._recipe(teacher)

    def _recipe(self, teacher: Mapping[str, Any]) -> Recipe:
        short = {"selection.stop_after": teacher["epochs"], "strategy.label_smoothing": teacher["label_smoothing"]}
        overrides = [
            *map(str, teacher["recipe"]),
            *(f"{name}={value}" for name, value in short.items() if value is not None),
        ]
        data = _LABELS_ALONE | (teacher["data"] or {})
        recipe = self._composed(_name_of(overrides), [*overrides, "teacher=none"], data)
        epochs = recipe.plan.trainer.get("max_epochs") or 0
        if 0 < epochs < (teacher["epochs"] or 0):
            raise UserError(f"teacher.epochs={teacher['epochs']}: the recipe has {epochs}")
        return recipe

    # Chains

    def _generations(self) -> tuple[Recipe, ...]:
        learn = {name: self.settings[name] for name in ("temperature", "label_smoothing", "weights")}
        schedules = {"schedules": self.settings["schedules"]} if "schedules" in self.settings else {}
        first = Component("kdresearch.strategies.supervised.SupervisedDistiller", {
            "label_smoothing": self.settings["label_smoothing"],
        })  # fmt: skip
        later = Component("kdresearch.strategies.soft_label.SoftLabelDistiller", {**learn, **schedules})
        return earlier_generations(self.plan_without, self.generations, first, later)

    def _links(self, place: str, recipes: Any, first_is_taught: bool) -> list[Recipe]:
        """The links of a chain, each the teacher of the next.

        Raises:
            UserError: a link that learns from nothing, or from labels alone in the middle of the chain.
        """
        if not isinstance(recipes, list) or not recipes or not all(isinstance(part, list) for part in recipes):
            raise UserError(
                f"{place}: a list of recipes, each a list of overrides, e.g. [['student=bilstm']], not {recipes}"
            )
        return [
            self._link([*map(str, part)], first_is_taught or number > 1, f"{place}, link {number}")
            for number, part in enumerate(recipes, 1)
        ]

    def _link(self, overrides: list[str], has_teacher: bool, place: str) -> Recipe:
        if any(part.startswith("teacher=") for part in overrides):
            raise UserError(f"{place}: its teacher is the link before it: leave teacher=... out")
        says = any(part.startswith("strategy") for part in overrides)
        inherits = has_teacher and place.startswith("strategy") and not says
        options = ["strategy=soft_label", "teacher=checkpoint"] if has_teacher else ["teacher=none"]
        data = dict(self.teacher["data"] or {})
        link = self._composed(
            _name_of(overrides), [*options, *overrides], data if has_teacher else _LABELS_ALONE | data
        )
        if inherits:  # the link learns from its teacher as the run's student does from its own
            alike = {
                name: self.settings[name]
                for name in ("temperature", "label_smoothing", "schedules", "weights")
                if name in self.settings
            }
            strategy = replace(link.plan.strategy, settings={**link.plan.strategy.settings, **alike})
            link = replace(link, plan=replace(link.plan, strategy=strategy))
        kind: Any = imported(link.plan.strategy.target)
        if kind.needs_teacher(link.plan.strategy.settings) != has_teacher:
            fault = "has no teacher to learn from: change its strategy=..."
            if has_teacher:
                fault = "learns from labels alone, and not from the link before it: leave out its strategy=..."
            raise UserError(f"{place} ({link.name}) {fault}")
        return link

    def _composed(self, name: str, overrides: list[str], data: Mapping[str, Any]) -> Recipe:
        """Overrides as the plan of a teacher, on this run's data, its split and its machine."""
        recipe_cfg = compose("train", [*overrides, "logger=none"], return_hydra_config=True)
        options = dict(recipe_cfg.hydra.runtime.choices) | {"data": self.options["data"]}
        seed = self.cfg.seeds.teacher
        with open_dict(recipe_cfg):
            del recipe_cfg["hydra"]
            recipe_cfg.data = OmegaConf.create(self._resolved_data(OmegaConf.merge(self.cfg.data, data)))
            recipe_cfg.data.transfer_share = None  # how a student's rows are mixed is no part of its teacher
            recipe_cfg.seed = seed
            recipe_cfg.seeds = {"init": seed, "order": seed, "split": self.cfg.seeds.split, "teacher": 0}
            for key in ("accelerator", "devices"):
                recipe_cfg.trainer[key] = self.cfg.trainer[key]
            recipe_cfg.name = f"teacher {name}"
            recipe_cfg.evaluation.efficiency = False
            if OmegaConf.is_missing(recipe_cfg.teacher, "path"):
                recipe_cfg.teacher.path = None  # the link before it, when that is trained
        content: dict[str, Any] = OmegaConf.to_container(recipe_cfg, resolve=True)  # type: ignore[assignment]
        # What a person writes into a recipe is trusted as what it composes is run.
        package.trust(content["student"]["model"]["_target_"], content["student"]["tokenizer"]["_target_"])
        plan = plan_without_teacher(content, options, overrides)
        if options["teacher"] == "checkpoint":
            answers = content["teacher"]
            plan = replace(
                plan,
                teacher=TeacherPlan(
                    precision=str(answers["precision"]),
                    class_map=answers["class_map"],
                    name="checkpoint",
                    **{key: answers[key] for key in _ANSWERS},
                ),
            )
        return Recipe(name, plan)

    def _resolved_data(self, data: Any) -> Any:
        """A data node as plain values, its interpolations resolved where they stand in the whole configuration."""
        configuration = OmegaConf.create(OmegaConf.to_container(self.cfg, resolve=False))
        with open_dict(configuration):
            configuration.data = data
        return OmegaConf.to_container(configuration.data, resolve=True)


def _name_of(overrides: Sequence[str]) -> str:
    """``student (what else differs)``."""
    pairs = [part.partition("=")[::2] for part in overrides]
    student = next((value for name, value in pairs if name == "student"), "recipe")
    rest = [f"{name.rsplit('.', 1)[-1]}={value}" for name, value in pairs if name != "student" and name[-4:] != "path"]
    return f"{student} ({', '.join(rest)})" if rest else student


def _check_reads(teacher: Mapping[str, Any]) -> None:
    for name in _READS:
        if teacher[name] is not None and teacher["path"] is None and teacher["id"] is None:
            raise UserError(
                f"teacher.{name} is of a teacher by path or id: in a recipe it is called student.tokenizer.{name}"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
