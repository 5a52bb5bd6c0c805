"""A bundle as an MLflow model: a pyfunc from our own code file, with a signature."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmva.errors import UsageError
from mmva.media.windows import HOP_S, WINDOW_S

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

MODEL_NAME: Final = "model"
BUNDLE_PATH: Final = "artifacts/bundle"
# Can be overridden on loading: mlflow.pyfunc.load_model(uri, model_config={"mirror": ...}). No repository's code is
# trusted by default, even if training trusted it.
MODEL_CONFIG: Final[dict[str, Any]] = {"window_s": WINDOW_S, "hop_s": HOP_S, "mirror": None, "trusted_repos": []}


def log_model(client: MlflowClient, run_id: str, bundle_dir: Path, tags: Mapping[str, str]) -> str:
    """Log a bundle as the run's model and return its MLflow id.

    MLflow's own log_model needs the process-wide tracking URI and active run; the client's calls need neither.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    run = client.get_run(run_id)
    logged = client.create_logged_model(run.info.experiment_id, name=MODEL_NAME, source_run_id=run_id, tags=dict(tags))
    try:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            ids = {"run_id": run_id, "model_uuid": logged.model_id, "model_id": logged.model_id}
            save_model(folder, bundle_dir, Model(artifact_path=logged.artifact_location, **ids))
            client.log_model_artifacts(logged.model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)


def save_model(folder: Path, bundle_dir: Path, description: Any = None) -> None:
    """Write the folder of the MLflow model: MLmodel, our code file, requirements and the bundle."""
    import mlflow
    import pandas as pd

    with tempfile.TemporaryDirectory() as temporary:
        # MLflow names the artifact after its folder.
        bundle = Path(shutil.copytree(bundle_dir, Path(temporary) / Path(BUNDLE_PATH).name))
        mlflow.pyfunc.save_model(
            path=str(folder),
            mlflow_model=description,
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={bundle.name: str(bundle)},
            signature=signature(),
            input_example=pd.DataFrame({"modality": ["caption"], "caption": ["a calm piano piece with soft strings"]}),
            model_config=MODEL_CONFIG,
            pip_requirements=[f"mmva-platform=={version('mmva-platform')}"],
        )


def signature() -> ModelSignature:
    """Input and output columns; pyfunc.py explains them."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    texts = [ColSpec("string", "modality"), *(ColSpec("string", name, required=False) for name in ("uri", "caption"))]
    names = ("valence", "arousal", "valence_low", "valence_high", "arousal_low", "arousal_high")
    numbers = [ColSpec("double", name) for name in names]
    return ModelSignature(inputs=Schema(texts), outputs=Schema([*numbers, ColSpec("string", "error", required=False)]))


def logged_model(client: MlflowClient, run_id: str, name: str) -> Any:
    """The model of that name that a run logged. Raises UsageError if there is no such run or model."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException:
        raise UsageError(f"MLflow has no run {run_id!r} (is this the right home or tracking.uri?)") from None
    models = [client.get_logged_model(output.model_id) for output in run.outputs.model_outputs] if run.outputs else []
    for model in models:
        if model.name == name and str(model.status) == "READY":
            return model
    raise UsageError(
        f"run {run_id} ({run.info.status.lower()}) has no complete model {name!r}; train again, or resume the run"
    )
