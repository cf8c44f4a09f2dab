import os
import stat
from pathlib import Path

import pytest

from vault.newfile import UNFINISHED, give_name, unfinished, write_new


def refused(*_: object, **__: object) -> None:
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("umask", [0, 0o077, 0o277])
def test_a_new_file_is_whole_and_for_its_owner_alone(tmp_path: Path, umask: int):
    before = os.umask(umask)
    try:
        write_new(tmp_path / "new", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "new").read_bytes() == b"content"
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("links", [True, False])
def test_nothing_is_written_over_whether_the_disk_has_links_or_not(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
):
    if not links:
        monkeypatch.setattr(os, "link", refused)
    (tmp_path / "there").write_bytes(b"before")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("there", "link"):
        with pytest.raises(FileExistsError):
            write_new(tmp_path / name, b"after")
    assert (tmp_path / "there").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]


def test_a_disk_without_links_takes_new_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "link", refused)
    write_new(tmp_path / "new", b"content")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("new", b"content")]


def test_a_file_is_not_there_before_all_of_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What `os.link` finds under the other name is already whole and on the disk."""
    link, synced, seen = os.link, [], []
    monkeypatch.setattr(os, "fsync", lambda descriptor, sync=os.fsync: synced.append(sync(descriptor)))

    def looking(half: Path, path: Path) -> None:
        seen.append((half.read_bytes(), len(synced), path.exists()))
        link(half, path)

    monkeypatch.setattr(os, "link", looking)
    write_new(tmp_path / "new", b"content")
    assert seen == [(b"content", 1, False)]
    assert len(synced) == 2, "the folder was not brought to the disk"


def test_what_was_cut_off_is_known_by_its_name(tmp_path: Path):
    half = unfinished(tmp_path / "new")
    half.write_bytes(b"ha")
    assert list(tmp_path.glob(UNFINISHED)) == [half]
    give_name(half, tmp_path / "new")
    assert list(tmp_path.glob(UNFINISHED)) == []
