"""A new file that only its owner can read: there whole, on the disk, or not at all.

Nothing is overwritten, but by `replace_private`, which is asked to.
"""

import errno
import os
import secrets
import sys
from pathlib import Path

UNFINISHED = ".keyleash-*.unfinished*"
"""What `unfinished` names look like, and what SQLite keeps beside them."""


def write_new(path: Path, content: bytes) -> None:
    """Write a new file of mode 0600. Raises FileExistsError where something has that name, and OSError."""
    half = unfinished(path)
    try:
        _fill(half, content)
        give_name(half, path)
    finally:
        half.unlink(missing_ok=True)


def unfinished(path: Path) -> Path:
    """A name beside `path` for what is to become it; one that is left over was cut off, and is of no use."""
    return path.with_name(f".keyleash-{secrets.token_hex(6)}.unfinished")


def create_private(path: Path) -> int:
    """A new, empty file of mode 0600, open for writing; its descriptor. Raises FileExistsError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    if sys.platform != "win32":
        os.fchmod(descriptor, 0o600)  # whatever the umask took away or a folder's default rights added
    return descriptor


def give_name(half: Path, path: Path) -> None:
    """Let a finished file have its name, for good. Raises FileExistsError where something has that name already."""
    try:
        os.link(half, path)
    except OSError:  # a disk without hard links, such as most sticks
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        half.rename(path)
    else:
        half.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_private(path: Path, text: str) -> None:
    """Put a private file with this text in the place of what is there, whole or not at all; durable when it returns.

    Raises OSError.
    """
    half = unfinished(path)
    try:
        _fill(half, text.encode())
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
    sync_folder(path.parent)


def _fill(half: Path, content: bytes) -> None:
    with os.fdopen(create_private(half), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
