"""`keyleash approvals …`: held calls, and the person who decides them outside the client."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, AsMember, Desk, OrgName, Yes, at_desk
from server.cli.output import moment, say, show_fields, show_json, show_table, show_text
from server.cli.terminal import NotSure, ask_yes

if TYPE_CHECKING:
    from server.approval import Approval, Decision, State

app = typer.Typer(no_args_is_help=True, help="Calls that wait for a person.")

Id = Annotated[str, typer.Argument(metavar="ID")]
ForHour = Annotated[
    bool,
    typer.Option(
        "--for-hour", help="Also let the agent repeat this for an hour, within the bounds that `approvals show` states."
    ),
]
UNATTENDED = "`--yes` decides without asking, and is recorded as unattended."


@app.command("list")
def list_approvals(
    every: Annotated[bool, typer.Option("--all", help="Decided and expired ones too, newest first.")] = False,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """List what waits for a decision, and the calls of which nobody knows what became of them."""
    with at_desk(org, as_member, "look around") as desk:
        records = _records(desk, every=every)
        shown = [_as_json(desk, record) for record in records]
        listed = {record.id for record in records}
        shown += [one for one in lost_calls(desk) if one["id"] not in listed]
    if json:
        show_json(shown)
        return
    show_table(
        ("ID", "STATUS", "WHAT", "EFFECT", "AGENT", "UNTIL"),
        (
            (
                one["id"],
                _in_words(one),
                one["summary"] or one["tool"],
                one["effect"],
                one["agent"],
                moment(one["expires_at"]),
            )
            for one in shown
        ),
        empty="There are no approvals." if every else "Nothing waits for a decision.",
        prose=("WHAT",),
        under=("AGENT", "WHAT"),
    )
    if any(one["status"] == "unknown" and one["resolution"] is None for one in shown):
        say(LOOK)


@app.command("show")
def show_approval(approval: Id, org: OrgName = None, as_member: AsMember = None, json: AsJson = False) -> None:
    """Show one held call whole, as the person who decides sees it."""
    with at_desk(org, as_member, "look around") as desk:
        record = _find(desk, approval)
        text = whole_prompt(desk, record)
        if json:
            details = desk.installation.approvals.details(record)
            shown = {**_as_json(desk, record), "arguments": details.get("arguments"), "prompt": text or None}
            show_json({**shown, "decisions": list(record.decisions), "rules": list(record.rules)})
            return
        show_text(text or NOT_KEPT)
        show_fields(
            {
                "id": record.id,
                "status": _status(record),
                "needs": _needs(record),
                "decided": [f"{made['decision']} by {made['by'] or 'nobody known'}" for made in record.decisions]
                or None,
                "until": _as_json(desk, record)["expires_at"],
                "looked into": _said(record),
            }
        )


@app.command("approve")
def approve(
    approval: Id, yes: Yes = False, for_hour: ForHour = False, org: OrgName = None, as_member: AsMember = None
) -> None:
    """Let exactly this call run once. Asks on the terminal itself, after showing the whole call."""
    from server.approval import Decision

    _decide(approval, Decision.APPROVE_HOUR if for_hour else Decision.APPROVE, yes=yes, org=org, as_member=as_member)


@app.command("deny")
def deny(approval: Id, yes: Yes = False, org: OrgName = None, as_member: AsMember = None) -> None:
    """Decide against this call, for good."""
    from server.approval import Decision

    _decide(approval, Decision.DENY, yes=yes, org=org, as_member=as_member)


@app.command("watch")
def watch(org: OrgName = None, as_member: AsMember = None) -> None:
    """Wait at the terminal for held calls, and decide each with one key."""
    from server.cli.watching import watch_approvals

    with at_desk(org, as_member, "look around") as desk:
        watch_approvals(desk)


@app.command("resolve")
def resolve(
    approval: Id,
    happened: Annotated[
        bool | None,
        typer.Option("--happened/--did-not", help="What you found in the account: it took effect, or it did not."),
    ] = None,
    note: Annotated[str | None, typer.Option("--note", metavar="TEXT", help="How you know; it goes on record.")] = None,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Say what became of a call of which nobody knows: look into the account first. Nothing is sent by this.

    The agent that makes the call again is told. What did not happen it may ask for anew.
    """
    if happened is None:
        raise typer.BadParameter("Say what you found: --happened or --did-not.")
    if note is not None and (len(note) > 500 or not note.isprintable()):
        raise typer.BadParameter("--note takes one line of at most 500 characters.")
    with at_desk(org, as_member, "look around") as desk:
        _require_visible(desk, approval)
        desk.database.write_now(
            lambda rows: desk.installation.approvals.unknown.resolve(
                rows, desk.org.id, approval, happened=happened, actor=desk.actor, note=note
            )
        )
    if json:
        show_json({"id": approval, "happened": happened, "note": note})
    else:
        show_text(f"On record: {approval} {'happened' if happened else 'did not happen'}.")


def whole_prompt(desk: Desk, record: "Approval") -> str:
    """What the person who decides has to read: the call as it was rendered when it was held."""
    return desk.installation.approvals.prompt(record)


def hour_terms(desk: Desk, record: "Approval") -> str | None:
    """What an answer for an hour would cover, in a sentence; None where the tool offers none."""
    from server.approval import GRANT_USES
    from server.prompt import quote

    details = desk.installation.approvals.details(record)
    if not details.get("keeps"):
        return None
    kept = " and ".join(f"{name} = {quote(details['arguments'].get(name))}" for name in details["keeps"])
    return (
        f"For an hour: this agent may repeat {record.tool} with {kept}, whatever its other arguments, "
        f"up to {GRANT_USES} times."
    )


def settle(desk: Desk, record: "Approval", decision: "Decision", *, unattended: bool) -> "State":
    """Take the person's decision. Raises ApprovalProblem; returns the state that it led to."""
    desk.have_keys_at_hand()
    return desk.database.write_now(
        lambda rows: desk.installation.approvals.decide(rows, record, decision, desk.actor, unattended=unattended)
    )


def pending(desk: Desk) -> "list[Approval]":
    """The calls that wait and that this person may see, oldest first."""
    return _records(desk, every=False)


def in_short(desk: Desk, record: "Approval") -> tuple[str, str, str]:
    """A held call in a list: what, who asks, and until when it waits (UTC)."""
    from server.clock import iso

    what = _summary(desk, record) or record.tool
    return what.replace("\n", " "), record.agent_name, f"{iso(record.expires_at)[11:16]} UTC"


def _decide(approval: str, decision: "Decision", *, yes: bool, org: str | None, as_member: str | None) -> None:
    from server.approval import Decision, State

    with at_desk(org, as_member, "look around") as desk:
        record = _find(desk, approval)
        shown = whole_prompt(desk, record)  # a sealed vault cannot show it, and nobody decides what cannot be shown
        if record.state is State.PENDING and yes:
            say(shown)
        if record.state is State.PENDING and not yes:
            question = "Deny this call?" if decision is Decision.DENY else "Approve this call?"
            terms = hour_terms(desk, record) if decision is Decision.APPROVE_HOUR else None
            text = "\n\n".join(part for part in (shown, terms, question) if part)
            if not ask_yes(text, otherwise=UNATTENDED):
                raise NotSure("Nothing was decided.")
        state = settle(desk, record, decision, unattended=yes)
        missing = still_needed(desk, record.id)
    if state is State.PENDING:
        show_text(f"Noted. {record.id} waits for {missing} more.")
    elif state is State.DENIED:
        show_text(f"Denied {record.id}. Nothing was sent.")
    else:
        show_text(f"Approved {record.id}.")
        say(WORK_RUNS if record.work else RUNS_ONCE)


def _records(desk: Desk, *, every: bool) -> "list[Approval]":
    """What waits, oldest first; with `every`, newest first, what is over too: of others only what they decided on."""
    from server.approval import State

    register, state = desk.installation.approvals, None if every else State.PENDING
    if desk.may("see every approval"):
        return register.list(desk.org.id, state=state)
    waiting = register.list(desk.org.id, state=State.PENDING)
    found = {record.id: record for record in waiting if _may_see(desk, record)}
    if every:
        found |= {record.id: record for record in register.list(desk.org.id, member=desk.actor.member.id)}
    return sorted(found.values(), key=lambda record: (record.created_at, record.id), reverse=every)


def _find(desk: Desk, approval: str) -> "Approval":
    """One record as it is now; one that this person may not see is not found. Raises ApprovalProblem."""
    from server.approval import ApprovalProblem

    record = desk.installation.approvals.find(desk.org.id, approval)
    if record is None or not _may_see(desk, record):
        raise ApprovalProblem(f"There is no approval {approval!r}. `keyleash approvals list --all` shows them.")
    return desk.installation.approvals.aged(record)


def _may_see(desk: Desk, record: "Approval") -> bool:
    """Whose it is, who could decide it by role or by group, who has decided it, and who sees every approval."""
    from server.approval.eligible import eligible
    from server.approval.record import wanted

    own, asked = desk.actor.member.id, wanted(record)
    return (
        record.member == own
        or own in asked.decided
        or desk.may("see every approval")
        or bool(eligible([desk.actor.member], asked))
    )


def _status(record: "Approval") -> str:
    return record.state.value


def _in_words(shown: dict[str, Any]) -> str:
    """The status, with what a person says became of an unknown call."""
    if shown["resolution"] is None:
        return str(shown["status"])
    return f"{shown['status']}, {'happened' if shown['resolution']['happened'] else 'did not happen'}"


def _needs(record: "Approval") -> str:
    from server.approval.eligible import in_words
    from server.policy import Ruling

    if record.ruling is Ruling.CONFIRM:
        return "the member asked for, or an approver, admin or owner"
    people = f"{record.needed} {'person' if record.needed == 1 else 'people'}"
    circle = in_words(record.approvers)
    return f"{people} signed in ({circle}){', a second person' if record.second_person else ''}"


def _as_json(desk: Desk, record: "Approval") -> dict[str, Any]:
    from server.clock import iso

    return {
        "id": record.id,
        "status": _status(record),
        "tool": record.tool,
        "agent": record.agent_name,
        "connection": _connection(desk, record),
        "effect": record.effect,
        "ruling": record.ruling.value,
        "needed": record.needed,
        "decided": len(record.decisions),
        "created_at": iso(record.created_at),
        "expires_at": iso(record.expires_at),
        "summary": _summary(desk, record),
        "resolution": record.resolution and {name: record.resolution[name] for name in _SAID},
        "grant": record.work,
    }


_SAID = ("happened", "by", "known_by", "at", "note")
LOOK = (
    "What became of the unknown ones nobody knows. Look into the account, then: "
    "keyleash approvals resolve ID --happened, or --did-not"
)
WORK_RUNS = "Its calls run from now on, within its bounds, without asking again."
RUNS_ONCE = "It runs once: at once where the agent's call is still held, otherwise when the agent makes it again."
NOT_KEPT = "What was asked is not kept any more: only who decided, and what came of it."


def lost_calls(desk: Desk) -> list[dict[str, Any]]:
    """Calls of which nobody knows what became of them, and into which nobody has looked: approved ones, and others."""
    from server.clock import iso

    unknown, approvals = desk.installation.approvals.unknown, desk.installation.approvals
    found = [approvals.find(desk.org.id, each) for each in unknown.approvals(desk.org.id)]
    shown = [
        _as_json(desk, approvals.aged(record)) for record in found if record is not None and _may_see(desk, record)
    ]
    own = _own_agents(desk)
    for lost in unknown.calls(desk.org.id):
        if lost.agent in own or desk.may("see every approval"):
            shown.append(
                {
                    "id": lost.id,
                    "status": "unknown",
                    "tool": lost.tool,
                    "agent": lost.agent_name,
                    "connection": lost.connection,
                    "effect": lost.effect,
                    "ruling": None,
                    "needed": 0,
                    "decided": 0,
                    "created_at": iso(lost.at),
                    "expires_at": None,
                    "summary": None,
                    "resolution": None,
                    "grant": lost.grant,
                }
            )
    return shown


def _own_agents(desk: Desk) -> set[str]:
    agents = desk.installation.directory.agents(desk.org.id)
    return {agent.id for agent in agents if agent.member == desk.actor.member.id}


def _require_visible(desk: Desk, identifier: str) -> None:
    """Refuse an id of what this person may not see, as if there were none. Raises ApprovalProblem."""
    from server.approval import ApprovalProblem

    if identifier.startswith("apr_"):
        _find(desk, identifier)
    elif not any(one["id"] == identifier for one in lost_calls(desk)):
        raise ApprovalProblem(
            f"There is nothing to look into under {identifier!r}. `keyleash approvals list` shows what there is."
        )


def _said(record: "Approval") -> str | None:
    said = record.resolution
    if said is None:
        return None
    what = "it happened" if said["happened"] else "it did not happen"
    return (
        f"{said['by']} ({said['known_by']}) says at {said['at']}: {what}{'. ' + said['note'] if said['note'] else ''}"
    )


def still_needed(desk: Desk, approval: str) -> int:
    """How many more people have to agree."""
    record = desk.installation.approvals.find(desk.org.id, approval)
    if record is None:
        return 0
    return desk.database.query(lambda rows: desk.installation.approvals.still_needed(rows, record))


def _connection(desk: Desk, record: "Approval") -> str:
    """The connection's name; its id where it has been removed since."""
    found = desk.database.read("SELECT name FROM connection WHERE org = ? AND id = ?", (record.org, record.connection))
    return str(found[0][0]) if found else record.connection


def _summary(desk: Desk, record: "Approval") -> str | None:
    """The connector's one line; None while the vault is sealed, or where the record was altered."""
    from vault import VaultError

    try:
        summary = desk.installation.approvals.details(record).get("summary")
        return None if summary is None else str(summary)
    except VaultError:
        return None
