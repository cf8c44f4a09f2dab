"""Which database a test runs on: both where it is marked so, otherwise the one that KEYLEASH_TEST_DATABASE names."""

import gc
import os
from collections.abc import Iterator

import pytest

KINDS = ("sqlite", "postgres")
CHOSEN = os.environ.get("KEYLEASH_TEST_DATABASE", "sqlite")
assert CHOSEN in KINDS, f"KEYLEASH_TEST_DATABASE is one of {', '.join(KINDS)}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("both_databases") and CHOSEN == "sqlite":
        metafunc.fixturenames.append("database_kind")
        metafunc.parametrize("database_kind", KINDS, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with what is slow come first, so that a run on several processes does not end with one that still works."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What collecting made stays to the end; to look through it for garbage again and again costs a tenth of a run."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def database_kind(request: pytest.FixtureRequest) -> str:
    """The kind of database that this test runs on."""
    return str(getattr(request, "param", CHOSEN))


@pytest.fixture(autouse=True)
def _database(database_kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if database_kind == "sqlite":
        yield
        return
    about = request.node.get_closest_marker("sqlite_only")
    if about is not None:
        pytest.skip(f"on SQLite only: {about.args[0]}")
    from tests import postgres

    monkeypatch.setenv("KEYLEASH_TEST_DATABASE", database_kind)
    shared = postgres.made()
    yield
    postgres.drop_all(shared)
