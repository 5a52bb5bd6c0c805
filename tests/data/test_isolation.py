"""Files that kill or hang their decoder, and workers that do not see the media, in import and embed.

Shards run in this process; what is to be isolated runs in real child processes with a broken decoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inline_pass import InlineCluster
from PIL import Image
from poison_pictures import HANGS, KILLS, poison_path

from mmva.errors import EnvironmentFault, OperationFailed
from mmva_platform import bulk
from mmva_platform.datasets.checking import check_dataset
from mmva_platform.datasets.embedding.run import embed_dataset
from mmva_platform.datasets.features import load_features
from mmva_platform.datasets.importing.run import import_dataset
from mmva_platform.settings import AnnotationSettings, ClusterSettings, Settings
from mmva_platform.storage import StorageNotFound
from mmva_platform.storage.local import LocalStorage

SETTINGS = Settings(
    annotation=AnnotationSettings(item_timeout_s=3.0), cluster=ClusterSettings(max_attempts=1)
)  # other items take milliseconds


@pytest.fixture
def poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks the decoder of child processes, not of this one."""
    monkeypatch.setenv("PYTHONPATH", poison_path(tmp_path / "poison"))


def write_picture(folder: Path, name: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(int(name)).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images" / f"{name}.jpg", format="JPEG")


@pytest.mark.slow
@pytest.mark.usefixtures("poison")
def test_an_import_drops_only_the_file_that_kills_or_hangs(
    published: Any, tmp_path: Path, inline_cluster: InlineCluster
) -> None:
    write_picture(published.media, "1002", KILLS)
    write_picture(published.media, "1009", HANGS)
    inline_cluster.deaths = bulk.ISOLATE_AFTER
    out = str(tmp_path / "dataset")
    images = import_dataset(published.config(), out, SETTINGS).counts["image"]
    assert images.dropped["killed-worker"] == images.dropped["timed-out"] == 1
    assert images.rows == images.kept + sum(images.dropped.values())
    assert images.kept == 3
    assert check_dataset(out).ok


@pytest.mark.slow
@pytest.mark.usefixtures("poison")
def test_an_embedding_names_the_item_that_kills(published: Any, tmp_path: Path, inline_cluster: InlineCluster) -> None:
    write_picture(published.media, "1002", KILLS)
    out = str(tmp_path / "dataset")
    import_dataset(published.config(), out, SETTINGS)
    inline_cluster.deaths = bulk.ISOLATE_AFTER
    with pytest.raises(OperationFailed, match=r"image '1002' in shards/image-00000-\w+\.parquet: killed-worker"):
        embed_dataset(out, "tiny", None, SETTINGS)


@pytest.mark.slow
def test_isolated_items_have_the_embeddings_of_a_batch(
    published: Any, tmp_path: Path, inline_cluster: InlineCluster
) -> None:
    out = str(tmp_path / "dataset")
    import_dataset(published.config(), out)
    embed_dataset(out, "tiny")
    inline_cluster.deaths = bulk.ISOLATE_AFTER
    embed_dataset(out, "tiny", str(tmp_path / "isolated"))
    plain, isolated = load_features(out, "tiny"), load_features(out, "tiny", embeddings=str(tmp_path / "isolated"))
    for modality, rows in plain.items():
        assert list(rows.ids) == list(isolated[modality].ids)
        np.testing.assert_allclose(rows.emb_ND, isolated[modality].emb_ND, atol=1e-5)


class TestMissingFiles:
    @pytest.fixture
    def unseen(self, monkeypatch: pytest.MonkeyPatch) -> set[str]:
        """Starts of paths that the workers do not see."""
        hidden: set[str] = set()
        real = LocalStorage.read

        def read(self: LocalStorage, path: str, most: int | None = None) -> bytes:
            if path.startswith(tuple(hidden)):
                raise StorageNotFound(f"{path}: not found")
            return real(self, path, most)

        monkeypatch.setattr(LocalStorage, "read", read)
        return hidden

    @pytest.mark.usefixtures("inline_cluster")
    def test_media_that_no_worker_sees_stop_the_import(self, published: Any, tmp_path: Path, unseen: set[str]) -> None:
        """As with media on a disk of the driver's node only. They are not dropped as missing, row by row."""
        unseen.update({"images/", "audio/"})
        with pytest.raises(EnvironmentFault, match="every node must see the media"):
            import_dataset(published.config(shard_rows=4), str(tmp_path / "dataset"))
        assert not (tmp_path / "dataset").exists()

    @pytest.mark.usefixtures("inline_cluster")
    def test_a_shard_whose_files_are_gone_while_others_are_there_is_dropped(
        self, published: Any, tmp_path: Path, unseen: set[str]
    ) -> None:
        unseen.update({"audio/2-1", "audio/2-2"})  # a shard of two
        counts = import_dataset(published.config(shard_rows=2), str(tmp_path / "dataset")).counts
        assert counts["music"].dropped == {"missing-file": 2}

    @pytest.mark.usefixtures("inline_cluster")
    def test_a_single_file_that_vanished_is_dropped(self, published: Any, tmp_path: Path, unseen: set[str]) -> None:
        unseen.add("audio/2-1")
        counts = import_dataset(published.config(), str(tmp_path / "dataset")).counts
        assert counts["music"].dropped == {"missing-file": 1}
