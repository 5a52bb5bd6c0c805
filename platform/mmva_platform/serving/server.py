"""`mmva serve`: Ray Serve on this machine, or on the configured cluster, until it is told to end."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from mmva.errors import OperationFailed
from mmva_platform.cluster import ray_session
from mmva_platform.settings import Settings

if TYPE_CHECKING:
    from mmva_platform.serving.deployments import Report

logger = logging.getLogger(__name__)

APP: Final = "mmva"


@contextmanager
def running(settings: Settings, report: Report) -> Iterator[str]:
    """The API for the length of a block; gives its address.

    Raises:
        UsageError, CheckFailed, OperationFailed: If there is no such model, or Ray does not start.
    """
    with ray_session(settings.cluster):
        from ray import serve
        from ray.serve.config import ProxyLocation
        from ray.serve.schema import LoggingConfig

        from mmva_platform.serving.deployments import build

        serving = settings.serving
        quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location=ProxyLocation.Disabled, logging_config=quiet)
        try:
            _run(build(settings, report, listens=True), quiet)
            yield f"http://{serving.host}:{serving.port}"
        finally:
            # Not serve.shutdown(): of a cluster that is not ours it would end everybody's applications, and of a
            # private one Ray would complain that the controller ended before it had answered.
            serve.delete(APP)


def _run(application: Any, quiet: Any) -> None:
    from ray import serve

    try:
        serve.run(application, name=APP, route_prefix=None, logging_config=quiet)
    except RuntimeError as error:  # all that Serve says is which deployment it was; its log says why
        raise OperationFailed(f"serve: {str(error).partition(chr(10))[0]}; see Ray's logs in logs/serve") from error


def serve_until_stopped(settings: Settings, report: Report) -> None:
    """Serve until SIGINT or SIGTERM; jobs that run then go on at the next start."""
    from mmva_platform.serving.listener import await_port
    from mmva_platform.tracking.resolve import resolve_model

    await_port(settings.serving.host, settings.serving.port)
    if not settings.serving.wait_for_model:
        resolve_model(settings.serving.model, settings)  # says in one line what replicas would say in a traceback
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with running(settings, report) as address:
        logger.info(
            "serving %s at %s (documentation at %s/docs); Ctrl-C ends it", settings.serving.model, address, address
        )
        while not stop.wait(1.0):
            pass
    logger.info("stopped")
