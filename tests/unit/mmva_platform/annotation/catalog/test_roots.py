"""Every known way out of the allowed folders and prefixes is shut, and the ways in are open."""

from pathlib import Path

import pytest

from mmva.errors import MediaError, UsageError
from mmva_platform.annotation.catalog.roots import AllowedRoots, catalog_root, normalised_root
from mmva_platform.storage import place_of


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    (folder / "sub").mkdir(parents=True)
    for file in (folder / "a.png", folder / "sub/b.png", tmp_path / "secret.png"):
        file.write_bytes(b"1")
    (tmp_path / "media2").mkdir()
    (tmp_path / "media2/c.png").write_bytes(b"1")
    return folder


def test_media_below_a_folder_are_allowed(media: Path) -> None:
    roots = AllowedRoots([str(media)])
    for uri in (f"{media}/a.png", f"file://{media}/sub/b.png", f"{media}/sub/../a.png", f"{media}/not-there.png"):
        assert roots.allow(uri), uri
        roots.check(uri)


@pytest.mark.parametrize(
    "way_out",
    [
        "{media}/../secret.png",
        "{media}/sub/../../secret.png",
        "file://{media}/../secret.png",
        "file://{media}/%2e%2e/secret.png",
        "file://{media}/..%2fsecret.png",
        "file://%2fetc/passwd",
        "{media}2/c.png",  # the root's name begins this one's
        "{media}",
        "{media}/",
        "/etc/passwd",
        "/proc/self/environ",
        "file://host{media}/a.png",
        "file://localhost{media}/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "https://example.org{media}/a.png",
        "ftp://host/a.png",
        "data:image/png;base64,AAAA",
        "s3://bucket{media}/a.png",
        "S3://bucket/a.png",
        "media/a.png",
        "~/a.png",
        "",
        "{media}/a.png\0",
        "file://{media}/%00.png",
    ],
)
def test_ways_out_of_a_folder_are_shut(media: Path, way_out: str) -> None:
    uri = way_out.format(media=media)
    roots = AllowedRoots([str(media)])
    assert not roots.allow(uri)
    with pytest.raises(MediaError) as caught:
        roots.check(uri)
    assert (caught.value.code, caught.value.stage) == ("outside-roots", "catalog")


def test_links_are_followed_before_they_are_judged(media: Path, tmp_path: Path) -> None:
    (media / "file.png").symlink_to(tmp_path / "secret.png")
    (media / "folder").symlink_to(tmp_path)
    (media / "chain").symlink_to(media / "folder")
    (media / "inside.png").symlink_to(media / "sub/b.png")
    (tmp_path / "entrance").symlink_to(media)
    roots = AllowedRoots([str(media)])
    assert not any(roots.allow(f"{media}/{name}") for name in ("file.png", "folder/secret.png", "chain/secret.png"))
    assert roots.allow(f"{media}/inside.png")
    assert roots.allow(f"{tmp_path}/entrance/a.png")
    assert AllowedRoots([f"{tmp_path}/entrance"]).allow(f"{media}/a.png")  # a root that is itself a link


def test_loop_of_links_leads_nowhere(media: Path) -> None:
    (media / "x").symlink_to(media / "y")
    (media / "y").symlink_to(media / "x")
    roots = AllowedRoots([str(media)])
    assert not roots.allow(f"{media}/x/../../secret.png")
    if roots.allow(f"{media}/x"):  # inside by name; the system opens no loop
        with pytest.raises(OSError, match="levels of symbolic links"):
            (media / "x").stat()


def test_media_below_a_prefix_are_allowed() -> None:
    roots = AllowedRoots(["s3://b/media/", "s3://whole"])
    for uri in ("s3://b/media/a.png", "s3://b/media/x/y z%20.png", "s3://b/media/..a/b..png", "s3://whole/a.png"):
        assert roots.allow(uri), uri


@pytest.mark.parametrize(
    "key",
    [
        "a//b.jpg", "./x.jpg", "/a.png", "https%3A%2F%2Fexample.com%2Fa.jpg", "a\\\\b.png", "%2F%2F", "a%00.png",
        "%2e%2e/a.png", "%252e%252e/a.png",
    ],
)  # fmt: skip
def test_keys_are_neither_decoded_nor_normalized(key: str) -> None:
    assert AllowedRoots(["s3://b/media"]).allow(f"s3://b/media/{key}")
    assert not AllowedRoots(["s3://b/media"]).allow(f"s3://b/media2/{key}")


@pytest.mark.parametrize("key", ["../secret.png", "a/../../secret.png", ".."])
def test_steps_out_of_a_prefix_are_shut(key: str) -> None:
    assert not AllowedRoots(["s3://b/media"]).allow(f"s3://b/media/{key}")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://b/media2/a.png", "s3://b/medi", "s3://b/media", "s3://b/media/", "s3://b/other/a.png", "s3://b2/media/a.png",
        "s3://b", "s3://", "s3:///media/a.png",
        "s3://b/%6dedia/a.png", "s3://B/media/a.png", "http://b/media/a.png", "/b/media/a.png", "file:///b/media/a.png",
        "s3a://b/media/a.png", "s3://user@b/media/a.png",
    ],
)  # fmt: skip
def test_ways_out_of_a_prefix_are_shut(uri: str) -> None:
    assert not AllowedRoots(["s3://b/media"]).allow(uri)


def test_without_roots_nothing_is_allowed(media: Path) -> None:
    assert not AllowedRoots([]).allow(f"{media}/a.png")
    assert not AllowedRoots([]).allow("s3://b/a.png")


def test_catalog_speaks_for_its_own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert catalog_root(str(tmp_path / "photos")) == str(tmp_path / "photos")
    assert catalog_root("list.csv") == catalog_root("./list.JSONL") == str(tmp_path)
    assert catalog_root(f"file://{tmp_path}/a%20b/list.parquet") == str(tmp_path / "a b")
    assert catalog_root("s3://b/x/list.parquet") == "s3://b/x"
    assert catalog_root("s3://b/x/") == "s3://b/x"
    assert catalog_root("s3://b/x/list.parquet/") == "s3://b/x"  # a folder that Spark wrote


@pytest.mark.parametrize("root", ["s3://", "s3://b/../c", "s3://b//x", "http://host/x", "file://host/x"])
def test_root_that_is_none_is_a_users_mistake(root: str) -> None:
    with pytest.raises(UsageError) as caught:
        normalised_root(root)
    assert "\n" not in str(caught.value)


def test_place_of_a_medium() -> None:
    assert place_of("s3://b/x/y z.png") == ("s3://b", "x/y z.png")
    assert place_of("/m/x/a.png") == ("/m/x", "a.png")
    assert place_of("file:///m%20n/a.png") == ("/m n", "a.png")
