"""What each event means, on one page: `keyleash audit events` shows it, and a test holds it to the enumeration.

Beside the meaning stands what kind of activity it is, for formats that want to know: 1 create, 2 read, 3 update,
4 delete, 99 other (the ids of OCSF); what a call is depends on its effect.
"""

from typing import NamedTuple

from server.audit.entry import Event

CREATE, READ, UPDATE, DELETE, OTHER = 1, 2, 3, 4, 99
BY_EFFECT = 0
"""A call: its tool's effect says what kind of activity it is."""


class Meaning(NamedTuple):
    """One line in words, and the kind of activity."""

    text: str
    activity: int


MEANINGS: dict[Event, Meaning] = {
    Event.CALL_ATTEMPT: Meaning("A call is about to be sent; nothing was opened or sent yet", BY_EFFECT),
    Event.CALL_OUTCOME: Meaning("What came of an attempt, written down before the agent heard", BY_EFFECT),
    Event.CALL_REFUSED: Meaning("A call was refused; nothing was sent", BY_EFFECT),
    Event.CALL_HELD: Meaning("A call waits for a person; nothing was sent", BY_EFFECT),
    Event.CALL_UNKNOWN: Meaning("An attempt whose process was gone before its outcome", BY_EFFECT),
    Event.CALL_REPLAYED: Meaning("The stored outcome of an approved call was told again; nothing was sent", BY_EFFECT),
    Event.APPROVAL_OPENED: Meaning("Somebody is asked to agree to a call, or to work prepared ahead", CREATE),
    Event.APPROVAL_DECIDED: Meaning("A person approved or denied", UPDATE),
    Event.APPROVAL_DECLINED_IN_CLIENT: Meaning("The client's form was closed without an answer", UPDATE),
    Event.APPROVAL_EXPIRED: Meaning("Nobody decided in time", UPDATE),
    Event.APPROVAL_CANCELLED: Meaning("A held call was ended before anybody decided", UPDATE),
    Event.APPROVAL_STALE: Meaning("What was approved is not what would be sent now", UPDATE),
    Event.APPROVAL_UNKNOWN: Meaning("An approved call was carried out or not: its process died in between", UPDATE),
    Event.APPROVAL_RESOLVED: Meaning("A person said what became of an unknown outcome", UPDATE),
    Event.APPROVALS_EMPTIED: Meaning("What was sealed of old approvals is gone; who decided what stays", DELETE),
    Event.GRANT_CREATED: Meaning("One decision covers more than one call from now on", CREATE),
    Event.GRANT_REVOKED: Meaning("A grant was ended", DELETE),
    Event.GRANT_EXPIRED: Meaning("A grant ran out", UPDATE),
    Event.ORG_CREATED: Meaning("An organisation was created", CREATE),
    Event.ORG_REMOVED: Meaning("An organisation was removed, and its key destroyed", DELETE),
    Event.ORG_FROZEN: Meaning("All agents of the organisation were stopped", UPDATE),
    Event.ORG_UNFROZEN: Meaning("The agents may go on", UPDATE),
    Event.MEMBER_CREATED: Meaning("A member was created", CREATE),
    Event.MEMBER_CHANGED: Meaning("A member's roles, groups or system user were changed", UPDATE),
    Event.MEMBER_REMOVED: Meaning("A member was removed", DELETE),
    Event.AGENT_CREATED: Meaning("An agent was created", CREATE),
    Event.AGENT_CHANGED: Meaning("An agent was narrowed, or how long it may go on was changed", UPDATE),
    Event.AGENT_ROTATED: Meaning("An agent was given a new token", UPDATE),
    Event.AGENT_REMOVED: Meaning("An agent was removed", DELETE),
    Event.AGENT_TURNED_AWAY: Meaning("A valid token was used from where its agent may not call", OTHER),
    Event.CONNECTION_CREATED: Meaning("An account was connected", CREATE),
    Event.CONNECTION_CHANGED: Meaning("A connection's settings were changed", UPDATE),
    Event.CONNECTION_ROTATED: Meaning("A connection was given a new secret", UPDATE),
    Event.CONNECTION_TESTED: Meaning("A connection's credential was tried with its provider", READ),
    Event.CONNECTION_REMOVED: Meaning("A connection was removed, and its secret erased", DELETE),
    Event.CONNECTION_RENEWED: Meaning("A connection's OAuth tokens were renewed, or why not", UPDATE),
    Event.CONNECTION_NEEDS_CONSENT: Meaning(
        "The provider ended a connection's tokens: a person has to consent", UPDATE
    ),
    Event.CONNECTION_REVOKED: Meaning("Whether the provider ended the tokens of a removed connection", DELETE),
    Event.MANAGED_OFFERED: Meaning("The operator offered an account of theirs, on the terms that are named", CREATE),
    Event.MANAGED_CHANGED: Meaning("The terms of a managed account were changed", UPDATE),
    Event.MANAGED_WITHDRAWN: Meaning("A managed account is offered no longer", DELETE),
    Event.MANAGED_SET_ASIDE: Meaning("The organisation does without a managed account, which stays on offer", UPDATE),
    Event.MANAGED_TAKEN_UP: Meaning("The organisation uses a managed account again", UPDATE),
    Event.TOOL_HELD: Meaning("What a wrapped server says of a tool is not what was reviewed", UPDATE),
    Event.TOOL_REVIEWED: Meaning("Somebody saw how a wrapped server's tool changed, and took it so", UPDATE),
    Event.TOOL_RETURNED: Meaning("A wrapped server's tool is held no longer", UPDATE),
    Event.CONNECTOR_TEST_BEGUN: Meaning("A connector's reads are about to be tried with an account", READ),
    Event.CONNECTOR_TESTED: Meaning("What came of trying a connector's reads", READ),
    Event.CHANNEL_CREATED: Meaning("A channel that tells people was added", CREATE),
    Event.CHANNEL_ROTATED: Meaning("A channel was given a new signing secret or address", UPDATE),
    Event.CHANNEL_TESTED: Meaning("A test message was sent to a channel", READ),
    Event.CHANNEL_DISABLED: Meaning("A channel's receiver said that it is gone for good", UPDATE),
    Event.CHANNEL_REMOVED: Meaning("A channel was removed", DELETE),
    Event.CHANNEL_GAVE_UP: Meaning("A notice could not be delivered within a day", OTHER),
    Event.BUDGET_CREATED: Meaning("A budget was set", CREATE),
    Event.BUDGET_CHANGED: Meaning("A budget was changed", UPDATE),
    Event.BUDGET_REMOVED: Meaning("A budget was removed", DELETE),
    Event.BUDGET_WARNED: Meaning("So much of a budget was used as people wanted to be told at", OTHER),
    Event.BUDGET_REACHED: Meaning("A budget is used up: calls wait for a person until its window ends", OTHER),
    Event.RULE_ADDED: Meaning("A rule was added", CREATE),
    Event.RULE_REMOVED: Meaning("A rule was removed", DELETE),
    Event.PRESET_CHANGED: Meaning("Another preset is asked where no rule matches", UPDATE),
    Event.RULES_APPLIED: Meaning("All rules were replaced by a file's, or by those of an earlier version", UPDATE),
    Event.RULES_REPLAYED: Meaning("Draft rules were tried on recorded calls; nothing was called", READ),
    Event.VAULT_OPENED: Meaning("The vault was opened", OTHER),
    Event.VAULT_SEALED: Meaning("The vault was sealed", OTHER),
    Event.VAULT_ROOT_ROTATED: Meaning("The keys of organisations were wrapped by another root key", UPDATE),
    Event.VAULT_ROOT_DROPPED: Meaning("A root key that nothing was under was destroyed", DELETE),
    Event.VAULT_ORG_ROTATED: Meaning("The organisation was given a new key", UPDATE),
    Event.VAULT_BACKED_UP: Meaning("A backup was made", READ),
    Event.VAULT_RESTORED: Meaning("A backup was put back", UPDATE),
    Event.VAULT_ROLLBACK_ACCEPTED: Meaning("An older database was put back by hand, and is to be used", UPDATE),
    Event.VAULT_ROOT_EXPORTED: Meaning("The root key was written into a file under a passphrase", READ),
    Event.VAULT_ROOT_RECOVERED: Meaning("The root key was taken from such a file", UPDATE),
    Event.ERASURE_COMPLETED: Meaning("What was removed before is gone from the database's files as well", DELETE),
    Event.AUDIT_LISTED: Meaning("Somebody read entries of this log", READ),
    Event.AUDIT_EXPORTED: Meaning("Somebody exported this log", READ),
    Event.AUDIT_STREAMED: Meaning("Somebody began to stream this log", READ),
    Event.AUDIT_HASHED: Meaning("Somebody asked how a value would stand in this log", READ),
    Event.AUDIT_VERIFIED: Meaning("Somebody verified this log", READ),
    Event.AUDIT_KEY_MADE: Meaning("This log has a public key, by which its checkpoints are signed", CREATE),
    Event.AUDIT_CHECKPOINTED: Meaning("Somebody asked for a checkpoint of this log", READ),
    Event.AUDIT_CHECKPOINT_REFUSED: Meaning("This log is not the one that was signed before", OTHER),
    Event.AUDIT_PRUNED: Meaning("The oldest entries of this log were removed", DELETE),
    Event.INSTALLATION_CREATED: Meaning("Keyleash was set up", CREATE),
    Event.INSTALLATION_UPGRADED: Meaning("The database was brought to a newer release's schema", UPDATE),
    Event.DATABASE_MOVED: Meaning("Everything is about to be carried to another database, or that failed", UPDATE),
}
