"""The evidence of a contest between two registered versions: both predicted on the candidate's rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva_platform.settings import Settings
from mmva_platform.tracking import paired
from mmva_platform.tracking.evidence import Contender, Evidence
from mmva_platform.tracking.policy import GatePolicy
from mmva_platform.tracking.resolve import resolve_model
from mmva_platform.tracking.versions import RegisteredVersion, evaluation_of

if TYPE_CHECKING:
    from mlflow import MlflowClient


def gather(
    client: MlflowClient,
    settings: Settings,
    candidate: RegisteredVersion,
    champion: RegisteredVersion | None,
    policy: GatePolicy,
) -> Evidence:
    """All that the rules look at; what stands in the way of a comparison becomes the evidence's trouble.

    Raises:
        UsageError: If the candidate's bundle is not there.
        CheckFailed: If its bundle or its evaluation is not the registered one.
    """
    if champion is None:
        return Evidence(_contender(client, candidate), None, policy)
    bundle_dir = resolve_model(f"models:/{candidate.name}/{candidate.version}", settings).bundle_dir
    mine, theirs = _contender(client, candidate, bundle_dir), _contender(client, champion)
    dataset, split = mine.evaluation.get("dataset"), mine.evaluation.get("split")
    if not (dataset and split):
        return Evidence(mine, theirs, policy, trouble="the candidate's evaluation names no dataset and split")
    try:
        other_dir = resolve_model(f"models:/{champion.name}/{champion.version}", settings).bundle_dir
        pairing = paired.predict_pair(bundle_dir, other_dir, str(dataset), settings, split=str(split), policy=policy)
    except (UsageError, CheckFailed, OperationFailed) as error:
        return Evidence(mine, theirs, policy, trouble=str(error))
    return Evidence(mine, theirs, policy, pairing)


def _contender(client: MlflowClient, version: RegisteredVersion, bundle_dir: Path | None = None) -> Contender:
    return Contender(
        version.version,
        version.run_id,
        version.model_digest,
        evaluation_of(client, version),
        version.dataset_digest,
        None if bundle_dir is None else paired.facts_of(bundle_dir),
    )
