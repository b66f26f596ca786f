"""What an exporter is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import msgspec

from ..errors import SpecError
from ..options import changed_options, read_call, read_options, write_call
from ..records import JobPlan, Number, ServingSpec, from_json, to_json
from ..registry import Registry
from ..spec import errors_of, lint_spec

Member = TypeVar("Member")
Source = TypeVar("Source", ServingSpec, JobPlan)


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """Writes a spec for one platform; its fields are its options."""

    def export(self, spec: ServingSpec) -> dict[str, str]:
        """Relative path -> text; nothing touches the disk.

        Raises:
            SpecError: the spec has an error, or asks for what the platform or an option rules out.
        """
        found = errors_of(lint_spec(spec))
        if found:
            raise SpecError(
                f"nothing is exported from a spec with errors: {found[0].code} at {found[0].path}: {found[0].text}",
                help=f"{len(found)} error{'s' if len(found) > 1 else ''} in all; aimass check lists them",
            )
        return self.write(as_read(spec, exporter_text(self)))

    def write(self, spec: ServingSpec) -> dict[str, str]:
        """What `export` gives, for a spec without errors."""
        raise NotImplementedError


EXPORTERS: Registry[type[Exporter]] = Registry("exporter", "aimass_lab.export")


def read_exporter(text: str) -> Exporter:
    """Make the exporter that a text names: ``"kubernetes"`` or ``"kubernetes(scaler=keda, network_policy=true)"``.

    Raises:
        UnknownNameError: there is no such exporter.
        InputError: it has no such option or value.
    """
    return read_member(EXPORTERS, text)


def exporter_text(exporter: Exporter) -> str:
    """The text that `read_exporter` makes this exporter of."""
    return member_text(EXPORTERS, exporter)


def as_read(record: Source, export_format: str) -> Source:
    """A record as a reader of its JSON will see it, where whole numbers may have become floats: else the export of what was read back differs."""
    return msgspec.structs.replace(from_json(to_json(record), type(record)), export_format=export_format)


def read_member(registry: Registry[type[Member]], text: str) -> Member:
    """Make the member that a text names, with its options.

    Raises:
        UnknownNameError: there is no such member.
        InputError: it has no such option or value.
    """
    name, options = read_call(text, what="is no exporter with options in brackets", help="for example 'kubernetes(scaler=keda)'")
    member = registry[name]
    return member(**read_options(member, name, options))


def member_text(registry: Registry[type[Member]], exporter: Member) -> str:
    """The text that `read_member` makes this one of."""
    name = next(name for name, member in registry.items() if member is type(exporter))
    return write_call(name, changed_options(exporter))


def provenance(number: Number) -> str:
    """Where a number comes from, in one line: ``"measured: median of 31 calls"``."""
    source = f"derived (weakest input: {number.trust})" if number.source == "derived" else number.source
    doubt = "" if number.quality == "ok" else f" [{number.quality}]"
    return f"{source}: {number.method}{doubt}"
