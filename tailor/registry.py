"""The registries of extensions: each maps a name that a recipe may use to the code behind it.

The code is built in, or another package registers it with an entry point (docs/extending.md):

    [project.entry-points."tailor.formats"]
    toy = "toy_package.formats:TOY"
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

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
        except Exception as error:  # the code of another package may raise anything
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


@lru_cache(maxsize=1)
def _entry_points(path: tuple[str, ...]) -> Any:
    """Those of all installed packages: one scan for all registries. path: `sys.path`, which decides what is installed."""
    # Imported here because it takes tens of milliseconds, and `tailor --help` does not need it.
    from importlib.metadata import entry_points

    return entry_points()


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value.partition(":")[0]
