"""Which versions of a model are served: the newest ones, all, or those that are named; as TensorFlow Serving and Triton have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

HELP = "2 (the newest two), all, or only:1,3; for one model NAME=2, and as often as there are models"


@dataclass(frozen=True)
class VersionPolicy:
    """What is served of what is there."""

    newest: int | None = 1
    """How many of the newest; None: all."""
    only: frozenset[str] | None = None
    """These, and no others; None: any."""

    @property
    def serves_several(self) -> bool:
        """Whether more than one version may be served at once."""
        return (self.newest is None or self.newest > 1) and (self.only is None or len(self.only) > 1)

    def choose(self, versions: Sequence[str]) -> Sequence[str]:
        """Those that are served.

        Args:
            versions: What is there, older ones first.
        """
        fitting = [version for version in versions if self.only is None or version in self.only]
        return fitting if self.newest is None else fitting[-self.newest :]


@dataclass(frozen=True)
class VersionPolicies:
    """The policy of every model."""

    usual: VersionPolicy = field(default_factory=VersionPolicy)
    by_model: Mapping[str, VersionPolicy] = field(default_factory=dict)

    @property
    def serve_several(self) -> bool:
        """Whether more than one version of some model may be served at once."""
        return any(policy.serves_several for policy in (self.usual, *self.by_model.values()))

    def of(self, model: str) -> VersionPolicy:
        """That of one model."""
        return self.by_model.get(model, self.usual)


def parse_policies(texts: Iterable[str]) -> VersionPolicies:
    """Read ``2``, ``all``, ``only:1,3`` and ``net=only:1,3``.

    Raises:
        ValueError: one is none of these, or a model has two.
    """
    found: dict[str, VersionPolicy] = {}
    for text in texts:
        model, _, policy = text.rpartition("=")
        if model in found:
            raise ValueError(f"there are two policies for {f'the model {model!r}' if model else 'the models that are not named'}: {text!r} is the second")
        found[model] = _parse(policy, text)
    return VersionPolicies(found.pop("", VersionPolicy()), found)


def _parse(policy: str, text: str) -> VersionPolicy:
    kind, colon, names = policy.partition(":")
    if policy == "all":
        return VersionPolicy(newest=None)
    if policy.isdecimal() and int(policy) > 0:
        return VersionPolicy(newest=int(policy))
    only = frozenset(name.strip() for name in names.split(","))
    if kind == "only" and colon and all(only):
        return VersionPolicy(newest=None, only=only)
    raise ValueError(f"{text!r} does not say which versions are served; give {HELP}")
