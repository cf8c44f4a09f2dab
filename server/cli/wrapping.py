"""`keyleash connector import-mcp`: ask an MCP server what it can do, once, and write a connector file of it.

What the server says is shown as text, and nothing of it is believed. The credential that listing took is used for that
and goes with the process: it stands in no file.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson
from server.cli.consent import OwnApp, Paste, RedirectUrl, Scopes, Ways
from server.cli.importing import put, require_id, size_in_words, try_loading
from server.cli.output import counted, say, show_json, show_table, show_text, warn

if TYPE_CHECKING:
    from connectors.addresses import Network
    from connectors.definition import CredentialKind
    from connectors.importing_wrapped import Candidate, Source
    from connectors.upstream import Definition
    from vault import Secret


def import_mcp(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="URL | -- COMMAND …",
            help="An MCP server: its address, or after `--` the command that starts it, which is the operator's.",
        ),
    ],
    identifier: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The connector's id; of the server's name by default.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List what the server offers, and write nothing.")] = False,
    search: Annotated[
        str | None, typer.Option("--search", metavar="WORDS", help="List what these words fit best, and write nothing.")
    ] = None,
    tool: Annotated[
        list[str] | None,
        typer.Option("--tool", metavar="NAME", help="Take this one, by its name at the server. Repeatable."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Take every tool that can be offered.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Where to write, instead of the connectors' folder.")
    ] = None,
    secret_stdin: Annotated[
        bool, typer.Option("--secret-stdin", help="Read what the server wants to see from standard input.")
    ] = False,
    header: Annotated[
        str | None,
        typer.Option("--header", metavar="NAME", help="The credential stands in this header, and is no bearer token."),
    ] = None,
    secret_env: Annotated[
        str | None,
        typer.Option("--secret-env", metavar="NAME", help="A command gets its credential in this variable."),
    ] = None,
    allow_private: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-private",
            metavar="CIDR",
            help="Reach these addresses that are not public, such as 127.0.0.1/32. Repeatable. The operator's.",
        ),
    ] = None,
    paste: Paste = False,
    redirect: RedirectUrl = None,
    scope: Scopes = None,
    own_app: OwnApp = False,
    json: AsJson = False,
) -> None:
    """Make a connector of an MCP server: chosen tools of it, with suggested effects, pinned, to be reviewed.

    A server that wants a credential before it says what it offers is signed in to by OAuth, where it says how, or with
    a secret that is asked for. That is used here and stored nowhere; `keyleash connect` asks again.
    """
    looking = listed or search is not None
    if looking and (tool or every or output):
        raise typer.BadParameter("--list and --search write nothing: leave --tool, --all and --output out.")
    if tool and every:
        raise typer.BadParameter("--all takes what --tool would name: leave one of the two out.")
    asked = _Asked(_source(words, header, secret_env), Ways(paste, redirect, scope or ()), own_app, secret_stdin)
    networks = _networks(asked.source, allow_private or ())
    server, found, source = _listing(asked, networks)
    if search is not None:
        from connectors.importing_wrapped import search as searched

        found = searched(found, search)
    if looking:
        _show(found, json=json)
    elif not tool and not every:
        _show(found, json=json)
        say("Nothing was written: `--tool NAME` takes one, and can be repeated; `--all` takes every one.")
    else:
        chosen = list(found) if every else [_named(name, found) for name in dict.fromkeys(tool or ())]
        _write(source, server, chosen, identifier, output, json=json)


class _Asked:
    """What the command line says of the server, and of how it is signed in to."""

    def __init__(self, source: "Source", ways: Ways, own_app: bool, stdin: bool) -> None:
        self.source, self.ways, self.own_app, self.stdin = source, ways, own_app, stdin


# --- the server


def _source(words: Sequence[str], header: str | None, variable: str | None) -> "Source":
    from connectors.definition import WrappedServer
    from connectors.errors import Unsendable
    from connectors.importing_wrapped import Source
    from connectors.request import base
    from connectors.wrapping import address_of

    if "://" not in words[0]:
        if header is not None:
            raise typer.BadParameter(
                "--header is for a server that is reached over HTTP: a command takes --secret-env."
            )
        server = WrappedServer(command=tuple(words))
        return Source(server, address_of(server), _in_environment(variable) if variable is not None else None)
    if len(words) > 1:
        raise typer.BadParameter("give one URL, or `--` and a command.")
    if variable is not None:
        raise typer.BadParameter("--secret-env is for a server that is started: one over HTTP takes --header.")
    try:
        url = base(words[0]).url
    except Unsendable as error:
        raise typer.BadParameter(str(error)) from None
    return Source(WrappedServer(), url, _in_header(header) if header is not None else None)


def _in_environment(variable: str) -> "CredentialKind":
    from connectors.definition import CredentialKind, Field
    from connectors.source import Spot
    from connectors.wrapping import check_variable

    name = check_variable(Spot("--secret-env", 1, variable))
    return CredentialKind(
        id="secret",
        label=name,
        help="Say where to make one, and with which rights.",
        scheme="env",
        name=name,
        fields=(Field(name="secret", label=name, variable=name),),
    )


def _in_header(header: str) -> "CredentialKind":
    from connectors.arguments import RESERVED_HEADERS, check_header
    from connectors.definition import CredentialKind, Field
    from connectors.source import Spot

    check_header(header, Spot("--header", 1, header), RESERVED_HEADERS - {"authorization"})
    return CredentialKind(
        id="key",
        label=header,
        help="Say where to make one, and with which rights.",
        scheme="header",
        name=header,
        fields=(Field(name="secret", label=header),),
    )


def _bearer() -> "CredentialKind":
    from connectors.definition import CredentialKind, Field

    return CredentialKind(
        id="token",
        label="access token",
        help="Say where to make one, and with which rights.",
        scheme="bearer",
        name="Authorization",
        prefix="Bearer ",
        fields=(Field(name="secret", label="access token"),),
    )


def _networks(source: "Source", private: Sequence[str]) -> tuple["Network", ...]:
    """The addresses that are opened for this look. What reaches the host or its network is the operator's."""
    from server.cli.acting import opened, require_operator
    from server.connections import network, require_private_for_http

    networks = tuple(network(text) for text in private)
    if source.server.command and networks:
        raise typer.BadParameter("a server that is started is reached over no network: leave --allow-private out.")
    if not source.server.command:
        require_private_for_http(source.url, private)
    if networks or source.server.command:
        what = "reaching addresses that are not public" if networks else "starting a server on this host"
        with opened() as installation:
            require_operator(installation, what)
    return networks


# --- listing


def _listing(asked: _Asked, networks: tuple["Network", ...]) -> tuple[dict[str, str], list["Candidate"], "Source"]:
    """What the server is and offers, and how it had to be signed in to. Raises ConnectorError or ConnectionProblem."""
    from connectors.errors import CredentialRejected
    from vault import Secret

    source = asked.source
    if source.kind is None and not asked.stdin and not asked.own_app and not asked.ways.given:
        try:
            with Secret({}) as nothing:
                return (*_candidates(source, nothing, networks), source)
        except CredentialRejected:
            say("The server wants a credential before it says what it offers.")
    source, secret = _credential(asked, networks)
    with secret:
        server, found = _candidates(source, secret, networks)
        _end(source, secret, networks)
    return server, found, source


def _candidates(
    source: "Source", secret: "Secret", networks: tuple["Network", ...]
) -> tuple[dict[str, str], list["Candidate"]]:
    import asyncio

    from connectors.importing_wrapped import candidates

    server, definitions = asyncio.run(_asked_once(source, secret, networks))
    return server, candidates(definitions, [secret.reveal(name) for name in secret.fields])


async def _asked_once(
    source: "Source", secret: "Secret", networks: tuple["Network", ...]
) -> tuple[dict[str, str], tuple["Definition", ...]]:
    from connectors.credentialblock import NOTHING
    from connectors.egress import Egress
    from connectors.importing_wrapped import standing_in
    from connectors.upstream import opened

    kind, server = source.kind or NOTHING, standing_in(source)
    async with (
        Egress() as egress,
        opened(server, base_url=source.url, kind=kind, secret=secret, egress=egress, private=networks) as upstream,
    ):
        return dict(upstream.server), await upstream.definitions()


def _credential(asked: _Asked, networks: tuple["Network", ...]) -> tuple["Source", "Secret"]:
    """How the server is signed in to, and with what: by OAuth where it says how, else with a secret that is given."""
    import asyncio

    source = asked.source
    if source.kind is None and not asked.stdin and not source.server.command:
        found = asyncio.run(_sign_in(source, networks))
        if found is not None:
            source = replace(source, kind=found)
            return source, _token(source, asked, networks)
    if asked.ways.given or asked.own_app:
        raise typer.BadParameter("the server does not say how to sign in by OAuth: leave out what is said of that.")
    if source.kind is None and source.server.command:
        raise typer.BadParameter("which variable does the command take its credential in? `--secret-env NAME` says so.")
    kind = source.kind or _bearer()
    return replace(source, kind=kind), _given(kind, stdin=asked.stdin)


def _given(kind: "CredentialKind", *, stdin: bool) -> "Secret":
    from server.cli.credential import take
    from server.credential import check_fields, resolver_of
    from server.settings import read_settings

    resolver = resolver_of(read_settings())
    secret = take(kind, stdin=stdin, reference=None, copy=False, resolver=resolver).fields
    for warning in check_fields(kind, secret):
        warn(warning)
    return secret


async def _sign_in(source: "Source", networks: tuple["Network", ...]) -> "CredentialKind | None":
    from connectors.definition import CredentialKind
    from connectors.egress import Egress
    from connectors.oauthblock import fields_of_app
    from connectors.upstream_oauth import discover

    async with Egress() as egress:
        found = await discover(egress, source.url, private=networks)
    if found is None:
        return None
    helped = "Consent in your browser." if found.oauth.register else f"Register an app at {found.host}."
    return CredentialKind(
        id="oauth",
        label="OAuth",
        help=helped,
        scheme="bearer",
        name="Authorization",
        prefix="Bearer ",
        fields=fields_of_app(found.oauth),
        oauth=found.oauth,
    )


def _token(source: "Source", asked: _Asked, networks: tuple["Network", ...]) -> "Secret":
    """A token for this one look. Raises ConnectionProblem."""
    from connectors.importing_wrapped import standing_in
    from server.cli.consent import consented, registered_app
    from server.connections import Plan
    from server.oauth.tokens import OWN, REGISTERED

    kind = source.kind
    assert kind is not None  # noqa: S101 - for the type checker: it has just been found
    assert kind.oauth is not None  # noqa: S101 - the same
    private = tuple(str(each) for each in networks)
    planned = Plan(standing_in(source), kind, "server", source.url, private)
    registers = bool(kind.oauth.register) and not asked.own_app
    app = registered_app(planned, asked.ways) if registers else _given(kind, stdin=False)
    with app:
        consent, _ = consented(planned, app, REGISTERED if registers else OWN, asked.ways, verify=False)
    return consent.secret


def _end(source: "Source", secret: "Secret", networks: tuple["Network", ...]) -> None:
    """Have the token that listing took ended, where it was had by OAuth: nobody needs it any more."""
    import asyncio

    from connectors.errors import ConnectorError
    from connectors.oauth import revoked, revoking

    oauth = source.kind.oauth if source.kind else None
    if oauth is None or oauth.revoke is None:
        return

    async def once() -> None:
        from connectors.egress import Egress

        asked = revoking(oauth, source.url, secret, secret.fields)
        async with Egress() as egress:
            reply = await egress.send(asked.prepared, attach=asked.attach, fill=asked.fill, private=networks)
        revoked(oauth, reply, source.url)

    try:
        asyncio.run(once())
    except ConnectorError:
        warn("the token that this took could not be ended at its provider; it is kept nowhere, and ends by itself.")


# --- choosing


def _named(name: str, found: Sequence["Candidate"]) -> "Candidate":
    from connectors.source import suggestion

    for each in found:
        if name in (each.definition.name, each.name):
            return each
    near = suggestion(name, [each.definition.name for each in found])
    raise typer.BadParameter(f"the server has no tool {name[:80]!r}. {near}`--list` shows them.")


def _show(found: Sequence["Candidate"], *, json: bool) -> None:
    if json:
        show_json([_as_json(each) for each in found])
        return
    show_table(
        ("TOOL", "EFFECT", "SCHEMA", "WHAT THE SERVER SAYS"),
        (
            (
                each.definition.name,
                each.effect.value,
                "-" if each.refused else size_in_words(each.size),
                f"(cannot be offered: {each.refused})" if each.refused else each.about,
            )
            for each in found
        ),
        empty="The server has no tool that fits.",
        prose=("WHAT THE SERVER SAYS",),
    )


def _as_json(each: "Candidate") -> dict[str, Any]:
    return {
        "tool": each.definition.name,
        "name": each.name,
        "effect": each.effect.value,
        "because": each.why,
        "schema_bytes": each.size or None,
        "description": each.about,
        "pinned": each.hash,
        "refused": each.refused or None,
    }


# --- writing


MORE = "For one more tool: move both away, import all of them at once, a `--tool` for each"


def _write(
    source: "Source",
    server: dict[str, str],
    chosen: Sequence["Candidate"],
    identifier: str | None,
    output: Path | None,
    *,
    json: bool,
) -> None:
    from connectors.compiling import portable_name
    from connectors.importing_wrapped import draft
    from connectors.repinning import beside, written
    from server.settings import read_settings

    title = server.get("name", "")
    name = identifier or (output.stem if output else portable_name(title)) or "imported"
    target = output or read_settings().connectors / f"{name}.yaml"
    require_id(name, target)
    refused = [each for each in chosen if each.refused]
    for each in refused:
        warn(f"{each.definition.name} is left out: {each.refused}")
    offered = [each for each in chosen if not each.refused]
    if not offered:
        raise typer.BadParameter("none of these tools can be offered, so nothing was written.")
    made = draft(source, offered, identifier=name, title=title)
    content = made.text.encode()
    try_loading(name, {f"{name}.yaml": content})
    put({beside(target): written([each.definition for each in offered]), target: content}, more=MORE)
    for note in made.notes:
        warn(note)
    if json:
        left_out = [{"tool": each.definition.name, "why": each.refused} for each in refused]
        shown = {"id": name, "file": str(target), "tools": list(made.tools), "left_out": left_out}
        show_json({**shown, "notes": list(made.notes)})
        return
    show_text(
        f"Wrote {target} with {counted(len(made.tools), 'tool')}. Nobody has reviewed it: read it, remove what you do "
        f"not need, then `keyleash connector check` it and set `reviewed: true`. `keyleash connect {name}` connects it."
    )
