"""The root key in a file, under a passphrase: what brings an installation back when its own key is lost.

A recovery file, version 1, is one JSON object in UTF-8, of these members and no others:

    format       "keyleash-recovery"
    version      1
    made_at      when, such as "2026-11-23T09:14:48.123Z"
    generation   which generation of the root key, as `keyleash vault status` numbers them
    fits         which databases that key opens: 64 hex digits,
                 SHA-256("keyleash/recovery/fits/v1\\n" + the generation's check_blob in the table vault_root)
    kdf          {"name": "argon2id", "salt": 32 hex digits, "iterations": t, "lanes": p, "memory_kib": m}
    sealed       base64 of a blob of `vault.seal`, holding the root key's text form (`vault.root`)

    key of the blob     = Argon2id, version 0x13 (RFC 9106): the passphrase in Unicode's form NFC and UTF-8, the salt's
                          16 bytes, t, p, m, no secret and no associated data, 32 bytes long
    context of the blob = "recovery-file", "1", made_at, generation, fits, "argon2id", salt, t, p, m
                          (numbers in decimal): a file that was changed anywhere does not open

Written are the parameters of RFC 9106's second recommended option: t = 3, p = 4, m = 65536 (64 MiB). Read is what lies
between these and `MOST`: no file makes this weaker, or takes all memory.
"""

import base64
import hashlib
import json
import os
import re
import secrets
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from vault.errors import CannotOpen, RecoveryProblem
from vault.keys import RootKey, RootKeyRef
from vault.newfile import write_new
from vault.root import LocalRootKey, root_from_text
from vault.seal import KEY_BYTES, Key
from vault.secret import Secret

FORMAT = "keyleash-recovery"
VERSION = 1
SHORTEST_PASSPHRASE = 12
SALT_BYTES = 16
MAX_FILE_BYTES = 16 * 1024


@dataclass(frozen=True)
class Stretching:
    """How a passphrase becomes a key: Argon2id's parameters, and a salt in hex."""

    salt: str
    iterations: int
    lanes: int
    memory_kib: int


LEAST = Stretching("", iterations=3, lanes=4, memory_kib=64 * 1024)
MOST = Stretching("", iterations=16, lanes=16, memory_kib=1024 * 1024)


@runtime_checkable
class Portable(Protocol):
    """A place that hands out the root key that it keeps, and takes one. A key service is none."""

    def export(self) -> Secret:
        """The key's text form. RootKeyProblem as `load` raises it."""
        ...

    def keep(self, text: Secret) -> RootKey:
        """Store a key, and never over another one. RootKeyProblem."""
        ...


def exported(place: RootKeyRef) -> Secret:
    """The root key's text form. RecoveryProblem where the key never leaves its place."""
    if isinstance(place, Portable):
        return place.export()
    raise RecoveryProblem(
        f"The root key is in {place.provider} ({place.location}) and never leaves it, so there is nothing to export. "
        "Back up the database (`keyleash vault backup FILE`), and see to it that this key stays: protect it there from "
        "deletion, and keep what lets you use it (the account, its policy, that service's own backup). Without it no "
        "backup opens."
    )


def taking(place: RootKeyRef) -> Portable:
    """The place, as one that takes a key. RecoveryProblem for a key service."""
    if isinstance(place, Portable):
        return place
    raise RecoveryProblem(f"A key cannot be put into {place.provider}. Name a place that takes one: keychain or file.")


@dataclass(frozen=True)
class RecoveryFile:
    """What a recovery file says; the key in it opens with its passphrase only."""

    made_at: str
    generation: int
    fits: str
    kdf: Stretching
    sealed: bytes

    def open(self, passphrase: Secret) -> Secret:
        """The root key's text form. RecoveryProblem, one for a wrong passphrase and for a file that was changed."""
        try:
            text = _key(passphrase, self.kdf).unseal(self.sealed, context=_context(self))
        except CannotOpen:
            text = b""
        root = Secret({"secret": text.decode("utf-8", "replace")})
        del text  # so that a traceback that prints locals has no key to print
        if root_of(root) is None:
            raise RecoveryProblem(
                "The recovery file does not open: the passphrase is another one, or the file is damaged. Try the "
                "passphrase again, then another copy of the file."
            )
        return root

    def write(self, path: Path) -> None:
        """Write it to a new file of mode 0600. RecoveryProblem where there is one, or it cannot be written."""
        kdf = {"name": "argon2id", **vars(self.kdf)}
        shown = {"format": FORMAT, "version": VERSION, "made_at": self.made_at, "generation": self.generation}
        shown |= {"fits": self.fits, "kdf": kdf, "sealed": base64.b64encode(self.sealed).decode()}
        try:
            write_new(path, f"{json.dumps(shown, indent=2)}\n".encode())
        except FileExistsError:
            raise _taken(path) from None
        except OSError as error:
            raise RecoveryProblem(f"{path} could not be written: {error.strerror}. Name another place.") from None


def sealed_root(
    root: Secret, passphrase: Secret, *, generation: int, check: bytes, made_at: str, kdf: Stretching | None = None
) -> RecoveryFile:
    """The root key's text form under a passphrase. `check` is its generation's check_blob. RecoveryProblem."""
    require_passphrase(passphrase)
    if kdf is None:
        kdf = Stretching(secrets.token_hex(SALT_BYTES), LEAST.iterations, LEAST.lanes, LEAST.memory_kib)
    plain = RecoveryFile(made_at, generation, mark(check), kdf, b"")
    blob = _key(passphrase, kdf).seal(root.reveal().encode(), context=_context(plain))
    return RecoveryFile(made_at, generation, plain.fits, kdf, blob)


def require_free(path: Path) -> None:
    """Refuse a name that is taken, or a folder that is not there, before a passphrase is asked for in vain."""
    if os.path.lexists(path):
        raise _taken(path)
    if not path.absolute().parent.is_dir():
        raise RecoveryProblem(f"There is no folder {path.absolute().parent}. Make it first, or name another place.")


def _taken(path: Path) -> RecoveryProblem:
    return RecoveryProblem(f"There is a file {path} already; it was not touched. Name another.")


def require_passphrase(passphrase: Secret) -> None:
    """Refuse a passphrase that can be guessed by trying. RecoveryProblem."""
    if len(passphrase.reveal()) < SHORTEST_PASSPHRASE:
        raise RecoveryProblem(
            f"A passphrase needs at least {SHORTEST_PASSPHRASE} characters: whoever finds the file can try as many as "
            "they like. Six words drawn by chance are good."
        )


def mark(check: bytes) -> str:
    """Which databases a root key opens, told by its generation's check_blob. Gives away nothing about the key."""
    return hashlib.sha256(b"keyleash/recovery/fits/v1\n" + check).hexdigest()


def root_of(text: Secret, *, provider: str = "memory", location: str = "this process") -> LocalRootKey | None:
    """The root key of a text form, to be used at once; None where it is none."""
    return root_from_text(text.reveal(), provider=provider, location=location)


def read_recovery(path: Path) -> RecoveryFile:
    """What the file says; nothing is opened yet. RecoveryProblem where it is no recovery file."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RecoveryProblem(f"The recovery file {path} cannot be read: {error.strerror}.") from None
    try:
        given = _object(raw)
        if given.get("format") != FORMAT:
            raise _Unfit("it does not say that it is one")
        if given.get("version") != VERSION:
            raise _Unfit("another release of Keyleash made it. Use that one")
        return _read(given)
    except _Unfit as why:
        raise RecoveryProblem(
            f"{path} is not a recovery file that this release reads: {why}. It should be what `keyleash vault "
            "export-recovery` wrote, unchanged."
        ) from None


class _Unfit(Exception):
    """Why a file is not taken."""


def _object(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_FILE_BYTES:
        raise _Unfit("it is too long")
    try:
        found: object = json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise _Unfit("it is not JSON, or was cut off") from None
    if not isinstance(found, dict):
        raise _Unfit("it is not a JSON object")
    return cast("dict[str, Any]", found)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a member stands there twice")
    return dict(pairs)


def _read(given: dict[str, Any]) -> RecoveryFile:
    _require_members(given, {"format", "version", "made_at", "generation", "fits", "kdf", "sealed"})
    kdf = cast("dict[str, Any]", given["kdf"]) if isinstance(given["kdf"], dict) else {}
    _require_members(kdf, {"name", "salt", "iterations", "lanes", "memory_kib"})
    if kdf["name"] != "argon2id":
        raise _Unfit("its passphrase is stretched in a way that is not known here")
    numbers = {name: _within(kdf, name) for name in ("iterations", "lanes", "memory_kib")}
    return RecoveryFile(
        made_at=_text(given, "made_at", r"[0-9T:.Z-]{20,30}"),
        generation=_number(given, "generation", 1, 2**31),
        fits=_text(given, "fits", r"[0-9a-f]{64}"),
        kdf=Stretching(_text(kdf, "salt", rf"[0-9a-f]{{{2 * SALT_BYTES}}}"), **numbers),
        sealed=base64.b64decode(_text(given, "sealed", r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}[A-Za-z0-9+/=]=)?")),
    )


def _require_members(given: dict[str, Any], wanted: set[str]) -> None:
    if set(given) != wanted:
        raise _Unfit("something is missing in it, or was added")


def _within(kdf: dict[str, Any], name: str) -> int:
    return _number(kdf, name, getattr(LEAST, name), getattr(MOST, name))


def _number(given: dict[str, Any], name: str, least: int, most: int) -> int:
    value = given[name]
    if type(value) is not int or not least <= value <= most:
        raise _Unfit(f"its {name} is not a number from {least} to {most}")
    return value


def _text(given: dict[str, Any], name: str, pattern: str) -> str:
    value = given[name]
    if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
        raise _Unfit(f"its {name} is not as it should be")
    return value


def _context(file: RecoveryFile) -> tuple[str, ...]:
    kdf = file.kdf
    about = (str(VERSION), file.made_at, str(file.generation), file.fits)
    return ("recovery-file", *about, "argon2id", kdf.salt, str(kdf.iterations), str(kdf.lanes), str(kdf.memory_kib))


def _key(passphrase: Secret, kdf: Stretching) -> Key:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    try:
        stretch = Argon2id(
            salt=bytes.fromhex(kdf.salt),
            length=KEY_BYTES,
            iterations=kdf.iterations,
            lanes=kdf.lanes,
            memory_cost=kdf.memory_kib,
        )
        return Key(_stretched(stretch.derive, passphrase))
    except UnsupportedAlgorithm:
        raise RecoveryProblem(
            "The library `cryptography` was built here without Argon2id. Install its own wheel, or use another machine."
        ) from None
    except MemoryError:
        raise RecoveryProblem(f"There are not {kdf.memory_kib // 1024} MiB of memory free. Make room.") from None


def _stretched(derive: Callable[[bytes], bytes], passphrase: Secret) -> bytes:
    return derive(unicodedata.normalize("NFC", passphrase.reveal()).encode("utf-8", "surrogatepass"))
