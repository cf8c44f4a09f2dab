"""Everything the vault refuses, on one screen. No message here carries a key, a secret or a library's own words."""

from enum import Enum


class VaultError(Exception):
    """The vault will not do this; the message says why and how to mend it."""


class Sealed(VaultError):
    """There is no usable root key, so nothing can be opened or stored."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The vault is sealed: {why}")


class RootKeyProblem(VaultError):
    """The root key cannot be created, loaded or used where it was asked for: the place, or the key, is unfit."""


class WrongRootKey(VaultError):
    """The root key is a good key, but not the one that this database was made with."""


class RecoveryProblem(VaultError):
    """A root key cannot be exported, or a recovery file cannot be used."""


class Mend(Enum):
    """What ends it, when a key service does not answer or refuses for now."""

    REACH = "reach"
    """Nothing that speaks as the service does was reached: the address, the network, TLS."""
    WAIT = "wait"
    """The service is there and busy, sealed, standing by or broken: for those who run it, or for time."""
    RENEW = "renew"
    """The credentials are expired, unknown or gone."""
    PERMIT = "permit"
    """The credentials are good and may not do this."""


class KeysUnavailable(VaultError):
    """The service that keeps the root key does not answer, or refuses for now; what it wrapped is as good as before.

    No other key stands in for it. Once it is mended the next use works, without a restart.
    """

    def __init__(self, what: str, *, mend: Mend, how: str) -> None:
        super().__init__(f"{what} Nothing is lost, and no other key is used instead. {how}")
        self.mend = mend


class CannotOpen(VaultError):
    """Something sealed did not open. One message for every cause, so that the cause teaches an attacker nothing."""

    def __init__(self) -> None:
        super().__init__(
            "This cannot be opened: it is missing, was altered, or was sealed for something else. "
            "For a connection, connect the account again; otherwise restore the database from its backup."
        )


class CannotResolve(VaultError):
    """A reference did not lead to a secret. The message says why and how to mend it, and quotes nothing.

    Neither the reference, nor anything that was found or said on the way.
    """
