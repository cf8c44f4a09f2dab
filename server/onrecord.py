"""How a call stands on record: who calls, what exactly, by whose leave; and the entry of a call that did not run."""

import contextlib
import logging
from typing import Any

from server.approval import Clearance
from server.audit import AUDIT_VALUES, AuditError, Event, append, argument_fields
from server.bound import Judged
from server.database import DatabaseProblem, Rows
from server.errors import ApprovalRequired, CallRefused, Denied
from server.identity import Caller, used
from server.parts import Parts
from server.recorded import Decided, keep
from server.usage import turned_down
from vault import VaultError

log = logging.getLogger("keyleash")


async def refused(parts: Parts, caller: Caller, name: str, refusal: CallRefused) -> None:
    """Write down a call that was refused before it came to `call`, unless that is on record already."""
    if not refusal.on_record:
        await refuse(parts, caller, name, refusal)


async def refuse_bound(parts: Parts, judged: Judged, refusal: CallRefused) -> None:
    """The same for a call whose arguments are in form: these are on record too."""
    await refuse(parts, judged.caller, judged.call.name, refusal, judged)


async def refuse(
    parts: Parts,
    caller: Caller,
    name: str,
    refusal: CallRefused,
    judged: Judged | None = None,
    *,
    kept: Decided | None = None,
) -> None:
    """Write down that a call did not run. A refusal that cannot be written stays a refusal."""
    refusal.on_record = True
    held = isinstance(refusal, ApprovalRequired)
    approval = getattr(refusal, "approval", None)
    known: dict[str, Any] = {"tool": name[:200]} if judged is None else what(judged)
    if judged is None and kept is not None:  # hidden from the agent: its arguments were looked at by nobody
        known |= {"connection": kept.connection, "effect": kept.effect}
        known |= {"verdict": kept.ruling, "rules": list(kept.rules)}
    said = {**who(caller), **known}

    def change(rows: Rows) -> None:
        hashes: dict[str, Any] = {}
        if judged is not None:
            with contextlib.suppress(VaultError):  # without its keys the refusal is on record all the same
                hashes = hashed(parts, rows, judged)
        entry = append(
            rows,
            caller.org,
            Event.CALL_HELD if held else Event.CALL_REFUSED,
            **said,
            **hashes,
            approval=approval,
            reason=refusal.reason,
            outcome="held" if held else "denied" if isinstance(refusal, Denied) else "refused",
        )
        if kept is not None:
            with contextlib.suppress(VaultError):  # without its arguments' seal it is on record all the same
                keep(rows, parts.vault, caller, kept)
        turned_down(rows, caller.org, entry.at, said, held=held)
        used(rows, caller)

    try:
        await parts.database.of(caller.org).write(change)
    except (DatabaseProblem, AuditError) as error:
        log.error("a refusal could not be recorded: %s", error)


def who(caller: Caller) -> dict[str, Any]:
    """Who calls, and from where."""
    return {
        "agent": caller.agent_name,
        "agent_id": caller.agent,
        "member": caller.member_name,
        "member_id": caller.member,
        "client": caller.client or None,
        "client_version": caller.client_version or None,
        "transport": caller.transport or None,
        "address": caller.address,
    }


def what(judged: Judged) -> dict[str, Any]:
    """What is called, by whose account, and what the rules say of it."""
    return {
        "connection": judged.connection.name,
        "account": judged.connection.account,
        "ownership": judged.connection.ownership,
        "credential_version": judged.connection.credential_version,
        "source": judged.connection.source,
        "tool": judged.call.name,
        "definition": judged.call.tool.definition_hash,
        "effect": judged.call.tool.effect.value,
        "verdict": judged.verdict.ruling.value,
        "rules": list(judged.verdict.rules),
    }


def hashed(parts: Parts, rows: Rows, judged: Judged) -> dict[str, Any]:
    """The arguments' names with hashes under the org's key for these. Raises VaultError."""
    key = parts.vault.derive(rows, judged.caller.org, AUDIT_VALUES)
    return argument_fields(key, judged.call.arguments, plain=judged.call.tool.plain)


def by_leave_of(clearance: Clearance) -> dict[str, Any]:
    """Who agreed, to this call or to the grant that covers it."""
    decided_on = clearance.approval or clearance.given
    last = decided_on.decisions[-1] if decided_on is not None and decided_on.decisions else {}
    return {
        "approval": None if clearance.approval is None else clearance.approval.id,
        "grant": clearance.grant,
        "work": clearance.work,
        "approver": last.get("by"),
        "channel": last.get("channel"),
        "known_by": last.get("known_by"),
    }
