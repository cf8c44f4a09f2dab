"""Sign what others are to check: one Ed25519 key (RFC 8032) for one purpose of one org, which never leaves here.

The key's seed is what `Vault.derive` gives: the same in every process, carried over when keys are rotated, and gone
with the org's key. There is no other key after it: none is announced, none takes its place.
"""

from typing import final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vault.errors import VaultError
from vault.generations import Rows
from vault.secret import Opaque
from vault.store import Vault


class NotSigned(VaultError):
    """A signature is not by this key, or not over this text."""


@final
class SigningKey(Opaque):
    """A private key that signs and is never shown. `public` is its public key, 32 bytes."""

    __slots__ = ("_signs", "public")

    public: bytes

    def __init__(self, seed: bytes) -> None:
        key = Ed25519PrivateKey.from_private_bytes(seed)
        del seed  # so that a traceback that prints locals has no key to print
        self._signs = lambda: key
        self.public = key.public_key().public_bytes_raw()

    def sign(self, text: bytes) -> bytes:
        """64 bytes over exactly this text."""
        return self._signs().sign(text)


def signing_key(vault: Vault, db: Rows, org: str, purpose: str) -> SigningKey:
    """The key of an org for a purpose. VaultError for an org whose key is gone, and as `Vault.derive`."""
    return SigningKey(vault.derive(db, org, purpose))


def require_signed(public: bytes, text: bytes, signature: bytes) -> None:
    """Raises NotSigned unless this public key's owner signed this text.

    A key of small order would sign whatever anybody likes, and one in another spelling than its own is none.
    """
    y = int.from_bytes(public, "little") & (1 << 255) - 1
    if y >= _P or y in _SMALL:
        raise NotSigned("The signature does not fit.")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, text)
    except (InvalidSignature, ValueError):
        raise NotSigned("The signature does not fit.") from None


_P = 2**255 - 19
_SMALL = frozenset(
    {
        *(0, 1, _P - 1),
        2707385501144840649318225287225658788936804267575313519463743609750303402022,
        55188659117513257062467267217118295137698188065244968500265048394206261417927,
    }
)
"""The y of each of the eight points of small order on the curve of Ed25519."""
