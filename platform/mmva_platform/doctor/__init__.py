"""`mmva doctor`: checks of this machine and of the services that it uses, and what to do about failed ones."""

from mmva_platform.doctor.findings import Finding, Report
from mmva_platform.doctor.run import examine

__all__ = ["Finding", "Report", "examine"]
