"""Who may agree to a call, among the people of its org: by role, by group, and not always who asked for it."""

from dataclasses import dataclass

from server.identity import Member
from server.policy import ANYONE, APPROVING, Ruling

CIRCLES = {ANYONE: "an approver, admin or owner"}


@dataclass(frozen=True)
class Wanted:
    """Whose agreement a call needs, or every call that a rule is about.

    `requester` is the member for whom the agent asks (an id), None where nobody stands behind it; `decided` are the
    ids of those who have agreed already.
    """

    ruling: Ruling
    needed: int = 1
    approvers: tuple[str, ...] = ()
    second_person: bool = False
    requester: str | None = None
    decided: tuple[str, ...] = ()


def in_circle(member: Member, circle: str) -> bool:
    """Whether a person is one of those that a rule names: a role, `group:NAME`, or `role:any`."""
    if circle == ANYONE:
        return bool(set(APPROVING) & set(member.roles))
    if circle.startswith("group:"):
        return circle.removeprefix("group:") in member.groups
    return circle in member.roles


def eligible(people: list[Member], wanted: Wanted) -> list[Member]:
    """Of these people, everyone whose agreement would still count."""
    if wanted.ruling is Ruling.CONFIRM:
        return [one for one in people if one.id == wanted.requester or in_circle(one, ANYONE)]
    circles = wanted.approvers or (ANYONE,)
    return [
        one
        for one in people
        if all(in_circle(one, circle) for circle in circles)
        and not (wanted.second_person and one.id == wanted.requester)
        and one.id not in wanted.decided
    ]


def in_words(approvers: tuple[str, ...]) -> str:
    """The circles that each who agrees must be in.

    >>> in_words(()), in_words(("admin", "group:finance"))
    ('approver, admin or owner', 'admin and group:finance')
    """
    anyone = ", ".join(APPROVING[:-1]) + " or " + APPROVING[-1]
    return " and ".join(anyone if circle == ANYONE else circle for circle in approvers or (ANYONE,))
