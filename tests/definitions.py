"""What comes with the program is read once for a process that runs tests: a good part of a place's cost went there."""

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import connectors.catalogue
from connectors.catalogue import shipped_folder
from connectors.definition import Connector, Tool
from connectors.loading import load

SHIPPED = shipped_folder()


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Inside of it, whoever asks for a shipped connector is given the same one; all others are read as ever."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            connectors.catalogue, "load", lambda path: _shipped(path) if path.parent == SHIPPED else load(path)
        )
        yield


@cache
def _shipped(path: Path) -> Connector:
    return load(path)


@contextlib.contextmanager
def input_of(tool: Tool, schema: dict[str, Any]) -> Iterator[None]:
    """A tool whose arguments are described so, inside of it."""
    before = tool.input_schema
    object.__setattr__(tool, "input_schema", schema)
    try:
        yield
    finally:
        object.__setattr__(tool, "input_schema", before)
