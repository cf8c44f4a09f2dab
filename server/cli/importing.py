"""`keyleash connector import-openapi` and `connector new`: files in the connectors' folder, for a person to finish."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson
from server.cli.output import counted, show_fields, show_json, show_table, show_text, warn

if TYPE_CHECKING:
    from connectors.document import Described, Document
    from connectors.importing import Candidate


def import_openapi(
    source: Annotated[str, typer.Argument(metavar="FILE|URL", help="An OpenAPI document, as JSON or YAML.")],
    identifier: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The connector's id; of the document's title by default.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List what the document has, and write nothing.")] = False,
    search: Annotated[
        str | None, typer.Option("--search", metavar="WORDS", help="List what these words fit best, and write nothing.")
    ] = None,
    operation: Annotated[
        list[str] | None,
        typer.Option(
            "--operation", metavar="ID", help="Take this one: its operationId, or 'METHOD /path'. Repeatable."
        ),
    ] = None,
    tag: Annotated[
        str | None, typer.Option("--tag", metavar="TAG", help="Take, or list, all operations that have this tag.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Where to write, instead of the connectors' folder.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Make a connector of an OpenAPI document: chosen operations of it, with suggested effects, to be reviewed.

    Beside the file goes the part of the document that it needs, pinned by its hash: it is never fetched again.
    """
    from connectors import importing

    if (listed or search is not None) and (operation or output or identifier):
        raise typer.BadParameter("--list and --search write nothing: leave --operation, --id and --output out.")
    document = _read(source)
    tagged = [each for each in document.operations() if tag is None or tag in each.tags]
    if tag is not None and not tagged:
        raise typer.BadParameter(_no_tag(tag, _tags(document)))
    if search is not None:
        tagged = importing.search(tagged, search)
    if listed or search is not None:
        _show([importing.candidate(document, each) for each in tagged], json=json)
        return
    chosen = [*(document.find(name) for name in operation or ()), *(tagged if tag is not None else ())]
    if not chosen:
        _show_overview(document, len(tagged), json=json)
        return
    _write(document, _once(chosen), source, identifier, output, json=json)


def _once(chosen: Sequence["Described"]) -> list["Described"]:
    return list({each.call: each for each in chosen}.values())


def _write(
    document: "Document",
    chosen: Sequence["Described"],
    source: str,
    identifier: str | None,
    output: Path | None,
    *,
    json: bool,
) -> None:
    from connectors import importing
    from connectors.compiling import portable_name
    from server.settings import read_settings

    name = identifier or (output.stem if output else portable_name(document.title)) or "imported"
    target = output or read_settings().connectors / f"{name}.yaml"
    require_id(name, target)
    able = [importing.candidate(document, each) for each in chosen]
    for each in able:
        if each.refused:
            warn(f"{each.described.call} is left out: {each.refused}")
    offered = [each.described for each in able if not each.refused]
    if not offered:
        raise typer.BadParameter("none of these operations can be offered, so nothing was written.")
    made = importing.draft(document, offered, identifier=name, source=source)
    beside = target.with_name(f"{name}.openapi.json")
    files = {beside: made.document, target: made.text.encode()}
    try_loading(name, {path.name: content for path, content in files.items()})
    put(files)
    for note in made.notes:
        warn(note)
    if json:
        show_json(
            {
                "id": name,
                "file": str(target),
                "document": str(beside),
                "sha256": made.sha256,
                "tools": list(made.tools),
                "left_out": [{"operation": each.described.call, "why": each.refused} for each in able if each.refused],
                "notes": list(made.notes),
            }
        )
        return
    show_text(
        f"Wrote {target} with {counted(len(made.tools), 'tool')}, and {beside.name} beside it. Nobody has reviewed it: "
        "read it, remove what you do not need, then `keyleash connector check` it and set `reviewed: true`."
    )


ANOTHER = "`--id` gives another."


def require_id(name: str, target: Path, another: str = ANOTHER) -> None:
    """Refuse an id that a new file cannot have. Raises typer.BadParameter."""
    import re

    from connectors.catalogue import shipped_folder
    from connectors.source import NAME_MEND, NAME_PATTERN

    if not re.fullmatch(NAME_PATTERN, name):
        raise typer.BadParameter(f"{name!r} cannot be an id. {NAME_MEND} {another}")
    if target.name != f"{name}.yaml":
        raise typer.BadParameter(f"a connector's file is named for its id: {name}.yaml.")
    if (shipped_folder() / f"{name}.yaml").exists():
        raise typer.BadParameter(f"{name} is a connector that comes with Keyleash. {another}")


def try_loading(identifier: str, files: dict[str, bytes]) -> None:
    """Load what would be written, where nobody else looks; raises DefinitionError."""
    from connectors.loading import load

    with TemporaryDirectory(prefix="keyleash-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        load(Path(folder) / f"{identifier}.yaml")


MORE = "For one more operation: move both away, import all of them at once, an `--operation` for each"


def put(files: dict[Path, bytes], another: str = "take another id with `--id`", *, more: str = MORE) -> None:
    """Write these files, all or none of them; never over one that is there."""
    there = [path for path in files if path.exists()]
    if there:
        raise typer.BadParameter(_are_there(there, another, more))
    written: list[Path] = []
    try:
        for path, content in files.items():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            written.append(path)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise typer.BadParameter(
            f"{error.filename} cannot be written: {error.strerror}. `keyleash init` makes the folder that it is in."
        ) from None


def _are_there(paths: Sequence[Path], another: str, more: str) -> str:
    if len(paths) == 1:
        return f"{paths[0]} is there already. Remove it first, or {another}."
    (beside, file) = paths
    return (
        f"{file} and {beside.name} beside it are there already, and belong together. {more}, and carry over what you "
        f"had edited. Or {another}."
    )


# --- reading


def _read(source: str) -> "Document":
    from connectors.document import MAX_JSON, DocumentError, read_document

    if "://" in source:
        return read_document(_fetched(source), source)
    try:
        with Path(source).open("rb") as file:
            return read_document(file.read(MAX_JSON + 1), source)
    except OSError as error:
        raise DocumentError(f"The document cannot be read: {error.strerror}.", at=source) from None


def _fetched(url: str) -> bytes:
    import asyncio

    from connectors.egress import Egress
    from connectors.fetching import fetch

    async def once() -> bytes:
        async with Egress() as egress:
            return await fetch(egress, url)

    return asyncio.run(once())


# --- showing


def _show(candidates: Sequence["Candidate"], *, json: bool) -> None:
    if json:
        show_json([_as_json(each) for each in candidates])
        return
    show_table(
        ("OPERATION", "CALL", "EFFECT", "SCHEMA", "SUMMARY"),
        ((each.described.id, each.described.call, each.effect.value, _size(each), _about(each)) for each in candidates),
        empty="Nothing in the document fits.",
        prose=("SUMMARY",),
    )


def _as_json(each: "Candidate") -> dict[str, Any]:
    return {
        "operation": each.described.id or None,
        "method": each.described.method,
        "path": each.described.path,
        "tool": each.name,
        "effect": each.effect.value,
        "schema_bytes": each.size or None,
        "summary": each.described.summary,
        "tags": list(each.described.tags),
        "deprecated": each.described.deprecated,
        "refused": each.refused or None,
    }


def size_in_words(size: int) -> str:
    """How much of a model's attention a schema takes."""
    from connectors.importing import TOO_LARGE

    tokens = f"{size} B, ~{max(1, size // 4)} tokens"
    return f"{tokens}, much for a model" if size > TOO_LARGE else tokens


def _size(each: "Candidate") -> str:
    return "-" if each.refused else size_in_words(each.size)


def _about(each: "Candidate") -> str:
    marks = ["deprecated"] if each.described.deprecated else []
    marks += [f"cannot be offered: {each.refused}"] if each.refused else []
    return " ".join([each.described.summary, *(f"({mark})" for mark in marks)]).strip()


def _tags(document: "Document") -> list[str]:
    return sorted({tag for each in document.operations() for tag in each.tags})


def _no_tag(tag: str, tags: Sequence[str]) -> str:
    from connectors.source import suggestion

    some = f"{', '.join(tags[:20]) or 'none'}{', …' if len(tags) > 20 else ''}"
    return f"no operation has the tag {tag!r}. {suggestion(tag, tags)}The tags are {some}."


def _show_overview(document: "Document", operations: int, *, json: bool) -> None:
    shown = {
        "title": document.title,
        "openapi": str(document.root["openapi"]),
        "operations": operations,
        "tags": _tags(document),
    }
    if json:
        show_json(shown)
        return
    show_fields(shown)
    show_text("`--list` and `--search WORDS` show the operations; `--operation ID` takes one, and can be repeated.")


# --- a new one


def new(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="a-z, 0-9 and _; the file is named for it.")],
    json: AsJson = False,
) -> None:
    """Write a connector file to start from into the connectors' folder; `connector check` takes it as it is."""
    from server.settings import read_settings

    target = read_settings().connectors / f"{identifier}.yaml"
    require_id(identifier, target, "Give another ID.")
    text = SKELETON.format(id=identifier, title=identifier.replace("_", " ").capitalize())
    put({target: text.encode()}, "give another ID")
    if json:
        show_json({"id": identifier, "file": str(target)})
    else:
        show_text(f"Wrote {target}. Edit it; `keyleash connector check {target}` says by line what is wrong with it.")


SKELETON = """\
# {title}: what it is for. What stands here is an example in every line; README.md and docs/connectors.md say more.

id: {id}
title: {title}
reviewed: false # true once a person has read every tool; each then has to state its effect
base_url: https://api.example.com/v1 # every call stays below it
help: https://api.example.com/docs

credentials:
  token: # best first; a person picks one with --kind
    label: API token
    help: Say where to make one, and with which rights.
    scheme: bearer # or basic, or header or query with `name:`

verify: # harmless, and succeeds only with a working credential
  call: GET /me
  account: name # JMESPath: whose account it is

errors:
  message: error.message # JMESPath: where an error says what it says

tools:
  list_items:
    title: List items
    description: Items, newest first. For the model; say what comes back.
    call: GET /items
    effect: read # read, metered, sensitive, write, send, spend, destroy or grant: the strictest that is true
    arguments:
      limit: {{type: integer, minimum: 1, maximum: 100, default: 20, description: How many.}}
    output:
      select: "{{items: items[].{{id: id, name: name}}}}" # JMESPath: what of the answer the model gets

  rename_item:
    title: Rename an item
    description: Give an item another name.
    call: PATCH /items/{{item}}
    effect: write
    ask: Rename the item {{item}} to {{name}} # what a person agrees to; needed unless it is a read
    grant: [item] # what a one-hour answer keeps fixed; without it none is offered
    arguments:
      item: {{type: string, description: Its id.}}
      name: {{type: string, required: true, maxLength: 100, description: The new name.}}
"""
