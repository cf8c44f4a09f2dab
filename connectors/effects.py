"""What a tool does to the world, where nobody has said: on the strict side, from its method, path and name."""

import re
from collections.abc import Iterable, Mapping

from connectors.definition import DEFAULTS, HOLE, Effect
from connectors.words import split, stem

# Words of a path, a name or an operation, and the least that they mean. A GET is only raised by verbs: `GET /refunds`
# lists them.
_VERBS: Mapping[Effect, frozenset[str]] = {
    Effect.SEND: frozenset(
        {"send", "post", "publish", "invite", "share", "comment", "reply", "forward", "notify", "broadcast", "announce"}
        | {"dispatches"}
    ),
    Effect.SPEND: frozenset({"pay", "purchase", "buy", "withdraw", "subscribe"}),
    Effect.DESTROY: frozenset(
        {"delete", "destroy", "remove", "purge", "erase", "archive", "trash", "revoke", "cancel", "merge", "wipe"}
        | {"drop", "truncate", "terminate", "deactivate", "disable", "suspend", "ban", "kick", "uninstall"}
    ),
    Effect.GRANT: frozenset({"grant", "impersonate", "authorize", "invitations"}),
}
_NOUNS: Mapping[Effect, frozenset[str]] = {
    Effect.SEND: frozenset(
        {"message", "messages", "comments", "mail", "email", "emails", "sms", "notification", "notifications"}
        | {"campaign", "campaigns", "newsletter", "newsletters"}
    ),
    Effect.SPEND: frozenset(
        {"refund", "refunds", "payout", "payouts", "transfer", "transfers", "charge", "charges", "payment", "payments"}
        | {"orders", "purchases", "checkout", "subscription", "subscriptions", "withdrawal", "withdrawals"}
    ),
    Effect.GRANT: frozenset(
        {
            "permission",
            "permissions",
            "member",
            "members",
            "collaborator",
            "collaborators",
            "role",
            "roles",
            "key",
            "keys",
        }
        | {"apikey", "apikeys", "secret", "secrets", "token", "tokens", "credential", "credentials", "password"}
        | {"passwords", "hook", "hooks", "webhook", "webhooks", "acl", "acls", "sso", "scim"}
    ),
}
_SECRETIVE = frozenset({"secret", "secrets", "token", "tokens", "password", "passwords", "credentials"})
_READING = frozenset({"get", "list", "read", "search", "find", "describe", "fetch", "show", "query", "count", "view"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+|[A-Z]+")


def derive_operation(kind: str, fields: Iterable[str], *names: str) -> Effect:
    """Of a GraphQL operation: a query reads and a mutation writes, raised by the words of its fields and names."""
    return derive("GET" if kind == "query" else "POST", " ".join(fields), " ".join(names))


def until_reviewed(effect: Effect) -> Effect:
    """What an effect counts as in an import that no person has read: nothing of it is free under any preset."""
    return {Effect.READ: Effect.SENSITIVE, Effect.METERED: Effect.SENSITIVE, Effect.WRITE: Effect.SEND}.get(
        effect, effect
    )


def derive_wrapped(name: str) -> Effect:
    """Of a wrapped server's tool, by its name alone: it reads where its first word does, and writes otherwise."""
    words = [word.lower() for word in _WORD.findall(name)]
    return derive("GET" if words and words[0] in _READING else "POST", "", name)


def raised(effect: Effect, annotations: Mapping[str, object]) -> Effect:
    """The effect, or what a server's own annotations say beyond it (MCP, ToolAnnotations): they never lower one."""
    least = [effect]
    if annotations.get("readOnlyHint") is False:
        least.append(Effect.WRITE)
    if annotations.get("destructiveHint") is True:
        least.append(Effect.DESTROY)
    return max(least, key=lambda each: each.strictness)


def derive(method: str, path: str, name: str) -> Effect:
    """The method's default, raised and never lowered by the words of path and name."""
    words = {word.lower() for word in _WORD.findall(f"{HOLE.sub('', path)} {name}")}
    found = [DEFAULTS[method], *(effect for effect, verbs in _VERBS.items() if verbs & words)]
    if DEFAULTS[method] is not Effect.READ:
        found += [effect for effect, nouns in _NOUNS.items() if nouns & words]
    elif _SECRETIVE & words:
        found.append(Effect.SENSITIVE)
    return max(found, key=lambda effect: effect.strictness)


_FIRST = 3
"""Words at the beginning of a description, which say what a tool does; further ones say what it does it with."""


def raised_by_words(effect: Effect, description: str) -> Effect:
    """The effect, or what the first words of a description mean beyond it: `Deletes a file` destroys."""
    words = {stem(word) for word in list(split(description))[:_FIRST]}
    found = [effect, *(more for more, verbs in _VERBS.items() if words & set(map(stem, verbs)))]
    return max(found, key=lambda each: each.strictness)
