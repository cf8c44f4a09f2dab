"""What every root key that a service keeps has in common: it is proven before it is relied on, and asked over TLS.

The two that are: `vault/aws.py` and `vault/transit.py`.
"""

import secrets
from ipaddress import ip_address
from urllib.parse import urlsplit

from vault.errors import CannotOpen, RootKeyProblem, VaultError
from vault.root import RootKey
from vault.seal import KEY_BYTES

PROOF = ("root-proof", "one")
NOT_THE_PROOF = ("root-proof", "two")


def prove(root: RootKey) -> None:
    """One round trip: what the key wraps for a context it unwraps for that one, and for no other.

    RootKeyProblem where it does not: an old Vault, for one, takes associated data and ignores them without a word.
    """
    probe = secrets.token_bytes(KEY_BYTES)
    blob = root.wrap(probe, context=PROOF)
    if not _unwraps(root, blob, probe, PROOF):
        raise RootKeyProblem(
            f"{root.provider} ({root.location}) does not unwrap what it has just wrapped. Name a key that does both."
        )
    if _unwraps(root, blob, probe, NOT_THE_PROOF):
        raise RootKeyProblem(
            f"{root.provider} ({root.location}) unwraps for one purpose what it wrapped for another, so it would open "
            "keys that were swapped in the database. Use OpenBao, Vault 1.13 or newer, or AWS KMS itself."
        )


def given(answer: bytes | VaultError) -> bytes:
    """The answer, or the error raised here: no frame that held a key, a token or the service's words is in it."""
    if isinstance(answer, VaultError):
        raise answer
    return answer


def refuse_in_clear(url: str, *, mend: str) -> None:
    """Keys and credentials travel over TLS, or stay on this machine (RootKeyProblem, which says `mend`)."""
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname or "")):
        return
    raise RootKeyProblem(f"{url} is not https: the keys would cross the network in clear. {mend}")


def _unwraps(root: RootKey, blob: bytes, probe: bytes, context: tuple[str, ...]) -> bool:
    try:
        return root.unwrap(blob, context=context) == probe
    except CannotOpen:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
