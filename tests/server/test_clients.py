"""Keyleash enters a client's own configuration file and leaves it again without losing a byte of anybody else's."""

import json
import os
import stat
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.cli import clients, tomlfile
from server.cli.clients import CLIENTS, Change, Client, ClientError, add, entry, installed, remote, remove, snippet

NOW = datetime(2026, 11, 23, 9, 30, 0, 123456, tzinfo=UTC)
ENTRY = entry("/opt/keyleash/bin/keyleash", "reconciler", "/home/mia/.keyleash")
SERVER = {
    "command": "/opt/keyleash/bin/keyleash",
    "args": ["serve", "--agent", "reconciler"],
    "env": {"KEYLEASH_HOME": "/home/mia/.keyleash"},
}
JSON_CLIENTS = [client for client in CLIENTS.values() if client.format == "json"]
VSCODE, CODEX, CLAUDE, GEMINI = (CLIENTS[name] for name in ("vscode", "codex", "claude-code", "gemini"))


def backups(path: Path) -> list[Path]:
    return sorted(path.parent.glob(path.name + ".keyleash-backup-*"))


def value_of(client: Client, path: Path) -> dict:
    text = path.read_bytes().decode("utf-8-sig")
    return tomllib.loads(text) if client.format == "toml" else json.loads(text)


def put(path: Path, content: str | bytes) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(raw)
    return raw


def refused_untouched(path: Path, before: bytes, client: Client, saying: str) -> ClientError:
    with pytest.raises(ClientError, match=saying) as caught:
        add(client, ENTRY, path, now=NOW)
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == [path]
    return caught.value


# Every client


@pytest.mark.parametrize("client", CLIENTS.values(), ids=lambda client: client.id)
class TestEveryClient:
    def test_an_entry_is_found_where_the_client_looks_for_it(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "config"
        change = add(client, ENTRY, path, now=NOW)
        assert change == Change(path, "keyleash", "added", None)
        found = value_of(client, path)[client.table]["keyleash"]
        assert {key: found[key] for key in SERVER} == SERVER
        assert set(found) - set(SERVER) <= {"type"}

    def test_the_snippet_is_the_file_that_add_makes(self, client: Client, tmp_path: Path) -> None:
        add(client, ENTRY, tmp_path / "config", now=NOW)
        assert (tmp_path / "config").read_text() == snippet(client, ENTRY)

    def test_a_missing_folder_is_made_and_the_file_is_gone_after_undo(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b" / "config"
        add(client, ENTRY, path, now=NOW)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert remove(client, path, agent="reconciler").action == "deleted"
        assert not path.exists()

    def test_adding_twice_changes_nothing_the_second_time(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "config"
        put(path, snippet(client, entry("/x/other", "a", "/h"), name="theirs"))
        add(client, ENTRY, path, now=NOW)
        before, old = path.read_bytes(), backups(path)
        assert add(client, ENTRY, path, now=NOW).action == "unchanged"
        assert path.read_bytes() == before
        assert backups(path) == old

    def test_undo_restores_the_exact_bytes_and_spends_the_backup(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "config"
        before = put(path, snippet(client, entry("/x/other", "a", "/h"), name="theirs"))
        change = add(client, ENTRY, path, now=NOW)
        assert change.backup == path.with_name("config.keyleash-backup-20261123T093000.123456Z")
        assert change.backup.read_bytes() == before
        assert remove(client, path, agent="reconciler").action == "restored"
        assert path.read_bytes() == before
        assert backups(path) == []

    def test_removing_what_is_not_there_changes_nothing(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "config"
        assert remove(client, path, agent="reconciler").action == "absent"
        assert not path.exists()
        before = put(path, snippet(client, ENTRY))
        assert remove(client, path, agent="another").action == "absent"
        assert path.read_bytes() == before

    def test_what_was_added_since_survives_the_removal(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "config"
        first, second = entry("/x/one", "a", "/h"), entry("/x/two", "b", "/h")
        put(path, snippet(client, first, name="first"))
        add(client, ENTRY, path, now=NOW)
        add(client, entry("/x/keyleash", "helper", "/h"), path, now=NOW)
        change = remove(client, path, agent="reconciler", now=NOW)
        assert change.action == "removed"
        assert change.backup is not None
        assert set(value_of(client, path)[client.table]) == {"first", "keyleash-helper"}
        assert second not in installed(client, path)

    def test_an_update_keeps_what_a_person_added_to_the_entry(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "config"
        add(client, entry("/old/keyleash", "reconciler", "/home/mia/.keyleash"), path, now=NOW)
        text = path.read_text()
        if client.format == "toml":
            put(
                path,
                text.replace("args =", "tool_timeout_sec = 90 # slow\nargs =").replace("env = { ", "env = { A='b',"),
            )
        else:
            put(path, text.replace('"args":', '"timeout": 90,\n      "args":').replace('"env": {', '"env": {"A": "b",'))
        change = add(client, ENTRY, path, now=NOW)
        assert (change.name, change.action) == ("keyleash", "updated")
        found = value_of(client, path)[client.table]["keyleash"]
        assert found["command"] == ENTRY.command
        assert found["env"] == {"KEYLEASH_HOME": "/home/mia/.keyleash", "A": "b"}
        assert found.get("timeout", found.get("tool_timeout_sec")) == 90
        assert len(backups(path)) == 1

    def test_undo_after_an_update_goes_back_to_before_the_first_add(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "config"
        before = put(path, snippet(client, entry("/x/other", "a", "/h"), name="theirs"))
        add(client, entry("/old/keyleash", "reconciler", "/home/mia/.keyleash"), path, now=NOW)
        add(client, ENTRY, path, now=NOW)
        assert remove(client, path, agent="reconciler").action == "restored"
        assert path.read_bytes() == before

    def test_another_agents_entry_is_left_alone(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "config"
        add(client, entry("/x/keyleash", "helper", "/h"), path, now=NOW)
        assert add(client, ENTRY, path, now=NOW).name == "keyleash-reconciler"
        assert [(one.name, one.agent) for one in installed(client, path)] == [
            ("keyleash", "helper"),
            ("keyleash-reconciler", "reconciler"),
        ]

    def test_a_strangers_server_called_keyleash_is_left_alone(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "config"
        stranger = entry("/usr/bin/env", "reconciler", "/h")
        put(path, snippet(client, stranger))
        assert add(client, ENTRY, path, now=NOW).name == "keyleash-reconciler"
        assert value_of(client, path)[client.table]["keyleash"]["command"] == "/usr/bin/env"

    def test_with_both_names_taken_it_is_refused(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "config"
        put(path, snippet(client, entry("/usr/bin/env", "x", "/h")))
        add(client, entry("/x/keyleash", "b", "/h"), path, now=NOW)
        text = path.read_text().replace("keyleash-b", "keyleash-reconciler")
        for backup in backups(path):
            backup.unlink()
        refused_untouched(path, put(path, text), client, "Rename one of them")

    def test_another_home_or_organisation_is_another_agent(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "config"
        acme = entry(ENTRY.command, "reconciler", "/home/mia/.keyleash", "acme")
        add(client, acme, path, now=NOW)
        assert value_of(client, path)[client.table]["keyleash"]["args"][-2:] == ["--org", "acme"]
        assert remove(client, path, agent="reconciler", keyleash_home="/elsewhere").action == "absent"
        assert remove(client, path, agent="reconciler", org="globex").action == "absent"
        assert add(client, entry("/x/keyleash", "reconciler", "/elsewhere"), path).name == "keyleash-reconciler"
        assert (
            remove(client, path, agent="reconciler", org="acme", keyleash_home="/home/mia/.keyleash/").name
            == "keyleash"
        )

    def test_windows_paths_and_unicode_arrive_whole(self, client: Client, tmp_path: Path) -> None:
        wanted = entry(r"C:\Program Files\Käyleash\keyleash.exe", 'o"brien', r"C:\Users\Zoë\Keyleash\nested")
        path = tmp_path / "config"
        add(client, wanted, path, now=NOW)
        found = value_of(client, path)[client.table]["keyleash"]
        assert (found["command"], found["env"]) == (wanted.command, {"KEYLEASH_HOME": wanted.home})
        assert [one.agent for one in installed(client, path)] == ['o"brien']

    def test_crlf_stays_crlf(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "config"
        theirs = snippet(client, entry("/x/other", "a", "/h"), name="theirs")
        put(path, theirs.replace("\n", "\r\n"))
        add(client, ENTRY, path, now=NOW)
        raw = path.read_bytes()
        assert raw.count(b"\n") == raw.count(b"\r\n") > theirs.count("\n")
        assert b"\r\r" not in raw

    def test_a_byte_order_mark_stays(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "config"
        before = put(path, b"\xef\xbb\xbf" + snippet(client, entry("/x/o", "a", "/h"), name="theirs").encode())
        add(client, ENTRY, path, now=NOW)
        assert path.read_bytes().startswith(b"\xef\xbb\xbf")
        assert set(value_of(client, path)[client.table]) == {"theirs", "keyleash"}
        remove(client, path, agent="reconciler")
        assert path.read_bytes() == before

    @pytest.mark.parametrize("content", ["", "\n", "\ufeff"], ids=["empty", "blank", "mark"])
    def test_an_empty_file_is_filled_and_empty_again(self, client: Client, content: str, tmp_path: Path) -> None:
        path = tmp_path / "config"
        before = put(path, content)
        add(client, ENTRY, path, now=NOW)
        assert set(value_of(client, path)[client.table]) == {"keyleash"}
        assert remove(client, path, agent="reconciler").action == "restored"
        assert path.read_bytes() == before

    def test_a_malformed_file_is_refused_with_the_snippet(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "config"
        before = put(path, '{\n  "a": 1\n  "b" = 2 ]\n')
        problem = refused_untouched(path, before, client, "Mend the file")
        assert problem.snippet == snippet(client, ENTRY)
        with pytest.raises(ClientError, match="Nothing was changed"):
            remove(client, path, agent="reconciler")
        with pytest.raises(ClientError):
            installed(client, path)

    def test_text_that_is_not_utf8_is_refused(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "config"
        refused_untouched(path, put(path, '{"a": "é"}'.encode("utf-16")), client, "not UTF-8")

    def test_a_table_that_is_no_table_is_refused(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "config"
        for wrong in ("[]", '"x"', "7"):
            text = f"{client.table} = {wrong}\n" if client.format == "toml" else f'{{"{client.table}": {wrong}}}'
            problem = refused_untouched(path, put(path, text), client, "not a table of servers")
            assert "keyleash" in problem.snippet

    def test_endless_nesting_is_refused_without_a_traceback(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "config"
        deep, saying = "[" * 5000 + "]" * 5000, "nested too deeply"
        if client.format == "toml":
            deep, saying = f"a = {deep}", "not valid TOML"
        refused_untouched(path, put(path, deep), client, saying)


# The file itself


def test_the_mode_of_the_file_stays_and_the_backup_is_private(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    put(path, "{}")
    path.chmod(0o664)
    change = add(VSCODE, ENTRY, path, now=NOW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o664
    assert change.backup is not None
    assert stat.S_IMODE(change.backup.stat().st_mode) == 0o600
    remove(VSCODE, path, agent="reconciler")
    assert stat.S_IMODE(path.stat().st_mode) == 0o664


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_the_owner_of_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    put(path, "{}")
    os.chown(path, 1234, 5678)
    add(VSCODE, ENTRY, path, now=NOW)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)


def test_a_read_only_file_is_refused_but_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    before = put(path, snippet(VSCODE, entry("/x/keyleash", "helper", "/h")))
    path.chmod(0o444)
    refused_untouched(path, before, VSCODE, "read-only")
    with pytest.raises(ClientError, match="read-only"):
        remove(VSCODE, path, agent="helper")
    assert path.read_bytes() == before
    assert [one.agent for one in installed(VSCODE, path)] == ["helper"]


def test_a_second_hard_link_is_not_cut(tmp_path: Path) -> None:
    path, twin = tmp_path / "mcp.json", tmp_path / "twin"
    put(path, "{}")
    twin.hardlink_to(path)
    with pytest.raises(ClientError, match="hard link"):
        add(VSCODE, ENTRY, path, now=NOW)
    assert path.samefile(twin)
    assert sorted(tmp_path.iterdir()) == [path, twin]


def test_a_symbolic_link_stays_one_and_its_target_is_edited(tmp_path: Path) -> None:
    target, link = tmp_path / "dotfiles" / "real.json", tmp_path / "home" / "mcp.json"
    target.parent.mkdir()
    link.parent.mkdir()
    before = put(target, "{}\n")
    link.symlink_to(Path("..") / "dotfiles" / "real.json")
    change = add(VSCODE, ENTRY, link, now=NOW)
    assert link.is_symlink()
    assert "keyleash" in json.loads(target.read_text())["servers"]
    assert change.backup is not None
    assert change.backup.parent == link.parent
    assert list(target.parent.iterdir()) == [target]
    remove(VSCODE, link, agent="reconciler")
    assert link.is_symlink()
    assert target.read_bytes() == before


def test_a_dangling_link_gets_its_target_and_a_loop_is_refused(tmp_path: Path) -> None:
    link, loop = tmp_path / "mcp.json", tmp_path / "loop.json"
    link.symlink_to(tmp_path / "not" / "yet.json")
    add(VSCODE, ENTRY, link, now=NOW)
    assert link.is_symlink()
    assert (tmp_path / "not" / "yet.json").is_file()
    loop.symlink_to(loop)
    with pytest.raises(ClientError, match="leads nowhere"):
        add(VSCODE, ENTRY, loop, now=NOW)


def test_what_is_not_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="not a file"):
        add(VSCODE, ENTRY, tmp_path, now=NOW)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ClientError, match="not a file"):
        add(VSCODE, ENTRY, pipe, now=NOW)


def test_a_file_where_a_folder_should_be_is_an_error_in_words(tmp_path: Path) -> None:
    put(tmp_path / "x", "")
    with pytest.raises(ClientError, match="permissions") as caught:
        add(VSCODE, ENTRY, tmp_path / "x" / "mcp.json", now=NOW)
    assert caught.value.snippet == snippet(VSCODE, ENTRY)


def test_a_backup_that_cannot_be_made_stops_the_edit(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 240)  # with the backup's ending it is longer than any file system takes
    refused_untouched(path, put(path, "{}"), VSCODE, "was not changed: File name too long")


class Meddler(datetime):
    """A clock that, when it is read for the backup's name, lets another program write to the file."""

    def astimezone(self, tz=None):
        self.meddle()
        return super().astimezone(tz)


def meddling(with_file) -> Meddler:
    clock = Meddler(2026, 11, 23, tzinfo=UTC)
    clock.meddle = with_file
    return clock


def test_an_edit_by_another_program_in_between_is_kept(tmp_path: Path) -> None:
    path = tmp_path / ".claude.json"
    put(path, '{"numStartups": 1}')
    change = add(CLAUDE, ENTRY, path, now=meddling(lambda: put(path, '{"numStartups": 2}')))
    assert json.loads(path.read_text()) == {
        "numStartups": 2,
        "mcpServers": {"keyleash": {"type": "stdio", **SERVER}},
    }
    assert change.backup is not None
    assert change.backup.read_text() == '{"numStartups": 2}'
    assert sorted(tmp_path.iterdir()) == [path, change.backup]


def test_a_file_that_keeps_changing_is_left_to_the_other_program(tmp_path: Path) -> None:
    path = tmp_path / ".claude.json"
    put(path, '{"n": 0}')
    count = iter(range(1, 100))
    with pytest.raises(ClientError, match="Quit Claude Code"):
        add(CLAUDE, ENTRY, path, now=meddling(lambda: put(path, f'{{"n": {next(count)}}}')))
    assert json.loads(path.read_text()) == {"n": clients.ATTEMPTS}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_deleted_in_between_is_not_brought_back_from_the_dead(tmp_path: Path) -> None:
    path = tmp_path / ".claude.json"
    put(path, '{"old": true}')
    add(CLAUDE, ENTRY, path, now=meddling(lambda: path.unlink(missing_ok=True)))
    assert json.loads(path.read_text()) == {"mcpServers": {"keyleash": {"type": "stdio", **SERVER}}}


def test_two_backups_of_one_moment_are_both_kept(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    put(path, '{"a": 1}')
    add(VSCODE, ENTRY, path, now=NOW)
    put(path, '{"b": 2}')
    add(VSCODE, ENTRY, path, now=NOW)
    assert [backup.read_text() for backup in backups(path)] == ['{"a": 1}', '{"b": 2}']


def test_a_file_that_changed_since_is_not_rolled_back(tmp_path: Path) -> None:
    path = tmp_path / ".claude.json"
    put(path, '{\n  "numStartups": 1\n}\n')
    add(CLAUDE, ENTRY, path, now=NOW)
    put(path, path.read_text().replace('"numStartups": 1', '"numStartups": 2'))
    change = remove(CLAUDE, path, agent="reconciler", now=NOW)
    assert change.action == "removed"
    assert json.loads(path.read_text()) == {"numStartups": 2, "mcpServers": {}}
    assert len(backups(path)) == 2


def test_a_file_of_ours_alone_is_kept_where_a_backup_shows_that_it_was_there_before(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    put(path, '{"gone": "since"}')
    add(VSCODE, ENTRY, path, now=NOW)
    put(path, snippet(VSCODE, ENTRY))
    assert remove(VSCODE, path, agent="reconciler").action == "removed"
    assert json.loads(path.read_text()) == {"servers": {}}


# JSON in its many hands

KEY = '"keyleash": {"type": "stdio", "command": "/k/keyleash", "args": ["serve", "--agent", "a"], '
LAID_OUT = {
    "tabs": (
        '{\n\t"servers": {\n\t\t"x": {"command": "y"}\n\t}\n}\n',
        '{\n\t"servers": {\n\t\t"x": {"command": "y"},\n\t\t"keyleash": {\n\t\t\t"type": "stdio",',
    ),
    "four spaces": (
        '{\n    "servers": {\n        "x": {}\n    }\n}',
        '{\n    "servers": {\n        "x": {},\n        "keyleash": {\n            "type": "stdio",',
    ),
    "trailing comma and comment": (
        '{\n  "servers": {\n    "x": {}, // theirs\n  }, // all\n}\n',
        '{\n  "servers": {\n    "x": {}, // theirs\n    "keyleash": {\n      "type": "stdio",',
    ),
    "comment stays with its line": (
        '{\n  "servers": {\n    "x": {} // theirs\n  }\n}\n',
        '{\n  "servers": {\n    "x": {}, // theirs\n    "keyleash": {\n      "type": "stdio",',
    ),
    "comments only": (
        "// my servers\n/* none yet */\n",
        '// my servers\n/* none yet */\n{\n  "servers": {\n    "keyleash": {\n      "type": "stdio",',
    ),
    "comment without newline": ("// none", '// none\n{\n  "servers": {\n    "keyleash": {\n      "type": "stdio",'),
    "comment in the empty table": (
        '{\n  "servers": {\n    // none yet\n  }\n}\n',
        '{\n  "servers": {\n    // none yet\n    "keyleash": {\n      "type": "stdio",',
    ),
    "comment in the empty table on one line": (
        '{\n  "servers": { /* none yet */ }\n}\n',
        '{\n  "servers": { /* none yet */\n    "keyleash": {\n      "type": "stdio",',
    ),
    "no table": (
        '{\n  "inputs": []\n}\n',
        '{\n  "inputs": [],\n  "servers": {\n    "keyleash": {\n      "type": "stdio",',
    ),
    "bare braces": ("{}", '{\n  "servers": {\n    "keyleash": {\n      "type": "stdio",'),
    "minified": ('{"a":1,"servers":{"x":{}}}', '{"a":1,"servers":{"x":{},"keyleash":{"type":"stdio","command":'),
    "minified with an end of line": ('{"a":1}\n', '{"a":1,"servers":{"keyleash":{"type":"stdio","command":'),
    "minified with a comment": (
        '{"servers":{/* none */}}',
        '{"servers":{/* none */"keyleash":{"type":"stdio","command":',
    ),
    "one line": ('{"servers": {"x": {}}}', '{"servers": {"x": {}, "keyleash": {"type": "stdio", "command": '),
    "one line with trailing comma": ('{"servers": {"x": {},}}', '{"servers": {"x": {}, "keyleash": {"type": "stdio"'),
    "one line in a spread file": (
        '{\n  "servers": {"x": {}}\n}\n',
        '{\n  "servers": {"x": {}, "keyleash": {"type": "stdio", "command": ',
    ),
    "a block comment over lines": (
        '{\n  "servers": {\n    "x": {} /* a\n b */ }\n}\n',
        '{\n  "servers": {\n    "x": {},\n    "keyleash": {\n      "type": "stdio",',
    ),
}


def without_comments(text: str) -> object:
    root = clients._parsed(VSCODE, text)
    return None if root is None else root.value


@pytest.mark.parametrize(("before", "start"), LAID_OUT.values(), ids=LAID_OUT)
def test_the_entry_is_written_in_the_hand_of_the_file(before: str, start: str, tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    put(path, before)
    add(VSCODE, ENTRY, path, now=NOW)
    after = path.read_bytes().decode()
    assert after.startswith(start)
    for kept in ("// theirs", "// all", "// my servers", "/* none yet */", "// none yet", "/* none */", "/* a\n b */"):
        assert (kept in after) == (kept in before)
    assert without_comments(after)["servers"]["keyleash"]["env"] == SERVER["env"]
    remove(VSCODE, path, agent="reconciler")
    assert path.read_bytes().decode() == before


@pytest.mark.parametrize("before", [before for before, _ in LAID_OUT.values()], ids=LAID_OUT)
def test_without_its_backup_the_entry_alone_is_taken_out(before: str, tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    put(path, before)
    add(VSCODE, ENTRY, path, now=NOW)
    (backup,) = backups(path)
    backup.write_text("{ unreadable")
    remove(VSCODE, path, agent="reconciler", now=NOW)
    after = path.read_bytes().decode()
    assert "keyleash" not in after
    assert without_comments(after) == {"servers": {}, **(without_comments(before) or {})}
    for comment in (
        "// theirs",
        "// all",
        "// my servers",
        "/* none yet */",
        "// none yet",
        "/* none */",
        "/* a\n b */",
    ):
        assert (comment in after) == (comment in before)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f'{{"servers": {{{KEY}"env": {{}}}}, "x": 1}}}}', '{"servers": { "x": 1}}'),
        (f'{{"servers": {{"x": 1, {KEY}"env": {{}}}}}}}}', '{"servers": {"x": 1}}'),
        (f'{{"servers": {{"x": 1, {KEY}"env": {{}}}}, "y": 2}}}}', '{"servers": {"x": 1, "y": 2}}'),
        (f'{{"servers": {{{KEY}"env": {{}}}}}}}}', '{"servers": {}}'),
        (f'{{"servers": {{\n// c\n{KEY}"env": {{}}}}, "x": 1\n}}}}', '{"servers": {\n// c\n "x": 1\n}}'),
        (f'{{"servers": {{\n// c\n{KEY}"env": {{}}}} }}}}', '{"servers": {\n// c\n }}'),
        (f'{{"servers": {{"x": 1, // c\n{KEY}"env": {{}}}} }}}}', '{"servers": {"x": 1 // c\n }}'),
        (f'{{"servers": {{\n  {KEY}"env": {{}}}} /* m */,\n  "x": 1\n}}}}', '{"servers": { /* m */\n  "x": 1\n}}'),
    ],
)
def test_the_entry_comes_out_from_between_its_neighbours(text: str, left: str, tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    put(path, text)
    assert remove(VSCODE, path, agent="a", now=NOW).action == "removed"
    assert path.read_text() == left


STRICTNESS = [
    ('{\n  "a": 1 // c\n}', {"claude-code", "claude-desktop"}, r":2: a comment"),
    ('{\n  "a": 1,\n}', {"claude-code", "claude-desktop", "gemini"}, r":2: a comma too many"),
    ('{"a": [1,]}', {"claude-code", "claude-desktop", "gemini"}, r":1: a comma too many"),
]


@pytest.mark.parametrize("client", JSON_CLIENTS, ids=lambda client: client.id)
@pytest.mark.parametrize(("text", "strict", "saying"), STRICTNESS)
def test_a_file_that_its_own_client_could_not_read_is_refused(
    client: Client, text: str, strict: set[str], saying: str, tmp_path: Path
) -> None:
    path = tmp_path / "config"
    before = put(path, text)
    if client.id in strict:
        refused_untouched(path, before, client, saying)
    else:
        assert add(client, ENTRY, path, now=NOW).action == "added"


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1} x', '{"a" 1}', '{"a"= 1}', '{a: 1}', '{"a": 01}', '{"a": NaN}', '{"a": "\\x"}', '{"a": "\t"}',
        '{"a": 1 "b": 2}',
        '{"a": tru}', '{"a": [1 2]}', '{"a": 1', '{"a": "b', "{,}", '{"a":,}', '{"a": /* }', "[]", "null", '"x"', "'x'",
        '{"servers": null}', "\ufeff\ufeff{}",
    ],
)  # fmt: skip
def test_what_is_not_json_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    refused_untouched(path, put(path, text), VSCODE, r"(mcp.json:1: |does not hold|not a table).*Nothing was changed")


def test_a_table_or_an_entry_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    refused_untouched(path, put(path, '{"servers": {}, "servers": {"x": {}}}'), VSCODE, "twice")
    twin = f'{{"servers": {{{KEY}"env": {{}}}}, {KEY}"env": {{}}}}}}}}'
    before = put(path, twin)
    with pytest.raises(ClientError, match="twice"):
        remove(VSCODE, path, agent="a")
    assert path.read_bytes() == before


def test_numbers_and_escapes_of_others_are_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / ".claude.json"
    theirs = '"big": ' + "9" * 5000 + ', "f": 1.10e+0400, "s": "\\u00e9\\/\\ud800", "t": -0.0'
    put(path, "{" + theirs + "}")
    add(CLAUDE, ENTRY, path, now=NOW)
    assert path.read_text().startswith("{" + theirs + ', "mcpServers": ')


@pytest.mark.parametrize("tampered", ["theirs", "top", "ours", "missing"])
def test_an_edit_that_touches_anything_else_is_never_written(tampered: str) -> None:
    before = '{"a": 1, "servers": {"x": {"n": 1}}}'
    after = {"a": 1, "servers": {"x": {"n": 1}, "keyleash": clients._stdio(VSCODE, ENTRY)}}
    prove = {"before": before, "wanted": clients._stdio(VSCODE, ENTRY)}
    clients._prove(VSCODE, Path("f"), "keyleash", after=json.dumps(after), **prove)
    if tampered == "theirs":
        after["servers"]["x"]["n"] = 1.0
    elif tampered == "top":
        after["a"] = True
    elif tampered == "ours":
        after["servers"]["keyleash"]["env"]["KEYLEASH_HOME"] = "/elsewhere"
    else:
        del after["servers"]["keyleash"]
    with pytest.raises(ClientError, match="cannot edit safely"):
        clients._prove(VSCODE, Path("f"), "keyleash", after=json.dumps(after), **prove)
    with pytest.raises(ClientError, match="cannot edit safely"):
        clients._prove(VSCODE, Path("f"), "x", before=before, after=before, wanted=None)


BLANK = st.sampled_from(["", " ", "\n", "\n  ", "\t", "\r\n", " // c\n", "/* c */", "\n// a\n/* b\n*/ "])
WORD = st.sampled_from(['"x"', '"y"', '"z"', '"\\u006b"', '"ключ"', '"//"', '"/*"', '"}"'])


@st.composite
def spelled(draw, depth: int = 2) -> str:
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(["1", "-2.50e1", "true", "null", '"a,\\"}"', "[]", "{}", "[1, 2,]", '{"k": 0,}']))
    return draw(objects(names=draw(st.lists(WORD, unique=True, max_size=3)), depth=depth - 1))


@st.composite
def objects(draw, names: list[str], depth: int = 1, table: str | None = None) -> str:
    out = "{" + draw(BLANK)
    for number, name in enumerate(names):
        value = table if table is not None and name == '"servers"' else draw(spelled(depth))
        last = number == len(names) - 1
        comma = "" if last and draw(st.booleans()) else ","
        out += name + draw(BLANK) + ":" + draw(BLANK) + value + draw(BLANK) + comma + draw(BLANK)
    return out + "}"


@st.composite
def documents(draw) -> str:
    table = draw(objects(names=draw(st.lists(WORD, unique=True, max_size=3))))
    names = draw(st.permutations(['"servers"', *draw(st.lists(WORD, unique=True, max_size=2))]))
    return draw(st.sampled_from(["", "\ufeff"])) + draw(BLANK) + draw(objects(names=names, table=table)) + draw(BLANK)


def in_order(small: str, large: str) -> bool:
    rest = iter(large)
    return all(character in rest for character in small)


@settings(deadline=None)
@given(documents())
def test_however_it_is_spelled_nothing_of_it_is_lost(text: str) -> None:
    path, value = Path("mcp.json"), clients._stdio(VSCODE, ENTRY)
    after = clients._with(VSCODE, text, path, "keyleash", ENTRY)
    clients._prove(VSCODE, path, "keyleash", before=text, after=after, wanted=value)
    assert in_order("".join(text.split()), after)
    assert clients._with(VSCODE, after, path, "keyleash", ENTRY) == after
    back = clients._without(VSCODE, after, path, "keyleash")
    clients._prove(VSCODE, path, "keyleash", before=after, after=back, wanted=None)
    assert without_comments(back) == without_comments(text)
    assert in_order("".join(text.split()).replace(",", ""), back)


# TOML

THEIRS = '''\
# my Codex
model = "gpt-5"   # keep
nan = nan
notes = """
[mcp_servers.keyleash]
command = "not a table"""""
paths = [
  "a]", # ]
  'b[',
]

[mcp_servers.docs]
command = "docs"
args = ["-y"]

# the last word
'''


def test_toml_is_appended_to_and_nothing_above_moves(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    put(path, THEIRS)
    add(CODEX, ENTRY, path, now=NOW)
    assert path.read_text() == (
        THEIRS
        + "\n[mcp_servers.keyleash]\n"
        + 'command = "/opt/keyleash/bin/keyleash"\n'
        + 'args = ["serve", "--agent", "reconciler"]\n'
        + 'env = { KEYLEASH_HOME = "/home/mia/.keyleash" }\n'
    )


def test_toml_without_a_last_newline_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    put(path, "a = 1")
    add(CODEX, ENTRY, path, now=NOW)
    assert path.read_text().startswith("a = 1\n\n[mcp_servers.keyleash]\n")


def test_toml_that_begins_with_a_mark_and_our_entry_keeps_the_mark(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    put(path, "\ufeff" + snippet(CODEX, ENTRY) + "[tui]\n")
    assert remove(CODEX, path, agent="reconciler", now=NOW).action == "removed"
    assert path.read_text() == "\ufeff[tui]\n"


def test_toml_values_of_others_in_our_entry_are_spelled_right_again(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    old = entry(ENTRY.command, "reconciler", "/home/mia/.keyleash/")
    put(path, snippet(CODEX, old).replace("{ ", '{ "a b" = "\\u007f", '))
    add(CODEX, ENTRY, path, now=NOW)
    assert tomllib.loads(path.read_text())["mcp_servers"]["keyleash"]["env"] == {"a b": "\x7f", **SERVER["env"]}


# Pieces of TOML, and how many headers and assignments each holds.
PIECES = {
    "# [mcp_servers.keyleash]\n": 0,
    "\n": 0,
    "  \t\n": 0,
    "[tN]\n": 1,
    "  [tN . 'a.b' . \"]\"] # x\n": 1,
    "[[lN]]\n": 1,
    "kN = 1\n": 1,
    "kN.\"x = y\" = '''\n[mcp_servers.keyleash]\n'''\n": 1,
    'kN = """a\\"""\n[b]\n"""""\r\n': 1,
    "kN = [ # [\n 1, [2], # ]\n '#', ]\n": 1,
    "kN = { a = '}', b = [1] } # }\n": 1,
    "[mcp_servers.sN]\ncommand = 'x'\n": 2,
    "kN = 1979-05-27 07:32:00\n": 1,
}


@settings(deadline=None)
@given(st.lists(st.sampled_from(sorted(PIECES)), max_size=8))
def test_however_toml_is_spelled_adding_and_removing_gives_it_back(pieces: list[str]) -> None:
    path, text = Path("config.toml"), "".join(piece.replace("N", str(number)) for number, piece in enumerate(pieces))
    after = clients._with(CODEX, text, path, "keyleash", ENTRY)
    clients._prove(CODEX, path, "keyleash", before=text, after=after, wanted=SERVER)
    assert after.startswith(text)
    assert clients._without(CODEX, after, path, "keyleash") == text
    assert len(tomlfile.statements(text)) == sum(PIECES[piece] for piece in pieces)


def test_toml_without_its_backup_goes_back_to_the_letter(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    put(path, THEIRS)
    add(CODEX, ENTRY, path, now=NOW)
    backups(path)[0].unlink()
    assert remove(CODEX, path, agent="reconciler", now=NOW).action == "removed"
    assert path.read_text() == THEIRS


def test_toml_that_codex_has_rewritten_is_still_updated_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    head, tail = "[mcp_servers.docs]\ncommand = 'docs'\n", '\n# keep me\n[tui]\ntheme = "dark" # keep\n'
    put(
        path,
        head
        + "\n[mcp_servers.keyleash] # ours\ncommand = '/old/keyleash'\r\n"
        + 'args = [\n  "serve", # a\n  "--agent",\n  "reconciler"\n]\nstartup_timeout_sec = 20\n'
        + '\n[mcp_servers.keyleash.env]\nA = "b"\nKEYLEASH_HOME = "/home/mia/.keyleash"\n'
        + tail,
    )
    assert add(CODEX, ENTRY, path, now=NOW).action == "updated"
    text = path.read_bytes().decode()
    assert 'command = "/opt/keyleash/bin/keyleash"\r\nargs = [\n  "serve", # a' in text
    assert tomllib.loads(text)["mcp_servers"]["keyleash"] == {
        **SERVER,
        "startup_timeout_sec": 20,
        "env": {"A": "b", **SERVER["env"]},
    }
    assert remove(CODEX, path, agent="reconciler", now=NOW).action == "removed"
    assert path.read_text() == head + tail


def test_toml_gains_the_keys_that_an_old_entry_lacks(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    put(path, "[mcp_servers.keyleash] # c\ncommand='/opt/keyleash/bin/keyleash'\nargs=['serve','--agent','reconciler']")
    add(CODEX, ENTRY, path, now=NOW)
    assert path.read_text().startswith('[mcp_servers.keyleash] # c\nenv = { KEYLEASH_HOME = "/home/mia/.keyleash" }\n')


@pytest.mark.parametrize(
    "text",
    [
        'mcp_servers = { docs = { command = "docs" } }\n',
        "[mcp_servers]\nkeyleash = { command = '/old/keyleash', args = ['serve', '--agent', 'reconciler'] }\n",
        "[mcp_servers.keyleash]\ncommand='/x/keyleash'\nargs=['serve','--agent','reconciler']\nenv.A = '1'\n",
        "[mcp_servers.keyleash]\ncommand='/x/keyleash'\nargs=['serve','--agent','reconciler']\nenv = { A = 1 }\n",
        "a = 1\na = 2\n",
    ],
)
def test_toml_in_a_form_that_is_not_edited_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    problem = refused_untouched(path, put(path, text), CODEX, "by hand")
    assert problem.snippet == snippet(CODEX, ENTRY)


def test_an_inline_toml_entry_is_not_removed_by_halves(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    before = put(
        path, "mcp_servers = { k = { command='/x/keyleash', args=['serve','--agent','a'] }, z = { url='u' } }\n"
    )
    with pytest.raises(ClientError, match="by hand"):
        remove(CODEX, path, agent="a")
    assert path.read_bytes() == before


# What an entry may hold


@pytest.mark.parametrize(
    ("command", "agent", "home", "saying"),
    [
        ("keyleash", "a", "/h", "command is not absolute"),
        ("bin/keyleash", "a", "/h", "command is not absolute"),
        ("/k", "a", "~/.keyleash", "KEYLEASH_HOME is not absolute"),
        ("/k", "--http", "/h", "cannot name an agent"),
        ("/k", "", "/h", "cannot name an agent"),
        ("/k", "a\nb", "/h", "characters"),
        ("/k\x7f", "a", "/h", "characters"),
        ("/k", "a", "/h\udc80", "characters"),
    ],
)
def test_an_entry_that_could_not_start_is_refused(command: str, agent: str, home: str, saying: str) -> None:
    with pytest.raises(ClientError, match=saying):
        entry(command, agent, home)


def test_an_organisation_is_not_an_option_either() -> None:
    with pytest.raises(ClientError, match="cannot name an organisation"):
        entry("/k", "a", "/h", "-x")


@pytest.mark.parametrize("client", CLIENTS.values(), ids=lambda client: client.id)
@pytest.mark.parametrize(("home", "whom"), [("/h/${HOME}", "all but codex"), ("/h/$HOME", "gemini"), ("/h/a$", "none")])
def test_what_the_client_would_expand_is_refused(client: Client, home: str, whom: str, tmp_path: Path) -> None:
    wanted = entry("/x/keyleash", "a", home)
    if (whom == "all but codex" and client is not CODEX) or (whom == "gemini" and client is GEMINI):
        with pytest.raises(ClientError, match=r"would replace the part after \$"):
            add(client, wanted, tmp_path / "config")
        assert list(tmp_path.iterdir()) == []
    else:
        add(client, wanted, tmp_path / "config")
        assert installed(client, tmp_path / "config")[0].home == home


def test_entries_of_ours_are_told_from_others(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    serve = ["serve", "--agent=a", "--org", "acme"]
    servers = {
        "mine": {"command": r"C:\Tools\Keyleash.exe", "args": serve, "env": {"KEYLEASH_HOME": "C:\\k"}},
        "through uv": {"command": "/usr/bin/uvx", "args": ["keyleash", *serve]},
        "other program": {"command": "/usr/bin/other", "args": serve},
        "other verb": {"command": "/x/keyleash", "args": ["doctor", "--agent", "a"]},
        "no agent": {"command": "/x/keyleash", "args": ["serve", "--agent"]},
        "odd": {"command": ["/x/keyleash"], "args": serve},
        "odder": ["/x/keyleash"],
        "remote": {"type": "http", "url": "https://x/agent/mcp"},
    }
    put(path, json.dumps({"servers": servers}))
    assert [(one.name, one.agent, one.org, one.home) for one in installed(VSCODE, path)] == [
        ("mine", "a", "acme", "C:\\k"),
        ("through uv", "a", "acme", None),
    ]


# Where the files are, and what a remote entry looks like

HOME = Path("/home/mia")
USER = {
    ("claude-code", "linux"): ".claude.json",
    ("claude-code", "win32"): ".claude.json",
    ("claude-desktop", "darwin"): "Library/Application Support/Claude/claude_desktop_config.json",
    ("claude-desktop", "win32"): "AppData/Roaming/Claude/claude_desktop_config.json",
    ("claude-desktop", "linux"): ".config/Claude/claude_desktop_config.json",
    ("cursor", "darwin"): ".cursor/mcp.json",
    ("vscode", "darwin"): "Library/Application Support/Code/User/mcp.json",
    ("vscode", "win32"): "AppData/Roaming/Code/User/mcp.json",
    ("vscode", "linux"): ".config/Code/User/mcp.json",
    ("codex", "win32"): ".codex/config.toml",
    ("gemini", "linux"): ".gemini/settings.json",
}
MOVED = {
    ("claude-code", "linux", "CLAUDE_CONFIG_DIR"): "/else/.claude.json",
    ("claude-desktop", "win32", "APPDATA"): "/else/Claude/claude_desktop_config.json",
    ("vscode", "win32", "APPDATA"): "/else/Code/User/mcp.json",
    ("vscode", "linux", "XDG_CONFIG_HOME"): "/else/Code/User/mcp.json",
    ("codex", "linux", "CODEX_HOME"): "/else/config.toml",
    ("gemini", "linux", "GEMINI_CLI_HOME"): "/else/.gemini/settings.json",
}
PROJECT = {
    "claude-code": ".mcp.json",
    "cursor": ".cursor/mcp.json",
    "vscode": ".vscode/mcp.json",
    "codex": ".codex/config.toml",
    "gemini": ".gemini/settings.json",
}


@pytest.mark.parametrize(("client", "platform", "where"), [(*key, value) for key, value in USER.items()])
def test_a_persons_file_is_where_the_vendor_says(client: str, platform: str, where: str) -> None:
    assert CLIENTS[client].config_path(HOME, platform) == HOME / where


@pytest.mark.parametrize(("client", "platform", "name", "where"), [(*key, value) for key, value in MOVED.items()])
def test_a_vendors_variable_moves_the_file(client: str, platform: str, name: str, where: str) -> None:
    assert CLIENTS[client].config_path(HOME, platform, environ={name: "/else"}) == Path(where)
    assert CLIENTS[client].config_path(HOME, platform, environ={name: ""}).is_relative_to(HOME)


@pytest.mark.parametrize("client", CLIENTS.values(), ids=lambda client: client.id)
def test_a_projects_file_is_where_the_vendor_says(client: Client) -> None:
    if client.id not in PROJECT:
        with pytest.raises(ClientError, match="no configuration per project"):
            client.config_path(HOME, "linux", Path("/repo"))
        return
    assert client.config_path(HOME, "linux", Path("/repo")) == Path("/repo") / PROJECT[client.id]


def test_claude_desktop_from_the_store_has_its_file_in_its_package(tmp_path: Path) -> None:
    desktop, packages = CLIENTS["claude-desktop"], tmp_path / "AppData" / "Local" / "Packages"
    inside = packages / "Claude_pzs8sxrjxfjjc" / "LocalCache" / "Roaming" / "Claude"
    (packages / "Claude_left_over").mkdir(parents=True)
    assert "Roaming" in desktop.config_path(tmp_path, "win32").parts[:-2]
    inside.mkdir(parents=True)
    assert desktop.config_path(tmp_path, "win32") == inside / "claude_desktop_config.json"
    assert desktop.config_path(tmp_path, "darwin").parts[-4] == "Library"
    (packages / "Claude_other" / "LocalCache" / "Roaming" / "Claude").mkdir(parents=True)
    with pytest.raises(ClientError, match="Two Claude Desktop packages"):
        desktop.config_path(tmp_path, "win32")


REMOTE = {
    "claude-code": {"type": "http", "url": "URL", "headers": {"Authorization": "Bearer ${KEYLEASH_TOKEN}"}},
    "cursor": {"url": "URL", "headers": {"Authorization": "Bearer ${env:KEYLEASH_TOKEN}"}},
    "vscode": {"type": "http", "url": "URL", "headers": {"Authorization": "Bearer ${input:keyleash-token}"}},
    "codex": {"url": "URL", "bearer_token_env_var": "KEYLEASH_TOKEN"},
    "gemini": {"httpUrl": "URL", "headers": {"Authorization": "Bearer ${KEYLEASH_TOKEN}"}},
}


@pytest.mark.parametrize("client", CLIENTS.values(), ids=lambda client: client.id)
def test_a_remote_entry_names_the_variable_and_never_holds_a_token(client: Client) -> None:
    wanted = remote("http://127.0.0.1:8710/agent/mcp", "KEYLEASH_TOKEN")
    if client.id not in REMOTE:
        with pytest.raises(ClientError, match="OAuth only"):
            snippet(client, wanted)
        return
    text = snippet(client, wanted)
    document = tomllib.loads(text) if client.format == "toml" else json.loads(text)
    shown = json.loads(json.dumps(REMOTE[client.id]).replace("URL", wanted.url))
    assert document.pop(client.table) == {"keyleash": shown}
    if client is VSCODE:
        (ask,) = document.pop("inputs")
        assert (ask["id"], ask["type"], ask["password"]) == ("keyleash-token", "promptString", True)
    assert document == {}


@pytest.mark.parametrize(
    ("url", "name"), [("ftp://x", "T"), ("http://x y", "T"), ("http://x", "A-B"), ("http://x", "")]
)
def test_a_remote_entry_with_nonsense_is_refused(url: str, name: str) -> None:
    with pytest.raises(ClientError, match="is not"):
        remote(url, name)
