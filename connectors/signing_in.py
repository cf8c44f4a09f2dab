"""The ways to sign in that a document names, in the words of a connector file; and what cannot be taken over."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from connectors.arguments import RESERVED_HEADERS
from connectors.compiling import portable_name
from connectors.document import Described, Document, Part, line

MOST = 300  # characters of a description

_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")


@dataclass(frozen=True, slots=True)
class Way:
    """Lines of the file, and where the credential will stand."""

    lines: tuple[str, ...]
    header: str = ""
    query: str = ""


def ways_to_sign_in(document: Document, chosen: Sequence[Described]) -> tuple[list[Way], list[str]]:
    """The ways to sign in that the chosen operations name, in our words; and what there is to say of them."""
    components = Part(document.root, "").get("components")
    schemes = components.get("securitySchemes") if components else None
    wanted = {name for each in chosen for name in _named(each, document)}
    ways: list[Way] = []
    notes: list[str] = []
    for name, part in schemes.items() if schemes else ():
        if wanted and name not in wanted:
            continue
        way, note = _way(portable_name(name) or "credential", document.resolve(part))
        ways += [way] if way else []
        notes += [f"{line(name)}: {note}"] if note else []
    if not ways:
        notes.append("No way to sign in could be taken from the document: write `credentials` by the vendor's pages.")
        ways.append(_simple("token", "bearer", "Say where to make one, and with which rights.")[0])
    return ways, notes


def _named(described: Described, document: Document) -> Iterator[str]:
    own = described.part.get("security") or Part(document.root, "").get("security")
    for each in own.list() if own else ():
        yield from each.mapping


def _way(identifier: str, part: Part) -> tuple[Way | None, str]:
    kind, scheme, where = part.text("type"), part.text("scheme").lower(), part.text("in")
    said = beginning(line(part.text("description"))) or "Say where to make one, and with which rights."
    if kind == "http" and scheme == "bearer":
        return _simple(identifier, "bearer", said)
    if kind == "http" and scheme == "basic":
        fields = ("    fields:", "      user: {label: User name, secret: false}", "      password: {label: Password}")
        return Way((*_lines(identifier, "basic", said), *fields), header="Authorization"), ""
    if kind in ("oauth2", "openIdConnect"):
        way, _ = _simple(identifier, "bearer", "An OAuth access token. It ends, and is not refreshed here.")
        return way, "signing in by OAuth is taken as a pasted access token."
    if kind == "apiKey" and where in ("header", "query"):
        return _key(identifier, where, line(part.text("name")), said)
    return None, " ".join(f"signing in by {kind or 'nothing'} {scheme or where} is not done here.".split())


def _key(identifier: str, where: str, name: str, said: str) -> tuple[Way | None, str]:
    lines = (*_lines(identifier, where, said), f"    name: {quoted(name)}")
    if where == "query" and name:
        return Way(lines, query=name), ""
    if not _HEADER.fullmatch(name) or name.lower() in RESERVED_HEADERS - {"authorization"}:
        return None, f"a key in the {where} {name!r} cannot be sent."
    note = "Authorization takes the bare key; add `prefix:` if a word belongs before it."
    return Way(lines, header=name), note if name.lower() == "authorization" else ""


def _simple(identifier: str, scheme: str, said: str) -> tuple[Way, str]:
    return Way(_lines(identifier, scheme, said), header="Authorization"), ""


def _lines(identifier: str, scheme: str, said: str) -> tuple[str, ...]:
    label = identifier.replace("_", " ")
    return f"  {identifier}:", f"    label: {quoted(label)}", f"    help: {quoted(said)}", f"    scheme: {scheme}"


# --- texts


def beginning(text: str, most: int = MOST) -> str:
    """The first sentences of a description."""
    if len(text) <= most:
        return text
    end = max(text.rfind(f"{sign} ", 0, most) for sign in ".!?")
    return text[: end + 1] if end > 40 else f"{text[: most - 1].rstrip()}…"


def quoted(text: str) -> str:
    """A text as YAML takes it on one line: as JSON has it, but for what cannot be seen."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in quoted)
