"""Families of interchangeable parts: a folder a family, a file a member, found by looking."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from .errors import UnknownNameError

Member = TypeVar("Member")


class Registry(Mapping[str, Member], Generic[Member]):
    """Name -> member, filled by the files of one package the first time it is read.

    A member registers itself where it is defined, so adding one is adding a file::

        @TECHNIQUES.register("bf16")
        class Bf16(Technique): ...

    Args:
        kind: What a member is called in messages, for example ``"technique"``.
        package: The dotted name of the package whose modules hold the members. Modules
            named ``base`` or starting with ``_`` hold no member and are not imported.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._members: dict[str, Member] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[Member], Member]:
        """Return a decorator that enters its object under `name`.

        Raises:
            ValueError: a member of this name is already there.
        """

        def enter(member: Member) -> Member:
            if name in self._members:
                raise ValueError(f"two {self.kind}s are called {name!r}: {self._members[name]!r} and {member!r}")
            self._members[name] = member
            return member

        return enter

    def _load(self) -> dict[str, Member]:
        if not self._loaded:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                if module.name != "base" and not module.name.startswith("_"):
                    importlib.import_module(f"{self.package}.{module.name}")
            self._loaded = True  # last: who comes meanwhile, or after an interrupt, must not take a part of the family for all of it
        return self._members

    def __getitem__(self, name: str) -> Member:
        """Return the member called `name`.

        Raises:
            UnknownNameError: there is none; the message lists those there are.
        """
        members = self._load()
        if name not in members:
            raise UnknownNameError(self.kind, name, members)
        return members[name]

    def __contains__(self, name: object) -> bool:
        return name in self._load()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._load()))

    def __len__(self) -> int:
        return len(self._load())
