"""What an org does with an account that the operator offers: use it in place of its own, or do without."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, AsMember, Desk, OrgName, Yes, at_desk
from server.cli.output import say, show_json, show_text, warn
from server.cli.terminal import require_yes

if TYPE_CHECKING:
    from server.connections import Connection
    from server.database import Rows
    from server.managed import Managed


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
            **limits_as_json(found),
        }
    }


def offer_in_words(shown: dict[str, Any]) -> dict[str, Any]:
    """What `offer_as_json` gives, for people."""
    if "managed" not in shown:
        return {}
    terms = shown["managed"]
    use = "in use" if terms["in_use"] else "not in use"
    limits = [f"{_WORDS[name]} {_of(terms[_USED[name]], terms[name])}" for name in _USED if terms[name] is not None]
    return {"managed": "; ".join([use, f"{terms['tools']} tools", *limits])}


def limits_as_json(managed: "Managed") -> dict[str, Any]:
    """How much an org may use of what is offered to it, and how much it has used; `reached`: what it has used up."""
    used = managed.used()
    return {**managed.terms.limits, **{_USED[name]: used[name] for name in used}, "reached": managed.reached()}


def used_of(managed: "Managed") -> dict[str, tuple[str, str]]:
    """By the name of each limit, what it is of and how much is used: `calls today`, and `12 of 200` or just `12`."""
    used = managed.used()
    return {name: (_WORDS[name], _of(used[name], most)) for name, most in managed.terms.limits.items()}


def _of(used: int, most: int | None) -> str:
    return f"{used}" if most is None else f"{used} of {most}"


_USED = {
    "calls_per_day": "calls_today",
    "tokens_per_day": "tokens_today",
    "tokens_per_month": "tokens_this_month",
}
_WORDS = {name: used.replace("_", " ") for name, used in _USED.items()}


def say_of_offers(desk: Desk) -> None:
    """What the operator offers, and the org does not use."""
    from server.managed import offered_to

    for each in offered_to(desk.database, desk.org.id):
        if not each.in_use:
            say(f"The operator offers {each.name} as well: keyleash connection use-managed {each.name}")
