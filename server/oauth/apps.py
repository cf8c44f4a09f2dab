"""The operator's own apps, for organisations that bring none: in a file that stays where it is, read at each use.

An app's secret is sent to the endpoints that its connector's file names outright, and never to a host that an
organisation's admin can name: a connector whose accounts have hosts of their own takes no app of the operator's.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from connectors.definition import Connector, CredentialKind, OAuth
from server.oauth.tokens import OWN, REGISTERED
from vault import Secret, VaultError
from vault.hostfile import read_file, readable_by_all

OPERATOR = "operator"
"""The app that asks is the operator's; its secret is not sealed with the tokens."""
SETTING = "KEYLEASH_OAUTH_APPS"
_FIELDS = ("client_id", "client_secret")


class AppProblem(VaultError):
    """The operator's app cannot be had; the message says how to mend it."""


@dataclass(frozen=True)
class Apps:
    """The apps in one file, or none where no file is named."""

    path: Path | None = None

    def offered(self, connector: Connector, kind: CredentialKind) -> Secret | None:
        """The operator's app for this way to sign in, if there is one; wipe it after. Raises AppProblem."""
        oauth = kind.oauth
        if self.path is None or oauth is None or not _fixed(oauth):
            return None
        return self._read(connector.id)

    def of(self, connector: str, oauth: OAuth) -> Secret:
        """The operator's app that a connection was consented to with; wipe it after. Raises AppProblem."""
        app = self._read(connector) if self.path is not None and _fixed(oauth) else None
        if app is None:
            raise AppProblem(f"The operator's app for {connector} is not in the file that {SETTING} names here.")
        return app

    def joined(self, app: str, connector: str, oauth: OAuth, sealed: Secret) -> Secret:
        """What was sealed, with the app that belongs to it; wipe both after. Raises AppProblem."""
        names = sealed.fields
        if app in (OWN, REGISTERED):
            return Secret({name: sealed.reveal(name) for name in names})
        with self.of(connector, oauth) as theirs:
            return Secret(
                {name: sealed.reveal(name) for name in names if name not in _FIELDS}
                | {name: theirs.reveal(name) for name in _FIELDS}
            )

    def _read(self, connector: str) -> Secret | None:
        assert self.path is not None  # noqa: S101 - for the type checker: the callers have looked
        what = f"The file that {SETTING} names"
        if readable_by_all(self.path):
            raise AppProblem(f"{what} can be read by every user of this machine: chmod 600 it.")
        outcome = _taken_apart(read_file(self.path, what), connector)
        if isinstance(outcome, str):
            raise AppProblem(f"{what} {outcome}")
        return outcome


def _fixed(oauth: OAuth) -> bool:
    """Whether all endpoints that get the app's secret are named outright, and a person of the organisation consents."""
    signed: Sequence[str] = (oauth.revoke.url,) if oauth.revoke and oauth.revoke.by in ("client", "basic") else ()
    return oauth.grant == "code" and not any(url.startswith("/") for url in (oauth.token, *signed))


def _taken_apart(content: bytes, connector: str) -> Secret | str | None:
    """The app, nothing where there is none, or what is wrong with the file; no frame above this holds its text."""
    try:
        given: object = json.loads(content)
    except (ValueError, RecursionError):
        return "is not JSON."
    apps = cast("dict[str, object]", given) if isinstance(given, dict) else {}
    if connector not in apps:
        return None
    app = apps[connector]
    fields = cast("dict[str, object]", app) if isinstance(app, dict) else {}
    if set(fields) != set(_FIELDS) or not all(isinstance(value, str) and value for value in fields.values()):
        return f"has for {connector} not exactly a client_id and a client_secret, each a text."
    return Secret({name: str(value) for name, value in fields.items()})
