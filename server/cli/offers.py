"""What an org does with an account that the operator offers: use it in place of its own, or do without."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, AsMember, Desk, OrgName, Yes, at_desk
from server.cli.output import say, show_json, show_text, warn
from server.cli.terminal import require_yes

if TYPE_CHECKING:
    from server.connections import Connection
    from server.database import Rows


def use_managed(
    name: Annotated[str, typer.Argument(help="As the operator offers it; `connection list` says which there are.")],
    yes: Yes = False,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Use the operator's account by this name, in place of one of your own, which is removed with its secret."""
    from server.cli.erasing import erased
    from server.connections import ConnectionProblem, connections_of, remove
    from server.managed import offered, take_up
    from server.oauth.revoking import revocable

    with at_desk(org, as_member, "connect accounts") as desk:
        managed = offered(desk.database, desk.org.id, name)
        existing = connections_of(desk.database, desk.org.id)
        own = next((each for each in existing if each.name == name), None)
        if managed is None:
            raise ConnectionProblem(
                f"Nothing is offered by the name {name!r}. `keyleash connection list` shows what is."
            )
        if managed.in_use:
            raise ConnectionProblem(f"{name} is the managed one already.")
        definition = None if own is None else desk.installation.catalogue.connectors.get(own.connector)
        if own is not None and definition is not None and revocable(own, definition):
            raise ConnectionProblem(
                f"Your own {name} is signed in to by OAuth: `keyleash connection remove {name}` has its provider end "
                "the tokens. Do that first."
            )
        if own is not None:
            require_yes(f"Remove your own {name} with its secret, and use the operator's account?", yes=yes)

        def change(rows: "Rows") -> None:
            if own is not None:
                remove(rows, desk.installation.vault, own, by=desk.by)
            others = [each for each in existing if each is not own]
            take_up(rows, desk.installation.catalogue, others, managed, by=desk.by)

        desk.database.write_now(change)
        gone = own is None or erased(desk.installation, own.org, own.id)
        if json:
            show_json({"name": name, "ownership": "managed", "account": managed.terms.account, "erased": gone})
        else:
            show_text(f"{name} is the operator's account from now on: they pay, on their terms.")


def set_aside(desk: Desk, connection: "Connection", *, yes: bool, json: bool) -> None:
    """Do without a managed connection."""
    from server.managed import remove

    require_yes(f"Do without {connection.name}, which the operator offers?", yes=yes)
    desk.database.write_now(lambda rows: remove(rows, desk.installation.vault, connection, by=desk.by))
    if json:
        show_json({"name": connection.name, "id": connection.id, "set_aside": True})
    else:
        show_text(
            f"{connection.name} is set aside: no call uses it. `keyleash connection use-managed` takes it up again."
        )


def came_back(desk: Desk, removed: "Connection") -> None:
    """Say so where the operator's account stands in the place of what was removed."""
    from server.managed import offered

    found = offered(desk.database, desk.org.id, removed.name)
    if found is not None and found.in_use:
        warn(
            f"{found.name} is the managed connection again, to the operator's account, as it was before yours. To do "
            f"without it as well: keyleash connection remove {found.name}"
        )


def offer_as_json(desk: Desk, connection: "Connection") -> dict[str, Any]:
    """On what terms the operator offers something by the name of a connection."""
    from server.managed import offered

    found = offered(desk.database, desk.org.id, connection.name)
    if found is None:
        return {}
    terms = found.terms
    return {
        "managed": {
            "in_use": found.in_use,
            "tools": "all" if terms.own_project else "shared",
            "calls_per_day": terms.calls_per_day,
            "used_today": found.used_today(),
        }
    }


def say_of_offers(desk: Desk) -> None:
    """What the operator offers, and the org does not use."""
    from server.managed import offered_to

    for each in offered_to(desk.database, desk.org.id):
        if not each.in_use:
            say(f"The operator offers {each.name} as well: keyleash connection use-managed {each.name}")
