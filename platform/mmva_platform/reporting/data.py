"""The content of a report as tables and values, so that reporting needs no storage, registry or training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class ReportData:
    """The content of a report; empty parts are left out of the page."""

    annotations: pa.Table  # id, uri, modality, valence, arousal, mood, duration_s and the interval bounds are read
    quarantine: pa.Table  # id, uri, modality, stage, error and message are read
    read: Callable[[str], bytes]  # bytes of an item by URI, for the examples; if it raises, the example has no picture
    captions: Mapping[str, str] = field(default_factory=dict)  # text by id, for captions whose text is in the catalog
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # the model's, in its JSON form
    history: Sequence[Mapping[str, Any]] = ()  # rows of the training run, one per epoch
    # origin by label, in display order: model, digests, run, command
    lineage: Mapping[str, str] = field(default_factory=dict)
    # see runcard.run_facts; also written next to the page as JSON
    facts: Mapping[str, Any] = field(default_factory=dict)
    title: str = "A catalog in the valence-arousal plane"
