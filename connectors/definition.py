"""The shape of a connector file once it has been read: plain frozen data that the rest of the program can trust.

Nothing here reads YAML (`loading.py` does) or builds requests (`request.py` does). A `Call` is a tool with arguments
that have been checked against its schema; `catalogue.py` makes it.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal, Protocol

Kind = Literal["rest", "graphql", "openapi", "mcp"]
Place = Literal["path", "query", "header", "body"]
ListStyle = Literal["repeat", "comma", "brackets"]
Style = Literal[ListStyle, "space", "pipe", "nested", "json"]
"""How a value stands in a query or a form, where it is no plain text: a=1&a=2, a=1,2, a[]=1, a=1%202, a=1%7C2, a[b]=1
and a[0]=1, or as JSON in one text."""
BodyStyle = Literal["json", "form"]
RequestScheme = Literal["bearer", "header", "query", "basic"]
SchemeName = Literal[RequestScheme, "aws_sigv4", "env", "none"]
"""How a credential reaches the upstream: in a request; in the environment of a server that is started; not at all."""
Grant = Literal["code", "client_credentials", "jwt_bearer", "github_app"]
ClientAuth = Literal["basic", "post", "none"]
Revoker = Literal["client", "basic", "token", "nobody"]
TokenName = Literal["refresh_token", "access_token"]


class Effect(StrEnum):
    """What a tool does to the world, from the mildest to the strictest; a tool has one, the strictest that is true."""

    READ = "read"
    METERED = "metered"  # runs up the provider's usage bill and nothing else
    SENSITIVE = "sensitive"  # reads secrets or people's private content
    WRITE = "write"  # reversible
    SEND = "send"  # reaches people or leaves the org
    SPEND = "spend"  # moves money or commits to a purchase
    DESTROY = "destroy"
    GRANT = "grant"  # changes who may do what

    @property
    def strictness(self) -> int:
        """Its place in the order: `READ` is 0."""
        return _ORDER[self]


_ORDER: dict[Effect, int] = {effect: place for place, effect in enumerate(Effect)}

# What a method means where nobody has stated the effect.
DEFAULTS: dict[str, Effect] = {
    "GET": Effect.READ,
    "HEAD": Effect.READ,
    "POST": Effect.WRITE,
    "PUT": Effect.WRITE,
    "PATCH": Effect.WRITE,
    "DELETE": Effect.DESTROY,
}


_EXAMPLE = re.compile(r"(https?://[^/]+)\.invalid((?::[0-9]+)?(?:/.*)?)")  # .invalid exists nowhere: RFC 2606

HOLE = re.compile(r"\{([A-Za-z][A-Za-z0-9_-]*)\}")


class Validator(Protocol):
    """The compiled input schema; `jsonschema_rs` satisfies it."""

    def is_valid(self, instance: Any) -> bool: ...
    def iter_errors(self, instance: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Selector:
    """A compiled JMESPath expression, which finds nothing (None) rather than failing on an unexpected answer."""

    text: str
    find: Callable[[Any], Any] = field(repr=False, compare=False)

    def search(self, value: Any) -> Any:
        return self.find(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One argument of a tool and its place in the request."""

    name: str
    place: Place
    wire_name: str  # the name upstream: `created[gte]`; for a path argument, its hole
    schema: Mapping[str, Any]
    required: bool = False
    steps: tuple[str, ...] = ()
    """In a JSON body, the way to it: `ticket[subject]` is two, a step "0" is a list of one, none is the whole body."""
    slashes: bool = False  # a path argument of several segments: each is checked and encoded by itself
    style: Style = "repeat"  # in a query or a form
    absent: str = "(not given)"  # what the summary says where the argument was left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What a GraphQL tool sends: a document of one operation. Arguments enter its variables, and never the document."""

    kind: Literal["query", "mutation"]
    name: str
    document: str  # on one line of printable ASCII, exactly as it is sent and shown
    answers: Mapping[str, Any] = field(
        repr=False
    )  # the keys that `data` can have, nested; a mutation has one at the top
    key_variable: str = ""  # where Keyleash puts an idempotency key that the upstream honours


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One thing that a connection can do."""

    name: str
    title: str
    description: str
    effect: Effect
    method: str
    path: str  # below the base URL, with {argument} holes
    operation: Operation | None = None  # for GraphQL; every argument is then a variable of its name
    arguments: tuple[Argument, ...] = ()
    input_schema: Mapping[str, Any]  # root object, additionalProperties false, no $ref
    headers: tuple[tuple[str, str], ...] = ()  # fixed, in place of the connector's own of the same name
    body_style: BodyStyle = "json"
    fixed_query: tuple[tuple[str, str], ...] = ()  # sent with every call
    fixed_body: tuple[tuple[tuple[str, ...], Any], ...] = ()  # the same, as steps and value
    encode: tuple[tuple[tuple[str, ...], str], ...] = ()  # what stands there is written by this encoder
    output_select: Selector | None = None
    output_text: bool = False  # the answer is a text, even where it reads as JSON
    output_redact: tuple[str, ...] = ()  # keys whose values are removed, at any depth
    output_base64url: tuple[str, ...] = ()  # keys whose values are texts in base64url, at any depth
    output_brief: str = ""  # the way, of `connectors.brief`, in which what is wrapped becomes plain
    output_next: str = ""  # the query parameter that leads to the next page, in the URL of that page
    output_next_url: Selector | None = None  # finds that URL; without it, it is in the Link header
    output_usage: Selector | None = None  # finds the object in which the provider reports tokens or cost
    ask: str = ""  # one line with {argument} holes: what a person is asked to agree to
    grant: tuple[str, ...] = ()  # arguments that a one-hour answer keeps fixed; empty: none is offered
    plain: tuple[str, ...] = ()  # arguments that the audit log may hold in plain
    shared: bool = False  # safe where several orgs use one account
    unreviewed: Effect | None = None  # what the file says, where that counts as stricter until it is reviewed
    because: str = ""  # why the effect is milder than the method suggests
    upstream: str = ""  # of a wrapped server: the tool's name there
    pinned: str = ""  # SHA-256, hex, of the upstream's own definition, as a person last agreed to it
    definition_hash: str = ""  # SHA-256, hex, of everything that decides what is sent and shown
    validator: Validator = field(repr=False, compare=False)

    @property
    def safe(self) -> bool:
        """Whether the way it is sent promises that it changes nothing: GET and HEAD (RFC 9110, 9.2.1), a query.

        A query of which the file says that it changes something is none.
        """
        if self.upstream:  # nothing in the way it is sent tells; a person has stated the effect
            return self.effect.strictness < Effect.WRITE.strictness
        if self.operation is None:
            return self.method in ("GET", "HEAD")
        return self.operation.kind == "query" and self.effect.strictness < Effect.WRITE.strictness

    def summary(self, arguments: Mapping[str, Any], show: Callable[[Any], str] | None = None) -> str:
        """`ask` with its holes filled, once: a value that looks like a hole stays as it is.

        `show` makes a value fit for the place where the line is read; without it nothing is escaped.
        """
        shown = show or _plainly
        absent = {argument.name: argument.absent for argument in self.arguments}

        def fill(hole: re.Match[str]) -> str:
            name = hole[1]
            return shown(arguments[name]) if name in arguments else absent[name]

        return HOLE.sub(fill, self.ask)


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One value of a credential, as it is asked for."""

    name: str
    label: str
    secret: bool = True
    optional: bool = False  # may be left out, if it comes after those that may not
    lines: bool = False  # may be of several lines: a key file
    pattern: str = ""  # searched for; empty: anything
    warnings: tuple[tuple[str, str], ...] = ()  # (pattern, what to tell the person whose value fits it)
    variable: str = ""  # of the scheme `env`: in which it stands


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """How a token is ended at its provider: RFC 7009, or what a provider has in its place."""

    url: str  # as in OAuth; {client_id} is filled in
    method: Literal["POST", "DELETE"] = "POST"
    by: Revoker = "client"  # who signs the request: the app as for tokens or by Basic, the access token, nobody
    body: BodyStyle | None = None  # as for tokens, where it is not said
    parameter: str = "token"  # in the body; empty: none
    sends: TokenName = "refresh_token"  # an access token where there is no other


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuth:
    """How tokens are had from a provider (RFC 6749).

    A URL that is a path lies at the host of the base URL, one that begins with `./` below the base URL.
    """

    grant: Grant = "code"
    authorize: str = ""  # empty where nobody consents
    token: str  # a hole is filled with the field of that name
    revoke: Revocation | None = None
    scopes: tuple[str, ...] = ()
    separator: str = " "
    scope_name: str = "scope"  # of the parameter that names them
    pkce: bool = True  # RFC 7636, S256
    client: ClientAuth = "post"
    authorize_params: tuple[tuple[str, str], ...] = ()
    token_params: tuple[tuple[str, str | int], ...] = ()
    body: BodyStyle = "form"
    lifetime: int = 0  # seconds, where the answer says none; 0: until it is revoked
    rotates: bool = True  # a refresh token is used once
    answer: tuple[str, ...] = ()  # the keys that lead to the tokens in the answer
    issuer: str = ""  # RFC 9207: what `iss` in the redirect has to be
    ended: frozenset[str] = frozenset()  # codes that mean invalid_grant
    register: str = ""  # RFC 7591: where an app is made for whoever brings none
    token_uris: tuple[str, ...] = ()  # what a key file may call the place for tokens, besides; nothing is sent there

    @property
    def signed(self) -> bool:
        """Whether what is asked with is a private key, which signs each request for a token and is never sent."""
        return self.grant in ("jwt_bearer", "github_app")


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialKind:
    """One way to sign in to the upstream. With `oauth`, the fields are those of whoever asks for tokens."""

    id: str
    label: str
    help: str
    scheme: SchemeName
    name: str = ""  # of the header or the query parameter
    prefix: str = ""  # before the secret in a header: `Bearer `
    fields: tuple[Field, ...]
    oauth: OAuth | None = None
    service: str = ""  # of aws_sigv4: what stands in the signature's scope
    region: str = ""  # the same; empty: it is a field
    verify: Tool | None = None  # in place of the connector's, with the account that it names
    account: Selector | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorShape:
    """Where an upstream's errors say what they say."""

    message: Selector | None = None
    code: Selector | None = None
    request_id: Selector | None = None  # in the body
    request_id_header: str | None = None  # in lower case
    ok_field: Selector | None = None  # false in the body means an error, whatever the status
    user_errors: str = ""  # the key of a mutation's payload that lists why it was refused
    limited: frozenset[str] = frozenset()  # codes that ask for fewer calls, whatever the status
    spent: frozenset[str] = frozenset()  # codes that say that the account has used up what it may
    wait: float | None = None  # seconds to leave it alone, where an answer that asks for fewer calls says no number
    rejected: frozenset[str] = frozenset()  # codes that refuse the credential, whatever the status
    unclear: frozenset[str] = frozenset()  # codes after which a call that changes something may have done so


@dataclass(frozen=True, slots=True)
class Quota:
    """Something of which the upstream says how much is left: the header with the number, both in lower case.

    `of` is the header that says which of several it is, where there are several under one name.
    """

    name: str
    left: str
    of: str = ""


@dataclass(frozen=True, slots=True)
class Pace:
    """How many calls an account takes at once, and how many a minute; None: nobody says."""

    concurrent: int | None = None
    per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Deprecation:
    """What will stop working, and when."""

    date: str  # YYYY-MM or YYYY-MM-DD
    what: str
    see: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedServer:
    """An MCP server whose tools are offered as a connector's: reached over HTTP, or started as a process of its own."""

    endpoint: str = ""  # over HTTP: its path below the base URL; empty: the base URL itself
    command: tuple[str, ...] = ()  # over stdio: the program and its arguments; no shell reads them
    keep_s: int = 0  # for how long a conversation waits for the same agent's next call; 0: it ends with its call

    @property
    def transport(self) -> Literal["http", "stdio"]:
        return "stdio" if self.command else "http"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connector:
    """One integration: where it is, how to sign in, and what it can do."""

    id: str
    title: str
    base_url: str  # of a server that is started: `stdio:` and its command
    server: WrappedServer | None = None
    headers: tuple[tuple[str, str], ...] = ()  # sent with every call
    credentials: tuple[CredentialKind, ...]
    verify: Tool  # harmless; succeeds only with a working credential
    account: Selector | None = None  # names the account in the answer to `verify`
    errors: ErrorShape = ErrorShape()
    idempotency_header: str | None = None
    idempotency_methods: tuple[str, ...] = ()
    idempotency_hours: int = 0  # for so long the upstream promises to know a key; 0: it promises nothing
    tools: Mapping[str, Tool]
    quota: tuple[Quota, ...] = ()
    limits: Pace = Pace()
    deprecations: tuple[Deprecation, ...] = ()
    reviewed: bool = False
    help: str = ""  # the vendor's reference
    file: str = ""

    @property
    def own_url(self) -> bool:
        """Whether whoever connects has to give a base URL of their own: `base_url` is an example."""
        return _EXAMPLE.fullmatch(self.base_url) is not None

    @property
    def example_url(self) -> str:
        """What one's own base URL looks like; empty where `base_url` serves everybody, or nobody wrote an example."""
        found = _EXAMPLE.fullmatch(self.base_url)
        return found[1] + found[2] if found and "." in found[1] else ""

    def repeats_within(self, tool: Tool) -> int:
        """For how many milliseconds the same call with the same key is carried out once; 0 where nobody promises it."""
        honoured = self.idempotency_header is not None and tool.method in self.idempotency_methods
        return self.idempotency_hours * 3_600_000 if honoured else 0

    def verifying(self, kind: CredentialKind) -> tuple[Tool, Selector | None]:
        """The harmless call that tries a credential of this kind, and what names the account in its answer."""
        return (kind.verify, kind.account) if kind.verify else (self.verify, self.account)

    def kind(self, identifier: str) -> CredentialKind:
        """The credential kind of this id; KeyError without one."""
        for kind in self.credentials:
            if kind.id == identifier:
                return kind
        raise KeyError(identifier)


def _plainly(value: Any) -> str:
    return value if isinstance(value, str) else canonical(value)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return _CANONICAL.encode(value)


@dataclass(frozen=True, slots=True)
class Call:
    """A tool with checked arguments: what rules judge, people agree to and egress sends. Made by `Offer.bind`."""

    connection: str
    connector: Connector
    tool: Tool
    name: str  # on the wire: CONNECTION_TOOL
    arguments: Mapping[str, Any]
    canonical: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "canonical", canonical(dict(self.arguments)))
        object.__setattr__(self, "arguments", MappingProxyType(dict(self.arguments)))
