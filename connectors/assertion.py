"""Sign, with a private key that never leaves, who is asking: a JWT (RFC 7519, RS256) that is good for minutes.

A key that cannot be used is refused in words that say how to mend it, and that quote nothing of it.
"""

from collections.abc import Mapping
from typing import Any, cast, final

from connectors.auth import MAX_SECRET
from connectors.errors import CredentialMalformed

MIN_BITS = 2048
EARLY_S = 60
"""A JWT says that it was made so much earlier, for clocks that are behind ours."""
GOOD_FOR_S = 540
"""And, unless a provider has it otherwise, that it ends so much later: ten minutes are the most that GitHub takes."""

_PRIVATE = ("-----BEGIN PRIVATE KEY-----", "-----BEGIN RSA PRIVATE KEY-----")
_ENCRYPTED = ("-----BEGIN ENCRYPTED PRIVATE KEY-----", "Proc-Type: 4,ENCRYPTED")
_END = " PRIVATE KEY-----"
_WHOLE = "Give the whole file, from -----BEGIN to -----END, with its line breaks."


@final
class Signer:
    """A private key, with which a JWT is signed; shows nothing of it."""

    __slots__ = ("_kept",)

    def __init__(self, pem: str) -> None:
        """Raises CredentialMalformed for what is no private RSA key of at least MIN_BITS, in the open, in PEM."""
        outcome = _key(pem)
        del pem  # from here on a traceback that prints locals finds no secret
        if isinstance(outcome, str):
            raise CredentialMalformed(outcome)
        key = outcome[0]
        self._kept = lambda: key

    def __repr__(self) -> str:
        return "Signer()"

    def jwt(self, claims: Mapping[str, Any], *, key_id: str = "") -> str:
        """The claims, signed."""
        import jwt

        return jwt.encode(dict(claims), self._kept(), algorithm="RS256", headers={"kid": key_id} if key_id else None)


def secrets_of(token: str) -> tuple[str, ...]:
    """What must not come back of a JWT: all of it, and its signature, with which it could be put together again."""
    return (token, token.rpartition(".")[2])


def _key(pem: str) -> tuple[Any] | str:
    """The key, or what is wrong with it. Nothing is raised here: this frame holds the key."""
    text = pem.strip().replace("\r\n", "\n")
    if "\n" not in text:
        text = text.replace("\\n", "\n").strip()  # as it stands in a JSON text or an environment file
    if len(text) > MAX_SECRET:
        return f"The private key is longer than {MAX_SECRET} characters, which none is. {_WHOLE}"
    if any(sign in text for sign in _ENCRYPTED):
        return (
            "The private key is encrypted with a passphrase, which nobody could type for a server. Take the passphrase "
            "off (openssl pkey -in KEY.pem -out PLAIN.pem), connect with that file, and delete it."
        )
    if "PUBLIC KEY-----" in text or "-----BEGIN CERTIFICATE-----" in text:
        return "That is a public key or a certificate, which signs nothing. Give the private key."
    if not text.startswith(_PRIVATE) or not text.endswith(_END):
        return f"That is no private key in PEM. {_WHOLE}"
    return _loaded(text)


def _loaded(text: str) -> tuple[Any] | str:
    from jwt.algorithms import RSAAlgorithm

    try:
        key = cast("Any", RSAAlgorithm(RSAAlgorithm.SHA256).prepare_key(text))
    except Exception as error:
        if "Expected one of" in str(error):  # a whole key of another family
            return f"The private key is not an RSA key, and RS256 needs one. {_MAKE_ANOTHER}"
        return f"The private key cannot be read: a part of it is missing or changed. {_WHOLE}"
    if key.key_size < MIN_BITS:
        return f"The private key has {key.key_size} bits; at least {MIN_BITS} are needed. {_MAKE_ANOTHER}"
    return (key,)


_MAKE_ANOTHER = "Make a new key at the provider, connect with it, and delete this one there."
