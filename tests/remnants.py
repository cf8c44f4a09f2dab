"""Find what is left of sealed bytes in files: every piece of 16 bytes or more, wherever it lies.

Another process reads the files: one that closes a file loses its locks on it, and SQLite's on the database with them.
"""

import subprocess
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_CHUNK = 8
"""Any 16 bytes in a row of a blob hold one whole chunk of it; that 8 random bytes turn up by chance is ruled out."""
_FIRST = 8
"""Where the random part of a blob has begun: before it stand version numbers, which many blobs share."""


def remnants(folder: Path, gone: Iterable[bytes]) -> list[str]:
    """Each file below `folder` that holds a piece of one of these blobs, and how many pieces."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert files, f"nothing was looked at: {folder} is empty"
    sought = {number for blob in gone for number in _numbers(blob[_FIRST:])}
    assert sought, "nothing was looked for"
    return [f"{path}: {count} pieces" for path in files if (count := _pieces(_content(path), sought))]


def _content(path: Path) -> bytes:
    return subprocess.run(["cat", path], capture_output=True, check=True).stdout


def _pieces(content: bytes, sought: set[int]) -> int:
    return sum(
        len(sought.intersection(numbers))
        for shift in range(_CHUNK)
        if not sought.isdisjoint(numbers := _numbers(content[shift:]))
    )


def _numbers(content: bytes) -> "array[int]":
    return array("Q", content[: len(content) // _CHUNK * _CHUNK])


SEALED = {
    "vault_field": "sealed",
    "vault_credential": "data_key",
    "vault_derived": "sealed",
    "vault_org_key": "wrapped",
    "approval": "sealed_call, sealed_prompt, sealed_outcome",
    "call_grant": "sealed_bounds",
    "work": "sealed_bounds",
}
"""Every column of bytes that belongs to an org."""


def sealed_of(database: Any, org: str, connection: str | None = None) -> list[bytes]:
    """Every sealed blob and wrapped key of an org, or of one of its connections only, as it is stored now."""
    found: list[bytes] = []
    for table, columns in SEALED.items():
        if connection is not None and table not in ("vault_field", "vault_credential"):
            continue
        where, values = ("org = ?", [org]) if connection is None else ("org = ? AND connection = ?", [org, connection])
        for row in database.read(f"SELECT {columns} FROM {table} WHERE {where}", values):
            found += [blob for blob in row if blob is not None]
    assert found, "there is nothing sealed"
    return found
