"""Credentials at rest, under a key that this room does not keep.

Knows no server and no connector: it works on a connection handed in, and hands out a `Secret`. Over the network it
speaks only to what the operator named: the key service that keeps the root key, and where secrets stay (`references`).
"""

from vault.errors import (
    CannotOpen,
    CannotResolve,
    KeysUnavailable,
    Mend,
    RootKeyProblem,
    Sealed,
    VaultError,
    WrongRootKey,
)
from vault.generations import Rows
from vault.keys import PROVIDERS, LocalRootKey, RootKey, RootKeyRef, root_key_spec
from vault.references import REFERENCE_FIELD, REFERENCES, STORED, Resolver, show_reference, source_of, to_reference
from vault.seal import seal, unseal
from vault.secret import Secret
from vault.store import FirstOrgKey, Seal, Vault, VaultStatus

__all__ = [
    "PROVIDERS",
    "REFERENCES",
    "REFERENCE_FIELD",
    "STORED",
    "CannotOpen",
    "CannotResolve",
    "FirstOrgKey",
    "KeysUnavailable",
    "LocalRootKey",
    "Mend",
    "Resolver",
    "RootKey",
    "RootKeyProblem",
    "RootKeyRef",
    "Rows",
    "Seal",
    "Sealed",
    "Secret",
    "Vault",
    "VaultError",
    "VaultStatus",
    "WrongRootKey",
    "root_key_spec",
    "seal",
    "show_reference",
    "source_of",
    "to_reference",
    "unseal",
]
