from pathlib import Path

import pytest

from vault import PROVIDERS, RootKeyProblem, root_key_spec
from vault.aws import AwsKmsRef
from vault.keychain import KeychainRef
from vault.keyfile import FileRef
from vault.transit import TransitRef

ARN = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
SPECS = {
    "keychain": "keychain",
    "file": "file",
    "aws-kms": f"aws-kms:{ARN}",
    "transit": "transit:https://bao.example.com:8200/team/transit#keyleash",
}
"""provider → the shortest spec of a place"""

OF_THEIR_OWN = [provider for provider, spec in SPECS.items() if spec == provider]
NAMED_ONLY = [provider for provider in SPECS if provider not in OF_THEIR_OWN]


def test_every_provider_is_looked_at_here():
    assert list(SPECS) == list(PROVIDERS)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_place_is_described_by_a_spec_that_names_it_again(provider: str, tmp_path: Path):
    ref = root_key_spec(SPECS[provider], tmp_path)
    assert ref.describe() == {"provider": provider, "location": ref.location}
    assert ref.location
    assert root_key_spec(f"{provider}:{ref.location}", tmp_path / "elsewhere") == ref


@pytest.mark.parametrize("provider", OF_THEIR_OWN)
def test_two_homes_never_share_a_place_unless_it_is_named(provider: str, tmp_path: Path):
    assert root_key_spec(provider, tmp_path / "a").location != root_key_spec(provider, tmp_path / "b").location


@pytest.mark.parametrize("provider", NAMED_ONLY)
def test_a_key_that_a_service_keeps_is_the_same_for_every_home(provider: str, tmp_path: Path):
    spec = SPECS[provider]
    assert root_key_spec(spec, tmp_path / "a") == root_key_spec(spec, tmp_path / "b")


@pytest.mark.parametrize("provider", NAMED_ONLY)
@pytest.mark.parametrize("colon", ["", ":"])
def test_a_provider_without_a_place_of_its_own_says_how_to_name_one(provider: str, colon: str, tmp_path: Path):
    with pytest.raises(RootKeyProblem, match=f"`{provider}:[^`]+`") as caught:
        root_key_spec(provider + colon, tmp_path)
    assert "Nothing follows" not in str(caught.value)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_naming_a_place_makes_nothing(provider: str, tmp_path: Path):
    root_key_spec(SPECS[provider], tmp_path / "home")
    assert list(tmp_path.iterdir()) == []


def test_specs_name_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.delenv("KEYLEASH_TRANSIT_TOKEN_FILE", raising=False)
    assert root_key_spec("file", tmp_path) == FileRef(tmp_path / "keys" / "root.key")
    assert root_key_spec("file:/etc/k:1", tmp_path) == FileRef(Path("/etc/k:1"))
    assert root_key_spec("file:k", tmp_path) == FileRef(tmp_path / "k")
    assert root_key_spec("file:~/k", tmp_path) == FileRef(tmp_path / "me" / "k")
    assert root_key_spec("keychain:mine", tmp_path) == KeychainRef("mine")
    assert root_key_spec(f"aws-kms:{ARN}", tmp_path) == AwsKmsRef(ARN)
    assert root_key_spec("transit:https://bao:8200#k", tmp_path) == TransitRef("https://bao:8200", "transit", "k")


@pytest.mark.parametrize("spec", ["", "files", "File", "kms:alias", "/path", " file"])
def test_an_unknown_provider_is_refused_with_the_choices(spec: str, tmp_path: Path):
    with pytest.raises(RootKeyProblem, match="keychain, file, aws-kms, transit"):
        root_key_spec(spec, tmp_path)


@pytest.mark.parametrize("spec", ["file:", "keychain:"])
def test_a_spec_that_ends_at_its_colon_is_refused(spec: str, tmp_path: Path):
    with pytest.raises(RootKeyProblem, match="Nothing follows the colon"):
        root_key_spec(spec, tmp_path)
