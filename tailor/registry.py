"""The registries of extensions: each maps a name that a recipe may use to the code behind it.

The code is built in, or another package registers it with an entry point (docs/extending.md):

    [project.entry-points."tailor.formats"]
    toy = "toy_package.formats:TOY"
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, get_args

from tailor.errors import ExtensionError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class Registry(Generic[T]):
    """The registered names of one kind of extension. Their code is imported by `get`, not before."""

    def __init__(self, group: str, builtin: Mapping[str, str]) -> None:
        """group: name of the entry point group, such as `tailor.formats`. builtin: name -> `module:attribute`."""
        self.group = group
        self.builtin = dict(builtin)

    def names(self) -> tuple[str, ...]:
        """The built-in names, then the names of other packages in alphabetical order."""
        return (*self.builtin, *sorted(self._registered))

    def __contains__(self, name: object) -> bool:
        return name in self.builtin or name in self._registered

    def __iter__(self) -> Iterator[T]:
        return (self.get(name) for name in self.names())

    def get(self, name: str) -> T:
        """Import and return the code behind a name.

        Raises KeyError for an unknown name, ExtensionError when the code of another package cannot be loaded.
        """
        if name in self.builtin:
            module, _, attribute = self.builtin[name].partition(":")
            return cast("T", getattr(import_module(module), attribute))
        entry = self._registered[name]
        try:
            return cast("T", entry.load())
        except (Exception, SystemExit) as error:  # the code of another package may raise anything
            raise ExtensionError(
                f"{self.group}: {name} of the package {_package(entry)} cannot be loaded from {entry.value}: "
                f"{type(error).__name__}: {error}",
                hint=f"install a version of {_package(entry)} that supports this version of tailor, or uninstall it",
            ) from error

    @cached_property
    def _registered(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for entry in _entry_points(tuple(sys.path)).select(group=self.group):
            owner = "tailor itself" if entry.name in self.builtin else None
            if entry.name in found and found[entry.name].value != entry.value:
                owner = _package(found[entry.name])
            if owner is not None:
                raise ExtensionError(
                    f"{self.group}: the package {_package(entry)} registers the name {entry.name}, which {owner} uses already",
                    hint="rename the entry point, or uninstall one of the packages",
                )
            found[entry.name] = entry
        return found


def check_section(
    group: str, name: str, found: object, base: type[Any], requires: Sequence[str] = ()
) -> None:
    """Raise ExtensionError unless `found` is a section that can be registered as `name`.

    It must be a subclass of `base`, with a key `name` of the type `Literal[name]` if sections of this kind are chosen by
    their name, and with the class variables in `requires`.
    """
    expected = f"{base.__module__}.{base.__name__}"
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ExtensionError(
            f"{group}: {name} is {found!r}, which is not a subclass of {expected}",
            hint=f"let the entry point name a subclass of {expected}, or uninstall the package that registers it",
        )
    label = f"{group}: {name} is {found.__module__}.{found.__name__}"
    fields = getattr(found, "model_fields", {})
    if "name" in getattr(base, "__annotations__", {}) and (
        "name" not in fields or get_args(fields["name"].annotation) != (name,)
    ):
        raise ExtensionError(
            f'{label}, whose key `name` does not have the type Literal["{name}"]',
            hint=f'write `name: Literal["{name}"]` in the class, or register it under its own name',
        )
    if missing := [attribute for attribute in requires if not hasattr(found, attribute)]:
        raise ExtensionError(
            f"{label}, which has no class variable {missing[0]}",
            hint=f"add it; {expected} describes it",
        )


@lru_cache(maxsize=1)
def _entry_points(path: tuple[str, ...]) -> Any:
    """Those of all installed packages: one scan for all registries. path: `sys.path`, which decides what is installed."""
    # Imported here because it takes tens of milliseconds, and `tailor --help` does not need it.
    from importlib.metadata import entry_points

    return entry_points()


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value.partition(":")[0]
