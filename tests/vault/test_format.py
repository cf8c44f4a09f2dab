"""The documented format is the whole of it: a program written from the text of `vault/seal.py` opens everything."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tests.vault import independent
from tests.vault.make_golden import golden

HERE = Path(__file__).parent
FILES = sorted((HERE / "golden").glob("v*.json"))
FROM_V2 = [file for file in FILES if file.name != "v1.json"]


def plain(value: object) -> object:
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value


def reader(found: dict[str, Any]) -> independent.Reader:
    tables = {
        table: [{"root": 1, **{name: plain(value) for name, value in row.items()}} for row in rows]
        for table, rows in found["tables"].items()
    }
    return independent.Reader(tables, found.get("root_key_files") or {"/keys/root.key": found["root_key_file"]})


def loaded(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def test_the_independent_program_is_one():
    tree = ast.parse(Path(independent.__file__).read_text(encoding="utf-8"))
    modules = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    assert modules == {"base64", "json", "typing", "cryptography"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_opens_a_golden_blob(file: Path):
    blob = loaded(file)["seal"]
    opened = independent.opened(bytes.fromhex(blob["key"]), bytes.fromhex(blob["blob"]), blob["context"])
    assert opened.decode() == blob["plaintext"]


def test_it_opens_the_database_of_the_first_release():
    found = loaded(HERE / "golden" / "v1.json")
    program = reader(found)
    program.check()
    assert program.credential("org_golden", "con_golden", 1) == {"secret": "sk_golden", "user": "jürgen"}
    assert program.credential("org_golden", "con_golden", 2) == {"secret": "sk_golden_2"}
    text = bytes.fromhex(found["text"])
    assert program.text("org_golden", "arguments", "apr_golden", text) == '{"amount":100}'
    assert program.derived("org_golden", "audit").hex() == found["derived"]["org_golden"]
    assert program.derived("", "state").hex() == found["derived"][""]


@pytest.mark.parametrize("file", [*FROM_V2, None], ids=lambda file: file.stem if file else "made now")
def test_it_opens_a_database_in_the_middle_of_two_rotations(file: Path | None):
    found = loaded(file) if file else json.loads(json.dumps(golden()))
    program = reader(found)
    program.check()
    for credential in found["credentials"]:
        at = (credential["org"], credential["connection"], credential["version"])
        assert program.credential(*at) == credential["fields"]
    for text in found["texts"]:
        stored = bytes.fromhex(text["sealed"])
        assert program.text(text["org"], text["purpose"], text["subject"], stored) == text["text"]
    for key in found["derived"]:
        assert program.derived(key["org"], key["purpose"]).hex() == key["key"]
    assert all(len(found[kind]) > 12 for kind in ("credentials", "texts", "derived"))
