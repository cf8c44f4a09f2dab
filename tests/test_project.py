"""The project itself: its lint, types, architecture, packaging, and how much it stands on."""

import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
MOST_DISTRIBUTIONS = 64


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    run("ruff", "check", ".")
    run("ruff", "format", "--check", ".")


@pytest.mark.slow
def test_pyright_strict_finds_nothing() -> None:
    run("pyright", "--pythonpath", sys.executable)


def test_every_room_imports_only_what_it_may() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_nothing_but_the_door_opens_a_url() -> None:
    """import-linter cannot forbid one submodule of `urllib`, which is needed for taking URLs apart."""
    for room in ("server", "connectors", "vault"):
        for path in (ROOT / room).rglob("*.py"):
            assert "urllib" + ".request" not in path.read_text(encoding="utf-8"), path


def test_the_closure_without_extras_is_small() -> None:
    closure = _closure("keyleash")
    assert len(closure) <= MOST_DISTRIBUTIONS, f"{len(closure)}: {sorted(closure)}"
    assert {"mcp", "cryptography", "aiohttp"} <= closure


def _closure(name: str) -> set[str]:
    """Everything that `pip install NAME` brings on this platform, by canonical name, NAME itself not counted."""
    found: set[str] = set()
    todo: list[tuple[str, frozenset[str]]] = [(name, frozenset())]
    while todo:
        current, extras = todo.pop()
        for text in requires(current) or []:
            needed = Requirement(text)
            if needed.marker is not None and not any(
                needed.marker.evaluate({"extra": extra}) for extra in (extras or {""})
            ):
                continue
            dependency = canonicalize_name(needed.name)
            if dependency not in found:
                found.add(dependency)
                todo.append((dependency, frozenset(needed.extras)))
    return found


@pytest.mark.slow
def test_the_wheel_carries_the_rooms_and_the_definitions(tmp_path: Path) -> None:
    run("hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for shipped in sorted((ROOT / "configs" / "connectors").glob("*.yaml")):
        assert f"connectors/_definitions/{shipped.name}" in names
    for preset in ("default", "solo", "strict"):
        assert f"server/_presets/{preset}.yaml" in names
    assert "server/migrations/env.py" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"server", "connectors", "vault"}
    (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
    assert zipfile.ZipFile(wheel).read(entry_points).decode().split() == [
        "[console_scripts]",
        "keyleash",
        "=",
        "server.cli:main",
    ]


@pytest.mark.slow
def test_the_wheel_runs_outside_the_checkout(tmp_path: Path) -> None:
    run("hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist"))
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    code = "import server, sys; sys.stderr.write(server.__file__); from server.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "connector", "list", "--json"],
        cwd=tmp_path / "empty",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "KEYLEASH_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stderr
    assert "stripe" in done.stdout


def test_no_file_names_a_registrys_host_or_is_a_lock() -> None:
    files = [
        path
        for path in ROOT.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") or part == "__pycache__" for part in path.parts[len(ROOT.parts) :])
    ]
    assert len(files) > 100
    hosts = ("pypi" + ".org", "pythonhosted" + ".org", "registry.npm" + "js.org")
    for path in files:
        assert path.name not in ("package-lock.json", "poetry.lock", "yarn.lock")
        text = path.read_text(encoding="utf-8", errors="replace")
        assert not any(host in text for host in hosts), path


def test_the_version_is_said_once() -> None:
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert distribution("keyleash").version == said
    assert f"## {said}" in (ROOT / "CHANGELOG.md").read_text()
