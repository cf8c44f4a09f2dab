"""Credentials at rest: what was put for one org, connection, version, origin and scheme opens for exactly those.

The root key wraps one key per org; an org's key wraps one data key per credential version; a data key seals the
fields. Every step binds what it is for, so that a row moved, swapped or re-pointed in the database does not open.
Everything works inside the transaction that it is handed, and commits nothing itself.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

from vault.errors import CannotOpen, Sealed, VaultError, WrongRootKey
from vault.keys import RootKey, RootKeyRef
from vault.seal import KEY_BYTES, Key, opener
from vault.secret import Opaque, Secret

ROOT_CHECK = ("root-check",)
INSTALLATION_KEY = ("installation-key",)
TEXT_VERSION_BYTES = 4
MOST_OPENERS = 1024
"""How many credentials' unwrapped keys are held at once, as org keys are; the secrets themselves never are."""

_CREDENTIAL = """
SELECT c.key_id, c.key_version, c.data_key, k.wrapped, f.field, f.sealed
FROM vault_credential c
JOIN vault_org_key k ON k.org = c.org AND k.version = c.key_version
JOIN vault_field f ON f.org = c.org AND f.connection = c.connection AND f.version = c.version
WHERE c.org = ? AND c.connection = ? AND c.version = ? ORDER BY f.field"""


class Rows(Protocol):
    """What the vault needs of a database; a `sqlite3.Connection` is one. Rows index by position."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Any: ...


@dataclass(frozen=True)
class VaultStatus:
    """What an operator may know of the vault. `since` is in milliseconds since the epoch, None before `install`."""

    sealed: str | None
    provider: str
    location: str
    since: int | None
    org_keys: dict[str, int]
    """org → how many versions of its key there are"""
    credentials: dict[str, dict[int, int]]
    """org → version of its key → how many credential versions that wraps"""


@final
class Vault(Opaque):
    """The credentials of every org, under a root key that is not in the database.

    Without a root key it is *sealed*: what needs a key raises Sealed; `status` and `remove` still work.
    """

    __slots__ = ("_derived", "_keys", "_openers", "_root", "_why_sealed")

    def __init__(self, root: RootKey | None, why_sealed: str = "") -> None:
        self._root = root
        self._why_sealed = why_sealed or "it was started without a root key. Restart with the key it was made with."
        # By the wrapped key as well: a key whose row is gone, or whose transaction was rolled back, is never used.
        self._keys: dict[tuple[tuple[str, ...], bytes], Key] = {}
        self._openers: dict[tuple[Any, ...], dict[str, Callable[[], bytes]]] = {}
        self._derived: dict[tuple[Key, str], bytes] = {}

    @classmethod
    def start(cls, ref: RootKeyRef, db: Rows) -> "Vault":
        """The vault of this database, open; or sealed, with the reason, where the root key is missing or wrong."""
        try:
            vault = cls(ref.load())
            vault.check_root(db)
        except VaultError as error:
            return cls(None, str(error))
        return vault

    @property
    def sealed(self) -> str | None:
        """Why the vault is sealed, and the mend; None when it is open."""
        return None if self._root else self._why_sealed

    def install(self, db: Rows) -> None:
        """Bind this database to the root key, once. VaultError if it is bound already, to whichever key."""
        root = self._open_root()
        if db.execute("SELECT 1 FROM vault_root").fetchone():
            raise VaultError("This database has its root key already; it is not given a second one.")
        check = root.wrap(secrets.token_bytes(KEY_BYTES), context=ROOT_CHECK)
        installation = root.wrap(secrets.token_bytes(KEY_BYTES), context=INSTALLATION_KEY)
        db.execute(
            "INSERT INTO vault_root (id, provider, location, check_blob, installation_key, created_at) "
            "VALUES (1, ?, ?, ?, ?, ?)",
            (root.provider, root.location, check, installation, _now()),
        )

    def check_root(self, db: Rows) -> None:
        """Raises WrongRootKey unless the root key is the one that this database was installed with."""
        root = self._open_root()
        row = db.execute("SELECT check_blob, provider, location FROM vault_root").fetchone()
        if row is None:
            raise VaultError("This database has no vault yet. Run `keyleash init`.")
        try:
            root.unwrap(_blob(row[0]), context=ROOT_CHECK)
        except CannotOpen:
            raise WrongRootKey(
                f"The root key from {root.provider} ({root.location}) is not the one that this database was made "
                f"with, which was kept in {row[1]} ({row[2]}). Put that key back, or point Keyleash at it; no other "
                "key opens what is stored."
            ) from None

    def create_org_key(self, db: Rows, org: str) -> None:
        """The org's first key. VaultError if it has one."""
        root = self._open_root()
        if not org:
            raise VaultError("A key belongs to an org; name it.")
        if db.execute("SELECT 1 FROM vault_org_key WHERE org = ?", (org,)).fetchone():
            raise VaultError(f"The org {org} has its key already.")
        wrapped = root.wrap(secrets.token_bytes(KEY_BYTES), context=_org_context(org, 1))
        db.execute(
            "INSERT INTO vault_org_key (org, version, wrapped, created_at) VALUES (?, 1, ?, ?)", (org, wrapped, _now())
        )

    def put(
        self,
        db: Rows,
        *,
        org: str,
        connection: str,
        fields: Mapping[str, str] | Secret,
        origin: str,
        scheme: str,
    ) -> int:
        """Store a credential as the connection's next version, which is returned; earlier versions stay.

        `origin` is the scheme, host and port that it may be sent to, `scheme` how it is attached: it opens for no
        other.
        """
        version = _next_version(db, org, connection)
        key_version, org_key = self._newest_key(db, org)
        slot = _Slot(org, connection, version, f"key_{secrets.token_hex(8)}", origin, scheme)
        secret = fields if isinstance(fields, Secret) else Secret(fields)
        del fields  # from here on a traceback that prints locals finds no secret
        wrapped, sealed = _seal_fields(org_key, slot, secret)
        db.execute(
            "INSERT INTO vault_credential "
            "(org, connection, version, key_id, key_version, data_key, origin, scheme, created_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (org, connection, version, slot.key_id, key_version, wrapped, origin, scheme, _now()),
        )
        for field, blob in sealed.items():
            db.execute(
                "INSERT INTO vault_field (org, connection, version, field, sealed) VALUES (?, ?, ?, ?, ?)",
                (org, connection, version, field, blob),
            )
        return version

    def open(self, db: Rows, *, org: str, connection: str, version: int, origin: str, scheme: str) -> Secret:
        """The credential, for one call; wipe it after. CannotOpen unless it was put for exactly these."""
        return self.take(db, org=org, connection=connection, version=version, origin=origin, scheme=scheme)()

    def take(
        self, db: Rows, *, org: str, connection: str, version: int, origin: str, scheme: str
    ) -> Callable[[], Secret]:
        """What opens the credential, once or more, as its rows are now: a rotation or removal after this is too late.

        Opens nothing and refuses nothing yet: CannotOpen, or whatever else `open` raises, comes from what is returned.
        """
        rows = db.execute(_CREDENTIAL, (org, connection, version)).fetchall()
        place = (org, connection, version, origin, scheme, *rows)

        def opened() -> Secret:
            self._open_root()
            if not rows:
                raise CannotOpen
            if place not in self._openers:
                if len(self._openers) >= MOST_OPENERS:
                    self._openers.clear()
                self._openers[place] = self._opened(_Slot(org, connection, version, rows[0][0], origin, scheme), rows)
            return Secret(
                {field: opener().decode("utf-8", "surrogatepass") for field, opener in self._openers[place].items()}
            )

        return opened

    def _opened(self, slot: "_Slot", rows: Sequence[Any]) -> dict[str, Callable[[], bytes]]:
        """What opens each field, time and again, without deriving its key anew. Checked now: CannotOpen."""
        key_version, data_key, wrapped = rows[0][1:4]
        fields = {str(row[4]): _blob(row[5]) for row in rows}
        org_key = self._unwrapped(wrapped, _org_context(slot.org, key_version))
        raw = org_key.unseal(_blob(data_key), context=slot.data_key_context(fields))
        return {name: opener(raw, blob, context=slot.field_context(name)) for name, blob in fields.items()}

    def remove(self, db: Rows, *, org: str, connection: str) -> None:
        """Delete every version of the connection's credential. Works on a sealed vault too."""
        db.execute("DELETE FROM vault_field WHERE org = ? AND connection = ?", (org, connection))
        db.execute("DELETE FROM vault_credential WHERE org = ? AND connection = ?", (org, connection))

    def seal_text(self, db: Rows, org: str, purpose: str, subject: str, text: str) -> bytes:
        """Text at rest under the org's key: a held call's arguments, its prompt, its outcome.

        The blob is the version of the org's key (4 bytes, big-endian), then a blob of `vault.seal`.
        """
        version, key = self._newest_key(db, org)
        context = _text_context(org, purpose, subject, version)
        plaintext = text.encode("utf-8", "surrogatepass")
        return version.to_bytes(TEXT_VERSION_BYTES, "big") + key.seal(plaintext, context=context)

    def unseal_text(self, db: Rows, org: str, purpose: str, subject: str, blob: bytes) -> str:
        """What `seal_text` was given. CannotOpen for another org, purpose or subject, or an altered blob."""
        self._open_root()
        blob = _blob(blob)
        version = int.from_bytes(blob[:TEXT_VERSION_BYTES], "big")
        row = db.execute("SELECT wrapped FROM vault_org_key WHERE org = ? AND version = ?", (org, version)).fetchone()
        if row is None:
            raise CannotOpen
        key = self._unwrapped(row[0], _org_context(org, version))
        context = _text_context(org, purpose, subject, version)
        return key.unseal(blob[TEXT_VERSION_BYTES:], context=context).decode("utf-8", "surrogatepass")

    def derive(self, db: Rows, org: str, purpose: str) -> bytes:
        """32 bytes for one purpose of one org, the same in every process; `org=""` is the installation itself."""
        key = self._newest_key(db, org)[1] if org else self._installation_key(db)
        slot = (key, purpose)
        if slot not in self._derived:
            self._derived[slot] = key.derive(context=(org, purpose))
        return self._derived[slot]

    def status(self, db: Rows) -> VaultStatus:
        """Counts and places; nothing secret, and no key needed. An open vault names the root key it is using."""
        made = db.execute("SELECT provider, location, created_at FROM vault_root").fetchone()
        recorded = (str(made[0]), str(made[1])) if made else ("", "")
        provider, location = (self._root.provider, self._root.location) if self._root else recorded
        counted = db.execute("SELECT org, COUNT(*) FROM vault_org_key GROUP BY org ORDER BY org").fetchall()
        credentials: dict[str, dict[int, int]] = {}
        for org, key_version, count in db.execute(
            "SELECT org, key_version, COUNT(*) FROM vault_credential GROUP BY org, key_version ORDER BY 1, 2"
        ).fetchall():
            credentials.setdefault(org, {})[key_version] = count
        return VaultStatus(self.sealed, provider, location, made[2] if made else None, dict(counted), credentials)

    def forget(self) -> None:
        """Drop the org keys held in memory; they are unwrapped again when next needed."""
        self._keys.clear()
        self._derived.clear()
        self._openers.clear()

    def _open_root(self) -> RootKey:
        if self._root is None:
            raise Sealed(self._why_sealed)
        return self._root

    def _newest_key(self, db: Rows, org: str) -> tuple[int, Key]:
        self._open_root()
        row = db.execute(
            "SELECT version, wrapped FROM vault_org_key WHERE org = ? ORDER BY version DESC LIMIT 1", (org,)
        ).fetchone()
        if row is None:
            raise VaultError(f"The org {org!r} has no key, so nothing can be sealed for it. Create the org again.")
        return int(row[0]), self._unwrapped(row[1], _org_context(org, int(row[0])))

    def _installation_key(self, db: Rows) -> Key:
        self._open_root()
        row = db.execute("SELECT installation_key FROM vault_root").fetchone()
        if row is None:
            raise VaultError("This database has no vault yet. Run `keyleash init`.")
        return self._unwrapped(row[0], INSTALLATION_KEY)

    def _unwrapped(self, wrapped: object, context: tuple[str, ...]) -> Key:
        slot = (context, _blob(wrapped))
        if slot not in self._keys:
            self._keys[slot] = Key(self._open_root().unwrap(slot[1], context=context))
        return self._keys[slot]

    def remove_before(self, db: Rows, *, org: str, connection: str, version: int) -> None:
        """Delete the versions of the connection's credential that are earlier than this one. Works sealed too."""
        for table in ("vault_field", "vault_credential"):
            db.execute(
                f"DELETE FROM {table} WHERE org = ? AND connection = ? AND version < ?", (org, connection, version)
            )

    def reencrypt(self, db: Rows, *, org: str, connection: str, version: int, origin: str, scheme: str) -> None:
        """Seal the same fields anew, in place: a new data key, under the org's newest key. CannotOpen as `open`."""
        key_version, org_key = self._newest_key(db, org)
        slot = _Slot(org, connection, version, f"key_{secrets.token_hex(8)}", origin, scheme)
        with self.open(db, org=org, connection=connection, version=version, origin=origin, scheme=scheme) as secret:
            wrapped, sealed = _seal_fields(org_key, slot, secret)
        place = (org, connection, version)
        db.execute(
            "UPDATE vault_credential SET key_id = ?, key_version = ?, data_key = ? "
            "WHERE org = ? AND connection = ? AND version = ?",
            (slot.key_id, key_version, wrapped, *place),
        )
        for field, blob in sealed.items():
            db.execute(
                "UPDATE vault_field SET sealed = ? WHERE org = ? AND connection = ? AND version = ? AND field = ?",
                (blob, *place, field),
            )


@dataclass(frozen=True)
class _Slot:
    """Where one credential version belongs: all that its seals bind.

    They bind the data key's id and not the org key's version (which the org key's own wrapping binds), so that a
    rotated org key re-wraps data keys only.
    """

    org: str
    connection: str
    version: int
    key_id: str
    origin: str
    scheme: str

    def data_key_context(self, fields: Mapping[str, object]) -> tuple[str, ...]:
        """With the names of all fields, so that none can be taken away."""
        return ("data-key", *self._place(), *sorted(fields))

    def field_context(self, field: str) -> tuple[str, ...]:
        return ("field", *self._place(), field)

    def _place(self) -> tuple[str, ...]:
        return (self.org, self.connection, str(self.version), self.key_id, self.origin, self.scheme)


def _next_version(db: Rows, org: str, connection: str) -> int:
    row = db.execute(
        "SELECT COALESCE(MAX(version), 0) + 1 FROM vault_credential WHERE org = ? AND connection = ?",
        (org, connection),
    ).fetchone()
    return int(row[0])


def _seal_fields(org_key: Key, slot: _Slot, secret: Secret) -> tuple[bytes, dict[str, bytes]]:
    if not secret.fields:
        raise VaultError("A credential needs at least one field; nothing was given.")
    raw = secrets.token_bytes(KEY_BYTES)
    data_key = Key(raw)
    wrapped = org_key.seal(raw, context=slot.data_key_context(dict.fromkeys(secret.fields)))
    sealed = {
        field: data_key.seal(secret.reveal(field).encode("utf-8", "surrogatepass"), context=slot.field_context(field))
        for field in secret.fields
    }
    return wrapped, sealed


def _org_context(org: str, version: int) -> tuple[str, ...]:
    return ("org-key", org, str(version))


def _text_context(org: str, purpose: str, subject: str, key_version: int) -> tuple[str, ...]:
    return ("text", org, purpose, subject, str(key_version))


def _blob(value: object) -> bytes:
    """A column's bytes. One that was overwritten with something else opens no more than an altered one."""
    if not isinstance(value, bytes):
        raise CannotOpen
    return value


def _now() -> int:
    return time.time_ns() // 1_000_000
