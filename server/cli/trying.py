"""`keyleash connector test`: run the reads of a connection that need nothing from anybody, and say how each went.

Nothing is sent that is not effect `read`, nothing before it is on record, and nothing of an answer is shown.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, AsMember, Desk, OrgName, at_desk, require_open
from server.cli.output import counted, say, show_json, show_table

if TYPE_CHECKING:
    from connectors.answer import Result
    from connectors.auth import Revealing
    from connectors.definition import Argument, Call, CredentialKind, Tool
    from connectors.egress import Egress
    from server.connections import Connection


@dataclass(frozen=True)
class Tried:
    """How one read went. `message` says what is wrong."""

    tool: str
    ok: bool
    status: int | None = None
    bytes: int | None = None
    milliseconds: int | None = None
    message: str | None = None


def test(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A connection; `keyleash connection list` shows them.")],
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Run a connection's reads that need no arguments, or whose arguments have an example, with its credential.

    Only tools whose effect is `read` are sent. What comes back is not shown.
    """
    from server.connections import connection_named, require_own

    with at_desk(org, as_member, "connect accounts") as desk:
        require_open(desk.installation)
        connection = connection_named(desk.database, desk.org.id, name)
        require_own(connection)
        offer = desk.installation.catalogue.offer({connection.name: connection.connector})
        desk.installation.catalogue.connector(connection.connector)  # says why it cannot be read, where that is so
        left_out = [(each.name, why) for each in offer.tools if (why := _why_not(each.tool))]
        calls = [offer.bind(each.name, _sample(each.tool)) for each in offer.tools if not _why_not(each.tool)]
        tried = _all(desk, connection, calls) if calls else []
    if json:
        show_json(
            {
                "connection": connection.name,
                "tried": [asdict(each) for each in tried],
                "left_out": [{"tool": tool, "why": why} for tool, why in left_out],
            }
        )
    else:
        _show(tried, left_out)
    raise typer.Exit(0 if all(each.ok for each in tried) else 1)


def _why_not(tool: "Tool") -> str:
    """Why a tool is not run here; empty where it is."""
    from connectors.definition import Effect

    if tool.effect is not Effect.READ:
        raised = f" until the file says `reviewed: true` ({tool.unreviewed} stands there)" if tool.unreviewed else ""
        return f"its effect is {tool.effect}{raised}"
    missing = [argument.name for argument in tool.arguments if argument.required and not any(_values(argument))]
    return f"it needs {', '.join(missing)}, and there is no example" if missing else ""


def _sample(tool: "Tool") -> dict[str, Any]:
    """The required arguments, as their examples or defaults are."""
    return {each.name: next(_values(each))[0] for each in tool.arguments if each.required}


def _values(argument: "Argument") -> Iterator[tuple[Any]]:
    """Values that the definition itself gives, each that fits, wrapped: one may be false or null."""
    from connectors.arguments import fits

    given = [*argument.schema.get("examples", ())]
    given += [argument.schema[key] for key in ("default", "const") if key in argument.schema]
    yield from ((value,) for value in given if fits(argument.schema, value))


def _all(desk: Desk, connection: "Connection", calls: Sequence["Call"]) -> list[Tried]:
    """Run them one after the other, on record before and after. Raises CannotOpen or CannotResolve: nothing is sent."""
    import asyncio

    from server.audit import Event, append
    from server.connections import credential_kind, open_credential
    from server.credential import credential, resolver_of

    connector = calls[0].connector
    kind = credential_kind(connection, connector)
    about: dict[str, Any] = {"connection": connection.name, "connector": connector.id, "by": desk.by}
    names = [call.name for call in calls]
    desk.database.write_now(lambda rows: append(rows, desk.org.id, Event.CONNECTOR_TEST_BEGUN, **about, tools=names))
    sealed = desk.database.snapshot(lambda rows: open_credential(rows, desk.installation.vault, connection))
    with sealed, credential(resolver_of(desk.installation.settings), connection, kind, sealed) as secret:
        tried = asyncio.run(_sent(connection, calls, kind, secret))
    results = [{"tool": each.tool, "ok": each.ok, "status": each.status} for each in tried]
    desk.database.write_now(lambda rows: append(rows, desk.org.id, Event.CONNECTOR_TESTED, **about, results=results))
    return tried


async def _sent(
    connection: "Connection", calls: Sequence["Call"], kind: "CredentialKind", secret: "Revealing"
) -> list[Tried]:
    from connectors.answer import interpret
    from connectors.auth import attaching
    from connectors.egress import Egress
    from connectors.errors import ConnectorError, UpstreamError
    from connectors.request import prepare

    tried: list[Tried] = []
    async with Egress() as egress:
        for call in calls:
            began = perf_counter()
            try:
                request = prepare(call, base_url=connection.base_url)
                if call.connector.server is not None:
                    result, size = await _from_a_server(egress, call, connection, kind, secret)
                    message = None if result.ok else result.text
                    tried.append(Tried(call.name, result.ok, None, size, _since(began), message))
                    continue
                reply = await egress.send(request, attach=attaching(kind, secret, request), private=connection.networks)
                result = interpret(call, reply)
            except ConnectorError as error:
                status = error.status or None if isinstance(error, UpstreamError) else None
                tried.append(Tried(call.name, False, status, None, _since(began), str(error)))
                continue
            message = None if result.ok else "The upstream says that it failed."
            tried.append(Tried(call.name, result.ok, reply.status, reply.bytes_in, _since(began), message))
    return tried


async def _from_a_server(
    egress: "Egress", call: "Call", connection: "Connection", kind: "CredentialKind", secret: "Revealing"
) -> "tuple[Result, int | None]":
    """Nobody is there to be asked anything."""
    from server.keeping import once
    from server.outside import Questions, send

    sent = await send(call, partial(once, egress, connection, call.connector, kind, secret))
    if isinstance(sent, Questions):
        raise AssertionError("a server is answered where nobody answers later")  # noqa: TRY004 - no type is wrong
    return sent.result, sent.facts["bytes"]


def _since(began: float) -> int:
    return round((perf_counter() - began) * 1000)


def _show(tried: Sequence[Tried], left_out: Sequence[tuple[str, str]]) -> None:
    show_table(
        ("TOOL", "RAN", "STATUS", "BYTES", "MS", "WHAT IS WRONG"),
        ((t.tool, "ok" if t.ok else "failed", t.status, t.bytes, t.milliseconds, t.message) for t in tried),
        empty="It has no read that can be run without arguments.",
        prose=("WHAT IS WRONG",),
    )
    if left_out:
        say(f"{counted(len(left_out), 'tool')} not run:")
        for tool, why in left_out:
            say(f"  {tool}: {why}.")
