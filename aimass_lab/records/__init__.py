"""The values that travel between rooms and processes: frozen, and JSON with a published schema.

A figure that a user can see is a `Number`: a value that knows its unit, where it comes
from, how sure it is and which environment it holds for. Everything else here is a frame
around numbers. Nothing in this room computes, measures or renders.
"""

from .bundle import Bundle, Check, Promise
from .codec import RECORDS, AnyRecord, any_from_json, from_json, json_schema, to_json
from .demand import Demand, ModuleDemand, OperatorDemand
from .history import Comparison, Difference, History, Run, Service
from .model import Environment, ModelInfo, TensorSpec
from .number import INTERRUPTED, TRUST, Note, Number, Quality, Record, Source, Unit, derived
from .plan import Plan, PlanOption, Target
from .profile import BatchPoint, CellProfile, ModuleTime, Profile
from .spec import Finding, ServingSpec
from .trial import SearchResult, Setting, TrialResult, Verdict

__all__ = [
    "INTERRUPTED",
    "RECORDS",
    "TRUST",
    "AnyRecord",
    "BatchPoint",
    "Bundle",
    "CellProfile",
    "Check",
    "Comparison",
    "Demand",
    "Difference",
    "Environment",
    "Finding",
    "History",
    "ModelInfo",
    "ModuleDemand",
    "ModuleTime",
    "Note",
    "Number",
    "OperatorDemand",
    "Plan",
    "PlanOption",
    "Profile",
    "Promise",
    "Quality",
    "Record",
    "Run",
    "SearchResult",
    "Service",
    "ServingSpec",
    "Setting",
    "Source",
    "Target",
    "TensorSpec",
    "TrialResult",
    "Unit",
    "Verdict",
    "any_from_json",
    "derived",
    "from_json",
    "json_schema",
    "to_json",
]
