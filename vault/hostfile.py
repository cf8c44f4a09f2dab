"""Read a small file of the operator's: a credential that stays in it, or a token. Never one of Keyleash's own.

No message here names the path.
"""

import contextlib
import os
import re
import stat
from pathlib import Path

from vault.errors import CannotResolve
from vault.secret import Secret

MAX_BYTES = 64 * 1024


def read_token(path: Path | None, setting: str) -> Secret:
    """The token in the file that this setting names, read anew each time. Raises CannotResolve."""
    if path is None:
        raise CannotResolve(f"{setting} is not set here. Set it to the path of a file that holds the token.")
    token = read_file(path, f"The file that {setting} names").strip()
    if not re.fullmatch(rb"[\x21-\x7e]{1,8192}", token):
        del token
        raise CannotResolve(f"The file that {setting} names does not hold one token and nothing else.")
    return Secret({"secret": token.decode("ascii")})


def read_file(path: Path, what: str, *, outside: Path | None = None) -> bytes:
    """A regular file, up to MAX_BYTES and one more; never one of Keyleash's own, which are below `outside`.

    `what` begins the messages, which name no path. Raises CannotResolve.
    """
    try:
        found = path.resolve(strict=True)
        # A pipe must not hold this up, and nothing may be put in the file's place between looking and opening.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(found, flags)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        why = (getattr(error, "strerror", None) or "it is a link in a circle").lower()
        raise CannotResolve(f"{what} cannot be read here: {why}. Check it, as the server's user.") from None
    try:
        status = os.fstat(descriptor)
        if outside is not None and _is_kept_in(outside, status):
            raise CannotResolve(f"{what} is in Keyleash's own folder, which no credential may point into.")
        if not stat.S_ISREG(status.st_mode):
            raise CannotResolve(f"{what} is not a regular file.")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)


def readable_by_all(path: Path) -> bool:
    """Whether every user of this machine can read the file: by its own mode, and those of all folders above it."""
    if os.name != "posix":
        return False
    try:
        found = path.resolve(strict=True)
        return bool(found.stat().st_mode & 0o004) and all(folder.stat().st_mode & 0o001 for folder in found.parents)
    except (OSError, RuntimeError):
        return False


def _is_kept_in(home: Path, status: os.stat_result) -> bool:
    """Whether this is one of Keyleash's own files, under whatever name: through a link, a hard link, another mount."""
    for folder in (home, home / "data", home / "keys", home / "backups"):  # each may itself be a link
        for place, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(OSError):
                    if os.path.samestat((Path(place) / name).stat(), status):
                        return True
    return False
