"""The filters of the record as options of each command that reads it."""

import re
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.moments import moment

if TYPE_CHECKING:
    from server.audit import Filters

Since = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="From then on: 2026-11-23, 2026-11-23T09:14Z, or 2d.")
]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before then.")]
EventName = Annotated[str | None, typer.Option("--event", help="One event, such as call.attempt.")]
AgentName = Annotated[str | None, typer.Option("--agent")]
MemberName = Annotated[str | None, typer.Option("--member")]
ConnectionName = Annotated[str | None, typer.Option("--connection")]
ToolName = Annotated[str | None, typer.Option("--tool", help="The tool's name on the wire: CONNECTION_TOOL.")]
GrantId = Annotated[
    str | None,
    typer.Option("--grant", metavar="ID", help="Under one grant, by its id; or by the name of approved work."),
]
ArgumentHash = Annotated[
    str | None,
    typer.Option(
        "--argument",
        metavar="[NAME=]HASH",
        help="With this keyed hash of an argument's value, as `audit hash` shows it.",
    ),
]
Outcome = Annotated[str | None, typer.Option("--outcome", help="succeeded, failed, unknown, refused, denied or held.")]

_FILTERS: dict[str, Any] = {
    **{"event": EventName, "agent": AgentName, "member": MemberName, "connection": ConnectionName, "tool": ToolName},
    **{"outcome": Outcome, "grant": GrantId, "argument": ArgumentHash},
}
_TIMES: dict[str, Any] = {"since": Since, "until": Until}
_HASH = re.compile(r"h1:[0-9a-f]{32}")


def selecting(command: Callable[..., None]) -> Callable[..., None]:
    """The command with every filter as an option; what was given is its `filters`."""
    return _with({**_TIMES, **_FILTERS}, command)


def following(command: Callable[..., None]) -> Callable[..., None]:
    """The same without times: for what goes on from where it is."""
    return _with(_FILTERS, command)


def _with(options: dict[str, Any], command: Callable[..., None]) -> Callable[..., None]:
    @wraps(command)
    def run(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in options}
        command(filters=_filters({name: value for name, value in chosen.items() if value is not None}), **given)

    own = [each for name, each in signature(command).parameters.items() if name != "filters"]
    more = [Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=kind) for name, kind in options.items()]
    shown = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in own]
    run.__signature__ = Signature([*shown, *more])  # pyright: ignore[reportAttributeAccessIssue] - typer reads it
    run.__annotations__ = {each.name: each.annotation for each in (*shown, *more)}
    return run


def _filters(given: dict[str, Any]) -> "Filters":
    """What was given, and nothing else. Raises BadParameter."""
    from server.audit import Event

    if "event" in given and given["event"] not in list(Event):
        raise typer.BadParameter(f"there is no event {given['event']!r}. `keyleash audit events` lists them.")
    if "argument" in given and not _HASH.fullmatch(given["argument"].rpartition("=")[2]):
        raise typer.BadParameter("--argument takes a keyed hash, h1:…, as `keyleash audit hash` shows it, not a value.")
    found: Filters = {}
    found.update({name: moment(value) if name in _TIMES else value for name, value in given.items()})  # pyright: ignore[reportCallIssue, reportArgumentType] - the names are those of Filters
    return found
