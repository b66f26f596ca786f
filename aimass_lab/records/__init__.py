"""The values that travel between rooms and processes: frozen, and JSON with a published schema.

A figure that a user can see is a `Number`: a value that knows its unit, where it comes
from, how sure it is and which environment it holds for. Everything else here is a frame
around numbers. Nothing in this room computes, measures or renders.
"""

from .bundle import Bundle, Check, Promise
from .codec import RECORDS, AnyRecord, any_from_json, from_json, json_schema, to_json
from .demand import Bound, Demand, LengthPoint, LineDemand, MemoryPoint, ModuleDemand, OperatorDemand, PeakPlace, TrainingDemand
from .history import Comparison, Difference, History, Run, Service
from .model import Environment, ModelInfo, TensorSpec
from .network import MessageForm, NetworkDemand, Traffic
from .number import INTERRUPTED, TRUST, Note, Number, Quality, Record, Source, Unit, derived
from .plan import Plan, PlanOption, Target
from .prediction import Basis, Ledger, LedgerEntry, LedgerKind, PredictedPoint, Prediction, Quantity
from .profile import (
    Advice,
    BatchPoint,
    CellProfile,
    ColdStart,
    KernelTime,
    LineTime,
    LiveTensor,
    MemoryPart,
    MemoryTimeline,
    ModuleTime,
    OperatorTime,
    Profile,
)
from .readings import CpuReading, GpuProcess, GpuReading, MemoryReading, NetworkReading, Readings, StorageReading
from .recipe import ORIGINAL, OptionValue, Recipe, Step
from .resources import Coefficients, Form, ResourceDemand
from .rotation import Gantt, RotatedModel, Rotation, RotationClock, RotationMetric, RotationRun
from .scaling import AllocationKind, ScaleOption, ScalePlan, ScaleSeries
from .search import Candidate, FailureKind, Limit, Objective, ObjectiveName, Pruned, RunnerUp, SearchResult, Status
from .sequence import DecodeStep, SequenceDemand
from .spec import Finding, ServingSpec
from .trace import TraceGpu, TraceKernel, TraceMemory, TraceModule, TraceOperator, TraceStep, TraceSummary
from .trial import Clock, HeldVariant, HeldVariants, LayerChange, Setting, Speed, StepReport, TrialPoint, TrialResult, Verdict, WorstSample

__all__ = [
    "INTERRUPTED",
    "ORIGINAL",
    "RECORDS",
    "TRUST",
    "Advice",
    "AllocationKind",
    "AnyRecord",
    "Basis",
    "BatchPoint",
    "Bound",
    "Bundle",
    "Candidate",
    "CellProfile",
    "Check",
    "Clock",
    "Coefficients",
    "ColdStart",
    "Comparison",
    "CpuReading",
    "DecodeStep",
    "Demand",
    "Difference",
    "Environment",
    "FailureKind",
    "Finding",
    "Form",
    "Gantt",
    "GpuProcess",
    "GpuReading",
    "HeldVariant",
    "HeldVariants",
    "History",
    "KernelTime",
    "LayerChange",
    "Ledger",
    "LedgerEntry",
    "LedgerKind",
    "LengthPoint",
    "Limit",
    "LineDemand",
    "LineTime",
    "LiveTensor",
    "MemoryPart",
    "MemoryPoint",
    "MemoryReading",
    "MemoryTimeline",
    "MessageForm",
    "ModelInfo",
    "ModuleDemand",
    "ModuleTime",
    "NetworkDemand",
    "NetworkReading",
    "Note",
    "Number",
    "Objective",
    "ObjectiveName",
    "OperatorDemand",
    "OperatorTime",
    "OptionValue",
    "PeakPlace",
    "Plan",
    "PlanOption",
    "PredictedPoint",
    "Prediction",
    "Profile",
    "Promise",
    "Pruned",
    "Quality",
    "Quantity",
    "Readings",
    "Recipe",
    "Record",
    "ResourceDemand",
    "RotatedModel",
    "Rotation",
    "RotationClock",
    "RotationMetric",
    "RotationRun",
    "Run",
    "RunnerUp",
    "ScaleOption",
    "ScalePlan",
    "ScaleSeries",
    "SearchResult",
    "SequenceDemand",
    "Service",
    "ServingSpec",
    "Setting",
    "Source",
    "Speed",
    "Status",
    "Step",
    "StepReport",
    "StorageReading",
    "Target",
    "TensorSpec",
    "TraceGpu",
    "TraceKernel",
    "TraceMemory",
    "TraceModule",
    "TraceOperator",
    "TraceStep",
    "TraceSummary",
    "Traffic",
    "TrainingDemand",
    "TrialPoint",
    "TrialResult",
    "Unit",
    "Verdict",
    "WorstSample",
    "any_from_json",
    "derived",
    "from_json",
    "json_schema",
    "to_json",
]
