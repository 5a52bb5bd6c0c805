"""The plan of a version of an annotation: written once before the work; every resume follows it.

In `_mmva/<version>/`, `plan/items-<first shard>-<digest>.parquet` hold the items in the order of the work, and
`plan.json` all that decides the version's content. plan.json is put if absent, so if two drivers plan the same version,
one wins. A resume does not read the catalog again: items that were added since are for a later version.
"""

import json
from bisect import bisect_right
from datetime import datetime
from typing import Any, Final, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from mmva.errors import CheckFailed, UsageError
from mmva.files import sha256_hex
from mmva.inference.config import EngineInfo, Preprocessing
from mmva_platform.annotation.options import PLAIN_TABLES, TableOptions
from mmva_platform.annotation.schema import ITEM_SCHEMA
from mmva_platform.settings import Config
from mmva_platform.storage import Storage, StorageError, StorageNotFound

INTERNAL: Final = "_mmva"
Kind = Literal["annotate", "update", "retry", "restore", "convert"]


def version_folder(version: int) -> str:
    """Folder of all files of a version except its data files, relative to the annotation."""
    return f"{INTERNAL}/{version:06d}"


def index_folder(version: int) -> str:
    """Folder of the optional indexes of a version's embeddings; see search.vectors."""
    return f"{version_folder(version)}/index"


def plan_file(version: int) -> str:
    """Path of the plan of a version."""
    return f"{version_folder(version)}/plan.json"


def cleaned_mark(version: int) -> str:
    """Path of the file that marks a version as no longer readable."""
    return f"{version_folder(version)}/cleaned"


class ModelInfo(Config):
    """The model that a run annotates with; its digest is its identity."""

    name: str
    version: str | None
    digest: str


class Base(Config):
    """What a version takes from the version before."""

    replaced: tuple[str, ...] = Field(description="data files of the version before that this one does not have")
    same_model: bool = Field(description="stored rows are copied unchanged; otherwise heads run over embeddings")
    kept: int = Field(ge=0, description="items in the files that both versions have")
    unchanged: int = Field(ge=0, description="items with the same row of the catalog, those of `kept` among them")
    new: int = Field(ge=0, description="items that the version before does not have")
    changed: int = Field(ge=0, description="items whose row of the catalog has changed")
    removed: int = Field(ge=0, description="items that the catalog no longer has")
    restores: int | None = Field(None, description="the version whose files this one has again; for a restore only")


class PlanPart(Config):
    """A Parquet file with the items of consecutive shards. Each shard is a row group, which can be read alone."""

    path: str
    sha256: str
    first_shard: int
    rows: tuple[int, ...] = Field(min_length=1, description="items of each shard")


class CatalogInfo(Config):
    """The catalog as it was when the plan was made."""

    uri: str
    tables: TableOptions = PLAIN_TABLES
    items: int = Field(ge=1, description="rows without repeated ids")
    by_modality: dict[str, int] = Field(description='items; "unknown" for rows without a modality')
    skipped: dict[str, int] = Field(description="files that are not media by extension, unlisted files by reason")
    duplicates: int = Field(description="rows that are left out because an earlier row has their id")
    duplicate_ids: tuple[str, ...] = Field(description="the first few of them")


class Plan(Config):
    """`plan.json`."""

    annotation_version: int
    run_id: str
    created_at: datetime
    model: ModelInfo
    preprocessing: Preprocessing
    engines: dict[str, EngineInfo] = Field(description="tower -> engine")
    catalog: CatalogInfo
    version: int = Field(ge=0, description="version of the table that this plan makes")
    kind: Kind
    base: Base | None = Field(None, description="None for version 0")
    roots: tuple[str, ...] = Field((), description="media are read from below these only; the catalog's own first")
    command: tuple[str, ...] = Field(description="as it was typed, for the run card")
    keep_windows: bool = Field(description="whether embeddings of windows are written, too")
    parts: tuple[PlanPart, ...]

    @property
    def folder(self) -> str:
        """Folder of all files of this version except its data files."""
        return version_folder(self.version)

    @property
    def shards(self) -> list[str]:
        """Names of the shards, in order."""
        return [f"{number:06d}" for number in range(sum(len(part.rows) for part in self.parts))]

    @property
    def rows(self) -> list[int]:
        """Items of each shard."""
        return [rows for part in self.parts for rows in part.rows]

    @property
    def on_gpus(self) -> bool:
        """Whether workers need a GPU."""
        return any(engine.on_gpu for engine in self.engines.values())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the output, including the items, but not the run's id, time and names."""
        parts = [part.sha256 for part in self.parts]
        return sha256_hex(json.dumps([self.decisive(), parts], sort_keys=True).encode())

    def decisive(self) -> dict[str, Any]:
        """The values that two calls must have in common to share an output, as a flat mapping."""
        flat: dict[str, Any] = {
            "annotation schema version": self.annotation_version,
            "model digest": self.model.digest,
            "catalog": self.catalog.uri,
            "lenient": self.catalog.tables.lenient,
            "delimiter": self.catalog.tables.delimiter,
            "window_s": self.preprocessing.window_s,
            "hop_s": self.preprocessing.hop_s,
            "short_side": self.preprocessing.short_side,
            "decoders": self.preprocessing.decoders,
            "window embeddings kept": self.keep_windows,
            "roots": ", ".join(sorted(set(self.roots))),
            "version": self.version,
            "made by": self.kind,
        }
        for name, value in sorted(self.preprocessing.fingerprints.items()):
            flat[f"{name} preprocessing"] = value
        for name, engine in sorted(self.engines.items()):
            flat[f"{name} engine"] = engine.name
        return flat

    def differences(self, other: Self) -> list[str]:
        """The differences that keep another plan from sharing this one's output, one line each."""
        there, now = self.decisive(), other.decisive()
        pairs = {key: (there.get(key), now.get(key)) for key in there | now}
        return [f"{key}: {old} there, {new} now" for key, (old, new) in pairs.items() if old != new]

    def check_same(self, other: Self, out: str) -> None:
        """Raise CheckFailed, naming every difference, if another plan cannot share this one's output."""
        differences = "; ".join(self.differences(other))
        if differences and self.version:
            raise CheckFailed(
                f"{out}: version {self.version} is under way with other options ({differences}); `mmva annotations "
                "resume` finishes it"
            )
        if differences:
            raise CheckFailed(
                f"{out} holds annotations made with other options ({differences}); choose another output, or use the "
                "same options; `mmva annotations resume` needs none"
            )


def read_plan(storage: Storage, version: int = 0) -> Plan:
    """The plan of a version. Raises UsageError if it is missing or cannot be read as a plan."""
    path = plan_file(version)
    try:
        return Plan.model_validate_json(storage.read(path))
    except StorageNotFound:
        if storage.exists("plan.json"):
            raise UsageError(
                f"{storage.uri}: annotations of an earlier format; `mmva annotations convert` makes a table of them"
            ) from None
        raise UsageError(f"{storage.uri}: no annotation here ({path} is missing)") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "content"
        raise UsageError(f"{storage.join(path)}: not a plan of this mmva ({field}: {first['msg']})") from None


class ItemReader:
    """Reads items of a plan's shards: only the row group of a shard, with page checksums."""

    def __init__(self, storage: Storage, plan: Plan) -> None:
        """The last part stays open, so reading shards in order is fastest."""
        self._storage, self._parts = storage, plan.parts
        self._firsts = [part.first_shard for part in plan.parts]
        self._path = ""
        self._file: pq.ParquetFile | None = None

    def __call__(self, shard: str) -> pa.Table:
        """Items of a shard (ITEM_SCHEMA). Raises CheckFailed if its part has changed since it was planned."""
        number = int(shard)
        part = self._parts[bisect_right(self._firsts, number) - 1]
        group = number - part.first_shard
        try:
            items = self._part(part).read_row_group(group)
        except StorageError:
            raise
        except (pa.ArrowException, OSError) as error:
            self._path = ""
            raise self._changed(part, " ".join(str(error).split())) from None
        if items.num_rows != part.rows[group] or not items.schema.equals(ITEM_SCHEMA):
            raise self._changed(part, f"{items.num_rows} rows for shard {shard}, planned {part.rows[group]}")
        return items

    def _part(self, part: PlanPart) -> pq.ParquetFile:
        if self._file is None or self._path != part.path:
            local = self._storage.local_path(part.path)
            file = pa.OSFile(str(local)) if local else self._storage.open(part.path)  # both close with the reader
            self._file = pq.ParquetFile(file, pre_buffer=True, page_checksum_verification=True)
            self._path = part.path
        return self._file

    def _changed(self, part: PlanPart, reason: str) -> CheckFailed:
        return CheckFailed(f"{self._storage.join(part.path)}: changed since it was planned ({reason})")


def changed_parts(storage: Storage, plan: Plan) -> list[str]:
    """One line for each part that has changed since it was planned; reads all parts."""
    found = []
    for part in plan.parts:
        try:
            if sha256_hex(storage.read(part.path)) != part.sha256:
                found.append(f"{storage.join(part.path)}: changed since it was planned (SHA-256 differs)")
        except StorageNotFound as error:
            found.append(str(error))
    return found
