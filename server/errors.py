"""What can stand between a call and its result. Every message here is written for the model that reads it.

None names a command, a rule's text or a secret: what would change the leash is for people, on other paths.
"""

from dataclasses import dataclass
from typing import Any


class CallRefused(Exception):
    """The call does not run. `reason` is for the record, the message for the model."""

    on_record = False

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class NoSuchTool(CallRefused):
    """The caller has no tool of that name; hidden ones look the same."""

    def __init__(self, name: str, *, because: str = "unknown tool") -> None:
        """`because` is for the record, which may tell hidden from missing; the message never does."""
        super().__init__(f"Unknown tool: {name}", reason=because)


class NotShown(CallRefused):
    """The caller has no tool of the name that it gave to one of the tools for finding; hidden ones look the same."""

    def __init__(self, name: str) -> None:
        shown = "".join(character if character.isprintable() else " " for character in name[:80])
        super().__init__(
            f"Unknown tool: {shown}. Nothing was sent. Search for the one you need.", reason="unknown tool"
        )


class BadArguments(CallRefused):
    """The arguments do not fit the tool; the message says how to mend them."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="invalid arguments")


class Refused(CallRefused):
    """A rule, or the absence of one, forbids the call."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            "Your organisation's rules do not allow this call. Nothing was sent. "
            "Do not try another way to the same end; tell the person you work for.",
            reason=reason,
        )


class Denied(CallRefused):
    """A person decided against exactly this call."""

    def __init__(self, approval: str) -> None:
        super().__init__(
            f"A person decided against this call (approval {approval}). Nothing was sent. "
            "Do not repeat it; ask the person you work for what they would rather have.",
            reason="denied by a person",
        )
        self.approval = approval


class NoLongerValid(CallRefused):
    """An approval that can no longer be used: expired, cancelled, stale, or not this call's."""

    def __init__(self, approval: str, why: str) -> None:
        super().__init__(f"Approval {approval} cannot be used: {why}. Nothing was sent.", reason=f"approval: {why}")
        self.approval = approval


class NotOurState(CallRefused):
    """What should point to an earlier question was not given to this caller, for this call, or not of late."""

    def __init__(self) -> None:
        super().__init__("Invalid or expired requestState", reason="the request state is not one for this call")


class OutcomeUnknown(CallRefused):
    """An approved call was sent and what came of it was not recorded. It is never sent again by itself.

    `happened` is what a person says who has looked; None where nobody has.
    """

    def __init__(self, approval: str, *, happened: bool | None = None) -> None:
        said = {
            None: "may have been sent, and what came of it is not known. It will not be sent again. Look at the "
            "account with a reading tool, and tell the person you work for.",
            True: "was lost on its way, and a person has looked: it was carried out. It is done: do not repeat it.",
            False: "was lost on its way, and a person has looked: it was not carried out, and will not be. If it is "
            "still wanted, make the call anew: a person will be asked again.",
        }
        reason = {None: "outcome unknown", True: "a person says it happened", False: "a person says it did not happen"}
        super().__init__(f"This call (approval {approval}) {said[happened]}", reason=reason[happened])
        self.approval = approval
        self.happened = happened


class ApprovalRequired(CallRefused):
    """The call is held: a person has yet to decide, outside this client."""

    def __init__(self, approval: str, expires_at: str, *, reaches_nobody: bool = False, over: str = "") -> None:
        """`over` says which budget is used up, where the call waits for that."""
        nobody = (
            " As things stand, nobody can decide it: too few people of your organisation may, or can be asked. Tell "
            "the person you work for to let an admin of your organisation know."
        )
        budget = f" It waits, for {over}." if over else ""
        super().__init__(
            f"This call needs a person's approval, and has been put to them outside this conversation (approval "
            f"{approval}, until {expires_at}). Nothing was sent.{nobody if reaches_nobody else ''}{budget} Go on with "
            "other work, or tell the person you work for that you wait; once they have decided, repeat exactly this "
            "call. Do not try another way to the same end.",
            reason="approval required, and nobody can give it" if reaches_nobody else "approval required",
        )
        self.approval = approval
        self.expires_at = expires_at
        self.reaches_nobody = reaches_nobody
        self.over = over


class Busy(CallRefused):
    """The agent has as many calls under way as it may have."""

    def __init__(self, most: int) -> None:
        super().__init__(
            f"{most} calls of this agent are under way already. Nothing was sent. Wait for some of them to end.",
            reason="too many calls at once",
        )


class LimitReached(CallRefused):
    """The operator's account takes no more of this org today, or this month; `limit` is the name of what is reached."""

    def __init__(self, connection: str, limit: str = "calls_per_day") -> None:
        what, _, per = limit.partition("_per_")
        when = "today (days" if per == "day" else "this month (months"
        used_up = f"as many {what} as it may use {when} begin at 00:00 UTC) are used"
        super().__init__(
            f"{connection} uses an account that is provided for your organisation, and {used_up}, so no more calls "
            f"may be made with it {when.partition(' (')[0]}. Nothing was sent. Go on without it, or tell the person "
            "you work for: with an account of your organisation's own there is no such limit.",
            reason=f"the operator's limit of {what} a {per} is reached",
        )
        self.limit = limit


class AtLimit(CallRefused):
    """The connection takes no more calls just now, and this one has waited as long as a call waits."""

    def __init__(self, connection: str, why: str, retry_after: int) -> None:
        super().__init__(
            f"{connection} takes no more calls just now: {why}. Nothing was sent. Make the call again in {retry_after} "
            "s, and fewer at once.",
            reason=f"at its limit: {why}",
        )
        self.retry_after = retry_after


class Unrecorded(CallRefused):
    """The record could not be written, so nothing was sent, or the result is withheld."""

    def __init__(self, *, sent: bool) -> None:
        self.sent = sent
        super().__init__(
            "The call may have been carried out, but its outcome could not be recorded, so its result is withheld. "
            "Tell the person you work for; do not repeat the call."
            if sent
            else "The call could not be recorded, so nothing was sent. Try again later.",
            reason="not recorded",
        )


class VaultSealed(CallRefused):
    """The server has no root key, so no credential can be opened."""

    def __init__(self, why: str) -> None:
        super().__init__(f"Keyleash is sealed: {why} Nothing was sent.", reason="sealed")


class KeysAway(CallRefused):
    """The service that keeps the root key does not give the org's keys, so no credential can be opened."""

    def __init__(self) -> None:
        super().__init__(
            "Your organisation's keys cannot be had just now, so nothing can be opened, and nothing was sent. "
            "Try again in a minute; if it goes on, tell the person you work for.",
            reason="keys unavailable",
        )


class ConsentNeeded(CallRefused):
    """The account's provider takes its tokens no more: a person has to consent again, outside this client."""

    def __init__(self, connection: str) -> None:
        super().__init__(
            f"The account behind {connection} has to be signed in to again: its provider no longer accepts what was "
            f"agreed. Nothing was sent. Tell the person you work for that an admin has to connect {connection} anew; "
            "until then none of its tools can work.",
            reason="needs consent",
        )


class DefinitionHeld(CallRefused):
    """The tool is not what a person has reviewed any more: its own server says something else of it."""

    def __init__(self, tool: str) -> None:
        super().__init__(
            f"{tool} is held: the server behind it has changed what it says this tool does, or offers it no longer, "
            "and no admin has looked at that yet. Nothing was sent. Tell the person you work for; until an admin has "
            "looked, it cannot be called.",
            reason="definition held",
        )


class KeyRefused(CallRefused):
    """The account's provider takes no more what its private key signs: an admin has to give another, elsewhere."""

    def __init__(self, connection: str) -> None:
        super().__init__(
            f"The key of {connection} is no longer accepted by its provider. Nothing was sent. Tell the person you "
            f"work for that an admin has to give {connection} a new one; until then none of its tools can work.",
            reason="credential rejected: it needs a new key",
        )


class NotRenewed(CallRefused):
    """The account's token has ended and a new one cannot be had just now."""

    def __init__(self, connection: str, why: str) -> None:
        super().__init__(
            f"The access of {connection} has run out and could not be renewed just now. Nothing was sent. Try again "
            "in a minute; if it goes on, tell the person you work for.",
            reason=f"token not renewed: {why}",
        )


@dataclass(frozen=True)
class Question:
    """What a person is asked: `choices` maps each answer to what it means."""

    approval: str
    text: str
    choices: dict[str, str]


class AskFirst(Exception):
    """Not a failure: the client must put the question to its person and repeat the call with the answer."""

    def __init__(self, question: Question) -> None:
        super().__init__("a person must be asked first")
        self.question = question


def structured(error: CallRefused) -> dict[str, Any] | None:
    """What a client may read by program from a refusal: the approval's id, status and expiry, where there is one."""
    if isinstance(error, ApprovalRequired):
        more = {"nobody_can_decide": True} if error.reaches_nobody else {}
        more |= {"over_budget": True} if error.over else {}
        return {"approval": {"id": error.approval, "status": "pending", "expires_at": error.expires_at, **more}}
    if isinstance(error, AtLimit):
        return {"retry_after": error.retry_after}
    if isinstance(error, Denied):
        return {"approval": {"id": error.approval, "status": "denied"}}
    if isinstance(error, OutcomeUnknown):
        status = {None: "unknown", True: "happened", False: "did not happen"}[error.happened]
        return {"approval": {"id": error.approval, "status": status}}
    if isinstance(error, NoLongerValid):
        return {"approval": {"id": error.approval, "status": "invalid"}}
    return None
