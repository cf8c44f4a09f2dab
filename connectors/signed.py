"""Tokens that are had with a private key: what a person gives, what is signed and asked, and what an answer means.

The key signs one request for one short-lived token at a time, and is sent to nobody. A further way is a class here, and
a line in `SIGNED`. Sources: RFC 7523 and "Using OAuth 2.0 for Server to Server Applications" (Google); "Generating an
installation access token for a GitHub App" and "Generating a JSON Web Token (JWT) for a GitHub App" (GitHub).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, cast

from connectors.assertion import EARLY_S, GOOD_FOR_S, Signer
from connectors.auth import Revealing
from connectors.definition import Field, Grant, OAuth
from connectors.errors import CredentialMalformed


@dataclass(frozen=True, slots=True)
class Claim:
    """What is signed for one request, from `at` (seconds since the epoch) on, and what stands beside it."""

    claims: Mapping[str, Any]
    key_id: str = ""
    body: Mapping[str, Any] = field(default_factory=dict[str, Any])


class SignedGrant(Protocol):
    """One way to have tokens with a private key."""

    fields: tuple[Field, ...]
    in_header: bool  # the JWT stands as a bearer; else it is the `assertion` of a form
    ended: frozenset[int]  # statuses that say that the key, or what it is for, is no longer taken

    def taken_apart(self, text: str) -> Mapping[str, str] | None:
        """The fields in a file as the provider gives it; None where it gives none, or this is none."""
        ...

    def signer(self, oauth: OAuth, held: Revealing, audience: str) -> Signer:
        """What signs. Raises CredentialMalformed, before anything is sent, in words that quote no value."""
        ...

    def claim(self, held: Revealing, audience: str, scopes: Sequence[str], at: int) -> Claim:
        """What to sign and send. Raises CredentialMalformed."""
        ...

    def check_scope(self, scope: str) -> str:
        """What is wrong with a scope; empty where nothing is."""
        ...

    def answer(self, answer: Mapping[str, Any], at: float) -> Mapping[str, Any]:
        """The same in the words of RFC 6749."""
        ...

    def mend(self, code: str) -> str:
        """What a person can do about a refusal with this code."""
        ...


class ServiceAccount:
    """Google: RFC 7523, with the key file as it was downloaded; `subject` is the person it acts for, if any."""

    fields: tuple[Field, ...] = (
        Field(name="key_file", label="JSON key file", lines=True),
        Field(
            name="subject",
            label="address of the person that it acts for",
            secret=False,
            optional=True,
            pattern=r"^[^@\s]+@[^@\s]+$",
        ),
    )
    in_header = False
    ended: frozenset[int] = frozenset()

    def taken_apart(self, text: str) -> Mapping[str, str] | None:
        given = _object(text)
        if given is None or "key_file" in given:
            return None
        subject = given.pop("subject", None)
        acts_for = {"subject": subject} if isinstance(subject, str) and subject else {}
        return {"key_file": json.dumps(given), **acts_for}

    def signer(self, oauth: OAuth, held: Revealing, audience: str) -> Signer:
        outcome = self._key(held, (audience, *oauth.token_uris))
        if outcome[0]:
            raise CredentialMalformed(outcome[0])
        return Signer(outcome[1])

    def claim(self, held: Revealing, audience: str, scopes: Sequence[str], at: int) -> Claim:
        file = _object(held.reveal("key_file")) or {}
        subject = held.reveal("subject") if "subject" in held.fields else ""
        claims = {
            "iss": str(file.get("client_email", "")),
            "scope": " ".join(scopes),
            "aud": audience,
            "iat": at - EARLY_S,
            "exp": at - EARLY_S + 3600,  # an hour from `iat` on is the most that is taken
        }
        return Claim(claims | ({"sub": subject} if subject else {}), str(file.get("private_key_id") or ""))

    def check_scope(self, scope: str) -> str:
        return ""

    def answer(self, answer: Mapping[str, Any], at: float) -> Mapping[str, Any]:
        return answer

    def mend(self, code: str) -> str:
        return {
            "invalid_grant": "The key was deleted, the account disabled, or there is no such person to act for.",
            "unauthorized_client": "The account may not act for that person with these scopes: an admin of the "
            "Workspace allows it under Security, API controls, Domain-wide delegation, by the account's client id.",
            "access_denied": "The account may not have these scopes.",
            "invalid_scope": "It does not know a scope: say which with `--scope`.",
        }.get(code, "Look at the service account and its keys.")

    def _key(self, held: Revealing, places: Sequence[str]) -> tuple[str, str]:
        """What is wrong, and the private key where nothing is."""
        file = _object(held.reveal("key_file"))
        if file is None:
            return f"The key file is not JSON. {_AS_DOWNLOADED}", ""
        if file.get("type") != "service_account":
            return f"The key file is not that of a service account. {_AS_DOWNLOADED}", ""
        key, account = file.get("private_key"), file.get("client_email")
        if not isinstance(key, str) or not isinstance(account, str) or "@" not in account:
            return f"The key file lacks its client_email or its private_key. {_AS_DOWNLOADED}", ""
        if file.get("token_uri", places[0]) not in places:
            return (
                f"The key file names another place for tokens than {places[0]}, and a request that the key has signed "
                "goes nowhere else. Is it the file of another provider, or was it changed?"
            ), ""
        return "", key


class GitHubApp:
    """GitHub: an app asks, as its installation, for a token of an hour; scopes narrow that to less than it may.

    A scope is `PERMISSION:read` (or write, admin), or `repository:NAME`.
    """

    fields: tuple[Field, ...] = (
        Field(name="app_id", label="App ID, or client id", secret=False, pattern=r"^([0-9]+|Iv[0-9A-Za-z.]+)$"),
        Field(name="installation_id", label="installation id", secret=False, pattern=r"^[0-9]+$"),
        Field(name="private_key", label="private key, PEM", lines=True),
    )
    in_header = True
    ended: frozenset[int] = frozenset((401, 404))

    def taken_apart(self, text: str) -> Mapping[str, str] | None:
        return None

    def signer(self, oauth: OAuth, held: Revealing, audience: str) -> Signer:
        if not re.fullmatch(r"[0-9]{1,20}", held.reveal("installation_id")):
            raise CredentialMalformed(
                "The installation id is a number: the last part of the address of the installation's own settings."
            )
        return Signer(held.reveal("private_key"))

    def claim(self, held: Revealing, audience: str, scopes: Sequence[str], at: int) -> Claim:
        asked = [scope.partition(":") for scope in scopes]
        repositories = [what for name, _, what in asked if name == "repository"]
        permissions = {name: what for name, _, what in asked if name != "repository"}
        body = {"repositories": repositories, "permissions": permissions}
        return Claim(
            {"iss": held.reveal("app_id"), "iat": at - EARLY_S, "exp": at + GOOD_FOR_S},
            body={name: value for name, value in body.items() if value},
        )

    def check_scope(self, scope: str) -> str:
        if re.fullmatch(r"repository:[A-Za-z0-9._-]{1,100}|(?!repository:)[a-z_]+:(read|write|admin)", scope):
            return ""
        return "of a GitHub App it is PERMISSION:read, write or admin, as `issues:write`, or repository:NAME"

    def answer(self, answer: Mapping[str, Any], at: float) -> Mapping[str, Any]:
        if "token" not in answer:
            return answer
        given = {"access_token": answer["token"], "scope": _narrowed(answer)}
        ends = _moment(answer.get("expires_at"))
        return given | ({"expires_in": max(1, int(ends - at))} if ends is not None else {})

    def mend(self, code: str) -> str:
        return {
            "HTTP 401": "The key is not one of this app's: it was deleted, or the App ID is another's.",
            "HTTP 403": "The installation is suspended, or there were too many requests.",
            "HTTP 404": "The app is not installed there (any more): look at the installation id and the base URL.",
            "HTTP 422": "The app does not have what `--scope` names: a permission, or a repository.",
        }.get(code, "Look at the app's settings and its installation.")


SIGNED: Mapping[Grant, SignedGrant] = {
    "jwt_bearer": ServiceAccount(),
    "github_app": GitHubApp(),
}

_AS_DOWNLOADED = "Give the JSON file as the provider made it, whole."


def _object(text: str) -> dict[str, Any] | None:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _narrowed(answer: Mapping[str, Any]) -> list[str]:
    """What the token may do, as scopes."""
    permissions: Any = answer.get("permissions")
    repositories: Any = answer.get("repositories")
    may = cast("dict[str, Any]", permissions) if isinstance(permissions, dict) else {}
    found = [f"{name}:{what}" for name, what in may.items() if isinstance(what, str)]
    for each in cast("list[Any]", repositories) if isinstance(repositories, list) else ():
        name = cast("dict[str, Any]", each).get("name") if isinstance(each, dict) else None
        found += [f"repository:{name}"] if isinstance(name, str) else []
    return found


def _moment(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp() if isinstance(text, str) else None
    except (ValueError, OverflowError):
        return None
