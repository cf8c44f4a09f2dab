"""A recovery file brings the root key back with its passphrase, and with nothing else."""

import base64
import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.leaks import leak
from vault import LocalRootKey, Secret
from vault.errors import RecoveryProblem
from vault.keyfile import FileRef
from vault.recovery import (
    LEAST,
    MAX_FILE_BYTES,
    MOST,
    RecoveryFile,
    Stretching,
    exported,
    mark,
    read_recovery,
    require_passphrase,
    root_of,
    sealed_root,
    taking,
)
from vault.root import new_root_text

GOLDEN = Path(__file__).parent / "golden"
PASSPHRASE = "correct horse battery"
CHECK = b"a check that only the root key opens"


def secret(text: str) -> Secret:
    return Secret({"secret": text})


@pytest.fixture(scope="module")
def root() -> Secret:
    return new_root_text()


@pytest.fixture(scope="module")
def made(root: Secret) -> RecoveryFile:
    return sealed_root(root, secret(PASSPHRASE), generation=3, check=CHECK, made_at="2026-11-23T09:14:48.123Z")


@pytest.fixture
def written(made: RecoveryFile, tmp_path: Path) -> Path:
    made.write(tmp_path / "recovery.json")
    return tmp_path / "recovery.json"


def altered(path: Path, change: Any) -> Path:
    """The same file after `change` was done to its object."""
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))
    return path


# -- there and back


def test_the_key_comes_back_with_its_passphrase(written: Path, root: Secret):
    opened = read_recovery(written).open(secret(PASSPHRASE))
    assert opened.reveal() == root.reveal()
    assert isinstance(root_of(opened), LocalRootKey)


def test_what_the_first_release_wrote_opens():
    recovery = read_recovery(GOLDEN / "recovery_v1.json")
    golden = json.loads((GOLDEN / "v1.json").read_text())
    assert recovery.open(secret("Käse, nicht Käfer 7")).reveal() == golden["root_key_file"].strip()
    assert recovery.fits == mark(bytes.fromhex(golden["tables"]["vault_root"][0]["check_blob"]["hex"]))


def test_the_golden_file_is_what_the_text_of_the_module_says():
    """Taken apart by hand, with nothing of the module: another program could read it by its description."""
    said = json.loads((GOLDEN / "recovery_v1.json").read_text())
    kdf = said["kdf"]
    assert (kdf["name"], kdf["iterations"], kdf["lanes"], kdf["memory_kib"]) == ("argon2id", 3, 4, 65536)
    key = Argon2id(salt=bytes.fromhex(kdf["salt"]), length=32, iterations=3, lanes=4, memory_cost=65536).derive(
        "Käse, nicht Käfer 7".encode()
    )
    from vault import unseal

    context = ("recovery-file", "1", said["made_at"], "1", said["fits"], "argon2id", kdf["salt"], "3", "4", "65536")
    assert unseal(key, base64.b64decode(said["sealed"]), context=context).startswith(b"keyleash-root-key:v1:")


def test_a_passphrase_typed_on_another_system_is_the_same(made: RecoveryFile, root: Secret):
    composed, decomposed = "grüße an alle hier", "gru\u0308ße an alle hier"
    recovery = sealed_root(root, secret(composed), generation=1, check=CHECK, made_at=made.made_at)
    assert recovery.open(secret(decomposed)).reveal() == root.reveal()


def test_two_files_of_one_key_share_nothing_secret(made: RecoveryFile, root: Secret):
    again = sealed_root(root, secret(PASSPHRASE), generation=3, check=CHECK, made_at=made.made_at)
    assert again.kdf.salt != made.kdf.salt
    assert again.sealed != made.sealed


def test_the_file_is_for_its_owner_and_never_written_over(made: RecoveryFile, written: Path):
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    before = written.read_bytes()
    with pytest.raises(RecoveryProblem, match="it was not touched"):
        made.write(written)
    assert written.read_bytes() == before
    with pytest.raises(RecoveryProblem, match="could not be written"):
        made.write(written / "below")


def test_neither_key_nor_passphrase_stand_in_the_file(written: Path, root: Secret):
    text = written.read_text()
    assert leak(text, root.reveal().removeprefix("keyleash-root-key:v1:")) is None
    assert leak(text, PASSPHRASE) is None


# -- what does not open


@pytest.mark.parametrize("wrong", ["correct horse batterx", "Correct horse battery", " correct horse battery"])
def test_another_passphrase_opens_nothing(written: Path, wrong: str):
    with pytest.raises(RecoveryProblem, match=r"passphrase is another one, or the file is damaged"):
        read_recovery(written).open(secret(wrong))


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said.update(made_at="2026-11-23T09:14:48.124Z"),
        lambda said: said.update(generation=4),
        lambda said: said.update(fits="0" * 64),
        lambda said: said["kdf"].update(salt="0" * 32),
        lambda said: said["kdf"].update(iterations=4),
        lambda said: said["kdf"].update(lanes=5),
        lambda said: said["kdf"].update(memory_kib=65537),
        lambda said: said.update(sealed=said["sealed"][:-4]),
    ],
    ids=["made_at", "generation", "fits", "salt", "iterations", "lanes", "memory", "sealed"],
)
def test_a_file_that_was_changed_anywhere_says_the_same_as_for_a_wrong_passphrase(written: Path, change: Any):
    with pytest.raises(RecoveryProblem, match=r"passphrase is another one, or the file is damaged"):
        read_recovery(altered(written, change)).open(secret(PASSPHRASE))


@given(st.integers(min_value=0))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bit_of_the_sealed_key_can_be_flipped(made: RecoveryFile, at: int):
    flipped = bytearray(made.sealed)
    place, bit = divmod(at % (8 * len(flipped)), 8)
    flipped[place] ^= 1 << bit
    with pytest.raises(RecoveryProblem):
        replace(made, sealed=bytes(flipped)).open(secret(PASSPHRASE))


def test_a_sealed_text_that_is_no_root_key_is_not_taken_for_one(made: RecoveryFile):
    other = sealed_root(secret("something else"), secret(PASSPHRASE), generation=1, check=CHECK, made_at=made.made_at)
    with pytest.raises(RecoveryProblem, match="does not open"):
        other.open(secret(PASSPHRASE))


# -- what is not read at all


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("memory_kib", value) for value in (0, 8, 65535, MOST.memory_kib + 1, 2**40, -65536)),
        *(("iterations", value) for value in (0, 1, 2, 17, 10**9)),
        *(("lanes", value) for value in (0, 1, 3, 17, 2**24)),
        *((name, value) for name in ("memory_kib", "iterations", "lanes") for value in (True, "65536", 65536.0, None)),
    ],
)
def test_parameters_that_are_weak_or_take_the_machine_are_refused_before_any_work(written: Path, name: str, value: Any):
    with pytest.raises(RecoveryProblem, match=f"its {name} is not a number from"):
        read_recovery(altered(written, lambda said: said["kdf"].update({name: value})))


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said.update(format="keyleash-backup"),
        lambda said: said.update(version=2),
        lambda said: said.update(note="hello"),
        lambda said: said.pop("fits"),
        lambda said: said.update(kdf="argon2id"),
        lambda said: said["kdf"].update(name="argon2i"),
        lambda said: said["kdf"].pop("salt"),
        lambda said: said["kdf"].update(salt="zz" * 16),
        lambda said: said["kdf"].update(salt="00" * 8),
        lambda said: said.update(sealed="no base64!"),
        lambda said: said.update(sealed=7),
        lambda said: said.update(generation=0),
        lambda said: said.update(made_at="yesterday"),
    ],
)
def test_what_is_not_a_recovery_file_of_this_form_is_refused_with_a_reason(written: Path, change: Any):
    with pytest.raises(RecoveryProblem, match=r"is not a recovery file that this release reads: .+export-recovery"):
        read_recovery(altered(written, change))


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"SQLite format 3\0", b"[" * 10_000, b'{"format": 1, "format": 2}'],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, raw: bytes):
    (tmp_path / "file").write_bytes(raw)
    with pytest.raises(RecoveryProblem, match="not a recovery file"):
        read_recovery(tmp_path / "file")


def test_a_member_that_stands_there_twice_is_refused(written: Path):
    written.write_text(written.read_text().replace('"generation": 3', '"generation": 3, "generation": 3'))
    with pytest.raises(RecoveryProblem, match="not a recovery file"):
        read_recovery(written)


def test_only_the_start_of_a_long_file_is_read(written: Path):
    written.write_text(written.read_text() + " " * MAX_FILE_BYTES)
    with pytest.raises(RecoveryProblem, match="too long"):
        read_recovery(written)


def test_a_file_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(RecoveryProblem, match="cannot be read: No such file"):
        read_recovery(tmp_path / "none")


# -- passphrases


@pytest.mark.parametrize("short", ["", "x", "eleven char"])
def test_a_short_passphrase_is_refused_and_seals_nothing(root: Secret, short: str):
    with pytest.raises(RecoveryProblem, match="at least 12 characters"):
        sealed_root(root, secret(short), generation=1, check=CHECK, made_at="2026-11-23T09:14:48.123Z")
    require_passphrase(secret("twelve chars"))


def test_no_file_is_written_with_less_than_the_recommended_option(made: RecoveryFile):
    assert replace(made.kdf, salt="") == LEAST == Stretching("", 3, 4, 65536)


def test_a_refusal_holds_neither_key_nor_passphrase(made: RecoveryFile, root: Secret, locals_in):
    with pytest.raises(RecoveryProblem) as caught:
        made.open(secret("another passphrase"))
    assert "another passphrase" not in locals_in(caught.value)
    with pytest.raises(RecoveryProblem) as short:
        sealed_root(root, secret("canary"), generation=1, check=CHECK, made_at=made.made_at)
    assert "canary" not in locals_in(short.value)
    assert root.reveal() not in locals_in(short.value)


# -- places


class InService:
    """A key service's place: a key that is in it stays there."""

    provider: ClassVar[str] = "some-kms"
    location = "key/1"

    @classmethod
    def at(cls, where: str, home: Path) -> "InService":
        return cls()

    def create(self) -> LocalRootKey:
        raise AssertionError

    load = create

    def successor(self, generation: int) -> "InService":
        return self

    def destroy(self) -> bool:
        return False

    def describe(self) -> dict[str, str]:
        return {"provider": self.provider, "location": self.location}


def test_a_key_that_never_leaves_its_service_is_not_exported_and_the_mend_is_said():
    with pytest.raises(RecoveryProblem, match=r"some-kms \(key/1\) and never leaves it.*vault backup.*deletion"):
        exported(InService())
    with pytest.raises(RecoveryProblem, match=r"cannot be put into some-kms.*keychain or file"):
        taking(InService())


def test_an_exported_key_is_the_one_that_is_kept_there(tmp_path: Path):
    here = FileRef.at("", tmp_path)
    blob = here.create().wrap(b"o" * 32, context=("c",))
    root = root_of(exported(here))
    assert root is not None
    assert root.unwrap(blob, context=("c",)) == b"o" * 32
