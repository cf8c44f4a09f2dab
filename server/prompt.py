"""Show a person exactly what will be sent; what they read cannot be forged by what the agent wrote.

The frame is ours; everything that came from an agent stands in quotes, on one line, with control, format and look-alike
characters escaped or named.
"""

import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.definition import Call, Effect, Tool
from connectors.layout import nested
from connectors.request import Prepared
from server.identity import Caller
from server.policy import Condition
from server.visible import seen

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
    caller: Caller,
    call: Call,
    request: Prepared,
    *,
    account: str | None,
    ownership: str,
    done_before: str | None,
    lost_before: str | None = None,
) -> Prompt:
    """Write the prompt for one call from the request that will be sent.

    `done_before` says when the same agent last carried out exactly this call, as ISO 8601, or is None; `lost_before`,
    when it set about it and nobody knows what came of that.
    """
    acting = f"for {caller.member_name}" if caller.member_name else "standalone: nobody stands behind it"
    key = "your organisation's own key" if ownership == "own" else "a managed key of the operator"
    lines = [
        summary(call),
        "",
        f"Tool: {call.name}, which {EFFECTS[call.tool.effect]} ({call.tool.effect})",
        f"Account: {call.connection} ({plain(call.connector.title)}{f', {quote(account)}' if account else ''}), {key}",
        f"Asked by: agent {caller.agent_name}, {acting}, of {caller.org_name}",
        f"Request: {_requested(call, request)}",
    ]
    lines += _document(call)
    if call.arguments:
        lines.append("Written by the agent:")
        lines += [f"  {name} = {quote(value)}" for name, value in call.arguments.items()]
    else:
        lines.append("Written by the agent: nothing; this tool has no arguments here")
    if call.tool.fixed_query:
        added = "&".join(f"{name}={value}" for name, value in call.tool.fixed_query)
        lines.append(f"Added to the address by the connector, always: {quote(added)}")
    if call.tool.fixed_body:
        always = nested(call.tool.fixed_body)
        lines.append(f"Sent along by the connector, always: {quote(always)}")
    warnings = sorted({warning for value in call.arguments.values() for warning in suspicions(value)})
    lines += [f"Careful: {warning}" for warning in warnings]
    if done_before:
        lines.append(f"Careful: this agent has already done exactly this, at {done_before}")
    if lost_before:
        lines.append(f"Careful: exactly this was set about at {lost_before}; whether it was done, nobody knows")
    text = "\n".join(lines)
    return Prompt(text, whole=len(text) <= IN_CLIENT)


@dataclass(frozen=True)
class WorkTool:
    """A tool of work that is prepared ahead, and the account behind it."""

    name: str
    tool: Tool
    title: str
    account: str | None
    ownership: str
    base_url: str


def render_work(  # each is a line of the prompt
    *,
    name: str,
    org_name: str,
    asked_by: str,
    runs: str,
    why: str | None,
    tools: Sequence[WorkTool],
    bounds: Sequence[Condition],
    uses: int,
    until: str,
) -> str:
    """Write the prompt for work that is prepared ahead: every tool, every bound, and what is left open."""
    lines = [
        f"Approved work {quote(name)}: up to {uses} calls without asking again, until {until}",
        "",
        f"Run by: {runs}, of {org_name}",
        f"Prepared by: {asked_by}",
    ]
    if why:
        lines.append(f"Why, in their words: {quote(why)}")
    lines.append("Only where, in every call:" if bounds else "Whatever the arguments.")
    lines += [f"  {in_words(bound, quote)}" for bound in bounds]
    bounded = {bound.argument for bound in bounds if bound.op != "present" or not bound.value}
    for each in tools:
        tool, key = each.tool, "your organisation's own key" if each.ownership == "own" else "a managed key"
        account = f", {quote(each.account)}" if each.account else ""
        free = [argument.name for argument in tool.arguments if argument.name not in bounded]
        lines += [
            f"Tool: {each.name}, which {EFFECTS[tool.effect]} ({tool.effect})",
            f"  {plain(tool.title)}",
            f"  Account: {plain(each.title)}{account}, {key}",
            f"  Request: {_of_work(tool, each.base_url)}",
            f"  Left to the agent: {', '.join(free) or 'nothing'}",
        ]
    lines += [
        f"Careful: {warning}" for warning in sorted({one for text in (name, why or "") for one in suspicions(text)})
    ]
    return "\n".join(lines)


def in_words(bound: Condition, show: Callable[[Any], str]) -> str:
    """A bound as a person reads it: `amount at most 5000`. `show` makes a value fit for the place."""
    value: Any = bound.value
    if bound.op == "present":
        return f"{bound.argument} is {'given' if value else 'left out'}"
    if bound.op == "in":
        return f"{bound.argument} is one of {', '.join(show(one) for one in value)}"
    return f"{bound.argument} {_BOUNDS[bound.op]} {show(value)}"


_BOUNDS = {
    "equals": "is",
    "min": "at least",
    "max": "at most",
    "prefix": "begins with",
    "glob": "matches the pattern",
}


def _requested(call: Call, request: Prepared) -> str:
    server = call.connector.server
    if server is None:
        return f"{request.method} {_shown_url(request.url)}"
    if server.command:
        return f"{request.method}, of an MCP server that Keyleash starts: {quote(list(server.command))}"
    return f"{request.method}, of the MCP server at {_shown_url(request.url)}"


def _of_work(tool: Tool, base_url: str) -> str:
    if tool.upstream:
        return f"{tool.method} {tool.upstream}, of the MCP server {plain(base_url)}"
    return f"{tool.method} {plain(base_url.rstrip('/') + tool.path)}"


def _document(call: Call) -> list[str]:
    """For GraphQL, the rest of what is sent: the document, whole, and what Keyleash itself puts into a variable."""
    operation = call.tool.operation
    if operation is None:
        return []
    lines = [f"Document, from the connector's file: {plain(operation.document)}"]
    if operation.key_variable:
        lines.append(f"Added by Keyleash: {operation.key_variable}, a key by which a repeat of this request runs once")
    return lines


def summary(call: Call) -> str:
    """The connector's one line for this tool, its holes filled with quoted arguments."""
    return plain(call.tool.summary(call.arguments, lambda value: _short(quote(value))) or call.tool.title)


def quote(value: Any) -> str:
    """A value as JSON on one line, with every character that could deceive the eye written as an escape.

    >>> quote("a" + chr(0x202E) + "b")
    '"a\\\\u202eb"'
    """
    return "".join(map(_visible, json.dumps(value, ensure_ascii=False, sort_keys=True)))


def plain(text: str) -> str:
    """Text of a definition, on one line, with every character that could deceive the eye written as an escape."""
    return "".join(map(_visible, text))


def suspicions(value: Any) -> list[str]:
    """Reasons to look twice at a value, in words."""
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return [] if text.isascii() and text.isprintable() else [said for looks, said in _LOOKS if looks(text)]


def _hides(text: str) -> bool:
    return any(_visible(char) != char for char in text if char not in "\n\t\r")


def _mixes_scripts(text: str) -> bool:
    scripts = {_script(char) for char in text if char.isalpha()}
    return "LATIN" in scripts and bool(scripts & _LOOK_ALIKE)


def _is_all_twins(text: str) -> bool:
    """Whether all letters that are of a look-alike script look like latin ones: honest text has others among them."""
    letters = {char for char in text if char.isalpha() and _script(char) in _LOOK_ALIKE}
    return bool(letters) and letters <= _TWINS


def _is_styled(text: str) -> bool:
    return any(
        ord(char) > 0xFF and char not in _HONEST and unicodedata.normalize("NFKC", char).isascii() for char in text
    )


def _has_odd_signs(text: str) -> bool:
    """Phonetic letters, signs that are drawn like others, and digits of a script that the text is not written in."""
    foreign = any(char.isascii() and char.isalnum() for char in text) or not any(map(str.isalpha, text))
    return any(
        char in _ODD
        or 0x250 <= ord(char) <= 0x2AF
        or 0x1D00 <= ord(char) <= 0x1DBF
        or (foreign and not char.isascii() and char.isdecimal())
        for char in text
    )


_LOOKS: tuple[tuple[Callable[[str], bool], str], ...] = (
    (_hides, "the text holds invisible or direction-changing characters, shown here as \\u escapes"),
    (_mixes_scripts, "the text mixes latin letters with others that can look the same"),
    (_is_all_twins, "the text looks like latin letters and is written in others"),
    (_is_styled, "the text holds styled letters or digits that look like plain ones"),
    (_has_odd_signs, "the text holds rare letters, digits or signs that look like common ones"),
)
_LOOK_ALIKE = {"CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC", "LISU"}
_TWINS = frozenset(
    "\u0430\u0441\u0435\u043e\u0440\u0445\u0443\u0455\u0456\u0458\u04bb\u0501\u051b\u051d\u04cf\u0475"  # Cyrillic
    "\u0432\u043a\u043c\u043d\u0442\u0410\u0412\u0421\u0415\u041d\u0406\u0408\u041a\u041c\u041e\u0420"
    "\u0405\u0422\u0425\u0423\u04ae\u0474\u04c0"
    "\u03bf\u03bd\u03b9\u03c1\u03ba\u03c5\u03b1\u03f2\u03f3\u0391\u0392\u0395\u0396\u0397\u0399\u039a"  # Greek
    "\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03f9\u037f"
    "\u0585\u0578\u057d\u0570\u0581\u0566\u0555\u054d"  # Armenian
    "\u13aa\u13ac\u13ab\u13b7\u13bb\u13da\u13e2\u13a2\u13b3\u13c3\u13ce\u13d2\u13e6\u13de\u13df\u13f4"  # Cherokee
    "\u13d4\u13a1\u13a9\u13e9"
)
_HONEST = frozenset("\u2026\u2122\u2120\u2116")  # an ellipsis and marks that everybody writes
_ODD = frozenset("\u2044\u2215\u29f8\u2236\ua789\ua78a\u02ba\u02ee\u212e\u2374\u01c3\ua730\ua731")


def _visible(char: str) -> str:
    if seen(char):
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def _script(char: str) -> str:
    return unicodedata.name(char, "UNKNOWN").split(" ")[0]


def _short(text: str) -> str:
    """Long values are cut in the summary line only: the list of arguments shows them whole."""
    return text if len(text) <= 120 else text[:100] + '…" (whole below)'


def _shown_url(url: str) -> str:
    return url.split("?", 1)[0]
