"""The filters of the record as options of each command that reads it: given several times, any of the values fits."""

import re
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.moments import moment

if TYPE_CHECKING:
    from server.audit import Filters

Given = list[str] | None
Since = Annotated[
    Given, typer.Option("--since", metavar="TIME", help="From then on: 2026-11-23, 2026-11-23T09:14Z, or 2d.")
]
Until = Annotated[Given, typer.Option("--until", metavar="TIME", help="Before then.")]
EventName = Annotated[
    Given, typer.Option("--event", metavar="EVENT", help="Such as call.attempt. Repeat it for any of several.")
]
AgentName = Annotated[Given, typer.Option("--agent", metavar="NAME", help="Name or id. Repeatable, as --event.")]
MemberName = Annotated[Given, typer.Option("--member", metavar="NAME", help="Name or id. Repeatable, as --event.")]
ConnectionName = Annotated[Given, typer.Option("--connection", metavar="NAME", help="Repeatable, as --event.")]
ToolName = Annotated[
    Given,
    typer.Option(
        "--tool", metavar="TOOL", help="The tool's name on the wire: CONNECTION_TOOL. Repeatable, as --event."
    ),
]
GrantId = Annotated[
    Given,
    typer.Option(
        "--grant",
        metavar="ID",
        help="Under a grant, by its id; or by the name of approved work. Repeatable, as --event.",
    ),
]
ArgumentHash = Annotated[
    Given,
    typer.Option(
        "--argument",
        metavar="[NAME=]HASH",
        help="With this keyed hash of an argument's value, as `audit hash` shows it. Repeatable: any of them.",
    ),
]
Outcome = Annotated[
    Given,
    typer.Option(
        "--outcome",
        metavar="OUTCOME",
        help="succeeded, failed, unknown, refused, denied or held. Repeatable, as --event.",
    ),
]

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
        command(filters=_filters({name: value for name, value in chosen.items() if value}), **given)

    own = [each for name, each in signature(command).parameters.items() if name != "filters"]
    more = [Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=kind) for name, kind in options.items()]
    shown = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in own]
    run.__signature__ = Signature([*shown, *more])  # pyright: ignore[reportAttributeAccessIssue] - typer reads it
    run.__annotations__ = {each.name: each.annotation for each in (*shown, *more)}
    return run


def _filters(given: dict[str, list[str]]) -> "Filters":
    """What was given, and nothing else: one value as it is, several as a list. Raises BadParameter."""
    from server.audit import Event

    if unknown := [each for each in given.get("event", ()) if each not in list(Event)]:
        raise typer.BadParameter(f"there is no event {unknown[0]!r}. `keyleash audit events` lists them.")
    if not all(_HASH.fullmatch(each.rpartition("=")[2]) for each in given.get("argument", ())):
        raise typer.BadParameter("--argument takes a keyed hash, h1:…, as `keyleash audit hash` shows it, not a value.")
    if twice := [name for name in _TIMES if len(given.get(name, ())) > 1]:
        raise typer.BadParameter(f"--{twice[0]} takes one time.")
    found: Filters = {}
    found.update({name: _one_or_several(name, values) for name, values in given.items()})  # pyright: ignore[reportCallIssue, reportArgumentType] - the names are those of Filters
    return found


def _one_or_several(name: str, values: list[str]) -> int | str | list[str]:
    """Several in one order, whatever order they were given in: a stream with them is the same stream."""
    if name in _TIMES:
        return moment(values[0])
    several = sorted(set(values))
    return several if len(several) > 1 else several[0]
