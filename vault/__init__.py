"""Credentials at rest, under a key that this room does not keep.

Knows no server, no connector, and no network but that of a key service which the operator named: it works on a
connection handed in, and hands out a `Secret`.
"""

from vault.errors import CannotOpen, KeysUnavailable, Mend, RootKeyProblem, Sealed, VaultError, WrongRootKey
from vault.generations import Rows
from vault.keys import PROVIDERS, LocalRootKey, RootKey, RootKeyRef, root_key_spec
from vault.seal import seal, unseal
from vault.secret import Secret
from vault.store import Vault, VaultStatus

__all__ = [
    "PROVIDERS",
    "CannotOpen",
    "KeysUnavailable",
    "LocalRootKey",
    "Mend",
    "RootKey",
    "RootKeyProblem",
    "RootKeyRef",
    "Rows",
    "Sealed",
    "Secret",
    "Vault",
    "VaultError",
    "VaultStatus",
    "WrongRootKey",
    "root_key_spec",
    "seal",
    "unseal",
]
