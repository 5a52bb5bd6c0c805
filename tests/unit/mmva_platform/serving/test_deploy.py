"""deploy/serve.yaml and the RayService are what Serve takes, and their `args` are settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mmva.errors import UsageError
from mmva_platform.cli.serving import application


def test_the_deployment_builds(repository: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    content = yaml.safe_load((repository / "deploy" / "serve.yaml").read_text())
    schema = ServeDeploySchema.model_validate(content)
    assert schema.http_options.host == "127.0.0.1"
    (app,) = schema.applications
    (service,) = yaml.safe_load_all((repository / "deploy" / "kubernetes" / "rayservice.yaml").read_text())
    (on_kubernetes,) = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"])).applications
    assert on_kubernetes.import_path == app.import_path
    assert type(application(on_kubernetes.args)).__name__ == "Application"
    assert app.import_path == f"{application.__module__}:{application.__name__}"
    assert type(application(app.args)).__name__ == "Application"
    with pytest.raises(UsageError, match=r"serving\.modle"):
        application({"serving": {"modle": "x"}})
