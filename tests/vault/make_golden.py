"""`python -m tests.vault.make_golden FILE`: write down what this release seals, for every later one to open.

Made once for a format, when there is something new in it, and never again: a file that is there is left alone.
"""

import json
import sqlite3
import sys
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

from sqlalchemy.schema import CreateTable

from server.sealed import DERIVED, SEALED
from tests.vault.populated import (
    CREDENTIALS,
    INSTALLATION,
    ORGS,
    ROOTS,
    SLOTS,
    VAULT_TABLES,
    opened_vault,
    populate,
    read_credential,
    read_derived,
    read_text,
)
from vault import Vault, seal
from vault.tables import Credential, Derived, OrgKey, VaultField, VaultRoot

UNUSUAL = {"secret": "", "nämé": "jürgen \ud800 ☃", "long": "x" * 300}
CONTEXT = ["field", "org_golden", "é", "", "\ud800"]


def golden() -> dict[str, Any]:
    """A database in the middle of two rotations, and all that it holds in clear."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    for table in (VaultRoot, OrgKey, Derived, Credential, VaultField):
        db.execute(str(CreateTable(table.__table__)))  # pyright: ignore[reportAttributeAccessIssue]
    populate(db)
    vault = opened_vault()
    vault.put(db, org="org_c", connection="con_ü", fields=UNUSUAL, **SLOTS["con_2"])
    found = {
        "what": "Every later release must open all of this. Made by tests/vault/make_golden.py; never made again.",
        "root_key_files": {
            place: f"keyleash-root-key:v1:{urlsafe_b64encode(raw).decode()}\n" for place, raw in ROOTS.items()
        },
        "seal": _blob(),
        "credentials": _credentials(vault, db),
        "texts": _texts(vault, db),
        "derived": _derived(vault, db),
        "tables": {table: _rows(db, table) for table in VAULT_TABLES},
    }
    db.close()
    return found


def _blob() -> dict[str, Any]:
    key, plaintext = bytes(range(32)), "gölden"
    return {
        "key": key.hex(),
        "context": CONTEXT,
        "plaintext": plaintext,
        "blob": seal(key, plaintext.encode(), context=CONTEXT).hex(),
    }


def _credentials(vault: Vault, db: sqlite3.Connection) -> list[dict[str, Any]]:
    found = [
        {
            "org": org,
            "connection": connection,
            "version": version,
            **SLOTS[connection],
            "fields": read_credential(org, connection, version, vault, db),
        }
        for org in ORGS
        for connection, version in CREDENTIALS
    ]
    return [*found, {"org": "org_c", "connection": "con_ü", "version": 1, **SLOTS["con_2"], "fields": UNUSUAL}]


def _texts(vault: Vault, db: sqlite3.Connection) -> list[dict[str, Any]]:
    return [
        {
            "org": org,
            "purpose": place.purpose,
            "subject": subject,
            "text": read_text(place, org, subject, vault, db),
            "sealed": db.execute(f"SELECT {place.column} FROM {place.table} WHERE org = ? AND id = ?", (org, subject))
            .fetchone()[0]
            .hex(),
        }
        for org in ORGS
        for place in SEALED
        for subject in ("one", "two")
    ]


def _derived(vault: Vault, db: sqlite3.Connection) -> list[dict[str, str]]:
    """Carried over or not yet, for a purpose that no rotation had heard of, and the installation's own."""
    asked = [*((org, purpose) for org in ORGS for purpose in (*DERIVED, "later")), ("", INSTALLATION)]
    return [
        {"org": org, "purpose": purpose, "key": read_derived(org, purpose, vault, db).hex()} for org, purpose in asked
    ]


def _rows(db: sqlite3.Connection, table: str) -> list[dict[str, Any]]:
    cursor = db.execute(f"SELECT * FROM {table}")
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, map(_plain, row), strict=True)) for row in cursor.fetchall()]


def _plain(value: object) -> object:
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def main() -> int:
    """See the text of this file."""
    if len(sys.argv) != 2:
        print("usage: python -m tests.vault.make_golden FILE", file=sys.stderr)
        return 2
    file, text = Path(sys.argv[1]), json.dumps(golden(), indent=1) + "\n"
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        print(
            f"{file} is there already, and what it holds was sealed by another release. Name a new one.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
