"""For operators: logs with run, shard and attempt, and metrics for Prometheus."""

from mmva_platform.monitoring.logs import bound, write_json_logs
from mmva_platform.monitoring.metrics import RunMetrics

__all__ = ["RunMetrics", "bound", "write_json_logs"]
