"""What a report is made of, as plain tables and values: reporting knows no storage, no registry and no training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows; what is empty is left out of it.

    Attributes:
        annotations: Annotated items; of the annotation schema's columns, id, uri, modality, valence, arousal, mood and
            duration_s are read, and the interval bounds where they are not null.
        quarantine: Quarantined items; id, uri, modality, stage, error and message are read.
        read: Fetches the bytes of an item by its URI, for the examples; may raise, the example then has no picture.
        captions: Text by id, for captions whose text stands in the catalog and not in a file.
        evaluation: The model's evaluation in its JSON form.
        history: The training run's rows, one an epoch.
        lineage: What came from where, by label, in the order to be shown: model, digests, run, command.
        facts: The run card's facts (runcard.run_facts), drawn and written beside the page as JSON.
        title: Of the page.
    """

    annotations: pa.Table
    quarantine: pa.Table
    read: Callable[[str], bytes]
    captions: Mapping[str, str] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    lineage: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    title: str = "A catalog in the valence-arousal plane"
