"""Every kind of place that a root key may live in, set up for the contract that all of them must keep.

A rig is what one needs around it: for the operating system's keychain a stand-in, for a service a fake on loopback, or
the real one that the environment names.
"""

import os
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.vault.fake_kms import ACCESS_KEY, SECRET_KEY, FakeKms
from tests.vault.fake_transit import FakeKey, FakeTransit
from vault import CannotOpen, KeysUnavailable, RootKeyRef, VaultError, root_key_spec
from vault.aws import AwsKmsRef
from vault.keychain import KeychainRef
from vault.transit import TransitRef

REAL_TRANSIT = "KEYLEASH_TEST_TRANSIT"
TOKEN_FILE = "KEYLEASH_TRANSIT_TOKEN_FILE"
ADDRESS = "KEYLEASH_TRANSIT_ADDR"


@dataclass
class Rig:
    """One place. `ref` and `other` name two keys of it, anew each time; `away` makes its service unreachable.

    `refusals` are the errors for what was wrapped by another key or altered: CannotOpen alone, except where the
    service is a stand-in that says less than the real one.
    """

    ref: Callable[[], RootKeyRef]
    other: Callable[[], RootKeyRef]
    secrets: list[str] = field(default_factory=list)
    away: Callable[[], RootKeyRef] | None = None
    refusals: tuple[type[VaultError], ...] = (CannotOpen,)


@dataclass(frozen=True)
class SetUp:
    """What a rig is made with."""

    tmp_path: Path
    monkeypatch: pytest.MonkeyPatch
    moto: Callable[[], str]
    """The address of a moto that runs; one serves all tests."""


class RigKeychain:
    """Stands in for the operating system's."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def get_password(self, service: str, username: str, /) -> str | None:
        return self.entries.get(username)

    def set_password(self, service: str, username: str, password: str, /) -> None:
        self.entries[username] = password


@contextmanager
def keychain_rig(set_up: SetUp) -> Generator[Rig]:
    keychain = RigKeychain()
    real = (RigKeychain.__module__,)
    yield Rig(
        ref=lambda: KeychainRef("one", find=lambda: keychain, real=real),
        other=lambda: KeychainRef("two", find=lambda: keychain, real=real),
    )


@contextmanager
def file_rig(set_up: SetUp) -> Generator[Rig]:
    yield Rig(
        ref=lambda: root_key_spec("file", set_up.tmp_path / "home"),
        other=lambda: root_key_spec(f"file:{set_up.tmp_path / 'other.key'}", set_up.tmp_path / "home"),
    )


def alone_with_aws(monkeypatch: pytest.MonkeyPatch, *, endpoint: str) -> None:
    """These credentials and this endpoint, whatever the machine has of its own."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", endpoint)


@contextmanager
def fake_kms_rig(set_up: SetUp) -> Generator[Rig]:
    with ExitStack() as running:
        kms = running.enter_context(FakeKms())
        alone_with_aws(set_up.monkeypatch, endpoint=kms.url)
        one, two = kms.new_key(), kms.new_key()

        def away() -> RootKeyRef:
            running.close()
            return AwsKmsRef(one, patience=0.5)

        yield Rig(
            ref=lambda: root_key_spec(f"aws-kms:{one}", set_up.tmp_path),
            other=lambda: root_key_spec(f"aws-kms:{two}", set_up.tmp_path),
            secrets=[SECRET_KEY],
            away=away,
        )


@contextmanager
def moto_rig(set_up: SetUp) -> Generator[Rig]:
    import boto3

    url = set_up.moto()
    alone_with_aws(set_up.monkeypatch, endpoint=url)
    client = boto3.client("kms", region_name="eu-west-1")
    one, two = (client.create_key()["KeyMetadata"]["Arn"] for _ in range(2))

    def away() -> RootKeyRef:
        set_up.monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", f"http://127.0.0.1:{free_port()}")
        return AwsKmsRef(one, patience=0.5)

    yield Rig(
        ref=lambda: root_key_spec(f"aws-kms:{one}", set_up.tmp_path),
        other=lambda: root_key_spec(f"aws-kms:{two}", set_up.tmp_path),
        secrets=[SECRET_KEY],
        away=away,
        # It denies access without a word where KMS names the blob as the cause: see tests/vault/test_aws.py.
        refusals=(CannotOpen, KeysUnavailable),
    )


@contextmanager
def moto_server() -> Generator[str]:
    """moto in this process, on loopback: its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def write_token(path: Path, token: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(token + "\n")
    return path


@contextmanager
def fake_transit_rig(set_up: SetUp) -> Generator[Rig]:
    with ExitStack() as running:
        transit = running.enter_context(FakeTransit())
        transit.keys.update(one=FakeKey(), two=FakeKey())
        set_up.monkeypatch.setenv(TOKEN_FILE, str(write_token(set_up.tmp_path / "token", transit.token)))
        set_up.monkeypatch.setenv(ADDRESS, transit.url)

        def away() -> RootKeyRef:
            running.close()
            return root_key_spec(f"transit:{transit.url}#one", set_up.tmp_path)

        yield Rig(
            ref=lambda: root_key_spec(f"transit:{transit.url}#one", set_up.tmp_path),
            other=lambda: root_key_spec(f"transit:{transit.url}#two", set_up.tmp_path),
            secrets=[transit.token],
            away=away,
        )


@contextmanager
def real_transit_rig(set_up: SetUp) -> Generator[Rig]:
    spec = os.environ[REAL_TRANSIT]
    ref = root_key_spec(spec, set_up.tmp_path)
    assert isinstance(ref, TransitRef)
    yield Rig(
        ref=lambda: root_key_spec(spec, set_up.tmp_path),
        other=lambda: root_key_spec(f"{spec}-other", set_up.tmp_path),
        secrets=[ref.read_token().reveal()],
        away=lambda: replace(ref, address=(nobody := f"http://127.0.0.1:{free_port()}"), only=nobody),
    )


NewRig = Callable[[SetUp], AbstractContextManager[Rig]]
RIGS: dict[str, dict[str, NewRig]] = {
    "keychain": {"stand-in": keychain_rig},
    "file": {"file": file_rig},
    "aws-kms": {"fake": fake_kms_rig, "moto": moto_rig},
    "transit": {"fake": fake_transit_rig, **({"real": real_transit_rig} if os.environ.get(REAL_TRANSIT) else {})},
}
"""provider → what it is held to the contract with."""
