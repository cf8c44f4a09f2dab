"""The root key in the operating system's own keychain; never in one of `keyring`'s stand-ins for it."""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

from vault.errors import RootKeyProblem
from vault.root import LocalRootKey, new_root_text, require_root_text, root_from_text
from vault.secret import Secret

T = TypeVar("T")

REAL_KEYCHAINS = (
    "keyring.backends.macOS",
    "keyring.backends.Windows",
    "keyring.backends.SecretService",
    "keyring.backends.libsecret",
    "keyring.backends.kwallet",
)
"""The modules of `keyring` that speak to an operating system's keychain. Whatever is not listed is refused."""

FILE_INSTEAD = "use `--root file`, which keeps the root key in a file that only you can read"


class Keychain(Protocol):
    """What is asked of a backend of `keyring`."""

    def get_password(self, service: str, username: str, /) -> str | None: ...

    def set_password(self, service: str, username: str, password: str, /) -> None: ...

    def delete_password(self, service: str, username: str, /) -> None: ...


def system_keychain() -> Keychain:
    """The backend that `keyring` would use here, real or not."""
    import keyring

    return keyring.get_keyring()


@dataclass(frozen=True)
class KeychainRef:
    """An entry of the keychain: service `keyleash`, user name = location."""

    location: str
    find: Callable[[], Keychain] = system_keychain
    real: tuple[str, ...] = REAL_KEYCHAINS
    provider: ClassVar[str] = "keychain"
    service: ClassVar[str] = "keyleash"

    @classmethod
    def at(cls, where: str, home: Path) -> "KeychainRef":
        return cls(where or f"root-key:{home.resolve()}")

    def describe(self) -> dict[str, str]:
        return {"provider": self.provider, "location": self.location}

    def create(self) -> LocalRootKey:
        with new_root_text() as text:
            return self.keep(text)

    def keep(self, text: Secret) -> LocalRootKey:
        """Store a key that was made before, as `export` gave it. RootKeyProblem when there is one already."""
        require_root_text(text)
        keychain = self._keychain()
        if self._get(keychain) is not None:
            raise RootKeyProblem(
                f"The keychain has an entry {self.location!r} already, and it may be the only root key that opens a "
                "vault. Use it, or name another with `--root keychain:NAME`."
            )
        _asked(lambda: keychain.set_password(self.service, self.location, text.reveal()))
        if self._get(keychain) != text.reveal():
            raise RootKeyProblem(f"The keychain did not keep the root key that it was given; {FILE_INSTEAD}.")
        return self.load()

    def load(self) -> LocalRootKey:
        root = root_from_text(self._text(), provider=self.provider, location=self.location)
        if root is None:
            raise RootKeyProblem(
                f"The keychain's entry {self.location!r} does not hold a whole root key. Restore it from its backup: "
                "no other key opens the vault."
            )
        return root

    def export(self) -> Secret:
        """The key that is kept here, as its text form. Refused as `load` refuses it."""
        self.load()
        return Secret({"secret": self._text().strip()})

    def successor(self, generation: int) -> "KeychainRef":
        keychain, stem = self._keychain(), re.sub(r"#\d+$", "", self.location)
        places = (replace(self, location=f"{stem}#{n}") for n in itertools.count(generation))
        return next(place for place in places if place._get(keychain) is None)

    def destroy(self) -> bool:
        keychain = self._keychain()
        if self._get(keychain) is None:
            return False
        _asked(lambda: keychain.delete_password(self.service, self.location))
        return True

    def _text(self) -> str:
        keychain = self._keychain()
        text = self._get(keychain)
        if text is not None:
            return text
        raise RootKeyProblem(
            f"The keychain ({type(keychain).__module__}) has no root key named {self.location!r}. Unlock the one "
            "that holds it, or, if this is a new installation, run `keyleash init`."
        )

    def _get(self, keychain: Keychain) -> str | None:
        return _asked(lambda: keychain.get_password(self.service, self.location))

    def _keychain(self) -> Keychain:
        found = _asked(self.find)
        # The chainer would write to, and read from, stand-ins as well: take a real keychain out of it.
        chained: list[Keychain] = _asked(lambda: getattr(found, "backends", None) or [found])
        for keychain in chained:
            if type(keychain).__module__ in self.real:
                return keychain
        raise RootKeyProblem(f"There is no OS keychain here (found {type(found).__module__}); {FILE_INSTEAD}.")


def _asked(ask: Callable[[], T]) -> T:
    try:
        return ask()
    except Exception as error:  # a backend raises whatever its platform raises, in words that we do not pass on
        name = type(error).__name__
    raise RootKeyProblem(
        f"The OS keychain is locked or does not answer ({name}). Unlock it and try again; for a new installation "
        f"without one, {FILE_INSTEAD}."
    )
