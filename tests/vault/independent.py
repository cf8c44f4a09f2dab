"""Opens what the vault has stored, written from the text of `vault/seal.py` alone; it imports nothing of the vault.

It takes the tables as lists of rows by column name, and the root keys as they are written, by their locations.
"""

import base64
import json
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Row = dict[str, Any]


def encoded(context: list[str]) -> bytes:
    """Each part: its length in bytes (4, big-endian), then itself in UTF-8."""
    out = b""
    for part in context:
        raw = part.encode("utf-8", "surrogatepass")
        out += len(raw).to_bytes(4, "big") + raw
    return out


def opened(key: bytes, blob: bytes, context: list[str]) -> bytes:
    """The plaintext of a blob. ValueError, or InvalidTag, for what is not as it was sealed."""
    version, salt, commitment, ciphertext_and_tag = blob[:1], blob[1:33], blob[33:65], blob[65:]
    expanded = HKDF(SHA256(), 76, salt=salt, info=b"keyleash/seal/v1").derive(key)
    if version != b"\x01" or commitment != expanded[44:]:
        raise ValueError("not a blob of version 1 under this key")
    return AESGCM(expanded[:32]).decrypt(expanded[32:44], ciphertext_and_tag, blob[:65] + encoded(context))


def derived(key: bytes, org: str, purpose: str) -> bytes:
    """A key for another use."""
    return HKDF(SHA256(), 32, salt=None, info=b"keyleash/derive/v1" + encoded([org, purpose])).derive(key)


def root_key(written: str) -> bytes:
    """The 32 bytes of a root key."""
    prefix, _, text = written.strip().rpartition(":")
    if prefix != "keyleash-root-key:v1":
        raise ValueError("not a root key of version 1")
    return base64.urlsafe_b64decode(text)


class Reader:
    """One database, and the root keys that it is under."""

    def __init__(self, tables: dict[str, list[Row]], root_keys: dict[str, str]) -> None:
        self.tables = tables
        self.root_keys = {location: root_key(written) for location, written in root_keys.items()}

    def check(self) -> None:
        """That every root key is the right one for its generation."""
        for row in self.tables["vault_root"]:
            if row["check_blob"] is not None:
                opened(self.root(row["id"]), row["check_blob"], ["root-check"])

    def root(self, generation: int) -> bytes:
        """The root key of a generation."""
        return self.root_keys[self.row("vault_root", id=generation)["location"]]

    def installation_key(self) -> bytes:
        """The installation's own key, from the newest generation that wraps anything."""
        newest = max((row for row in self.tables["vault_root"] if row["check_blob"]), key=lambda row: row["id"])
        return opened(self.root(newest["id"]), newest["installation_key"], ["installation-key"])

    def org_key(self, org: str, version: int) -> bytes:
        """One version of an org's key."""
        row = self.row("vault_org_key", org=org, version=version)
        return opened(self.root(row["root"]), row["wrapped"], ["org-key", org, str(version)])

    def credential(self, org: str, connection: str, version: int) -> dict[str, str]:
        """The fields of a credential."""
        at = {"org": org, "connection": connection, "version": version}
        row, fields = self.row("vault_credential", **at), self.rows("vault_field", **at)
        place = [org, connection, str(version), row["key_id"], row["origin"], row["scheme"]]
        names = sorted(field["field"] for field in fields)
        data_key = opened(self.org_key(org, row["key_version"]), row["data_key"], ["data-key", *place, *names])
        return {
            field["field"]: opened(data_key, field["sealed"], ["field", *place, field["field"]]).decode(
                "utf-8", "surrogatepass"
            )
            for field in fields
        }

    def text(self, org: str, purpose: str, subject: str, stored: bytes) -> str:
        """A sealed text."""
        version = int.from_bytes(stored[:4], "big")
        context = ["text", org, purpose, subject, str(version)]
        return opened(self.org_key(org, version), stored[4:], context).decode("utf-8", "surrogatepass")

    def derived(self, org: str, purpose: str) -> bytes:
        """A derived key of an org, or with an empty one of the installation."""
        if not org:
            return derived(self.installation_key(), org, purpose)
        kept = {row["purpose"]: row for row in self.rows("vault_derived", org=org)}
        if purpose in kept:
            return self._kept(kept[purpose])
        newest = max(row["version"] for row in self.rows("vault_org_key", org=org))
        if purpose in (json.loads(self._kept(kept[""])) if "" in kept else []):
            raise ValueError("a derived key that was carried over is gone")
        return derived(self.org_key(org, newest), org, purpose)

    def _kept(self, row: Row) -> bytes:
        context = ["derived", row["org"], row["purpose"], str(row["key_version"])]
        return opened(self.org_key(row["org"], row["key_version"]), row["sealed"], context)

    def rows(self, table: str, **values: object) -> list[Row]:
        """The rows of a table in which these columns have these values."""
        return [row for row in self.tables.get(table, []) if all(row[name] == value for name, value in values.items())]

    def row(self, table: str, **values: object) -> Row:
        """The one row of these."""
        (row,) = self.rows(table, **values)
        return row
