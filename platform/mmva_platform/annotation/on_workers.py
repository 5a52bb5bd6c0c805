"""Facts about the workers for a plan: whether they have GPUs, and how fast each engine is on one of their CPUs."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from mmva.inference.calibration import Calibration
from mmva.inference.engines import LoadEncoder, calibrate_bundle
from mmva_platform.cluster import ray_session
from mmva_platform.settings import ClusterSettings


class Workers:
    """Questions to the cluster. Ray's session begins with the first one and lasts until the block ends."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings, self._stack, self._connected = settings, ExitStack(), False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def have_gpus(self) -> bool:
        """Whether the cluster has GPUs, or may start nodes that have some."""
        self._connect()
        import ray  # after the session has set Ray's environment

        return bool(self._settings.max_gpus or ray.cluster_resources().get("GPU"))

    def calibrate(
        self, bundle: Mapping[str, bytes], modality: str, cache: Path, load: LoadEncoder
    ) -> tuple[Calibration, bytes | None]:
        """calibrate_bundle in a task with one CPU: the driver's processor may be of another kind."""
        self._connect()
        import ray

        task = ray.remote(num_cpus=1)(calibrate_bundle)
        found: tuple[Calibration, bytes | None] = ray.get(task.remote(bundle, modality, cache, load))
        return found

    def _connect(self) -> None:
        if not self._connected:
            self._stack.enter_context(ray_session(self._settings))
            self._connected = True
