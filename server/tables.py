"""Every table of the server, keyed by org; imported by migrations, tests and nothing that serves calls.

Times are integer milliseconds since the epoch. JSON stands in TEXT columns. The vault declares its own tables.
"""

from typing import Any, ClassVar

from sqlalchemy import BigInteger, Column, Index, LargeBinary, UniqueConstraint, text
from sqlmodel import Field, SQLModel


def _ms(*, nullable: bool = False) -> Column[int]:
    return Column(BigInteger, nullable=nullable)


class Org(SQLModel, table=True):
    """A tenant. `revision` moves with every change of its connections, rules or preset."""

    __tablename__: ClassVar[Any] = "org"
    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    preset: str
    revision: int
    frozen_at: int | None = Field(default=None, sa_column=_ms(nullable=True))
    created_at: int = Field(sa_column=_ms())


class RemovedOrg(SQLModel, table=True):
    """A tenant that was removed. Only its audit log is left, which still verifies."""

    __tablename__: ClassVar[Any] = "removed_org"
    id: str = Field(primary_key=True)
    name: str
    removed_at: int = Field(sa_column=_ms())
    removed_by: str


class Erasure(SQLModel, table=True):
    """Something sealed that was removed from its table and may still stand in the files; tried until it does not."""

    __tablename__: ClassVar[Any] = "erasure"
    org: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    what: str
    requested_at: int = Field(sa_column=_ms())


class Member(SQLModel, table=True):
    """A person in an org. `os_user` is how the command line knows them."""

    __tablename__: ClassVar[Any] = "member"
    __table_args__ = (UniqueConstraint("org", "name"), UniqueConstraint("org", "os_user"))
    org: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    name: str
    os_user: str | None
    roles: str
    groups: str
    created_at: int = Field(sa_column=_ms())


class Agent(SQLModel, table=True):
    """An MCP client's identity. Its token is kept as a hash; `member` is empty for a standalone agent.

    `used_at` is its last use, to within a minute; over which transport, from which address, by which client.
    """

    __tablename__: ClassVar[Any] = "agent"
    __table_args__ = (UniqueConstraint("org", "name"), UniqueConstraint("org", "token_hash"))
    org: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    name: str
    member: str | None
    token_hash: str
    narrowing: str
    expires_at: int | None = Field(default=None, sa_column=_ms(nullable=True))
    created_by: str
    created_at: int = Field(sa_column=_ms())
    used_at: int | None = Field(default=None, sa_column=_ms(nullable=True))
    used_over: str | None
    used_from: str | None
    used_client: str | None


class Connection(SQLModel, table=True):
    """An org's connected account. `base_url`, `private` and `scheme` are bound to the sealed credential.

    `source` is `vault`, or the scheme of the reference that is sealed in the credential's place (`env`, `file`, …).
    """

    __tablename__: ClassVar[Any] = "connection"
    __table_args__ = (UniqueConstraint("org", "name"),)
    org: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    name: str
    connector: str
    ownership: str
    base_url: str
    private: str
    kind: str
    scheme: str
    credential_version: int
    account: str | None
    verified_at: int | None = Field(default=None, sa_column=_ms(nullable=True))
    created_by: str
    created_at: int = Field(sa_column=_ms())
    source: str = Field(default="vault", sa_column_kwargs={"server_default": "vault"})
    needs_consent_at: int | None = Field(default=None, sa_column=_ms(nullable=True))


def _counter() -> Column[int]:
    return Column(BigInteger, nullable=False, server_default="0")


class ManagedOffer(SQLModel, table=True):
    """A connection to an account of the operator's that an org may use, on the operator's terms.

    Its credential is sealed under the org's key, for this id. Where the org uses it, a row of `connection` has the same
    id, and says nothing that counts but that. It uses none from `set_aside_at` on. `used_day` is in days since the
    epoch, `used_month` in months since the year 0; `used_tokens` are of that day.
    """

    __tablename__: ClassVar[Any] = "managed_offer"
    __table_args__ = (UniqueConstraint("org", "name"),)
    org: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    name: str
    connector: str
    base_url: str
    private: str
    kind: str
    scheme: str
    credential_version: int
    account: str
    source: str
    own_project: bool
    calls_per_day: int | None = Field(default=None, sa_column=_ms(nullable=True))
    verified_at: int | None = Field(default=None, sa_column=_ms(nullable=True))
    offered_by: str
    offered_at: int = Field(sa_column=_ms())
    set_aside_at: int | None = Field(default=None, sa_column=_ms(nullable=True))
    used_day: int = Field(sa_column=_ms())
    used_calls: int = Field(sa_column=_ms())
    tokens_per_day: int | None = Field(default=None, sa_column=_ms(nullable=True))
    tokens_per_month: int | None = Field(default=None, sa_column=_ms(nullable=True))
    used_tokens: int = Field(sa_column=_counter())
    used_month: int = Field(sa_column=_counter())
    used_month_tokens: int = Field(sa_column=_counter())


class OAuthToken(SQLModel, table=True):
    """What is known of a connection's tokens without opening them; the tokens are its sealed credential.

    `generation` grows with every pair that is stored. `lease` is whoever renews them now, until `lease_until`.
    """

    __tablename__: ClassVar[Any] = "oauth_token"
    org: str = Field(primary_key=True)
    connection: str = Field(primary_key=True)
    app: str
    asked: str
    scopes: str
    renewable: bool
    rotates: bool
    generation: int
    obtained_at: int = Field(sa_column=_ms())
    expires_at: int | None = Field(default=None, sa_column=_ms(nullable=True))
    due_at: int | None = Field(default=None, sa_column=_ms(nullable=True))
    lease: str | None
    lease_until: int | None = Field(default=None, sa_column=_ms(nullable=True))
    failures: int
    retry_at: int | None = Field(default=None, sa_column=_ms(nullable=True))


class OAuthRevocation(SQLModel, table=True):
    """Tokens of a removed connection that their provider has not ended yet; its credential stays until it has."""

    __tablename__: ClassVar[Any] = "oauth_revocation"
    org: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    name: str
    connector: str
    base_url: str
    private: str
    kind: str
    scheme: str
    credential_version: int
    app: str
    attempts: int
    reason: str
    requested_by: str
    requested_at: int = Field(sa_column=_ms())
    next_at: int = Field(sa_column=_ms())


class HeldDefinition(SQLModel, table=True):
    """A tool of a wrapped server whose definition is not the pinned one; `found` is empty where it is gone."""

    __tablename__: ClassVar[Any] = "held_definition"
    org: str = Field(primary_key=True)
    connection: str = Field(primary_key=True)
    tool: str = Field(primary_key=True)
    pinned: str
    found: str
    definition: str
    found_at: int = Field(sa_column=_ms())


class DefinitionLook(SQLModel, table=True):
    """When a server last began to look by itself at what a connection's wrapped server says."""

    __tablename__: ClassVar[Any] = "definition_look"
    org: str = Field(primary_key=True)
    connection: str = Field(primary_key=True)
    looked_at: int = Field(sa_column=_ms())


class Rule(SQLModel, table=True):
    """One rule of an org, as policy.dump_rule writes it."""

    __tablename__: ClassVar[Any] = "rule"
    org: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    body: str
    created_by: str
    created_at: int = Field(sa_column=_ms())


class RuleVersion(SQLModel, table=True):
    """An org's whole set of rules and its preset, as it was from one change to the next."""

    __tablename__: ClassVar[Any] = "rule_version"
    org: str = Field(primary_key=True)
    version: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    body: str
    hash: str
    change: str
    made_by: str
    made_at: int = Field(sa_column=_ms())


class RecordedCall(SQLModel, table=True):
    """A call that was decided, kept for replay: who called as rules saw them, and its arguments, sealed.

    The id begins with the time. Without `sealed_arguments` they were too long to keep.
    """

    __tablename__: ClassVar[Any] = "recorded_call"
    org: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    at: int = Field(sa_column=_ms())
    agent: str
    agent_name: str
    member: str | None
    roles: str
    groups: str
    connection: str
    tool: str
    effect: str
    ruling: str
    rules: str
    sealed_arguments: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))


class Approval(SQLModel, table=True):
    """One held call: the record that decides. Call, prompt and outcome are sealed, and emptied when they are old.

    `work` is the grant that a record about work prepared ahead decides on; such a record is of no agent.
    """

    __tablename__: ClassVar[Any] = "approval"
    __table_args__ = (
        Index("approval_call", "org", "agent", "call_hash"),
        Index("approval_state", "org", "state"),
        Index("approval_opened", "org", "created_at"),
        Index(
            "approval_one_pending",
            "org",
            "agent",
            "call_hash",
            unique=True,
            sqlite_where=text("state = 'pending'"),
            postgresql_where=text("state = 'pending'"),
        ),
    )
    org: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    state: str
    agent: str
    agent_name: str
    member: str | None
    connection: str
    credential_version: int
    tool: str
    definition: str
    effect: str
    call_hash: str
    sealed_call: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    sealed_prompt: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    sealed_outcome: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    ruling: str
    needed: int
    approvers: str
    second_person: bool
    rules: str
    decisions: str
    whole: bool
    declined_at: int | None = Field(default=None, sa_column=_ms(nullable=True))
    created_at: int = Field(sa_column=_ms())
    expires_at: int = Field(sa_column=_ms())
    changed_at: int = Field(sa_column=_ms())
    resolution: str | None = None
    resent_at: int | None = Field(default=None, sa_column=_ms(nullable=True))
    work: str | None = None


class Grant(SQLModel, table=True):
    """A decision that covers more than one call, within the bounds that its prompt stated."""

    __tablename__: ClassVar[Any] = "call_grant"
    __table_args__ = (Index("grant_call", "org", "agent", "tool"),)
    org: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    agent: str
    agent_name: str
    connection: str
    credential_version: int
    tool: str
    definition: str
    ruling: str
    bounds_hash: str
    sealed_bounds: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    uses: int
    uses_left: int
    approval: str
    decided_by: str
    channel: str
    created_at: int = Field(sa_column=_ms())
    expires_at: int = Field(sa_column=_ms())
    revoked_at: int | None = Field(default=None, sa_column=_ms(nullable=True))


class Work(SQLModel, table=True):
    """Approved work: a grant made ahead, for several tools, that its `approval` decides on. It runs from `started_at`.

    `runner` is whose calls it covers: `agent:ID`, `member:ID` or `group:NAME`.
    """

    __tablename__: ClassVar[Any] = "work"
    org: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    name: str
    approval: str
    runner: str
    sealed_bounds: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    uses: int
    uses_left: int
    created_by: str
    requester: str
    created_at: int = Field(sa_column=_ms())
    expires_at: int = Field(sa_column=_ms())
    started_at: int | None = Field(default=None, sa_column=_ms(nullable=True))
    revoked_at: int | None = Field(default=None, sa_column=_ms(nullable=True))


class WorkTool(SQLModel, table=True):
    """A tool that approved work covers, as it was when the work was decided on."""

    __tablename__: ClassVar[Any] = "work_tool"
    __table_args__ = (Index("work_by_tool", "org", "tool"),)
    org: str = Field(primary_key=True)
    work: str = Field(primary_key=True)
    tool: str = Field(primary_key=True)
    connection: str
    credential_version: int
    definition: str


class LostCall(SQLModel, table=True):
    """A call that needed no approval of its own, may have changed something, and of which nobody knows what became.

    One that runs under a grant stands here from its attempt on, `under_way` until its outcome is known or it is lost.
    """

    __tablename__: ClassVar[Any] = "lost_call"
    __table_args__ = (Index("lost_call_by_hash", "org", "agent", "call_hash"),)
    org: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    attempt: int = Field(sa_column=Column(BigInteger, nullable=False))
    agent: str
    agent_name: str
    connection: str
    tool: str
    effect: str
    call_grant: str | None
    call_hash: str | None = None
    under_way: bool
    at: int = Field(sa_column=_ms())
    resolution: str | None = None


class LogMark(SQLModel, table=True):
    """How far an org's log has been looked through: every attempt up to `seq` has its end on record."""

    __tablename__: ClassVar[Any] = "log_mark"
    org: str = Field(primary_key=True)
    seq: int = Field(sa_column=Column(BigInteger, nullable=False))


class Channel(SQLModel, table=True):
    """A place that is told of held calls: a webhook. Its URL and signing secret are sealed like a credential.

    `address` is what may be shown of the URL. `private` is bound to the seal; `resume_at` is when the receiver wants
    to hear the next thing at the earliest.
    """

    __tablename__: ClassVar[Any] = "channel"
    __table_args__ = (UniqueConstraint("org", "name"),)
    org: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    name: str
    kind: str
    address: str
    private: str
    events: str
    rulings: str
    secret_version: int
    created_by: str
    created_at: int = Field(sa_column=_ms())
    disabled_at: int | None = Field(default=None, sa_column=_ms(nullable=True))
    disabled_why: str | None
    resume_at: int = Field(sa_column=_ms())
    delivered_at: int | None = Field(default=None, sa_column=_ms(nullable=True))
    failed_at: int | None = Field(default=None, sa_column=_ms(nullable=True))
    failure: str | None
    given_up: int
    given_up_at: int | None = Field(default=None, sa_column=_ms(nullable=True))


class Notice(SQLModel, table=True):
    """Something that a channel has still to be told: facts, and no secret among them. `lease` is whose turn it is.

    What needs an approver, or a look, has `turn` 0 and goes before the rest, which has 1.
    """

    __tablename__: ClassVar[Any] = "notice"
    __table_args__ = (Index("notice_channel", "org", "channel", "due_at"),)
    org: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    channel: str
    facts: str
    created_at: int = Field(sa_column=_ms())
    due_at: int = Field(sa_column=_ms())
    turn: int
    tries: int
    lease: str | None
    leased_until: int = Field(sa_column=_ms())


class AuditEntry(SQLModel, table=True):
    """The append-only record, chained per org. Triggers refuse UPDATE, and DELETE of what no stub stands for."""

    __tablename__: ClassVar[Any] = "audit_entry"
    org: str = Field(primary_key=True)
    seq: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    at: int = Field(sa_column=_ms())
    event: str
    body: str
    previous: str
    hash: str
    agent: str | None
    connection: str | None
    tool: str | None
    outcome: str | None


class AuditKey(SQLModel, table=True):
    """The public key (in hex) that an org's log is signed with, and the log's name; it stays when the org is removed.

    `last` is the checkpoint that was made as the org was removed, with its last key.
    """

    __tablename__: ClassVar[Any] = "audit_key"
    org: str = Field(primary_key=True)
    origin: str
    public: str
    made_at: int = Field(sa_column=_ms())
    last: str | None


class AuditStub(SQLModel, table=True):
    """What stands in the place of pruned entries, the last of them being `seq`: a signed note. Never changed."""

    __tablename__: ClassVar[Any] = "audit_stub"
    org: str = Field(primary_key=True)
    seq: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    note: str


class UsageDay(SQLModel, table=True):
    """What the calls of one day (UTC) came to, of one agent, member, connection, account and tool: see `usage.py`.

    `line` is a hash of what is named besides; the names stay when what they name is gone.
    """

    __tablename__: ClassVar[Any] = "usage_day"
    org: str = Field(primary_key=True)
    day: str = Field(primary_key=True)
    line: str = Field(primary_key=True)
    agent_id: str
    agent: str
    member_id: str
    member: str
    connection: str
    account: str
    ownership: str
    tool: str
    calls: int = Field(sa_column=_counter())
    approved: int = Field(sa_column=_counter())
    refused: int = Field(sa_column=_counter())
    held: int = Field(sa_column=_counter())
    succeeded: int = Field(sa_column=_counter())
    failed: int = Field(sa_column=_counter())
    milliseconds: int = Field(sa_column=_counter())
    bytes: int = Field(sa_column=_counter())
    reported: int = Field(sa_column=_counter())
    unreported: int = Field(sa_column=_counter())
    tokens_in: int = Field(sa_column=_counter())
    tokens_out: int = Field(sa_column=_counter())
    tokens_cached: int = Field(sa_column=_counter())


class UsageCost(SQLModel, table=True):
    """What providers said that a row of `usage_day` cost, in billionths of a unit."""

    __tablename__: ClassVar[Any] = "usage_cost"
    org: str = Field(primary_key=True)
    day: str = Field(primary_key=True)
    line: str = Field(primary_key=True)
    unit: str = Field(primary_key=True)
    billionths: int = Field(sa_column=_counter())


class UsageQuota(SQLModel, table=True):
    """How much was left of a provider's quota when it last said so."""

    __tablename__: ClassVar[Any] = "usage_quota"
    org: str = Field(primary_key=True)
    connection: str = Field(primary_key=True)
    account: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    remaining: int = Field(sa_column=Column(BigInteger, nullable=False))
    at: int = Field(sa_column=_ms())


class Budget(SQLModel, table=True):
    """How much may be used in a window before further calls wait for a person, and how much was.

    `agent` and `connection` are names, empty for all. `used` is since `window_at`; `told` is how far people were told.
    """

    __tablename__: ClassVar[Any] = "budget"
    org: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    agent: str
    connection: str
    measure: str
    unit: str
    per: str
    most: int = Field(sa_column=Column(BigInteger, nullable=False))
    warn: int
    window_at: int = Field(sa_column=_ms())
    used: int = Field(sa_column=Column(BigInteger, nullable=False))
    told: int
    created_by: str
    created_at: int = Field(sa_column=_ms())


class ConnectionLimit(SQLModel, table=True):
    """What an admin says that a connection (its name) takes: calls at once, and in a minute; None: as its file says."""

    __tablename__: ClassVar[Any] = "connection_limit"
    org: str = Field(primary_key=True)
    connection: str = Field(primary_key=True)
    concurrent: int | None
    per_minute: int | None


class ConnectionPace(SQLModel, table=True):
    """How many calls of a connection (its name) were begun in the minute that began at `window_at`."""

    __tablename__: ClassVar[Any] = "connection_pace"
    org: str = Field(primary_key=True)
    connection: str = Field(primary_key=True)
    window_at: int = Field(sa_column=_ms())
    used: int = Field(sa_column=Column(BigInteger, nullable=False))
