"""What builds one part of a run: an importable class or function, and its settings."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kdresearch.errors import UserError, choices

TARGET, PARTIAL = "_target_", "_partial_"
_MARKS = frozenset({TARGET, PARTIAL, "_convert_", "_recursive_"})


@dataclass(frozen=True)
class Component:
    """An importable class or function by its dotted name, and its settings as plain data.

    Settings may hold further components as mappings with ``_target_``; those with ``_partial_: true`` are built as
    ``functools.partial``, for whoever knows their remaining arguments.
    """

    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, what: Component | Mapping[str, Any] | Callable[..., Any]) -> Component:
        """The component of a class, a function or a ``functools.partial`` of one, or of a mapping with ``_target_``.

        Raises:
            UserError: something that cannot be imported by its name (a lambda, a local class).
        """
        if isinstance(what, Component):
            return what
        if isinstance(what, Mapping):
            return cls(str(what[TARGET]), {key: value for key, value in what.items() if key not in _MARKS})
        if isinstance(what, functools.partial):
            inner = cls.of(what.func)
            return cls(inner.target, {**inner.settings, **what.keywords})
        name = f"{what.__module__}.{what.__qualname__}"
        if "<" in name:
            raise UserError(f"{name} cannot be imported by its name: define it at the top level of a module")
        return cls(name)

    @property
    def as_data(self) -> dict[str, Any]:
        """The mapping that ``of`` takes."""
        return {TARGET: self.target, **self.settings}

    @property
    def constructor(self) -> Any:
        """The class or function itself; UserError where it cannot be imported."""
        return imported(self.target)

    def build(self, name: str, **arguments: Any) -> Any:
        """Call the constructor with the settings and further arguments.

        Args:
            name: of this part in messages.

        Raises:
            UserError: settings that it does not take, by name; whatever it refuses.
        """
        try:
            settings = {key: _built(value, f"{name}.{key}") for key, value in self.settings.items()}
            return self.constructor(**settings, **arguments)
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: {self._explanation(error)}") from error

    def partial(self, name: str) -> Callable[..., Any]:
        """What calls the constructor with its first arguments, the settings following; it refuses as ``build`` does."""
        settings = {key: _built(value, f"{name}.{key}") for key, value in self.settings.items()}
        return functools.partial(self._call, name, settings)  # which goes to other processes

    def _call(self, name: str, settings: Mapping[str, Any], *arguments: Any) -> Any:
        try:
            return self.constructor(*arguments, **settings)
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: {self._explanation(error)}") from error

    def _explanation(self, error: BaseException) -> str:
        text = " ".join(str(error).split())
        if isinstance(error, TypeError) and "unexpected keyword argument" in text:
            name = text.split("'")[-2]
            options = [key for key in self.settings if key != name]
            return f"{self.target.rsplit('.', 1)[-1]} has no option {choices(name, options)}"
        return text


def _built(value: Any, name: str) -> Any:
    """A setting with every component in it built."""
    if isinstance(value, Mapping) and TARGET in value:
        component = Component.of(value)
        if value.get(PARTIAL):
            settings = {key: _built(item, f"{name}.{key}") for key, item in component.settings.items()}
            return functools.partial(component.constructor, **settings)
        return component.build(name)
    if isinstance(value, Mapping):
        return {key: _built(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_built(item, f"{name}.{place}") for place, item in enumerate(value)]
    return value


def imported(name: str) -> Any:
    """The class or function of a dotted name.

    Raises:
        UserError: no such module, or nothing of this name in it.
    """
    names = name.split(".")
    for depth in range(len(names) - 1, 0, -1):
        module = ".".join(names[:depth])
        try:
            target = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and module.startswith(error.name):
                continue
            raise UserError(f"{name} cannot be imported: {error}") from error
        for attribute in names[depth:]:
            target = inspect.getattr_static(target, attribute, None) and getattr(target, attribute)
        if not callable(target):
            raise UserError(f"{module} has no class or function {'.'.join(names[depth:])}")
        return target
    raise UserError(f"{name} cannot be imported: there is no module {names[0]!r}")
