"""What each operator computes and moves: FLOP formulas by family, classification, bytes and workspaces."""

from __future__ import annotations

from .kinds import Family, Kind, name_of
from .memory import tensor_bytes, workspace_bound
from .registry import Operator, classify, describe, register_formula

__all__ = ["Family", "Kind", "Operator", "classify", "describe", "name_of", "register_formula", "tensor_bytes", "workspace_bound"]
