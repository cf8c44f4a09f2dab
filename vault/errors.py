"""Everything the vault refuses, on one screen. No message here carries a key, a secret or a library's own words."""


class VaultError(Exception):
    """The vault will not do this; the message says why and how to mend it."""


class Sealed(VaultError):
    """There is no usable root key, so nothing can be opened or stored."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The vault is sealed: {why}")


class RootKeyProblem(VaultError):
    """The root key cannot be created or loaded where it was asked for."""


class WrongRootKey(VaultError):
    """The root key is a good key, but not the one that this database was made with."""


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
