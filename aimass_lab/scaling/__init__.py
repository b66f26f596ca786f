"""Autoscalers, one a file: how many replicas each would want, tick by tick, of what it sees."""

from __future__ import annotations

from .base import SCALERS, Controller, Observation, Scaler, make_scaler

__all__ = ["SCALERS", "Controller", "Observation", "Scaler", "make_scaler"]
