"""Where a root key may live. It is never overwritten, and nothing ever falls back to a weaker place.

A new place is a class that satisfies `RootKeyRef`, and a line in `PROVIDERS`.
"""

from pathlib import Path
from typing import ClassVar, Protocol

from vault.aws import AwsKmsRef
from vault.errors import RootKeyProblem
from vault.keychain import KeychainRef
from vault.keyfile import FileRef
from vault.root import LocalRootKey, RootKey
from vault.transit import TransitRef

__all__ = ["PROVIDERS", "LocalRootKey", "RootKey", "RootKeyRef", "root_key_spec"]


class RootKeyRef(Protocol):
    """A place where a root key is or will be. `provider:location` is a spec that names the same place again."""

    provider: ClassVar[str]

    @property
    def location(self) -> str: ...

    @classmethod
    def at(cls, where: str, home: Path) -> "RootKeyRef":
        """`where` is what follows the colon of a spec; empty for the provider's own place for this `home`.

        RootKeyProblem for what names no place, and for an empty one where the provider has no place of its own.
        """
        ...

    def create(self) -> RootKey:
        """A new random key, kept there for good. RootKeyProblem when one is there already, or the place is unfit.

        Where a service keeps the key, it must be there, and is proven usable; KeysUnavailable when it does not answer.
        """
        ...

    def load(self) -> RootKey:
        """RootKeyProblem when there is none, it is damaged, or others could have read it. Asks no service."""
        ...

    def successor(self, generation: int) -> "RootKeyRef":
        """Where the key of the next generation goes: a free place beside this one, or this one where keys stay put."""
        ...

    def destroy(self) -> bool:
        """Destroy the key that is kept here, if it can be done from here; whether it was. RootKeyProblem."""
        ...

    def describe(self) -> dict[str, str]:
        """{"provider": …, "location": …}; nothing secret."""
        ...


PROVIDERS: dict[str, type[RootKeyRef]] = {
    "keychain": KeychainRef,
    "file": FileRef,
    "aws-kms": AwsKmsRef,
    "transit": TransitRef,
}


def root_key_spec(spec: str, home: Path) -> RootKeyRef:
    """`keychain`, `keychain:NAME`, `file`, `file:PATH`, `aws-kms:ARN` or `transit:URL#KEY` → the place it names.

    RootKeyProblem for anything else. Naming a place makes nothing, and asks no service.
    """
    provider, colon, where = spec.partition(":")
    if provider not in PROVIDERS:
        raise RootKeyProblem(f"There is no root key provider {provider!r}. Choose one of: {', '.join(PROVIDERS)}.")
    place = PROVIDERS[provider].at(where, home)
    if colon and not where:
        raise RootKeyProblem(f"Nothing follows the colon in {spec!r}. Write `{provider}`, or name a place after it.")
    return place
