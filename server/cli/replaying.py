"""`keyleash policy replay`: what a draft of the rules would have made of the calls that were decided."""

import json as jsonlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, AsMember, Desk, OrgName, at_desk
from server.cli.moments import moment
from server.cli.output import counted, say, show_json, show_table, show_text
from server.cli.rulebooks import draft_of, subjects_of

if TYPE_CHECKING:
    from server.replaying import Flip, Replay
    from server.rules import Rulebook


def replay_draft(
    draft: Annotated[Path, typer.Argument(metavar="DRAFT", help="A file, as for `policy apply`.")],
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="From when on: 7d, or 2026-11-23T09:14Z.")
    ] = "7d",
    examples: Annotated[
        int,
        typer.Option("--examples", metavar="N", min=0, max=100, help="Calls shown of each kind, arguments included."),
    ] = 3,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Try a draft on the calls that were decided: which would flip, from what to what, and which cannot be judged.

    Nothing is called. That it was run is on record.
    """
    from server.clock import iso
    from server.recorded import sweep
    from server.rules import rulebook_of

    begin = moment(since)
    with at_desk(org, as_member, "replay calls") as desk:
        current = rulebook_of(desk.database, desk.org.id)
        wanted = draft_of(desk, draft, current)
        desk.have_keys_at_hand()
        sweep(desk.installation.database, desk.org.id, desk.installation.settings.keep_days)
        _on_record(desk, wanted, begin)
        told = _replayed(desk, wanted, current, begin, examples)
    if json:
        show_json({"since": iso(begin), **_as_json(told)})
        return
    _show(told)


COMMANDS: dict[str, Callable[..., None]] = {"replay": replay_draft}


def _on_record(desk: Desk, wanted: "Rulebook", begin: int) -> None:
    """Written before anything is opened."""
    from server.audit import Event, append
    from server.clock import iso

    desk.database.write_now(
        lambda rows: append(
            rows, desk.org.id, Event.RULES_REPLAYED, since=iso(begin), rules_hash=wanted.hash, by=desk.by
        )
    )


def _replayed(desk: Desk, wanted: "Rulebook", current: "Rulebook", begin: int, examples: int) -> "Replay":
    from server.connections import connections_of, offer_of
    from server.recorded import recorded
    from server.replaying import replay

    connections = connections_of(desk.database, desk.org.id)
    offer = offer_of(desk.installation.catalogue, connections)
    calls = recorded(desk.installation.database, desk.installation.vault, desk.org.id, since=begin)
    agents = {subject.agent: subject for _, subject in subjects_of(desk)}
    return replay(calls, offer, agents, wanted, current, examples)


def _ordered(told: "Replay") -> "list[Flip]":
    """What gets looser first, and what is most first."""
    return sorted(told.flips.values(), key=lambda flip: (flip.after > flip.before, -flip.count, flip.tool, flip.rules))


def _as_json(told: "Replay") -> dict[str, Any]:
    from server.clock import iso

    return {
        "calls": told.calls,
        "unchanged": told.unchanged,
        "flips": [
            {
                "tool": flip.tool,
                "from": str(flip.before),
                "to": str(flip.after),
                "rules": list(flip.rules),
                "count": flip.count,
                "so_by_the_rules_of_now": flip.already,
                "examples": [
                    {"at": iso(one.at), "agent": one.agent, "arguments": dict(one.arguments)} for one in flip.examples
                ],
            }
            for flip in _ordered(told)
        ],
        "not_judged": [
            {"because": reason, "count": tools.total(), "tools": sorted(tools)}
            for reason, tools in sorted(told.unjudged.items())
        ],
        "by_roles_of_then": {"agent_removed": told.removed, "roles_changed_since": told.changed},
    }


def _show(told: "Replay") -> None:
    from server.clock import iso

    flips = _ordered(told)
    show_table(
        ("TOOL", "FROM", "TO", "CALLS", "DECIDED BY"),
        ((flip.tool, flip.before, flip.after, flip.count, ", ".join(flip.rules) or "no rule") for flip in flips),
        empty="No call would come out otherwise.",
        prose=("DECIDED BY",),
    )
    for flip in flips:
        if flip.already:
            show_text(f"{flip.tool}: {flip.already} of {flip.count} come out so by the rules of now already.")
        for one in flip.examples:
            show_text(f"  {iso(one.at)} {one.agent} {flip.tool} {jsonlib.dumps(dict(one.arguments))}")
    for reason, tools in sorted(told.unjudged.items()):
        say(f"{counted(tools.total(), 'call')} cannot be judged, {reason}: {', '.join(sorted(tools))}.")
    say(
        f"{counted(told.calls, 'call')}, of which {told.unchanged} come out as they did. Each is judged with the roles "
        f"and groups that its caller had then; of {told.removed} the agent is removed, of {told.changed} these have "
        "changed since."
    )
