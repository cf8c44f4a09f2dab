"""The keys of a connector file, once: the loader takes exactly these, and the editors' JSON Schema is made of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from connectors.brief import BRIEFS
from connectors.definition import (
    BodyStyle,
    ClientAuth,
    Effect,
    Grant,
    Kind,
    ListStyle,
    Place,
    RequestScheme,
    Revoker,
    TokenName,
)
from connectors.encoding import ENCODERS
from connectors.source import NAME_PATTERN

CALL_PATTERN = r"^(GET|HEAD|POST|PUT|PATCH|DELETE) /\S*$"
ENDPOINT_PATTERN = r"^/\S*$"
VARIABLE_PATTERN = r"^[A-Za-z][A-Za-z0-9_]*$"
DOCUMENT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.json$"
SHA256_PATTERN = r"^[0-9a-f]{64}$"
UPSTREAM_PATTERN = r"^[A-Za-z0-9_./-]{1,128}$"
UPSTREAM_ARGUMENT_PATTERN = r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$"
ENVIRONMENT_PATTERN = r"^[A-Z_][A-Z0-9_]{0,127}$"
AWS_NAME_PATTERN = r"^[a-z0-9-]{1,64}$"


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a block: its JSON Schema, and whether it may be left out."""

    schema: Mapping[str, Any]
    required: bool = False


def _text(help: str, *, required: bool = False, **more: Any) -> Key:  # noqa: A002 - the word of the format
    return Key({"type": "string", "description": help, **more}, required=required)


def _texts(help: str) -> Key:  # noqa: A002
    return Key({"type": "array", "items": {"type": "string"}, "description": help})


def _flag(help: str) -> Key:  # noqa: A002
    return Key({"type": "boolean", "description": help})


def _one_of(choices: Any, help: str, *, required: bool = False) -> Key:  # noqa: A002
    return Key({"enum": list(choices), "description": help}, required=required)


def _block(name: str, help: str, *, required: bool = False) -> Key:  # noqa: A002
    return Key({"$ref": f"#/$defs/{name}", "description": help}, required=required)


def _blocks(name: str, help: str, *, required: bool = False) -> Key:  # noqa: A002
    values = {"type": "object", "additionalProperties": {"$ref": f"#/$defs/{name}"}, "minProperties": 1}
    return Key(values | {"propertyNames": {"pattern": NAME_PATTERN}, "description": help}, required=required)


_HEADERS = Key(
    {"type": "object", "additionalProperties": {"type": "string"}, "description": "Fixed headers, none of them secret."}
)
_CALL = _text("METHOD /path/{argument}, below the base URL.", required=True, pattern=CALL_PATTERN)

CONNECTOR: Mapping[str, Key] = {
    "id": _text("The name of the file without .yaml.", required=True, pattern=NAME_PATTERN),
    "title": _text("The vendor's name for it.", required=True),
    "kind": _one_of(["rest"], "How it is spoken to; rest by default."),
    "base_url": _text(
        "https://host/base; every call stays below it. "
        "A host that ends in .invalid is an example: each account has its own.",
        required=True,
        pattern="^https://",
    ),
    "help": _text("The vendor's reference, as a URL."),
    "reviewed": _flag("A person has read every tool: each states its effect."),
    "headers": _HEADERS,
    "body": _one_of(get_args(BodyStyle), "How body arguments are written; json by default."),
    "idempotency": _block("idempotency", "A header that makes a repeated call run once."),
    "credentials": _blocks("credential", "The ways to sign in, best first.", required=True),
    "verify": _block("verify", "A harmless call that succeeds only with a working credential.", required=True),
    "errors": _block("errors", "Where an error says what it says, as JMESPath."),
    "quota": _blocks("quota", "Name: where an answer says how much of it is left."),
    "limits": _block("limits", "What one account takes, by the vendor's word; a connection may set its own."),
    "deprecations": Key({"type": "array", "items": {"$ref": "#/$defs/deprecation"}}),
    "tools": _blocks("tool", "What is offered; nothing else is.", required=True),
}

CREDENTIAL: Mapping[str, Key] = {
    "label": _text("What the vendor calls it.", required=True),
    "help": _text("Where to make one, and with which rights.", required=True),
    "scheme": _one_of([*get_args(RequestScheme), "aws_sigv4"], "How it enters the request.", required=True),
    "name": _text("The header or query parameter, for those schemes."),
    "prefix": _text(
        "Before the secret in a header, and a space after it unless it ends in `=`; `Bearer` by default for bearer."
    ),
    "pattern": _text("What a right value looks like."),
    "warnings": Key(
        {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Pattern: what to tell the person whose value fits it.",
        }
    ),
    "fields": _blocks("field", "Where there is more than one value; for basic, of `user` and `password`."),
    "oauth": _block("oauth", "The secret is a token that is had, and renewed, by OAuth 2 or with a private key."),
    "service": _text("Of aws_sigv4: the service's name in signatures, `secretsmanager`.", pattern=AWS_NAME_PATTERN),
    "region": _text("Of aws_sigv4: the region; left out, it is asked for.", pattern=AWS_NAME_PATTERN),
    "verify": _block("verify", "In place of the connector's own, where this kind of credential cannot make that call."),
}

# --- OAuth 2

OAUTH_URL_PATTERN = r"^(https://[a-z0-9.-]+(:[0-9]+)?|\.)?/[A-Za-z0-9._~/-]*$"
TOKEN_URL_PATTERN = r"^(https://[a-z0-9.-]+(:[0-9]+)?|\.)?/([A-Za-z0-9._~/-]|\{[a-z_]+\})*$"  # noqa: S105 - a pattern
REVOKE_URL_PATTERN = r"^(https://[a-z0-9.-]+(:[0-9]+)?|\.)?/([A-Za-z0-9._~/-]|\{client_id\})*$"
_ENDPOINT_HELP = (
    "https://…, or, where every account has its own, a /path at the host of the base URL or a ./path below it."
)
_PARAMS = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}

OAUTH: Mapping[str, Key] = {
    "grant": _one_of(
        get_args(Grant),
        "A person consents (code, the default); the app acts for itself; or a private key signs for it: of a Google "
        "service account (jwt_bearer, RFC 7523), or of a GitHub App.",
    ),
    "authorize": _text(f"Where a person consents. {_ENDPOINT_HELP}", pattern=OAUTH_URL_PATTERN),
    "token": _text(
        f"Where tokens are had. {_ENDPOINT_HELP} A github_app's holds {{installation_id}}.",
        required=True,
        pattern=TOKEN_URL_PATTERN,
    ),
    "revoke": _block("revoke", "How a token is ended when the account is disconnected."),
    "scopes": _texts("What is asked for, unless the person who connects says otherwise."),
    "separator": _text("Between scopes; a space by default.", pattern="^[,;+]$"),
    "scope_name": _text("The parameter that names the scopes; `scope` by default.", pattern="^[a-z_]+$"),
    "pkce": _one_of(["S256", "none"], "RFC 7636; S256 by default."),
    "client": _one_of(
        get_args(ClientAuth), "How the app signs its requests: its secret in the body (post, the default) or by Basic."
    ),
    "authorize_params": Key({**_PARAMS, "description": "What the first request says besides."}),
    "token_params": Key({**_PARAMS, "description": "What every request for tokens says besides."}),
    "body": _one_of(get_args(BodyStyle), "How requests for tokens are written; form by default."),
    "lifetime": Key(
        {
            "type": "integer",
            "minimum": 1,
            "maximum": 315_360_000,
            "description": "Seconds that a token lives where the answer does not say; without it, until it is revoked.",
        }
    ),
    "rotates": _flag("A refresh token is used once; true by default, which is the careful side."),
    "answer": _text("Where the tokens stand in the answer, as `a.b`; at its top by default.", pattern=r"^[a-z_.]+$"),
    "issuer": _text("What `iss` in the redirect has to be (RFC 9207), where the provider gives it."),
    "ended": _texts("Codes that say the same as invalid_grant: only consenting again, or another key, helps."),
    "token_uris": _texts(
        "Of jwt_bearer: what a key file may call the place for tokens, besides; nothing is sent there."
    ),
    "register": _text(
        f"Where an app is made for whoever brings none (RFC 7591). {_ENDPOINT_HELP}", pattern=OAUTH_URL_PATTERN
    ),
}

REVOKE: Mapping[str, Key] = {
    "url": _text(f"{_ENDPOINT_HELP} It may hold {{client_id}}.", required=True, pattern=REVOKE_URL_PATTERN),
    "method": _one_of(["POST", "DELETE"], "POST by default, as in RFC 7009."),
    "by": _one_of(
        get_args(Revoker),
        "Who signs it: the app, as for tokens (client, the default) or by Basic; the token itself; or nobody.",
    ),
    "body": _one_of(get_args(BodyStyle), "How it is written; as requests for tokens by default."),
    "parameter": _text("The name of the token in the body; `token` by default.", pattern="^[a-z_]+$"),
    "sends": _one_of(get_args(TokenName), "Which token; refresh_token by default."),
}

FIELD: Mapping[str, Key] = {
    "label": _text("What to ask for.", required=True),
    "secret": _flag("true by default; false for a user name."),
    "pattern": CREDENTIAL["pattern"],
    "warnings": CREDENTIAL["warnings"],
}

IDEMPOTENCY: Mapping[str, Key] = {
    "header": _text("Its name.", required=True),
    "methods": Key(
        {"type": "array", "items": {"enum": ["POST", "PUT", "PATCH", "DELETE"]}, "minItems": 1}, required=True
    ),
    "hours": Key(
        {
            "type": "integer",
            "minimum": 1,
            "maximum": 720,
            "description": "How long the vendor promises to know a key. Without it, a call that was lost on its way is "
            "never sent again.",
        }
    ),
}

VERIFY: Mapping[str, Key] = {
    "call": _CALL,
    "account": _text("Names the account in the answer, as JMESPath."),
    "headers": _HEADERS,
    "fixed": _block("fixed", "What it sends."),
}

ERRORS: Mapping[str, Key] = {
    "message": _text("JMESPath."),
    "code": _text("JMESPath."),
    "request_id": _text("JMESPath, where it is in the body."),
    "request_id_header": _text("Its header, where it is in one."),
    "ok": _text("JMESPath: false means an error, whatever the status."),
    "limited": _texts("Codes that ask for fewer calls, whatever the status."),
    "spent": _texts("Codes that say that the account's quota or budget is used up: trying again later is no use."),
    "wait": Key(
        {
            "type": "integer",
            "minimum": 1,
            "maximum": 3600,
            "description": "Seconds to wait where an answer that asks for fewer calls says no number.",
        }
    ),
    "rejected": _texts("Codes that refuse the credential, whatever the status."),
    "unclear": _texts("Codes after which a call that changes something may have done so."),
}

QUOTA: Mapping[str, Key] = {
    "left": _text("The header with the number that is left.", required=True),
    "of": _text("The header that says which one it is, where one name stands for several."),
}


def _count(most: int, help: str) -> Key:  # noqa: A002
    return Key({"type": "integer", "minimum": 1, "maximum": most, "description": help})


LIMITS: Mapping[str, Key] = {
    "concurrent": _count(10_000, "Calls under way at once; each server process keeps to it by itself."),
    "per_minute": _count(1_000_000, "Calls in a minute of the clock, of all server processes together."),
}

DEPRECATION: Mapping[str, Key] = {
    "date": _text("YYYY-MM or YYYY-MM-DD, in quotes.", required=True, pattern="^[0-9]{4}-[0-9]{2}(-[0-9]{2})?$"),
    "what": _text("What stops working.", required=True),
    "see": _text("The vendor's announcement."),
}

TOOL: Mapping[str, Key] = {
    "title": _text("A few words for people.", required=True),
    "description": _text("For the model: what it does, what comes back.", required=True),
    "call": _CALL,
    "effect": _one_of([effect.value for effect in Effect], "What it does to the world: the strictest that is true."),
    "because": _text("Why the effect is milder than the method and the names suggest."),
    "ask": _text("One line with {argument} holes: what a person agrees to. Needed unless it is a read."),
    "grant": _texts("Arguments that a one-hour answer keeps fixed; without it none is offered."),
    "shared": _flag(
        "Several organisations may use it with one account: it neither lists, reads nor changes what another of them "
        "put there, whatever its arguments. false by default."
    ),
    "plain": _texts("Arguments that the audit log may hold in plain."),
    "headers": _HEADERS,
    "fixed": _block("fixed", "What every call sends as well."),
    "encode": Key(
        {
            "type": "object",
            "additionalProperties": {"enum": list(ENCODERS)},
            "description": "Name in the body, as in `as:`: what writes the arguments that stand there as one text.",
        }
    ),
    "arguments": Key(
        {
            "type": "object",
            "additionalProperties": {"$ref": "#/$defs/argument"},
            "propertyNames": {"pattern": NAME_PATTERN},
            "description": "JSON Schema in short form, with the place in the request.",
        }
    ),
    "output": _block("output", "What of the answer reaches the model."),
}

OUTPUT: Mapping[str, Key] = {
    "select": _text("JMESPath that shapes the answer."),
    "redact": _texts("Keys whose values are removed, at any depth."),
    "base64url": _texts("Keys whose values are texts in base64url, at any depth; they are decoded before `select`."),
    "brief": Key(
        {
            "enum": list(BRIEFS),
            "description": "What is wrapped in forms of its own becomes plain, before `select`.",
        }
    ),
    "next": _text("The query parameter that leads to the next page; its value there comes back as next_cursor."),
    "next_url": _text("The URL of the next page in the answer, as JMESPath; without it, the Link header's."),
    "text": _flag("The answer is a text, to be passed on as it is even where it reads as JSON: a file, say."),
    "usage": _text(
        "JMESPath to an object of what the provider itself reports: tokens_in (cached ones among them), tokens_out, "
        "tokens_cached, cost and cost_unit are counted; other numbers stand in the record only. Name tokens_out only "
        "where the provider always states it: a report with one of the two and not the other is not whole."
    ),
}

# The part of JSON Schema that arguments may use. `required: true` stands at the property itself, at every level.
_NUMBER, _COUNT = {"type": "number"}, {"type": "integer", "minimum": 0}
_TYPE = {"enum": ["string", "integer", "number", "boolean", "array", "object"]}
SCHEMA: Mapping[str, Key] = {
    "type": Key({"anyOf": [_TYPE, {"type": "array", "items": _TYPE, "minItems": 1}]}),
    "description": _text("For the model."),
    "required": _flag("false by default."),
    "enum": Key({"type": "array", "minItems": 1}),
    "const": Key({}),
    "default": Key({"description": "What the upstream takes when it is left out; never filled in here."}),
    "examples": Key(
        {"type": "array", "minItems": 1, "description": "For the model; `connector test` takes the first."}
    ),
    "format": _text("A note for the model; not checked."),
    "pattern": _text("Searched for, in linear time: no look-around, no back-references."),
    "minLength": Key(_COUNT),
    "maxLength": Key(_COUNT),
    "minimum": Key(_NUMBER),
    "maximum": Key(_NUMBER),
    "multipleOf": Key(_NUMBER),
    "minItems": Key(_COUNT),
    "maxItems": Key(_COUNT),
    "uniqueItems": _flag("No item twice."),
    "items": _block("schema", "What each item is."),
    "properties": Key({"type": "object", "additionalProperties": {"$ref": "#/$defs/schema"}}),
    "additionalProperties": Key({"anyOf": [{"type": "boolean"}, {"$ref": "#/$defs/schema"}]}),
    "anyOf": Key({"type": "array", "items": {"$ref": "#/$defs/schema"}, "minItems": 1}),
}

FIXED: Mapping[str, Key] = {
    "query": Key({"type": "object", "additionalProperties": {"type": ["string", "integer", "boolean"]}}),
    "body": Key({"type": "object", "description": "Names as in `as:`."}),
}

ARGUMENT: Mapping[str, Key] = {
    "in": _one_of(get_args(Place), "Where it stands. A hole means path; else query for GET, HEAD, DELETE, and body."),
    "as": _text(
        "Its name upstream, where it differs: `created[gte]`. In a JSON body brackets nest; [0] is a list of one."
    ),
    "list": _one_of(get_args(ListStyle), "How a query writes a list: a=1&a=2, a=1,2 or a[]=1&a[]=2."),
    "slashes": _flag("A path argument that may hold several segments."),
    "absent": _text("What the ask line says where it is left out."),
    **SCHEMA,
}

# --- kind: graphql, where it differs

GRAPHQL_CONNECTOR: Mapping[str, Key] = {
    **{name: key for name, key in CONNECTOR.items() if name != "body"},
    "kind": _one_of(["graphql"], "How it is spoken to.", required=True),
    "endpoint": _text(
        "/path below the base URL, to which every operation is posted.", required=True, pattern=ENDPOINT_PATTERN
    ),
    "idempotency": _block("graphqlIdempotency", "A variable that makes a repeated mutation run once."),
    "verify": _block("graphqlVerify", "A harmless query that succeeds only with a working credential.", required=True),
    "errors": _block("graphqlErrors", "Where an error says what it says, as JMESPath into the whole answer."),
    "tools": _blocks("graphqlTool", "What is offered; nothing else is.", required=True),
}

GRAPHQL_IDEMPOTENCY: Mapping[str, Key] = {
    "variable": _text(
        "Its name, without $: filled where a mutation declares it.", required=True, pattern=VARIABLE_PATTERN
    ),
}

_DOCUMENT = _text("One named query or mutation. Each variable is an argument; nothing else varies.", required=True)

GRAPHQL_VERIFY: Mapping[str, Key] = {
    "document": _DOCUMENT,
    "account": _text("Names the account in `data`, as JMESPath."),
}

GRAPHQL_ERRORS: Mapping[str, Key] = {
    **ERRORS,
    "message": _text("JMESPath; errors[0].message by default."),
    "code": _text("JMESPath; errors[0].extensions.code by default."),
    "user_errors": _text("The key of a mutation's payload that lists why it was refused: userErrors."),
}

GRAPHQL_TOOL: Mapping[str, Key] = {
    **{name: key for name, key in TOOL.items() if name not in ("call", "fixed", "encode")},  # a document writes it out
    "document": _DOCUMENT,
    "arguments": Key(
        {
            **TOOL["arguments"].schema,
            "additionalProperties": {"$ref": "#/$defs/variable"},
            "description": "JSON Schema in short form, for the variable of the same name.",
        }
    ),
    "output": _block("graphqlOutput", "What of `data` reaches the model."),
}

# Pages are asked for by a variable, and what it takes stands in `data` itself.
GRAPHQL_OUTPUT: Mapping[str, Key] = {
    name: key for name, key in OUTPUT.items() if name not in ("text", "next", "next_url")
}

VARIABLE: Mapping[str, Key] = {"absent": ARGUMENT["absent"], **SCHEMA}


# --- kind: openapi, where it differs

_NAMES = {"type": "string", "pattern": NAME_PATTERN}

OPENAPI_CONNECTOR: Mapping[str, Key] = {
    **{name: key for name, key in CONNECTOR.items() if name != "body"},
    "kind": _one_of(["openapi"], "Operations of a pinned document.", required=True),
    "document": _text(
        "The OpenAPI document, a JSON file beside this one; never fetched.", required=True, pattern=DOCUMENT_PATTERN
    ),
    "sha256": _text("Of the document; with another one nothing is offered.", required=True, pattern=SHA256_PATTERN),
    "reviewed": _flag(
        "A person has read every tool: each states its effect. Until then what reads counts as sensitive, and what "
        "writes as send."
    ),
    "tools": _blocks("openapiTool", "What is offered; nothing else is.", required=True),
}

OPENAPI_TOOL: Mapping[str, Key] = {
    **{name: key for name, key in TOOL.items() if name not in ("call", "encode")},  # the operation says
    "operation": _text("Its operationId, or `METHOD /path` as the document has it.", required=True),
    "arguments": Key(
        {
            "type": "array",
            "items": _NAMES,
            "description": "Those that are offered, besides the required ones; without the list, all.",
        }
    ),
    "fixed": Key({"type": "object", "description": "Argument: the value that every call sends; it is not offered."}),
    "rename": Key(
        {"type": "object", "additionalProperties": _NAMES, "description": "Argument: what it is called here."}
    ),
    "slashes": _texts("Path arguments that may hold several segments."),
    "absent": Key(
        {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Argument: what the ask line says where it is left out.",
        }
    ),
}

# --- kind: mcp, where it differs

KEEP_PATTERN = "^[1-9][0-9]{0,3}[smh]$"

MCP_CONNECTOR: Mapping[str, Key] = {
    **{name: key for name, key in CONNECTOR.items() if name not in ("body", "idempotency", "verify", "errors")},
    "kind": _one_of(["mcp"], "Named tools of an MCP server.", required=True),
    "base_url": _text(
        "https://host/base of a server that is reached over HTTP. In place of it, `command:` starts one.",
        pattern="^https://",
    ),
    "endpoint": _text("/path below the base URL; without it, the base URL itself.", pattern=ENDPOINT_PATTERN),
    "command": Key(
        {
            "type": "array",
            "items": {"type": "string"},
            "minItems": 1,
            "description": "The program and its arguments, for a server that is started for each call (but see `keep`) "
            "and spoken to over stdio. No shell reads it; it inherits no environment; only the operator connects it.",
        }
    ),
    "keep": _text(
        "How long a conversation is kept for an agent's next call, 30s to 1h. Left out, each call has one of its own. "
        "The server, and with `command:` the credential in its environment, lives for as long. Only with `reviewed`.",
        pattern=KEEP_PATTERN,
    ),
    "reviewed": OPENAPI_CONNECTOR["reviewed"],
    "credentials": _blocks("mcpCredential", "The ways to sign in, best first; left out where the server needs none."),
    "tools": _blocks("mcpTool", "What is offered; nothing else is.", required=True),
}

MCP_CREDENTIAL: Mapping[str, Key] = {
    **{name: key for name, key in CREDENTIAL.items() if name not in ("service", "region", "verify")},
    "scheme": _one_of(
        [*get_args(RequestScheme), "env"],
        "How it reaches the server: in each request, or with `command:` as an environment variable (env).",
        required=True,
    ),
    "name": _text("The header, the query parameter or the environment variable, for those schemes."),
    "fields": _blocks("mcpField", "Where there is more than one value; for env, each with its `variable`."),
}

MCP_FIELD: Mapping[str, Key] = {
    **FIELD,
    "variable": _text("The environment variable, for the scheme env.", pattern=ENVIRONMENT_PATTERN),
}

MCP_TOOL: Mapping[str, Key] = {
    **{name: key for name, key in TOOL.items() if name not in ("call", "headers", "encode", "arguments")},
    "upstream": _text("The tool's name at the server.", required=True, pattern=UPSTREAM_PATTERN),
    "pinned": _text(
        "SHA-256 of the server's own definition of it; with another one nothing is sent until a person has looked.",
        required=True,
        pattern=SHA256_PATTERN,
    ),
    "annotations": _block("annotations", "What the server says that it does: this raises the effect, never lowers it."),
    "input": Key(
        {
            "type": "object",
            "description": "JSON Schema of the arguments: a root object, no references; what is left out is not "
            "offered.",
        },
        required=True,
    ),
    "fixed": Key({"type": "object", "description": "Argument: the value that every call sends; it is not offered."}),
    "absent": OPENAPI_TOOL["absent"],
    "output": _block("mcpOutput", "What of the answer reaches the model."),
}

ANNOTATIONS: Mapping[str, Key] = {
    name: _flag("As the server gives it.")
    for name in ("readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint")
}

MCP_OUTPUT: Mapping[str, Key] = {name: OUTPUT[name] for name in ("select", "redact", "usage")}


@dataclass(frozen=True, slots=True)
class Form:
    """The blocks whose keys depend on a connector's kind."""

    connector: Mapping[str, Key]
    idempotency: Mapping[str, Key]
    verify: Mapping[str, Key]
    errors: Mapping[str, Key]
    tool: Mapping[str, Key]
    output: Mapping[str, Key]
    credential: Mapping[str, Key] = field(default_factory=lambda: CREDENTIAL)
    credential_field: Mapping[str, Key] = field(default_factory=lambda: FIELD)


FORMS: Mapping[Kind, Form] = {
    "rest": Form(CONNECTOR, IDEMPOTENCY, VERIFY, ERRORS, TOOL, OUTPUT),
    "graphql": Form(
        GRAPHQL_CONNECTOR, GRAPHQL_IDEMPOTENCY, GRAPHQL_VERIFY, GRAPHQL_ERRORS, GRAPHQL_TOOL, GRAPHQL_OUTPUT
    ),
    "openapi": Form(OPENAPI_CONNECTOR, IDEMPOTENCY, VERIFY, ERRORS, OPENAPI_TOOL, OUTPUT),
    "mcp": Form(MCP_CONNECTOR, {}, {}, {}, MCP_TOOL, MCP_OUTPUT, MCP_CREDENTIAL, MCP_FIELD),
}

BLOCKS: Mapping[str, Mapping[str, Key]] = {
    "credential": CREDENTIAL,
    "field": FIELD,
    "oauth": OAUTH,
    "revoke": REVOKE,
    "idempotency": IDEMPOTENCY,
    "verify": VERIFY,
    "errors": ERRORS,
    "quota": QUOTA,
    "limits": LIMITS,
    "deprecation": DEPRECATION,
    "tool": TOOL,
    "fixed": FIXED,
    "argument": ARGUMENT,
    "schema": SCHEMA,
    "output": OUTPUT,
    "graphqlIdempotency": GRAPHQL_IDEMPOTENCY,
    "graphqlVerify": GRAPHQL_VERIFY,
    "graphqlErrors": GRAPHQL_ERRORS,
    "graphqlTool": GRAPHQL_TOOL,
    "graphqlOutput": GRAPHQL_OUTPUT,
    "variable": VARIABLE,
    "openapiTool": OPENAPI_TOOL,
    "mcpCredential": MCP_CREDENTIAL,
    "mcpField": MCP_FIELD,
    "mcpTool": MCP_TOOL,
    "mcpOutput": MCP_OUTPUT,
    "annotations": ANNOTATIONS,
}


def required(keys: Mapping[str, Key]) -> tuple[str, ...]:
    return tuple(name for name, key in keys.items() if key.required)


def json_schema() -> dict[str, Any]:
    """The file format as JSON Schema 2020-12, for editors; the loader checks more than a schema can say."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Keyleash connector",
        "type": "object",
        "if": _of_kind("graphql"),
        "then": _object(GRAPHQL_CONNECTOR),
        "else": {
            "if": _of_kind("openapi"),
            "then": _object(OPENAPI_CONNECTOR),
            "else": {
                "if": _of_kind("mcp"),
                "then": _object(MCP_CONNECTOR),
                "else": _object(CONNECTOR),
            },
        },
        "$defs": {name: _object(keys) for name, keys in BLOCKS.items()},
    }


def _of_kind(kind: Kind) -> dict[str, Any]:
    return {"properties": {"kind": {"const": kind}}, "required": ["kind"]}


def _object(keys: Mapping[str, Key]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: dict(key.schema) for name, key in keys.items()},
        "required": list(required(keys)),
        "additionalProperties": False,
    }
