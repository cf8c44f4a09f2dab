"""What the README says can be done: its connector loads, its commands exist, nothing in it waits to be filled in."""

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from connectors.catalogue import Catalogue, shipped_folder
from connectors.definition import Effect
from connectors.loading import parse
from server.cli import stdio_arguments
from server.cli.commands import app
from tests.written import FILES, written

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"```(\w*)\n(.*?)```", written(), re.DOTALL)
YAML = [body for language, body in BLOCKS if language == "yaml"]


def test_the_two_commands_stand_there_as_people_and_programs_read_them() -> None:
    for name in ("main", "test"):
        (command,) = re.findall(rf"^<!-- {name}: (.*) -->$", README, re.MULTILINE)
        assert f"```\n{command}\n```" in README


def test_the_connector_in_the_readme_is_a_whole_one() -> None:
    text = YAML[0]
    connector = parse(text, "status.yaml")
    assert connector.tools["post_update"].effect is Effect.SEND
    assert connector.tools["post_update"].grant == ("incident",)


def test_the_graphql_in_the_readme_is_the_rest_of_a_connector() -> None:
    head, _, _ = YAML[0].partition("verify:")
    tool = parse(head + YAML[1], "status.yaml").tools["post_update"]
    assert tool.effect is Effect.SEND
    assert tool.operation is not None
    assert tool.operation.kind == "mutation"


def test_the_openapi_in_the_readme_is_the_rest_of_a_connector(tmp_path: Path) -> None:
    text = {"schema": {"type": "string"}}
    body = {
        "type": "object",
        "required": ["message"],
        "properties": {"message": {}, "notify": {"type": "boolean"}, "eta": {}},
    }
    operation = {
        "operationId": "postUpdate",
        "parameters": [{"name": "id", "in": "path", "required": True, **text}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
    }
    paths = {"/incidents/{id}/updates": {"post": operation}}
    document = json.dumps({"openapi": "3.1.0", "info": {"title": "T", "version": "1"}, "paths": paths}).encode()
    (tmp_path / "status.openapi.json").write_bytes(document)
    head, _, _ = YAML[0].partition("verify:")
    pinned = re.sub(r'sha256: "[0-9a-f]{64}"', f'sha256: "{hashlib.sha256(document).hexdigest()}"', YAML[2])
    tool = parse(head + "reviewed: true\n" + pinned, str(tmp_path / "status.yaml")).tools["post_update"]
    assert tool.path == "/incidents/{incident}/updates"
    assert list(tool.input_schema["properties"]) == ["incident", "message"]
    assert tool.fixed_body == ((("notify",), True),)


def test_the_wrapped_server_in_the_readme_is_the_rest_of_a_connector() -> None:
    tool = parse(f"id: tracker\ntitle: Tracker\nreviewed: true\n{YAML[3]}", "tracker.yaml").tools["create_issue"]
    assert tool.effect is Effect.SEND
    assert [(argument.name, argument.required) for argument in tool.arguments] == [("title", True)]
    kept = parse(f"id: tracker\ntitle: Tracker\n{YAML[4]}{YAML[3]}", "tracker.yaml")
    assert kept.server is not None
    assert kept.server.keep_s == 600
    assert len(YAML) == 5


def commands() -> list[str]:
    lines = [line for language, body in BLOCKS if not language for line in body.replace("\\\n", "").splitlines()]
    return [re.split(r" [#>] ", line)[0].strip() for line in lines if line.startswith("keyleash ")]


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_readme_is_taken(line: str) -> None:
    words = shlex.split(line)[1:]
    if stdio_arguments(words) is not None:
        return
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
    # Parsing checks options, arguments and their types, and runs nothing.
    command.make_context(line, words, resilient_parsing=False)


def every_command(command: Any, path: tuple[str, ...] = ()) -> list[str]:
    if not hasattr(command, "commands"):
        return [" ".join(path)]
    return [each for name, under in command.commands.items() for each in every_command(under, (*path, name))]


@pytest.mark.parametrize("name", every_command(typer.main.get_command(app)))
def test_every_command_is_told_somewhere(name: str) -> None:
    assert name in " ".join(written().split())


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 10


def test_every_connector_that_comes_with_it_is_named() -> None:
    titles = {connector.title for connector in Catalogue.load(shipped_folder()).connectors.values()}
    section = README.partition("## What can be connected")[2].partition("\n## ")[0]
    assert {title for title in titles if title not in section} == set()


def test_nothing_waits_to_be_filled_in() -> None:
    assert not re.search(r"BENCH|TODO|FIXME|TBD", written())


def anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("file", [*FILES, ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md"], ids=lambda file: file.name)
def test_every_link_to_a_file_or_a_heading_leads_there(file: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", file.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        led = (file.parent / name).resolve() if name else file
        assert led.exists(), target
        assert not anchor or anchor in anchors(led.read_text(encoding="utf-8")), target


def test_the_readme_leads_to_every_page() -> None:
    assert {file for file in FILES[1:] if f"](docs/{file.name})" not in README} == set()
