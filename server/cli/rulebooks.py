"""`keyleash policy export`, `apply` and `versions`: the whole set of rules as a file, and back."""

import json as jsonlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, AsMember, Desk, OrgName, Yes, at_desk
from server.cli.output import moment, say, show_json, show_table, show_text, warn
from server.cli.policy import blind_spots, names_of, rule_in_words
from server.cli.terminal import require_yes

if TYPE_CHECKING:
    from server.difference import Change, Opening
    from server.policy import Subject
    from server.rules import Rulebook

OfVersion = Annotated[
    int | None, typer.Option("--version", metavar="N", help="That of an earlier version; `policy versions` lists them.")
]
LISTED = 5
"""How many tools a line names before it only counts them."""


def export(version: OfVersion = None, org: OrgName = None, as_member: AsMember = None, json: AsJson = False) -> None:
    """Print the org's rules and its preset as one YAML file, for git and for `policy apply`."""
    from server.policy import dump_rule
    from server.rulefile import written

    with at_desk(org, as_member, "look around") as desk:
        book, names = _book(desk, version), names_of(desk)
    if json:
        rules = [dump_rule(rule) for rule in book.rules]
        show_json(
            {"preset": book.preset, "rules": [{**rule, "who": names.get(rule["who"], rule["who"])} for rule in rules]}
        )
    else:
        show_text(written(book, names).rstrip("\n"))


def apply_file(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="As `policy export` writes it.")] = None,
    version: OfVersion = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference and change nothing.")] = False,
    yes: Yes = False,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Replace the org's rules and preset by what a file, or an earlier version, says: all of it, or nothing.

    Shows the difference first, and what of it may loosen.
    """
    from server.difference import difference
    from server.rules import apply, rulebook_of

    if (file is None) == (version is None):
        raise typer.BadParameter("Name a file, or an earlier version with --version N.")
    with at_desk(org, as_member, "change rules") as desk:
        before = rulebook_of(desk.database, desk.org.id)
        wanted = draft_of(desk, file, before) if file is not None else _book(desk, version)
        changes = difference(before, wanted)
        opened = _openings(desk, before, wanted) if changes else []
        shown: dict[str, Any] = {"changes": [_change_json(change, names_of(desk)) for change in changes]}
        shown |= {"openings": [_opening_json(opening) for opening in opened], "applied": False, "version": None}
        if not json:
            _show(desk, changes, opened)
        if changes and not dry_run:
            _warn_of_new(desk, changes, wanted)
            require_yes(f"Apply {_counted(changes)} to the rules of {desk.org.name}?", yes=yes)
            source = str(file) if file is not None else f"version {version}"
            number = desk.database.write_now(
                lambda rows: apply(rows, desk.org.id, wanted, over=before.hash, source=source, by=desk.by)
            )
            shown |= {"applied": number is not None, "version": number}
            if not json:
                show_text(f"Applied: the rules are at version {number}.")
    if json:
        show_json(shown)


def versions(org: OrgName = None, as_member: AsMember = None, json: AsJson = False) -> None:
    """List the versions of the org's rules, the newest first: what changed, when, and who did it."""
    from server.clock import iso
    from server.rules import versions_of

    with at_desk(org, as_member, "look around") as desk:
        found = versions_of(desk.database, desk.org.id)
    if json:
        show_json(
            [
                {
                    "version": one.number,
                    "at": iso(one.made_at),
                    "by": one.made_by or None,
                    "change": one.change,
                    "rules_hash": one.hash,
                }
                for one in found
            ]
        )
        return
    show_table(
        ("VERSION", "AT", "BY", "CHANGE", "HASH"),
        ((one.number, moment(iso(one.made_at)), one.made_by, one.change, one.hash[:12]) for one in found),
        empty="The rules have never been changed.",
        prose=("CHANGE",),
    )


COMMANDS: dict[str, Callable[..., None]] = {"export": export, "apply": apply_file, "versions": versions}


def draft_of(desk: Desk, file: Path, current: "Rulebook") -> "Rulebook":
    """What a file says, with people and agents by id. Raises DefinitionError."""
    from server.rulefile import read_rulebook

    return read_rulebook(file, {name: identifier for identifier, name in names_of(desk).items()}, current)


def subjects_of(desk: Desk) -> "list[tuple[str, Subject]]":
    """The org's agents as rules see them, by name."""
    from server.policy import Subject

    directory = desk.installation.directory
    members = {member.id: member for member in directory.members(desk.org.id)}
    found: list[tuple[str, Subject]] = []
    for agent in directory.agents(desk.org.id):
        member = members.get(agent.member or "")
        roles, groups = (member.roles, member.groups) if member else ((), ())
        found.append((agent.name, Subject(agent.id, agent.member, roles, groups, agent.member is None)))
    return found


def _book(desk: Desk, version: int | None) -> "Rulebook":
    from server.rules import rulebook_of, version_named

    if version is None:
        return rulebook_of(desk.database, desk.org.id)
    return version_named(desk.database, desk.org.id, version)


def _openings(desk: Desk, before: "Rulebook", after: "Rulebook") -> "list[Opening]":
    from server.connections import connections_of, offer_of
    from server.difference import openings

    connections = connections_of(desk.database, desk.org.id)
    offer = offer_of(desk.installation.catalogue, connections)
    return openings(before, after, subjects_of(desk), offer.tools)


def _warn_of_new(desk: Desk, changes: "Sequence[Change]", wanted: "Rulebook") -> None:
    touched = {change.name for change in changes if change.kind in ("added", "changed")}
    for rule in wanted.rules:
        if rule.id in touched:
            for note in blind_spots(desk, rule):
                warn(f"{rule.id}: {note}")


# -- the difference, as people read it


def _show(desk: Desk, changes: "Sequence[Change]", opened: "Sequence[Opening]") -> None:
    if not changes:
        say("Nothing to change: the rules are what this says.")
        return
    names = names_of(desk)
    for change in changes:
        for line in _told(change, names):
            show_text(line)
        if change.loosens:
            show_text(f"    may loosen: {change.loosens}")
    for opening in opened:
        show_text(f"  {_opening_in_words(opening)}")
    if not any(change.loosens for change in changes):
        show_text("Nothing of this loosens: no call is treated more mildly than before.")


def _told(change: "Change", names: Mapping[str, str]) -> list[str]:
    before, after = _named(change.before, names), _named(change.after, names)
    if change.kind == "preset":
        return [f"~ preset: {(change.before or {})['preset']} -> {change.name}"]
    if change.kind == "added":
        return [f"+ {change.name}: {rule_in_words(after)}"]
    if change.kind == "removed":
        return [f"- {change.name}: {rule_in_words(before)}"]
    fields = [f"    {key}: {_value(before.get(key))} -> {_value(after.get(key))}" for key in change.fields]
    return [f"~ {change.name}: {rule_in_words(after)}", *fields]


def _named(rule: dict[str, Any] | None, names: Mapping[str, str]) -> dict[str, Any]:
    return {} if rule is None else {**rule, "who": names.get(rule.get("who", ""), rule.get("who"))}


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "none" if value is None or value == [] else jsonlib.dumps(value)


_OUTCOMES = {
    "allow": "without a person",
    "confirm": "when a person confirms it",
    "approve": "when somebody signed in approves it",
    "deny": "not at all",
}


def _opening_in_words(opening: "Opening") -> str:
    tools = ", ".join(opening.tools[:LISTED])
    more = f" and {len(opening.tools) - LISTED} more" if len(opening.tools) > LISTED else ""
    can = _OUTCOMES[str(opening.after)]
    return f"{opening.agent} could then call {tools}{more} {can}; now at best {_OUTCOMES[str(opening.before)]}."


def _change_json(change: "Change", names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "kind": change.kind,
        "name": change.name,
        "before": None if change.before is None else _shown(change.before, names),
        "after": None if change.after is None else _shown(change.after, names),
        "fields": {key: list(pair) for key, pair in change.fields.items()} if change.kind == "changed" else {},
        "may_loosen": change.loosens or None,
    }


def _shown(side: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return _named(side, names) if "who" in side else side


def _opening_json(opening: "Opening") -> dict[str, Any]:
    return {
        "agent": opening.agent,
        "before": str(opening.before),
        "after": str(opening.after),
        "tools": list(opening.tools),
    }


def _counted(changes: "Sequence[Change]") -> str:
    loose = sum(bool(change.loosens) for change in changes)
    counted = f"{len(changes)} change{'' if len(changes) == 1 else 's'}"
    return f"{counted}, of which {loose} may loosen," if loose else counted
