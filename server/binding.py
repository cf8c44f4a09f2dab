"""Bind and decide: a name and arguments become a call with its verdict, or a refusal that is on record.

What was found is bound anew, with the caller, rules and connections of now, before anything rests on it later.
"""

from collections.abc import Mapping
from typing import Any

from connectors.errors import InvalidArguments, Unsendable
from connectors.request import prepare
from server.bound import Bound, Judged
from server.errors import BadArguments, CallRefused, DefinitionHeld, NoSuchTool, Refused
from server.identity import Caller, Frozen, new_id
from server.onrecord import refuse
from server.parts import Parts
from server.policy import Request, Ruling, decide
from server.reach import shown, subject
from server.recorded import Decided, decided, text_of
from server.spending import raised, used_up
from server.telemetry import Seen


async def bind(
    parts: Parts,
    caller: Caller,
    name: str,
    arguments: Mapping[str, Any],
    *,
    key: str | None = None,
    seen: Seen | None = None,
) -> Bound:
    """Name and arguments become a call with its verdict. Raises NoSuchTool, BadArguments or Refused, on record.

    `key` is what the upstream may know the call by, where it honours one; a new one where it is left out.
    """
    workspace = parts.workspaces.of(caller)
    if shown(caller, workspace, name) is None:
        raise await _out_of_reach(parts, caller, name, arguments)
    judged: Judged | None = None
    refused: Decided | None = None
    try:
        if name in workspace.held:
            raise DefinitionHeld(name)
        call = workspace.offer.bind(name, arguments)
        connection = workspace.connections[call.connection]
        request = Request(call.connection, call.tool.name, call.tool.effect, call.arguments)
        verdict = decide(subject(caller), request, workspace.rules, workspace.preset)
        judged = Judged(caller, call, connection, verdict)
        if seen is not None:
            seen.bound(call, ownership=connection.ownership, ruling=verdict.ruling.value)
        if verdict.ruling is Ruling.DENY:
            refused = decided(call, verdict)
            await parts.approvals.overrule(caller.org, caller.agent, call)
            raise Refused(verdict.reason)
        prepared = prepare(call, base_url=connection.base_url, idempotency_key=key or new_id("idm"))
        budgets = workspace.budgets_of(caller.agent_name, connection.name)
        over = used_up(parts.database, caller.org, budgets)
    except (InvalidArguments, Unsendable) as error:
        refusal: CallRefused = BadArguments(error.for_model)
    except (DefinitionHeld, Refused) as error:
        refusal = error
    else:
        return Bound(
            caller,
            call,
            connection,
            raised(verdict, over),
            prepared,
            ruled=verdict,
            budgets=budgets,
            pace=workspace.pace(connection, call.connector),
            over=str(over) if over else "",
        )
    await refuse(parts, caller, name, refusal, judged, kept=refused)
    raise refusal


async def bind_again(parts: Parts, bound: Bound, *, key: str | None = None) -> Bound:
    """The same call, bound and decided again with the caller, rules and connections of now. Raises CallRefused."""
    try:
        caller = parts.directory.again(bound.caller)
    except Frozen as frozen:
        raise Refused(str(frozen)) from None
    if caller is None:
        raise Refused("the agent was removed, or its access ended, while its call was held")
    return await bind(parts, caller, bound.call.name, bound.call.arguments, key=key)


async def _out_of_reach(parts: Parts, caller: Caller, name: str, arguments: Mapping[str, Any]) -> NoSuchTool:
    """A tool that the caller cannot call is refused exactly like one that does not exist; the record says which it was.

    What waits for a person under that name ends. Both take the same steps, so that time does not tell them apart.
    """
    workspace = parts.workspaces.of(caller)
    hidden, text = workspace.offer.find(name), text_of(arguments)
    await parts.approvals.overrule_all(caller.org, caller.agent, "" if hidden is None else name)
    refusal, kept = NoSuchTool(name[:80]), None
    if hidden is not None:
        connection, tool = hidden.connection, hidden.tool
        verdict = decide(
            subject(caller), Request(connection, tool.name, tool.effect, arguments), workspace.rules, workspace.preset
        )
        refusal = NoSuchTool(name[:80], because=f"hidden: {verdict.reason}")
        if caller.narrowing.admits(connection, tool.name, tool.effect.value):
            kept = Decided(connection, tool.name, tool.effect.value, text, verdict.ruling.value, verdict.rules)
        else:
            refusal = NoSuchTool(name[:80], because="hidden: this agent is narrowed to other tools")
    await refuse(parts, caller, name, refusal, kept=kept)
    return refusal
