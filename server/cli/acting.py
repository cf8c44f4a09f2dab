"""Who acts at this terminal, for which org, and whether their roles let them.

Every command that belongs to an org goes through `at_desk`; `MAY` is the whole of who may do what.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from server.app import Installation
    from server.database import Database
    from server.identity import Actor, Agent, Org

OrgName = Annotated[
    str | None, typer.Option("--org", metavar="NAME", help="Which org; needed where there are several.")
]
AsMember = Annotated[
    str | None,
    typer.Option("--as", metavar="MEMBER", help="Act for this member. The operator's, and recorded as such."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

EVERYONE = ("owner", "admin", "approver", "auditor", "member")
ADMINS = ("owner", "admin")

MAY: dict[str, tuple[str, ...]] = {
    "look around": EVERYONE,
    "see every approval": ("owner", "admin", "approver", "auditor"),
    "revoke any grant": ("owner", "admin", "approver"),
    "prepare work": ("owner", "admin", "approver", "member"),
    "prepare work for others": ("owner", "admin", "approver"),
    "connect accounts": ADMINS,
    "review definitions": ADMINS,
    "manage members": ADMINS,
    "make or remove an owner": ("owner",),
    "manage their own agents": ("owner", "admin", "approver", "member"),
    "manage everyone's agents": ADMINS,
    "change rules": ADMINS,
    "replay calls": ADMINS,
    "manage channels": ADMINS,
    "manage budgets": ADMINS,
    "see every usage": ("owner", "admin", "auditor"),
    "freeze agents": ADMINS,
    "read the audit log": ("owner", "admin", "auditor"),
}
"""What a person does at the command line, and the roles of which one is enough. Deciding is `approval.py`'s."""


@dataclass(frozen=True)
class Desk:
    """A person at work for one org."""

    installation: "Installation"
    org: "Org"
    actor: "Actor"

    @property
    def database(self) -> "Database":
        """The rows of this org."""
        return self.installation.database.of(self.org.id)

    @property
    def by(self) -> str:
        """The person as the record names them: by `--as`, it says that it was the operator's word, and whose."""
        from server.identity import system_user

        if self.actor.signed_in:
            return self.actor.member.name
        return f"{self.actor.member.name} (by the operator's word; system user {system_user()})"

    def may(self, act: str) -> bool:
        """Whether the person's roles let them."""
        return bool(set(self.actor.member.roles) & set(MAY[act]))

    def require(self, act: str) -> None:
        """Refuse a person whose roles do not let them. Raises IdentityProblem."""
        from server.identity import IdentityProblem

        if not self.may(act):
            raise IdentityProblem(
                f"{self.actor.member.name} may not {act}: that takes the role {_any_of(MAY[act])}. "
                "Ask someone who has it."
            )

    def require_for(self, agent: "Agent") -> None:
        """Refuse a person who may not manage this agent."""
        own = agent.member == self.actor.member.id
        self.require("manage their own agents" if own else "manage everyone's agents")

    def have_keys_at_hand(self) -> None:
        """Ask for the org's keys where a service keeps the root key; before a transaction, which keeps others waiting.

        Raises vault.VaultError.
        """
        from server.keys import have_at_hand

        have_at_hand(self.database, self.installation.vault, self.org.id)

    def require_operator(self, what: str) -> None:
        """Refuse whoever cannot read the root key: for now, that is how the operator is known."""
        require_operator(self.installation, what)


@contextmanager
def at_desk(org: str | None, as_member: str | None, act: str) -> Generator[Desk]:
    """Open the installation for a person who may `act`. Raises one of the PROBLEMS."""
    with opened() as installation:
        yield seated(installation, org, as_member, act)


def seated(installation: "Installation", org: str | None, as_member: str | None, act: str) -> Desk:
    """A person who may `act` for an org of an installation that is open. Raises IdentityProblem."""
    found = installation.directory.org(org)
    if as_member is not None:
        require_operator(installation, "acting for another member (`--as`)")
    desk = Desk(installation, found, installation.directory.actor(found.id, as_member=as_member))
    desk.require(act)
    return desk


@contextmanager
def opened(*, as_operator: bool = False) -> Generator["Installation"]:
    """The installation, whoever asks; on PostgreSQL as the database's owner where that is the operator."""
    from server.app import open_installation, quiet_logs
    from server.settings import read_settings

    settings = read_settings()
    quiet_logs(settings.log_level)
    installation = open_installation(settings, as_operator=as_operator)
    try:
        yield installation
    finally:
        installation.close()


def require_operator(installation: "Installation", what: str) -> None:
    """Refuse where the root key cannot be read: whoever can read it is the operator, for now."""
    from server.identity import IdentityProblem

    if installation.vault.sealed is not None:
        raise IdentityProblem(
            f"Only the operator may do this: {what}. Keyleash knows them by the root key, and: "
            f"{installation.vault.sealed}"
        )


def operators_name() -> str:
    """The operator as the record names them: by the system user, because they need not be a member of any org."""
    from server.identity import system_user

    return f"the operator (system user {system_user()})"


def require_open(installation: "Installation") -> None:
    """Refuse before anything is asked for, where nothing could be stored. Raises vault.Sealed."""
    from vault import Sealed

    if installation.vault.sealed is not None:
        raise Sealed(installation.vault.sealed)


def _any_of(roles: tuple[str, ...]) -> str:
    return roles[0] if len(roles) == 1 else f"{', '.join(roles[:-1])} or {roles[-1]}"
