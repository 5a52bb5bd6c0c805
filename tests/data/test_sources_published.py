"""Each built-in layout, as its collection is published: a miniature with made-up labels and media."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inline_pass import InlineCluster

from mmva.errors import UsageError
from mmva.media.audio.decode import decode_audio
from mmva_platform import bulk
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.importing.run import import_dataset

from .source_world import config_of, imported, picture, sound, table

pytestmark = pytest.mark.usefixtures("inline_cluster")
SONG_LEVEL = "DEAM_Annotations/annotations/annotations averaged per song/song_level"
DYNAMIC = "DEAM_Annotations/annotations/annotations averaged per song/dynamic (per second annotations)"


def by_id(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in rows}


def test_oasis(tmp_path: Path) -> None:
    themes = ["Acorns 1", "Acorns 2", "Angry face 1", "Bark 1", "Bark 12"]
    for theme in themes:
        picture(tmp_path / "oasis" / "Images" / f"{theme}.jpg")
    header = ",Theme,Category,Source,Valence_mean,Valence_SD,Valence_N,Arousal_mean,Arousal_SD,Arousal_N"
    rows = [
        (f"I{n}", f"{theme} ", "Object", "Pixabay", 1 + n * 1.5, 1.2, 100, 7 - n, 0.6, 100)
        for n, theme in enumerate(themes)
    ]
    table(tmp_path / "oasis" / "OASIS.csv", header, rows)
    report, found = imported(tmp_path / "out", {"layout": "oasis", "root": str(tmp_path / "oasis")})
    assert report.counts["image"].dropped == {}
    assert {row["group"] for row in found} == {"OASIS/Acorns", "OASIS/Angry face", "OASIS/Bark"}
    row = by_id(found)["OASIS/Angry face 1"]
    assert (row["source"], row["valence"], row["arousal"]) == ("OASIS", 0.5, pytest.approx(2 / 3))
    assert (row["valence_sd"], row["arousal_sd"]) == (pytest.approx(0.2), pytest.approx(0.1))


@pytest.mark.parametrize("with_documents", [True, False])
def test_emobank(tmp_path: Path, *, with_documents: bool) -> None:
    rows = [
        ("110CYL068_1036_1079", "train", 3.0, 3.0, 3.2, '"Remember what she said?"'),
        ("110CYL068_1079_1110", "test", 2.8, 3.1, 2.8, "If I wasn't working here."),
        ("Nathans_Bylichka_2070_2072", "dev", 1.0, 5.0, 3.0, "No."),
        ("captured_moments_10_20", "train", 5.0, 1.0, 3.0, '"Oh, well, that is fine."'),
    ]
    table(tmp_path / "corpus" / "emobank.csv", "id,split,V,A,D,text", rows)
    if with_documents:
        meta = [(item, item.rsplit("_", 2)[0], "blog", " ") for item, *_ in rows]
        table(tmp_path / "corpus" / "meta.tsv", "id\tdocument\tcategory\tsubcategory", meta, "\t")
    _, found = imported(tmp_path / "out", {"layout": "emobank", "root": str(tmp_path)})
    assert [(row["id"], row["group"]) for row in found] == [
        ("EmoBank/110CYL068_1036_1079", "EmoBank/110CYL068"),
        ("EmoBank/110CYL068_1079_1110", "EmoBank/110CYL068"),
        ("EmoBank/Nathans_Bylichka_2070_2072", "EmoBank/Nathans_Bylichka"),
        ("EmoBank/captured_moments_10_20", "EmoBank/captured_moments"),
    ]
    assert (found[2]["valence"], found[2]["arousal"], found[2]["caption"]) == (0.0, 1.0, "No.")
    assert found[3]["caption"] == "Oh, well, that is fine."


def test_pmemo(tmp_path: Path) -> None:
    root = tmp_path / "PMEmo2019"
    for song in (1, 4, 5, 6):
        sound(root / "chorus" / f"{song}.mp3", rate=16_000)
    (root / "EDA").mkdir()
    (root / "EDA" / "1_EDA.csv").write_text("not a song\n")
    annotations = root / "annotations"
    songs = [(1, 0.4, 0.575), (4, 0.2625, 0.2875), (5, 0.95, 0.9), (6, 0.05, 0.1)]
    table(annotations / "static_annotations.csv", "musicId,Arousal(mean),Valence(mean)", songs)
    table(
        annotations / "static_annotations_std.csv", "musicId,Arousal(std),Valence(std)", [(1, 0.3, 0.2), (4, 0.1, 0.1)]
    )
    artists = [
        (1, "1.mp3", "Good", "Ann"),
        (4, "4.mp3", "Fair", "Ben"),
        (5, "5.mp3", "Fine", "Ben"),
        (6, "6.mp3", "Sad", "Cy"),
    ]
    table(root / "metadata.csv", "musicId,fileName,title,artist", artists)
    report, found = imported(tmp_path / "out", {"layout": "pmemo", "root": str(tmp_path)})
    assert report.counts["music"].dropped == {}
    rows = by_id(found)
    assert (rows["PMEmo/1"]["valence"], rows["PMEmo/1"]["arousal"]) == (0.575, 0.4)
    assert (rows["PMEmo/1"]["valence_sd"], rows["PMEmo/5"]["valence_sd"]) == (0.2, None)
    assert rows["PMEmo/4"]["group"] == rows["PMEmo/5"]["group"] == "PMEmo/Ben"


def deam(tmp_path: Path) -> dict[str, Any]:
    """Four songs; the header has blanks, as published, and the last songs are in a table of other columns."""
    for song in (2, 3, 7, 2001):
        sound(tmp_path / "MEMD_audio" / f"{song}.mp3", seconds=21.0, rate=16_000)
    first = [
        (2, " 3.1", " 0.94", " 3.0", " 0.63"),
        (3, " 3.5", " 1.75", " 3.3", " 1.62"),
        (7, " 9.0", " 0.8", " 1.0", " 0.8"),
    ]
    header = "song_id, valence_mean, valence_std, arousal_mean, arousal_std"
    table(tmp_path / SONG_LEVEL / "static_annotations_averaged_songs_1_2000.csv", header, first)
    header = "song_id, valence_mean, valence_std, valence_max_mean, arousal_mean, arousal_std"
    table(
        tmp_path / SONG_LEVEL / "static_annotations_averaged_songs_2000_2058.csv", header, [(2001, 2, 1.6, 5, 8.2, 0.8)]
    )
    return {"layout": "deam", "root": str(tmp_path)}


def test_deam_songs(tmp_path: Path) -> None:
    report, found = imported(tmp_path / "out", deam(tmp_path))
    assert report.counts["music"].kept == 4
    row = by_id(found)["DEAM/2001"]
    assert (row["valence"], row["arousal"]) == (0.125, pytest.approx(0.9))
    assert (row["valence_sd"], row["group"], row["media_format"]) == (pytest.approx(0.2), "DEAM/2001", "mp3")


class TestDeamClips:
    """The dynamic annotations: IMEMNet's clips, cut out of the songs."""

    TIMES = range(15_000, 21_000, 500)

    @pytest.fixture
    def source(self, tmp_path: Path) -> dict[str, Any]:
        values = {**deam(tmp_path), "annotations": "dynamic"}
        rng = np.random.default_rng(0)
        self.ratings = {
            axis: {song: rng.uniform(-0.8, 0.7, len(self.TIMES)) for song in (2, 3, 7)}
            for axis in ("valence", "arousal")
        }
        self.ratings["arousal"][7][-1] = np.nan  # a song that ends earlier
        header = ",".join(["song_id", *(f"sample_{time}ms" for time in self.TIMES)])
        for axis, songs in self.ratings.items():
            rows = [(song, *("" if np.isnan(one) else one for one in ratings)) for song, ratings in songs.items()]
            table(tmp_path / DYNAMIC / f"{axis}.csv", header, rows)
        return values

    def test_windows_of_two_seconds_have_the_mean_of_their_four_values(
        self, source: dict[str, Any], tmp_path: Path
    ) -> None:
        _, found = imported(tmp_path / "out", source)
        rows = by_id(found)
        # The first whole window begins at 16 s; song 7 has no value at 20.5 s, but its windows end before that.
        assert set(rows) == {f"DEAM/{song}-{k}" for song in (2, 3, 7) for k in (9, 10)}
        for axis in ("valence", "arousal"):
            ratings = self.ratings[axis][3]
            assert rows["DEAM/3-9"][axis] == pytest.approx((ratings[2:6].mean() + 0.832) / 1.548)
            assert rows["DEAM/3-10"][axis] == pytest.approx((ratings[6:10].mean() + 0.832) / 1.548)
        assert rows["DEAM/3-10"]["group"] == "DEAM/3"

    def test_a_clip_is_the_sound_of_its_window(self, source: dict[str, Any], tmp_path: Path) -> None:
        import_dataset(config_of(source), str(tmp_path / "out"))
        dataset = Dataset.open(str(tmp_path / "out"))
        media = {row["id"]: row["media"] for row in dataset.read_shard(dataset.shards[0].name).to_pylist()}
        song_T = decode_audio((tmp_path / "MEMD_audio" / "2.mp3").read_bytes(), 16_000)
        clip_T = decode_audio(media["DEAM/2-10"], 16_000)
        assert len(clip_T) == 2 * 16_000
        np.testing.assert_allclose(clip_T, song_T[18 * 16_000 : 20 * 16_000], atol=2 / 32_767)

    def test_a_song_is_read_once_for_all_of_its_clips(
        self, source: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mmva_platform.storage.local import LocalStorage

        read: list[str] = []
        real = LocalStorage.read

        def counting(storage: LocalStorage, path: str, most: int | None = None) -> bytes:
            read.append(path)
            return real(storage, path, most)

        monkeypatch.setattr(LocalStorage, "read", counting)
        import_dataset(config_of(source), str(tmp_path / "out"))
        assert sorted(path for path in read if path.endswith(".mp3")) == [
            "MEMD_audio/2.mp3",
            "MEMD_audio/3.mp3",
            "MEMD_audio/7.mp3",
        ]

    @pytest.mark.slow
    def test_a_shard_that_cost_workers_gives_the_same_clips(
        self, source: dict[str, Any], tmp_path: Path, inline_cluster: InlineCluster
    ) -> None:
        """In a process of its own, as any other file."""
        first, _ = imported(tmp_path / "out", source)
        inline_cluster.deaths = bulk.ISOLATE_AFTER
        again, _ = imported(tmp_path / "again", source)
        assert again.digest == first.digest

    def test_imemnets_own_split_of_the_songs_can_be_given(self, source: dict[str, Any], tmp_path: Path) -> None:
        table(tmp_path / "song_split.csv", "song_id,split", [(2, "test"), (3, "train")])
        report, found = imported(tmp_path / "out", {**source, "split": "song_split.csv"})
        assert {row["group"]: row["split"] for row in found} == {"DEAM/2": "test", "DEAM/3": "train"}
        assert report.counts["music"].dropped == {"unknown-split": 2}


@pytest.mark.parametrize("layout", ["oasis", "emobank", "pmemo", "deam"])
def test_a_folder_without_the_collection_says_what_is_missing(tmp_path: Path, layout: str) -> None:
    with pytest.raises(UsageError, match="no files there"):
        imported(tmp_path / "out", {"layout": layout, "root": str(tmp_path / "empty")})
    table(tmp_path / "else" / "t.csv", "a", [])
    with pytest.raises(UsageError, match=r"no \S+\.csv below it; give the folder of the collection as root"):
        imported(tmp_path / "out", {"layout": layout, "root": str(tmp_path / "else")})


def test_imemnet_c_keeps_its_own_reader_and_the_names_of_its_collections(published: Any, tmp_path: Path) -> None:
    """Beside another source, its ids, groups and splits are those of an import of its own."""
    imemnet = {"layout": "imemnet-c", "root": str(published.media.parent), "media": "media"}
    alone, _ = imported(tmp_path / "alone", imemnet)
    rows = [(f"sentence {n}", n / 9, 1 - n / 9) for n in range(10)]
    table(tmp_path / "words" / "t.csv", "text,valence,arousal", rows)
    words = {
        "name": "Words", "root": str(tmp_path / "words"), "modality": "caption", "table": "t.csv", "scale": [0, 1],
        "columns": {"text": "text"},
    }  # fmt: skip
    both, found = imported(tmp_path / "both", words, imemnet)
    kept = ("id", "source", "group", "split", "valence", "arousal", "caption")
    of_both = [tuple(row[name] for name in kept) for row in found if row["source"] != "Words"]
    labels = Dataset.open(str(tmp_path / "alone")).labels().to_pylist()
    assert of_both == [tuple(row[name] for name in kept) for row in labels]
    assert both.counts["caption"].kept == 10
    dataset = Dataset.open(str(tmp_path / "both"))
    assert set(dataset.info.terms) == {"IAPS", "DEAM", "Words"}
    assert dataset.info.split.policy == "group, song"
    assert sum(both.splits["caption"].values()) == 19, "sentences, and the captions of clips"
    assert alone.digest != both.digest


def test_a_name_of_ones_own_replaces_those_of_imemnets_collections(published: Any, tmp_path: Path) -> None:
    source = {"layout": "imemnet-c", "root": str(published.media.parent), "media": "media", "name": "generated"}
    imported(tmp_path / "out", source)
    info = Dataset.open(str(tmp_path / "out")).info
    assert set(info.sources["image"]) == set(info.sources["music"]) == {"generated"}
    assert info.terms == {"generated": "see its source"}
