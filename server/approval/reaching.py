"""Which rules ask for people whom nobody can ask: said where rules are made and where an installation is examined.

For `policy add`, `policy apply`, `policy preset` and `doctor`, which all ask `gaps` and `behind_one`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from server.approval.channels import Reach, reach
from server.approval.eligible import Wanted, in_words
from server.database import Rows
from server.identity import Member, people_of
from server.policy import ANYONE, Rule, Ruling, Subject

NOT_TOLD = (
    "Who may approve is told of nothing, and has to look by themselves: `keyleash approvals watch`. `keyleash channel "
    "add webhook NAME` tells a chat tool or a pager."
)


NAMED = 3


@dataclass(frozen=True)
class Gap:
    """A rule that cannot be met: calls that it holds wait in vain. Not `grave`: it can be, by who thinks of looking."""

    rule: str
    text: str
    grave: bool


def gaps(rows: Rows, org: str, rules: Sequence[Rule]) -> list[Gap]:
    """What stands between these rules and the people that they ask for, as those are now; the grave ones first."""
    people, reached_by = people_of(rows, org), _reached(rows, org)
    found: list[Gap] = []
    untold = False
    for rule in rules:
        if rule.then is not Ruling.APPROVE:
            continue
        reached = {one: reached_by(_wanted(rule, one)) for one in _requesters(rows, org, rule, people)}
        short = [(one, each) for one, each in reached.items() if not each.enough]
        if short:
            found.append(Gap(rule.id, _grave(rule, *short[0], people), grave=True))
        untold = untold or any(each.enough and not each.told for each in reached.values())
    return [*found, Gap("", NOT_TOLD, grave=False)] if untold else found


@dataclass(frozen=True)
class Keeper:
    """`what` (the root key, or the database) opens for this system user alone; `user` is empty where nobody knows."""

    what: str
    user: str


def behind_one(rows: Rows, org: str, rules: Sequence[Rule], keeper: Keeper) -> list[Gap]:
    """These rules can be met by the people there are, but not where only one system user can decide.

    Whoever decides, either way, is shown the call first, and that is sealed.
    """
    people, reached_by = people_of(rows, org), _reached(rows, org)
    theirs = {one.name for one in people if keeper.user and one.os_user == keeper.user}
    at_most = 0 if keeper.user else 1  # whoever it is, it is one
    found: list[str] = []
    for rule in rules:
        if rule.then is not Ruling.APPROVE:
            continue
        each = [reached_by(_wanted(rule, one)) for one in _requesters(rows, org, rule, people)]
        if any(one.enough and len(theirs & set(one.asked)) + at_most < one.needed for one in each):
            found.append(rule.id)
    if not found:
        return []
    user = f" ({keeper.user})" if keeper.user else ""
    wait = "waits" if len(found) == 1 else "wait"
    text = (
        f"{keeper.what} opens for one system user alone{user}: only that one can decide at this machine, and "
        f"{first_of(found)} {wait} for others. Keep the root key in AWS KMS or Transit, with the database in "
        "PostgreSQL and a KEYLEASH_HOME for each approver."
    )
    return [Gap(found[0], text, grave=True)]


def first_of(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are.

    >>> first_of(["a", "b", "c"]), first_of(["a", "b", "c", "d", "e"])
    ('a, b, c', 'a, b, c and 2 more')
    """
    more = len(names) - NAMED
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:NAMED])} and {more} more"


def _reached(rows: Rows, org: str) -> Callable[[Wanted], Reach]:
    """Whom a call reaches, found out once for all rules and people of whom it would be the same."""

    @cache
    def found(wanted: Wanted) -> Reach:
        return reach(rows, org, wanted)

    return found


def _wanted(rule: Rule, requester: str | None) -> Wanted:
    """What the rule asks for when this member's agent calls; whose it is counts where a second person is wanted."""
    approvers = (rule.approvers,) if rule.approvers else ()
    return Wanted(rule.then, rule.count, approvers, rule.second_person, requester if rule.second_person else None)


def _requesters(rows: Rows, org: str, rule: Rule, people: list[Member]) -> list[str | None]:
    """The members (ids) for whose agents the rule can hold a call, None for a standalone agent; those that there are.

    Where no agent is meant yet, every member whose agent would be.
    """
    who, by_id = str(rule.who), {one.id: one for one in people}
    found: set[str | None] = set()
    for agent, acts_for in rows.execute("SELECT id, member FROM agent WHERE org = ?", (org,)).fetchall():
        member = by_id.get(acts_for)
        if member is not None and who in _subject(agent, member).marks():
            found.add(member.id)
        elif acts_for is None and who in Subject(agent, None, standalone=True).marks():
            found.add(None)
    found = found or {one.id for one in people if who in _subject("", one).marks()} or {None}
    return sorted(found, key=lambda one: one or "")


def _subject(agent: str, member: Member) -> Subject:
    return Subject(agent, member.id, member.roles, member.groups)


def _grave(rule: Rule, requester: str | None, each: Reach, people: list[Member]) -> str:
    """Why calls under this rule wait in vain, and the mend."""
    wanted = f"{each.needed} {'person' if each.needed == 1 else 'people'}"
    circle = in_words((rule.approvers,) if rule.approvers else ())
    name = next((one.name for one in people if one.id == requester), None)
    but = f" who {'is' if each.needed == 1 else 'are'} not {name}, for whom the agent asks" if name else ""
    who = f"{rule.id}: an approval takes {wanted} ({circle}){but if rule.second_person else ''}"
    if len(each.eligible) < each.needed:
        there = f"there is only {', '.join(each.eligible)}" if each.eligible else "there is nobody"
        return f"{who}, and {there}. What it holds waits in vain. {_more_people(rule)}, or let the rule ask for others."
    mute = [one for one in each.eligible if one not in each.asked]
    are = "is" if len(mute) == 1 else "are"
    maps = [f"`keyleash member change {one} --os-user USER`" for one in mute[: each.needed - len(each.asked)]]
    return (
        f"{who}, and nobody can ask {' and '.join(mute)}, who {are} mapped to no system user. What it holds waits in "
        f"vain. {' and '.join(maps)} {'maps' if len(maps) == 1 else 'map'} them, or let the rule ask for others."
    )


def _more_people(rule: Rule) -> str:
    """How to get one more who may agree."""
    named = rule.approvers or "approver"
    if named == ANYONE:
        named = "approver"
    group = named.removeprefix("group:") if named.startswith("group:") else None
    option = f"--role {named}" if group is None else f"--group {group}"
    return (
        f"`keyleash member create NAME {option} --os-user USER` adds somebody who is known by their system user, and "
        f"`keyleash member change NAME {option}` makes somebody who is there one of them"
    )
