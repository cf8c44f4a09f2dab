"""Every kind of place that a reference can name, on this machine: put a secret there, take it away, make it slow."""

import os
import shlex
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.upstream import Answer, Received, Upstream
from vault import REFERENCES, Resolver

OP_TOKEN = "ops_token_canary_of_the_service_account_4417"
KV_TOKEN = "hvs.token_canary_of_the_key_value_engine_9920"
OP_ITEM = "op://Team/Some API/password"
KV_PATH = "vault://secret/apis/some#key"

OP = """#!/bin/sh
here=$(dirname "$0")
env > "$here/op.env"
printf '%s\\n' "$@" > "$here/op.words"
[ "$OP_SERVICE_ACCOUNT_TOKEN" = "{token}" ] || {{ echo "[ERROR] $OP_SERVICE_ACCOUNT_TOKEN" >&2; exit 6; }}
[ -e "$here/op.slow" ] && sleep 60
cat "$here/op.value"
"""


class Places:
    """`with Places(folder, monkeypatch) as places`; `sources` are all there are."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.home = folder / "home"
        self.programs = folder / "programs"
        self.kv = Upstream()
        self.kv.answer = self._read
        self.value: Any = None
        self.gate = threading.Event()
        self.gate.set()

    def __enter__(self) -> "Places":
        self.home.mkdir(exist_ok=True, mode=0o700)
        self.programs.mkdir()
        (self.programs / "op").write_text(OP.format(token=OP_TOKEN))
        (self.programs / "op").chmod(0o755)
        for name, token in {"op": OP_TOKEN, "kv": KV_TOKEN}.items():
            (self.folder / f"{name}.token").write_text(f"{token}\n")
            (self.folder / f"{name}.token").chmod(0o600)
        self.kv.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self.kv.__exit__()

    def resolver(self, **changed: Any) -> Resolver:
        given: dict[str, Any] = {
            "home": self.home,
            "path": f"{self.programs}:/usr/bin:/bin",
            "op_token_file": self.folder / "op.token",
            "kv_address": self.kv.url,
            "kv_token_file": self.folder / "kv.token",
        }
        return Resolver(**{**given, **changed})

    def keep(self, source: str, value: str | bytes) -> str:
        """Put the value there; returns the reference."""
        raw = value.encode() if isinstance(value, str) else value
        match source:
            case "env":
                self.patch.setenv("SOME_API_KEY", os.fsdecode(raw))
                return "env:SOME_API_KEY"
            case "file":
                return f"file:{self._file('some.secret', raw)}"
            case "cmd":
                return f"cmd:cat {shlex.quote(str(self._file('some.output', raw)))}"
            case "op":
                (self.programs / "op.value").write_bytes(raw)
                return OP_ITEM
            case "vault_kv":
                self.value = raw.decode("utf-8", "replace")
                return KV_PATH
            case _:
                raise AssertionError(f"there is no place {source} here: write one")

    def lose(self, source: str) -> None:
        """What was put there is gone."""
        self.patch.delenv("SOME_API_KEY", raising=False)
        for path in (self.folder / "some.secret", self.folder / "some.output", self.programs / "op.value"):
            path.unlink(missing_ok=True)
        self.value = None

    def slow(self, source: str) -> str | None:
        """A place of this kind that never answers, where there can be one; returns the reference."""
        match source:
            case "cmd":
                return "cmd:sleep 60"
            case "op":
                (self.programs / "op.slow").touch()
                return OP_ITEM
            case "vault_kv":
                self.gate.clear()
                return KV_PATH
            case _:
                return None

    def _file(self, name: str, raw: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(raw)
        path.chmod(0o600)
        return path

    def _read(self, request: Received) -> Answer:
        if request.headers.get("x-vault-token") != KV_TOKEN:
            return Answer({"errors": [f"permission denied for {request.headers.get('x-vault-token')}"]}, 403)
        if request.target != "/v1/secret/data/apis/some" or self.value is None:
            return Answer({"errors": []}, 404, wait=self.gate)
        whole = {"data": {"key": self.value}, "metadata": {"version": 3, "destroyed": False}}
        return Answer({"request_id": "x", "lease_id": "", "data": whole}, wait=self.gate)


SOURCES: tuple[str, ...] = tuple(REFERENCES)
