"""SIGKILL after every write of annotate, update and retry, the Delta commit among them: every item once, as if nothing.

On a local folder and, but for most writes of the model's files, on SeaweedFS. The processes are real, Ray is not there
(see one_process.py); test_faults_killed.py kills drivers and workers on a real Ray.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from made import Made
from places import FolderPlace
from world import differences

pytestmark = pytest.mark.system

COMMITS, LOG = "_mmva/{:06d}/commits/", "_delta_log/"
PREPARATIONS = (".probe-", "_mmva/model/")
OK = {
    "annotate": ["changed.png", "kept.png", "new.png", "repaired.png", "words.txt"],
    "update": ["changed.png", "kept.png", "new.png", "repaired.png", "words.txt"],
    "retry": ["changed.png", "gone.png", "kept.png", "repaired.png", "words.txt"],
}


def kill_points(writes: list[str], *, every: bool) -> Iterator[tuple[int, str]]:
    """Number and path of each write; of those before the plan only the last of a kind, if not every one is wanted."""
    for number, path in enumerate(writes, 1):
        following = writes[number] if number < len(writes) else ""
        if every or not any(path.startswith(kind) and following.startswith(kind) for kind in PREPARATIONS):
            yield number, path


@pytest.mark.parametrize("verb", list(OK))
def test_a_driver_killed_after_any_of_its_writes_costs_no_item(made: Made, verb: str) -> None:
    version, base = (0, {}) if verb == "annotate" else (1, made.base.rows())
    whole = made.calm(verb)
    wanted, commits = whole.rows, COMMITS.format(version)
    assert [row["id"] for row in wanted["ok"]] == OK[verb]
    assert [row["id"] for row in wanted["quarantined"]] == ["broken.png"]
    kinds = ("plan/items-", "plan.json", "embeddings/", "commits/", "version.json")
    for kind in (*(f"_mmva/{version:06d}/{name}" for name in kinds), "status=ok/", "status=quarantined/", LOG):
        assert any(path.startswith(kind) for path in whole.writes), f"{verb} makes no {kind}"

    for number, last in kill_points(whole.writes, every=isinstance(made.base, FolderPlace)):
        place, at = made.start(verb, f"{verb}-{number}"), f"{verb} killed after write {number}, {last}"
        killed = made.run(verb, place, number)
        assert killed.end() == {}, at
        assert killed.writes[-1].partition("-")[0] == last.partition("-")[0], at
        published = last == LOG
        assert place.version() == (version if published else version - 1 if version else None), at
        if not published and version:
            assert place.rows() == base, at
        committed = place.contents(commits)
        planned = f"_mmva/{version:06d}/plan.json" in place.objects()
        # A retry that was published would be followed by the next one.
        said = made.run("resume" if published or (planned and number % 2) else verb, place).end()
        assert said["version"] == place.version() == version, at
        assert committed.items() <= place.contents(commits).items(), at
        found = place.rows()
        for status, rows in wanted.items():
            assert differences(found[status], rows) == [], at
        if version:
            assert place.rows(0) == base, at
