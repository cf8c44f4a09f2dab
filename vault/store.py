"""Credentials at rest: what was put for one org, connection, version, origin and scheme opens for exactly those.

The root key wraps one key per org; an org's key wraps one data key per credential version; a data key seals the
fields. Every step binds what it is for, so that a row moved, swapped or re-pointed in the database does not open.
Everything works inside the transaction that it is handed, and commits nothing itself.
"""

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, final

from vault.errors import CannotOpen, Sealed, VaultError
from vault.generations import INSTALLATION_KEY, ROOT_CHECK, Find, Generations, Rows, blob, text, wrong_root
from vault.keys import RootKey, RootKeyRef
from vault.orgkeys import KEEP_SECONDS, Held, OrgKeys, Wanted, no_key, org_context
from vault.seal import KEY_BYTES, Key
from vault.secret import Opaque, Secret

TEXT_VERSION_BYTES = 4
Seal = Callable[[str, str, str], bytes]
"""Seals a text under an org's newest key: purpose, subject and text become the blob."""
CARRIED = ""
"""The purpose of the row that lists which purposes' keys were carried over when an org's key was rotated."""

_CREDENTIAL = """
SELECT c.key_id, c.key_version, c.data_key, k.wrapped, k.root, f.field, f.sealed
FROM vault_credential c
JOIN vault_org_key k ON k.org = c.org AND k.version = c.key_version
JOIN vault_field f ON f.org = c.org AND f.connection = c.connection AND f.version = c.version
WHERE c.org = ? AND c.connection = ? AND c.version = ? ORDER BY f.field"""

_DERIVED = f"""
SELECT k.version, k.wrapped, k.root, d.key_version, d.sealed, w.wrapped, w.root, CASE WHEN d.org IS NULL THEN
    (SELECT c.sealed FROM vault_derived c WHERE c.org = k.org AND c.purpose = '{CARRIED}')
END
FROM vault_org_key k
LEFT JOIN vault_derived d ON d.org = k.org AND d.purpose = ?
LEFT JOIN vault_org_key w ON w.org = d.org AND w.version = d.key_version
WHERE k.org = ? ORDER BY k.version DESC LIMIT 1"""


@dataclass(frozen=True)
class RootStatus:
    """One generation of the root key. Times are in milliseconds since the epoch."""

    generation: int
    provider: str
    location: str
    since: int
    ready: bool
    """whether it wraps anything yet: False while its rotation is being prepared"""
    retired_at: int | None
    org_keys: int
    """how many versions of orgs' keys it wraps"""


@dataclass(frozen=True)
class OrgKeyStatus:
    """One version of an org's key, and what is under it."""

    version: int
    since: int
    root: int
    credentials: int
    derived: int


@dataclass(frozen=True)
class VaultStatus:
    """What an operator may know of the vault. `since` is in milliseconds since the epoch, None before `install`."""

    sealed: str | None
    provider: str
    location: str
    since: int | None
    roots: tuple[RootStatus, ...]
    orgs: dict[str, tuple[OrgKeyStatus, ...]]
    """org → the versions of its key, oldest first"""


class FirstOrgKey(NamedTuple):
    """An org's first key, wrapped by a generation of the root key."""

    generation: int
    wrapped: bytes


@final
class Vault(Opaque):
    """The credentials of every org, under a root key that is not in the database.

    Without a root key it is *sealed*: what needs a key raises Sealed; `status` and `remove` still work. `find` loads a
    root key that a row is under and that is not `root`: a rotation's. An org's key is held for `keep_seconds`.
    """

    __slots__ = ("_keys", "_why_sealed")

    def __init__(
        self,
        root: RootKey | None,
        why_sealed: str = "",
        *,
        find: Find | None = None,
        keep_seconds: float = KEEP_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = OrgKeys(Generations(root, find), seconds=keep_seconds, clock=clock) if root else None
        self._why_sealed = why_sealed or "it was started without a root key. Restart with the key it was made with."

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
        return None if self._keys else self._why_sealed

    @property
    def keyring(self) -> OrgKeys:
        """The keys that everything here is under, for whoever rotates them. Raises Sealed."""
        if self._keys is None:
            raise Sealed(self._why_sealed)
        return self._keys

    def install(self, db: Rows) -> None:
        """Bind this database to the root key, once. VaultError if it is bound already, to whichever key."""
        root = self.keyring.generations.given
        if db.execute("SELECT 1 FROM vault_root").fetchone():
            raise VaultError("This database has its root key already; it is not given a second one.")
        check = root.wrap(secrets.token_bytes(KEY_BYTES), context=ROOT_CHECK)
        installation = root.wrap(secrets.token_bytes(KEY_BYTES), context=INSTALLATION_KEY)
        db.execute(
            "INSERT INTO vault_root (id, provider, location, check_blob, installation_key, created_at) "
            "VALUES (1, ?, ?, ?, ?, ?)",
            (root.provider, root.location, check, installation, now()),
        )

    def check_root(self, db: Rows) -> None:
        """Raises WrongRootKey unless the root key is the one that the newest rows of this database are under.

        A remote one is asked: KeysUnavailable where its service does not answer.
        """
        root = self.keyring.generations.given
        row = db.execute(
            "SELECT check_blob, provider, location FROM vault_root WHERE check_blob IS NOT NULL ORDER BY id DESC"
        ).fetchone()
        if row is None:
            raise VaultError("This database has no vault yet. Run `keyleash init`.")
        try:
            root.unwrap(blob(row[0]), context=ROOT_CHECK)
        except CannotOpen:
            raise wrong_root(root, row[1], row[2]) from None

    def first_org_key(self, db: Rows, org: str) -> "FirstOrgKey":
        """A new random key for an org that has none yet. May ask a service, so not inside of a transaction."""
        if not org:
            raise VaultError("A key belongs to an org; name it.")
        generation, root = self.keyring.generations.newest(db)
        return FirstOrgKey(generation, root.wrap(secrets.token_bytes(KEY_BYTES), context=org_context(org, 1)))

    def create_org_key(self, db: Rows, org: str, *, made: "FirstOrgKey | None" = None) -> None:
        """The org's first key, the one that was `made` for it, or a new one. VaultError if it has one.

        Also where the root key was rotated since that one was made: nothing new goes under the one before.
        """
        if made is None:
            made = self.first_org_key(db, org)
        if made.generation != self.keyring.generations.newest(db)[0]:
            raise VaultError(
                "The root key was rotated meanwhile, and nothing new goes under the one before. Try again."
            )
        if db.execute("SELECT 1 FROM vault_org_key WHERE org = ?", (org,)).fetchone():
            raise VaultError(f"The org {org} has its key already.")
        db.execute(
            "INSERT INTO vault_org_key (org, version, wrapped, created_at, root) VALUES (?, 1, ?, ?, ?)",
            (org, made.wrapped, now(), made.generation),
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
        key_version, org_key = self.keyring.newest(db, org)
        slot = _new_slot(org, connection, version, origin, scheme)
        secret = fields if isinstance(fields, Secret) else Secret(fields)
        del fields  # from here on a traceback that prints locals finds no secret
        wrapped, sealed = _seal_fields(org_key, slot, secret)
        db.execute(
            "INSERT INTO vault_credential "
            "(org, connection, version, key_id, key_version, data_key, origin, scheme, created_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (org, connection, version, slot.key_id, key_version, wrapped, origin, scheme, now()),
        )
        for name, field in sealed.items():
            db.execute(
                "INSERT INTO vault_field (org, connection, version, field, sealed) VALUES (?, ?, ?, ?, ?)",
                (org, connection, version, name, field),
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
        try:
            org_key = self._key_of(db, org, rows)
            slot = _Slot(org, connection, version, text(rows[0][0]), origin, scheme)
        except VaultError as problem:
            refusal = problem.with_traceback(None)
        else:
            return partial(_opened, org_key, slot, rows)

        def refuse() -> Secret:
            raise refusal

        return refuse

    def _key_of(self, db: Rows, org: str, rows: Sequence[Any]) -> Held:
        keyring = self.keyring
        if not rows:
            raise CannotOpen
        return keyring.of_row(db, org, rows[0][1], rows[0][3], rows[0][4])

    def remove(self, db: Rows, *, org: str, connection: str) -> None:
        """Delete every version of the connection's credential. Works on a sealed vault too."""
        db.execute("DELETE FROM vault_field WHERE org = ? AND connection = ?", (org, connection))
        db.execute("DELETE FROM vault_credential WHERE org = ? AND connection = ?", (org, connection))

    def seal_text(self, db: Rows, org: str, purpose: str, subject: str, text: str) -> bytes:
        """Text at rest under the org's key: a held call's arguments, its prompt, its outcome.

        The blob is the version of the org's key (4 bytes, big-endian), then a blob of `vault.seal`.
        """
        version, key = self.keyring.newest(db, org)
        return _sealed_text(key, org, version, purpose, subject, text)

    def unseal_text(self, db: Rows, org: str, purpose: str, subject: str, sealed: bytes) -> str:
        """What `seal_text` was given. CannotOpen for another org, purpose or subject, or an altered blob.

        Read the blob in the same snapshot: a rotation seals texts anew and then drops the key that they were under.
        """
        keyring, sealed = self.keyring, blob(sealed)
        version = int.from_bytes(sealed[:TEXT_VERSION_BYTES], "big")
        key = keyring.at(db, org, version)
        context = _text_context(org, purpose, subject, version)
        return key.unseal(sealed[TEXT_VERSION_BYTES:], context=context).decode("utf-8", "surrogatepass")

    def derive(self, db: Rows, org: str, purpose: str) -> bytes:
        """32 bytes for one purpose of one org, the same in every process; `org=""` is the installation itself.

        They stay what they are when keys are rotated: what is carried over is kept (`vault.rotation.begin_org`).
        """
        if not org:
            return self.keyring.installation(db).derive(context=(org, purpose))
        return self._derived(db, org, purpose)[0]

    def derive_and_seal(self, db: Rows, org: str, purpose: str) -> tuple[bytes, Seal]:
        """What `derive` gives, and what seals texts of this org as `seal_text` does; from one look at its keys.

        Use it within the transaction: afterwards another key may be the one that seals what is new.
        """
        derived, (version, wrapped, root) = self._derived(db, org, purpose)
        key = self.keyring.of_row(db, org, version, wrapped, root).key
        return derived, partial(_sealed_text, key, org, version)

    def _derived(self, db: Rows, org: str, purpose: str) -> tuple[bytes, tuple[int, object, int]]:
        """The derived key, and the row of the org's newest key."""
        row = db.execute(_DERIVED, (purpose, org)).fetchone()
        if row is None:
            raise no_key(org)
        version, wrapped, root, key_version, sealed, kept_under, kept_root, carried = row
        newest = (version, wrapped, root)
        if key_version is not None:
            version, wrapped, root = key_version, kept_under, kept_root
        held = self.keyring.of_row(db, org, version, wrapped, root)
        name = (org, purpose, *row)
        derived: bytes | None = held.made.get(name)
        if derived is None:
            if key_version is not None:
                derived = held.key.unseal(blob(sealed), context=derived_context(org, purpose, version))
            elif purpose in _carried(held.key, org, version, carried):
                raise CannotOpen  # its row was taken away: what would be derived now is something else
            else:
                derived = held.key.derive(context=(org, purpose))
            held.keep(name, derived)
        return derived, newest

    def carried(self, db: Rows, org: str) -> tuple[str, ...]:
        """The purposes whose derived keys outlived a rotation of the org's key; none where it has its first one."""
        version, key = self.keyring.newest(db, org)
        row = db.execute("SELECT sealed FROM vault_derived WHERE org = ? AND purpose = ?", (org, CARRIED)).fetchone()
        return _carried(key, org, version, row[0] if row else None)

    def status(self, db: Rows) -> VaultStatus:
        """Counts and places; nothing secret, and no key needed. An open vault names the root key it is using."""
        roots = tuple(
            RootStatus(generation, provider, location, since, bool(ready), retired_at, org_keys)
            for generation, provider, location, since, ready, retired_at, org_keys in db.execute(_ROOTS).fetchall()
        )
        made = next((root for root in reversed(roots) if root.ready), None)
        recorded = (made.provider, made.location) if made else ("", "")
        given = self._keys.generations.given if self._keys else None
        provider, location = (given.provider, given.location) if given else recorded
        orgs: dict[str, list[OrgKeyStatus]] = {}
        for org, *counted in db.execute(_ORG_KEYS).fetchall():
            orgs.setdefault(org, []).append(OrgKeyStatus(*counted))
        since = made.since if made else None
        return VaultStatus(
            self.sealed, provider, location, since, roots, {org: tuple(versions) for org, versions in orgs.items()}
        )

    def forget(self) -> None:
        """Drop the keys held in memory; they are unwrapped again when next needed."""
        if self._keys is not None:
            self._keys.forget()

    def wanted(self, db: Rows, org: str) -> list[Wanted]:
        """The keys that `fetch` should be asked for before a call of this org; nothing where the root key is local."""
        return [] if self._keys is None else self._keys.wanted(db, org)

    def fetch(self, wanted: Sequence[Wanted]) -> None:
        """Ask the key service; may take seconds, so never in a transaction. Raises KeysUnavailable, CannotOpen."""
        self.keyring.fetch(wanted)

    def remove_before(self, db: Rows, *, org: str, connection: str, version: int) -> None:
        """Delete the versions of the connection's credential that are earlier than this one. Works sealed too."""
        for table in ("vault_field", "vault_credential"):
            db.execute(
                f"DELETE FROM {table} WHERE org = ? AND connection = ? AND version < ?", (org, connection, version)
            )

    def reencrypt(self, db: Rows, *, org: str, connection: str, version: int, origin: str, scheme: str) -> None:
        """Seal the same fields anew, in place: a new data key, under the org's newest key. CannotOpen as `open`."""
        with self.open(db, org=org, connection=connection, version=version, origin=origin, scheme=scheme) as secret:
            self.replace(
                db, org=org, connection=connection, version=version, origin=origin, scheme=scheme, fields=secret
            )

    def replace(
        self, db: Rows, *, org: str, connection: str, version: int, origin: str, scheme: str, fields: Secret
    ) -> None:
        """Seal other fields in the place of a version's, which stays the same version: tokens that were renewed.

        Nothing of what was sealed before is kept. CannotOpen where there is no such version.
        """
        key_version, org_key = self.keyring.newest(db, org)
        slot = _new_slot(org, connection, version, origin, scheme)
        wrapped, sealed = _seal_fields(org_key, slot, fields)
        place = (org, connection, version)
        moved = db.execute(
            "UPDATE vault_credential SET key_id = ?, key_version = ?, data_key = ? "
            "WHERE org = ? AND connection = ? AND version = ? AND origin = ? AND scheme = ?",
            (slot.key_id, key_version, wrapped, *place, origin, scheme),
        )
        if moved.rowcount != 1:
            raise CannotOpen
        db.execute("DELETE FROM vault_field WHERE org = ? AND connection = ? AND version = ?", place)
        for name, field in sealed.items():
            db.execute(
                "INSERT INTO vault_field (org, connection, version, field, sealed) VALUES (?, ?, ?, ?, ?)",
                (*place, name, field),
            )


_ROOTS = """
SELECT r.id, r.provider, r.location, r.created_at, r.check_blob IS NOT NULL, r.retired_at,
       (SELECT COUNT(*) FROM vault_org_key k WHERE k.root = r.id)
FROM vault_root r ORDER BY r.id"""

_ORG_KEYS = """
SELECT k.org, k.version, k.created_at, k.root,
       (SELECT COUNT(*) FROM vault_credential c WHERE c.org = k.org AND c.key_version = k.version),
       (SELECT COUNT(*) FROM vault_derived d WHERE d.org = k.org AND d.key_version = k.version AND d.purpose <> '')
FROM vault_org_key k ORDER BY k.org, k.version"""


class _Slot(NamedTuple):
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


def _opened(org_key: Held, slot: _Slot, rows: Sequence[Any]) -> Secret:
    """The credential, or CannotOpen. What opens each field is held with the org's key: nothing is derived anew then."""
    name = (slot, *rows)
    openers: dict[str, Callable[[], bytes]] | None = org_key.made.get(name)
    if openers is not None:
        return _secret_of(openers)
    fields = {str(row[5]): blob(row[6]) for row in rows}
    data_key = Key(org_key.key.unseal(blob(rows[0][2]), context=slot.data_key_context(fields)))
    openers = {field: data_key.opener(sealed, context=slot.field_context(field)) for field, sealed in fields.items()}
    secret = _secret_of(openers)
    org_key.keep(name, openers)
    return secret


def _secret_of(opened: Mapping[str, Callable[[], bytes]]) -> Secret:
    return Secret({field: read() for field, read in opened.items()})


def _new_slot(org: str, connection: str, version: int, origin: str, scheme: str) -> _Slot:
    return _Slot(org, connection, version, f"key_{secrets.token_hex(8)}", origin, scheme)


def data_key_context(row: Sequence[Any], fields: Sequence[str]) -> tuple[str, ...]:
    """What the wrapping of a data key binds, from its row: org, connection, version, key_id, origin, scheme."""
    org, connection, version, key_id, origin, scheme = row
    slot = _Slot(text(org), text(connection), version, text(key_id), text(origin), text(scheme))
    return slot.data_key_context(dict.fromkeys(fields))


def derived_context(org: str, purpose: str, key_version: int) -> tuple[str, ...]:
    """What the sealing of a carried-over derived key binds, and that of their list."""
    return ("derived", org, purpose, str(key_version))


def list_of_carried(key: Key, org: str, key_version: int, purposes: Sequence[str]) -> bytes:
    """The list of what is carried over, sealed: so that a row of it that is taken away is missed."""
    return key.seal(json.dumps(sorted(purposes)).encode(), context=derived_context(org, CARRIED, key_version))


def _carried(key: Key, org: str, key_version: int, sealed: object) -> tuple[str, ...]:
    if key_version == 1 and sealed is None:
        return ()
    return tuple(json.loads(key.unseal(blob(sealed), context=derived_context(org, CARRIED, key_version))))


def _sealed_text(  # noqa: PLR0917 - what the seal binds, in its order
    key: Key, org: str, version: int, purpose: str, subject: str, text: str
) -> bytes:
    sealed = key.seal(text.encode("utf-8", "surrogatepass"), context=_text_context(org, purpose, subject, version))
    return version.to_bytes(TEXT_VERSION_BYTES, "big") + sealed


def _text_context(org: str, purpose: str, subject: str, key_version: int) -> tuple[str, ...]:
    return ("text", org, purpose, subject, str(key_version))


def now() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
