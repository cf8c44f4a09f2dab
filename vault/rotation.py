"""Rotate keys while they are in use: every step is whole by itself, and a killed rotation goes on where it stopped.

*The root key.* The next generation is written down (`begin_root`), its key is made or found, a check and the
installation's key are put under it (`ready_root`), the orgs' keys are moved under it a few at a time (`due_org_keys`,
`move_org_key`), and when none is left the earlier generations are retired (`finish_root`).

*An org's key.* The next version is written down and derived keys are carried over (`begin_org`), data keys are put
under it a few at a time (`due_credentials`, `reseal_credential`), whoever keeps texts seals them anew (`reseal_text`),
and when nothing is left the earlier versions are dropped (`drop_org_keys`). Secrets themselves are not touched: their
data keys are.

Functions that take `db` work in the transaction that they are handed and commit nothing. The others may ask a key
service, and belong outside of one.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from vault.errors import VaultError
from vault.generations import ROOT_CHECK, Rows, blob, fits
from vault.orgkeys import Wanted, org_context
from vault.root import RootKey
from vault.seal import KEY_BYTES
from vault.store import CARRIED, Vault, data_key_context, derived_context, list_of_carried, now


@dataclass(frozen=True)
class Generation:
    """A generation of the root key, and where it is kept. `ready`: it wraps something already."""

    id: int
    provider: str
    location: str
    ready: bool


@dataclass(frozen=True)
class OrgKey:
    """One version of an org's key, as its row is now, and the generation that wraps it."""

    org: str
    version: int
    wrapped: bytes
    generation: int

    @property
    def context(self) -> tuple[str, ...]:
        """What its wrapping binds."""
        return org_context(self.org, self.version)

    def wanted(self, root: RootKey) -> Wanted:
        """It, as `Vault.fetch` takes it."""
        return Wanted(self.wrapped, self.context, root)


@dataclass(frozen=True)
class DueCredential:
    """A data key that is to be put under another version of its org's key. `place` is what its seal binds."""

    key_version: int
    data_key: bytes
    place: tuple[str, str, int, str, str, str]
    """org, connection, version, key_id, origin, scheme"""

    @property
    def connection(self) -> str:
        """The connection's id."""
        return self.place[1]


# -- the root key


def unfinished_root(db: Rows) -> Generation | None:
    """The generation whose rotation was begun and not finished: being prepared, or with org keys under earlier ones."""
    row = db.execute(
        "SELECT id, provider, location, check_blob IS NOT NULL FROM vault_root ORDER BY id DESC LIMIT 1"
    ).fetchone()
    if row is None:
        raise VaultError("This database has no vault yet. Run `keyleash init`.")
    generation = Generation(row[0], row[1], row[2], bool(row[3]))
    earlier = db.execute("SELECT 1 FROM vault_root WHERE id < ? AND retired_at IS NULL", (generation.id,)).fetchone()
    return generation if earlier or not generation.ready else None


def begin_root(db: Rows, *, provider: str, location: str) -> Generation:
    """Write down the next generation, or find the one that was begun for this place. Wraps nothing yet.

    VaultError while a rotation to another place has org keys under it already.
    """
    begun = unfinished_root(db)
    if begun is not None:
        if (begun.provider, begun.location) == (provider, location):
            return begun
        if begun.ready:
            raise VaultError(
                f"A move to {begun.provider} ({begun.location}) was begun and not finished. `keyleash vault "
                "rotate-root` finishes it; after that the keys can be moved again."
            )
    generation = db.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM vault_root").fetchone()[0]
    if begun is not None:
        # Nothing was ever under it. Its number is not used again: whoever began it may be about to make it ready.
        db.execute("DELETE FROM vault_root WHERE id = ?", (begun.id,))
    db.execute(
        "INSERT INTO vault_root (id, provider, location, created_at) VALUES (?, ?, ?, ?)",
        (generation, provider, location, now()),
    )
    return Generation(int(generation), provider, location, ready=False)


def abandon_root(db: Rows, generation: int) -> None:
    """Forget a generation that was begun and never made ready: nothing was ever under it."""
    db.execute("DELETE FROM vault_root WHERE id = ? AND check_blob IS NULL", (generation,))


def generations_of(db: Rows, root: RootKey) -> list[int]:
    """The generations that this root key is the key of; none for a remote one, which stays while these change."""
    if root.remote:
        return []
    rows = db.execute(
        "SELECT id, provider, location, check_blob FROM vault_root WHERE check_blob IS NOT NULL ORDER BY id"
    ).fetchall()
    return [int(row[0]) for row in rows if isinstance(row[3], bytes) and fits(root, *row[1:])]


def check_of(db: Rows, generation: int) -> bytes:
    """What only the root key of this generation opens. VaultError where the database has no such generation ready."""
    row = db.execute("SELECT check_blob FROM vault_root WHERE id = ?", (generation,)).fetchone()
    if row is None or row[0] is None:
        raise VaultError(
            f"The root key of generation {generation} is not in this database: it was replaced meanwhile. Look at "
            "`keyleash vault status`, then try again."
        )
    return blob(row[0])


def ready_root(db: Rows, generation: int, *, check: bytes, installation_key: bytes) -> None:
    """Let this generation wrap what is new. VaultError where another rotation has taken its place meanwhile."""
    done = db.execute(
        "UPDATE vault_root SET check_blob = ?, installation_key = ? WHERE id = ? AND check_blob IS NULL",
        (check, installation_key, generation),
    )
    if done.rowcount != 1:
        raise VaultError("Another rotation was begun meanwhile. Look at `keyleash vault status`, then try again.")


def check_for(root: RootKey) -> bytes:
    """A value that only this root key opens. May ask a service."""
    return root.wrap(secrets.token_bytes(KEY_BYTES), context=ROOT_CHECK)


def installation_key(db: Rows) -> tuple[int, bytes]:
    """The generation that the installation's own key is under now, and the key as wrapped by it."""
    row = db.execute(
        "SELECT id, installation_key FROM vault_root WHERE check_blob IS NOT NULL ORDER BY id DESC"
    ).fetchone()
    return int(row[0]), blob(row[1])


def rewrapped(wrapped: bytes, context: Sequence[str], *, before: RootKey, after: RootKey) -> bytes:
    """A key under another root key, the same context bound. May ask a service. CannotOpen, KeysUnavailable."""
    return after.wrap(before.unwrap(wrapped, context=context), context=context)


def due_org_keys(db: Rows, generation: int, *, most: int) -> list[OrgKey]:
    """Keys of orgs that are not under this generation yet."""
    rows = db.execute(
        "SELECT org, version, wrapped, root FROM vault_org_key WHERE root < ? ORDER BY org, version LIMIT ?",
        (generation, most),
    ).fetchall()
    return [OrgKey(org, version, blob(wrapped), root) for org, version, wrapped, root in rows]


def move_org_key(db: Rows, key: OrgKey, wrapped: bytes, generation: int) -> bool:
    """Put an org's key under another generation; False where it was moved or removed meanwhile."""
    done = db.execute(
        "UPDATE vault_org_key SET wrapped = ?, root = ? WHERE org = ? AND version = ? AND root = ? AND wrapped = ?",
        (wrapped, generation, key.org, key.version, key.generation, key.wrapped),
    )
    return bool(done.rowcount == 1)


def finish_root(db: Rows, generation: int) -> bool:
    """Retire the earlier generations, and forget the installation's key as they wrapped it.

    False, and nothing is retired, while an org's key is under one of them.
    """
    if db.execute("SELECT 1 FROM vault_org_key WHERE root < ?", (generation,)).fetchone():
        return False
    db.execute(
        "UPDATE vault_root SET retired_at = ?, installation_key = NULL WHERE id < ? AND retired_at IS NULL",
        (now(), generation),
    )
    return True


def drop_root(db: Rows, generation: int) -> tuple[str, str]:
    """Forget a retired generation; returns its provider and location. VaultError while anything is under it."""
    row = db.execute("SELECT provider, location, retired_at FROM vault_root WHERE id = ?", (generation,)).fetchone()
    if row is None:
        raise VaultError(f"There is no root key of generation {generation}. `keyleash vault status` shows them.")
    under = db.execute("SELECT COUNT(*) FROM vault_org_key WHERE root = ?", (generation,)).fetchone()[0]
    if under or row[2] is None:
        begun = unfinished_root(db)
        preparing = begun is not None and begun.id == generation and not begun.ready
        in_use = "its rotation is not finished" if preparing else "it is the one in use"
        what = f"{under} keys of orgs are under it" if under else in_use
        raise VaultError(
            f"The root key of generation {generation} cannot be dropped: {what}. `keyleash vault rotate-root` moves "
            "everything under a new one."
        )
    db.execute("DELETE FROM vault_root WHERE id = ?", (generation,))
    return str(row[0]), str(row[1])


# -- an org's key


def unfinished_org(db: Rows, org: str) -> int | None:
    """The version whose rotation was begun and not finished: the newest, where an earlier one is still there."""
    newest, count = db.execute("SELECT MAX(version), COUNT(*) FROM vault_org_key WHERE org = ?", (org,)).fetchone()
    return int(newest) if count > 1 else None


def next_org_key(org: str, version: int, root: RootKey) -> bytes:
    """A new random key for an org, wrapped. May ask a service."""
    return root.wrap(secrets.token_bytes(KEY_BYTES), context=org_context(org, version))


def begin_org(db: Rows, vault: Vault, org: str, *, wrapped: OrgKey, purposes: Sequence[str]) -> None:
    """Let this next version seal what is new; what was derived for these purposes stays what it is.

    VaultError where the version is not the next one any more, or its generation not the newest. Its root key is at
    hand: nothing is asked.
    """
    before, _ = vault.keyring.newest(db, org)
    if wrapped.version != before + 1:
        raise VaultError("This org's key was rotated by somebody else meanwhile. Look at `keyleash vault status`.")
    newest = db.execute("SELECT MAX(id) FROM vault_root WHERE check_blob IS NOT NULL").fetchone()[0]
    if wrapped.generation != newest:
        raise VaultError("The root key was rotated meanwhile, and nothing new goes under the one before. Try again.")
    kept = {purpose: vault.derive(db, org, purpose) for purpose in (*purposes, *vault.carried(db, org))}
    db.execute(
        "INSERT INTO vault_org_key (org, version, wrapped, created_at, root) VALUES (?, ?, ?, ?, ?)",
        (org, wrapped.version, wrapped.wrapped, now(), wrapped.generation),
    )
    key = vault.keyring.at(db, org, wrapped.version)
    db.execute("DELETE FROM vault_derived WHERE org = ?", (org,))
    rows = {CARRIED: list_of_carried(key, org, wrapped.version, list(kept))}
    for purpose in list(kept):
        rows[purpose] = key.seal(kept.pop(purpose), context=derived_context(org, purpose, wrapped.version))
    for purpose, sealed in rows.items():
        db.execute(
            "INSERT INTO vault_derived (org, purpose, key_version, sealed) VALUES (?, ?, ?, ?)",
            (org, purpose, wrapped.version, sealed),
        )


def due_credentials(db: Rows, org: str, version: int, *, most: int) -> list[DueCredential]:
    """Credentials of an org whose data keys are not under this version of its key yet."""
    rows = db.execute(
        "SELECT key_version, data_key, org, connection, version, key_id, origin, scheme FROM vault_credential "
        "WHERE org = ? AND key_version < ? ORDER BY connection, version LIMIT ?",
        (org, version, most),
    ).fetchall()
    return [
        DueCredential(key_version, blob(data_key), (place[0], place[1], place[2], place[3], place[4], place[5]))
        for key_version, data_key, *place in rows
    ]


def reseal_credential(db: Rows, vault: Vault, due: DueCredential, version: int) -> None:
    """Put a data key under this version of the org's key. CannotOpen where its rows are not as they were put."""
    org, connection, credential = due.place[:3]
    fields = db.execute(
        "SELECT field FROM vault_field WHERE org = ? AND connection = ? AND version = ?", (org, connection, credential)
    ).fetchall()
    context = data_key_context(due.place, [str(field) for (field,) in fields])
    before, after = vault.keyring.at(db, org, due.key_version), vault.keyring.at(db, org, version)
    db.execute(
        "UPDATE vault_credential SET data_key = ?, key_version = ? "
        "WHERE org = ? AND connection = ? AND version = ? AND key_version = ?",
        (
            after.seal(before.unseal(due.data_key, context=context), context=context),
            version,
            org,
            connection,
            credential,
            due.key_version,
        ),
    )


def reseal_text(  # noqa: PLR0917 - the arguments of `unseal_text`
    db: Rows, vault: Vault, org: str, purpose: str, subject: str, sealed: bytes
) -> bytes:
    """A sealed text under the newest version of the org's key. CannotOpen as `unseal_text` does."""
    return vault.seal_text(db, org, purpose, subject, vault.unseal_text(db, org, purpose, subject, sealed))


def drop_org_keys(db: Rows, org: str, version: int) -> int:
    """Drop the versions before this one; returns how many. VaultError while a credential is under one of them.

    Texts are not the vault's own: whoever keeps them makes sure first that none is under an earlier version.
    """
    under = db.execute(
        "SELECT COUNT(*) FROM vault_credential WHERE org = ? AND key_version < ?", (org, version)
    ).fetchone()[0]
    if under:
        raise VaultError(f"An earlier key of this org cannot be dropped: {under} credentials are under it.")
    return int(db.execute("DELETE FROM vault_org_key WHERE org = ? AND version < ?", (org, version)).rowcount)
