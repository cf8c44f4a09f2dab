"""`client add` makes the agent and writes the client's file, both or neither; `show` needs nothing to exist."""

import json
import os
import stat
import tomllib
from pathlib import Path

import pytest

from server.cli.checks.finding import Patient
from server.cli.checks.machine import clients
from server.cli.clients import CLIENTS, add, entry
from server.settings import Settings
from tests.commandline import CommandLine, with_environment
from tests.installed import SECRET, Place


def agents(line: CommandLine) -> list[str]:
    return [agent["name"] for agent in line("agent", "list", "--json").json]


def servers(line: CommandLine, client: str) -> dict[str, object]:
    path = Path(line("client", "show", client, "--json").json["path"])
    text = path.read_text()
    document = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    found: dict[str, object] = document[CLIENTS[client].table]
    return found


def environment(line: CommandLine) -> dict[str, str]:
    """What a server that a client starts has to find of what is set here."""
    names = ("KEYLEASH_HOME", "KEYLEASH_DATABASE", "KEYLEASH_HOLD_SECONDS")
    return {name: line.environment[name] for name in names if line.environment.get(name)}


def environment_of(line: CommandLine, client: str) -> dict[str, str]:
    entry = servers(line, client)["keyleash"]
    assert isinstance(entry, dict)
    found: dict[str, str] = entry["env"]
    return found


@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_gets_an_agent_and_an_entry_that_starts_it(owner: CommandLine, place: Place, client: str) -> None:
    ran = owner("client", "add", client, "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["action"], ran.json["agent"], ran.json["agent_created"]) == ("added", client, True)
    entry = servers(owner, client)["keyleash"]
    assert isinstance(entry, dict)
    assert entry["args"] == ["serve", "--agent", client, "--org", "acme"]
    assert entry["env"] == environment(owner)
    assert Path(entry["command"]).is_absolute()
    assert Path(entry["command"]).name == "keyleash"
    assert place.caller(client).member_name == "alice"
    again = owner("client", "add", client, "--json")
    assert (again.code, again.json["action"], again.json["agent_created"]) == (0, "unchanged", False)
    gone = owner("client", "remove", client, "--json")
    assert (gone.code, gone.json["action"]) == (0, "deleted")
    assert not Path(ran.json["path"]).exists()
    assert client in agents(owner)
    assert owner("client", "remove", client, "--json").json["action"] == "absent"


def test_another_agents_entry_is_named_and_stays(owner: CommandLine) -> None:
    path = Path(owner("client", "add", "cursor", "--agent", "reconciler", "--json").json["path"])
    before = path.read_text()
    for more in ((), ("--json",)):
        ran = owner("client", "remove", "cursor", *more)
        assert (ran.code, ran.out) == (1, "")
        assert "`keyleash client remove cursor --agent reconciler`" in ran.err
    assert path.read_text() == before
    assert owner("client", "remove", "cursor", "--agent", "reconciler").code == 0


def test_what_is_in_the_file_stays_and_a_backup_is_named(owner: CommandLine) -> None:
    path = owner.person / ".claude.json"
    before = '{\n    "theme": "dark",\n    "mcpServers": {"other": {"command": "x"}}\n}\n'
    path.write_text(before)
    ran = owner("client", "add", "claude-code", "--agent", "reconciler")
    assert ran.code == 0
    assert ".keyleash-backup-" in ran.err
    assert set(servers(owner, "claude-code")) == {"other", "keyleash"}
    assert owner("client", "remove", "claude-code", "--agent", "reconciler").code == 0
    assert path.read_text() == before


def test_a_file_that_cannot_be_edited_leaves_no_agent_and_prints_what_to_paste(
    owner: CommandLine, place: Place
) -> None:
    path = owner.person / ".claude.json"
    path.write_text("{ this is not JSON")
    before = len(place.events())
    ran = owner("client", "add", "claude-code")
    assert ran.code == 1
    assert path.read_text() == "{ this is not JSON"
    assert '"mcpServers"' in ran.err
    assert agents(owner) == ["reconciler"]
    assert len(place.events()) == before
    assert sorted(file.name for file in owner.person.iterdir()) == [".claude.json"]


@pytest.mark.sqlite_only("its trigger is in SQLite's language")
def test_where_the_agent_cannot_be_made_the_file_is_as_it_was(owner: CommandLine, place: Place) -> None:
    path = owner.person / ".claude.json"
    path.write_text('{"mcpServers": {}}')
    assert owner("client", "add", "claude-code", "--agent", "Bad Name").code == 1
    # The database takes the agent's row and then refuses the commit: what was written in between is taken back.
    place.database.write_now(
        lambda rows: rows.execute("CREATE TABLE promise (x TEXT REFERENCES org (id) DEFERRABLE INITIALLY DEFERRED)")
    )
    place.database.write_now(
        lambda rows: rows.execute(
            "CREATE TRIGGER broken AFTER INSERT ON agent BEGIN INSERT INTO promise VALUES ('no such org'); END"
        )
    )
    ran = owner("client", "add", "claude-code")
    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert path.read_text() == '{"mcpServers": {}}'
    assert agents(owner) == ["reconciler"]


def test_a_projects_own_file_is_written_where_the_client_has_one(owner: CommandLine, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    ran = owner("client", "add", "vscode", "--project", str(project), "--json")
    assert ran.json["path"] == str(project / ".vscode" / "mcp.json")
    refused = owner("client", "add", "claude-desktop", "--project", str(project))
    assert refused.code == 1
    assert "claude-desktop" not in agents(owner)
    relative = owner("client", "add", "cursor", "--project", ".", "--json", cwd=project)
    assert relative.json["path"] == str(project / ".cursor" / "mcp.json")


SET = {
    "KEYLEASH_TRANSIT_ADDR": "https://bao.example.com",
    "KEYLEASH_TRANSIT_TOKEN_FILE": "/run/transit.token",
    "KEYLEASH_TRANSIT_CA_FILE": "/etc/bao.pem",
    "KEYLEASH_KV_ADDR": "https://kv.example.com",
    "KEYLEASH_KV_TOKEN_FILE": "/run/kv.token",
    "KEYLEASH_KV_CA_FILE": "/etc/kv.pem",
    "KEYLEASH_OP_TOKEN_FILE": "/run/op.token",
    "KEYLEASH_OAUTH_APPS": "/etc/keyleash/apps.json",
    "KEYLEASH_PUBLIC_URL": "https://keyleash.example.com",
    "KEYLEASH_KEEP_DAYS": "90",
}


@pytest.mark.parametrize("client", CLIENTS)
def test_the_entry_holds_what_the_server_has_to_find_and_comes_out_again(owner: CommandLine, client: str) -> None:
    line = with_environment(owner, {**SET, "KEYLEASH_TOKEN": SECRET, "KEYLEASH_ALLOWED_HOSTS": "keyleash.example.com"})
    path = Path(line("client", "show", client, "--json").json["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    before = "# mine\n" if client == "codex" else '{"theme": "dark"}\n'
    path.write_text(before)
    assert line("client", "add", client).code == 0
    assert environment_of(line, client) == {**environment(line), **SET}
    assert SECRET not in path.read_text()
    assert line("client", "remove", client, "--json").json["action"] == "restored"
    assert path.read_text() == before


def test_an_entry_from_before_is_brought_up_to_date_and_still_comes_out(owner: CommandLine) -> None:
    for client in ("cursor", "codex"):
        path = Path(owner("client", "show", client, "--json").json["path"])
        add(CLIENTS[client], entry("/bin/keyleash", client, owner.home, "acme"), path)
    more = with_environment(owner, SET)
    assert more("client", "add", "cursor", "--json").json["action"] == "updated"
    assert set(SET) < set(environment_of(more, "cursor"))
    assert environment_of(more, "codex") == {"KEYLEASH_HOME": str(owner.home)}
    assert more("client", "remove", "codex", "--json").json["action"] == "deleted"
    assert more("client", "remove", "cursor", "--json").json["action"] == "removed"
    assert servers(more, "cursor") == {}


URL = "postgresql://keyleash_app@db.example.com/keyleash"


def test_a_snippet_names_the_database_and_no_password_and_no_owner(keyleash: CommandLine) -> None:
    owns = {"KEYLEASH_DATABASE": URL, "KEYLEASH_DATABASE_OWNER": "postgresql://boss@db.example.com/keyleash"}
    ran = with_environment(keyleash, owns)("client", "show", "cursor", "--org", "acme")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["mcpServers"]["keyleash"]["env"]["KEYLEASH_DATABASE"] == URL
    assert "boss" not in ran.out
    for secret in (URL.replace("@", f":{SECRET}@"), f"{URL}?password={SECRET}"):
        refused = with_environment(keyleash, {"KEYLEASH_DATABASE": secret})("client", "show", "cursor", "--org", "acme")
        assert (refused.code, refused.out) == (1, "")
        assert "~/.pgpass" in refused.err
        assert SECRET not in refused.err


def test_doctor_notices_an_entry_that_does_not_name_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    command = tmp_path / "keyleash"
    command.touch(stat.S_IRWXU)
    file = tmp_path / ".cursor" / "mcp.json"
    on_postgres = Patient(Settings(home=tmp_path, database_url=URL), None)

    def said(patient: Patient) -> str:
        return " ".join(finding.message for finding in clients(patient) if finding.status != "ok")

    add(CLIENTS["cursor"], entry(command, "cursor", tmp_path), file)
    assert "without KEYLEASH_DATABASE" in said(on_postgres)
    assert "keyleash client add cursor --agent cursor" in said(on_postgres)
    assert said(Patient(Settings(home=tmp_path), None)) == ""
    assert said(Patient(Settings(home=tmp_path / "elsewhere", database_url=URL), None)) == ""
    add(CLIENTS["cursor"], entry(command, "cursor", tmp_path, settings={"KEYLEASH_DATABASE": URL}), file)
    assert said(on_postgres) == ""


def test_show_prints_the_snippet_and_needs_no_installation(keyleash: CommandLine) -> None:
    for client in CLIENTS:
        ran = keyleash("client", "show", client)
        assert ran.code == 0
        document = tomllib.loads(ran.out) if client == "codex" else json.loads(ran.out)
        (entry,) = document[CLIENTS[client].table].values()
        assert entry["args"] == ["serve", "--agent", client]
        assert entry["env"] == environment(keyleash)
    assert not keyleash.home.exists()
    assert list(keyleash.person.iterdir()) == []


def test_show_knows_the_org_and_makes_no_agent(owner: CommandLine, place: Place) -> None:
    shown = owner("client", "show", "claude-code", "--agent", "someone", "--json").json
    assert shown["entry"]["args"] == ["serve", "--agent", "someone", "--org", "acme"]
    assert agents(owner) == ["reconciler"]


def test_show_for_http_holds_no_token(owner: CommandLine) -> None:
    ran = owner("client", "show", "cursor", "--http", "http://127.0.0.1:8700/agent/mcp")
    assert json.loads(ran.out)["mcpServers"]["keyleash"]["headers"] == {"Authorization": "Bearer ${env:KEYLEASH_TOKEN}"}
    assert owner("client", "show", "claude-desktop", "--http", "http://127.0.0.1:8700/agent/mcp").code == 1


def test_show_for_http_says_where_agents_connect_and_where_the_token_goes(owner: CommandLine) -> None:
    for url in ("https://keyleash.example.com", "https://keyleash.example.com/"):
        ran = owner("client", "show", "cursor", "--http", url)
        assert json.loads(ran.out)["mcpServers"]["keyleash"]["url"] == "https://keyleash.example.com/agent/mcp"
        assert "goes into the variable KEYLEASH_TOKEN" in ran.err
        assert "merges" not in ran.err
    assert (
        "https://example.com/kl/agent/mcp"
        in owner("client", "show", "codex", "--http", "https://example.com/kl/agent/mcp").out
    )
    asked = owner("client", "show", "vscode", "--http", url)
    assert "is asked for by VS Code" in asked.err
    assert "KEYLEASH_TOKEN" not in asked.err
    assert "merges it for you" in owner("client", "show", "cursor").err


def test_an_unknown_client_is_misuse(owner: CommandLine) -> None:
    for verb in ("add", "remove", "show"):
        ran = owner("client", verb, "emacs")
        assert (ran.code, ran.out) == (2, "")
        assert "claude-code" in ran.err


def test_the_command_that_is_written_is_the_one_that_ran(
    owner: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.cli.client import keyleash_command

    script = tmp_path / "bin" / "keyleash"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(stat.S_IRWXU)
    monkeypatch.setattr("sys.argv", [str(script)])
    assert keyleash_command() == script
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [os.path.join("bin", "keyleash")])  # noqa: PTH118 - a relative text
    assert keyleash_command() == script
