"""The root key in a file that only its owner can read; refused where others could have read or published it."""

import errno
import itertools
import os
import shutil
import stat
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, ClassVar

from vault.errors import RootKeyProblem
from vault.newfile import sync_folder, write_new
from vault.root import LocalRootKey, new_root_text, require_root_text, root_from_text
from vault.secret import Secret

MAX_FILE_BYTES = 1024
GIT_NEEDS = ("PATH", "HOME", "XDG_CONFIG_HOME", "LANG", "SYSTEMROOT")
"""All that git gets of our environment: where the user's own list of what is ignored is."""


@dataclass(frozen=True)
class FileRef:
    """A file of mode 0600 that is ours, holding `keyleash-root-key:v1:`, base64url of 32 bytes, and a newline."""

    path: Path
    system: str = os.name
    provider: ClassVar[str] = "file"

    @classmethod
    def at(cls, where: str, home: Path) -> "FileRef":
        path = Path(where).expanduser() if where else home / "keys" / "root.key"
        return cls(path.absolute())

    @property
    def location(self) -> str:
        return str(self.path)

    def describe(self) -> dict[str, str]:
        return {"provider": self.provider, "location": self.location}

    def create(self) -> LocalRootKey:
        with new_root_text() as text:
            return self.keep(text)

    def keep(self, text: Secret) -> LocalRootKey:
        """Store a key that was made before, as `export` gave it. RootKeyProblem when there is one already."""
        refuse_without_modes(self.system)
        refuse_in_work_tree(self.path)
        require_root_text(text)
        try:
            _make_private_folders(self.path.parent)
            write_new(self.path, f"{text.reveal()}\n".encode())
        except FileExistsError:
            raise RootKeyProblem(
                f"There is a file at {self.path} already, and it may be the only root key that opens a vault. "
                "Use it, or name another place with `--root file:PATH`."
            ) from None
        except OSError as error:
            raise RootKeyProblem(f"The root key could not be written to {self.path}: {error.strerror}.") from None
        return self.load()

    def load(self) -> LocalRootKey:
        root = root_from_text(self._text(), provider=self.provider, location=self.location)
        if root is None:
            raise RootKeyProblem(
                f"{self.path} does not hold a whole root key. Restore it from its backup: no other key opens the vault."
            )
        return root

    def export(self) -> Secret:
        """The key that is kept here, as its text form. Refused as `load` refuses it."""
        self.load()
        return Secret({"secret": self._text().strip()})

    def successor(self, generation: int) -> "FileRef":
        stem = self.path.stem.rsplit("-", 1)[0] if self.path.stem.rpartition("-")[2].isdigit() else self.path.stem
        places = (self.path.with_name(f"{stem}-{n}{self.path.suffix}") for n in itertools.count(generation))
        return replace(self, path=next(place for place in places if not os.path.lexists(place)))

    def destroy(self) -> bool:
        """Overwrite and delete the file. A disk may keep what was overwritten; there is no claim beyond the file."""
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "wb") as file:
                file.write(b"0" * MAX_FILE_BYTES)
                file.flush()
                os.fsync(descriptor)
            self.path.unlink()
            sync_folder(self.path.parent)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise RootKeyProblem(f"The root key at {self.path} could not be deleted: {error.strerror}.") from None
        return True

    def _text(self) -> str:
        refuse_without_modes(self.system)
        try:
            return self._read()
        except OSError as error:
            raise RootKeyProblem(_why_unread(self.path, error)) from None

    def _read(self) -> str:
        with open_private(self.path, holds="the root key") as file:
            refuse_in_work_tree(self.path)
            return file.read(MAX_FILE_BYTES).decode("ascii", "replace")


@contextmanager
def open_private(path: Path, *, holds: str) -> Generator[BinaryIO]:
    """The file, to be read; refused unless only we can read it. OSError where it cannot be opened, or is a link."""
    # O_NONBLOCK: a pipe in the file's place must not hold us up.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        refuse_readable_by_others(path, os.fstat(descriptor), uid=os.geteuid(), holds=holds)
        yield file


def refuse_without_modes(system: str) -> None:
    """A file's mode protects it on POSIX systems only. `system` is `os.name`."""
    if system != "posix":
        raise RootKeyProblem("File modes protect nothing on this system. Use `--root keychain`.")


def refuse_readable_by_others(path: Path, status: os.stat_result, *, uid: int, holds: str = "the root key") -> None:
    """Only a regular file that belongs to us (`uid`) and has no bit set for group or others may hold a secret."""
    if not stat.S_ISREG(status.st_mode):
        raise RootKeyProblem(f"{path} is not a regular file. Name the file itself that holds {holds}.")
    if status.st_uid != uid:
        raise RootKeyProblem(
            f"{path} belongs to user {status.st_uid}, and Keyleash runs as user {uid}. Run it as the owner, or: "
            f"chown {uid} {path}"
        )
    if status.st_mode & 0o077:
        raise RootKeyProblem(
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}: others may have read {holds}. If you know that "
            f"nobody did: chmod 600 {path}"
        )


def refuse_in_work_tree(path: Path, *, seconds: float = 5.0) -> None:
    """In a git work tree a key must be ignored, or it is one `git add` away from being published.

    Asks git itself, for at most `seconds`. Where git cannot be asked, the answer is no.
    """
    path = path.parent.resolve() / path.name
    tree = next((folder for folder in path.parents if os.path.lexists(folder / ".git")), None)
    if tree is None or _git_ignores(path, tree, seconds):
        return
    raise RootKeyProblem(
        f"{path} is in the git work tree {tree} and not known to be ignored. Add the line "
        f"`/{path.relative_to(tree).as_posix()}` to {tree / '.gitignore'} (git must be installed, to be asked), or "
        "keep the key elsewhere with `--root file:PATH`."
    )


def _git_ignores(path: Path, tree: Path, seconds: float) -> bool:
    git = shutil.which("git")
    if git is None:
        return False
    # Nothing of what is secret in our environment goes along, and none of the GIT_* that a hook inherits, so that git
    # judges this tree and no other; a monitor would run a tree's program.
    environment = {name: os.environ[name] for name in GIT_NEEDS if name in os.environ}
    command = [git, "-C", str(tree), "-c", "core.fsmonitor=false", "check-ignore", "--quiet", "--", str(path)]
    try:
        done = subprocess.run(  # noqa: S603 -- git's full path and a fixed command; no shell
            command, env=environment, timeout=seconds, check=False, capture_output=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _make_private_folders(folder: Path) -> None:
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=0o700, exist_ok=True)


def _why_unread(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return (
            f"There is no root key at {path}. Put it back from its backup, or from its recovery file with `keyleash "
            "vault restore --recovery FILE --root file`; or, if this is a new installation, run `keyleash init`."
        )
    if error.errno in (errno.ELOOP, errno.EMLINK):
        return f"{path} is a symbolic link. Name the root key's own file."
    if isinstance(error, PermissionError):
        return f"The root key at {path} cannot be read: {error.strerror}. Run Keyleash as the user whose file it is."
    return f"The root key at {path} cannot be read: {error.strerror}."
