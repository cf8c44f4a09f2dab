"""Each part of what a seal binds, by itself: all keys are right and one word is another, and it does not open."""

import sqlite3
from collections.abc import Iterator

import pytest

from vault import CannotOpen, LocalRootKey, Vault
from vault import rotation as steps
from vault.seal import Key

ORG_KEY, DATA_KEY = bytes(range(50, 82)), bytes(range(150, 182))
SLOT = {"org": "org_a", "connection": "con_1", "origin": "https://a:443", "scheme": "bearer"}
PLACE = ("org_a", "con_1", "7", "key_1", "https://a:443", "bearer")
CONTEXTS = {
    "root check": ("root-check",),
    "installation key": ("installation-key",),
    "org key": ("org-key", "org_a", "3"),
    "data key": ("data-key", *PLACE, "account", "secret"),
    "field": ("field", *PLACE, "secret"),
    "text": ("text", "org_a", "prompt", "apr_1", "3"),
    "derived": ("derived", "org_a", "audit", "3"),
    "list of derived": ("derived", "org_a", "", "3"),
}
"""As `vault/seal.py` documents them."""

Contexts = dict[str, tuple[str, ...]]


def otherwise(context: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every context that differs in one thing: a part is another, is left out, stands twice, or ends elsewhere."""
    for at, part in enumerate(context):
        yield (*context[:at], part + "x", *context[at + 1 :])
        yield (*context[:at], part[:-1] or "x", *context[at + 1 :])
        yield (*context[:at], part, *context[at:])
        if len(context) > 1:
            yield (*context[:at], *context[at + 1 :])
        if at + 1 < len(context):
            yield (*context[:at], part + context[at + 1], *context[at + 2 :])
            if context[at] != context[at + 1]:
                yield (*context[:at], context[at + 1], part, *context[at + 2 :])
    yield ("", *context)
    yield (*context, "")


def one_of_each(db: sqlite3.Connection, root: LocalRootKey, contexts: Contexts) -> bytes:
    """A row of every kind, each sealed under the key that it should be, for this context. Returns a text."""
    org_key, data_key = Key(ORG_KEY), Key(DATA_KEY)
    db.execute(
        "INSERT INTO vault_root VALUES (1, 'memory', 'this process', ?, ?, 0, NULL)",
        (
            root.wrap(b"c" * 32, context=contexts["root check"]),
            root.wrap(b"i" * 32, context=contexts["installation key"]),
        ),
    )
    db.execute(
        "INSERT INTO vault_org_key VALUES ('org_a', 3, ?, 0, 1)", (root.wrap(ORG_KEY, context=contexts["org key"]),)
    )
    db.execute(
        "INSERT INTO vault_credential VALUES ('org_a', 'con_1', 7, 'key_1', 3, ?, 'https://a:443', 'bearer', 0)",
        (org_key.seal(DATA_KEY, context=contexts["data key"]),),
    )
    account = ("field", *PLACE, "account")
    for field, context in (("secret", contexts["field"]), ("account", account)):
        sealed = data_key.seal(f"the {field}".encode(), context=context)
        db.execute("INSERT INTO vault_field VALUES ('org_a', 'con_1', 7, ?, ?)", (field, sealed))
    for purpose, plaintext, of in (("audit", b"d" * 32, "derived"), ("", b'["audit"]', "list of derived")):
        sealed = org_key.seal(plaintext, context=contexts[of])
        db.execute("INSERT INTO vault_derived VALUES ('org_a', ?, 3, ?)", (purpose, sealed))
    return b"\0\0\0\3" + org_key.seal(b"the text", context=contexts["text"])


def opened(vault: Vault, db: sqlite3.Connection, text: bytes) -> dict[str, object]:
    """Everything in that database, by what it is sealed as; CannotOpen (or WrongRootKey) where it is refused."""
    found: dict[str, object] = {}
    for name, read in {
        "field": lambda: vault.open(db, version=7, **SLOT).reveal(),
        "text": lambda: vault.unseal_text(db, "org_a", "prompt", "apr_1", text),
        "derived": lambda: vault.derive(db, "org_a", "audit"),
        "list of derived": lambda: len(vault.derive(db, "org_a", "another")),
        "installation key": lambda: len(vault.derive(db, "", "state")),
    }.items():
        try:
            found[name] = read()
        except CannotOpen:
            found[name] = CannotOpen
    return found


WHOLE = {
    "field": "the secret",
    "text": "the text",
    "derived": b"d" * 32,
    "list of derived": 32,
    "installation key": 32,
}
NEEDED_FOR = {"org key": ("field", "text", "derived", "list of derived"), "data key": ("field",)}


def test_sealed_as_documented_everything_opens(db: sqlite3.Connection, root: LocalRootKey):
    text = one_of_each(db, root, CONTEXTS)
    vault = Vault(root)
    vault.check_root(db)
    assert opened(vault, db, text) == WHOLE


@pytest.mark.parametrize(
    ("kind", "context"),
    [(kind, other) for kind, context in CONTEXTS.items() for other in otherwise(context) if kind != "root check"],
    ids=lambda given: "/".join(given) if isinstance(given, tuple) else given,
)
def test_sealed_for_anything_else_it_does_not_open_though_all_keys_are_right(
    db: sqlite3.Connection, root: LocalRootKey, kind: str, context: tuple[str, ...]
):
    text = one_of_each(db, root, {**CONTEXTS, kind: context})
    refused = NEEDED_FOR.get(kind, (kind,))
    assert opened(Vault(root), db, text) == {**WHOLE, **dict.fromkeys(refused, CannotOpen)}


@pytest.mark.parametrize("asked", ["org", "connection", "version", "origin", "scheme"])
def test_asked_for_as_anything_else_it_does_not_open_though_all_keys_are_right(
    db: sqlite3.Connection, root: LocalRootKey, asked: str
):
    """As where the row that says which credential a connection has was altered, and every row of the vault with it."""
    one_of_each(db, root, CONTEXTS)
    db.execute("PRAGMA foreign_keys = OFF")
    other: str | int = 8 if asked == "version" else "other"
    if asked == "org":
        wrapped = root.wrap(ORG_KEY, context=("org-key", "other", "3"))
        db.execute("UPDATE vault_org_key SET org = 'other', wrapped = ?", (wrapped,))
    for table in ("vault_credential", "vault_field"):
        if asked in [column[1] for column in db.execute(f"PRAGMA table_info({table})")]:
            db.execute(f"UPDATE {table} SET {asked} = ?", (other,))
    with pytest.raises(CannotOpen):
        Vault(root).open(db, **{"version": 7, **SLOT, asked: other})


@pytest.mark.parametrize("column", ["key_id", "origin", "scheme", "connection", "version"])
def test_a_rotation_seals_nothing_anew_for_a_place_that_it_was_not_sealed_for(
    db: sqlite3.Connection, root: LocalRootKey, column: str
):
    one_of_each(db, root, CONTEXTS)
    db.execute("PRAGMA foreign_keys = OFF")
    for table in ("vault_credential", "vault_field"):
        if column in [row[1] for row in db.execute(f"PRAGMA table_info({table})")]:
            db.execute(f"UPDATE {table} SET {column} = ?", (8 if column == "version" else "other",))
    vault = Vault(root)
    key = steps.OrgKey("org_a", 4, steps.next_org_key("org_a", 4, root), 1)
    steps.begin_org(db, vault, "org_a", wrapped=key, purposes=("audit",))
    (due,) = steps.due_credentials(db, "org_a", 4, most=9)
    before = db.execute("SELECT * FROM vault_credential").fetchall()
    with pytest.raises(CannotOpen):
        steps.reseal_credential(db, vault, due, 4)
    assert db.execute("SELECT * FROM vault_credential").fetchall() == before
