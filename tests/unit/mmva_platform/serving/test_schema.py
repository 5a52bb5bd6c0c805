"""The API fuzzed by its own description: whatever is sent, the answer is a described one and never a server error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from ...helpers.serving_world import bearer, make_world


@pytest.mark.slow
def test_whatever_is_sent(tmp_path: Path) -> None:
    import schemathesis  # here, not above: two seconds a process
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

    (tmp_path / "media").mkdir()
    world = make_world(tmp_path, roots=(str(tmp_path / "media"),), out_roots=(str(tmp_path / "outs"),))
    schema = schemathesis.openapi.from_asgi("/openapi.json", world.client.app, headers=bearer("boss"))
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 20
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        def check(case: Any) -> None:
            case.call_and_validate(
                headers=bearer("boss"),
                checks=[not_a_server_error, status_code_conformance, response_schema_conformance],
            )

        check()
