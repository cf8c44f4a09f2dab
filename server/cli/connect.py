"""`keyleash connect` and `connection …`: accounts, and their credentials."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, AsMember, Desk, OrgName, Yes, at_desk, require_open
from server.cli.consent import OwnApp, Paste, RedirectUrl, Scopes, Ways
from server.cli.output import moment, say, show_fields, show_json, show_table, show_text, warn
from server.cli.terminal import require_yes

if TYPE_CHECKING:
    from connectors.definition import Connector
    from connectors.upstream import Definition
    from server.app import Installation
    from server.connections import Connection, Plan
    from server.database import Rows
    from server.oauth.tokens import Consent
    from vault import Secret

connection_app = typer.Typer(no_args_is_help=True, help="The org's connected accounts.")

Kind = Annotated[str | None, typer.Option("--kind", help="Which kind of credential; `connector show` lists them.")]
BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", metavar="URL", help="Send calls here instead of the connector's own address."),
]
Private = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-private",
        metavar="CIDR",
        help="Let this connection reach these addresses that are not public, such as 127.0.0.1/32. Repeatable.",
    ),
]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Store the credential without trying it.")]
FromStdin = Annotated[
    bool,
    typer.Option(
        "--secret-stdin",
        help="Read the credential from standard input. Several fields: one JSON object, or one line for each.",
    ),
]
FromReference = Annotated[
    str | None,
    typer.Option(
        "--secret-from",
        metavar="REF",
        help="Where the secret is and stays: env:NAME, file:PATH, cmd:COMMAND (run without a shell), "
        "op://VAULT/ITEM/FIELD or vault://MOUNT/PATH#FIELD. It is read there for every call, by the server; only the "
        "sealed reference is stored. The operator's.",
    ),
]
Copy = Annotated[
    bool,
    typer.Option(
        "--copy",
        help="With --secret-from: read it there once, now, and store what was read. A later change there is not seen.",
    ),
]
Extra = Annotated[list[str] | None, typer.Argument(hidden=True)]


def connect(
    connector: Annotated[str, typer.Argument(help="What to connect; `keyleash connector list` shows them.")],
    extra: Extra = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The connection's name; the connector's by default.")
    ] = None,
    kind: Kind = None,
    base_url: BaseUrl = None,
    allow_private: Private = None,
    no_verify: NoVerify = False,
    secret_stdin: FromStdin = False,
    secret_from: FromReference = None,
    copy: Copy = False,
    paste: Paste = False,
    redirect: RedirectUrl = None,
    scope: Scopes = None,
    own_app: OwnApp = False,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Connect an account: its secret is asked for without being shown, tried, and sealed in the vault.

    With --secret-from it stays where it is, and is tried and read there. Where `connector show` says that OAuth signs
    in, the id and the secret of your own app are asked for, and then your browser.
    """
    from server.cli.credential import require_one_way
    from server.connections import connections_of, plan, store
    from server.oauth.tokens import begin

    refuse_extra(extra)
    require_one_way(stdin=secret_stdin, reference=secret_from, copy=copy)
    with at_desk(org, as_member, "connect accounts") as desk:
        _require_operator_to_start(desk, connector)
        _require_able(desk, allow_private, secret_from)
        existing = connections_of(desk.database, desk.org.id)
        planned = plan(
            desk.installation.catalogue,
            existing,
            connector=connector,
            name=name,
            kind=kind,
            base_url=base_url,
            private=allow_private or (),
        )
        piped = secret_stdin or secret_from is not None
        planned, sealed, account, consent = _obtain(
            desk,
            planned if kind is not None or not piped else _pasted_kind(planned),
            stdin=secret_stdin,
            reference=secret_from,
            copy=copy,
            fixed=kind is not None,
            verify=not no_verify,
            ways=Ways(paste, redirect, scope or ()),
            own_app=own_app,
        )
        desk.have_keys_at_hand()
        replaces = next((each for each in existing if each.name == planned.name), None)

        def change(rows: "Rows") -> "Connection":
            made = store(
                rows,
                desk.installation.vault,
                desk.org.id,
                planned,
                fields=sealed,
                account=account,
                verified=not no_verify,
                by=desk.by,
                consent=consent.for_record() if consent else None,
                replaces=replaces,
            )
            if consent:
                begin(rows, made, consent)
            return made

        made = desk.database.write_now(change)
        stays = _where_it_stays(made, sealed, copied=copy)
        if json:
            show_json({**_as_json(made), **_oauth_as_json(desk, made)})
            return
        known = f" ({account})" if account else ""
        tried = "" if not no_verify else " The credential was not tried."
        instead = "" if replaces is None else " It takes the place of the managed one: your account pays from now on."
        show_text(f"Connected {planned.connector.title} as {made.name}{known}.{tried}{stays}{instead}")


@connection_app.command("list")
def list_connections(org: OrgName = None, as_member: AsMember = None, json: AsJson = False) -> None:
    """List the org's connections."""
    from server.cli.offers import say_of_offers
    from server.connections import connections_of

    with at_desk(org, as_member, "look around") as desk:
        found = connections_of(desk.database, desk.org.id)
        held = _held(desk)
        if json:
            show_json([{**_as_json(connection), "held": held.get(connection.id, [])} for connection in found])
            return
        show_table(
            ("NAME", "CONNECTOR", "ACCOUNT", "ADDRESS", "PRIVATE", "KEY", "SECRET IN", "VERIFIED", "NEEDS"),
            (
                (
                    c.name,
                    c.connector,
                    c.account,
                    c.base_url,
                    ", ".join(c.private),
                    c.ownership,
                    c.source,
                    moment(_moment(c.verified_at)),
                    c.needs_consent_at and f"{_NEEDS[c.signed]} since {_moment(c.needs_consent_at)}",
                )
                for c in found
            ),
            empty="Nothing is connected yet. `keyleash connect CONNECTOR` connects an account.",
            prose=("PRIVATE", "NEEDS"),
            under=("NEEDS",),
            spare=("SECRET IN", "PRIVATE", "VERIFIED"),
        )
        for connection in found:
            _warn_of_consent(connection)
            _warn_of_held(connection, held)
        _warn_of_revocations(desk)
        say_of_offers(desk)


@connection_app.command("show")
def show_connection(
    name: Annotated[str, typer.Argument()], org: OrgName = None, as_member: AsMember = None, json: AsJson = False
) -> None:
    """Show one connection. Its secret cannot be shown to anybody; where it stays is shown to admins."""
    from server.cli.offers import offer_as_json, offer_in_words
    from server.connections import connection_named

    with at_desk(org, as_member, "look around") as desk:
        found = connection_named(desk.database, desk.org.id, name)
        held = _held(desk)
        shown = {**_as_json(found), "reference": _reference(desk, found), **_oauth_as_json(desk, found)}
        shown |= offer_as_json(desk, found)
        shown["held"] = held.get(found.id, [])
        if json:
            show_json(shown)
        else:
            shown |= offer_in_words(shown)
            show_fields({name: value for name, value in shown.items() if name != "held" or value})
            _warn_of_consent(found)
            _warn_of_held(found, held)


def _reference(desk: Desk, connection: "Connection") -> str | None:
    """Where the connection's secret stays, for those who may change that; of a command, its program only."""
    from server.connections import open_credential
    from server.credential import is_reference
    from vault import STORED, VaultError, show_reference

    if connection.source == STORED or connection.managed or not desk.may("connect accounts"):
        return None
    try:
        with desk.database.snapshot(lambda rows: open_credential(rows, desk.installation.vault, connection)) as sealed:
            return show_reference(sealed) if is_reference(connection, sealed) else None
    except VaultError as problem:
        warn(f"what is sealed for {connection.name} cannot be shown: {problem}")
        return None


@connection_app.command("test")
def test_connection(
    name: Annotated[str, typer.Argument()], org: OrgName = None, as_member: AsMember = None, json: AsJson = False
) -> None:
    """Try a connection's credential with the connector's harmless verify call."""
    from server.connections import connection_named, require_own, tested
    from server.held import looked_at

    with at_desk(org, as_member, "connect accounts") as desk:
        require_open(desk.installation)
        connection = connection_named(desk.database, desk.org.id, name)
        require_own(connection)
        connector = desk.installation.catalogue.connector(connection.connector)
        offered: list[Definition] | None = [] if connector.server is not None else None
        account, problem = _tried(desk, connection, offered)

        def change(rows: "Rows") -> None:
            tested(rows, connection, account=account, problem=problem, by=desk.by)
            if offered is not None and problem is None:
                looked_at(rows, connection, connector, offered, by=desk.by)

        desk.database.write_now(change)
        held = _held(desk)
        _warn_of_held(connection, held)
    if json:
        shown = {"name": connection.name, "ok": problem is None, "account": account, "message": problem}
        show_json({**shown, "held": held.get(connection.id, [])})
    elif problem is None:
        show_text(f"{connection.name} works{f' ({account})' if account else ''}.")
    else:
        warn(problem)
    raise typer.Exit(0 if problem is None else 1)


def _tried(
    desk: Desk, connection: "Connection", offered: "list[Definition] | None" = None
) -> tuple[str | None, str | None]:
    """The account that the connection's credential opens, or else what is wrong with it. Raises CannotOpen.

    `offered` takes in what a wrapped server says that it can do.
    """
    from server.cli.consent import renew

    connector = desk.installation.catalogue.connector(connection.connector)
    if problem := renew(desk, connection, connector):
        return None, problem
    return opens(desk.installation, connection, offered)


def opens(
    installation: "Installation", connection: "Connection", offered: "list[Definition] | None" = None
) -> tuple[str | None, str | None]:
    """The account that what is sealed opens as it is, or else what is wrong with it. Raises CannotOpen."""
    from connectors.errors import ConnectorError
    from server.connections import credential_kind, open_credential
    from server.credential import credential, resolver_of
    from vault import CannotResolve

    connector = installation.catalogue.connector(connection.connector)
    kind, database = credential_kind(connection, connector), installation.database.of(connection.org)
    sealed = database.snapshot(lambda rows: open_credential(rows, installation.vault, connection))
    try:
        with sealed, credential(resolver_of(installation.settings), connection, kind, sealed) as secret:
            return _verify(connection, connector, secret, offered), None
    except (ConnectorError, CannotResolve) as error:
        return None, str(error)


@connection_app.command("rotate")
def rotate_connection(
    name: Annotated[str, typer.Argument()],
    extra: Extra = None,
    kind: Kind = None,
    base_url: BaseUrl = None,
    allow_private: Private = None,
    no_verify: NoVerify = False,
    secret_stdin: FromStdin = False,
    secret_from: FromReference = None,
    copy: Copy = False,
    keep_secret: Annotated[
        bool,
        typer.Option(
            "--keep-secret",
            help="The same secret, encrypted anew under a new key: approvals and grants stay good. Goes with nothing "
            "else.",
        ),
    ] = False,
    own_app: OwnApp = False,
    paste: Paste = False,
    redirect: RedirectUrl = None,
    scope: Scopes = None,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Give a connection a new secret; tools, rules and clients stay as they are. For OAuth: consent again.

    A connection is pointed elsewhere here too, because that takes the secret again. With --base-url, only the
    addresses that --allow-private names now are let in; without both, everything stays. The secret before is removed.
    """
    from server.cli.credential import require_one_way
    from server.cli.erasing import erased, whether_gone
    from server.connections import connection_named, replan, require_own, rotate
    from server.oauth.tokens import begin

    refuse_extra(extra)
    require_one_way(stdin=secret_stdin, reference=secret_from, copy=copy)
    if keep_secret:
        if kind or base_url or allow_private or no_verify or secret_stdin or secret_from or own_app:
            raise typer.BadParameter("--keep-secret changes nothing else: leave the other options out.")
        _reencrypt(name, org, as_member, json=json)
        return
    with at_desk(org, as_member, "connect accounts") as desk:
        _require_able(desk, allow_private, secret_from)
        connection = connection_named(desk.database, desk.org.id, name)
        require_own(connection)
        connector = desk.installation.catalogue.connector(connection.connector)
        _require_operator_to_start(desk, connector.id)
        planned = replan(connection, connector, kind=kind, base_url=base_url, private=allow_private)
        desk.have_keys_at_hand()
        planned, sealed, account, consent = _obtain(
            desk,
            planned,
            stdin=secret_stdin,
            reference=secret_from,
            copy=copy,
            fixed=kind is not None,
            verify=not no_verify,
            ways=Ways(paste, redirect, scope or ()),
            before=connection,
            own_app=own_app,
        )
        desk.have_keys_at_hand()

        def change(rows: "Rows") -> "Connection":
            made = rotate(
                rows,
                desk.installation.vault,
                connection,
                planned,
                fields=sealed,
                account=account,
                verified=not no_verify,
                by=desk.by,
                consent=consent.for_record() if consent else None,
            )
            if consent:
                begin(rows, made, consent)
            return made

        made = desk.database.write_now(change)
        stays = _where_it_stays(made, sealed, copied=copy)
        gone = erased(desk.installation, made.org, made.id)
        if json:
            show_json({**_as_json(made), "erased": gone, **_oauth_as_json(desk, made)})
            return
        show_text(
            f"{made.name} has a new secret (version {made.credential_version}). Approvals and grants that were given "
            f"for the one before can no longer be used.{stays}"
        )
        say(whether_gone(desk.installation, "The secret before", gone=gone))


def _reencrypt(name: str, org: str | None, as_member: str | None, *, json: bool) -> None:
    from server.cli.erasing import erased, whether_gone
    from server.connections import connection_named, reencrypt

    with at_desk(org, as_member, "connect accounts") as desk:
        require_open(desk.installation)
        connection = connection_named(desk.database, desk.org.id, name)
        desk.have_keys_at_hand()
        desk.database.write_now(lambda rows: reencrypt(rows, desk.installation.vault, connection, by=desk.by))
        gone = erased(desk.installation, connection.org, connection.id)
        if json:
            show_json({**_as_json(connection), "erased": gone})
            return
        say(whether_gone(desk.installation, "What was encrypted before", gone=gone))
        show_text(
            f"The secret of {name} is encrypted anew and is the same (version {connection.credential_version}). "
            "Approvals and grants stay good."
        )


@connection_app.command("remove")
def remove_connection(
    name: Annotated[str, typer.Argument()],
    yes: Yes = False,
    no_revoke: Annotated[
        bool, typer.Option("--no-revoke", help="For OAuth: do not ask the provider to end the tokens.")
    ] = False,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Remove a connection with its secret. Its approvals and grants end, and its OAuth tokens at their provider."""
    from server.cli.erasing import erased, say_of_backups, whether_gone
    from server.cli.offers import came_back, set_aside
    from server.connections import connection_named
    from server.managed import remove
    from server.oauth.revoking import revocable

    with at_desk(org, as_member, "connect accounts") as desk:
        connection = connection_named(desk.database, desk.org.id, name)
        if connection.managed:
            set_aside(desk, connection, yes=yes, json=json)
            return
        require_yes(f"Remove {connection.name} ({connection.connector}) and its secret?", yes=yes)
        definition = desk.installation.catalogue.connectors.get(connection.connector)
        if definition is not None and not no_revoke and revocable(connection, definition):
            _remove_and_revoke(desk, connection, json=json)
            return
        desk.database.write_now(lambda rows: remove(rows, desk.installation.vault, connection, by=desk.by))
        gone = erased(desk.installation, connection.org, connection.id)
        if json:
            show_json({"name": connection.name, "id": connection.id, "erased": gone})
        else:
            show_text(f"Removed {connection.name}. {whether_gone(desk.installation, 'Its secret', gone=gone)}")
        came_back(desk, connection)
        _say_of_key(connection)
        say_of_backups(desk.installation)


def _say_of_key(connection: "Connection") -> None:
    if connection.signed:
        say("The private key itself is good until it is deleted at its provider: do that there.")


def _remove_and_revoke(desk: Desk, connection: "Connection", *, json: bool) -> None:
    """Remove it, have its provider end the tokens, and say what came of that."""
    from server.cli.consent import removed_and_revoked
    from server.cli.erasing import erased, say_of_backups, whether_gone
    from server.cli.offers import came_back

    why_not, waits = removed_and_revoked(desk, connection)
    gone = not waits and erased(desk.installation, connection.org, connection.id)
    if json:
        shown = {"name": connection.name, "id": connection.id, "erased": gone, "revoked": why_not is None}
        show_json({**shown, "reason": why_not, "retried": waits})
    elif why_not is None:
        ended = "Its provider has ended its tokens."
        left = whether_gone(desk.installation, "Its secret", gone=gone)
        show_text(f"Removed {connection.name}. {ended} {left}")
    elif waits:
        show_text(f"Removed {connection.name}: no call can use it any more. Its tokens could not be ended yet.")
        warn(
            f"its provider did not end the tokens ({why_not}). They stay sealed until a running server has had it "
            "done; `keyleash doctor` shows it. To be sure at once, end this app's access in the account's own settings."
        )
    else:
        show_text(f"Removed {connection.name}. {whether_gone(desk.installation, 'Its secret', gone=gone)}")
        warn(f"its provider did not end the tokens ({why_not}): end this app's access in the account's own settings.")
    came_back(desk, connection)
    _say_of_key(connection)
    say_of_backups(desk.installation)


def refuse_extra(extra: list[str] | None) -> None:
    if extra:
        from server.cli.arguments import REFUSED

        # What was given is not repeated: it may be the secret.
        raise typer.BadParameter(f"there is an argument too many. If it is a secret: {REFUSED}")


def _require_able(desk: Desk, private: list[str] | None, reference: str | None) -> None:
    if private:
        desk.require_operator("letting a connection reach addresses that are not public")
    if reference is not None:
        desk.require_operator("reading a secret from where it stays (`--secret-from`)")
    require_open(desk.installation)


def _require_operator_to_start(desk: Desk, connector: str) -> None:
    """A server that is started as a process reaches the host."""
    found = desk.installation.catalogue.connectors.get(connector)
    if found is not None and found.server is not None and found.server.command:
        desk.require_operator(f"connecting a server that is started as a process ({found.title})")


def _obtain(
    desk: Desk,
    planned: "Plan",
    *,
    stdin: bool,
    reference: str | None,
    copy: bool,
    fixed: bool,
    verify: bool,
    ways: Ways,
    own_app: bool,
    before: "Connection | None" = None,
) -> tuple["Plan", "Secret", str | None, "Consent | None"]:
    """What to seal, of the right form and (unless told otherwise) tried; the account that it opens; a consent to it.

    Unless its kind is `fixed`, the plan comes back with the kind that it looks like. `before` is the connection that
    is consented to again. Raises ConnectionProblem or CannotResolve; nothing has been stored then.
    """
    from server.cli.consent import consent_for

    if planned.kind.oauth is not None:
        consent, account = consent_for(
            desk,
            planned,
            ways,
            stdin=stdin,
            reference=reference,
            copy=copy,
            verify=verify,
            before=before,
            own_app=own_app,
        )
        return planned, consent.secret, account, consent
    if ways.given or own_app:
        raise typer.BadParameter(f"{planned.kind.id} is not signed in to by OAuth: leave out what is said of that.")
    entered_now = entered(
        desk.installation, planned, stdin=stdin, reference=reference, copy=copy, fixed=fixed, verify=verify
    )
    return *entered_now, None


def entered(
    installation: "Installation",
    planned: "Plan",
    *,
    stdin: bool,
    reference: str | None,
    copy: bool,
    fixed: bool,
    verify: bool,
) -> tuple["Plan", "Secret", str | None]:
    """A key or a token: as `_obtain`, for a kind that is not signed in to by OAuth."""
    from dataclasses import replace

    from server.cli.credential import take
    from server.credential import check_fields, recognised, resolver_of

    given = take(planned.kind, stdin=stdin, reference=reference, copy=copy, resolver=resolver_of(installation.settings))
    if not fixed:
        others = [kind for kind in planned.connector.credentials if kind != planned.kind]
        others = [kind for kind in others if kind.oauth is None]
        planned = replace(planned, kind=recognised([planned.kind, *others], given.fields) or planned.kind)
    for warning in check_fields(planned.kind, given.fields):
        warn(warning)
    return planned, given.sealed, _account(planned, given.fields) if verify else None


def _pasted_kind(planned: "Plan") -> "Plan":
    """What is piped in or read from somewhere, and not said to be an app, is a token or a key."""
    from dataclasses import replace

    if planned.kind.oauth is None:
        return planned
    kinds = (kind for kind in planned.connector.credentials if kind.oauth is None)
    return replace(planned, kind=next(kinds, planned.kind))


def _account(planned: "Plan", fields: "Secret") -> str | None:
    """The account that the credential opens, having tried it. Raises ConnectionProblem."""
    from connectors.errors import ConnectorError
    from server.connections import ConnectionProblem

    say(f"Trying it with {planned.connector.title} at {planned.base_url} …")
    try:
        return _verify(planned, planned.connector, fields)
    except ConnectorError as error:
        said = str(error).rstrip(".")
    mend = "`--no-verify` stores it untried."
    if "not public" in said:
        mend = "If it is yours to open, name it: `--allow-private 127.0.0.1/32`, say."
    raise ConnectionProblem(f"{said}. {mend} Nothing was stored.")


def _where_it_stays(made: "Connection", sealed: "Secret", *, copied: bool) -> str:
    """What a person is told of a secret that was not typed."""
    from vault import STORED, show_reference

    if copied:
        return " The secret was read from there once, and is stored: a later change there is not seen."
    if made.source == STORED:
        return ""
    if made.source == "env":
        say("The server reads this variable in its own environment: set it where the server is started, too.")
    when = "whenever a token is needed" if made.signed else "for every call"
    more = " and the token are" if made.signed else " is"
    return (
        f" The secret stays where it is ({show_reference(sealed)}) and is read there {when}; only this "
        f"reference{more} stored, sealed."
    )


def _verify(
    planned: "Plan | Connection",
    connector: "Connector",
    secret: Any,
    offered: "list[Definition] | None" = None,
) -> str | None:
    import asyncio

    from connectors.egress import Egress
    from server.connections import verify

    taken: list[Definition] = [] if offered is None else offered

    async def once() -> str | None:
        async with Egress() as egress:
            return await verify(egress, planned, connector, secret, seen=taken.extend)

    return asyncio.run(once())


def _as_json(connection: "Connection") -> dict[str, Any]:
    return {
        "name": connection.name,
        "id": connection.id,
        "connector": connection.connector,
        "account": connection.account,
        "ownership": connection.ownership,
        "base_url": connection.base_url,
        "private": list(connection.private),
        "kind": connection.kind,
        "credential_version": connection.credential_version,
        "source": connection.source,
        "verified_at": _moment(connection.verified_at),
        "needs_consent_at": _moment(connection.needs_consent_at),
        "needs": _NEEDS[connection.signed] if connection.needs_consent_at is not None else None,
        "created_by": connection.created_by,
        "created_at": _moment(connection.created_at),
    }


_NEEDS = {True: "new key", False: "consent"}
"""What a connection lacks whose provider takes no more what it has: by whether a private key signs for it."""


def _oauth_as_json(desk: Desk, connection: "Connection") -> dict[str, Any]:
    """How a connection's tokens stand, where it has any."""
    from server.oauth.tokens import standing

    held = standing(desk.database, connection)
    if held is None:
        return {}
    return {
        "oauth": {
            "app": held.app,
            "scopes": list(held.scopes),
            "asked": list(held.asked),
            "expires_at": _moment(held.expires_at),
            "renewed_by_itself": held.renewable,
            "obtained_at": _moment(held.obtained_at),
            "failures": held.failures,
        }
    }


def _warn_of_consent(connection: "Connection") -> None:
    from server.cli.consent import needed

    if connection.needs_consent_at is not None:
        warn(
            f"{connection.name} needs {needed(connection)}, and none of its tools can work until then: "
            f"keyleash connection rotate {connection.name}"
        )


def _held(desk: Desk) -> dict[str, list[str]]:
    """By the connection's id, the tools that are held because their server says what nobody has reviewed."""
    from server.held import held_of, pinned_by

    found: dict[str, list[str]] = {}
    for held in held_of(desk.database, desk.org.id):
        if pinned_by(held, desk.installation.catalogue.connectors) is not None:
            found.setdefault(held.connection, []).append(held.tool)
    return found


def _warn_of_held(connection: "Connection", held: dict[str, list[str]]) -> None:
    if tools := held.get(connection.id):
        warn(
            f"{connection.name}: {', '.join(tools)} held, because the server behind it says something else of it now: "
            f"keyleash connector review {connection.name}"
        )


def _warn_of_revocations(desk: Desk) -> None:
    from server.oauth.revoking import pending

    for one in pending(desk.installation.database):
        if one.org == desk.org.id:
            warn(
                f"{one.name} was removed, and its provider has yet to end its tokens ({one.reason or 'not asked yet'})."
            )


def _moment(at: int | None) -> str | None:
    from server.clock import iso

    return None if at is None else iso(at)
