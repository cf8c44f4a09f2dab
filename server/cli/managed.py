"""`keyleash managed …`: accounts of the operator's that orgs may use. What an org does with one is in `offers.py`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from server.cli.acting import AsJson, Yes, opened, operators_name, require_operator
from server.cli.connect import BaseUrl, Copy, Extra, FromReference, FromStdin, Kind, NoVerify, Private, refuse_extra
from server.cli.offers import limits_as_json, used_of
from server.cli.output import note, say, show_fields, show_json, show_table, show_text, warn
from server.cli.terminal import require_yes

if TYPE_CHECKING:
    from server.app import Installation
    from server.connections import Connection, Plan
    from server.database import Rows
    from server.identity import Org
    from server.managed import Managed, Terms
    from vault import Secret

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="Accounts of yours that orgs may use. The operator's.")

Name = Annotated[str, typer.Argument(help="As it was offered; `keyleash managed list` shows them.")]
OnlyOrgs = Annotated[
    str | None, typer.Option("--org", metavar="NAMES", help="Only for these orgs, with commas between them.")
]


@app.command("offer")
def offer(
    connector: Annotated[str, typer.Argument(help="What the account is at; `keyleash connector list` shows them.")],
    to: Annotated[str, typer.Option("--to", metavar="NAMES", help="To which orgs, with commas between them.")],
    extra: Extra = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The connection's name in the orgs; the connector's by default.")
    ] = None,
    kind: Kind = None,
    base_url: BaseUrl = None,
    allow_private: Private = None,
    account: Annotated[
        str | None, typer.Option("--account", metavar="TEXT", help="What the orgs are shown as the account.")
    ] = None,
    own_project: Annotated[
        bool,
        typer.Option(
            "--own-project",
            help="The secret is of a project at the provider that this one org has to itself: every tool is offered.",
        ),
    ] = False,
    calls_per_day: Annotated[
        int | None, typer.Option("--calls-per-day", metavar="N", help="How many calls each org may make a day (UTC).")
    ] = None,
    tokens_per_day: Annotated[
        int | None,
        typer.Option(
            "--tokens-per-day", metavar="N", help="How many tokens, in and out, each org may use a day (UTC)."
        ),
    ] = None,
    tokens_per_month: Annotated[
        int | None, typer.Option("--tokens-per-month", metavar="N", help="The same in a month of the calendar.")
    ] = None,
    no_verify: NoVerify = False,
    secret_stdin: FromStdin = False,
    secret_from: FromReference = None,
    copy: Copy = False,
    json: AsJson = False,
) -> None:
    """Let orgs use an account of yours: its secret is asked for once, tried, and sealed for each under its own key.

    Without --own-project they get the tools that are safe where several use one account; `connector show` marks them.
    """
    from server.cli.connect import entered
    from server.cli.credential import require_one_way
    from server.connections import ConnectionProblem
    from server.managed import THEIRS, Terms, plan_offer
    from server.managed import offer as offer_to

    refuse_extra(extra)
    require_one_way(stdin=secret_stdin, reference=secret_from, copy=copy)
    with opened(as_operator=True) as installation:
        require_operator(installation, "offering an account to orgs")
        terms = Terms(account or THEIRS, own_project, calls_per_day, tokens_per_day, tokens_per_month)
        orgs = [installation.directory.org(each) for each in _names(to)]
        if own_project and len(orgs) > 1:
            raise ConnectionProblem("A project that an org has to itself is offered to that one: name it alone.")
        planned = plan_offer(
            installation.catalogue,
            connector=connector,
            name=name,
            kind=kind,
            base_url=base_url,
            private=allow_private or (),
            terms=terms,
        )
        _require_room(installation, planned, orgs)
        planned, sealed, opened_account = entered(
            installation,
            planned,
            stdin=secret_stdin,
            reference=secret_from,
            copy=copy,
            fixed=kind is not None,
            verify=not no_verify,
        )
        in_use: dict[str, bool] = {}

        def change(rows: "Rows", org: "Org") -> None:
            in_use[org.name] = offer_to(
                rows,
                installation.vault,
                org.id,
                planned,
                terms,
                fields=sealed,
                verified=not no_verify,
                by=operators_name(),
            )

        _for_each(installation, [(org, org) for org in orgs], change)
    if json:
        show_json({"name": planned.name, "connector": connector, "account": opened_account, "in_use": in_use})
        return
    found = f" ({opened_account})" if opened_account else ""
    _say_of_tokens(terms)
    show_text(f"Offered {planned.connector.title}{found} as {planned.name} to {', '.join(in_use)}.")
    for org, used in in_use.items():
        if not used:
            say(f"{org} has a {planned.name} of its own, which stays until it chooses yours.")


@app.command("list")
def list_offers(json: AsJson = False) -> None:
    """List what is offered, to whom, who uses it, and how much of the limits, by days and months in UTC."""
    with opened(as_operator=True) as installation:
        require_operator(installation, "looking at what is offered to orgs")
        found = _found(installation)
    if json:
        show_json([_as_json(org, managed) for org, managed in found])
        return
    heads = ("CALLS", "TOKENS", "IN THE MONTH")
    show_table(
        ("NAME", "ORG", "STATE", *heads),
        (
            (
                *(managed.name, org.name, _state(managed)),
                *(used.replace(" of ", "/") for _, used in used_of(managed).values()),
            )
            for org, managed in found
        ),
        right=heads,
        empty="Nothing is offered. `keyleash managed offer CONNECTOR --to ORG` offers an account of yours.",
    )
    if found:
        note("Calls and tokens of today, then tokens of this month, of as many as an org may use; days are UTC.")


@app.command("show")
def show_offer(name: Name, json: AsJson = False) -> None:
    """Show one offer: on what terms each org has it, and which tools that is."""
    from server.connections import offer_of
    from vault import STORED, show_reference

    with opened(as_operator=True) as installation:
        require_operator(installation, "looking at what is offered to orgs")
        shown: list[dict[str, Any]] = []
        for org, managed in _of(installation, name, None):
            connection = managed.connection
            tools = [each.name for each in offer_of(installation.catalogue, [connection]).tools]
            sealed = None if connection.source == STORED else _sealed(installation, connection)
            where = None if sealed is None else show_reference(sealed)
            shown.append({**_as_json(org, managed), "reference": where, "tools": tools})
    if json:
        show_json(shown)
        return
    for place, each in enumerate(shown):
        if place:
            show_text("")
        show_fields({**each, "tools": ", ".join(each["tools"]), "reached": ", ".join(each["reached"]) or None})


@app.command("limit")
def limit(
    name: Name,
    calls: Annotated[str | None, typer.Argument(metavar="CALLS", help="Calls a day for each org, or `none`.")] = None,
    tokens_per_day: Annotated[
        str | None, typer.Option("--tokens-per-day", metavar="N", help="Tokens a day for each org, or `none`.")
    ] = None,
    tokens_per_month: Annotated[
        str | None, typer.Option("--tokens-per-month", metavar="N", help="Tokens a month for each org, or `none`.")
    ] = None,
    only: OnlyOrgs = None,
    json: AsJson = False,
) -> None:
    """Change how many calls an org may make, and how many tokens it may use. It acts on the next call.

    What you do not name stays as it is, and so does what was used. Tokens are those that the provider reports, in and
    out; how many a call takes is known only afterwards, so that those which are under way then go on.
    """
    from server.managed import limit as change_limit

    given = {"calls_per_day": calls, "tokens_per_day": tokens_per_day, "tokens_per_month": tokens_per_month}
    wanted = {name: None if text == "none" else _number(text) for name, text in given.items() if text is not None}
    if not wanted:
        raise typer.BadParameter("Say what changes: a number of calls, --tokens-per-day or --tokens-per-month.")
    with opened(as_operator=True) as installation:
        require_operator(installation, "changing what is offered to orgs")
        found = _of(installation, name, only)
        _for_each(
            installation,
            found,
            lambda rows, managed: change_limit(rows, managed, replace(managed.terms, **wanted), by=operators_name()),
            seals=False,
        )
        after = _of(installation, name, only)
    words = [
        f"{'any number of' if most is None else most} {limit.replace('_per_', ' a ')}" for limit, most in wanted.items()
    ]
    _say_done(found, json=json, **wanted, text=f"{name}: {', '.join(words)} for")
    for org, managed in [] if json else after:
        if managed.reached():
            say(f"{org.name} has used as much as that, or more: its calls are refused until the limit opens again.")


@app.command("rotate")
def rotate(
    name: Name,
    extra: Extra = None,
    only: OnlyOrgs = None,
    kind: Kind = None,
    no_verify: NoVerify = False,
    secret_stdin: FromStdin = False,
    secret_from: FromReference = None,
    copy: Copy = False,
    json: AsJson = False,
) -> None:
    """Give an offer another secret, for the same address, for every org that has it; the one before is removed.

    Approvals and grants that were given for the one before end. One of an org's own project is named with --org.
    """
    from server.cli.connect import entered
    from server.cli.credential import require_one_way
    from server.connections import ConnectionProblem, replan
    from server.managed import rotate as give

    refuse_extra(extra)
    require_one_way(stdin=secret_stdin, reference=secret_from, copy=copy)
    with opened(as_operator=True) as installation:
        require_operator(installation, "changing what is offered to orgs")
        found = _of_one_secret(_of(installation, name, only))
        connection = found[0][1].connection
        connector = installation.catalogue.connector(connection.connector)
        planned = replan(connection, connector, kind=kind, base_url=None, private=None)
        if planned.kind.oauth is not None:
            raise ConnectionProblem("What is signed in to by OAuth cannot be offered to others. Give a key or a token.")
        planned, sealed, account = entered(
            installation,
            planned,
            stdin=secret_stdin,
            reference=secret_from,
            copy=copy,
            fixed=kind is not None,
            verify=not no_verify,
        )

        def change(rows: "Rows", managed: "Managed") -> None:
            give(
                rows,
                installation.vault,
                managed,
                planned,
                fields=sealed,
                verified=not no_verify,
                by=operators_name(),
            )

        _for_each(installation, found, change)
        gone = _all_gone(installation, found)
    _say_done(found, json=json, erased=gone, account=account, text=f"{name} has a new secret for")


@app.command("test")
def test(name: Name, only: OnlyOrgs = None, json: AsJson = False) -> None:
    """Try what is sealed for each org with the connector's harmless verify call."""
    from server.cli.connect import opens
    from server.managed import tried

    shown: list[dict[str, Any]] = []
    with opened(as_operator=True) as installation:
        require_operator(installation, "trying what is offered to orgs")
        for org, managed in _of(installation, name, only):
            account, problem = opens(installation, managed.connection)

            def change(rows: "Rows", managed: "Managed" = managed, problem: str | None = problem) -> None:
                tried(rows, managed, problem=problem, by=operators_name())

            installation.database.of(org.id).write_now(change)
            shown.append({"name": name, "org": org.name, "ok": not problem, "account": account, "message": problem})
    if json:
        show_json(shown)
    for each in [] if json else shown:
        known = f" ({each['account']})" if each["account"] else ""
        (show_text if each["ok"] else warn)(f"{each['org']}: {each['message'] or f'{name} works{known}.'}")
    raise typer.Exit(0 if all(each["ok"] for each in shown) else 1)


@app.command("withdraw")
def withdraw(name: Name, only: OnlyOrgs = None, yes: Yes = False, json: AsJson = False) -> None:
    """End an offer: the orgs' next calls find nothing by that name, and the secret is removed."""
    from server.cli.erasing import say_of_backups, whether_gone
    from server.managed import withdraw as end

    with opened(as_operator=True) as installation:
        require_operator(installation, "changing what is offered to orgs")
        found = _of(installation, name, only)
        require_yes(f"Withdraw {name} from {_orgs(found)}?", yes=yes)
        _for_each(
            installation,
            found,
            lambda rows, managed: end(rows, installation.vault, managed, by=operators_name()),
            seals=False,
        )
        gone = _all_gone(installation, found)
        said = whether_gone(installation, "Its secret", gone=gone)
        _say_done(found, json=json, erased=gone, text=f"{said} {name} is withdrawn from")
        say_of_backups(installation)


# -- of several orgs


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(each.strip() for each in text.split(",") if each.strip()))
    if not names:
        raise typer.BadParameter("Name an org, or several with commas between them.")
    return names


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise typer.BadParameter("Give a number, from 1, or `none`.")
    return int(text)


def _say_of_tokens(terms: "Terms") -> None:
    if terms.tokens_per_day or terms.tokens_per_month:
        say("How many tokens a call takes is known only afterwards: those under way when they are used up go on.")


def _found(installation: "Installation") -> list[tuple["Org", "Managed"]]:
    from server.managed import offered_to

    found = [
        (org, managed) for org in installation.directory.orgs() for managed in offered_to(installation.database, org.id)
    ]
    return sorted(found, key=lambda each: (each[1].name, each[0].name))


def _of(installation: "Installation", name: str, only: str | None) -> list[tuple["Org", "Managed"]]:
    """The offers of this name, to every org or to those that are named. Raises ConnectionProblem."""
    from server.connections import ConnectionProblem

    wanted = None if only is None else {installation.directory.org(each).id for each in _names(only)}
    found = [
        (org, managed)
        for org, managed in _found(installation)
        if managed.name == name and (wanted is None or org.id in wanted)
    ]
    if not found or (wanted is not None and len(found) != len(wanted)):
        raise ConnectionProblem(
            f"{name} is not offered{' to each of these orgs' if wanted else ''}. `keyleash managed list` shows what "
            "is, and to whom."
        )
    return found


def _of_one_secret(found: list[tuple["Org", "Managed"]]) -> list[tuple["Org", "Managed"]]:
    """Those that have one secret between them: a project of one org's own has another. Raises ConnectionProblem."""
    from server.connections import ConnectionProblem

    if len(found) > 1 and any(managed.terms.own_project for _, managed in found):
        raise ConnectionProblem(
            f"Not all of these have the same secret: some orgs have a project of their own. Name those that have, with "
            f"`--org`: {_orgs(found)}."
        )
    return found


def _require_room(installation: "Installation", planned: "Plan", orgs: Sequence["Org"]) -> None:
    """Refuse before the secret is asked for what could not be offered to one of them. Raises ConnectionProblem."""
    from server.connections import ConnectionProblem, connections_of
    from server.managed import offered_to, require_room

    for org, managed in _found(installation):
        there = managed.connection
        place = (there.connector, there.base_url, there.private)
        if managed.name == planned.name and place != (planned.connector.id, planned.base_url, planned.private):
            raise ConnectionProblem(
                f"{planned.name} is offered to {org.name}, for another place. One name is one place: give `--name`."
            )
    for org in orgs:
        require_room(
            installation.catalogue,
            planned,
            connections_of(installation.database, org.id),
            offered_to(installation.database, org.id),
            org.name,
        )


def _for_each(
    installation: "Installation",
    things: Sequence[tuple["Org", T]],
    change: Callable[["Rows", T], None],
    *,
    seals: bool = True,
) -> None:
    """Change one org after another, each in a transaction of its own; what fails says which were done."""
    from server.keys import have_at_hand

    for org, _ in things if seals else ():
        have_at_hand(installation.database, installation.vault, org.id)
    for done, (org, thing) in enumerate(things):
        try:
            installation.database.of(org.id).write_now(lambda rows, thing=thing: change(rows, thing))
        except Exception:
            before = ", ".join(each.name for each, _ in things[:done])
            warn(f"it failed at {org.name}; {f'done before it: {before}' if before else 'nothing was done before it'}.")
            raise


def _all_gone(installation: "Installation", found: Sequence[tuple["Org", "Managed"]]) -> bool:
    from server.cli.erasing import erased

    return all(erased(installation, org.id, managed.connection.id) for org, managed in found)


def _sealed(installation: "Installation", connection: "Connection") -> "Secret":
    from server.connections import open_credential

    database = installation.database.of(connection.org)
    return database.snapshot(lambda rows: open_credential(rows, installation.vault, connection))


def _say_done(found: Sequence[tuple["Org", "Managed"]], *, json: bool, text: str, **more: Any) -> None:
    if json:
        show_json({"name": found[0][1].name, "orgs": [org.name for org, _ in found], **more})
    else:
        show_text(f"{text} {_orgs(found)}.")


def _orgs(found: Sequence[tuple["Org", "Managed"]]) -> str:
    return ", ".join(org.name for org, _ in found)


def _state(managed: "Managed") -> str:
    if managed.in_use:
        return "in use"
    return "its own instead" if managed.set_aside_at is None else "set aside"


def _as_json(org: "Org", managed: "Managed") -> dict[str, Any]:
    connection, terms = managed.connection, managed.terms
    return {
        "name": managed.name,
        "org": org.name,
        "connector": connection.connector,
        "account": terms.account,
        "own_project": terms.own_project,
        **limits_as_json(managed),
        "state": _state(managed),
        "base_url": connection.base_url,
        "private": list(connection.private),
        "kind": connection.kind,
        "credential_version": connection.credential_version,
        "source": connection.source,
        "verified_at": _moment(connection.verified_at),
        "offered_by": connection.created_by,
        "offered_at": _moment(connection.created_at),
    }


def _moment(at: int | None) -> str | None:
    from server.clock import iso

    return None if at is None else iso(at)
