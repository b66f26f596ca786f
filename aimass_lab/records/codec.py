"""Records as JSON and back, and their published schemas."""

from __future__ import annotations

from typing import Any, TypeVar, get_args

import msgspec

from .bundle import Bundle, Check
from .demand import Demand
from .fleet import FleetAllocation
from .history import Comparison, History, Service
from .jobs import JobPlan
from .model import Environment
from .monitoring import Monitoring
from .network import NetworkDemand
from .number import Record
from .panel import KernelState, Live
from .plan import Plan
from .prediction import Ledger, Prediction
from .profile import CellProfile, ColdStart, ModelSummary, Profile
from .readings import Readings
from .rehearsal import Rehearsal
from .resources import ResourceDemand
from .rotation import Rotation
from .scaling import ScalePlan
from .search import SearchResult
from .sequence import SequenceDemand
from .spec import ServingSpec
from .trace import TraceSummary
from .trial import HeldVariants, TrialResult

AnyRecord = (
    Environment
    | ModelSummary
    | Profile
    | CellProfile
    | ColdStart
    | NetworkDemand
    | Demand
    | SequenceDemand
    | ResourceDemand
    | TrialResult
    | HeldVariants
    | SearchResult
    | Plan
    | Rotation
    | Rehearsal
    | ScalePlan
    | FleetAllocation
    | JobPlan
    | Prediction
    | Ledger
    | ServingSpec
    | Bundle
    | Check
    | Service
    | Monitoring
    | Readings
    | Live
    | KernelState
    | TraceSummary
    | History
    | Comparison
)
RECORDS: tuple[type[Record], ...] = get_args(AnyRecord)
R = TypeVar("R", bound=Record)


def to_json(record: Record, *, indent: int | None = 2) -> str:
    """Write `record` as JSON."""
    data = msgspec.json.encode(record)
    return (msgspec.json.format(data, indent=indent) if indent else data).decode()


def from_json(text: str | bytes, kind: type[R]) -> R:
    """Read a record of type `kind`, and check it.

    Raises:
        msgspec.ValidationError: the text is not such a record; the message has the path.
    """
    return msgspec.json.decode(text, type=kind)


def any_from_json(text: str | bytes) -> AnyRecord:
    """Read a record of whatever type its field ``record`` names.

    Raises:
        msgspec.ValidationError: the text is no record of ours; the message has the path.
    """
    return msgspec.json.decode(text, type=AnyRecord)


def json_schema(kind: type[Record]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of one record type."""
    schema = msgspec.json.schema(kind)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": kind.__struct_config__.tag, **schema}
