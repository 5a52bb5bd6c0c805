"""`mmva doctor`: what of this machine and the services that it uses works, and what to do about the rest."""

from mmva_platform.doctor.findings import Finding, Report
from mmva_platform.doctor.run import examine

__all__ = ["Finding", "Report", "examine"]
