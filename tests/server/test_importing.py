"""From a document to a connector at the command line: nothing is overwritten, offered unread or sent unasked."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from connectors.loading import load
from server.app import open_installation, running
from server.backup import make_backup
from server.call import call
from server.errors import ApprovalRequired
from tests.agents import Nobody
from tests.commandline import CommandLine
from tests.installed import SECRET, Place, files_holding
from tests.upstream import Answer, Received, Upstream

LOCAL = ("--allow-private", "127.0.0.1/32")
TEXT = {"type": "string"}
DOCUMENT: dict[str, Any] = {
    "openapi": "3.0.3",
    "info": {"title": "Things", "version": "1"},
    "servers": [{"url": "https://api.things.example"}],
    "security": [{"token": []}],
    "paths": {
        "/items": {
            "get": {
                "operationId": "listItems",
                "summary": "List items",
                "tags": ["items"],
                "parameters": [{"name": "pageSize", "in": "query", "schema": {"type": "integer"}}],
            },
            "post": {
                "operationId": "makeItem",
                "tags": ["items"],
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": {"type": "object", "required": ["name"], "properties": {"name": TEXT}}
                        }
                    },
                },
            },
        },
        "/items/{id}": {
            "get": {
                "operationId": "getItem",
                "parameters": [{"name": "id", "in": "path", "required": True, "schema": TEXT, "example": "i1"}],
            }
        },
        "/items/{id}/file": {
            "put": {
                "operationId": "putFile",
                "deprecated": True,
                "tags": ["files"],
                "parameters": [{"name": "id", "in": "path", "required": True, "schema": TEXT}],
                "requestBody": {"content": {"multipart/form-data": {"schema": {"type": "object"}}}},
            }
        },
        "/me": {"get": {"operationId": "whoAmI"}},
    },
    "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
}


@pytest.fixture
def document(tmp_path: Path) -> Path:
    file = tmp_path / "things.json"
    file.write_text(json.dumps(DOCUMENT))
    return file


def folder(place: Place) -> Path:
    return place.installation.settings.connectors


def imported(owner: CommandLine, document: Path, *operations: str) -> Path:
    """A connector `things` with these operations; its file."""
    chosen = [word for operation in operations for word in ("--operation", operation)]
    ran = owner("connector", "import-openapi", str(document), "--id", "things", *chosen, "--json")
    assert ran.code == 0, ran.err
    return Path(ran.json["file"])


def connect(owner: CommandLine, upstream: Upstream, name: str = "things") -> None:
    given = ("--base-url", upstream.url, *LOCAL, "--no-verify", "--secret-stdin")
    ran = owner("connect", "things", "--name", name, *given, stdin=f"{SECRET}\n".encode())
    assert ran.code == 0, ran.err


@contextmanager
def opened_again(place: Place) -> Iterator[Place]:
    """The same installation, started again: it sees the connector files of now."""
    installation = open_installation(place.installation.settings)
    try:
        yield Place(installation, place.org, place.owner)
    finally:
        installation.close()


# --- what there is


def test_what_a_document_has_is_listed_with_effect_and_size_and_nothing_is_written(
    owner: CommandLine, place: Place, document: Path
) -> None:
    listed = owner("connector", "import-openapi", str(document), "--list", "--json")
    assert [(one["operation"], one["effect"], bool(one["refused"])) for one in listed.json] == [
        ("listItems", "read", False),
        ("makeItem", "write", False),
        ("getItem", "read", False),
        ("putFile", "write", True),
        ("whoAmI", "read", False),
    ]
    assert all(one["schema_bytes"] for one in listed.json if not one["refused"])
    assert next(one for one in listed.json if one["operation"] == "putFile")["deprecated"]
    in_words = owner("connector", "import-openapi", str(document), "--list", "--tag", "files")
    assert "(deprecated) (cannot be offered: Its body is multipart/form-data" in in_words.out
    assert "listItems" not in in_words.out
    assert not folder(place).exists()


def test_operations_are_searched_in_everyday_words(keyleash: CommandLine, document: Path) -> None:
    found = keyleash("connector", "import-openapi", str(document), "--search", "show all items", "--json")
    assert found.json[0]["operation"] == "listItems"
    nothing = keyleash("connector", "import-openapi", str(document), "--search", "zebra")
    assert (nothing.code, nothing.out) == (0, "")


def test_a_document_by_itself_is_summed_up(owner: CommandLine, place: Place, document: Path) -> None:
    ran = owner("connector", "import-openapi", str(document), "--json")
    assert ran.json == {"title": "Things", "openapi": "3.0.3", "operations": 5, "tags": ["files", "items"]}
    assert not folder(place).exists()


# --- what is written


def test_chosen_operations_become_a_file_and_a_pinned_slice(owner: CommandLine, place: Place, document: Path) -> None:
    ran = owner("connector", "import-openapi", str(document), "--id", "things", "--tag", "items", "--json")
    file = folder(place) / "things.yaml"
    slice_of_it = folder(place) / "things.openapi.json"
    assert ran.json["file"] == str(file)
    assert ran.json["tools"] == ["list_items", "make_item"]
    assert hashlib.sha256(slice_of_it.read_bytes()).hexdigest() == ran.json["sha256"]
    assert b"getItem" not in slice_of_it.read_bytes()
    assert {path.stat().st_mode & 0o777 for path in (file, slice_of_it)} == {0o600}
    assert owner("connector", "check", str(file)).code == 0
    shown = owner("connector", "show", "things", "--json").json
    assert {tool["name"]: tool["effect"] for tool in shown["tools"]} == {"list_items": "sensitive", "make_item": "send"}


def test_what_cannot_be_offered_is_left_out_with_its_reason(owner: CommandLine, place: Place, document: Path) -> None:
    both = ("--operation", "putFile", "--operation", "listItems")
    ran = owner("connector", "import-openapi", str(document), "--id", "things", *both, "--json")
    assert ran.json["left_out"] == [
        {"operation": "PUT /items/{id}/file", "why": "Its body is multipart/form-data; JSON and forms are sent."}
    ]
    assert list(load(Path(ran.json["file"])).tools) == ["list_items"]
    alone = owner("connector", "import-openapi", str(document), "--id", "other", "--operation", "putFile")
    assert alone.code == 2
    assert not (folder(place) / "other.yaml").exists()


def test_nothing_is_overwritten_and_nothing_half_is_left(owner: CommandLine, place: Place, document: Path) -> None:
    for there in ("things.yaml", "things.openapi.json"):
        folder(place).mkdir(exist_ok=True)
        (folder(place) / there).write_text("mine")
        ran = owner("connector", "import-openapi", str(document), "--id", "things", "--operation", "listItems")
        assert (ran.code, "is there already" in ran.err) == (2, True)
        assert (folder(place) / there).read_text() == "mine"
        assert [path.name for path in folder(place).iterdir()] == [there]
        (folder(place) / there).unlink()


def test_a_further_operation_says_which_two_files_are_there_and_how_to_go_on(
    owner: CommandLine, place: Place, document: Path
) -> None:
    file = imported(owner, document, "listItems")
    before = file.read_bytes()
    ran = owner("connector", "import-openapi", str(document), "--id", "things", "--operation", "getItem")
    said = " ".join(ran.err.replace("│", " ").split())
    assert ran.code == 2
    for word in ("things.yaml", "things.openapi.json beside it are there already", "an `--operation` for each"):
        assert word in said
    assert file.read_bytes() == before


def test_what_an_import_left_for_a_person_is_named_until_it_is_done(
    owner: CommandLine, place: Place, document: Path
) -> None:
    document.write_text(json.dumps({name: part for name, part in DOCUMENT.items() if name != "servers"}))
    file = imported(owner, document, "listItems")
    found = owner("connector", "check", str(file), "--json").json["to_do"]
    lines = file.read_text().splitlines()
    assert [lines[one["line"] - 1].split(":")[0].strip() for one in found] == ["reviewed", "base_url", "call"]
    said = owner("connector", "check", str(file)).err
    assert all(word in said for word in ("`.invalid`", "`# CHECK`", "`reviewed: false`"))
    shown, refused = owner("connector", "show", "things"), owner("connect", "things", "--no-verify", "--secret-stdin")
    assert "give yours with --base-url" in shown.out
    assert "no" in next(line for line in shown.out.splitlines() if "reviewed" in line)
    assert (refused.code, "https://things.invalid stands for it in" in " ".join(refused.err.split())) == (1, True)
    for said in (shown.out, refused.err):
        assert "https://things" not in said.replace("https://things.invalid", "")
    done = file.read_text().replace(".invalid", ".example.com").replace("# CHECK", "#")
    file.write_text(done.replace("reviewed: false", "reviewed: true"))
    checked = owner("connector", "check", str(file), "--json")
    assert (checked.code, checked.json["to_do"]) == (0, [])
    shown = owner("connector", "show", "things", "--json").json
    assert (shown["reviewed"], shown["base_url"]) == (True, "https://things.example.com")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--operation", "listItem"), 1, "Did you mean 'listItems'"),
        (("--tag", "item"), 2, "Did you mean 'items'"),
        (("--operation", "listItems", "--id", "stripe"), 2, "comes with Keyleash"),
        (("--operation", "listItems", "--id", "../x"), 2, "cannot be an id"),
        (("--operation", "listItems", "--id", "a", "--output", "b.yaml"), 2, "named for its id: a.yaml"),
        (("--list", "--operation", "listItems"), 2, "write nothing"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_with_its_mend(
    keyleash: CommandLine, document: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    ran = keyleash("connector", "import-openapi", str(document), *arguments)
    assert ran.code == code
    assert says in " ".join(ran.err.split())
    assert not keyleash.home.exists()


# --- where it comes from


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://docs.things.example/openapi.json", "fetched by https"),
        ("file:///etc/passwd", "fetched by https"),
        ("https://user:secret@docs.things.example/x", "A base URL is"),
        ("https://127.0.0.1/openapi.json", "not public"),
        ("https://[::1]/openapi.json", "not public"),
        ("https://169.254.169.254/latest/meta-data", "not public"),
        ("https://docs.things.example/../x", "leave its base URL"),
    ],
)
def test_an_address_is_vetted_before_anything_is_fetched(keyleash: CommandLine, url: str, says: str) -> None:
    ran = keyleash("connector", "import-openapi", url, "--list")
    assert ran.code == 1
    assert says in ran.err
    assert ran.out == ""


def test_a_server_never_fetches_a_document(
    place: Place, owner: CommandLine, document: Path, upstream: Upstream
) -> None:
    """A file that names a URL is refused; what stands beside it is all that is read."""
    file = imported(owner, document, "listItems")
    file.write_text(file.read_text().replace("things.openapi.json", f"{upstream.url}/x.json"))
    ran = owner("connector", "check", str(file))
    assert ran.code == 1
    assert "The document cannot be" in ran.err
    assert upstream.requests == []


# --- what an agent gets


@pytest.mark.anyio
@pytest.mark.parametrize("preset", ["default", "solo", "strict"])
async def test_until_it_is_reviewed_no_preset_lets_anything_of_it_through(
    place: Place, owner: CommandLine, document: Path, upstream: Upstream, preset: str
) -> None:
    imported(owner, document, "listItems", "makeItem")
    connect(owner, upstream)
    assert owner("policy", "preset", preset).code == 0
    with opened_again(place) as again:
        async with running(again.installation) as parts:
            for name, arguments in (("things_list_items", {}), ("things_make_item", {"name": "x"})):
                with pytest.raises(ApprovalRequired):
                    await call(parts, again.caller(), name, arguments, Nobody())
    assert upstream.requests == []


@pytest.mark.anyio
async def test_once_reviewed_its_reads_run_and_its_writes_are_held(
    place: Place, owner: CommandLine, document: Path, upstream: Upstream
) -> None:
    file = imported(owner, document, "listItems", "makeItem")
    file.write_text(file.read_text().replace("reviewed: false", "reviewed: true"))
    connect(owner, upstream)
    upstream.answer = lambda request: Answer({"items": [], "key": request.headers["authorization"]})
    with opened_again(place) as again:
        async with running(again.installation) as parts:
            found = await call(parts, again.caller(), "things_list_items", {"page_size": 3}, Nobody())
            with pytest.raises(ApprovalRequired):
                await call(parts, again.caller(), "things_make_item", {"name": "x"}, Nobody())
    assert found.ok
    assert SECRET not in found.text
    assert [(request.method, request.target) for request in upstream.requests] == [("GET", "/items?pageSize=3")]


def test_a_document_that_was_changed_leaves_its_tools_out_and_doctor_says_so(
    place: Place, owner: CommandLine, document: Path, upstream: Upstream
) -> None:
    file = imported(owner, document, "listItems")
    connect(owner, upstream)
    beside = file.with_name("things.openapi.json")
    beside.write_bytes(beside.read_bytes().replace(b"listItems", b"listItemz"))
    for command in (("connector", "check", str(file)), ("connector", "show", "things"), ("doctor",)):
        ran = owner(*command)
        assert ran.code == 1
        assert "not the one that was pinned" in ran.out + ran.err
    with opened_again(place) as again:
        offer = again.installation.catalogue.offer({"things": "things"})
        assert (offer.tools, len(offer.problems)) == ((), 1)
    assert upstream.requests == []


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_a_backup_takes_the_document_along(place: Place, owner: CommandLine, document: Path, tmp_path: Path) -> None:
    imported(owner, document, "listItems")
    installation = place.installation
    made = make_backup(
        installation.database, installation.vault, installation.settings, tmp_path / "kept.db", release="1", by="test"
    )
    assert made.files == ("things.openapi.json", "things.yaml")


# --- connector new


def test_a_new_connector_is_sound_as_it_is_written_and_never_written_over(owner: CommandLine, place: Place) -> None:
    ran = owner("connector", "new", "my_things", "--json")
    file = folder(place) / "my_things.yaml"
    assert ran.json == {"id": "my_things", "file": str(file)}
    assert owner("connector", "check", str(file)).code == 0
    assert set(load(file).tools) == {"list_items", "rename_item"}
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("mine")
    again = owner("connector", "new", "my_things")
    assert (again.code, file.read_text()) == (2, "mine")
    for name in ("my_things", "stripe", "Bad", "../up", "a" * 41):
        refused = owner("connector", "new", name)
        assert (refused.code, "--id" in refused.err) == (2, False)  # it has no such option
    assert [path.name for path in folder(place).iterdir()] == ["my_things.yaml"]


# --- connector test


def reviewed(owner: CommandLine, document: Path) -> Path:
    file = imported(owner, document, "listItems", "getItem", "makeItem", "whoAmI")
    file.write_text(file.read_text().replace("reviewed: false", "reviewed: true"))
    return file


def test_the_reads_of_a_connection_are_run_on_record_and_nothing_else_is_sent(
    place: Place, owner: CommandLine, document: Path, upstream: Upstream
) -> None:
    reviewed(owner, document)
    connect(owner, upstream, "mine")
    before = len(place.events("connector.test_begun"))
    begun_before_sent: list[bool] = []

    def answer(request: Received) -> Answer:
        begun_before_sent.append(len(place.events("connector.test_begun")) == before + 1)
        return Answer({"error": {"message": "no"}}, status=500) if request.target == "/me" else Answer({"items": []})

    upstream.answer = answer
    ran = owner("connector", "test", "mine", "--json")
    assert ran.code == 1
    assert {one["tool"]: (one["ok"], one["status"]) for one in ran.json["tried"]} == {
        "mine_get_item": (True, 200),
        "mine_list_items": (True, 200),
        "mine_who_am_i": (False, 500),
    }
    assert ran.json["left_out"] == [{"tool": "mine_make_item", "why": "its effect is write"}]
    assert [(each.method, each.target) for each in upstream.requests] == [
        ("GET", "/items/i1"),
        ("GET", "/items"),
        ("GET", "/me"),
    ]
    assert all(each.headers["authorization"] == f"Bearer {SECRET}" for each in upstream.requests)
    assert begun_before_sent == [True, True, True]
    (tested,) = place.events("connector.tested")
    assert (tested["connection"], tested["by"]) == ("mine", "alice")
    assert [one["ok"] for one in tested["results"]] == [True, True, False]
    assert SECRET not in ran.out + ran.err
    assert files_holding(place.home, SECRET.encode()) == []


def test_a_read_whose_argument_has_no_example_is_not_run(
    owner: CommandLine, document: Path, upstream: Upstream
) -> None:
    without = json.loads(document.read_text())
    without["paths"]["/items/{id}"]["get"]["parameters"][0].pop("example")
    document.write_text(json.dumps(without))
    reviewed(owner, document)
    connect(owner, upstream)
    ran = owner("connector", "test", "things")
    assert ran.code == 0, ran.err
    assert "things_get_item: it needs id, and there is no example" in ran.err
    assert sorted(each.target for each in upstream.requests) == ["/items", "/me"]


def test_what_nobody_has_reviewed_is_not_run(owner: CommandLine, document: Path, upstream: Upstream) -> None:
    imported(owner, document, "listItems")
    connect(owner, upstream)
    ran = owner("connector", "test", "things")
    assert ran.code == 0
    assert "its effect is sensitive until the file says `reviewed: true` (read stands there)" in ran.err
    assert upstream.requests == []


def test_only_an_admin_may_run_them(place: Place, owner: CommandLine, document: Path, upstream: Upstream) -> None:
    reviewed(owner, document)
    connect(owner, upstream)
    place.member("bob", ("member",))
    ran = owner("connector", "test", "things", "--as", "bob")
    assert ran.code == 1
    assert "may not connect accounts" in ran.err
    assert upstream.requests == []
    assert place.events("connector.test_begun") == []
