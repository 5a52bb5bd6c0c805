"""`mmva doctor`: checks of this machine and of the services that it uses, and what to change if one fails."""

import os

from mmva_platform.doctor import machine, services
from mmva_platform.doctor.findings import Finding, Report, ok
from mmva_platform.settings import Settings

__all__ = ["Finding", "Report", "examine"]


def examine(settings: Settings, storage: str | None = None, address: str | None = None) -> Report:
    """Check this machine and the services in its settings.

    `storage` is the URI of a place for outputs; a few objects are written there and removed. `address` is that of the
    cluster's job server, RAY_API_SERVER_ADDRESS by default.
    """
    findings = [
        machine.python(),
        machine.standard_library(),
        machine.packages(),
        machine.native_libraries(),
        machine.open_files(),
        machine.home(settings.home),
        machine.temporary(),
        machine.locale(),
        machine.proxies(),
        machine.token(),
        services.tracking(settings),
        services.storage(storage, settings.storage) if storage else _not_asked("storage", "--storage URI"),
    ]
    if settings.storage.s3_endpoint:
        findings.append(services.clock(settings.storage.s3_endpoint))
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    findings.append(services.cluster(address) if address else _not_asked("cluster", "--address URL"))
    return Report(tuple(findings))


def _not_asked(check: str, option: str) -> Finding:
    return ok(check, f"not checked; {option} checks it")
