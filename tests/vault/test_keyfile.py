import base64
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vault import RootKeyProblem, Secret
from vault.keyfile import FileRef, refuse_in_work_tree, refuse_readable_by_others


@pytest.fixture
def ref(tmp_path: Path) -> FileRef:
    return FileRef.at("", tmp_path / "home")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "tree"
    git(tmp_path, "init", "--quiet", str(folder))
    return folder


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


def write_key(path: Path, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("keyleash-root-key:v1:" + base64.urlsafe_b64encode(b"k" * 32).decode() + "\n")
    path.chmod(mode)
    return path


def test_a_created_key_loads_again_as_the_same_key(ref: FileRef):
    blob = ref.create().wrap(b"o" * 32, context=("c",))
    loaded = ref.load()
    assert loaded.unwrap(blob, context=("c",)) == b"o" * 32
    assert (loaded.provider, loaded.location) == ("file", str(ref.path))


@pytest.mark.usefixtures("open_umask")
def test_whatever_the_umask_only_we_can_read_the_file_and_enter_its_folders(ref: FileRef, tmp_path: Path):
    ref.create()
    assert ref.path == tmp_path / "home" / "keys" / "root.key"
    assert stat.S_IMODE(ref.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(ref.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(ref.path.parent.parent.stat().st_mode) == 0o700


def test_a_strict_umask_leaves_us_our_own_file(ref: FileRef):
    before = os.umask(0o277)
    try:
        ref.path.parent.mkdir(parents=True)
        ref.path.parent.parent.chmod(0o700)
        ref.path.parent.chmod(0o700)
        ref.create()
    finally:
        os.umask(before)
    assert stat.S_IMODE(ref.path.stat().st_mode) == 0o600


def test_a_key_that_is_there_is_never_overwritten(ref: FileRef):
    ref.create()
    before = ref.path.read_bytes()
    with pytest.raises(RootKeyProblem, match="already"):
        ref.create()
    assert ref.path.read_bytes() == before


def test_a_link_in_the_keys_place_is_not_written_through(ref: FileRef, tmp_path: Path):
    ref.path.parent.mkdir(parents=True)
    ref.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RootKeyProblem, match="already"):
        ref.create()
    assert not (tmp_path / "elsewhere").exists()


def test_a_key_that_could_not_be_written_whole_leaves_nothing(ref: FileRef):
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(RootKeyProblem, match="could not be written") as caught:
            ref.create()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "keyleash-root-key:v1:" not in str(caught.value)
    assert not ref.path.exists()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RootKeyProblem, match="could not be written"):
        FileRef.at(str(tmp_path / "file" / "root.key"), tmp_path).create()


def test_a_missing_key_says_to_restore_it_or_to_init(ref: FileRef):
    with pytest.raises(RootKeyProblem, match=r"no root key at .* backup.*keyleash init"):
        ref.load()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o777])
def test_a_file_that_others_may_touch_is_refused_with_the_mend(ref: FileRef, mode: int):
    write_key(ref.path, mode)
    with pytest.raises(RootKeyProblem, match=f"mode {mode:04o}.*chmod 600"):
        ref.load()


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_that_only_we_may_read_is_taken(ref: FileRef, mode: int):
    write_key(ref.path, mode)
    assert ref.load().location == str(ref.path)


def test_a_file_of_another_user_is_refused(ref: FileRef):
    status = write_key(ref.path).stat()
    refuse_readable_by_others(ref.path, status, uid=status.st_uid)
    with pytest.raises(RootKeyProblem, match="belongs to user"):
        refuse_readable_by_others(ref.path, status, uid=status.st_uid + 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_given_to_another_user_is_refused_when_loaded(ref: FileRef):
    os.chown(write_key(ref.path), os.geteuid() + 1, -1)
    with pytest.raises(RootKeyProblem, match="belongs to user"):
        ref.load()


def test_a_symbolic_link_to_a_good_key_is_refused(ref: FileRef, tmp_path: Path):
    write_key(tmp_path / "real.key")
    ref.path.parent.mkdir(parents=True)
    ref.path.symlink_to(tmp_path / "real.key")
    with pytest.raises(RootKeyProblem, match="is a symbolic link"):
        ref.load()


def test_a_folder_and_a_pipe_in_the_keys_place_are_refused_at_once(tmp_path: Path):
    (tmp_path / "folder").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("folder", "pipe"):
        with pytest.raises(RootKeyProblem, match=r"regular file|cannot be read"):
            FileRef.at(str(tmp_path / name), tmp_path).load()


@pytest.mark.parametrize("content", ["", "keyleash-root-key:v1:", "sk_live_canary", "\xff" * 60, "x" * 5000])
def test_a_damaged_file_is_refused_and_its_content_not_shown(ref: FileRef, content: str, locals_in):
    write_key(ref.path).write_bytes(content.encode("latin-1"))
    with pytest.raises(RootKeyProblem, match=r"whole root key.*backup") as caught:
        ref.load()
    assert "sk_live_canary" not in locals_in(caught.value)


def test_only_the_start_of_a_file_is_read(ref: FileRef):
    key = write_key(ref.path).read_bytes()
    ref.path.write_bytes(b"\n" * 1_000_000 + key)
    with pytest.raises(RootKeyProblem, match="whole root key"):
        ref.load()


def test_in_a_work_tree_a_key_that_is_not_ignored_is_neither_made_nor_loaded(tree: Path):
    ref = FileRef.at("", tree / "home")
    with pytest.raises(RootKeyProblem, match=r"git work tree .*/home/keys/root\.key. to .*\.gitignore"):
        ref.create()
    assert not (tree / "home").exists()
    write_key(ref.path)
    with pytest.raises(RootKeyProblem, match="git work tree"):
        ref.load()


def test_the_line_that_the_refusal_names_mends_it(tree: Path):
    ref = FileRef.at("", tree / "home")
    (tree / ".gitignore").write_text("/home/keys/root.key\n")
    ref.create()
    assert ref.load().location == str(ref.path)


def test_an_ignored_key_that_was_committed_all_the_same_is_refused(tree: Path):
    ref = FileRef.at("", tree)
    write_key(ref.path)
    git(tree, "add", "--force", "keys/root.key")
    (tree / ".gitignore").write_text("keys/\n")
    with pytest.raises(RootKeyProblem, match="git work tree"):
        ref.load()


def test_a_tree_reached_through_a_link_is_still_a_work_tree(tree: Path, tmp_path: Path):
    (tree / "sub").mkdir()
    (tmp_path / "link").symlink_to(tree / "sub")
    with pytest.raises(RootKeyProblem, match="git work tree"):
        FileRef.at("", tmp_path / "link").create()


def test_a_linked_work_tree_whose_git_is_a_file_counts(tmp_path: Path):
    (tmp_path / ".git").write_text("gitdir: /nowhere\n")
    with pytest.raises(RootKeyProblem, match="git work tree"):
        FileRef.at("", tmp_path / "home").create()


def test_a_hook_that_points_git_elsewhere_changes_nothing(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = tmp_path / "other"
    git(tmp_path, "init", "--quiet", str(other))
    (other / ".git" / "info" / "exclude").write_text("*\n")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    with pytest.raises(RootKeyProblem, match="git work tree"):
        refuse_in_work_tree(tree / "root.key")


def test_where_git_is_not_installed_a_work_tree_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch):
    (tree / ".gitignore").write_text("*\n")
    refuse_in_work_tree(tree / "root.key")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RootKeyProblem, match="git must be installed"):
        refuse_in_work_tree(tree / "root.key")


def test_a_git_that_does_not_answer_is_not_waited_for(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "bin").mkdir()
    slow = tmp_path / "bin" / "git"
    slow.write_text("#!/bin/sh\nexec /bin/sleep 3\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(RootKeyProblem, match="git work tree"):
        refuse_in_work_tree(tree / "root.key", seconds=0.1)


def test_asking_git_runs_no_program_of_the_tree(tree: Path, tmp_path: Path):
    (tree / ".gitignore").write_text("*\n")
    program = tmp_path / "monitor"
    program.write_text(f"#!/bin/sh\n: > {tmp_path / 'ran'}\n")
    program.chmod(0o755)
    git(tree, "config", "core.fsmonitor", str(program))
    refuse_in_work_tree(tree / "root.key")
    assert not (tmp_path / "ran").exists()


def test_where_modes_protect_nothing_a_file_is_neither_made_nor_loaded(tmp_path: Path):
    ref = FileRef(write_key(tmp_path / "root.key"), system="nt")
    for use in (ref.load, FileRef(tmp_path / "new.key", system="nt").create):
        with pytest.raises(RootKeyProblem, match="--root keychain"):
            use()
    assert not (tmp_path / "new.key").exists()


def test_an_exported_key_is_kept_elsewhere_as_the_same_key(ref: FileRef, tmp_path: Path):
    blob = ref.create().wrap(b"o" * 32, context=("c",))
    other = FileRef.at(str(tmp_path / "other" / "root.key"), tmp_path)
    kept = other.keep(ref.export())
    assert kept.unwrap(blob, context=("c",)) == b"o" * 32
    assert (kept.provider, kept.location) == ("file", str(other.path))
    assert other.path.read_bytes() == ref.path.read_bytes()
    assert stat.S_IMODE(other.path.stat().st_mode) == 0o600


def test_a_kept_key_is_never_written_over_another(ref: FileRef, tmp_path: Path):
    ref.create()
    before = ref.path.read_bytes()
    other = FileRef.at(str(tmp_path / "other.key"), tmp_path)
    other.create()
    with pytest.raises(RootKeyProblem, match=r"already.*--root file:PATH"):
        ref.keep(other.export())
    assert ref.path.read_bytes() == before


def test_what_is_no_root_key_is_not_kept(ref: FileRef):
    with pytest.raises(RootKeyProblem, match="not a whole root key") as caught:
        ref.keep(Secret({"secret": "sk_live_canary"}))
    assert "canary" not in str(caught.value)
    assert not ref.path.parent.exists()


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_key_that_others_may_have_read_is_not_exported(ref: FileRef, mode: int):
    write_key(ref.path, mode)
    with pytest.raises(RootKeyProblem, match="chmod 600"):
        ref.export()


def test_a_damaged_key_is_not_exported(ref: FileRef):
    write_key(ref.path).write_text("keyleash-root-key:v1:half")
    with pytest.raises(RootKeyProblem, match="whole root key"):
        ref.export()


def test_git_is_asked_without_anything_secret_of_our_environment(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The secrets that `env:` references name stand there."""
    program, said = tmp_path / "bin" / "git", tmp_path / "said"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n/usr/bin/env > {said}\n", encoding="utf-8")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("STRIPE_KEY", "rk_test_canary")
    refuse_in_work_tree(tree / "root.key")
    assert "PATH=" in said.read_text(encoding="utf-8")
    assert "canary" not in said.read_text(encoding="utf-8")
