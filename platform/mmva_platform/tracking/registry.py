"""The registry's one door: register, list, resolve, compare, promote, roll back, audit."""

from __future__ import annotations

from mmva_platform.tracking.gate import Finding, GatePolicy, GateRefused, Verdict
from mmva_platform.tracking.promotion import challenge, compare, promote, rollback
from mmva_platform.tracking.replay import AuditReport, audit
from mmva_platform.tracking.resolve import ResolvedModel, resolve_model
from mmva_platform.tracking.versions import (
    RegisteredVersion,
    VersionDetails,
    list_versions,
    register,
    show_version,
    training_history,
)

__all__ = [
    "AuditReport", "Finding", "GatePolicy", "GateRefused", "RegisteredVersion", "ResolvedModel", "Verdict",
    "VersionDetails", "audit", "challenge", "compare", "list_versions", "promote", "register", "resolve_model",
    "rollback", "show_version", "training_history",
]  # fmt: skip
