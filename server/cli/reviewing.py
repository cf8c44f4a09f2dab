"""`keyleash connector review`: what a wrapped server says now of tools that are held, against what was reviewed.

Looking is the admins'. Saying yes writes into a connector's file, which every org of the installation uses: it is the
operator's, and counts for all of them.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, AsMember, Desk, OrgName, Yes, at_desk
from server.cli.output import counted, say, show_json, show_text, warn

if TYPE_CHECKING:
    from connectors.definition import Connector, Tool
    from connectors.upstream import Definition
    from server.held import Held

MOST_LINES = 400
"""Of one tool's difference; --json shows all of it."""


@dataclass(frozen=True)
class Reviewed:
    """A tool that is held, with the file that pins it, what was reviewed, and what was found."""

    held: "Held"
    connector: "Connector"
    tool: "Tool"
    before: "Definition | None"
    found: "Definition | None"

    @property
    def name(self) -> str:
        """As agents know the tool."""
        return f"{self.held.name}_{self.tool.name}"

    @property
    def path(self) -> Path:
        return Path(self.connector.file)


def review(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[CONNECTION|FILE]", help="Of this connection or connector file; of all by default."),
    ] = None,
    yes: Yes = False,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Show what wrapped servers have changed of tools that are held; said yes to, it is pinned and called again.

    Looking takes the role admin or owner. The file is the installation's, so that only the operator says yes. With
    --json nothing is asked, and nothing changed unless `--yes` says so.
    """
    with at_desk(org, as_member, "review definitions") as desk:
        found, stale = _found(desk, what)
        if json and not yes:
            show_json([_as_json(each) for each in found])
            return
        _forget(desk, stale)
        if not found:
            _say_nothing(desk, what, json=json)
            return
        accepted = [each for each in found if _accepted(desk, each, yes=yes, quiet=json)]
        if json:
            show_json([{**_as_json(each), "accepted": each in accepted} for each in found])
        elif accepted:
            show_text(f"{counted(len(accepted), 'tool')} reviewed. Approvals and grants given before count no more.")


# --- what is held


def _found(desk: Desk, what: str | None) -> tuple[list[Reviewed], list["Held"]]:
    """The tools that are held, and those that no file here pins as they were then. Raises ConnectionProblem."""
    from server.connections import ConnectionProblem, connections_of
    from server.held import held_of, pinned_by

    names = {connection.name for connection in connections_of(desk.database, desk.org.id)}
    catalogue = desk.installation.catalogue
    file = _connector_of(what, catalogue) if what is not None and what not in names else None
    if what is not None and what not in names and file is None:
        raise ConnectionProblem(f"There is no connection {what!r}, and no connector file of that name.")
    reviewed, stale = list[Reviewed](), list["Held"]()
    for held in held_of(desk.database, desk.org.id):
        if what is not None and held.name != what and held.connector != file:
            continue
        tool = pinned_by(held, catalogue.connectors)
        if tool is not None:
            reviewed.append(_reviewed(held, catalogue.connectors[held.connector], tool))
            continue
        connector = catalogue.connectors.get(held.connector)
        now = connector.tools.get(held.tool) if connector is not None else None
        _say_stale(held, pins_it=now is not None and now.pinned == held.found)
        stale.append(held)
    return reviewed, stale


def _connector_of(what: str, catalogue: Any) -> str | None:
    """The connector whose id or file this is."""
    if what in catalogue.connectors:
        return what
    path = Path(what)
    known = catalogue.connectors.get(path.stem)
    return path.stem if known is not None and path.exists() and Path(known.file).resolve() == path.resolve() else None


def _reviewed(held: "Held", connector: "Connector", tool: "Tool") -> Reviewed:
    from connectors.repinning import kept
    from connectors.upstream import Definition

    found = Definition(held.definition) if held.definition is not None else None
    return Reviewed(held, connector, tool, kept(Path(connector.file)).get(tool.pinned), found)


def _say_stale(held: "Held", *, pins_it: bool) -> None:
    """A hold against a pin that this machine's file does not have: it counts nowhere here."""
    if pins_it:
        warn(
            f"{held.name}_{held.tool} was held, and {held.connector}.yaml pins here what was found. If it is held "
            "again, a server on another machine has an older copy of the file: copy it there."
        )
    else:
        say(f"{held.name}_{held.tool} was held for a definition that its file does not pin any more.")


def _say_nothing(desk: Desk, what: str | None, *, json: bool) -> None:
    if json:
        show_json([])
    else:
        say(f"Nothing is held{'' if what is None else f' of {what}'}.")


# --- saying yes


def _accepted(desk: Desk, each: Reviewed, *, yes: bool, quiet: bool) -> bool:
    """Show one tool, ask, and pin what was shown; False where it stays held."""
    from server.cli.terminal import ask_yes

    if not quiet:
        _show(each)
    cannot = _cannot(each)
    if cannot:
        warn(f"{each.name} stays held: {cannot}")
        return False
    if not yes and not ask_yes(f"Pin this, and let {each.name} be called again?", otherwise="Add `--yes` to say so."):
        say(f"{each.name} stays held.")
        return False
    desk.require_operator("saying yes to a wrapped server's definition, which is pinned for every org")
    _pin(desk, each)
    return True


def _cannot(each: Reviewed) -> str:
    """Why what was found cannot be said yes to; empty where it can."""
    from connectors.catalogue import shipped_folder

    if each.held.gone:
        return f"its server has no tool {each.tool.upstream} any more. Remove it from {each.path}."
    if each.found is None:
        return "what its server says is too long to be shown. Import it anew: `keyleash connector import-mcp`."
    if each.path.parent.resolve() == shipped_folder().resolve():
        return (
            f"{each.path} comes with Keyleash, and with a release: upgrade, or copy the file under another name into "
            "the connectors' folder, review it there, and connect that."
        )
    if not os.access(each.path.parent, os.W_OK):
        return f"{each.path} cannot be written to by this user: whoever keeps it has to run this."
    return ""


def _pin(desk: Desk, each: Reviewed) -> None:
    """Write the file, then let go of the tool in every org that holds it for the same. Raises DefinitionError."""
    text, edited, left = _new_text(each)
    _write(each, text)
    for key in edited:
        say(f"{each.path}: `{key}` of {each.tool.name} is new as well.")
    if left:
        kept = ", ".join(f"`{key}`" for key in left)
        warn(f"{each.path}: {kept} of {each.tool.name} stays as a person wrote it. Look whether it still fits.")
    _let_go(desk, each, edited)


def _new_text(each: Reviewed) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The file with what was found; with the pin alone where the rest would not load."""
    from connectors.errors import DefinitionError
    from connectors.loading import parse
    from connectors.repinning import repinned

    assert each.found is not None  # noqa: S101 - for the type checker: `_cannot` has looked
    text = each.path.read_text(encoding="utf-8")
    whole = repinned(text, str(each.path), each.tool, each.before, each.found)
    try:
        parse(whole.text, str(each.path))
    except DefinitionError:
        pin_only = text.replace(each.tool.pinned, each.found.hash)
        parse(pin_only, str(each.path))
        return pin_only, (), (*whole.edited, *whole.left)
    return whole.text, whole.edited, whole.left


def _write(each: Reviewed, text: str) -> None:
    """Both files, the definitions first: with a pin that is not among them nothing is lost but what to compare with."""
    from connectors.repinning import beside, kept, written

    assert each.found is not None  # noqa: S101 - as above
    known = [one for hash_, one in kept(each.path).items() if hash_ in text or hash_ == each.found.hash]
    known = [each.found, *(one for one in known if one.hash != each.found.hash)]
    _replace(beside(each.path), written(known))
    _replace(each.path, text.encode())


def _replace(path: Path, content: bytes) -> None:
    """Whole or not at all, and for this user alone. Raises ConnectionProblem."""
    from server.connections import ConnectionProblem

    target = path.resolve()
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".keyleash-")  # made with mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(target)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise ConnectionProblem(f"{path} was not changed: {error.strerror}. The tool stays held.") from None


def _let_go(desk: Desk, each: Reviewed, edited: Sequence[str]) -> None:
    from server.audit import Event
    from server.cli.acting import operators_name
    from server.held import held_of, let_go

    def gone(held: "Held", by: str) -> None:
        about = {"edited": list(edited), "effect": _effect_after(each)}
        rows = desk.installation.database.of(held.org)
        rows.write_now(lambda rows: let_go(rows, held, Event.TOOL_REVIEWED, by=by, **about))

    for org in desk.installation.directory.orgs():
        for held in held_of(desk.installation.database, org.id):
            if _of(held) == _of(each.held):
                gone(held, desk.by if org.id == desk.org.id else operators_name())


def _of(held: "Held") -> tuple[str, ...]:
    return held.connector, held.tool, held.pinned, held.found


def _forget(desk: Desk, stale: Sequence["Held"]) -> None:
    """What counts against no pin of this machine's files is held no longer, as far as these are concerned."""
    from server.audit import Event
    from server.held import let_go

    for each in stale:
        desk.database.write_now(lambda rows, each=each: let_go(rows, each, Event.TOOL_RETURNED, by=desk.by))


# --- showing


def _difference(each: Reviewed) -> list[str]:
    """What is new, against the reviewed definition or, where that was not kept, against what the file says."""
    from connectors.repinning import difference

    if each.found is None:
        return []
    before = each.before.raw if each.before is not None else _in_file(each.tool)
    return list(difference(before, each.found.raw))


def _in_file(tool: "Tool") -> dict[str, Any]:
    schema = dict(tool.input_schema)
    return {"name": tool.upstream, "title": tool.title, "description": tool.description, "inputSchema": schema}


def _effect_after(each: Reviewed) -> str:
    from connectors.repinning import effect_after

    return effect_after(each.tool, each.before, each.found).value if each.found is not None else ""


def _show(each: Reviewed) -> None:
    from server.clock import iso

    show_text(f"{each.name}, held since {iso(each.held.found_at)}; pinned in {each.path}")
    if each.found is None:
        return
    if each.before is None:
        say("What was reviewed was not kept: this is against what the file says, which may be a person's words.")
    lines = _difference(each)
    for line in lines[:MOST_LINES]:
        show_text(f"  {line}")
    if len(lines) > MOST_LINES:
        warn(f"{len(lines) - MOST_LINES} further lines are not shown here: `--json` shows them all.")
    stated, after = (each.tool.unreviewed or each.tool.effect).value, _effect_after(each)
    show_text(f"  effect: {stated}" if stated == after else f"  effect: {stated}, raised to {after}")


def _as_json(each: Reviewed) -> dict[str, Any]:
    from server.clock import iso

    return {
        "tool": each.name,
        "connection": each.held.name,
        "connector": each.connector.id,
        "file": str(each.path),
        "upstream": each.tool.upstream,
        "pinned": each.held.pinned,
        "found": each.held.found or None,
        "gone": each.held.gone,
        "held_since": iso(each.held.found_at),
        "effect": (each.tool.unreviewed or each.tool.effect).value,
        "effect_after": _effect_after(each) or None,
        "difference": _difference(each),
        "definition": dict(each.found.raw) if each.found is not None else None,
        "cannot": _cannot(each) or None,
    }
