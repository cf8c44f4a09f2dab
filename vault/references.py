"""Secrets that stay where they are: a reference names the place, and is resolved for each call and kept nowhere.

A reference is sealed in its credential's place, as the field `@reference`, and so bound to the same org, connection,
origin and scheme: nobody re-points it in the database. Beside it may stand the token that was had with what it leads
to. Resolving is bounded in time and size, and no error quotes the reference, what it led to, or what was said on the
way.
A new kind of place is a subclass of `Reference`, and a line in `REFERENCES`.
"""

import hashlib
import os
import queue
import re
import shlex
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from vault.command import SYSTEM_PATH, printed
from vault.errors import CannotResolve
from vault.hostfile import MAX_BYTES, read_file, read_token, readable_by_all
from vault.kv import kv_field, trust
from vault.root import PREFIX as ROOT_KEY
from vault.secret import Opaque, Secret

if TYPE_CHECKING:
    import ssl

REFERENCE_FIELD = "@reference"
"""The name of the sealed field; no field of a connector's credential can be called so."""
TOKEN_FIELD = "secret"  # noqa: S105 - a name
"""What may stand beside it: a token that was had with what the reference leads to."""
STORED = "vault"
"""The source of a credential that is stored itself."""
MAX_REFERENCE = 4096
GRACE_S = 1.0
"""After so much more than its time an attempt is left to itself: it hangs in the system, on a dead disk, say."""
MOST_HANGING = 32
"""How many attempts at one reference may hang so before no more are begun."""


class Reference(Opaque, ABC):
    """One kind of place. CannotResolve where what follows the prefix names no place of this kind."""

    __slots__ = ("where",)
    prefix: ClassVar[str]
    form: ClassVar[str]
    """How it is written, for messages."""

    where: str
    """What follows the prefix, as it is sealed: the same place for whoever resolves it, from wherever."""

    def __init__(self, where: str) -> None:
        if not where or not where.isprintable() or len(where) > MAX_REFERENCE:
            raise CannotResolve(f"That names no place. Write {self.form}.")
        self.where = where

    @property
    def shown(self) -> str:
        """The reference for an admin's eyes."""
        return self.prefix + self.where

    @abstractmethod
    def read(self, resolver: "Resolver") -> bytes | str:
        """What is there now: at most MAX_BYTES, and one more where there was more. Raises CannotResolve."""

    def open_to_all(self, resolver: "Resolver") -> Iterator[str]:
        """Each file on the way that every user of this machine can read, in words that name no path."""
        return iter(())


@dataclass(frozen=True)
class Resolver:
    """What the operator has set for resolving references, and the resolving. May be used by several threads."""

    home: Path
    """Keyleash's own folder, which no reference may lead into."""
    seconds: float = 10.0
    path: str = SYSTEM_PATH
    op_token_file: Path | None = None
    kv_address: str = ""
    kv_token_file: Path | None = None
    kv_ca_file: Path | None = None
    _room: dict[bytes, threading.Semaphore] = field(
        default_factory=dict[bytes, threading.Semaphore], init=False, repr=False, compare=False
    )

    def resolve(self, reference: Secret) -> Secret:
        """What the reference leads to at this moment, as the field `secret`; wipe it after.

        Raises CannotResolve, at the latest GRACE_S after `seconds`.
        """
        outcome = self._outcome(reference)
        if isinstance(outcome, str):
            raise CannotResolve(outcome)
        return outcome

    def open_to_all(self, reference: Secret) -> list[str]:
        """Each file on the way that every user of this machine can read, in words that name no path."""
        return list(_parsed(reference.reveal(REFERENCE_FIELD)).open_to_all(self))

    @cached_property
    def tls(self) -> "ssl.SSLContext":
        """Made once: it takes milliseconds. A new file of authorities is seen after a restart."""
        return trust(self.kv_ca_file)

    def _outcome(self, reference: Secret) -> Secret | str:
        """The secret, or why there is none. Whatever happens, it happens within bounded time."""
        name = hashlib.sha256(reference.reveal(REFERENCE_FIELD).encode("utf-8", "surrogatepass")).digest()
        room = self._room.setdefault(name, threading.Semaphore(MOST_HANGING))
        if not room.acquire(blocking=False):
            return f"{MOST_HANGING} attempts at it hang already, so no more are begun. Mend that, and start again."
        answer: queue.SimpleQueue[Secret | str] = queue.SimpleQueue()

        def attempt() -> None:
            try:
                answer.put(self._tried(reference))
            finally:
                room.release()

        try:
            threading.Thread(target=attempt, name="keyleash-reference", daemon=True).start()
        except RuntimeError:
            room.release()
            return "This process may start no more threads. Raise its limit."
        try:
            return answer.get(timeout=self.seconds + GRACE_S)
        except queue.Empty:
            return f"What the reference names did not answer within {self.seconds:g} seconds."

    def _tried(self, reference: Secret) -> Secret | str:
        """Never raises: an exception would carry frames that held the secret."""
        try:
            return _checked(_parsed(reference.reveal(REFERENCE_FIELD)).read(self))
        except CannotResolve as problem:
            return str(problem)
        except Exception as error:
            return f"What the reference names could not be read ({type(error).__name__})."


def to_reference(text: str) -> Secret:
    """What is sealed for a reference that somebody wrote. CannotResolve where it is none; nothing is read yet."""
    reference = _parsed(text)
    return Secret({REFERENCE_FIELD: reference.prefix + reference.where})


def source_of(sealed: Secret) -> str:
    """Where a credential stays, by what was sealed for it: `vault`, or a name in REFERENCES; empty for neither."""
    if REFERENCE_FIELD not in sealed.fields:
        return STORED
    if not {*sealed.fields} <= {REFERENCE_FIELD, TOKEN_FIELD}:
        return ""
    text = sealed.reveal(REFERENCE_FIELD)
    return next((name for name, kind in REFERENCES.items() if text.startswith(kind.prefix)), "")


def show_reference(sealed: Secret) -> str:
    """A sealed reference for an admin's eyes. CannotResolve where it is none."""
    return _parsed(sealed.reveal(REFERENCE_FIELD)).shown


@final
class Variable(Reference):
    """A variable in the environment of the process that resolves it."""

    __slots__ = ()
    prefix: ClassVar[str] = "env:"
    form: ClassVar[str] = "env:NAME"

    def read(self, resolver: Resolver) -> bytes | str:
        value = os.environ.get(self.where)
        if not value:
            raise CannotResolve(
                "The environment variable that the reference names is not set here, or is empty. Set it where this "
                "process is started (for a server: its unit, its container, its MCP client), and start it again."
            )
        return value


@final
class File(Reference):
    """A regular file, through symbolic links; read anew each time."""

    __slots__ = ()
    prefix: ClassVar[str] = "file:"
    form: ClassVar[str] = "file:PATH"

    def __init__(self, where: str) -> None:
        super().__init__(where)
        try:
            self.where = str(Path(where).expanduser().absolute())
        except (OSError, RuntimeError):
            raise CannotResolve("There is no such user's folder. Write the file's full path.") from None

    def read(self, resolver: Resolver) -> bytes | str:
        return read_file(Path(self.where), "The file that the reference names", outside=resolver.home)

    def open_to_all(self, resolver: Resolver) -> Iterator[str]:
        if readable_by_all(Path(self.where)):
            yield "the file that it names"


@final
class Command(Reference):
    """What a program prints, run as `vault.command` says."""

    __slots__ = ()
    prefix: ClassVar[str] = "cmd:"
    form: ClassVar[str] = "cmd:COMMAND"

    def __init__(self, where: str) -> None:
        super().__init__(where)
        program = self._words()[0]
        if "/" in program and not program.startswith("/"):
            raise CannotResolve("The command is looked for from no folder: give its full path, or its bare name.")

    def _words(self) -> list[str]:
        try:
            words = shlex.split(self.where)
        except ValueError:
            raise CannotResolve("The command has a quote that is not closed.") from None
        if not words or not words[0]:
            raise CannotResolve(f"That names no program. Write {self.form}.")
        return words

    @property
    def shown(self) -> str:
        """Its arguments stay sealed: a token may stand among them."""
        program, *arguments = self._words()
        return f"cmd:{program}" + (f" [{len(arguments)} arguments, not shown]" if arguments else "")

    def read(self, resolver: Resolver) -> bytes | str:
        return printed(
            self._words(),
            what="The command that the reference names",
            most=MAX_BYTES,
            seconds=resolver.seconds,
            path=resolver.path,
        )


@final
class OnePassword(Reference):
    """A field of an item, by 1Password's own program `op`, signed in as a service account.

    Source: "Secret reference syntax" of 1Password's CLI; a section may stand before the field.
    """

    __slots__ = ()
    prefix: ClassVar[str] = "op://"
    form: ClassVar[str] = "op://VAULT/ITEM/FIELD"

    def __init__(self, where: str) -> None:
        super().__init__(where)
        if not re.fullmatch(r"[\w .-]+(/[\w .-]+){2,3}", where, re.ASCII):
            raise CannotResolve(
                f"A 1Password reference is {self.form}, of letters, digits, spaces and `-_.`; elsewhere use the ids."
            )

    def read(self, resolver: Resolver) -> bytes | str:
        token = read_token(resolver.op_token_file, "KEYLEASH_OP_TOKEN_FILE")
        return printed(
            ["op", "read", "--no-newline", self.prefix + self.where],
            what="1Password's program `op`",
            most=MAX_BYTES,
            seconds=resolver.seconds,
            path=resolver.path,
            more={"OP_SERVICE_ACCOUNT_TOKEN": token.reveal()},
        )

    def open_to_all(self, resolver: Resolver) -> Iterator[str]:
        if resolver.op_token_file and readable_by_all(resolver.op_token_file):
            yield "the file that KEYLEASH_OP_TOKEN_FILE names"


@final
class KeyValue(Reference):
    """A field of a secret in a key-value engine, version 2, of Vault or OpenBao. The mount is one segment."""

    __slots__ = ()
    prefix: ClassVar[str] = "vault://"
    form: ClassVar[str] = "vault://MOUNT/PATH#FIELD"

    def __init__(self, where: str) -> None:
        super().__init__(where)
        path, _, name = where.partition("#")
        segments = path.split("/")
        if len(segments) < 2 or not name or any(not _SEGMENT.fullmatch(one) or one in (".", "..") for one in segments):
            raise CannotResolve(f"A reference to a key-value engine is {self.form}.")

    def read(self, resolver: Resolver) -> bytes | str:
        if not resolver.kv_address:
            raise CannotResolve(
                "KEYLEASH_KV_ADDR is not set here. Set it to https://HOST:PORT of the key-value engine."
            )
        token = read_token(resolver.kv_token_file, "KEYLEASH_KV_TOKEN_FILE")
        path, _, name = self.where.partition("#")
        mount, *rest = path.split("/")
        with token:
            return kv_field(resolver.kv_address, token, mount, rest, name, tls=resolver.tls, seconds=resolver.seconds)

    def open_to_all(self, resolver: Resolver) -> Iterator[str]:
        if resolver.kv_token_file and readable_by_all(resolver.kv_token_file):
            yield "the file that KEYLEASH_KV_TOKEN_FILE names"


_SEGMENT = re.compile(r"[\w .~@:+-]+", re.ASCII)

REFERENCES: dict[str, type[Reference]] = {
    "env": Variable,
    "file": File,
    "cmd": Command,
    "op": OnePassword,
    "vault_kv": KeyValue,
}
"""source, as a connection shows it → its class"""

FORMS = ", ".join(kind.form for kind in REFERENCES.values())


def _parsed(text: str) -> Reference:
    kind = next((kind for kind in REFERENCES.values() if text.startswith(kind.prefix)), None)
    if kind is None:
        raise CannotResolve(f"That is no reference. A reference names where a secret is, and never is one: {FORMS}.")
    return kind(text.removeprefix(kind.prefix))


def _checked(found: bytes | str) -> Secret | str:
    """What was found as a secret, or why it is none."""
    raw = found.encode("utf-8", "surrogateescape") if isinstance(found, str) else found
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    if len(raw) > MAX_BYTES:
        return f"What the reference leads to is longer than {MAX_BYTES} bytes, which no credential is."
    if text is None:
        return "What the reference leads to is not UTF-8 text."
    if not text.strip():
        return "What the reference leads to is empty."
    if ROOT_KEY in text:
        return "What the reference leads to is a root key of Keyleash, which is sent to nobody."
    return Secret({"secret": text})
