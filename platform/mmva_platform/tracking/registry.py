"""The registry's one door: register, list, resolve, promote, roll back."""

from __future__ import annotations

from mmva_platform.tracking.gate import Finding, GatePolicy, Verdict
from mmva_platform.tracking.promotion import promote, rollback
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
    "Finding", "GatePolicy", "RegisteredVersion", "ResolvedModel", "Verdict", "VersionDetails",
    "list_versions", "promote", "register", "resolve_model", "rollback", "show_version", "training_history",
]  # fmt: skip
