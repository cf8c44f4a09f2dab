"""Show a person exactly what will be sent; what they read cannot be forged by what the agent wrote.

The frame is ours; everything that came from an agent stands in quotes, on one line, with control, format and look-alike
characters escaped or named.
"""

import json
import unicodedata
from dataclasses import dataclass
from typing import Any

from connectors.definition import Call, Effect
from connectors.request import Prepared
from server.identity import Caller

IN_CLIENT = 3_500
"""The longest prompt, in characters, that is put to a client: hosts cut longer ones, and what is cut is not shown."""

EFFECTS = {
    Effect.READ: "reads",
    Effect.METERED: "adds to the provider's usage bill",
    Effect.SENSITIVE: "reads private content",
    Effect.WRITE: "changes something that can be changed back",
    Effect.SEND: "reaches people, or leaves your organisation",
    Effect.SPEND: "MOVES MONEY",
    Effect.DESTROY: "DESTROYS something",
    Effect.GRANT: "CHANGES WHO MAY DO WHAT",
}


@dataclass(frozen=True)
class Prompt:
    """`text` is complete. `whole` says whether a client can be trusted to show all of it."""

    text: str
    whole: bool


def render(
    caller: Caller, call: Call, request: Prepared, *, account: str | None, ownership: str, done_before: str | None
) -> Prompt:
    """Write the prompt for one call from the request that will be sent.

    `done_before` says when the same agent last carried out exactly this call, as ISO 8601, or is None.
    """
    acting = f"for {caller.member_name}" if caller.member_name else "standalone: nobody stands behind it"
    key = "your organisation's own key" if ownership == "own" else "a managed key of the operator"
    lines = [
        summary(call),
        "",
        f"Tool: {call.name}, which {EFFECTS[call.tool.effect]} ({call.tool.effect})",
        f"Account: {call.connection} ({call.connector.title}{f', {quote(account)}' if account else ''}), {key}",
        f"Asked by: agent {caller.agent_name}, {acting}, of {caller.org_name}",
        f"Request: {request.method} {_shown_url(request.url)}",
    ]
    if call.arguments:
        lines.append("Written by the agent:")
        lines += [f"  {name} = {quote(value)}" for name, value in call.arguments.items()]
    else:
        lines.append("Written by the agent: nothing; this tool has no arguments here")
    warnings = sorted({warning for value in call.arguments.values() for warning in suspicions(value)})
    lines += [f"Careful: {warning}" for warning in warnings]
    if done_before:
        lines.append(f"Careful: this agent has already done exactly this, at {done_before}")
    text = "\n".join(lines)
    return Prompt(text, whole=len(text) <= IN_CLIENT)


def summary(call: Call) -> str:
    """The connector's one line for this tool, its holes filled with quoted arguments."""
    return call.tool.summary(call.arguments, lambda value: _short(quote(value))) or call.tool.title


def quote(value: Any) -> str:
    """A value as JSON on one line, with every character that could deceive the eye written as an escape.

    >>> quote("a" + chr(0x202E) + "b")
    '"a\\\\u202eb"'
    """
    return "".join(map(_visible, json.dumps(value, ensure_ascii=False, sort_keys=True)))


def suspicions(value: Any) -> list[str]:
    """Reasons to look twice at a value, in words."""
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    found: list[str] = []
    if any(_visible(char) != char for char in text if char not in "\n\t\r"):
        found.append("the text holds invisible or direction-changing characters, shown here as \\u escapes")
    scripts = {_script(char) for char in text if char.isalpha()}
    if "LATIN" in scripts and scripts & _LOOK_ALIKE:
        others = " and ".join(sorted(scripts & _LOOK_ALIKE)).lower()
        found.append(f"the text mixes latin with {others} letters, which can look the same")
    if any(ord(char) > 0xFF and unicodedata.normalize("NFKC", char).isascii() for char in text):
        found.append("the text holds styled letters or digits that look like plain ones")
    return found


_LOOK_ALIKE = {"CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC", "LISU"}
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_BLANK = "\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\u034f\u00ad"


def _visible(char: str) -> str:
    if " " <= char <= "~":
        return char
    category = unicodedata.category(char)
    if category in _HIDDEN or char in _BLANK or category == "Zs" or 0xFE00 <= ord(char) <= 0xFE0F:
        return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
    if category in ("Mn", "Me"):
        return f"\\u{ord(char):04x}"
    return char


def _script(char: str) -> str:
    return unicodedata.name(char, "UNKNOWN").split(" ")[0]


def _short(text: str) -> str:
    """Long values are cut in the summary line only: the list of arguments shows them whole."""
    return text if len(text) <= 120 else text[:100] + '…" (whole below)'


def _shown_url(url: str) -> str:
    return url.split("?", 1)[0]
