"""`keyleash connection limit`: how many calls an account takes at once, and in a minute."""

from typing import Annotated

import typer

from server.cli.acting import AsJson, AsMember, OrgName, at_desk
from server.cli.output import say, show_fields, show_json

MOST_AT_ONCE, MOST_A_MINUTE = 10_000, 1_000_000


def limit(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    concurrent: Annotated[
        int | None, typer.Option("--concurrent", metavar="N", min=1, max=MOST_AT_ONCE, help="Calls at once.")
    ] = None,
    per_minute: Annotated[
        int | None, typer.Option("--per-minute", metavar="N", min=1, max=MOST_A_MINUTE, help="Calls in a minute.")
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="As the connector's file says, and no more than that.")] = False,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Set how many calls a connection takes, in place of what was set before; without options, show it.

    A call over it waits a while and is then refused, with nothing sent. At once counts for each server process; the
    minute is one of the clock, and counts for all of them together.
    """
    from connectors.definition import Pace
    from server.connections import connection_named
    from server.pacing import pace_of, paces_in, set_pace

    wanted = Pace(concurrent, per_minute)
    change = none or wanted != Pace()
    if none and wanted != Pace():
        raise typer.BadParameter("--none goes with no limit.")
    with at_desk(org, as_member, "connect accounts" if change else "look around") as desk:
        found = connection_named(desk.database, desk.org.id, name)
        if change:
            desk.database.write_now(lambda rows: set_pace(rows, desk.org.id, found.name, wanted, by=desk.by))
        own = desk.database.query(lambda rows: paces_in(rows, desk.org.id)).get(found.name)
        connector = desk.installation.catalogue.connectors.get(found.connector)
    stated = Pace() if connector is None else connector.limits
    holds = pace_of(stated, own, managed=found.ownership != "own")
    shown = {
        "name": found.name,
        "concurrent": holds.concurrent,
        "per_minute": holds.per_minute,
        "by_its_file": {"concurrent": stated.concurrent, "per_minute": stated.per_minute},
    }
    if json:
        show_json(shown)
        return
    nothing = "no limit"
    show_fields(
        {
            "connection": found.name,
            "at once": holds.concurrent or nothing,
            "in a minute": holds.per_minute or nothing,
        }
    )
    if found.ownership != "own":
        say("The account is the operator's: no limit can be wider than its file says.")


COMMANDS = {"limit": limit}
